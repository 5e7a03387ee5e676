"""gossamer compress-weights: options reach the function, mistakes are one sentence, Ctrl-C says that it goes on."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from checkpoint_files import contents, language_model
from gossamer.checkpoints.compressed import load_compressed
from gossamer.checkpoints.settings import CodeSettings
from gossamer.checkpoints.stream import compress_checkpoint
from gossamer.cli import compress_weights as command_module
from gossamer.cli.main import app


def run(*arguments):
    return CliRunner().invoke(app, ["compress-weights", *map(str, arguments)])


def test_options_reach_the_function(tmp_path):
    source = language_model(tmp_path / "in")
    options = ["--weights", "uint3", "--block", "16", "--ranges", "hqq", "--skip", "*.down", "--memory", "1"]
    done = run(source, tmp_path / "out", *options)
    assert done.exit_code == 0, done.stderr
    assert "smaller" in done.stdout
    assert "model.layers.0.attn.weight" in done.stdout
    compress_checkpoint(source, tmp_path / "same", CodeSettings("uint3", 16, "hqq", skip=("*.down",)))
    assert contents(tmp_path / "out") == contents(tmp_path / "same")
    assert load_compressed(tmp_path / "out").tensors["model.layers.0.down.weight"].reason == "skipped as asked (*.down)"


def test_json_is_one_object(tmp_path):
    done = run(language_model(tmp_path / "in"), tmp_path / "out", "--json", "--only", "*.attn.weight", "--only", "*.up.weight")
    report = json.loads(done.stdout)
    assert sum("sqnr_db" in tensor for tensor in report["tensors"]) == 4
    assert report["size_ratio"] > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "int9"], "weights must be a format of at most 8 bits"),
        (["--ranges", "hq"], "did you mean 'hqq'"),
        (["--skip", "nothing"], "skip must be the name of a tensor or a pattern"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, options, message):
    done = run(language_model(tmp_path / "in"), tmp_path / "out", *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_named(tmp_path):
    save_file({"w": torch.randn(64, 64)}, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-100])
    done = run(tmp_path / "w.safetensors", tmp_path / "out")
    assert done.exit_code == 2
    assert "w.safetensors: ends 100 bytes before its tensors do" in done.stderr


def test_interrupted_it_says_that_it_goes_on(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_module, "compress_checkpoint", interrupted)
    done = run(language_model(tmp_path / "in"), tmp_path / "out")
    assert done.exit_code == 130
    assert f"it goes on from what is kept in {tmp_path / 'out'}" in done.stderr
