import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gossamer.errors import FileError, PlanError
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.plan.edits import FoldBatchNorm, KeepChannels, QuantizeValue, ShiftBias
from gossamer.plan.plan import Frozen, Plan
from gossamer.program.capture import capture

TEXT = st.text(max_size=10)
EDITS = st.one_of(
    st.builds(FoldBatchNorm, TEXT),
    st.builds(KeepChannels, TEXT, st.just((0, 2)), st.integers(3, 9)),
    st.builds(ShiftBias, TEXT, st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3).map(tuple)),
    st.builds(QuantizeValue, TEXT, st.just(Quantizer(IntFormat(bits=8), PerTensor(), (0.1 + 0.2,), (3,)))),
)
PLANS = st.builds(
    Plan, st.lists(EDITS, max_size=5).map(tuple), TEXT, TEXT, TEXT, st.lists(st.builds(Frozen, TEXT, TEXT), max_size=3).map(tuple)
)
PLAN = Plan((FoldBatchNorm("bn"), KeepChannels("conv", (0, 2), 3)), "digest", frozen=(Frozen("head", "its channels are the output"),))


@given(PLANS)
def test_plans_survive_json(plan):
    again = Plan.from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False)))
    assert again == plan
    assert hash(again) == hash(plan)


def test_plans_survive_the_file_and_are_readable(tmp_path):
    path = PLAN.save(tmp_path / "folder" / "plan.json")
    assert Plan.load(path) == Plan.load(str(path)) == PLAN
    lines = path.read_text().splitlines()
    assert any('"reason": "its channels are the output"' in line for line in lines)


def test_a_plan_is_refused_for_another_network():
    torch.manual_seed(0)
    program = capture(nn.Linear(3, 2), torch.zeros(2, 3))
    Plan((), program.digest).check_fits(program)
    other = capture(nn.Linear(3, 4), torch.zeros(2, 3))
    with pytest.raises(PlanError, match=r"made for another network \(its structure differs\); make a plan for this one"):
        Plan((), program.digest).check_fits(other)
    bound = Plan((), program.digest, program.weights_digest())
    bound.check_fits(program)
    with torch.no_grad():
        program.get_parameter("bias").add_(1e-6)
    Plan((), program.digest).check_fits(program)
    with pytest.raises(PlanError, match=r"made for other weights of this network \(it was trained since\); make the plan again"):
        bound.check_fits(program)


def without(key):
    return {name: value for name, value in PLAN.to_json().items() if name != key}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        *(((without(key)), "this is no plan of ours") for key in PLAN.to_json()),
        ([], "this is no plan of ours"),
        (3, "this is no plan of ours"),
        (PLAN.to_json() | {"edits": [{"edit": "FoldBatchNorm"}]}, "this is no plan of ours"),
        (PLAN.to_json() | {"edits": [{"edit": "FoldBatchNorm", "node": "a", "more": 1}]}, "this is no plan of ours"),
        (PLAN.to_json() | {"edits": [3]}, "this is no plan of ours"),
        (PLAN.to_json() | {"frozen": [3]}, "this is no plan of ours"),
        (PLAN.to_json() | {"format": 2}, "the plan has format 2, this version reads 1; load it with the version that wrote it"),
        (PLAN.to_json() | {"edits": [{"edit": "Explode"}]}, "unknown edit 'Explode'"),
        (PLAN.to_json() | {"edits": [{"edit": "KeepChannels", "group": "g", "keep": [5], "size": 2}]}, "must keep sorted positions"),
    ],
)
def test_what_is_no_plan_is_refused(data, message, tmp_path):
    with pytest.raises(PlanError, match=message):
        Plan.from_json(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(FileError, match=rf"plan.json: is no plan \(.*{message}.*; write it with plan.save"):
        Plan.load(tmp_path / "plan.json")


def test_missing_and_truncated_files(tmp_path):
    with pytest.raises(FileError, match="cannot be read .*name an existing plan"):
        Plan.load(tmp_path / "plan.json")
    path = PLAN.save(tmp_path / "plan.json")
    text = path.read_text()
    for length in range(0, len(text) - 2, 13):
        path.write_text(text[:length])
        with pytest.raises(FileError, match="is not a plan .no valid JSON"):
            Plan.load(path)


def test_it_says_what_it_holds():
    assert str(PLAN) == "Plan(1 FoldBatchNorm, 1 KeepChannels; 1 frozen)"
    assert str(Plan((), "digest")) == "Plan(no edits; 0 frozen)"
