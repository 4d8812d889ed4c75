// Memory aligned to cache lines, and working memory that a thread keeps.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace snnc {

constexpr std::size_t line = 64, huge_page = std::size_t{1} << 21;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
/// Memory aligned to cache lines.
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

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

}  // namespace snnc
