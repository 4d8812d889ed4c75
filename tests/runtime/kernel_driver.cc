// Runs the CPU kernels of every instruction set of this machine, or the CUDA kernels on the CPU,
// against plain loops, on buffers of exactly the right size, and prints how many cases agreed.  Also
// run under the sanitizers, and with rows cut into small pieces (SNNC_PIECE).

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "cpu_kernels.h"
#include "spread.h"
#ifdef SNNC_CUDA_ON_CPU
#include "cuda_kernels.h"
#endif

using namespace snnc;

namespace {

// One call, on the CPU kernels of an instruction set or on the CUDA kernels run on the CPU.
#ifdef SNNC_CUDA_ON_CPU

template <typename T>
void run(const NeuronTask<T>& task, cpu::Isa) {
  if (const char* error = cuda::neuron(task, nullptr)) std::puts(error);
}
template <typename T>
void run(const ScheduledTask<T>& task, cpu::Isa) {
  if (const char* error = cuda::scheduled(task, nullptr)) std::puts(error);
}
template <typename T>
void run(const LayeredTask<T>& task, cpu::Isa) {
  if (const char* error = cuda::layered(task, nullptr)) std::puts(error);
}
void run(const LevelTask& task, cpu::Isa) {
  if (const char* error = cuda::level(task, nullptr)) std::puts(error);
}
template <typename T>
void run(const PoissonTask<T>& task, cpu::Isa) {
  if (const char* error = cuda::poisson(task, nullptr)) std::puts(error);
}
template <typename T>
void run(const SumTask<T>& task, cpu::Isa) {
  if (const char* error = cuda::time_sum(task, nullptr)) std::puts(error);
}
template <typename T>
void run(const DriveTask<T>& task, cpu::Isa) {
  if (const char* error = cuda::drive(task, nullptr)) std::puts(error);
}
template <typename T>
void run(const AnalogTask<T>& task, cpu::Isa) {
  if (const char* error = cuda::analog(task, nullptr)) std::puts(error);
}
template <typename T>
void run(const PoolTask<T>& task, cpu::Isa) {
  if (const char* error = cuda::pool(task, nullptr)) std::puts(error);
}

#else

template <typename T>
void run(const NeuronTask<T>& task, cpu::Isa isa) {
  for (std::int64_t first = 0; first < task.neurons; first += cpu::block) {
    cpu::neuron(task, first, std::min(cpu::block, task.neurons - first), isa);
  }
}
template <typename T>
void run(const ScheduledTask<T>& task, cpu::Isa isa) {
  for (std::int64_t first = 0; first < task.neurons; first += cpu::block) {
    cpu::scheduled(task, first, std::min(cpu::block, task.neurons - first), isa);
  }
}
template <typename T>
void run(const LayeredTask<T>& task, cpu::Isa isa) {
  for (std::int64_t first = 0; first < task.neurons; first += cpu::block) {
    cpu::layered(task, first, std::min(cpu::block, task.neurons - first), isa);
  }
}
template <typename T>
void run(const PoissonTask<T>& task, cpu::Isa isa) {
  for (std::int64_t first = 0; first < task.neurons(); first += cpu::block) {
    cpu::poisson(task, first, std::min(cpu::block, task.neurons() - first), isa);
  }
}
template <typename T>
void run(const SumTask<T>& task, cpu::Isa isa) {
  for (std::int64_t first = 0; first < task.neurons; first += cpu::block) {
    cpu::time_sum(task, first, std::min(cpu::block, task.neurons - first), isa);
  }
}
template <typename T>
void run(const DriveTask<T>& task, cpu::Isa isa) {
  for (std::int64_t first = 0; first < task.neurons; first += cpu::block) {
    cpu::drive(task, first, std::min(cpu::block, task.neurons - first), isa);
  }
}
template <typename T>
void run(const AnalogTask<T>& task, cpu::Isa isa) {
  for (std::int64_t first = 0; first < task.neurons; first += cpu::block) {
    cpu::analog(task, first, std::min(cpu::block, task.neurons - first), isa);
  }
}
template <typename T>
void run(const PoolTask<T>& task, cpu::Isa isa) {
  for (std::int64_t plane = 0; plane < task.planes; ++plane) {
    if (!cpu::pool(task, plane, isa)) std::puts("out of memory");
  }
}

#endif

unsigned state = 1;
unsigned random_bits() { return state = state * 1664525u + 1013904223u; }
float random_float() { return static_cast<float>(random_bits() >> 8) / (1 << 23) - 0.7f; }

int cases = 0;

void expect(bool good, const char* what, std::int64_t neurons, std::int64_t steps) {
  if (!good) {
    std::printf("%s differs: %ld neurons, %ld steps\n", what, long(neurons), long(steps));
    std::exit(1);
  }
  ++cases;
}

// Values that halves hold exactly, and how the two types are written.
float value_of(float value) { return value; }
float value_of(Half half) {  // only normal numbers and zero occur here
  const unsigned bits = static_cast<unsigned>(half);
  if (!(bits & 0x7fff)) return 0.0f;
  const unsigned wide = ((bits & 0x8000u) << 16) | (((bits & 0x7fffu) << 13) + 0x38000000u);
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}
template <typename T>
T random_value();
template <>
float random_value<float>() {
  return random_float();
}
template <>
Half random_value<Half>() {
  return static_cast<Half>(0x3400 + (random_bits() >> 16) % 0x0800 + ((random_bits() >> 31) << 15));
}
/// Rounded to the type, ties to even; no result here is too large for a half.
template <typename T>
T rounded(float value);
template <>
float rounded<float>(float value) {
  return value;
}
template <>
Half rounded<Half>(float value) {
  const int exponent = value == 0 ? -14 : std::max(std::ilogb(value), -14);
  const long digits = std::lrint(std::ldexp(std::fabs(value), 10 - exponent));
  const long sign = std::signbit(value) ? 0x8000 : 0;
  return static_cast<Half>(sign + (long{exponent + 14} << 10) + digits);
}
template <typename T>
T spike(bool fires);
template <>
float spike<float>(bool fires) {
  return fires ? 1.0f : 0.0f;
}
template <>
Half spike<Half>(bool fires) {
  return static_cast<Half>(fires ? 0x3c00 : 0);
}

struct Axis {
  std::int64_t extent, stride;
};

/// Axes of one element are left out, as onnxruntime's operators do.
Broadcast spread_over(std::initializer_list<Axis> axes) {
  Broadcast result;
  result.rank = 0;
  for (const Axis axis : axes) {
    if (axis.extent == 1) continue;
    result.extent[result.rank] = axis.extent;
    result.stride[result.rank++] = axis.stride;
  }
  if (result.rank == 0) result.extent[result.rank++] = 1;
  return result;
}

/// How a tensor of shape [channels, 1] spreads over [samples, channels, each].
Broadcast over(std::int64_t samples, std::int64_t channels, std::int64_t each) {
  return spread_over({{samples, 0}, {channels, 1}, {each, 0}});
}

/// How a tensor spreads that has all elements of the row, or one for all.
Broadcast plain(std::int64_t neurons, bool full) {
  Broadcast result;
  result.extent[0] = neurons;
  result.stride[0] = full ? 1 : 0;
  return result;
}

template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename T>
void neurons_and_sums(cpu::Isa isa, std::int64_t samples, std::int64_t channels, std::int64_t each,
                      std::int64_t steps, Reset reset, bool is_static) {
  const std::int64_t neurons = samples * channels * each;
  std::vector<T> current(neurons * (is_static ? 1 : steps)), spikes(neurons * steps);
  std::vector<float> threshold(channels), membrane(1, 0.25f), after(neurons);
  for (T& x : current) x = random_value<T>();
  for (float& theta : threshold) theta = 0.8f + random_float();

  std::vector<T> wanted_spikes(neurons * steps);
  std::vector<float> wanted(neurons);
  for (std::int64_t i = 0; i < neurons; ++i) {
    float v = membrane[0];
    const float theta = threshold[i / each % channels];
    for (std::int64_t t = 0; t < steps; ++t) {
      const float u = v + value_of(current[is_static ? i : t * neurons + i]);
      const float s = u >= theta ? 1.0f : 0.0f;
      v = reset == Reset::soft ? u - s * theta : (s > 0 ? 0.0f : u);
      wanted_spikes[t * neurons + i] = spike<T>(s > 0);
    }
    wanted[i] = v;
  }
  NeuronTask<T> task{};
  task.current = current.data();
  task.threshold = threshold.data();
  task.membrane = membrane.data();
  task.spikes = spikes.data();
  task.membrane_out = after.data();
  task.threshold_over = over(samples, channels, each);
  task.membrane_over = plain(neurons, false);
  task.steps = steps;
  task.neurons = neurons;
  task.static_current = is_static;
  task.reset = reset;
  run(task, isa);
  expect(same(spikes, wanted_spikes) && same(after, wanted), "neuron", neurons, steps);

  if (is_static) return;
  SumTask<T> sum{};
  sum.values = current.data();
  sum.total = membrane.data();
  sum.total_out = after.data();
  sum.total_over = task.membrane_over;
  sum.steps = steps;
  sum.neurons = neurons;
  run(sum, isa);
  for (std::int64_t i = 0; i < neurons; ++i) {
    float y = membrane[0];
    for (std::int64_t t = 0; t < steps; ++t) y = y + value_of(current[t * neurons + i]);
    wanted[i] = y;
  }
  expect(same(after, wanted), "sum", neurons, steps);

  std::vector<float> weights(steps);
  for (float& weight : weights) weight = random_float();
  sum.weights = weights.data();
  run(sum, isa);
  for (std::int64_t i = 0; i < neurons; ++i) {
    float y = membrane[0];
    for (std::int64_t t = 0; t < steps; ++t) {
      const float weighted = weights[t] * value_of(current[t * neurons + i]);
      y = y + weighted;
    }
    wanted[i] = y;
  }
  expect(same(after, wanted), "weighted sum", neurons, steps);
}

/// How a row of the schedule is given; `axes` is a shape [channels, 1, W] over [channels, H, W] of
/// every sample.
enum class Rows { scalar, channels, full, axes };

/// A neuron with a schedule of `rows` rows, the last one zero or not, from step `start` on.
template <typename T>
void scheduled(cpu::Isa isa, std::int64_t samples, std::int64_t channels, std::int64_t each,
               std::int64_t steps, std::int64_t start, std::int64_t rows, bool ends, Rows kind,
               Firing firing, Current from) {
  const bool temporal = from == Current::temporal;
  const std::int64_t neurons = samples * channels * each;
  const std::int64_t height = each % 7 == 0 ? 7 : 1, width = each / height;
  const std::int64_t size = kind == Rows::scalar     ? 1
                            : kind == Rows::channels ? channels
                            : kind == Rows::full     ? neurons
                                                     : channels * width;
  std::vector<T> current(neurons * (temporal ? steps : 1)), spikes(neurons * steps);
  const std::vector<float> factors{1.75f, 1.3f, 1.0f};
  std::vector<float> threshold(channels), membrane(1, 0.25f), balance(neurons), schedule(rows * size);
  std::vector<float> after(neurons), balance_after(neurons);
  for (T& x : current) x = random_value<T>();
  for (float& theta : threshold) theta = 0.8f + random_float();
  for (float& n : balance) n = static_cast<float>(random_bits() >> 30);
  for (float& b : schedule) b = random_float();
  if (ends) std::fill(schedule.end() - size, schedule.end(), 0.0f);
  const float levels = firing == Firing::single ? 1.0f : 3.0f;

  std::vector<T> wanted_spikes(neurons * steps);
  std::vector<float> wanted(neurons), wanted_balance(balance);
  for (std::int64_t i = 0; i < neurons; ++i) {
    float v = membrane[0];
    float& n = wanted_balance[i];
    const std::int64_t channel = i / each % channels;
    const float theta = threshold[channel];
    const std::int64_t place = kind == Rows::scalar     ? 0
                               : kind == Rows::channels ? channel
                               : kind == Rows::full     ? i
                                                        : channel * width + i % width;
    for (std::int64_t t = 0; t < steps; ++t) {
      const float b = schedule[std::min(start + t, rows - 1) * size + place];
      float x = value_of(current[temporal ? t * neurons + i : i]);
      if (from == Current::driven) {
        x = value_of(rounded<T>(factors[std::min<std::int64_t>(start + t, 2)] * x));
      }
      const float u = (v + x) + b;
      float k = u >= theta ? 1.0f : 0.0f;
      if (firing != Firing::single) {
        const float least = firing == Firing::burst ? 0.0f : -levels;
        k = std::min(std::max(std::floor(u / theta), least), levels);
      }
      if (firing == Firing::balanced) {
        k = std::max(k, 0.0f - n) + 0.0f;
        n = n + k;
      }
      v = u - theta * k;
      wanted_spikes[t * neurons + i] = rounded<T>(k);
    }
    wanted[i] = v;
  }
  ScheduledTask<T> task{};
  task.current = current.data();
  task.threshold = threshold.data();
  task.membrane = membrane.data();
  task.balance = balance.data();
  task.schedule = schedule.data();
  task.spikes = spikes.data();
  task.membrane_out = after.data();
  task.balance_out = balance_after.data();
  task.threshold_over = over(samples, channels, each);
  task.membrane_over = plain(neurons, false);
  task.balance_over = plain(neurons, true);
  task.row_over = over(samples, channels, each);
  if (kind == Rows::scalar || kind == Rows::full) {
    task.row_over = plain(neurons, kind == Rows::full);
  } else if (kind == Rows::axes) {
    task.row_over = spread_over({{samples, 0}, {channels, width}, {height, 0}, {width, 1}});
  }
  task.rows = rows;
  task.row_size = size;
  task.start = start;
  task.steps = steps;
  task.neurons = neurons;
  task.levels = levels;
  task.drive = {factors.data(), 3};
  task.kind = from;
  task.firing = firing;
  run(task, isa);
  expect(same(spikes, wanted_spikes) && same(after, wanted), "scheduled", neurons, steps);
  if (firing == Firing::balanced) {
    expect(same(balance_after, wanted_balance), "balance", neurons, steps);
  }
}

template <typename T>
void schedules(cpu::Isa isa) {
  for (const Firing firing : {Firing::single, Firing::burst, Firing::balanced}) {
    for (const Rows kind : {Rows::scalar, Rows::channels, Rows::full, Rows::axes}) {
      for (const std::int64_t each : {1, 5, 49, 56, 257, 1000}) {
        for (const bool ends : {false, true}) {
          if (kind == Rows::axes && each % 7) continue;
          const bool is_static = (each + (ends ? 1 : 0)) % 2;
          const Current one = is_static ? Current::fixed : Current::temporal;
          const Current other = is_static ? Current::temporal : Current::driven;
          scheduled<T>(isa, 1, 3, each, 7, 0, 1, ends, kind, firing, one);
          scheduled<T>(isa, 2, 3, each, 7, 2, 6, ends, kind, firing, other);
          scheduled<T>(isa, 1, 9, each, 11, 0, 20, ends, kind, firing, one);
          scheduled<T>(isa, 2, 1, each, 3, 30, 20, ends, kind, firing, other);
          scheduled<T>(isa, 2, 2, each, 9, 1, 4, ends, kind, firing, Current::driven);
        }
      }
    }
  }
}

/// A neuron of layered time, with a threshold and a start for each channel.
template <typename T>
void layered(cpu::Isa isa, std::int64_t samples, std::int64_t channels, std::int64_t each,
             std::int64_t steps, bool radix, bool is_static) {
  const std::int64_t neurons = samples * channels * each, held = is_static ? 1 : steps;
  std::vector<T> current(neurons * held), spikes(neurons * steps), wanted(neurons * steps);
  std::vector<float> threshold(channels), membrane(channels);
  for (T& x : current) x = random_value<T>();
  for (float& theta : threshold) theta = 0.8f + random_float();
  for (float& v : membrane) v = random_float();
  const auto weight = [&](std::int64_t t, std::int64_t rows) {
    return radix ? std::ldexp(1.0f, static_cast<int>(rows - 1 - t)) : 1.0f;
  };
  for (std::int64_t i = 0; i < neurons; ++i) {
    const std::int64_t channel = i / each % channels;
    float sum = 0.0f;
    for (std::int64_t t = 0; t < held; ++t) {
      sum = sum + weight(t, held) * value_of(current[t * neurons + i]);
    }
    float v = membrane[channel] + sum;
    for (std::int64_t t = 0; t < steps; ++t) {
      const float level = weight(t, steps) * threshold[channel];
      const float s = v >= level ? 1.0f : 0.0f;
      v = v - level * s;
      wanted[t * neurons + i] = rounded<T>(s);
    }
  }
  LayeredTask<T> task{};
  task.current = current.data();
  task.threshold = threshold.data();
  task.membrane = membrane.data();
  task.spikes = spikes.data();
  task.threshold_over = over(samples, channels, each);
  task.membrane_over = over(samples, channels, each);
  task.steps = steps;
  task.neurons = neurons;
  task.static_current = is_static;
  task.radix = radix;
  run(task, isa);
  expect(same(spikes, wanted), "layered", neurons, steps);
}

template <typename T>
void layers(cpu::Isa isa) {
  for (const std::int64_t each : {1, 5, 49, 64, 257, 1000}) {
    for (const bool radix : {false, true}) {
      for (const bool is_static : {false, true}) {
        layered<T>(isa, 1, 3, each, 1, radix, is_static);
        layered<T>(isa, 2, 3, each, 6, radix, is_static);
        layered<T>(isa, 1, 9, each, 16, radix, is_static);
      }
    }
  }
}

#ifdef SNNC_CUDA_ON_CPU
/// Neurons whose current is complete, near the products of their thresholds, which float32 rounds.
void levelled(cpu::Isa isa, std::int64_t samples, std::int64_t channels, std::int64_t each,
              std::int64_t levels) {
  const std::int64_t neurons = samples * channels * each;
  std::vector<float> current(neurons), counts(neurons), wanted(neurons);
  std::vector<float> threshold(channels), membrane(channels);
  for (float& theta : threshold) theta = 1.5f + random_float();
  for (std::int64_t i = 0; i < neurons; ++i) {
    const float theta = threshold[i / each % channels];
    const float number = std::floor(random_float() * static_cast<float>(levels + 2));
    current[i] = number * theta;
    if (i % 3) current[i] = std::nextafter(current[i], i % 3 == 1 ? INFINITY : -INFINITY);
    if (i == 4) current[i] = NAN;
    if (i == 7) current[i] = INFINITY;
    if (i == 8) current[i] = -INFINITY;
    // The product of a whole number and theta is exact in float64.
    double n = std::floor(static_cast<double>(current[i]) / theta);
    n = std::min(std::max(n, 0.0), static_cast<double>(levels));
    wanted[i] = std::isnan(current[i]) ? 0.0f : static_cast<float>(n);
  }
  LevelTask task{};
  task.current = current.data();
  task.membrane = membrane.data();
  task.threshold = threshold.data();
  task.counts = counts.data();
  task.membrane_over = over(samples, channels, each);
  task.threshold_over = over(samples, channels, each);
  task.neurons = neurons;
  task.levels = static_cast<float>(levels);
  run(task, isa);
  expect(same(counts, wanted), "levels", neurons, levels);
}
#endif

/// Spikes at random, against the definition in integers of 64 bits, as the function body has it.
template <typename T>
void poisson(cpu::Isa isa, std::int64_t images, std::int64_t size, std::int64_t steps) {
  std::vector<T> values(images * size), spikes(values.size() * steps), wanted(spikes.size());
  for (T& x : values) x = random_value<T>();
  const std::vector<float> scale(1, 1.25f);
  PoissonTask<T> task{};
  task.values = values.data();
  task.scale = scale.data();
  task.spikes = spikes.data();
  task.seed = 0x123456789abcdefll;
  task.first_image = 0xfffffffell;
  task.start = 0xfffffffell;
  task.steps = steps;
  task.images = images;
  task.size = size;
  run(task, isa);
  const auto mix = [](std::uint64_t (&words)[2], std::uint64_t number) {
    words[0] += number & 0xffffffffu;
    words[1] += number >> 32;
    for (std::uint64_t i = 1; i <= 6; ++i) {
      const auto root = std::int64_t{static_cast<std::int32_t>(words[0] + i * 0x9E3779B9u)};
      const std::uint64_t sum = words[1] + static_cast<std::uint64_t>(root * root / 65536);
      words[1] = words[0] & 0xffffffffu;
      words[0] = sum & 0xffffffffu;
    }
  };
  for (std::int64_t t = 0; t < steps; ++t) {
    for (std::int64_t i = 0; i < images * size; ++i) {
      std::uint64_t words[2] = {0, 0};
      mix(words, static_cast<std::uint64_t>(task.seed));
      mix(words, static_cast<std::uint64_t>(task.first_image + i / size));
      mix(words, static_cast<std::uint64_t>(task.start + t));
      mix(words, static_cast<std::uint64_t>(i % size));
      const float x = value_of(values[i]);
      const bool fires = static_cast<float>(words[0] >> 8) * 0x1p-24f < std::fabs(x) / scale[0];
      wanted[t * images * size + i] = rounded<T>(fires ? (x < 0 ? -1.0f : 1.0f) : 0.0f);
    }
  }
  expect(same(spikes, wanted), "poisson", images * size, steps);
}

/// A static current times a factor of each step.
template <typename T>
void driven(cpu::Isa isa, std::int64_t neurons, std::int64_t steps, std::int64_t start) {
  std::vector<T> values(neurons), currents(neurons * steps), wanted(neurons * steps);
  for (T& x : values) x = random_value<T>();
  const std::vector<float> factors{1.75f, 1.5f, 1.25f, 1.0f};
  DriveTask<T> task{};
  task.values = values.data();
  task.drive = {factors.data(), 4};
  task.currents = currents.data();
  task.start = start;
  task.steps = steps;
  task.neurons = neurons;
  run(task, isa);
  for (std::int64_t i = 0; i < neurons * steps; ++i) {
    const std::int64_t step = start >= 3 ? 3 : std::min<std::int64_t>(start + i / neurons, 3);
    wanted[i] = rounded<T>(factors[step] * value_of(values[i % neurons]));
  }
  expect(same(currents, wanted), "drive", neurons, steps);
}

/// A running mean or its undoing: from one number for all neurons, then on in place.
template <typename T>
void analog(cpu::Isa isa, std::int64_t neurons, std::int64_t steps, Analog kind) {
  std::vector<T> values(neurons * steps), out(neurons * steps), wanted(neurons * steps);
  std::vector<float> first(1, 0.25f), state(neurons), wanted_state(neurons, first[0]);
  for (T& x : values) x = random_value<T>();
  AnalogTask<T> task{};
  task.values = values.data();
  task.out = out.data();
  task.state_out = state.data();
  task.steps = steps;
  task.neurons = neurons;
  task.kind = kind;
  for (const bool in_place : {false, true}) {
    task.start = in_place ? steps : 0;
    task.state = in_place ? state.data() : first.data();
    task.state_over = plain(neurons, in_place);
    run(task, isa);
    for (std::int64_t i = 0; i < neurons * steps; ++i) {
      const auto now = static_cast<float>(task.start + i / neurons + 1);
      float& held = wanted_state[i % neurons];
      const float x = value_of(values[i]);
      if (kind == Analog::running_mean) {
        held = held + x;
        wanted[i] = rounded<T>(held / now);
      } else {
        wanted[i] = rounded<T>(now * x - (now - 1.0f) * held);
        held = x;
      }
    }
    expect(same(out, wanted) && same(state, wanted_state), "analog", neurons, steps);
  }
}

/// How the counts before the call are given.
enum class Counts { one, channels, in_place };

template <typename T>
void pooling(cpu::Isa isa, Window w, std::int64_t samples, std::int64_t channels, Counts kind,
             std::int64_t steps) {
  for (int axis = 0; axis < 3; ++axis) {
    const std::int64_t room = w.in[axis] + 2 * w.pad[axis] - w.dilation[axis] * (w.kernel[axis] - 1) - 1;
    if (room < 0) return;
    w.out[axis] = room / w.stride[axis] + 1;
  }
  const std::int64_t planes = samples * channels, inputs = w.inputs(), outputs = w.outputs();
  std::vector<T> spikes(planes * inputs * steps), pooled(planes * outputs * steps);
  std::vector<float> start(kind == Counts::channels ? channels : 1), counts(planes * inputs);
  std::vector<float> running(planes * inputs);
  for (T& s : spikes) s = spike<T>(random_bits() >> 31);
  for (float& n : start) n = static_cast<float>(random_bits() >> 30);
  for (std::int64_t i = 0; i < planes * inputs; ++i) {
    running[i] = start[kind == Counts::channels ? i / inputs % channels : 0];
    if (kind == Counts::in_place) running[i] = counts[i] = static_cast<float>(random_bits() >> 30);
  }
  PoolTask<T> task{};
  task.spikes = spikes.data();
  task.counts = kind == Counts::in_place ? counts.data() : start.data();
  task.pooled = pooled.data();
  task.counts_out = counts.data();
  task.counts_over = kind == Counts::channels ? over(samples, channels, inputs)
                                              : plain(planes * inputs, kind == Counts::in_place);
  task.window = w;
  task.steps = steps;
  task.planes = planes;
  run(task, isa);
  const auto most = [&](std::int64_t plane, std::int64_t output) {
    float result = -3.4028234663852886e38f;
    const std::int64_t od = output / (w.out[1] * w.out[2]), oh = output / w.out[2] % w.out[1];
    for (std::int64_t kd = 0; kd < w.kernel[0]; ++kd) {
      for (std::int64_t kh = 0; kh < w.kernel[1]; ++kh) {
        for (std::int64_t kw = 0; kw < w.kernel[2]; ++kw) {
          const std::int64_t d = od * w.stride[0] - w.pad[0] + kd * w.dilation[0];
          const std::int64_t h = oh * w.stride[1] - w.pad[1] + kh * w.dilation[1];
          const std::int64_t x = output % w.out[2] * w.stride[2] - w.pad[2] + kw * w.dilation[2];
          if (d < 0 || d >= w.in[0] || h < 0 || h >= w.in[1] || x < 0 || x >= w.in[2]) continue;
          const float seen = running[plane * inputs + (d * w.in[1] + h) * w.in[2] + x];
          if (seen > result) result = seen;
        }
      }
    }
    return result;
  };
  std::vector<T> wanted(pooled.size());
  std::vector<float> before(planes * outputs);
  for (std::int64_t t = -1; t < steps; ++t) {
    for (std::int64_t i = 0; t >= 0 && i < planes * inputs; ++i) {
      running[i] += value_of(spikes[t * planes * inputs + i]);
    }
    for (std::int64_t o = 0; o < planes * outputs; ++o) {
      const float now = most(o / outputs, o % outputs);
      if (t >= 0) wanted[t * planes * outputs + o] = rounded<T>(now - before[o]);
      before[o] = now;
    }
  }
  expect(same(pooled, wanted) && same(counts, running), "pooling", inputs, steps);
}

/// The same window along every axis from `first_axis` on, over axes of different extents.
Window window(int first_axis, std::int64_t extent, std::int64_t kernel, std::int64_t stride,
              std::int64_t pad, std::int64_t dilation) {
  Window w;
  for (int axis = first_axis; axis < 3; ++axis) {
    w.in[axis] = extent + axis;
    w.kernel[axis] = kernel;
    w.stride[axis] = stride;
    w.pad[axis] = pad;
    w.dilation[axis] = dilation;
  }
  return w;
}

template <typename T>
void poolings(cpu::Isa isa) {
  for (const std::int64_t extent : {1, 4, 9, 33}) {
    for (const std::int64_t kernel : {1, 2, 3, 5, 9}) {
      for (const std::int64_t stride : {1, 2, 3}) {
        for (std::int64_t pad = 0; pad < kernel; ++pad) {
          const Window near = window(1, extent, kernel, stride, pad, 1);
          pooling<T>(isa, near, 1, 3, pad % 2 ? Counts::one : Counts::channels, 3);
          pooling<T>(isa, near, 2, 2, Counts::in_place, 3);
          pooling<T>(isa, window(1, extent, kernel, stride, pad, 2), 1, 3, Counts::one, 3);
        }
      }
    }
  }
  // Other numbers of axes; more steps than one launch takes, for windows that share inputs, meet, and
  // leave some out; a stride that nothing ever goes.
  for (const int first_axis : {0, 2}) {
    for (const std::int64_t stride : {1, 2, 3}) {
      pooling<T>(isa, window(first_axis, 7, 2, stride, 1, 1), 2, 3, Counts::one, 3);
      pooling<T>(isa, window(first_axis, 6, 5, stride, 2, 1), 2, 3, Counts::channels, 2);
    }
  }
  for (const Counts kind : {Counts::one, Counts::channels, Counts::in_place}) {
    for (const std::int64_t stride : {1, 2, 3}) {
      for (const std::int64_t steps : {31, 32, 33, 70}) {
        pooling<T>(isa, window(1, 7, 2, stride, 0, 1), 2, 2, kind, steps);
      }
    }
  }
  pooling<T>(isa, window(1, 5, 5, std::int64_t{1} << 40, 0, 1), 1, 2, Counts::one, 2);
#if defined(SNNC_CUDA_ON_CPU) && !defined(SNNC_PIECE)
  // More outputs than shared memory holds, by windows of many taps and of few.
  pooling<T>(isa, window(1, 245, 9, 1, 4, 1), 1, 1, Counts::one, 2);
  pooling<T>(isa, window(1, 300, 2, 1, 0, 1), 1, 1, Counts::one, 2);
#endif
}

/// The arithmetic of `spread.h` next to its limits, where there is no memory to run a kernel.
void limits() {
  const std::int64_t most = Divisor::limit - 1;
  std::vector<std::int64_t> numbers{1, 2, 3, 5, 7, 49, 641, 65535, 65536, 65537, most / 2, most / 2 + 1};
  for (int bit = 1; bit < 31; ++bit) {
    for (const int off : {-1, 0, 1}) numbers.push_back((std::int64_t{1} << bit) + off);
  }
  for (int i = 0; i < 300; ++i) numbers.push_back(1 + (random_bits() >> 1) % most);
  for (const std::int64_t shift : {0, 1, 2}) numbers.push_back(most - shift);
  for (const std::int64_t divisor : numbers) {
    if (divisor < 1) continue;
    const Divisor divides(divisor);
    const auto right = [&](std::int64_t number) {
      if (number < 0 || number > most) return true;
      auto quotient = static_cast<std::uint32_t>(number);
      const std::uint32_t rest = divides.split(quotient);
      return quotient == number / divisor && rest == number % divisor;
    };
    bool good = true;
    for (const std::int64_t number : numbers) {
      const std::int64_t multiple = number / divisor * divisor;
      for (const int off : {-1, 0, 1}) good = good && right(number + off) && right(multiple + off);
    }
    for (const std::int64_t off : {0, 1}) good = good && right(most / divisor * divisor - off);
    expect(good, "division", divisor, 0);
  }
  // A row that fits is one piece; one that does not is cut between samples, where vectors begin.
  const auto piece = [](std::int64_t samples, std::int64_t channels, std::int64_t each) {
    const Broadcast threshold = over(samples, channels, each);
    const Broadcast membrane = plain(samples * channels * each, true);
    return piece_of(samples * channels * each, {&membrane, &threshold});
  };
  expect(piece(1, 3, most / 3) == most / 3 * 3, "piece", most, 0);
  const std::int64_t large = piece(4096, 64, 112 * 112 + 1), sample = 64 * (112 * 112 + 1);
  expect(large < Divisor::limit && large % sample == 0 && Divisor::limit - large <= sample, "piece", large, 0);
  const std::int64_t odd = piece(4099, 63, 111 * 111);
  expect(odd < Divisor::limit && odd % (8 * 63 * 111 * 111) == 0 && odd > 0, "piece", odd, 0);
  expect(piece(3, 1, most) == most, "piece", most, 0);
  expect(piece(3, 1, most + 1) == 0, "piece", most + 1, 0);
  const Broadcast row = over(5, 3, most / 3);
  const float numbers_of_channels[] = {0, 1, 2};
  const Spread spread(numbers_of_channels, row, most / 3 * 3 * 2);
  const auto last = static_cast<std::uint32_t>(most / 3 * 3 - 8);
  const Places<8> places(spread, last), first(spread, static_cast<std::uint32_t>(most / 3 - 3));
  bool good = spread.from == numbers_of_channels;
  for (int i = 0; i < 8; ++i) {
    good = good && places.at[i] == 2 && first.at[i] == (i < 3 ? 0u : 1u);
  }
  expect(good, "places", most, 0);
}

template <typename T>
void all(cpu::Isa isa) {
  for (const Reset reset : {Reset::soft, Reset::hard}) {
    for (const bool is_static : {false, true}) {
      for (const std::int64_t each : {1, 5, 49, 64, 257, 1000}) {
        for (const std::int64_t steps : {1, 4, 7}) {
          neurons_and_sums<T>(isa, 1, 1, each, steps, reset, is_static);
          neurons_and_sums<T>(isa, 1, 3, each, steps, reset, is_static);
          neurons_and_sums<T>(isa, 2, 2, each, steps, reset, is_static);
        }
      }
    }
  }
  schedules<T>(isa);
  layers<T>(isa);
  for (const std::int64_t size : {1, 5, 64, 257, 3072}) {
    poisson<T>(isa, 1, size, 4);
    poisson<T>(isa, 3, size, 3);
  }
  for (const std::int64_t neurons : {1, 5, 16, 24, 257, 2048, 7000}) {
    for (const std::int64_t start : {std::int64_t{0}, std::int64_t{2}, INT64_MAX - 1}) {
      driven<T>(isa, neurons, 6, start);
    }
  }
  for (const Analog kind : {Analog::running_mean, Analog::telescope}) {
    for (const std::int64_t neurons : {1, 5, 16, 24, 64, 257, 1000, 2048, 7000}) {
      for (const std::int64_t steps : {1, 4, 7}) analog<T>(isa, neurons, steps, kind);
    }
  }
  poolings<T>(isa);
}

}  // namespace

int main() {
  limits();
#ifdef SNNC_CUDA_ON_CPU
  for (const std::int64_t each : {1, 5, 49, 64, 257, 1000}) {
    for (const std::int64_t levels : {1, 8, 255, 1 << 20}) {
      levelled(cpu::Isa::generic, 1, 3, each, levels);
      levelled(cpu::Isa::generic, 2, 2, each, levels);
    }
  }
#endif
  for (const cpu::Isa isa : {cpu::Isa::generic, cpu::Isa::avx2, cpu::Isa::avx512f}) {
    if (!cpu::has_isa(isa)) continue;
#ifdef SNNC_CUDA_ON_CPU
    if (isa != cpu::Isa::generic) continue;  // it makes no difference
#endif
    all<float>(isa);
    all<Half>(isa);
  }
  std::printf("%d cases\n", cases);
}
