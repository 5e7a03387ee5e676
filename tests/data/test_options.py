"""Options in names."""

import pytest

from gossamer.data.options import check_known, split_options
from gossamer.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("photos", "photos", {}),
        ("photos?size=160,std=0.5", "photos", {"size": 160, "std": 0.5}),
        ("a?b=true,c=False,d=relu,e=1/2/3,f=-1,g=1e-3", "a", {"b": True, "c": False, "d": "relu", "e": "1/2/3", "f": -1, "g": 1e-3}),
        ("a?b=__import__('os')", "a", {"b": "__import__('os')"}),
        ("a?b=[1]", "a", {"b": "[1]"}),
        ("a?b= 1 ,", "a", {"b": 1}),
    ],
)
def test_split(text, name, options):
    assert split_options(text) == (name, options)


def test_option_without_value():
    with pytest.raises(ConfigError, match="of the form key=value"):
        split_options("a?b")


def test_unknown_option():
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        check_known(["siz"], ["size"], "images")
