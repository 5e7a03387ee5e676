"""Verifying real files in ONNX Runtime; torch on the same samples is the oracle."""

import json
import tempfile

import pytest
import torch
from torch import nn

import gossamer.targets.onnx  # noqa: F401 (registers the target)
from gossamer.apply.engine import apply
from gossamer.batches import as_batches
from gossamer.errors import ConfigError, DataError, FileError
from gossamer.numerics.intervals import wilson
from gossamer.plan.budget import Budget
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.score import score
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.results import Report
from gossamer.targets.target import Artifact, targets
from gossamer.targets.verify import verify

TARGET = "onnxruntime"


def network(width, seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 6)]
    return nn.Sequential(*layers).eval()


def artifact_of(program, folder, name="model"):
    return export(program, folder / f"{name}.onnx", TARGET)


@pytest.fixture(scope="module")
def samples():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(150, 3, 9, 9, generator=generator) + 3 * torch.randn(150, 3, 1, 1, generator=generator)


@pytest.fixture(scope="module")
def large(samples):
    return capture(network(24, 1), samples[:2])


@pytest.fixture(scope="module")
def small(samples):
    return capture(network(4, 2), samples[:2])


@pytest.fixture(scope="module")
def labels(large, samples):
    """What the large network says, with every tenth label wrong."""
    found = large(samples).argmax(1)
    found[::10] = (found[::10] + 1) % 6
    return found


def test_every_figure_is_the_file_s_own(large, small, samples, labels, tmp_path):
    artifact = artifact_of(small, tmp_path)
    report = verify(artifact, reference=large, data=(samples, labels), budget=Budget(max_size_bytes=10**6), batch=32)
    right = int((small(samples).argmax(1) == labels).sum())
    assert report.original.accuracy == 135 / 150
    assert report.original.accuracy_interval == wilson(135, 150)
    assert report.compressed.accuracy == right / 150
    assert report.drop_points == 100 * (135 - right) / 150
    assert report.drop_interval[0] <= report.drop_points <= report.drop_interval[1]
    assert report.compressed.size_bytes == artifact.path.stat().st_size
    assert report.original.size_bytes == artifact_of(large, tmp_path, "original").size_bytes
    assert (report.original.macs, report.original.params) == (large.cost().macs, large.cost().params)
    assert (report.compressed.macs, report.compressed.params) == (small.cost().macs, small.cost().params)
    assert report.size_ratio == report.original.size_bytes / report.compressed.size_bytes
    assert report.speedup == report.original.latency_ms / report.compressed.latency_ms
    assert report.parity.max_steps == 0
    assert report.parity.values_compared == 32 * 6
    assert report.parity.output_error < 1e-5
    assert (report.samples, report.batch, report.threads, report.target, report.metric) == (150, 32, 1, TARGET, "top1")
    assert report.passed and report.budget_met
    assert report.seconds > 0 and report.repeats >= 5
    assert TARGET in report.versions
    assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report


def test_a_network_equals_itself(large, samples, labels, tmp_path):
    artifact = artifact_of(large, tmp_path)
    report = verify(artifact, reference=artifact, data=(samples, labels))
    assert report.drop_points == 0
    assert report.drop_interval[0] < 0 < report.drop_interval[1]
    assert report.size_ratio == 1
    assert report.passed


def test_a_file_that_is_not_the_program_fails(large, samples, labels, tmp_path):
    other = capture(network(24, 9), samples[:2])
    impostor = Artifact(artifact_of(other, tmp_path, "other").path, TARGET, large)
    report = verify(impostor, reference=large, data=(samples, labels))
    assert not report.passed
    assert report.budget_met  # there is none
    (problem,) = report.problems
    assert problem.startswith("The outputs of the artifact differ from what they must be by")
    assert problem.endswith("(relative), allowed is 0.0001.")
    report = verify(artifact_of(large, tmp_path), reference=impostor, data=(samples, labels))
    assert report.problems[0].startswith("The outputs of the original differ from what they must be by")


def test_a_missed_budget_fails(large, small, samples, labels, tmp_path):
    budget = Budget(max_drop_points=1.0, min_size_ratio=1000.0, max_size_bytes=10**6)
    report = verify(artifact_of(small, tmp_path), reference=large, data=(samples, labels), budget=budget)
    assert not report.budget_met
    assert not report.passed
    assert [problem.split(" is ")[1].split(":")[0] for problem in report.problems] == ["missed", "missed"]
    assert "max_drop_points is 1, measured" in report.problems[0]
    assert "min_size_ratio is 1,000, measured" in report.problems[1]


def test_arguments_stay_as_they_were_and_nothing_is_left_behind(large, small, samples, labels, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    small = small.copy().train()
    state = {name: tensor.clone() for name, tensor in small.state.items()}
    artifact = artifact_of(small, tmp_path)
    written = artifact.path.read_bytes()
    assert verify(artifact, reference=large, data=(samples, labels)).passed
    assert list(scratch.iterdir()) == []
    assert artifact.path.read_bytes() == written
    assert small.training
    assert all(torch.equal(tensor, small.state[name]) for name, tensor in state.items())


def test_a_fixed_batch_is_kept_and_uneven_data_is_no_problem(samples, labels, tmp_path):
    fixed = capture(network(4, 2), samples[:8], dynamic_batch=False)
    free = capture(network(4, 2), samples[:8])
    artifact = artifact_of(fixed, tmp_path)
    report = verify(artifact, reference=artifact, data=(samples, labels), batch=64)
    assert report.batch == 8
    assert report.samples == 150
    assert report.compressed.accuracy == float((free(samples).argmax(1) == labels).double().mean())
    loader = [(samples[:13], labels[:13]), (samples[13:16], labels[13:16])]
    assert verify(artifact, reference=artifact, data=loader).samples == 16


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "litert"])
def test_a_fixed_batch_of_one_is_pruned_quantized_and_run(samples, labels, tmp_path, target):
    fixed = capture(network(8, 2), samples[:1], dynamic_batch=False)
    small = apply(fixed, plan_pruning(fixed, score(fixed, "l2"), removed_ratio=0.5))
    coded = apply(small, plan_quantization(small, samples[:64], target, weights=targets[target].exact_weights()))
    assert coded.inputs[0].shape[0] == 1
    report = verify(export(coded, tmp_path / f"model{targets[target].suffix}", target), reference=fixed, data=(samples[:20], labels[:20]))
    assert report.problems == ()
    assert (report.batch, report.samples) == (1, 20)


def test_fewer_samples_than_the_batch_are_repeated_for_latency_only(large, samples, labels, tmp_path):
    report = verify(artifact_of(large, tmp_path), reference=large, data=(samples[:1], labels[:1]), batch=16)
    assert (report.samples, report.batch) == (1, 16)
    assert report.parity.values_compared == 16 * 6


def test_the_result_does_not_depend_on_how_data_comes(large, small, samples, labels, tmp_path):
    artifact = artifact_of(small, tmp_path)
    forms = [
        (samples, labels),
        (samples.numpy(), labels.numpy()),
        torch.utils.data.TensorDataset(samples, labels),
        [(samples[:70], labels[:70]), (samples[70:], labels[70:])],
        as_batches((samples, labels), what="validation", batch_size=31),
        iter([(samples, labels)]),
    ]
    found = [verify(artifact, reference=large, data=form) for form in forms]
    assert len({(report.compressed.accuracy, report.drop_interval, report.samples) for report in found}) == 1


def test_a_function_as_metric(large, small, samples, labels, tmp_path):
    def share_right(outputs, targets):
        return float((outputs.argmax(1) == targets).float().mean())

    report = verify(artifact_of(small, tmp_path), reference=large, data=(samples, labels), metric=share_right, seed=3)
    assert report.metric == "share_right"
    assert report.original.accuracy == pytest.approx(0.9)
    assert report.seed == 3
    assert report.original.accuracy_interval == pytest.approx(wilson(135, 150), abs=0.02)


def test_two_inputs(tmp_path):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, left, right):
            return self.layer(left + right)

    left, right = torch.randn(20, 5), torch.randn(20, 5)
    program = capture(Sum(), (left[:2], right[:2]))
    target = program(left, right).argmax(1)
    report = verify(artifact_of(program, tmp_path), reference=program, data=[((left, right), target)])
    assert report.compressed.accuracy == 1.0
    with pytest.raises(DataError, match=r"takes 2 inputs .* gives 1"):
        verify(artifact_of(program, tmp_path), reference=program, data=(left, target))


def test_progress_is_reported(large, samples, labels, tmp_path):
    seen = []
    verify(artifact_of(large, tmp_path), reference=large, data=(samples, labels), on_progress=seen.append)
    assert {record.stage for record in seen} == {"verify"}
    counted = [(record.done, record.total) for record in seen if record.note == "accuracy"]
    assert counted == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"threads": 0}, ConfigError, r"threads must be a whole number, at least 1; got 0\."),
        ({"batch": 1.5}, ConfigError, r"batch must be a whole number, at least 1; got 1\.5\."),
        ({"metric": "top7"}, ConfigError, "metric must be a registered metric"),
        ({"data": []}, DataError, "the validation data is empty"),
        ({"data": None}, DataError, "the validation data is missing"),
        ({"data": torch.zeros(4, 3, 9, 9)}, DataError, "the validation data has no targets"),
        (
            {"data": (torch.zeros(4, 3, 8, 9).numpy()[:, :, :, :8], torch.zeros(4).long())},
            DataError,
            r"got a tensor of shape \(4, 3, 8, 8\)",
        ),
        ({"data": (torch.zeros(4, 1, 9, 9), torch.zeros(4).long())}, DataError, r"got a tensor of shape \(4, 1, 9, 9\)"),
        ({"data": (torch.zeros(4, 3, 9, 9), torch.full((4,), 6))}, DataError, "has the label 6, but the network has 6 outputs"),
        ({"data": (torch.full((4, 3, 9, 9), float("nan")), torch.zeros(4).long())}, DataError, "holds NaN or infinite values"),
        ({"data": (torch.zeros(4, 3, 9, 9, dtype=torch.int64), torch.zeros(4).long())}, DataError, r"convert it with .to\(torch.float32\)"),
    ],
)
def test_bad_input_gets_one_sentence(large, samples, labels, tmp_path, change, error, message):
    arguments = {"reference": large, "data": (samples, labels), **change}
    with pytest.raises(error, match=message):
        verify(artifact_of(large, tmp_path), **arguments)


def test_a_reference_of_another_kind_is_refused(large, samples, labels, tmp_path):
    artifact = artifact_of(large, tmp_path)
    with pytest.raises(ConfigError, match="reference must be an artifact of the same target, 'onnxruntime'; got 'toaster'"):
        verify(artifact, reference=Artifact(artifact.path, "toaster", large), data=(samples, labels))
    other = capture(nn.Sequential(nn.Flatten(), nn.Linear(9, 6)), torch.zeros(2, 3, 3))
    with pytest.raises(ConfigError, match=r"reference must be a network with the inputs .*batch, 3, 9, 9"):
        verify(artifact, reference=other, data=(samples, labels))


def test_a_damaged_or_missing_file_is_named(large, samples, labels, tmp_path):
    artifact = artifact_of(large, tmp_path)
    artifact.path.write_bytes(artifact.path.read_bytes()[:200])
    with pytest.raises(FileError, match=r"model\.onnx"):
        verify(artifact, reference=large, data=(samples, labels))
    artifact.path.unlink()
    with pytest.raises(FileError, match=r"model\.onnx: cannot be read"):
        verify(artifact, reference=large, data=(samples, labels))


def test_networks_of_float64_are_told_what_data_is_read_as(samples, tmp_path):
    program = capture(network(4, 2).double(), samples[:2].double())
    artifact = artifact_of(program, tmp_path)
    with pytest.raises(DataError, match=r"takes float64, and data is read as torch.float32; capture model.float\(\) instead"):
        verify(artifact, reference=program, data=(samples.double(), torch.zeros(150, dtype=torch.long)))
