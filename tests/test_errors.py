import pytest

from gossamer import errors
from gossamer.errors import (
    CaptureError,
    ConfigError,
    DataError,
    FileError,
    GossamerError,
    MissingRuntime,
    ParityError,
    PlanError,
    TrainingError,
    TransplantError,
    UnsupportedOp,
    nearest,
)


def test_one_root_and_the_tree_is_drawn():
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert all(issubclass(cls, GossamerError) for cls in classes)
    assert all(cls.__name__ in errors.__doc__ for cls in classes)
    assert len(classes) == 11


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigError("epochs", 0, "at least 1"), "epochs must be at least 1; got 0."),
        (DataError("x"), "x"),
        (CaptureError("why", way_out="do that"), "cannot capture the model: why; do that."),
        (CaptureError("why", line="m.py:3", way_out="do that"), "cannot capture the model at m.py:3: why; do that."),
        (UnsupportedOp("aten.foo", "m.py:3", needed="cost", way_out="add it"), "no cost rule for aten.foo at m.py:3; add it."),
        (UnsupportedOp("aten.foo", "", needed="cost", way_out="add it"), "no cost rule for aten.foo at the top level; add it."),
        (PlanError("x"), "x"),
        (TransplantError("why", way_out="do that"), "cannot put the program's weights into the module: why; do that."),
        (
            TransplantError("why", module="a.b", line="m.py:3", way_out="do that"),
            "cannot put the program's weights into the module in 'a.b' at m.py:3: why; do that.",
        ),
        (ParityError("outputs", 0.5, 1e-5), "outputs differ by 0.5 (relative), more than 1e-05; the change was thrown away, please report"),
        (FileError("a.txt", "is gone", "write it"), "a.txt: is gone; write it."),
        (MissingRuntime("tvm", "this", "pip install tvm"), "this needs the package 'tvm', which is not installed; run: pip install tvm"),
        (TrainingError("x"), "x"),
    ],
)
def test_messages_say_what_where_rule_and_way_out(error, message):
    assert str(error).startswith(message)
    assert "\n" not in str(error)


def test_errors_carry_their_data():
    error = ConfigError("epochs", 0, "at least 1")
    assert (error.name, error.value, error.rule) == ("epochs", 0, "at least 1")
    assert (FileError("a", "b", "c").path, UnsupportedOp("o", "p", needed="n", way_out="w").at) == ("a", "p")
    assert MissingRuntime("tvm", "this", "x").package == "tvm"
    assert (ParityError("w", 0.5, 0.1).error, CaptureError("r", line="l", way_out="w").line) == (0.5, "l")


def test_nearest_suggests_or_lists():
    assert nearest("taylr", ["l1", "taylor"]) == "did you mean 'taylor'?"
    assert nearest("zzzz", ["b", "a"]) == "known: 'a', 'b'"
    assert nearest("zzzz", [f"name{i}" for i in range(20)]).endswith(", ...")
    assert nearest("x", []) == "none is known"
