// Threads that share one call after the other, without being woken in between.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>

namespace snnc {

/// A thread leads; whoever else comes helps with the parts of what it does, until it is done.  Nothing
/// waits for a helper that does not come.
class Crew {
 public:
  /// The first thread that comes here leads and does `work`; the others return when it is done.
  template <typename Work>
  void join(const Work& work) noexcept {
    if (led_.exchange(true)) return help();
    try {
      work();
    } catch (...) {
      error_ = std::current_exception();
    }
    over_.store(true, std::memory_order_release);
  }
  /// Throws what the leader's work has thrown; behind all calls of `join`.
  void check() const {
    if (error_) std::rethrow_exception(error_);
  }

  // --- for the leader ---

  /// Threads that are here now.
  std::int64_t hands() const { return 1 + helpers_.load(std::memory_order_relaxed); }

  /// Runs work(0) ... work(total - 1), which must not throw; at most 2^20.
  template <typename Work>
  void parallel(std::int64_t total, const Work& work) {
    call_ = [](const void* data, std::int64_t index) { (*static_cast<const Work*>(data))(index); };
    work_ = &work;
    done_.store(0, std::memory_order_relaxed);
    generation_ += std::uint64_t{1} << (2 * bits);
    ticket_.store(generation_ | static_cast<std::uint64_t>(total) << bits, std::memory_order_release);
    while (take()) {
    }
    for (int turns = 0; done_.load(std::memory_order_acquire) < total; ++turns) rest(turns);
  }

 private:
  static constexpr int bits = 20;
  static constexpr std::uint64_t mask = (std::uint64_t{1} << bits) - 1;

  void help() {
    helpers_.fetch_add(1, std::memory_order_relaxed);
    for (int turns = 0; !over_.load(std::memory_order_acquire); ++turns) {
      if (take()) {
        turns = 0;
      } else {
        rest(turns);
      }
    }
  }

  /// Does one part, if any is left.  The leader waits for every part that was taken, so what is read here
  /// does not change.
  bool take() {
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while ((ticket & mask) < (ticket >> bits & mask)) {
      if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                        std::memory_order_acquire)) {
        call_(work_, static_cast<std::int64_t>(ticket & mask));
        done_.fetch_add(1, std::memory_order_release);
        return true;
      }
    }
    return false;
  }

  static void rest(int turns) {
    if (turns > 1 << 12) return std::this_thread::yield();  // there are more threads than cores
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::atomic<bool> led_{false}, over_{false};
  std::atomic<std::int64_t> helpers_{0};
  std::exception_ptr error_;
  // Of the work that is shared now.
  void (*call_)(const void* data, std::int64_t index) = nullptr;
  const void* work_ = nullptr;
  std::uint64_t generation_ = 0;
  alignas(64) std::atomic<std::uint64_t> ticket_{0};  // generation, parts, and the next of these
  alignas(64) std::atomic<std::int64_t> done_{0};
};

}  // namespace snnc
