"""Moving scale before quantization: what each method gains on networks made to need it, and that plans carry it."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as fn

from gossamer.apply.engine import apply
from gossamer.apply.quantize import restructure
from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.affine import fake_quantize, from_range
from gossamer.numerics.distance import sqnr_db
from gossamer.numerics.formats import PerTensor, parse_format
from gossamer.numerics.packing import pack_floats
from gossamer.plan.edits import CopyForCodes, QuantizeValue, ScaleChannels, ScaleInput
from gossamer.plan.equalization import EqualizationJob, equalizations, plan_equalization
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import BlockScheme, Scheme
from gossamer.plan.weight_only import plan_weight_quantization
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.simulate import simulate
from gossamer.targets.verify import verify


class Outliers(nn.Module):
    """A block of a transformer without attention; two channels of its norm are much larger, and their readers' weights smaller."""

    def __init__(self, act=torch.relu):
        super().__init__()
        self.act = act
        self.norm, self.up, self.down, self.head = nn.LayerNorm(48), nn.Linear(48, 96), nn.Linear(96, 48), nn.Linear(48, 10)
        with torch.no_grad():
            for channel, size in ((5, 150.0), (9, 90.0)):
                self.norm.weight[channel] = size
                self.norm.bias[channel] = size / 2
                self.up.weight[:, channel] /= size

    def forward(self, x):
        return self.head(x + self.down(self.act(self.up(self.norm(x)))))


class Spread(nn.Module):
    """Convolution, depthwise convolution and convolution whose channels have weights of very different sizes, as folded norms leave."""

    def __init__(self):
        super().__init__()
        self.first, self.depth, self.last = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            size = torch.logspace(-1.5, 1.5, 16)
            self.first.weight *= size.reshape(-1, 1, 1, 1)
            self.first.bias *= size
            other = size[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
            self.depth.weight *= (other / size).reshape(-1, 1, 1, 1)
            self.depth.bias *= other
            self.last.weight /= other.reshape(1, -1, 1, 1)

    def forward(self, x):
        return self.head(torch.relu(self.last(torch.relu(self.depth(torch.relu(self.first(x)))))).mean((2, 3)))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(96, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def outliers(samples):
    torch.manual_seed(0)
    return capture(Outliers().eval(), samples[:2])


@pytest.fixture(scope="module")
def spread():
    torch.manual_seed(0)
    return capture(Spread().eval(), torch.randn(2, 8, 6, 6))


def fidelity(program, plan, inputs):
    with torch.no_grad():
        return sqnr_db(program(inputs), apply(program, plan)(inputs))


def float_part(program, plan):
    """The network before codes: what the edits that must not change it make of it."""
    return restructure(program, plan.edits)


@pytest.mark.parametrize("method", ["smoothquant", "repq", "auto"])
def test_outlier_channels(outliers, samples, method):
    plain = plan_quantization(outliers, samples[:64])
    plan = plan_quantization(outliers, samples[:64], scheme=Scheme(equalization=method))
    edits = [edit for edit in plan.edits if isinstance(edit, ScaleChannels)]
    assert edits
    first_code = next(place for place, edit in enumerate(plan.edits) if isinstance(edit, QuantizeValue))
    assert all(place < first_code for place, edit in enumerate(plan.edits) if isinstance(edit, ScaleChannels))
    with torch.no_grad():
        assert torch.allclose(float_part(outliers, plan)(samples), outliers(samples), atol=1e-5, rtol=1e-5)
    assert fidelity(outliers, plan, samples[64:]) > fidelity(outliers, plain, samples[64:]) + 8


def test_repq_is_a_quantizer_for_each_channel(outliers, samples):
    """After it, every channel of the norm's result has the range that one quantizer for all of them covers."""
    plan = plan_quantization(outliers, samples[:64], scheme=Scheme(equalization="repq"))
    (edit,) = [edit for edit in plan.edits if isinstance(edit, ScaleChannels)]
    seen = {}
    float_part(outliers, plan).run(samples[:64], observe={edit.value: seen.__setitem__})
    values = seen[edit.value].flatten(0, -2)
    low, high = values.amin(0), values.amax(0)
    assert torch.allclose(low, low.mean().expand_as(low), rtol=1e-3)
    assert torch.allclose(high, high.mean().expand_as(high), rtol=1e-3)
    assert edit.shifts


def test_the_plan_survives_json_and_files(outliers, samples, tmp_path):
    plan = plan_quantization(outliers, samples[:64], scheme=Scheme(equalization="repq"))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    loaded = Plan.load(plan.save(tmp_path / "plan.json"))
    with torch.no_grad():
        assert torch.equal(apply(outliers, loaded)(samples), apply(outliers, plan)(samples))
    assert plan_quantization(outliers, samples[:64], scheme=Scheme(equalization="repq")) == plan


def test_the_simulation_follows(outliers, samples):
    quantized = apply(outliers, plan_quantization(outliers, samples[:64], scheme=Scheme(equalization="smoothquant")))
    with torch.no_grad():
        assert sqnr_db(quantized(samples), simulate(quantized, samples)) > 35


def test_cross_layer_makes_ranges_equal(spread):
    plan = plan_equalization(spread)
    changed = apply(spread, plan)
    x = torch.randn(4, 8, 6, 6)
    with torch.no_grad():
        assert torch.allclose(changed(x), spread(x), atol=1e-6, rtol=1e-4)
    state = changed.state

    def rows(name):
        return state[name].abs().flatten(1).amax(1)

    def columns(name):
        return state[name].abs().flatten(2).amax((0, 2))

    assert torch.allclose(rows("first.weight"), rows("depth.weight"), rtol=1e-2)
    assert torch.allclose(rows("depth.weight"), columns("last.weight"), rtol=1e-2)


def test_cross_layer_helps_weights_with_one_scale(spread):
    """With one scale for a whole weight, as in the article, what quantization loses shrinks a lot."""
    x = torch.randn(16, 8, 6, 6, generator=torch.Generator().manual_seed(3))

    def coded(program):
        fmt = parse_format("int8")
        state = {}
        for name, tensor in program.state.items():
            bound = tensor.detach().abs().max()
            whole = from_range(-bound, bound, fmt, PerTensor(), symmetric=True)
            state[name] = fake_quantize(tensor.detach(), whole) if tensor.dim() > 1 else tensor
        return program.with_graph(program.graph, state)

    with torch.no_grad():
        before = sqnr_db(spread(x), coded(spread)(x))
        after = sqnr_db(spread(x), coded(apply(spread, plan_equalization(spread)))(x))
    assert after > before + 10


def test_auto_is_never_worse_on_its_own_data(spread):
    x = torch.randn(64, 8, 6, 6, generator=torch.Generator().manual_seed(3))

    def loss(equalization):
        scheme = Scheme(equalization=equalization, rounding="nearest", bias_correction=False)
        return -fidelity(spread, plan_quantization(spread, x, scheme=scheme), x)

    auto = loss("auto")
    assert all(auto <= loss(name) + 1e-6 for name in ("none", "cross-layer", "smoothquant"))
    assert auto < loss("none") - 3


def test_awq_for_weights_in_blocks(outliers, samples):
    plain = plan_weight_quantization(outliers, calibration=samples[:64], round_inputs=False)
    aware = plan_weight_quantization(outliers, calibration=samples[:64], round_inputs=False, scheme=BlockScheme(equalization="awq"))
    assert any(isinstance(edit, ScaleChannels) for edit in aware.edits)
    assert fidelity(outliers, aware, samples[64:]) > fidelity(outliers, plain, samples[64:]) + 0.5
    with torch.no_grad():
        assert torch.allclose(float_part(outliers, aware)(samples), outliers(samples), atol=1e-5, rtol=1e-5)


class PostNorm(nn.Module):
    """As in BERT: the norm's result goes into the next residual sum, too, so its channels cannot give scale away."""

    def __init__(self):
        super().__init__()
        self.norm, self.q, self.k = nn.LayerNorm(48), nn.Linear(48, 48), nn.Linear(48, 48)
        self.last, self.head = nn.LayerNorm(48), nn.Linear(48, 10)
        with torch.no_grad():
            for channel, size in ((5, 60.0), (9, 30.0)):
                self.norm.weight[channel] = size
                self.q.weight[:, channel] /= size
                self.k.weight[:, channel] /= size

    def forward(self, x):
        x = self.norm(x)
        return self.head(self.last(x + fn.gelu(self.q(x)) * torch.sigmoid(self.k(x))))


def test_multiplications_where_nothing_upstream_takes_the_scale(samples, tmp_path):
    torch.manual_seed(0)
    program = capture(PostNorm().eval(), samples[:2])
    plain, moved, inserted = (
        plan_quantization(program, samples[:64], scheme=Scheme(equalization=name)) for name in ("none", "smoothquant", "smoothquant-insert")
    )
    edits = [edit for edit in inserted.edits if isinstance(edit, ScaleInput)]
    assert len(edits) >= 2
    assert edits[0].factors == edits[1].factors  # both read the norm's result
    assert not any(isinstance(edit, ScaleInput) for edit in moved.edits)
    changed = float_part(program, inserted)
    copies = {edit.value for edit in inserted.edits if isinstance(edit, CopyForCodes)}
    assert len(changed.graph.nodes) - len(program.graph.nodes) == len({edit.factors for edit in edits}) + len(copies)
    with torch.no_grad():
        assert torch.allclose(changed(samples), program(samples), atol=1e-5, rtol=1e-5)
    gain = fidelity(program, inserted, samples[64:]) - fidelity(program, plain, samples[64:])
    assert gain > 5
    quantized = apply(program, Plan.from_json(json.loads(json.dumps(inserted.to_json()))))
    check_on_runtime(program, quantized, samples, tmp_path)


def check_on_runtime(program, quantized, inputs, folder):
    artifact = export(quantized, folder / "model.onnx")
    with torch.no_grad():
        labels = program(inputs).argmax(1)
    report = verify(artifact, reference=program, data=(inputs, labels))
    assert not [problem for problem in report.problems if "differ" in problem]
    assert report.parity.max_steps <= 1
    assert report.parity.output_error < 1e-3


@pytest.mark.parametrize("method", ["smoothquant", "repq", "cross-layer"])
def test_the_runtime_computes_what_the_plan_says(outliers, samples, method, tmp_path):
    check_on_runtime(
        outliers, apply(outliers, plan_quantization(outliers, samples[:64], scheme=Scheme(equalization=method))), samples, tmp_path
    )


def test_weights_in_blocks_on_the_runtime(samples, tmp_path):
    torch.manual_seed(0)
    program = capture(PostNorm().eval(), samples[:2])
    plan = plan_weight_quantization(program, calibration=samples[:64], scheme=BlockScheme(equalization="awq"))
    assert any(isinstance(edit, ScaleInput) for edit in plan.edits)
    check_on_runtime(program, apply(program, plan), samples, tmp_path)


def test_what_clips_is_left_alone(samples):
    """ReLU6 and GELU let no factor through: the channels between the layers keep theirs."""
    for act in (fn.relu6, fn.gelu):
        torch.manual_seed(0)
        program = capture(Outliers(act).eval(), samples[:2])
        job = EqualizationJob(program)
        assert [len(site.readers) for site in job.sites] == [1]  # the norm alone
        assert not equalizations["cross-layer"].run(job)
        plan = plan_quantization(program, samples, scheme=Scheme(equalization="cross-layer"))
        assert {item.where: item.reason.split(" in ")[0] for item in plan.frozen if "(scale)" in item.where}["up (scale)"] in (
            "its channels keep their scale: Clip",
            "its channels keep their scale: Gelu",
        )


def test_errors(outliers, samples):
    with pytest.raises(ConfigError, match="did you mean 'smoothquant'"):
        plan_quantization(outliers, samples, scheme=Scheme(equalization="smoothquants"))
    with pytest.raises(ConfigError, match="calibration must be given for equalization='awq'"):
        plan_weight_quantization(outliers, scheme=BlockScheme(equalization="awq"))
    with pytest.raises(ConfigError, match="looks at weights alone"):
        plan_equalization(outliers, "smoothquant")
    quantized = apply(outliers, plan_quantization(outliers, samples))
    with pytest.raises(PlanError, match="quantized already"):
        plan_equalization(quantized)
    plan = Plan((ScaleChannels("norm", pack_floats(torch.ones(3))),), outliers.digest)
    with pytest.raises(PlanError, match="no layer, norm or embedding"):
        apply(outliers, plan)
    with pytest.raises(PlanError, match="damaged factors"):
        apply(outliers, Plan((ScaleChannels("norm", "???"),), outliers.digest))
