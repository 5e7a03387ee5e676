"""Structural pruning over whole model zoos, with everything that a user does next.

One representative of each of timm's 98 model modules, all 80 torchvision classifiers, transformers models of small
configs, and networks of other kinds (tests/zoo.py builds them). Weights and inputs are random (also those that fresh networks start as zeros). Each model runs in a process
of its own, with a limit on time and memory:

capture - score (l1) - plan (half of the channels of every group) - apply, which proves that masked == removed - one training
step, in which every parameter that had a gradient before must have one - ONNX file, run by ONNX Runtime on the same input.

A model passes when all of that holds, parameters and MACs fell, and capture to apply stays below 4 GB and 120 s. The
results are written after every model, so a run can be stopped and goes on where it was: a model that passed at the same commit
is not measured again (nor one that passed at an earlier one, with --keep).

    python benchmarks/coverage.py [--fresh | --keep] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, header, write

sys.path.insert(0, str(ROOT / "tests"))

CHILD_LIMIT_S = 600
CHILD_LIMIT_BYTES = 12 * 2**30  # of addresses, of which far less is used
LIMIT_S, LIMIT_MB = 120, 4096
ONNX_TOLERANCE = 1e-4
SEED = 0
LARGE = 300_000_000  # parameters; capture shares the weights of such a network with the model instead of copying them
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
beit_base_patch16_224 cpubone_nano cspnext_tiny deepseek_vit_412m densenet121 efficientvim_m1 efficientvit_b0 gemma4_vit_167m iformer_t
inception_v3 lcnetv2_small lowformer_b0 mvitv2_tiny nasnetalarge pnasnet5large qwen3_vit_88m legacy_seresnet18 swinv2_cr_tiny_224
tresnet_m vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 samvit_base_patch16_224 legacy_xception
"""
OTHERS = """
hf:bert hf:distilbert hf:gpt2 hf:vit hf:swin hf:wav2vec2 hf:whisper_encoder hf:llama own:unet own:fpn_resnet18 own:lstm own:gru
"""


def names() -> list[str]:
    """All models, by the names of tests/zoo.py."""
    from zoo import torchvision_classifiers

    return [*TIMM.split(), *(f"tv:{name}" for name in torchvision_classifiers()), *OTHERS.split()]


def measure(name: str) -> dict[str, Any]:
    """Figures of one model. Times are in seconds, of one run each; memory is the process's peak."""
    import torch

    from gossamer.apply.engine import apply
    from gossamer.coupling.share import prunable_macs_share
    from gossamer.plan.edits import KeepChannels
    from gossamer.plan.pruning import plan_pruning
    from gossamer.plan.score import score
    from gossamer.program.capture import capture
    from zoo import build

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    sample = build(name)
    times = [time.perf_counter()]
    large = sum(parameter.numel() for parameter in sample.model.parameters()) > LARGE
    program = capture(sample.model, sample.inputs, output=sample.output, copy_weights=not large)
    del sample
    times.append(time.perf_counter())
    scores = score(program, "l1")
    times.append(time.perf_counter())
    plan = plan_pruning(program, scores, 0.5, mode="layerwise")
    times.append(time.perf_counter())
    small = apply(program, plan)
    times.append(time.perf_counter())
    stages = ("capture_s", "score_s", "plan_s", "apply_s")
    before, after = program.cost(), small.cost()
    reasons = Counter(re.sub(r"\d+", "#", frozen.reason) for frozen in plan.frozen)
    return {
        **{stage: round(times[i + 1] - times[i], 2) for i, stage in enumerate(stages)},
        "peak_memory_mb": _peak_memory_mb(),
        "groups": len(scores.analysis.groups),
        "pruned_groups": sum(isinstance(edit, KeepChannels) for edit in plan.edits),
        "frozen": len(plan.frozen),
        "frozen_reasons": dict(reasons.most_common(8)),
        "prunable_macs_share": round(prunable_macs_share(program, scores.analysis), 3),
        "macs": before.macs,
        "params": before.params,
        "macs_ratio": round(after.macs / before.macs, 3),
        "params_ratio": round(after.params / before.params, 3),
        "parity": "masked == removed, relative error <= 1e-5",  # apply raises otherwise
        **onnx_error(small),
        **training_step(program, small),
        "peak_memory_with_training_mb": _peak_memory_mb(),
    }


def _peak_memory_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def onnx_error(small: Any) -> dict[str, Any]:
    """Write the pruned network as ONNX and run it: ||difference|| / ||output||, and the size of the file."""
    import torch

    from gossamer.program.capture import relative_error
    from gossamer.targets.export import export
    from gossamer.targets.onnx.run import open_session

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(small, path)
        inputs = small.example_inputs(batch=2, seed=SEED)
        got = torch.from_numpy(open_session(path, threads=1).run(*(value.numpy() for value in inputs)))
        size = path.stat().st_size
    with torch.no_grad():
        expected = small(*inputs)
    return {
        "onnx_relative_error": float(f"{relative_error(got, expected):.2g}"),
        "onnx_size_ratio": round(size / small.cost().size_bytes, 3),
        "onnx_s": round(time.perf_counter() - start, 2),
    }


def training_step(program: Any, small: Any) -> dict[str, Any]:
    """One step of gradient descent on the pruned network; parameters that lost their gradient by the removal.

    Weights that a network computes anew at every run are stored by a removal: they count as they are stored.
    """
    import torch

    from gossamer.program.constants import fold_weights

    start = time.perf_counter()
    had, _ = _gradients(fold_weights(program), 0.0)
    has, loss = _gradients(small, 1e-4)
    after = _loss(small)
    finite = bool(torch.isfinite(loss) & torch.isfinite(after))
    return {
        "trains": finite and not had - has,
        "without_gradient": sorted(had - has)[:8],
        "train_s": round(time.perf_counter() - start, 2),
    }


def _loss(program: Any) -> Any:
    import torch

    torch.manual_seed(SEED)
    return program.train()(*program.example_inputs(batch=2, seed=SEED)).float().square().mean()


def _gradients(program: Any, rate: float) -> tuple[set[str], Any]:
    """Names of the parameters with a finite gradient, and the loss. Each is updated at once, and its gradient freed."""
    import torch

    reached = set()

    def hook(name: str) -> Any:
        def update(parameter: Any) -> None:
            if bool(torch.isfinite(parameter.grad).all()):
                reached.add(name)
            with torch.no_grad():
                parameter.sub_(rate * parameter.grad)
            parameter.grad = None

        return update

    trained = [(name, parameter) for name, parameter in program.named_parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(hook(name)) for name, parameter in trained]
    loss = _loss(program)
    loss.backward()
    for handle in hooks:
        handle.remove()
    return reached, loss.detach()


def in_child(name: str) -> dict[str, Any]:
    """The figures of `measure` and whether the model passes, with the reason where it does not."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (CHILD_LIMIT_BYTES, CHILD_LIMIT_BYTES))

    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_LIMIT_S, preexec_fn=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"took more than {CHILD_LIMIT_S} s"}
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        return {"ok": False, "error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]}
    found: dict[str, Any] = json.loads(lines[-1])
    failure = first_failure(found)
    return {"ok": False, "error": failure, **found} if failure else {"ok": True, **found}


def seconds(found: dict[str, Any]) -> float:
    """From the eager module to the pruned program."""
    return float(sum(found[stage] for stage in ("capture_s", "score_s", "plan_s", "apply_s")))


def first_failure(found: dict[str, Any]) -> str:
    """Which of the demands a measured model misses, or nothing."""
    checks = {
        "no group could be pruned": found["pruned_groups"] > 0,
        "MACs or parameters did not fall": max(found["macs_ratio"], found["params_ratio"]) < 1,
        f"ONNX Runtime differs by {found['onnx_relative_error']}": found["onnx_relative_error"] <= ONNX_TOLERANCE,
        f"does not train ({found['without_gradient']})": found["trains"],
        f"took {seconds(found):.0f} s": seconds(found) <= LIMIT_S,
        f"took {found['peak_memory_mb']} MB": found["peak_memory_mb"] <= LIMIT_MB,
    }
    return next((text for text, holds in checks.items() if not holds), "")


HEAD = f"{'model':38} {'s':>6} {'MB':>5} {'groups':>6} {'frozen':>6} {'prunable':>8} {'MACs':>6} {'params':>6} {'ONNX error':>10}"


def row(name: str, found: dict[str, Any]) -> str:
    """One line of the printed table."""
    if "macs_ratio" not in found:
        return f"{name:38} FAILED: {found['error']}"
    return (
        f"{name:38} {seconds(found):6.1f} {found['peak_memory_mb']:5} {found['pruned_groups']:6} {found['frozen']:6} "
        f"{found['prunable_macs_share']:8.1%} {found['macs_ratio']:6.3f} {found['params_ratio']:6.3f} "
        f"{found['onnx_relative_error']:10.1e} {'' if found['ok'] else 'FAILED: ' + found['error']}"
    )


def main() -> None:
    """Measure what is missing in the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="measure all models again")
    parser.add_argument("--keep", action="store_true", help="keep what passed at an earlier commit")
    parser.add_argument("--only", nargs="*", help="these models only")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    limits = {"limit_s": LIMIT_S, "limit_mb": LIMIT_MB}
    facts = header(("torch", "timm", "torchvision", "transformers", "onnxruntime"), threads=1, seed=SEED, n=1, **limits)
    path = RESULTS / "coverage.json"
    models: dict[str, Any] = json.loads(path.read_text())["models"] if path.exists() and not options.fresh else {}
    everything = names()
    print(HEAD)
    for name in options.only or everything:
        known = models.get(name, {})
        if not known.get("ok") or not (options.keep or known["commit"] == facts["commit"]):
            models[name] = {"commit": facts["commit"], **in_child(name)}
            passed = sum(entry["ok"] for entry in models.values())
            missing = [other for other in everything if other not in models]
            counts = {"measured": len(models), "passed": passed, "not_measured": missing}
            write("coverage", {**facts, **counts, "models": models}, quiet=True)
        print(row(name, models[name]), flush=True)


if __name__ == "__main__":
    main()
