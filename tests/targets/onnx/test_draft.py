import numpy as np

from gossamer.targets.onnx.draft import Draft


def test_names_are_unique_and_equal_constants_are_one():
    draft = Draft()
    assert [draft.fresh("relu") for _ in range(3)] == ["relu", "relu.1", "relu.2"]
    assert [draft.fresh(wish) for wish in ("a", "a1", "a", "a1")] == ["a", "a1", "a2", "a1.1"]
    one, again = draft.constant(np.float32(1)), draft.constant(np.float32(1))
    assert one == again
    assert draft.constant(np.float64(1)) != one
    assert draft.constant(np.ones(1, np.float32)) != one


def test_renaming_reaches_writers_and_readers():
    draft = Draft()
    (first,) = draft.emit("Relu", ("x",), name="t")
    draft.emit("Neg", (first,), name="u", axis=None, mode="m")
    draft.rename(first, "y")
    assert [(node.inputs, node.outputs) for node in draft.nodes] == [(("x",), ("y",)), (("y",), ("u",))]
    assert draft.nodes[1].attributes == (("mode", "m"),)


def test_dead_code_goes_with_its_constants():
    draft = Draft()
    draft.emit("Add", ("x", draft.constant(np.float32(1))), name="dead")
    (live,) = draft.emit("Add", ("x", draft.constant(np.float32(2))), name="live")
    draft.without_dead_code([live])
    assert [node.outputs for node in draft.nodes] == [("live",)]
    assert len(draft.initializers) == 1
