"""The normal form: running the raw graph with its in-place ops and views is the oracle."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.errors import CaptureError
from gossamer.program.execute import DEVICE, TRAINING, run_steps, schedule
from gossamer.program.graph import Graph, Node, Ref, map_refs
from gossamer.program.normal_form import functional, normalize, views_as_reshapes, without_checks, without_copies, written_values
from gossamer.program.ops import function

READS = {  # makes a new value
    "aten.relu.default": (),
    "aten.neg.default": (),
    "aten.clone.default": (),
    "aten.mul.Scalar": (1.5,),
}
VIEWS = {  # of a (4, 4) value; the result is (4, 4) again
    "aten.transpose.int": (0, 1),
    "aten.contiguous.default": (),
    "aten.detach.default": (),
    "aten.reshape.default": ((4, 4),),
    "aten.view.default": ((4, 4),),
    "aten.slice.Tensor": (0, 0, 4),
    "aten.expand.default": ((4, 4),),
    "aten.to.dtype": (torch.float32,),
    "aten.dropout.default": (0.5, False),
}
WRITES = {
    "aten.relu_.default": (),
    "aten.add_.Scalar": (0.5,),
    "aten.mul_.Scalar": (-2.0,),
    "aten.zero_.default": (),
    "aten.fill_.Scalar": (0.25,),
}
BINARY = {"aten.add.Tensor", "aten.mul.Tensor", "aten.sub.Tensor"}
BINARY_WRITES = {"aten.add_.Tensor", "aten.mul_.Tensor", "aten.copy_.default"}


@st.composite
def raw_graphs(draw):
    """A graph on one (4, 4) input whose values are all (4, 4), with halves split off and joined again."""
    names, nodes = ["x"], [Node("start", "aten.clone.default", (Ref("x"),))]  # writes to inputs are tested apart
    names.append("start")
    halves = []

    def new(op, *args):
        nodes.append(Node(f"v{len(nodes)}", op, args))
        return nodes[-1].name

    for _ in range(draw(st.integers(1, 9))):
        one, other = draw(st.sampled_from(names[1:])), draw(st.sampled_from(names[1:]))
        match draw(st.sampled_from(["read", "view", "view", "write", "write", "binary", "binary write", "split", "half write", "join"])):
            case "read":
                op = draw(st.sampled_from(sorted(READS)))
                names.append(new(op, Ref(one), *READS[op]))
            case "view":
                op = draw(st.sampled_from(sorted(VIEWS)))
                names.append(new(op, Ref(one), *VIEWS[op]))
            case "write":
                op = draw(st.sampled_from(sorted(WRITES)))
                names.append(new(op, Ref(one), *WRITES[op]))
            case "binary":
                names.append(new(draw(st.sampled_from(sorted(BINARY))), Ref(one), Ref(other)))
            case "binary write":
                names.append(new(draw(st.sampled_from(sorted(BINARY_WRITES))), Ref(one), Ref(other)))
            case "split":
                axis = draw(st.integers(0, 1))
                pair = new("aten.chunk.default", Ref(one), 2, axis)
                halves += [(new("scalar.getitem", Ref(pair), part), axis) for part in (0, 1)]
            case "half write" if halves:
                half, axis = draw(st.sampled_from(halves))
                halves.append((new("aten.relu_.default", Ref(half)), axis))
            case "join" if halves:
                half, axis = draw(st.sampled_from(halves))
                names.append(new("aten.cat.default", (Ref(half), Ref(half)), axis))
    return Graph(("x",), tuple(nodes), tuple(dict.fromkeys([draw(st.sampled_from(names[1:])), names[-1]])))


def run_raw(graph, x):
    values = {"x": x.clone()}
    for node in graph.nodes:
        if node.op == "scalar.getitem":
            call = function(node.op)
        else:
            _, base, overload = node.op.split(".")
            call = getattr(getattr(torch.ops.aten, base), overload)
        values[node.name] = call(*map_refs(node.args, values.__getitem__))
    return [values[name].clone() for name in graph.outputs]


def run_normal(graph, x):
    values = {"x": x.clone(), TRAINING: False, DEVICE: torch.device("cpu")}
    run_steps(schedule(graph), values)
    assert torch.equal(values["x"], x) if "x" in values else True
    return [values[name] for name in graph.outputs]


@settings(max_examples=400, deadline=None)
@given(raw_graphs(), st.integers(0, 100))
def test_normal_form_computes_the_same_or_refuses(graph, seed):
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
    try:
        expected = run_raw(graph, x)
    except RuntimeError:
        return  # torch itself refuses, such as a view of a transposed value
    try:
        normal = normalize(graph)
    except CaptureError:
        return
    normal.check_order()
    assert all(not function(node.op)._schema.is_mutable for node in normal.nodes if not node.op.startswith("scalar."))
    for got, want in zip(run_normal(normal, x), expected, strict=True):
        assert torch.equal(got, want)
    assert normalize(normal) == normal


def chain(*nodes, outputs=None):
    made = tuple(Node(f"n{position}", op, tuple(args)) for position, (op, *args) in enumerate(nodes))
    return Graph(("x",), made, outputs or (made[-1].name,))


X, N0, N1, N2 = Ref("x"), Ref("n0"), Ref("n1"), Ref("n2")


def test_what_must_not_be_refused():
    """Patterns of real networks: the property above would hold if everything were refused."""
    accepted = {
        "inplace relu, residual": chain(
            ("aten.mul.Scalar", X, 2.0), ("aten.relu_.default", N0), ("aten.mul.Scalar", N1, 3.0), ("aten.add_.Tensor", N2, N1)
        ),
        "original read later": chain(("aten.mul.Scalar", X, 2.0), ("aten.relu_.default", N0), ("aten.add.Tensor", N0, N1)),
        "view after the write": chain(("aten.mul.Scalar", X, 2.0), ("aten.relu_.default", N0), ("aten.view.default", N0, (16,))),
        "write to a view alone": chain(("aten.mul.Scalar", X, 2.0), ("aten.view.default", N0, (16,)), ("aten.relu_.default", N1)),
        "write to the input": chain(("aten.relu_.default", X), ("aten.add.Tensor", X, N0)),
        "write to one half": chain(
            ("aten.chunk.default", X, 2, 1),
            ("scalar.getitem", N0, 0),
            ("scalar.getitem", N0, 1),
            ("aten.relu_.default", N1),
            ("aten.cat.default", (Ref("n3"), N2), 1),
        ),
    }
    x = torch.randn(4, 4)
    for name, graph in accepted.items():
        (got,), (want,) = run_normal(normalize(graph), x), run_raw(graph, x)
        assert torch.equal(got, want), name


WRITES_THROUGH_VIEWS = [
    chain(("aten.clone.default", X), ("aten.select.int", N0, 0, 1), ("aten.fill_.Scalar", N1, 5.0), outputs=("n0",)),
    chain(("aten.clone.default", X), ("aten.view.default", N0, (16,)), ("aten.relu_.default", N0), outputs=("n1",)),
    chain(("aten.clone.default", X), ("aten.detach.default", N0), ("aten.relu_.default", N0), outputs=("n1", "n2")),
    chain(
        ("aten.clone.default", X),
        ("aten.relu_.default", N0),
        ("aten.view.default", N0, (16,)),
        ("aten.neg_.default", N1),
        outputs=("n2", "n1"),
    ),
    chain(
        ("aten.clone.default", X),
        ("aten.slice.Tensor", N0, 0, 1, 3),
        ("aten.slice.Tensor", N1, 1, 0, 2),
        ("aten.transpose.int", N0, 0, 1),
        ("aten.neg_.default", Ref("n2")),
        ("aten.permute.default", N0, (-1, 0)),
        ("aten.add_.Scalar", Ref("n5"), 0.5),
        ("aten.select.int", Ref("n4"), 1, 1),
        ("aten.exp.default", Ref("n7")),
        ("aten.copy_.default", Ref("n2"), Ref("n8")),
        outputs=("n0", "n1", "n2", "n3", "n4", "n5", "n7"),
    ),
]


@pytest.mark.parametrize("graph", WRITES_THROUGH_VIEWS)
def test_writes_through_views_reach_the_base_and_its_other_views(graph):
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    for got, want in zip(run_normal(functional(graph), x), run_raw(graph, x), strict=True):
        assert torch.equal(got, want)


def test_writes_through_views_without_an_inverse_are_refused():
    nodes = ("aten.clone.default", X), ("aten.dropout.default", N0, 0.5, False), ("aten.relu_.default", N1)
    graph = chain(*nodes, outputs=("n0", "n2"))
    graph = replace(graph, nodes=tuple(replace(node, source="model.py:7") for node in graph.nodes))
    with pytest.raises(CaptureError, match=r"at model.py:7: \w+_ writes into memory that 'n\d' also shows; use the form .* new tensor"):
        functional(graph)


def test_writes_to_inputs_and_state_are_listed():
    graph = chain(
        ("aten.relu_.default", X),
        ("aten.select.int", Ref("buffer"), 0, 1),
        ("aten.add_.Scalar", N1, 1.0),
        ("aten.clone.default", Ref("other")),
        ("aten.add_.Scalar", Ref("n3"), 1.0),
    )
    graph = replace(graph, nodes=tuple(replace(node, source=f"m.py:{line}") for line, node in enumerate(graph.nodes)))
    assert written_values(graph) == {"x": "m.py:0", "buffer": "m.py:2"}


def test_checks_and_copies_and_dead_code_go():
    graph = chain(
        ("aten.sym_size.int", X, 0),
        ("aten._assert_scalar.default", N0, "text"),
        ("aten.contiguous.default", X),
        ("aten.relu.default", N2),
        ("aten.clone.default", Ref("n3")),
        ("aten.exp.default", N2),
        outputs=("n4",),
    )
    assert [node.op for node in without_checks(graph).nodes] == [node.op for node in graph.nodes if "assert" not in node.op]
    assert without_copies(graph).outputs == ("n3",)
    normal = normalize(graph)
    assert [(node.name, node.op, node.args) for node in normal.nodes] == [("n3", "aten.relu.default", (X,))]
    assert normal.outputs == ("n3",)


def test_a_copy_of_the_input_may_be_the_output():
    assert normalize(chain(("aten.clone.default", X))) == Graph(("x",), (), ("x",))


def test_views_become_reshapes():
    assert [node.op for node in views_as_reshapes(chain(("aten.view.default", X, (16,)), ("aten.relu.default", N0))).nodes] == [
        "aten.reshape.default",
        "aten.relu.default",
    ]
