"""Small networks and data that come with the compiler, and the code that made them."""

from pathlib import Path

_FILES = {
    "digits-cnn": "digits-cnn.onnx",
    "digits-resnet": "digits-resnet.onnx",
    "digits-train": "digits_train.npz",
    "digits-test": "digits_test.npz",
    "rmp-resnet20-cifar10": "rmp-resnet20-cifar10.onnx",
    "rmp-vgg16-eighth-cifar10": "rmp-vgg16-eighth-cifar10.onnx",
}


def path(name: str) -> Path:
    """Where the network (.onnx) or data file (.npz) called `name` lies on disk."""
    if name not in _FILES:
        raise ValueError(f"no model or data file {name!r}; there are: {', '.join(_FILES)}")
    return Path(__file__).parent / _FILES[name]
