#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu_shared.h"

namespace snnc::cpu {
namespace {

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
    if (t > 0 && task.kind == Current::temporal) {
      x = as_floats<Set>(task.current_of(first, t), tile<Set>, wide);
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
  const float* x = as_floats<Set>(task.current_of(first, 0), tile<Set>, wide);
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
    if (t == 0 || task.kind == Current::temporal) {
      x = as_floats<Set>(task.current_of(first + done, t), left, current_buffer);
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

// --- neuron of layered time -------------------------------------------------------------------

/// One tile: its current is received in registers, and what fires stays in them.
template <typename Set, bool stream, typename T>
SNNC_BODY void layered_tile(const LayeredTask<T>& task, const float* theta,
                            const float* potentials, std::int64_t first) {
  constexpr std::int64_t width = Set::bytes / sizeof(float);
  alignas(64) float wide[tile<Set>];
  Floats<Set> v[Set::registers] = {};
  float weight = task.first_weight(task.held());
  for (std::int64_t t = 0; t < task.held(); ++t, weight *= task.fading()) {
    const float* x = as_floats<Set>(task.current + t * task.neurons + first, tile<Set>, wide);
#pragma GCC unroll 16
    for (int r = 0; r < Set::registers; ++r) {
      Floats<Set> value;
      std::memcpy(&value, x + r * width, Set::bytes);
      v[r] = v[r] + weight * value;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Set::registers; ++r) {
    Floats<Set> before;
    std::memcpy(&before, potentials + r * width, Set::bytes);
    v[r] = before + v[r];
  }
  weight = task.first_weight(task.steps);
  for (std::int64_t t = 0; t < task.steps; ++t, weight *= task.fading()) {
    T* spikes = task.spikes + t * task.neurons + first;
#pragma GCC unroll 16
    for (int r = 0; r < Set::registers; ++r) {
      Floats<Set> threshold;
      std::memcpy(&threshold, theta + r * width, Set::bytes);
      const Floats<Set> zero = {}, level = weight * threshold;
      const auto fires = v[r] >= level;
      v[r] = v[r] - (fires ? zero + 1.0f : zero) * level;
      std::conditional_t<sizeof(T) == sizeof(float), Floats<Set>, Shorts<Set>> fired;
      make_spikes<Set>(fires, spikes, fired);
      if constexpr (stream) {
        Set::stream(fired, spikes + r * width);
      } else {
        std::memcpy(spikes + r * width, &fired, sizeof(fired));
      }
    }
  }
}

SNNC_BODY void receive(const float* __restrict__ x, float weight, std::int64_t count,
                       float* __restrict__ sum) {
  for (std::int64_t i = 0; i < count; ++i) sum[i] = sum[i] + weight * x[i];
}

template <typename T>
SNNC_BODY void layered_row(const float* __restrict__ theta, float weight, std::int64_t count,
                           float* __restrict__ v, T* __restrict__ spikes) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float level = weight * theta[i];
    const bool fires = v[i] >= level;
    v[i] = v[i] - spike_or_silence<float>(fires) * level;
    spikes[i] = spike_or_silence<T>(fires);
  }
}

template <typename Set, typename T>
SNNC_BODY void layered_body(const LayeredTask<T>& task, std::int64_t first, std::int64_t count) {
  alignas(64) float theta_buffer[block], potentials[block], current_buffer[block], sums[block];
  const float* theta = task.threshold + first;
  if (!task.threshold_over.full()) {
    expand(task.threshold, task.threshold_over, Place(task.threshold_over, first), count,
           theta_buffer);
    theta = theta_buffer;
  }
  expand(task.membrane, task.membrane_over, Place(task.membrane_over, first), count, potentials);

  std::int64_t done = 0;
  for (; done + tile<Set> <= count; done += tile<Set>) {
    if (task.stream) {
      layered_tile<Set, true>(task, theta + done, potentials + done, first + done);
    } else {
      layered_tile<Set, false>(task, theta + done, potentials + done, first + done);
    }
  }
  if (task.stream) Set::end_of_streams();
  const std::int64_t left = count - done;
  if (!left) return;
  std::memset(sums, 0, left * sizeof(float));
  float weight = task.first_weight(task.held());
  for (std::int64_t t = 0; t < task.held(); ++t, weight *= task.fading()) {
    const T* current = task.current + t * task.neurons + first + done;
    receive(as_floats<Set>(current, left, current_buffer), weight, left, sums);
  }
  float* v = potentials + done;
  for (std::int64_t i = 0; i < left; ++i) v[i] = v[i] + sums[i];
  weight = task.first_weight(task.steps);
  for (std::int64_t t = 0; t < task.steps; ++t, weight *= task.fading()) {
    layered_row(theta + done, weight, left, v, task.spikes + t * task.neurons + first + done);
  }
}

/// A driven neuron, step by step, each with the currents of one block in a buffer.
template <typename T>
void driven(const ScheduledTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
  alignas(64) T row[block];
  DriveTask<T> product{};
  product.values = task.current + first;
  product.currents = row;
  product.steps = 1;
  product.neurons = count;
  ScheduledTask<T> step = task;
  step.kind = Current::temporal;
  step.current = row;
  step.current_first = first;
  step.steps = 1;
  for (std::int64_t t = 0; t < task.steps; ++t) {
    const float factor = task.drive.at(task.start, t);
    product.drive = {&factor, 1};
    drive(product, 0, count, isa);
    step.start = std::min(task.start, task.rows) + t;
    step.spikes = task.spikes + t * task.neurons;
    scheduled(step, first, count, isa);
    step.membrane = task.membrane_out;
    step.balance = task.balance_out;
    step.membrane_over = step.balance_over = Broadcast::row(task.neurons);
  }
}

}  // namespace

template <typename T>
void neuron(const NeuronTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
  on(isa, [&](auto set) SNNC_INLINE { neuron_body<decltype(set)>(task, first, count); });
}

template <typename T>
void scheduled(const ScheduledTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
  if (task.kind == Current::driven) return driven(task, first, count, isa);
  on(isa, [&](auto set) SNNC_INLINE { scheduled_body<decltype(set)>(task, first, count); });
}

template <typename T>
void layered(const LayeredTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
  on(isa, [&](auto set) SNNC_INLINE { layered_body<decltype(set)>(task, first, count); });
}

template void neuron(const NeuronTask<float>&, std::int64_t, std::int64_t, Isa);
template void neuron(const NeuronTask<Half>&, std::int64_t, std::int64_t, Isa);
template void scheduled(const ScheduledTask<float>&, std::int64_t, std::int64_t, Isa);
template void scheduled(const ScheduledTask<Half>&, std::int64_t, std::int64_t, Isa);
template void layered(const LayeredTask<float>&, std::int64_t, std::int64_t, Isa);
template void layered(const LayeredTask<Half>&, std::int64_t, std::int64_t, Isa);

}  // namespace snnc::cpu
