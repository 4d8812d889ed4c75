#include "cuda_kernels.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cfloat>
#include <cstring>
#include <type_traits>

#include "spread.h"

#ifndef SNNC_PIECE  // the tests make them small
#define SNNC_PIECE snnc::Divisor::limit
#endif

namespace snnc::cuda {
namespace {

constexpr int threads = 128;
/// Less than so many elements of a row are computed by one launch.
constexpr std::int64_t piece_limit = SNNC_PIECE;
/// Time-steps whose loads are under way together: they do not depend on the membrane potential.
constexpr int ahead = 4;

// --- values ------------------------------------------------------------------------------------

__device__ float widened(float value) { return value; }
__device__ float widened(Half value) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(value)));
}

/// Round to nearest, ties to even.
template <typename T>
__device__ T narrowed(float value);
template <>
__device__ float narrowed<float>(float value) {
  return value;
}
template <>
__device__ Half narrowed<Half>(float value) {
  return static_cast<Half>(__half_as_ushort(__float2half_rn(value)));
}

/// Neighbouring values that one thread moves in one access.
template <typename T, int width>
struct alignas(sizeof(T) * width) Pack {
  T value[width];
};

/// What the hardware moves in one access.  Said explicitly: left to itself, the compiler splits
/// the stores.
template <int bytes>
struct Word;
template <>
struct Word<16> {
  using type = uint4;
};
template <>
struct Word<4> {
  using type = unsigned int;
};
template <>
struct Word<2> {
  using type = unsigned short;
};

template <int width, typename T>
__device__ Pack<T, width> load(const T* from) {
  using Bits = typename Word<sizeof(Pack<T, width>)>::type;
  const Bits bits = *reinterpret_cast<const Bits*>(from);
  Pack<T, width> pack;
  memcpy(&pack, &bits, sizeof(pack));
  return pack;
}

template <int width, typename T>
__device__ void store(T* to, const Pack<T, width>& pack) {
  using Bits = typename Word<sizeof(Pack<T, width>)>::type;
  Bits bits;
  memcpy(&bits, &pack, sizeof(bits));
  __stwb(reinterpret_cast<Bits*>(to), bits);
}

/// Floats of a state: two accesses of 16 bytes where the currents are eight halves.
template <int width>
__device__ void load_floats(const float* from, float (&to)[width]) {
  constexpr int part = width < 4 ? width : 4;
  for (int i = 0; i < width; i += part) {
    const auto pack = load<part>(from + i);
    for (int j = 0; j < part; ++j) to[i + j] = pack.value[j];
  }
}

template <int width>
__device__ void store_floats(float* to, const float (&from)[width]) {
  constexpr int part = width < 4 ? width : 4;
  for (int i = 0; i < width; i += part) {
    Pack<float, part> pack;
    for (int j = 0; j < part; ++j) pack.value[j] = from[i + j];
    store<part>(to + i, pack);
  }
}

/// The values of a tensor for `width` neighbours of the row that it spreads over.
template <int width>
__device__ void load_spread(const Spread& spread, std::uint32_t first, float (&out)[width]) {
  if (spread.full) {
    load_floats(spread.from + first, out);
    return;
  }
  const Places<width> places(spread, first);
#pragma unroll
  for (int i = 0; i < width; ++i) out[i] = spread.from[places.at[i]];
}

/// The first of the neighbours of this thread.
template <int width>
__device__ std::uint32_t first_of_thread() {
  return (blockIdx.x * threads + threadIdx.x) * width;
}

// --- neuron ------------------------------------------------------------------------------------

/// Each thread takes `width` neurons through all time-steps, their membrane potentials in registers.
template <typename T, int width, Reset reset, bool static_current>
__global__ void __launch_bounds__(threads)
    neuron_kernel(const NeuronTask<T> task, const Spread membrane, const Spread threshold,
                  const std::uint32_t count) {
  const std::uint32_t first = first_of_thread<width>();
  if (first >= count) return;
  const T* __restrict__ current = task.current + first;
  T* __restrict__ spikes = task.spikes + first;
  float v[width], theta[width];
  load_spread(membrane, first, v);
  load_spread(threshold, first, theta);

  Pack<T, width> x[ahead];
  if (static_current) x[0] = load<width>(current);
  for (std::int64_t left = task.steps; left > 0; left -= ahead) {
    if (!static_current) {
#pragma unroll
      for (int a = 0; a < ahead; ++a, current += task.neurons) {
        if (a < left) x[a] = load<width>(current);
      }
    }
#pragma unroll
    for (int a = 0; a < ahead; ++a, spikes += task.neurons) {
      if (a >= left) break;
      Pack<T, width> fired;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float u = v[i] + widened(x[static_current ? 0 : a].value[i]);
        const float s = u >= theta[i] ? 1.0f : 0.0f;
        if (reset == Reset::soft) {
          v[i] = u - s * theta[i];
        } else {
          v[i] = s > 0.0f ? 0.0f : u;
        }
        fired.value[i] = narrowed<T>(s);
      }
      store<width>(spikes, fired);
    }
  }
  store_floats(task.membrane_out + first, v);
}

// --- neuron with a schedule --------------------------------------------------------------------

/// What one neuron sends, and its reset.
template <Firing firing>
__device__ float fire(float u, float theta, float levels, float& v, float& balance) {
  float sent;
  if (firing == Firing::single) {
    sent = u >= theta ? 1.0f : 0.0f;
  } else {
    // Bounded before it is rounded down: the bounds are whole numbers.
    const float least = firing == Firing::balanced ? -levels : 0.0f;
    const float quanta = u / theta;
    const float at_least = quanta > least ? quanta : least;
    const float bounded = at_least < levels ? at_least : levels;
    sent = static_cast<float>(static_cast<int>(bounded));
    if (firing == Firing::balanced) {
      sent = (sent > bounded ? sent - 1.0f : sent) + 0.0f;  // no negative zero
      const float owed = 0.0f - balance;
      sent = sent < owed ? owed : sent;
      balance = balance + sent;
    }
  }
  v = u - sent * theta;
  return sent;
}

/// Each thread takes `width` neurons through all time-steps.  The row of the schedule is read at
/// every step until its last row is reached, which stays in registers.
template <typename T, int width, Firing firing, Current kind>
__global__ void __launch_bounds__(threads)
    scheduled_kernel(const ScheduledTask<T> task, const Spread membrane, const Spread threshold,
                     const Spread balances, const Spread schedule, const std::uint32_t count) {
  const std::uint32_t first = first_of_thread<width>();
  if (first >= count) return;
  const T* __restrict__ current = task.current + first;
  T* __restrict__ spikes = task.spikes + first;
  float v[width], theta[width], bias[width], balance[width];
  load_spread(membrane, first, v);
  load_spread(threshold, first, theta);
  if (firing == Firing::balanced) load_spread(balances, first, balance);
  const Places<width> places(schedule, first);
  const float* row = schedule.from;
  std::int64_t rows = task.settled() + 1;  // that are still to be read
  constexpr bool temporal = kind == Current::temporal;

  Pack<T, width> x[ahead];
  if (!temporal) x[0] = load<width>(current);
  for (std::int64_t left = task.steps; left > 0; left -= ahead, rows -= ahead) {
    if (temporal) {
#pragma unroll
      for (int a = 0; a < ahead; ++a, current += task.neurons) {
        if (a < left) x[a] = load<width>(current);
      }
    }
#pragma unroll
    for (int a = 0; a < ahead; ++a, spikes += task.neurons) {
      if (a >= left) break;
      if (a < rows) {
#pragma unroll
        for (int i = 0; i < width; ++i) bias[i] = row[places.at[i]];
        row += task.row_size;
      }
      const float factor =
          kind == Current::driven ? task.drive.at(task.start, task.steps - left + a) : 1.0f;
      Pack<T, width> sent;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        float input = widened(x[temporal ? a : 0].value[i]);
        if (kind == Current::driven) input = widened(narrowed<T>(factor * input));
        const float u = (v[i] + input) + bias[i];
        sent.value[i] = narrowed<T>(fire<firing>(u, theta[i], task.levels, v[i], balance[i]));
      }
      store<width>(spikes, sent);
    }
  }
  store_floats(task.membrane_out + first, v);
  if (firing == Firing::balanced) store_floats(task.balance_out + first, balance);
}

// --- neuron of layered time --------------------------------------------------------------------

/// Each thread receives the whole current of `width` neurons, then lets them fire.
template <typename T, int width>
__global__ void __launch_bounds__(threads)
    layered_kernel(const LayeredTask<T> task, const Spread membrane, const Spread threshold,
                   const std::uint32_t count) {
  const std::uint32_t first = first_of_thread<width>();
  if (first >= count) return;
  const T* __restrict__ current = task.current + first;
  T* __restrict__ spikes = task.spikes + first;
  float v[width], theta[width], sum[width] = {};
  load_spread(membrane, first, v);
  load_spread(threshold, first, theta);

  const float fading = task.fading();
  float weight = task.first_weight(task.held());
  Pack<T, width> x[ahead];
  for (std::int64_t left = task.held(); left > 0; left -= ahead) {
#pragma unroll
    for (int a = 0; a < ahead; ++a, current += task.neurons) {
      if (a < left) x[a] = load<width>(current);
    }
#pragma unroll
    for (int a = 0; a < ahead; ++a, weight *= fading) {
      if (a >= left) break;
#pragma unroll
      for (int i = 0; i < width; ++i) sum[i] = sum[i] + weight * widened(x[a].value[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < width; ++i) v[i] = v[i] + sum[i];

  weight = task.first_weight(task.steps);
  for (std::int64_t t = 0; t < task.steps; ++t, spikes += task.neurons, weight *= fading) {
    Pack<T, width> fired;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float level = weight * theta[i];
      const float s = v[i] >= level ? 1.0f : 0.0f;
      v[i] = v[i] - s * level;
      fired.value[i] = narrowed<T>(s);
    }
    store<width>(spikes, fired);
  }
}

/// Each thread finds the counts of `width` neurons whose current is complete.
template <int width>
__global__ void __launch_bounds__(threads)
    level_kernel(const LevelTask task, const Spread membrane, const Spread threshold,
                 const std::uint32_t count) {
  const std::uint32_t first = first_of_thread<width>();
  if (first >= count) return;
  float v[width], theta[width];
  load_spread(membrane, first, v);
  load_spread(threshold, first, theta);
  const Pack<float, width> x = load<width>(task.current + first);
  Pack<float, width> counts;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    const float u = v[i] + x.value[i];
    // At most one too many or too few; u - n * theta, rounded once, has the right sign.  NaN sends nothing.
    const float quotient = u / theta[i];
    float n = quotient > 0.0f ? quotient : 0.0f;
    n = n < task.levels ? n : task.levels;
    n = static_cast<float>(static_cast<int>(n));
    n = fmaf(-n, theta[i], u) < 0.0f ? n - 1.0f : n;
    n = fmaf(-(n + 1.0f), theta[i], u) >= 0.0f ? n + 1.0f : n;
    n = n > 0.0f ? n : 0.0f;
    counts.value[i] = n < task.levels ? n : task.levels;
  }
  store<width>(task.counts + first, counts);
}

// --- sum over time -----------------------------------------------------------------------------

template <typename T, int width, bool weighted>
__global__ void __launch_bounds__(threads)
    sum_kernel(const SumTask<T> task, const Spread total, const std::uint32_t count) {
  const std::uint32_t first = first_of_thread<width>();
  if (first >= count) return;
  const T* __restrict__ values = task.values + first;
  const float* weights = task.weights;
  float y[width];
  load_spread(total, first, y);
  Pack<T, width> x[ahead];
  for (std::int64_t left = task.steps; left > 0; left -= ahead) {
#pragma unroll
    for (int a = 0; a < ahead; ++a, values += task.neurons) {
      if (a < left) x[a] = load<width>(values);
    }
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      if (a >= left) break;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float value = widened(x[a].value[i]);
        y[i] = y[i] + (weighted ? weights[a] * value : value);
      }
    }
    if (weighted) weights += ahead;
  }
  store_floats(task.total_out + first, y);
}

// --- running mean and its undoing --------------------------------------------------------------

template <typename T, int width, Analog kind>
__global__ void __launch_bounds__(threads)
    analog_kernel(const AnalogTask<T> task, const Spread states, const std::uint32_t count) {
  const std::uint32_t first = first_of_thread<width>();
  if (first >= count) return;
  const T* __restrict__ values = task.values + first;
  T* __restrict__ out = task.out + first;
  float state[width];
  load_spread(states, first, state);
  Pack<T, width> x[ahead];
  for (std::int64_t t = 0; t < task.steps; t += ahead) {
#pragma unroll
    for (int a = 0; a < ahead; ++a, values += task.neurons) {
      if (t + a < task.steps) x[a] = load<width>(values);
    }
#pragma unroll
    for (int a = 0; a < ahead; ++a, out += task.neurons) {
      if (t + a >= task.steps) break;
      const float before = task.done(t + a), now = task.done(t + a + 1);
      Pack<T, width> result;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float value = widened(x[a].value[i]);
        if (kind == Analog::running_mean) {
          state[i] = state[i] + value;
          result.value[i] = narrowed<T>(state[i] / now);
        } else {
          result.value[i] = narrowed<T>(now * value - before * state[i]);
          state[i] = value;
        }
      }
      store<width>(out, result);
    }
  }
  store_floats(task.state_out + first, state);
}

// --- a driven current --------------------------------------------------------------------------

template <typename T, int width>
__global__ void __launch_bounds__(threads)
    drive_kernel(const DriveTask<T> task, const std::uint32_t count) {
  const std::uint32_t first = first_of_thread<width>();
  if (first >= count) return;
  const Pack<T, width> x = load<width>(task.values + first);
  T* __restrict__ currents = task.currents + first;
  for (std::int64_t t = 0; t < task.steps; ++t, currents += task.neurons) {
    const float factor = task.drive.at(task.start, t);
    Pack<T, width> result;
#pragma unroll
    for (int i = 0; i < width; ++i) result.value[i] = narrowed<T>(factor * widened(x.value[i]));
    store<width>(currents, result);
  }
}

// --- spikes at random --------------------------------------------------------------------------

/// Each thread takes one value through all time-steps; `image` is the first one of the piece.
template <typename T>
__global__ void __launch_bounds__(threads)
    poisson_kernel(const PoissonTask<T> task, const Divisor size, const std::int64_t image,
                   const std::uint32_t count) {
  const std::uint32_t neuron = first_of_thread<1>();
  if (neuron >= count) return;
  std::uint32_t own = neuron;
  const std::uint32_t element = size.split(own);
  const float x = widened(task.values[neuron]);
  const float probability = fabsf(x) / *task.scale;
  const T fired = narrowed<T>(x < 0.0f ? -1.0f : 1.0f);
  const Random random = task.random(image + own);
  T* __restrict__ spikes = task.spikes + neuron;
  for (std::int64_t t = 0; t < task.steps; ++t, spikes += task.neurons()) {
    const float uniform = PoissonTask<T>::uniform(task.at_step(random, t), element);
    *spikes = uniform < probability ? fired : T{};
  }
}

// --- max pooling -------------------------------------------------------------------------------

/// The value of a window that sees nothing but padding, as in onnxruntime.
constexpr float nothing = -FLT_MAX;
/// The time-steps that one launch takes through a window together.
constexpr int pooled_steps = 32;

__device__ float larger(float a, float b) { return a < b ? b : a; }

/// A pooling window in 32 bits.  The outputs of a piece are counted from 0.
struct Pooling {
  int in[3], kernel[3], stride[3], dilation[3], pad[3];
  std::uint32_t inputs;
  Divisor out[3];
  Divisor outputs;
};

/// One thread per output: it takes tap after tap of its window through up to `pooled_steps`
/// time-steps, and keeps the largest count of each step in registers.  `counted` leaves the counts
/// behind, too: each is written by the last window that begins at it or before it.
template <typename T, bool counted>
__global__ void __launch_bounds__(threads)
    pool_kernel(const PoolTask<T> task, const Pooling w, const std::uint32_t count_stride,
                const std::uint32_t count) {
  const std::uint32_t output = first_of_thread<1>();
  if (output >= count) return;
  std::uint32_t plane = output;
  std::uint32_t place = w.outputs.split(plane);
  int begin[3];
  bool last[3];  // of its axis: whatever comes behind it is its own
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    const std::uint32_t at = w.out[axis].split(place);
    begin[axis] = static_cast<int>(at) * w.stride[axis] - w.pad[axis];
    last[axis] = at + 1 == w.out[axis].value;
  }
  const std::int64_t inputs = std::int64_t{plane} * w.inputs;
  const T* __restrict__ spikes = task.spikes + inputs;
  const float* counts = task.counts + inputs * count_stride;
  float* counts_out = task.counts_out + inputs;
  const std::int64_t row = task.planes * w.inputs;
  const int steps = static_cast<int>(task.steps);

  float before = nothing, most[pooled_steps];
#pragma unroll
  for (int t = 0; t < pooled_steps; ++t) most[t] = nothing;
  for (int i = 0; i < w.kernel[0]; ++i) {
    const int z = begin[0] + i * w.dilation[0];
    if (z < 0 || z >= w.in[0]) continue;
    for (int j = 0; j < w.kernel[1]; ++j) {
      const int y = begin[1] + j * w.dilation[1];
      if (y < 0 || y >= w.in[1]) continue;
      for (int k = 0; k < w.kernel[2]; ++k) {
        const int x = begin[2] + k * w.dilation[2];
        if (x < 0 || x >= w.in[2]) continue;
        const int at = (z * w.in[1] + y) * w.in[2] + x;
        float sum = counts[at * count_stride];
        before = larger(before, sum);
        const T* seen = spikes + at;
#pragma unroll
        for (int from = 0; from < pooled_steps; from += 8) {
          if (from >= steps) break;
          T values[8];
#pragma unroll
          for (int t = 0; t < 8; ++t, seen += row) {
            if (from + t < steps) values[t] = *seen;
          }
#pragma unroll
          for (int t = 0; t < 8; ++t) {
            if (from + t >= steps) break;
            sum = sum + widened(values[t]);
            most[from + t] = larger(most[from + t], sum);
          }
        }
        if (counted && (i < w.stride[0] || last[0]) && (j < w.stride[1] || last[1]) &&
            (k < w.stride[2] || last[2])) {
          counts_out[at] = sum;
        }
      }
    }
  }
  T* __restrict__ pooled = task.pooled + output;
  const std::int64_t pooled_row = task.planes * w.outputs.value;
#pragma unroll
  for (int t = 0; t < pooled_steps; ++t, pooled += pooled_row) {
    if (t >= steps) break;
    *pooled = narrowed<T>(most[t] - before);
    before = most[t];
  }
}

// --- launches ----------------------------------------------------------------------------------

template <typename... Pointers>
bool aligned(Pointers... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

/// Calls work(blocks, constant), the constant being the values that one thread moves in one access:
/// as many as 16 bytes hold, or one.
template <typename T, typename Work>
void in_packs(std::uint32_t count, bool packed, const Work& work) {
  constexpr int width = 16 / sizeof(T);
  constexpr std::uint32_t each = threads * width;
  if (packed) {
    work((count + each - 1) / each, std::integral_constant<int, width>{});
  } else {
    work((count + threads - 1) / threads, std::integral_constant<int, 1>{});
  }
}

/// Whether a thread can move 16 bytes at once: every row begins at 16 bytes.
template <typename T, typename... Pointers>
bool packed(std::int64_t neurons, std::uint32_t count, std::initializer_list<const Spread*> spreads,
            Pointers... pointers) {
  constexpr int width = 16 / sizeof(T);
  return neurons % width == 0 && count % width == 0 && aligned(pointers...) &&
         std::all_of(spreads.begin(), spreads.end(),
                     [](const Spread* spread) { return spread->serves(width); });
}

/// Calls work(constant) with a value that is known to the compiler.
template <auto... values, typename Value, typename Work>
void known(Value value, const Work& work) {
  ((value == values ? work(std::integral_constant<Value, values>{}) : void()), ...);
}

const char* launched() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

/// Calls work(first, count) for each piece of a row of `neurons` elements.
template <typename Work>
const char* in_pieces(std::int64_t neurons, std::int64_t piece, const Work& work) {
  if (piece == 0) return "no kernel for samples of 2^31 elements or more";
  for (std::int64_t first = 0; first < neurons; first += piece) {
    work(first, static_cast<std::uint32_t>(std::min(piece, neurons - first)));
    if (const char* error = launched()) return error;
  }
  return nullptr;
}

}  // namespace

template <typename T>
const char* neuron(const NeuronTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  const std::int64_t piece =
      piece_of(task.neurons, {&task.membrane_over, &task.threshold_over}, piece_limit);
  return in_pieces(task.neurons, piece, [&](std::int64_t first, std::uint32_t count) {
    NeuronTask<T> part = task;
    part.current += first;
    part.spikes += first;
    part.membrane_out += first;
    const Spread membrane(task.membrane, task.membrane_over, first);
    const Spread threshold(task.threshold, task.threshold_over, first);
    const bool wide = packed<T>(task.neurons, count, {&membrane, &threshold}, part.current,
                                part.spikes, part.membrane_out);
    in_packs<T>(count, wide, [&](unsigned blocks, auto pack) {
      known<Reset::soft, Reset::hard>(task.reset, [&](auto reset) {
        known<false, true>(task.static_current, [&](auto is_static) {
          constexpr int width = decltype(pack)::value;
          constexpr Reset kind = decltype(reset)::value;
          constexpr bool held = decltype(is_static)::value;
          neuron_kernel<T, width, kind, held><<<blocks, threads, 0, stream>>>(part, membrane,
                                                                             threshold, count);
        });
      });
    });
  });
}

template <typename T>
const char* scheduled(const ScheduledTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  const std::int64_t piece = piece_of(
      task.neurons,
      {&task.membrane_over, &task.threshold_over, &task.balance_over, &task.row_over}, piece_limit);
  return in_pieces(task.neurons, piece, [&](std::int64_t first, std::uint32_t count) {
    ScheduledTask<T> part = task;
    part.current += first;
    part.spikes += first;
    part.membrane_out += first;
    part.balance_out += task.firing == Firing::balanced ? first : 0;
    const Spread membrane(task.membrane, task.membrane_over, first);
    const Spread threshold(task.threshold, task.threshold_over, first);
    const Spread balance(task.balance, task.balance_over, first);
    const Spread row(task.row(0), task.row_over, first);
    const bool wide = packed<T>(task.neurons, count, {&membrane, &threshold, &balance, &row},
                                part.current, part.spikes, part.membrane_out, part.balance_out);
    in_packs<T>(count, wide, [&](unsigned blocks, auto pack) {
      known<Firing::single, Firing::burst, Firing::balanced>(task.firing, [&](auto firing) {
        known<Current::temporal, Current::fixed, Current::driven>(task.kind, [&](auto current) {
          constexpr int width = decltype(pack)::value;
          constexpr Firing fires = decltype(firing)::value;
          constexpr Current kind = decltype(current)::value;
          scheduled_kernel<T, width, fires, kind><<<blocks, threads, 0, stream>>>(
              part, membrane, threshold, balance, row, count);
        });
      });
    });
  });
}

template <typename T>
const char* layered(const LayeredTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  const std::int64_t piece =
      piece_of(task.neurons, {&task.membrane_over, &task.threshold_over}, piece_limit);
  return in_pieces(task.neurons, piece, [&](std::int64_t first, std::uint32_t count) {
    LayeredTask<T> part = task;
    part.current += first;
    part.spikes += first;
    const Spread membrane(task.membrane, task.membrane_over, first);
    const Spread threshold(task.threshold, task.threshold_over, first);
    const bool wide =
        packed<T>(task.neurons, count, {&membrane, &threshold}, part.current, part.spikes);
    in_packs<T>(count, wide, [&](unsigned blocks, auto pack) {
      constexpr int width = decltype(pack)::value;
      layered_kernel<T, width><<<blocks, threads, 0, stream>>>(part, membrane, threshold, count);
    });
  });
}

const char* level(const LevelTask& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  const std::int64_t piece =
      piece_of(task.neurons, {&task.membrane_over, &task.threshold_over}, piece_limit);
  return in_pieces(task.neurons, piece, [&](std::int64_t first, std::uint32_t count) {
    LevelTask part = task;
    part.current += first;
    part.counts += first;
    const Spread membrane(task.membrane, task.membrane_over, first);
    const Spread threshold(task.threshold, task.threshold_over, first);
    const bool wide =
        packed<float>(task.neurons, count, {&membrane, &threshold}, part.current, part.counts);
    in_packs<float>(count, wide, [&](unsigned blocks, auto pack) {
      constexpr int width = decltype(pack)::value;
      level_kernel<width><<<blocks, threads, 0, stream>>>(part, membrane, threshold, count);
    });
  });
}

template <typename T>
const char* time_sum(const SumTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  const std::int64_t piece = piece_of(task.neurons, {&task.total_over}, piece_limit);
  return in_pieces(task.neurons, piece, [&](std::int64_t first, std::uint32_t count) {
    SumTask<T> part = task;
    part.values += first;
    part.total_out += first;
    const Spread total(task.total, task.total_over, first);
    const bool wide = packed<T>(task.neurons, count, {&total}, part.values, part.total_out);
    in_packs<T>(count, wide, [&](unsigned blocks, auto pack) {
      known<false, true>(task.weights != nullptr, [&](auto is_weighted) {
        constexpr int width = decltype(pack)::value;
        constexpr bool weighted = decltype(is_weighted)::value;
        sum_kernel<T, width, weighted><<<blocks, threads, 0, stream>>>(part, total, count);
      });
    });
  });
}

template <typename T>
const char* drive(const DriveTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  const std::int64_t piece = piece_of(task.neurons, {}, piece_limit);
  return in_pieces(task.neurons, piece, [&](std::int64_t first, std::uint32_t count) {
    DriveTask<T> part = task;
    part.values += first;
    part.currents += first;
    const bool wide = packed<T>(task.neurons, count, {}, part.values, part.currents);
    in_packs<T>(count, wide, [&](unsigned blocks, auto pack) {
      constexpr int width = decltype(pack)::value;
      drive_kernel<T, width><<<blocks, threads, 0, stream>>>(part, count);
    });
  });
}

template <typename T>
const char* analog(const AnalogTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  const std::int64_t piece = piece_of(task.neurons, {&task.state_over}, piece_limit);
  return in_pieces(task.neurons, piece, [&](std::int64_t first, std::uint32_t count) {
    AnalogTask<T> part = task;
    part.values += first;
    part.out += first;
    part.state_out += first;
    const Spread state(task.state, task.state_over, first);
    const bool wide =
        packed<T>(task.neurons, count, {&state}, part.values, part.out, part.state_out);
    in_packs<T>(count, wide, [&](unsigned blocks, auto pack) {
      known<Analog::running_mean, Analog::telescope>(task.kind, [&](auto kind) {
        constexpr int width = decltype(pack)::value;
        constexpr Analog which = decltype(kind)::value;
        analog_kernel<T, width, which><<<blocks, threads, 0, stream>>>(part, state, count);
      });
    });
  });
}

template <typename T>
const char* poisson(const PoissonTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  const std::int64_t piece = (piece_limit - 1) / task.size * task.size;
  return in_pieces(task.neurons(), piece, [&](std::int64_t first, std::uint32_t count) {
    PoissonTask<T> part = task;
    part.values += first;
    part.spikes += first;
    const unsigned blocks = (count + threads - 1) / threads;
    const Divisor size(task.size);
    const std::int64_t image = first / task.size;
    poisson_kernel<T><<<blocks, threads, 0, stream>>>(part, size, image, count);
  });
}

namespace {

/// A window of which every number is small enough for 32 bits, with `fits` false where one is not.
struct Windows {
  Pooling pooling{};
  bool fits = true;
  bool cover = true;     // every input is in a window
  bool overlap = false;  // an input can be in two

  explicit Windows(const Window& w) {
    constexpr std::int64_t most = Divisor::limit / 2;
    fits = w.inputs() < Divisor::limit && w.outputs() < Divisor::limit;
    for (int axis = 0; axis < 3; ++axis) {
      const std::int64_t way = (w.out[axis] - 1) * w.stride[axis];
      const std::int64_t reach = (w.kernel[axis] - 1) * w.dilation[axis] + 1;
      fits = fits && w.in[axis] < most && w.pad[axis] < most && way < most && reach < most;
      if (!fits) return;
      cover = cover && w.stride[axis] <= w.kernel[axis] && reach == w.kernel[axis] &&
              way - w.pad[axis] + reach >= w.in[axis];
      overlap = overlap || w.stride[axis] < reach;
      pooling.in[axis] = static_cast<int>(w.in[axis]);
      pooling.kernel[axis] = static_cast<int>(w.kernel[axis]);
      pooling.stride[axis] = way ? static_cast<int>(w.stride[axis]) : 1;
      pooling.dilation[axis] = reach > 1 ? static_cast<int>(w.dilation[axis]) : 1;
      pooling.pad[axis] = static_cast<int>(w.pad[axis]);
      if (w.out[axis]) pooling.out[axis] = Divisor(w.out[axis]);
    }
    pooling.inputs = static_cast<std::uint32_t>(w.inputs());
    if (w.outputs()) pooling.outputs = Divisor(w.outputs());
  }
};

}  // namespace

template <typename T>
const char* pool(const PoolTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  const Windows windows(task.window);
  if (!windows.fits) return "no kernel for pooling planes or windows of 2^30 elements or more";
  const std::int64_t inputs = task.window.inputs(), outputs = task.window.outputs();

  SumTask<T> sum{};
  sum.total = task.counts;
  sum.total_out = task.counts_out;
  sum.total_over = task.counts_over;
  sum.neurons = task.planes * inputs;
  // From here on the counts are a row, or one number.
  const auto are_left = [&sum] {
    sum.total = sum.total_out;
    sum.total_over = Broadcast::row(sum.neurons);
  };
  if (task.counts_over.rank > 1) {
    if (const char* error = time_sum(sum, raw)) return error;  // no step: it spreads the counts
    are_left();
  }

  for (std::int64_t done = 0; done < task.steps; done += pooled_steps) {
    PoolTask<T> chunk = task;
    chunk.spikes += done * task.planes * inputs;
    chunk.pooled += done * task.planes * outputs;
    chunk.counts = sum.total;
    chunk.steps = std::min<std::int64_t>(pooled_steps, task.steps - done);
    const auto count_stride = static_cast<std::uint32_t>(sum.total_over.stride[0]);
    // No window may write counts that another one still reads.
    const bool counted = outputs && windows.cover && !(windows.overlap && sum.total == sum.total_out);
    const std::int64_t piece = outputs ? (piece_limit - 1) / outputs * outputs : 1;
    const char* error = in_pieces(
        task.planes * outputs, piece, [&](std::int64_t first, std::uint32_t count) {
          PoolTask<T> part = chunk;
          const std::int64_t before = first / outputs * inputs;
          part.spikes += before;
          part.counts += before * count_stride;
          part.counts_out += before;
          part.pooled += first;
          const unsigned blocks = (count + threads - 1) / threads;
          known<false, true>(counted, [&](auto is_counted) {
            constexpr bool leaves = decltype(is_counted)::value;
            pool_kernel<T, leaves><<<blocks, threads, 0, stream>>>(part, windows.pooling,
                                                                   count_stride, count);
          });
        });
    if (error) return error;
    if (!counted) {
      sum.values = chunk.spikes;
      sum.steps = chunk.steps;
      if ((error = time_sum(sum, raw))) return error;
    }
    are_left();
  }
  return nullptr;
}

template const char* neuron(const NeuronTask<float>&, void*);
template const char* neuron(const NeuronTask<Half>&, void*);
template const char* scheduled(const ScheduledTask<float>&, void*);
template const char* scheduled(const ScheduledTask<Half>&, void*);
template const char* layered(const LayeredTask<float>&, void*);
template const char* layered(const LayeredTask<Half>&, void*);
template const char* time_sum(const SumTask<float>&, void*);
template const char* time_sum(const SumTask<Half>&, void*);
template const char* drive(const DriveTask<float>&, void*);
template const char* drive(const DriveTask<Half>&, void*);
template const char* analog(const AnalogTask<float>&, void*);
template const char* analog(const AnalogTask<Half>&, void*);
template const char* poisson(const PoissonTask<float>&, void*);
template const char* poisson(const PoissonTask<Half>&, void*);
template const char* pool(const PoolTask<float>&, void*);
template const char* pool(const PoolTask<Half>&, void*);

}  // namespace snnc::cuda
