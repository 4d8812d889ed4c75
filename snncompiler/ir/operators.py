"""What passes have to know of each ONNX operator: one record for each, and nowhere else.

A record holds facts as plain data: when the operator is affine in what depends on time, where it takes
the batch axis, whether spikes stay spikes, which input holds weights, and so on.  A pass asks
`record(node.op)` and acts.  Where a fact needs a computation (the new place of the batch axis, say),
the record names the rule, and the pass that alone needs this rule holds its function, in a table by the
rule's name.  So an operator that behaves as others do is added by one record, here.

Four things are not in it:

- What one module alone does with one operator: the rewriting by `spell_linear`, `spell_rectifiers`,
  `spell_ml` and `spell_quantized`, and the shapes that onnx leaves open (`ir.symbolic`).  A table in
  that module maps the operator to its function; the function is the fact.
- Two operators that a rewriting tells apart at once, as Add and Sub.  It names them.
- What exporters write one layer with (`ir.patterns`).  That says nothing about a single operator.
- What `network.unrounded` knows.  It checks the passes, so it does not share their table.

The table has the operators of onnx and of ai.onnx.ml.  No two of them have the same name, and a pass
looks at the domain of a node first.  Of an operator without a record nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

#: When an operator is affine in its inputs that depend on time (`snncompiler.ir.linear`).
Linear = Literal[
    "always", "first", "one", "weights", "numerator", "condition", "scatter", "cast", "resize",
    "regions", "never",
]  # fmt: skip

#: Where the batch axis of the inputs goes (`track_batch`).
Batch = Literal[
    "elementwise", "leading", "all-leading", "counted", "same", "along", "along-input", "trailing",
    "reduce", "reshape", "flatten", "transpose", "squeeze", "unsqueeze", "concat", "slice", "gather",
    "gather-nd", "scatter-nd", "elements", "pad", "gemm", "matmul", "einsum", "expand", "tile",
    "resize", "embedding", "matrices", "crop", "reverse",
]  # fmt: skip

#: How the amplitude of spikes moves from the first input to the output (`amplitudes`).
Amplitude = Literal[
    "same", "signs", "pool", "channels", "resize", "reshape", "squeeze", "unsqueeze", "transpose",
    "slice", "pad", "reduce", "uniform", "joined",
]  # fmt: skip

#: What the outputs of an operator are, for each sample (`snncompiler.ir.graph`).
Outputs = Literal["as-input", "one-hot", "targets", "one-number", "classes"]

#: How the weights of a trained layer, its input 1, are laid out: [M, C/group, ...], [C, M/group, ...],
#: [K, M], or as its equation says.
Weights = Literal["outputs-first", "inputs-first", "matrix", "equation"]

#: When no output is negative: always; if no element of any input (the first) is; and by rules of one
#: operator each (`snncompiler.ir.signs`).
Sign = Literal[
    "positive", "all", "first", "turned", "difference", "quotient", "padded", "resized",
]  # fmt: skip

#: Between which values the output lies, given those of the inputs (`drop_fake_quant`).
Span = Literal["first", "hull", "average", "sum", "maximum", "minimum", "clip", "relu", "unit"]

#: What a quantized network's operator does to integers (`drop_fake_quant`).
Integers = Literal[
    "dequantize", "first", "all", "max-pool", "resize", "pad", "bound", "cast", "shape", "shift",
    "multiply",
]  # fmt: skip


@dataclass(frozen=True)
class Operator:
    """The facts about one operator; the defaults say that nothing is known."""

    name: str

    # --- between spiking layers ---

    #: When it is affine in what depends on time; `never`: its time-mean is not a function of its
    #: input's time-mean; None: no rule yet, or it is rewritten before the question comes up.
    linear: Linear | None = None
    #: Its outputs are drawn anew at every run.
    random: bool = False
    #: What it becomes where it is, or is written as, a rectifier (for docs/reference/supported.md).
    becomes: str = ""
    #: It may be an activation of a network, beside the rectifiers (`snncompiler.ir.activations`).
    activation: bool = False
    #: Why its output is spikes where its data inputs are: it only chooses and moves elements; it turns
    #: the sign of all; it multiplies by constants of 1 and -1; it pads with zeros or with elements.
    spikes: Literal["moved", "turned", "signs", "padded"] | None = None
    amplitude: Amplitude | None = None
    #: Of zeros it gives zeros (as far as growing thresholds look through it).
    adds_nothing: bool = False
    #: Its output has its first input's mean and deviation in each channel, about.
    keeps_moments: bool = False

    # --- weights ---

    weights: Weights | None = None
    #: The input that is added to a trained layer's output, channel by channel.
    bias: int | None = None

    # --- values ---

    #: A sum, difference, product or quotient of two operands, element by element.
    arithmetic: bool = False
    sign: Sign | None = None
    span: Span | None = None
    integers: Integers | None = None
    #: It gives all elements of its first input another shape or another order of axes.
    layout: bool = False
    #: It may give the same of different numbers.
    decides: bool = False
    #: It is computed from the scores of a classifier.
    scores: bool = False
    #: What an infinity in a constant means to it: it passes it on; it takes it for "no bound" or
    #: "never"; or a mask of 0 and -inf may have been added to what it reads.
    infinity: Literal["moved", "bound", "masked"] | None = None
    #: The inputs for which `infinity` holds; None for all.
    infinite: tuple[int, ...] | None = None

    # --- shapes ---

    batch: Batch | None = None
    #: The axis along which it works where its attribute `axis` is left out (for `batch="along"`), and
    #: the input that names this axis (for `batch="along-input"`).
    axis: int = -1
    axis_input: int = 1
    #: It reads the shape of a value, which does not change with time, and not the value.
    shape_only: bool = False
    #: The input that says nothing but the shape of the output.
    shape_input: int | None = None
    #: The input that has a factor for each axis.
    factors: int | None = None
    #: The shape of its output follows from its attributes and its inputs' shapes, or from these and the
    #: values of all inputs but the first.
    shape_from: Literal["shapes", "values"] | None = None
    #: The types and shapes of its outputs, where onnx infers none.
    outputs: Outputs | None = None
    #: What it pools, and over what of a sample: a window with strides, pads and dilations (which a
    #: convolution has, too), the whole map, or some axes.
    pools: Literal["average", "maximum"] | None = None
    over: Literal["window", "map", "axes"] | None = None

    @property
    def elementwise(self) -> bool:
        """Whether it works on values of equal shape, or broadcast to one."""
        return self.batch == "elementwise"


def record(name: str) -> Operator:
    """The facts about an operator of onnx or ai.onnx.ml; the defaults where there is no record."""
    return OPERATORS.get(name, _UNKNOWN)


def _alike(first: Operator, *names: str) -> tuple[Operator, ...]:
    """Operators of one nature."""
    return (first, *(replace(first, name=name) for name in names))


#: It only chooses and moves elements of its first input.
_MOVES = Operator("", linear="first", spikes="moved", sign="first", span="first", integers="first",
                  infinity="moved", infinite=(0,))  # fmt: skip

# fmt: off
_TABLE: tuple[Operator, ...] = (
    # --- layers with weights ---
    Operator("Conv", linear="weights", weights="outputs-first", bias=2, batch="leading",
             shape_from="shapes", over="window"),
    Operator("ConvTranspose", linear="weights", weights="inputs-first", bias=2, batch="leading",
             shape_from="shapes", over="window"),
    Operator("Gemm", linear="weights", weights="matrix", bias=2, batch="gemm"),
    Operator("MatMul", linear="weights", weights="matrix", batch="matmul"),
    Operator("Einsum", linear="one", weights="equation", batch="einsum"),
    Operator("DeformConv", linear="first", batch="all-leading"),
    Operator("BatchNormalization", batch="leading"),
    # --- arithmetic ---
    Operator("Add", linear="always", arithmetic=True, sign="all", span="sum", integers="shift",
             batch="elementwise", becomes="x + |x|: a spiking neuron, 2·relu(x)"),
    Operator("Sub", linear="always", arithmetic=True, sign="difference", integers="shift",
             batch="elementwise",
             becomes="|x| - |x - a|, as in PACT: a spiking neuron, 2·Clip(x, 0, a) - a"),
    Operator("Mul", linear="one", spikes="signs", amplitude="signs", arithmetic=True, sign="all",
             batch="elementwise", becomes="x·(x > 0): a spiking neuron"),
    Operator("Div", linear="numerator", arithmetic=True, sign="quotient", decides=True,
             batch="elementwise"),
    Operator("Neg", linear="always", spikes="turned", amplitude="same", adds_nothing=True,
             sign="turned", batch="elementwise"),
    *_alike(Operator("Mean", linear="always", sign="all", batch="elementwise"), "Sum"),
    Operator("CumSum", linear="first", sign="first", batch="along-input", axis_input=1),
    Operator("Cast", linear="cast", keeps_moments=True, sign="first", integers="cast",
             infinity="moved", infinite=(0,), batch="elementwise"),
    Operator("CastLike", linear="first", infinity="moved", infinite=(0,)),
    Operator("Dropout", span="first", batch="elementwise"),
    # --- rectifiers, and what is spelled as some ---
    Operator("Relu", span="relu", integers="bound", batch="elementwise",
             becomes="a spiking neuron; behind Clip(x, lo <= 0, c) a spiking neuron with θ <= c"),
    Operator("Clip", linear="never", activation=True, span="clip", integers="bound", decides=True,
             infinity="bound", infinite=(1, 2), batch="elementwise",
             becomes="Clip(x, 0, c): a spiking neuron with θ <= c; other constant bounds: shifted to"
                     " that"),
    Operator("Max", linear="never", activation=True, sign="all", span="maximum", integers="bound",
             decides=True, infinity="bound", batch="elementwise",
             becomes="Max(x, 0): a spiking neuron; of values that change: x + relu(y - x), in pairs"),
    Operator("Min", linear="never", activation=True, sign="all", span="minimum", integers="bound",
             decides=True, infinity="bound", batch="elementwise",
             becomes="Min(relu(x), c): a spiking neuron, θ <= c; of values that change: "
                     "x - relu(x - y)"),
    Operator("Where", linear="condition", decides=True, infinity="bound", infinite=(1, 2),
             batch="elementwise",
             becomes="Where(x > 0, x, 0), also with >=, < and <=: a spiking neuron; with a·x for 0:"
                     " two"),
    Operator("LeakyRelu", linear="never", batch="elementwise",
             becomes="two spiking neurons: relu(x) - a·relu(-x)"),
    Operator("PRelu", linear="never", batch="elementwise",
             becomes="two spiking neurons: relu(x) - a·relu(-x); its slopes have to be constant"),
    Operator("ThresholdedRelu", linear="never", batch="elementwise",
             becomes="alpha = 0: a spiking neuron; else refused"),
    Operator("Shrink", linear="never", activation=True, batch="elementwise",
             becomes="with its bias at λ: two spiking neurons, relu(x - λ) - relu(-x - λ); else"
                     " refused"),
    Operator("HardSigmoid", linear="never", activation=True, sign="positive", span="unit",
             batch="elementwise", becomes="a spiking neuron with θ <= 1: Clip(α·x + β, 0, 1)"),
    Operator("Abs", linear="never", activation=True, sign="positive", batch="elementwise",
             becomes="two spiking neurons: relu(x) + relu(-x)"),
    Operator("ReduceL1", linear="never", batch="reduce",
             becomes="the sum of Abs(x), or of x if that is never negative"),
    Operator("GlobalLpPool", linear="never", batch="leading",
             becomes="p = 1: the sum of Abs(x), or of x if that is never negative; else refused"),
    Operator("LpPool", linear="never", batch="leading", shape_from="shapes", over="window",
             becomes="p = 1: the mean of Abs(x) times the window's size; else refused"),
    # --- pooling and reductions ---
    Operator("AveragePool", linear="first", amplitude="pool", adds_nothing=True, sign="first",
             span="average", batch="leading", shape_from="shapes", pools="average", over="window"),
    Operator("GlobalAveragePool", linear="first", amplitude="pool", adds_nothing=True, sign="first",
             span="first", batch="leading", pools="average", over="map"),
    Operator("MaxPool", spikes="moved", amplitude="channels", adds_nothing=True, keeps_moments=True,
             sign="first", span="first", integers="max-pool", batch="leading", shape_from="shapes",
             pools="maximum", over="window"),
    Operator("GlobalMaxPool", linear="never", sign="first", span="first", batch="leading",
             pools="maximum", over="map",
             becomes="MaxPool over the whole map; refused if its size is not known"),
    *_alike(
        Operator("ReduceMax", linear="never", sign="first", span="first", integers="first",
                 infinity="masked", batch="reduce", pools="maximum", over="axes"),
        "ReduceMin",
    ),
    Operator("ReduceMean", linear="first", amplitude="reduce", sign="first", span="first",
             batch="reduce"),
    Operator("ReduceSum", linear="first", amplitude="reduce", sign="first", batch="reduce"),
    *_alike(
        Operator("ReduceL2", linear="never", batch="reduce"),
        "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare",
    ),
    Operator("MaxUnpool", linear="first", batch="counted"),
    Operator("RoiAlign", linear="regions", batch="counted"),
    Operator("MaxRoiPool", linear="never"),
    # --- what chooses and moves elements ---
    replace(_MOVES, name="Identity", amplitude="same", adds_nothing=True, layout=True,
            batch="elementwise"),
    replace(_MOVES, name="Flatten", amplitude="reshape", adds_nothing=True, layout=True,
            batch="flatten", shape_from="shapes"),
    replace(_MOVES, name="Reshape", amplitude="reshape", adds_nothing=True, layout=True,
            batch="reshape", shape_input=1),
    replace(_MOVES, name="Squeeze", amplitude="squeeze", layout=True, batch="squeeze"),
    replace(_MOVES, name="Unsqueeze", amplitude="unsqueeze", layout=True, batch="unsqueeze"),
    replace(_MOVES, name="Transpose", amplitude="transpose", adds_nothing=True, layout=True,
            batch="transpose"),
    replace(_MOVES, name="Slice", amplitude="slice", adds_nothing=True, keeps_moments=True,
            batch="slice", shape_from="values"),
    replace(_MOVES, name="Split", batch="along", axis=0),
    replace(_MOVES, name="Gather", amplitude="uniform", batch="gather"),
    *_alike(
        replace(_MOVES, name="DepthToSpace", amplitude="uniform", infinity=None, infinite=None,
                batch="leading", shape_from="shapes"),
        "SpaceToDepth",
    ),
    replace(_MOVES, name="Concat", linear="always", amplitude="joined", sign="all", span="hull",
            integers="all", infinite=None, batch="concat", shape_from="shapes"),
    replace(_MOVES, name="Expand", spikes=None, batch="expand", shape_input=1),
    replace(_MOVES, name="Tile", spikes=None, batch="tile", shape_input=1, factors=1,
            shape_from="values"),
    Operator("Pad", linear="first", spikes="padded", amplitude="pad", keeps_moments=True,
             sign="padded", integers="pad", infinity="bound", infinite=(2,), batch="pad",
             shape_from="values"),
    Operator("Resize", linear="resize", amplitude="resize", sign="resized", integers="resize",
             batch="resize", shape_input=3, factors=2, shape_from="values"),
    Operator("Upsample", linear="resize", amplitude="resize", sign="resized", batch="resize",
             factors=1, shape_from="values"),
    Operator("GatherElements", linear="first", sign="first", batch="elements"),
    Operator("GatherND", linear="first", sign="first", batch="gather-nd"),
    Operator("ScatterElements", linear="scatter", batch="elements"),
    Operator("ScatterND", linear="scatter", batch="scatter-nd"),
    Operator("Trilu", linear="first", infinity="moved", infinite=(0,), batch="matrices"),
    Operator("Compress", linear="first"),
    Operator("ReverseSequence", linear="first", batch="reverse"),
    Operator("CenterCropPad", linear="first", batch="crop"),
    Operator("GridSample", linear="first", batch="all-leading"),
    # --- other linear operators ---
    *_alike(Operator("AffineGrid", linear="first", batch="counted"), "RotaryEmbedding"),
    *_alike(Operator("Col2Im", linear="first", batch="leading"), "STFT"),
    Operator("DFT", linear="first", batch="along-input", axis_input=2),
    # --- functions of one value that bend or jump, and logic ---
    *_alike(
        Operator("Acos", linear="never", batch="elementwise"),
        "Acosh", "And", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp",
        "Gelu", "HardSwish", "Log", "Mish", "Not", "Or", "Pow", "Reciprocal", "Selu", "Sin", "Sinh",
        "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "Xor",
    ),
    Operator("Sigmoid", linear="never", sign="positive", span="unit", batch="elementwise"),
    *_alike(
        Operator("Ceil", linear="never", decides=True, batch="elementwise"), "Floor", "Round", "Sign",
    ),
    *_alike(
        Operator("Equal", linear="never", decides=True, infinity="bound", batch="elementwise"),
        "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    ),
    *_alike(Operator("Mod", linear="never", decides=True), "NonZero"),
    Operator("IsInf", linear="never", infinity="bound"),
    *_alike(
        Operator("IsNaN", linear="never"),
        "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    ),
    # --- scores and choices by value ---
    Operator("Softmax", linear="never", sign="positive", span="unit", scores=True, infinity="masked",
             batch="along", axis=-1),
    *_alike(
        Operator("LogSoftmax", linear="never", scores=True, infinity="masked", batch="along", axis=-1),
        "Hardmax",
    ),
    Operator("TopK", linear="never", decides=True, scores=True, infinity="masked", batch="along",
             axis=-1),
    Operator("ArgMax", linear="never", decides=True, scores=True, infinity="masked", batch="reduce"),
    Operator("ArgMin", linear="never", decides=True, infinity="masked", batch="reduce"),
    *_alike(
        Operator("OneHot", linear="never"),
        "NonMaxSuppression", "SoftmaxCrossEntropyLoss", "Unique",
    ),
    # --- norms, powers and products of what depends on time ---
    *_alike(
        Operator("GroupNormalization", linear="never", batch="leading"), "InstanceNormalization", "LRN",
    ),
    Operator("LayerNormalization", linear="never", batch="trailing"),
    Operator("LpNormalization", linear="never", batch="along", axis=-1),
    Operator("CumProd", linear="never", batch="along-input", axis_input=1),
    *_alike(
        Operator("Attention", linear="never"),
        "Det", "GRU", "LSTM", "MeanVarianceNormalization", "RMSNormalization", "RNN", "SwiGLU",
    ),
    # --- integers ---
    Operator("QuantizeLinear", linear="never", batch="same"),
    Operator("DequantizeLinear", integers="dequantize", batch="same"),
    Operator("DynamicQuantizeLinear", linear="never"),
    *_alike(Operator("ConvInteger", integers="multiply"), "MatMulInteger"),
    Operator("QLinearConv", batch="leading"),
    # --- shapes and constants ---
    *_alike(Operator("Shape", integers="shape", shape_only=True), "Size"),
    Operator("ConstantOfShape", infinity="moved", shape_input=0),
    # --- random numbers ---
    *_alike(
        Operator("Bernoulli", random=True),
        "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    ),
    # --- ai.onnx.ml ---
    *_alike(Operator("Imputer", batch="leading", outputs="as-input"), "Normalizer"),
    Operator("LabelEncoder", batch="leading"),
    Operator("OneHotEncoder", batch="leading", outputs="one-hot"),
    *_alike(
        Operator("LinearRegressor", batch="leading", outputs="targets"), "TreeEnsembleRegressor",
    ),
    Operator("SVMRegressor", batch="leading", outputs="one-number"),
    *_alike(
        Operator("LinearClassifier", batch="leading", outputs="classes"),
        "SVMClassifier", "TreeEnsembleClassifier",
    ),
    Operator("ArrayFeatureExtractor", batch="embedding"),
)
# fmt: on

_UNKNOWN = Operator("")

#: By name.
OPERATORS: dict[str, Operator] = {entry.name: entry for entry in _TABLE}
