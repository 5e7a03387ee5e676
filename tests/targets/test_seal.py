"""Files of runtimes that crash on damage: any change is found before the runtime sees it."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gossamer as gs
from gossamer.errors import FileError
from gossamer.targets.seal import sealed, unsealed
from gossamer.targets.target import targets

PACKAGES = {"litert": "ai_edge_litert", "tflm": "tflite_micro", "executorch": "executorch"}


@given(data=st.binary(max_size=200), place=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.integers(1, 10**6))
@settings(deadline=None)
def test_any_flipped_bit_and_any_cut_is_found(data, place, bit, cut):
    whole = sealed(data)
    assert unsealed("net", whole) == data
    flipped = bytearray(whole)
    flipped[place % len(whole)] ^= 1 << bit
    for damaged in (bytes(flipped), whole[: -(cut % len(whole) + 1)], whole + b"\0"):
        with pytest.raises(FileError, match="net: is damaged"):
            unsealed("net", damaged)


@pytest.mark.parametrize("target", PACKAGES)
def test_no_changed_file_reaches_the_runtime(target, tmp_path):
    if importlib.util.find_spec(PACKAGES[target]) is None:
        pytest.skip(f"needs {PACKAGES[target]}")
    program = gs.capture(nn.Linear(8, 3).eval(), torch.randn(2, 8))
    path = gs.export(program, tmp_path / f"net{targets[target].suffix}", target).path
    data = path.read_bytes()
    for place in range(0, len(data), 37):
        flipped = bytearray(data)
        flipped[place] ^= 0x11
        path.write_bytes(flipped)
        with pytest.raises(FileError, match=f"net{targets[target].suffix}: is "):
            targets[target].open(path, threads=1)
    path.write_bytes(data)
    targets[target].open(path, threads=1)
