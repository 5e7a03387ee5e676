"""What an op does, as far as pruning, counting and exporting care. One small type per class of ops."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Each output position depends on the same position of each (broadcast) input. No multiply-accumulates counted."""


@dataclass(frozen=True, slots=True)
class Movement:
    """Output positions are copies of input positions; runs on any dtype. `sizes` names arguments with literal sizes."""

    sizes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Convolution:
    """input (N, I, *S), weight (O, I/groups, *K), or (I, O/groups, *K) when transposed; bias (O,)."""

    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Linear:
    """input (*, I), weight (O, I), bias (O,)."""


@dataclass(frozen=True, slots=True)
class MatMul:
    """(*, M, K) x (*, K, N), batch dimensions broadcast."""

    left: str = "self"
    right: str = "mat2"


@dataclass(frozen=True, slots=True)
class Einsum:
    """Sum of products, named by letters in `equation`."""


@dataclass(frozen=True, slots=True)
class Attention:
    """softmax(q k^T) v with query (B, H, T, d), key (B, H, S, d), value (B, H, S, e)."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Rows of weight (V, D) picked by integer indices."""


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """Per-channel statistics held in buffers: input (N, C, *S), four vectors (C,)."""


@dataclass(frozen=True, slots=True)
class StatisticsNorm:
    """Statistics computed from the input over axes that may be pruned (layer, group, instance, RMS norm)."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Combines neighbours along the trailing `dims` axes; every leading axis passes through."""

    dims: int


@dataclass(frozen=True, slots=True)
class Reduction:
    """Combines all positions along the axes named in argument `dim` (all axes when it is absent)."""


@dataclass(frozen=True, slots=True)
class Softmax:
    """Couples all positions along one axis; the shape stays."""


@dataclass(frozen=True, slots=True)
class Insert:
    """self with a part of axis `dim` replaced by src; moves data only."""


@dataclass(frozen=True, slots=True)
class Glu:
    """The first half of axis `dim` times the sigmoid of the second half."""


@dataclass(frozen=True, slots=True)
class ChannelScale:
    """self (N, C, *S) and a weight (C,) or (1,) that scales its negative part."""


@dataclass(frozen=True, slots=True)
class Factory:
    """Makes a tensor from sizes alone; carries nothing that can be pruned. `sizes` names arguments with literal sizes."""

    sizes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scalar:
    """Arithmetic on sizes, or picking one result out of several."""


@dataclass(frozen=True, slots=True)
class Recurrent:
    """LSTM, GRU, RNN: input (N, T, I) or (T, N, I), the weights of all layers and directions in one list."""


@dataclass(frozen=True, slots=True)
class Mixing:
    """Combines positions in a way of its own: whatever it touches is frozen. No multiply-accumulates counted."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Runs, but nothing is known about it: whatever it touches is frozen, and its cost cannot be counted."""


Kind = (
    Pointwise
    | Movement
    | Convolution
    | Linear
    | MatMul
    | Einsum
    | Attention
    | Embedding
    | BatchNorm
    | StatisticsNorm
    | Pool
    | Reduction
    | Softmax
    | Insert
    | Glu
    | ChannelScale
    | Factory
    | Scalar
    | Recurrent
    | Mixing
    | Opaque
)
