"""Mistakes in what was asked are told before any work: nothing is planned or trained, and a mended call may use the folder again."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gossamer as gs
from gossamer.data.source import as_data
from gossamer.errors import ConfigError, DataError, MissingRuntime
from gossamer.pipeline.first_look import first_look
from gossamer.pipeline.trial import Job
from gossamer.progress import silent
from gossamer.registry import Entry
from gossamer.targets.target import targets
from gossamer.train.recipe import Recipe

SETTINGS = gs.Settings(epochs=1, trials=2, batch=8)
BUDGET = gs.Budget(max_drop_points=50)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)).eval()


def parts(**changed):
    generator = torch.Generator().manual_seed(0)
    inputs, target = torch.randn(80, 6, generator=generator), torch.arange(80) % 3
    return {"train": (inputs, target), "calibration": inputs[:32], "validation": (inputs, target)} | changed


def changed(part, place, value, which=1):
    arrays = [tensor.clone() for tensor in parts()[part]]
    arrays[which][place] = value
    return {part: tuple(arrays)}


INPUTS, TARGET = parts()["train"]
FLOATS = (
    r"the training targets are torch.float32 of shape \(64,\), no class numbers of shape \(batch,\); pass Settings\(recipe=Recipe\(loss="
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (parts(**changed("validation", 79, 3)), r"the validation data has the label 3, but the network has 3 outputs"),
        (parts(**changed("train", 79, -1)), r"the training data has the label -1"),
        (parts(**changed("train", (79, 0), float("nan"), 0)), r"batch 1 of the training data holds NaN"),
        (parts(**changed("validation", (79, 0), float("inf"), 0)), r"batch 1 of the validation data holds NaN or infinite"),
        (parts(validation=INPUTS), r"the validation data has no targets"),
        (parts(validation=(INPUTS, TARGET.float())), r"the validation targets must be class numbers .*torch.float32"),
        (parts(validation=(INPUTS, TARGET[:, None])), r"class numbers of shape \(batch,\).*\(64, 1\)"),
        (parts(validation=(INPUTS[:, :5], TARGET)), r"the validation data does not fit: input input \(batch, 6\) float32 got .*\(64, 5\)"),
        (parts(train=(INPUTS[:, :5], TARGET)), r"the training data does not fit"),
        (parts(train=(INPUTS, TARGET.float())), FLOATS),
        (parts(train=[]), r"the training data is empty"),
    ],
)
def test_all_of_the_data_is_read_before_anything_is_planned(tmp_path, data, message):
    stages = []
    with pytest.raises(DataError, match=message):
        gs.compress(
            network(), data, budget=BUDGET, settings=SETTINGS, work_dir=tmp_path, on_progress=lambda progress: stages.append(progress.stage)
        )
    assert set(stages) <= {"trial", "check data"}
    mended = gs.Settings(epochs=1, trials=1, batch=8, seed=4)  # other settings: the folder is free, since nothing was kept
    assert gs.compress(network(), parts(), settings=mended, work_dir=tmp_path).trials


def test_training_data_that_is_not_used_is_not_read(tmp_path):
    data = parts(**changed("train", 79, 9))
    assert gs.compress(network(), data, settings=SETTINGS, work_dir=tmp_path).trials


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "top5"}, ConfigError, "one that can be wrong"),
        ({"metric": "top2"}, ConfigError, "a registered metric"),
        ({"budget": gs.Budget(board="nrf52840")}, ConfigError, "without board"),
        ({"target": "tflm", "settings": gs.Settings(threads=2)}, ConfigError, "threads must be 1"),
    ],
)
def test_what_the_proof_would_refuse_is_refused_first(tmp_path, options, error, message):
    stages = []
    with pytest.raises(error, match=message):
        gs.compress(network(), parts(), work_dir=tmp_path, on_progress=lambda progress: stages.append(progress.stage), **options)
    assert set(stages) <= {"trial", "check data"}


def test_a_missing_runtime_is_told_first(tmp_path, monkeypatch):
    def missing(path, *, threads, values=False):
        raise MissingRuntime("openvino", "running files", "pip install openvino")

    target = targets["openvino"]
    monkeypatch.setitem(targets._entries, "openvino", Entry("openvino", replace(target, open=missing), ""))
    stages = []
    with pytest.raises(MissingRuntime, match="pip install openvino"):
        gs.compress(network(), parts(), "openvino", work_dir=tmp_path, on_progress=lambda progress: stages.append(progress.stage))
    assert set(stages) <= {"trial"}


def test_looking_changes_no_random_state(tmp_path):
    """A loader that shuffles gives the same epochs afterwards, by the caller's random state or by a generator of its own."""
    program = gs.capture(network(), INPUTS[:2])
    original = gs.export(program, tmp_path / "original-model.onnx")
    generator = torch.Generator().manual_seed(3)
    for options in ({}, {"generator": generator}):
        loader = DataLoader(TensorDataset(INPUTS, TARGET), batch_size=16, shuffle=True, **options)
        before = torch.random.get_rng_state(), generator.get_state()
        first_look(Job(original, as_data(parts(train=loader)), "top1", BUDGET, SETTINGS, silent))
        assert all(map(torch.equal, before, (torch.random.get_rng_state(), generator.get_state())))


def test_generators_can_be_read_again(tmp_path):
    batches = [(INPUTS[:40], TARGET[:40]), (INPUTS[40:], TARGET[40:])]
    data = {"train": iter(batches), "calibration": (batch for batch, _ in batches), "validation": iter(batches)}
    result = gs.compress(network(), data, budget=BUDGET, settings=SETTINGS, work_dir=tmp_path)
    assert result.report.samples == 80
    assert len(result.trials) == 2


def error_of(outputs, target):
    return ((outputs - target) ** 2).mean()


def closeness(outputs, target):
    return -float(error_of(outputs, target))


def regression():
    target = INPUTS.sum(1, keepdim=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
    program = gs.fit(gs.capture(model, INPUTS[:2]), (INPUTS, target), epochs=60, recipe=Recipe(loss=error_of))
    return program, {"train": (INPUTS, target), "validation": (INPUTS, target)}


def test_networks_without_classes_need_a_loss_and_learn_by_it(tmp_path):
    program, data = regression()
    with pytest.raises(DataError, match=r"the training targets are torch.float32 of shape \(64, 1\), no class numbers"):
        gs.compress(program, data, budget=BUDGET, metric=closeness, settings=SETTINGS, work_dir=tmp_path / "a")
    unlabelled = data | {"train": INPUTS}
    with pytest.raises(DataError, match="cannot teach by its class scores"):
        gs.compress(program, unlabelled, budget=BUDGET, metric=closeness, settings=SETTINGS, work_dir=tmp_path / "a")
    settings = gs.Settings(epochs=8, trials=2, batch=8, recipe=Recipe(loss=error_of, alpha=0))
    result = gs.compress(program, data, budget=gs.Budget(max_drop_points=200), metric=closeness, settings=settings, work_dir=tmp_path / "a")
    pruned = result.trials[-1]
    start = gs.apply(program, pruned.plans["pruning"])
    with torch.no_grad():
        assert error_of(pruned.pruned(INPUTS), data["train"][1]) < error_of(start(INPUTS), data["train"][1])
    assert result.settings.to_json()["recipe"]["loss"].endswith("error_of")
