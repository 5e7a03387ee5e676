"""Checkpoints: everything that the rest of a run depends on, in one safetensors file with a JSON header. No pickle.

Tensors "weights/NAME" and "optimizer/NAME/KEY"; header {"kind", "format", "run", "epoch", "scaler"}.
The random state is not kept: each epoch's is a function of the seed in "run".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import FileError
from gossamer.files import read_tensors, write_tensors

FORMAT = 1
_KIND = "training checkpoint"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `epoch` finished epochs.

    run        what identifies the run: network, weights at the start, data, recipe, seed
    weights    parameters and buffers by name, quantizers that learn among them
    optimizer  per parameter name, its tensors by key
    scaler     state of the loss scaler of fp16 training
    """

    run: Mapping[str, Any]
    epoch: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Tensor]]
    scaler: Mapping[str, float] | None = None

    def save(self, path: Path) -> None:
        """Write the file, atomically. Raises FileError when the place cannot be written."""
        tensors = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
        tensors |= {f"optimizer/{name}/{key}": tensor for name, state in self.optimizer.items() for key, tensor in state.items()}
        scaler = None if self.scaler is None else dict(self.scaler)
        header = {"kind": _KIND, "format": FORMAT, "run": dict(self.run), "epoch": self.epoch, "scaler": scaler}
        write_tensors(path, header, tensors)

    @staticmethod
    def load(path: Path, run: Mapping[str, Any]) -> Checkpoint:
        """Read the checkpoint of the run `run`.

        Raises: FileError when the file is damaged, foreign, or of another run (naming what differs).
        """
        header, tensors = read_tensors(path, _KIND)
        if not isinstance(header, dict) or header.get("kind") != _KIND or header.get("format") != FORMAT:
            raise FileError(path, f"is no {_KIND}", "name another file; this one was left as it is")
        try:
            _check_same_run(path, header["run"], run)
            weights: dict[str, Tensor] = {}
            optimizer: dict[str, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                part, _, name = key.partition("/")
                if part == "weights":
                    weights[name] = tensor
                else:
                    name, _, entry = name.rpartition("/")
                    optimizer.setdefault(name, {})[entry] = tensor
            return Checkpoint(header["run"], int(header["epoch"]), weights, optimizer, header["scaler"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileError(path, f"is a damaged {_KIND} (missing or wrong: {error})", "delete it and train again") from error

    def restore(self, path: Path, present: Mapping[str, Tensor], optimizer: Any, names: list[str]) -> None:
        """Put the state into the tensors `present` and an optimizer whose parameters have these `names`, in its order.

        Raises: FileError, naming `path`, when a tensor is missing or has another shape.
        """
        wrong = [name for name, tensor in present.items() if name not in self.weights or self.weights[name].shape != tensor.shape]
        if wrong:
            raise FileError(path, f"lacks the weight {wrong[0]!r}", "delete it and train again")
        with torch.no_grad():
            for name, tensor in present.items():
                tensor.copy_(self.weights[name])
        state = {position: dict(self.optimizer[name]) for position, name in enumerate(names) if name in self.optimizer}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def optimizer_tensors(optimizer: Any, names: list[str]) -> dict[str, dict[str, Tensor]]:
    """The tensors an optimizer keeps, by name of the parameter; `names` are in the optimizer's order."""
    state = optimizer.state_dict()["state"]
    return {names[position]: {key: value for key, value in kept.items() if isinstance(value, Tensor)} for position, kept in state.items()}


def weights_digest(module: nn.Module) -> str:
    """Hash of the names and values of all weights and buffers of any module."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        hashed.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _check_same_run(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    different = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    if different:
        key = different[0]
        there, here = (str(side.get(key))[:40] for side in (found, wanted))
        raise FileError(
            path, f"belongs to another training run ({key} is {there} there, {here} here)", "delete it, or name another file for this run"
        )
