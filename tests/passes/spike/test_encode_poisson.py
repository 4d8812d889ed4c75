"""encode-poisson: the input as signed random spikes whose mean over time is the input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, op_counts, parse, random, run_model, told

from snncompiler import pipeline
from snncompiler.analysis.verify import verify
from snncompiler.calibration import charges as running
from snncompiler.emission.save import serialize
from snncompiler.errors import Refused, UsageError
from snncompiler.ir.graph import with_outputs
from snncompiler.ir.settings import Options

#: All weights and inputs are multiples of 1/8, and the largest input is 1: sums are exact.
NETWORK = """g (float[N,4] x) => (float[N,3] y)
{ a = MatMul (x, w0)  [one] p = Relu (a)  b = MatMul (p, w1)  [two] q = Relu (b)
  y = MatMul (q, w2) }"""


def eighths(seed: int, *shape: int) -> Array:
    return (np.random.default_rng(seed).integers(-8, 9, shape) / 8).astype(np.float32)


def network() -> onnx.ModelProto:
    return parse(NETWORK, {"w0": eighths(1, 4, 6), "w1": eighths(2, 6, 5), "w2": eighths(3, 5, 3)})


def images(count: int) -> Array:
    x = eighths(4, count, 4)
    x[0, 0] = -1.0
    return x


def compiled(model: onnx.ModelProto, data: Any, **options: Any) -> pipeline.Compiled:
    chosen = {
        "encode": "poisson", "threshold": "max", "correction": "none", "readout": "mean",
        "steps": 16, **options,
    }  # fmt: skip
    return pipeline.compile_model(model, Options(**chosen), data)


def encoded(made: pipeline.Compiled, steps: int, **feeds: Array) -> dict[str, Array]:
    """The spikes of every input, [steps, N, ...], in the compiled network over `steps` steps."""
    count = len(next(iter(feeds.values())))
    options = Options(steps=steps, encode="poisson", emit="cuda-graph", batch=count, readout="mean")
    model = pipeline.emit(made.prepared, made.calibration, options)
    nodes = [node for node in model.graph.node if node.op_type == "PoissonEncoder"]
    watched = with_outputs(model, [node.output[0] for node in nodes])
    found = dict(
        zip([o.name for o in watched.graph.output], run_model(watched, **feeds), strict=True)
    )
    return {node.input[0]: found[node.output[0]].reshape(steps, count, -1) for node in nodes}


# --- what a user sees ---


def test_the_mean_of_the_spikes_tends_to_the_input() -> None:
    x = images(200)
    made = compiled(network(), x)
    spikes = encoded(made, 2000, x=x)["x"]
    assert set(np.unique(spikes)) == {-1.0, 0.0, 1.0}
    # The sign is that of the input, and so is zero.
    assert (spikes * np.sign(x) >= 0).all() and not spikes[:, x == 0].any()
    assert (spikes[:, abs(x) == 1] != 0).all()
    mean, chance = spikes.mean(axis=0), abs(x)
    deviation = np.sqrt(chance * (1 - chance) / 2000)
    score = (abs(mean) - chance)[deviation > 0] / deviation[deviation > 0]
    # Of 700 scores: normal, so none beyond 4.5, and their variance is 1 ± 5·sqrt(2/700).
    assert abs(score).max() < 4.5 and np.square(score).mean() == pytest.approx(1, abs=0.27)
    assert abs(score.mean()) < 4.5 / np.sqrt(score.size)


def test_steps_pixels_and_images_are_independent() -> None:
    x = np.full((60, 4), 0.5, np.float32)
    x[0, 0] = 1
    made = compiled(network(), x)
    signs = 2 * encoded(made, 64, x=x)["x"][:, 1:] - 1
    count = signs.size
    neighbours = [
        (signs[1:], signs[:-1]),
        (signs[:, 1:], signs[:, :-1]),
        (signs[..., 1:], signs[..., :-1]),
    ]
    for one, other in neighbours:
        # A mean of products of independent signs: within 4.5 of 1/sqrt(n).
        assert abs((one * other).mean()) < 4.5 / np.sqrt(one.size)
    assert abs(signs.mean()) < 4.5 / np.sqrt(count)


def test_the_decoded_output_tends_to_that_of_the_ann() -> None:
    model, x = network(), images(24)
    snn = compiled(model, x).model
    (wanted,) = run_model(model, x=x)
    errors = []
    for steps in (64, 4096):
        (found,) = run_model(snn, x=x, snnc_steps=np.array(steps))
        errors.append(float(np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean())))
    # Noise falls as 1/sqrt(T), the quantization faster: an eighth or less, at least a quarter.
    assert errors[1] < errors[0] / 4 and errors[1] < 0.05


def test_neither_batches_nor_chunks_change_the_spikes() -> None:
    x = images(7)
    snn = compiled(network(), x).model
    (whole,) = run_model(snn, x=x)
    for chunk in (1, 3, 5, 16, 40):
        (found,) = run_model(snn, x=x, snnc_chunk=np.array(chunk))
        assert np.array_equal(found, whole), chunk
    for size in (1, 2, 5):
        parts = [
            run_model(snn, x=x[at : at + size], snnc_first_image=np.array(at))[0]
            for at in range(0, 7, size)
        ]
        assert np.array_equal(np.concatenate(parts), whole), size
    # Without saying so, every call begins with image 0.
    (again,) = run_model(snn, x=x[2:3])
    assert not np.array_equal(again, whole[2:3])


@pytest.mark.parametrize("options", [{"unroll": "loop"}, {"unroll": "steps"},
                                     {"emit": "cuda-graph", "batch": 7}])  # fmt: skip
def test_every_way_of_unrolling_draws_the_same_spikes(options: dict[str, Any]) -> None:
    x = images(7)
    fold, other = compiled(network(), x).model, compiled(network(), x, **options).model
    (wanted,) = run_model(fold, x=x)
    (found,) = run_model(other, x=x)
    assert np.array_equal(found, wanted)
    given = {"snnc_seed": np.array(5), "snnc_first_image": np.array(11)}
    (moved,) = run_model(other, x=x, **given)
    assert np.array_equal(moved, run_model(fold, x=x, **given)[0])
    assert not np.array_equal(moved, found)


def test_seed_and_first_image_can_be_given() -> None:
    x = images(7)
    made = compiled(network(), x, seed=3)
    properties = told(made.model)
    assert properties["seed_input"] == "snnc_seed"
    assert properties["image_input"] == "snnc_first_image"
    assert properties["encode"] == "poisson"
    (wanted,) = run_model(made.model, x=x)
    (same,) = run_model(made.model, x=x, snnc_seed=np.array(3), snnc_first_image=np.array(0))
    assert np.array_equal(same, wanted)
    runs = [run_model(made.model, x=x, snnc_seed=np.array(seed))[0] for seed in (0, 1, 2**62, -1)]
    for one in range(4):
        assert not np.array_equal(runs[one], wanted)
        assert all(not np.array_equal(runs[one], runs[other]) for other in range(one))
    # The seed of the compilation is the default of the run.
    same_data = compiled(network(), x, seed=0).model
    assert np.array_equal(run_model(same_data, x=x)[0], runs[0])


def test_a_constant_input_has_no_random_inputs() -> None:
    made = compiled(network(), images(7), encode="constant")
    names = {entry.name for entry in made.model.graph.input}
    assert names == {"x", "snnc_steps", "snnc_chunk"}
    properties = {p.key: p.value for p in made.model.metadata_props}
    assert properties["snnc.seed_input"] == properties["snnc.image_input"] == ""
    assert op_counts(made.model)["PoissonEncoder"] == 0


def test_two_compilations_give_the_same_bytes() -> None:
    x = images(7)
    one, two = (compiled(network(), x, correction="schedule") for _ in range(2))
    assert serialize(one.model) == serialize(two.model)


# --- properties ---


def test_the_scale_is_the_largest_input_and_goes_into_the_first_weights() -> None:
    x = images(9) * np.float32(2.5)
    made = compiled(network(), x)
    assert made.calibration.input_scales == {"x": 2.5}
    (loop,) = [node for node in made.model.graph.node if node.op_type == "Loop"]
    body = next(a.g for a in loop.attribute if a.name == "body")
    assert [n.op_type for n in body.node if n.op_type in ("MatMul", "Gemm", "Mul")].count(
        "Mul"
    ) <= 1
    (encoder,) = [node for node in body.node if node.op_type == "PoissonEncoder"]
    reader = next(node for node in body.node if encoder.output[0] in node.input)
    assert reader.op_type in ("MatMul", "Gemm")
    tensors = {t.name: t for t in (*body.initializer, *made.model.graph.initializer)}
    weights = onnx.numpy_helper.to_array(tensors[reader.input[1]])
    assert np.array_equal(weights, eighths(1, 4, 6) * np.float32(2.5))


def test_inputs_beyond_the_scale_are_cut_off() -> None:
    x = images(9)
    made = compiled(network(), x)
    found = encoded(made, 8, x=x * 100)["x"]
    assert np.array_equal(found, np.broadcast_to(np.sign(x), found.shape))


def test_a_scaled_network_and_its_data_draw_the_same_spikes() -> None:
    x = images(9)
    plain, scaled = compiled(network(), x), compiled(network(), x * 4)
    assert np.array_equal(encoded(plain, 16, x=x)["x"], encoded(scaled, 16, x=x * 4)["x"])


def test_a_constant_zero_as_calibration_still_has_a_scale() -> None:
    made = compiled(network(), np.zeros((4, 4), np.float32))
    assert made.calibration.input_scales == {"x": 1.0}
    (found,) = run_model(made.model, x=np.zeros((2, 4), np.float32))
    assert not found.any()


def test_without_data_the_scale_comes_from_synthetic_input() -> None:
    made = compiled(network(), None)
    assert 2 < made.calibration.input_scales["x"] < 6
    assert verify(network(), made.model).passed


# --- networks that are special ---


def test_every_float_input_is_encoded_with_its_own_scale() -> None:
    text = """g (float[N,4] x, float[N,4] z) => (float[N,4] y)
    { s = Sub (x, z)  [one] p = Relu (s)  b = MatMul (p, w)  [two] y = Relu (b) }"""
    model = parse(text, {"w": eighths(1, 4, 4)})
    feeds = {"x": images(20), "z": images(20)[::-1] * 8}
    made = compiled(model, feeds)
    assert made.calibration.input_scales == {"x": 1.0, "z": 8.0}
    spikes = encoded(made, 4000, **feeds)
    for name, array in feeds.items():
        mean = spikes[name].mean(axis=0) * made.calibration.input_scales[name]
        # 4.5 standard deviations of a mean of 4000.
        assert abs(mean - array).max() < 4.5 * abs(array).max() / 2 / np.sqrt(4000)
    (found,) = run_model(made.model, **feeds, snnc_steps=np.array(4000))
    (wanted,) = run_model(model, **feeds)
    assert abs(found - wanted).max() < 0.1 * abs(wanted).max()


def test_an_input_that_is_read_by_a_convolution_and_a_residual() -> None:
    text = """g (float[N,2,4,4] x) => (float[N,2,4,4] y)
    { a = Conv <pads = [1, 1, 1, 1]> (x, w)  s = Add (a, x)  [one] p = Relu (s)
      b = Conv (p, v)  [two] y = Relu (b) }"""
    model = parse(text, {"w": eighths(1, 2, 2, 3, 3), "v": eighths(2, 2, 2, 1, 1)})
    x = random(5, 6, 2, 4, 4)
    made = compiled(model, x)
    (found,) = run_model(made.model, x=x, snnc_steps=np.array(4096))
    (wanted,) = run_model(model, x=x)
    # Some tens of inputs of deviation max|x|/(2·64) meet in every sum.
    assert abs(found - wanted).max() < 0.15 * abs(wanted).max()


@pytest.mark.parametrize("correction", ["schedule", "bias", "potential"])
@pytest.mark.parametrize("neuron", ["binary", "signed:2"])
def test_a_correction_runs_on_random_spikes(correction: str, neuron: str) -> None:
    model, x = network(), images(40)
    made = compiled(model, x, correction=correction, neuron=neuron, schedule_steps=8)
    assert made.calibration.correction == correction
    assert set(made.calibration.schedules) == {"one", "two"}
    assert any(charges.any() for charges in made.calibration.schedules.values())
    (found,) = run_model(made.model, x=x, snnc_steps=np.array(4096))
    (wanted,) = run_model(model, x=x)
    assert np.square(found - wanted).mean() < 0.02 * np.square(wanted).mean()


def test_a_schedule_is_settled_on_the_spikes_that_the_file_draws() -> None:
    """The first layer's charges are the best ones for its currents in the compiled file."""
    x = images(40)
    made = compiled(network(), x, correction="schedule", schedule_steps=8)
    options = Options(steps=8, encode="poisson", emit="cuda-graph", batch=40)
    model = pipeline.emit(made.prepared, made.calibration, options)
    (node,) = [node for node in model.graph.node if node.name == "one"]
    currents = run_model(with_outputs(model, [node.input[0]]), x=x)[-1].reshape(8, 40, 6)
    assert currents.std(axis=0).max() > 0
    theta = made.calibration.thresholds["one"][:, None]
    analog = np.ascontiguousarray(np.maximum(x @ eighths(1, 4, 6), 0).T)
    layer = running.Received(
        np.ascontiguousarray(currents.transpose(0, 2, 1)), analog, theta, theta / 2
    )
    charges = made.calibration.schedules["one"][:-1]
    assert charges.any() and np.array_equal(running.best_schedule(layer, 8), charges)


def test_random_spikes_do_not_depend_on_how_the_calibration_is_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = images(40)
    whole = compiled(network(), x, correction="schedule", schedule_steps=8)
    monkeypatch.setattr(running, "_BATCH_BYTES", 1)
    monkeypatch.setattr(running, "_HELD_BYTES", 0)
    single = compiled(network(), x, correction="schedule", schedule_steps=8)
    assert single.calibration.to_json() == whole.calibration.to_json()


def test_a_step_model_takes_no_random_spikes() -> None:
    with pytest.raises(UsageError, match="--encode poisson"):
        compiled(network(), images(7), emit="step")


def test_a_calibration_without_scales_of_the_input_is_refused() -> None:
    calibration = compiled(network(), images(7), encode="constant").calibration
    with pytest.raises((UsageError, Refused), match=r"poisson|scale"):
        pipeline.compile_model(network(), Options(encode="poisson"), calibration)


@pytest.mark.parametrize("inputs", ["float[N,4] x, int64[N,2] i", "int64[N,2] i, float[N,4] x"])
def test_an_input_of_integers_is_left_alone(inputs: str) -> None:
    text = f"""g ({inputs}) => (float[N,4] y)
    {{ g = Gather <axis = 0> (table, i)  m = ReduceMean <axes = [1], keepdims = 0> (g)
      s = Add (x, m)  [one] p = Relu (s)  y = MatMul (p, w) }}"""
    model = parse(text, {"table": eighths(1, 5, 4), "w": eighths(2, 4, 4)})
    feeds = {"x": images(12), "i": np.arange(24).reshape(12, 2) % 5}
    made = compiled(model, feeds)
    assert set(encoded(made, 2, **feeds)) == {"x"}
    (found,) = run_model(made.model, **feeds, snnc_steps=np.array(4096))
    (wanted,) = run_model(model, **feeds)
    assert abs(found - wanted).max() < 0.1 * abs(wanted).max()


def test_an_encoded_input_of_the_same_name_as_ours_keeps_it() -> None:
    text = "g (float[N,3] snnc_seed) => (float[N,3] y) { [one] y = Relu (snnc_seed) }"
    x = eighths(6, 9, 3)
    made = compiled(parse(text), x)
    properties = {p.key: p.value for p in made.model.metadata_props}
    seed = properties["snnc.seed_input"]
    assert seed and seed != "snnc_seed"
    one, other = (
        run_model(made.model, snnc_seed=x, **{seed: np.array(value)})[0] for value in (0, 1)
    )
    assert not np.array_equal(one, other)
