"""benchmarks/cuda_linears.py: its arithmetic and packing on the CPU, where torch has the same kernels, and what it does without a GPU."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def cuda():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("cuda_linears", FOLDER / "cuda_linears.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["cuda_linears"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def numbers(seed, rows, inputs, outputs):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator) / inputs**0.5


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(17, 40), inputs=st.integers(1, 6), outputs=st.integers(1, 6))
def test_int8_equals_whole_numbers_in_float64(cuda, seed, rows, inputs, outputs):
    x, weight = numbers(seed, rows, 16 * inputs, 8 * outputs)
    layer = cuda.int8_layer(weight, torch.float32)
    torch.testing.assert_close(layer.call(x).double(), layer.exact(x), rtol=1e-6, atol=1e-7)
    assert cuda.check(layer, x, weight).sqnr_db > 30


def test_fp8_equals_its_codes_in_float64(cuda):
    x, weight = numbers(0, 32, 64, 32)
    layer = cuda.fp8_layer(weight, torch.float32)
    torch.testing.assert_close(layer.call(x).double(), layer.exact(x), rtol=1e-5, atol=1e-6)
    assert 20 < cuda.check(layer, x, weight).sqnr_db < cuda.check(cuda.int8_layer(weight, torch.float32), x, weight).sqnr_db


@pytest.mark.parametrize("name", ["INT8", "FP8"])
def test_codes_round_to_the_nearest_and_rows_of_zeros_stay_zero(cuda, name):
    fmt = getattr(cuda, name)
    x, _ = numbers(3, 20, 32, 8)
    x[4] = 0
    codes, scale = cuda.codes_of_rows(x, fmt)
    back = codes.float() * scale
    assert not back[4].any() and scale.shape == (20, 1)
    step = scale if name == "INT8" else torch.maximum(x.abs() / 8, scale * 2**-8)  # e4m3 has 3 bits behind the first
    assert bool(((back - x).abs() <= 0.5 * step + 1e-6).all())
    weight_codes, weight_scale = cuda.codes_of_weight(x, fmt)
    assert torch.equal(weight_codes.float(), codes.float()) and torch.equal(weight_scale.t(), scale)


def test_two_of_four_are_the_largest_and_packing_keeps_them(cuda):
    _, weight = numbers(5, 1, 64, 64)
    sparse = cuda.sparse_weight(weight)
    groups, kept = weight.reshape(64, -1, 4).abs(), (sparse != 0).reshape(64, -1, 4)
    assert bool((kept.sum(-1) == 2).all())
    assert bool((groups.where(kept, torch.inf).amin(-1) >= groups.where(~kept, 0).amax(-1)).all())
    packed, places = sparse_semi_structured_from_dense_cutlass(sparse.half())
    assert packed.shape == (64, 32)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(packed, places), sparse.half())


def test_a_kernel_that_computes_something_else_is_found(cuda):
    x, weight = numbers(7, 20, 32, 16)
    good = cuda.plain_layer(weight, torch.float16)
    assert cuda.check(good, x, weight).error < 1e-3
    bad = cuda.Layer("odd", lambda x: good.call(x) * 1.01, good.exact)
    with pytest.raises(RuntimeError, match="odd is 0.01 from its float64 reference"):
        cuda.check(bad, x, weight)


def test_a_gpu_without_the_units_is_told(cuda, monkeypatch):
    monkeypatch.setattr(cuda, "sparse_layer", lambda weight, out: cuda.Layer("2:4", None, None))
    _, weight = numbers(1, 1, 16, 16)
    old, missing = cuda.layers_for(weight, (7, 5))
    assert [layer.name for layer in old] == ["float32", "float16", "int8"] and set(missing) == {"fp8", "2:4"}
    new, missing = cuda.layers_for(weight, (9, 0))
    assert [layer.name for layer in new] == ["float32", "float16", "int8", "fp8", "2:4"] and not missing


def test_calls_take_turns_between_events(cuda):
    clock, order = [0.0], []

    class Event:
        def record(self):
            self.time = clock[0]

        def elapsed_time(self, end):
            return end.time - self.time

    def call(name, cost):
        order.append(name)
        clock[0] += cost

    times = cuda.timed({"a": lambda: call("a", 2.0), "b": lambda: call("b", 3.0)}, Event, lambda: None)
    assert order == ["a", "b"] * (cuda.WARMUP + cuda.REPEATS)
    assert cuda.summary(times["a"]) == {"median_ms": 2.0, "p10_ms": 2.0, "p90_ms": 2.0} and set(times["b"]) == {3.0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which it takes minutes")
def test_without_a_gpu_it_says_so_and_writes_nothing(cuda):
    written = FOLDER / "results" / "cuda.json"
    before = written.read_bytes() if written.exists() else None
    done = subprocess.run([sys.executable, str(FOLDER / "cuda_linears.py")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "skipped: no CUDA device\n")
    assert (written.read_bytes() if written.exists() else None) == before
