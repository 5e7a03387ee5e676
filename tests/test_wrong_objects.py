"""A module where a program is asked for, and the like: one sentence that says how to get the right one."""

import pytest
import torch
from torch import nn

import gossamer as gs


@pytest.mark.parametrize(
    "call",
    [
        lambda model: gs.score(model),
        lambda model: gs.plan_pruning(model, None, 0.5),
        lambda model: gs.plan_sparsity(model, 0.5),
        lambda model: gs.apply(model, gs.Plan((), "")),
        lambda model: gs.transplant(model, model),
        lambda model: gs.save(model, "network.gossamer"),
        lambda model: gs.export(model, "network.onnx"),
    ],
)
def test_a_module_in_place_of_a_program_is_told(call):
    with pytest.raises(
        gs.GossamerError, match=r"program must be a Program, which gossamer.capture\(model, example_inputs\) makes; got 'Linear'"
    ):
        call(nn.Linear(2, 2))


def test_other_things_in_place_of_scores_and_plans_are_told():
    program = gs.capture(nn.Linear(2, 2), torch.zeros(2, 2))
    with pytest.raises(gs.GossamerError, match="scores must be what gossamer.score"):
        gs.plan_pruning(program, "l2", 0.5)
    with pytest.raises(gs.GossamerError, match="plan must be a Plan"):
        gs.apply(program, {"edits": []})
