import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.apply.quantize import quantize_program
from gossamer.errors import PlanError
from gossamer.numerics.affine import Quantizer, dequantize, quantize
from gossamer.numerics.formats import IntFormat, PerAxis, PerTensor
from gossamer.numerics.packing import pack_steps
from gossamer.plan.edits import FoldBatchNorm, QuantizeValue, RoundWeight, ShiftBias, SplitGate
from gossamer.plan.plan import Plan
from gossamer.program.bundle import load, save
from gossamer.program.capture import capture

TARGET = "onnxruntime"
CODES = Quantizer(IntFormat(bits=8, signed=False), PerTensor(), (0.05,), (128,))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.tied = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        y = nn.functional.silu(self.norm(self.conv(x)))
        return self.tied(self.tied(y))


@pytest.fixture
def program():
    torch.manual_seed(0)
    net = Net()
    nn.init.normal_(net.norm.running_mean)
    return capture(net.eval(), torch.randn(2, 4, 6, 6))


@pytest.fixture
def x():
    return torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def weight_quantizer(weight):
    scale = (weight.detach().abs().flatten(1).amax(1) / 127).tolist()
    return Quantizer(IntFormat(bits=8, narrow=True), PerAxis(0), tuple(scale), (0,) * len(scale))


def test_folding_and_splitting_change_no_output(program, x):
    folds = [FoldBatchNorm("batch_norm"), SplitGate("silu")]
    changed = quantize_program(program, folds, TARGET)
    ops = [node.op for node in changed.graph.nodes]
    assert "aten.batch_norm.default" not in ops
    assert "aten.silu.default" not in ops
    torch.testing.assert_close(changed(x), program(x), atol=1e-5, rtol=1e-5)


def test_shifted_bias_shifts_the_output_of_that_layer_alone(program, x):
    shift = tuple(float(i) for i in range(6))
    weight = program.state["tied.weight"].detach()[:, :, 0, 0]
    changed = quantize_program(program, [ShiftBias("conv2d_1", shift)], TARGET)  # shares its bias with conv2d_2
    expected = program(x) + (weight @ torch.tensor(shift)).reshape(-1, 1, 1)
    torch.testing.assert_close(changed(x), expected, atol=1e-4, rtol=1e-4)
    first = quantize_program(program, [ShiftBias("conv2d", shift)], TARGET)  # has none so far
    outputs = {}
    first.run(x, observe={"conv2d": lambda name, value: outputs.update(got=value)})
    program.run(x, observe={"conv2d": lambda name, value: outputs.update(was=value)})
    torch.testing.assert_close(outputs["got"], outputs["was"] + torch.tensor(shift).reshape(-1, 1, 1))


def test_rounded_weight_is_what_its_codes_stand_for(program):
    weight = program.state["tied.weight"].detach()
    quantizer = weight_quantizer(weight)
    steps = torch.randint(-2, 3, weight.shape, generator=torch.Generator().manual_seed(0)).float()
    edits = [QuantizeValue("tied.weight", quantizer), RoundWeight("tied.weight", pack_steps(steps))]
    rounded = quantize_program(program, edits, TARGET).state["tied.weight"]
    codes = (quantize(weight, quantizer) + steps).clamp(-127, 127)
    assert torch.equal(rounded, dequantize(codes, quantizer))
    assert torch.equal(quantize(rounded, quantizer), codes)  # coding it again changes nothing


def test_argument_stays_and_shares_nothing(program, x):
    before = {name: tensor.clone() for name, tensor in program.state.items()}
    graph = program.graph
    changed = quantize_program(program, [FoldBatchNorm("batch_norm"), QuantizeValue("x", CODES)], TARGET)
    with torch.no_grad():
        for tensor in changed.state.values():
            tensor.zero_()
    assert program.graph is graph
    assert all(torch.equal(before[name], tensor) for name, tensor in program.state.items())
    assert changed.target == TARGET
    assert changed.quantizers == {"x": CODES}


def test_a_quantized_program_survives_saving(program, x, tmp_path):
    changed = quantize_program(program, [QuantizeValue("x", CODES), QuantizeValue("conv2d", CODES)], TARGET)
    again = load(save(changed, tmp_path / "q.gossamer"))
    assert again.quantizers == changed.quantizers
    assert torch.equal(again(x), changed(x))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (FoldBatchNorm("conv2d"), "folds 'conv2d', which is no batch norm behind a layer"),
        (SplitGate("conv2d"), "splits 'conv2d', which is no gated activation"),
        (QuantizeValue("nothing", CODES), "quantizes 'nothing', which this network does not have"),
        (RoundWeight("tied.weight", ""), "rounds 'tied.weight', which is no weight that it quantizes"),
        (ShiftBias("silu", (0.0,)), "shifts the bias of 'silu', which is no layer"),
        (ShiftBias("conv2d_1", (0.0,)), "shifts 1 biases of 'conv2d_1', which has 6"),
    ],
)
def test_edits_that_do_not_fit(program, edit, message):
    with pytest.raises(PlanError, match=message):
        quantize_program(program, [edit], TARGET)


def test_a_quantized_program_is_refused(program):
    quantized = quantize_program(program, [QuantizeValue("x", CODES)], TARGET)
    with pytest.raises(PlanError, match="quantized already"):
        apply(quantized, Plan((QuantizeValue("x", CODES),), quantized.digest, target=TARGET))
