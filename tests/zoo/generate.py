"""Write the networks of the zoo, with seeded weights and sane statistics, as their exporters do.

    python tests/zoo/generate.py (torch | torchvision | keras) FOLDER [--only NAME]

`torch` needs torch and onnxscript, `torchvision` torchvision besides, `keras` tensorflow and tf2onnx;
`make zoo` makes an environment for each.  The package itself is not needed.

PyTorch networks are written by both exporters: `_ts17` is TorchScript (`dynamo=False`), `_dynamo20` is
`dynamo=True`.  Those of `keras.applications` are written by tf2onnx: `_tf15`.

Weights are random; every layer's output is scaled to a deviation of 1 on noise, and batch-norm's
statistics are those of that noise, so that activations neither explode nor die.  Networks of full
width are thinned: every channel number is divided, the structure stays.  A network that can't be
converted says why in the metadata entry `zoo.must_refuse`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

SEED = 0


@dataclass(frozen=True)
class Recipe:
    """How a network is made: the module, its inputs' shapes without the batch, why it is refused."""

    make: Callable[[], Any]
    shapes: tuple[tuple[int, ...], ...]
    refused: str = ""


# --- PyTorch ---


def thinned(module: Any, divisor: int, keep: tuple[str, ...]) -> Any:
    """`module` with all channel numbers divided; layers named in `keep` give as many as before.

    The first layer takes what it took: a picture has three channels.
    """
    from torch import nn

    first = True
    for name, layer in list(module.named_modules()):
        made: nn.Module
        if isinstance(layer, nn.Conv2d):
            depthwise = layer.groups == layer.in_channels
            inputs = layer.in_channels if first else layer.in_channels // divisor
            outputs = layer.out_channels if name in keep else layer.out_channels // divisor
            made = nn.Conv2d(
                inputs,
                outputs,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                layer.dilation,
                inputs if depthwise and not first else layer.groups,
                layer.bias is not None,
            )
            first = False
        elif isinstance(layer, nn.BatchNorm2d):
            made = nn.BatchNorm2d(layer.num_features // divisor, layer.eps)
        elif isinstance(layer, nn.Linear):
            outputs = layer.out_features if name in keep else layer.out_features // divisor
            made = nn.Linear(layer.in_features // divisor, outputs)
        else:
            continue
        owner, _, own = name.rpartition(".")
        setattr(module.get_submodule(owner), own, made)
    return module


def settle(module: Any, inputs: tuple[Any, ...]) -> None:
    """Seeded weights, every layer's output scaled to a deviation of 1, batch-norm as it then is."""
    import torch
    from torch import nn

    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)

    def scaled(layer: Any, _: Any, output: Any) -> Any:
        if layer in settled:  # shared heads: scaled where they are used first
            return output
        settled.add(layer)
        factor = output.std()
        layer.weight.data /= factor
        output = output / factor
        if layer.bias is not None:
            layer.bias.data = 0.1 * torch.randn_like(layer.bias)
            tail = [1] * (output.dim() - 2) if isinstance(layer, convolutions) else []
            output = output + layer.bias.reshape(-1, *tail)
        return output

    settled: set[Any] = set()
    hooks = []
    module.eval()
    for layer in module.modules():
        if isinstance(layer, (*convolutions, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            hooks.append(layer.register_forward_hook(scaled))
        elif isinstance(layer, norms):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.2)
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    module.eval()


def export_torch(recipe: Recipe, name: str, folder: Path) -> list[Path]:
    """Both exports of a PyTorch network, with a dynamic batch axis."""
    import torch

    torch.manual_seed(SEED)
    module = recipe.make()
    settle(module, tuple(torch.randn(8, *shape) for shape in recipe.shapes))
    sample = tuple(torch.randn(2, *shape) for shape in recipe.shapes)
    names = ["x", "a"][: len(sample)]
    legacy, dynamo = folder / f"{name}_ts17.onnx", folder / f"{name}_dynamo20.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            sample,
            str(legacy),
            dynamo=False,
            opset_version=17,
            input_names=names,
            dynamic_axes={one: {0: "N"} for one in names},
        )
        batch = torch.export.Dim("N", min=1, max=1024)
        torch.onnx.export(
            module,
            sample,
            str(dynamo),
            dynamo=True,
            opset_version=20,
            input_names=names,
            dynamic_shapes=tuple({0: batch} for _ in sample),
            external_data=False,
            verbose=False,
        )
    return [legacy, dynamo]


def own_networks() -> dict[str, Recipe]:
    import torch_networks as own

    return {
        "pointnet": Recipe(own.PointNet, ((3, 32),)),
        "pointnet_tnet": Recipe(lambda: own.PointNet(transforms=1), ((3, 32),)),
        "pointnet_feature_tnet": Recipe(
            lambda: own.PointNet(transforms=2), ((3, 32),), "a product of two values that change"
        ),
        "gcn": Recipe(own.GCN, ((12, 6),)),
        "gcn_adjacency_given": Recipe(lambda: own.GCN(given=True), ((12, 6), (12, 12))),
        "stgcn": Recipe(own.STGCN, ((3, 16, 9),)),
        "dcgan": Recipe(own.DCGAN, ((16, 1, 1),)),
        "unet3d": Recipe(own.UNet3d, ((1, 8, 16, 16),)),
        "tiny_yolo": Recipe(own.TinyYolo, ((3, 64, 64),)),
        "mtcnn": Recipe(own.MTCNN, ((3, 24, 24),)),
        "wavenet_relu": Recipe(own.DilatedNet, ((1, 64),)),
    }


def torchvision_networks() -> dict[str, Recipe]:
    import torch

    # A torchvision built for another torch has no compiled operators; models need their names alone.
    for operator in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{operator}",
            "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        )
    from torch import nn
    from torchvision import models
    from torchvision.models.detection import retinanet_resnet50_fpn, ssd300_vgg16
    from torchvision.models.detection.ssd import SSDHead

    class Maps(nn.Module):
        """Backbone and head of a detector, without anchors and non-maximum suppression."""

        def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
            super().__init__()
            self.backbone, self.head = backbone, head

        def forward(self, x: Any) -> tuple[Any, ...]:
            features = self.backbone(x)
            if not isinstance(features, list):
                features = list(features.values())
            return tuple(self.head(features).values())

    class Scores(nn.Module):
        """The segmentation map of a model that returns it by name."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            return self.model(x)["out"]

    class Pyramid(nn.Module):
        """Feature maps of MobileNetV2 at two sizes, as SSDLite takes them."""

        def __init__(self) -> None:
            super().__init__()
            layers = models.mobilenet_v2(weights=None).features
            self.early, self.late = layers[:14], layers[14:]

        def forward(self, x: Any) -> list[Any]:
            early = self.early(x)
            return [early, self.late(early)]

    def plain(make: Callable[..., Any], divisor: int, keep: str, **options: Any) -> Any:
        return lambda: thinned(make(weights=None, **options), divisor, (keep,))

    def quiet(make: Callable[..., Any], divisor: int, keep: str) -> Any:
        """GoogLeNet and Inception: without the auxiliary heads, which only training uses."""
        options = {"aux_logits": False, "init_weights": False}
        return plain(make, divisor, keep, **options)

    def vgg() -> Any:
        return thinned(models.vgg16_bn(weights=None), 16, ("classifier.6",))

    def fcn() -> Any:
        made = models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)
        return Scores(thinned(made, 8, ("classifier.4",)))

    def retinanet() -> Any:
        made = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)
        last = ("head.classification_head.cls_logits", "head.regression_head.bbox_reg")
        thinned(made, 8, last)
        return Maps(made.backbone, made.head)

    def ssd() -> Any:
        made = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=5)
        kept = tuple(
            f"head.{kind}_head.module_list.{index}"
            for kind in ("classification", "regression")
            for index in range(6)
        )
        thinned(made, 8, kept)
        made.backbone.scale_weight.data = made.backbone.scale_weight.data[::8]
        return Maps(made.backbone, made.head)

    def ssd_mobilenet() -> Any:
        made = Maps(Pyramid(), SSDHead([96, 1280], [6, 6], 5))
        kept = tuple(
            f"head.{kind}_head.module_list.{index}"
            for kind in ("classification", "regression")
            for index in range(2)
        )
        return thinned(made, 8, kept)

    picture = ((3, 64, 64),)
    return {
        "vgg16_bn_tv": Recipe(vgg, ((3, 224, 224),)),
        "resnet34_tv": Recipe(plain(models.resnet34, 8, "fc"), picture),
        "resnet50_tv": Recipe(plain(models.resnet50, 8, "fc"), picture),
        "mobilenet_v2_tv": Recipe(plain(models.mobilenet_v2, 8, "classifier.1"), picture),
        "googlenet_tv": Recipe(quiet(models.googlenet, 8, "fc"), picture),
        "inception_v3_tv": Recipe(quiet(models.inception_v3, 8, "fc"), ((3, 96, 96),)),
        "squeezenet1_1_tv": Recipe(plain(models.squeezenet1_1, 8, "classifier.1"), picture),
        "shufflenet_v2_tv": Recipe(plain(models.shufflenet_v2_x1_0, 2, "fc"), picture),
        "densenet121_tv": Recipe(plain(models.densenet121, 8, "classifier"), picture),
        "fcn_resnet50_tv": Recipe(fcn, picture),
        "retinanet_fpn_tv": Recipe(retinanet, picture),
        "ssd300_vgg16_tv": Recipe(ssd, ((3, 300, 300),)),
        "ssd_mobilenet_v2_tv": Recipe(ssd_mobilenet, picture),
        "mobilenet_v3_tv": Recipe(
            plain(models.mobilenet_v3_small, 8, "classifier.3"), picture, "HardSwish"
        ),
    }


# --- Keras ---


def keras_networks() -> dict[str, Recipe]:
    from keras import applications

    def made(make: Callable[..., Any], size: int = 64) -> Callable[[], Any]:
        return lambda: thin_keras(
            make(weights=None, input_shape=(size, size, 3), classifier_activation=None)
        )

    shape = ((64, 64, 3),)
    return {
        "resnet50_keras": Recipe(made(applications.ResNet50), shape),
        "resnet50v2_keras": Recipe(made(applications.ResNet50V2), shape),
        "vgg16_keras": Recipe(made(applications.VGG16), shape),
        "mobilenet_v2_keras": Recipe(made(applications.MobileNetV2), shape),
        "densenet121_keras": Recipe(made(applications.DenseNet121), shape),
    }


def thin_keras(model: Any, divisor: int = 8) -> Any:
    """A copy with an eighth of the filters, seeded weights, and batch-norm as it is on noise."""
    import keras
    import numpy as np

    def thinner(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            config["depthwise_initializer"] = "he_normal"
        elif isinstance(layer, keras.layers.Conv2D):
            config["filters"] //= divisor
            config["kernel_initializer"] = "he_normal"
            config["bias_initializer"] = "random_normal"
        elif isinstance(layer, keras.layers.Dense):
            if config["activation"] != "linear":
                config["units"] //= divisor
            config["kernel_initializer"] = "he_normal"
        elif isinstance(layer, keras.layers.BatchNormalization):
            # The statistics of the one batch that is run in training mode.
            config["momentum"] = 0.0
            config["gamma_initializer"] = keras.initializers.RandomUniform(0.5, 1.5)
            config["beta_initializer"] = keras.initializers.RandomNormal(0.0, 0.2)
        return layer.__class__.from_config(config)

    keras.utils.set_random_seed(SEED)
    thin = keras.models.clone_model(model, clone_function=thinner)
    noise = np.random.default_rng(SEED).standard_normal((16, *model.input_shape[1:]))
    thin(noise.astype(np.float32), training=True)
    return thin


def export_keras(recipe: Recipe, name: str, folder: Path) -> list[Path]:
    import tensorflow as tf
    import tf2onnx

    model = recipe.make()
    path = folder / f"{name}_tf15.onnx"
    spec = [tf.TensorSpec((None, *recipe.shapes[0]), tf.float32, name="x")]
    function = tf.function(lambda x: model(x, training=False), input_signature=spec)
    tf2onnx.convert.from_function(function, input_signature=spec, opset=15, output_path=str(path))
    return [path]


# --- all of a kind ---

KINDS: dict[str, tuple[Callable[[], dict[str, Recipe]], Callable[..., list[Path]]]] = {
    "torch": (own_networks, export_torch),
    "torchvision": (torchvision_networks, export_torch),
    "keras": (keras_networks, export_keras),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    recipes, export = KINDS[options.kind]
    for name, recipe in recipes().items():
        if options.only not in name:
            continue
        for path in export(recipe, name, options.folder):
            model = onnx.load(path)
            if recipe.refused:
                onnx.helper.set_model_props(model, {"zoo.must_refuse": recipe.refused})
            for node in model.graph.node:
                del node.metadata_props[:]  # stack traces of this machine
            onnx.save(model, path)
            made = f"{model.producer_name} {model.producer_version}"
            print(f"{path.name}: {path.stat().st_size // 1000} kB, by {made}", flush=True)


if __name__ == "__main__":
    main()
