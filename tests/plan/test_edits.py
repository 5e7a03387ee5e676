import json
from dataclasses import FrozenInstanceError, fields, replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import GossamerError, PlanError
from gossamer.numerics.affine import SMALLEST_SCALE, Quantizer
from gossamer.numerics.formats import IntFormat, PerAxis, PerTensor
from gossamer.plan.edits import Edit, FoldBatchNorm, KeepChannels, KeepHeads, QuantizeValue, ShiftBias, edit_from_json, edit_to_json

NAMES = st.text(min_size=1, max_size=12)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALES = st.floats(SMALLEST_SCALE, 1e30)


@st.composite
def quantizers(draw):
    format = draw(st.sampled_from([IntFormat(bits=8), IntFormat(bits=8, narrow=True), IntFormat(bits=4, signed=False), IntFormat(bits=32)]))
    scale = tuple(draw(st.lists(SCALES, min_size=1, max_size=4)))
    zero = tuple(draw(st.integers(format.lo, format.hi)) for _ in scale)
    per_tensor = len(scale) == 1 and draw(st.booleans())
    return Quantizer(format, PerTensor() if per_tensor else PerAxis(draw(st.integers(0, 3))), scale, zero)


@st.composite
def keeps(draw, kind):
    keep = draw(st.sets(st.integers(0, 60), min_size=1))
    return kind(draw(NAMES), tuple(sorted(keep)), draw(st.integers(max(keep) + 1, 99)))


BY_FIELD = {
    "str": NAMES,
    "int": st.integers(0, 128),
    "Quantizer": quantizers(),
    "tuple[float, ...]": st.lists(FLOATS, max_size=5).map(tuple),
    "tuple[str, ...]": st.lists(NAMES, max_size=4).map(tuple),
}


def strategy(kind):
    """Any edit: new kinds are covered as soon as they exist, by the types of their fields."""
    if kind in (KeepChannels, KeepHeads):
        return keeps(kind)
    return st.builds(kind, **{field.name: BY_FIELD[field.type] for field in fields(kind)})


EDITS = st.one_of([strategy(kind) for kind in get_args(Edit)])


@given(EDITS)
def test_edits_survive_json(edit):
    plain = json.loads(json.dumps(edit_to_json(edit), allow_nan=False))
    again = edit_from_json(plain)
    assert again == edit
    assert type(again) is type(edit)
    assert plain["edit"] == type(edit).__name__
    assert hash(again) == hash(edit)


@given(EDITS)
def test_edits_are_frozen(edit):
    with pytest.raises(FrozenInstanceError):
        setattr(edit, fields(edit)[0].name, "other")


@pytest.mark.parametrize(
    ("keep", "size"), [((), 4), ((1, 0), 4), ((0, 0), 4), ((0, 4), 4), ((-1, 2), 4), ((0.0, 1.0), 4), (("0",), 4), ((True,), 4)]
)
@pytest.mark.parametrize("kind", [KeepChannels, KeepHeads])
def test_positions_that_cannot_be_kept(keep, size, kind):
    with pytest.raises(PlanError, match=rf"group 'g' must keep sorted positions in \[0, {size - 1}\], at least one"):
        kind("g", keep, size)


def test_replacing_checks_again():
    edit = KeepChannels("g", (0, 3), 4)
    with pytest.raises(PlanError):
        replace(edit, size=3)


@pytest.mark.parametrize("name", ["Explode", "", "__class__", None])
def test_unknown_edits_are_refused(name):
    with pytest.raises(PlanError, match="the plan holds an unknown edit .*; it was made by a newer version"):
        edit_from_json({"edit": name, "node": "x"})


def test_quantizers_in_json_are_checked():
    plain = edit_to_json(QuantizeValue("v", Quantizer(IntFormat(bits=8), PerTensor(), (0.5,), (3,))))
    plain["quantizer"]["zero_point"] = [300]
    with pytest.raises(GossamerError, match=r"zero_point must be a code in \[-128, 127\]; got 300"):
        edit_from_json(plain)


def test_written_form():
    """Other programs read plans: the form is part of the interface."""
    assert edit_to_json(KeepChannels("conv", (0, 2), 3)) == {"edit": "KeepChannels", "group": "conv", "keep": [0, 2], "size": 3}
    assert edit_to_json(FoldBatchNorm("bn")) == {"edit": "FoldBatchNorm", "node": "bn"}
    assert edit_to_json(ShiftBias("fc", (0.5,))) == {"edit": "ShiftBias", "node": "fc", "shift": [0.5]}
    plain = edit_to_json(QuantizeValue("x", Quantizer(IntFormat(bits=8, signed=False), PerAxis(1), (0.5, 1.0), (0, 7))))
    assert plain["quantizer"] == {
        "format": {"bits": 8, "signed": False, "narrow": False},
        "axis": 1,
        "scale": [0.5, 1.0],
        "zero_point": [0, 7],
    }
