// What the CPU kernels share: values of both types as floats, and tensors that spread over a row.
//
// The bodies are plain loops that the compiler vectorizes.
#pragma once

#include "instruction_sets.h"

namespace snnc::cpu {

// --- values ------------------------------------------------------------------------------------

/// Neurons that fill the registers with their membrane potentials.
template <typename Set>
constexpr std::int64_t tile = Set::registers * Set::bytes / std::int64_t{sizeof(float)};

/// `count` values as floats: in place for float32, through `buffer` for float16.
template <typename Set>
SNNC_BODY const float* as_floats(const float* values, std::int64_t, float*) {
  return values;
}
template <typename Set>
SNNC_BODY const float* as_floats(const Half* values, std::int64_t count, float* buffer) {
  Set::widen_halves(values, count, buffer);
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
  Set::narrow_floats(buffer, count, out);
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

SNNC_BODY void add(const float* __restrict__ x, std::int64_t count, float* __restrict__ y) {
  for (std::int64_t i = 0; i < count; ++i) y[i] = y[i] + x[i];
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
            float* out);

/// The state of a block before the call, written where the state after the call belongs.
void start_state(const float* state, const Broadcast& over, std::int64_t first, std::int64_t count,
                 float* out);

}  // namespace snnc::cpu
