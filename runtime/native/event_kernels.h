// Event-driven layers on the CPU: spikes in, convolution and soft-reset neuron, spikes out.
//
// Spikes are bytes, channels last: a temporal tensor is `[steps, samples, height, width, channels]`.
// A byte may count several spikes, which is what average pooling leaves behind.  Membranes and
// static currents are float32, `[samples, height, width, channels]`.
//
// The currents of a neuron come from packed weights in one of four ways:
// events  the weight rows of the spikes that it sees are added up, the others are not touched;
// tables  for narrow layers: eight inputs at a time choose one of 256 sums made beforehand;
// dense   all rows, by multiplication, for layers in which nearly everything fires;
// digits  where the processor has tiles of 8-bit integers (AMX): a spike is a byte already, a weight is
//         one to three digits of 8 bits, and their products add up exactly, many at a time.
// Where weights are whole numbers of 8 bits, events add rows of 16-bit integers, and dense arithmetic multiplies bytes.
// Events and dense arithmetic add in one order and, for spikes of 0 and 1, multiply by these only, so
// they give the same bits, and the choice between them may follow the activity.  Tables add in another
// order, and three digits round a weight to within about 2^-23 of the largest one of its channel, and their sum; a
// layer has them or has not.  Nothing depends on the number of threads, nor on the instruction set but for
// digits.  Counts above 1, as sum pooling makes, are an exception where weights round: events add a weight
// several times, and a multiplication may be fused with its addition.
// Weights that are whole numbers of up to 16 bits leave nothing to round: their sums are exact, and every way gives
// the same bits, as long as float32 holds the sums, too (below 2^24).
#pragma once

#include <cstdint>
#include <vector>

#include "cpu_kernels.h"
#include "scratch.h"

namespace snnc::events {

using cpu::best_isa;
using cpu::Isa;

/// A convolution's window over one spike input, or over a group of its channels.
struct Source {
  std::int64_t in[2];     // height and width of the input
  std::int64_t channels;  // that the window sees
  std::int64_t pixel;     // channels of a pixel
  std::int64_t offset;    // of the first one that the window sees
  std::int64_t kernel[2], stride[2], dilation[2];
  std::int64_t begin[2], end[2];  // padding
  std::int64_t levels;            // the largest value of a byte

  /// The input row that output row `y` sees through kernel row `k`; may lie in the padding.
  std::int64_t row(std::int64_t y, std::int64_t k) const {
    return y * stride[0] - begin[0] + k * dilation[0];
  }
  std::int64_t column(std::int64_t x, std::int64_t k) const {
    return x * stride[1] - begin[1] + k * dilation[1];
  }
  /// Rows or columns of the output.
  std::int64_t out(int axis) const {
    const std::int64_t room =
        begin[axis] + in[axis] + end[axis] - (kernel[axis] - 1) * dilation[axis] - 1;
    return room < 0 ? 0 : room / stride[axis] + 1;
  }
  /// Inputs of one receptive field.
  std::int64_t rows() const { return kernel[0] * kernel[1] * channels; }
  /// Groups of four channels of a pixel.
  std::int64_t fours() const { return (channels + 3) / 4; }
  /// Masks of sixteen channels: of a pixel, and of a row with its padding.
  std::int64_t sixteens() const { return (channels + 15) / 16; }
  std::int64_t masks() const { return (begin[1] + in[1] + end[1]) * sixteens(); }
};

constexpr int max_sources = 2;
/// Rows and columns of a kernel.
constexpr std::int64_t max_kernel = 16;
/// The largest value of a byte.
constexpr std::int64_t max_levels = 64;

/// What weights are made of in tiles of bytes: three digits hold a float, rounded, times spikes or times
/// counts of spikes; one or two hold a whole number as it is.
enum class Digits { none, rounded, rounded_counts, one, two };
/// The largest whole numbers that one digit and two hold, either way.
constexpr float one_digit = 127, two_digits = 32767;

/// The weights of a group of output channels, packed; what stays between calls.
struct Weights {
  /// `from[i]` of source i is `[kernel height, kernel width, channels, out_channels]`, of a depthwise
  /// layer, which has one source, `[kernel height, kernel width, out_channels]`.  `isa` is the one
  /// that they are for.
  Weights(const std::vector<Source>& sources, bool depthwise, std::int64_t out_channels,
          const float* const* from, Isa isa = best_isa());

  bool depthwise;
  std::int64_t channels;
  std::int64_t units;   // sixteens of channels in a block
  std::int64_t blocks;  // of channels, each with its own rows
  std::int64_t rows;    // one row of zeros follows them
  std::int64_t first_row[max_sources];  // of each source
  Buffer<float> values;                 // [blocks, rows + 1, width], or none
  Buffer<std::int16_t> whole_values;    // the same where all are whole numbers of 8 bits, or none
  Buffer<std::int8_t> fours;            // of inputs, of the same: [blocks, four_count, width, 4]
  std::int64_t four_count;
  std::int64_t first_four[max_sources];
  std::int64_t most_levels;             // of all sources
  Buffer<float> tables;                 // [blocks, table_rows, width], or none
  std::int64_t table_rows;
  std::int64_t first_table_row[max_sources];
  Digits kind;                 // of digits
  Buffer<std::int8_t> digits;  // [units of all blocks, panels, digits of the source, panel], or none
  std::int64_t digits_of_source[max_sources];
  std::int64_t unit_digits;    // bytes of a unit
  Buffer<float> scales;        // of rounded ones: [channels, in sixteens]
  Buffer<float> reaches;       // of whole ones: no sum is larger, either way; [channels, in sixteens]
  std::int64_t panels;         // of 64 inputs

  std::int64_t width() const { return 16 * units; }

 private:
  void pack(const std::vector<Source>& sources, const float* const* from);
  void make_tables(const std::vector<Source>& sources);
  bool are_small_and_whole(const std::vector<Source>& sources, const float* const* from) const;
  void pack_whole(const std::vector<Source>& sources, const float* const* from);
  bool make_digits(const std::vector<Source>& sources, const float* const* from);
};

/// A group of output channels of a call: of the output's `pixel` channels those from `offset` on.
struct Layer {
  const Weights* weights;
  const Source* sources;
  std::size_t source_count;
  std::int64_t out[2];
  std::int64_t pixel, offset;
};

/// One call: `steps` time-steps of `samples`.  Arrays of channels have those of a whole pixel.
struct Call {
  const std::uint8_t* spikes[max_sources];
  const float* current;    // bias or static current: [samples, out..., pixel], or [pixel]
  bool current_spread;     // where it is the same at every place
  const float* drive;      // [driven]: what it is multiplied by at each step, or null; the last holds on
  std::int64_t driven;
  const std::uint8_t* residual;  // of the output's shape, or null
  const float* amplitude;        // [pixel]: the current of a residual spike
  const float* threshold;        // [pixel]
  const float* schedule;         // [scheduled, pixel] or null; its last row holds on
  std::int64_t scheduled;
  std::int64_t start;     // steps before this call
  const float* membrane;  // as `current`
  bool membrane_spread;
  std::uint8_t* spikes_out;
  float* membrane_out;
  std::int64_t steps, samples;

  /// The row of step `t` of this call in a table of `rows`, whose last one holds on; no `start`
  /// overflows.
  std::int64_t row(std::int64_t t, std::int64_t rows) const {
    return start < rows - 1 && t < rows - 1 - start ? start + t : rows - 1;
  }
};

/// How currents are made; `choose` by the number of spikes.
enum class Way { choose, events, dense };

/// Runs the output rows [first, first + count) of a sample for the channel blocks
/// [block, block + block_count).  Parts share nothing.  False where memory ran out.
bool run(const Layer& layer, const Call& call, std::int64_t sample, std::int64_t first,
         std::int64_t count, std::int64_t block, std::int64_t block_count, Way way = Way::choose,
         Isa isa = best_isa());

/// One call of max pooling by spike counts; the window is `source`.
struct Pooling {
  Source source;
  std::int64_t out[2];
  std::int64_t steps, samples;
  const std::uint8_t* spikes;  // [steps, samples, in..., pixel]
  std::uint8_t* pooled;        // [steps, samples, out..., pixel]
  const float* before;         // [samples, in..., pixel], or one number
  bool before_spread;
  float* after;                // [samples, in..., pixel]; may be `before`
};

/// Pools the output rows [first, first + count) of a sample, and counts the input rows above those of
/// the next row's windows.  Parts share nothing unless `after` is `before`: then one part has all the
/// rows.  False where memory ran out.
bool max_pool(const Pooling& call, std::int64_t sample, std::int64_t first, std::int64_t count,
              Isa isa = best_isa());

}  // namespace snnc::events
