#include <limits>

#include "cpu_shared.h"
#include "scratch.h"

namespace snnc::cpu {
namespace {

/// The value of a window that sees nothing but padding, as in onnxruntime.
constexpr float nothing = std::numeric_limits<float>::lowest();

SNNC_BODY float larger(float a, float b) { return a < b ? b : a; }

/// out[i] = max(out[i], row[i * stride]); the common strides are known to the compiler.
template <std::int64_t fixed_stride>
SNNC_BODY void maximize(const float* __restrict__ row, std::int64_t stride, std::int64_t count,
                        float* __restrict__ out) {
  const std::int64_t step = fixed_stride ? fixed_stride : stride;
  for (std::int64_t i = 0; i < count; ++i) out[i] = larger(out[i], row[i * step]);
}

/// One row of the pooled plane: first the maximum over the window's rows, then along the row.
SNNC_BODY void pool_row(const Window& w, const float* plane, std::int64_t depth,
                        std::int64_t height, float* row, float* out) {
  const std::int64_t width = w.in[2];
  for (std::int64_t i = 0; i < width; ++i) row[i] = nothing;
  for (std::int64_t kd = 0; kd < w.kernel[0]; ++kd) {
    const std::int64_t d = depth * w.stride[0] - w.pad[0] + kd * w.dilation[0];
    if (d < 0 || d >= w.in[0]) continue;
    for (std::int64_t kh = 0; kh < w.kernel[1]; ++kh) {
      const std::int64_t h = height * w.stride[1] - w.pad[1] + kh * w.dilation[1];
      if (h < 0 || h >= w.in[1]) continue;
      maximize<1>(plane + (d * w.in[1] + h) * width, 1, width, row);
    }
  }
  for (std::int64_t i = 0; i < w.out[2]; ++i) out[i] = nothing;
  const std::int64_t stride = w.stride[2];
  for (std::int64_t kw = 0; kw < w.kernel[2]; ++kw) {
    // Output i looks at row[i * stride + shift], where that is inside.
    const std::int64_t shift = kw * w.dilation[2] - w.pad[2];
    if (shift >= width) break;
    const std::int64_t from = shift < 0 ? (-shift + stride - 1) / stride : 0;
    const std::int64_t to = (width - 1 - shift) / stride + 1;
    const std::int64_t count = (to < w.out[2] ? to : w.out[2]) - from;
    const float* seen = row + from * stride + shift;
    if (stride == 1) {
      maximize<1>(seen, stride, count, out + from);
    } else if (stride == 2) {
      maximize<2>(seen, stride, count, out + from);
    } else {
      maximize<0>(seen, stride, count, out + from);
    }
  }
}

SNNC_BODY void difference(const float* __restrict__ after, float* __restrict__ before,
                          std::int64_t count, float* __restrict__ out) {
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = after[i] - before[i];
    before[i] = after[i];
  }
}

/// Writes after - before and moves on: before = after.  `after` is overwritten.
template <typename Set>
SNNC_BODY void emit(float* after, float* before, std::int64_t count, float* out) {
  difference(after, before, count, out);
}
template <typename Set>
SNNC_BODY void emit(float* after, float* before, std::int64_t count, Half* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float change = after[i] - before[i];
    before[i] = after[i];
    after[i] = change;
  }
  Set::narrow_floats(after, count, out);
}

/// What one plane needs to work in.
struct Memory {
  float* before;  // the outputs of the last step
  float* row;     // of the inputs, the largest ones of a window's rows
  float* after;   // a row of outputs
  float* wide;    // the spikes of a step as floats
};

template <typename Set, typename T>
SNNC_BODY void pool_body(const PoolTask<T>& task, std::int64_t plane, const Memory& memory) {
  const Window& w = task.window;
  const std::int64_t inputs = w.inputs(), outputs = w.outputs(), width = w.out[2];
  const auto [before, row, after, wide] = memory;
  float* counts = task.counts_out + plane * inputs;
  start_state(task.counts, task.counts_over, plane * inputs, inputs, counts);

  const std::int64_t rows = w.out[0] * w.out[1];
  for (std::int64_t r = 0; r < rows; ++r) {
    pool_row(w, counts, r / w.out[1], r % w.out[1], row, before + r * width);
  }
  for (std::int64_t t = 0; t < task.steps; ++t) {
    const T* spikes = task.spikes + (t * task.planes + plane) * inputs;
    T* pooled = task.pooled + (t * task.planes + plane) * outputs;
    add(as_floats<Set>(spikes, inputs, wide), inputs, counts);
    for (std::int64_t r = 0; r < rows; ++r) {
      pool_row(w, counts, r / w.out[1], r % w.out[1], row, after);
      emit<Set>(after, before + r * width, width, pooled + r * width);
    }
  }
}

}  // namespace

template <typename T>
bool pool(const PoolTask<T>& task, std::int64_t plane, Isa isa) {
  const Window& w = task.window;
  const std::int64_t sizes[] = {w.outputs(), w.in[2], w.out[2], w.inputs()};
  static thread_local Scratch scratch;
  std::int64_t bytes = 0;
  for (const std::int64_t size : sizes) bytes += Scratch::room<float>(size);
  if (!scratch.reserve(bytes)) return false;
  Memory memory;
  memory.before = scratch.take<float>(sizes[0]);
  memory.row = scratch.take<float>(sizes[1]);
  memory.after = scratch.take<float>(sizes[2]);
  memory.wide = scratch.take<float>(sizes[3]);
  on(isa, [&](auto set) SNNC_INLINE { pool_body<decltype(set)>(task, plane, memory); });
  return true;
}

template bool pool(const PoolTask<float>&, std::int64_t, Isa);
template bool pool(const PoolTask<Half>&, std::int64_t, Isa);

}  // namespace snnc::cpu
