"""torch's transformer layers. Oracle: the model without its fast path, and with it where no position is padded."""

import contextlib
import warnings

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture, relative_error

TOKENS, WIDTH = 7, 8
CAUSAL = nn.Transformer.generate_square_subsequent_mask(TOKENS)


class Encoder(nn.Module):
    """Two layers and a head. `reads` picks what the head gets of the encoder."""

    def __init__(self, mask=None, batch_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=batch_first)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first), nn.Linear(WIDTH, 3)
        self.register_buffer("mask", mask)

    def forward(self, x, padded=None):
        return self.head(self.encoder(x, self.mask, src_key_padding_mask=padded))


class Pooled(Encoder):
    """Leaves padded positions out."""

    def forward(self, x, padded):
        found = self.encoder(x, src_key_padding_mask=padded).masked_fill(padded.unsqueeze(2), 0.0)
        return self.head(found.sum(1) / (~padded).sum(1, keepdim=True))


class Both(nn.Module):
    """Encoder and decoder with masks whose kind is not hinted at."""

    def __init__(self):
        super().__init__()
        self.both, self.head = nn.Transformer(WIDTH, 2, 1, 1, 16, batch_first=True), nn.Linear(WIDTH, 3)
        self.register_buffer("mask", CAUSAL)

    def forward(self, x, y):
        return self.head(self.both(x, y, self.mask, self.mask, self.mask))


@contextlib.contextmanager
def step_by_step():
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def padding(batch):
    lengths = torch.tensor([5, TOKENS, 3, 1])[:batch]
    return torch.arange(TOKENS) >= lengths.unsqueeze(1)


def halved(program):
    small = apply(program, plan_pruning(program, score(program, "l2"), 0.5))
    assert small.cost().params < program.cost().params


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mask", [CAUSAL, CAUSAL.isinf(), None], ids=["causal", "bool", "none"])
def test_masks_are_taken_as_they_are(mask, training):
    torch.manual_seed(0)
    model = Encoder(mask).train(training)
    program = capture(model, torch.randn(3, TOKENS, WIDTH))
    assert model.training is training and torch.backends.mha.get_fastpath_enabled()
    assert not any(module._forward_pre_hooks for module in model.modules())
    model.eval()
    x = torch.randn(4, TOKENS, WIDTH)
    with torch.no_grad():
        assert relative_error(program(x), model(x)) < 1e-5
    halved(program)


def test_masks_of_both_sides():
    model = Both().eval()
    x, y = torch.randn(2, 3, TOKENS, WIDTH).unbind()
    program = capture(model, (x, y))
    with torch.no_grad():
        assert relative_error(program(y, x), model(y, x)) < 1e-5
    halved(program)


def test_layers_with_the_batch_second():
    model = Encoder(CAUSAL, batch_first=False).eval()
    x = torch.randn(TOKENS, 3, WIDTH)
    program = capture(model, x, dynamic_batch=False)
    with torch.no_grad():
        assert relative_error(program(x), model(x)) < 1e-5
    halved(program)


def test_what_leaves_padding_out_equals_the_fast_path():
    torch.manual_seed(0)
    model = Pooled().eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors", UserWarning)
        program = capture(model, (torch.randn(3, TOKENS, WIDTH), padding(3)))
        x, padded = torch.randn(4, TOKENS, WIDTH), padding(4)
        with torch.no_grad():
            assert relative_error(program(x, padded), model(x, padded)) < 1e-5
    halved(program)


def test_zeros_of_the_fast_path_are_told():
    torch.manual_seed(0)
    model = Encoder().eval()
    x, padded = torch.randn(4, TOKENS, WIDTH), padding(4)
    with pytest.warns(UserWarning, match="fast path for transformer layers gives other outputs.*: zeros at padded positions"):
        program = capture(model, (x, padded))
    found = program(x, padded)
    with step_by_step():
        assert relative_error(found, model(x, padded)) < 1e-5
    with torch.no_grad():
        fast = model(x, padded)
    assert relative_error(found[~padded], fast[~padded]) < 1e-5
    assert relative_error(found, fast) > 0.1
    halved(program)


class Layer(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True), nn.Linear(WIDTH, 3)
        self.register_buffer("mask", mask)

    def forward(self, x):
        return self.head(self.layer(x, self.mask))


@pytest.mark.parametrize("network", [Encoder, Layer])
def test_masks_of_numbers_are_added(network):
    torch.manual_seed(0)
    model = network(torch.randn(TOKENS, TOKENS)).eval()
    x = torch.randn(4, TOKENS, WIDTH)
    with pytest.warns(UserWarning, match="a mask of numbers taken for one of yes and no; the program computes step by step"):
        program = capture(model, x)
    with step_by_step():
        assert relative_error(program(x), model(x)) < 1e-5
    halved(program)
