"""Operators that the interpreter for microcontrollers lacks: written otherwise, or refused before a file exists."""

import os
import tempfile

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.errors import UnsupportedOp
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity
from gossamer.targets.target import targets
from gossamer.targets.tflite.draft import Draft, DraftTensor
from gossamer.targets.tflite.flat import to_bytes
from gossamer.targets.tflite.note import Note
from gossamer.targets.tflm.emit import MISSING
from targets.tflite.test_transposed import coded

micro = pytest.importorskip("tflite_micro.python.tflite_micro")


class Gelu(nn.Module):
    def __init__(self, approximate):
        super().__init__()
        self.one, self.two, self.approximate = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), approximate

    def forward(self, x):
        return self.two(F.gelu(self.one(x), approximate=self.approximate))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_a_table_of_codes(approximate, tmp_path):
    torch.manual_seed(0)
    samples = torch.randn(16, 3, 12, 12) * 3
    program, plan, artifact = coded(Gelu(approximate), samples, "tflm", tmp_path)
    assert not plan.frozen
    parity = check_parity(artifact, targets["tflm"].open(artifact.path, threads=1), (samples,))
    assert (parity.max_steps, parity.output_error) == (0, 0)
    runner = targets["tflm"].open(export(program, tmp_path / "float.tflite", "tflm").path, threads=1)
    torch.testing.assert_close(torch.from_numpy(runner.run(samples.numpy())), program(samples), atol=2e-6, rtol=1e-5)


class Refused(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function

    def forward(self, x):
        return self.function(self.layer(x))


@pytest.mark.parametrize(
    ("function", "code"),
    [(lambda x: x.abs() ** 1.5, "POW"), (torch.sign, "SIGN"), (torch.atan, "ATAN2"), (lambda x: x.topk(2).values, "TOPK_V2")],
)
def test_what_it_lacks_is_refused_by_name_before_a_file_exists(function, code, tmp_path):
    samples = torch.randn(8, 4)
    program = capture(Refused(function).eval(), samples[:2])
    message = rf"no LiteRT for Microcontrollers rule for {code} at .*test_operators.py.*; put another operation in its place"
    with pytest.raises(UnsupportedOp, match=message):
        export(program, tmp_path / "m.tflite", "tflm")
    plan = plan_quantization(program, samples, "tflm")
    assert any("tflm has no integer kernel for" in item.reason for item in plan.frozen)  # so that it would be float
    assert not (tmp_path / "m.tflite").exists()
    export(program, tmp_path / "other.tflite", "litert")


def test_words_of_int64_are_refused_before_a_file_exists_and_those_of_int32_run(tmp_path):
    torch.manual_seed(0)
    model, words = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)).eval(), torch.randint(0, 10, (8, 3))
    with pytest.raises(UnsupportedOp, match="for GATHER at positions of int64 at 0 .*; capture the model with positions of torch.int32"):
        export(capture(model, words[:2]), tmp_path / "m.tflite", "tflm")
    assert not (tmp_path / "m.tflite").exists()
    words = words.to(torch.int32)
    program = capture(model, words[:2])
    runner = targets["tflm"].open(export(program, tmp_path / "m.tflite", "tflm").path, threads=1)
    torch.testing.assert_close(torch.from_numpy(runner.run(words.numpy())), program(words), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("code", sorted(MISSING))
def test_the_interpreter_has_no_such_kernel(code):
    """Where a newer one has it, the list can shrink."""
    quantizer = Quantizer(IntFormat(bits=8), PerTensor(), (0.1,), (0,))
    draft = Draft()
    source, result = (draft.add(DraftTensor(name, (1, 4), "int8", quantizer)) for name in ("x", "y"))
    draft.op(code, (source,), (result,))
    data = to_bytes(draft, (source,), (result,), Note({"x": (0, 1)}, ((0, 1),), {}), lean=True)
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            with pytest.raises((RuntimeError, ValueError, SystemError)):
                micro.runtime.Interpreter.from_bytes(data, arena_size=1 << 16)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        assert b"Didn't find op" in file.read()
