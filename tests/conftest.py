"""For all tests: one torch thread (test processes run side by side), tables of one width, property tests that run the same every time."""

import os

import torch
from hypothesis import HealthCheck, Phase, settings

torch.set_num_threads(1)
os.environ.pop("COLUMNS", None)  # xdist sets it, and so tables would be narrower where tests run side by side
# without shrinking: most examples capture a network, which takes half a second
settings.register_profile(
    "house",
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture),
)
settings.load_profile("house")
