import pytest
import torch
from torch import nn

from gossamer.errors import PlanError
from gossamer.program.capture import capture
from gossamer.program.coded_copies import copies_in, with_copies


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2)).eval(), torch.randn(3, 6))


def test_a_copy_changes_no_number_and_is_found_again(program):
    copies = [("layer_norm", ("linear",)), ("x", ("layer_norm",))] if "x" in program.graph.inputs else [("layer_norm", ("linear",))]
    changed = with_copies(program, copies)
    x = torch.randn(4, 6)
    assert torch.equal(changed(x), program(x))
    assert sorted(copies_in(changed)) == sorted(copies)
    changed.graph.check_order()
    assert changed.graph.by_name["linear"].uses[0] == "layer_norm_coded"
    assert with_copies(program, []) is program


@pytest.mark.parametrize(("value", "reader"), [("layer_norm", "gelu"), ("layer_norm", "nothing")])
def test_a_node_that_does_not_read_the_value_is_named(program, value, reader):
    with pytest.raises(PlanError, match=f"gives '{reader}' a copy of '{value}', which it does not read"):
        with_copies(program, [(value, (reader,))])
