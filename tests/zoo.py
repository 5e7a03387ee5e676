"""Real architectures for tests and benchmarks, all with random weights, by name.

resnet18         a timm model
tv:resnet18      a torchvision classifier
hf:bert          a transformers model built from a small config
own:unet         a network of own_networks.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from own_networks import GruClassifier, LstmClassifier, UNet


@dataclass(frozen=True)
class Sample:
    """A network, what it takes, and what to pick from what it returns (see `gossamer.capture`)."""

    model: nn.Module
    inputs: Tensor | Mapping[str, Tensor]
    output: Callable[[Any], Tensor] | str | None = None


def build(name: str, batch: int = 2) -> Sample:
    """The network of that name with random weights and inputs, stirred. Raises KeyError or the package's own error for a name
    that does not exist."""
    sample = _plain(name, batch)
    stir(sample.model.eval())
    return sample


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Give random values to what starts as one constant, in place.

    Fresh networks start with branches, scales and heads at zero, and norms that change nothing: comparing two versions of such
    a network would compare little.
    """
    running = {name: buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))}
    for name, tensor in {**dict(model.named_parameters()), **running}.items():
        if not tensor.is_floating_point() or not tensor.numel() or bool((tensor != tensor.flatten()[0]).any()):
            continue
        if not tensor.any() and (tensor.dim() > 1 or name.endswith(("bias", "running_mean"))):
            tensor.normal_(std=0.1)
        else:
            tensor.uniform_(0.5, 1.5)


def _plain(name: str, batch: int) -> Sample:
    kind, _, rest = name.rpartition(":")
    if kind == "hf":
        prepare()
        return TRANSFORMERS[rest](batch)
    if kind == "own":
        return OWN[rest](batch)
    model, (channels, *image) = torchvision_model(rest) if kind == "tv" else timm_model(rest)
    if getattr(model, "num_classes", 1) == 0:  # its features would be the network's output, of which nothing can go
        model, _ = timm_model(rest, num_classes=10)
    return Sample(model, torch.randn(batch, channels, *_SMALLER_IMAGES.get(rest, image)))


_SMALLER_IMAGES = {"deepseek_vit_412m": (112, 112), "gemma4_vit_167m": (224, 224), "qwen3_vit_88m": (224, 224)}  # they take any size


def timm_model(name: str, **options: object) -> tuple[nn.Module, tuple[int, ...]]:
    """A timm model and the shape of one input."""
    prepare()
    import timm

    model = timm.create_model(name, **options).eval()
    return model, tuple(model.default_cfg["input_size"])


def torchvision_model(name: str, **options: object) -> tuple[nn.Module, tuple[int, ...]]:
    """A torchvision classifier and the shape of one input."""
    prepare()
    import torchvision

    size = 299 if name == "inception_v3" else 224
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, **options}  # their own initialisation takes a minute
    return torchvision.models.get_model(name, weights=None, **options).eval(), (3, size, size)


def torchvision_classifiers() -> list[str]:
    """The names of all classifiers of torchvision."""
    prepare()
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


_LIBRARY = None


def prepare() -> None:
    """The registry's torchvision is built for CUDA: with a CPU torch its ops must be declared before the import."""
    global _LIBRARY
    if _LIBRARY is None and not hasattr(torch.ops.torchvision, "nms"):
        _LIBRARY = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


def _tokens(batch: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 100, (batch, 16))}


def _bert(batch: int) -> Sample:
    from transformers import BertConfig, BertForSequenceClassification

    return Sample(BertForSequenceClassification(BertConfig(vocab_size=100, max_position_embeddings=32, **_SMALL)), _tokens(batch), "logits")


def _distilbert(batch: int) -> Sample:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=100, max_position_embeddings=32, dim=64, n_layers=2, n_heads=4, hidden_dim=128)
    return Sample(DistilBertForSequenceClassification(config), _tokens(batch), "logits")


def _gpt2(batch: int) -> Sample:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=100, n_positions=32, n_embd=64, n_layer=2, n_head=4, use_cache=False)
    return Sample(GPT2LMHeadModel(config), _tokens(batch), "logits")


def _vit(batch: int) -> Sample:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=32, patch_size=8, **_SMALL)
    return Sample(ViTForImageClassification(config), {"pixel_values": torch.randn(batch, 3, 32, 32)}, "logits")


def _swin(batch: int) -> Sample:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(image_size=32, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4)
    return Sample(SwinForImageClassification(config), {"pixel_values": torch.randn(batch, 3, 32, 32)}, "logits")


def _wav2vec2(batch: int) -> Sample:
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    convolutions = {"conv_dim": (32, 32, 32), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 8), "num_feat_extract_layers": 3}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0}
    config = Wav2Vec2Config(classifier_proj_size=32, **convolutions, **positions, **_SMALL)
    return Sample(Wav2Vec2ForSequenceClassification(config), {"input_values": torch.randn(batch, 2000)}, "logits")


def _whisper_encoder(batch: int) -> Sample:
    from transformers import WhisperConfig, WhisperForAudioClassification

    encoder = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}
    config = WhisperConfig(num_mel_bins=16, max_source_positions=50, classifier_proj_size=32, **encoder)
    return Sample(WhisperForAudioClassification(config), {"input_features": torch.randn(batch, 16, 100)}, "logits")


def _llama(batch: int) -> Sample:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=100, num_key_value_heads=2, max_position_embeddings=32, use_cache=False, **_SMALL)
    return Sample(LlamaForCausalLM(config), _tokens(batch), "logits")


TRANSFORMERS: Mapping[str, Callable[[int], Sample]] = {
    "bert": _bert,
    "distilbert": _distilbert,
    "gpt2": _gpt2,
    "vit": _vit,
    "swin": _swin,
    "wav2vec2": _wav2vec2,
    "whisper_encoder": _whisper_encoder,
    "llama": _llama,
}


def _all_levels(maps: Mapping[str, Tensor]) -> Tensor:
    """The feature maps of a detector's backbone side by side, so that one tensor holds all."""
    return torch.cat([level.flatten(1) for level in maps.values()], dim=1)


def _fpn(batch: int) -> Sample:
    prepare()
    import torchvision
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    layers = {f"layer{level}": str(level) for level in (1, 2, 3, 4)}
    backbone = torchvision.models.resnet18(weights=None)
    model = BackboneWithFPN(backbone, return_layers=layers, in_channels_list=[64, 128, 256, 512], out_channels=64)
    return Sample(model, torch.randn(batch, 3, 128, 128), _all_levels)


OWN: Mapping[str, Callable[[int], Sample]] = {
    "unet": lambda batch: Sample(UNet(), torch.randn(batch, 3, 64, 64)),
    "fpn_resnet18": _fpn,
    "lstm": lambda batch: Sample(LstmClassifier(), torch.randn(batch, 20, 12)),
    "gru": lambda batch: Sample(GruClassifier(), torch.randn(batch, 20, 12)),
}
