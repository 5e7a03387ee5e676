"""A whole diagnosis, for the tests of every view."""

import math

from gossamer.search.diagnosis.findings import Cause, Cure, Damage, Diagnosis, Finding
from reports import HOSTILE

WHOLE = Damage(18.0, 2.1e-2)


def a_cure(where="relu", name="range: mse", after=24.5, **changes):
    return Cure(**({"where": where, "name": name, "before": WHOLE, "after": Damage(after, 4e-3)} | changes))


def a_finding(name="relu", output_db=19.0, **changes):
    fields = {
        "name": name,
        "kind": "value",
        "layer": "features.0",
        "format": "uint8",
        "isolated": Damage(output_db, 1e-2),
        "own_db": 30.0,
        "cumulative_db": 25.0,
        "clipping_share": 0.25,
        "clipped_share": 0.001,
        "cause": Cause("outlier channel", "channel 5 is 20 times as large as the middle one, and all share one scale", {"channel": 5.0}),
    }
    return Finding(**(fields | changes))


def a_diagnosis(**changes):
    keep = a_cure(name="keep float", after=30.0, float_share=0.125)
    fields = {
        "findings": (
            a_finding("x", 42.0, cause=Cause("rounding", "it is lost by rounding")),
            a_finding("conv.weight", 28.0, kind="weight", format="int8 per channel"),
            a_finding(cures=(a_cure(chosen=True), a_cure(name="range: entropy", after=17.96), keep)),
            a_finding(HOSTILE, math.inf, cumulative_db=math.inf),
        ),
        "quantized": WHOLE,
        "cured": Damage(24.5, 4e-3),
        "network": (a_cure("", "ranges of all values: entropy", 15.0),),
        "plan": None,
        "samples": 64,
        "runs": 21.4,
        "seconds": 3.2,
        "notes": ("Something was left out.",),
    }
    return Diagnosis(**(fields | changes))
