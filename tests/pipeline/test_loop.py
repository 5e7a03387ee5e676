"""The loop on a small network: what a new user gets, what is kept, what happens when it cannot be met or is interrupted."""

import json
import resource
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.errors import CaptureError, ConfigError, DataError, FileError
from gossamer.targets.onnx.optimized import optimized_ops

SETTINGS = gs.Settings(epochs=1, trials=3, batch=8)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
        ).eval()  # fmt: skip


def data(count=96):
    generator = torch.Generator().manual_seed(1)
    target = torch.arange(count) % 3
    inputs = torch.randn(count, 4, 8, 8, generator=generator)
    inputs[torch.arange(count), target] += 2
    return {"train": (inputs, target), "validation": (inputs[:48], target[:48])}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    budget = gs.Budget(min_size_ratio=4.5)  # int8 alone does not reach it: channels must go
    return gs.compress(network(), data(), budget=budget, settings=SETTINGS, work_dir=tmp_path_factory.mktemp("work"))


def test_channels_are_removed_until_the_budget_is_met(result):
    assert result.budget_met
    assert result.report.size_ratio >= 4.5
    assert result.best.removed_ratio > 0
    assert result.trials[0].removed_ratio == 0
    assert not result.trials[0].report.budget_met


def test_every_number_belongs_to_the_file(result, tmp_path):
    folder = result.save(tmp_path / "out")
    report = json.loads((folder / "report.json").read_text())
    assert report["compressed"]["size_bytes"] == (folder / "model.onnx").stat().st_size
    assert report["original"]["size_bytes"] == (folder / "original-model.onnx").stat().st_size
    assert report["parity"]["max_steps"] == 0
    assert report["compressed"]["params"] == gs.load(folder / "model.gossamer").cost().params
    assert optimized_ops(folder / "model.onnx")["QLinearConv"] == 2


def test_the_saved_report_has_all_keys(result):
    document = result.to_dict()
    for side in ("original", "compressed"):
        assert {"accuracy", "latency_ms", "size_bytes", "macs", "params"} <= document[side].keys()
    wanted = "size_ratio speedup drop_points drop_interval parity budget_met target threads batch seed seconds".split()
    assert set(wanted) <= document.keys()
    assert {"max_steps", "values_compared"} <= document["parity"].keys()
    assert [row["name"] for row in document["layers"]] == ["0", "4", "8"]
    assert document["layers"][0]["channels_after"] <= document["layers"][0]["channels_before"] == 16
    assert any("output" in item["reason"] for item in document["frozen"])
    json.dumps(document)


def test_the_plans_lead_from_the_original_to_the_artifact(result):
    plans = result.best.plans
    pruned = gs.apply(gs.capture(network(), torch.zeros(2, 4, 8, 8)), plans["pruning"])
    assert pruned.cost().params == result.program.cost().params or pruned.cost().params == result.best.pruned.cost().params
    assert plans["quantization"].target == "onnxruntime"
    x = torch.randn(2, 4, 8, 8)
    again = gs.apply(result.best.pruned, plans["quantization"])
    assert torch.equal(gs.simulate(again, x), gs.simulate(result.program, x))


def test_the_page_and_the_text_show_the_statement(result, tmp_path):
    folder = result.save(tmp_path / "out")
    assert "Met by removing" in str(result)
    assert "<html" in (folder / "report.html").read_text()


def test_the_share_that_is_gone_is_told_not_the_one_that_was_asked_for(result):
    rows = result.to_dict()["layers"]
    for trial, candidate in zip(result.trials, result.to_dict()["candidates"], strict=True):
        left = sum(trial.pruned.state[f"{row['name']}.weight"].shape[0] for row in rows[:-1])
        assert candidate["removed_ratio"] == pytest.approx(1 - left / sum(row["channels_before"] for row in rows[:-1]))
    assert f"Met by removing {candidate['removed_ratio']:.0%} of the channels" in result.statement


def test_no_network_is_tried_twice(tmp_path):
    settings = gs.Settings(epochs=1, trials=5, batch=8)
    result = gs.compress(network(), data(), budget=gs.Budget(max_drop_points=100), settings=settings, work_dir=tmp_path)
    widths = [tuple(tensor.shape for tensor in trial.pruned.state.values()) for trial in result.trials]
    assert len(set(widths)) == len(widths) > 1


def test_the_model_is_untouched(tmp_path):
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gs.compress(model, data(), settings=gs.Settings(epochs=0, trials=1), work_dir=tmp_path)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_without_a_budget_it_only_quantizes(tmp_path):
    result = gs.compress(network(), data(), settings=SETTINGS, work_dir=tmp_path)
    assert len(result.trials) == 1
    assert result.best.removed_ratio == 0
    assert result.budget_met
    assert "no budget was given" in result.statement


def test_an_impossible_budget_is_told_and_the_best_kept(tmp_path):
    result = gs.compress(network(), data(), budget=gs.Budget(max_size_bytes=100), settings=SETTINGS, work_dir=tmp_path)
    assert not result.budget_met
    assert "Not met after" in result.statement
    assert "max_size_bytes is 100" in result.statement
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == {"folder": result.best.folder.name, "budget_met": False}
    assert result.report.compressed.size_bytes == min(trial.report.compressed.size_bytes for trial in result.trials)


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("stage", ["train", "verify"])
def test_an_interrupted_run_goes_on_with_the_same_result(stage, tmp_path):
    budget = gs.Budget(min_size_ratio=4.5)
    seen = []

    def stop(progress):
        seen.append(progress.stage)
        pruning = seen.count("trial") > 1
        if pruning and progress.stage.startswith(stage) and progress.done >= 1:
            raise Interrupt

    settings = gs.Settings(epochs=2, trials=2, batch=8)
    with pytest.raises(Interrupt):
        gs.compress(network(), data(), budget=budget, settings=settings, work_dir=tmp_path / "a", on_progress=stop)
    resumed = gs.compress(network(), data(), budget=budget, settings=settings, work_dir=tmp_path / "a")
    whole = gs.compress(network(), data(), budget=budget, settings=settings, work_dir=tmp_path / "b")
    ratio = resumed.trials[1].removed_ratio
    twin = next(trial for trial in whole.trials if trial.removed_ratio == ratio)
    assert (resumed.trials[1].folder / "model.onnx").read_bytes() == (twin.folder / "model.onnx").read_bytes()


def test_a_finished_run_is_read_from_its_folder(result):
    stages = []
    again = gs.compress(
        network(), data(), budget=gs.Budget(min_size_ratio=4.5), settings=SETTINGS,
        work_dir=result.best.folder.parent, on_progress=lambda progress: stages.append(progress.stage),
    )  # fmt: skip
    assert set(stages) <= {"trial"}
    assert again.report == result.report


def test_a_folder_of_another_run_is_refused(result):
    with pytest.raises(ConfigError, match=r"work_dir must be empty or of the same run \(it differs in settings.epochs, weights\)"):
        gs.compress(network(seed=5), data(), settings=replace(SETTINGS, epochs=2), work_dir=result.best.folder.parent)


def test_a_metric_of_ones_own(tmp_path):
    def score(outputs, target):
        return float((outputs.argmax(1) == target).double().mean())

    result = gs.compress(network(), data(), metric=score, settings=gs.Settings(trials=1), work_dir=tmp_path)
    assert 0 <= result.report.compressed.accuracy <= 1


def test_bad_data_is_told_in_one_sentence(tmp_path):
    inputs, target = data()["train"]
    cases = [
        ({"train": [], "validation": (inputs, target)}, "training data is empty|train data is empty|is empty"),
        ({"train": (inputs, target), "validation": (inputs, target + 7)}, r"label 7|labels must lie in \[0, 2\]"),
        ({"train": (inputs * float("nan"), target), "validation": (inputs, target)}, "NaN or infinite"),
        ({"train": (inputs, target), "validation": (inputs[:, :, :4], target)}, r"got a tensor of shape"),
        ({"validation": (inputs, target)}, "neither a train nor a calibration part"),
        ({"train": (inputs, target)}, "no validation part"),
    ]
    for position, (bad, message) in enumerate(cases):
        with pytest.raises(DataError, match=message) as caught:
            gs.compress(network(), bad, settings=gs.Settings(trials=1), work_dir=tmp_path / str(position))
        assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_captured(tmp_path):
    class Branches(nn.Module):
        def forward(self, x):
            return x.sum((1, 2, 3)) if x.sum() > 0 else x.mean((1, 2, 3))

    with pytest.raises(CaptureError, match="test_loop.py"):
        gs.compress(Branches(), data(), work_dir=tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        gs.compress(network(), data(), work_dir=tmp_path / "file" / "work")


@pytest.mark.parametrize(("name", "value"), [("epochs", -1), ("batch", 0), ("threads", 0), ("trials", 0)])
def test_settings_outside_their_rule(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be an int of at least"):
        gs.Settings(**{name: value})


def test_an_unknown_criterion_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'taylor'"):
        gs.Settings(criterion="tailor")


def test_numpy_arrays_are_taken(tmp_path):
    inputs, target = (tensor.numpy() for tensor in data()["train"])
    arrays = {"calibration": inputs.astype(np.float64), "validation": (inputs, target)}
    result = gs.compress(network(), arrays, settings=gs.Settings(trials=1), work_dir=tmp_path)
    assert result.report.samples == 96


def test_without_training_data_weights_are_refitted(tmp_path):
    """Calibration alone: the refitted network is closer to the original than the one that was only cut."""
    parts = data()
    arrays = {"calibration": parts["train"][0], "validation": parts["validation"]}
    budget = gs.Budget(min_size_ratio=4.5)
    result = gs.compress(network(), arrays, budget=budget, settings=gs.Settings(trials=2, batch=8), work_dir=tmp_path)
    trial = result.trials[-1]
    program, x = result.original.program, parts["validation"][0]
    cut = gs.apply(program, trial.plans["pruning"])
    error = {name: float((net(x) - program(x)).detach().norm()) for name, net in {"cut": cut, "refitted": trial.pruned}.items()}
    assert trial.removed_ratio > 0
    assert error["refitted"] < 0.7 * error["cut"]


def test_constraints_hold_in_every_trial(tmp_path):
    settings = gs.Settings(epochs=0, trials=2, batch=8, mode="layerwise", constraints=gs.Constraints(only=["4"], keep={"4": [1, 2]}))
    result = gs.compress(network(), data(), budget=gs.Budget(min_speedup=50), settings=settings, work_dir=tmp_path)
    edits = [edit for trial in result.trials for edit in trial.plans["pruning"].edits]
    assert {edit.group for edit in edits} == {"4"}
    assert all({1, 2} <= set(edit.keep) for edit in edits)


def test_mode_outside_its_rule():
    with pytest.raises(gs.GossamerError, match="mode must be one of global, layerwise, isomorphic; got 'best'"):
        gs.Settings(mode="best")


def test_where_accuracy_went_is_shown_when_more_of_it_went_than_allowed(tmp_path):
    allowed = gs.compress(network(), data(), budget=gs.Budget(max_drop_points=100), settings=gs.Settings(trials=1), work_dir=tmp_path / "a")
    assert allowed.diagnosis is None
    assert "diagnosis" not in allowed.to_dict()
    x = torch.randn(32, 4, 8, 8)
    truth = network()(x).detach()

    def nearness(outputs, targets):
        return -float((outputs - truth[targets]).abs().mean())

    parts = {"calibration": x, "validation": (x, torch.arange(32))}
    budget = gs.Budget(max_drop_points=1e-3)  # rounding to codes costs more
    result = gs.compress(
        network(), parts, budget=budget, metric=nearness, settings=gs.Settings(trials=1, epochs=0), work_dir=tmp_path / "b"
    )
    assert not result.budget_met
    assert {finding.name for finding in result.diagnosis.findings} == set(result.program.quantizers) - set(passed_on(result.program))
    folder = result.save(tmp_path / "out")
    assert "Where accuracy went" in (folder / "report.html").read_text()
    assert json.loads((folder / "report.json").read_text())["diagnosis"] == result.diagnosis.to_dict()


def passed_on(program):
    """Values that only hand on the codes of the value before them."""
    for node in program.graph.nodes:
        if node.name in program.quantizers and program.quantizers.get(node.uses[0]) == program.quantizers[node.name]:
            yield node.name


def test_formats_and_schemes_reach_the_artifact(tmp_path):
    settings = gs.Settings(weights="int4", scheme=gs.Scheme(rounding="nearest", equalization="cross-layer"), batch=8)
    result = gs.compress(network(), data(), settings=settings, work_dir=tmp_path)
    quantizers = result.best.quantized.quantizers
    weights = [quantizers[name] for name in result.best.quantized.state if name in quantizers]
    assert {quantizer.format.name for quantizer in weights} == {"int4"}
    assert result.report.passed, result.report.problems
    assert json.loads(json.dumps(settings.to_json()))["scheme"]["rounding"] == "nearest"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"weights": "integer"}, "intN"),
        ({"scheme": gs.Scheme(rounding="neerest")}, "did you mean 'nearest'"),
        ({"scheme": gs.Scheme(equalization="smothquant")}, "did you mean 'smoothquant'"),
    ],
)
def test_formats_and_schemes_that_do_not_exist(choice, message):
    with pytest.raises(ConfigError, match=message):
        gs.Settings(**choice)


@contextmanager
def files_up_to(size_bytes):
    """As on a disk that is nearly full: no file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_space(tmp_path):
    """The largest file that cannot be written ends the run; whatever was written stays, and nothing half is left."""
    options = {"budget": gs.Budget(min_size_ratio=4.5), "settings": gs.Settings(epochs=1, trials=2, batch=8)}
    whole = gs.compress(network(), data(), **options, work_dir=tmp_path / "whole")
    sizes = sorted({path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.stat().st_size > 4096 and path.is_file()})
    kept = {}
    for limit in sizes[:: max(1, len(sizes) // 3)]:
        with files_up_to(limit - 1), pytest.raises(FileError, match="cannot be written .*choose a folder that is writable and has space"):
            gs.compress(network(), data(), **options, work_dir=tmp_path / "short")
        found = {path: path.read_bytes() for path in (tmp_path / "short").rglob("*") if path.is_file()}
        assert not [path for path in found if path.name.startswith(".")]
        assert all(found[path] == content for path, content in kept.items() if "trial" in str(path))
        kept = found
    resumed = gs.compress(network(), data(), **options, work_dir=tmp_path / "short")
    ratio = resumed.trials[-1].removed_ratio
    twin = next(trial for trial in whole.trials if trial.removed_ratio == ratio)
    assert (resumed.trials[-1].folder / "model.onnx").read_bytes() == (twin.folder / "model.onnx").read_bytes()
