"""The bytes of a file: what is equal is written once, and every reader of the format gets it back."""

import numpy as np
import pytest

from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.targets.tflite.draft import Draft, DraftTensor
from gossamer.targets.tflite.flat import pack, schema, to_bytes
from gossamer.targets.tflite.note import Note

pytest.importorskip("ai_edge_litert")


def coded(scale):
    return Quantizer(IntFormat(bits=8), PerTensor(), (scale,), (3,))


@pytest.fixture(scope="module")
def data():
    """x + x, then twice that + that, of which the last one has a scale and an activation of its own."""
    draft = Draft()
    numbers = [draft.add(DraftTensor(f"t{k}", (1, 4), "int8", coded(scale), None, 0)) for k, scale in enumerate((0.5, 0.5, 0.5, 0.25))]
    for k, activation in enumerate((0, 0, 1)):
        draft.op("ADD", (numbers[k], numbers[k]), (numbers[k + 1],), "AddOptions", fusedActivationFunction=activation)
    return to_bytes(draft, numbers[:1], numbers[-1:], Note({"t0": (0, 1)}, ((0, 1),), {}))


def test_equal_tables_are_written_once(data):
    graph = schema().Model.GetRootAs(data, 0).Subgraphs(0)
    options = [graph.Operators(k).BuiltinOptions().Pos for k in range(3)]
    codings = [graph.Tensors(k).Quantization()._tab.Pos for k in range(4)]
    assert (options[0] == options[1], options[1] == options[2]) == (True, False)
    assert (codings[0] == codings[1] == codings[2], codings[2] == codings[3]) == (True, False)


@pytest.mark.parametrize("again", [False, True])
def test_shared_tables_are_read_like_any(data, again):
    model = schema().ModelT.InitFromPackedBuf(data, 0)
    if again:
        model = schema().ModelT.InitFromPackedBuf(pack(model), 0)
    graph = model.subgraphs[0]
    assert [op.builtinOptions.fusedActivationFunction for op in graph.operators] == [0, 0, 1]
    assert [tensor.quantization.scale[0] for tensor in graph.tensors] == [0.5, 0.5, 0.5, 0.25]
    assert [list(op.inputs) for op in graph.operators] == [[0, 0], [1, 1], [2, 2]]


def test_litert_runs_what_shares_tables(data):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.full((1, 4), 5, np.int8))
    interpreter.invoke()
    (result,) = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert list(result) == [35] * 4  # 2 steps of 0.5, eight times that, in steps of 0.25, and 3


def test_litert_wants_a_zero_point_for_each_scale(data):
    """Why files for LiteRT hold more than those for microcontrollers."""
    from ai_edge_litert.interpreter import Interpreter

    model = schema().ModelT.InitFromPackedBuf(data, 0)
    for tensor in model.subgraphs[0].tensors:
        tensor.quantization.scale = np.full(4, 0.5, np.float32)
        tensor.quantization.quantizedDimension = 1
    with pytest.raises((ValueError, RuntimeError)):
        Interpreter(model_content=pack(model), num_threads=1)
