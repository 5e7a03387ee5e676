"""Structural pruning over whole model zoos: one representative of each timm family, and all torchvision classifiers.

Each model runs in a process of its own, with a limit on time and memory: capture, score (l1), plan (half of the channels of
every group), apply, which proves that masked == removed. Weights are random. Kept up to date after every model, so a
run can be stopped and goes on where it was (models measured at the same commit are skipped unless --fresh).

    python benchmarks/coverage.py [--fresh] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import RESULTS, header, write

LIMIT_S = 300
LIMIT_BYTES = 8 * 2**30
SEED = 0
TIMM = """
resnet18 resnetv2_50 mobilenetv3_small_100 mobilenetv4_conv_small efficientnet_lite0 tf_efficientnetv2_b0 vit_tiny_patch16_224
deit_tiny_patch16_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 convnext_atto convnextv2_atto mixer_s32_224 gmlp_s16_224
resmlp_12_224 regnetx_002 regnety_002 ghostnet_100 ghostnetv2_100 edgenext_xx_small mobilevit_xxs mobilevitv2_050 mobileone_s0
fastvit_t8 repvit_m0_9 levit_128s efficientformer_l1 efficientformerv2_s0 efficientvit_m0 poolformer_s12 poolformerv2_s12
caformer_s18 pit_ti_224 coat_lite_tiny cait_xxs24_224 xcit_nano_12_p16_224 crossvit_tiny_240 tnt_s_legacy_patch16_224 volo_d1_224
eva02_tiny_patch14_224 maxvit_tiny_rw_224 coatnet_nano_rw_224 nfnet_f0 dm_nfnet_f0 nf_resnet50 hrnet_w18_small dla34 dpn68
skresnet18 res2net50_26w_4s resnest14d ese_vovnet19b_dw cspresnet50 cspdarknet53 darknet53 vovnet39a xception41 inception_v4
inception_resnet_v2 selecsls42b hardcorenas_a fbnetc_100 mnasnet_100 spnasnet_100 tinynet_e lcnet_050 rexnet_100 semnasnet_050
bat_resnext26ts eca_botnext26ts_256 halonet26t lambda_resnet26t sehalonet33ts gcresnet33ts gernet_s repghostnet_050 starnet_s1
hgnet_tiny hgnetv2_b0 inception_next_atto focalnet_tiny_srf davit_tiny gcvit_xxtiny nest_tiny pvt_v2_b0 twins_pcpvt_small
convit_tiny convmixer_768_32 visformer_tiny sequencer2d_s hiera_tiny_224 hieradet_small tiny_vit_5m_224 vgg11 vitamin_small_224
rdnet_tiny mambaout_femto nextvit_small shvit_s1 swiftformer_xs csatv2 fasternet_t0 ghostnetv3_050 mobilenetv5_base
naflexvit_base_patch16_gap
"""
TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2
mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_0 swin_t
swin_v2_t vgg11_bn vit_b_32 wide_resnet50_2
"""


def measure(name: str) -> dict[str, Any]:
    """Figures of one model. Times are in seconds, of one run each; memory is the process's peak."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import torch

    from gossamer.apply.engine import apply
    from gossamer.plan.pruning import plan_pruning
    from gossamer.plan.score import score
    from gossamer.program.capture import capture
    from zoo import timm_model, torchvision_model

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model, size = torchvision_model(name[3:]) if name.startswith("tv:") else timm_model(name)
    torch.manual_seed(SEED)
    times = [time.perf_counter()]
    program = capture(model, torch.randn(2, *size))
    times.append(time.perf_counter())
    scores = score(program, "l1")
    times.append(time.perf_counter())
    plan = plan_pruning(program, scores, 0.5, mode="layerwise")
    times.append(time.perf_counter())
    small = apply(program, plan)
    times.append(time.perf_counter())
    before, after = program.cost(), small.cost()
    reasons = Counter(re.sub(r"\d+", "#", frozen.reason) for frozen in plan.frozen)
    stages = ("capture_s", "score_s", "plan_s", "apply_s")
    return {
        "ok": bool(plan.edits),
        **{stage: round(times[i + 1] - times[i], 2) for i, stage in enumerate(stages)},
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "groups": len(scores.analysis.groups),
        "pruned_groups": len(plan.edits),
        "frozen": len(plan.frozen),
        "frozen_reasons": dict(reasons.most_common(8)),
        "macs_ratio": round(after.macs / before.macs, 3),
        "params_ratio": round(after.params / before.params, 3),
        "parity": "masked == removed, relative error <= 1e-5",
    }


def in_child(name: str) -> dict[str, Any]:
    """The figures of `measure`, or why there are none."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))

    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, preexec_fn=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"took more than {LIMIT_S} s"}
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found if found["ok"] else {**found, "error": "no group could be pruned"}
    return {"ok": False, "error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]}


def main() -> None:
    """Measure what is missing in the results of this commit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="measure all models again")
    parser.add_argument("--only", nargs="*", help="these models only; torchvision's are written tv:NAME")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    facts = header(("torch", "timm", "torchvision"), threads=1, seed=SEED, n=1, limit_s=LIMIT_S, limit_bytes=LIMIT_BYTES)
    path = RESULTS / "coverage.json"
    models: dict[str, Any] = json.loads(path.read_text())["models"] if path.exists() and not options.fresh else {}
    for name in options.only or [*TIMM.split(), *(f"tv:{name}" for name in TORCHVISION.split())]:
        if models.get(name, {}).get("commit") != facts["commit"]:
            models[name] = {"commit": facts["commit"], **in_child(name)}
            passed = sum(entry["ok"] for entry in models.values())
            write("coverage", {**facts, "measured": len(models), "passed": passed, "models": models})


if __name__ == "__main__":
    main()
