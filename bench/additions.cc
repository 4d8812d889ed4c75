// How fast weight rows can be added up, by the size of the memory that they lie in: the limit of
// event-driven layers.  Rows of 64 floats in random order, two sums at a time; prints bytes and
// additions per second.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using Vector __attribute__((vector_size(64))) = float;

constexpr int width = 64, vectors = 4, listed = 4096;

static double additions_per_second(std::int64_t rows) {
  auto* const weights = static_cast<float*>(
      std::aligned_alloc(64, static_cast<std::size_t>(rows) * width * sizeof(float)));
  std::fill_n(weights, rows * width, 1.0f);
  std::vector<std::uint32_t> list(listed);
  std::uint32_t state = 1;
  for (auto& place : list) {
    state = state * 1664525u + 1013904223u;
    place = static_cast<std::uint32_t>((state >> 8) % static_cast<std::uint64_t>(rows)) * width;
  }
  std::vector<double> found;
  for (int turn = 0; turn < 7; ++turn) {
    Vector sum[2][vectors] = {};
    std::int64_t count = 0;
    const auto begin = std::chrono::steady_clock::now();
    double seconds = 0;
    while (seconds < 0.05) {
      for (int repeat = 0; repeat < 16; ++repeat) {
        for (int i = 0; i < listed; i += 2) {
          for (int job = 0; job < 2; ++job) {
            for (int r = 0; r < vectors; ++r) {
              Vector weight;
              std::memcpy(&weight, weights + list[static_cast<std::size_t>(i + job)] + r * 16,
                          sizeof(weight));
              sum[job][r] += weight;
            }
          }
        }
        count += std::int64_t{listed} * width;
      }
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    // Every sum is used, or the compiler leaves its additions out.
    volatile float used = 0;
    for (const auto& job : sum) {
      for (const Vector& one : job) {
        for (int lane = 0; lane < 16; ++lane) used = used + one[lane];
      }
    }
    found.push_back(static_cast<double>(count) / seconds);
  }
  std::free(weights);
  std::sort(found.begin(), found.end());
  return found[found.size() / 2];
}

int main(int count, char** rows) {
  for (int i = 1; i < count; ++i) {
    const std::int64_t number = std::atoll(rows[i]);
    std::printf("%lld %.0f\n", static_cast<long long>(number), additions_per_second(number));
  }
}
