"""Embedding tables with codes: smaller files, the same numbers in the program and in both runtimes."""

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.numerics.formats import PerAxis
from gossamer.plan.dynamic import plan_dynamic_quantization
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.spec import specs
from gossamer.plan.tables import table_edits
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.target import targets
from gossamer.targets.verify import verify


class Tokens(nn.Module):
    """Two tables, one of them too small to be worth codes; a mask; a linear layer."""

    def __init__(self, tied=False):
        super().__init__()
        self.words, self.places = nn.Embedding(2048, 32), nn.Embedding(8, 32)
        self.up, self.head = nn.Linear(32, 48), nn.Linear(48, 5)
        self.tied = tied

    def forward(self, ids, mask):
        x = self.words(ids) + self.places(torch.arange(8))
        x = (x * mask[..., None].to(x.dtype)).sum(1)
        x = nn.functional.gelu(self.up(x))
        return self.up(self.words.weight).sum(0)[None] + self.head(x).sum(1)[:, None] if self.tied else self.head(x)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(0, 2048, (16, 8), generator=generator), torch.ones(16, 8, dtype=torch.int64)
    mask[::2, 5:] = 0
    return ids, mask


def planned(kind, program, batch, target):
    return (
        plan_dynamic_quantization(program, target)
        if kind == "dynamic"
        else plan_quantization(program, [(batch, None)], target, weights=targets[target].exact_weights())
    )


@pytest.mark.parametrize(("kind", "target"), [("dynamic", "onnxruntime"), ("static", "onnxruntime"), ("static", "openvino")])
def test_a_table_has_codes_by_row_in_the_file(batch, tmp_path, kind, target):
    pytest.importorskip(target)
    torch.manual_seed(0)
    program = capture(Tokens().eval(), tuple(part[:2] for part in batch))
    plan = planned(kind, program, batch, target)
    plan = Plan.load(plan.save(tmp_path / "plan.json"))
    quantized = apply(program, plan)
    assert quantized.quantizers["words.weight"].granularity == PerAxis(0)
    assert "places.weight" not in quantized.quantizers
    artifact = export(quantized, tmp_path / "q.onnx", target)
    assert artifact.size_bytes < 2048 * (32 + 4) + 16_000  # a byte for each number, a scale for each row
    got = targets[target].open(artifact.path, threads=1).run(*(part.numpy() for part in batch))
    assert np.abs(got - program(*batch).detach().numpy()).max() < 0.15
    report = verify(artifact, reference=program, data=[(batch, torch.zeros(16, dtype=torch.int64))], batch=16)
    assert report.passed, report.problems


def test_a_table_that_is_also_a_weight_stays_float(batch):
    program = capture(Tokens(tied=True).eval(), tuple(part[:2] for part in batch))
    assert "words.weight" not in apply(program, plan_dynamic_quantization(program)).quantizers


def test_a_skipped_table_stays_float(batch):
    program = capture(nn.Sequential(nn.Embedding(2048, 32), nn.Linear(32, 4)).eval(), batch[0][:2])
    spec = specs["onnxruntime"]
    assert [edit.value for edit in table_edits(program, spec)] == ["0.weight"]
    assert list(table_edits(program, spec, skip=[node.name for node in program.graph.nodes])) == []


def test_a_rule_keeps_a_table_float(batch):
    program = capture(Tokens().eval(), tuple(part[:2] for part in batch))
    assert "words.weight" in apply(program, plan_dynamic_quantization(program)).quantizers
    assert "words.weight" not in apply(program, plan_dynamic_quantization(program, rules={"words": "float"})).quantizers
    half = apply(program, plan_dynamic_quantization(program, rules={"words": "fp16"}))
    assert half.quantizers["words.weight"].format.name == "fp16"
