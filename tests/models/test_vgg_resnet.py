"""VGG and ResNet: as published, as the paper constrains them, and as onnxruntime runs them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from snncompiler import models
from snncompiler.models import data
from snncompiler.models.registry import ARCHITECTURES

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from snncompiler.models import export, vgg_resnet  # noqa: E402  (both need PyTorch)

NARROW = 0.125
forms = pytest.mark.parametrize("constrained", [True, False], ids=["constrained", "common"])
narrow = pytest.mark.parametrize(
    ("name", "size"), [(name, 32) for name in ARCHITECTURES] + [("resnet18", 224)]
)


def parameters(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def run_cli(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snncompiler.models", *map(str, args)],
        cwd=Path(models.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )


#: Published: ResNet-20 0.27 M (He et al., table 6), VGG-16 for CIFAR about 15 M (Li et al., Pruning
#: Filters, ICLR 2017); for ImageNet, exactly those of torchvision's resnet18, resnet34 and vgg16_bn.
@pytest.mark.parametrize(
    ("name", "size", "classes", "published", "tolerance"),
    [
        ("resnet20", 32, 10, 0.27e6, 0.01),
        ("vgg16", 32, 10, 15e6, 0.02),
        ("resnet18", 224, 1000, 11_689_512, 0),
        ("resnet34", 224, 1000, 21_797_672, 0),
        ("vgg16", 224, 1000, 138_365_992, 0),
    ],
)
def test_parameters_as_published(
    name: str, size: int, classes: int, published: float, tolerance: float
) -> None:
    with torch.device("meta"):  # counts without memory
        common = vgg_resnet.build(name, constrained=False, classes=classes, size=size)
        constrained = vgg_resnet.build(name, constrained=True, classes=classes, size=size)
    assert parameters(common) == pytest.approx(published, rel=tolerance)
    # The paper's form has the same weights, and neither biases nor scales and shifts.
    weights = sum(p.numel() for p in common.parameters() if p.dim() > 1)
    assert parameters(constrained) == weights
    named = name.removeprefix("resnet").removeprefix("vgg")
    convolutions = [m for m in common.modules() if isinstance(m, torch.nn.Conv2d)]
    linear = [m for m in common.modules() if isinstance(m, torch.nn.Linear)]
    projections = [m for m in convolutions if m.kernel_size == (1, 1)]
    assert len(convolutions) - len(projections) + len(linear) == int(named)


@narrow
@forms
def test_shapes_and_signal(name: str, size: int, constrained: bool) -> None:
    network = export.seeded(name, constrained=constrained, classes=7, size=size, width=NARROW)
    traced = torch.fx.symbolic_trace(network)
    x = torch.randn(3, 3, size, size)
    seen: list[float] = []
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_hook(lambda _, __, y: seen.append(float(y.square().mean())))
    with torch.no_grad():
        logits = network(x)
        assert logits.shape == (3, 7)
        torch.testing.assert_close(traced(x), logits)
    # 33 rectifiers on, a signal is neither gone nor beyond measure; inside a branch of the
    # constrained ResNet-34 it is meant to be 1/16 of that around it.
    assert min(seen) > 1e-4 and max(seen) < 1e3
    assert 1e-2 < float(logits.abs().max()) < 1e2


@narrow
def test_constrained_has_only_what_the_paper_allows(name: str, size: int) -> None:
    network = vgg_resnet.build(name, constrained=True, size=size, width=NARROW)
    modules = list(network.modules())
    assert not any(isinstance(m, (torch.nn.BatchNorm2d, torch.nn.MaxPool2d)) for m in modules)
    assert all(getattr(m, "bias", None) is None for m in modules)
    assert any(isinstance(m, (torch.nn.AvgPool2d, torch.nn.AdaptiveAvgPool2d)) for m in modules)
    assert any(isinstance(m, torch.nn.Dropout) for m in modules)
    assert not any(key.endswith("bias") for key in network.state_dict())


@forms
@pytest.mark.parametrize(
    ("name", "size", "width"),
    [
        ("resnet20", 32, NARROW),
        ("vgg16", 32, NARROW),
        ("resnet18", 224, NARROW),
        pytest.param("resnet34", 224, 1.0, marks=pytest.mark.slow),
        pytest.param("vgg16", 32, 1.0, marks=pytest.mark.slow),
    ],
)
def test_export_runs_in_onnxruntime(
    name: str, size: int, width: float, constrained: bool, tmp_path: Path
) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    how: dict[str, Any] = {"constrained": constrained, "classes": 5, "size": size, "width": width}
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        export.build_and_export(name, file, seed=3, **how)
    assert files[0].read_bytes() == files[1].read_bytes()

    model = onnx.load(files[0])
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    kinds = Counter(node.op_type for node in model.graph.node)
    layers = [node for node in model.graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}]
    if constrained:
        assert all(len(node.input) == 2 for node in layers)
        assert not kinds.keys() & {"BatchNormalization", "MaxPool", "Dropout"}
    else:
        assert kinds["BatchNormalization"] == kinds["Conv"] and not kinds["Dropout"]

    network = export.seeded(name, seed=3, **how)
    session = ort.InferenceSession(files[0].read_bytes(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            expected = network(x).numpy()
        (logits,) = session.run(["logits"], {"input": x.numpy()})
        assert logits.shape == (batch, 5)
        bound = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=bound)


def test_command_exports_given_weights(tmp_path: Path) -> None:
    network = export.seeded("resnet20", width=NARROW, seed=5)
    weights = tmp_path / "weights.pt"
    torch.save(network.state_dict(), weights)
    given, seeded = tmp_path / "given.onnx", tmp_path / "seeded.onnx"
    narrow_network = ("export", "resnet20", "--width", NARROW)
    for file, extra in ((given, ("--weights", weights)), (seeded, ("--seed", 5))):
        done = run_cli(*narrow_network, "--out", file, *extra)
        assert done.returncode == 0, done.stderr
        assert str(file) in done.stdout
    assert given.read_bytes() == seeded.read_bytes()

    done = run_cli(*narrow_network, "--common", "--out", tmp_path / "x.onnx", "--weights", weights)
    assert done.returncode == 2
    assert "does not hold the weights of this network" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "resnet34"),
        (("resnet20", "--size", 224), "32x32"),
        (("vgg16", "--size", 64), "32x32 or 224x224"),
        (("vgg16", "--width", 0), "width 0"),
    ],
)
def test_command_refuses(arguments: tuple[object, ...], said: str, tmp_path: Path) -> None:
    done = run_cli("export", *arguments, "--out", tmp_path / "never.onnx")
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x04]."])
def test_broken_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="does not hold the weights"):
        export.load_weights(vgg_resnet.build("resnet20", width=NARROW), file)


@pytest.mark.slow
def test_34_layers_learn_without_batch_norm() -> None:
    """The digits, enlarged to 32x32 and three channels, of which chance gets 10 % right."""

    def enlarged(images: Any) -> Any:
        x = torch.from_numpy(images).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return x.expand(-1, 3, -1, -1)

    torch.manual_seed(0)
    images, labels = data.load("digits-train")
    network = vgg_resnet.build("resnet34", constrained=True, width=NARROW)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(150):
        chosen = torch.randint(len(images), (64,))
        logits = network(enlarged(images[chosen]))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    images, labels = data.load("digits-test")
    with torch.no_grad():
        found = network.eval()(enlarged(images)).argmax(1).numpy()
    assert (found == labels).mean() > 0.7
