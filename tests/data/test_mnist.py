"""IDX reading: what is written comes back; damaged files give one sentence."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gossamer.data.mnist import EMBEDDED, mnist, read_idx
from gossamer.errors import FileError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def folder_of(place: Path, count: int = 12, *, dots: bool = False, zipped: bool = False) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for prefix in ("train", "t10k"):
        for kind, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels)):
            name = f"{prefix}-{kind.replace('-', '.', 1) if dots else kind}" + (".gz" if zipped else "")
            (place / name).write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return place


@settings(max_examples=30, deadline=None)
@given(array=arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, max_side=5)), zipped=st.booleans())
def test_what_is_written_is_read(array, zipped, tmp_path_factory):
    path = tmp_path_factory.mktemp("idx") / "values"
    path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    assert np.array_equal(read_idx(path), array)


def test_embedded_digits_are_balanced_and_apart():
    data = mnist()
    (train, train_labels), (validation, labels) = data.train, data.validation
    assert train.shape == (4000, 1, 28, 28)
    assert validation.shape == (1000, 1, 28, 28)
    assert torch.bincount(train_labels).tolist() == [400] * 10
    assert torch.bincount(labels).tolist() == [100] * 10
    assert train.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert (train.min(), train.max()) == (0, 1)
    seen = {image.numpy().tobytes() for image in train}
    assert not any(image.numpy().tobytes() in seen for image in validation)
    assert len(data.calibration[0]) == 512


def test_embedded_digits_look_like_digits():
    """A class mean of the training digits names most validation digits: images and labels belong together."""
    data = mnist()
    means = torch.stack([data.train[0][data.train[1] == digit].mean(0).flatten() for digit in range(10)])
    guess = torch.cdist(data.validation[0].flatten(1), means).argmin(1)
    assert (guess == data.validation[1]).float().mean() > 0.75


@pytest.mark.parametrize("dots", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_standard_file_names(tmp_path, dots, zipped):
    data = mnist(folder_of(tmp_path, dots=dots, zipped=zipped))
    assert data.train[0].shape == (12, 1, 28, 28)
    assert data.validation[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.name == f"mnist:{tmp_path}"


def test_embedded_folder_can_be_named():
    assert torch.equal(mnist(EMBEDDED).train[0], mnist().train[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"PK\3\4 a zip file", "no IDX file of bytes"),
        (b"\0\0\x08\x03\0\0", "ends inside its header"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 3, 28, 28) + bytes(100), "is cut off: 100 of 2352 bytes"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 1, 2, 2) + bytes(5), "goes on after its last value"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + bytes(100), "its header is damaged"),
        (b"\0\0\x0d\x01" + struct.pack(">I", 1) + bytes(4), "no IDX file of bytes"),
        (gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 3) + bytes(3), mtime=0)[:-9], "damaged gzip file"),
        (b"\x1f\x8b" + b"nonsense" * 9, "damaged gzip file"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    path = folder_of(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        mnist(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_truncated_gzip_anywhere(tmp_path, cut):
    whole = gzip.compress(idx(np.arange(200, dtype=np.uint8)))
    path = tmp_path / "labels"
    path.write_bytes(whole[:cut])
    with pytest.raises(FileError):
        read_idx(path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-images-idx3-ubyte", np.zeros((12, 32, 32), np.uint8), r"shape \(12, 32, 32\), not \(count, 28, 28\)"),
        ("train-labels-idx1-ubyte", np.zeros(11, np.uint8), r"labels of shape \(11,\) for 12 images"),
        ("t10k-labels-idx1-ubyte", np.full(12, 10, np.uint8), "holds the label 10, not a digit"),
    ],
)
def test_files_that_do_not_fit(tmp_path, name, array, message):
    (folder_of(tmp_path) / name).write_bytes(idx(array))
    with pytest.raises(FileError, match=message):
        mnist(tmp_path)


def test_empty_set(tmp_path):
    folder_of(tmp_path, count=0)
    with pytest.raises(FileError, match="holds no label"):
        mnist(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(FileError, match=r"has no file train-images-idx3-ubyte \(or \.gz\)"):
        mnist(tmp_path)
    with pytest.raises(FileError, match="is no folder"):
        mnist(tmp_path / "nowhere")
    (folder_of(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileError, match="has no file t10k-labels-idx1-ubyte"):
        mnist(tmp_path)


def test_unreadable_file(tmp_path):
    with pytest.raises(FileError, match="cannot be read"):
        read_idx(tmp_path)
