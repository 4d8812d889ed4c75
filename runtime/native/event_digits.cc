// Layers by digits, on processors with tiles of 8-bit integers (AMX).
//
// A tile of spikes (16 places by 64 inputs) times one of digits (64 inputs by 16 channels) adds to 16 by 16 sums
// of 32 bits, which are exact.
//
// Where all weights of a layer are whole numbers, one digit is the weight, if 8 bits hold those of its source, and two
// are its upper half with a sign and its lower one without.  Otherwise a weight is a whole number times the scale of its
// channel, and three signed digits make the number:
//
// number = 256 upper + lower.  A spike is held as 255: read without a sign that is 255, with a sign -1.
// So upper = 255 a + b takes two digits and one sum: a times 255, and -b times -1.  Where bytes are
// counts of spikes, as sum pooling leaves them, there are three sums of digits to the base 256.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "event_shared.h"

namespace snnc::events {
namespace {

/// A panel is 64 inputs by 16 channels, the largest tile of bytes.
constexpr std::int64_t panel_inputs = 64, panel = 16 * panel_inputs;
/// The largest number that three digits make, either way.
constexpr std::int64_t largest_number = (127 * 255 + 127) * 256 + 127;

constexpr bool whole(Digits kind) { return kind == Digits::one || kind == Digits::two; }
constexpr std::int64_t digits_of(Digits kind) {
  return kind == Digits::one ? 1 : kind == Digits::two ? 2 : 3;
}

/// Inputs of a source that are neighbours in a row of pixels, as bytes: one kernel row, or, with
/// dilation, one place of it.
std::int64_t span_of(const Source& source) {
  return source.dilation[1] == 1 ? source.kernel[1] : 1;
}
std::int64_t panels_of_span(const Source& source) {
  return (span_of(source) * source.channels + panel_inputs - 1) / panel_inputs;
}
std::int64_t panels_of(const Source& source) {
  return source.kernel[0] * (source.kernel[1] / span_of(source)) * panels_of_span(source);
}

/// The last eight bits of a number, with their sign.
std::int8_t last_digit(std::int64_t number) { return static_cast<std::int8_t>(number & 255); }

/// Writes the digits of a number, each into a panel of its own.
void write_digits(Digits kind, std::int64_t number, std::int8_t* place) {
  const std::int8_t lower = last_digit(number);
  switch (kind) {
    case Digits::one:
      place[0] = lower;
      break;
    case Digits::two:  // the lower one is read without a sign
      place[0] = lower;
      place[panel] = static_cast<std::int8_t>((number - (number & 255)) / 256);
      break;
    case Digits::rounded_counts: {
      const std::int8_t middle = last_digit((number - lower) / 256);
      place[0] = lower;
      place[panel] = middle;
      place[2 * panel] = static_cast<std::int8_t>(((number - lower) / 256 - middle) / 256);
      break;
    }
    default: {
      const std::int8_t minus_lower = last_digit(-number);
      const std::int64_t upper = (number + minus_lower) / 256;
      const std::int64_t a = (upper + (upper < 0 ? -127 : 127)) / 255;
      place[0] = static_cast<std::int8_t>(a);
      place[panel] = minus_lower;
      place[2 * panel] = static_cast<std::int8_t>(255 * a - upper);
    }
  }
}

}  // namespace

/// False where they would be mostly padding, or where weights or sums are too large for them.
bool Weights::make_digits(const std::vector<Source>& sources, const float* const* from) {
  constexpr float largest_weight = 0x1p100f;
  constexpr int least_exponent = -100;
  panels = 0;
  bool counts = false, all_whole = true;
  float most_of_source[max_sources] = {};
  std::vector<float> largest(static_cast<std::size_t>(channels));
  std::vector<double> together(largest.size());
  double inputs = 0;
  for (std::size_t s = 0; s < sources.size(); ++s) {
    panels += panels_of(sources[s]);
    counts = counts || sources[s].levels > 1;
    inputs += static_cast<double>(sources[s].rows() * sources[s].levels);
    for (std::int64_t i = 0; i < sources[s].rows(); ++i) {
      for (std::int64_t c = 0; c < channels; ++c) {
        const float size = std::fabs(from[s][i * channels + c]);
        if (!(size <= largest_weight)) return false;
        all_whole = all_whole && std::trunc(size) == size;
        float& most = largest[static_cast<std::size_t>(c)];
        most = std::max(most, size);
        most_of_source[s] = std::max(most_of_source[s], size);
        together[static_cast<std::size_t>(c)] += static_cast<double>(size) * sources[s].levels;
      }
    }
  }
  if (panels * panel_inputs > 4 * rows) return false;
  const float most_of_all = *std::max_element(most_of_source, most_of_source + max_sources);
  const double all_together = *std::max_element(together.begin(), together.end());
  // All sums have to fit 32 bits.
  if (all_whole && most_of_all <= two_digits && all_together + 256 * inputs < 0x1p31) {
    kind = most_of_all <= one_digit ? Digits::one : Digits::two;
  } else {
    kind = counts ? Digits::rounded_counts : Digits::rounded;
    for (std::size_t c = 0; c < largest.size(); ++c) {
      if (largest[c] > 0 && 128 * together[c] / largest[c] + inputs >= 0x1p23) return false;
    }
  }
  for (std::size_t s = 0; s < sources.size(); ++s) {
    // A shortcut's weights may be larger than those beside it.
    digits_of_source[s] = kind == Digits::two && most_of_source[s] <= one_digit ? 1 : digits_of(kind);
    unit_digits += panels_of(sources[s]) * digits_of_source[s] * panel;
  }
  const std::int64_t size = blocks * units * unit_digits;
  digits = allocate<std::int8_t>(size);
  Buffer<float>& of_channels = whole(kind) ? reaches : scales;
  of_channels = allocate<float>(blocks * width());
  if (!digits || !of_channels) throw std::bad_alloc();
  std::fill_n(digits.get(), size, std::int8_t{0});
  std::fill_n(of_channels.get(), blocks * width(), 0.0f);
  for (std::int64_t c = 0; c < channels; ++c) {
    int shift = 0;
    if (whole(kind)) {
      reaches[c] = static_cast<float>(together[static_cast<std::size_t>(c)]);
    } else {
      // The largest weight becomes a number of 23 bits, if three digits hold it, or of 22.
      const float most = largest[static_cast<std::size_t>(c)];
      int exponent = least_exponent;
      if (most > 0) exponent = std::max(std::ilogb(most) + 1, least_exponent);
      if (std::nearbyint(std::ldexp(static_cast<double>(most), 23 - exponent)) > largest_number) ++exponent;
      shift = 23 - exponent;
      scales[c] = std::ldexp(1.0f, -shift);
    }
    std::int8_t* to = digits.get() + c / 16 * unit_digits + c % 16 * 4;
    for (std::size_t s = 0; s < sources.size(); ++s) {
      const Source& source = sources[s];
      const std::int64_t span = span_of(source) * source.channels, of_panel = digits_of_source[s] * panel;
      const Digits made = of_panel == panel ? Digits::one : kind;
      // A span is one piece of `from`.
      const float* weight = from[s] + c;
      for (std::int64_t i = 0; i < source.rows(); i += span) {
        for (std::int64_t k = 0; k < span; ++k, weight += channels) {
          const auto number = static_cast<std::int64_t>(
              std::nearbyint(std::ldexp(static_cast<double>(*weight), shift)));
          write_digits(made, number, to + k / panel_inputs * of_panel + k % panel_inputs / 4 * 64 + k % 4);
        }
        to += panels_of_span(source) * of_panel;
      }
    }
  }
  return true;
}

#ifdef SNNC_AMX
namespace {

/// A sixteen is so many places whose sums are made together: time-steps of a pixel, or pixels of a
/// time-step.  Its sums are [1 to 3, 16 places, 16 channels], lowest first.
constexpr std::int64_t plane = 256;
template <Digits kind>
constexpr std::int64_t sums_of_sixteen =
    (kind == Digits::one ? 1 : kind == Digits::rounded_counts ? 3 : 2) * plane;

/// The spikes of a source that the tile sees, with their padding: [rows held, steps, pixels of a row].
/// A row stays until another one takes its place, so that each is copied once.
struct Held {
  std::uint8_t* bytes;
  std::int64_t rows, apart, row_apart;  // rows; from step to step; from row to row
  std::int64_t* which;                  // row is held at each place
  std::int64_t* offsets;                // of the panels of each output row
};

/// What a thread works on: output rows [top, bottom).
struct Strip {
  const Layer& layer;
  const Call& call;
  std::int64_t sample, top, bottom;
  Held held[max_sources];
};

struct Sixteen {
  const std::uint8_t* spikes[max_sources];   // of the first place
  const std::int64_t* offsets[max_sources];  // of the panels from there
};

/// Copies bytes as they are, or spikes, which become 255.
template <Digits kind>
SNNC_AVX512 void copy_spikes(const std::uint8_t* from, std::int64_t count, std::uint8_t* to) {
  for (std::int64_t i = 0; i < count; i += 64) {
    const auto here = count - i < 64 ? (std::uint64_t{1} << (count - i)) - 1 : ~std::uint64_t{0};
    __m512i bytes = _mm512_maskz_loadu_epi8(here, from + i);
    if constexpr (kind == Digits::rounded) bytes = _mm512_movm_epi8(_mm512_test_epi8_mask(bytes, bytes));
    _mm512_mask_storeu_epi8(to + i, here, bytes);
  }
}

/// Copies what the output rows see of a source, unless it is there, and tells where the panels of each
/// row lie.  The padding beside a row has been zero from the beginning.
template <Digits kind>
SNNC_AVX512 void hold_rows(const Strip& strip, std::size_t s) {
  const Source& source = strip.layer.sources[s];
  const Held& held = strip.held[s];
  const std::int64_t span = span_of(source), panels = panels_of_span(source);
  const std::int64_t left = std::min(source.begin[1] * source.channels, held.apart);
  const std::int64_t seen = std::min(source.in[1] * source.channels, held.apart - left);
  // Pixels of a group lie apart.
  const std::int64_t piece = source.channels == source.pixel ? seen : source.channels;
  std::int64_t* offset = held.offsets;
  for (std::int64_t y = strip.top; y < strip.bottom; ++y) {
    for (std::int64_t kh = 0; kh < source.kernel[0]; ++kh) {
      const std::int64_t row = source.row(y, kh);
      const std::int64_t place = (row % held.rows + held.rows) % held.rows;
      if (held.which[place] != row) {
        held.which[place] = row;
        std::uint8_t* to = held.bytes + place * held.row_apart + left;
        for (std::int64_t t = 0; t < strip.call.steps; ++t, to += held.apart) {
          if (row < 0 || row >= source.in[0]) {
            std::memset(to, 0, static_cast<std::size_t>(seen));
            continue;
          }
          const std::int64_t rows = (t * strip.call.samples + strip.sample) * source.in[0] + row;
          const std::uint8_t* from =
              strip.call.spikes[s] + rows * source.in[1] * source.pixel + source.offset;
          for (std::int64_t i = 0; i < seen; i += piece, from += source.pixel) {
            copy_spikes<kind>(from, std::min(piece, seen - i), to + i);
          }
        }
      }
      for (std::int64_t kw = 0; kw < source.kernel[1]; kw += span) {
        for (std::int64_t i = 0; i < panels; ++i) {
          *offset++ = place * held.row_apart + kw * source.dilation[1] * source.channels + i * panel_inputs;
        }
      }
    }
  }
}

/// Two pixels next to each other, or one, that fire.
struct Firing {
  const std::int32_t* sums;              // of the first pixel and step
  std::int64_t step_apart, pixel_apart;  // in sums
  std::int64_t place;                    // of the first pixel
  std::int64_t first, last;              // steps
  bool two;
};

/// The neurons of 16 channels: what `fire` does in event_kernels.cc, from sums of digits.  Where the
/// whole sum is a float, so is every number on the way to it.
///
/// Where weights are whole numbers, all else mostly is, too.  Then no float below 2^24 is ever rounded on the
/// way, and integers give the same spikes and potentials in fewer instructions, which wait less for one another.
template <Digits kind>
class Neurons {
  using Floats __attribute__((vector_size(64))) = float;
  using Ints __attribute__((vector_size(64))) = std::int32_t;

 public:
  SNNC_AVX512 SNNC_INLINE Neurons(const Strip& strip, std::int64_t unit)
      : call_(strip.call),
        apart_(strip.layer.pixel),
        channel_(strip.layer.offset + unit * 16),
        row_(call_.samples * strip.layer.out[0] * strip.layer.out[1] * apart_) {
    const std::int64_t left = strip.layer.weights->channels - unit * 16;
    exist_ = static_cast<__mmask16>(left < 16 ? (1 << left) - 1 : 0xffff);
    theta_ = _mm512_maskz_loadu_ps(exist_, call_.threshold + channel_);
    amplitude_ = theta_;
    if (call_.residual) amplitude_ = _mm512_maskz_loadu_ps(exist_, call_.amplitude + channel_);
    if (call_.schedule) schedule_ = call_.schedule + channel_;
    if constexpr (whole(kind)) {
      begin_whole(_mm512_loadu_ps(strip.layer.weights->reaches.get() + unit * 16));
    } else {
      scale_ = _mm512_loadu_ps(strip.layer.weights->scales.get() + unit * 16);
    }
  }

  SNNC_AVX512 SNNC_INLINE void begin(const Firing& firing) {
    firing_ = firing;
    here_[0] = exist_;
    here_[1] = firing.two ? exist_ : __mmask16{0};
    // A second that is not there reads the first one's sums, and nothing comes of it.
    if (!firing.two) firing_.pixel_apart = 0;
    const std::int64_t place = firing.place + channel_;
    spikes_ = call_.spikes_out + place + firing.first * row_;
    residual_ = call_.residual ? call_.residual + place + firing.first * row_ : nullptr;
    // Potentials of later steps are where those before have left them.
    const bool spread = call_.membrane_spread && firing.first == 0;
    const float* const membrane = firing.first ? call_.membrane_out : call_.membrane;
    membrane_out_ = call_.membrane_out + place;
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
      const std::int64_t at = place + p * apart_;
      const float* const current = call_.current + (call_.current_spread ? channel_ : at);
      begin_[p] = _mm512_maskz_loadu_ps(here_[p], current);
      v_[p] = _mm512_maskz_loadu_ps(here_[p], membrane + (spread ? channel_ : at));
    }
    if constexpr (whole(kind)) begin_integers();
  }

  /// At most so many time-steps.
  SNNC_AVX512 SNNC_INLINE void run(std::int64_t steps) {
    const std::int64_t until = std::min(firing_.first + steps, firing_.last);
    for (; firing_.first < until; ++firing_.first) step();
  }

  /// The time-steps that are left, if any neurons fire.
  SNNC_AVX512 SNNC_INLINE void end() {
    if (!here_[0]) return;
    for (; firing_.first < firing_.last; ++firing_.first) step();
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
      if constexpr (whole(kind)) {
        if (integers_) v_[p] = __builtin_convertvector(over_[p] + whole_theta_, Floats);
      }
      _mm512_mask_storeu_ps(membrane_out_ + p * apart_, here_[p], v_[p]);
    }
    here_[0] = here_[1] = 0;
  }

 private:
  SNNC_AVX512 SNNC_INLINE static Ints ints(const std::int32_t* from) {
    Ints values;
    std::memcpy(&values, from, sizeof(values));
    return values;
  }
  SNNC_AVX512 SNNC_INLINE static Ints ints(const Floats& values) {
    return __builtin_convertvector(values, Ints);
  }
  SNNC_AVX512 SNNC_INLINE static Floats size_of(const Floats& values) {
    return values < 0 ? -values : values;
  }
  /// The lanes of whole numbers, of 31 bits at most.
  SNNC_AVX512 SNNC_INLINE static __mmask16 whole_lanes(const Floats& values) {
    return _mm512_cmp_ps_mask(values, __builtin_convertvector(ints(values), Floats), _CMP_EQ_OQ);
  }
  /// The exact sum of products of a place.
  SNNC_AVX512 SNNC_INLINE static Ints whole_sum(const std::int32_t* sum) {
    if constexpr (kind == Digits::one) return ints(sum);
    return ints(sum + plane) * 256 + ints(sum);
  }

  /// By how much a potential changes in a step at most but for its static current, and which channels have whole
  /// numbers only.
  SNNC_AVX512 SNNC_INLINE void begin_whole(const Floats& reach) {
    whole_ = whole_lanes(theta_) & whole_lanes(amplitude_);
    Floats charge = {};
    for (std::int64_t t = 0; schedule_ && t < call_.steps; ++t) {
      const std::int64_t row = call_.row(t, call_.scheduled);
      const Floats here = _mm512_maskz_loadu_ps(exist_, schedule_ + row * apart_);
      whole_ &= whole_lanes(here);
      charge = size_of(here) > charge ? size_of(here) : charge;
      if (row == call_.scheduled - 1) break;
    }
    most_ = reach + size_of(theta_) + size_of(amplitude_) + charge;
    whole_theta_ = ints(theta_);
    whole_amplitude_ = ints(amplitude_);
  }

  /// Whether the neurons of both pixels stay whole numbers below 2^24 until the last step, and then their state.
  SNNC_AVX512 SNNC_INLINE void begin_integers() {
    const auto steps = static_cast<float>(firing_.last - firing_.first);
    __mmask16 good = whole_;
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
      // Below half of it, since this itself is rounded.
      const Floats reach = size_of(v_[p]) + (most_ + size_of(begin_[p])) * steps;
      good &= whole_lanes(begin_[p]) & whole_lanes(v_[p]) &
              _mm512_cmp_ps_mask(reach, _mm512_set1_ps(0x1p23f), _CMP_LT_OQ);
      whole_begin_[p] = ints(begin_[p]);
      over_[p] = ints(v_[p]) - whole_theta_;
    }
    integers_ = good == 0xffff;
  }

  SNNC_AVX512 SNNC_INLINE void step() {
    if constexpr (whole(kind)) {
      if (integers_) return step_in_integers();
    }
    __m512 charge = theta_;
    if (schedule_) {
      const std::int64_t row = call_.row(firing_.first, call_.scheduled);
      charge = _mm512_maskz_loadu_ps(exist_, schedule_ + row * apart_);
    }
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
      const std::int32_t* const sum = firing_.sums + p * firing_.pixel_apart;
      __m512 x;
      if constexpr (whole(kind)) {
        x = __builtin_convertvector(whole_sum(sum), Floats) + begin_[p];
      } else {
        Ints upper = ints(sum + plane);
        if constexpr (kind == Digits::rounded_counts) upper += ints(sum + 2 * plane) * 256;
        x = _mm512_fmadd_ps(__builtin_convertvector(upper, Floats), _mm512_set1_ps(256.0f),
                            __builtin_convertvector(ints(sum), Floats));
        x = _mm512_fmadd_ps(x, scale_, begin_[p]);
      }
      if (residual_) {
        const __m128i before = _mm_maskz_loadu_epi8(here_[p], residual_ + p * apart_);
        x = _mm512_mask_add_ps(x, _mm_test_epi8_mask(before, before), x, amplitude_);
      }
      x = _mm512_add_ps(v_[p], x);
      if (schedule_) x = _mm512_add_ps(x, charge);
      const __mmask16 fires = _mm512_cmp_ps_mask(x, theta_, _CMP_GE_OQ);
      v_[p] = _mm512_mask_sub_ps(x, fires, x, theta_);
      const __m128i spikes = _mm_maskz_mov_epi8(fires, _mm_set1_epi8(1));
      _mm_mask_storeu_epi8(spikes_ + p * apart_, here_[p], spikes);
    }
    next();
  }

  /// The same; the state is by how much a potential is over the threshold.
  SNNC_AVX512 SNNC_INLINE void step_in_integers() {
    Ints charge = {};
    if (schedule_) {
      const std::int64_t row = call_.row(firing_.first, call_.scheduled);
      charge = ints(_mm512_maskz_loadu_ps(exist_, schedule_ + row * apart_));
    }
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
      Ints x = whole_sum(firing_.sums + p * firing_.pixel_apart) + whole_begin_[p];
      if (residual_) {
        const __m128i before = _mm_maskz_loadu_epi8(here_[p], residual_ + p * apart_);
        x = masked_sum(_mm_test_epi8_mask(before, before), x, whole_amplitude_);
      }
      if (schedule_) x += charge;
      x += over_[p];
      const __mmask16 fires = _mm512_cmpge_epi32_mask(reinterpret_cast<__m512i>(x), _mm512_setzero_si512());
      over_[p] = masked_sum(fires, x, -whole_theta_);
      const __m128i spikes = _mm_maskz_mov_epi8(fires, _mm_set1_epi8(1));
      _mm_mask_storeu_epi8(spikes_ + p * apart_, here_[p], spikes);
    }
    next();
  }
  SNNC_AVX512 SNNC_INLINE static Ints masked_sum(__mmask16 mask, const Ints& x, const Ints& more) {
    const auto before = reinterpret_cast<__m512i>(x);
    return reinterpret_cast<Ints>(_mm512_mask_add_epi32(before, mask, before, reinterpret_cast<__m512i>(more)));
  }

  SNNC_AVX512 SNNC_INLINE void next() {
    firing_.sums += firing_.step_apart;
    spikes_ += row_;
    if (residual_) residual_ += row_;
  }

  const Call& call_;
  std::int64_t apart_, channel_, row_;
  __mmask16 exist_, here_[2] = {};
  __m512 theta_, scale_ = {}, amplitude_, begin_[2] = {}, v_[2] = {};
  const float* schedule_ = nullptr;
  const std::uint8_t* residual_ = nullptr;
  std::uint8_t* spikes_ = nullptr;
  float* membrane_out_ = nullptr;
  Firing firing_ = {};
  // Of whole numbers.
  __mmask16 whole_ = 0;
  bool integers_ = false;
  __m512 most_ = {};
  Ints whole_theta_ = {}, whole_amplitude_ = {}, whole_begin_[2] = {}, over_[2] = {};
};

#define SNNC_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile ::)
#define SNNC_TILE_LOAD(tile, from, apart) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(apart) : "memory")
#define SNNC_TILE_STORE(tile, to) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(std::int64_t{64}) : "memory")
/// Adds products to 32-bit integers: of bytes without and with a sign, both with one, or both without.
#define SNNC_TILE_ADD(sum, spikes, digits) \
  asm volatile("tdpbusd %%tmm" #digits ", %%tmm" #spikes ", %%tmm" #sum ::)
#define SNNC_TILE_SUBTRACT(sum, spikes, digits) \
  asm volatile("tdpbssd %%tmm" #digits ", %%tmm" #spikes ", %%tmm" #sum ::)
#define SNNC_TILE_ADD_UNSIGNED(sum, spikes, digits) \
  asm volatile("tdpbuud %%tmm" #digits ", %%tmm" #spikes ", %%tmm" #sum ::)

/// Digits that are needed later: those of a wide layer come from far away.
struct Ahead {
  const std::int8_t* digits;
  std::int64_t lines;  // to fetch for every panel that is multiplied

  SNNC_INLINE void fetch() {
    for (std::int64_t i = 0; i < lines; ++i, digits += line) __builtin_prefetch(digits, 0, 2);
  }
};

/// Units of 16 channels whose sums are made together: as many as have room in the tiles.
template <Digits kind>
constexpr int most_units = kind == Digits::one ? 2 : 1;
/// So many panels of a unit leave no room for spikes in the first-level cache.
constexpr std::int64_t far_panels = 24;

/// The sums of one or two sixteens for one unit of channels, or two, while the neurons of others fire: the tiles leave
/// nearly all that these need unused.  Sums, and digits, of the second unit are `sums_apart`, and `digits_apart`,
/// behind those of the first.
template <Digits kind, bool two, int units>
SNNC_AVX512 SNNC_INLINE inline void multiply(const Strip& strip, const Sixteen* sixteens, const std::int64_t* apart,
                                             const std::int8_t* digits, std::int64_t digits_apart, Ahead& ahead,
                                             std::int64_t pace, Neurons<kind>* neurons, std::int32_t* sums,
                                             std::int64_t sums_apart) {
  static_assert(units <= most_units<kind>);
  constexpr std::int64_t packed = 64, sixteen = sums_of_sixteen<kind>;
  constexpr bool counts = kind == Digits::rounded_counts;
  SNNC_TILE_ZERO(0);
  SNNC_TILE_ZERO(1);
  SNNC_TILE_ZERO(2);
  SNNC_TILE_ZERO(3);
  if constexpr (counts) {
    SNNC_TILE_ZERO(4);
    SNNC_TILE_ZERO(5);
  }
  for (std::size_t s = 0; s < strip.layer.source_count; ++s) {
    const std::int64_t panels = panels_of(strip.layer.sources[s]), from_place = apart[s];
    const std::uint8_t *const first = sixteens[0].spikes[s], *const second = sixteens[two].spikes[s];
    const std::int64_t *const firsts = sixteens[0].offsets[s], *const seconds = sixteens[two].offsets[s];
    const std::int64_t of_panel = kind == Digits::two ? strip.layer.weights->digits_of_source[s] * panel
                                                      : digits_of(kind) * panel;
    for (std::int64_t k = 0; k < panels; ++k, digits += of_panel) {
      if constexpr (whole(kind)) {
        SNNC_TILE_LOAD(4, first + firsts[k], from_place);
        SNNC_TILE_LOAD(6, digits, packed);
        if constexpr (two) SNNC_TILE_LOAD(5, second + seconds[k], from_place);
        if constexpr (kind == Digits::one) {
          SNNC_TILE_ADD(0, 4, 6);
          if constexpr (two) SNNC_TILE_ADD(2, 5, 6);
          if constexpr (units == 2) {
            SNNC_TILE_LOAD(7, digits + digits_apart, packed);
            SNNC_TILE_ADD(1, 4, 7);
            if constexpr (two) SNNC_TILE_ADD(3, 5, 7);
          }
        } else if (of_panel == panel) {
          SNNC_TILE_ADD(0, 4, 6);
          if constexpr (two) SNNC_TILE_ADD(2, 5, 6);
        } else {
          SNNC_TILE_ADD_UNSIGNED(0, 4, 6);
          if constexpr (two) SNNC_TILE_ADD_UNSIGNED(2, 5, 6);
          SNNC_TILE_LOAD(7, digits + panel, packed);
          SNNC_TILE_ADD(1, 4, 7);
          if constexpr (two) SNNC_TILE_ADD(3, 5, 7);
        }
      } else if constexpr (counts) {
        SNNC_TILE_LOAD(6, first + firsts[k], from_place);
        SNNC_TILE_LOAD(7, digits, packed);
        SNNC_TILE_ADD(0, 6, 7);
        SNNC_TILE_LOAD(7, digits + panel, packed);
        SNNC_TILE_ADD(1, 6, 7);
        SNNC_TILE_LOAD(7, digits + 2 * panel, packed);
        SNNC_TILE_ADD(2, 6, 7);
        if constexpr (two) {
          SNNC_TILE_LOAD(6, second + seconds[k], from_place);
          SNNC_TILE_ADD(5, 6, 7);
          SNNC_TILE_LOAD(7, digits + panel, packed);
          SNNC_TILE_ADD(4, 6, 7);
          SNNC_TILE_LOAD(7, digits, packed);
          SNNC_TILE_ADD(3, 6, 7);
        }
      } else {
        // A sum waits for the one before it; products of others lie between.
        SNNC_TILE_LOAD(4, first + firsts[k], from_place);
        SNNC_TILE_LOAD(6, digits, packed);
        SNNC_TILE_ADD(1, 4, 6);
        if constexpr (two) {
          SNNC_TILE_LOAD(5, second + seconds[k], from_place);
          SNNC_TILE_ADD(3, 5, 6);
        }
        SNNC_TILE_LOAD(7, digits + panel, packed);
        SNNC_TILE_SUBTRACT(0, 4, 7);
        if constexpr (two) SNNC_TILE_SUBTRACT(2, 5, 7);
        SNNC_TILE_LOAD(6, digits + 2 * panel, packed);
        SNNC_TILE_SUBTRACT(1, 4, 6);
        if constexpr (two) SNNC_TILE_SUBTRACT(3, 5, 6);
      }
      ahead.fetch();
      for (int u = 0; u < units; ++u) neurons[u].run(pace);
    }
  }
  SNNC_TILE_STORE(0, sums);
  if constexpr (kind == Digits::one) {
    if constexpr (two) SNNC_TILE_STORE(2, sums + sixteen);
    if constexpr (units == 2) SNNC_TILE_STORE(1, sums + sums_apart);
    if constexpr (two && units == 2) SNNC_TILE_STORE(3, sums + sums_apart + sixteen);
    return;
  }
  SNNC_TILE_STORE(1, sums + plane);
  if constexpr (counts) SNNC_TILE_STORE(2, sums + 2 * plane);
  if constexpr (two && counts) {
    SNNC_TILE_STORE(3, sums + sixteen);
    SNNC_TILE_STORE(4, sums + sixteen + plane);
    SNNC_TILE_STORE(5, sums + sixteen + 2 * plane);
  } else if constexpr (two) {
    SNNC_TILE_STORE(2, sums + sixteen);
    SNNC_TILE_STORE(3, sums + sixteen + plane);
  }
}

/// The sixteens of a tile, and how its sums and neurons go through them.
struct Plan {
  bool in_time;                    // sixteens are time-steps of a pixel
  std::int64_t pixels;             // of the tile
  std::int64_t across;             // of a row
  std::int64_t place;              // of the first one
  std::int64_t apart[max_sources];  // from one place of a sixteen to the next
  const Sixteen* sixteens;
  std::int64_t count;  // of sixteens
  std::int32_t* sums;  // of four sixteens, or of all steps, for each of the units that are computed together
};

/// One unit of channels of a tile, or two.  Where `more` follow, their digits come closer meanwhile.
template <Digits kind, int units>
SNNC_AVX512 SNNC_APART void run_units(const Strip& strip, const Plan& plan, std::int64_t unit,
                                      bool more) {
  constexpr std::int64_t sixteen = sums_of_sixteen<kind>;
  const Weights& weights = *strip.layer.weights;
  const std::int64_t size = weights.unit_digits;
  const std::int8_t* const digits = weights.digits.get() + unit * size;
  const std::int64_t steps = strip.call.steps, pixel = strip.layer.pixel;
  const std::int64_t pace = (16 + weights.panels - 1) / weights.panels;
  const std::int64_t sums_apart = plan.in_time ? 2 * sixteen : steps * sixteen;
  const Sixteen* sixteens = plan.sixteens;
  Ahead ahead{digits + units * size, 0};
  if (more) {
    constexpr auto lines = units * digits_of(kind) * panel / static_cast<std::int64_t>(line);
    const std::int64_t pairs = (plan.count + 1) / 2;
    ahead.lines = (lines + pairs - 1) / pairs;
  }
  Neurons<kind> neurons[] = {Neurons<kind>(strip, unit), Neurons<kind>(strip, unit + units - 1)};
  const auto sums_of = [&](std::int64_t i, std::int64_t end, std::int32_t* sums) SNNC_AVX512 SNNC_INLINE {
    if (i + 1 < end) {
      multiply<kind, true, units>(strip, sixteens + i, plan.apart, digits, size, ahead, pace, neurons, sums,
                                  sums_apart);
    } else {
      multiply<kind, false, units>(strip, sixteens + i, plan.apart, digits, size, ahead, pace, neurons, sums,
                                   sums_apart);
    }
  };
  if (plan.in_time) {
    for (std::int64_t t = 0; t < steps; t += 16, sixteens += plan.pixels) {
      std::int32_t *sums = plan.sums, *others = sums + units * sums_apart;
      for (std::int64_t p = 0; p < plan.pixels; p += 2) {
        sums_of(p, plan.pixels, sums);
        for (int u = 0; u < units; ++u) {
          neurons[u].end();
          neurons[u].begin({sums + u * sums_apart, 16, sixteen, plan.place + p * pixel, t, std::min(t + 16, steps),
                            p + 1 < plan.pixels});
        }
        std::swap(sums, others);
      }
      for (int u = 0; u < units; ++u) neurons[u].end();
    }
    return;
  }
  for (std::int64_t row = 0; row < plan.pixels; row += plan.across) {
    for (std::int64_t x = 0; x < plan.across; x += 16, sixteens += steps) {
      for (std::int64_t t = 0; t < steps; t += 2) sums_of(t, steps, plan.sums + t * sixteen);
      const std::int64_t end = std::min<std::int64_t>(16, plan.across - x);
      for (std::int64_t p = 0; p < end; p += 2) {
        for (int u = 0; u < units; ++u) {
          neurons[u].begin({plan.sums + u * sums_apart + p * 16, sixteen, 16, plan.place + (row + x + p) * pixel, 0,
                            steps, p + 1 < end});
          neurons[u].end();
        }
      }
    }
  }
}

template <Digits kind>
bool run_rows(const Layer& layer, const Call& call, std::int64_t sample, std::int64_t first,
              std::int64_t count, std::int64_t block, std::int64_t block_count) {
  const std::int64_t steps = call.steps, across = layer.out[1];
  const std::int64_t tile_rows =
      std::clamp<std::int64_t>(jobs_of_one_block / (steps * across), 1, count);
  // Whichever fills sixteens better.
  const auto sixteens_of = [](std::int64_t places) { return (places + 15) / 16; };
  const bool in_time = steps * sixteens_of(across) >= across * sixteens_of(steps);
  const std::int64_t inner = in_time ? steps : across, outer = in_time ? across : steps;

  Strip strip{layer, call, sample, 0, 0, {}};
  Plan plan{};
  std::int64_t sizes[max_sources], bytes = 0;
  for (std::size_t s = 0; s < layer.source_count; ++s) {
    const Source& source = layer.sources[s];
    Held& held = strip.held[s];
    held.rows = source.row(tile_rows - 1, source.kernel[0] - 1) - source.row(0, 0) + 1;
    const std::int64_t span = source.column(across - 1, source.kernel[1] - 1) - source.column(0, 0) + 1;
    held.apart = (span * source.channels + 63) / 64 * 64;
    // Not all in one set of the cache.
    if (held.apart % 512 == 0) held.apart += 64;
    held.row_apart = steps * held.apart;
    const std::int64_t of_pixel = source.stride[1] * source.channels;
    plan.apart[s] = in_time ? held.apart : of_pixel;
    // The last sixteen may reach beyond the last row; nothing comes of that.
    sizes[s] = held.rows * held.row_apart + panel_inputs + 16 * std::max(held.apart, of_pixel);
    bytes += Scratch::room<std::uint8_t>(sizes[s]) + Scratch::room<std::int64_t>(held.rows) +
             Scratch::room<std::int64_t>(tile_rows * panels_of(source));
  }
  const std::int64_t sums = (in_time ? 4 : steps) * most_units<kind> * sums_of_sixteen<kind>;
  const std::int64_t sixteens = tile_rows * outer * sixteens_of(inner);
  bytes += Scratch::room<std::int32_t>(sums) + Scratch::room<Sixteen>(sixteens);
  static thread_local Scratch scratch;
  if (!scratch.reserve(bytes)) return false;
  for (std::size_t s = 0; s < layer.source_count; ++s) {
    Held& held = strip.held[s];
    held.bytes = scratch.take<std::uint8_t>(sizes[s]);
    held.which = scratch.take<std::int64_t>(held.rows);
    held.offsets = scratch.take<std::int64_t>(tile_rows * panels_of(layer.sources[s]));
    std::memset(held.bytes, 0, static_cast<std::size_t>(sizes[s]));
    std::fill_n(held.which, held.rows, std::numeric_limits<std::int64_t>::min());
  }
  plan.in_time = in_time;
  plan.across = across;
  plan.sums = scratch.take<std::int32_t>(sums);
  Sixteen* const all = scratch.take<Sixteen>(sixteens);
  plan.sixteens = all;

  struct {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {};
    std::uint8_t rows[16] = {};
  } shapes;
  for (int tile = 0; tile < 8; ++tile) {
    const bool of_digits = tile == 7 || (tile == 6 && kind != Digits::rounded_counts);
    shapes.bytes[tile] = 64;
    shapes.rows[tile] = static_cast<std::uint8_t>(of_digits ? 16 : std::min<std::int64_t>(inner, 16));
  }
  asm volatile("ldtilecfg %0" : : "m"(shapes));

  const std::int64_t unit = block * layer.weights->units;
  const std::int64_t end =
      std::min(unit + block_count * layer.weights->units, sixteens_of(layer.weights->channels));
  for (strip.top = first; strip.top < first + count; strip.top = strip.bottom) {
    strip.bottom = std::min(strip.top + tile_rows, first + count);
    for (std::size_t s = 0; s < layer.source_count; ++s) hold_rows<kind>(strip, s);
    plan.pixels = (strip.bottom - strip.top) * across;
    plan.place = (sample * layer.out[0] + strip.top) * across * layer.pixel;
    Sixteen* next = all;
    const auto add = [&](std::int64_t y, std::int64_t x, std::int64_t t) {
      for (std::size_t s = 0; s < layer.source_count; ++s) {
        const Source& source = layer.sources[s];
        next->spikes[s] = strip.held[s].bytes + t * strip.held[s].apart +
                          x * source.stride[1] * source.channels;
        next->offsets[s] = strip.held[s].offsets + y * panels_of(source);
      }
      ++next;
    };
    // As `run_unit` takes them.
    if (in_time) {
      for (std::int64_t t = 0; t < steps; t += 16) {
        for (std::int64_t p = 0; p < plan.pixels; ++p) add(p / across, p % across, t);
      }
    } else {
      for (std::int64_t y = 0; y < strip.bottom - strip.top; ++y) {
        for (std::int64_t x = 0; x < across; x += 16) {
          for (std::int64_t t = 0; t < steps; ++t) add(y, x, t);
        }
      }
    }
    plan.count = next - all;
    // Those of a tile are still near for the next one, or there are too many of them.
    const bool far = strip.top == first;
    std::int64_t u = unit;
    // Two units read the spikes once for both, which pays where their digits come from the second-level cache.
    if (most_units<kind> == 2 && layer.weights->panels >= far_panels) {
      for (; u + 1 < end; u += 2) run_units<kind, most_units<kind>>(strip, plan, u, far && u + 3 < end);
    }
    for (; u < end; ++u) run_units<kind, 1>(strip, plan, u, far && u + 1 < end);
  }
  asm volatile("tilerelease" ::);
  return true;
}

}  // namespace

bool run_digits(const Layer& layer, const Call& call, std::int64_t sample, std::int64_t first,
                std::int64_t count, std::int64_t block, std::int64_t block_count) {
  const auto run_kind = [&] {
    switch (layer.weights->kind) {
      case Digits::one:
        return run_rows<Digits::one>;
      case Digits::two:
        return run_rows<Digits::two>;
      case Digits::rounded_counts:
        return run_rows<Digits::rounded_counts>;
      default:
        return run_rows<Digits::rounded>;
    }
  }();
  return run_kind(layer, call, sample, first, count, block, block_count);
}
#endif

}  // namespace snnc::events
