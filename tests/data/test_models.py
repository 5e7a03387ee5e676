"""Models by name, weights from safetensors only. Packages that are not installed are replaced by small stand-ins."""

import pickle
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gossamer.data.models import load_model, load_weights
from gossamer.data.user_code import UserCodeError
from gossamer.errors import ConfigError, FileError, GossamerError, MissingRuntime
from gossamer.program.bundle import save
from gossamer.program.capture import capture


@pytest.fixture
def mine(monkeypatch):
    module = ModuleType("my_models")
    module.factory = lambda: nn.Linear(3, 2)
    module.instance = nn.Linear(3, 2)
    module.Class = type("Class", (nn.Module,), {})
    module.number = 5
    module.text = lambda: "text"
    module.needs = lambda width: nn.Linear(width, 2)
    monkeypatch.setitem(sys.modules, "my_models", module)
    return module


@pytest.mark.parametrize("name", ["factory", "instance", "Class"])
def test_factory_instance_or_class(mine, name):
    made = load_model(f"my_models:{name}")
    assert isinstance(made.module, nn.Module)
    assert made.input_shape is None
    assert made.name == f"my_models:{name}"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("my_models", ConfigError, r"model must be package\.module:factory, timm:NAME"),
        ("my_models:number", ConfigError, "returns one; it gave a int"),
        ("my_models:text", ConfigError, "returns one; it gave a str"),
        ("my_models:needs", UserCodeError, r"calling my_models:needs failed .*missing 1 required positional argument"),
        ("my_models:facotry", ConfigError, "did you mean 'factory'"),
        ("nowhere.gossamer", FileError, "does not exist"),
    ],
)
def test_names_that_cannot_be_used(mine, text, error, message):
    with pytest.raises(error, match=message):
        load_model(text)


def test_bundle(tmp_path):
    program = capture(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.randn(2, 3))
    path = save(program, tmp_path / "model.gossamer")
    again = load_model(str(path)).module
    x = torch.randn(4, 3)
    assert torch.equal(again(x), program(x))
    with pytest.raises(ConfigError, match="a .gossamer file holds its weights"):
        load_model(str(path), "w.safetensors")


def test_weights_are_loaded(mine, tmp_path):
    want = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    save_file(want, tmp_path / "w.safetensors")
    model = load_model("my_models:factory", tmp_path / "w.safetensors").module
    assert all(torch.equal(model.state_dict()[key], value) for key, value in want.items())


def test_tied_weights_need_to_be_there_once(tmp_path):
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    source, model = tied(), tied()
    save_file({key: value for key, value in source.state_dict().items() if key != "1.weight"}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model[1].weight, source[0].weight)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, "lacks 'bias'"),
        (
            {"module.weight": torch.zeros(2, 3), "module.bias": torch.zeros(2)},
            "lacks 'weight' and 1 more and has the unknown 'module.*' and 1",
        ),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "extra": torch.zeros(1)}, "has 'extra', unknown to the model"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"'weight' of shape \(2, 4\) where the model has \(2, 3\)"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(3)}, r"\(and 1 more that differ\)"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, weights, message):
    save_file(weights, tmp_path / "w.safetensors")
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(FileError, match=message):
        load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.weight, before)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".ckpt"])
def test_pickles_are_never_opened(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(
        FileError, match=r"can run code when opened; if you trust it, convert it once with: python -c .*save_file.*w\.safetensors"
    ):
        load_weights(nn.Linear(3, 2), path)
    renamed = path.rename(tmp_path / "w.safetensors")
    with pytest.raises(FileError, match="truncated or no safetensors file"):
        load_weights(nn.Linear(3, 2), renamed)


def test_the_way_out_for_pickles_works(tmp_path):
    """The command in the message converts the file it is about."""
    model = nn.Linear(3, 2)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    with pytest.raises(FileError) as caught:
        load_weights(model, tmp_path / "w.pt")
    code = str(caught.value).split('python -c "')[1].rstrip(".").removesuffix('"')
    exec(code, {})  # what the user would run
    fresh = nn.Linear(3, 2)
    load_weights(fresh, tmp_path / "w.safetensors")
    assert torch.equal(fresh.weight, model.weight)


def test_weights_missing_or_cut(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(FileError, match="does not exist"):
        load_weights(nn.Linear(3, 2), path)
    save_file({"weight": torch.zeros(2, 3)}, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FileError, match="truncated or no safetensors file"):
        load_weights(nn.Linear(3, 2), path)


def fake_timm() -> ModuleType:
    def create_model(name: str, pretrained: bool, **options: object) -> nn.Module:
        assert pretrained is False
        model = nn.Linear(3, int(options.get("num_classes", 1000)))
        model.pretrained_cfg = {"input_size": (3, 32, 32)}
        return model

    timm = ModuleType("timm")
    timm.is_model = lambda name: name == "tiny"
    timm.list_models = lambda: ["tiny", "other"]
    timm.create_model = create_model
    return timm


def test_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    made = load_model("timm:tiny?num_classes=7")
    assert made.input_shape == (3, 32, 32)
    assert made.module.out_features == 7
    assert made.notes == ("timm:tiny?num_classes=7 has random weights: no --weights were given, and nothing is downloaded",)
    with pytest.raises(ConfigError, match="timm model must be a name that timm has .*did you mean 'tiny'"):
        load_model("timm:tinyy")
    with pytest.raises(UserCodeError, match="making timm:tiny.*ValueError"):
        load_model("timm:tiny?num_classes=abc")


def test_given_weights_need_no_note(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    save_file({"weight": torch.zeros(7, 3), "bias": torch.zeros(7)}, tmp_path / "w.safetensors")
    assert load_model("timm:tiny?num_classes=7", tmp_path / "w.safetensors").notes == ()


def fake_torchvision() -> tuple[ModuleType, ModuleType]:
    models = ModuleType("torchvision.models")
    models.list_models = lambda module: ["tiny"]
    models.get_model = lambda name, weights, **options: nn.Linear(3, 2)
    models.get_model_weights = lambda name: [SimpleNamespace(transforms=lambda: SimpleNamespace(crop_size=[299]))]
    package = ModuleType("torchvision")
    package.models = models
    return package, models


def test_torchvision(monkeypatch):
    package, models = fake_torchvision()
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    assert load_model("torchvision:tiny").input_shape == (3, 299, 299)
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        load_model("torchvision:tinyy")
    models.get_model_weights = lambda name: []
    assert load_model("torchvision:tiny").input_shape == (3, 224, 224)


@pytest.mark.parametrize(("package", "command"), [("timm", r"pip install 'gossamer\[timm\]'"), ("torchvision", "pip install torchvision")])
def test_package_that_is_not_installed(monkeypatch, package, command):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingRuntime, match=f"the model {package}:tiny needs the package '{package}', which is not installed; run: {command}"
    ):
        load_model(f"{package}:tiny")


def test_package_that_does_not_fit_torch(monkeypatch):
    def refuse(name: str) -> object:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("gossamer.data.models.importlib.import_module", refuse)
    with pytest.raises(GossamerError, match="torchvision does not import with torch .*nms does not exist"):
        load_model("torchvision:tiny")
