#include <cstring>

#include "cpu_shared.h"

namespace snnc::cpu {
namespace {

// --- sum over time ----------------------------------------------------------------------------

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

}  // namespace

template <typename T>
void time_sum(const SumTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
  on(isa, [&](auto set) SNNC_INLINE { sum_body<decltype(set)>(task, first, count); });
}

template <typename T>
void analog(const AnalogTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
  on(isa, [&](auto set) SNNC_INLINE { analog_body<decltype(set)>(task, first, count); });
}

template void time_sum(const SumTask<float>&, std::int64_t, std::int64_t, Isa);
template void time_sum(const SumTask<Half>&, std::int64_t, std::int64_t, Isa);
template void analog(const AnalogTask<float>&, std::int64_t, std::int64_t, Isa);
template void analog(const AnalogTask<Half>&, std::int64_t, std::int64_t, Isa);

}  // namespace snnc::cpu
