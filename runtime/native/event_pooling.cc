#include <algorithm>
#include <cstring>

#include "event_shared.h"

namespace snnc::events {
namespace {

/// Kernel rows, or columns, through which an output at `at` sees the input.
struct Taps {
  std::int64_t begin, end;

  Taps(const Source& source, int axis, std::int64_t at) : begin(0), end(source.kernel[axis]) {
    const std::int64_t first = at * source.stride[axis] - source.begin[axis];
    while (begin < end && first + begin * source.dilation[axis] < 0) ++begin;
    while (end > begin && first + (end - 1) * source.dilation[axis] >= source.in[axis]) --end;
  }
};

/// One output row after the other through all time-steps, so that the counts stay in the cache: a
/// pooled spike for every one by which the largest count of a window has grown.
template <typename Set>
SNNC_BODY bool pool_rows(const Pooling& call, std::int64_t sample, std::int64_t first,
                         std::int64_t count) {
  using F = Floats<Set>;
  const Source& source = call.source;
  const std::int64_t channels = source.pixel, width = (channels + 15) / 16 * 16;
  const std::int64_t across = source.in[1], out_across = call.out[1];
  // The first input row that no output row before `y` counts.
  const auto top_of = [&](std::int64_t y) {
    return y == 0 ? 0 : y == call.out[0] ? source.in[0] : std::clamp<std::int64_t>(source.row(y, 0), 0, source.in[0]);
  };
  const auto bottom_of = [&](std::int64_t y) {
    const std::int64_t last = source.row(y, source.kernel[0] - 1) + 1;
    return std::max(top_of(y + 1), std::clamp<std::int64_t>(last, 0, source.in[0]));
  };
  std::int64_t most_rows = 0;
  for (std::int64_t y = first; y < first + count; ++y) {
    most_rows = std::max(most_rows, bottom_of(y) - top_of(y));
  }
  static thread_local Scratch scratch;
  if (!scratch.reserve(Scratch::room<float>(most_rows * across * width) +
                       Scratch::room<float>(out_across * width) +
                       2 * Scratch::room<std::uint8_t>(width))) {
    return false;
  }
  float* const counts = scratch.take<float>(most_rows * across * width);
  float* const largest = scratch.take<float>(out_across * width);
  std::uint8_t* const fired = scratch.take<std::uint8_t>(width);
  std::uint8_t* const grown = scratch.take<std::uint8_t>(width);
  std::memset(fired, 0, static_cast<std::size_t>(width));
  const auto floats = static_cast<std::size_t>(channels) * sizeof(float);
  const std::int64_t image = source.in[0] * across * channels;

  for (std::int64_t y = first; y < first + count; ++y) {
    const std::int64_t top = top_of(y), places = (bottom_of(y) - top) * across;
    const std::int64_t offset = sample * image + top * across * channels;
    for (std::int64_t i = 0; i < places; ++i) {
      float* to = counts + i * width;
      std::memset(to + channels, 0, static_cast<std::size_t>(width - channels) * sizeof(float));
      if (call.before_spread) {
        std::fill_n(to, channels, *call.before);
      } else {
        std::memcpy(to, call.before + offset + i * channels, floats);
      }
    }
    const Taps rows(source, 0, y);
    /// Calls visit(channel, largest count before, largest count now) for every vector of a place.
    const auto windows = [&](std::int64_t x, const auto& visit) SNNC_INLINE {
      const Taps columns(source, 1, x);
      const std::int64_t row_apart = source.dilation[0] * across * width;
      const std::int64_t column_apart = source.dilation[1] * width;
      const float* const corner =
          counts + ((source.row(y, rows.begin) - top) * across + source.column(x, columns.begin)) * width;
      float* const was = largest + x * width;
      for (std::int64_t r = 0; r < width; r += lanes<Set>) {
        F most = {}, before;
        for (std::int64_t kh = rows.begin; kh < rows.end; ++kh) {
          const float* from = corner + (kh - rows.begin) * row_apart + r;
          for (std::int64_t kw = columns.begin; kw < columns.end; ++kw, from += column_apart) {
            F one;
            load(from, one);
            most = most < one ? one : most;
          }
        }
        load(was + r, before);
        store(was + r, most);
        visit(r, before, most);
      }
    };
    for (std::int64_t x = 0; x < out_across; ++x) windows(x, [](std::int64_t, const F&, const F&) {});
    for (std::int64_t t = 0; t < call.steps; ++t) {
      const std::uint8_t* from = call.spikes + t * call.samples * image + offset;
      for (std::int64_t i = 0; i < places; ++i, from += channels) {
        const std::uint8_t* spikes = from;
        if (width != channels) {
          std::memcpy(fired, from, static_cast<std::size_t>(channels));
          spikes = fired;
        }
        float* to = counts + i * width;
        for (std::int64_t r = 0; r < width; r += lanes<Set>) {
          Ints<Set> more;
          Set::widen_bytes(spikes + r, more);
          F sum;
          load(to + r, sum);
          sum = sum + __builtin_convertvector(more, F);
          store(to + r, sum);
        }
      }
      std::uint8_t* to = call.pooled +
                         (((t * call.samples + sample) * call.out[0] + y) * out_across) * channels;
      for (std::int64_t x = 0; x < out_across; ++x, to += channels) {
        std::uint8_t* const place = width == channels ? to : grown;
        windows(x, [&](std::int64_t r, const F& before, const F& most) SNNC_INLINE {
          const Ints<Set> more = __builtin_convertvector(most - before, Ints<Set>);
          store(place + r, __builtin_convertvector(more, Bytes<Set>));
        });
        if (place != to) std::memcpy(to, place, static_cast<std::size_t>(channels));
      }
    }
    // What the windows of the next row see is counted there once more, from what was before.
    const std::int64_t done = (top_of(y + 1) - top) * across;
    for (std::int64_t i = 0; i < done; ++i) {
      std::memcpy(call.after + offset + i * channels, counts + i * width, floats);
    }
  }
  return true;
}

}  // namespace

bool max_pool(const Pooling& call, std::int64_t sample, std::int64_t first, std::int64_t count,
              Isa isa) {
  return on(isa, [&](auto set) SNNC_INLINE {
    return pool_rows<decltype(set)>(call, sample, first, count);
  });
}

}  // namespace snnc::events
