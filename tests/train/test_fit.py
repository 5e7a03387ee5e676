"""fit: an eager loop over the user's own module, written here by hand, is the oracle, to the last bit."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from gossamer.errors import ConfigError, DataError, FileError, TrainingError
from gossamer.numerics.affine import from_range
from gossamer.numerics.formats import PerTensor, parse_format
from gossamer.program.capture import capture
from gossamer.program.program import Program
from gossamer.train.fit import fit
from gossamer.train.losses import distillation
from gossamer.train.randomness import seeded
from gossamer.train.recipe import Recipe
from gossamer.train.schedule import learning_rate_at


class Net(nn.Module):
    """A convolution, a batch norm, dropout and a classifier on (batch, 1, 6, 6)."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.drop(torch.flatten(F.relu_(self.norm(self.conv(x))), 1)))


def data(count=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 6, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def batches(count=40, size=8):
    inputs, target = data(count)
    return list(zip(inputs.split(size), target.split(size), strict=True))


@pytest.fixture(scope="module")
def program():
    with torch.random.fork_rng():
        return capture(Net(), torch.zeros(2, 1, 6, 6))


@pytest.fixture(scope="module")
def teacher():
    with torch.random.fork_rng():
        return capture(Net(seed=9), torch.zeros(2, 1, 6, 6))


def same(left: nn.Module, right: nn.Module) -> bool:
    mine, other = left.state_dict(), right.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def make_optimizer(module, recipe):
    groups = [
        {"params": [p for p in module.parameters() if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in module.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=1.0)
    return torch.optim.SGD(groups, lr=1.0, momentum=recipe.momentum, nesterov=True)


def eager_loop(module, source, recipe, loss, *, epochs, seed=0):
    """What a careful user would write."""
    module = copy.deepcopy(module).train()
    optimizer = make_optimizer(module, recipe)
    step, total = 0, epochs * len(source)
    for epoch in range(epochs):
        with seeded(seed, epoch, device=torch.device("cpu")):
            for inputs, target in source:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate_at(step, total, peak=recipe.learning_rate, warmup=recipe.warmup)
                value = loss(module(inputs), inputs, target)
                optimizer.zero_grad()
                value.backward()
                nn.utils.clip_grad_norm_(module.parameters(), recipe.max_gradient_norm)
                optimizer.step()
                step += 1
    return module


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(optimizer="adamw", learning_rate=1e-3, max_gradient_norm=0.3, warmup=0.3)])
def test_equals_an_eager_loop_on_the_users_module(program, recipe):
    trained = fit(program, batches(), epochs=2, recipe=recipe, seed=5)
    expected = eager_loop(Net(), batches(), recipe, lambda outputs, _, target: F.cross_entropy(outputs, target), epochs=2, seed=5)
    state = expected.state_dict()
    assert set(trained.state_dict()) == set(state) - {"norm.num_batches_tracked"}
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("with_targets", [True, False])
def test_distillation_equals_an_eager_loop(program, teacher, with_targets):
    recipe = Recipe(alpha=0.7, temperature=3.0)
    guide = Net(seed=9).eval()

    def loss(outputs, inputs, target):
        with torch.no_grad():
            taught = guide(inputs)
        imitate = distillation(outputs, taught, 3.0)
        return (1 - 0.7) * F.cross_entropy(outputs, target) + 0.7 * imitate if with_targets else imitate

    source = batches() if with_targets else [inputs for inputs, _ in batches()]
    trained = fit(program, source, teacher=teacher, epochs=1, recipe=recipe)
    state = eager_loop(Net(), batches(), recipe, loss, epochs=1).state_dict()
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert same(trained, fit(program, source, teacher=guide, epochs=1, recipe=recipe))  # any module can teach


def test_arguments_and_random_state_stay_as_they_are(program, teacher):
    calls = []
    subject = program.copy()
    handle = subject.register_forward_hook(lambda *_: calls.append(1))
    teacher.train()
    parameters = {name: (id(p), p.clone(), p.requires_grad, p.grad) for name, p in subject.named_parameters()}
    buffers = {name: b.clone() for name, b in [*subject.named_buffers(), *teacher.named_buffers()]}
    random_state = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    inputs, target = data()
    kept = inputs.clone(), target.clone()
    trained = fit(subject, (inputs, target), teacher=teacher, epochs=1)
    assert isinstance(trained, Program)
    assert not trained.training and teacher.training and not calls
    assert all(p.grad is None and p.requires_grad for p in trained.parameters())
    for name, p in subject.named_parameters():
        identity, before, requires_grad, grad = parameters[name]
        assert id(p) == identity and torch.equal(p, before) and p.requires_grad == requires_grad and p.grad is grad
    for name, b in [*subject.named_buffers(), *teacher.named_buffers()]:
        assert torch.equal(b, buffers[name])
    assert all(p.requires_grad for p in teacher.parameters())
    assert torch.equal(inputs, kept[0]) and torch.equal(target, kept[1])
    assert torch.equal(torch.get_rng_state(), random_state[0])
    assert (str(np.random.get_state()), random.getstate()) == random_state[1:]
    assert not same(trained, subject)
    handle.remove()
    teacher.eval()
    subject.train()
    assert fit(subject, batches(8), epochs=1).training


def test_same_seed_same_bits_and_other_seed_other_order(program):
    first = fit(program, data(), epochs=1, seed=3)
    torch.manual_seed(99)
    assert same(first, fit(program, data(), epochs=1, seed=3))
    assert not same(first, fit(program, data(), epochs=1, seed=4))


def test_all_forms_of_the_same_data_train_alike(program):
    inputs, target = data(64)
    dataset = TensorDataset(inputs, target)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(dataset)

    shuffled = fit(program, (inputs, target), epochs=1)
    assert same(shuffled, fit(program, (inputs.numpy(), target.numpy()), epochs=1))
    assert same(shuffled, fit(program, dataset, epochs=1))
    assert same(shuffled, fit(program, DataLoader(dataset, batch_size=64, shuffle=True), epochs=1))
    ordered = fit(program, DataLoader(dataset, batch_size=16), epochs=1)
    assert same(ordered, fit(program, DataLoader(Stream(), batch_size=16), epochs=1))
    listed = fit(program, list(zip(inputs.split(16), target.split(16), strict=True)), epochs=1)
    assert same(listed, fit(program, ([a, b] for a, b in zip(inputs.split(16), target.split(16), strict=True)), epochs=1))


class Interrupted(Exception):
    """Stands for a power cut."""


def interrupt_at(stop):
    def on_progress(progress):
        if progress.done == stop:
            raise Interrupted

    return on_progress


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(optimizer="adamw", learning_rate=1e-3)])
def test_interrupted_and_resumed_equals_uninterrupted(program, teacher, recipe, tmp_path):
    settings = {"teacher": teacher, "epochs": 3, "recipe": recipe, "seed": 2}
    inputs, target = data(200)
    whole = fit(program, (inputs, target), **settings)  # 4 batches an epoch
    path = tmp_path / "folder" / "fit.safetensors"
    for stop in (2, 6, 12):
        with pytest.raises(Interrupted):
            fit(program, (inputs, target), checkpoint=path, on_progress=interrupt_at(stop), **settings)
        torch.manual_seed(stop)  # the global state plays no part
    seen = []
    resumed = fit(program, (inputs, target), checkpoint=path, on_progress=seen.append, **settings)
    assert same(whole, resumed)
    assert [progress.done for progress in seen] == [9, 10, 11, 12]
    seen.clear()
    assert same(whole, fit(program, (inputs, target), checkpoint=str(path), on_progress=seen.append, **settings))
    assert not seen
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_resumes_a_loader_with_its_own_generator(program, tmp_path):
    def loader():
        return DataLoader(TensorDataset(*data(32)), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(4))

    whole = fit(program, loader(), epochs=2)
    with pytest.raises(Interrupted):
        fit(program, loader(), epochs=2, checkpoint=tmp_path / "c", on_progress=interrupt_at(5))
    assert same(whole, fit(program, loader(), epochs=2, checkpoint=tmp_path / "c"))


def test_a_checkpoint_of_another_run_is_refused_and_left_alone(program, teacher, tmp_path):
    path = tmp_path / "fit.safetensors"
    fit(program, batches(), epochs=1, checkpoint=path)
    content = path.read_bytes()
    other = program.copy()
    with torch.no_grad():
        other.get_parameter("head.bias").add_(1)
    runs = {
        "epochs is 1 there, 2 here": lambda: fit(program, batches(), epochs=2, checkpoint=path),
        "seed is 0 there, 1 here": lambda: fit(program, batches(), epochs=1, seed=1, checkpoint=path),
        "batches is 5 there, 4 here": lambda: fit(program, batches(32), epochs=1, checkpoint=path),
        "recipe.learning_rate is 0.01": lambda: fit(program, batches(), epochs=1, recipe=Recipe(learning_rate=0.02), checkpoint=path),
        "teacher is None there": lambda: fit(program, batches(), epochs=1, teacher=teacher, checkpoint=path),
        "weights is ": lambda: fit(other, batches(), epochs=1, checkpoint=path),
    }
    for message, run in runs.items():
        with pytest.raises(FileError, match=f"belongs to another training run .{message}"):
            run()
    assert path.read_bytes() == content


def test_learns(program):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (600,), generator=generator)
    inputs = torch.randn(600, 1, 6, 6, generator=generator) * 0.5
    for label in range(3):
        inputs[target == label, 0, :, 2 * label : 2 * label + 2] += 1.0
    assert (program(inputs).argmax(1) == target).float().mean() < 0.6
    trained = fit(program, (inputs, target), epochs=4, recipe=Recipe(learning_rate=0.05))
    assert (trained(inputs).argmax(1) == target).float().mean() > 0.97


def test_progress_counts_steps_and_shows_the_loss(program):
    seen = []
    fit(program, batches(), epochs=2, on_progress=seen.append)
    assert [(progress.stage, progress.done, progress.total) for progress in seen] == [("train", n, 10) for n in range(1, 11)]
    assert seen[0].note.startswith("epoch 1 of 2, loss ")
    assert seen[9].note.startswith("epoch 2 of 2, loss ")
    assert 0 < float(seen[9].note.split()[-1]) < 5


def test_weight_decay_spares_biases_and_norms(program):
    recipe = Recipe(loss=lambda outputs, target: outputs.sum() * 0.0, weight_decay=0.1, learning_rate=0.5, momentum=0, warmup=0)
    before, after = program.state_dict(), fit(program, batches(8), epochs=1, recipe=recipe).state_dict()
    for name in ("conv.weight", "head.weight"):
        torch.testing.assert_close(after[name], before[name] * (1 - 0.5 * 0.1))
    for name in ("conv.bias", "head.bias", "norm.weight", "norm.bias"):
        assert torch.equal(after[name], before[name])


def test_gradients_are_clipped_to_the_norm(program):
    recipe = Recipe(loss=lambda outputs, target: outputs.square().sum() * 1e4, weight_decay=0, momentum=0, warmup=0, max_gradient_norm=0.5)
    before = dict(program.named_parameters())
    after = dict(fit(program, batches(8), epochs=1, recipe=recipe).named_parameters())
    moved = torch.cat([(after[name] - before[name]).detach().flatten() for name in before])
    assert float(moved.norm()) == pytest.approx(0.01 * 0.5, rel=1e-3)


def test_trains_inside_blocks_without_gradients(program):
    source = batches()
    expected = fit(program, source, epochs=1)
    with torch.no_grad():
        assert same(expected, fit(program, source, epochs=1))
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert same(expected, fit(program, source, epochs=1))


def test_own_loss_takes_any_target(program):
    inputs, _ = data(16)
    target = torch.randn(16, 3)
    trained = fit(program, [(inputs, target)], epochs=3, recipe=Recipe(loss=F.mse_loss, learning_rate=0.05))
    assert F.mse_loss(trained(inputs), target) < F.mse_loss(program(inputs), target)


def test_frozen_parameters_and_ties_stay(program):
    subject = program.copy()
    subject.get_parameter("conv.weight").requires_grad_(False)
    trained = fit(subject, batches(8), epochs=1)
    assert torch.equal(trained.get_parameter("conv.weight"), subject.get_parameter("conv.weight"))
    assert not trained.get_parameter("conv.weight").requires_grad
    assert not torch.equal(trained.get_parameter("norm.bias"), subject.get_parameter("norm.bias"))
    shared = nn.Linear(4, 4)
    tied = capture(nn.Sequential(shared, nn.ReLU(), shared), torch.zeros(2, 4))
    trained = fit(tied, [(torch.randn(8, 4), torch.randint(0, 4, (8,)))], epochs=1)
    assert len(list(trained.parameters())) == 2


def test_a_quantized_program_trains_through_its_rounding(program):
    quantizer = from_range(torch.tensor(-1.0), torch.tensor(1.0), parse_format("int8"), PerTensor(), symmetric=True)
    quantized = program.with_graph(program.graph, program.copy().state, quantizers={"head.weight": quantizer}, target="test")
    trained = fit(quantized, batches(), epochs=1)
    assert trained.quantizers == {"head.weight": quantizer}
    assert not torch.equal(trained.get_parameter("head.weight"), quantized.get_parameter("head.weight"))


def test_bf16_trains_float32_weights_and_leaves_no_state_behind(program):
    plain = fit(program, batches(), epochs=1)
    rounded = fit(program, batches(), epochs=1, recipe=Recipe(mixed_precision="bf16"))
    assert {tensor.dtype for tensor in rounded.state.values()} == {torch.float32}
    assert not same(plain, rounded)
    for name, tensor in plain.state.items():
        torch.testing.assert_close(rounded.state[name], tensor, rtol=0.1, atol=0.02)
    assert same(plain, fit(program, batches(), epochs=1))


def test_the_callers_own_accelerate_state_is_respected(program):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    theirs = Accelerator(mixed_precision="bf16")
    try:
        with pytest.raises(ConfigError, match=r"Recipe.mixed_precision must be one that can be used here .*already been initialized"):
            fit(program, batches(8), epochs=1)
        fit(program, batches(8), epochs=1, recipe=Recipe(mixed_precision="bf16"))
        assert theirs.mixed_precision == "bf16"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on a GPU")
def test_fp16_needs_a_gpu(program):
    with pytest.raises(ConfigError, match=r"Recipe.mixed_precision must be 'no' or 'bf16' on a CPU; got 'fp16'"):
        fit(program, batches(8), epochs=1, recipe=Recipe(mixed_precision="fp16"))


def test_a_last_lone_sample_is_left_out_where_batch_norm_would_see_one_value():
    norm = capture(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.zeros(2, 4))
    inputs, target = torch.randn(9, 4), torch.randint(0, 4, (9,))
    with_rest = list(zip(inputs.split(4), target.split(4), strict=True))
    seen = []
    trained = fit(norm, with_rest, epochs=1, on_progress=seen.append)
    assert all(torch.isfinite(tensor).all() for tensor in trained.state.values())
    assert [progress.done for progress in seen] == [1, 2, 3]
    for source in ([(inputs[:1], target[:1])], with_rest[::-1]):
        with pytest.raises(DataError, match="batches of one sample, which batch norm cannot learn from; use larger batches"):
            fit(norm, source, epochs=1)


def test_a_lone_sample_trains_where_it_can(program):
    before = program.get_parameter("head.weight")
    assert not torch.equal(fit(program, batches(1), epochs=1).get_parameter("head.weight"), before)


@pytest.mark.parametrize("epochs", [0, -1, 1.5, True, "2"])
def test_epochs_outside_their_rule(program, epochs):
    with pytest.raises(ConfigError, match="epochs must be a whole number, at least 1"):
        fit(program, batches(8), epochs=epochs)


def test_seed_outside_its_rule(program):
    with pytest.raises(ConfigError, match="seed must be a whole number, at least 0"):
        fit(program, batches(8), seed=-1)


def test_bad_data_is_named(program, teacher):
    inputs, target = data(8)
    broken = inputs.clone()
    broken[3, 0, 2, 2] = float("nan")
    cases = [
        ([], "the training data is empty"),
        ((inputs[:0], target[:0]), "the training data is empty"),
        (None, "the training data is missing"),
        ([(inputs, target + 1)], "training data has the label 3, but the network has 3 outputs"),
        ([(inputs, target - 1)], "training data has the label -1"),
        ([(inputs, target), (broken, target)], r"batch 1 of the training data holds NaN or infinite values \(first in sample 3\)"),
        ([(inputs, None)], "the training data has no targets; give batches of .inputs, target., or a teacher"),
        ([(inputs, target[:4])], "8 inputs and 4 targets"),
        ([(inputs[:, :, :4], target)], r"got a tensor of shape \(8, 1, 4, 6\)"),
        ([((inputs * 9).byte(), target)], "got a tensor of torch.uint8"),
    ]
    for source, message in cases:
        with pytest.raises(DataError, match=message):
            fit(program, source, epochs=1)
    with pytest.raises(DataError, match=r"its teacher \(8, 64\); distillation needs a teacher with outputs of the same shape"):
        fit(program, [inputs], teacher=nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), epochs=1)
    with pytest.raises(DataError, match="the teacher returns a tuple; training needs one tensor"):
        fit(program, [inputs], teacher=_Pair(), epochs=1)
    with pytest.raises(ConfigError, match=r"Recipe.loss must be a function that returns one number"):
        fit(program, [(inputs, target)], epochs=1, recipe=Recipe(loss=lambda outputs, target: outputs))


class _Pair(nn.Module):
    def forward(self, x):
        return x, x


def test_divergence_is_reported_with_its_place_and_keeps_the_checkpoint(program, tmp_path):
    def explode(outputs, target):
        return outputs.square().mean() * (float("inf") if int(target[0]) == 7 else 1.0)

    inputs, _ = data(8)
    source = [(inputs, torch.zeros(8)), (inputs, torch.full((8,), 7))]
    with pytest.raises(TrainingError, match=r"the loss became inf at epoch 1 of 2, batch 2 .*smaller learning_rate than 0.01"):
        fit(program, source, epochs=2, recipe=Recipe(loss=explode), checkpoint=tmp_path / "c")
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at epoch \d of 9"):
        fit(program, batches(), epochs=9, recipe=Recipe(learning_rate=1e30, max_gradient_norm=1e30, warmup=0, momentum=0))
    calls = []

    def infinite_gradient(outputs, target):
        calls.append(1)
        return (outputs * 0.0).sum().sqrt()  # 0, with gradient 0 / 0

    with pytest.raises(TrainingError, match=r"became NaN or infinite in epoch 1 of 1"):
        fit(program, batches(8), epochs=1, recipe=Recipe(loss=infinite_gradient))


def test_nothing_to_train(program):
    frozen = program.copy().requires_grad_(False)
    with pytest.raises(TrainingError, match="the network has no weight to train"):
        fit(frozen, batches(8), epochs=1)


def test_a_multi_process_launch_is_refused(program, monkeypatch):
    class Launched:
        num_processes = 2

        def __init__(self, mixed_precision):
            pass

    monkeypatch.setattr("accelerate.Accelerator", Launched)
    with pytest.raises(TrainingError, match="fit runs in a single process"):
        fit(program, batches(8), epochs=1)
