"""Training through the rounding within compress: tried where planned codes lose too much, told, kept where better, resumable."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.data.mnist import mnist
from gossamer.errors import ConfigError, TrainingError
from gossamer.pipeline.quantized_training import Qat, QatOutcome, default_recipe

LIMIT = 14.0  # points: 2-bit weights and 4-bit values of so small a network lose about 21 as planned, 6 trained


@pytest.fixture(scope="module")
def digits():
    """Digits of 14 by 14 pixels."""

    def halved(part):
        return torch.as_tensor(np.asarray(part[0]))[:, :, ::2, ::2].contiguous(), torch.as_tensor(np.asarray(part[1]))

    data = mnist()
    return {"train": halved(data.train), "validation": halved(data.validation)}


@pytest.fixture(scope="module")
def program(digits):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip
    start = gs.capture(net, digits["train"][0][:2])
    return gs.fit(start, digits["train"], epochs=2, recipe=gs.Recipe(learning_rate=0.1))


def settings(**others):
    return gs.Settings(**{"weights": "int2", "activations": "uint4", "trials": 1, "batch": 8, "qat": Qat(epochs=2)} | others)


@pytest.fixture(scope="module")
def result(program, digits, tmp_path_factory):
    return gs.compress(
        program, digits, budget=gs.Budget(max_drop_points=LIMIT), settings=settings(), work_dir=tmp_path_factory.mktemp("work")
    )


def test_training_meets_a_budget_that_planned_codes_miss(result, program, digits):
    outcome = result.best.qat
    assert outcome.planned_drop_points > LIMIT >= result.report.drop_points == outcome.trained_drop_points
    assert result.budget_met
    assert result.report.parity.max_steps == 0
    planned = result.best.planned  # what the plan alone leads to, measured here
    plain, kept = (
        (gs.simulate(p, digits["validation"][0]).argmax(1) == digits["validation"][1]).double().mean() for p in (planned, result.program)
    )
    assert float(kept - plain) * 100 == pytest.approx(outcome.planned_drop_points - outcome.trained_drop_points, abs=0.11)
    assert any(result.program.quantizers[name] != quantizer for name, quantizer in planned.quantizers.items())  # scales learned


def test_the_report_says_so(result, tmp_path):
    sentence = result.best.qat.sentence
    assert sentence[1:] in result.statement
    folder = result.save(tmp_path / "out")
    assert "quantization-aware training" in (folder / "report.html").read_text()
    (candidate,) = json.loads((folder / "report.json").read_text())["candidates"]
    assert candidate["name"] == "quantized only, codes trained"
    assert candidate["qat"] == result.best.qat.to_json()


class Interrupt(Exception):
    pass


def test_an_interrupted_training_goes_on_with_the_same_result(result, program, digits, tmp_path):
    budget = gs.Budget(max_drop_points=LIMIT)

    def stop(progress):
        if progress.stage == "train" and progress.done > 70:  # in the second epoch
            raise Interrupt

    with pytest.raises(Interrupt):
        gs.compress(program, digits, budget=budget, settings=settings(), work_dir=tmp_path, on_progress=stop)
    stages = []
    resumed = gs.compress(
        program, digits, budget=budget, settings=settings(), work_dir=tmp_path, on_progress=lambda progress: stages.append(progress)
    )
    assert min(progress.done for progress in stages if progress.stage == "train") > 60  # the first epoch was not run again
    assert resumed.artifact.path.read_bytes() == result.artifact.path.read_bytes()


def small_data(count=48):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 4, 8, 8, generator=generator)
    target = small_network()(inputs).argmax(1).detach()  # what the float network says is right
    return {"train": (inputs, target), "validation": (inputs, target)}


def small_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    return gs.capture(net.eval(), torch.zeros(2, 4, 8, 8))


LOSING = gs.Budget(max_drop_points=0)


@pytest.mark.parametrize(
    ("qat", "budget", "train"),
    [
        (Qat(), gs.Budget(max_drop_points=100), True),  # planned codes are good enough
        (Qat(), None, True),  # nothing says what is good enough
        (Qat(when="never"), LOSING, True),
        (Qat(), LOSING, False),  # nothing to train with
    ],
)
def test_it_is_not_tried_where_it_is_not_due(qat, budget, train, tmp_path):
    data = small_data()
    if not train:
        data = {"calibration": data["train"][0], "validation": data["validation"]}
    result = gs.compress(small_network(), data, budget=budget, settings=settings(weights="int2", qat=qat), work_dir=tmp_path)
    assert result.best.qat is None
    assert "quantization-aware" not in result.statement


def test_a_finished_run_with_a_new_budget_trains_where_it_is_missed(tmp_path):
    network, data = small_network(), small_data()
    kinds = {"settings": settings(weights="int2", activations="uint2", qat=Qat(epochs=1)), "work_dir": tmp_path}
    first = gs.compress(network, data, budget=gs.Budget(max_drop_points=100), **kinds)
    assert first.best.qat is None
    assert first.report.drop_points > 0
    second = gs.compress(network, data, budget=LOSING, **kinds)
    assert second.best.qat.planned_drop_points == first.report.drop_points


def log_likelihood(outputs, target):
    return -float(nn.functional.cross_entropy(outputs, target))


def test_masks_stay(tmp_path):
    network, data = small_network(), small_data()
    sparse = gs.apply(network, gs.plan_sparsity(network, 0.5))
    wanted = settings(weights="int2", activations="uint2", qat=Qat(when="always", epochs=8))
    result = gs.compress(sparse, data, metric=log_likelihood, settings=wanted, work_dir=tmp_path)
    assert result.best.qat.kept
    for name, mask in sparse.masks.items():
        assert not result.program.state[name][~mask].any()


def test_what_cannot_be_trained_is_told_or_raised(tmp_path):
    network, data = small_network(), small_data()
    wild = gs.Recipe(learning_rate=1e30, max_gradient_norm=1e30)
    kinds = {"weights": "int2", "activations": "uint2"}
    result = gs.compress(network, data, budget=LOSING, settings=settings(**kinds, qat=Qat(recipe=wild)), work_dir=tmp_path / "a")
    assert "quantization-aware training was not possible" in result.statement.lower()
    assert not result.best.qat.kept
    with pytest.raises(TrainingError, match="smaller learning_rate"):
        gs.compress(network, data, settings=settings(**kinds, qat=Qat(when="always", recipe=wild)), work_dir=tmp_path / "b")


def test_bad_settings():
    with pytest.raises(ConfigError, match=r"Qat.when must be one of auto, always, never; got 'often'"):
        Qat(when="often")
    with pytest.raises(ConfigError, match=r"Qat.epochs must be a whole number, at least 1; got 0"):
        Qat(epochs=0)
    samples = small_data()["train"]
    with pytest.raises(ConfigError, match=r"Qat.when must be 'auto' or 'never' without training data; got 'always'"):
        gs.compress(small_network(), {"calibration": samples[0], "validation": samples}, settings=settings(qat=Qat(when="always")))


def test_settings_and_outcomes_are_plain_data():
    assert json.loads(json.dumps(settings().to_json()))["qat"] == {"when": "auto", "epochs": 2, "recipe": None}
    outcome = QatOutcome(epochs=2, planned_drop_points=3.0, trained_drop_points=1.0, kept=True)
    assert QatOutcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
    assert outcome.sentence == "with planned codes the file loses 3.00 points, after 2 epochs 1.00 of quantization-aware training."


def test_scales_of_few_bits_learn_faster():
    network, data = small_network(), small_data()["train"][0]
    rates = [
        default_recipe(gs.apply(network, gs.plan_quantization(network, data, weights=weights))).quantizer_learning_rate
        for weights in ("int4", "int8")
    ]
    assert rates[0] > rates[1]
