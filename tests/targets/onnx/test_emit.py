from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.errors import FileError, UnsupportedOp
from gossamer.numerics.affine import dequantize, quantize
from gossamer.program.capture import capture
from gossamer.program.ops import op_of
from gossamer.targets.onnx.emit import emit, to_onnx
from gossamer.targets.onnx.optimized import layers_in_float, optimized_ops
from gossamer.targets.onnx.run import open_session
from targets.onnx.coded import quantize_program

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ACTIVATIONS = [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.GELU]


class Block(nn.Module):
    """A random small CNN: convolutions of any kind, an activation each, residuals, concats, pools, a classifier."""

    def __init__(self, choose, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList()
        self.joins = []
        width = 3
        for _ in range(choose(st.integers(1, 4))):
            groups = choose(st.sampled_from([1, width]))
            out = width if groups > 1 else choose(st.sampled_from([4, 6]))
            kernel = choose(st.integers(1, 3))
            conv = nn.Conv2d(
                width, out, kernel, choose(st.integers(1, 2)), choose(st.integers(0, 2)), groups=groups, bias=choose(st.booleans())
            )
            norm = nn.BatchNorm2d(out) if choose(st.booleans()) else nn.Identity()
            self.layers.append(nn.Sequential(conv, norm, choose(st.sampled_from(ACTIVATIONS))()))
            self.joins.append(choose(st.sampled_from(["", "", "add", "cat", "max", "avg"])))
            width = 2 * out if self.joins[-1] == "cat" else out
        self.head = nn.Sequential(choose(st.sampled_from([nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2)])), nn.Flatten(), nn.Dropout())
        self.classifier = nn.LazyLinear(5)

    def forward(self, x):
        for layer, join in zip(self.layers, self.joins, strict=True):
            x = layer(x)
            match join:
                case "add":
                    x = x + layer[-1](x)
                case "cat":
                    x = torch.cat([x, -x], 1)
                case "max":
                    x = nn.functional.max_pool2d(x, 2, 1, 1, ceil_mode=True)
                case "avg":
                    x = nn.functional.avg_pool2d(x, 2, 1, ceil_mode=True)
        return self.classifier(self.head(x))


@st.composite
def networks(draw):
    network = Block(draw, draw(st.integers(0, 1000)))
    size = (3, draw(st.integers(24, 29)), draw(st.integers(24, 29)))
    network(torch.randn(4, *size))  # in training mode: batch norms get statistics, the lazy layer its size
    return network.eval(), size


def run_file(path, *inputs):
    return torch.from_numpy(open_session(path, threads=1).run(*(x.numpy() for x in inputs)))


many = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@many
@given(networks())
def test_float_file_equals_the_program(tmp_path_factory, made):
    network, size = made
    program = capture(network, torch.randn(2, *size))
    path = tmp_path_factory.mktemp("float") / "m.onnx"
    emit(program, path)
    onnx.checker.check_model(str(path), full_check=True)
    for batch in (1, 3):
        (x,) = program.example_inputs(batch, seed=batch)
        torch.testing.assert_close(run_file(path, x), program(x).detach(), rtol=1e-4, atol=1e-4)


@many
@given(networks())
def test_quantized_file_equals_the_rounded_program_value_by_value(tmp_path_factory, made):
    """Each value is computed from the runtime's own inputs, so that only ties may round otherwise."""
    network, size = made
    program = quantize_program(capture(network, torch.randn(2, *size)), torch.randn(8, *size))
    path = tmp_path_factory.mktemp("coded") / "m.onnx"
    emit(program, path)
    onnx.checker.check_model(str(path), full_check=True)
    (x,) = program.example_inputs(3, seed=1)
    values = open_session(path, threads=1, values=True).run_values(x.numpy())
    steps = {}

    def compare(name, value):
        if name not in values or name not in program.quantizers:
            return None
        quantizer, codes = program.quantizers[name], torch.from_numpy(values[name])
        steps[name] = (quantize(value.detach(), quantizer) - codes.float()).abs()
        return dequantize(codes, quantizer)

    with torch.no_grad():
        program.run(x, observe=compare)
    assert set(steps) >= {node.name for node in program.graph.nodes if op_of(node).onnx == "Conv" and node.name in program.quantizers}
    for name, step in steps.items():
        assert step.max() <= 1, name


def residual_network():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2))
            self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1))
            self.head = nn.Sequential(nn.ReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.body(x))

    torch.manual_seed(0)
    network = Net()
    network(torch.randn(8, 3, 32, 32))  # gives the batch norm statistics
    return network.eval()


def test_a_quantized_cnn_runs_in_integers_only(tmp_path):
    program = quantize_program(capture(residual_network(), torch.randn(2, 3, 32, 32)), torch.randn(8, 3, 32, 32))
    path = tmp_path / "m.onnx"
    emit(program, path)
    ops = optimized_ops(path)
    assert (ops["QLinearConv"], ops["QLinearAdd"], ops["QGemm"], ops["QLinearGlobalAveragePool"]) == (3, 1, 1, 1)
    assert "DequantizeLinear" not in ops and "Relu" not in ops
    assert layers_in_float(path) == ()


def test_one_pair_per_value_and_no_clamp_left():
    program = quantize_program(capture(residual_network(), torch.randn(2, 3, 32, 32)), torch.randn(8, 3, 32, 32))
    model = onnx.load_from_string(to_onnx(program))
    ops = Counter(node.op_type for node in model.graph.node)
    assert "Relu" not in ops and "Clip" not in ops
    sources = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(sources) == len(set(sources))
    biases = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT32 and t.name.startswith(("stem", "body", "head"))]
    assert len(biases) == 4


def test_files_are_small_and_plain():
    program = capture(residual_network(), torch.randn(2, 3, 32, 32))
    data = to_onnx(program)
    model = onnx.load_from_string(data)
    weights = sum(tensor.numel() * 4 for tensor in program.state.values())
    assert len(data) < weights + 3000
    assert not any(node.doc_string or node.name for node in model.graph.node)
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 3, 32, 32]
    assert [port.name for port in model.graph.output] == ["output"]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("network", [nn.Linear(8, 5), nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))])
def test_quantized_linear_layers_of_any_rank_run_in_integers(network, tmp_path):
    for shape in ((8,), (6, 8), (2, 3, 8)):
        program = quantize_program(capture(network, torch.randn(2, *shape)), torch.randn(32, *shape))
        path = tmp_path / "m.onnx"
        emit(program, path)
        ops = optimized_ops(path)
        assert ops["QGemm"] == sum(isinstance(m, nn.Linear) for m in network.modules())
        assert layers_in_float(path) == ()
        (x,) = program.example_inputs(3)
        torch.testing.assert_close(run_file(path, x), program(x).detach(), atol=0.05, rtol=0)


def test_padding_before_a_convolution_costs_nothing(tmp_path):
    network = nn.Sequential(nn.ZeroPad2d((0, 1, 2, 1)), nn.Conv2d(4, 4, 3, 2, 1), nn.ConstantPad2d(1, 0.5))
    program = capture(network, torch.randn(2, 4, 9, 9))
    for made, tolerance in ((program, 1e-5), (quantize_program(program, torch.randn(4, 4, 9, 9)), 0.02)):
        path = tmp_path / "m.onnx"
        emit(made, path)
        (x,) = made.example_inputs(3)
        torch.testing.assert_close(run_file(path, x), made(x).detach(), atol=tolerance, rtol=0)
    ops = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert (ops["Pad"], ops["QuantizeLinear"]) == (1, 2)


def test_values_of_a_fixed_batch_and_several_inputs_keep_their_shapes():
    class Two(nn.Module):
        def forward(self, left, right):
            return left @ right.transpose(1, 2)

    program = capture(Two(), (torch.randn(2, 3, 4), torch.randn(2, 5, 4)), dynamic_batch=False)
    model = onnx.load_from_string(to_onnx(program))
    assert [port.name for port in model.graph.input] == ["left", "right"]
    assert [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == [2, 3, 5]


def test_an_input_that_is_the_output_and_a_constant_output_are_copied(tmp_path):
    class Same(nn.Module):
        def forward(self, x):
            return x

    program = capture(Same(), torch.randn(2, 3))
    emit(program, tmp_path / "m.onnx")
    (x,) = program.example_inputs()
    assert torch.equal(run_file(tmp_path / "m.onnx", x), x)


def test_an_op_without_lowering_is_named_with_its_place():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.det(x)

    program = capture(nn.Sequential(Odd()), torch.randn(2, 3, 3))
    with pytest.raises(UnsupportedOp, match=r"no ONNX rule for aten.linalg_det.default at 0 at test_emit.py:\d+ .*add a lowering"):
        to_onnx(program)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        emit(capture(nn.Linear(3, 2), torch.randn(2, 3)), tmp_path / "file" / "m.onnx")
