// Counts times weights with the instructions of x86: tiles (AMX), vpdpbusd (VNNI), vpmaddubsw (AVX2).

#if defined(__GNUC__) && !defined(__clang__)
// What GCC's own headers of AVX-512 do not initialize is never used.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <cstring>
#include <utility>

#include "count_shared.h"

#ifdef SNNC_X86

#define SNNC_VNNI                                                                              \
  __attribute__((                                                                              \
      target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,popcnt,bmi,bmi2")))
#if __has_include(<avxvnniintrin.h>)
#define SNNC_HAS_AVXVNNI 1
#define SNNC_AVXVNNI __attribute__((target("avx2,fma,f16c,popcnt,avxvnni")))
#endif

namespace snnc::counts {
namespace {

/// Where the sums of up to sixteen positions go: pixels of the output, or -1.
struct Outs {
  const std::int32_t* pixels;
  std::int64_t first;  // pixel to which they are added
};

/// The neurons of a unit.
struct Unit {
  const Layer& layer;
  std::int64_t levels, index, channel, count;
  bool quick;
  const std::uint8_t* residual;  // of pixel 0, or null
  std::uint8_t* out;

  Unit(const Strip& strip, std::int64_t unit)
      : layer(strip.layer),
        levels(strip.call.levels),
        index(unit),
        channel(unit * unit_channels),
        count(channels_of(strip.layer, unit)),
        quick(strip.call.quick),
        residual(strip.call.residual ? strip.call.residual + layer.offset + channel : nullptr),
        out(strip.call.out + layer.offset + channel) {}

  /// One pixel, for any threshold.
  void fire_one(const std::int32_t* sums, std::int64_t pixel) const {
    const std::int64_t place = pixel * layer.pixel;
    fire(layer, levels, index, sums, residual ? residual + place : nullptr, count, out + place);
  }
  void fire_each(const std::int32_t* sums, std::int64_t apart, const Outs& outs, int pixels) const {
    for (int i = 0; i < pixels; ++i) {
      if (outs.pixels[i] >= 0) fire_one(sums + i * apart, outs.first + outs.pixels[i]);
    }
  }
};

constexpr std::int32_t in_order[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/// The neurons of `fours` times four pixels, whose sums are `apart` numbers from each other.
SNNC_VNNI SNNC_INLINE inline void fire_fours(const Unit& unit, const std::int32_t* sums,
                                             std::int64_t apart, Outs outs, std::int64_t fours) {
  const Layer& layer = unit.layer;
  if (!unit.quick) {
    for (; fours; --fours, sums += 4 * apart, outs.pixels += 4) unit.fire_each(sums, apart, outs, 4);
    return;
  }
  const std::int64_t pixel = layer.pixel;
  const __m512 rate = _mm512_loadu_ps(layer.rate.get() + unit.channel);
  const __m512 half = _mm512_loadu_ps(layer.half.get() + unit.channel);
  // Products of pairs of 16 bits: a count with its coefficient, and zeros.
  const __m512i coefficient = _mm512_and_si512(
      _mm512_loadu_si512(layer.coefficient.get() + unit.channel), _mm512_set1_epi32(0xffff));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i most = _mm512_set1_epi8(static_cast<char>(unit.levels));
  const auto there = static_cast<__mmask16>((1u << unit.count) - 1);
  for (; fours; --fours, sums += 4 * apart, outs.pixels += 4) {
    const std::int32_t first = outs.pixels[0];
    const bool neighbours = first >= 0 && outs.pixels[3] == first + 3;
    __m512i whole[4];
    for (int i = 0; i < 4; ++i) whole[i] = _mm512_loadu_si512(sums + i * apart);
    if (unit.residual) {
      for (int i = 0; i < 4; ++i) {
        if (outs.pixels[i] < 0) continue;
        const std::uint8_t* const from = unit.residual + (outs.first + outs.pixels[i]) * pixel;
        const __m512i counts = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, from));
        whole[i] = _mm512_dpwssd_epi32(whole[i], counts, coefficient);
      }
    }
    __m512 potential[4];
    for (int i = 0; i < 4; ++i) potential[i] = _mm512_cvtepi32_ps(whole[i]);
    if (layer.scaled) {
      const __m512 factor = _mm512_loadu_ps(layer.factor.get() + unit.channel);
      const __m512 start = _mm512_loadu_ps(layer.start.get() + unit.channel);
      const __m512 lowest = _mm512_set1_ps(layer.lowest), highest = _mm512_set1_ps(layer.highest);
      for (int i = 0; i < 4; ++i) {
        const __m512 product = _mm512_mul_ps(potential[i], factor);
        const __m512 bounded = _mm512_min_ps(_mm512_max_ps(product, lowest), highest);
        potential[i] = _mm512_add_ps(_mm512_roundscale_ps(bounded, _MM_FROUND_TO_NEAREST_INT), start);
      }
    }
    for (int i = 0; i < 4; ++i) {
      whole[i] = _mm512_cvttps_epi32(_mm512_fmadd_ps(potential[i], rate, half));
    }
    // Saturation makes 0 of what is negative, and at most 255 of the rest.
    const __m512i mixed = _mm512_packus_epi16(_mm512_packs_epi32(whole[0], whole[1]),
                                              _mm512_packs_epi32(whole[2], whole[3]));
    const __m512i fired = _mm512_min_epu8(_mm512_permutexvar_epi32(order, mixed), most);
    const __m128i four[4] = {
        _mm512_castsi512_si128(fired), _mm512_extracti32x4_epi32(fired, 1),
        _mm512_extracti32x4_epi32(fired, 2), _mm512_extracti32x4_epi32(fired, 3)};
    if (neighbours && unit.count == unit_channels) {
      std::uint8_t* const to = unit.out + (outs.first + first) * pixel;
      if (pixel == unit_channels) {
        _mm512_storeu_si512(to, fired);
        continue;
      }
      for (int i = 0; i < 4; ++i) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * pixel), four[i]);
      }
      continue;
    }
    for (int i = 0; i < 4; ++i) {
      if (outs.pixels[i] < 0) continue;
      std::uint8_t* const to = unit.out + (outs.first + outs.pixels[i]) * pixel;
      _mm_mask_storeu_epi8(to, there, four[i]);
    }
  }
}

// --- vectors of 512 bits -------------------------------------------------------------------------

/// `pixels` neighbouring positions times `units` units from `unit` on, to sums `[pixels, units, 16]`.
template <int units, int pixels>
SNNC_VNNI SNNC_APART void dot(const Strip& strip, const std::int64_t* start, std::int64_t unit,
                              std::int32_t* sums) {
  const Layer& layer = strip.layer;
  __m512i total[pixels][units];
  for (int u = 0; u < units; ++u) {
    const __m512i membrane =
        _mm512_loadu_si512(layer.membrane.get() + (unit + u) * unit_channels);
    for (int i = 0; i < pixels; ++i) total[i][u] = membrane;
  }
  const std::int64_t next = layer.panels * panel;
  const std::int8_t* weights = layer.digits.get() + unit * next;
  const std::int8_t* depth = layer.depth.data();
  for (std::size_t s = 0; s < layer.sources.size(); ++s) {
    const Held& held = strip.held[s];
    const std::int64_t apart = held.apart;
    const std::uint8_t* const from = held.bytes + start[s];
    for (std::int64_t p = 0; p < layer.layouts[s].panels; ++p, weights += panel, ++depth) {
      const std::uint8_t* counts = from + held.offsets[p];
      const std::int8_t* here = weights;
      for (const std::int8_t* const end = here + 64 * *depth; here < end; here += 64, counts += 4) {
        __m512i row[units];
        for (int u = 0; u < units; ++u) row[u] = _mm512_loadu_si512(here + u * next);
        for (int i = 0; i < pixels; ++i) {
          std::int32_t four;
          std::memcpy(&four, counts + i * apart, sizeof(four));
          const __m512i spread = _mm512_set1_epi32(four);
          for (int u = 0; u < units; ++u) {
            total[i][u] = _mm512_dpbusd_epi32(total[i][u], spread, row[u]);
          }
        }
      }
    }
  }
  for (int i = 0; i < pixels; ++i) {
    for (int u = 0; u < units; ++u) {
      _mm512_storeu_si512(sums + (i * units + u) * unit_channels, total[i][u]);
    }
  }
}

using Dot = void (*)(const Strip&, const std::int64_t*, std::int64_t, std::int32_t*);

template <int units, int... pixels>
constexpr auto dots_of(std::integer_sequence<int, pixels...>) {
  return std::array<Dot, sizeof...(pixels)>{dot<units, pixels + 1>...};
}

constexpr int most_pixels = 14;

/// Units of a block, and the most pixels that registers are left for.
template <int units, int most>
SNNC_VNNI void run_vnni(const Strip& strip, std::int64_t unit) {
  static constexpr auto dots = dots_of<units>(std::make_integer_sequence<int, most>{});
  alignas(64) std::int32_t sums[(most_pixels + 3) / 4 * 4 * units * unit_channels];
  for (const Run* run = strip.runs; run < strip.runs + strip.run_count; ++run) {
    const std::int64_t blocks = (run->count + most - 1) / most;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t first = b * run->count / blocks, end = (b + 1) * run->count / blocks;
      std::int64_t start[max_sources];
      for (std::size_t s = 0; s < strip.layer.sources.size(); ++s) {
        start[s] = run->start[s] + first * strip.held[s].apart;
      }
      const auto count = static_cast<int>(end - first);
      dots[static_cast<std::size_t>(count - 1)](strip, start, unit, sums);
      std::int32_t outs[16];
      for (int i = 0; i < 16; ++i) outs[i] = i < count ? in_order[i] : -1;
      for (int u = 0; u < units; ++u) {
        const Unit neurons(strip, unit + u);
        fire_fours(neurons, sums + u * unit_channels, units * unit_channels,
                   {outs, run->out + first}, (count + 3) / 4);
      }
    }
  }
}

// --- vectors of 256 bits -------------------------------------------------------------------------

SNNC_AVX2 SNNC_INLINE inline void fire_pixel(const Unit& unit, const std::int32_t* sums,
                                             std::int64_t pixel) {
  const Layer& layer = unit.layer;
  if (!unit.quick || unit.count < unit_channels) return unit.fire_one(sums, pixel);
  const std::int64_t place = pixel * layer.pixel;
  __m256i whole[2];
  for (int i = 0; i < 2; ++i) {
    const std::int64_t channel = unit.channel + 8 * i;
    __m256i potential = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + 8 * i));
    if (unit.residual) {
      const __m256i counts = _mm256_cvtepu8_epi32(
          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(unit.residual + place + 8 * i)));
      const __m256i coefficient =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(layer.coefficient.get() + channel));
      potential = _mm256_add_epi32(potential, _mm256_mullo_epi32(counts, coefficient));
    }
    const __m256 rate = _mm256_loadu_ps(layer.rate.get() + channel);
    const __m256 half = _mm256_loadu_ps(layer.half.get() + channel);
    __m256 value = _mm256_cvtepi32_ps(potential);
    if (layer.scaled) {
      const __m256 product = _mm256_mul_ps(value, _mm256_loadu_ps(layer.factor.get() + channel));
      const __m256 bounded = _mm256_min_ps(_mm256_max_ps(product, _mm256_set1_ps(layer.lowest)),
                                           _mm256_set1_ps(layer.highest));
      value = _mm256_add_ps(_mm256_round_ps(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                            _mm256_loadu_ps(layer.start.get() + channel));
    }
    whole[i] = _mm256_cvttps_epi32(_mm256_fmadd_ps(value, rate, half));
  }
  const __m256i shorts =
      _mm256_permute4x64_epi64(_mm256_packs_epi32(whole[0], whole[1]), 0xd8);
  const __m128i bytes =
      _mm_packus_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
  const __m128i fired = _mm_min_epu8(bytes, _mm_set1_epi8(static_cast<char>(unit.levels)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(unit.out + place), fired);
}

constexpr int narrow_pixels = 4;

/// How bytes are multiplied with AVX2: sums of pairs of products in 16 bits, of which `folded` are added
/// before they are widened, where counts are small enough; else from 16 bits on.
template <int folded>
struct Pairs {
  static constexpr int fours = folded;
  template <int pixels>
  SNNC_AVX2 SNNC_INLINE static void add(const std::uint8_t* counts, std::int64_t apart,
                                        const std::int8_t* weights, __m256i (&total)[pixels][2]) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; ++half) {
      __m256i row[folded];
      for (int f = 0; f < folded; ++f) {
        row[f] = _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(weights + 64 * f + 32 * half));
      }
      for (int i = 0; i < pixels; ++i) {
        __m256i pairs = _mm256_setzero_si256();
        for (int f = 0; f < folded; ++f) {
          std::int32_t four;
          std::memcpy(&four, counts + i * apart + 4 * f, sizeof(four));
          const __m256i products = _mm256_maddubs_epi16(_mm256_set1_epi32(four), row[f]);
          pairs = f ? _mm256_add_epi16(pairs, products) : products;
        }
        total[i][half] = _mm256_add_epi32(total[i][half], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
};

struct Words {
  static constexpr int fours = 1;
  template <int pixels>
  SNNC_AVX2 SNNC_INLINE static void add(const std::uint8_t* counts, std::int64_t apart,
                                        const std::int8_t* weights, __m256i (&total)[pixels][2]) {
    const __m256i low = _mm256_set1_epi16(0xff);
    for (int half = 0; half < 2; ++half) {
      const __m256i row =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + 32 * half));
      const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(row, 8), 8);
      const __m256i odd = _mm256_srai_epi16(row, 8);
      for (int i = 0; i < pixels; ++i) {
        std::int32_t four;
        std::memcpy(&four, counts + i * apart, sizeof(four));
        const __m256i spread = _mm256_set1_epi32(four);
        const __m256i one = _mm256_madd_epi16(_mm256_and_si256(spread, low), even);
        const __m256i other = _mm256_madd_epi16(_mm256_srli_epi16(spread, 8), odd);
        total[i][half] = _mm256_add_epi32(total[i][half], _mm256_add_epi32(one, other));
      }
    }
  }
};

// One body, compiled with and without vpdpbusd of 256 bits.
#define SNNC_NARROW_DOT(attribute, name)                                                         \
  template <typename Multiply, int pixels>                                                       \
  attribute SNNC_APART void name(const Strip& strip, const std::int64_t* start,                  \
                                 std::int64_t unit, std::int32_t* sums) {                        \
    const Layer& layer = strip.layer;                                                            \
    __m256i total[pixels][2];                                                                    \
    for (int half = 0; half < 2; ++half) {                                                       \
      const __m256i membrane = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(              \
          layer.membrane.get() + unit * unit_channels + 8 * half));                              \
      for (int i = 0; i < pixels; ++i) total[i][half] = membrane;                                \
    }                                                                                            \
    const std::int8_t* weights = layer.digits.get() + unit * layer.panels * panel;               \
    const std::int8_t* depth = layer.depth.data();                                               \
    for (std::size_t s = 0; s < layer.sources.size(); ++s) {                                     \
      const Held& held = strip.held[s];                                                          \
      const std::uint8_t* const from = held.bytes + start[s];                                    \
      for (std::int64_t p = 0; p < layer.layouts[s].panels; ++p, weights += panel, ++depth) {    \
        const std::uint8_t* counts = from + held.offsets[p];                                     \
        for (std::int64_t k = 0; k < *depth; k += Multiply::fours) {                             \
          Multiply::template add<pixels>(counts + 4 * k, held.apart, weights + 64 * k, total);   \
        }                                                                                        \
      }                                                                                          \
    }                                                                                            \
    for (int i = 0; i < pixels; ++i) {                                                           \
      for (int half = 0; half < 2; ++half) {                                                     \
        _mm256_storeu_si256(                                                                     \
            reinterpret_cast<__m256i*>(sums + i * unit_channels + 8 * half), total[i][half]);    \
      }                                                                                          \
    }                                                                                            \
  }

SNNC_NARROW_DOT(SNNC_AVX2, narrow_dot)

#ifdef SNNC_HAS_AVXVNNI
struct Fours {
  static constexpr int fours = 1;
  template <int pixels>
  SNNC_AVXVNNI SNNC_INLINE static void add(const std::uint8_t* counts, std::int64_t apart,
                                           const std::int8_t* weights,
                                           __m256i (&total)[pixels][2]) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + 32));
    for (int i = 0; i < pixels; ++i) {
      std::int32_t four;
      std::memcpy(&four, counts + i * apart, sizeof(four));
      const __m256i spread = _mm256_set1_epi32(four);
      total[i][0] = _mm256_dpbusd_avx_epi32(total[i][0], spread, low);
      total[i][1] = _mm256_dpbusd_avx_epi32(total[i][1], spread, high);
    }
  }
};
SNNC_NARROW_DOT(SNNC_AVXVNNI, narrow_dot_vnni)
#endif

SNNC_AVX2 void run_narrow(const Strip& strip, std::int64_t unit, const Dot* dots, int most) {
  alignas(64) std::int32_t sums[8 * unit_channels];
  const Unit neurons(strip, unit);
  for (const Run* run = strip.runs; run < strip.runs + strip.run_count; ++run) {
    const std::int64_t blocks = (run->count + most - 1) / most;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t first = b * run->count / blocks, end = (b + 1) * run->count / blocks;
      std::int64_t start[max_sources];
      for (std::size_t s = 0; s < strip.layer.sources.size(); ++s) {
        start[s] = run->start[s] + first * strip.held[s].apart;
      }
      dots[end - first - 1](strip, start, unit, sums);
      for (std::int64_t i = first; i < end; ++i) {
        fire_pixel(neurons, sums + (i - first) * unit_channels, run->out + i);
      }
    }
  }
}

template <typename Multiply>
constexpr Dot narrow_dots[] = {narrow_dot<Multiply, 1>, narrow_dot<Multiply, 2>,
                               narrow_dot<Multiply, 3>, narrow_dot<Multiply, 4>};

void run_avx2(const Strip& strip, std::int64_t unit) {
  // Two products of a count and of at most 127 in 16 bits.
  const std::int64_t together = 32767 / (2 * 127 * strip.call.most);
  const Dot* const dots = together >= 4   ? narrow_dots<Pairs<4>>
                          : together >= 2 ? narrow_dots<Pairs<2>>
                          : together >= 1 ? narrow_dots<Pairs<1>>
                                          : narrow_dots<Words>;
  run_narrow(strip, unit, dots, narrow_pixels);
}

// --- tiles ---------------------------------------------------------------------------------------

#ifdef SNNC_AMX

#define SNNC_TILE_LOAD(tile, from, apart) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(apart) : "memory")
#define SNNC_TILE_STORE(tile, to) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(std::int64_t{64}) : "memory")
/// Adds products of bytes without and with a sign.
#define SNNC_TILE_ADD(sum, counts, weights) \
  asm volatile("tdpbusd %%tmm" #weights ", %%tmm" #counts ", %%tmm" #sum ::)

constexpr int block_tiles = 6;
constexpr std::int64_t tile_sums = 16 * unit_channels;

/// The neurons of the block before: they run between the products of the next one, which leave the
/// vector units idle.
class Waiting {
 public:
  Waiting(const Strip& strip) : strip_(strip) {}

  void begin(const std::int32_t* sums, const Tile* tiles, std::int64_t count, std::int64_t unit) {
    sums_ = sums;
    outs_ = tiles->outs;
    left_ = 4 * count;
    unit_ = unit;
  }
  /// Four pixels for `count` times.
  SNNC_VNNI SNNC_INLINE void some(std::int64_t count) {
    count = std::min(count, left_);
    if (!count) return;
    fire_fours(Unit(strip_, unit_), sums_, unit_channels, {outs_, strip_.first_out}, count);
    sums_ += 4 * count * unit_channels;
    outs_ += 4 * count;
    left_ -= count;
  }
  std::int64_t left() const { return left_; }

 private:
  const Strip& strip_;
  const std::int32_t* sums_ = nullptr;
  const std::int32_t* outs_ = nullptr;  // those of neighbouring tiles follow each other
  std::int64_t left_ = 0, unit_ = 0;
};

/// The sums of `count` tiles of positions and one unit; behind every other product `pace`
/// fours of pixels that wait.
template <int count>
SNNC_VNNI SNNC_APART void multiply(const Strip& strip, const Tile* tiles, std::int64_t unit,
                                   std::int64_t pace, Waiting& waiting, std::int32_t* sums) {
  const Layer& layer = strip.layer;
  const std::int32_t* const membrane = layer.membrane.get() + unit * unit_channels;
  const std::int64_t nothing = 0, row = 64;
  SNNC_TILE_LOAD(0, membrane, nothing);
  if (count > 1) SNNC_TILE_LOAD(1, membrane, nothing);
  if (count > 2) SNNC_TILE_LOAD(2, membrane, nothing);
  if (count > 3) SNNC_TILE_LOAD(3, membrane, nothing);
  if (count > 4) SNNC_TILE_LOAD(4, membrane, nothing);
  if (count > 5) SNNC_TILE_LOAD(5, membrane, nothing);
  const std::int8_t* weights = layer.digits.get() + unit * layer.panels * panel;
  for (std::size_t s = 0; s < layer.sources.size(); ++s) {
    const Held& held = strip.held[s];
    const std::int64_t apart = held.apart;
    const std::uint8_t* from[block_tiles];
    for (int i = 0; i < count; ++i) from[i] = held.bytes + tiles[i].start[s];
    for (std::int64_t p = 0; p < layer.layouts[s].panels; ++p, weights += panel) {
      const std::int64_t offset = held.offsets[p];
      SNNC_TILE_LOAD(7, weights, row);
      SNNC_TILE_LOAD(6, from[0] + offset, apart);
      SNNC_TILE_ADD(0, 6, 7);
      if (count > 1) {
        SNNC_TILE_LOAD(6, from[1] + offset, apart);
        SNNC_TILE_ADD(1, 6, 7);
      }
      if (count > 2) {
        waiting.some(pace);
        SNNC_TILE_LOAD(6, from[2] + offset, apart);
        SNNC_TILE_ADD(2, 6, 7);
      }
      if (count > 3) {
        SNNC_TILE_LOAD(6, from[3] + offset, apart);
        SNNC_TILE_ADD(3, 6, 7);
      }
      if (count > 4) {
        waiting.some(pace);
        SNNC_TILE_LOAD(6, from[4] + offset, apart);
        SNNC_TILE_ADD(4, 6, 7);
      }
      if (count > 5) {
        SNNC_TILE_LOAD(6, from[5] + offset, apart);
        SNNC_TILE_ADD(5, 6, 7);
      }
      waiting.some(pace);
    }
  }
  SNNC_TILE_STORE(0, sums);
  if (count > 1) SNNC_TILE_STORE(1, sums + tile_sums);
  if (count > 2) SNNC_TILE_STORE(2, sums + 2 * tile_sums);
  if (count > 3) SNNC_TILE_STORE(3, sums + 3 * tile_sums);
  if (count > 4) SNNC_TILE_STORE(4, sums + 4 * tile_sums);
  if (count > 5) SNNC_TILE_STORE(5, sums + 5 * tile_sums);
}

constexpr decltype(&multiply<1>) multiplies[] = {multiply<1>, multiply<2>, multiply<3>,
                                                 multiply<4>, multiply<5>, multiply<6>};

SNNC_VNNI void run_tiles(const Strip& strip, std::int64_t unit, std::int64_t units) {
  const Layer& layer = strip.layer;
  struct {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {};
    std::uint8_t rows[16] = {};
  } shapes;
  for (int tile = 0; tile < 8; ++tile) {
    shapes.bytes[tile] = 64;
    shapes.rows[tile] = static_cast<std::uint8_t>(tile == 7 ? 16 : strip.rows);
  }
  asm volatile("ldtilecfg %0" : : "m"(shapes));
  alignas(64) std::int32_t space[2][block_tiles * tile_sums];
  Waiting waiting(strip);
  int which = 0;
  const std::int64_t blocks = (strip.tile_count + block_tiles - 1) / block_tiles;
  const auto compute = [&](std::int64_t block, std::int64_t u) SNNC_VNNI SNNC_INLINE {
    const std::int64_t first = block * strip.tile_count / blocks;
    const std::int64_t count = (block + 1) * strip.tile_count / blocks - first;
    std::int32_t* const sums = space[which];
    const std::int64_t chances = layer.panels * ((count + 1) / 2);
    const std::int64_t pace = (waiting.left() + chances - 1) / chances;
    multiplies[count - 1](strip, strip.tiles + first, u, pace, waiting, sums);
    waiting.some(waiting.left());
    waiting.begin(sums, strip.tiles + first, count, u);
    which ^= 1;
  };
  // Positions outside, while the weights stay in the second-level cache.
  const bool far = units * layer.panels * panel > far_weights;
  if (far) {
    for (std::int64_t u = unit; u < unit + units; ++u) {
      for (std::int64_t block = 0; block < blocks; ++block) compute(block, u);
    }
  } else {
    for (std::int64_t block = 0; block < blocks; ++block) {
      for (std::int64_t u = unit; u < unit + units; ++u) compute(block, u);
    }
  }
  waiting.some(waiting.left());
  asm volatile("tilerelease" ::);
}

#endif

}  // namespace

void run_x86(const Strip& strip, std::int64_t unit, std::int64_t units) {
  const std::int64_t end = unit + units;
  switch (strip.layer.way) {
#ifdef SNNC_AMX
    case Way::tiles:
      return run_tiles(strip, unit, units);
#endif
    case Way::vnni:
      for (; end - unit >= 4; unit += 4) run_vnni<4, 7>(strip, unit);
      if (end - unit == 3) return run_vnni<3, 8>(strip, unit);
      if (end - unit == 2) return run_vnni<2, 14>(strip, unit);
      if (end - unit == 1) return run_vnni<1, 14>(strip, unit);
      return;
#ifdef SNNC_HAS_AVXVNNI
    case Way::avxvnni: {
      static constexpr Dot dots[] = {narrow_dot_vnni<Fours, 1>, narrow_dot_vnni<Fours, 2>,
                                     narrow_dot_vnni<Fours, 3>, narrow_dot_vnni<Fours, 4>,
                                     narrow_dot_vnni<Fours, 5>, narrow_dot_vnni<Fours, 6>};
      for (; unit < end; ++unit) run_narrow(strip, unit, dots, 6);
      return;
    }
#endif
    default:
      for (; unit < end; ++unit) run_avx2(strip, unit);
  }
}

}  // namespace snnc::counts

#endif
