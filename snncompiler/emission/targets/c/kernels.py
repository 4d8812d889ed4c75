"""The C functions that an exported network calls, for the types that it needs.

A kernel is text with the types of its arguments to be filled in: `$X`, `$Y` and so on.  Convolutions
go from each input that is not zero to the sums that it belongs to, so a silent neuron costs one
comparison.
"""

from __future__ import annotations

from string import Template

#: What the names of functions say of types.
SUFFIX = {
    "uint8_t": "u8",
    "int8_t": "s8",
    "int16_t": "s16",
    "int32_t": "s32",
    "int64_t": "s64",
    "float": "f32",
    "double": "f64",
}

#: What a kernel is told of a convolution or of pooling.
WINDOW = """\
typedef struct {
    int channels, rows, columns;             /* of the input */
    int outputs, out_rows, out_columns;
    int kernel_rows, kernel_columns;
    int stride_rows, stride_columns, dilation_rows, dilation_columns;
    int top, left;                           /* padding */
    int groups;
    int whole;                               /* averages: padding counts */
} window;
"""

KERNELS = {
    "conv": """\
/* y[n, o, r, c] = bias[o] + sum of w[o, i, k, l] * x[n, i, r*stride + k - top, c*stride + l - left] */
static void $name(const $X *x, $Y *y, const $W *w, const $B *bias, const window *s, int images) {
    const int inputs = s->channels / s->groups, outputs = s->outputs / s->groups;
    const int plane = s->out_rows * s->out_columns, taps = s->kernel_rows * s->kernel_columns;
    for (int n = 0; n < images; n++, y += s->outputs * plane) {
        for (int o = 0; o < s->outputs; o++)
            for (int p = 0; p < plane; p++) y[o * plane + p] = bias ? bias[o] : 0;
        for (int i = 0; i < s->channels; i++) {
            const int first = i / inputs * outputs;
            for (int r = 0; r < s->rows; r++) {
                for (int c = 0; c < s->columns; c++, x++) {
                    if (*x == 0) continue;
                    for (int k = 0; k < s->kernel_rows; k++) {
                        const int down = r + s->top - k * s->dilation_rows;
                        const int row = down / s->stride_rows;
                        if (down < 0 || down % s->stride_rows || row >= s->out_rows) continue;
                        for (int l = 0; l < s->kernel_columns; l++) {
                            const int right = c + s->left - l * s->dilation_columns;
                            const int column = right / s->stride_columns;
                            if (right < 0 || right % s->stride_columns) continue;
                            if (column >= s->out_columns) continue;
                            const $W *weight = w + (first * inputs + i % inputs) * taps;
                            $Y *sum = y + first * plane + row * s->out_columns + column;
                            weight += k * s->kernel_columns + l;
                            for (int o = 0; o < outputs; o++, weight += inputs * taps, sum += plane)
                                *sum += ($Y)*weight * ($Y)*x;
                        }
                    }
                }
            }
        }
    }
}
""",
    "dense": """\
/* out[n, o] = bias[o] + sum of x[n, i] * w[i, o] */
static void $name(const $X *x, $Y *y, const $W *w, const $B *bias, int inputs, int outputs, int rows) {
    for (int n = 0; n < rows; n++, y += outputs) {
        for (int o = 0; o < outputs; o++) y[o] = bias ? bias[o] : 0;
        for (int i = 0; i < inputs; i++, x++) {
            if (*x == 0) continue;
            for (int o = 0; o < outputs; o++) y[o] += ($Y)w[i * outputs + o] * ($Y)*x;
        }
    }
}
""",
    "average": """\
/* The mean of each window; the sum is one of whole numbers. */
static void $name(const $X *x, $Y *y, const window *s, int images) {
    for (int n = 0; n < images * s->channels; n++, x += s->rows * s->columns) {
        for (int r = 0; r < s->out_rows; r++) {
            for (int c = 0; c < s->out_columns; c++) {
                int64_t sum = 0;
                int count = 0;
                for (int k = 0; k < s->kernel_rows; k++) {
                    for (int l = 0; l < s->kernel_columns; l++) {
                        const int row = r * s->stride_rows + k - s->top;
                        const int column = c * s->stride_columns + l - s->left;
                        const int inside =
                            row >= 0 && row < s->rows && column >= 0 && column < s->columns;
                        if (inside) sum += x[row * s->columns + column];
                        count += inside || s->whole;
                    }
                }
                *y++ = ($Y)sum / ($Y)count;
            }
        }
    }
}
""",
    "largest": """\
/* The largest value of each window. */
static void $name(const $X *x, $X *y, const window *s, int images) {
    for (int n = 0; n < images * s->channels; n++, x += s->rows * s->columns) {
        for (int r = 0; r < s->out_rows; r++) {
            for (int c = 0; c < s->out_columns; c++) {
                const $X *most = NULL;
                for (int k = 0; k < s->kernel_rows; k++) {
                    for (int l = 0; l < s->kernel_columns; l++) {
                        const int row = r * s->stride_rows + k * s->dilation_rows - s->top;
                        const int column = c * s->stride_columns + l * s->dilation_columns - s->left;
                        if (row < 0 || row >= s->rows || column < 0 || column >= s->columns) continue;
                        const $X *here = x + row * s->columns + column;
                        if (most == NULL || *here > *most) most = here;
                    }
                }
                *y++ = most == NULL ? 0 : *most;
            }
        }
    }
}
""",
    "max_pool": """\
/* Max pooling of spike trains: the increments of the largest count of each window. */
static void $name(const $X *x, $Y *y, $V *counts, const window *s) {
    for (int n = 0; n < s->channels; n++, counts += s->rows * s->columns, x += s->rows * s->columns) {
        for (int r = 0; r < s->out_rows; r++) {
            for (int c = 0; c < s->out_columns; c++) {
                $V before = 0, after = 0;
                for (int k = 0; k < s->kernel_rows; k++) {
                    for (int l = 0; l < s->kernel_columns; l++) {
                        const int row = r * s->stride_rows + k * s->dilation_rows - s->top;
                        const int column = c * s->stride_columns + l * s->dilation_columns - s->left;
                        if (row < 0 || row >= s->rows || column < 0 || column >= s->columns) continue;
                        const $V had = counts[row * s->columns + column];
                        const $V has = had + x[row * s->columns + column];
                        if (had > before) before = had;
                        if (has > after) after = has;
                    }
                }
                *y++ = ($Y)(after - before);
            }
        }
        for (int p = 0; p < s->rows * s->columns; p++) counts[p] += x[p];
    }
}
""",
    "neuron": """\
/* Soft reset: u = v + x + b;  s = 1 if u >= theta else 0;  v = u - theta * s */
static void $name(const $X *x, uint8_t *spikes, $V *v, const $W *theta, const $B *charge, int size,
        int channels, int inner) {
    for (int i = 0; i < size; i++) {
        const int of = i / inner % channels;
        const $V u = v[i] + ($V)x[i] + (charge ? charge[of] : 0);
        spikes[i] = u >= theta[of];
        v[i] = spikes[i] ? u - theta[of] : u;
    }
}
""",
    "layered": """\
/* Layered time: receives a whole window, or what is complete (`held` = 1), then fires in T steps. */
static void $name(const $X *x, uint8_t *spikes, const $V *start, const $W *theta, int held, int steps,
        int radix, int size, int channels, int inner, int start_channels, int start_inner) {
    for (int i = 0; i < size; i++) {
        $V v = start[i / start_inner % start_channels];
        const $V quantum = theta[i / inner % channels];
        for (int t = 0; t < held; t++) v += ($V)x[t * size + i] * (($V)1 << (radix ? held - 1 - t : 0));
        for (int t = 0; t < steps; t++) {
            const $V level = quantum * (($V)1 << (radix ? steps - 1 - t : 0));
            spikes[t * size + i] = v >= level;
            if (v >= level) v -= level;
        }
    }
}
""",
    "time_sum": """\
/* total = total + w_t * x_t, in the order of time */
static void $name(const $X *x, $V *total, const $W *weights, int steps, int size) {
    for (int t = 0; t < steps; t++)
        for (int i = 0; i < size; i++) {
            const $V product = ($V)(weights ? weights[t] : 1) * ($V)x[t * size + i];
            total[i] = total[i] + product;
        }
}
""",
}


def function(kernel: str, **types: str) -> tuple[str, str]:
    """The name and the text of a kernel for these types."""
    name = "_".join([kernel, *(SUFFIX[kind] for kind in types.values())])
    return name, Template(KERNELS[kernel]).substitute(types, name=name)
