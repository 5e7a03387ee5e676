import json

import pytest

from gossamer.errors import ConfigError
from gossamer.train.recipe import Recipe


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("learning_rate", 0, "a positive number"),
        ("learning_rate", -0.1, "a positive number"),
        ("learning_rate", float("nan"), "a positive number"),
        ("learning_rate", "fast", "a positive number"),
        ("learning_rate", True, "a positive number"),
        ("max_gradient_norm", 0.0, "a positive number"),
        ("temperature", float("inf"), "a positive number"),
        ("momentum", 1.0, r"a number in \[0, 1\)"),
        ("weight_decay", -1e-4, "0 or a positive number"),
        ("warmup", 1.0, r"a share in \[0, 1\)"),
        ("alpha", 1.5, r"a share in \[0, 1\]"),
        ("batch_size", 0, "a whole number, at least 1"),
        ("batch_size", 2.0, "a whole number, at least 1"),
        ("optimizer", "adam", "one of sgd, adamw"),
        ("mixed_precision", "fp8", "one of no, bf16, fp16"),
        ("loss", "mse", "a function"),
        ("penalty", "lasso", "a penalty such as GroupLasso"),
        ("quantizer_learning_rate", 0.0, "a positive number"),
        ("quantizer_learning_rate", "fast", "a positive number"),
        ("freeze_batch_norm_after", 1.1, r"a share in \[0, 1\]"),
        ("feature_weight", -1.0, "0 or a positive number"),
        ("feature_weight", 1.0, "positive together with features, 0 without them"),
        ("features", "layer1", "a tuple of names"),
        ("features", (1,), "a tuple of names"),
    ],
)
def test_settings_outside_their_rule(setting, value, rule):
    with pytest.raises(ConfigError, match=rf"Recipe\.{setting} must be {rule}"):
        Recipe(**{setting: value})


def test_quantizers_do_not_learn_in_fp16():
    with pytest.raises(ConfigError, match=r"Recipe\.mixed_precision must be 'no' or 'bf16' where quantizers learn; got 'fp16'"):
        Recipe(mixed_precision="fp16", quantizer_learning_rate=0.01)


def test_limits_are_allowed():
    assert Recipe(momentum=0, weight_decay=0, warmup=0, alpha=0).momentum == 0
    assert Recipe(alpha=1, momentum=0.99, learning_rate=1).alpha == 1


def half_squared_error(outputs, target):
    return 0.5 * (outputs - target).square().mean()


def test_json_names_the_loss():
    plain = json.loads(json.dumps(Recipe(loss=half_squared_error, alpha=0.7).to_json()))
    assert plain["loss"].endswith("half_squared_error")
    assert plain["alpha"] == 0.7
    assert Recipe().to_json()["loss"] is None
    both = Recipe(features=("a", "b"), feature_weight=1.0).to_json()
    assert json.loads(json.dumps(both)) == both
