"""Every code block of README and docs runs, in order, one namespace and one folder a page."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page):
    return BLOCK.findall(page.read_text())


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # tests after this one would compute with as many
    namespace = {"__name__": "__page__"}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), namespace)
        elif language == "console":
            for line in text.splitlines():
                run_command(line, tmp_path)
        else:
            assert language in ("", "text"), f"{page.name}: a block of {language!r} is not executed"


def run_command(line, folder):
    assert line.startswith("$ "), f"console lines start with '$ ': {line!r}"
    words = shlex.split(line[2:])
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"Makefile has no target {words[1]!r}"
        return
    assert words[0] == "gossamer"
    if "package.module:factory" in words:  # a placeholder for the reader's own module
        (folder / "package").mkdir(exist_ok=True)
        (folder / "package" / "module.py").write_text(OWN_MODULE)
        subprocess.run([sys.executable, "-c", MAKE_WEIGHTS], cwd=folder, check=True, env=environment(folder))
    done = subprocess.run(
        [sys.executable, "-m", "gossamer.cli.main", *words[1:]], cwd=folder, capture_output=True, text=True, env=environment(folder)
    )
    accepted = (0, 1) if words[1] in ("compress", "verify") else (0,)  # 1: a budget on this machine's speed may be missed
    assert done.returncode in accepted, done.stderr


def environment(folder):
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}


OWN_MODULE = """
import torch
from torch import nn

def factory():
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 3))

def loaders():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 1, 8, 8, generator=generator)
    target = torch.arange(60) % 3
    return {"train": (inputs, target), "validation": (inputs, target)}
"""
MAKE_WEIGHTS = """
import torch
from safetensors.torch import save_file
from package.module import factory
torch.manual_seed(0)
save_file(factory().state_dict(), "w.safetensors")
"""


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_tables_come_from_the_results():
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
