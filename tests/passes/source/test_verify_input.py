"""Every refusal of verify-input: its stable code, the node it names, all findings at once."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from helpers import Array, codes, parse, random, refused, rewritten, run_model
from onnx import TensorProto, helper, numpy_helper

from snncompiler import pipeline
from snncompiler.passes.source.to_base_opset import NEWEST_OPSET
from snncompiler.passes.source.verify_input import verify_input

RELU = "g (float[N,2] x) => (float[N,2] y) { [only] y = Relu(x) }"


def linear(**fields: object) -> onnx.ModelProto:
    """Gemm + Relu, with the fields of its weight overwritten."""
    model = parse(
        """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 0, 0, 1}>
        { [fc] h = Gemm(x, w)  [act] y = Relu(h) }"""
    )
    weight = model.graph.initializer[0]
    for name, value in fields.items():
        weight.ClearField(name)  # type: ignore[arg-type]
        if isinstance(value, (list, tuple)):
            getattr(weight, name).extend(value)
        elif value is not None:
            setattr(weight, name, value)
    return model


# --- versions ---


def test_no_opset_import() -> None:
    model = parse(RELU)
    del model.opset_import[:]
    (finding,) = refused(model)
    assert finding.code == "SNNC102" and "no ONNX opset" in finding.message


@pytest.mark.parametrize("opset", [6, 999, -1])
def test_opset_out_of_range(opset: int) -> None:
    model = parse(RELU)
    model.opset_import[0].version = opset
    (finding,) = refused(model)
    assert finding.code == "SNNC102"
    assert f"opset {opset}" in finding.message and f"7 to {NEWEST_OPSET}" in finding.message


def test_versions_come_together() -> None:
    model = parse(RELU)
    model.opset_import[0].version = 999
    model.ir_version = 999
    findings = refused(model)
    assert codes(findings) == ["SNNC102", "SNNC102"]
    assert "ir_version 999" in findings[1].message


@pytest.mark.parametrize("opset", range(7, NEWEST_OPSET + 1))
def test_every_supported_opset_comes_out_at_the_base_or_above(opset: int) -> None:
    checked, _ = verify_input(parse(RELU, opset=opset))
    assert checked.opset_import[0].version == max(opset, 17)


@pytest.mark.parametrize(
    ("imported", "used"),
    [
        ("ai.onnx", ""),
        pytest.param("", "ai.onnx"),
        pytest.param("ai.onnx", "ai.onnx"),
    ],
)
def test_ai_onnx_is_the_default_domain(imported: str, used: str) -> None:
    model = parse(RELU)
    model.opset_import[0].domain, model.graph.node[0].domain = imported, used
    checked, _ = verify_input(model)
    assert checked.opset_import[0].domain == checked.graph.node[0].domain == ""


def test_weights_listed_as_inputs_are_no_inputs() -> None:
    model = linear()
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2]))
    checked, _ = verify_input(model)
    assert [entry.name for entry in checked.graph.input] == ["x"]


def test_a_compiled_model_is_refused() -> None:
    model = parse(RELU)
    helper.set_model_props(model, {"snnc.version": "9.9"})
    (finding,) = refused(model)
    assert finding.code == "SNNC114" and "9.9" in finding.message


# --- structure ---


def test_cycle() -> None:
    text = """g (float[N,2] x) => (float[N,2] y)
    { [one] a = Add(x, b)  [two] b = Relu(a)  [out] y = Relu(b) }"""
    (finding,) = refused(parse(text))
    assert finding.code == "SNNC103" and "cycle" in finding.message
    assert "Add 'one'" in finding.message and "Relu 'two'" in finding.message


def test_a_node_that_reads_its_own_output() -> None:
    (finding,) = refused(parse("g (float[N,2] x) => (float[N,2] y) { [me] y = Add(x, y) }"))
    assert finding.code == "SNNC103" and "Add 'me'" in finding.message


def test_all_structural_errors_come_at_once() -> None:
    text = """g (float[N,2] x) => (float[N,2] y, float[N,2] nowhere)
    { [one] a = Relu(x)  [two] a = Neg(x)  [three] y = Add(a, ghost)  [four] x = Abs(a) }"""
    findings = refused(parse(text))
    assert codes(findings) == ["SNNC103"] * 4
    said = "\n".join(map(str, findings))
    for part in (
        "Neg 'two': 'a' is defined twice, also by Relu 'one'",
        "Add 'three': reads 'ghost'",
        "Abs 'four': 'x' is defined twice, also by the inputs",
        "output 'nowhere' is never defined",
    ):
        assert part in said


def test_duplicate_initializer() -> None:
    model = linear()
    model.graph.initializer.append(model.graph.initializer[0])
    (finding,) = refused(model)
    assert finding.code == "SNNC105" and "'w'" in finding.message and "2 times" in finding.message


def test_unsorted_nodes_are_sorted_with_a_warning() -> None:
    text = """g (float[N,2] x) => (float[N,2] y)
    { y = Add(b, a)  b = Neg(a)  a = Relu(x) }"""
    model = parse(text)
    checked, findings = verify_input(model)
    assert [node.op_type for node in checked.graph.node] == ["Relu", "Neg", "Add"]
    assert [(f.code, f.severity) for f in findings] == [("SNNC104", "warning")]


def test_the_given_model_is_not_changed() -> None:
    model = parse("g (float[N,2] x) => (float[N,2] y) { y = Relu(b)  b = Neg(x) }")
    before = model.SerializeToString(deterministic=True)
    pipeline.prepare(model)
    assert model.SerializeToString(deterministic=True) == before


def test_sorted_nodes_keep_their_order_without_a_warning() -> None:
    checked, findings = verify_input(linear())
    assert [node.op_type for node in checked.graph.node] == ["Gemm", "Relu"] and not findings


def test_a_long_chain_takes_linear_time() -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(20_000)]
    graph = helper.make_graph(
        nodes[::-1],
        "g",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("t20000", TensorProto.FLOAT, [1, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    start = time.perf_counter()
    checked, _ = verify_input(model)
    # Takes half a second; a quadratic sort takes minutes.
    assert time.perf_counter() - start < 10
    assert checked.graph.node[0].input[0] == "t0"


# --- operators ---


def test_unknown_operators_and_domains_are_all_named() -> None:
    text = """g (float[N,2] x) => (float[N,2] y)
    { [one] a = Rleu(x)  [two] b = acme.Spike(a)  [three] y = com.there.Relu(b) }"""
    findings = refused(parse(text, imports=', "acme" : 3'))
    assert codes(findings) == ["SNNC106"] * 3
    assert [f.node for f in findings] == ["Rleu 'one'", "Spike 'two'", "Relu 'three'"]
    assert "acme.Spike" in findings[1].message and "com.there.Relu" in findings[2].message


def test_an_operator_newer_than_the_opset_is_unknown() -> None:
    (finding,) = refused(
        parse("g (float[N,2] x) => (float[N,2] y) { [new] y = Gelu(x) }", opset=17)
    )
    assert finding.code == "SNNC106" and finding.node == "Gelu 'new'"


def test_control_flow_is_named() -> None:
    text = """g (float[N,2] x, bool c, int64 m) => (float[N,2] y, float[N,2] z)
    {
      [choice] y = If (c) <then_branch = t () => (float[N,2] u) { u = Relu(x) },
                           else_branch = e () => (float[N,2] v) { v = Neg(x) }>
      [again] z = Loop (m, c, x) <body = b (int64 i, bool k, float[N,2] w)
        => (bool kk, float[N,2] ww) { kk = Identity(k)  ww = Relu(w) }>
    }"""
    findings = refused(parse(text))
    assert [(f.code, f.node) for f in findings] == [
        ("SNNC111", "If 'choice'"),
        ("SNNC111", "Loop 'again'"),
    ]


# --- local functions ---


def with_functions(*bodies: str, call: str = "f0") -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N,2] x) => (float[N,2] y) {{ y = local.{call}(x) }}"""
    functions = [
        f'<domain: "local", opset_import: ["" : 17, "local" : 1]> {body}' for body in bodies
    ]
    return onnx.parser.parse_model("\n".join([text, *functions]))


def test_local_functions_are_inlined() -> None:
    model = with_functions(
        "f0 (a) => (b) { h = local.f1(a)  b = Neg(h) }", "f1 (a) => (b) { b = Relu(a) }"
    )
    checked, _ = verify_input(model)
    assert [node.op_type for node in checked.graph.node] == ["Relu", "Neg"]
    assert not checked.functions


@pytest.mark.parametrize(
    "bodies",
    [
        ["f0 (a) => (b) { b = local.f0(a) }"],
        ["f0 (a) => (b) { b = local.f1(a) }", "f1 (a) => (b) { b = local.f0(a) }"],
    ],
)
def test_recursive_functions(bodies: list[str]) -> None:
    (finding,) = refused(with_functions(*bodies))
    assert finding.code == "SNNC112" and "calls itself" in finding.message


def test_functions_that_nobody_calls_are_left_out() -> None:
    """One without a name, and with an attribute of no type: found by fuzzing."""
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }", {})
    function = model.functions.add(domain="local")
    function.node.add(domain="x").attribute.add()
    function.attribute_proto.add(type=onnx.AttributeProto.TENSOR)
    checked, _ = verify_input(model)
    assert not checked.functions
    assert pipeline.prepare(model).any_batch


def test_a_function_may_be_called_along_two_ways() -> None:
    model = with_functions(
        "f0 (a) => (b) { h = local.f2(a)  i = local.f1(h)  b = Add(h, i) }",
        "f1 (a) => (b) { b = local.f2(a) }",
        "f2 (a) => (b) { b = Relu(a) }",
    )
    checked, _ = verify_input(model)
    assert [node.op_type for node in checked.graph.node] == ["Relu", "Relu", "Add"]


def test_functions_that_explode_are_refused_at_once() -> None:
    bodies = [
        f"f{i} (a) => (b) {{ h = local.f{i + 1}(a)  b = local.f{i + 1}(h) }}" for i in range(60)
    ]
    model = with_functions(*bodies, "f60 (a) => (b) { b = Relu(a) }")
    start = time.perf_counter()
    (finding,) = refused(model)
    assert time.perf_counter() - start < 1
    assert finding.code == "SNNC112" and "1,000,000" in finding.message


def test_functions_that_explode_in_subgraphs_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hangs(model: onnx.ModelProto) -> onnx.ModelProto:
        raise AssertionError("the inliner was called for 2^60 nodes")

    monkeypatch.setattr(onnx.inliner, "inline_local_functions", hangs)
    bodies = [
        f"""f{i} (a) => (b) {{
          c = Constant <value = bool {{1}}> ()
          b = If (c) <then_branch = t () => (u) {{ v = local.f{i + 1}(a)  u = local.f{i + 1}(v) }},
                      else_branch = e () => (w) {{ w = Identity(a) }}>
        }}"""
        for i in range(60)
    ]
    (finding,) = refused(with_functions(*bodies, "f60 (a) => (b) { b = Relu(a) }"))
    assert finding.code in ("SNNC111", "SNNC112")


def test_recursion_through_a_subgraph_is_refused() -> None:
    model = with_functions(
        """f0 (a) => (b) {
          c = Constant <value = bool {1}> ()
          b = If (c) <then_branch = t () => (u) { u = local.f0(a) },
                      else_branch = e () => (w) { w = Identity(a) }>
        }"""
    )
    (finding,) = refused(model)
    assert finding.code in ("SNNC111", "SNNC112")


# --- weights ---


def test_short_raw_data() -> None:
    (finding,) = refused(linear(float_data=None, raw_data=b"\0" * 15))
    assert finding.code == "SNNC107"
    assert "'w'" in finding.message and "15 bytes" in finding.message and "16" in finding.message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"float_data": [1.0, 2.0, 3.0]}, "3 values"),
        ({"dims": [2, -2]}, "negative"),
        ({"dims": [1 << 31, 1 << 31, 4]}, "overflows"),
        ({"dims": [1 << 20, 1 << 20]}, "needs 1,099,511,627,776"),
        ({"data_type": 0}, "data type 0"),
        ({"data_type": 99}, "data type 99"),
        ({"float_data": None}, "0 values"),
    ],
)
def test_data_that_does_not_fit(fields: dict[str, object], said: str) -> None:
    (finding,) = refused(linear(**fields))
    assert finding.code == "SNNC107" and said in finding.message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_weights_are_shown_with_their_index(bad: float) -> None:
    (finding,) = refused(linear(float_data=[1.0, 2.0, bad, bad]))
    assert finding.code == "SNNC108"
    assert "'w'" in finding.message and str(bad) in finding.message
    assert "[1, 0]" in finding.message and "2 such" in finding.message


CONSTANT_NODE = """g (float[N,2] x) => (float[N,2] y)
{ [weights] w = Constant <value = float[2,2] {1, 0, 0, 1}> ()
  h = MatMul(x, w)  y = Relu(h) }"""


def test_not_finite_weights_in_constant_nodes() -> None:
    model = parse(CONSTANT_NODE)
    model.graph.node[0].attribute[0].t.float_data[2] = np.nan
    (finding,) = refused(model)
    assert finding.code == "SNNC108" and "[1, 0]" in finding.message


def test_short_data_in_constant_nodes() -> None:
    model = parse(CONSTANT_NODE)
    model.graph.node[0].attribute[0].t.float_data.pop()
    (finding,) = refused(model)
    assert finding.code in ("SNNC107", "SNNC110")


SUPPORTED = "UNDEFINED FLOAT INT64 INT32 INT16 INT8 UINT64 UINT32 UINT16 UINT8 BOOL"
UNSUPPORTED = sorted(set(TensorProto.DataType.keys()) - set(re.split(" ", SUPPORTED)))


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_other_weight_types_are_refused_and_never_crash(kind: str) -> None:
    # 16 bytes fit no type but FLOAT's; what is asked is a refusal of the weight by name.
    number = TensorProto.DataType.Value(kind)
    (finding,) = refused(linear(float_data=None, raw_data=b"\0" * 16, data_type=number))
    assert finding.code in ("SNNC107", "SNNC109", "SNNC110")
    assert len(UNSUPPORTED) >= 15


@pytest.mark.parametrize("name", ["FLOAT8E4M3FN", "FLOAT8E5M2", "BFLOAT16"])
def test_unsupported_float_types_are_named(name: str) -> None:
    kind = TensorProto.DataType.Value(name)
    size = helper.tensor_dtype_to_np_dtype(kind).itemsize
    (finding,) = refused(linear(float_data=None, raw_data=b"\0" * 4 * size, data_type=kind))
    assert finding.code == "SNNC109" and name in finding.message and "'w'" in finding.message


def test_sparse_weights() -> None:
    model = linear()
    weight = model.graph.initializer.pop()
    indices = helper.make_tensor("at", TensorProto.INT64, [1], [0])
    values = helper.make_tensor(weight.name, TensorProto.FLOAT, [1], [1.0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 2]))
    (finding,) = refused(model)
    assert finding.code == "SNNC109" and "'w' is sparse" in finding.message


def test_sparse_values_of_constant_nodes() -> None:
    model = parse(CONSTANT_NODE)
    indices = helper.make_tensor("at", TensorProto.INT64, [1], [0])
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    sparse = helper.make_sparse_tensor(values, indices, [2, 2])
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(helper.make_attribute("sparse_value", sparse))
    (finding,) = refused(model)
    assert finding.code == "SNNC109"


@pytest.mark.parametrize("kind", ["bfloat16", "float8e5m2", "string", "complex64"])
def test_inputs_of_other_types(kind: str) -> None:
    finding = refused(parse(f"g ({kind}[N,2] x) => ({kind}[N,2] y) {{ y = Identity(x) }}"))[0]
    assert finding.code == "SNNC109" and "input 'x'" in finding.message


def test_values_of_bfloat16_are_refused_where_they_are_made() -> None:
    text = """g (float[N,2] x) => (float[N,2] y)
    { [half] a = Cast <to = 16> (x)  [back] b = Cast <to = 1> (a)  y = Relu (b) }"""
    (finding,) = refused(parse(text))
    assert finding.code == "SNNC109" and finding.node == "Cast 'half'"
    assert "BFLOAT16" in finding.message and "float32" in finding.hint


@pytest.mark.parametrize(
    "domains", [("", ""), ("", "ai.onnx"), ("ai.onnx", "ai.onnx"), ("ai.onnx", "")]
)
@pytest.mark.parametrize("version", [17, 18])
def test_the_default_domain_twice(domains: tuple[str, str], version: int) -> None:
    """skl2onnx writes it twice; two versions leave open which operators are meant."""
    model = linear()
    del model.opset_import[:]
    for domain, number in zip(domains, (17, version), strict=True):
        model.opset_import.append(onnx.helper.make_opsetid(domain, number))
    if version == 17:
        checked, _ = verify_input(model)
        assert [(e.domain, e.version) for e in checked.opset_import] == [("", 17)]
        return
    (finding,) = refused(model)
    assert finding.code == "SNNC102" and "2 versions, 17 and 18" in finding.message


def test_weights_of_bfloat16_are_refused_by_name() -> None:
    model = linear(float_data=[1.0, 1.0, 0.0, 1.0])
    half = onnx.TensorProto(name="w", data_type=onnx.TensorProto.BFLOAT16, dims=[2, 2])
    half.raw_data = bytes(8)
    model.graph.initializer[0].CopyFrom(half)
    assert ("SNNC109", "BFLOAT16") in [(f.code, f.message.split()[-1]) for f in refused(model)]


def test_operators_and_weights_come_together() -> None:
    model = linear(float_data=[1.0, np.nan, 0.0, 1.0])
    model.graph.node[1].op_type = "Rleu"
    assert codes(refused(model)) == ["SNNC106", "SNNC108"]


# --- the checker ---

IMAGE = "g (float[N,3,4,4] x) => (float[N,2,?,?] y) <float[2,3,1,1] w = {1,1,1,1,1,1}>"


@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param("group = 2"),
        "strides = [0, 0]",
        pytest.param('auto_pad = "NOWHERE"'),
        "kernel_shape = [1]",
        "group = 1.5",
    ],
)
def test_conv_with_wrong_attributes(attributes: str) -> None:
    text = f"{IMAGE} {{ [conv] h = Conv <{attributes}> (x, w)  y = Relu(h) }}"
    (finding,) = refused(parse(text))
    assert finding.code == "SNNC110"
    assert "conv" in finding.message + finding.node


@pytest.mark.parametrize("attributes", ["", " <group = 1>"])
def test_conv_with_weights_of_other_channels(attributes: str) -> None:
    text = f"{IMAGE} {{ [conv] h = Conv{attributes} (x, w)  y = Relu(h) }}"
    model = parse(text.replace("N,3,4,4", "N,2,4,4"))
    (finding,) = refused(model)
    assert (finding.code, finding.node) == ("SNNC110", "Conv 'conv'")
    assert finding.message == "it has 2 input channels, its weights and group 1 need 3"


def test_conv_of_an_unknown_shape() -> None:
    """The shape is an input, of one number here: no convolution takes it."""
    text = """g (float[N,3,4,4] x, int64[z] s) => (float[N,2,?,?] y)
    <float[2,3,1,1] w = {1,1,1,1,1,1}> { q = Reshape (x, s)  h = Conv (q, w)  y = Relu (h) }"""
    (finding,) = refused(parse(text))
    assert finding.code == "SNNC110" and finding.node.startswith("Conv")


def test_a_declared_output_that_is_not_true() -> None:
    (finding,) = refused(parse("g (float[N,2] x) => (float[N,3] y) { [act] y = Relu(x) }"))
    assert finding.code == "SNNC110"


def test_an_input_given_twice() -> None:
    model = linear()
    model.graph.input.append(model.graph.input[0])
    assert set(codes(refused(model))) <= {"SNNC103", "SNNC110"}


# --- conversion of old opsets ---

OLD = """g (float[N,2,4,4] x) => (float[N,2] y)
<float[2,2,1,1] w = {1,-1,0.5,2}, float[2] g = {1,2}, float[2] b = {0,1}, float[2] m = {0.5,0},
 float[2] v = {1,4}, float[4] s = {1,1,2,2}, float[2,2] f = {1,0,2,1}, float[2] c = {0.5,-1}>
{
  a = Conv (x, w)
  n = BatchNormalization <epsilon = 0.001> (a, g, b, m, v)
  r = Clip <min = 0.0, max = 6.0> (n)
  u = Upsample <mode = "nearest"> (r, s)
  p = Pad <pads = [0,0,1,1,0,0,1,1], value = 0.0> (u)
  i = Slice <axes = [2], starts = [1], ends = [9]> (p)
  q = ReduceMean <axes = [2], keepdims = 0> (i)
  j = Unsqueeze <axes = [2]> (q)
  k = Squeeze <axes = [2]> (j)
  d = Dropout (k)
  o = GlobalAveragePool (d)
  l = Flatten (o)
  t = Gemm (l, f, c)
  z = Relu (t)
  y = Softmax (z)
}"""


@pytest.mark.parametrize("opset", [9])
def test_old_spellings_convert_and_give_the_same(opset: int) -> None:
    model = parse(OLD, opset=opset)
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    (before,) = run_model(model, x=x)
    (now,) = run_model(rewritten(model), x=x)
    # The same sums of at most 64 terms, folded batch-norm: tens of float32 roundings.
    np.testing.assert_allclose(now, before, rtol=1e-5, atol=1e-6)


# --- bytes that are nowhere allowed for ---


@pytest.mark.parametrize(
    ("name", "where"),
    [
        (b"nodename", "node"),
        (b"h_tensor", "tensor"),
        (b"w_weight", "weight"),
        (b"MatMul", "operator"),
        (b"the_graph", "graph"),
    ],
)
def test_names_that_are_no_text_are_refused_or_kept(name: bytes, where: str) -> None:
    model = parse(
        """the_graph (float[N,2] x) => (float[N,2] y) <float[2,2] w_weight = {1, 0, 0, 1}>
        { [nodename] h_tensor = MatMul (x, w_weight)  y = Relu (h_tensor) }"""
    )
    raw = model.SerializeToString().replace(name, b"\xff\xfe" + name[2:])
    assert raw != model.SerializeToString()
    for finding in refused(raw):
        assert str(finding).isprintable()


def test_control_characters_in_names_are_escaped() -> None:
    model = parse(RELU)
    model.graph.node[0].name = "a\x1b[31mb\n"
    model.graph.node[0].op_type = "Re\x07lu"
    (finding,) = refused(model)
    assert str(finding).isprintable() and "a\\x1b[31mb\\n" in str(finding)


def test_an_input_of_no_known_type() -> None:
    model = parse(RELU)
    model.graph.input[0].type.tensor_type.elem_type = 68
    assert "SNNC109" in codes(refused(model))


@pytest.mark.parametrize(
    ("version", "there"), [(0, False), (1, True), ((1 << 31) - 1, True), (1 << 31, False)]
)
def test_the_last_versions_of_a_domain(version: int, there: bool) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "ours" : 1]> '
        "g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }"
    )
    model.opset_import[1].version = version
    found = [] if there else [f"version {version} of domain 'ours' does not exist"]
    assert [one.message for one in refused(model)] == found if found else verify_input(model)


def test_a_domain_of_a_version_beyond_32_bits() -> None:
    model = parse("g (float[N,2] x) => (float[N,2] y) { y = acme.Relu (x) }")
    model.opset_import.append(helper.make_opsetid("acme", 1 << 40))
    assert codes(refused(model)) == ["SNNC102"]


def test_a_pad_below_nothing_does_not_end_the_process() -> None:
    code = """
import onnx.parser
from snncompiler import pipeline
from snncompiler.errors import Refused
model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
g (float[N,2,4] x) => (float[N,2,?] y) <int64[6] p = {0, 0, -100, 0, 0, 0}, int64[1] a = {0},
  int64[1] b = {9}, int64[1] c = {2}>
{ q = Pad (x, p)  s = Slice (q, a, b, c)  y = Relu (s) }''')
try:
    pipeline.prepare(model)
except Refused:
    raise SystemExit(1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    # Refused, or taken with an axis of no elements: the process lives.
    assert done.returncode in (0, 1), done.stderr


def test_a_double_in_a_constant_node_that_float32_cannot_hold_is_refused() -> None:
    model = parse("g (double[N,2] x) => (double[N,2] y) { h = Mul (x, k)  y = Relu (h) }")
    node = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.array(1e300)))
    model.graph.node.insert(0, node)
    (finding,) = refused(model)
    assert finding.code == "SNNC109" and "does not fit float32" in finding.message


# --- infinities with a meaning ---

#: Statements that make `p` of `s` [N,2,4]; `inf` is infinite, `mask` is 0 and -inf.
UNBOUNDED = [
    "p = Clip (s, zero, inf)",
    "p = Clip (s, lowest, inf)",
    "u = Identity (inf)  p = Clip (s, zero, u)",
    "z = Max (s, lowest)  p = Min (z, inf)",
    "p = Where (chosen, s, wide)",
    "v = Slice (wide, begin, end)  p = Where (chosen, s, v)",
    "q = Add (s, mask)  p = Softmax (q)",
    "t = Less (s, inf)  p = Cast <to = 1> (t)",
    "q = Pad (s, pads, lowest)  p = ReduceMax <axes = [2]> (q)",
]
MEANT = {
    "zero": np.float32(0),
    "inf": np.float32(np.inf),
    "lowest": np.float32(-np.inf),
    "wide": np.full((1, 4), -np.inf, np.float32),
    "mask": np.array([0, -np.inf, 0, 0], np.float32),
    "chosen": np.array([True, True, False, True]),
    "begin": np.array([0], np.int64),
    "end": np.array([1], np.int64),
    "pads": np.array([0, 0, 0, 0, 0, 1], np.int64),
}


def unbounded(step: str, changes: dict[str, Array] | None = None) -> onnx.ModelProto:
    text = f"""g (float[N,2,4] x) => (float[N,2,M] y, float[N,2,L] p)
    {{ s = Relu (x)  {step}  y = Relu (s) }}"""
    constants = {**MEANT, **(changes or {})}
    return parse(text, {n: a for n, a in constants.items() if re.search(rf"\b{n}\b", step)})


@pytest.mark.parametrize("step", UNBOUNDED)
def test_an_infinity_may_be_a_bound_a_filling_or_a_mask(step: str) -> None:
    model, x = unbounded(step), random(1, 3, 2, 4)
    prepared = pipeline.prepare(model)
    for found, wanted in zip(run_model(prepared.ann, x=x), run_model(model, x=x), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("step", [step for step in UNBOUNDED if "inf" in step])
def test_a_bound_that_is_no_number_stays_refused(step: str) -> None:
    assert "SNNC108" in codes(refused(unbounded(step, {"inf": np.float32(np.nan)})))


@pytest.mark.parametrize(
    "step",
    [
        "p = Add (s, inf)",
        "p = Mul (s, inf)",
        "q = Add (s, mask)  p = Softmax (q)  r = Relu (q)",
        "p = Clip (s, zero, inf)  q = Sub (s, inf)",
        "p = Clip (inf, zero, s)",
    ],
)
def test_an_infinity_that_is_computed_with_is_refused(step: str) -> None:
    assert codes(refused(unbounded(step))) == ["SNNC108"]
