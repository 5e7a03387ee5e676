"""Data by name."""

import sys
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from gossamer.data.mnist import EMBEDDED
from gossamer.data.named import load_data
from gossamer.data.source import Data
from gossamer.data.user_code import UserCodeError
from gossamer.errors import ConfigError, DataError

X, Y = torch.randn(20, 3), torch.zeros(20, dtype=torch.long)


@pytest.fixture
def mine(monkeypatch):
    module = ModuleType("my_data")
    module.mapping = {"train": (X, Y), "validation": (X, Y)}
    module.loaders = lambda: module.mapping
    module.pair = lambda: (TensorDataset(X, Y), TensorDataset(X, Y))
    module.data = Data(calibration=X, validation=(X, Y), name="named")
    module.wrong = lambda: 5
    module.fails = lambda: 1 / 0
    monkeypatch.setitem(sys.modules, "my_data", module)


def test_embedded_and_folder():
    assert load_data("mnist").name == "mnist"
    again = load_data(f"mnist:{EMBEDDED}")
    assert torch.equal(again.validation[0], load_data("mnist").validation[0])


def test_images_with_options(tmp_path):
    for name in ("a", "b"):
        for number in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", (9, 9)).save(tmp_path / name / f"{number}.png")
    data = load_data(f"images:{tmp_path}?size=8")
    assert data.train[0][0].shape == (3, 8, 8)
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        load_data(f"images:{tmp_path}?sze=8")


@pytest.mark.parametrize("name", ["mapping", "loaders", "pair"])
def test_users_own(mine, name):
    data = load_data(f"my_data:{name}")
    assert data.name == f"my_data:{name}"
    assert data.calibration is not None
    assert data.notes


def test_a_name_of_its_own_is_kept(mine):
    assert load_data("my_data:data").name == "named"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ConfigError, r"data must be mnist, mnist:DIR, images:DIR, or package\.module:loaders"),
        ("minst", ConfigError, "data must be mnist"),
        ("images:", ConfigError, "data must be mnist"),
        ("my_data:wrong", DataError, "the data is a int"),
        ("my_data:fails", UserCodeError, "calling my_data:fails failed at .*ZeroDivisionError"),
    ],
)
def test_names_that_cannot_be_used(mine, text, error, message):
    with pytest.raises(error, match=message):
        load_data(text)
