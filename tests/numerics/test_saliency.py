"""The contract of every criterion, ours or a plug-in's."""

import pytest
import torch

from gossamer.numerics.saliency import Selection, criteria
from gossamer.numerics.selection import Reading

WEIGHT_NORMS = ["l1", "l2", "fpgm", "bn_scale", "activation"]
DETERMINISTIC = [name for name in criteria.names() if name != "random"]


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 10, generator=generator), torch.randn(6, 10, generator=generator)


def measured(name, rows, evidence):
    """Scores of units with these weights. For selections the evidence makes what they read: 200 samples of one input per unit."""
    if isinstance(criteria[name], Selection):
        inputs = evidence @ torch.randn(10, 200, generator=torch.Generator().manual_seed(1))
        inputs = inputs + 0.1 * evidence.square().sum(1, keepdim=True).sin() * torch.linspace(-1, 1, 200)
        whole = (rows.t() @ inputs).norm() / 200**0.5
        return criteria[name].select([Reading(rows.t().unsqueeze(2) / whole, (inputs @ inputs.t() / 200)[:, None, :, None])])
    return criteria[name].measure(rows, evidence if criteria[name].needs else None, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", criteria.names())
def test_contract(name):
    rows, evidence = example()
    kept = rows.clone(), evidence.clone()
    result = measured(name, rows, evidence)
    assert result.shape == (6,)
    assert torch.isfinite(result).all()
    assert torch.equal(rows, kept[0])
    assert torch.equal(evidence, kept[1])
    assert criteria.entry(name).source


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_is_kept_under_permutation(name):
    rows, evidence = example()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.allclose(measured(name, rows, evidence)[order], measured(name, rows[order], evidence[order]))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_a_units_weights_does_not_matter(name):
    """For selections: the order of the outputs."""
    rows, evidence = example()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    other = evidence if isinstance(criteria[name], Selection) else evidence[:, order]
    assert torch.allclose(measured(name, rows, evidence), measured(name, rows[:, order], other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["l1", "l2", "lamp", "bn_scale", "activation", "fisher", "hessian", "stability", "obs", "lasso", "thinet"])
def test_zero_weights_matter_least(name):
    rows, evidence = example()
    rows[2] = 0
    assert int(measured(name, rows, evidence.abs()).argmin()) == 2


@pytest.mark.parametrize(
    ("name", "power"),
    [
        *((name, 1) for name in WEIGHT_NORMS),
        *((name, 0) for name in ("lamp", "obs", "lasso", "thinet")),
        *((name, 2) for name in ("fisher", "hessian", "stability")),
        ("taylor", 1),
    ],
)
def test_scale_of_the_weights(name, power):
    rows, evidence = example()
    assert torch.allclose(measured(name, 3 * rows, evidence), 3**power * measured(name, rows, evidence), rtol=1e-4, atol=1e-5)


def test_lamp_by_hand():
    """Squared norms 1, 4, 4, 16: each over the sum of those that are not smaller."""
    rows = torch.tensor([[2.0], [1.0], [-2.0], [4.0]])
    assert measured("lamp", rows, None).tolist() == pytest.approx([4 / 24, 1 / 25, 4 / 24, 1.0])
