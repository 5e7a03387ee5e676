import math

import pytest
import torch

from gossamer.errors import ConfigError
from gossamer.numerics.distance import sqnr_db


def test_a_tenth_of_the_amplitude_is_twenty_decibels():
    x = torch.tensor([3.0, -4.0])
    assert sqnr_db(x, x * 1.1) == pytest.approx(20, abs=1e-4)
    assert sqnr_db(7 * x, 7 * x * 1.1) == pytest.approx(20, abs=1e-4)


def test_extremes():
    assert sqnr_db(torch.ones(3), torch.ones(3)) == math.inf
    assert sqnr_db(torch.zeros(3), torch.ones(3)) == -math.inf


def test_shapes_must_agree():
    with pytest.raises(ConfigError, match=r"of the reference's shape \(3,\)"):
        sqnr_db(torch.ones(3), torch.ones(1, 3))
