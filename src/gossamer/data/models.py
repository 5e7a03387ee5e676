"""Finding the model that the command line names, and giving it weights without running code from the file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gossamer.data.options import split_options
from gossamer.data.user_code import call_user, resolve
from gossamer.errors import ConfigError, FileError, GossamerError, MissingRuntime, nearest
from gossamer.program.bundle import load

_FORMS = "package.module:factory, timm:NAME, torchvision:NAME, or a .gossamer file"
_WRITTEN = " (files for runtimes hold no model to work on; model.gossamer beside them does)"
_WEIGHTS = " (weights alone: name what makes the model, and give them as .safetensors with --weights)"
_FILES = dict.fromkeys((".onnx", ".tflite", ".pte"), _WRITTEN) | dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".safetensors"), _WEIGHTS)


@dataclass(frozen=True, slots=True, eq=False)
class NamedModel:
    """A model and, where its maker states it, the shape of one input without the batch axis.

    notes  what the user should know, in plain words; reports show it
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()


def load_model(text: str, weights: str | Path | None = None) -> NamedModel:
    """Make the model that `text` names; its weights are random (as its maker draws them) unless `weights` is given.

    text     package.module:factory (a function without arguments, a class, or a module instance), timm:NAME,
             torchvision:NAME (both take options: "timm:resnet18?num_classes=10"), or a .gossamer file
    weights  a .safetensors file with the keys of the model's state_dict

    Nothing is downloaded. Raises: ConfigError for a name that does not exist, MissingRuntime for a package that is not
    installed, UserCodeError when the factory raises, FileError for weights that are missing, damaged or do not fit.
    """
    if text.endswith(".gossamer"):
        if weights is not None:
            raise ConfigError("--weights", str(weights), "left out: a .gossamer file holds its weights")
        return NamedModel(text, load(text))
    kind, _, name = text.partition(":")
    match kind:
        case "timm":
            model = _from_timm(name)
        case "torchvision":
            model = _from_torchvision(name)
        case _:
            model = NamedModel(text, _from_user(text))
    if weights is not None:
        load_weights(model.module, Path(weights))
    elif kind in ("timm", "torchvision"):
        note = f"{text} has random weights: no --weights were given, and nothing is downloaded"
        return replace(model, notes=(note,))
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill the model with weights from a .safetensors file; every key must be there and fit.

    Raises: FileError when the file is missing, of another kind (pickles are never opened), damaged, or its first key
    or shape that does not fit.
    """
    if path.suffix != ".safetensors":
        raise FileError(path, "is no .safetensors file, and other kinds can run code when opened", _convert(path))
    if not path.is_file():
        raise FileError(path, "does not exist", "name an existing .safetensors file")
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(path, f"is truncated or no safetensors file ({error})", "save the weights again") from error
    _check_fits(model.state_dict(), found, path)
    model.load_state_dict(found, strict=False)


def _check_fits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    way_out = "use the weights of this model"
    missing = [key for key in wanted if key not in found and not _is_tied(key, wanted, found)]
    unknown = [key for key in found if key not in wanted]
    wrong = [key for key in wanted if key in found and wanted[key].shape != found[key].shape]
    if missing:
        raise FileError(path, f"lacks {_first(missing)}" + (f" and has the unknown {_first(unknown)}" if unknown else ""), way_out)
    if unknown:
        raise FileError(path, f"has {_first(unknown)}, unknown to the model", way_out)
    if wrong:
        key = wrong[0]
        shapes = f"{key!r} of shape {tuple(found[key].shape)} where the model has {tuple(wanted[key].shape)}"
        raise FileError(path, f"has {shapes}" + (f" (and {len(wrong) - 1} more that differ)" if len(wrong) > 1 else ""), way_out)


def _is_tied(key: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    """True for a tensor that shares its memory with one that the file has: safetensors keeps only one of them."""
    return any(other in found and wanted[other].data_ptr() == wanted[key].data_ptr() != 0 for other in wanted if other != key)


def _first(names: list[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _convert(path: Path) -> str:
    command = (
        "import torch; from safetensors.torch import save_file; "
        f"save_file(torch.load('{path}', weights_only=True), '{path.with_suffix('.safetensors')}')"
    )
    return f'if you trust it, convert it once with: python -c "{command}"'


def _from_user(text: str) -> nn.Module:
    if ":" not in text:
        raise ConfigError("model", text, _FORMS + _FILES.get(Path(text).suffix, ""))
    found = resolve(text, "model")
    made = found if isinstance(found, nn.Module) or not callable(found) else call_user(found, f"calling {text}")
    if not isinstance(made, nn.Module):
        raise ConfigError("model", text, f"an nn.Module or a function without arguments that returns one; it gave a {type(made).__name__}")
    return made


def _from_timm(text: str) -> NamedModel:
    name, options = split_options(text)
    timm = _package("timm", f"the model timm:{name}", "pip install 'gossamer[timm]'")
    if not timm.is_model(name.split(".")[0]):
        raise ConfigError("timm model", name, f"a name that timm has ({nearest(name, timm.list_models())})")
    model = call_user(lambda: timm.create_model(name, pretrained=False, **options), f"making timm:{text}")
    config = getattr(model, "pretrained_cfg", None) or {}
    shape = config.get("input_size") if hasattr(config, "get") else None
    return NamedModel(f"timm:{text}", model, tuple(shape) if shape else None)


def _from_torchvision(text: str) -> NamedModel:
    name, options = split_options(text)
    _package("torchvision", f"the model torchvision:{name}", "pip install torchvision")
    models = _package("torchvision.models", f"the model torchvision:{name}", "pip install torchvision")
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError("torchvision model", name, f"a classifier that torchvision has ({nearest(name, known)})")
    model = call_user(lambda: models.get_model(name, weights=None, **options), f"making torchvision:{text}")
    return NamedModel(f"torchvision:{text}", model, (3, _torchvision_size(models, name), _torchvision_size(models, name)))


def _torchvision_size(models: Any, name: str) -> int:
    """Pixels that the published weights were made for, 224 where that is not stated."""
    weights = next(iter(models.get_model_weights(name)), None)
    crop = getattr(weights.transforms(), "crop_size", [224]) if weights is not None else [224]
    return int(crop[0]) if isinstance(crop, list) else int(crop)


def _package(name: str, needed_for: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingRuntime(error.name or name, needed_for, install) from error
    except (ImportError, RuntimeError) as error:
        raise GossamerError(f"{name} does not import with torch {torch.__version__} ({error}); install the {name} made for it.") from error
