#include "cpu_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#define SNNC_X86 1
#endif
#ifdef SNNC_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// The bodies are written once, as plain loops that the compiler vectorizes.  A body is inlined into
// one wrapper per instruction set, and takes the instruction set of the wrapper.  Attributes cannot
// be template parameters, hence these three macros.
#define SNNC_BODY inline __attribute__((always_inline))
#define SNNC_AVX2 __attribute__((target("avx2,f16c")))
#define SNNC_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c")))

namespace snnc::cpu {
namespace {

// --- half precision ---------------------------------------------------------------------------

template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

float widened(Half half) {
  const std::uint32_t bits = static_cast<std::uint16_t>(half);
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude << 13));
  if (magnitude >= 0x0400u) return bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
  // Subnormal: magnitude * 2^-24, exact in float32.
  return bit_cast<float>(sign | bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24f));
}

/// Round to nearest, ties to even.
Half narrowed(float value) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // NaN stays NaN, quiet
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity
  } else if (magnitude >= 0x38800000u) {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {
    // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the lowest bits.
    half = bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  }
  return static_cast<Half>(sign | half);
}

// --- what an instruction set brings -------------------------------------------------------------

/// `registers` vectors of `bytes` bytes hold the membrane potentials of one tile of neurons.
struct Generic {
  static constexpr int bytes = 16, registers = 8;

  static void widen(const Half* from, std::int64_t count, float* to) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = widened(from[i]);
  }
  static void narrow(const float* from, std::int64_t count, Half* to) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = narrowed(from[i]);
  }
  /// Stores a vector past the caches, where the instruction set can; `to` is aligned.
  template <typename Vector>
  SNNC_BODY static void stream(const Vector& vector, void* to) {
    std::memcpy(to, &vector, sizeof(vector));
  }
  static void end_of_streams() {}
};

#ifdef SNNC_X86
struct Avx2 {
  static constexpr int bytes = 32, registers = 8;

  SNNC_AVX2 static void widen(const Half* from, std::int64_t count, float* to) {
    const std::int64_t whole = count / 8 * 8;
    for (std::int64_t i = 0; i < whole; i += 8) {
      const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
    }
    for (std::int64_t i = whole; i < count; ++i) to[i] = _cvtsh_ss(static_cast<std::uint16_t>(from[i]));
  }
  SNNC_AVX2 static void narrow(const float* from, std::int64_t count, Half* to) {
    const std::int64_t whole = count / 8 * 8;
    for (std::int64_t i = 0; i < whole; i += 8) {
      const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
    }
    for (std::int64_t i = whole; i < count; ++i) {
      to[i] = static_cast<Half>(_cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT));
    }
  }
  // Not an intrinsic: the compiler would refuse it in a body that is for any instruction set.
  template <typename Vector>
  SNNC_BODY static void stream(const Vector& vector, void* to) {
    asm volatile("vmovntps %1, %0" : "=m"(*static_cast<Vector*>(to)) : "v"(vector));
  }
  static void end_of_streams() { _mm_sfence(); }
};

struct Avx512 : Avx2 {
  static constexpr int bytes = 64, registers = 16;
};
#endif

/// A vector of floats or of 16-bit integers with as many elements.
template <typename Set>
using Floats __attribute__((vector_size(Set::bytes))) = float;
template <typename Set>
using Shorts __attribute__((vector_size(Set::bytes / 2))) = std::uint16_t;

/// `count` values as floats: in place for float32, through `buffer` for float16.
template <typename Set>
SNNC_BODY const float* as_floats(const float* values, std::int64_t, float*) {
  return values;
}
template <typename Set>
SNNC_BODY const float* as_floats(const Half* values, std::int64_t count, float* buffer) {
  Set::widen(values, count, buffer);
  return buffer;
}

/// Where results are written as floats: their own place for float32, `buffer` for float16, which
/// `write_back` then narrows.
SNNC_BODY float* place_of(float* out, float*) { return out; }
SNNC_BODY float* place_of(Half*, float* buffer) { return buffer; }

template <typename Set>
SNNC_BODY void write_back(const float*, std::int64_t, float*) {}
template <typename Set>
SNNC_BODY void write_back(const float* buffer, std::int64_t count, Half* out) {
  Set::narrow(buffer, count, out);
}

/// What a neuron sends.
template <typename T>
constexpr T spike_or_silence(bool fires);
template <>
constexpr float spike_or_silence<float>(bool fires) {
  return fires ? 1.0f : 0.0f;
}
template <>
constexpr Half spike_or_silence<Half>(bool fires) {
  return static_cast<Half>(fires ? 0x3c00 : 0);
}

/// 1, or -1.
template <typename T>
constexpr T signed_spike(bool negative);
template <>
constexpr float signed_spike<float>(bool negative) {
  return negative ? -1.0f : 1.0f;
}
template <>
constexpr Half signed_spike<Half>(bool negative) {
  return static_cast<Half>(negative ? 0xbc00 : 0x3c00);
}

// --- broadcasting -----------------------------------------------------------------------------

/// An element of the row in mixed radix.
struct Place {
  std::int64_t digit[Broadcast::max_rank];

  Place(const Broadcast& over, std::int64_t index) {
    for (int axis = over.rank - 1; axis >= 0; --axis) {
      digit[axis] = index % over.extent[axis];
      index /= over.extent[axis];
    }
  }
  /// The first element with other digits before the last one.
  void next_run(const Broadcast& over) {
    digit[over.rank - 1] = over.extent[over.rank - 1];
    for (int axis = over.rank - 1; axis > 0 && digit[axis] == over.extent[axis]; --axis) {
      digit[axis] = 0;
      ++digit[axis - 1];
    }
  }
  /// Where the element lies in the tensor that spreads over the row.
  std::int64_t offset(const Broadcast& over) const {
    std::int64_t result = 0;
    for (int axis = 0; axis < over.rank; ++axis) result += digit[axis] * over.stride[axis];
    return result;
  }
  /// Whether the tensor has one number for `count` elements from here on.
  bool one_for(const Broadcast& over, std::int64_t count) const {
    const int last = over.rank - 1;
    return over.stride[last] == 0 && digit[last] + count <= over.extent[last];
  }
};

/// Writes `count` elements from `place` on of the row that `source` spreads over.
void expand(const float* source, const Broadcast& over, Place place, std::int64_t count,
            float* out) {
  const int last = over.rank - 1;
  const std::int64_t stride = over.stride[last];
  while (count > 0) {
    const float* from = source + place.offset(over);
    const std::int64_t left = over.extent[last] - place.digit[last];
    const std::int64_t run = left < count ? left : count;
    if (stride == 0) {
      std::fill_n(out, run, *from);
    } else {
      for (std::int64_t i = 0; i < run; ++i) out[i] = from[i * stride];
    }
    out += run;
    count -= run;
    place.next_run(over);
  }
}

/// The state of a block before the call, written where the state after the call belongs.
void start_state(const float* state, const Broadcast& over, std::int64_t first, std::int64_t count,
                 float* out) {
  if (state + first == out) return;  // onnxruntime gave us the input's buffer as output
  expand(state, over, Place(over, first), count, out);
}

// --- neuron -----------------------------------------------------------------------------------

template <Reset reset, typename T>
SNNC_BODY void neuron_step(const float* __restrict__ x, const float* __restrict__ theta,
                           float* __restrict__ v, T* __restrict__ spikes, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float u = v[i] + x[i];
    const bool fires = u >= theta[i];
    if constexpr (reset == Reset::soft) {
      v[i] = u - spike_or_silence<float>(fires) * theta[i];
    } else {
      v[i] = fires ? 0.0f : u;
    }
    spikes[i] = spike_or_silence<T>(fires);
  }
}

/// A vector of spikes from the mask of the neurons that fire (-1 where one does).
template <typename Set, typename Mask>
SNNC_BODY void make_spikes(const Mask& fires, float*, Floats<Set>& spikes) {
  const Floats<Set> zero = {};
  spikes = fires ? zero + 1.0f : zero;
}
template <typename Set, typename Mask>
SNNC_BODY void make_spikes(const Mask& fires, Half*, Shorts<Set>& spikes) {
  spikes = __builtin_convertvector(fires & 0x3c00, Shorts<Set>);
}

/// Neurons that fill the registers with their membrane potentials.
template <typename Set>
constexpr std::int64_t tile = Set::registers * Set::bytes / std::int64_t{sizeof(float)};

/// One tile through all time-steps: each step reads the currents and writes the spikes, no more.
template <typename Set, Reset reset, bool stream, typename T>
SNNC_BODY void neuron_tile(const NeuronTask<T>& task, const float* theta, float* potentials,
                           std::int64_t first) {
  constexpr std::int64_t width = Set::bytes / sizeof(float);
  alignas(64) float wide[tile<Set>];
  Floats<Set> v[Set::registers];
#pragma GCC unroll 16
  for (int r = 0; r < Set::registers; ++r) std::memcpy(&v[r], potentials + r * width, Set::bytes);

  const float* x = as_floats<Set>(task.current + first, tile<Set>, wide);
  for (std::int64_t t = 0; t < task.steps; ++t) {
    T* spikes = task.spikes + t * task.neurons + first;
    if (t > 0 && !task.static_current) {
      x = as_floats<Set>(task.current + t * task.neurons + first, tile<Set>, wide);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Set::registers; ++r) {
      Floats<Set> input, threshold;
      std::memcpy(&input, x + r * width, Set::bytes);
      std::memcpy(&threshold, theta + r * width, Set::bytes);
      const Floats<Set> zero = {};
      const Floats<Set> u = v[r] + input;
      const auto fires = u >= threshold;
      if constexpr (reset == Reset::soft) {
        v[r] = u - (fires ? zero + 1.0f : zero) * threshold;
      } else {
        v[r] = fires ? zero : u;
      }
      std::conditional_t<sizeof(T) == sizeof(float), Floats<Set>, Shorts<Set>> fired;
      make_spikes<Set>(fires, spikes, fired);
      if constexpr (stream) {
        Set::stream(fired, spikes + r * width);
      } else {
        std::memcpy(spikes + r * width, &fired, sizeof(fired));
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Set::registers; ++r) std::memcpy(potentials + r * width, &v[r], Set::bytes);
}

template <typename Set, Reset reset, typename T>
SNNC_BODY void neuron_block(const NeuronTask<T>& task, std::int64_t first, std::int64_t count) {
  alignas(64) float theta_buffer[block];
  alignas(64) float current_buffer[block];
  const float* theta = task.threshold + first;
  if (!task.threshold_over.full()) {
    expand(task.threshold, task.threshold_over, Place(task.threshold_over, first), count,
           theta_buffer);
    theta = theta_buffer;
  }
  float* v = task.membrane_out + first;
  start_state(task.membrane, task.membrane_over, first, count, v);

  std::int64_t done = 0;
  if (task.stream) {
    for (; done + tile<Set> <= count; done += tile<Set>) {
      neuron_tile<Set, reset, true>(task, theta + done, v + done, first + done);
    }
    Set::end_of_streams();
  } else {
    for (; done + tile<Set> <= count; done += tile<Set>) {
      neuron_tile<Set, reset, false>(task, theta + done, v + done, first + done);
    }
  }
  const float* x = nullptr;
  for (std::int64_t t = 0; t < task.steps && done < count; ++t) {
    if (t == 0 || !task.static_current) {
      const T* current = task.current + t * task.neurons + first + done;
      x = as_floats<Set>(current, count - done, current_buffer);
    }
    T* spikes = task.spikes + t * task.neurons + first + done;
    neuron_step<reset>(x, theta + done, v + done, spikes, count - done);
  }
}

template <typename Set, typename T>
SNNC_BODY void neuron_body(const NeuronTask<T>& task, std::int64_t first, std::int64_t count) {
  if (task.reset == Reset::soft) {
    neuron_block<Set, Reset::soft>(task, first, count);
  } else {
    neuron_block<Set, Reset::hard>(task, first, count);
  }
}

// --- neuron with a schedule -------------------------------------------------------------------

/// Rounds towards zero, to a zero of either sign; `Value` is a float or a vector of floats of less
/// than 2^31.
template <typename Value>
SNNC_BODY void truncate(const Value& x, Value& whole) {
  if constexpr (std::is_same_v<Value, float>) {
    whole = static_cast<float>(static_cast<std::int32_t>(x));
  } else {
    using Whole = decltype(x > x);
    whole = __builtin_convertvector(__builtin_convertvector(x, Whole), Value);
  }
}

/// What some neurons send, and their reset; `Value` is a float or a vector of floats.
template <Firing firing, typename Value>
SNNC_BODY void fire(const Value& u, const Value& theta, float levels, Value& v, Value& balance,
                    Value& sent) {
  const Value zero = {};
  if constexpr (firing == Firing::single) {
    sent = u >= theta ? zero + 1.0f : zero;
  } else {
    // Bounded before it is rounded down: the bounds are whole numbers.
    const Value most = zero + levels;
    const Value least = firing == Firing::balanced ? zero - levels : zero;
    const Value quanta = u / theta;
    const Value at_least = quanta > least ? quanta : least;
    const Value bounded = at_least < most ? at_least : most;
    truncate(bounded, sent);
    if constexpr (firing == Firing::balanced) {
      sent = (sent > bounded ? sent - 1.0f : sent) + 0.0f;  // no negative zero
      const Value owed = zero - balance;
      sent = sent < owed ? owed : sent;
      balance = balance + sent;
    }
  }
  v = u - sent * theta;
}

/// A vector of what is sent, in the type of the spikes; through `buffer`, of which the caller makes
/// halves, where they are not just 0 and 1.
template <typename Set, Firing firing, bool stream>
SNNC_BODY void send(const Floats<Set>& sent, float*, float* to) {
  if constexpr (stream) {
    Set::stream(sent, to);
  } else {
    std::memcpy(to, &sent, sizeof(sent));
  }
}
template <typename Set, Firing firing, bool stream>
SNNC_BODY void send(const Floats<Set>& sent, float* buffer, Half* to) {
  if constexpr (firing == Firing::single) {
    const Floats<Set> zero = {};
    Shorts<Set> spikes;
    make_spikes<Set>(sent > zero, to, spikes);
    if constexpr (stream) {
      Set::stream(spikes, to);
    } else {
      std::memcpy(to, &spikes, sizeof(spikes));
    }
  } else {
    std::memcpy(buffer, &sent, sizeof(sent));
  }
}

/// What a tile finds in a row of the schedule: zero, one number for all its neurons, or one for each.
enum class Bias { zero, one, each };

/// One step of one tile.
template <typename Set, Firing firing, Bias kind, bool stream, typename T>
SNNC_BODY void scheduled_step(const float* x, const float* theta, const float* bias, float levels,
                              Floats<Set>* v, Floats<Set>* balance, T* spikes) {
  constexpr std::int64_t width = Set::bytes / sizeof(float);
  alignas(64) float buffer[tile<Set>];
  Floats<Set> row = {};
  if constexpr (kind == Bias::one) row = row + *bias;
#pragma GCC unroll 16
  for (int r = 0; r < Set::registers; ++r) {
    Floats<Set> input, threshold, sent;
    std::memcpy(&input, x + r * width, Set::bytes);
    std::memcpy(&threshold, theta + r * width, Set::bytes);
    if constexpr (kind == Bias::each) std::memcpy(&row, bias + r * width, Set::bytes);
    // A zero is added too: it makes a negative zero positive.
    const Floats<Set> u = (v[r] + input) + row;
    Floats<Set>& owed = balance[firing == Firing::balanced ? r : 0];
    fire<firing>(u, threshold, levels, v[r], owed, sent);
    send<Set, firing, stream>(sent, buffer + r * width, spikes + r * width);
  }
  if constexpr (firing != Firing::single) write_back<Set>(buffer, tile<Set>, spikes);
}

/// How a tensor spreads over a tile where neighbours share its numbers: run i of the tile begins at
/// `begin[i]` and is all the number at `offset[i]`.
template <typename Set>
struct Runs {
  std::int64_t count = 0;
  std::int64_t begin[tile<Set> + 1], offset[tile<Set>];

  Runs(const Broadcast& over, Place place) {
    const int last = over.rank - 1;
    for (std::int64_t done = 0; done < tile<Set>; ++count) {
      begin[count] = done;
      offset[count] = place.offset(over);
      done += over.extent[last] - place.digit[last];
      place.next_run(over);
    }
    begin[count] = tile<Set>;
  }

  /// Writes the tile, in whole vectors: up to one vector more than the tile.
  SNNC_BODY void spread(const float* source, float* out) const {
    constexpr std::int64_t width = Set::bytes / sizeof(float);
    for (std::int64_t run = 0; run < count; ++run) {
      const Floats<Set> zero = {};
      const Floats<Set> value = zero + source[offset[run]];
      for (std::int64_t i = begin[run]; i < begin[run + 1]; i += width) {
        std::memcpy(out + i, &value, Set::bytes);
      }
    }
  }
};

/// Some steps of one tile, from step `t` to before step `end`; `stride` leads from the part of the
/// schedule that is for one step to that for the next.
template <typename Set, Firing firing, Bias kind, bool stream, typename T>
SNNC_BODY void scheduled_steps(const ScheduledTask<T>& task, const float* theta, const float* bias,
                               std::int64_t stride, std::int64_t first, std::int64_t t,
                               std::int64_t end, const float*& x, float* wide, Floats<Set>* v,
                               Floats<Set>* balance) {
  for (; t < end; ++t, bias += stride) {
    if (t > 0 && !task.static_current) {
      x = as_floats<Set>(task.current + t * task.neurons + first, tile<Set>, wide);
    }
    scheduled_step<Set, firing, kind, stream>(x, theta, bias, task.levels, v, balance,
                                              task.spikes + t * task.neurons + first);
  }
}

/// One tile through all time-steps.  `settled` is its part of the last row, or null: all zero.
template <typename Set, Firing firing, bool stream, typename T>
SNNC_BODY void scheduled_tile(const ScheduledTask<T>& task, const float* theta,
                              const float* settled, float* potentials, float* balances,
                              std::int64_t first) {
  constexpr std::int64_t width = Set::bytes / sizeof(float);
  constexpr int balanced = firing == Firing::balanced ? Set::registers : 1;
  alignas(64) float wide[tile<Set>];
  Floats<Set> v[Set::registers], balance[balanced] = {};
#pragma GCC unroll 16
  for (int r = 0; r < Set::registers; ++r) {
    std::memcpy(&v[r], potentials + r * width, Set::bytes);
    if constexpr (firing == Firing::balanced) {
      std::memcpy(&balance[r], balances + r * width, Set::bytes);
    }
  }
  const float* x = as_floats<Set>(task.current + first, tile<Set>, wide);
  const std::int64_t moving = task.settled();
  if (moving) {
    const Place place(task.row_over, first);
    const float* row = task.row(0) + place.offset(task.row_over);
    if (task.row_over.full()) {
      scheduled_steps<Set, firing, Bias::each, stream>(task, theta, row, task.row_size, first, 0,
                                                       moving, x, wide, v, balance);
    } else if (place.one_for(task.row_over, tile<Set>)) {
      scheduled_steps<Set, firing, Bias::one, stream>(task, theta, row, task.row_size, first, 0,
                                                      moving, x, wide, v, balance);
    } else {
      // Several rows at a time: what was just stored would be slow to load again.
      constexpr std::int64_t group = 8;
      alignas(64) float rows[group * tile<Set> + width];
      const bool shared = task.row_over.stride[task.row_over.rank - 1] == 0;
      const Runs<Set> runs(task.row_over, place);
      for (std::int64_t t = 0; t < moving; t += group) {
        const std::int64_t end = std::min(t + group, moving);
        for (std::int64_t i = t; i < end; ++i) {
          float* out = rows + (i - t) * tile<Set>;
          if (shared) {
            runs.spread(task.row(i), out);
          } else {
            expand(task.row(i), task.row_over, place, tile<Set>, out);
          }
        }
        scheduled_steps<Set, firing, Bias::each, stream>(task, theta, rows, tile<Set>, first, t,
                                                         end, x, wide, v, balance);
      }
    }
  }
  if (settled) {
    scheduled_steps<Set, firing, Bias::each, stream>(task, theta, settled, 0, first, moving,
                                                     task.steps, x, wide, v, balance);
  } else {
    scheduled_steps<Set, firing, Bias::zero, stream>(task, theta, nullptr, 0, first, moving,
                                                     task.steps, x, wide, v, balance);
  }
#pragma GCC unroll 16
  for (int r = 0; r < Set::registers; ++r) {
    std::memcpy(potentials + r * width, &v[r], Set::bytes);
    if constexpr (firing == Firing::balanced) {
      std::memcpy(balances + r * width, &balance[r], Set::bytes);
    }
  }
}

template <Firing firing>
SNNC_BODY void scheduled_row(const float* __restrict__ x, const float* __restrict__ theta,
                             const float* __restrict__ bias, float levels, std::int64_t count,
                             float* __restrict__ v, float* __restrict__ balance,
                             float* __restrict__ sent) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float u = (v[i] + x[i]) + bias[i];
    float none = 0.0f;
    fire<firing>(u, theta[i], levels, v[i], firing == Firing::balanced ? balance[i] : none,
                 sent[i]);
  }
}

template <typename Set, Firing firing, typename T>
SNNC_BODY void scheduled_block(const ScheduledTask<T>& task, std::int64_t first,
                               std::int64_t count) {
  alignas(64) float theta_buffer[block], row_buffer[block], current_buffer[block], sent[block];
  const float* theta = task.threshold + first;
  if (!task.threshold_over.full()) {
    expand(task.threshold, task.threshold_over, Place(task.threshold_over, first), count,
           theta_buffer);
    theta = theta_buffer;
  }
  float* v = task.membrane_out + first;
  start_state(task.membrane, task.membrane_over, first, count, v);
  float* balance = nullptr;
  if constexpr (firing == Firing::balanced) {
    balance = task.balance_out + first;
    start_state(task.balance, task.balance_over, first, count, balance);
  }
  const Place place(task.row_over, first);
  const std::int64_t moving = task.settled();
  const float* settled = row_buffer;
  bool zero = false;
  if (moving < task.steps) {
    expand(task.row(moving), task.row_over, place, count, row_buffer);
    std::uint32_t bits = 0;
    for (std::int64_t i = 0; i < count; ++i) bits |= bit_cast<std::uint32_t>(row_buffer[i]);
    zero = bits == 0;
  }

  std::int64_t done = 0;
  for (; done + tile<Set> <= count; done += tile<Set>) {
    const float* last = zero ? nullptr : settled + done;
    float* balances = balance ? balance + done : nullptr;
    if (task.stream) {
      scheduled_tile<Set, firing, true>(task, theta + done, last, v + done, balances, first + done);
    } else {
      scheduled_tile<Set, firing, false>(task, theta + done, last, v + done, balances,
                                         first + done);
    }
  }
  if (task.stream) Set::end_of_streams();
  const std::int64_t left = count - done;
  if (!left) return;
  if (moving < task.steps && done) std::memmove(row_buffer, row_buffer + done, left * sizeof(float));
  const float* x = nullptr;
  alignas(64) float moving_row[block];
  const Place rest(task.row_over, first + done);
  for (std::int64_t t = 0; t < task.steps; ++t) {
    if (t == 0 || !task.static_current) {
      x = as_floats<Set>(task.current + t * task.neurons + first + done, left, current_buffer);
    }
    if (t < moving) expand(task.row(t), task.row_over, rest, left, moving_row);
    T* spikes = task.spikes + t * task.neurons + first + done;
    scheduled_row<firing>(x, theta + done, t < moving ? moving_row : row_buffer, task.levels, left,
                          v + done, balance ? balance + done : nullptr, place_of(spikes, sent));
    write_back<Set>(sent, left, spikes);
  }
}

template <typename Set, typename T>
SNNC_BODY void scheduled_body(const ScheduledTask<T>& task, std::int64_t first,
                              std::int64_t count) {
  if (task.firing == Firing::single) {
    scheduled_block<Set, Firing::single>(task, first, count);
  } else if (task.firing == Firing::burst) {
    scheduled_block<Set, Firing::burst>(task, first, count);
  } else {
    scheduled_block<Set, Firing::balanced>(task, first, count);
  }
}

// --- sum over time ----------------------------------------------------------------------------

SNNC_BODY void add(const float* __restrict__ x, std::int64_t count, float* __restrict__ y) {
  for (std::int64_t i = 0; i < count; ++i) y[i] = y[i] + x[i];
}

SNNC_BODY void add_weighted(const float* __restrict__ x, float weight, std::int64_t count,
                            float* __restrict__ y) {
  for (std::int64_t i = 0; i < count; ++i) y[i] = y[i] + weight * x[i];
}

/// One tile of sums, in registers.
template <typename Set, bool weighted, typename T>
SNNC_BODY void sum_tile(const SumTask<T>& task, float* sums, std::int64_t first) {
  constexpr std::int64_t width = Set::bytes / sizeof(float);
  alignas(64) float wide[tile<Set>];
  Floats<Set> y[Set::registers];
#pragma GCC unroll 16
  for (int r = 0; r < Set::registers; ++r) std::memcpy(&y[r], sums + r * width, Set::bytes);
  for (std::int64_t t = 0; t < task.steps; ++t) {
    const float* x = as_floats<Set>(task.values + t * task.neurons + first, tile<Set>, wide);
#pragma GCC unroll 16
    for (int r = 0; r < Set::registers; ++r) {
      Floats<Set> value;
      std::memcpy(&value, x + r * width, Set::bytes);
      if constexpr (weighted) value = task.weights[t] * value;
      y[r] = y[r] + value;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Set::registers; ++r) std::memcpy(sums + r * width, &y[r], Set::bytes);
}

template <typename Set, typename T>
SNNC_BODY void sum_body(const SumTask<T>& task, std::int64_t first, std::int64_t count) {
  alignas(64) float buffer[block];
  float* y = task.total_out + first;
  start_state(task.total, task.total_over, first, count, y);
  std::int64_t done = 0;
  for (; done + tile<Set> <= count; done += tile<Set>) {
    if (task.weights) {
      sum_tile<Set, true>(task, y + done, first + done);
    } else {
      sum_tile<Set, false>(task, y + done, first + done);
    }
  }
  for (std::int64_t t = 0; t < task.steps && done < count; ++t) {
    const T* values = task.values + t * task.neurons + first + done;
    const float* x = as_floats<Set>(values, count - done, buffer);
    if (task.weights) {
      add_weighted(x, task.weights[t], count - done, y + done);
    } else {
      add(x, count - done, y + done);
    }
  }
}

// --- running mean and its undoing --------------------------------------------------------------

/// One step of some values; `Value` is a float or a vector of floats.
template <Analog kind, typename Value>
SNNC_BODY void analog_step(const Value& x, float before, float now, Value& state, Value& out) {
  if constexpr (kind == Analog::running_mean) {
    state = state + x;
    out = state / now;
  } else {
    out = now * x - before * state;
    state = x;
  }
}

template <Analog kind>
SNNC_BODY void analog_row(const float* __restrict__ x, float before, float now,
                          std::int64_t count, float* __restrict__ state, float* __restrict__ out) {
  for (std::int64_t i = 0; i < count; ++i) analog_step<kind>(x[i], before, now, state[i], out[i]);
}

/// One tile, the states in registers.
template <typename Set, Analog kind, typename T>
SNNC_BODY void analog_tile(const AnalogTask<T>& task, float* states, std::int64_t first) {
  constexpr std::int64_t width = Set::bytes / sizeof(float);
  alignas(64) float wide[tile<Set>], results[tile<Set>];
  Floats<Set> state[Set::registers];
#pragma GCC unroll 16
  for (int r = 0; r < Set::registers; ++r) std::memcpy(&state[r], states + r * width, Set::bytes);
  for (std::int64_t t = 0; t < task.steps; ++t) {
    const float* x = as_floats<Set>(task.values + t * task.neurons + first, tile<Set>, wide);
    T* out = task.out + t * task.neurons + first;
    float* place = place_of(out, results);
    const float before = task.done(t), now = task.done(t + 1);
#pragma GCC unroll 16
    for (int r = 0; r < Set::registers; ++r) {
      Floats<Set> value, result;
      std::memcpy(&value, x + r * width, Set::bytes);
      analog_step<kind>(value, before, now, state[r], result);
      std::memcpy(place + r * width, &result, Set::bytes);
    }
    write_back<Set>(results, tile<Set>, out);
  }
#pragma GCC unroll 16
  for (int r = 0; r < Set::registers; ++r) std::memcpy(states + r * width, &state[r], Set::bytes);
}

template <typename Set, Analog kind, typename T>
SNNC_BODY void analog_block(const AnalogTask<T>& task, std::int64_t first, std::int64_t count) {
  alignas(64) float wide[block], results[block];
  float* states = task.state_out + first;
  start_state(task.state, task.state_over, first, count, states);
  std::int64_t done = 0;
  for (; done + tile<Set> <= count; done += tile<Set>) {
    analog_tile<Set, kind>(task, states + done, first + done);
  }
  const std::int64_t left = count - done;
  for (std::int64_t t = 0; t < task.steps && left; ++t) {
    const std::int64_t place = t * task.neurons + first + done;
    const float* x = as_floats<Set>(task.values + place, left, wide);
    T* out = task.out + place;
    analog_row<kind>(x, task.done(t), task.done(t + 1), left, states + done,
                     place_of(out, results));
    write_back<Set>(results, left, out);
  }
}

template <typename Set, typename T>
SNNC_BODY void analog_body(const AnalogTask<T>& task, std::int64_t first, std::int64_t count) {
  if (task.kind == Analog::running_mean) {
    analog_block<Set, Analog::running_mean>(task, first, count);
  } else {
    analog_block<Set, Analog::telescope>(task, first, count);
  }
}

// --- a driven current -------------------------------------------------------------------------

SNNC_BODY void drive_row(const float* __restrict__ x, float factor, std::int64_t count,
                         float* __restrict__ out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = factor * x[i];
}

template <typename Set, typename T>
SNNC_BODY void drive_body(const DriveTask<T>& task, std::int64_t first, std::int64_t count) {
  alignas(64) float wide[block], results[block];
  const float* x = as_floats<Set>(task.values + first, count, wide);
  for (std::int64_t t = 0; t < task.steps; ++t) {
    T* out = task.currents + t * task.neurons + first;
    drive_row(x, task.factor(t), count, place_of(out, results));
    write_back<Set>(results, count, out);
  }
}

// --- spikes at random -------------------------------------------------------------------------

/// Elements from `first` on of one image at one step.
template <typename T>
SNNC_BODY void poisson_row(const Random& random, std::int64_t first, std::int64_t count,
                           const float* __restrict__ probability, const T* __restrict__ sign,
                           T* __restrict__ spikes) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float uniform = PoissonTask<T>::uniform(random, first + i);
    spikes[i] = uniform < probability[i] ? sign[i] : T{};
  }
}

template <typename Set, typename T>
SNNC_BODY void poisson_body(const PoissonTask<T>& task, std::int64_t first, std::int64_t count) {
  alignas(64) float wide[block], probability[block];
  alignas(64) T sign[block];
  const float scale = *task.scale;
  while (count > 0) {
    const std::int64_t image = first / task.size, element = first % task.size;
    const std::int64_t run = std::min(count, task.size - element);
    const float* x = as_floats<Set>(task.values + first, run, wide);
    for (std::int64_t i = 0; i < run; ++i) {
      probability[i] = std::fabs(x[i]) / scale;
      sign[i] = signed_spike<T>(x[i] < 0);
    }
    const Random random = task.random(image);
    for (std::int64_t t = 0; t < task.steps; ++t) {
      poisson_row(task.at_step(random, t), element, run, probability, sign,
                  task.spikes + t * task.neurons() + first);
    }
    first += run;
    count -= run;
  }
}

// --- max pooling ------------------------------------------------------------------------------

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
  Set::narrow(after, count, out);
}

template <typename Set, typename T>
SNNC_BODY void pool_body(const PoolTask<T>& task, std::int64_t plane, float* scratch) {
  const Window& w = task.window;
  const std::int64_t inputs = w.inputs(), outputs = w.outputs(), width = w.out[2];
  float* before = scratch;
  float* row = before + outputs;
  float* after = row + w.in[2];
  float* wide = after + width;
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

// --- one wrapper per instruction set ----------------------------------------------------------

#ifdef SNNC_X86
template <typename T>
SNNC_AVX2 void neuron_avx2(const NeuronTask<T>& task, std::int64_t first, std::int64_t count) {
  neuron_body<Avx2>(task, first, count);
}
template <typename T>
SNNC_AVX512 void neuron_avx512(const NeuronTask<T>& task, std::int64_t first, std::int64_t count) {
  neuron_body<Avx512>(task, first, count);
}
template <typename T>
SNNC_AVX2 void scheduled_avx2(const ScheduledTask<T>& task, std::int64_t first, std::int64_t count) {
  scheduled_body<Avx2>(task, first, count);
}
template <typename T>
SNNC_AVX512 void scheduled_avx512(const ScheduledTask<T>& task, std::int64_t first, std::int64_t count) {
  scheduled_body<Avx512>(task, first, count);
}
template <typename T>
SNNC_AVX2 void sum_avx2(const SumTask<T>& task, std::int64_t first, std::int64_t count) {
  sum_body<Avx2>(task, first, count);
}
template <typename T>
SNNC_AVX512 void sum_avx512(const SumTask<T>& task, std::int64_t first, std::int64_t count) {
  sum_body<Avx512>(task, first, count);
}
template <typename T>
SNNC_AVX2 void drive_avx2(const DriveTask<T>& task, std::int64_t first, std::int64_t count) {
  drive_body<Avx2>(task, first, count);
}
template <typename T>
SNNC_AVX512 void drive_avx512(const DriveTask<T>& task, std::int64_t first, std::int64_t count) {
  drive_body<Avx512>(task, first, count);
}
template <typename T>
SNNC_AVX2 void analog_avx2(const AnalogTask<T>& task, std::int64_t first, std::int64_t count) {
  analog_body<Avx2>(task, first, count);
}
template <typename T>
SNNC_AVX512 void analog_avx512(const AnalogTask<T>& task, std::int64_t first, std::int64_t count) {
  analog_body<Avx512>(task, first, count);
}
template <typename T>
SNNC_AVX2 void poisson_avx2(const PoissonTask<T>& task, std::int64_t first, std::int64_t count) {
  poisson_body<Avx2>(task, first, count);
}
template <typename T>
SNNC_AVX512 void poisson_avx512(const PoissonTask<T>& task, std::int64_t first, std::int64_t count) {
  poisson_body<Avx512>(task, first, count);
}
template <typename T>
SNNC_AVX2 void pool_avx2(const PoolTask<T>& task, std::int64_t plane, float* scratch) {
  pool_body<Avx2>(task, plane, scratch);
}
template <typename T>
SNNC_AVX512 void pool_avx512(const PoolTask<T>& task, std::int64_t plane, float* scratch) {
  pool_body<Avx512>(task, plane, scratch);
}
#endif

#ifdef SNNC_AMX
/// Whether the processor has tiles of 8-bit integers and the kernel lets this process use them.
bool has_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned tile_and_int8 = 3u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & tile_and_int8) != tile_and_int8) return false;
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
}
#endif

Isa detect_isa() {
  Isa isa = Isa::generic;
#ifdef SNNC_X86
  const char* const named = std::getenv("SNNC_MAX_ISA");
  const auto allowed = [named](const char* name) { return !named || std::strcmp(named, name); };
  __builtin_cpu_init();
  if (!allowed("generic") || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("f16c")) {
    return isa;
  }
  isa = Isa::avx2;
  if (!allowed("avx2") || !__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return isa;
  }
  isa = Isa::avx512;
#ifdef SNNC_AMX
  if (allowed("avx512") && has_tiles()) isa = Isa::amx;
#endif
#endif
  return isa;
}

}  // namespace

Isa best_isa() {
  static const Isa isa = detect_isa();
  return isa;
}

template <typename T>
void neuron(const NeuronTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
#ifdef SNNC_X86
  if (isa >= Isa::avx512) return neuron_avx512(task, first, count);
  if (isa == Isa::avx2) return neuron_avx2(task, first, count);
#endif
  (void)isa;
  neuron_body<Generic>(task, first, count);
}

template <typename T>
void scheduled(const ScheduledTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
#ifdef SNNC_X86
  if (isa >= Isa::avx512) return scheduled_avx512(task, first, count);
  if (isa == Isa::avx2) return scheduled_avx2(task, first, count);
#endif
  (void)isa;
  scheduled_body<Generic>(task, first, count);
}

template <typename T>
void time_sum(const SumTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
#ifdef SNNC_X86
  if (isa >= Isa::avx512) return sum_avx512(task, first, count);
  if (isa == Isa::avx2) return sum_avx2(task, first, count);
#endif
  (void)isa;
  sum_body<Generic>(task, first, count);
}

template <typename T>
void drive(const DriveTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
#ifdef SNNC_X86
  if (isa >= Isa::avx512) return drive_avx512(task, first, count);
  if (isa == Isa::avx2) return drive_avx2(task, first, count);
#endif
  (void)isa;
  drive_body<Generic>(task, first, count);
}

template <typename T>
void analog(const AnalogTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
#ifdef SNNC_X86
  if (isa >= Isa::avx512) return analog_avx512(task, first, count);
  if (isa == Isa::avx2) return analog_avx2(task, first, count);
#endif
  (void)isa;
  analog_body<Generic>(task, first, count);
}

template <typename T>
void poisson(const PoissonTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
#ifdef SNNC_X86
  if (isa >= Isa::avx512) return poisson_avx512(task, first, count);
  if (isa == Isa::avx2) return poisson_avx2(task, first, count);
#endif
  (void)isa;
  poisson_body<Generic>(task, first, count);
}

std::int64_t pool_scratch(const Window& window) {
  return window.outputs() + window.in[2] + window.out[2] + window.inputs();
}

template <typename T>
void pool(const PoolTask<T>& task, std::int64_t plane, float* scratch, Isa isa) {
#ifdef SNNC_X86
  if (isa >= Isa::avx512) return pool_avx512(task, plane, scratch);
  if (isa == Isa::avx2) return pool_avx2(task, plane, scratch);
#endif
  (void)isa;
  pool_body<Generic>(task, plane, scratch);
}

template void neuron(const NeuronTask<float>&, std::int64_t, std::int64_t, Isa);
template void neuron(const NeuronTask<Half>&, std::int64_t, std::int64_t, Isa);
template void scheduled(const ScheduledTask<float>&, std::int64_t, std::int64_t, Isa);
template void scheduled(const ScheduledTask<Half>&, std::int64_t, std::int64_t, Isa);
template void time_sum(const SumTask<float>&, std::int64_t, std::int64_t, Isa);
template void time_sum(const SumTask<Half>&, std::int64_t, std::int64_t, Isa);
template void drive(const DriveTask<float>&, std::int64_t, std::int64_t, Isa);
template void drive(const DriveTask<Half>&, std::int64_t, std::int64_t, Isa);
template void analog(const AnalogTask<float>&, std::int64_t, std::int64_t, Isa);
template void analog(const AnalogTask<Half>&, std::int64_t, std::int64_t, Isa);
template void poisson(const PoissonTask<float>&, std::int64_t, std::int64_t, Isa);
template void poisson(const PoissonTask<Half>&, std::int64_t, std::int64_t, Isa);
template void pool(const PoolTask<float>&, std::int64_t, float*, Isa);
template void pool(const PoolTask<Half>&, std::int64_t, float*, Isa);

}  // namespace snnc::cpu
