"""Numbers of any size where their powers are float32 numbers, which ends near 1e±38: squares leave it from 1e±19 on."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_MODERATE = 40  # binary exponents up to here, of either sign, leave squares and sums of many of them within float32
_NEAR = 16  # the same for powers up to 2.4, of errors that are far smaller than what they are errors of
_LEAST, _MOST = -80, 100  # below, a narrower range may have a scale that no quantizer holds; 2^-100 is a float32 number

P = ParamSpec("P")
R = TypeVar("R", Tensor, tuple[Tensor, Tensor])


def for_squares(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it comes in that or its largest numbers have squares that are none of float32."""
    if tensor.dtype == torch.float64 or not tensor.numel():
        return tensor
    found = tensor.float()
    low, high = torch.aminmax(found)
    exponent = int(torch.frexp(torch.maximum(-low, high)).exponent)  # 0 for 0
    return found if abs(exponent) <= _MODERATE else found.double()


def near_one(choose: Callable[P, R]) -> Callable[P, R]:
    """Let a choice of a bound for each row, choose(rows (N, K), ...) -> (N,) once or twice, see rows of large or small numbers
    divided by a power of two, by which its result is multiplied. Rows below 2^-80 stay as they are."""

    @wraps(choose)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        rows: Tensor = args[0]  # type: ignore[assignment]
        low, high = torch.aminmax(rows, dim=1)
        exponent = torch.frexp(torch.maximum(-low, high)).exponent
        exponent = torch.where((exponent.abs() <= _NEAR) | (exponent < _LEAST), 0, exponent).clamp_max(_MOST)
        if not bool(exponent.any()):
            return choose(*args, **kwargs)
        nearer: Any = (torch.ldexp(rows, -exponent.unsqueeze(1)), *args[1:])
        found: Any = choose(*nearer, **kwargs)
        further: Any = torch.ldexp(found, exponent) if isinstance(found, Tensor) else tuple(torch.ldexp(one, exponent) for one in found)
        return further  # type: ignore[no-any-return]

    return chosen
