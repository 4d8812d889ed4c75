// A part of the work of an event-driven layer: what a thread works on and with, in vectors of one instruction set.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>

#include "event_shared.h"

namespace snnc::events {

// --- parts of vectors ----------------------------------------------------------------------------

using Four __attribute__((vector_size(16))) = std::uint32_t;
/// Vectors of sixteen channels.
template <typename Set>
constexpr int per_unit = 16 / lanes<Set>;

/// A vector of which only the first `left` lanes exist in memory, unless it is `whole`.
template <bool whole, typename Vector, typename T>
SNNC_BODY void load_some(const T* from, std::int64_t left, Vector& vector) {
  if constexpr (whole) {
    load(from, vector);
  } else {
    vector = Vector{};
    std::memcpy(&vector, from, static_cast<std::size_t>(left) * sizeof(T));
  }
}
template <bool whole, typename Vector, typename T>
SNNC_BODY void store_some(T* to, std::int64_t left, const Vector& vector) {
  std::memcpy(to, &vector, whole ? sizeof(vector) : static_cast<std::size_t>(left) * sizeof(T));
}
template <typename Set, bool whole>
SNNC_BODY void widen_some(const std::uint8_t* from, std::int64_t left, Ints<Set>& vector) {
  std::uint8_t some[lanes<Set>] = {};
  if constexpr (!whole) {
    std::memcpy(some, from, static_cast<std::size_t>(left));
    from = some;
  }
  Set::widen_bytes(from, vector);
}

/// sum += `vectors` vectors of weights.
template <typename Set, int vectors>
SNNC_BODY void add_row(const float* weights, Floats<Set>* sum) {
#pragma GCC unroll 16
  for (int r = 0; r < vectors; ++r) {
    Floats<Set> weight;
    load(weights + r * lanes<Set>, weight);
    sum[r] = sum[r] + weight;
  }
}

// --- a part of the work --------------------------------------------------------------------------

/// A place at one time-step: which spikes it sees, and where its currents go.
struct Job {
  const std::uint32_t* list;  // of spikes
  std::uint32_t fours;        // of spikes in it, but for the last one to four
  std::uint32_t base;         // from a spike in the list to its weights, modulo 2^32
  std::uint32_t rest[4];      // the weights of the last ones, filled up with the row of zeros
  std::uint32_t place;        // of its currents, in pixels times steps
  std::uint32_t pixel;
};

/// What is known of one source in a tile.
struct Input {
  std::uint16_t* masks;   // [input row, step, level, column with padding, sixteens]
  std::uint32_t* lists;   // of the spikes that each output row sees at each step
  Job* jobs;
  Job* sorted;            // by length
};

/// Output rows [top, bottom) and columns [left, right).
struct Tile {
  std::int64_t top, bottom, left, right;

  std::int64_t columns() const { return right - left; }
  std::int64_t pixels() const { return (bottom - top) * columns(); }
};

/// What a thread works on and with.
struct Strip {
  const Layer& layer;
  const Call& call;
  std::int64_t sample;
  Isa isa;
  Tile tile = {};
  Input inputs[max_sources] = {};
  std::uint32_t* starts = nullptr;  // of the columns in a list
  std::uint32_t* counts = nullptr;  // of the jobs of each length
  std::int64_t lengths = 0;
  float* begin = nullptr;     // [pixels, width]: static currents
  std::int64_t dense_steps = 0;  // that dense arithmetic takes together
  float* values = nullptr;    // dense: the inputs of one output row at so many steps
  std::uint8_t* bytes = nullptr;  // the same for whole weights
  float* currents = nullptr;  // [pixels, steps, width]

  const std::uint8_t* spikes(std::size_t s, std::int64_t t, std::int64_t row) const {
    const Source& source = layer.sources[s];
    const std::int64_t rows = (t * call.samples + sample) * source.in[0] + row;
    return call.spikes[s] + rows * source.in[1] * source.pixel + source.offset;
  }
  /// The masks of an input row that the tile sees; it may lie in the padding.
  std::uint16_t* masks(std::size_t s, std::int64_t row, std::int64_t t, std::int64_t level) const {
    const Source& source = layer.sources[s];
    const std::int64_t rows = (row - source.row(tile.top, 0)) * call.steps + t;
    return inputs[s].masks + (rows * source.levels + level) * source.masks();
  }
};

/// What the sums of a block of channels start from: one vector, or one for every pixel.
struct Begin {
  const float* values;
  std::int64_t stride;
};

/// Places whose sums are made together: enough that an addition need not wait for the one before.
template <int units>
constexpr int together = units == 1 ? 8 : units == 2 ? 4 : 2;

// --- whole weights of 8 bits (event_whole.cc) ------------------------------------------------------

/// The currents of a tile by events, from source `s`, for one block of channels.
void gather_whole(const Strip& strip, std::size_t s, std::int64_t block, const Begin& begin);
/// The same from all sources by dense arithmetic.
void multiply_whole(const Strip& strip, std::int64_t block, const Begin& begin);
/// Bytes that this needs of a source at one step.
std::int64_t bytes_of(const Source& source, std::int64_t columns);

}  // namespace snnc::events
