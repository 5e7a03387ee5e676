"""The demo as it is: the promises of the README, but for the speed, which a busy machine cannot show."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_demo(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gossamer", "demo", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode in (0, 1), done.stderr
    document = json.loads(done.stdout)
    assert document["original"]["accuracy"] > 0.95
    assert document["size_ratio"] >= 8
    assert document["drop_points"] <= 1.5
    assert document["parity"]["max_steps"] <= 1
    assert document["samples"] == 1000
    assert (tmp_path / "demo-out" / "report.html").exists()
    if done.returncode == 0:
        assert document["speedup"] >= 2.5
        assert document["drop_points"] <= 0.5
