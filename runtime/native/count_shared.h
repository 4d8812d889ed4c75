// What the ways of multiplying counts share: where the inputs of a strip are held, and what becomes of
// its sums.
#pragma once

#include "count_kernels.h"
#include "instruction_sets.h"

namespace snnc::counts {

using namespace cpu;  // instruction sets and their vectors

/// Packed weights above this do not stay in the second-level cache beside the inputs.
constexpr std::int64_t far_weights = 1 << 20;

/// A source as it is held: a position is an output pixel, or lies between two rows of these, where
/// nothing comes of it.  Positions are evenly apart across the ends of rows.
struct Held {
  std::uint8_t* bytes;
  std::int64_t apart;       // bytes between neighbouring positions
  std::int64_t* offsets;    // [panels]: of the panels of position 0
};

/// Output pixels in a row, neighbours in memory and as positions.
struct Run {
  std::int64_t start[max_sources];  // bytes of the first one's position
  std::int64_t out;                 // its pixel in the output
  std::int64_t count;
};

/// Sixteen positions.
struct Tile {
  std::int64_t start[max_sources];
  const std::int32_t* outs;  // pixels of the output from the first one of the strip on, or -1
};

/// What is computed at once.
struct Strip {
  const Layer& layer;
  const Call& call;
  Held held[max_sources];
  const Run* runs;    // for all ways but tiles
  std::int64_t run_count;
  const Tile* tiles;  // for tiles
  std::int64_t tile_count;
  std::int64_t first_out;  // pixel of the output
  std::int64_t rows;       // of a tile, of which anything comes
};

/// Sixteen neurons of one pixel, of `top` levels, in plain C++: in float64 a multiplication is exact enough for any sum
/// of 32 bits.  `out` is where the pixel's first channel of this unit is, and has `count` channels.
SNNC_BODY void fire(const Layer& layer, std::int64_t top, std::int64_t unit,
                    const std::int32_t* sums, const std::uint8_t* residual, std::int64_t count, std::uint8_t* out) {
  const std::int64_t first = unit * unit_channels;
  std::int32_t potential[unit_channels];
  for (std::int64_t c = 0; c < unit_channels; ++c) potential[c] = sums[c];
  if (layer.scaled) {
    for (std::int64_t c = 0; c < unit_channels; ++c) {
      float value = static_cast<float>(sums[c]) * layer.factor[first + c];
      value = value > layer.lowest ? value : layer.lowest;
      value = value < layer.highest ? value : layer.highest;
      potential[c] = static_cast<std::int32_t>(__builtin_rintf(value) + layer.start[first + c]);
    }
  }
  if (residual) {
    for (std::int64_t c = 0; c < count; ++c) {
      potential[c] += layer.coefficient[first + c] * static_cast<std::int32_t>(residual[c]);
    }
  }
  const auto levels = static_cast<std::int32_t>(top);
  std::uint8_t fired[unit_channels];
  for (std::int64_t c = 0; c < unit_channels; ++c) {
    // (a + 1/2) / threshold is half a threshold's part from a whole number at least.
    const double part = (static_cast<double>(potential[c]) + 0.5) * layer.exact[first + c];
    const auto whole = static_cast<std::int32_t>(part);
    fired[c] = static_cast<std::uint8_t>(std::min(std::max(whole, 0), levels));
  }
  for (std::int64_t c = 0; c < count; ++c) out[c] = fired[c];
}

/// The channels of unit `unit` that there are.
inline std::int64_t channels_of(const Layer& layer, std::int64_t unit) {
  return std::min(unit_channels, layer.channels - unit * unit_channels);
}

#ifdef SNNC_X86
/// The units [unit, unit + units) of a strip; not for the plain way.
void run_x86(const Strip& strip, std::int64_t unit, std::int64_t units);
#endif

}  // namespace snnc::counts
