"""Names of the user's own code, and what its failures look like."""

import pytest

from gossamer.data.user_code import UserCodeError, call_user, resolve
from gossamer.errors import ConfigError, DataError

MODULE = """
class Nest:
    egg = 7

def fail():
    text = "boom"
    raise KeyError(text)
"""


@pytest.fixture
def here(tmp_path, monkeypatch, request):
    """A current folder with a module of its own name, so that tests do not meet each other's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    name = f"mod_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    return name


def test_current_folder_can_be_imported_from(here):
    assert resolve(f"{here}:Nest.egg", "model") == 7


@pytest.mark.parametrize("text", ["plain", ":x", "module:", ""])
def test_form(text):
    with pytest.raises(ConfigError, match=r"model must be of the form package\.module:name"):
        resolve(text, "model")


def test_unknown_module():
    with pytest.raises(ConfigError, match="no module 'nosuchmodule' in "):
        resolve("nosuchmodule:f", "model")
    with pytest.raises(ConfigError, match=r"no module 'json\.nosuch' in "):
        resolve("json.nosuch:f", "model")


def test_unknown_name(here):
    with pytest.raises(ConfigError, match=rf"a name that {here} has \(did you mean 'fail'\?\)"):
        resolve(f"{here}:fial", "model")
    with pytest.raises(ConfigError, match=r"did you mean 'egg'"):
        resolve(f"{here}:Nest.eggs", "model")


def test_what_a_module_only_imports_is_not_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    lines = ("import torch", "from torch import nn", "from torch.utils.data import DataLoader", "def build(): ...", "batches = [1]")
    (tmp_path / "mod_imports.py").write_text("\n".join((*lines, "trained = nn.Linear(1, 1)")))
    with pytest.raises(ConfigError, match=r"has \(known: 'batches', 'build', 'trained'\)"):
        resolve("mod_imports:torchh", "model")
    with pytest.raises(ConfigError, match=r"has \(known: "):
        resolve("mod_imports:data_loader_", "data")


def test_failing_function_names_line_and_reason(here):
    function = resolve(f"{here}:fail", "model")
    with pytest.raises(UserCodeError, match=rf"calling it failed at .*{here}\.py:7 \(KeyError: 'boom'\); mend that line") as caught:
        call_user(function, "calling it")
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import nosuchdependency", r"broken\.py:1 \(ModuleNotFoundError: No module named 'nosuchdependency'\)"),
        ("x = (", r"broken\.py:1 \(SyntaxError"),
        ("\n\n1 / 0", r"broken\.py:3 \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_module_that_fails_on_import(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "broken.py").write_text(content)
    with pytest.raises(UserCodeError, match=message):
        resolve("broken:f", "data")


def test_own_errors_pass_through():
    def fail():
        raise DataError("mine")

    with pytest.raises(DataError, match="^mine$"):
        call_user(fail, "calling it")


def test_error_without_message():
    def fail():
        raise ValueError

    with pytest.raises(UserCodeError, match=r"\(ValueError\)"):
        call_user(fail, "calling it")
