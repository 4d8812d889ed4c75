// What the kernels of event-driven layers share: how a function is compiled for an instruction set,
// and memory to work in.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#define SNNC_X86 1
#endif

#include "event_kernels.h"

// As in cpu_kernels.cc: a body is written once and inlined into one wrapper per instruction set.
// Loops that matter are functions of their own (`apart`): in one large function the compiler runs out
// of registers and takes up to a seventh more time.
#define SNNC_BODY inline __attribute__((always_inline))
#define SNNC_INLINE __attribute__((always_inline))
#define SNNC_APART __attribute__((noinline))
#define SNNC_AVX2 __attribute__((target("avx2,fma,popcnt")))
#define SNNC_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt,bmi,bmi2")))

namespace snnc::events {

constexpr std::size_t line = 64, huge_page = std::size_t{1} << 21;

/// Time-steps times pixels of a tile: many share the weights of a block while these are in the
/// second-level cache, and few keep lists, currents or spikes in there too.
constexpr std::int64_t jobs_of_one_block = 512;

template <typename T>
Buffer<T> allocate(std::int64_t count) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
  const std::size_t align = bytes >= huge_page / 2 ? huge_page : line;
  const std::size_t whole = (bytes + align - 1) / align * align;
  void* const memory = std::aligned_alloc(align, whole);
#ifdef MADV_HUGEPAGE
  // Rows are read in no order: with small pages the addresses miss their cache, too.
  if (memory && align == huge_page) madvise(memory, whole, MADV_HUGEPAGE);
#endif
  return Buffer<T>(static_cast<T*>(memory));
}

/// Working memory of a thread, kept from call to call: fresh pages cost more than the work itself.
class Scratch {
 public:
  template <typename T>
  static std::int64_t room(std::int64_t count) {
    constexpr auto step = static_cast<std::int64_t>(line);
    return (count * std::int64_t{sizeof(T)} + step - 1) / step * step;
  }
  /// Makes room for `bytes`; what was taken before is gone.
  bool reserve(std::int64_t bytes) {
    taken_ = 0;
    if (bytes > size_) {
      size_ = 0;
      memory_ = allocate<char>(bytes);
      if (!memory_) return false;
      size_ = bytes;
    }
    return true;
  }
  template <typename T>
  T* take(std::int64_t count) {
    T* const begin = reinterpret_cast<T*>(memory_.get() + taken_);
    taken_ += room<T>(count);
    return begin;
  }

 private:
  Buffer<char> memory_;
  std::int64_t size_ = 0, taken_ = 0;
};

#ifdef SNNC_AMX
/// As `run`, of a layer whose weights are digits.
bool run_digits(const Layer& layer, const Call& call, std::int64_t sample, std::int64_t first,
                std::int64_t count, std::int64_t block, std::int64_t block_count);
#endif

}  // namespace snnc::events
