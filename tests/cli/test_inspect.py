"""gossamer inspect: where the input's shape comes from, and what is shown."""

import io
import json
import sys
from types import ModuleType

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from gossamer.cli.command import picked
from gossamer.cli.inspect import MOST_ROWS, structure_view
from gossamer.cli.main import app
from gossamer.program.capture import capture
from gossamer.report.structure import describe


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    module = ModuleType("my_nets")
    module.net = lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    module.refused = Refused
    module.two = Two
    monkeypatch.setitem(sys.modules, "my_nets", module)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Linear(3, 2), nn.Linear(3, 5)

    def forward(self, x):
        return {"small": self.small(x), "large": (self.small(x), self.large(x))[1]}


class Refused(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def run(*arguments: str):
    return CliRunner().invoke(app, ["inspect", *arguments])


@pytest.mark.parametrize("source", [["--input", "1x28x28"], ["--input", "1,28,28"], ["--data", "mnist"]])
def test_shape_from_input_or_data(source):
    done = run("my_nets:net", *source, "--json")
    assert done.exit_code == 0, done.stderr
    structure = json.loads(done.stdout)
    assert structure["cost"]["macs"] == 4 * 9 * 26 * 26 + 4 * 26 * 26 * 10
    assert [layer["op"] for layer in structure["layers"]] == ["conv2d", "linear"]
    assert [group["removable"] for group in structure["groups"]] == [4, 0]
    assert structure["model"] == "my_nets:net"


def test_output_picks_the_tensor_that_counts():
    structure = json.loads(run("my_nets:two", "--input", "3", "--output", "large", "--json").stdout)
    assert [layer["output_shape"] for layer in structure["layers"]] == [[1, 5]]


@pytest.mark.parametrize(("text", "value"), [(None, None), ("logits", "logits"), ("1", 1), ("-1", -1)])
def test_output_is_a_key_or_an_index(text, value):
    assert picked(text) == value


def test_table():
    done = run("my_nets:net", "--input", "1x28x28")
    for text in ("27,090 params", "4 of 14 channels can be removed", "conv2d", "4x26x26", "it reaches the network's output"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["my_nets:net"], "--input must be given for my_nets:net, such as --input 3x224x224"),
        (["my_nets:net", "--input", "1x2y"], "--input must be sizes joined by x"),
        (["my_nets:net", "--input", "0x2"], "--input must be sizes joined by x"),
        (["my_nets:net", "--input", "1x5x5"], "cannot capture the model"),
        (["my_nets:two", "--input", "3"], "returns a dict with the keys ['large', 'small'], not one tensor"),
        (["my_nets:refused", "--input", "3"], "test_inspect.py:"),
        (["nowhere.gossamer"], "does not exist"),
        (["my_nets"], "model must be package.module:factory"),
        (["out/model.onnx"], "files for runtimes hold no model to work on; model.gossamer beside them does"),
        (["resnet.pth"], "weights alone: name what makes the model, and give them as .safetensors with --weights"),
    ],
)
def test_requests_that_cannot_be_met(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_names_are_text_not_markup():
    model = nn.Sequential()
    model.add_module("[red]x", nn.Linear(2, 2))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(structure_view("[bold]m", describe(capture(model, torch.randn(2, 2)))))
    shown = console.export_text()
    assert "[bold]m" in shown
    assert "[red]x" in shown


def test_long_networks_are_cut_with_a_note():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(MOST_ROWS + 5)))
    structure = describe(capture(model, torch.randn(2, 2)))
    view = structure_view("long", structure)
    tables = [part for part in view.renderables if hasattr(part, "rows")]
    assert len(tables[0].rows) == MOST_ROWS
    assert "5 more; --json shows all" in tables[0].note
