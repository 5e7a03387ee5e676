import subprocess
import sys

import pytest

from gossamer import registry
from gossamer.errors import ConfigError
from gossamer.registry import Registry


@pytest.fixture
def colours():
    table = Registry("colour")
    table.add("red", source="Newton 1704")(1)
    table.add("green")(2)
    return table


def test_lookup_listing_and_source(colours):
    assert colours["red"] == 1
    assert colours.names() == ("red", "green")
    assert [(entry.name, entry.value, entry.source) for entry in colours] == [("red", 1, "Newton 1704"), ("green", 2, "")]
    assert "red" in colours and "blue" not in colours


def test_add_is_a_decorator_that_returns_its_argument(colours):
    @colours.add("paint")
    def paint():
        return 3

    assert paint() == 3
    assert colours["paint"] is paint


def test_a_duplicate_raises(colours):
    with pytest.raises(ConfigError, match="colour name must be one that is not registered yet; got 'red'"):
        colours.add("red")(5)
    assert colours["red"] == 1


def test_an_entry_can_be_taken_out_and_put_in_again(colours):
    colours.remove("red")
    assert colours.names() == ("green",)
    colours.add("red")(3)
    assert colours["red"] == 3
    with pytest.raises(ConfigError, match=r"did you mean 'green'"):
        colours.remove("gren")


def test_an_unknown_name_suggests_the_nearest(colours):
    with pytest.raises(ConfigError, match=r"colour must be a registered colour \(did you mean 'green'\?\); got 'gren'"):
        colours["gren"]


def test_plug_ins_are_loaded_once_at_first_lookup(monkeypatch):
    table = Registry("colour")
    loads = []

    class Plugin:
        def load(self):
            loads.append(1)
            table.add("blue")(7)

    monkeypatch.setattr(Registry, "_plugins_loaded", False)
    monkeypatch.setattr(registry, "entry_points", lambda group: [Plugin()] if group == "gossamer.plugins" else [])
    assert not loads
    assert table["blue"] == 7
    assert table.names() == ("blue",)
    assert loads == [1]


def test_the_home_of_a_table_is_imported_when_a_name_is_looked_up(tmp_path, monkeypatch):
    (tmp_path / "shapes_of_the_test.py").write_text("import builtins\nbuiltins.table_of_the_test.add('circle')(3.14)\n")
    monkeypatch.syspath_prepend(tmp_path)
    table = Registry("shape", home="shapes_of_the_test")
    monkeypatch.setattr("builtins.table_of_the_test", table, raising=False)
    assert "circle" in table
    assert table["circle"] == 3.14


def test_targets_are_found_without_asking_for_them_first():
    code = "from gossamer.plan.spec import specs; print(specs['onnxruntime'].name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "onnxruntime"
