"""Training on pictures: seeded, resumable, and without batch normalisation 34 layers deep."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from snncompiler import models
from snncompiler.models import images
from snncompiler.models.__main__ import app
from snncompiler.models.registry import PICTURE_RECIPES

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from snncompiler.models import export, fit, vgg_resnet  # noqa: E402  (all need PyTorch)

NARROW = 0.125
forms = pytest.mark.parametrize("constrained", [True, False], ids=["constrained", "common"])


def pictures(count: int = 200, seed: int = 0) -> images.Stored:
    """Noise around a colour of its own for each of ten classes."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(7).integers(40, 216, (10, 3))
    labels = np.arange(count) % 10
    noise = rng.normal(0, 20, (count, 32, 32, 3))
    pixels = (colours[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)
    return images.Stored(pixels, labels.astype(np.int64), tuple(map(str, range(10))))


def settings(data: images.Pictures, name: str = "resnet20", **changes: Any) -> fit.Settings:
    return fit.settings_for(
        name, data, "cifar10", **{"width": NARROW, "batch": 50, "epochs": 3} | changes
    )


def weights(run: fit.Run) -> dict[str, Any]:
    """Weights and batch-norm statistics."""
    return {name: value.clone() for name, value in run.network.state_dict().items()}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run_cli(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snncompiler.models", "train", *map(str, args)],
        cwd=Path(models.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@forms
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_resumed_equals_uninterrupted(constrained: bool, bfloat16: bool, tmp_path: Path) -> None:
    data = pictures()
    how = settings(data, constrained=constrained, bfloat16=bfloat16, dropout=0.3)
    whole = fit.start(how)
    losses = [fit.train_epoch(whole, data) for _ in range(3)]

    file = tmp_path / "run.pt"
    fit.save(fit.start(how), file)
    resumed = []
    for _ in range(3):
        run = fit.resume(how, file)
        torch.rand(5)  # what happens elsewhere in the process does not matter before a resume
        run = fit.resume(how, file)
        resumed.append(fit.train_epoch(run, data))
        fit.save(run, file)
    assert resumed == losses
    assert same(weights(run), weights(whole))
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.pt"]


def test_a_run_can_be_lengthened_until_its_rate_falls(tmp_path: Path) -> None:
    data = pictures(100)
    short, long = (settings(data, epochs=epochs) for epochs in (5, 8))
    runs = []
    for how, epochs in ((long, 4), (short, 3)):
        runs.append(fit.start(how))
        for _ in range(epochs):
            fit.train_epoch(runs[-1], data)
    whole, first = runs
    file = tmp_path / "run.pt"
    fit.save(first, file)
    second = fit.resume(long, file)
    fit.train_epoch(second, data)
    assert same(weights(second), weights(whole))

    fit.train_epoch(first, data)  # at a falling rate
    fit.save(first, file)
    with pytest.raises(ValueError, match="after 4 of them it is too late to make it one of 8"):
        fit.resume(long, file)


def test_seeded() -> None:
    data = pictures(100)
    twins = [fit.start(settings(data, seed=1)) for _ in range(2)]
    runs = [twins[0], twins[1], fit.start(settings(data, seed=2))]
    for run in runs:
        torch.manual_seed(9)  # the process's own numbers must not matter to the order of pictures
        fit.train_epoch(run, data)
    first, second, other = map(weights, runs)
    assert same(first, second) and not same(first, other)


@pytest.mark.slow
def test_learns_what_can_be_learnt() -> None:
    data, unseen = pictures(400), pictures(200, seed=1)
    how = {"width": 0.5, "batch": 20, "epochs": 6, "dropout": 0.0, "peak_rate": 0.05}
    run = fit.start(settings(data, **how))
    losses = [fit.train_epoch(run, data) for _ in range(6)]
    assert losses[-1] < 0.2 * losses[0]
    assert fit.accuracy(run, unseen) > 0.8


@pytest.mark.parametrize(
    ("width", "seed"), [(NARROW, seed) for seed in range(4)] + [(0.25, 0), (0.5, 0)]
)
def test_resnet34_starts_with_signals_and_gradients_in_all_layers(width: float, seed: int) -> None:
    """Second moments after blocks within a factor of 4 of 1; every layer moves at one step."""
    torch.manual_seed(seed)
    network = vgg_resnet.build("resnet34", constrained=True, width=width, dropout=0.0)
    seen: list[float] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, y: seen.append(float(y.detach().square().mean())))
    x, labels = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    loss = torch.nn.functional.cross_entropy(network(x), labels)
    loss.backward()
    assert len(seen) == 16 and min(seen) > 0.25 and max(seen) < 4

    relative = [float(p.grad.norm() / p.detach().norm()) for p in network.parameters()]
    assert min(relative) > 1e-2 and max(relative) < 5
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 0.1 * parameter.grad
        assert torch.nn.functional.cross_entropy(network(x), labels) < loss


@pytest.mark.parametrize("key", PICTURE_RECIPES, ids=str)
def test_rate_rises_stays_and_falls(key: tuple[str, bool]) -> None:
    recipe = PICTURE_RECIPES[key]
    rates = np.array([fit.rate(recipe, at) for at in np.linspace(0, recipe.epochs, 401)])
    assert 0 < rates[0] < 0.1 * recipe.peak_rate
    assert rates.max() == recipe.peak_rate and rates[-1] == 0
    top = np.flatnonzero(rates == recipe.peak_rate)
    assert (np.diff(rates[: top[0]]) > 0).all() and (np.diff(rates[top[-1] :]) < 0).all()
    assert len(top) > 0.5 * len(rates)


def test_training_pictures_move_and_turn_and_nothing_else() -> None:
    data = pictures(8)
    run = fit.start(settings(data, batch=8))
    rng = torch.Generator().manual_seed(0)
    ((x, order),) = fit._augmented(run, data, [np.arange(8)], rng)
    plain = fit._normalized(run, data.pixels)
    assert order.tolist() == list(range(8)) and x.shape == plain.shape == (8, 3, 32, 32)
    turned = 0
    for got, source in zip(x, plain, strict=True):
        padded = torch.nn.functional.pad(source, (4, 4, 4, 4))
        places = [padded[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
        straight = any(torch.equal(got, place) for place in places)
        mirrored = any(torch.equal(got.flip(2), place) for place in places)
        assert straight != mirrored
        turned += mirrored
    assert 0 < turned < 8


def test_normalized_as_documented() -> None:
    data = pictures(2)
    x = fit._normalized(fit.start(settings(data, batch=2)), data.pixels).numpy()
    mean = np.array([0.4914, 0.4822, 0.4465], np.float32)
    deviation = np.array([0.2470, 0.2435, 0.2616], np.float32)
    expected = ((data.pixels / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)


@forms
def test_trained_network_survives_export(constrained: bool, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    data = pictures(100)
    how = settings(data, "vgg16", constrained=constrained, epochs=2)
    line = fit.train_and_export(how, data, tmp_path, test=data)
    assert "of 100 test pictures right" in line and str(tmp_path / "vgg16.onnx") in line

    network = fit.resume(how, tmp_path / "vgg16.pt").network.eval()
    session = ort.InferenceSession(tmp_path / "vgg16.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        x = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            expected = network(x).numpy()
        (logits,) = session.run(["logits"], {"input": x.numpy()})
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)

    again = tmp_path / "again.onnx"
    export.build_and_export(
        "vgg16", again, constrained=constrained, width=NARROW, weights=tmp_path / "vgg16.pt"
    )
    assert again.read_bytes() == (tmp_path / "vgg16.onnx").read_bytes()


def test_a_checkpoint_is_never_trampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures(100)
    how = settings(data, epochs=1)
    fit.train_and_export(how, data, tmp_path)
    kept = (tmp_path / "resnet20.pt").read_bytes()
    with pytest.raises(ValueError, match=r"resnet20.pt exists; go on from it with --resume"):
        fit.train_and_export(how, data, tmp_path)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        fit.save(fit.start(how), tmp_path / "resnet20.pt")
    assert (tmp_path / "resnet20.pt").read_bytes() == kept
    assert not list(tmp_path.glob("*.part"))


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = pictures(100)
    how = settings(data)
    file = tmp_path / "run.pt"
    with pytest.raises(ValueError, match="holds no checkpoint"):
        fit.resume(how, file)
    fit.save(fit.start(how), file)
    for other, said in (
        (dataclasses.replace(how, seed=4), "seed 0, not 4"),
        (dataclasses.replace(how, width=0.25), "width 0.125, not 0.25"),
        (settings(data, rate=None, peak_rate=0.5), "peak_rate 0.2, not 0.5"),
    ):
        with pytest.raises(ValueError, match=f"is of a run with other settings: {said}"):
            fit.resume(other, file)
    for content in (b"", b"x" * 100):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="holds no checkpoint"):
            fit.resume(how, file)
    for stored in ({"network": {}}, torch.zeros(3), [1]):
        torch.save(stored, file)
        with pytest.raises(ValueError, match="holds no checkpoint"):
            fit.resume(how, file)


def test_impossible_runs_are_refused() -> None:
    data = pictures(20)
    with pytest.raises(ValueError, match="20 pictures do not fill a batch of 50"):
        settings(data)
    with pytest.raises(ValueError, match="at a rate of -1 teach nothing"):
        settings(data, batch=10, peak_rate=-1)
    with pytest.raises(ValueError, match="no network 'nothing'"):
        settings(data, "nothing")
    with pytest.raises(ValueError, match="no device 'tpu'; there are: auto, cpu, cuda"):
        fit.device_called("tpu")
    if not torch.cuda.is_available():
        assert fit.device_called("auto").type == "cpu"
        with pytest.raises(ValueError, match="no CUDA device"):
            fit.device_called("cuda")
    run = fit.start(settings(data, batch=10, peak_rate=1e30))
    with pytest.raises(ValueError, match="the loss became nan in epoch 1; a lower --rate may"):
        fit.train_epoch(run, data)


def test_pictures_too_large_to_keep_train_as_well(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    rng = np.random.default_rng(0)
    for index in range(4):
        place = tmp_path / f"kind{index % 2}" / f"{index}.png"
        place.parent.mkdir(exist_ok=True)
        image.fromarray(rng.integers(0, 256, (230, 260, 3), np.uint8)).save(place)
    data, dataset = images.load(tmp_path, "train")
    how = fit.settings_for("resnet18", data, dataset, width=0.05, batch=2, epochs=1)
    runs = [fit.start(how) for _ in range(2)]
    losses = []
    for run in runs:
        torch.manual_seed(0)
        losses.append(fit.train_epoch(run, data))
    assert losses[0] == losses[1] and same(*map(weights, runs))
    assert 0 <= fit.accuracy(runs[0], data) <= 1


def test_command_trains_resumes_and_refuses(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    data = pictures(40)
    where = tmp_path / "pictures.zip"
    with zipfile.ZipFile(where, "w") as archive:
        for part in ("train", "test"):
            for index, pixels in enumerate(data.pixels):
                stream = io.BytesIO()
                image.fromarray(pixels).save(stream, "PNG")
                archive.writestr(f"{part}/{data.labels[index]}/{index}.png", stream.getvalue())
    how = ("resnet20", "--data", where, "--width", NARROW, "--batch", 10, "--threads", 1)
    once = run_cli(*how, "--epochs", 2, "--out", tmp_path / "once", "--device", "cpu")
    assert once.returncode == 0, once.stderr
    assert "40 pictures of cifar10, 10 classes; 40 test pictures; cpu" in once.stderr
    assert "epoch 2/2: loss " in once.stderr and "\x1b" not in once.stderr
    assert "of 40 test pictures right" in once.stdout and once.stdout.count("\n") == 1

    checkpoint = tmp_path / "run.pt"
    loaded, _ = images.load(where, "train")
    run = fit.start(
        fit.settings_for("resnet20", loaded, "cifar10", width=NARROW, batch=10, epochs=2)
    )
    fit.train_epoch(run, loaded)
    fit.save(run, checkpoint)
    ours = ("--checkpoint", checkpoint, "--epochs", 2, "--out", tmp_path / "twice")
    resumed = CliRunner().invoke(app, ["train", *map(str, (*how, *ours, "--resume"))])
    assert resumed.exit_code == 0, resumed.output
    assert "epoch 1/2" not in resumed.output and "epoch 2/2" in resumed.output
    files = [tmp_path / folder / "resnet20.onnx" for folder in ("once", "twice")]
    assert files[0].read_bytes() == files[1].read_bytes()

    for args, said in (
        ((*how, *ours), "run.pt exists"),
        ((*how, *ours, "--resume", "--seed", 3), "seed 0, not 3"),
        ((*how, "--device", "tpu"), "no device 'tpu'"),
        (("resnet20",), "resnet20 needs pictures"),
        (("resnet20", "--data", tmp_path / "nothing"), "nothing does not exist"),
        (("digits-cnn", "--data", where), "digits-cnn takes no --data"),
        ((*how, "--dataset", "cifar100"), "10 classes, but cifar100 has 100"),
    ):
        refused = CliRunner().invoke(app, ["train", *map(str, args)])
        assert refused.exit_code == 2
        assert said in " ".join(refused.output.replace("│", " ").split())
