#include "cuda_kernels.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cfloat>
#include <cstring>

namespace snnc::cuda {
namespace {

constexpr int threads = 128;
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

/// Where element `index` of the row lies in the tensor that spreads over it.
__device__ std::int64_t position(const Broadcast& over, std::int64_t index) {
  std::int64_t place = 0;
  for (int axis = over.rank - 1; axis > 0; --axis) {
    place += index % over.extent[axis] * over.stride[axis];
    index /= over.extent[axis];
  }
  return place + index * over.stride[0];
}

template <int width>
__device__ void spread(const float* source, const Broadcast& over, std::int64_t first,
                       float (&out)[width]) {
  if (over.full()) {
    load_floats(source + first, out);
    return;
  }
  for (int i = 0; i < width; ++i) out[i] = source[position(over, first + i)];
}

// --- neuron ------------------------------------------------------------------------------------

/// Each thread takes `width` neurons through all time-steps, their membrane potentials in registers.
template <typename T, int width, Reset reset, bool static_current>
__global__ void __launch_bounds__(threads) neuron_kernel(const NeuronTask<T> task) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t first = thread * width;
  if (first >= task.neurons) return;
  const T* __restrict__ current = task.current + first;
  T* __restrict__ spikes = task.spikes + first;
  float v[width], theta[width];
  spread(task.membrane, task.membrane_over, first, v);
  spread(task.threshold, task.threshold_over, first, theta);

  Pack<T, width> x[ahead];
  if (static_current) x[0] = load<width>(current);
  for (std::int64_t t = 0; t < task.steps; t += ahead) {
    if (!static_current) {
#pragma unroll
      for (int a = 0; a < ahead; ++a) {
        if (t + a < task.steps) x[a] = load<width>(current + (t + a) * task.neurons);
      }
    }
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      if (t + a >= task.steps) break;
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
      store<width>(spikes + (t + a) * task.neurons, fired);
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
template <typename T, int width, Firing firing, bool static_current>
__global__ void __launch_bounds__(threads) scheduled_kernel(const ScheduledTask<T> task) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t first = thread * width;
  if (first >= task.neurons) return;
  const T* __restrict__ current = task.current + first;
  T* __restrict__ spikes = task.spikes + first;
  float v[width], theta[width], bias[width], balance[width];
  std::int64_t place[width];
  spread(task.membrane, task.membrane_over, first, v);
  spread(task.threshold, task.threshold_over, first, theta);
  if (firing == Firing::balanced) spread(task.balance, task.balance_over, first, balance);
#pragma unroll
  for (int i = 0; i < width; ++i) place[i] = position(task.row_over, first + i);
  const std::int64_t settled = task.settled();

  Pack<T, width> x[ahead];
  if (static_current) x[0] = load<width>(current);
  for (std::int64_t t = 0; t < task.steps; t += ahead) {
    if (!static_current) {
#pragma unroll
      for (int a = 0; a < ahead; ++a) {
        if (t + a < task.steps) x[a] = load<width>(current + (t + a) * task.neurons);
      }
    }
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      if (t + a >= task.steps) break;
      if (t + a <= settled) {
        const float* row = task.row(t + a);
#pragma unroll
        for (int i = 0; i < width; ++i) bias[i] = row[place[i]];
      }
      Pack<T, width> sent;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float u = (v[i] + widened(x[static_current ? 0 : a].value[i])) + bias[i];
        sent.value[i] = narrowed<T>(fire<firing>(u, theta[i], task.levels, v[i], balance[i]));
      }
      store<width>(spikes + (t + a) * task.neurons, sent);
    }
  }
  store_floats(task.membrane_out + first, v);
  if (firing == Firing::balanced) store_floats(task.balance_out + first, balance);
}

// --- sum over time -----------------------------------------------------------------------------

template <typename T, int width, bool weighted>
__global__ void __launch_bounds__(threads) sum_kernel(const SumTask<T> task) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t first = thread * width;
  if (first >= task.neurons) return;
  const T* __restrict__ values = task.values + first;
  float y[width];
  spread(task.total, task.total_over, first, y);
  Pack<T, width> x[ahead];
  for (std::int64_t t = 0; t < task.steps; t += ahead) {
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      if (t + a < task.steps) x[a] = load<width>(values + (t + a) * task.neurons);
    }
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      if (t + a >= task.steps) break;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float value = widened(x[a].value[i]);
        y[i] = y[i] + (weighted ? task.weights[t + a] * value : value);
      }
    }
  }
  store_floats(task.total_out + first, y);
}

// --- running mean and its undoing --------------------------------------------------------------

template <typename T, int width, Analog kind>
__global__ void __launch_bounds__(threads) analog_kernel(const AnalogTask<T> task) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t first = thread * width;
  if (first >= task.neurons) return;
  const T* __restrict__ values = task.values + first;
  T* __restrict__ out = task.out + first;
  float state[width];
  spread(task.state, task.state_over, first, state);
  Pack<T, width> x[ahead];
  for (std::int64_t t = 0; t < task.steps; t += ahead) {
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      if (t + a < task.steps) x[a] = load<width>(values + (t + a) * task.neurons);
    }
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
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
      store<width>(out + (t + a) * task.neurons, result);
    }
  }
  store_floats(task.state_out + first, state);
}

// --- a driven current --------------------------------------------------------------------------

template <typename T, int width>
__global__ void __launch_bounds__(threads) drive_kernel(const DriveTask<T> task) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t first = thread * width;
  if (first >= task.neurons) return;
  const Pack<T, width> x = load<width>(task.values + first);
  T* __restrict__ currents = task.currents + first;
  for (std::int64_t t = 0; t < task.steps; ++t) {
    const float factor = task.factor(t);
    Pack<T, width> result;
#pragma unroll
    for (int i = 0; i < width; ++i) result.value[i] = narrowed<T>(factor * widened(x.value[i]));
    store<width>(currents + t * task.neurons, result);
  }
}

// --- spikes at random --------------------------------------------------------------------------

/// One thread per spike.
template <typename T>
__global__ void __launch_bounds__(threads) poisson_kernel(const PoissonTask<T> task) {
  const std::int64_t index = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t neurons = task.images * task.size;
  if (index >= task.steps * neurons) return;
  const std::int64_t t = index / neurons, neuron = index % neurons;
  const float x = widened(task.values[neuron]);
  const float probability = fabsf(x) / *task.scale;
  const Random random = task.random(neuron / task.size, t);
  const float uniform = PoissonTask<T>::uniform(random, neuron % task.size);
  task.spikes[index] = narrowed<T>(uniform < probability ? (x < 0.0f ? -1.0f : 1.0f) : 0.0f);
}

// --- max pooling -------------------------------------------------------------------------------

/// The value of a window that sees nothing but padding, as in onnxruntime.
constexpr float nothing = -FLT_MAX;

__device__ float larger(float a, float b) { return a < b ? b : a; }

/// Where tap `tap` of the window of output `place` lies in the plane; -1 in the padding.
__device__ int tap_position(const Window& w, std::int64_t place, std::int64_t tap) {
  std::int64_t result = 0, scale = 1;
  for (int axis = 2; axis >= 0; --axis) {
    const std::int64_t at = place % w.out[axis] * w.stride[axis] - w.pad[axis] +
                            tap % w.kernel[axis] * w.dilation[axis];
    if (at < 0 || at >= w.in[axis]) return -1;
    result += at * scale;
    scale *= w.in[axis];
    place /= w.out[axis];
    tap /= w.kernel[axis];
  }
  return static_cast<int>(result);
}

/// One thread per output: it counts the spikes of its whole window by itself, in registers where
/// the window is small.  The counts of the plane are left to `sum_kernel`.
template <typename T, int most_taps>
__global__ void __launch_bounds__(threads) pool_kernel(const PoolTask<T> task) {
  const Window& w = task.window;
  const std::int64_t inputs = w.inputs(), outputs = w.outputs();
  const std::int64_t output = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (output >= task.planes * outputs) return;
  const std::int64_t plane = output / outputs;
  const int taps = static_cast<int>(w.kernel[0] * w.kernel[1] * w.kernel[2]);

  // Arrays that are indexed by a running number live in memory, else in registers.
  constexpr int unrolled = most_taps <= 9 ? most_taps : 1;
  int place[most_taps];
  float count[most_taps];
  float before = nothing;
#pragma unroll unrolled
  for (int k = 0; k < most_taps; ++k) {
    place[k] = k < taps ? tap_position(w, output % outputs, k) : -1;
    if (place[k] < 0) continue;
    count[k] = task.counts[position(task.counts_over, plane * inputs + place[k])];
    before = larger(before, count[k]);
  }
  const T* __restrict__ spikes = task.spikes + plane * inputs;
  for (std::int64_t t = 0; t < task.steps; ++t) {
    float after = nothing;
#pragma unroll unrolled
    for (int k = 0; k < most_taps; ++k) {
      if (place[k] < 0) continue;
      count[k] = count[k] + widened(spikes[place[k]]);
      after = larger(after, count[k]);
    }
    task.pooled[t * task.planes * outputs + output] = narrowed<T>(after - before);
    before = after;
    spikes += task.planes * inputs;
  }
}

/// For windows too large for one thread: one block per plane, which keeps the running counts where
/// they come out at the end, and the outputs of the last step in shared memory.
template <typename T>
__global__ void __launch_bounds__(threads) plane_kernel(const PoolTask<T> task) {
  extern __shared__ float before[];
  const Window& w = task.window;
  const std::int64_t inputs = w.inputs(), outputs = w.outputs();
  const std::int64_t plane = blockIdx.x;
  const std::int64_t taps = w.kernel[0] * w.kernel[1] * w.kernel[2];
  float* counts = task.counts_out + plane * inputs;

  const auto pooled = [&](std::int64_t output) {
    float most = nothing;
    for (std::int64_t k = 0; k < taps; ++k) {
      const int place = tap_position(w, output, k);
      if (place >= 0) most = larger(most, counts[place]);
    }
    return most;
  };
  for (std::int64_t i = threadIdx.x; i < inputs; i += blockDim.x) {
    counts[i] = task.counts[position(task.counts_over, plane * inputs + i)];
  }
  __syncthreads();
  // Each output belongs to one thread: `before` itself needs no barrier.
  for (std::int64_t o = threadIdx.x; o < outputs; o += blockDim.x) before[o] = pooled(o);
  for (std::int64_t t = 0; t < task.steps; ++t) {
    const T* spikes = task.spikes + (t * task.planes + plane) * inputs;
    T* out = task.pooled + (t * task.planes + plane) * outputs;
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < inputs; i += blockDim.x) {
      counts[i] = counts[i] + widened(spikes[i]);
    }
    __syncthreads();
    for (std::int64_t o = threadIdx.x; o < outputs; o += blockDim.x) {
      const float after = pooled(o);
      out[o] = narrowed<T>(after - before[o]);
      before[o] = after;
    }
  }
}

// --- launches ----------------------------------------------------------------------------------

/// The values that one thread moves in one access of 16 bytes.
template <typename T>
constexpr int full_width = 16 / sizeof(T);

template <typename... Pointers>
bool aligned(Pointers... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

unsigned blocks_for(std::int64_t items) {
  return static_cast<unsigned>((items + threads - 1) / threads);
}

const char* launched() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename T, int width>
void launch_neuron(const NeuronTask<T>& task, cudaStream_t stream) {
  const unsigned blocks = blocks_for((task.neurons + width - 1) / width);
  if (task.reset == Reset::soft) {
    if (task.static_current) {
      neuron_kernel<T, width, Reset::soft, true><<<blocks, threads, 0, stream>>>(task);
    } else {
      neuron_kernel<T, width, Reset::soft, false><<<blocks, threads, 0, stream>>>(task);
    }
  } else {
    if (task.static_current) {
      neuron_kernel<T, width, Reset::hard, true><<<blocks, threads, 0, stream>>>(task);
    } else {
      neuron_kernel<T, width, Reset::hard, false><<<blocks, threads, 0, stream>>>(task);
    }
  }
}

template <typename T, int width, Firing firing>
void launch_firing(const ScheduledTask<T>& task, cudaStream_t stream) {
  const unsigned blocks = blocks_for((task.neurons + width - 1) / width);
  if (task.static_current) {
    scheduled_kernel<T, width, firing, true><<<blocks, threads, 0, stream>>>(task);
  } else {
    scheduled_kernel<T, width, firing, false><<<blocks, threads, 0, stream>>>(task);
  }
}

template <typename T, int width>
void launch_scheduled(const ScheduledTask<T>& task, cudaStream_t stream) {
  if (task.firing == Firing::single) {
    launch_firing<T, width, Firing::single>(task, stream);
  } else if (task.firing == Firing::burst) {
    launch_firing<T, width, Firing::burst>(task, stream);
  } else {
    launch_firing<T, width, Firing::balanced>(task, stream);
  }
}

template <typename T, int width>
void launch_sum(const SumTask<T>& task, cudaStream_t stream) {
  const unsigned blocks = blocks_for((task.neurons + width - 1) / width);
  if (task.weights) {
    sum_kernel<T, width, true><<<blocks, threads, 0, stream>>>(task);
  } else {
    sum_kernel<T, width, false><<<blocks, threads, 0, stream>>>(task);
  }
}

template <typename T, int width>
void launch_analog(const AnalogTask<T>& task, cudaStream_t stream) {
  const unsigned blocks = blocks_for((task.neurons + width - 1) / width);
  if (task.kind == Analog::running_mean) {
    analog_kernel<T, width, Analog::running_mean><<<blocks, threads, 0, stream>>>(task);
  } else {
    analog_kernel<T, width, Analog::telescope><<<blocks, threads, 0, stream>>>(task);
  }
}

}  // namespace

template <typename T>
const char* neuron(const NeuronTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  if (task.neurons % full_width<T> == 0 &&
      aligned(task.current, task.spikes, task.membrane, task.membrane_out, task.threshold)) {
    launch_neuron<T, full_width<T>>(task, stream);
  } else {
    launch_neuron<T, 1>(task, stream);
  }
  return launched();
}

template <typename T>
const char* scheduled(const ScheduledTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  if (task.neurons % full_width<T> == 0 &&
      aligned(task.current, task.spikes, task.membrane, task.membrane_out, task.balance,
              task.balance_out, task.threshold)) {
    launch_scheduled<T, full_width<T>>(task, stream);
  } else {
    launch_scheduled<T, 1>(task, stream);
  }
  return launched();
}

template <typename T>
const char* time_sum(const SumTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  if (task.neurons % full_width<T> == 0 && aligned(task.values, task.total, task.total_out)) {
    launch_sum<T, full_width<T>>(task, stream);
  } else {
    launch_sum<T, 1>(task, stream);
  }
  return launched();
}

template <typename T>
const char* drive(const DriveTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  constexpr int width = full_width<T>;
  if (task.neurons % width == 0 && aligned(task.values, task.currents)) {
    drive_kernel<T, width><<<blocks_for(task.neurons / width), threads, 0, stream>>>(task);
  } else {
    drive_kernel<T, 1><<<blocks_for(task.neurons), threads, 0, stream>>>(task);
  }
  return launched();
}

template <typename T>
const char* analog(const AnalogTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  if (task.neurons % full_width<T> == 0 &&
      aligned(task.values, task.out, task.state, task.state_out)) {
    launch_analog<T, full_width<T>>(task, stream);
  } else {
    launch_analog<T, 1>(task, stream);
  }
  return launched();
}

template <typename T>
const char* poisson(const PoissonTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  const unsigned blocks = blocks_for(task.steps * task.neurons());
  poisson_kernel<T><<<blocks, threads, 0, stream>>>(task);
  return launched();
}

template <typename T>
const char* pool(const PoolTask<T>& task, void* raw) {
  const auto stream = static_cast<cudaStream_t>(raw);
  const Window& w = task.window;
  const std::int64_t taps = w.kernel[0] * w.kernel[1] * w.kernel[2];
  const std::int64_t outputs = w.outputs();
  if (taps > 64) {
    // More than 48 KiB of shared memory has to be asked for; the launch says if it is too much.
    const auto shared = static_cast<std::size_t>(outputs) * sizeof(float);
    if (shared > 48 * 1024) {
      const cudaError_t error = cudaFuncSetAttribute(
          plane_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
      if (error != cudaSuccess) {
        cudaGetLastError();  // reported here, not by whoever asks next
        return "no kernel for pooling windows of more than 64 taps over planes this large";
      }
    }
    plane_kernel<T><<<static_cast<unsigned>(task.planes), threads, shared, stream>>>(task);
    return launched();
  }
  if (outputs) {
    const unsigned blocks = blocks_for(task.planes * outputs);
    if (taps <= 4) {
      pool_kernel<T, 4><<<blocks, threads, 0, stream>>>(task);
    } else if (taps <= 9) {
      pool_kernel<T, 9><<<blocks, threads, 0, stream>>>(task);
    } else {
      pool_kernel<T, 64><<<blocks, threads, 0, stream>>>(task);
    }
    if (const char* error = launched()) return error;
  }
  // Only now: `counts_out` may be the memory of `counts`.
  SumTask<T> sum{};
  sum.values = task.spikes;
  sum.total = task.counts;
  sum.total_out = task.counts_out;
  sum.total_over = task.counts_over;
  sum.steps = task.steps;
  sum.neurons = task.planes * w.inputs();
  return time_sum(sum, raw);
}

template const char* neuron(const NeuronTask<float>&, void*);
template const char* neuron(const NeuronTask<Half>&, void*);
template const char* scheduled(const ScheduledTask<float>&, void*);
template const char* scheduled(const ScheduledTask<Half>&, void*);
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
