"""Which tensors get codes, and why the others do not."""

import pytest

from gossamer.checkpoints.settings import CodeSettings, choose_coded, parts_of
from gossamer.checkpoints.tensor_file import BITS, StoredTensor
from gossamer.errors import ConfigError


def tensors(**shapes):
    found = {}
    for name, (dtype, *shape) in shapes.items():
        size = BITS[dtype] // 8
        for length in shape:
            size *= length
        found[name] = StoredTensor(name, dtype, tuple(shape), 0, size)
    return found


MODEL = tensors(
    **{
        "model.embed_tokens.weight": ("BF16", 100, 64),
        "transformer.wte.weight": ("BF16", 100, 64),
        "bert.embeddings.position_embeddings.weight": ("F32", 100, 64),
        "model.layers.0.mlp.up.weight": ("BF16", 96, 64),
        "model.layers.0.experts": ("BF16", 4, 96, 64),
        "model.layers.0.norm.weight": ("BF16", 64),
        "model.mask": ("BOOL", 64, 64),
        "model.thin": ("F16", 64, 1),
        "model.remembered.weight": ("F16", 64, 64),
        "time_embedding.linear_1.weight": ("F16", 64, 64),
        "visual.pos_embed": ("F16", 64, 64),
        "shared.weight": ("F16", 64, 64),
        "lm_head.weight": ("F32", 100, 64),
    }
)


def coded(**given):
    return sorted(name for name, reason in choose_coded(MODEL, CodeSettings(**given)).items() if not reason)


def test_weights_of_products_get_codes_the_rest_says_why():
    assert coded() == ["lm_head.weight", "model.layers.0.mlp.up.weight", "model.remembered.weight", "time_embedding.linear_1.weight"]
    reasons = choose_coded(MODEL, CodeSettings())
    for name, words in {
        "model.embed_tokens.weight": "an embedding: its rows are looked up",
        "transformer.wte.weight": "an embedding",
        "visual.pos_embed": "an embedding",
        "shared.weight": "an embedding",
        "bert.embeddings.position_embeddings.weight": "an embedding",
        "model.layers.0.experts": "has 3 axes: which of them is summed over is not known; name it in `only`",
        "model.layers.0.norm.weight": "a bias, a norm or a number",
        "model.mask": "stored as BOOL, no float of 16 or 32 bits",
        "model.thin": "its codes and scales would take no fewer bytes",
    }.items():
        assert reasons[name].startswith(words)


def test_patterns_name_tensors_or_their_modules():
    assert coded(skip=("lm_head", "*.up.weight", "time*")) == ["model.remembered.weight"]
    assert choose_coded(MODEL, CodeSettings(skip=("lm_head",)))["lm_head.weight"] == "skipped as asked (lm_head)"
    assert coded(only=("*.embed_tokens", "*.experts")) == ["model.embed_tokens.weight", "model.layers.0.experts"]
    assert choose_coded(MODEL, CodeSettings(only=("*.experts",)))["lm_head.weight"] == "not among those asked for"
    assert coded(only=("model.*",), skip=("*.experts", "*embed*")) == ["model.layers.0.mlp.up.weight", "model.remembered.weight"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"skip": ("lm_heed.weight",)}, "skip must be the name of a tensor or a pattern that matches one .did you mean 'lm_head.weight'"),
        ({"only": ("nothing*",)}, "only must be the name of a tensor or a pattern"),
        (
            {"only": ("model.mask",)},
            "only must be such that a tensor gets codes, but all 13 stay as they are .model.embed_tokens.weight: not",
        ),
    ],
)
def test_patterns_that_do_nothing(given, message):
    with pytest.raises(ConfigError, match=message):
        choose_coded(MODEL, CodeSettings(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": "int16"}, "weights must be a format of at most 8 bits, such as 'int4' or 'uint3'; got 'int16'"),
        ({"weights": "four"}, "format must be intN or uintN"),
        ({"block": 0}, r"block must be in \[1, 16384\]; got 0"),
        ({"block": 20_000}, "block must be in"),
        ({"ranges": "hq"}, "weight range method must be a registered weight range method .did you mean 'hqq'"),
    ],
)
def test_settings_outside_their_rules(given, message):
    with pytest.raises(ConfigError, match=message):
        CodeSettings(**given)


def test_shapes_of_parts():
    assert [(part.suffix, part.dtype, part.shape) for part in parts_of((5, 70), CodeSettings("int3"))] == [
        ("codes", "U8", (5, 27)),
        ("scale", "F32", (5, 3)),
    ]
    assert [part.shape for part in parts_of((2, 5, 70), CodeSettings("uint4", 16))] == [(2, 5, 35), (2, 5, 5), (2, 5, 3)]
