"""Networks that are one XNNPACK graph, written without ExecuTorch's passes: same results as through them, and as the network's own."""

import itertools
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import gossamer as gs
from chains import random_network
from gossamer.targets.executorch.calls import Calls, End
from gossamer.targets.executorch.direct import whole_graph
from gossamer.targets.executorch.emit import notes, to_pte
from gossamer.targets.executorch.kernels import kernels_of
from gossamer.targets.executorch.loading import Loaded
from gossamer.targets.executorch.packages import INSTALL
from gossamer.targets.executorch.passes import lowered
from gossamer.targets.executorch.run import open_values
from gossamer.targets.executorch.writing import rows
from gossamer.targets.parity import check_parity, parity_problems
from gossamer.targets.target import targets

needs_it = pytest.mark.skipif(find_spec("executorch") is None, reason=f"executorch is not installed; run: {INSTALL}")


def quantized(program, samples):
    return gs.apply(program, gs.plan_quantization(program, samples, "executorch", scheme=gs.Scheme(rounding="nearest")))


class Formula(nn.Module):
    """A function as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.slopes = nn.Parameter(torch.linspace(-0.5, 0.5, 6))
        self.kernel = nn.Parameter(torch.linspace(-1, 1, 6 * 3 * 2 * 2).reshape(6, 3, 2, 2))
        self.table = nn.Parameter(torch.linspace(-1, 1, 6 * 5 * 7).reshape(6, 5, 7))

    def forward(self, x):
        return self.function(self, x)


FORMULAS = {
    "activations": lambda m, x: F.gelu(x) + F.gelu(x, approximate="tanh") + F.elu(x) + F.leaky_relu(x, 0.2) + F.hardswish(x) + F.silu(x),
    "functions": lambda m, x: (x.abs() + 1).log() + x.sin() * x.cos() + (x * x + 1).rsqrt() - x.exp().sqrt() + x.floor() + x.ceil() - (-x),
    "clamps": lambda m, x: (
        F.relu6(x + 1) + F.hardtanh(x, -0.7, 1.3) + (x - 1).relu() + torch.maximum(x, m.table) - torch.minimum(x, m.table)
    ),
    "slopes": lambda m, x: F.prelu(x, m.slopes),
    "constants": lambda m, x: x * m.table + m.table / (x * x + 1),
    "products": lambda m, x: x.transpose(2, 3) @ (x @ m.table.transpose(1, 2)),
    "softmax": lambda m, x: x.softmax(1) + x.softmax(-1),
    "means": lambda m, x: (
        x.mean(-1, keepdim=True) + x.mean((2, 3), keepdim=True) + x.mean(1, keepdim=True) + x.sum((2, 3))[:, :, None, None]
    ),
    "movement": lambda m, x: torch.stack([x, x + 1], 2).permute(0, 3, 1, 4, 2).flatten(2)[:, 1:4],
    "joins": lambda m, x: torch.cat([x, x * 2, x * 3, x * 4, x * 5, x * 6, x * 7], 1),
    "borders": lambda m, x: F.max_pool2d(F.pad(x, (1, 2, 0, 1)) - 5, 3, 2) + F.avg_pool2d(F.pad(x, (1, 2, 0, 1), value=3.0), 3, 2),
    "pools": lambda m, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True) - F.avg_pool2d(x, 3, 2, 1),
    "sizes": lambda m, x: F.interpolate(x, scale_factor=2, mode="nearest") + F.interpolate(x, scale_factor=2, mode="bilinear"),
    "transposed": lambda m, x: F.conv_transpose2d(x, m.kernel, stride=2),
    "norms": lambda m, x: F.layer_norm(x, (7,)) + F.group_norm(x, 3),
}


@needs_it
@pytest.mark.parametrize("name", FORMULAS)
def test_float_networks_of_every_kind_of_node(name):
    torch.manual_seed(0)
    x = torch.randn(5, 6, 5, 7)
    program = gs.capture(Formula(FORMULAS[name]).eval(), x[:2])
    assert not notes(program)
    runner = Loaded(to_pte(program).data)
    for number in (1, 5, 2):
        np.testing.assert_allclose(runner.execute([x[:number]])[0], program(x[:number]).detach(), rtol=1e-4, atol=1e-5)


@needs_it
@settings(max_examples=8)
@given(seed=st.integers(0, 10_000))
@example(seed=77)  # a mean with ties
def test_random_networks_on_codes_are_as_simulated(seed, tmp_path_factory):
    net, shape = random_network(seed)
    samples = torch.randn(6, *shape)
    coded = quantized(gs.capture(net, samples[:2]), samples)
    artifact = gs.export(coded, tmp_path_factory.mktemp("chain") / "net.pte", "executorch")
    parity = check_parity(artifact, targets["executorch"].open(artifact.path, threads=1), (samples,))
    assert not parity_problems(parity, artifact, "the file")
    assert parity.output_error < 1e-6


@needs_it
def test_the_same_bits_as_through_the_passes():
    """At a fixed batch size, which the passes take half as long for."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 6, 3, padding=1)
            self.deep = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.ReLU6())
            self.head = nn.Sequential(nn.Conv2d(12, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

        def forward(self, x):
            x = self.first(x).relu()
            y = self.deep(x)
            return self.head(F.pad(F.max_pool2d(torch.cat([x + y, y], 1), 3, 2, 1), (0, 1, 0, 1)))

    torch.manual_seed(0)
    images, net = torch.randn(8, 3, 15, 12), Net()
    net(images)  # gives the batch norm statistics
    program = gs.capture(net.eval(), images[:2], dynamic_batch=False)
    coded = quantized(program, [images[:2], images[2:4]])
    one, two = whole_graph(coded, hand_out=True), lowered(coded, hand_out=True)
    assert set(one.handed_out) == set(two.handed_out)
    outputs, others = (Loaded(data).execute([images[:2]]) for data in (one.to_bytes(), two.data))
    found = dict(zip(("output", *one.handed_out), outputs, strict=True))
    for name, other in zip(("output", *two.handed_out), others, strict=True):
        assert torch.equal(found[name], other), name


def assert_exact(network, images, path):
    """The artifact of a network on codes, which computes what the simulation says, bit by bit, with nothing float and nothing to tell."""
    program = gs.capture(network.eval(), images[:2])
    plan = gs.plan_quantization(program, images, "executorch", scheme=gs.Scheme(rounding="nearest"))
    assert not plan.frozen
    artifact = gs.export(gs.apply(program, plan), path, "executorch")
    assert not artifact.notes
    parity = check_parity(artifact, targets["executorch"].open(artifact.path, threads=1), (images,))
    assert not parity_problems(parity, artifact, "the file")
    assert parity.output_error == 0
    return artifact


@needs_it
def test_pads_on_codes(tmp_path):
    """Taken into a convolution, or written."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third, self.last = (
                nn.Conv2d(3, 8, 3),
                nn.Conv2d(8, 8, 3, 2),
                nn.Conv2d(8, 8, 1),
                nn.Conv2d(16, 4, 1),
            )

        def forward(self, x):
            x = self.second(F.pad(self.first(x), (0, 1, 0, 1)))
            return self.last(torch.cat([F.pad(self.third(x), (1, 2, 0, 1)), F.pad(x, (1, 2, 0, 1))], 1))

    torch.manual_seed(0)
    artifact = assert_exact(Padded(), torch.randn(8, 3, 13, 12) + 0.3, tmp_path / "net.pte")
    assert [kernel.integer for kernel in kernels_of(artifact.path) if kernel.kind == "StaticConstantPad"] == [True, True]


OWN_PADS = [("circular", (1, 2, 0, 1)), ("circular", (-1, 2, 1, 0)), ("reflect", (2, 1, 1, 1)), ("replicate", (1, 0, 2, -1))]


@needs_it
@pytest.mark.parametrize(("mode", "pad"), [*OWN_PADS, ("constant", (-1, 1, 2, -1)), ("constant", (-1, -1, 0, 0))])
def test_pads_of_own_numbers_and_negative_ones_on_codes(mode, pad, tmp_path):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.second(F.pad(self.first(x), pad, mode=mode))

    torch.manual_seed(0)
    artifact = assert_exact(Padded(), torch.randn(6, 3, 9, 8) + 0.3, tmp_path / "net.pte")
    floats = {kernel.kind for kernel in kernels_of(artifact.path) if not kernel.integer}
    assert floats == {"Convert", "StaticTranspose"}  # of what is handed out


@needs_it
@pytest.mark.parametrize(("mode", "pad"), [("circular", (-1, 2, 1, 1)), ("constant", (-1, 1, -1, 1)), ("reflect", (-1, 1, 1, 1))])
def test_pads_between_layers_that_the_passes_write(mode, pad):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 4)

        def forward(self, x):
            return self.second(F.pad((self.first(x) * 9).int().float(), pad, mode=mode)[..., :5])

    torch.manual_seed(0)
    x = torch.randn(5, 2, 4, 5)
    program = gs.capture(Padded().eval(), x[:2])
    written = to_pte(program)
    assert "ExecuTorch's passes split it" in written.notes[0]
    np.testing.assert_allclose(Loaded(written.data).execute([x])[0], program(x).detach(), rtol=1e-5, atol=1e-5)


@needs_it
@pytest.mark.parametrize("channels", [(3, 1), (1, 1)])
def test_convolutions_to_one_channel_on_codes(channels, tmp_path):
    """One scale for its only channel is one by channel, for the bias, too: XNNPACK refuses other pairs."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(*channels, 3), nn.ReLU(), nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 1))
    assert_exact(network, torch.randn(6, channels[0], 9, 8), tmp_path / "net.pte")


@needs_it
def test_what_the_runtime_refuses_goes_through_the_passes_and_is_told(tmp_path):
    torch.manual_seed(0)
    program = gs.capture(nn.Linear(6, 5).eval(), torch.randn(2, 6))
    row = rows["FULLY_CONNECTED"]
    rows.remove("FULLY_CONNECTED")

    @rows.add("FULLY_CONNECTED")
    def refused(step):
        step.node("StaticTranspose", num_dims=2, perm=[0, 5], input_id=step.source(), output_id=step.result())

    try:
        artifact = gs.export(program, tmp_path / "net.pte", "executorch")
        again = notes(program)
    finally:
        rows.remove("FULLY_CONNECTED")
        rows.add("FULLY_CONNECTED")(row)
    (note,) = artifact.notes
    assert note.startswith("XNNPACK does not run all of this network at once: a trial run fails (") and "passes split it" in note
    assert again == artifact.notes
    x = torch.randn(4, 6)
    found = targets["executorch"].open(artifact.path, threads=1).run(x.numpy())
    np.testing.assert_allclose(found, program(x).detach(), rtol=1e-5, atol=1e-5)


@needs_it
def test_a_written_file_tells_its_notes_without_being_drafted_again(tmp_path, monkeypatch):
    program = gs.capture(nn.Embedding(5, 4).eval(), torch.tensor([[1, 2], [3, 4]]))
    artifact = gs.export(program, tmp_path / "net.pte", "executorch")
    monkeypatch.setattr(sys.modules["gossamer.targets.executorch.emit"], "whole_graph", None)
    assert artifact.notes == ("Portable kernels run what XNNPACK has no nodes for, before or behind its graph: GATHER.",)


@needs_it
def test_a_transformer_on_codes(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
            self.before, self.qkv, self.after = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
            self.norm, self.wide, self.narrow = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
            q, k, v = self.qkv(self.before(x)).reshape(x.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + self.after(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            return (x + self.narrow(F.gelu(self.wide(self.norm(x)))))[:, 0]

    torch.manual_seed(0)
    images = torch.randn(6, 3, 12, 12)
    program = gs.capture(Block().eval(), images[:2])
    coded = quantized(program, images)
    assert not notes(program) and not notes(coded)
    artifact = gs.export(coded, tmp_path / "net.pte", "executorch")
    plain = gs.export(program, tmp_path / "plain.pte", "executorch")
    report = gs.verify(artifact, reference=plain, data=(images, program(images).argmax(1)), batch=2)
    assert report.parity.output_error == 0
    assert not parity_problems(report.parity, artifact, "the file")


@needs_it
def test_codes_are_the_same_whatever_batches_came_before():
    """Sizes in the graph are those of one sample: with larger ones the runtime wrote beyond its memory as batches grew."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    images = torch.randn(70, 3, 20, 20)
    coded = quantized(gs.capture(model.eval(), images[:2]), images)
    runner = open_values(coded, threads=1)
    expected = runner.run_values(images[:64].numpy())
    for number in (1, 2, 13, 1, 64, 3, 70):
        found = runner.run_values(images[:number].numpy())
        for name, codes in found.items():
            np.testing.assert_array_equal(codes[:64], expected[name][:number])


@needs_it
def test_constants_outlive_the_graph_that_names_them(tmp_path):
    """A loader that maps the file lets go of what the runtime no longer asks for; what kernels have not packed must stay."""
    x = torch.randn(2, 6, 5, 7)
    program = gs.capture(Formula(lambda m, x: F.prelu(x, m.slopes) * m.table + m.table).eval(), x)
    (tmp_path / "net.pte").write_bytes(to_pte(program).data)
    np.save(tmp_path / "x.npy", x)
    code = """
        import sys, numpy, torch
        from executorch.extension.pybindings import _C
        module = _C._load_for_executorch(sys.argv[1] + "/net.pte")
        numpy.save(sys.argv[1] + "/y.npy", module.forward([torch.from_numpy(numpy.load(sys.argv[1] + "/x.npy"))])[0])
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True, capture_output=True, timeout=60)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), program(x).detach(), rtol=1e-5, atol=1e-6)


@needs_it
def test_writing_and_running_load_none_of_the_passes(tmp_path):
    code = """
        import sys, torch, gossamer as gs
        program = gs.capture(torch.nn.Linear(4, 3).eval(), torch.randn(2, 4))
        gs.export(program, sys.argv[1], "executorch")
        print([name for name in sys.modules if name.startswith("executorch.exir")])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "net.pte")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]"
    assert Path(command[-1]).stat().st_size < 3000


class Numbers(nn.Module):
    """A function of whole numbers (N, 6), below 7 each, and a mask of zeros and ones (N, 6), with a table and layers to use."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.table, self.layer = nn.Embedding(7, 8), nn.Linear(8, 8)

    def forward(self, ids, mask):
        return self.function(self, ids, mask)


def attended(m, ids, mask):
    q = k = m.layer(m.table(ids))
    both = mask.bool()[:, None, :] & torch.ones(6, 6, dtype=torch.bool).tril()
    return (q @ k.transpose(1, 2)).masked_fill(~both, -1e9).softmax(-1) @ k


def pooled(m, ids, mask):
    weights = mask[:, :, None].float()
    return (m.layer(m.table(ids)) * weights).sum(1) / weights.sum(1).clamp(min=1)


NUMBERS = {
    "rows": lambda m, ids, mask: m.layer(m.table(ids)),
    "rows alone": lambda m, ids, mask: m.table(ids) * 2,
    "attention": attended,
    "means of tokens": pooled,
    "places": lambda m, ids, mask: m.layer(m.table(mask.cumsum(1) * mask)),
    "whole numbers": lambda m, ids, mask: m.layer(m.table((ids * 2 - mask + 1) // 3 + (-mask).abs() + torch.maximum(ids, mask) % 2)),
    "comparisons": lambda m, ids, mask: m.layer(
        m.table(((ids > 3) | (ids <= 1) & (ids != mask)).long() + (ids >= 2) + ((ids < 1) ^ (ids == 4)))
    ),
    "choices": lambda m, ids, mask: m.layer(m.table(torch.where(mask.bool(), ids, 6 - ids))),
    "parts": lambda m, ids, mask: m.layer(m.table(torch.stack([ids[:, 1:4], ids[:, ::2], torch.cat([mask, ids], 1)[:, -3:]], 1))),
    "axes": lambda m, ids, mask: m.layer(m.table(ids.reshape(-1, 2, 3).transpose(1, 2).unsqueeze(1))),
    "remainders": lambda m, ids, mask: m.layer(m.table((ids - 4) % 3 + (mask - 3) // 2 + 2)),
    "chosen scores": lambda m, ids, mask: torch.where(mask.bool()[:, :, None], m.layer(m.table(ids)).exp(), -torch.inf).relu(),
    "earlier tokens": lambda m, ids, mask: (
        (m.layer(m.table(ids)) @ m.table(ids).transpose(1, 2)).masked_fill(torch.ones(6, 6).tril() == 0, -torch.inf).softmax(-1)
    ),
    "chosen marks": lambda m, ids, mask: m.layer(m.table(ids)).masked_fill((ids > 3)[:, :, None], -1e9).relu(),
    "sums": lambda m, ids, mask: m.layer(m.table(mask.sum(1, keepdim=True) % 7)) + ids.amax(1).float()[:, None, None],
    "whole results": lambda m, ids, mask: ids * 2 + mask,
    "places behind": lambda m, ids, mask: m.layer(m.table(ids)).argmax(-1),
    "truths behind": lambda m, ids, mask: (m.layer(m.table(ids)) > 0) & mask.bool()[:, :, None],
    "picked behind": lambda m, ids, mask: m.layer(m.table(ids)).sum(2).argmin(1) + ids[:, 0],
}


@needs_it
@pytest.mark.parametrize("name", NUMBERS)
def test_what_xnnpack_has_no_nodes_for_runs_in_kernels_around_its_graph(name):
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 7, (64, 6)), torch.randint(0, 2, (64, 6))
    program = gs.capture(Numbers(NUMBERS[name]).eval(), (ids[:2], mask[:2]))
    assert "Portable kernels run" in notes(program)[0], notes(program)
    runner = Loaded(to_pte(program).data)
    for number in (1, 2, 3, 64, 1):
        found, expected = runner.execute([ids[:number], mask[:number]])[0], program(ids[:number], mask[:number]).detach()
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@needs_it
def test_kernels_and_the_graph_read_the_same_images():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.layer(x) * (x > 0) + (x * 3).int().float()

    torch.manual_seed(0)
    x = torch.randn(5, 3, 6, 7)
    program = gs.capture(Masked().eval(), x[:2])
    assert "Portable kernels run" in notes(program)[0]
    runner = Loaded(to_pte(program).data)
    for number in (1, 5, 2):
        np.testing.assert_allclose(runner.execute([x[:number]])[0], program(x[:number]).detach(), rtol=1e-4, atol=1e-5)


@needs_it
@pytest.mark.parametrize("name", ["rows", "attention", "means of tokens"])
def test_codes_behind_kernels_are_as_simulated(name, tmp_path):
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 7, (70, 6)), torch.randint(0, 2, (70, 6))
    program = gs.capture(Numbers(NUMBERS[name]).eval(), (ids[:2], mask[:2]))
    coded = quantized(program, [((ids[:32], mask[:32]), None)])
    assert "Portable kernels run" in notes(coded)[0]
    artifact = gs.export(coded, tmp_path / "net.pte", "executorch")
    runner = targets["executorch"].open(artifact.path, threads=1)
    for number in (1, 2, 3, 64, 70):
        parity = check_parity(artifact, runner, (ids[:number], mask[:number]))
        assert not parity_problems(parity, artifact, "the file")
        assert parity.output_error < 1e-6
    assert any(kernel.kind == "FullyConnected" and kernel.integer for kernel in kernels_of(artifact.path))


@needs_it
def test_kernels_share_memory_that_is_not_needed_at_the_same_time():
    """64 samples of 6 tables of 6 x 6 numbers each, of which at most two are in use at once."""
    calls = Calls()
    end = End((1, 1000), "FLOAT", 0)
    numbers = [calls.tensor(end) for _ in range(6)]
    for before, after in itertools.pairwise(numbers):
        calls.call("aten::neg.out", [before], after)
    values, memory_bytes = calls.values_in_memory(numbers[:1], numbers[-1:])
    assert memory_bytes == 4 * end.size_bytes
    places = [value["val"]["allocation_info"]["memory_offset_low"] for value in values]
    assert all(one != two for one, two in itertools.pairwise(places))


@needs_it
def test_what_keeps_a_network_from_being_one_graph_is_said():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.second((self.first(x) * 10).int().float())

    assert notes(gs.capture(Whole().eval(), torch.randn(2, 8))) == (
        "XNNPACK does not run all of this network at once: CAST has no node there. "
        "ExecuTorch's passes split it, which takes longer to write.",
    )
    words = gs.capture(nn.Embedding(5, 4).eval(), torch.tensor([[1, 2], [3, 4]]))
    assert notes(words) == ("Portable kernels run what XNNPACK has no nodes for, before or behind its graph: GATHER.",)
