"""Every lowering on LiteRT: as torch computes it at any batch size, or refused in one sentence."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.errors import UnsupportedOp
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.target import targets

pytest.importorskip("ai_edge_litert")
_spec = importlib.util.spec_from_file_location("onnx_cases", Path(__file__).parent.parent / "onnx" / "cases.py")
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

# what LiteRT has no form for, and why; everything else must run
REFUSED = {
    "casts": "with a result of type float64",
    "grid_sample": "no LiteRT rule for aten.grid_sampler",
    "grid_sample border": "no LiteRT rule for aten.grid_sampler",
    "index pairs apart": "that does not move each sample alike",
    "size as a number": "with a number that depends on the batch",
}


@pytest.mark.parametrize("name", cases.CASES)
@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_equals_torch_or_is_refused(name, tmp_path):
    network, shapes = cases.CASES[name]
    inputs = cases.inputs_of(shapes, 3)
    program = capture(network.eval(), inputs if len(inputs) > 1 else inputs[0])
    if name in REFUSED:
        with pytest.raises(UnsupportedOp, match=f"{REFUSED[name]}.*write that part of the model with other operations"):
            export(program, tmp_path / "m.tflite", "litert")
        return
    runner = targets["litert"].open(export(program, tmp_path / "m.tflite", "litert").path, threads=1)
    for batch in (1, 3):
        given = tuple(tensor[:batch] for tensor in inputs)
        with torch.no_grad():
            expected = network(*given)
        expected = (expected if isinstance(expected, torch.Tensor) else expected[0]).numpy()
        np.testing.assert_allclose(runner.run(*(tensor.numpy() for tensor in given)), expected, rtol=1e-4, atol=1e-4)


def test_writing_into_one_sample_is_refused(tmp_path):
    class Net(nn.Module):
        def forward(self, x):
            return torch.select_scatter(x, 2 * x[0], 0, 0)

    program = capture(Net(), torch.randn(3, 4))
    with pytest.raises(UnsupportedOp, match="the batch"):
        export(program, tmp_path / "m.tflite", "litert")


def test_nothing_is_refused_that_no_case_tries():
    assert set(cases.CASES) >= set(REFUSED)


def operators(path):
    from gossamer.targets.tflite.flat import schema

    names = schema()
    codes = {value: name for name, value in vars(names.BuiltinOperator).items() if isinstance(value, int)}
    model = names.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    return [codes[model.operatorCodes[op.opcodeIndex].builtinCode] for op in model.subgraphs[0].operators]


def test_a_network_of_images_moves_no_axes(tmp_path):
    """Channels stay last from the input to the flattened features, whose columns the linear layer takes as they lie."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 5),
    ).eval()
    images = torch.randn(3, 3, 16, 16)
    artifact = export(capture(network, images), tmp_path / "m.tflite", "litert")
    assert operators(artifact.path) == ["PAD", "CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED"]
    got = targets["litert"].open(artifact.path, threads=1).run(images.numpy())
    np.testing.assert_allclose(got, network(images).detach().numpy(), atol=1e-5)


def test_a_class_token_takes_the_batch_size_of_the_images(tmp_path):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 8))

        def forward(self, x):
            return torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)

    images = torch.randn(4, 8, 3, 3)
    network = Tokens().eval()
    runner = targets["litert"].open(export(capture(network, images), tmp_path / "m.tflite", "litert").path, threads=1)
    for batch in (1, 4):
        np.testing.assert_array_equal(runner.run(images[:batch].numpy()), network(images[:batch]).detach().numpy())


def test_the_signature_names_inputs_and_outputs(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    class Two(nn.Module):
        def forward(self, left, right):
            return left * right

    pair = torch.randn(2, 4), torch.randn(2, 4)
    path = export(capture(Two(), pair), tmp_path / "m.tflite", "litert").path
    interpreter = Interpreter(str(path))
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["left", "right"], "outputs": ["output0"]}}
    interpreter.resize_tensor_input(0, (2, 4))
    interpreter.resize_tensor_input(1, (2, 4))
    found = interpreter.get_signature_runner()(left=pair[0].numpy(), right=pair[1].numpy())
    np.testing.assert_allclose(found["output0"], (pair[0] * pair[1]).numpy())


def test_names_differ_and_activations_join_what_is_before_them(tmp_path):
    """Tools such as ai-edge-quantizer find tensors by their names, and give every operator's result codes of its own."""
    from gossamer.targets.tflite.flat import schema

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y = self.one(x)
            return torch.relu(self.two(torch.relu(y)) + y)

    torch.manual_seed(0)
    images, network = torch.randn(2, 3, 8, 8), Two().eval()
    path = export(capture(network, images), tmp_path / "m.tflite", "litert").path
    names = [tensor.name for tensor in schema().ModelT.InitFromPackedBuf(path.read_bytes(), 0).subgraphs[0].tensors]
    assert len(set(names)) == len(names)
    assert operators(path) == ["CONV_2D", "RELU", "CONV_2D", "ADD"]  # the first sum is read twice, so that ReLU stays
    np.testing.assert_allclose(targets["litert"].open(path, threads=1).run(images.numpy()), network(images).detach().numpy(), atol=1e-5)
