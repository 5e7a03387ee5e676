"""The commands as a new user runs them: a module of one's own in the current folder, files, exit codes, damage."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from gossamer.cli.main import app

USER_MODULE = '''
"""What a user has: a network, and loaders."""
import numpy as np
import torch
from torch import nn

print("the user's module prints while it is imported")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        )
        self.head = nn.Linear(128, 3)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


def samples(count, seed):
    """Bars that lie, stand, or cross, in noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    images = random.normal(0, 0.3, (count, 1, 12, 12)).astype(np.float32)
    for image, label in zip(images, labels):
        at = random.integers(2, 10)
        if label != 1:
            image[0, at] += 1
        if label != 0:
            image[0, :, at] += 1
    return torch.from_numpy(images), torch.from_numpy(labels)


def loaders():
    print("the user's loaders print, too")
    train, validation = samples(384, 1), samples(200, 2)
    batches = [(train[0][i : i + 64], train[1][i : i + 64]) for i in range(0, 384, 64)]
    return {"train": batches, "validation": validation}


def empty():
    return {"train": [], "validation": []}


def wrong_labels():
    images, labels = samples(64, 3)
    return {"train": (images, labels), "validation": (images, labels + 1)}


def not_finite():
    images, labels = samples(64, 3)
    return {"train": (images, labels), "validation": (images / 0, labels)}


def wrong_shape():
    images, labels = samples(64, 3)
    return {"train": (images, labels), "validation": (images[:, :, :8], labels)}


def accuracy(outputs, targets):
    return float((outputs.argmax(1) == targets).float().mean())


def needs_weights():
    raise OSError("no such disk")
'''
MODULE = "bars_of_a_user"
ASK = ["--model", f"{MODULE}:Net", "--weights", "w.safetensors", "--data", f"{MODULE}:loaders"]
QUICK = ["--epochs", "1", "--batch", "8"]
BUDGET = ["--max-drop", "30", "--min-size-ratio", "4"]  # more than int8 alone gives: channels must go


def run_outside(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", "gossamer", *arguments]

    def interruptible() -> None:  # a shell's background job ignores SIGINT, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, preexec_fn=interruptible)


def run(folder: Path, *arguments: str):
    """Run in this process, in the user's folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return CliRunner().invoke(app, list(map(str, arguments)))
    finally:
        os.chdir(before)


def train(folder: Path) -> None:
    """What the user did before: train the network, keep its weights."""
    sys.path.insert(0, str(folder))
    module = __import__(MODULE)
    torch.manual_seed(0)
    model = module.Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(8):
        for inputs, target in module.loaders()["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), target).backward()
            optimizer.step()
    save_file(model.state_dict(), folder / "w.safetensors")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("user")
    (folder / f"{MODULE}.py").write_text(USER_MODULE)
    path = list(sys.path)
    train(folder)
    yield folder
    sys.path[:] = path
    sys.modules.pop(MODULE, None)


@pytest.fixture(scope="module")
def finished(place) -> tuple[Path, dict]:
    """A run in a process of its own, with --json."""
    process = run_outside(place, "compress", *ASK, *QUICK, *BUDGET, "-o", "out", "--json")
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "the user's loaders print, too" in errors
    assert out.count("\n") == 1
    return place / "out", json.loads(out)


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A finished run to damage."""
    return Path(shutil.copytree(finished[0], tmp_path / "out"))


def assert_one_sentence(done, *parts: str) -> None:
    """It failed with one line on standard error that has these parts, and printed nothing else."""
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in lines[0]


def test_the_json_has_what_was_promised(finished):
    _, document = finished
    for side in ("original", "compressed"):
        assert {"accuracy", "latency_ms", "size_bytes", "macs", "params"} <= set(document[side])
    promised = "size_ratio speedup drop_points drop_interval parity budget_met target threads batch seed seconds"
    assert set(promised.split()) <= set(document)
    assert {"max_steps", "values_compared"} <= set(document["parity"])
    assert document["budget_met"] is True
    assert document["data"] == f"{MODULE}:loaders"
    assert document["original"]["accuracy"] > 0.8
    assert len(document["candidates"]) > 1


def test_the_files_are_there_and_agree_with_the_json(finished):
    out, document = finished
    names = "model.onnx original-model.onnx model.gossamer original.gossamer plan.json report.json report.html"
    assert set(names.split()) <= {path.name for path in out.iterdir()}
    assert json.loads((out / "report.json").read_text()) == document
    assert (out / "model.onnx").stat().st_size == document["compressed"]["size_bytes"]
    assert (out / "original-model.onnx").stat().st_size == document["original"]["size_bytes"]


@pytest.mark.parametrize(("file", "side"), [("model.onnx", "compressed"), ("original-model.onnx", "original")])
def test_the_accuracy_is_the_files_own(finished, place, file, side):
    """The oracle: ONNX Runtime alone, without any of our code."""
    onnxruntime = pytest.importorskip("onnxruntime")
    out, document = finished
    inputs, labels = sys.modules[MODULE].samples(200, 2)
    session = onnxruntime.InferenceSession(str(out / file), providers=["CPUExecutionProvider"])
    scores = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    assert np.mean(scores.argmax(1) == labels.numpy()) == pytest.approx(document[side]["accuracy"])


def test_verify_finds_the_same_again(finished, place):
    _, document = finished
    done = run(place, "verify", "out", "--json")
    assert done.exit_code == 0, done.stderr
    again = json.loads(done.stdout)
    for side in ("original", "compressed"):
        for key in ("accuracy", "size_bytes", "macs", "params"):
            assert again[side][key] == document[side][key]
    assert again["drop_interval"] == document["drop_interval"]


def test_verify_prints_the_table(finished, place):
    done = run(place, "verify", "out", "--data", f"{MODULE}:loaders", "--threads", "1", "--batch", "4")
    assert done.exit_code == 0, done.stderr
    for word in ("accuracy", "latency_ms", "size_bytes", "Parity", "batch 4", "Verified."):
        assert word in done.stdout


def test_verify_fails_when_the_artifact_is_another_one(copy, place):
    """The original's file in place of the artifact: it is right, but it is not what the bundle says."""
    shutil.copy(copy / "original-model.onnx", copy / "model.onnx")
    done = run(place, "verify", copy)
    assert done.exit_code in (1, 2)
    assert "Verified." not in done.stdout


def test_report_writes_the_page_anew(copy, place):
    page = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    done = run(place, "report", copy)
    assert done.exit_code == 0, done.stderr
    assert (copy / "report.html").read_text() == page
    for word in (f"{MODULE}:Net", "accuracy", "budget", "Written:"):
        assert word in done.stdout
    again = run(place, "report", copy / "report.json", "--json")
    assert json.loads(again.stdout) == json.loads((copy / "report.json").read_text())


def test_inspect_reads_a_bundle(finished, place):
    done = run(place, "inspect", "out/model.gossamer", "--json")
    structure = json.loads(done.stdout)
    assert structure["target"] == "onnxruntime"
    assert any(layer["weight_format"].startswith("int8") for layer in structure["layers"])  # where the runtime has a kernel
    assert structure["cost"]["params"] == finished[1]["compressed"]["params"]
    table = run(place, "inspect", "out/model.gossamer")
    assert "quantized for onnxruntime" in table.stdout
    assert "int8 per channel" in table.stdout


def test_a_finished_run_is_not_run_again(finished, place):
    """The same command once more takes every trial from the folder: not even the measured latency changes."""
    out, document = finished
    done = run(place, "compress", *ASK, *QUICK, *BUDGET, "-o", out, "--json")
    again = json.loads(done.stdout)
    assert done.exit_code == 0
    assert again["candidates"] == document["candidates"]
    assert again["compressed"] == document["compressed"]


def test_other_settings_need_another_folder_or_fresh(copy, place):
    other = ["compress", *ASK, "--epochs", "0", "--batch", "8", *BUDGET, "-o", copy]
    assert_one_sentence(
        run(place, *other), "OUT must be empty or of the same run (it differs in settings.epochs); choose another one, or add --fresh"
    )
    done = run(place, *other, "--fresh")
    assert done.exit_code == 0, done.stderr
    assert "Written to" in done.stdout


def test_a_missed_budget_exits_with_1_and_writes_all_the_same(place, tmp_path):
    done = run(place, "compress", *ASK, *QUICK, "--min-size-ratio", "1e6", "--trials", "1", "-o", tmp_path / "out")
    assert done.exit_code == 1, done.stderr
    assert "min_size_ratio" in done.stdout
    assert "Not met" in done.stdout
    assert (tmp_path / "out" / "model.onnx").exists()


def test_without_a_budget_it_is_only_quantized(place, tmp_path):
    done = run(place, "compress", *ASK, *QUICK, "--metric", f"{MODULE}:accuracy", "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["original"]["macs"] == document["compressed"]["macs"]
    assert len(document["candidates"]) == 1
    assert_one_sentence(run(place, "verify", tmp_path / "out"), "--metric must be given as package.module:function")
    again = run(place, "verify", tmp_path / "out", "--metric", f"{MODULE}:accuracy", "--json")
    assert json.loads(again.stdout)["compressed"]["accuracy"] == document["compressed"]["accuracy"]


def test_interrupted_and_resumed_gives_the_same(place, finished, tmp_path):
    _, document = finished
    arguments = ["compress", *ASK, *QUICK, *BUDGET, "-o", str(tmp_path / "out"), "--json"]
    process = run_outside(place, *arguments)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("trial 2"):
            process.send_signal(signal.SIGINT)
            break
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert out == ""
    assert "Run the same command again: it goes on" in errors
    assert_one_sentence(run(place, "report", tmp_path / "out"), "holds a run that is not finished")
    done = run(place, *arguments)
    assert done.exit_code == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["compressed"]["accuracy"] == document["compressed"]["accuracy"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (finished[0] / "model.onnx").read_bytes()


@pytest.mark.parametrize("file", ["report.json", "model.gossamer", "original.gossamer", "model.onnx", "original-model.onnx"])
@pytest.mark.parametrize("damage", ["cut", "foreign", "gone"])
def test_damaged_files_are_named(copy, place, file, damage):
    path = copy / file
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-100])
        case "foreign":
            path.write_bytes(b"PK\3\4 something else altogether" * 20)
        case "gone":
            path.unlink()
    named = str(copy) if (file, damage) == ("report.json", "gone") else file
    assert_one_sentence(run(place, "verify", copy), named)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ("empty", ["train data is empty"]),
        ("wrong_labels", ["label 3", "3 outputs"]),
        ("not_finite", ["validation data", "NaN or infinite"]),
        ("wrong_shape", ["(64, 1, 8, 12)"]),
        ("nothing", [f"a name that {MODULE} has"]),
        ("needs_weights", ["OSError: no such disk", f"{MODULE}.py:"]),
    ],
)
def test_data_that_cannot_be_used(place, tmp_path, data, parts):
    ask = [*ASK[:4], "--data", f"{MODULE}:{data}"]
    assert_one_sentence(run(place, "compress", *ask, *QUICK, "--trials", "1", "-o", tmp_path / "out"), *parts)


def test_weights_that_are_not_finite(place, tmp_path):
    model = sys.modules[MODULE].Net()
    nn.init.constant_(model.head.bias, float("nan"))
    save_file(model.state_dict(), tmp_path / "nan.safetensors")
    ask = [*ASK[:2], "--weights", tmp_path / "nan.safetensors", *ASK[4:]]
    assert_one_sentence(run(place, "compress", *ask, *QUICK, "-o", tmp_path / "out"), "'head.bias' holds 3 NaN")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (["--target", "onnxruntim"], ["did you mean 'onnxruntime'"]),
        (["--weight-budget", "6 bits"], ["--weight-budget must be left out, or --weight-format be 'mixed' (it is 'auto'); got '6 bits'"]),
        (["--min-speedup", "-1"], ["Budget.min_speedup must be positive"]),
        (["--metric", "top7"], ["metric"]),
        (["--metric", f"{MODULE}:acuracy"], ["did you mean 'accuracy'"]),
        (["--weights", "w.pt"], ["can run code when opened"]),
        (["--weights", "none.safetensors"], ["does not exist"]),
        (["--model", f"{MODULE}:needs_weights"], ["OSError: no such disk"]),
    ],
)
def test_requests_that_cannot_be_met(place, tmp_path, change, parts):
    assert_one_sentence(run(place, "compress", *ASK, *QUICK, "-o", tmp_path / "out", *change), *parts)


def test_out_that_cannot_be_written(place, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert_one_sentence(run(place, "compress", *ASK, *QUICK, "-o", tmp_path / "out"), "cannot be written")


def test_folders_without_a_run(place, tmp_path):
    for verb in ("verify", "report"):
        assert_one_sentence(run(place, verb, tmp_path), "holds no finished run")
        assert_one_sentence(run(place, verb, tmp_path / "nowhere"), "does not exist")
