#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

#include "event_strip.h"

namespace snnc::events {

namespace {

constexpr std::int64_t max_runs = max_sources * max_kernel;

/// Of the sums of eight weight rows.  One more than there are: the first row of every table is used
/// most, and with 256 they would all fall into one set of the cache.
constexpr std::int64_t table_height = 257;

/// A layer has tables if they fit the second-level cache: inputs of a neuron times channels.
constexpr std::int64_t largest_table = 320 * 32;

/// As `jobs_of_one_block`, where a layer has more of them, for which spikes are listed but once.
constexpr std::int64_t jobs_of_many_blocks = 1024;

/// Dense arithmetic takes as many time-steps together as make so many places.
constexpr std::int64_t dense_cells = 24;

// --- spikes as bits ------------------------------------------------------------------------------

/// Turns the input rows that a tile sees into masks.
template <typename Set>
SNNC_BODY void mask_rows(const Strip& strip, std::size_t s) {
  const Source& source = strip.layer.sources[s];
  const std::int64_t sixteens = source.sixteens();
  const std::int64_t last = source.row(strip.tile.bottom - 1, source.kernel[0] - 1);
  const auto clear = [](std::uint16_t* from, const std::uint16_t* to) {
    std::memset(from, 0, static_cast<std::size_t>(to - from) * sizeof(*from));
  };
  for (std::int64_t row = source.row(strip.tile.top, 0); row <= last; ++row) {
    for (std::int64_t t = 0; t < strip.call.steps; ++t) {
      for (std::int64_t level = 0; level < source.levels; ++level) {
        std::uint16_t* const begin = strip.masks(s, row, t, level);
        std::uint16_t* const end = begin + source.masks();
        if (row < 0 || row >= source.in[0]) {
          clear(begin, end);
          continue;
        }
        const std::uint8_t* from = strip.spikes(s, t, row);
        const auto above = static_cast<std::uint8_t>(level);
        std::uint16_t* to = begin + source.begin[1] * sixteens;
        clear(begin, to);
        if (source.channels % 16 == 0 && source.channels == source.pixel) {
          Set::masks(from, source.in[1] * source.channels, above, to);
          to += source.in[1] * sixteens;
        } else {
          for (std::int64_t x = 0; x < source.in[1]; ++x, from += source.pixel, to += sixteens) {
            Set::masks(from, source.channels, above, to);
          }
        }
        clear(to, end);
      }
    }
  }
}

/// Kernel rows (or columns) that lie inside the input, over the output rows (columns) [first, last).
inline std::int64_t taps_in(const Source& source, int axis, std::int64_t first, std::int64_t last) {
  std::int64_t taps = 0;
  for (std::int64_t k = 0; k < source.kernel[axis]; ++k) {
    const std::int64_t before = source.begin[axis] - k * source.dilation[axis];
    // at * stride is in [before, before + in)
    const auto up = [&](std::int64_t place) {
      return std::clamp((place + source.stride[axis] - 1) / source.stride[axis], first, last);
    };
    taps += up(std::max<std::int64_t>(before + source.in[axis], 0)) - up(std::max<std::int64_t>(before, 0));
  }
  return taps;
}

/// Weight rows that the spikes of a tile add up, about, and that dense arithmetic multiplies.
struct Cost {
  double events, products;
};

/// What the addition of a row, and what a job, cost in multiplications of a row.  Measured: an addition from the
/// second-level cache costs two multiplications, and a job as much as some twenty additions of four vectors.
struct Price {
  double event, job;
};

/// The same for rows of 16-bit integers against products of bytes, of four inputs at a time.
inline Price price_of_whole(Isa isa) {
  switch (isa) {
    case Isa::generic:
      return {1.5, 20};
    case Isa::avx2:
      return {2.6, 60};
    case Isa::avx512f:
      return {2.4, 80};
    case Isa::avxvnni:
      return {3.6, 100};
    default:
      return {4.2, 150};
  }
}

inline Cost cost_of(const Strip& strip, std::size_t s) {
  const Source& source = strip.layer.sources[s];
  const Tile& tile = strip.tile;
  const std::int64_t first = source.row(tile.top, 0);
  const std::int64_t rows = source.row(tile.bottom - 1, source.kernel[0] - 1) - first + 1;
  const std::uint16_t* mask = strip.masks(s, first, 0, 0);
  const std::uint16_t* const end = mask + rows * strip.call.steps * source.levels * source.masks();
  std::int64_t spikes = 0;
  for (; end - mask >= 4; mask += 4) {
    std::uint64_t four;
    std::memcpy(&four, mask, sizeof(four));
    spikes += __builtin_popcountll(four);
  }
  for (; mask < end; ++mask) spikes += __builtin_popcount(*mask);
  const auto down = static_cast<double>(taps_in(source, 0, tile.top, tile.bottom));
  const auto across = static_cast<double>(taps_in(source, 1, tile.left, tile.right));
  const std::int64_t seen =
      (std::min(first + rows, source.in[0]) - std::max<std::int64_t>(first, 0)) * source.in[1];
  return {seen > 0 ? static_cast<double>(spikes) * down * across / static_cast<double>(seen) : 0.0,
          down * static_cast<double>(tile.columns() * source.kernel[1] * source.channels *
                                     strip.call.steps)};
}

// --- events --------------------------------------------------------------------------------------

/// Lists what every place of a tile sees as jobs, sorted by length.  Spikes are listed column by
/// column of the input, so that a receptive field is one piece of a list.
template <typename Set, int units>
SNNC_BODY void list_jobs(const Strip& strip, std::size_t s) {
  const Layer& layer = strip.layer;
  const Source& source = layer.sources[s];
  const Tile& tile = strip.tile;
  constexpr std::uint32_t width = 16 * units;
  const std::int64_t steps = strip.call.steps, levels = source.levels, channels = source.channels;
  const std::int64_t sixteens = source.sixteens(), dilation = source.dilation[1];
  const typename Set::Lister list(width);
  const auto nothing = static_cast<std::uint32_t>(layer.weights->rows) * width;
  const auto first_row = static_cast<std::uint32_t>(layer.weights->first_row[s]) * width;
  const auto of_column = static_cast<std::uint32_t>(source.kernel[0] * channels) * width;
  const std::int64_t level_apart = source.masks(), step_apart = levels * level_apart;
  const std::int64_t row_apart = source.dilation[0] * steps * step_apart;
  // The columns that the tile sees.  With dilation, those of one residue are neighbours in a list,
  // because a window sees no others.
  const std::int64_t from = std::clamp<std::int64_t>(source.column(tile.left, 0), 0, source.in[1]);
  const std::int64_t to = std::clamp<std::int64_t>(
      source.column(tile.right - 1, source.kernel[1] - 1) + 1, from, source.in[1]);
  const auto number_of = [=](std::int64_t residue) {
    return std::max<std::int64_t>(0, (to - from - residue + dilation - 1) / dilation);
  };

  std::uint32_t* const starts = strip.starts;
  std::uint32_t* const counts = strip.counts;
  std::memset(counts, 0, static_cast<std::size_t>(strip.lengths) * sizeof(*counts));
  std::uint32_t* end = strip.inputs[s].lists;
  Job* job = strip.inputs[s].jobs;
  for (std::int64_t y = tile.top; y < tile.bottom; ++y) {
    std::int64_t kh_begin = 0, kh_end = source.kernel[0];
    while (kh_begin < kh_end && source.row(y, kh_begin) < 0) ++kh_begin;
    while (kh_end > kh_begin && source.row(y, kh_end - 1) >= source.in[0]) --kh_end;
    const auto first = static_cast<std::uint32_t>(kh_begin * channels) * width;
    for (std::int64_t t = 0; t < steps; ++t) {
      const std::uint32_t* const begin = end;
      const std::uint16_t* const masks =
          strip.masks(s, source.row(y, kh_begin), t, 0) + (source.begin[1] + from) * sixteens;
      std::uint32_t* start = starts;
      for (std::int64_t residue = 0; residue < dilation; ++residue) {
        const std::int64_t number = number_of(residue);
        for (std::int64_t x = 0; x < number; ++x) {
          *start++ = static_cast<std::uint32_t>(end - begin);
          const std::uint16_t* mask = masks + (x * dilation + residue) * sixteens;
          std::uint32_t place = static_cast<std::uint32_t>(x) * of_column + first;
          for (std::int64_t kh = kh_begin; kh < kh_end; ++kh, mask += row_apart) {
            for (std::int64_t c = 0; c < sixteens; ++c) {
              const std::uint32_t here = place + static_cast<std::uint32_t>(c) * (16 * width);
              std::int64_t level = 0;
              do {
                end = list(mask[c + level * level_apart], here, end);
              } while (++level < levels);
            }
            place += static_cast<std::uint32_t>(channels) * width;
          }
        }
      }
      *start = static_cast<std::uint32_t>(end - begin);

      auto pixel = static_cast<std::uint32_t>((y - tile.top) * tile.columns());
      for (std::int64_t x = tile.left; x < tile.right; ++x, ++job, ++pixel) {
        std::int64_t column = source.column(x, 0) - from, number = to - from;
        const std::uint32_t* columns = starts;
        if (dilation > 1) {
          const std::int64_t residue = (column % dilation + dilation) % dilation;
          for (std::int64_t r = 0; r < residue; ++r) columns += number_of(r);
          column = (column - residue) / dilation;
          number = number_of(residue);
        }
        const std::uint32_t seen = columns[std::clamp<std::int64_t>(column, 0, number)];
        const std::uint32_t count =
            columns[std::clamp<std::int64_t>(column + source.kernel[1], 0, number)] - seen;
        job->list = begin + seen;
        job->fours = (count - (count > 0)) / 4;
        job->base = first_row - static_cast<std::uint32_t>(column) * of_column;
        Four rest;
        load(job->list + 4 * job->fours, rest);
        const Four left = Four{} + (count - 4 * job->fours);
        rest = left > Four{0, 1, 2, 3} ? rest + job->base : Four{} + nothing;
        store(job->rest, rest);
        job->place = pixel * static_cast<std::uint32_t>(steps) + static_cast<std::uint32_t>(t);
        job->pixel = pixel;
        ++counts[job->fours];
      }
    }
  }
  std::uint32_t before = 0;
  for (std::int64_t i = 0; i < strip.lengths; ++i) {
    const std::uint32_t here = counts[i];
    counts[i] = before;
    before += here;
  }
  Job* const sorted = strip.inputs[s].sorted;
  for (const Job* j = strip.inputs[s].jobs; j < job; ++j) sorted[counts[j->fours]++] = *j;
}

/// Sums the weight rows of `jobs` jobs of one length.
template <typename Set, int units, int jobs>
SNNC_BODY void gather(const float* weights, const Job* job, const float* begin,
                      std::int64_t stride, std::uint32_t Job::*which, float* currents) {
  constexpr int vectors = units * per_unit<Set>;
  Floats<Set> sum[jobs][vectors];
  const std::uint32_t* list[jobs];
  std::uint32_t base[jobs];
#pragma GCC unroll 8
  for (int j = 0; j < jobs; ++j) {
    list[j] = job[j].list;
    base[j] = job[j].base;
#pragma GCC unroll 16
    for (int r = 0; r < vectors; ++r) {
      load(begin + job[j].*which * stride + r * lanes<Set>, sum[j][r]);
    }
  }
  const std::uint32_t count = 4 * job->fours;
  for (std::uint32_t i = 0; i < count; i += 4) {
#pragma GCC unroll 4
    for (std::uint32_t k = 0; k < 4; ++k) {
#pragma GCC unroll 8
      for (int j = 0; j < jobs; ++j) {
        add_row<Set, vectors>(weights + (base[j] + list[j][i + k]), sum[j]);
      }
    }
  }
#pragma GCC unroll 4
  for (std::uint32_t k = 0; k < 4; ++k) {
#pragma GCC unroll 8
    for (int j = 0; j < jobs; ++j) add_row<Set, vectors>(weights + job[j].rest[k], sum[j]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < jobs; ++j) {
    float* to = currents + std::int64_t{job[j].place} * (16 * units);
#pragma GCC unroll 16
    for (int r = 0; r < vectors; ++r) store(to + r * lanes<Set>, sum[j][r]);
  }
}

/// The currents of a tile by events.
template <typename Set, int units>
SNNC_BODY void gather_all(const Strip& strip, std::size_t s, const float* weights,
                          const Begin& begin) {
  // The second source goes on from the currents of the first.
  const float* const from = s ? strip.currents : begin.values;
  const std::int64_t stride = s ? 16 * units : begin.stride;
  std::uint32_t Job::*const which = s ? &Job::place : &Job::pixel;
  const Job* job = strip.inputs[s].sorted;
  const Job* const end = job + strip.tile.pixels() * strip.call.steps;
  const auto alike = [&](std::int64_t number) {
    return number <= end - job && job[number - 1].fours == job->fours;
  };
  while (job < end) {
    if (alike(together<units>)) {
      gather<Set, units, together<units>>(weights, job, from, stride, which, strip.currents);
      job += together<units>;
    } else if (together<units> > 2 && alike(2)) {
      gather<Set, units, 2>(weights, job, from, stride, which, strip.currents);
      job += 2;
    } else {
      gather<Set, units, 1>(weights, job, from, stride, which, strip.currents);
      job += 1;
    }
  }
}

// --- tables --------------------------------------------------------------------------------------

/// The currents of `pixels` pixels next to each other at one step: the masks of a receptive field,
/// eight inputs at a time, choose rows of the tables.
template <typename Set, int units, int pixels>
SNNC_BODY void look_up(const Source& source, const std::uint8_t* const* rows, std::int64_t x,
                       const float* table, const float* begin, std::int64_t begin_stride,
                       float* currents, std::int64_t stride) {
  constexpr int vectors = units * per_unit<Set>, width = 16 * units;
  const std::int64_t of_pixel = source.sixteens() * 2;
  const std::int64_t apart = source.stride[1] * of_pixel;
  const std::int64_t span = source.dilation[1] == 1 ? source.kernel[1] : 1;
  Floats<Set> sum[pixels][vectors];
#pragma GCC unroll 8
  for (int p = 0; p < pixels; ++p) {
#pragma GCC unroll 16
    for (int r = 0; r < vectors; ++r) load(begin + p * begin_stride + r * lanes<Set>, sum[p][r]);
  }
  for (std::int64_t kh = 0; kh < source.kernel[0]; ++kh) {
    for (std::int64_t kw = 0; kw < source.kernel[1]; kw += span) {
      const std::uint8_t* masks = rows[kh] + x * apart + kw * source.dilation[1] * of_pixel;
      const std::uint8_t* const end = masks + span * of_pixel;
      for (; masks < end; ++masks, table += table_height * width) {
#pragma GCC unroll 8
        for (int p = 0; p < pixels; ++p) {
          add_row<Set, vectors>(table + std::size_t{masks[p * apart]} * width, sum[p]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < pixels; ++p) {
#pragma GCC unroll 16
    for (int r = 0; r < vectors; ++r) store(currents + p * stride + r * lanes<Set>, sum[p][r]);
  }
}

/// The currents of a tile by tables.
template <typename Set, int units>
SNNC_BODY void look_up_all(const Strip& strip, std::size_t s, const float* tables,
                           const Begin& begin) {
  const Source& source = strip.layer.sources[s];
  const Tile& tile = strip.tile;
  const std::int64_t steps = strip.call.steps, columns = tile.columns();
  constexpr std::int64_t width = 16 * units;
  const float* const table = tables + strip.layer.weights->first_table_row[s] * width;
  const std::int64_t left = (source.column(tile.left, 0) + source.begin[1]) * source.sixteens();
  const std::uint8_t* rows[max_kernel];
  for (std::int64_t y = tile.top; y < tile.bottom; ++y) {
    for (std::int64_t t = 0; t < steps; ++t) {
      for (std::int64_t kh = 0; kh < source.kernel[0]; ++kh) {
        rows[kh] =
            reinterpret_cast<const std::uint8_t*>(strip.masks(s, source.row(y, kh), t, 0) + left);
      }
      std::int64_t x = 0;
      const auto some = [&](auto number) SNNC_INLINE {
        constexpr int pixels = decltype(number)::value;
        for (; x + pixels <= columns; x += pixels) {
          const std::int64_t pixel = (y - tile.top) * columns + x;
          float* currents = strip.currents + (pixel * steps + t) * width;
          look_up<Set, units, pixels>(source, rows, x, table,
                                      s ? currents : begin.values + pixel * begin.stride,
                                      s ? steps * width : begin.stride, currents, steps * width);
        }
      };
      some(std::integral_constant<int, together<units>>{});
      if constexpr (together<units> > 2) some(std::integral_constant<int, 2>{});
      some(std::integral_constant<int, 1>{});
    }
  }
}

// --- dense ---------------------------------------------------------------------------------------

/// Inputs of a receptive field that are neighbours, and their weights.
struct Run {
  const float* values;  // of the first place
  std::size_t source;
  std::int64_t row;
  std::int64_t count;
};

/// A place at one time-step, for dense arithmetic.
struct Cell {
  std::int64_t values[max_sources];  // from the first place of a run to this one's
  const float* begin;
  float* currents;
};

template <typename Set, int cells, int vectors>
SNNC_BODY void multiply_tile(const Run* runs, const Run* runs_end, const Cell* cell,
                             const float* weights, std::int64_t width, std::int64_t offset) {
  Floats<Set> sum[cells][vectors];
#pragma GCC unroll 8
  for (int p = 0; p < cells; ++p) {
#pragma GCC unroll 16
    for (int r = 0; r < vectors; ++r) load(cell[p].begin + offset + r * lanes<Set>, sum[p][r]);
  }
  for (const Run* run = runs; run < runs_end; ++run) {
    const std::int64_t count = run->count;
    const float* row = weights + run->row * width + offset;
    const float* values[cells];
#pragma GCC unroll 8
    for (int p = 0; p < cells; ++p) values[p] = run->values + cell[p].values[run->source];
    for (std::int64_t k = 0; k < count; ++k, row += width) {
      Floats<Set> weight[vectors];
#pragma GCC unroll 16
      for (int r = 0; r < vectors; ++r) load(row + r * lanes<Set>, weight[r]);
#pragma GCC unroll 8
      for (int p = 0; p < cells; ++p) {
        Floats<Set> value;
        Set::spread(values[p] + k, value);
#pragma GCC unroll 16
        for (int r = 0; r < vectors; ++r) Set::multiply_add(weight[r], value, sum[p][r]);
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < cells; ++p) {
#pragma GCC unroll 16
    for (int r = 0; r < vectors; ++r) store(cell[p].currents + offset + r * lanes<Set>, sum[p][r]);
  }
}

/// The same for a number of cells, at most `most`, that is known at run time.
template <typename Set, int most, int vectors>
SNNC_BODY void multiply_cells(std::int64_t cells, const Run* runs, const Run* runs_end,
                              const Cell* cell, const float* weights, std::int64_t width,
                              std::int64_t offset) {
  if constexpr (most > 1) {
    if (cells < most) {
      return multiply_cells<Set, most - 1, vectors>(cells, runs, runs_end, cell, weights, width,
                                                    offset);
    }
  }
  multiply_tile<Set, most, vectors>(runs, runs_end, cell, weights, width, offset);
}

/// Floats that an output row needs of a source at one step.
inline std::int64_t values_of(const Source& source, const Tile& tile) {
  const std::int64_t begin = source.column(tile.left, 0);
  const std::int64_t end = source.column(tile.right - 1, source.kernel[1] - 1) + 1;
  return (end - begin) * source.kernel[0] * source.channels;
}

/// Writes the inputs that an output row sees at one step as floats, the rows of a column next to
/// each other, with the padding beside them; nothing for rows that are padding altogether.
template <typename Set>
SNNC_BODY void write_values(const Strip& strip, std::int64_t y, std::int64_t t, float* to) {
  const Layer& layer = strip.layer;
  for (std::size_t s = 0; s < layer.source_count; ++s) {
    const Source& source = layer.sources[s];
    const std::int64_t channels = source.channels, of_column = source.kernel[0] * channels;
    const std::int64_t begin = source.column(strip.tile.left, 0);
    const std::int64_t end = source.column(strip.tile.right - 1, source.kernel[1] - 1) + 1;
    const auto silent = static_cast<std::size_t>(channels) * sizeof(float);
    for (std::int64_t kh = 0; kh < source.kernel[0]; ++kh) {
      const std::int64_t row = source.row(y, kh);
      if (row < 0 || row >= source.in[0]) continue;
      const std::int64_t from = std::clamp<std::int64_t>(begin, 0, source.in[1]);
      const std::int64_t until = std::min(end, source.in[1]);
      const std::uint8_t* spikes = strip.spikes(s, t, row) + from * source.pixel;
      float* place = to + kh * channels;
      std::int64_t x = begin;
      for (; x < std::min(from, end); ++x, place += of_column) std::memset(place, 0, silent);
      for (; x < until; ++x, place += of_column, spikes += source.pixel) {
        std::int64_t c = 0;
        for (; c + lanes<Set> <= channels; c += lanes<Set>) {
          Ints<Set> values;
          Set::widen_bytes(spikes + c, values);
          store(place + c, __builtin_convertvector(values, Floats<Set>));
        }
        for (; c < channels; ++c) place[c] = static_cast<float>(spikes[c]);
      }
      for (; x < end; ++x, place += of_column) std::memset(place, 0, silent);
    }
    to += values_of(source, strip.tile);
  }
}

/// The runs of the receptive fields of an output row; `values` is where `write_values` wrote.
inline Run* list_runs(const Strip& strip, std::int64_t y, const float* values, Run* run) {
  for (std::size_t s = 0; s < strip.layer.source_count; ++s) {
    const Source& source = strip.layer.sources[s];
    const std::int64_t rows = source.kernel[0], of_column = rows * source.channels;
    std::int64_t top = 0, bottom = rows;
    while (top < bottom && source.row(y, top) < 0) ++top;
    while (top < bottom && source.row(y, bottom - 1) >= source.in[0]) --bottom;
    // Columns are neighbours where all their rows are seen.
    const bool whole = bottom - top == rows && source.dilation[1] == 1;
    const std::int64_t span = whole ? source.kernel[1] : 1;
    const std::int64_t seen = (bottom - top) * source.channels, above = top * source.channels;
    for (std::int64_t kw = 0; kw < source.kernel[1] && seen; kw += span, ++run) {
      *run = {values + kw * source.dilation[1] * of_column + above, s,
              strip.layer.weights->first_row[s] + kw * of_column + above, span * seen};
    }
    values += values_of(source, strip.tile);
  }
  return run;
}

/// The currents of a tile by dense arithmetic.  Cells of several time-steps share a pass over the
/// weights, so that a narrow layer fills the registers, too.
template <typename Set, int units>
SNNC_BODY void multiply_all(const Strip& strip, const float* weights, const Begin& begin) {
  constexpr std::int64_t width = 16 * units;
  constexpr int vectors = Set::dense_vectors(units), most = Set::dense_pixels(vectors);
  const Layer& layer = strip.layer;
  const Tile& tile = strip.tile;
  const std::int64_t steps = strip.call.steps, columns = tile.columns();
  std::int64_t of_step = 0, apart[max_sources] = {};
  for (std::size_t s = 0; s < layer.source_count; ++s) {
    of_step += values_of(layer.sources[s], tile);
    apart[s] = layer.sources[s].stride[1] * layer.sources[s].kernel[0] * layer.sources[s].channels;
  }
  Run runs[max_runs];
  const std::int64_t shared = strip.dense_steps;
  for (std::int64_t first = 0; first < steps; first += shared) {
    const std::int64_t here = std::min(shared, steps - first), count = here * columns;
    // Parts of nearly the same number of cells.
    const std::int64_t parts = (count + most - 1) / most;
    for (std::int64_t y = tile.top; y < tile.bottom; ++y) {
      for (std::int64_t t = 0; t < here; ++t) {
        write_values<Set>(strip, y, first + t, strip.values + t * of_step);
      }
      const Run* const runs_end = list_runs(strip, y, strip.values, runs);
      for (std::int64_t part = 0; part < parts; ++part) {
        const std::int64_t from = part * count / parts, cells = (part + 1) * count / parts - from;
        Cell cell[most] = {};
        for (std::int64_t i = 0; i < cells; ++i) {
          const std::int64_t t = (from + i) / columns, x = (from + i) % columns;
          const std::int64_t pixel = (y - tile.top) * columns + x;
          for (std::size_t s = 0; s < layer.source_count; ++s) {
            cell[i].values[s] = t * of_step + x * apart[s];
          }
          cell[i].begin = begin.values + pixel * begin.stride;
          cell[i].currents = strip.currents + (pixel * steps + first + t) * width;
        }
        for (std::int64_t r = 0; r < width; r += vectors * lanes<Set>) {
          multiply_cells<Set, most, vectors>(cells, runs, runs_end, cell, weights, width, r);
        }
      }
    }
  }
}

/// The currents of a tile where every channel sees itself only.
template <typename Set, int units>
SNNC_BODY void depthwise_all(const Strip& strip, std::int64_t block, const float* weights,
                             const Begin& begin) {
  constexpr std::int64_t width = 16 * units;
  const Source& source = strip.layer.sources[0];
  const Tile& tile = strip.tile;
  const std::int64_t steps = strip.call.steps;
  for (std::int64_t t = 0; t < steps; ++t) {
    for (std::int64_t y = tile.top; y < tile.bottom; ++y) {
      for (std::int64_t x = tile.left; x < tile.right; ++x) {
        const std::int64_t pixel = (y - tile.top) * tile.columns() + x - tile.left;
        for (std::int64_t r = 0; r < width; r += lanes<Set>) {
          const std::int64_t channel = block * width + r, left = strip.layer.weights->channels - channel;
          if (left <= 0) break;
          Floats<Set> sum;
          load(begin.values + pixel * begin.stride + r, sum);
          for (std::int64_t kh = 0; kh < source.kernel[0]; ++kh) {
            const std::int64_t row = source.row(y, kh);
            if (row < 0 || row >= source.in[0]) continue;
            const std::uint8_t* spikes = strip.spikes(0, t, row) + channel;
            for (std::int64_t kw = 0; kw < source.kernel[1]; ++kw) {
              const std::int64_t column = source.column(x, kw);
              if (column < 0 || column >= source.in[1]) continue;
              const std::uint8_t* from = spikes + column * source.pixel;
              Ints<Set> values;
              if (left >= lanes<Set>) {
                Set::widen_bytes(from, values);
              } else {
                widen_some<Set, false>(from, left, values);
              }
              Floats<Set> weight;
              load(weights + (kw * source.kernel[0] + kh) * width + r, weight);
              const Floats<Set> value = __builtin_convertvector(values, Floats<Set>);
              Set::multiply_add(weight, value, sum);
            }
          }
          store(strip.currents + (pixel * steps + t) * width + r, sum);
        }
      }
    }
  }
}

// --- neurons -------------------------------------------------------------------------------------

/// The currents of a tile, or those of one step that are there at every step.
struct Currents {
  const float* values;
  std::int64_t pixel_apart, step_apart;
};

/// One vector of channels of `pixels` pixels next to each other through all time-steps.
template <typename Set, int pixels, bool whole>
SNNC_BODY void fire(const Strip& strip, std::int64_t channel, std::int64_t left,
                    std::int64_t place, Currents currents) {
  using F = Floats<Set>;
  const Call& call = strip.call;
  const std::int64_t apart = strip.layer.pixel, steps = call.steps;
  const std::int64_t row = call.samples * strip.layer.out[0] * strip.layer.out[1] * apart;
  const float* const schedule = call.schedule ? call.schedule + channel : nullptr;
  const bool driven = call.drive != nullptr;
  const std::uint8_t* residual = call.residual ? call.residual + place + channel : nullptr;
  std::uint8_t* spikes = call.spikes_out + place + channel;
  const float* const membrane = call.membrane + (call.membrane_spread ? 0 : place) + channel;
  const std::int64_t membrane_apart = call.membrane_spread ? 0 : apart;
  const F zero = {};
  F theta, amplitude = {}, charge = {}, v[pixels];
  load_some<whole>(call.threshold + channel, left, theta);
  if (residual) load_some<whole>(call.amplitude + channel, left, amplitude);
#pragma GCC unroll 4
  for (int p = 0; p < pixels; ++p) load_some<whole>(membrane + p * membrane_apart, left, v[p]);
  for (std::int64_t t = 0; t < steps; ++t, currents.values += currents.step_apart, spikes += row) {
    if (schedule) load_some<whole>(schedule + call.row(t, call.scheduled) * apart, left, charge);
    const float drive = driven ? call.drive[call.row(t, call.driven)] : 1.0f;
#pragma GCC unroll 4
    for (int p = 0; p < pixels; ++p) {
      F x;
      load(currents.values + p * currents.pixel_apart, x);
      if (driven) x = x * drive;
      if (residual) {
        Ints<Set> fired;
        widen_some<Set, whole>(residual + p * apart, left, fired);
        x = x + (fired != 0 ? amplitude : zero);
      }
      F u = v[p] + x;
      if (schedule) u = u + charge;
      const Ints<Set> fires = u >= theta;
      v[p] = fires ? u - theta : u;
      if constexpr (whole) {
        Set::write_spikes(fires, spikes + p * apart);
      } else {
        std::uint8_t some[lanes<Set>];
        Set::write_spikes(fires, some);
        std::memcpy(spikes + p * apart, some, static_cast<std::size_t>(left));
      }
    }
    if (residual) residual += row;
  }
#pragma GCC unroll 4
  for (int p = 0; p < pixels; ++p) {
    store_some<whole>(call.membrane_out + place + channel + p * apart, left, v[p]);
  }
}

/// The neurons of a tile, for one block of channels.
template <typename Set, int units>
SNNC_BODY void fire_all(const Strip& strip, std::int64_t block, Currents currents) {
  const Layer& layer = strip.layer;
  const Tile& tile = strip.tile;
  constexpr std::int64_t width = 16 * units;
  for (std::int64_t y = tile.top; y < tile.bottom; ++y) {
    std::int64_t x = tile.left;
    const auto some = [&](auto number) SNNC_INLINE {
      constexpr int pixels = decltype(number)::value;
      for (; x + pixels <= tile.right; x += pixels, currents.values += pixels * currents.pixel_apart) {
        const std::int64_t place =
            ((strip.sample * layer.out[0] + y) * layer.out[1] + x) * layer.pixel;
        for (std::int64_t r = 0; r < width; r += lanes<Set>) {
          const std::int64_t left = layer.weights->channels - block * width - r;
          const std::int64_t channel = layer.offset + block * width + r;
          const Currents here{currents.values + r, currents.pixel_apart, currents.step_apart};
          if (left >= lanes<Set>) {
            fire<Set, pixels, true>(strip, channel, left, place, here);
          } else if (left > 0) {
            fire<Set, pixels, false>(strip, channel, left, place, here);
          }
        }
      }
    };
    some(std::integral_constant<int, 4>{});
    some(std::integral_constant<int, 1>{});
  }
}

// --- a strip of output rows ----------------------------------------------------------------------

/// What the sums of a tile start from: the static currents, in blocks.
template <int units>
SNNC_BODY Begin begin_of(const Strip& strip, std::int64_t block) {
  const Layer& layer = strip.layer;
  constexpr std::int64_t width = 16 * units;
  const std::int64_t first = block * width;
  const auto count =
      static_cast<std::size_t>(std::min(width, layer.weights->channels - first)) * sizeof(float);
  const float* const from = strip.call.current + layer.offset + first;
  std::memset(strip.begin, 0, width * sizeof(float));
  if (strip.call.current_spread) {
    std::memcpy(strip.begin, from, count);
    return {strip.begin, 0};
  }
  float* to = strip.begin;
  for (std::int64_t y = strip.tile.top; y < strip.tile.bottom; ++y) {
    for (std::int64_t x = strip.tile.left; x < strip.tile.right; ++x, to += width) {
      const std::int64_t place = (strip.sample * layer.out[0] + y) * layer.out[1] + x;
      std::memcpy(to, from + place * layer.pixel, count);
    }
  }
  return {strip.begin, width};
}

template <typename Set, int units>
SNNC_BODY bool run_strip(const Layer& layer, const Call& call, std::int64_t sample,
                         std::int64_t first, std::int64_t count, std::int64_t block,
                         std::int64_t block_count, Way way, Isa isa) {
  constexpr std::int64_t width = 16 * units;
  const Weights& packed = *layer.weights;
  const std::int64_t steps = call.steps, across = layer.out[1];
  const std::size_t sources = layer.source_count;
  const std::int64_t wanted = packed.blocks > 1 ? jobs_of_many_blocks : jobs_of_one_block;
  const std::int64_t tile_rows = std::clamp<std::int64_t>(wanted / (steps * across), 1, count);
  const std::int64_t parts = std::clamp<std::int64_t>(across * steps / (2 * wanted), 1, across);
  const std::int64_t columns = (across + parts - 1) / parts;
  const std::int64_t most = tile_rows * columns * steps;

  const bool whole = packed.whole_values != nullptr;
  Strip strip{layer, call, sample, isa};
  strip.dense_steps = std::min(steps, (dense_cells + columns - 1) / columns);
  std::int64_t masks[max_sources], lists[max_sources], starts = 0, values = 0, in_bytes = 0;
  for (std::size_t s = 0; s < sources; ++s) {
    const Source& source = layer.sources[s];
    const std::int64_t in_rows = source.row(tile_rows - 1, source.kernel[0] - 1) - source.row(0, 0) + 1;
    const std::int64_t span =
        source.column(columns - 1, source.kernel[1] - 1) - source.column(0, 0) + 1;
    const std::int64_t inputs = span * source.kernel[0] * source.channels;
    masks[s] = in_rows * steps * source.levels * source.masks() + 4;
    lists[s] = tile_rows * steps * inputs * source.levels + 16;
    starts = std::max(starts, source.in[1] + 1);
    strip.lengths = std::max(strip.lengths, source.rows() * source.levels / 4 + 1);
    values += whole ? 0 : inputs * strip.dense_steps;
    in_bytes += whole ? bytes_of(source, columns) * strip.dense_steps : 0;
  }
  static thread_local Scratch scratch;
  std::int64_t bytes = Scratch::room<std::uint32_t>(starts) +
                       Scratch::room<std::uint32_t>(strip.lengths) + Scratch::room<float>(values) +
                       Scratch::room<float>(tile_rows * columns * width) +
                       Scratch::room<float>(most * width) + Scratch::room<std::uint8_t>(in_bytes);
  for (std::size_t s = 0; s < sources; ++s) {
    bytes += Scratch::room<std::uint16_t>(masks[s]) + Scratch::room<std::uint32_t>(lists[s]) +
             2 * Scratch::room<Job>(most);
  }
  if (!scratch.reserve(bytes)) return false;
  for (std::size_t s = 0; s < sources; ++s) {
    strip.inputs[s].masks = scratch.take<std::uint16_t>(masks[s]);
    strip.inputs[s].lists = scratch.take<std::uint32_t>(lists[s]);
    strip.inputs[s].jobs = scratch.take<Job>(most);
    strip.inputs[s].sorted = scratch.take<Job>(most);
  }
  strip.starts = scratch.take<std::uint32_t>(starts);
  strip.counts = scratch.take<std::uint32_t>(strip.lengths);
  strip.values = scratch.take<float>(values);
  strip.begin = scratch.take<float>(tile_rows * columns * width);
  strip.currents = scratch.take<float>(most * width);
  strip.bytes = scratch.take<std::uint8_t>(in_bytes);

  Tile& tile = strip.tile;
  for (tile.top = first; tile.top < first + count; tile.top = tile.bottom) {
    tile.bottom = std::min(tile.top + tile_rows, first + count);
    for (tile.left = 0; tile.left < across; tile.left = tile.right) {
      tile.right = std::min(tile.left + columns, across);
      const std::int64_t jobs = tile.pixels() * steps;
      bool tables = packed.tables && way == Way::choose, dense = way == Way::dense;
      if (sources && !dense && !packed.depthwise) {
        Cost cost{};
        for (std::size_t s = 0; s < sources; ++s) {
          Set::apart([&]() SNNC_INLINE { mask_rows<Set>(strip, s); });
          if (tables || way == Way::events) continue;
          const auto [events, products] = cost_of(strip, s);
          cost.events += events;
          cost.products += products;
        }
        if (way == Way::choose && !tables) {
          const Price price = whole ? price_of_whole(isa) : Price{2, 40};
          dense = price.event * cost.events + price.job * static_cast<double>(jobs) > cost.products;
        }
        for (std::size_t s = 0; s < sources && !dense && !tables; ++s) {
          Set::apart([&]() SNNC_INLINE { list_jobs<Set, units>(strip, s); });
        }
      }
      for (std::int64_t b = block; b < block + block_count; ++b) {
        const float* weights = whole ? nullptr : packed.values.get() + b * (packed.rows + 1) * width;
        const Begin begin = begin_of<units>(strip, b);
        Currents currents{strip.currents, steps * width, width};
        if (!sources) {
          currents = {begin.values, begin.stride, 0};
        } else if (packed.depthwise) {
          Set::apart([&]() SNNC_INLINE { depthwise_all<Set, units>(strip, b, weights, begin); });
        } else if (whole && dense) {
          multiply_whole(strip, b, begin);
        } else if (whole) {
          for (std::size_t s = 0; s < sources; ++s) gather_whole(strip, s, b, begin);
        } else if (dense) {
          Set::apart([&]() SNNC_INLINE { multiply_all<Set, units>(strip, weights, begin); });
        } else {
          for (std::size_t s = 0; s < sources; ++s) {
            if (tables) {
              const float* table = packed.tables.get() + b * packed.table_rows * width;
              Set::apart([&]() SNNC_INLINE { look_up_all<Set, units>(strip, s, table, begin); });
            } else {
              Set::apart([&]() SNNC_INLINE { gather_all<Set, units>(strip, s, weights, begin); });
            }
          }
        }
        Set::apart([&]() SNNC_INLINE { fire_all<Set, units>(strip, b, currents); });
      }
    }
  }
  return true;
}

template <typename Set>
SNNC_BODY bool run_units(const Layer& layer, const Call& call, std::int64_t sample,
                         std::int64_t first, std::int64_t count, std::int64_t block,
                         std::int64_t block_count, Way way, Isa isa) {
  switch (layer.weights->units) {
    case 1:
      return run_strip<Set, 1>(layer, call, sample, first, count, block, block_count, way, isa);
    case 2:
      return run_strip<Set, 2>(layer, call, sample, first, count, block, block_count, way, isa);
    case 3:
      return run_strip<Set, 3>(layer, call, sample, first, count, block, block_count, way, isa);
    default:
      return run_strip<Set, 4>(layer, call, sample, first, count, block, block_count, way, isa);
  }
}

}  // namespace

Weights::Weights(const std::vector<Source>& sources, bool is_depthwise, std::int64_t out_channels,
                 const float* const* from, Isa isa)
    : depthwise(is_depthwise),
      channels(out_channels),
      rows(0),
      first_row{},
      four_count(0),
      first_four{},
      most_levels(1),
      table_rows(0),
      first_table_row{},
      kind(Digits::none),
      digits_of_source{},
      unit_digits(0),
      panels(0) {
  const std::int64_t all = (channels + 15) / 16;
  units = all % 4 == 0 ? 4 : all % 3 == 0 ? 3 : all % 2 == 0 ? 2 : 1;
  blocks = all / units;
  for (std::size_t s = 0; s < sources.size(); ++s) {
    const Source& source = sources[s];
    first_row[s] = rows;
    rows += depthwise ? source.kernel[0] * source.kernel[1] : source.rows();
    most_levels = std::max(most_levels, source.levels);
  }
  if (isa >= Isa::amx && !depthwise && rows && make_digits(sources, from)) return;
  const bool narrow = rows * blocks * width() <= largest_table && most_levels == 1;
  // Measured: tables of floats are as fast as products of bytes for one unit of channels, and faster than without these.
  const bool by_tables = narrow && (units == 1 || !has_products(isa));
  if (!depthwise && rows && !by_tables && are_small_and_whole(sources, from)) {
    pack_whole(sources, from);
    return;
  }
  pack(sources, from);
  if (narrow && !depthwise && rows) make_tables(sources);
}

void Weights::pack(const std::vector<Source>& sources, const float* const* from) {
  const std::int64_t across = width(), size = blocks * (rows + 1) * across;
  values = allocate<float>(size);
  if (!values) throw std::bad_alloc();
  std::fill_n(values.get(), size, 0.0f);
  for (std::size_t s = 0; s < sources.size(); ++s) {
    const Source& source = sources[s];
    const std::int64_t inputs = depthwise ? 1 : source.channels;
    const float* weight = from[s];
    for (std::int64_t kh = 0; kh < source.kernel[0]; ++kh) {
      for (std::int64_t kw = 0; kw < source.kernel[1]; ++kw) {
        // Column by column, as spikes are listed.
        const std::int64_t row = first_row[s] + (kw * source.kernel[0] + kh) * inputs;
        for (std::int64_t i = 0; i < inputs; ++i) {
          for (std::int64_t c = 0; c < channels; ++c) {
            values[(c / across * (rows + 1) + row + i) * across + c % across] = *weight++;
          }
        }
      }
    }
  }
}

void Weights::make_tables(const std::vector<Source>& sources) {
  const std::int64_t across = width();
  for (std::size_t s = 0; s < sources.size(); ++s) {
    first_table_row[s] = table_rows;
    table_rows += sources[s].kernel[0] * sources[s].kernel[1] * sources[s].sixteens() * 2 * table_height;
  }
  tables = allocate<float>(blocks * table_rows * across);
  if (!tables) throw std::bad_alloc();
  std::fill_n(tables.get(), blocks * table_rows * across, 0.0f);
  float* sum = tables.get();
  for (std::int64_t b = 0; b < blocks; ++b) {
    for (std::size_t s = 0; s < sources.size(); ++s) {
      const Source& source = sources[s];
      // Row by row of the input, as the masks lie.
      for (std::int64_t kh = 0; kh < source.kernel[0]; ++kh) {
        for (std::int64_t kw = 0; kw < source.kernel[1]; ++kw) {
          const std::int64_t first = first_row[s] + (kw * source.kernel[0] + kh) * source.channels;
          const float* from = values.get() + (b * (rows + 1) + first) * across;
          for (std::int64_t c = 0; c < source.sixteens() * 16; c += 8) {
            for (int mask = 0; mask < table_height; ++mask, sum += across) {
              for (int bit = 0; bit < 8 && c + bit < source.channels; ++bit) {
                if (!(mask >> bit & 1)) continue;
                for (std::int64_t i = 0; i < across; ++i) sum[i] += from[(c + bit) * across + i];
              }
            }
          }
        }
      }
    }
  }
}

bool run(const Layer& layer, const Call& call, std::int64_t sample, std::int64_t first,
         std::int64_t count, std::int64_t block, std::int64_t block_count, Way way, Isa isa) {
#ifdef SNNC_AMX
  if (layer.weights->digits) {
    return run_digits(layer, call, sample, first, count, block, block_count);
  }
#endif
  return on(isa, [&](auto set) SNNC_INLINE {
    return run_units<decltype(set)>(layer, call, sample, first, count, block, block_count, way, isa);
  });
}

}  // namespace snnc::events
