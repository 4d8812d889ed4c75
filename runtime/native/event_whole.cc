// Layers of which all weights are whole numbers of 8 bits, on processors without tiles.
//
// By events, rows of 16-bit integers are added: twice as many to a vector and to a cache line as floats.  Densely,
// four bytes of spikes are multiplied by four weights of every channel at a time.  All sums are exact, and what the
// neurons see are floats, so that the bits are those of every other way.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#include "event_strip.h"

namespace snnc::events {
namespace {

/// Rows that a sum of 16 bits holds for sure, in fours.
constexpr std::uint32_t most_fours = 32767 / 127 / 4;

// --- events --------------------------------------------------------------------------------------

/// Vectors of 16-bit integers, and how many make a block of channels.
template <typename Set, int units>
constexpr int short_bytes = units % 2 ? std::min(Set::bytes, 32) : Set::bytes;
template <typename Set, int units>
using Rows __attribute__((vector_size(short_bytes<Set, units>))) = std::int16_t;

/// Sums the weight rows of `jobs` jobs of one length: of the fours [first, last), and of the rest where these are the
/// last ones.  `goes_on` from the sums that are there; the static current, which need not be whole, comes last, if at
/// all.
template <typename Set, int units, int jobs>
SNNC_BODY void gather(const std::int16_t* weights, const Job* job, std::uint32_t first, std::uint32_t last,
                      bool goes_on, const Begin& begin, float* currents) {
  using Row = Rows<Set, units>;
  constexpr int vectors = units * 32 / static_cast<int>(sizeof(Row)), lanes_of_row = sizeof(Row) / 2;
  Row sum[jobs][vectors];
  const std::uint32_t* list[jobs];
  std::uint32_t base[jobs];
#pragma GCC unroll 8
  for (int j = 0; j < jobs; ++j) {
    list[j] = job[j].list;
    base[j] = job[j].base;
#pragma GCC unroll 8
    for (int r = 0; r < vectors; ++r) sum[j][r] = Row{};
  }
  const auto add = [&](int j, const std::int16_t* from) SNNC_INLINE {
#pragma GCC unroll 8
    for (int r = 0; r < vectors; ++r) {
      Row row;
      load(from + r * lanes_of_row, row);
      sum[j][r] = sum[j][r] + row;
    }
  };
  for (std::uint32_t i = 4 * first; i < 4 * last; i += 4) {
#pragma GCC unroll 4
    for (std::uint32_t k = 0; k < 4; ++k) {
#pragma GCC unroll 8
      for (int j = 0; j < jobs; ++j) add(j, weights + (base[j] + list[j][i + k]));
    }
  }
  if (last == job->fours) {
#pragma GCC unroll 4
    for (std::uint32_t k = 0; k < 4; ++k) {
#pragma GCC unroll 8
      for (int j = 0; j < jobs; ++j) add(j, weights + job[j].rest[k]);
    }
  }
  alignas(64) std::int16_t sums[16 * units];
#pragma GCC unroll 8
  for (int j = 0; j < jobs; ++j) {
#pragma GCC unroll 8
    for (int r = 0; r < vectors; ++r) store(sums + r * lanes_of_row, sum[j][r]);
    const float* const from = begin.values ? begin.values + job[j].pixel * begin.stride : nullptr;
    float* const to = currents + std::int64_t{job[j].place} * (16 * units);
#pragma GCC unroll 16
    for (int r = 0; r < units * per_unit<Set>; ++r) {
      Ints<Set> whole;
      Floats<Set> total, more;
      Set::widen_shorts(sums + r * lanes<Set>, whole);
      total = __builtin_convertvector(whole, Floats<Set>);
      if (goes_on) {
        load(to + r * lanes<Set>, more);
        total = total + more;
      }
      if (from) {
        load(from + r * lanes<Set>, more);
        total = total + more;
      }
      store(to + r * lanes<Set>, total);
    }
  }
}

/// Some jobs of one length, of which a sum of 16 bits may hold a part only.
template <typename Set, int units, int jobs>
SNNC_BODY void gather_in_parts(const std::int16_t* weights, const Job* job, bool goes_on, const Begin& begin,
                               float* currents) {
  const std::uint32_t all = job->fours;
  for (std::uint32_t first = 0;; goes_on = true) {
    const std::uint32_t last = std::min(first + most_fours - 1, all);
    gather<Set, units, jobs>(weights, job, first, last, goes_on, last == all ? begin : Begin{}, currents);
    if (last == all) return;
    first = last;
  }
}

template <typename Set, int units>
SNNC_BODY void gather_all(const Strip& strip, std::size_t s, const std::int16_t* weights, const Begin& begin) {
  const Begin here = s + 1 == strip.layer.source_count ? begin : Begin{};
  constexpr int most = together<units> < 4 ? 4 : together<units>;
  const Job* job = strip.inputs[s].sorted;
  const Job* const end = job + strip.tile.pixels() * strip.call.steps;
  while (job < end) {
    if (most <= end - job && job[most - 1].fours == job->fours) {
      gather_in_parts<Set, units, most>(weights, job, s > 0, here, strip.currents);
      job += most;
    } else {
      gather_in_parts<Set, units, 1>(weights, job, s > 0, here, strip.currents);
      job += 1;
    }
  }
}

// --- dense ---------------------------------------------------------------------------------------

/// Fours of inputs that are neighbours, and their weights.
struct Run {
  const std::uint8_t* bytes;  // of the first place
  std::size_t source;
  std::int64_t four, count;
};

/// A place at one time-step.
struct Cell {
  std::int64_t bytes[max_sources];  // from the first place of a run to this one's
  const float* begin;
  float* currents;
};

/// The currents of `cells` places and `vectors` vectors of channels from `offset` on.
template <typename Set, int cells, int vectors>
SNNC_BODY void multiply_tile(const Run* runs, const Run* runs_end, const Cell* cell, const std::int8_t* fours,
                             std::int64_t width, std::int64_t offset, std::int64_t levels) {
  // A sum of 16 bits holds so many fours.
  const std::int64_t limit = Set::narrow ? 32767 / (2 * 127 * levels) : 0;
  std::int64_t room = limit;
  Ints<Set> sum[cells][vectors], total[cells][vectors];
#pragma GCC unroll 16
  for (int p = 0; p < cells; ++p) {
#pragma GCC unroll 4
    for (int r = 0; r < vectors; ++r) sum[p][r] = total[p][r] = Ints<Set>{};
  }
  const auto widen = [&]() SNNC_INLINE {
#pragma GCC unroll 16
    for (int p = 0; p < cells; ++p) {
#pragma GCC unroll 4
      for (int r = 0; r < vectors; ++r) {
        total[p][r] += ((sum[p][r] << 16) >> 16) + (sum[p][r] >> 16);
        sum[p][r] = Ints<Set>{};
      }
    }
  };
  for (const Run* run = runs; run < runs_end; ++run) {
    const std::int8_t* weights = fours + (run->four * width + offset) * 4;
    const std::uint8_t* bytes[cells];
#pragma GCC unroll 16
    for (int p = 0; p < cells; ++p) bytes[p] = run->bytes + cell[p].bytes[run->source];
    for (std::int64_t k = 0; k < run->count;) {
      const std::int64_t end = Set::narrow ? std::min(run->count, k + room) : run->count;
      if constexpr (Set::narrow) room -= end - k;
      for (; k < end; ++k, weights += 4 * width) {
        Ints<Set> weight[vectors];
#pragma GCC unroll 4
        for (int r = 0; r < vectors; ++r) load(weights + r * Set::bytes, weight[r]);
#pragma GCC unroll 16
        for (int p = 0; p < cells; ++p) {
          Ints<Set> spikes;
          Set::spread_bytes(bytes[p] + 4 * k, spikes);
#pragma GCC unroll 4
          for (int r = 0; r < vectors; ++r) Set::add_products(weight[r], spikes, sum[p][r]);
        }
      }
      if constexpr (Set::narrow) {
        if (!room) {
          widen();
          room = limit;
        }
      }
    }
  }
  if constexpr (Set::narrow) widen();
#pragma GCC unroll 16
  for (int p = 0; p < cells; ++p) {
#pragma GCC unroll 4
    for (int r = 0; r < vectors; ++r) {
      Floats<Set> before;
      load(cell[p].begin + offset + r * lanes<Set>, before);
      const Ints<Set>& whole = Set::narrow ? total[p][r] : sum[p][r];
      store(cell[p].currents + offset + r * lanes<Set>, __builtin_convertvector(whole, Floats<Set>) + before);
    }
  }
}

/// Copies what an output row sees at one step, kernel row by kernel row, with the padding beside it.
inline void copy_bytes(const Strip& strip, std::int64_t y, std::int64_t t, std::uint8_t* to) {
  const Layer& layer = strip.layer;
  for (std::size_t s = 0; s < layer.source_count; ++s) {
    const Source& source = layer.sources[s];
    const std::int64_t of_pixel = 4 * source.fours(), begin = source.column(strip.tile.left, 0);
    const std::int64_t end = source.column(strip.tile.right - 1, source.kernel[1] - 1) + 1;
    const std::int64_t from = std::clamp<std::int64_t>(0, begin, end);
    const std::int64_t until = std::clamp<std::int64_t>(source.in[1], from, end);
    const std::int64_t size = (end - begin) * of_pixel;
    for (std::int64_t kh = 0; kh < source.kernel[0]; ++kh, to += size) {
      const std::int64_t row = source.row(y, kh);
      if (row < 0 || row >= source.in[0]) continue;
      std::uint8_t *const first = to + (from - begin) * of_pixel, *const last = to + (until - begin) * of_pixel;
      std::memset(to, 0, static_cast<std::size_t>(first - to));
      std::memset(last, 0, static_cast<std::size_t>(to + size - last));
      const std::uint8_t* spikes = strip.spikes(s, t, row) + from * source.pixel;
      if (source.channels == source.pixel && source.channels == of_pixel) {
        std::memcpy(first, spikes, static_cast<std::size_t>(last - first));
        continue;
      }
      for (std::uint8_t* pixel = first; pixel < last; pixel += of_pixel, spikes += source.pixel) {
        std::memcpy(pixel, spikes, static_cast<std::size_t>(source.channels));
        std::memset(pixel + source.channels, 0, static_cast<std::size_t>(of_pixel - source.channels));
      }
    }
    to += 64;  // as `bytes_of`
  }
}

/// The runs of the receptive fields of an output row; `bytes` is where `copy_bytes` wrote.
inline Run* list_runs(const Strip& strip, std::int64_t y, const std::uint8_t* bytes, Run* run) {
  for (std::size_t s = 0; s < strip.layer.source_count; ++s) {
    const Source& source = strip.layer.sources[s];
    const std::int64_t fours = source.fours(), span = source.dilation[1] == 1 ? source.kernel[1] : 1;
    const std::int64_t size = (bytes_of(source, strip.tile.columns()) - 64) / source.kernel[0];
    for (std::int64_t kh = 0; kh < source.kernel[0]; ++kh, bytes += size) {
      if (source.row(y, kh) < 0 || source.row(y, kh) >= source.in[0]) continue;
      for (std::int64_t kw = 0; kw < source.kernel[1]; kw += span, ++run) {
        const std::int64_t four = (kh * source.kernel[1] + kw) * fours;
        *run = {bytes + kw * source.dilation[1] * fours * 4, s, strip.layer.weights->first_four[s] + four,
                span * fours};
      }
    }
    bytes += 64;
  }
  return run;
}

template <typename Set, int units>
SNNC_BODY void multiply_all(const Strip& strip, const std::int8_t* fours, const Begin& begin) {
  constexpr std::int64_t width = 16 * units;
  constexpr int vectors = Set::dense_vectors(units), most = Set::dot_pixels(vectors);
  const Layer& layer = strip.layer;
  const Tile& tile = strip.tile;
  const std::int64_t steps = strip.call.steps, columns = tile.columns(), levels = layer.weights->most_levels;
  std::int64_t of_step = 0, apart[max_sources] = {};
  for (std::size_t s = 0; s < layer.source_count; ++s) {
    of_step += bytes_of(layer.sources[s], columns);
    apart[s] = layer.sources[s].stride[1] * layer.sources[s].fours() * 4;
  }
  Run runs[max_sources * max_kernel * max_kernel];
  const std::int64_t shared = strip.dense_steps;
  for (std::int64_t first = 0; first < steps; first += shared) {
    const std::int64_t here = std::min(shared, steps - first), count = here * columns;
    for (std::int64_t y = tile.top; y < tile.bottom; ++y) {
      for (std::int64_t t = 0; t < here; ++t) copy_bytes(strip, y, first + t, strip.bytes + t * of_step);
      const Run* const runs_end = list_runs(strip, y, strip.bytes, runs);
      const float* const row_begin = begin.values + (y - tile.top) * columns * begin.stride;
      float* const row_currents = strip.currents + ((y - tile.top) * columns * steps + first) * width;
      std::int64_t t = 0, x = 0;
      const auto some = [&](auto number) SNNC_INLINE {
        constexpr int cells = decltype(number)::value;
        Cell cell[cells];
        for (int i = 0; i < cells; ++i) {
          for (std::size_t s = 0; s < max_sources; ++s) cell[i].bytes[s] = t * of_step + x * apart[s];
          cell[i].begin = row_begin + x * begin.stride;
          cell[i].currents = row_currents + (x * steps + t) * width;
          // Where none are left, the last one is computed again.
          if (x + 1 < columns) {
            ++x;
          } else if (t + 1 < here) {
            x = 0;
            ++t;
          }
        }
        for (std::int64_t r = 0; r < width; r += vectors * lanes<Set>) {
          multiply_tile<Set, cells, vectors>(runs, runs_end, cell, fours, width, r, levels);
        }
      };
      std::int64_t from = 0;
      for (; count - from > most / 2; from += most) some(std::integral_constant<int, most>{});
      if (from < count) some(std::integral_constant<int, (most + 1) / 2>{});
    }
  }
}

/// Calls body(units) for a number known when this is compiled.
template <typename Body>
SNNC_BODY void with_units(std::int64_t units, const Body& body) {
  switch (units) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    default:
      return body(std::integral_constant<int, 4>{});
  }
}

}  // namespace

std::int64_t bytes_of(const Source& source, std::int64_t columns) {
  const std::int64_t span = source.column(columns - 1, source.kernel[1] - 1) - source.column(0, 0) + 1;
  return span * source.kernel[0] * source.fours() * 4 + 64;
}

void gather_whole(const Strip& strip, std::size_t s, std::int64_t block, const Begin& begin) {
  const Weights& weights = *strip.layer.weights;
  const std::int16_t* const rows = weights.whole_values.get() + block * (weights.rows + 1) * weights.width();
  on(strip.isa, [&](auto set) SNNC_INLINE {
    using Set = decltype(set);
    with_units(weights.units, [&](auto units) SNNC_INLINE {
      Set::apart([&]() SNNC_INLINE { gather_all<Set, decltype(units)::value>(strip, s, rows, begin); });
    });
  });
}

void multiply_whole(const Strip& strip, std::int64_t block, const Begin& begin) {
  const Weights& weights = *strip.layer.weights;
  const std::int8_t* const fours = weights.fours.get() + block * weights.four_count * weights.width() * 4;
  on_products(strip.isa, [&](auto set) SNNC_INLINE {
    using Set = decltype(set);
    with_units(weights.units, [&](auto units) SNNC_INLINE {
      Set::apart([&]() SNNC_INLINE { multiply_all<Set, decltype(units)::value>(strip, fours, begin); });
    });
  });
}

bool Weights::are_small_and_whole(const std::vector<Source>& sources, const float* const* from) const {
  // A sum that is made in parts, as by events, has to be a float all the way.
  std::vector<double> together(static_cast<std::size_t>(channels));
  for (std::size_t s = 0; s < sources.size(); ++s) {
    const float* weight = from[s];
    for (std::int64_t i = 0; i < sources[s].rows(); ++i) {
      for (double& sum : together) {
        const float size = std::fabs(*weight++);
        if (!(size <= one_digit && std::trunc(size) == size)) return false;
        sum += static_cast<double>(size) * static_cast<double>(sources[s].levels);
      }
    }
  }
  return *std::max_element(together.begin(), together.end()) < 0x1p24;
}

void Weights::pack_whole(const std::vector<Source>& sources, const float* const* from) {
  const std::int64_t across = width(), size = blocks * (rows + 1) * across;
  for (std::size_t s = 0; s < sources.size(); ++s) {
    first_four[s] = four_count;
    four_count += sources[s].kernel[0] * sources[s].kernel[1] * sources[s].fours();
  }
  whole_values = allocate<std::int16_t>(size);
  fours = allocate<std::int8_t>(blocks * four_count * across * 4);
  if (!whole_values || !fours) throw std::bad_alloc();
  std::fill_n(whole_values.get(), size, std::int16_t{0});
  std::fill_n(fours.get(), blocks * four_count * across * 4, std::int8_t{0});
  for (std::size_t s = 0; s < sources.size(); ++s) {
    const Source& source = sources[s];
    const float* weight = from[s];
    for (std::int64_t kh = 0; kh < source.kernel[0]; ++kh) {
      for (std::int64_t kw = 0; kw < source.kernel[1]; ++kw) {
        // Column by column, as spikes are listed, and row by row, as they lie.
        const std::int64_t row = first_row[s] + (kw * source.kernel[0] + kh) * source.channels;
        const std::int64_t four = first_four[s] + (kh * source.kernel[1] + kw) * source.fours();
        for (std::int64_t i = 0; i < source.channels; ++i) {
          for (std::int64_t c = 0; c < channels; ++c, ++weight) {
            const std::int64_t block = c / across, channel = c % across;
            whole_values[(block * (rows + 1) + row + i) * across + channel] = static_cast<std::int16_t>(*weight);
            fours[((block * four_count + four + i / 4) * across + channel) * 4 + i % 4] =
                static_cast<std::int8_t>(*weight);
          }
        }
      }
    }
  }
}

}  // namespace snnc::events
