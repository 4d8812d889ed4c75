// Threads that share parts of work: every part is done once, and nothing is read while it is written.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "crew.h"

int main() {
  for (int round = 0; round < 60; ++round) {
    snnc::Crew crew;
    std::vector<long> done(2000);
    long wanted = 0;
    const auto lead = [&] {
      for (long call = 1; call <= 40; ++call) {
        const std::vector<long> amounts(8, call);
        const std::int64_t parts = 1 + call % 7;
        crew.parallel(parts, [&](std::int64_t part) {
          for (std::int64_t i = 0; i < 50; ++i) {
            done[static_cast<std::size_t>(part * 50 + i)] += amounts[static_cast<std::size_t>(part)];
          }
        });
        wanted += parts * 50 * call;
      }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) threads.emplace_back([&] { crew.join(lead); });
    for (std::thread& thread : threads) thread.join();
    crew.check();
    long sum = 0;
    for (const long one : done) sum += one;
    if (sum != wanted) return EXIT_FAILURE;
  }
  snnc::Crew crew;
  crew.join([] { throw 1; });
  try {
    crew.check();
  } catch (int) {
    std::puts("60 rounds");
    return EXIT_SUCCESS;
  }
  return EXIT_FAILURE;
}
