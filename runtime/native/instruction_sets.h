// What each instruction set of the CPU brings, and how a kernel is compiled for all of them.
//
// A kernel is a body, written once for any set and inlined into one function per set (`on`), of which
// it takes the instructions.  A body has no intrinsics, since it is not for one set only; what has no
// spelling in plain C++ is a function of the set.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "cpu_kernels.h"
#include "halves.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define SNNC_X86 1
#endif

// Loops that matter in large kernels are functions of their own (`apart`): in one large function the
// compiler runs out of registers and takes up to a seventh more time.
#define SNNC_BODY inline __attribute__((always_inline))
#define SNNC_INLINE __attribute__((always_inline))
#define SNNC_APART __attribute__((noinline))
#define SNNC_AVX2 __attribute__((target("avx2,fma,f16c,popcnt")))
#define SNNC_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi,bmi2")))

namespace snnc::cpu {

/// The lanes of the bits of a byte, in order.
inline constexpr auto lanes_of_byte = [] {
  std::array<std::array<std::uint8_t, 8>, 256> table{};
  for (unsigned mask = 0; mask < 256; ++mask) {
    std::size_t count = 0;
    for (std::uint8_t lane = 0; lane < 8; ++lane) {
      if (mask >> lane & 1) table[mask][count++] = lane;
    }
  }
  return table;
}();

/// Vectors of so many bytes of 16-bit integers.
template <std::size_t bytes>
struct PairsIn {
  typedef std::int16_t type __attribute__((vector_size(bytes)));
};

/// What needs no instruction of its own, in vectors of any size.
struct Plain {
  /// All lanes are `*value`: to take away a zero changes nothing, and the compiler knows that.
  template <typename Vector>
  SNNC_BODY static void spread(const float* value, Vector& vector) {
    vector = *value - Vector{};
  }
  /// sum + weight * value.  One of the factors is 0 or 1, or rounding does not matter.
  template <typename Vector>
  SNNC_BODY static void multiply_add(const Vector& weight, const Vector& value, Vector& sum) {
#ifdef __clang__
#pragma clang fp contract(fast)
#endif
    sum = sum + weight * value;
  }
  /// As many bytes as `vector` has integers.
  template <typename Vector>
  SNNC_BODY static void widen_bytes(const std::uint8_t* from, Vector& vector) {
    using Bytes __attribute__((vector_size(sizeof(Vector) / 4))) = std::uint8_t;
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof(bytes));
    vector = __builtin_convertvector(bytes, Vector);
  }
  /// All lanes are the four bytes of `from`.
  template <typename Vector>
  SNNC_BODY static void spread_bytes(const std::uint8_t* from, Vector& vector) {
    std::int32_t four;
    std::memcpy(&four, from, sizeof(four));
    vector = four + Vector{};
  }
  /// Widens as many integers of 16 bits as `vector` has.
  template <typename Vector>
  SNNC_BODY static void widen_shorts(const std::int16_t* from, Vector& vector) {
    using Shorts __attribute__((vector_size(sizeof(Vector) / 2))) = std::int16_t;
    Shorts shorts;
    std::memcpy(&shorts, from, sizeof(shorts));
    vector = __builtin_convertvector(shorts, Vector);
  }

  /// Whether `add_products` adds to two sums of 16 bits in every integer, instead of to one of 32.
  static constexpr bool narrow = true;
  /// Adds the products of four weights, bytes with a sign, and four spikes, bytes without one, in every integer.
  template <typename Vector>
  SNNC_BODY static void add_products(const Vector& weights, const Vector& spikes, Vector& sum) {
    using Pairs = typename PairsIn<sizeof(Vector)>::type;
    Pairs w, s, pairs;
    std::memcpy(&w, &weights, sizeof(w));
    std::memcpy(&s, &spikes, sizeof(s));
    std::memcpy(&pairs, &sum, sizeof(pairs));
    pairs += ((w << 8) >> 8) * (s & 255) + (w >> 8) * ((s >> 8) & 255);
    std::memcpy(&sum, &pairs, sizeof(sum));
  }

  /// Writes a byte of 0 or 1 for every integer, of which all bits are 0 or 1.
  template <typename Vector>
  SNNC_BODY static void write_spikes(const Vector& fires, std::uint8_t* to) {
    using Bytes __attribute__((vector_size(sizeof(Vector) / 4))) = std::uint8_t;
    Bytes bytes;
    bytes = __builtin_convertvector(fires & 1, Bytes);
    std::memcpy(to, &bytes, sizeof(bytes));
  }
  /// Stores a vector, past the caches where the instruction set can; `to` is aligned.
  template <typename Vector>
  SNNC_BODY static void stream(const Vector& vector, void* to) {
#ifdef __clang__
    __builtin_nontemporal_store(vector, static_cast<Vector*>(to));
#else
    std::memcpy(to, &vector, sizeof(vector));
#endif
  }
};

/// `registers` vectors of `bytes` bytes hold the membrane potentials of one tile of neurons.
struct Generic : Plain {
  static constexpr int bytes = 16, registers = 8;
  /// A tile of dense arithmetic: its sums fill the registers.
  static constexpr int dense_vectors(int) { return 4; }
  static constexpr int dense_pixels(int) { return 2; }
  static constexpr int dot_pixels(int) { return 2; }

  template <typename Body>
  SNNC_APART static void apart(const Body& body) {
    body();
  }
  static void widen_halves(const Half* from, std::int64_t count, float* to) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = widened(from[i]);
  }
  static void narrow_floats(const float* from, std::int64_t count, Half* to) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = narrowed(from[i]);
  }
  static void end_of_streams() {}
#ifndef __clang__
  template <typename Vector>
  SNNC_BODY static void widen_bytes(const std::uint8_t* from, Vector& vector) {
    for (int i = 0; i < 4; ++i) vector[i] = from[i];
  }
#endif

  /// One bit for every byte of `from` that is larger than `level`, sixteen to a mask.  May write
  /// four masks where one is left.
  static void masks(const std::uint8_t* from, std::int64_t count, std::uint8_t level,
                    std::uint16_t* to) {
    for (std::int64_t i = 0; i < count; i += 16) {
      const std::int64_t here = std::min<std::int64_t>(16, count - i);
      unsigned mask = 0;
      for (std::int64_t lane = 0; lane < here; ++lane) {
        mask |= static_cast<unsigned>(from[i + lane] > level) << lane;
      }
      to[i / 16] = static_cast<std::uint16_t>(mask);
    }
  }

  /// Appends `place` + lane * `scale` for the lanes of a mask.  May write 16 numbers.
  struct Lister {
    std::uint32_t scale;

    SNNC_BODY explicit Lister(std::uint32_t the_scale) : scale(the_scale) {}
    SNNC_BODY std::uint32_t* operator()(unsigned mask, std::uint32_t place,
                                        std::uint32_t* end) const {
      for (; mask; mask &= mask - 1) {
        *end++ = place + static_cast<std::uint32_t>(__builtin_ctz(mask)) * scale;
      }
      return end;
    }
  };
};

#ifdef SNNC_X86
/// What GCC makes only of assembly, where the body is not for one set.  Clang takes no vectors there
/// that are too large for the body's own set, and finds the instruction in plain C++.
struct Assembly : Plain {
#ifndef __clang__
  template <typename Vector>
  SNNC_BODY static void spread(const float* value, Vector& vector) {
    Vector result;
    asm("vbroadcastss %1, %0" : "=v"(result) : "m"(*value));
    vector = result;
  }
  template <typename Vector>
  SNNC_BODY static void multiply_add(const Vector& weight, const Vector& value, Vector& sum) {
    Vector total = sum;
    asm("vfmadd231ps %2, %1, %0" : "+v"(total) : "v"(weight), "v"(value));
    sum = total;
  }
  template <typename Vector>
  SNNC_BODY static void widen_bytes(const std::uint8_t* from, Vector& vector) {
    struct Block {
      std::uint8_t bytes[sizeof(Vector) / 4];
    };
    Vector result;
    asm("vpmovzxbd %1, %0" : "=v"(result) : "m"(*reinterpret_cast<const Block*>(from)));
    vector = result;
  }
  template <typename Vector>
  SNNC_BODY static void spread_bytes(const std::uint8_t* from, Vector& vector) {
    struct Block {
      std::uint8_t bytes[4];
    };
    Vector result;
    asm("vpbroadcastd %1, %0" : "=v"(result) : "m"(*reinterpret_cast<const Block*>(from)));
    vector = result;
  }
  template <typename Vector>
  SNNC_BODY static void widen_shorts(const std::int16_t* from, Vector& vector) {
    struct Block {
      std::int16_t shorts[sizeof(Vector) / 4];
    };
    Vector result;
    asm("vpmovsxwd %1, %0" : "=v"(result) : "m"(*reinterpret_cast<const Block*>(from)));
    vector = result;
  }
  template <typename Vector>
  SNNC_BODY static void add_products(const Vector& weights, const Vector& spikes, Vector& sum) {
    using Pairs = typename PairsIn<sizeof(Vector)>::type;
    Pairs more, pairs;
    asm("vpmaddubsw %2, %1, %0" : "=v"(more) : "v"(spikes), "v"(weights));
    std::memcpy(&pairs, &sum, sizeof(pairs));
    pairs += more;
    std::memcpy(&sum, &pairs, sizeof(sum));
  }
  template <typename Vector>
  SNNC_BODY static void stream(const Vector& vector, void* to) {
    asm volatile("vmovntps %1, %0" : "=m"(*static_cast<Vector*>(to)) : "v"(vector));
  }
#endif
  static void end_of_streams() { _mm_sfence(); }
};

struct Avx2 : Assembly {
#ifndef __clang__
  template <typename Vector>
  SNNC_BODY static void write_spikes(const Vector& fires, std::uint8_t* to) {
    std::uint64_t mask, bytes;
    asm("vmovmskps %1, %k0" : "=r"(mask) : "x"(fires));
    asm("pdep %2, %1, %0" : "=r"(bytes) : "r"(mask), "r"(std::uint64_t{0x0101010101010101}));
    std::memcpy(to, &bytes, sizeof(bytes));
  }
#endif
  static constexpr int bytes = 32, registers = 8;
  static constexpr int dense_vectors(int) { return 2; }
  static constexpr int dense_pixels(int) { return 6; }
  static constexpr int dot_pixels(int) { return 6; }

  template <typename Body>
  SNNC_AVX2 static auto run(const Body& body) {
    return body(Avx2{});
  }
  template <typename Body>
  SNNC_AVX2 SNNC_APART static void apart(const Body& body) {
    body();
  }
  SNNC_AVX2 static void widen_halves(const Half* from, std::int64_t count, float* to) {
    const std::int64_t whole = count / 8 * 8;
    for (std::int64_t i = 0; i < whole; i += 8) {
      const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
    }
    for (std::int64_t i = whole; i < count; ++i) to[i] = _cvtsh_ss(static_cast<std::uint16_t>(from[i]));
  }
  SNNC_AVX2 static void narrow_floats(const float* from, std::int64_t count, Half* to) {
    const std::int64_t whole = count / 8 * 8;
    for (std::int64_t i = 0; i < whole; i += 8) {
      const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
    }
    for (std::int64_t i = whole; i < count; ++i) {
      to[i] = static_cast<Half>(_cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT));
    }
  }

  SNNC_AVX2 static void masks(const std::uint8_t* from, std::int64_t count, std::uint8_t level,
                              std::uint16_t* to) {
    const __m256i least = _mm256_set1_epi8(static_cast<char>(level));
    for (; count >= 32; count -= 32, from += 32, to += 2) {
      const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      const int mask = _mm256_movemask_epi8(_mm256_cmpgt_epi8(values, least));
      std::memcpy(to, &mask, sizeof(mask));
    }
    Generic::masks(from, count, level, to);
  }

  struct Lister {
    using Places __attribute__((vector_size(32))) = std::int32_t;
    std::int32_t scale;

    SNNC_BODY explicit Lister(std::uint32_t the_scale)
        : scale(static_cast<std::int32_t>(the_scale)) {}
    SNNC_BODY std::uint32_t* operator()(unsigned mask, std::uint32_t place,
                                        std::uint32_t* end) const {
      end = half(mask & 0xff, static_cast<std::int32_t>(place), end);
      return half(mask >> 8, static_cast<std::int32_t>(place) + 8 * scale, end);
    }
    SNNC_BODY std::uint32_t* half(unsigned mask, std::int32_t place, std::uint32_t* end) const {
      Places places;
      widen_bytes(lanes_of_byte[mask].data(), places);
      places = places * scale + place;
      std::memcpy(end, &places, sizeof(places));
      return end + __builtin_popcount(mask);
    }
  };
};

struct Avx512 : Assembly {
  static constexpr int bytes = 64, registers = 16;
  static constexpr int dense_vectors(int units) { return units; }
  static constexpr int dense_pixels(int vectors) { return vectors > 2 ? 6 : 8; }
  static constexpr int dot_pixels(int vectors) { return vectors == 1 ? 16 : 24 / vectors; }

  template <typename Body>
  SNNC_AVX512 static auto run(const Body& body) {
    return body(Avx512{});
  }
  template <typename Body>
  SNNC_AVX512 SNNC_APART static void apart(const Body& body) {
    body();
  }
  static void widen_halves(const Half* from, std::int64_t count, float* to) {
    Avx2::widen_halves(from, count, to);
  }
  static void narrow_floats(const float* from, std::int64_t count, Half* to) {
    Avx2::narrow_floats(from, count, to);
  }

  SNNC_AVX512 static void masks(const std::uint8_t* from, std::int64_t count, std::uint8_t level,
                                std::uint16_t* to) {
    const __m512i least = _mm512_set1_epi8(static_cast<char>(level));
    for (; count > 0; count -= 64, from += 64, to += 4) {
      const std::uint64_t here = count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
      const __m512i values = _mm512_maskz_loadu_epi8(here, from);
      const std::uint64_t mask = _mm512_cmpgt_epu8_mask(values, least);
      std::memcpy(to, &mask, sizeof(mask));
    }
  }

#ifdef __clang__
  using Lister = Avx2::Lister;
#else
  struct Lister {
    using Places __attribute__((vector_size(64))) = std::int32_t;
    Places lanes;

    SNNC_BODY explicit Lister(std::uint32_t scale) {
      for (int i = 0; i < 16; ++i) lanes[i] = i * static_cast<std::int32_t>(scale);
    }
    SNNC_BODY std::uint32_t* operator()(unsigned mask, std::uint32_t place,
                                        std::uint32_t* end) const {
      Places places = lanes + static_cast<std::int32_t>(place);
      asm("kmovw %1, %%k1\n\tvpcompressd %0, %0%{%%k1%}" : "+v"(places) : "r"(mask) : "k1");
      std::memcpy(end, &places, sizeof(places));
      return end + __builtin_popcount(mask);
    }
  };
#endif
};
#endif

#if defined(SNNC_X86) && !defined(__clang__)
#define SNNC_PRODUCTS 1
/// AVX2 and AVX-512 with products of bytes.
struct AvxVnni : Avx2 {
  static constexpr bool narrow = false;
  template <typename Vector>
  SNNC_BODY static void add_products(const Vector& weights, const Vector& spikes, Vector& sum) {
    Vector total = sum;
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(total) : "x"(spikes), "x"(weights));
    sum = total;
  }
  template <typename Body>
  SNNC_AVX2 static auto run(const Body& body) {
    return body(AvxVnni{});
  }
};
struct Avx512Vnni : Avx512 {
  static constexpr bool narrow = false;
  template <typename Vector>
  SNNC_BODY static void add_products(const Vector& weights, const Vector& spikes, Vector& sum) {
    Vector total = sum;
    asm("vpdpbusd %2, %1, %0" : "+v"(total) : "v"(spikes), "v"(weights));
    sum = total;
  }
  template <typename Body>
  SNNC_AVX512 static auto run(const Body& body) {
    return body(Avx512Vnni{});
  }
};
#elif defined(__aarch64__) && defined(__linux__)
#define SNNC_PRODUCTS 1
/// NEON with products of bytes; spikes are at most 127, so that a sign makes no difference.
struct DotProd : Generic {
  static constexpr bool narrow = false;
  static constexpr int dot_pixels(int) { return 4; }
  template <typename Vector>
  SNNC_BODY static void add_products(const Vector& weights, const Vector& spikes, Vector& sum) {
    Vector total = sum;
    asm(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(total) : "w"(weights), "w"(spikes));
    sum = total;
  }
};
#endif

/// Whether `on_products` takes an instruction that adds products of bytes to integers of 32 bits.
constexpr bool has_products([[maybe_unused]] Isa isa) {
#ifdef SNNC_PRODUCTS
  return isa == Isa::dotprod || isa == Isa::avxvnni || isa >= Isa::avx512;
#else
  return false;
#endif
}

/// Calls body(set), compiled for the best instruction set that `isa` allows.
template <typename Body>
auto on(Isa isa, const Body& body) {
#ifdef SNNC_X86
  if (isa >= Isa::avx512f) return Avx512::run(body);
  if (isa >= Isa::avx2) return Avx2::run(body);
#endif
  (void)isa;
  return body(Generic{});
}

/// The same, where products of bytes matter.
template <typename Body>
auto on_products(Isa isa, const Body& body) {
#ifdef SNNC_PRODUCTS
#ifdef SNNC_X86
  if (isa >= Isa::avx512) return Avx512Vnni::run(body);
  if (isa == Isa::avxvnni) return AvxVnni::run(body);
#else
  if (isa == Isa::dotprod) return body(DotProd{});
#endif
#endif
  return on(isa, body);
}

// A vector of floats, and others of as many elements.
template <typename Set>
using Floats __attribute__((vector_size(Set::bytes))) = float;
template <typename Set>
using Ints __attribute__((vector_size(Set::bytes))) = std::int32_t;
template <typename Set>
using Shorts __attribute__((vector_size(Set::bytes / 2))) = std::uint16_t;
template <typename Set>
using Bytes __attribute__((vector_size(Set::bytes / 4))) = std::uint8_t;

template <typename Set>
constexpr int lanes = Set::bytes / 4;

// By reference: vectors of an instruction set that the file is not compiled for do not travel by
// value.
template <typename Vector>
SNNC_BODY void load(const void* from, Vector& vector) {
  std::memcpy(&vector, from, sizeof(vector));
}
template <typename Vector>
SNNC_BODY void store(void* to, const Vector& vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

}  // namespace snnc::cpu
