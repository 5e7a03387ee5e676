"""Reading back: rows, whole tensors, modules; and what no longer is what was written."""

import json

import pytest
import torch
from torch import nn

from checkpoint_files import INDEX, language_model, sharded
from gossamer.apply.engine import apply
from gossamer.checkpoints.compressed import load_compressed
from gossamer.checkpoints.settings import CodeSettings
from gossamer.checkpoints.stream import MANIFEST, compress_checkpoint
from gossamer.errors import ConfigError, FileError, PlanError
from gossamer.plan.scheme import BlockScheme
from gossamer.plan.weight_only import plan_weight_quantization
from gossamer.program.capture import capture


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    compress_checkpoint(language_model(folder / "in"), folder / "out", CodeSettings("uint3", 16))
    return folder / "out"


WEIGHT = "model.layers.1.up.weight"


def test_rows_are_those_of_the_whole(made):
    checkpoint = load_compressed(made)
    for name in (WEIGHT, "model.embed_tokens.weight"):
        whole = checkpoint.dequantized(name)
        for rows in (slice(0, 1), slice(7, 40), slice(-3, None), slice(5, 5), slice(9, 3), slice(90, 10_000)):
            assert torch.equal(checkpoint.dequantized(name, rows), whole[rows] if rows != slice(9, 3) else whole[:0])
    assert checkpoint.dequantized(WEIGHT).dtype == torch.float16
    assert checkpoint.dequantized(WEIGHT, dtype=torch.float64).dtype == torch.float64
    assert int(checkpoint.dequantized("model.layers.1.steps")) == 1
    assert checkpoint.dequantized("model.layers.1.steps", dtype=torch.float32).dtype == torch.float32


def test_what_cannot_be_asked_for(made):
    checkpoint = load_compressed(made)
    with pytest.raises(ConfigError, match="a tensor of the checkpoint .did you mean 'model.layers.1.up.weight'"):
        checkpoint.dequantized("model.layers.1.upp.weight")
    with pytest.raises(ConfigError, match="rows must be a slice with step 1"):
        checkpoint.dequantized(WEIGHT, slice(0, 9, 2))
    with pytest.raises(ConfigError, match="rows must be None: 'model.layers.1.steps' is one number"):
        checkpoint.dequantized("model.layers.1.steps", slice(0, 1))
    for call in (checkpoint.quantizer, checkpoint.codes):
        with pytest.raises(ConfigError, match="a tensor with codes; this one stayed float .a bias, a norm"):
            call("model.norm.weight")


def test_three_axes(tmp_path):
    experts = torch.randn(3, 8, 64)
    source = sharded(tmp_path / "in", {"experts": experts})
    compress_checkpoint(source, tmp_path / "out", CodeSettings("int8", 16, only=("experts",)))
    checkpoint = load_compressed(tmp_path / "out")
    assert checkpoint.dequantized("experts").shape == experts.shape
    assert float((checkpoint.dequantized("experts") - experts).abs().max()) < 0.05
    assert torch.equal(checkpoint.dequantized("experts", slice(1, 2)), checkpoint.dequantized("experts")[1:2])
    assert checkpoint.codes("experts").dtype == torch.int8


@pytest.mark.parametrize("weights", ["int4", "uint4", "int8"])
@pytest.mark.parametrize("ranges", ["mse", "hqq"])
def test_a_module_loaded_from_it_computes_what_the_planned_program_computes(tmp_path, weights, ranges):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 64), nn.GELU(), nn.Linear(64, 10)).eval()
    source = sharded(tmp_path / "in", dict(model[0].state_dict(prefix="0.")), dict(model[2].state_dict(prefix="2.")))
    compress_checkpoint(source, tmp_path / "out", CodeSettings(weights, 32, ranges), memory_bytes=40_000)
    inputs = torch.randn(16, 100)
    program = capture(model, inputs[:2])
    plan = plan_weight_quantization(program, weights=weights, scheme=BlockScheme(ranges=ranges), round_inputs=weights == "int8")
    planned = apply(program, plan)
    checkpoint = load_compressed(tmp_path / "out")
    assert planned.quantizers == {name: checkpoint.quantizer(name) for name in ("0.weight", "2.weight")}
    checkpoint.load_into(model)
    if weights != "int8":  # its kernel rounds inputs, too
        assert torch.equal(model(inputs), planned(inputs))


def test_modules_that_do_not_fit_stay(tmp_path):
    torch.manual_seed(0)
    compress_checkpoint(sharded(tmp_path / "in", dict(nn.Linear(64, 8).state_dict())), tmp_path / "out")
    checkpoint = load_compressed(tmp_path / "out")
    for module, message in (
        (nn.Linear(32, 8), r"'weight' has the shape \(8, 32\) in the module and \(8, 64\) in .*out; they do not fit"),
        (nn.Linear(64, 8, bias=False), "holds 'bias', which the module does not have"),
        (nn.Sequential(nn.Linear(64, 8)), "the module has '0.weight', which .* does not hold; did you mean 'weight'"),
    ):
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        with pytest.raises(PlanError, match=message):
            checkpoint.load_into(module)
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_names_of_only_one_side_are_told(tmp_path):
    torch.manual_seed(0)
    weights = {"weight": torch.randn(8, 64), "position_ids": torch.arange(5)}
    compress_checkpoint(sharded(tmp_path / "in", weights), tmp_path / "out")
    module, checkpoint = nn.Linear(64, 8), load_compressed(tmp_path / "out")
    bias = module.bias.detach().clone()
    assert checkpoint.load_into(module, strict=False) == ("bias", "position_ids")
    assert torch.equal(module.weight, checkpoint.dequantized("weight"))
    assert torch.equal(module.bias, bias)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(30, 16), nn.Linear(16, 30, bias=False)
        self.head.weight = self.tokens.weight


def test_tied_weights_may_be_held_once(tmp_path):
    compress_checkpoint(sharded(tmp_path / "in", {"tokens.weight": torch.randn(30, 16)}), tmp_path / "out", CodeSettings(only=("tokens",)))
    module, checkpoint = Tied(), load_compressed(tmp_path / "out")
    assert checkpoint.load_into(module) == ()
    assert torch.equal(module.head.weight, checkpoint.dequantized("tokens.weight"))


def changed(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(change(manifest)))


def entry_with(**fields):
    return lambda manifest: {**manifest, "tensors": {**manifest["tensors"], WEIGHT: {**manifest["tensors"][WEIGHT], **fields}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: [], "is no manifest of a compressed checkpoint"),
        (lambda manifest: {**manifest, "format": "other"}, "is no manifest"),
        (lambda manifest: {**manifest, "version": 2}, "has version 2, this one reads 1"),
        (lambda manifest: {**manifest, "weights": "int99"}, "is damaged or does not fit its files"),
        (lambda manifest: {**manifest, "block": "16"}, "is damaged or does not fit its files"),
        (lambda manifest: {**manifest, "block": 17}, "is damaged or does not fit its files"),
        (lambda manifest: {**manifest, "tensors": 3}, "is damaged or does not fit its files"),
        (entry_with(shape=[5, 5]), f"does not fit its files .'{WEIGHT}.codes'"),
        (entry_with(shape=[-1, 48]), "does not fit its files .a tensor of shape"),
        (entry_with(sha256={}), "does not fit its files .digests of"),
        (entry_with(float=None), "is damaged or does not fit its files"),
    ],
)
def test_manifests_that_do_not_fit(tmp_path, change, message):
    compress_checkpoint(language_model(tmp_path / "in"), tmp_path / "out", CodeSettings("int4", 16))
    changed(tmp_path / "out", change)
    with pytest.raises(FileError, match=message):
        load_compressed(tmp_path / "out")


def test_folders_that_hold_none(tmp_path):
    with pytest.raises(FileError, match="is no folder; name the folder that compress_checkpoint wrote"):
        load_compressed(tmp_path / "none")
    with pytest.raises(FileError, match=f"{MANIFEST}: cannot be read"):
        load_compressed(tmp_path)
    compress_checkpoint(language_model(tmp_path / "in"), tmp_path / "out")
    (tmp_path / "out" / INDEX).unlink()
    with pytest.raises(FileError, match="safetensors files without an index"):
        load_compressed(tmp_path / "out")


def test_a_changed_bit_is_found(tmp_path):
    compress_checkpoint(language_model(tmp_path / "in"), tmp_path / "out")
    path = tmp_path / "out" / "model-00002-of-00003.safetensors"
    load_compressed(tmp_path / "out").check()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileError, match="model-00002-of-00003.safetensors: holds another '.*' than was written"):
        load_compressed(tmp_path / "out").check()
