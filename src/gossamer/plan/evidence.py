"""What criteria need besides the weights, gathered by running a copy of the network in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gossamer.batches import Batch, Batches, check_labels
from gossamer.coupling import Analysis
from gossamer.coupling import labels as lab
from gossamer.errors import DataError
from gossamer.numerics.magnitude import for_squares
from gossamer.program.program import Program
from gossamer.program.shapes import TensorMeta, infer_shapes

Loss = Callable[[Tensor, Tensor], Tensor]
PROBES = 16  # random sign vectors that squares are estimated with, at least, over all batches together
MEMORY_BYTES = 2**30  # of results held for a backward pass; larger batches are worked on in parts


def gather(needs: str, program: Program, batches: Batches, loss: Loss | None, seed: int) -> Mapping[str, Tensor]:
    """The named evidence of every parameter (see numerics.saliency.Criterion), by name.

    Squares are estimated with random signs s: E[(sum_i s_i g_i)^2] = sum_i g_i^2, so that one backward pass serves a batch.
    Raises: DataError for targets that are missing or do not fit, and for a network without the second derivatives that are needed.
    """
    method = _METHODS[needs]
    with torch.inference_mode(False), torch.enable_grad(), _twice_differentiable(needs == "curvature"):
        copy = program.copy().eval().requires_grad_(True)
        found = {name: tensor for name, tensor in copy.state.items() if isinstance(tensor, nn.Parameter) and tensor.is_floating_point()}
        unique = list({id(tensor): tensor for tensor in found.values()}.values())
        totals = [torch.zeros_like(tensor) for tensor in unique]
        generator = torch.Generator().manual_seed(seed)
        draws = math.ceil(PROBES / max(len(batches), 1))
        samples = 0
        most = max(1, MEMORY_BYTES // max(1, (2 + 2 * (needs == "curvature")) * _bytes_per_sample(program)))
        for inputs, target in _parts(program, batches, most):
            outputs = copy(*inputs)
            samples += inputs[0].shape[0]
            for squares in method(outputs, target, loss, unique, generator, draws):
                totals = [total + part.detach() for total, part in zip(totals, squares, strict=True)]  # of either precision
    if needs != "gradient":
        totals = [total / samples for total in totals]
    by_id = {id(tensor): total.detach() for tensor, total in zip(unique, totals, strict=True)}
    return {name: by_id[id(tensor)] for name, tensor in found.items()}


def activation_sizes(program: Program, analysis: Analysis, names: Iterable[str], batches: Batches) -> Mapping[str, Tensor]:
    """Mean absolute activation of each labelled position of the named values; all other axes have length 1."""
    totals: dict[str, Tensor] = {}
    samples = 0

    def watch(name: str, value: Any) -> None:
        kept = lab.varying(analysis.values[name])
        others = [axis for axis in range(value.dim()) if axis not in kept]
        sizes = value.detach().abs().to(torch.float64)
        mean = sizes.mean(others, keepdim=True) if others else sizes
        totals[name] = totals.get(name, 0) + mean * batch

    watchers = dict.fromkeys(names, watch)
    copy = program.copy().eval()
    with torch.inference_mode():
        for inputs, _ in parts_that_fit(program, batches):
            batch = inputs[0].shape[0]
            samples += batch
            copy.run(*inputs, observe=watchers)
    return {name: total / samples for name, total in totals.items()}


def parts_that_fit(program: Program, batches: Batches) -> Iterator[Batch]:
    """Batches on the network's device, in parts whose results together stay below 1 GiB."""
    return _parts(program, batches, max(1, MEMORY_BYTES // max(1, _bytes_per_sample(program))))


def _bytes_per_sample(program: Program) -> int:
    """Bytes of all results together: what a backward pass holds."""
    metas = infer_shapes(program, batch=1)
    results = (metas[node.name] for node in program.graph.nodes)
    return sum(meta.size_bytes for meta in results if isinstance(meta, TensorMeta))


def _parts(program: Program, batches: Batches, most: int) -> Iterator[Batch]:
    """Batches of at most `most` samples, on the network's device; of a network of fixed batch size as they come."""
    fixed = any(not spec.shape or spec.shape[0] is not None for spec in program.inputs)
    for inputs, target in batches:
        inputs = tuple(tensor.to(program.device) for tensor in inputs)
        target = None if target is None else target.to(program.device)
        count = inputs[0].shape[0] if inputs[0].dim() else 1
        if fixed or count <= most:
            yield inputs, target
            continue
        for start in range(0, count, most):
            part = slice(start, start + most)
            yield tuple(tensor[part] for tensor in inputs), None if target is None else target[part]


Parts = Iterator[list[Tensor]]


def _gradient(
    outputs: Any, target: Tensor | None, loss: Loss | None, weights: Sequence[Tensor], generator: torch.Generator, draws: int
) -> Parts:
    """Of the summed loss."""
    yield _grads(_total_loss(outputs, target, loss), weights)


def _squared_gradient(
    outputs: Any, target: Tensor | None, loss: Loss | None, weights: Sequence[Tensor], generator: torch.Generator, draws: int
) -> Parts:
    """Sum over samples of the squared gradient of each one's loss."""
    if loss is None:
        losses = nn.functional.cross_entropy(outputs, _labels(outputs, target), reduction="none")
    else:
        given = _present(target)
        losses = torch.stack([loss(outputs[k : k + 1], given[k : k + 1]).reshape(()) for k in range(len(given))])
    for draw in range(draws):
        grads = _grads((losses * _signs(losses, generator)).sum(), weights, again=draw + 1 < draws)
        yield [for_squares(grad).square() / draws for grad in grads]


def _response(
    outputs: Any, target: Tensor | None, loss: Loss | None, weights: Sequence[Tensor], generator: torch.Generator, draws: int
) -> Parts:
    """Sum over samples and outputs of the squared derivative of each output."""
    results = [out for out in (outputs if isinstance(outputs, tuple) else (outputs,)) if out.requires_grad]
    for draw in range(draws):
        total = torch.stack([(out * _signs(out, generator)).sum() for out in results]).sum()
        yield [for_squares(grad).square() / draws for grad in _grads(total, weights, again=draw + 1 < draws)]


def _curvature(
    outputs: Any, target: Tensor | None, loss: Loss | None, weights: Sequence[Tensor], generator: torch.Generator, draws: int
) -> Parts:
    """Diagonal of the Hessian of the summed loss by Hutchinson's estimate z * Hz with random signs z."""
    grads = _grads(_total_loss(outputs, target, loss), weights, graph=True)
    for draw in range(draws):
        signs = [_signs(grad, generator) for grad in grads]
        product = torch.stack([(grad * sign).sum() for grad, sign in zip(grads, signs, strict=True)]).sum()
        columns = _grads(product, weights, again=draw + 1 < draws)
        yield [sign * column / draws for sign, column in zip(signs, columns, strict=True)]


_METHODS = {"gradient": _gradient, "squared gradient": _squared_gradient, "response": _response, "curvature": _curvature}


@contextmanager
def _twice_differentiable(wanted: bool) -> Iterator[None]:
    """Where wanted, compute with the kernels that have second derivatives: plain attention."""
    if not wanted:
        yield
        return
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:  # NotImplementedError is one
        if "derivative" not in str(error):
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(
            f"this network has no second derivatives ({reason}); use the criterion 'fisher', which needs first ones."
        ) from error


def _grads(value: Tensor, weights: Sequence[Tensor], *, again: bool = False, graph: bool = False) -> list[Tensor]:
    """Gradients of a scalar; zeros where it does not depend on a weight. `again`: another pass will follow."""
    if not value.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    found = torch.autograd.grad(value, weights, retain_graph=again or graph, create_graph=graph, allow_unused=True)
    return [torch.zeros_like(weight) if grad is None else grad for weight, grad in zip(weights, found, strict=True)]


def _total_loss(outputs: Any, target: Tensor | None, loss: Loss | None) -> Tensor:
    if loss is not None:
        return loss(outputs, _present(target))
    return nn.functional.cross_entropy(outputs, _labels(outputs, target), reduction="sum")


def _labels(outputs: Any, target: Tensor | None) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"{len(outputs)} tensors"
        raise DataError(f"cross-entropy needs outputs of shape (batch, classes); the network gives {shape}: pass loss=.")
    return check_labels(target, outputs.shape[1], "scoring").to(outputs.device)


def _present(target: Tensor | None) -> Tensor:
    if target is None:
        raise DataError("the scoring data has no targets; give batches of (inputs, target).")
    return target


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)
