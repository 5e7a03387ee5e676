import copy
import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ConfigError
from gossamer.program.graph import Graph, Node, Ref, decode, encode, map_refs, refs_in, rename_uses

NAMES = st.text(max_size=8)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    NAMES,
    st.builds(Ref, NAMES),
    st.sampled_from([torch.float32, torch.int8, torch.bfloat16, torch.strided, torch.channels_last, torch.preserve_format]),
    st.builds(torch.device, st.sampled_from(["cpu", "cuda", "meta"])),
)
ARGUMENTS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=8)
KEYWORDS = st.dictionaries(NAMES, ARGUMENTS, max_size=3).map(lambda named: tuple(named.items()))
NODES = st.builds(Node, NAMES, NAMES, st.lists(ARGUMENTS, max_size=4).map(tuple), KEYWORDS, NAMES, NAMES)
GRAPHS = st.builds(Graph, st.lists(NAMES).map(tuple), st.lists(NODES, max_size=4).map(tuple), st.lists(NAMES).map(tuple))


def through_json(plain):
    return json.loads(json.dumps(plain, allow_nan=False))


@given(ARGUMENTS)
def test_arguments_survive_json(argument):
    found = decode(through_json(encode(argument)))
    assert found == argument
    assert repr(found) == repr(argument)  # tells 1, 1.0 and True apart


@given(GRAPHS)
def test_graphs_survive_json(graph):
    again = Graph.from_json(through_json(graph.to_json()))
    assert again == graph
    assert again.digest == graph.digest


def test_nan_and_infinities_survive_json():
    found = decode(through_json(encode((float("nan"), float("inf"), -float("inf"), -0.0))))
    assert found[0] != found[0]
    assert [str(number) for number in found[1:]] == ["inf", "-inf", "-0.0"]


def test_arguments_without_a_json_form():
    with pytest.raises(TypeError, match="no JSON form for"):
        encode(torch.zeros(1))


@pytest.mark.parametrize("data", [{"code": "1"}, {"dtype": "load"}, {"dtype": "nothing"}, {"layout": "float32"}])
def test_forms_that_are_never_written_are_refused(data):
    with pytest.raises(ValueError, match="an argument of unknown kind"):
        decode(data)
    with pytest.raises(ValueError, match="too many values|not enough values"):
        decode({})


RELU = Node("r", "aten.relu.default", (Ref("x"),), (), "layer", "m.py:1")
ADD = Node("a", "aten.add.Tensor", (Ref("r"), Ref("w")), (("alpha", 2),))
CAT = Node("c", "aten.cat.default", ((Ref("a"), Ref("r"), Ref("r")), 1))
GRAPH = Graph(("x",), (RELU, ADD, CAT), ("c",))


def test_digest_is_the_hash_of_the_structure():
    """Written out, since saved plans rely on it."""
    plain = {
        "inputs": ["x"],
        "nodes": [{"args": [{"ref": "x"}], "kwargs": {}, "name": "r", "op": "aten.relu.default"}],
        "outputs": ["r"],
    }
    expected = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    assert Graph(("x",), (RELU,), ("r",)).digest == expected


def test_digest_sees_all_but_the_place_in_the_users_code():
    def changed(**fields):
        values = {name: getattr(RELU, name) for name in ("name", "op", "args", "kwargs", "module", "source")} | fields
        return Graph(("x",), (Node(**values),), ("r",)).digest

    same = changed()
    assert changed(module="other", source="other.py:9") == same
    for difference in ({"name": "q"}, {"op": "aten.relu6.default"}, {"args": (Ref("y"),)}, {"kwargs": (("inplace", False),)}):
        assert changed(**difference) != same
    assert Graph(("x",), (RELU,), ("x",)).digest != same
    assert Graph(("y",), (RELU,), ("r",)).digest != same


def test_who_reads_what():
    assert CAT.uses == ("a", "r", "r")
    assert GRAPH.by_name["a"] is ADD
    assert GRAPH.users == {"x": (RELU,), "r": (ADD, CAT), "w": (ADD,), "a": (CAT,)}
    assert GRAPH.state_names == ("w",)
    assert GRAPH.sole_user("a") is CAT
    assert GRAPH.sole_user("r") is None
    assert GRAPH.sole_user("c") is None
    assert Graph(("x",), (RELU, ADD), ("a", "r")).sole_user("r") is None
    assert Graph(("x",), (), ("w",)).state_names == ("w",)


def test_dead_code():
    dead = Node("d", "aten.exp.default", (Ref("a"),))
    graph = Graph(("x",), (RELU, ADD, dead, CAT), ("r",))
    assert graph.without_dead_code() == Graph(("x",), (RELU,), ("r",))
    assert GRAPH.without_dead_code() == GRAPH


def test_refs_are_found_mapped_and_renamed():
    argument = (Ref("a"), 1, (Ref("b"), (Ref("a"),)), "a")
    assert list(refs_in(argument)) == ["a", "b", "a"]
    assert map_refs(argument, str.upper) == ("A", 1, ("B", ("A",)), "a")
    renamed = rename_uses(ADD, {"r": "q", "a": "z"})
    assert (renamed.args, renamed.kwargs, renamed.name) == ((Ref("q"), Ref("w")), (("alpha", 2),), "a")
    assert rename_uses(ADD, {"x": "q"}) is ADD
    keyword = Node("k", "op", (), (("other", Ref("r")),))
    assert rename_uses(keyword, {"r": "q"}).kwargs == (("other", Ref("q")),)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (Graph(("x",), (ADD, RELU), ("a",)), "graph must be in order, but 'a' reads this value before it is made; got 'r'"),
        (Graph(("x",), (Node("s", "op", (Ref("s"),)),), ("s",)), "in order, but 's' reads this value before it is made; got 's'"),
        (Graph(("x",), (RELU, RELU), ("r",)), "graph must be free of values that are made twice; got 'r'"),
        (Graph(("r",), (RELU,), ("r",)), "made twice; got 'r'"),
        (Graph(("x", "x"), (RELU,), ("r",)), "made twice; got 'x'"),
    ],
)
def test_graphs_out_of_order(graph, message):
    with pytest.raises(ConfigError, match=message):
        graph.check_order()


def test_a_graph_is_its_own_copy():
    GRAPH.check_order()
    assert copy.deepcopy(GRAPH) is GRAPH
