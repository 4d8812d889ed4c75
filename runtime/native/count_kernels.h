// Layers by counts on the CPU: spike counts in, convolution in whole numbers, neuron, spike counts out.
//
// In layered time a neuron has received all of its window before it fires, and what it sends is known
// by one number: n = min(max(floor((x + membrane) / threshold), 0), levels), the worth of its spikes.
// A convolution is linear, so one of counts is as good as one of every time-step.  Counts are bytes,
// channels last; weights have 8 bits; sums have 32 and are exact.
//
// All ways of multiplying take the same packed weights, and give the same numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "event_kernels.h"

namespace snnc::counts {

using cpu::best_isa;
using cpu::Isa;
using events::max_kernel;
using events::max_sources;
using events::Source;

/// What multiplies bytes.
enum class Way { plain, dotprod, avx2, avxvnni, vnni, tiles };

/// The best way of this machine, within SNNC_MAX_ISA.
Way best_way();

/// Output channels are taken by the sixteen, inputs by panels of 64.
constexpr std::int64_t unit_channels = 16, panel_inputs = 64, panel = unit_channels * panel_inputs;

/// How a source is held: such that the inputs of a kernel row, and of several if they are short, are
/// neighbours.
struct Layout {
  std::int64_t together;  // input rows that a pixel holds, one channel row after the other
  std::int64_t pixel;     // bytes of it
  std::int64_t lifts;     // groups of `together` kernel rows
  std::int64_t taps;      // spans of a group: one, or, with dilation, one for every kernel column
  std::int64_t span;      // bytes that are neighbours
  std::int64_t panels;    // of all spans

  explicit Layout(const Source& source);

  std::int64_t panels_of_span() const { return (span + panel_inputs - 1) / panel_inputs; }
  /// The rows below the first one of a window at which group `lift` begins.
  static std::int64_t below(const Source& source, const Layout& layout, std::int64_t lift) {
    return lift * (layout.together > 1 ? layout.together : source.dilation[0]);
  }
};

/// The neurons of a layer, as they are given: arrays of one number per channel.
struct Neurons {
  const std::int32_t* membrane;     // bias, and the potential at the start
  const std::int32_t* threshold;    // at least 1
  const std::int32_t* coefficient;  // of 16 bits: the charge of a residual count, or null
  // Where sums are on another grid than the neurons: these receive the nearest whole number to
  // factor·(sum + bias), within bounds, in float32.  Else null.
  const float* factor;
  const std::int32_t* bias;
  std::int64_t lowest, highest;  // at most 2^23 in size
};

/// A group of output channels: its weights, packed, and its neurons; what stays between calls.
class Layer {
 public:
  /// Of the sources only what belongs to the kernels is read.  `weights[i]` of source i is `[kernel
  /// height, kernel width, channels, pixel]`, of a depthwise layer, which has one source, `[kernel
  /// height, kernel width, pixel]`; the layer takes the channels from `offset` on.  `origin` is the count of
  /// the first source that stands for zero, in its padding, too; 0 of a depthwise layer.  Throws
  /// std::invalid_argument where a sum may need more than 32 bits, std::bad_alloc where memory ran out.
  Layer(const std::vector<Source>& sources, bool depthwise, std::int64_t pixel, std::int64_t offset,
        std::int64_t channels, const std::int8_t* const* weights, const Neurons& neurons,
        std::int64_t origin = 0, Way way = best_way());

  /// Whether neurons of so many levels may be computed in float32: (a + 1/2) / Q is at least 1 / 2Q from
  /// a whole number, and float32 errs by less than (levels + 1) / 2^23 where it matters; larger values
  /// are `levels` anyway.  A potential near 2^31 must not become one of 2^31.
  bool quick(std::int64_t levels) const { return least > 1 && (levels + 1) * largest < 1 << 22; }

  std::vector<Source> sources;
  std::vector<Layout> layouts;
  bool depthwise;
  Way way;
  std::int64_t pixel, offset, channels, units;
  std::int64_t origin;  // the count of source 0 that stands for zero
  std::int64_t panels;  // of all sources
  std::int64_t inputs;     // weights of an output
  std::int64_t least, largest;  // of the thresholds
  bool scaled;                  // whether sums are multiplied by `factor`
  float lowest, highest;        // and the bounds of the products
  std::shared_ptr<std::int8_t> digits;  // [units, panels, 16 inputs / 4, 16 channels, 4 inputs]
  std::vector<std::int8_t> depth;       // of every panel: its fours of inputs
  Buffer<float> taps;  // of a depthwise layer: [kernel height, kernel width, units, 16]
  // For all channels of all units.
  Buffer<std::int32_t> membrane, coefficient;  // what sums begin with; the charge of a residual count
  Buffer<float> rate, half;
  Buffer<float> factor, start;  // where `scaled`; `start` is the potential at the start, then
  Buffer<double> exact;

 private:
  void pack(const std::int8_t* const* weights);
  void check_sums(const std::int8_t* const* weights, const Neurons& neurons) const;
};

/// One call.
struct Call {
  Source sources[max_sources];
  const std::uint8_t* counts[max_sources];
  const std::uint8_t* residual;  // of the output's shape, or null
  std::uint8_t* out;             // [images, height, width, pixel of the layer]
  std::int64_t images, height, width;
  std::int64_t levels, most;  // the largest count that goes out, and that comes in
  bool quick;                 // whether neurons are computed in float32
};

/// Computes the images [image, image + images), of these the output rows [row, row + rows), and of
/// these the units [unit, unit + units).  Parts share nothing.  False where memory ran out.
bool run(const Layer& layer, const Call& call, std::int64_t image, std::int64_t images,
         std::int64_t row, std::int64_t rows, std::int64_t unit, std::int64_t units);

/// Neurons of one row of an image whose currents are complete: `[channels]` rows of `width` numbers that
/// are `apart` from each other, to `[width, channels]` counts.
void fire_row(const float* current, std::int64_t apart, std::int64_t width, std::int64_t channels,
              const float* membrane, const float* threshold, std::int64_t levels, std::uint8_t* out,
              Isa isa = best_isa());

/// Neurons of `count` currents that are complete, of one membrane and threshold, of at most 2^20 levels;
/// `counts` may be `current`.
void level_row(const float* current, std::int64_t count, float membrane, float threshold,
               std::int64_t levels, float* counts, Isa isa = best_isa());

/// A row of numbers as bytes: the nearest whole numbers to factor·value, between `lowest` and `highest`,
/// plus `origin`; `values` is as `current` of fire_row, and what is no number counts as the lowest.
void grid_row(const float* values, std::int64_t apart, std::int64_t width, std::int64_t channels,
              const float* factor, float lowest, float highest, float origin, std::uint8_t* out,
              Isa isa = best_isa());

/// Output row `row` of max pooling; the window is `source`, whose padding is nothing.  False where memory
/// ran out.
bool max_pool(const Source& source, const std::uint8_t* image, std::int64_t row, std::int64_t width,
              std::uint8_t* out, Isa isa = best_isa());

}  // namespace snnc::counts
