"""Functions, pools, products and resizes of codes: every code that the runtimes compute, at random scales."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.apply.engine import apply
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.numerics.resample import fixed_bilinear, float_bilinear
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets import code_tables
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity
from gossamer.targets.target import targets
from gossamer.targets.tflite.draft import Draft, DraftTensor
from gossamer.targets.tflite.flat import to_bytes
from gossamer.targets.tflite.note import Note

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tflite_micro")
CODES = np.arange(-128, 128, dtype=np.int8).reshape(1, 256)
ADDITION = {"fusedActivationFunction": 0}
scales = st.floats(1e-3, 0.5).map(lambda scale: float(np.float32(scale)))
zeros = st.integers(-128, 127)
inputs = st.builds(lambda scale, zero: Quantizer(IntFormat(bits=8), PerTensor(), (scale,), (zero,)), scales, zeros)
GATE = Quantizer(IntFormat(bits=8), PerTensor(), (1 / 256,), (-128,))
SIGNED_GATE = Quantizer(IntFormat(bits=8), PerTensor(), (1 / 128,), (0,))


def run_op(runtime, code, options, source, result, codes, *constants, shape=None, **fields):
    """What a runtime makes of codes by one operator."""
    draft = Draft()
    number = draft.add(DraftTensor("in", codes.shape, "int8", source))
    others = [draft.constant(array) for array in constants]
    out = draft.add(DraftTensor("out", shape or codes.shape, "int8", result))
    draft.op(code, (number, *others), (out,), options, **fields)
    data = to_bytes(draft, [number], [out], Note({}, (), {}))
    if runtime == "tflm":
        from tflite_micro.python.tflite_micro import runtime as micro

        interpreter = micro.Interpreter.from_bytes(data, arena_size=1 << 20)
        interpreter.set_input(codes, 0)
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_output(0).astype(np.float32))
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, codes)
    interpreter.invoke()
    return torch.from_numpy(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).astype(np.float32))


@given(inputs, st.floats(0.2, 1.5) | st.sampled_from([0.25, 0.4, 0.5, 0.8, 1.2]), zeros, st.floats(0.0, 0.5, width=32))
@settings(max_examples=25, deadline=None)
def test_every_code_of_every_function(source, ratio, zero, slope):
    every = torch.from_numpy(CODES)
    result = Quantizer(IntFormat(bits=8), PerTensor(), (float(np.float32(source.scale[0] * ratio)),), (zero,))
    slope = float(np.float32(slope))
    leaky = ("LEAKY_RELU", "LeakyReluOptions", source, result, CODES)
    for got, expected in (
        (run_op("tflm", "LOGISTIC", "", source, GATE, CODES), code_tables.fixed_sigmoid(every, source, GATE)),
        (run_op("tflm", "TANH", "", source, SIGNED_GATE, CODES), code_tables.fixed_tanh(every, source, SIGNED_GATE)),
        (run_op("tflm", "HARD_SWISH", "HardSwishOptions", source, result, CODES), code_tables.hard_swish(every, source, result)),
        (run_op("tflm", *leaky, alpha=slope), code_tables.fixed_leaky_relu(every, source, result, slope)),
        (run_op("litert", *leaky, alpha=slope), code_tables.short_leaky_relu(every, source, result, slope)),
        (run_op("tflm", "ELU", "", source, result, CODES), code_tables.elu(every, source, result)),
        (run_op("litert", "ELU", "", source, result, CODES), code_tables.short_elu(every, source, result)),
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@given(st.tuples(*[st.integers(1, 12)] * 4), st.booleans(), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_bilinear_resizing(sizes, align_corners, seed):
    height, width, *want = sizes
    codes = np.random.default_rng(seed).integers(-128, 128, (1, height, width, 3)).astype(np.int8)
    images = torch.from_numpy(codes).permute(0, 3, 1, 2).long()
    options = {"alignCorners": align_corners, "halfPixelCenters": not align_corners}
    for runtime, function in (("tflm", fixed_bilinear), ("litert", float_bilinear)):
        got = run_op(
            runtime,
            "RESIZE_BILINEAR",
            "ResizeBilinearOptions",
            GATE,
            GATE,
            codes,
            np.asarray(want, np.int32),
            shape=(1, *want, 3),
            **options,
        )
        expected = function(images, tuple(want), align_corners=align_corners)
        assert torch.equal(got.permute(0, 3, 1, 2).long(), expected)
        real = F.interpolate(images.double(), want, mode="bilinear", align_corners=align_corners)
        assert (expected - real).abs().max() <= 2


class Around(nn.Module):
    """One function between two convolutions, so that it runs on codes."""

    def __init__(self, function, channels):
        super().__init__()
        self.first, self.last, self.function = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(channels, 4, 1), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


FUNCTIONS = {
    "average pool": (lambda x: F.avg_pool2d(x, 3, 2), 8),
    "average pool that counts its border": (lambda x: F.avg_pool2d(x, (3, 2), 2, 1), 8),
    "average pool that does not": (lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), 8),
    "sigmoid": (torch.sigmoid, 8),
    "tanh": (torch.tanh, 8),
    "hard swish": (F.hardswish, 8),
    "hard sigmoid": (F.hardsigmoid, 8),
    "silu": (F.silu, 8),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.2), 8),
    "elu": (F.elu, 8),
    "softmax over channels": (lambda x: x.softmax(1), 8),
    "softmax over columns": (lambda x: x.softmax(3), 8),
    "relu behind a pool": (lambda x: F.max_pool2d(x, 2).relu(), 8),
    "clamp behind a pool": (lambda x: F.max_pool2d(x, 2).clamp(-0.5, 0.6), 8),
    "difference": (lambda x: x - F.max_pool2d(x, 3, 1, 1), 8),
    "numbers": (lambda x: (1 - x * 2) / 3 + 0.7, 8),
    "nearest": (lambda x: F.interpolate(x, size=(7, 25)), 8),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 8),
    "matrix product": (lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2)).unsqueeze(1), 1),
}
FLOAT_ON_LITERT = {name for name in FUNCTIONS if "average" in name or "hard" in name or "softmax" in name or "product" in name}


@pytest.mark.parametrize("target", ["tflm", "litert"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_network_around_each_is_bit_exact(name, target, tmp_path):
    function, channels = FUNCTIONS[name]
    torch.manual_seed(1)
    samples = torch.randn(8, 3, 12, 12) * 2
    program = capture(Around(function, channels).eval(), samples[:2])
    plan = plan_quantization(program, samples, target)
    assert bool(plan.frozen) == (target == "litert" and name in FLOAT_ON_LITERT)
    artifact = export(apply(program, plan), tmp_path / "m.tflite", target)
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples[:3],))
    assert parity.max_steps <= int(bool(plan.frozen))  # computed in float, then coded: the last bit may decide a tie
    assert parity.output_error < 1e-6


MIXED = {
    "convolution": lambda x, layer: torch.relu(layer(x)),
    "sum": lambda x, layer: layer(x) + x.mean((2, 3), keepdim=True),
    "difference": lambda x, layer: x - layer(x),
    "gate": lambda x, layer: x * torch.sigmoid(layer(x)),
    "hard swish": lambda x, _: F.hardswish(x),
    "hard sigmoid": lambda x, _: F.hardsigmoid(x),
    "tanh": lambda x, _: torch.tanh(x),
    "leaky relu": lambda x, _: F.leaky_relu(x, 0.1),
    "clamp": lambda x, _: x.clamp(-0.7, 1.1),
    "average": lambda x, _: F.avg_pool2d(x, 3, 2, 1),
    "larger": lambda x, _: F.interpolate(x, size=(9, 11), mode="bilinear"),
    "halves": lambda x, _: torch.cat(x.chunk(2, 1)[::-1], 1),
    "border": lambda x, _: F.pad(x, (1, 0, 0, 1)),
    "turned": lambda x, _: x.transpose(2, 3),
    "softmax": lambda x, _: x.softmax(1),
    "number": lambda x, _: (1 - x) / 3,
}


class Chain(nn.Module):
    """Such functions one after another."""

    def __init__(self, names, width):
        super().__init__()
        self.names = names
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in names)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.first(x)
        for name, layer in zip(self.names, self.layers, strict=True):
            x = MIXED[name](x, layer)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("target", ["tflm", "litert"])
@given(st.lists(st.sampled_from(sorted(MIXED)), min_size=2, max_size=6), st.sampled_from([4, 6, 8]), st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_random_chains_are_bit_exact(target, tmp_path_factory, names, width, seed):
    torch.manual_seed(seed)
    samples = torch.randn(6, 3, 10, 12) * 2
    program = capture(Chain(names, width).eval(), samples[:2])
    plan = plan_quantization(program, samples, target)
    assert target == "litert" or not plan.frozen
    artifact = export(apply(program, plan), tmp_path_factory.mktemp("chain") / "m.tflite", target)
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples[:2],))
    coded_late = target == "litert" and any(
        name in ("average", "softmax", "hard swish", "hard sigmoid") for name in names
    )  # computed in float, then coded
    assert parity.max_steps <= int(coded_late), [layer for layer in parity.layers if layer.max_steps]
    assert parity.output_error < 1e-5
