#include "count_kernels.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>

#include "count_shared.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace snnc::counts {
namespace {

/// Bytes of inputs that are held at once: they stay in the second-level cache beside the weights.
constexpr std::int64_t held_bytes = 1 << 19;
/// Positions may be read beyond the last one that counts, up to a tile, and inputs up to a panel.
constexpr std::int64_t tile_positions = 16;
/// Rows that a pixel holds.
constexpr std::int64_t most_together = 4;

template <typename T>
Buffer<T> filled(std::int64_t count, T value) {
  Buffer<T> buffer = allocate<T>(std::max<std::int64_t>(count, 1));
  if (!buffer) throw std::bad_alloc();
  std::fill_n(buffer.get(), count, value);
  return buffer;
}

/// Memory for packed weights.  Layers share their pages, which are huge where they can be: weights come
/// from far away, and with small pages so do the addresses.
std::shared_ptr<std::int8_t> shelved(std::int64_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<std::int8_t> last;  // what was allocated, as long as a layer uses it
  static std::int64_t taken = 0, size = 0;
  const std::lock_guard lock(mutex);
  std::shared_ptr<std::int8_t> shelf = last.lock();
  if (!shelf || taken + bytes > size) {
    constexpr auto page = static_cast<std::int64_t>(huge_page);
    size = (bytes + page - 1) / page * page;
    taken = 0;
    Buffer<std::int8_t> memory = allocate<std::int8_t>(size);
    if (!memory) throw std::bad_alloc();
    shelf = std::shared_ptr<std::int8_t>(memory.release(), Free());
    last = shelf;
  }
  std::int8_t* const begin = shelf.get() + taken;
  taken += bytes;
  std::fill_n(begin, bytes, std::int8_t{0});
  return std::shared_ptr<std::int8_t>(shelf, begin);
}

}  // namespace

Way best_way() {
  const Isa isa = best_isa();
#if defined(__x86_64__)
  if (isa == Isa::amx) return Way::tiles;
  if (isa == Isa::avx512) return Way::vnni;
  if (isa == Isa::avxvnni) return Way::avxvnni;
  if (isa >= Isa::avx2) return Way::avx2;
#endif
  if (isa == Isa::dotprod) return Way::dotprod;
  (void)isa;
  return Way::plain;
}

// --- the layer -----------------------------------------------------------------------------------

Layout::Layout(const Source& source) {
  const bool dense = source.dilation[0] == 1 && source.dilation[1] == 1;
  const auto lay = [&](std::int64_t rows) {
    together = rows;
    pixel = rows * source.channels;
    lifts = (source.kernel[0] + rows - 1) / rows;
    taps = source.dilation[1] == 1 ? 1 : source.kernel[1];
    span = (taps == 1 ? source.kernel[1] : 1) * pixel;
    panels = lifts * taps * panels_of_span();
  };
  lay(1);
  const std::int64_t alone = panels;
  // Short rows are held together, where that makes fewer panels.
  std::int64_t best = 1, least = alone;
  for (std::int64_t rows = 2; dense && rows <= most_together && rows <= source.kernel[0]; ++rows) {
    lay(rows);
    if (panels < least) {
      least = panels;
      best = rows;
    }
  }
  lay(best);
}

Layer::Layer(const std::vector<Source>& the_sources, bool is_depthwise, std::int64_t the_pixel,
             std::int64_t the_offset, std::int64_t the_channels, const std::int8_t* const* weights,
             const Neurons& neurons, std::int64_t the_origin, Way the_way)
    : sources(the_sources),
      depthwise(is_depthwise),
      way(the_way),
      pixel(the_pixel),
      offset(the_offset),
      channels(the_channels),
      units((the_channels + unit_channels - 1) / unit_channels),
      origin(the_origin),
      panels(0),
      inputs(0),
      least(std::numeric_limits<std::int64_t>::max()),
      largest(0),
      scaled(neurons.factor != nullptr),
      lowest(static_cast<float>(neurons.lowest)),
      highest(static_cast<float>(neurons.highest)) {
  for (const Source& source : sources) {
    layouts.emplace_back(source);
    panels += layouts.back().panels;
    inputs += depthwise ? source.kernel[0] * source.kernel[1] : source.rows();
  }
  check_sums(weights, neurons);
  const std::int64_t all = units * unit_channels;
  membrane = filled<std::int32_t>(all, 0);
  coefficient = filled<std::int32_t>(all, 0);
  rate = filled<float>(all, 0);
  half = filled<float>(all, 0);
  exact = filled<double>(all, 0);
  factor = filled<float>(scaled ? all : 1, 0);
  start = filled<float>(scaled ? all : 1, 0);
  for (std::int64_t c = 0; c < channels; ++c) {
    const std::int64_t from = offset + c, threshold = neurons.threshold[from];
    std::int64_t zero = 0;  // what the counts weigh that stand for none
    for (std::int64_t i = 0; origin && i < sources[0].rows(); ++i) zero += weights[0][i * pixel + from];
    std::int64_t begin = (scaled ? neurons.bias : neurons.membrane)[from] - origin * zero;
    for (std::size_t s = 0; way == Way::dotprod && !depthwise && s < sources.size(); ++s) {
      // Its products have two signs: counts are 128 less.
      for (std::int64_t i = 0; i < sources[s].rows(); ++i) begin += 128 * weights[s][i * pixel + from];
    }
    membrane[c] = static_cast<std::int32_t>(begin);
    if (scaled) {
      factor[c] = neurons.factor[from];
      start[c] = static_cast<float>(neurons.membrane[from]);
    }
    if (neurons.coefficient) coefficient[c] = neurons.coefficient[from];
    rate[c] = 1.0f / static_cast<float>(threshold);
    half[c] = rate[c] / 2;
    exact[c] = 1.0 / static_cast<double>(threshold);
    least = std::min(least, threshold);
    largest = std::max(largest, threshold);
  }
  pack(weights);
}

void Layer::check_sums(const std::int8_t* const* weights, const Neurons& neurons) const {
  for (std::int64_t c = offset; c < offset + channels; ++c) {
    std::int64_t reach = std::abs(static_cast<std::int64_t>((scaled ? neurons.bias : neurons.membrane)[c]));
    if (scaled && std::abs(static_cast<std::int64_t>(neurons.membrane[c])) > 1 << 23) {
      throw std::invalid_argument("`membrane` " + std::to_string(neurons.membrane[c]) +
                                  " needs more than 24 bits");
    }
    if (neurons.coefficient) {
      const std::int64_t charge = neurons.coefficient[c];
      if (charge != static_cast<std::int16_t>(charge)) {
        throw std::invalid_argument("`coefficient` " + std::to_string(charge) +
                                    " needs more than 16 bits");
      }
      reach += 255 * std::abs(charge);
    }
    for (std::size_t s = 0; s < sources.size(); ++s) {
      const std::int64_t rows = depthwise ? sources[s].kernel[0] * sources[s].kernel[1] : sources[s].rows();
      for (std::int64_t i = 0; i < rows; ++i) {
        // Once more for the origin, and half of it for counts with a sign.
        reach += 638 * std::abs(static_cast<std::int64_t>(weights[s][i * pixel + c]));
      }
    }
    if (reach > std::numeric_limits<std::int32_t>::max()) {
      throw std::invalid_argument("the sums of channel " + std::to_string(c) +
                                  " may need more than 32 bits");
    }
    if (neurons.threshold[c] < 1) {
      throw std::invalid_argument("`threshold` must be at least 1, not " +
                                  std::to_string(neurons.threshold[c]));
    }
  }
}

void Layer::pack(const std::int8_t* const* weights) {
  if (depthwise) {
    const std::int64_t rows = inputs, all = units * unit_channels;
    taps = filled<float>(rows * all, 0);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t c = 0; c < channels; ++c) {
        taps[i * all + c] = static_cast<float>(weights[0][i * pixel + offset + c]);
      }
    }
    return;
  }
  digits = shelved(units * panels * panel);
  for (std::int64_t unit = 0; unit < units; ++unit) {
    std::int8_t* to = digits.get() + unit * panels * panel;
    const std::int64_t there = channels_of(*this, unit);
    for (std::size_t s = 0; s < sources.size(); ++s) {
      const Source& source = sources[s];
      const Layout& layout = layouts[s];
      const std::int8_t* const from = weights[s] + offset + unit * unit_channels;
      for (std::int64_t lift = 0; lift < layout.lifts; ++lift) {
        for (std::int64_t tap = 0; tap < layout.taps; ++tap) {
          for (std::int64_t first = 0; first < layout.span; first += panel_inputs, to += panel) {
            const std::int64_t here = std::min(panel_inputs, layout.span - first);
            if (unit == 0) depth.push_back(static_cast<std::int8_t>((here + 3) / 4));
            for (std::int64_t i = 0; i < here; ++i) {
              const std::int64_t place = first + i, rest = place % layout.pixel;
              const std::int64_t kx = layout.taps > 1 ? tap : place / layout.pixel;
              const std::int64_t ky = lift * layout.together + rest / source.channels;
              if (ky >= source.kernel[0]) continue;
              const std::int64_t row =
                  (ky * source.kernel[1] + kx) * source.channels + rest % source.channels;
              for (std::int64_t c = 0; c < there; ++c) {
                to[i / 4 * 64 + c * 4 + i % 4] = from[row * pixel + c];
              }
            }
          }
        }
      }
    }
  }
}

// --- a part of a call ----------------------------------------------------------------------------

namespace {

/// How a source of a strip is held.
struct Hold {
  std::int64_t step;     // positions between neighbouring output columns are so many pixels apart
  std::int64_t columns;  // pixels that a row has
  std::int64_t begin;    // pixels of padding before it
  bool sparse;           // of the input's columns only those that a kernel of one column reads
  std::int64_t planes;   // of rows with the same remainder by the stride
  std::int64_t below;    // rows of a plane below those of the output
  std::int64_t pitch;    // bytes of a row
  std::int64_t plane, image;  // bytes from one to the next
  std::int64_t bytes;         // of all
};

/// How the sources of a strip are held, together.
struct Plan {
  Hold holds[max_sources];
  std::int64_t across;  // positions of a row
  std::int64_t high;    // rows of positions from one image to the next
  bool one;             // each image has one output: images are positions
  bool merged;          // positions go on from one image to the next
  std::int64_t bytes;

  Plan(const Layer& layer, const Call& call, std::int64_t images, std::int64_t rows) {
    one = call.height == 1 && call.width == 1;
    across = call.width;
    high = rows;
    std::int64_t most_below = 0;
    bool shared = rows == call.height && layer.sources.size() == 1;
    for (std::size_t s = 0; s < layer.sources.size(); ++s) {
      const Source& source = call.sources[s];
      const Layout& layout = layer.layouts[s];
      Hold& hold = holds[s];
      hold.sparse = source.kernel[1] == 1 && source.stride[1] > 1;
      hold.step = hold.sparse ? 1 : source.stride[1];
      hold.begin = hold.sparse ? 0 : source.begin[1];
      hold.columns = hold.sparse ? call.width : source.in[1];
      const std::int64_t padded =
          hold.sparse ? call.width
          : one       ? source.begin[1] + source.in[1] + source.end[1]
                      : source.in[1] + std::max(source.begin[1], source.end[1]);
      across = std::max(across, (padded + hold.step - 1) / hold.step);
      const std::int64_t last = Layout::below(source, layout, layout.lifts - 1);
      hold.below = last / source.stride[0];
      hold.planes = std::min(source.stride[0], last + 1);
      most_below = std::max(most_below, hold.below);
      shared = shared && source.stride[0] == 1 && layout.together == 1;
    }
    const Source& first = call.sources[0];
    // What pads an image below pads the next one above.
    high = shared ? std::max(rows, first.in[0] + std::max(first.begin[0], first.end[0]))
                  : rows + most_below;
    const auto tiles_of = [](std::int64_t positions) {
      return (positions + tile_positions - 1) / tile_positions;
    };
    const std::int64_t alone = (rows - 1) * across + call.width;
    merged = !one && images > 1 &&
             tiles_of((images - 1) * high * across + alone) < images * tiles_of(alone);
    bytes = 0;
    for (std::size_t s = 0; s < layer.sources.size(); ++s) {
      const Layout& layout = layer.layouts[s];
      Hold& hold = holds[s];
      hold.pitch = across * hold.step * layout.pixel;
      // One more row for the padding behind the last one.
      const std::int64_t tall = rows + hold.below + 1;
      if (merged) {
        hold.image = high * hold.pitch;
        hold.plane = ((images - 1) * high + tall) * hold.pitch;
        hold.bytes = hold.planes * hold.plane;
      } else {
        hold.plane = tall * hold.pitch;
        hold.image = (hold.planes * hold.plane + 63) / 64 * 64;
        hold.bytes = images * hold.image;
      }
      hold.bytes += tile_positions * (one ? hold.image : hold.step * layout.pixel) +
                    call.sources[s].kernel[1] * call.sources[s].dilation[1] * layout.pixel +
                    2 * panel_inputs;
      bytes += Scratch::room<std::uint8_t>(hold.bytes);
    }
  }
};

/// `count` pixels of `bytes` bytes that lie `from_apart` and `to_apart` apart.
void copy_pixels(const std::uint8_t* from, std::int64_t from_apart, std::int64_t count,
                 std::int64_t bytes, std::uint8_t* to, std::int64_t to_apart) {
  if (bytes == from_apart && bytes == to_apart) {
    std::memcpy(to, from, static_cast<std::size_t>(count * bytes));
    return;
  }
  const auto each = [&](auto size) {
    for (std::int64_t i = 0; i < count; ++i) {
      std::memcpy(to + i * to_apart, from + i * from_apart, static_cast<std::size_t>(size));
    }
  };
  switch (bytes) {
    case 1: return each(std::integral_constant<std::size_t, 1>{});
    case 16: return each(std::integral_constant<std::size_t, 16>{});
    case 32: return each(std::integral_constant<std::size_t, 32>{});
    case 64: return each(std::integral_constant<std::size_t, 64>{});
    default: return each(bytes);
  }
}

/// Pixels of three channels, of several rows that are held together.
void copy_colours(const std::uint8_t* const* from, std::int64_t rows, std::int64_t count,
                  std::uint8_t* to) {
  // A fourth byte that goes along is overwritten by what follows.
  for (std::int64_t i = 0; i + 1 < count; ++i) {
    for (std::int64_t j = 0; j < rows; ++j, to += 3) std::memcpy(to, from[j] + 3 * i, 4);
  }
  for (std::int64_t j = 0; j < rows; ++j, to += 3) std::memcpy(to, from[j] + 3 * (count - 1), 3);
}

/// Copies what a strip reads of a source, with its padding.
void hold_source(const Layer& layer, const Call& call, std::size_t s, const Hold& hold,
                 std::int64_t image, std::int64_t images, std::int64_t row, std::int64_t rows,
                 std::uint8_t* bytes) {
  const Source& source = call.sources[s];
  const Layout& layout = layer.layouts[s];
  const std::int64_t size = source.pixel, apart = layout.pixel;
  const int zero = s ? 0 : static_cast<int>(layer.origin);
  for (std::int64_t i = 0; i < images; ++i) {
    const std::uint8_t* const from =
        call.counts[s] + (image + i) * source.in[0] * source.in[1] * size + source.offset;
    for (std::int64_t f = 0; f < hold.planes; ++f) {
      std::uint8_t* to = bytes + i * hold.image + f * hold.plane;
      for (std::int64_t r = 0; r < rows + hold.below; ++r, to += hold.pitch) {
        const std::int64_t top = (row + r) * source.stride[0] + f - source.begin[0];
        const std::int64_t left = hold.begin * apart, held = hold.columns * apart;
        bool whole = true;
        for (std::int64_t j = 0; j < layout.together; ++j) {
          whole = whole && top + j >= 0 && top + j < source.in[0];
        }
        if (whole) {
          std::memset(to, zero, static_cast<std::size_t>(left));
          std::memset(to + left + held, zero, static_cast<std::size_t>(hold.pitch - left - held));
        } else {
          std::memset(to, zero, static_cast<std::size_t>(hold.pitch));
        }
        if (whole && source.channels == 3 && size == 3 && !hold.sparse) {
          const std::uint8_t* lines[most_together];
          for (std::int64_t j = 0; j < layout.together; ++j) {
            lines[j] = from + (top + j) * source.in[1] * size;
          }
          copy_colours(lines, layout.together, hold.columns, to + left);
          continue;
        }
        for (std::int64_t j = 0; j < layout.together; ++j) {
          if (top + j < 0 || top + j >= source.in[0]) continue;
          const std::uint8_t* const line = from + (top + j) * source.in[1] * size;
          std::uint8_t* const there = to + left + j * source.channels;
          if (!hold.sparse) {
            copy_pixels(line, size, hold.columns, source.channels, there, apart);
            continue;
          }
          for (std::int64_t x = 0; x < call.width; ++x) {
            const std::int64_t column = source.column(x, 0);
            if (column < 0 || column >= source.in[1]) {
              std::memset(there + x * apart, zero, static_cast<std::size_t>(source.channels));
            } else {
              std::memcpy(there + x * apart, line + column * size,
                          static_cast<std::size_t>(source.channels));
            }
          }
        }
      }
      // The padding behind the last row.
      std::memset(to, zero, static_cast<std::size_t>(std::min(hold.pitch, source.end[1] * apart)));
    }
  }
}

/// Sixteen channels of one pixel in plain C++.
void run_plain(const Strip& strip, std::int64_t unit, std::int64_t units) {
  const Layer& layer = strip.layer;
  for (const std::int64_t end = unit + units; unit < end; ++unit) {
    const std::int64_t count = channels_of(layer, unit), first = unit * unit_channels;
    for (const Run* run = strip.runs; run < strip.runs + strip.run_count; ++run) {
      for (std::int64_t i = 0; i < run->count; ++i) {
        std::int32_t sums[unit_channels];
        for (std::int64_t c = 0; c < unit_channels; ++c) sums[c] = layer.membrane[first + c];
        const std::int8_t* weights = layer.digits.get() + unit * layer.panels * panel;
        const std::int8_t* depth = layer.depth.data();
        for (std::size_t s = 0; s < layer.sources.size(); ++s) {
          const Held& held = strip.held[s];
          const std::uint8_t* const from = held.bytes + run->start[s] + i * held.apart;
          for (std::int64_t p = 0; p < layer.layouts[s].panels; ++p, weights += panel, ++depth) {
            const std::uint8_t* const counts = from + held.offsets[p];
            for (std::int64_t k = 0; k < *depth; ++k) {
              for (std::int64_t c = 0; c < unit_channels; ++c) {
                std::int32_t sum = 0;
                for (std::int64_t j = 0; j < 4; ++j) {
                  sum += static_cast<std::int32_t>(counts[4 * k + j]) *
                         static_cast<std::int32_t>(weights[k * 64 + c * 4 + j]);
                }
                sums[c] += sum;
              }
            }
          }
        }
        const std::int64_t place = (run->out + i) * layer.pixel + layer.offset + first;
        const std::uint8_t* const residual = strip.call.residual;
        fire(layer, strip.call.levels, unit, sums, residual ? residual + place : nullptr, count, strip.call.out + place);
      }
    }
  }
}

#if defined(__aarch64__) && defined(__linux__)

/// Sixteen channels of up to four pixels with NEON's products of bytes, which have a sign: of a count it
/// takes 128 off, and the sums begin with what that weighs.
template <int pixels>
void dot_neon(const Strip& strip, const std::int64_t* start, std::int64_t unit, std::int32_t* sums) {
  using Four __attribute__((vector_size(16))) = std::int32_t;
  constexpr int parts = unit_channels / 4;
  const Layer& layer = strip.layer;
  Four total[pixels][parts];
  for (int v = 0; v < parts; ++v) {
    for (int i = 0; i < pixels; ++i) load(layer.membrane.get() + unit * unit_channels + 4 * v, total[i][v]);
  }
  const std::int8_t* weights = layer.digits.get() + unit * layer.panels * panel;
  const std::int8_t* depth = layer.depth.data();
  for (std::size_t s = 0; s < layer.sources.size(); ++s) {
    const Held& held = strip.held[s];
    for (std::int64_t p = 0; p < layer.layouts[s].panels; ++p, weights += panel, ++depth) {
      const std::uint8_t* const counts = held.bytes + start[s] + held.offsets[p];
      for (std::int64_t k = 0; k < *depth; ++k) {
        Four row[parts];
        for (int v = 0; v < parts; ++v) load(weights + 64 * k + 16 * v, row[v]);
        for (int i = 0; i < pixels; ++i) {
          std::uint32_t four;
          std::memcpy(&four, counts + i * held.apart + 4 * k, sizeof(four));
          const auto signs = static_cast<std::int32_t>(four ^ 0x80808080u);
          const Four spread = {signs, signs, signs, signs};
          for (int v = 0; v < parts; ++v) {
            asm(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b"
                : "+w"(total[i][v])
                : "w"(row[v]), "w"(spread));
          }
        }
      }
    }
  }
  for (int i = 0; i < pixels; ++i) {
    for (int v = 0; v < parts; ++v) store(sums + i * unit_channels + 4 * v, total[i][v]);
  }
}

void run_neon(const Strip& strip, std::int64_t unit, std::int64_t units) {
  constexpr std::int64_t most = 4;
  constexpr decltype(&dot_neon<1>) dots[] = {dot_neon<1>, dot_neon<2>, dot_neon<3>, dot_neon<4>};
  const Layer& layer = strip.layer;
  for (const std::int64_t end = unit + units; unit < end; ++unit) {
    const std::int64_t channel = unit * unit_channels, count = channels_of(layer, unit);
    for (const Run* run = strip.runs; run < strip.runs + strip.run_count; ++run) {
      for (std::int64_t first = 0; first < run->count; first += most) {
        const std::int64_t here = std::min(most, run->count - first);
        std::int64_t start[max_sources];
        for (std::size_t s = 0; s < layer.sources.size(); ++s) {
          start[s] = run->start[s] + first * strip.held[s].apart;
        }
        std::int32_t sums[most * unit_channels];
        dots[here - 1](strip, start, unit, sums);
        for (std::int64_t i = 0; i < here; ++i) {
          const std::int64_t place = (run->out + first + i) * layer.pixel + layer.offset + channel;
          const std::uint8_t* const residual = strip.call.residual;
          fire(layer, strip.call.levels, unit, sums + i * unit_channels,
               residual ? residual + place : nullptr, count, strip.call.out + place);
        }
      }
    }
  }
}

#endif

/// Rows of a depthwise layer: weights and sums are whole numbers that float32 holds.
template <typename Set>
SNNC_BODY void depthwise_rows(const Layer& layer, const Call& call, std::int64_t image,
                              std::int64_t row, std::int64_t rows, std::int64_t unit,
                              std::int64_t units) {
  constexpr int vectors = unit_channels / lanes<Set>;
  const Source& source = call.sources[0];
  const std::int64_t all = layer.units * unit_channels;
  const std::uint8_t* const from = call.counts[0] + image * source.in[0] * source.in[1] * source.pixel;
  for (std::int64_t y = row; y < row + rows; ++y) {
    for (std::int64_t u = unit; u < unit + units; ++u) {
      const std::int64_t first = u * unit_channels, count = channels_of(layer, u);
      for (std::int64_t x = 0; x < call.width; ++x) {
        Floats<Set> sums[vectors];
        for (int v = 0; v < vectors; ++v) sums[v] = Floats<Set>{};
        for (std::int64_t ky = 0; ky < source.kernel[0]; ++ky) {
          const std::int64_t top = source.row(y, ky);
          if (top < 0 || top >= source.in[0]) continue;
          for (std::int64_t kx = 0; kx < source.kernel[1]; ++kx) {
            const std::int64_t left = source.column(x, kx);
            if (left < 0 || left >= source.in[1]) continue;
            const std::uint8_t* counts =
                from + (top * source.in[1] + left) * source.pixel + source.offset + first;
            std::uint8_t own[unit_channels] = {};
            if (count < unit_channels) {
              std::memcpy(own, counts, static_cast<std::size_t>(count));
              counts = own;
            }
            const float* const weights = layer.taps.get() + (ky * source.kernel[1] + kx) * all + first;
            for (int v = 0; v < vectors; ++v) {
              Ints<Set> wide;
              Set::widen_bytes(counts + v * lanes<Set>, wide);
              const Floats<Set> values = __builtin_convertvector(wide, Floats<Set>);
              Floats<Set> weight;
              load(weights + v * lanes<Set>, weight);
              Set::multiply_add(weight, values, sums[v]);
            }
          }
        }
        std::int32_t whole[unit_channels];
        for (int v = 0; v < vectors; ++v) {
          Ints<Set> potential;
          load(layer.membrane.get() + first + v * lanes<Set>, potential);
          potential = potential + __builtin_convertvector(sums[v], Ints<Set>);
          store(whole + v * lanes<Set>, potential);
        }
        const std::int64_t place =
            ((image * call.height + y) * call.width + x) * layer.pixel + layer.offset + first;
        fire(layer, call.levels, u, whole, call.residual ? call.residual + place : nullptr, count,
             call.out + place);
      }
    }
  }
}

void run_strip(const Strip& strip, std::int64_t unit, std::int64_t units) {
#ifdef SNNC_X86
  if (strip.layer.way != Way::plain) return run_x86(strip, unit, units);
#elif defined(__aarch64__) && defined(__linux__)
  if (strip.layer.way == Way::dotprod) return run_neon(strip, unit, units);
#endif
  run_plain(strip, unit, units);
}

}  // namespace

bool run(const Layer& layer, const Call& call, std::int64_t image, std::int64_t images,
         std::int64_t row, std::int64_t rows, std::int64_t unit, std::int64_t units) {
  if (layer.depthwise) {
    for (std::int64_t i = image; i < image + images; ++i) {
      on(best_isa(), [&](auto set) SNNC_INLINE {
        depthwise_rows<decltype(set)>(layer, call, i, row, rows, unit, units);
      });
    }
    return true;
  }
  // As many rows, then images, as are held at once.
  std::int64_t high = rows, together = 1;
  while (high > 1 && Plan(layer, call, 1, high).bytes > held_bytes) high = (high + 1) / 2;
  if (images > 1 && high == call.height) {
    const std::int64_t each = Plan(layer, call, 2, high).bytes / 2;
    together = std::clamp<std::int64_t>(held_bytes / std::max<std::int64_t>(each, 1), 1, images);
  }
  const Plan largest(layer, call, together, high);
  const std::int64_t most_runs = largest.one ? 1 : together * high;
  const std::int64_t most_tiles =
      together * ((largest.high * largest.across + tile_positions - 1) / tile_positions);
  std::int64_t tables = Scratch::room<Run>(most_runs) + Scratch::room<Tile>(most_tiles) +
                        Scratch::room<std::int32_t>(most_tiles * tile_positions);
  for (const Layout& layout : layer.layouts) tables += Scratch::room<std::int64_t>(layout.panels);
  static thread_local Scratch scratch;

  for (std::int64_t n = 0; n < images; n += together) {
    const std::int64_t now = std::min(together, images - n);
    for (std::int64_t y = 0; y < rows; y += high) {
      const std::int64_t here = std::min(high, rows - y);
      const Plan plan(layer, call, now, here);
      if (!scratch.reserve(plan.bytes + tables)) return false;
      const std::int64_t first_out = ((image + n) * call.height + row + y) * call.width;
      Strip strip{layer, call, {}, nullptr, 0, nullptr, 0, first_out, 16};
      for (std::size_t s = 0; s < layer.sources.size(); ++s) {
        const Source& source = call.sources[s];
        const Layout& layout = layer.layouts[s];
        const Hold& hold = plan.holds[s];
        Held& held = strip.held[s];
        held.bytes = scratch.take<std::uint8_t>(hold.bytes);
        held.apart = plan.one ? hold.image : hold.step * layout.pixel;
        held.offsets = scratch.take<std::int64_t>(layout.panels);
        std::int64_t* offset = held.offsets;
        for (std::int64_t lift = 0; lift < layout.lifts; ++lift) {
          const std::int64_t below = Layout::below(source, layout, lift);
          const std::int64_t line =
              below % source.stride[0] * hold.plane + below / source.stride[0] * hold.pitch;
          for (std::int64_t tap = 0; tap < layout.taps; ++tap) {
            for (std::int64_t i = 0; i < layout.panels_of_span(); ++i) {
              *offset++ = line + tap * source.dilation[1] * layout.pixel + i * panel_inputs;
            }
          }
        }
        hold_source(layer, call, s, hold, image + n, now, row + y, here, held.bytes);
      }
      const std::int64_t sources = static_cast<std::int64_t>(layer.sources.size());
      if (layer.way == Way::tiles) {
        Tile* const tiles = scratch.take<Tile>(most_tiles);
        std::int32_t* outs = scratch.take<std::int32_t>(most_tiles * tile_positions);
        Tile* tile = tiles;
        const std::int64_t groups = plan.one || plan.merged ? 1 : now;
        const std::int64_t of_group = now / groups;
        const std::int64_t positions =
            plan.one ? now : ((of_group - 1) * plan.high + here - 1) * plan.across + call.width;
        const std::int64_t of_tiles = (positions + tile_positions - 1) / tile_positions;
        for (std::int64_t g = 0; g < groups; ++g) {
          std::fill_n(outs, of_tiles * tile_positions, -1);
          if (plan.one) {
            std::iota(outs, outs + now, 0);
          } else {
            for (std::int64_t i = 0; i < of_group; ++i) {
              for (std::int64_t r = 0; r < here; ++r) {
                std::int32_t* const line = outs + (i * plan.high + r) * plan.across;
                const std::int64_t pixel = ((g + i) * here + r) * call.width;
                std::iota(line, line + call.width, static_cast<std::int32_t>(pixel));
              }
            }
          }
          for (std::int64_t t = 0; t < of_tiles; ++t, ++tile, outs += tile_positions) {
            for (std::int64_t s = 0; s < sources; ++s) {
              const std::int64_t begin = groups > 1 ? g * plan.holds[s].image : 0;
              tile->start[s] = begin + t * tile_positions * strip.held[s].apart;
            }
            tile->outs = outs;
          }
        }
        // Strips of several images have all of their rows, so their outputs follow each other.
        strip.tiles = tiles;
        strip.tile_count = tile - tiles;
        strip.rows = std::min(positions, tile_positions);
      } else {
        Run* const runs = scratch.take<Run>(most_runs);
        Run* run = runs;
        if (plan.one) {
          *run++ = {{0, 0}, first_out, now};
        } else {
          for (std::int64_t i = 0; i < now; ++i) {
            for (std::int64_t r = 0; r < here; ++r, ++run) {
              for (std::int64_t s = 0; s < sources; ++s) {
                run->start[s] = i * plan.holds[s].image + r * plan.holds[s].pitch;
              }
              run->out = first_out + (i * here + r) * call.width;
              run->count = call.width;
            }
          }
        }
        strip.runs = runs;
        strip.run_count = run - runs;
      }
      run_strip(strip, unit, units);
    }
  }
  return true;
}

namespace {

/// Rows of numbers, channels first, to bytes, channels last: `convert` makes bytes of up to 64 numbers of
/// a channel.
template <typename Convert>
SNNC_BODY void turn_row(const float* from, std::int64_t apart, std::int64_t width,
                        std::int64_t channels, std::uint8_t* out, const Convert& convert) {
  constexpr std::int64_t wide = 64, deep = 16;
  for (std::int64_t x = 0; x < width; x += wide) {
    const std::int64_t across = std::min(wide, width - x);
    for (std::int64_t first = 0; first < channels; first += deep) {
      const std::int64_t here = std::min(deep, channels - first);
      std::uint8_t bytes[deep][wide];
      for (std::int64_t c = 0; c < here; ++c) {
        convert(from + (first + c) * apart + x, first + c, across, bytes[c]);
      }
      std::uint8_t* to = out + x * channels + first;
      const auto turn = [&](auto count) SNNC_INLINE {
        for (std::int64_t i = 0; i < across; ++i, to += channels) {
          for (std::int64_t c = 0; c < count; ++c) to[c] = bytes[c][i];
        }
      };
      if (channels == 3) {
        // A fourth byte that goes along is overwritten by what follows.
        for (std::int64_t i = 0; i + 1 < across; ++i, to += 3) {
          const std::uint32_t pixel = static_cast<std::uint32_t>(bytes[0][i]) |
                                      static_cast<std::uint32_t>(bytes[1][i]) << 8 |
                                      static_cast<std::uint32_t>(bytes[2][i]) << 16;
          std::memcpy(to, &pixel, sizeof(pixel));
        }
        for (std::int64_t c = 0; c < 3; ++c) to[c] = bytes[c][across - 1];
      } else if (here == deep) {
        turn(std::integral_constant<std::int64_t, deep>{});
      } else {
        turn(here);
      }
    }
  }
}

}  // namespace

void fire_row(const float* current, std::int64_t apart, std::int64_t width, std::int64_t channels,
              const float* membrane, const float* threshold, std::int64_t levels, std::uint8_t* out,
              Isa isa) {
  const auto most = static_cast<float>(levels);
  on(isa, [&](auto set) SNNC_INLINE {
    (void)set;
    const auto convert = [&](const float* __restrict__ from, std::int64_t c, std::int64_t count,
                             std::uint8_t* __restrict__ fired) SNNC_INLINE {
      const float start = membrane[c], charge = threshold[c];
      const float rate = 1 / charge;
      for (std::int64_t i = 0; i < count; ++i) {
        // At most one too many or too few; the products, which do not round, put it right.
        // NaN fires nothing.
        const float v = start + from[i];
        float n = v * rate;
        n = n > 0 ? n : 0.0f;
        n = n < most ? n : most;
        n = static_cast<float>(static_cast<std::int32_t>(n));
        n -= n * charge > v ? 1.0f : 0.0f;
        n += (n + 1) * charge <= v ? 1.0f : 0.0f;
        n = n > 0 ? n : 0.0f;
        n = n < most ? n : most;
        fired[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(n));
      }
    };
    turn_row(current, apart, width, channels, out, convert);
  });
}

void level_row(const float* current, std::int64_t count, float membrane, float threshold,
               std::int64_t levels, float* counts, Isa isa) {
  const auto most = static_cast<float>(levels);
  const float rate = 1 / threshold;
  const double charge = threshold;
  on(isa, [&](auto set) SNNC_INLINE {
    (void)set;
    for (std::int64_t i = 0; i < count; ++i) {
      // At most one too many or too few; the products, which do not round in float64, put it right.
      // NaN fires nothing.
      const float v = membrane + current[i];
      float n = v * rate;
      n = n > 0 ? n : 0.0f;
      n = n < most ? n : most;
      n = static_cast<float>(static_cast<std::int32_t>(n));
      const double worth = static_cast<double>(n) * charge, potential = v;
      n -= worth > potential ? 1.0f : 0.0f;
      n += worth + charge <= potential ? 1.0f : 0.0f;
      n = n > 0 ? n : 0.0f;
      counts[i] = n < most ? n : most;
    }
  });
}

void grid_row(const float* values, std::int64_t apart, std::int64_t width, std::int64_t channels,
              const float* factor, float lowest, float highest, float origin, std::uint8_t* out,
              Isa isa) {
  on(isa, [&](auto set) SNNC_INLINE {
    (void)set;
    const auto convert = [&](const float* __restrict__ from, std::int64_t c, std::int64_t count,
                             std::uint8_t* __restrict__ bytes) SNNC_INLINE {
      // Added to 1.5·2^23 a number is rounded to a whole one, to the even one of two.
      constexpr float shift = 12582912;
      const float scale = factor[c];
      for (std::int64_t i = 0; i < count; ++i) {
        float n = from[i] * scale;
        n = n > lowest ? n : lowest;
        n = n < highest ? n : highest;
        n = (n + shift) - shift + origin;
        bytes[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(n));
      }
    };
    turn_row(values, apart, width, channels, out, convert);
  });
}

namespace {

/// The largest bytes of `count` pixels, of as many channels as a vector has.
template <typename Vector>
SNNC_BODY void largest_of(const std::uint8_t* const* taps, std::int64_t count, std::int64_t channel,
                          std::uint8_t* out) {
  Vector most{};
  for (std::int64_t t = 0; t < count; ++t) {
    Vector value;
    load(taps[t] + channel, value);
    most = most > value ? most : value;
  }
  store(out + channel, most);
}

template <typename Set>
using ManyBytes __attribute__((vector_size(Set::bytes))) = std::uint8_t;

}  // namespace

bool max_pool(const Source& source, const std::uint8_t* image, std::int64_t row, std::int64_t width,
              std::uint8_t* out, Isa isa) {
  const std::int64_t channels = source.pixel;
  static thread_local Scratch scratch;
  if (!scratch.reserve(Scratch::room<const std::uint8_t*>(source.kernel[0] * source.kernel[1]))) {
    return false;
  }
  const std::uint8_t** const taps =
      scratch.take<const std::uint8_t*>(source.kernel[0] * source.kernel[1]);
  on(isa, [&](auto set) SNNC_INLINE {
    using Set = decltype(set);
    for (std::int64_t x = 0; x < width; ++x, out += channels) {
      std::int64_t count = 0;
      for (std::int64_t ky = 0; ky < source.kernel[0]; ++ky) {
        const std::int64_t top = source.row(row, ky);
        if (top < 0 || top >= source.in[0]) continue;
        for (std::int64_t kx = 0; kx < source.kernel[1]; ++kx) {
          const std::int64_t left = source.column(x, kx);
          if (left < 0 || left >= source.in[1]) continue;
          taps[count++] = image + (top * source.in[1] + left) * channels;
        }
      }
      std::int64_t c = 0;
      for (; c + Set::bytes <= channels; c += Set::bytes) {
        largest_of<ManyBytes<Set>>(taps, count, c, out);
      }
      for (; c + Generic::bytes <= channels; c += Generic::bytes) {
        largest_of<ManyBytes<Generic>>(taps, count, c, out);
      }
      for (; c < channels; ++c) {
        out[c] = 0;
        for (std::int64_t t = 0; t < count; ++t) out[c] = std::max(out[c], taps[t][c]);
      }
    }
  });
  return true;
}

}  // namespace snnc::counts
