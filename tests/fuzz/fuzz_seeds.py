"""The seed corpus: tiny valid networks of several shapes, made here instead of being committed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import numpy_helper

#: name -> network, weights.
_TEXTS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "dense": (
        "g (float[N,2] x) => (float[N,3] y) { h = Gemm <transB = 1> (x, w, b)  y = Relu (h) }",
        {"w": (3, 2), "b": (3,)},
    ),
    "convolution": (
        """g (float[N,1,4,4] x) => (float[N,2] y) {
          c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
          n = BatchNormalization (c, s, s, s, s)
          r = Relu (n)
          p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
          a = GlobalAveragePool (p)
          f = Flatten (a)
          g = MatMul (f, m)
          y = Softmax (g)
        }""",
        {"w": (2, 1, 3, 3), "s": (2,), "m": (2, 2)},
    ),
    "residual": (
        """g (float[N,2] x) => (float[N,2] y, float[N,2] z) {
          a = MatMul (x, w)
          b = Relu (a)
          c = Add (b, x)
          lo = Constant <value_float = 0.0> ()
          hi = Constant <value_float = 6.0> ()
          d = Clip (c, lo, hi)
          y = LeakyRelu <alpha = 0.1> (d)
          z = Concat <axis = 0> (d)
        }""",
        {"w": (2, 2)},
    ),
    "shapes": (
        """g (float[N,4,2] x) => (float[N,8] y) {
          s = Shape (x)
          i = Constant <value_int = 0> ()
          n = Gather (s, i)
          u = Constant <value_ints = [0]> ()
          v = Unsqueeze (n, u)
          r = Constant <value_ints = [-1]> ()
          t = Concat <axis = 0> (v, r)
          q = Relu (x)
          y = Reshape (q, t)
        }""",
        {},
    ),
    "control": (
        """g (float[N,2] x, bool c) => (float[N,2] y) {
          r = Relu (x)
          y = If (c) <then_branch = t () => (float[N,2] u) { u = Relu (r) },
                      else_branch = e () => (float[N,2] v) { v = Neg (r) }>
        }""",
        {},
    ),
}
_FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
g (float[N,2] x) => (float[N,2] y) { y = local.outer (x) }
<domain: "local", opset_import: ["" : 17, "local" : 1]> outer (a) => (b) {
  h = local.inner (a)
  b = local.inner (h)
}
<domain: "local", opset_import: ["" : 17]> inner (a) => (b) { b = Relu (a) }
"""


def seeds() -> Mapping[str, bytes]:
    """The serialized networks by name, the same ones every time."""
    found: dict[str, bytes] = {}
    for name, (text, shapes) in _TEXTS.items():
        model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>\n' + text)
        for weight, shape in shapes.items():
            values: NDArray[np.float32] = np.linspace(0.5, 1.5, int(np.prod(shape)), dtype="f4")
            model.graph.initializer.append(numpy_helper.from_array(values.reshape(shape), weight))
        found[name] = model.SerializeToString()
    found["functions"] = onnx.parser.parse_model(_FUNCTIONS).SerializeToString()
    return found


def write_seeds(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in seeds().items():
        (folder / f"{name}.onnx").write_bytes(raw)


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
