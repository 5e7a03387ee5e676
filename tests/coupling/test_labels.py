import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.coupling import labels as lab


@given(st.lists(st.booleans(), min_size=1, max_size=4), st.integers(0, 9))
def test_squash_changes_no_label(varies, seed):
    """Constant axes get stride 0, every entry stays."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 5, [3 if v else 1 for v in varies], generator=generator)
    full = small.expand([3] * len(varies)).contiguous()
    squashed = lab.squash(full)
    assert torch.equal(squashed, full)
    for axis in range(full.dim()):
        constant = bool((full == full.narrow(axis, 0, 1)).all())
        assert (axis not in lab.varying(squashed)) == constant


def test_along_and_vector_are_inverse():
    vector = np.array([3, 1, 2])
    labels = lab.along(vector, (2, 3, 4), 1)
    assert lab.varying(labels) == (1,)
    assert np.array_equal(lab.vector(labels, 1), vector)
    assert lab.essence(labels).shape == (1, 3, 1)


def test_empty_costs_nothing():
    labels = lab.empty((1000, 1000, 1000))
    assert lab.varying(labels) == ()
    assert labels.untyped_storage().nbytes() == 8
