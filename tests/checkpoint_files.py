"""Checkpoints for tests: small sharded ones, and large ones written quickly."""

import json
import struct

import torch
from safetensors.torch import save_file

INDEX = "model.safetensors.index.json"
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I64": 8, "BOOL": 1}


def sharded(folder, *shards):
    """Write shards, each a dict of tensors, and their index; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def language_model(folder, *, layers=2, width=48, seed=0):
    """A small decoder's tensors over `layers` + 1 shards, in three float types."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, generator=random).to(dtype)

    first = {"model.embed_tokens.weight": normal(100, width), "model.norm.weight": torch.ones(width)}
    blocks = [
        {
            f"model.layers.{layer}.attn.weight": normal(width, width),
            f"model.layers.{layer}.up.weight": normal(3 * width + 1, width, dtype=torch.float16),
            f"model.layers.{layer}.down.weight": normal(width, 3 * width + 1, dtype=torch.float32),
            f"model.layers.{layer}.up.bias": normal(3 * width + 1, dtype=torch.float16),
            f"model.layers.{layer}.steps": torch.tensor(layer),
        }
        for layer in range(layers)
    ]
    return sharded(folder, first, *blocks)


def raw_file(path, header, data=b""):
    """A safetensors file with any header, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def repeated(path, shapes, *, seed=0):
    """A large file of BF16 tensors in no time: a megabyte of normal numbers, over and over."""
    pattern = torch.randn(1 << 19, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    header, end = {}, 0
    for name, (rows, columns) in shapes.items():
        header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [end, end + 2 * rows * columns]}
        end += 2 * rows * columns
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(end // len(pattern)):
            file.write(pattern)
        file.write(pattern[: end % len(pattern)])
    return path


def contents(folder):
    """Every file of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
