"""Each documented rule: a crafted file that breaks it is found, and the good file that it was made from passes."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from gossamer.cli.main import app
from gossamer.errors import FileError
from gossamer.targets.tensorrt.lint import lint, lint_model
from gossamer.targets.tensorrt.rules import rules

CHANNELS = 4


class Crafted:
    """A residual block in the documented form, and ways to break it: nodes and constants by name."""

    def __init__(self):
        self.nodes, self.constants, self.opset = {}, {}, 20
        self.constants["s"] = np.float32(0.1)
        self.constants["z"] = np.int8(0)
        self.add("x/q", "QuantizeLinear", "x", "s", "z")
        self.add("x/dq", "DequantizeLinear", "x/q", "s", "z")
        self.layer("first", "x/dq")
        self.add("relu", "Relu", "first")
        self.add("relu/q", "QuantizeLinear", "relu", "s", "z")
        self.add("relu/dq", "DequantizeLinear", "relu/q", "s", "z")
        self.layer("second", "relu/dq")
        self.add("sum", "Add", "second", "x/dq")
        self.add("last", "Relu", "sum")
        self.add("last/q", "QuantizeLinear", "last", "s", "z")
        self.add("last/dq", "DequantizeLinear", "last/q", "s", "z")
        self.layer("head", "last/dq")

    def add(self, name, op, *inputs, **attributes):
        self.nodes[name] = helper.make_node(op, inputs, [name], **attributes)

    def layer(self, name, source):
        self.constants[f"{name}/w"] = np.ones((CHANNELS, CHANNELS, 1, 1), np.int8)
        self.constants[f"{name}/s"] = np.full(CHANNELS, 0.5, np.float32)
        self.constants[f"{name}/z"] = np.zeros(CHANNELS, np.int8)
        self.constants[f"{name}/b"] = np.zeros(CHANNELS, np.float32)
        self.add(f"{name}/wdq", "DequantizeLinear", f"{name}/w", f"{name}/s", f"{name}/z", axis=0)
        self.add(name, "Conv", source, f"{name}/wdq", f"{name}/b", kernel_shape=[1, 1])

    def before(self, name, *fresh):
        """Put nodes in front of another one: (name, op, *inputs)."""
        old = self.nodes
        self.nodes = {}
        for key, node in old.items():
            if key == name:
                for node_name, op, *inputs in fresh:
                    self.add(node_name, op, *inputs)
            self.nodes[key] = node

    def model(self):
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", CHANNELS, 3, 3]) for name in ("x", "head")]
        constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in self.constants.items()]
        graph = helper.make_graph(list(self.nodes.values()), "g", ports[:1], ports[1:], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)


def opset(file):
    file.opset = 25


def unsigned(file):
    file.constants["z8"] = np.uint8(0)
    file.nodes["relu/q"].input[2] = file.nodes["relu/dq"].input[2] = "z8"


def no_zero_point_said(file):
    del file.nodes["relu/q"].input[2]  # ONNX then means uint8


def zero_point(file):
    file.constants["z3"] = np.int8(3)
    file.nodes["relu/q"].input[2] = file.nodes["relu/dq"].input[2] = "z3"


def weight_zero_point(file):
    file.constants["first/z"] = np.array([0, 0, 7, 0], np.int8)


def computed_scale(file):
    file.before("x/q", ("top", "ReduceMax", "x"))
    file.nodes["top"].attribute.extend([helper.make_attribute("keepdims", 0)])
    file.nodes["x/q"].input[1] = "top"


def scale_below_zero(file):
    file.constants["s"] = np.float32(-0.1)


def several_scales(file):
    file.constants["s4"] = np.full(CHANNELS, 0.1, np.float32)
    file.constants["z4"] = np.zeros(CHANNELS, np.int8)
    file.nodes["relu/dq"].input[1:] = ["s4", "z4"]


def weight_by_input(file):
    file.nodes["first/wdq"].attribute[0].i = 1


def one_scale_for_a_weight(file):
    file.constants |= {"first/s": np.float32(0.5), "first/z": np.int8(0)}


def coded_bias(file):
    file.constants["first/bc"] = np.zeros(CHANNELS, np.int32)
    file.constants["first/bs"] = np.full(CHANNELS, 0.05, np.float32)
    file.before("first", ("first/bdq", "DequantizeLinear", "first/bc", "first/bs"))
    file.nodes["first"].input[2] = "first/bdq"


def computing_on_codes(file):
    file.before("relu/dq", ("pool", "MaxPool", "relu/q"))
    file.nodes["pool"].attribute.extend([helper.make_attribute("kernel_shape", [1, 1])])
    file.nodes["relu/dq"].input[0] = "pool"


def codes_inside_a_layer(file):
    file.before("relu", ("first/q", "QuantizeLinear", "first", "s", "z"), ("first/dq", "DequantizeLinear", "first/q", "s", "z"))
    file.nodes["relu"].input[0] = "first/dq"


def codes_before_a_norm(file):
    codes_inside_a_layer(file)
    file.constants |= {name: np.ones(CHANNELS, np.float32) for name in "abcd"}
    file.before("relu", ("norm", "BatchNormalization", "first/dq", *"abcd"))
    file.nodes["relu"].input[0] = "norm"


def float_residual(file):
    file.nodes["sum"].input[1] = "x"


def other_domain(file):
    file.nodes["last"].domain = "com.microsoft"


def unknown(file):
    file.nodes["last"].op_type = "Col2Im"


def form(file):
    file.before("last", ("pooled", "MaxPool", "sum"))
    file.nodes["pooled"].attribute.extend(helper.make_attribute(key, [1, 1]) for key in ("kernel_shape",))
    file.nodes["pooled"].attribute.extend([helper.make_attribute("dilations", [2, 2])])
    file.nodes["last"].input[0] = "pooled"


def integer_operator(op):
    def change(file):
        file.nodes["last"].op_type = op

    change.__name__ = op
    return change


CASES = [
    (opset, "opset", "opset 25; TensorRT reads 9 to 24"),
    (unsigned, "signed-codes", "type UINT8"),
    (no_zero_point_said, "signed-codes", "type UINT8"),
    (zero_point, "zero-point", "zero point is 3.0"),
    (weight_zero_point, "zero-point", "zero point is 7.0"),
    (computed_scale, "constant-scale", "computed while the network runs"),
    (scale_below_zero, "constant-scale", "not a finite number above 0"),
    (several_scales, "one-scale-for-a-value", "has 4 scales"),
    (weight_by_input, "scale-for-each-output", "4 scales along axis 1"),
    (one_scale_for_a_weight, "scale-for-each-output", "1 scales along axis 0; it should have 4"),
    (coded_bias, "float-bias", "bias is made of codes"),
    (computing_on_codes, "pairs", "computes on codes"),
    (codes_inside_a_layer, "nothing-inside-a-layer", "before it"),
    (codes_before_a_norm, "nothing-inside-a-layer", "before it"),
    (float_residual, "residual", "a value without codes"),
    (other_domain, "operator", "com.microsoft::Relu"),
    (unknown, "operator", "no operator Col2Im"),
    (form, "operator", "dilations are not all 1"),
    *[
        (integer_operator(op), "operator", f"does not read {op}")
        for op in ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
    ],
]


@pytest.mark.parametrize(("change", "rule", "sentence"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_file_that_breaks_a_rule_is_found(change, rule, sentence):
    file = Crafted()
    assert lint_model(file.model()) == ()
    change(file)
    found = [finding for finding in lint_model(file.model()) if finding.rule == rule]
    assert found
    assert any(sentence in finding.sentence for finding in found)
    assert all(finding.node for finding in found)


def test_a_coded_bias_is_one_finding_where_its_scale_is_a_product_too():
    file = Crafted()
    coded_bias(file)
    file.before("first/bdq", ("product", "Mul", "s", "first/s"))
    file.nodes["first/bdq"].input[1] = "product"
    assert [finding.rule for finding in lint_model(file.model())] == ["float-bias"]


def test_every_rule_has_a_crafted_file():
    assert {rule for _, rule, _ in CASES} == set(rules.names())


def test_the_good_file_is_one():
    onnx.checker.check_model(Crafted().model())


def test_codes_on_both_sides_of_a_sum_are_allowed():
    file = Crafted()
    file.before("sum", ("second/q", "QuantizeLinear", "second", "s", "z"), ("second/dq", "DequantizeLinear", "second/q", "s", "z"))
    file.nodes["sum"].input[0] = "second/dq"
    assert lint_model(file.model()) == ()


def test_a_sum_that_nothing_codes_needs_no_codes():
    file = Crafted()
    float_residual(file)
    del file.nodes["last/q"], file.nodes["last/dq"]
    file.nodes["head"].input[0] = "last"
    assert lint_model(file.model()) == ()


def test_the_command_line_checks_any_file(tmp_path):
    good, bad = Crafted(), Crafted()
    zero_point(bad)
    for name, file in (("good.onnx", good), ("bad.onnx", bad)):
        onnx.save(file.model(), tmp_path / name)
    fine = CliRunner().invoke(app, ["inspect", str(tmp_path / "good.onnx"), "--target", "tensorrt"])
    assert fine.exit_code == 0 and "keeps the documented rules" in " ".join(fine.stdout.split())
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "bad.onnx"), "--target", "tensorrt"])
    assert told.exit_code == 1 and "zero-point" in told.stdout
    data = CliRunner().invoke(app, ["inspect", str(tmp_path / "bad.onnx"), "--target", "tensorrt", "--json"])
    assert {finding["rule"] for finding in json.loads(data.stdout)["findings"]} == {"zero-point"}


def test_a_target_without_rules_says_which_has_some(tmp_path):
    result = CliRunner().invoke(app, ["inspect", "m.onnx", "--target", "onnxruntime"])
    assert result.exit_code == 2 and "documented rules to check (tensorrt)" in " ".join(result.stderr.split())


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(FileError, match="cannot be read"):
        lint(tmp_path / "gone.onnx")
    (tmp_path / "cut.onnx").write_bytes(Crafted().model().SerializeToString()[:500])
    with pytest.raises(FileError, match="no ONNX file, or was cut off"):
        lint(tmp_path / "cut.onnx")
