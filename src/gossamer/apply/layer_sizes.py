"""Sizes that torch's own layers keep beside their weights, brought in line with the weights and the graph."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from gossamer.program.graph import Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution
from gossamer.program.program import Program
from gossamer.program.shapes import infer_shapes, tensor_meta


def fit_layers(model: nn.Module, program: Program) -> None:
    """Set in_channels, num_features and the like of every layer of `model`, in place, whose weights are `program`'s already."""
    _fit_from_graph(model, program)
    for module in model.modules():
        _fit_from_weights(module)


def _fit_from_graph(model: nn.Module, program: Program) -> None:
    """What no weight tells: groups, and the sizes of norms that have no weights."""
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = {f"{name}.weight": module for name, module in modules.items()}
    for node in program.graph.nodes:
        module = modules.get(node.module)
        if isinstance(op_of(node).kind, Convolution):
            bound = bind(node)
            layer = layers.get(bound["weight"].name) if isinstance(bound["weight"], Ref) else None
            layer = layer if isinstance(layer, _ConvNd) else module
            if isinstance(layer, _ConvNd):
                layer.groups = bound["groups"]
        elif isinstance(module, nn.GroupNorm) and node.op == "aten.group_norm.default":
            bound = bind(node)
            module.num_groups = bound["num_groups"]
            if module.weight is None:
                module.num_channels = _channels(program, bound["input"].name)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and node.op in ("aten.layer_norm.default", "aten.rms_norm.default"):
            module.normalized_shape = tuple(bind(node)["normalized_shape"])
        elif isinstance(module, _NormBase) and module.weight is None and module.running_mean is None and "input" in (bound := bind(node)):
            module.num_features = _channels(program, bound["input"].name)


def _channels(program: Program, name: str) -> int:
    return tensor_meta(infer_shapes(program), name).shape[1]


def _fit_from_weights(module: nn.Module) -> None:
    match module:
        case _ConvNd():
            rows, columns = module.weight.shape[:2]
            module.in_channels, module.out_channels = (
                (rows, columns * module.groups) if module.transposed else (columns * module.groups, rows)
            )
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.Bilinear():
            module.out_features, module.in1_features, module.in2_features = module.weight.shape
        case _NormBase():
            vector = module.weight if module.weight is not None else module.running_mean
            if vector is not None:
                module.num_features = len(vector)
        case nn.LayerNorm() | nn.RMSNorm() if isinstance(module.weight, Tensor):
            module.normalized_shape = tuple(module.weight.shape)
        case nn.GroupNorm() if isinstance(module.weight, Tensor):
            module.num_channels = len(module.weight)
        case nn.Embedding() | nn.EmbeddingBag():
            module.num_embeddings, module.embedding_dim = module.weight.shape
        case nn.PReLU():
            module.num_parameters = module.weight.numel()
        case nn.RNNBase():
            reading, keeping = module.get_parameter("weight_ih_l0"), module.get_parameter("weight_hh_l0")
            module.input_size, module.hidden_size = reading.shape[1], keeping.shape[0] // _gates(module)
        case nn.MultiheadAttention():
            _fit_attention(module)


def _gates(module: nn.RNNBase) -> int:
    return {"LSTM": 4, "GRU": 3}.get(module.mode, 1)


def _fit_attention(module: nn.MultiheadAttention) -> None:
    """torch's attention wants as many inner channels as outer ones, in whole heads; else its own check tells the user."""
    if isinstance(module.in_proj_weight, Tensor):
        inner, width = module.in_proj_weight.shape[0] // 3, module.in_proj_weight.shape[1]
        module.kdim = module.vdim = width
    else:
        inner, width = module.q_proj_weight.shape
        module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]
    module.embed_dim, module.head_dim = width, inner // module.num_heads
