"""Image folders: layout, decoding, and messages that name the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gossamer.batches import as_batches
from gossamer.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageOptions, images, read_image
from gossamer.errors import ConfigError, DataError, FileError

SMALL = ImageOptions(size=8, resize=8)


def write(path: Path, color: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


@pytest.fixture
def one_set(tmp_path):
    for name in ("cat", "dog"):
        for number in range(10):
            write(tmp_path / name / f"{number}.png")
    return tmp_path


def test_plain_color_comes_out_normalized(tmp_path):
    path = write(tmp_path / "a.png", (255, 128, 0), (40, 30))
    value = read_image(path, ImageOptions(size=16))
    want = (torch.tensor([1, 128 / 255, 0]) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert value.shape == (3, 16, 16)
    assert torch.allclose(value, want.view(3, 1, 1).expand(3, 16, 16), atol=1e-6)


def test_image_of_the_right_size_is_untouched(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    value = read_image(tmp_path / "a.png", ImageOptions(size=9, resize=9, mean=(0, 0, 0), std=(1, 1, 1)))
    assert torch.equal(value.permute(1, 2, 0), torch.from_numpy(pixels.astype(np.float32)) / 255)


def test_crop_is_at_the_centre(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", ImageOptions(size=10, resize=10, mean=(0, 0, 0), std=(1, 1, 1))).min() == 1


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_other_modes_become_rgb(tmp_path, mode):
    Image.new(mode, (20, 9)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", SMALL).shape == (3, 8, 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_odd_sizes(tmp_path, size):
    assert read_image(write(tmp_path / "a.png", size=size), SMALL).shape == (3, 8, 8)


def test_one_set_is_split_by_class_and_always_the_same_way(one_set):
    data = images(one_set, SMALL)
    names = [path.parent.name + path.name for path, _ in data.validation.samples]
    assert names == ["cat4.png", "cat9.png", "dog4.png", "dog9.png"]
    assert len(data.train) == 16
    assert {label for _, label in data.train.samples} == {0, 1}
    assert images(one_set, SMALL).validation.samples == data.validation.samples
    assert "every fifth image of each class (4 of 20)" in data.notes[0]
    inputs, target = as_batches(data.validation, what="validation").first()
    assert inputs[0].shape == (4, 3, 8, 8)
    assert target.tolist() == [0, 0, 1, 1]


def test_two_images_a_class_give_one_to_each_side(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "1.jpg")
        write(tmp_path / name / "2.jpg")
    data = images(tmp_path, SMALL)
    assert len(data.train) == len(data.validation) == 2


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("train", "validation"), ("training", "test")])
def test_train_and_validation_folders(tmp_path, train, val):
    for place, count in ((train, 3), (val, 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                write(tmp_path / place / name / f"{number}.JPG")
    (tmp_path / train / "cat" / "notes.txt").write_text("not an image")
    data = images(tmp_path, SMALL)
    assert (len(data.train), len(data.validation)) == (6, 4)
    assert len(data.calibration) == 6


def test_damaged_image_is_named_when_it_is_read(one_set):
    good = (one_set / "cat" / "4.png").read_bytes()
    data = images(one_set, SMALL)
    for content in (good[: len(good) // 2], b"", b"no image at all"):
        (one_set / "cat" / "4.png").write_bytes(content)
        with pytest.raises(DataError, match=r"cat/4\.png cannot be decoded .*replace or remove it"):
            list(as_batches(data.validation, what="validation"))


def test_every_truncation_of_an_image_is_a_data_error(tmp_path):
    for suffix in ("png", "jpg", "gif", "bmp"):
        whole = write(tmp_path / f"a.{suffix}", size=(64, 64)).read_bytes()
        for cut in range(0, len(whole) // 2, max(1, len(whole) // 20)):
            path = tmp_path / f"cut.{suffix}"
            path.write_bytes(whole[:cut])
            with pytest.raises(DataError, match="cannot be decoded"):
                read_image(path, SMALL)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(FileError, match="is no folder"):
        images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has 0 class folders"):
        images(tmp_path)
    write(tmp_path / "cat" / "a.png")
    with pytest.raises(DataError, match="has 1 class folders, a classifier needs at least 2"):
        images(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match="1 images for training and 0 for validation"):
        images(tmp_path)


def test_validation_class_unknown_to_training(tmp_path):
    for place in ("train/a", "train/b", "val/a", "val/c"):
        write(tmp_path / place / "1.png")
    with pytest.raises(DataError, match=r"val/c has no counterpart in the training set"):
        images(tmp_path)


def test_options():
    options = ImageOptions.from_options({"size": 160, "mean": 0.5, "std": "0.1/0.2/0.3"})
    assert (options.size, options.shorter_side) == (160, 183)
    assert (options.mean, options.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": 3}, "did you mean 'size'"),
        ({"size": 0}, "images size must be"),
        ({"size": 0.5}, "images size must be"),
        ({"size": 64, "resize": 32}, r"images resize must be .* at least size \(64\)"),
        ({"std": 0}, "images std must be positive"),
        ({"mean": "a"}, "images mean must be one number"),
        ({"mean": "1/2"}, "or three joined by"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(ConfigError, match=message):
        ImageOptions.from_options(options)
