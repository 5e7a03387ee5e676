"""The contract of every criterion, ours or a plug-in's."""

import pytest
import torch

from gossamer.numerics.saliency import criteria


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 10, generator=generator), torch.randn(6, 10, generator=generator)


@pytest.mark.parametrize("name", criteria.names())
def test_contract(name):
    criterion = criteria[name]
    rows, grads = example()
    kept = rows.clone(), grads.clone()
    result = criterion.measure(rows, grads, torch.Generator().manual_seed(1))
    assert result.shape == (6,)
    assert torch.isfinite(result).all()
    assert torch.equal(rows, kept[0])
    assert torch.equal(grads, kept[1])
    assert criteria.entry(name).source


@pytest.mark.parametrize("name", [name for name in criteria.names() if name != "random"])
def test_order_is_kept_under_permutation(name):
    rows, grads = example()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    measure = criteria[name].measure
    generator = torch.Generator()
    assert torch.allclose(measure(rows, grads, generator)[order], measure(rows[order], grads[order], generator))


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_zero_weights_matter_least(name):
    rows, grads = example()
    rows[2] = 0
    assert int(criteria[name].measure(rows, grads, torch.Generator()).argmin()) == 2
