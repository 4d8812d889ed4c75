// How the CUDA kernels find their way in a row without a division: in 32 bits, and by multiplication.
// Longer rows are computed in pieces.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "tasks.h"

namespace snnc {

/// Divides numbers below 2^31 by a divisor that is known before the launch: one multiplication and
/// one shift.  With s = ceil(log2 d) and m = floor(2^(31 + s) / d) + 1 < 2^32, the error
/// m * d - 2^(31 + s) is in [1, 2^s], and so floor(n * m / 2^(31 + s)) = floor(n / d) for n < 2^31.
struct Divisor {
  static constexpr std::int64_t limit = std::int64_t{1} << 31;

  std::uint32_t value = 1, multiplier = (1u << 31) + 1, shift = 0;

  Divisor() = default;
  /// `divisor` is at least 1 and less than `limit`.
  explicit Divisor(std::int64_t divisor) : value(static_cast<std::uint32_t>(divisor)) {
    while ((std::int64_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<std::uint32_t>((std::uint64_t{1} << (31 + shift)) / value + 1);
  }
  SNNC_DEVICE std::uint32_t quotient(std::uint32_t number) const {
    return static_cast<std::uint32_t>(std::uint64_t{2 * number} * multiplier >> 32) >> shift;
  }
  /// Returns the remainder and leaves the quotient in `number`.
  SNNC_DEVICE std::uint32_t split(std::uint32_t& number) const {
    const std::uint32_t whole = quotient(number), rest = number - whole * value;
    number = whole;
    return rest;
  }
};

/// A tensor that spreads over a row (Broadcast), or over a piece of it, of less than 2^31 elements.
/// The row is cut into runs, along which the tensor advances by `stride`: by 0 where neighbours share
/// a number, as the neurons of a channel do.
struct Spread {
  const float* from = nullptr;
  bool full = false;  // one number for each element, in order
  std::uint32_t stride = 0, outer_stride = 0;
  Divisor run;   // elements of a run
  int axes = 0;  // those between the runs and the outermost axis, innermost first
  Divisor extent[Broadcast::max_rank - 2];
  std::uint32_t strides[Broadcast::max_rank - 2] = {};

  /// `first` is where the piece begins in the row; it is at the beginning of a sample.
  Spread(const float* tensor, const Broadcast& over, std::int64_t first)
      : from(tensor + position(over, first)), full(over.full()) {
    const int last = over.rank - 1;
    stride = static_cast<std::uint32_t>(over.stride[last]);
    // A single run is the whole piece.
    run = Divisor(last ? over.extent[last] : Divisor::limit - 1);
    if (last) outer_stride = static_cast<std::uint32_t>(over.stride[0]);
    for (int axis = last - 1; axis > 0; --axis, ++axes) {
      extent[axes] = Divisor(over.extent[axis]);
      strides[axes] = static_cast<std::uint32_t>(over.stride[axis]);
    }
  }

  /// Whether it can be read for `width` neighbours at once.
  bool serves(int width) const {
    if (full) return reinterpret_cast<std::uintptr_t>(from) % 16 == 0;
    return run.value >= static_cast<std::uint32_t>(width);
  }

  /// Where run `index` begins in the tensor.
  SNNC_DEVICE std::uint32_t begin_of(std::uint32_t index) const {
    std::uint32_t place = 0;
#ifdef __CUDACC__
#pragma unroll 1
#endif
    for (int axis = 0; axis < axes; ++axis) place += extent[axis].split(index) * strides[axis];
    return place + index * outer_stride;
  }

  static std::int64_t position(const Broadcast& over, std::int64_t index) {
    std::int64_t place = 0;
    for (int axis = over.rank - 1; axis > 0; --axis) {
      place += index % over.extent[axis] * over.stride[axis];
      index /= over.extent[axis];
    }
    return place + index * over.stride[0];
  }
};

/// Where `width` neighbours of a row lie in a tensor that spreads over it: in one run or in two,
/// since no run is shorter.
template <int width>
struct Places {
  std::uint32_t at[width];

  SNNC_DEVICE Places(const Spread& spread, std::uint32_t first) {
    std::uint32_t run = first;
    const std::uint32_t digit = spread.run.split(run);
    const std::uint32_t left = spread.run.value - digit;
    const std::uint32_t here = spread.begin_of(run) + digit * spread.stride;
    const std::uint32_t next = width > 1 ? spread.begin_of(run + 1) - left * spread.stride : here;
    for (std::uint32_t i = 0; i < width; ++i) at[i] = (i < left ? here : next) + i * spread.stride;
  }
};

/// The elements of a row that are computed by one launch: samples, as many as 32 bits count; 0 where
/// one sample is too large for that.
inline std::int64_t piece_of(std::int64_t neurons, std::initializer_list<const Broadcast*> tensors,
                             std::int64_t limit = Divisor::limit) {
  if (neurons < limit) return neurons;
  // The axes but the outermost one of every tensor are the last ones of the same samples: of their
  // sizes one is a multiple of all others.
  std::int64_t sample = 1;
  for (const Broadcast* over : tensors) {
    std::int64_t size = 1;
    for (int axis = 1; axis < over->rank; ++axis) size *= over->extent[axis];
    sample = std::max(sample, size);
  }
  while (sample % 8 && 2 * sample < limit) sample *= 2;  // pieces begin where vectors do
  return (limit - 1) / sample * sample;
}

}  // namespace snnc
