"""Folders of images, one folder per class, read from disk as they are needed.

Each image is decoded as RGB, its shorter side resized (bicubic) so that the crop covers 87.5 % of it, cropped at the
centre, divided by 255, then (x - mean) / std per channel. Training images get the same treatment: nothing is random.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gossamer.data.options import Option, check_known
from gossamer.data.source import Data, calibration_from
from gossamer.errors import ConfigError, DataError, FileError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_TRAIN_NAMES = ("train", "training")
_VALIDATION_NAMES = ("val", "valid", "validation", "test")
Samples = tuple[tuple[Path, int], ...]
_WAY_OUT = "give one folder per class with images in it, or train/ and val/ with such folders"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """How images become inputs of shape (3, size, size).

    size  pixels after the crop; resize  shorter side before the crop, 0 for size / 0.875 rounded;
    mean, std  per channel, of pixels in [0, 1]
    """

    size: int = 224
    resize: int = 0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or not 1 <= self.size <= 4096:
            raise ConfigError("images size", self.size, "a number of pixels in [1, 4096]")
        if not isinstance(self.resize, int) or (self.resize and self.resize < self.size):
            raise ConfigError("images resize", self.resize, f"a number of pixels, at least size ({self.size})")
        if min(self.std) <= 0:
            raise ConfigError("images std", self.std, "positive")

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side before the crop."""
        return self.resize or round(self.size / 0.875)

    @staticmethod
    def from_options(options: dict[str, Option]) -> ImageOptions:
        """From the options of "images:DIR?size=224,mean=0.5"; mean and std are one number, or three joined by "/"."""
        check_known(options, ("size", "resize", "mean", "std"), "images")
        values: dict[str, object] = {key: options[key] for key in ("size", "resize") if key in options}
        values |= {key: _three(key, options[key]) for key in ("mean", "std") if key in options}
        return ImageOptions(**values)  # type: ignore[arg-type]


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images and class numbers, in a fixed order. Raises DataError naming the file when an image is damaged."""

    def __init__(self, samples: Samples, options: ImageOptions) -> None:
        self.samples = samples
        self.options = options

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        path, label = self.samples[position]
        return read_image(path, self.options), label


def images(folder: str | Path, options: ImageOptions | None = None) -> Data:
    """Images below a folder: class folders, or train/ and val/ (also valid, validation, test) with class folders.

    Where there is only one set, every fifth image of each class (by name) is for validation.
    Raises: FileError for a missing folder, DataError for one without classes or images, or when a class of the
    validation set is not in the training set.
    """
    place, options = Path(folder), options or ImageOptions()
    if not place.is_dir():
        raise FileError(place, "is no folder", _WAY_OUT)
    notes: tuple[str, ...] = ()
    train_place, validation_place = _subfolder(place, _TRAIN_NAMES), _subfolder(place, _VALIDATION_NAMES)
    if train_place and validation_place:
        names = _class_names(train_place)
        train, validation = _samples(train_place, names), _samples(validation_place, names)
    else:
        samples = _samples(place, _class_names(place))
        train, validation = _split(samples)
        notes = (f"every fifth image of each class ({len(validation)} of {len(samples)}) is for validation (there was one set)",)
    if not train or not validation:
        raise DataError(f"{place} has {len(train)} images for training and {len(validation)} for validation; {_WAY_OUT}.")
    data = ImageFolder(train, options)
    calibration, note = calibration_from(data)
    return Data(
        train=data, calibration=calibration, validation=ImageFolder(validation, options), name=f"images:{folder}", notes=(*notes, note)
    )


def read_image(path: Path, options: ImageOptions) -> Tensor:
    """Decode one image. Shapes: (3, size, size) float32. Raises DataError naming the file when it cannot be decoded."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"the image {path} cannot be decoded ({error}); replace or remove it.") from error
    scale = options.shorter_side / min(image.size)
    width, height = (max(options.size, round(side * scale)) for side in image.size)
    left, top = (width - options.size) // 2, (height - options.size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + options.size, top + options.size))
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1).div_(255)
    mean, std = torch.tensor(options.mean).view(3, 1, 1), torch.tensor(options.std).view(3, 1, 1)
    return ((pixels - mean) / std).contiguous()


def _subfolder(place: Path, names: tuple[str, ...]) -> Path | None:
    return next((place / name for name in names if (place / name).is_dir()), None)


def _class_names(place: Path) -> tuple[str, ...]:
    names = sorted(item.name for item in place.iterdir() if item.is_dir() and not item.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{place} has {len(names)} class folders, a classifier needs at least 2; {_WAY_OUT}.")
    return tuple(names)


def _samples(place: Path, names: tuple[str, ...]) -> Samples:
    for found in _class_names(place):
        if found not in names:
            raise DataError(f"the class folder {place / found} has no counterpart in the training set; {_WAY_OUT}.")
    samples = []
    for label, name in enumerate(names):
        files = (path for path in sorted((place / name).rglob("*")) if path.suffix.lower() in SUFFIXES)
        samples += [(path, label) for path in files if not path.name.startswith(".") and path.is_file()]
    return tuple(samples)


def _split(samples: Samples) -> tuple[Samples, Samples]:
    """Training and validation samples: the fifth, tenth, ... of each class is for validation, at least its last one."""
    counts: dict[int, int] = {}
    for _, label in samples:
        counts[label] = counts.get(label, 0) + 1
    seen: dict[int, int] = {}
    train: list[tuple[Path, int]] = []
    validation: list[tuple[Path, int]] = []
    for sample in samples:
        label = sample[1]
        seen[label] = seen.get(label, 0) + 1
        few = counts[label] < 5 and seen[label] == counts[label] > 1
        (validation if few or seen[label] % 5 == 0 else train).append(sample)
    return tuple(train), tuple(validation)


def _three(key: str, value: Option) -> tuple[float, float, float]:
    try:
        numbers = [float(part) for part in str(value).split("/")]
    except ValueError:
        numbers = []
    match numbers:
        case [one]:
            return one, one, one
        case [red, green, blue]:
            return red, green, blue
    raise ConfigError(f"images {key}", value, "one number, or three joined by '/'")
