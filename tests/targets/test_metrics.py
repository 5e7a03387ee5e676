"""Metrics: counting by hand is the oracle."""

import pytest
import torch

from gossamer.errors import ConfigError, DataError
from gossamer.numerics.intervals import newcombe, wilson
from gossamer.targets.metrics import compare_accuracy, metric_name, metrics


def outputs_for(predictions, classes=10):
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


@pytest.mark.parametrize("name", metrics.names())
def test_metric_contract(name):
    outputs = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 7
    kept = outputs.clone(), labels.clone()
    right = metrics[name](outputs, labels)
    assert right.shape == (40,)
    assert right.dtype == torch.bool
    assert torch.equal(outputs, kept[0]) and torch.equal(labels, kept[1])
    order = torch.randperm(40)
    assert torch.equal(metrics[name](outputs[order], labels[order]), right[order])
    assert metrics[name](outputs_for(labels.tolist(), 7), labels).all()


def test_top1_is_argmax_also_for_equal_outputs():
    outputs = torch.randint(0, 3, (500, 6), generator=torch.Generator().manual_seed(1)).float()
    labels = torch.randint(0, 6, (500,), generator=torch.Generator().manual_seed(2))
    first = torch.tensor([row.index(max(row)) for row in outputs.tolist()])
    assert torch.equal(metrics["top1"](outputs, labels), first == labels)


def test_top5_is_the_first_five_of_a_stable_sort():
    outputs = torch.randint(0, 4, (300, 9), generator=torch.Generator().manual_seed(3)).float()
    labels = torch.randint(0, 9, (300,), generator=torch.Generator().manual_seed(4))
    best = outputs.sort(dim=1, descending=True, stable=True).indices[:, :5]
    assert torch.equal(metrics["top5"](outputs, labels), (best == labels[:, None]).any(1))


def test_comparison_counts_samples_over_batches():
    labels = torch.arange(10)
    before = outputs_for([0, 1, 2, 3, 4, 5, 6, 7, 8, 0])  # 9 right
    after = outputs_for([0, 1, 2, 3, 4, 5, 6, 0, 0, 9])  # 8 right; 2 only the original, 1 only the compressed
    batches = [(before[:6], after[:6], labels[:6]), (before[6:], after[6:], labels[6:])]
    found = compare_accuracy("top1", batches, what="validation")
    assert (found.original, found.compressed, found.samples) == (0.9, 0.8, 10)
    assert found.drop_points == 10.0
    assert found.original_interval == wilson(9, 10)
    assert found.compressed_interval == wilson(8, 10)
    assert found.drop_interval == tuple(100 * bound for bound in newcombe(7, 2, 1, 0))


def test_five_of_a_thousand_is_half_a_point_to_the_bit():
    labels = torch.zeros(1000, dtype=torch.long)
    before, after = torch.zeros(1000, dtype=torch.long), torch.zeros(1000, dtype=torch.long)
    before[:15], after[:20] = 1, 1
    found = compare_accuracy("top1", [(outputs_for(before.tolist()), outputs_for(after.tolist()), labels)], what="validation")
    assert found.drop_points == 0.5


def test_a_callable_gets_everything_at_once_and_bootstrap_intervals():
    def share_right(outputs, targets):
        return (outputs.argmax(1) == targets).double().mean()

    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 10, (400,), generator=generator)
    before, after = outputs_for(labels.tolist()), outputs_for(labels.tolist())
    before[:40] = 0
    after[20:90] = 0
    halves = [(before[:200], after[:200], labels[:200]), (before[200:], after[200:], labels[200:])]
    named = compare_accuracy("top1", halves, what="validation")
    called = compare_accuracy(share_right, halves, what="validation", seed=1)
    assert (called.original, called.compressed) == pytest.approx((named.original, named.compressed))
    assert called.drop_points == pytest.approx(named.drop_points)
    assert called.original_interval == pytest.approx(named.original_interval, abs=0.01)
    assert called.drop_interval == pytest.approx(named.drop_interval, abs=1.0)
    assert called == compare_accuracy(share_right, halves, what="validation", seed=1)


def test_a_callable_may_take_targets_of_any_form():
    def negative_error(outputs, targets):
        return -float((outputs - targets).abs().mean())

    target = torch.zeros(8, 3, 4)
    found = compare_accuracy(negative_error, [(target + 1, target + 2, target)], what="validation")
    assert (found.original, found.compressed, found.drop_points) == (-1.0, -2.0, 100.0)


def test_names():
    assert metric_name("top1") == "top1"
    assert metric_name(len) == "len"
    with pytest.raises(ConfigError, match="did you mean 'top1'"):
        metric_name("top-1")
    with pytest.raises(ConfigError, match=r"metric must be a name .* or a function"):
        metric_name(3)  # type: ignore[arg-type]


one = torch.ones(2, 10)


@pytest.mark.parametrize(
    ("metric", "batch", "error", "message"),
    [
        ("top1", (one, one, None), DataError, "the validation data has no targets"),
        ("top1", (one, one, torch.tensor([0, 10])), DataError, r"the label 10, but the network has 10 outputs"),
        ("top1", (one * float("nan"), one, torch.tensor([0, 1])), DataError, "the original network gives NaN"),
        ("top1", (one, one / 0, torch.tensor([0, 1])), DataError, "the compressed network gives NaN or infinite outputs"),
        ("top1", (one[:, 0], one[:, 0], torch.tensor([0, 1])), DataError, r"outputs have shape \(2,\)"),
        ("top5", (one[:, :5], one[:, :5], torch.tensor([0, 1])), ConfigError, "has only 5 outputs; use 'top1'"),
        (lambda o, t: 1.0, (one, one, None), DataError, "the validation data has no targets"),
        (lambda o, t: "good", (one, one, torch.tensor([0, 1])), DataError, "returns a str; it must return one number"),
        (lambda o, t: float("nan"), (one, one, torch.tensor([0, 1])), DataError, "gives nan and nan on the validation data"),
    ],
)
def test_refusals(metric, batch, error, message):
    with pytest.raises(error, match=message):
        compare_accuracy(metric, [batch], what="validation")
