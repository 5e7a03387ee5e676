"""Streaming gives what the whole weights' quantizers give, within the memory that is allowed, whatever interrupts it."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from huggingface_hub import save_torch_state_dict  # accelerate brings it
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoint_files import INDEX, contents, language_model, repeated, sharded
from gossamer.checkpoints import stream
from gossamer.checkpoints.compressed import load_compressed
from gossamer.checkpoints.journal import NAME as JOURNAL
from gossamer.checkpoints.settings import CodeSettings
from gossamer.checkpoints.stream import MANIFEST, compress_checkpoint
from gossamer.errors import ConfigError, DataError, FileError
from gossamer.numerics.affine import fake_quantize, quantize
from gossamer.numerics.ranges import choose_block_quantizer

MEMORY = 64_000  # far less than the weights of `language_model` at once


def source_tensors(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["int2", "int3", "uint3", "int4", "uint4", "uint6", "int8"]),
    st.sampled_from(["min-max", "mse", "hqq"]),
    st.sampled_from([16, 32, 48, 100]),
    st.integers(1, 90),
    st.integers(1, 40),
)
def test_any_checkpoint_equals_its_weights_in_memory(tmp_path_factory, weights, ranges, block, columns, rows):
    folder = tmp_path_factory.mktemp("any")
    random = torch.Generator().manual_seed(columns)
    made = {"a.weight": torch.randn(rows, columns, generator=random).half(), "b.weight": torch.randn(64, 100, generator=random)}
    save_file(made, folder / "model.safetensors")
    chosen = CodeSettings(weights, block, ranges)
    compress_checkpoint(folder, folder / "out", chosen, memory_bytes=140_000)
    checkpoint = load_compressed(folder / "out")
    checkpoint.check()
    for name, tensor in made.items():
        if checkpoint.tensors[name].reason:
            assert torch.equal(checkpoint.dequantized(name), tensor)
            continue
        oracle = choose_block_quantizer(tensor.float(), chosen.format, ranges, size=block)
        assert checkpoint.quantizer(name) == oracle
        assert torch.equal(checkpoint.codes(name).float(), quantize(tensor.float(), oracle))
        assert torch.equal(checkpoint.dequantized(name, dtype=torch.float32), fake_quantize(tensor.float(), oracle))


def test_files_report_and_manifest(tmp_path):
    source = language_model(tmp_path / "in")
    before, told = contents(source), []
    report = compress_checkpoint(source, tmp_path / "out", CodeSettings("int3"), memory_bytes=MEMORY, on_progress=told.append)
    assert contents(source) == before
    made = contents(tmp_path / "out")
    assert sorted(made) == sorted([*(path.name for path in source.iterdir()), MANIFEST])
    tensors = source_tensors(source)
    assert {tensor.name for tensor in report.tensors} == set(tensors)
    assert {tensor.name for tensor in report.coded} == {name for name in tensors if tensor_is_coded(name)}
    assert report.source_bytes == sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert report.compressed_bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert report.size_ratio == report.source_bytes / report.compressed_bytes > 1.5
    assert report.resumed_bytes == 0
    checkpoint = load_compressed(tmp_path / "out")
    for result in report.coded:
        original = tensors[result.name].float()
        error = checkpoint.dequantized(result.name, dtype=torch.float32) - original
        assert result.sqnr_db == pytest.approx(10 * float(torch.log10(original.square().sum() / error.square().sum())), abs=1e-4)
    index, manifest = json.loads(made[INDEX]), json.loads(made[MANIFEST])
    assert set(index["weight_map"]) == {name for path in (tmp_path / "out").glob("*.safetensors") for name in load_file(path)}
    assert manifest["weights"] == "int3"
    assert manifest["tensors"]["model.norm.weight"]["float"].startswith("a bias, a norm")
    assert torch.equal(load_file(tmp_path / "out" / "model-00001-of-00003.safetensors")["model.norm.weight"], tensors["model.norm.weight"])
    assert all(earlier.done <= later.done <= later.total for earlier, later in itertools.pairwise(told))
    assert len(report.facts()) == 4
    assert json.dumps(report.to_dict(), allow_nan=False)


def tensor_is_coded(name):
    return name.endswith(("attn.weight", "up.weight", "down.weight"))


@pytest.mark.parametrize("memory", [40_000, 1 << 28])
@pytest.mark.parametrize("weights", ["uint3", "int4"])
def test_memory_does_not_change_a_byte(tmp_path, memory, weights):
    source = language_model(tmp_path / "in")
    for place, size in (("a", MEMORY), ("b", memory)):
        compress_checkpoint(source, tmp_path / place, CodeSettings(weights, 16, "hqq"), memory_bytes=size)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


class Killed(BaseException):
    """What nothing catches."""


@pytest.mark.parametrize("sync_bytes", [0, 3_000, 1 << 30])
def test_interrupted_anywhere_it_ends_with_the_same_bytes(tmp_path, monkeypatch, sync_bytes):
    monkeypatch.setattr(stream, "SYNC_BYTES", sync_bytes)
    source, chosen = language_model(tmp_path / "in"), CodeSettings("uint3", 16, "min-max")
    steps = []
    compress_checkpoint(source, tmp_path / "whole", chosen, memory_bytes=MEMORY, on_progress=steps.append)
    resumed = set()
    for stop in range(0, len(steps), 3):
        calls = iter(range(len(steps)))

        def kill(_, calls=calls, stop=stop):
            if next(calls) == stop:
                raise Killed

        folder = tmp_path / f"killed{stop}"
        with pytest.raises(Killed):
            compress_checkpoint(source, folder, chosen, memory_bytes=MEMORY, on_progress=kill)
        assert not (folder / MANIFEST).exists()
        again = compress_checkpoint(source, folder, chosen, memory_bytes=MEMORY)
        assert contents(folder) == contents(tmp_path / "whole")
        resumed.add(again.resumed_bytes)
    assert len(resumed) > (8 if not sync_bytes else 2)  # what was done was not done again


def test_killed_again_and_again(tmp_path, monkeypatch):
    """Each attempt is killed at its third call of on_progress: finished tensors are enough to come to an end."""
    monkeypatch.setattr(stream, "SYNC_BYTES", 0)
    source, chosen = language_model(tmp_path / "in", layers=1), CodeSettings("int4", 16)
    compress_checkpoint(source, tmp_path / "whole", chosen)
    attempts = 0
    while not (tmp_path / "out" / MANIFEST).exists():
        calls = iter([False] * 2 + [True] * 99)

        def kill(_, calls=calls):
            if next(calls):
                raise Killed

        attempts += 1
        assert attempts < 20
        try:
            compress_checkpoint(source, tmp_path / "out", chosen, on_progress=kill)
        except Killed:
            continue
    assert attempts > 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_file_lost_between_two_attempts_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "SYNC_BYTES", 0)
    source, chosen = language_model(tmp_path / "in"), CodeSettings()
    compress_checkpoint(source, tmp_path / "whole", chosen)

    def kill(record):
        if record.note == "model.layers.1.down.weight":
            raise Killed

    for lost in ("model-00002-of-00003.safetensors", ".model-00003-of-00003.safetensors.partial"):
        with pytest.raises(Killed):
            compress_checkpoint(source, tmp_path / "out", chosen, on_progress=kill)
        (tmp_path / "out" / lost).unlink()
        compress_checkpoint(source, tmp_path / "out", chosen)
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        shutil.rmtree(tmp_path / "out")


def test_a_journal_that_lost_lines_costs_time_only(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "SYNC_BYTES", 0)
    source = language_model(tmp_path / "in")
    compress_checkpoint(source, tmp_path / "whole")

    def kill(record):
        if record.note == "model-00003-of-00003.safetensors":  # the last file is whole, the manifest is not written
            raise Killed

    with pytest.raises(Killed):
        compress_checkpoint(source, tmp_path / "out", on_progress=kill)
    lines = (tmp_path / "out" / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / "out" / JOURNAL).write_bytes(b"".join(lines[:-2]))
    compress_checkpoint(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_called_again_when_all_is_done(tmp_path):
    source = language_model(tmp_path / "in")
    first = compress_checkpoint(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    second = compress_checkpoint(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert second.tensors == first.tensors
    assert second.resumed_bytes == second.source_bytes
    with pytest.raises(FileError, match="holds a compressed checkpoint of another source, or made with other settings"):
        compress_checkpoint(source, tmp_path / "out", CodeSettings("int8"))
    os.utime(source / "model-00001-of-00003.safetensors", ns=(5, 5))
    with pytest.raises(FileError, match="of another source"):
        compress_checkpoint(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_source_that_changes_meanwhile(tmp_path):
    source = language_model(tmp_path / "in")

    def change(record):
        os.utime(source / "model-00001-of-00003.safetensors", ns=(5, 5))

    with pytest.raises(FileError, match="model-00001-of-00003.safetensors: changed while it was read; delete the destination"):
        compress_checkpoint(source, tmp_path / "out", on_progress=change)
    assert not (tmp_path / "out" / MANIFEST).exists()
    with pytest.raises(FileError, match="holds an unfinished compression that differs in the source's files"):
        compress_checkpoint(source, tmp_path / "out")


def test_what_the_hugging_face_hub_writes(tmp_path):
    (tmp_path / "in").mkdir()
    random = torch.Generator().manual_seed(0)
    state = {f"layers.{place}.weight": torch.randn(64, 96, generator=random).bfloat16() for place in range(6)}
    save_torch_state_dict(state, tmp_path / "in", max_shard_size=30_000)
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    report = compress_checkpoint(tmp_path / "in", tmp_path / "out", CodeSettings("int8"))
    assert len(report.coded) == 6
    checkpoint = load_compressed(tmp_path / "out")
    for name, tensor in state.items():
        assert float((checkpoint.dequantized(name, dtype=torch.float32) - tensor).abs().max()) < 0.03


@pytest.mark.parametrize("weights", ["int4", "uint4"])
def test_scales_of_half_the_bytes(tmp_path, weights):
    save_file({"a.weight": torch.randn(64, 256, generator=torch.Generator().manual_seed(0))}, tmp_path / "model.safetensors")
    reports = {
        scales: compress_checkpoint(tmp_path, tmp_path / scales, CodeSettings(weights, scales=scales)) for scales in ("float32", "bfloat16")
    }
    saved = reports["float32"].tensors[0].bytes_after - reports["bfloat16"].tensors[0].bytes_after
    assert saved == 2 * 64 * 256 // 32
    assert reports["bfloat16"].sqnr_db > reports["float32"].sqnr_db - 0.2
    checkpoint = load_compressed(tmp_path / "bfloat16")
    checkpoint.check()
    made, weight = checkpoint.quantizer("a.weight"), load_file(tmp_path / "model.safetensors")["a.weight"]
    assert torch.tensor(made.scale).bfloat16().float().tolist() == list(made.scale)
    assert torch.equal(checkpoint.codes("a.weight").float(), quantize(weight, made))
    assert torch.equal(checkpoint.dequantized("a.weight"), fake_quantize(weight, made))
    with pytest.raises(ConfigError, match=r"scales.*one of float32, bfloat16"):
        CodeSettings(scales="float16")


def test_what_a_loader_needs_beside_the_weights_comes_along(tmp_path):
    source = language_model(tmp_path / "in")
    wanted = {
        "config.json": b'{"hidden_size": 64}',
        "tokenizer.json": b"{}",
        "merges.txt": b"a b",
        "spiece.model": bytes(9),
        "LICENSE": b"free",
    }
    others = {
        "modeling.py": b"import os",
        "pytorch_model.bin": b"weights",
        ".hidden.json": b"{}",
        "training.pt": b"",
        "old.safetensors.index.json.bak": b"",
    }
    for name, data in (wanted | others).items():
        (source / name).write_bytes(data)
    compress_checkpoint(source, tmp_path / "out")
    found = contents(tmp_path / "out")
    assert {name: found[name] for name in wanted} == wanted
    assert not set(others) & set(found)
    load_compressed(tmp_path / "out").check()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_bytes(b"mine")
    with pytest.raises(FileError, match=r"config.json.*would be overwritten"):
        compress_checkpoint(source, tmp_path / "taken")
    assert contents(tmp_path / "taken") == {"config.json": b"mine"}


def test_a_single_file_brings_nothing_along(tmp_path):
    save_file({"a.weight": torch.randn(64, 64)}, tmp_path / "model.safetensors")
    (tmp_path / "notes.txt").write_text("private")
    compress_checkpoint(tmp_path / "model.safetensors", tmp_path / "out")
    assert "notes.txt" not in contents(tmp_path / "out")


def test_destinations_that_hold_something_else(tmp_path):
    source = language_model(tmp_path / "in")
    before = contents(source)
    with pytest.raises(FileError, match="safetensors: would be overwritten, but is read; choose another folder"):
        compress_checkpoint(source, source)
    assert contents(source) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / INDEX).write_text("{}")
    with pytest.raises(FileError, match=f"{INDEX}: would be overwritten; choose another folder, or delete this one"):
        compress_checkpoint(source, tmp_path / "other")
    assert contents(tmp_path / "other") == {INDEX: b"{}"}
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written .File exists.; choose a folder"):
        compress_checkpoint(source, tmp_path / "file")


def test_names_that_would_meet(tmp_path):
    weight = torch.randn(64, 64)
    source = sharded(tmp_path / "in", {"a": weight}, {"a.scale": torch.ones(3)})
    with pytest.raises(FileError, match="holds both 'a' and 'a.scale', which would get the same name; rename one, or skip the first"):
        compress_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    compress_checkpoint(sharded(tmp_path / "in2", {"a": weight, "a.x": weight + 1}), tmp_path / "out")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path, bad):
    weight = torch.randn(64, 64)
    weight[37, 5] = bad
    source = sharded(tmp_path / "in", {"fine": torch.ones(64, 64)}, {"w": weight})
    with pytest.raises(DataError, match="model-00002-of-00002.safetensors: the weight 'w' is NaN or infinite in row 37; mend"):
        compress_checkpoint(source, tmp_path / "out", memory_bytes=MEMORY)
    assert (tmp_path / "out" / "model-00001-of-00002.safetensors").exists()  # what is done stays


def test_too_little_memory_and_bad_patterns_leave_nothing(tmp_path):
    source = language_model(tmp_path / "in")
    with pytest.raises(ConfigError, match="memory_bytes must be at least 17408"):
        compress_checkpoint(source, tmp_path / "out", memory_bytes=9)
    with pytest.raises(ConfigError, match="skip must be the name of a tensor"):
        compress_checkpoint(source, tmp_path / "out", CodeSettings(skip=("nothing",)))
    assert not (tmp_path / "out").exists()


def test_a_disk_without_space_says_so_before_work_begins(tmp_path, monkeypatch):
    source = language_model(tmp_path / "in")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 77))
    with pytest.raises(FileError, match=r"out: needs [\d,]+ bytes, but 77 are free; make space or choose another folder"):
        compress_checkpoint(source, tmp_path / "out")


def in_a_process(folder, code, **limits):
    """Run code in a process of its own, after the imports, within limits on memory in bytes beyond what it holds by then."""
    text = f"""
        import os, resource, signal, sys, torch
        torch.set_num_threads(1)
        from safetensors.torch import load_file
        from gossamer.checkpoints.settings import CodeSettings
        from gossamer.checkpoints.stream import compress_checkpoint
        held = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        for name, more in {limits!r}.items():
            resource.setrlimit(getattr(resource, name), (held + more, held + more))
    """
    script = textwrap.dedent(text) + textwrap.dedent(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


COMPRESS = """
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = compress_checkpoint("in", "out", CodeSettings("int4", 64, "min-max"), memory_bytes=16 << 20)
assert report.peak_rss_bytes - peak * 1024 < 40 << 20, report.peak_rss_bytes - peak * 1024
"""
READ = 'load_file("in/b.safetensors")'


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """140 MB in three files; one weight alone has 84 MB."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "in").mkdir()
    shapes = {"a": {"a.weight": (2000, 3500)}, "b": {"b.weight": (3, 14_000_000)}, "c": {"c.weight": (7000, 1000), "c.bias": (1, 900)}}
    for name, tensors in shapes.items():
        repeated(folder / "in" / f"{name}.safetensors", tensors)
    places = {tensor: f"{name}.safetensors" for name, tensors in shapes.items() for tensor in tensors}
    (folder / "in" / INDEX).write_text(json.dumps({"weight_map": places}))
    return folder


def test_a_checkpoint_larger_than_the_limit_on_memory(large):
    room = 56 << 20
    assert (large / "in" / "b.safetensors").stat().st_size > room
    assert in_a_process(large, READ).returncode == 0
    naive = in_a_process(large, READ, RLIMIT_AS=room)
    assert naive.returncode != 0
    assert "Cannot allocate memory" in naive.stderr or "MemoryError" in naive.stderr or "unable to mmap" in naive.stderr, naive.stderr
    done = in_a_process(large, COMPRESS, RLIMIT_AS=room)
    assert done.returncode == 0, done.stderr
    checkpoint = load_compressed(large / "out")
    rows = slice(1, 2)
    weight = load_file(large / "in" / "b.safetensors")["b.weight"][rows].float()
    part = weight[:, -64_000:]
    oracle = choose_block_quantizer(part, checkpoint.settings.format, "min-max", size=64)
    found = checkpoint.dequantized("b.weight", rows, dtype=torch.float32)
    assert torch.equal(found[:, -64_000:], fake_quantize(part, oracle))


def test_killed_by_the_system_in_the_middle(tmp_path):
    source = language_model(tmp_path / "in", layers=3, width=200)
    code = """
        from gossamer.checkpoints import stream
        stream.SYNC_BYTES = 0
        def kill(record):
            if record.note == "model.layers.1.down.weight":
                os.kill(os.getpid(), signal.SIGKILL)
        compress_checkpoint("in", "out", CodeSettings("int3", 32, "hqq"), on_progress=kill)
    """
    assert in_a_process(tmp_path, code).returncode == -signal.SIGKILL
    assert (tmp_path / "out" / JOURNAL).exists()
    assert not (tmp_path / "out" / MANIFEST).exists()
    with pytest.raises(FileError, match="cannot be read|does not exist|finished"):
        load_compressed(tmp_path / "out")
    chosen = CodeSettings("int3", 32, "hqq")
    with pytest.raises(FileError, match=r"differs in block \(32, now 16\)"):
        compress_checkpoint(source, tmp_path / "out", CodeSettings("int3", 16, "hqq"))
    resumed = compress_checkpoint(source, tmp_path / "out", chosen)
    assert 0 < resumed.resumed_bytes < resumed.source_bytes
    compress_checkpoint(source, tmp_path / "whole", chosen)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_file_larger_than_the_system_allows(tmp_path):
    """A real refusal of the system, not a pretended one."""
    language_model(tmp_path / "in", width=300)
    code = """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        compress_checkpoint("in", "out")
    """
    done = in_a_process(tmp_path, code)
    assert "safetensors: cannot be written (File too large); make space or choose another folder" in done.stderr
