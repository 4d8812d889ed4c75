"""spell-ml, maps and text: pipelines as skl2onnx writes them convert, with their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import (
    Array,
    assert_close,
    codes,
    compile_text,
    op_counts,
    ops,
    random,
    refused,
    rewritten,
    run_model,
)
from onnx import TensorProto, helper, numpy_helper

from snncompiler import pipeline
from snncompiler.analysis import evaluate as evaluation
from snncompiler.ir.graph import export_model, import_model
from snncompiler.passes.base import Context
from snncompiler.passes.source.spell_ml import SpellMl

ML = "ai.onnx.ml"
CLASSES = ["cat", "dog", "eel"]

#: Preprocessing of x [N,5] that makes z, as operators of ai.onnx.ml, and the type of x.
FRONTS: dict[str, tuple[list[onnx.NodeProto], int]] = {
    "Scaler": ([helper.make_node("Scaler", ["x"], ["z"], domain=ML, offset=[0.1, 0.2, -0.3, 0, 1],
                                 scale=[1.0, 2.0, 0.5, 1.0, 3.0])], TensorProto.FLOAT),
    "Scaler of whole numbers": ([helper.make_node("Scaler", ["x"], ["z"], domain=ML, offset=[1.0],
                                                  scale=[0.5])], TensorProto.INT64),
    "Normalizer L1": ([helper.make_node("Normalizer", ["x"], ["z"], domain=ML, norm="L1")],
                      TensorProto.FLOAT),
    "Normalizer L2": ([helper.make_node("Normalizer", ["x"], ["z"], domain=ML, norm="L2")],
                      TensorProto.FLOAT),
    "Normalizer MAX": ([helper.make_node("Normalizer", ["x"], ["z"], domain=ML, norm="MAX")],
                       TensorProto.FLOAT),
    "Imputer": ([helper.make_node("Imputer", ["x"], ["z"], domain=ML, imputed_value_floats=[0.5],
                                  replaced_value_float=0.0)], TensorProto.FLOAT),
    "Binarizer": ([helper.make_node("Binarizer", ["x"], ["z"], domain=ML, threshold=0.25)],
                  TensorProto.FLOAT),
    "ArrayFeatureExtractor": (
        [helper.make_node("ArrayFeatureExtractor", ["x", "order"], ["z"], domain=ML)],
        TensorProto.FLOAT),
    "FeatureVectorizer": ([
        helper.make_node("Split", ["x"], ["p", "q"], axis=1, name="cut"),
        helper.make_node("Scaler", ["q"], ["s"], domain=ML, offset=[0.5], scale=[2.0]),
        helper.make_node("FeatureVectorizer", ["p", "s"], ["z"], domain=ML,
                         inputdimensions=[3, 2])], TensorProto.FLOAT),
    "LinearRegressor": ([helper.make_node(
        "LinearRegressor", ["x"], ["z"], domain=ML, targets=5, intercepts=[0.1, 0, 0.3, 0, -0.2],
        coefficients=[float(v) for v in random(8, 25)])], TensorProto.FLOAT),
}  # fmt: skip


def pipe(
    front: str, labels: list[str] | list[int], *, zipmap: bool, more: list[Any] | None = None
) -> onnx.ModelProto:
    """Preprocessing, one hidden layer, Softmax, the label of the largest, and a ZipMap."""
    nodes, kind = FRONTS[front]
    text = isinstance(labels[0], str)
    keys = {"classlabels_strings" if text else "classlabels_int64s": labels}
    nodes = [
        *nodes,
        helper.make_node("MatMul", ["z", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"], name="hidden"),
        helper.make_node("MatMul", ["r", "v"], ["d"]),
        helper.make_node("Softmax", ["d"], ["p_"], axis=1),
        helper.make_node("ArgMax", ["p_"], ["i"], axis=1),
        helper.make_node("ArrayFeatureExtractor", ["classes", "i"], ["l"], domain=ML),
        helper.make_node("Reshape", ["l", "flat"], ["label"]),
        helper.make_node("ZipMap", ["p_"], ["scores"], domain=ML, name="zip", **keys)
        if zipmap
        else helper.make_node("Identity", ["p_"], ["scores"]),
        *(more or []),
    ]
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(
            TensorProto.STRING if text else TensorProto.INT64,
            helper.make_tensor_type_proto(TensorProto.FLOAT, None),
        )
    )
    array = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 3])
    label_kind = TensorProto.STRING if text else TensorProto.INT64
    arrays = {
        "w": random(1, 5, 8), "b": random(2, 8), "v": random(3, 8, 3),
        "flat": np.array([-1]), "order": np.array([4, 0, 1, 3, 2]), "split": np.array([3, 2]),
    }  # fmt: skip
    for node in nodes:
        if node.name == "cut":
            node.input.append("split")
            node.name = ""
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(a, n) for n, a in arrays.items() if n in used]
    constants.append(helper.make_tensor("classes", label_kind, [3], labels))
    graph = helper.make_graph(
        nodes,
        "pipeline",
        [helper.make_tensor_value_info("x", kind, ["N", 5])],
        [
            helper.make_tensor_value_info("label", label_kind, ["N"]),
            helper.make_value_info("scores", maps if zipmap else array),
        ],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)]
    )
    model.ir_version = 8
    return model


def samples(front: str) -> Array:
    x = random(5, 12, 5)
    x[::3, 2] = 0  # what an Imputer replaces
    return x if FRONTS[front][1] == TensorProto.FLOAT else np.rint(3 * x).astype(np.int64)


@pytest.mark.parametrize("front", FRONTS)
def test_preprocessing_of_a_pipeline_converts_and_takes_any_batch(front: str) -> None:
    model, x = pipe(front, CLASSES, zipmap=False), samples(front)
    prepared = pipeline.prepare(model)
    assert prepared.any_batch and not prepared.context.batch_lost
    labels, wanted = run_model(model, x=x)
    snn = compile_text(model, x)
    assert op_counts(snn)["RMPNeuron"] == 1
    found, decoded = run_model(snn, x=x, snnc_steps=np.array(1024))
    # C/T: one layer, off by θ/T in eight neurons; the Softmax passes it on.
    assert_close(decoded, wanted, relative=20 / 1024)
    assert np.mean(np.asarray(found) == np.asarray(labels)) >= 11 / 12


def ml(op: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, ["x"], ["z"], domain=ML, **attrs)


def alone(node: onnx.NodeProto, columns: int = 5) -> onnx.ModelProto:
    """x [N,5], one node of the domain, and a ReLU."""
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["z"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", columns])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return model


@pytest.mark.parametrize(
    "node",
    [
        ml("Binarizer"),
        ml("Normalizer", norm="L1"),
        ml("Normalizer", norm="L2"),
        ml("Imputer", imputed_value_floats=[1.0, 2.0, 3.0, 4.0, 5.0]),
        ml("Imputer", imputed_value_floats=[7.0], replaced_value_float=float("nan")),
        ml("LinearRegressor", coefficients=[1.0, -2.0, 3.0, -4.0, 5.0]),
    ],
)
def test_what_is_not_given_is_as_onnxruntime_takes_it(node: onnx.NodeProto) -> None:
    """Equal where nothing is added up; else the sum of five products in another order."""
    model = alone(node, 1 if node.op_type == "LinearRegressor" else 5)
    x = random(1, 6, 5)
    x[1], x[2, 3] = 0, 0  # a row of nothing
    if any(entry.name == "replaced_value_float" for entry in node.attribute):
        x[4, 1] = np.nan
    spelled = rewritten(model, "spell-ml")
    assert node.op_type not in ops(spelled)
    (wanted,), (found,) = run_model(model, x=x), run_model(spelled, x=x)
    assert_close(found, wanted, relative=8 * 2.0**-24)


@pytest.mark.parametrize(("offset", "scale"), [([0.5], []), ([], [3.0]), ([], [])])
def test_a_scaler_without_offset_or_scale(offset: list[float], scale: list[float]) -> None:
    """Both are optional in the standard; onnxruntime wants them.  Exact: one operation each."""
    attrs = {"offset": offset} if offset else {}
    attrs |= {"scale": scale} if scale else {}
    graph, x = import_model(alone(ml("Scaler", **attrs))), random(1, 6, 5)
    SpellMl().run(graph, Context())
    wanted = np.maximum((x - np.float32(sum(offset))) * np.float32(sum(scale) or 1), 0)
    assert np.array_equal(run_model(export_model(graph), x=x)[0], wanted)


@pytest.mark.parametrize(
    "node",
    [
        ml("LinearRegressor", coefficients=[1.0] * 5, post_transform="SOFTMAX"),
        ml("LinearRegressor"),
        ml("Normalizer", norm="MAX"),
        ml("Imputer", imputed_value_int64s=[1]),
    ],
)
def test_what_has_no_spelling_stays(node: onnx.NodeProto) -> None:
    graph = import_model(alone(node))
    SpellMl().run(graph, Context())
    assert ops(graph) == [node.op_type, "Relu"]


@pytest.mark.parametrize("labels", [CLASSES, [7, 3, 5]])
def test_a_zip_map_is_given_as_its_array_and_the_columns_are_told(labels: Any) -> None:
    model, x = pipe("Scaler", labels, zipmap=True), samples("Scaler")
    prepared = pipeline.prepare(model)
    (note,) = [f for f in prepared.findings if "map" in f.message]
    assert note.code == "SNNC206" and note.node == "ZipMap 'zip'"
    assert ", ".join(map(str, labels)) in note.message
    _, maps = run_model(model, x=x)
    wanted = np.array([[one[key] for key in labels] for one in maps])
    _, decoded = run_model(compile_text(model, x), x=x, snnc_steps=np.array(1024))
    assert_close(decoded, wanted, relative=20 / 1024)  # C/T, as above


def test_text_and_maps_are_compiled_compared_and_evaluated(tmp_path: Path) -> None:
    path, x = tmp_path / "pipe.onnx", samples("Scaler")
    onnx.save(pipe("Scaler", CLASSES, zipmap=True), path)
    snn = compile_text(path, x)  # type: ignore[arg-type]
    result = evaluation.evaluate(path, snn, x, steps=[1024])
    # One layer: C/T, as above.
    assert 0 < result.results[0].relative_error < 20 / 1024


def test_text_in_constant_nodes_stays() -> None:
    model, x = pipe("Scaler", CLASSES, zipmap=False), samples("Scaler")
    (held,) = [t for t in model.graph.initializer if t.name == "classes"]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["classes"], value_strings=CLASSES))
    model.graph.initializer.remove(held)
    labels, _ = run_model(model, x=x)
    found, _ = run_model(compile_text(model, x), x=x, snnc_steps=np.array(4096))
    assert list(found) == list(labels)


def test_other_outputs_that_are_no_tensors_are_refused() -> None:
    more = [helper.make_node("SequenceConstruct", ["p_", "p_"], ["both"])]
    model = pipe("Scaler", CLASSES, zipmap=False, more=more)
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.output.append(helper.make_value_info("both", kind))
    (finding,) = refused(model)
    assert finding.code == "SNNC109" and "'both' is a sequence" in finding.message


def test_inputs_that_are_no_tensors_are_refused() -> None:
    kind = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    nodes = [
        helper.make_node("DictVectorizer", ["m"], ["x"], domain=ML, string_vocabulary=["a", "b"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_value_info("m", kind)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)]
    )
    model.ir_version = 8
    found = refused(model)
    assert codes(found) == ["SNNC109"] and "'m' is a map" in found[0].message
