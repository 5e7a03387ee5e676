"""Bundles: what comes back equals what was saved; nothing in a file is executed."""

import contextlib
import json
import os
import pickle
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from gossamer.errors import FileError
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import IntFormat, PerAxis, PerTensor
from gossamer.program.bundle import load, save
from gossamer.program.capture import capture
from gossamer.program.fold import fold_batch_norms
from gossamer.program.graph import Graph, Node, Ref
from gossamer.program.network import InputSpec
from gossamer.program.program import Program
from networks import networks


def assert_equal(one, other):
    assert one.graph == other.graph
    assert one.inputs == other.inputs
    assert (one.digest, one.weights_digest()) == (other.digest, other.weights_digest())
    assert (one.quantizers, one.target) == (other.quantizers, other.target)
    for name, tensor in one.state.items():
        found = other.state[name]
        assert torch.equal(tensor, found) and tensor.dtype == found.dtype and type(tensor) is type(found)
        assert tensor.requires_grad == found.requires_grad


@settings(max_examples=8, deadline=None)
@given(networks())
def test_round_trip_of_random_networks(tmp_path_factory, network):
    program = capture(network, torch.zeros(2, 3, 8, 8))
    for one in (program, fold_batch_norms(program)):
        again = load(save(one, tmp_path_factory.mktemp("bundle") / "model.gossamer"))
        assert_equal(one, again)
        inputs = one.example_inputs(3)
        with torch.no_grad():
            assert torch.equal(again(*inputs), one(*inputs))


@pytest.fixture
def program():
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)), torch.zeros(2, 1, 4, 4))


def test_quantizers_frozen_weights_and_types_come_back(program, tmp_path):
    program.get_parameter("0.bias").requires_grad_(False)
    scales = (0.1 + 0.2, 1e-7, 3.0)
    quantizers = {
        "3.weight": Quantizer(IntFormat(bits=8, narrow=True), PerAxis(0), scales, (0, 0, 0)),
        "input": Quantizer(IntFormat(bits=8, signed=False), PerTensor(), (1 / 3,), (128,)),
    }
    quantized = program.with_graph(program.graph, quantizers=quantizers, target="onnxruntime")
    assert_equal(quantized, load(save(quantized, tmp_path / "model.gossamer")))
    half = program.copy().to(torch.bfloat16)
    assert_equal(half, load(save(half, str(tmp_path / "half.gossamer"))))


def test_a_loaded_program_trains_and_does_not_hold_the_file(program, tmp_path):
    path = save(program, tmp_path / "model.gossamer")
    again = load(path)
    path.unlink()
    again.train()(torch.randn(4, 1, 4, 4)).sum().backward()
    assert again.get_parameter("0.weight").grad is not None
    assert torch.equal(program.get_buffer("1.running_mean"), torch.zeros(2))


def test_tied_parameters_and_buffers_stay_tied(tmp_path):
    nodes = (
        Node("a", "aten.linear.default", (Ref("x"), Ref("one"), Ref("left"))),
        Node("b", "aten.linear.default", (Ref("a"), Ref("two"), Ref("right"))),
    )
    weight, bias = nn.Parameter(torch.randn(50, 50)), torch.randn(50)
    state = {"one": weight, "two": weight, "left": bias, "right": bias}
    program = Program(Graph(("x",), nodes, ("b",)), [InputSpec("x", (None, 50), torch.float32)], state)
    path = save(program, tmp_path / "tied")
    again = load(path)
    assert again.state["one"] is again.state["two"] and again.state["left"] is again.state["right"]
    assert_equal(program, again)
    assert path.stat().st_size < 4 * (2500 + 50) + 3000  # once in the file


def test_sliced_and_transposed_weights_are_written_in_their_own_order(program, tmp_path):
    weight = torch.randn(20, 3).T[:, 3:11]
    changed = program.with_graph(program.graph, {"3.weight": nn.Parameter(weight)})
    assert_equal(changed, load(save(changed, tmp_path / "model.gossamer")))


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_is_not_executed(tmp_path, how):
    path, trap = tmp_path / "model.gossamer", tmp_path / "executed"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Payload(trap)))
    else:
        torch.save({"weights": Payload(trap)}, path)
    with pytest.raises(FileError, match="is truncated or no program"):
        load(path)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Payload(trap)))  # the trap works
    assert trap.exists()


def rewrite(path, change):
    """Change the JSON header of a saved program."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + length])
    header = json.loads(outer["__metadata__"]["gossamer"].partition("\n")[0])
    change(header)
    outer["__metadata__"]["gossamer"] = json.dumps(header)
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def set_op(op, *args):
    def change(header):
        header["graph"]["nodes"][0] |= {"op": op, "args": list(args), "kwargs": {}}

    return change


@pytest.mark.parametrize(
    "op",
    [
        "aten.from_file.default",
        "os.system",
        "aten.relu_.default",
        "aten.set_.source_Tensor",
        "builtins.eval",
        "aten.add.out",
        "aten.relu.__call__",
    ],
)
def test_hostile_ops_are_refused_while_loading(program, tmp_path, op):
    trap = tmp_path / "trap"
    trap.write_bytes(b"untouched")
    path = save(program, tmp_path / "model.gossamer")
    rewrite(path, set_op(op, str(trap), True, 8))
    with pytest.raises(FileError, match=r"is damaged or hostile \(no execution rule for .*\); save the program again"):
        load(path)
    assert trap.read_bytes() == b"untouched"


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def edit(path, value):
    def change(header):
        *way, last = path
        for key in way:
            header = header[key]
        header[last] = value

    return change


DAMAGE = {
    "format": (edit(["format"], 99), "has format 99, this version reads 1; load it with the version that wrote it"),
    "no graph": (lambda header: header.pop("graph"), "holds no program"),
    "no inputs": (lambda header: header.pop("inputs"), "is damaged or hostile"),
    "nodes": (edit(["graph", "nodes"], 3), "is damaged or hostile"),
    "node": (edit(["graph", "nodes", 0], []), "is damaged or hostile"),
    "order": (lambda header: header["graph"]["nodes"].reverse(), "before it is made"),
    "twice": (lambda header: header["graph"]["nodes"].append(header["graph"]["nodes"][0]), "made twice"),
    "unknown weight": (edit(["graph", "nodes", 0, "args", 1], {"ref": "nothing"}), "state must be present"),
    "unknown argument": (edit(["graph", "nodes", 0, "args", 0], {"eval": "1"}), "argument of unknown kind 'eval'"),
    "two keys": (edit(["graph", "nodes", 0, "args", 0], {"ref": "a", "dtype": "b"}), "is damaged or hostile"),
    "device": (edit(["graph", "nodes", 0, "args", 0], {"device": "nowhere"}), "is damaged or hostile"),
    "number": (edit(["graph", "nodes", 0, "args", 0], {"float": "many"}), "is damaged or hostile"),
    "input type": (edit(["inputs", 0, "dtype"], "load"), "unknown dtype 'load'"),
    "input type number": (edit(["inputs", 0, "dtype"], 3), "is damaged or hostile"),
    "input shape": (edit(["inputs", 0, "shape"], 3), "is damaged or hostile"),
    "parameters": (edit(["parameters"], []), "is damaged or hostile"),
    "tied": (edit(["tied"], {"a": "nothing"}), "is damaged or hostile"),
    "quantizer": (edit(["quantizers"], {"input": {"format": {"bits": 99}, "axis": None, "scale": [1.0], "zero_point": [0]}}), "in .2, 32."),
    "quantizer text": (
        edit(["quantizers"], {"input": {"format": {"bits": "8"}, "axis": None, "scale": [1], "zero_point": [0]}}),
        "damaged or hostile",
    ),
    "outputs": (edit(["graph", "outputs"], ["nothing"]), "state must be present"),
    "deep": (edit(["graph", "nodes", 0, "args"], nested(900)), "damaged or hostile|truncated"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_headers_give_one_sentence(program, tmp_path, name):
    change, message = DAMAGE[name]
    path = save(program, tmp_path / "model.gossamer")
    rewrite(path, change)
    with pytest.raises(FileError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "model.gossamer"
    return path, save(capture(nn.Linear(2, 3), torch.zeros(2, 2)), path).read_bytes()


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_flipped_or_missing_byte_loads_or_gives_a_file_error(saved, data):
    path, content = saved
    changed = bytearray(content)
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        changed[position] ^= data.draw(st.integers(1, 255))
    else:
        del changed[position:]
    path.write_bytes(changed)
    with contextlib.suppress(FileError):
        assert isinstance(load(path), Program)


def test_truncated_at_any_length(program, tmp_path):
    path = save(program, tmp_path / "model.gossamer")
    content = path.read_bytes()
    for length in [*range(20), *range(20, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(FileError, match="is truncated or no program"):
            load(path)


def test_foreign_and_missing_files(tmp_path):
    path = tmp_path / "model.gossamer"
    with pytest.raises(FileError, match="does not exist; name an existing program"):
        load(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(FileError, match="is a safetensors file, but no program"):
        load(path)
    for content in (b"", b"PK\x03\x04", b"{}", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(FileError, match="is truncated or no program"):
            load(path)


def test_places_that_cannot_be_written(program, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        save(program, tmp_path / "file" / "model.gossamer")


def test_saving_leaves_the_program_alone_and_is_repeatable(program, tmp_path):
    before = {name: (id(tensor), tensor.clone()) for name, tensor in program.state.items()}
    first = save(program, tmp_path / "a").read_bytes()
    assert save(program, tmp_path / "b").read_bytes() == first
    assert save(load(tmp_path / "a"), tmp_path / "c").read_bytes() == first
    for name, tensor in program.state.items():
        assert id(tensor) == before[name][0] and torch.equal(tensor, before[name][1])
