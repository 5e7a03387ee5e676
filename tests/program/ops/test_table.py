"""The op table: torch's own schemas and tags are the oracle."""

import pytest
import torch

from gossamer.errors import UnsupportedOp
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import add, bind, function, op_of, rows, with_arguments
from gossamer.program.ops.kinds import (
    Attention,
    BatchNorm,
    Convolution,
    Embedding,
    Factory,
    Linear,
    MatMul,
    Movement,
    Opaque,
    Pointwise,
    Reduction,
    Scalar,
    Softmax,
)
from gossamer.program.ops.table import SCALAR_FUNCTIONS

ATEN = {row.name: row for row in rows() if not row.name.startswith("scalar.")}


def arguments_of(name):
    return {argument.name: argument for argument in function(name)._schema.arguments}


@pytest.mark.parametrize("name", ATEN)
def test_contract_of_a_row(name):
    """Every row names a pure op that exists, and arguments that it has."""
    row, arguments = ATEN[name], arguments_of(name)
    assert not function(name)._schema.is_mutable
    if row.training:
        assert str(arguments[row.training].type) == "bool"
    needed = {
        Convolution: {"input", "weight", "bias", "groups"},
        Linear: {"input", "weight", "bias"},
        Attention: {"query", "key", "value"},
        Embedding: {"weight", "indices"},
        BatchNorm: {"input", "weight", "bias", "running_mean", "running_var", "eps"},
    }
    assert needed.get(type(row.kind), set()) <= arguments.keys()
    match row.kind:
        case Movement(sizes=sizes) | Factory(sizes=sizes):
            assert set(sizes) <= arguments.keys()
        case MatMul(left=left, right=right):
            assert {left, right} <= arguments.keys()
        case Softmax():
            assert "dim" in arguments


def test_pointwise_rows_are_what_torch_tags_so():
    tagged = {name for name in ATEN if torch.Tag.pointwise in function(name).tags}
    pointwise = {name for name, row in ATEN.items() if isinstance(row.kind, Pointwise)}
    assert tagged - pointwise <= {"aten.clone.default"}
    # torch leaves the tag out on these, which decompose into tagged ones, copy, fill, or drop
    untagged = {name.split(".")[1] for name in pointwise - tagged}
    assert untagged <= set(
        "__and__ __or__ __xor__ where rsub hardswish masked_fill to _to_copy type_as floor_divide zeros_like ones_like full_like "
        "copy fill zero log_sigmoid dropout feature_dropout alpha_dropout".split()
    )


UNTAGGED = {
    "aten.hardswish.default": (),
    "aten.log_sigmoid.default": (),
    "aten.to.dtype": (torch.float64,),
    "aten._to_copy.default": (),
    "aten.floor_divide.default": (0.3,),
    "aten.rsub.Scalar": (2.0,),
    "aten.zeros_like.default": (),
    "aten.full_like.default": (3.0,),
    "aten.dropout.default": (0.5, False),
    "aten.feature_dropout.default": (0.5, False),
    "aten.alpha_dropout.default": (0.5, False),
}


@pytest.mark.parametrize("name", UNTAGGED)
def test_untagged_pointwise_ops_keep_positions_apart(name):
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    call = function(name)
    assert torch.equal(call(x, *UNTAGGED[name])[order], call(x[order], *UNTAGGED[name]))


def test_reductions_name_their_axes():
    for name, row in ATEN.items():
        if isinstance(row.kind, Reduction):
            assert "dim" in arguments_of(name) or name.endswith(".default"), name


def test_ops_without_a_row_are_opaque():
    node = Node("n", "aten.cummax.default", (Ref("x"), 1))
    assert op_of(node).kind == Opaque()
    assert op_of(node).name == "aten.cummax.default"
    assert function("aten.cummax.default") is torch.ops.aten.cummax.default


def test_scalar_functions_are_rows():
    for name in SCALAR_FUNCTIONS:
        assert isinstance(op_of(Node("n", name, ())).kind, Scalar)
        assert function(name) is SCALAR_FUNCTIONS[name]


@pytest.mark.parametrize(
    "name",
    [
        "aten.relu_.default",
        "aten.add_.Tensor",
        "aten.set_.source_Tensor",
        "aten.resize_.default",
        "aten.index_put_.default",
        "aten.add.out",
        "aten.from_file.default",
        "aten.relu",
        "aten.relu.nothing",
        "aten.nothing.default",
        "aten.__class__.mro",
        "aten.relu.__class__",
        "aten.relu.__call__",
        "aten._ops.default",
        "prims.add.default",
        "os.system",
        "builtins.eval",
        "scalar.system",
        "torch.load",
        "aten..default",
        "aten.relu;import os.default",
        "",
    ],
)
def test_what_is_no_pure_tensor_op_does_not_resolve(name):
    with pytest.raises(UnsupportedOp, match="only pure aten ops can be part of a program"):
        function(name)


def test_every_aten_op_that_takes_text_or_writes_is_refused_without_a_row():
    """Swept over all ops that this torch has."""
    seen = 0
    for full in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = full.partition("::")
        if namespace != "aten":
            continue
        base, _, overload = rest.partition(".")
        name = f"aten.{base}.{overload or 'default'}"
        schema = torch._C._get_schema(full.split(".")[0], overload)
        text = any("str" in str(argument.type) for argument in schema.arguments)
        if name in ATEN or not (schema.is_mutable or text):
            continue
        seen += 1
        with pytest.raises(UnsupportedOp):
            function(name)
    assert seen > 1000


def test_a_second_row_for_an_op_raises():
    with pytest.raises(ValueError, match=r"op aten.relu.default has two rows"):
        add("relu.default", Pointwise())


def test_bind_names_all_arguments():
    node = Node("n", "aten.conv2d.default", (Ref("x"), Ref("w"), None, (2, 2)), (("groups", 4),))
    assert bind(node) == {
        "input": Ref("x"),
        "weight": Ref("w"),
        "bias": None,
        "stride": (2, 2),
        "padding": (0, 0),
        "dilation": (1, 1),
        "groups": 4,
    }
    with pytest.raises(ValueError, match=r"n: aten.conv2d.default lacks argument weight"):
        bind(Node("n", "aten.conv2d.default", (Ref("x"),)))


def test_with_arguments_changes_only_what_is_named():
    node = Node("n", "aten.add.Tensor", (Ref("x"), Ref("y")), (("alpha", 2),), "layer", "m.py:1")
    changed = with_arguments(node, other=Ref("z"))
    assert bind(changed) == {"self": Ref("x"), "other": Ref("z"), "alpha": 2}
    assert (changed.name, changed.op, changed.module, changed.source) == ("n", "aten.add.Tensor", "layer", "m.py:1")
    assert with_arguments(changed, other=Ref("y")) == with_arguments(node)
    with pytest.raises(ValueError, match="has no argument"):
        with_arguments(node, nothing=1)
