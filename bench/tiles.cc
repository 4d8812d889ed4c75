// How fast spikes, as bytes, can be multiplied by weights of 8 bits in the processor's tiles (AMX), from the
// first-level cache: the limit of layers by digits.  Prints multiplications per second; fails where
// there are no tiles.

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

constexpr std::int64_t panel = 1024, panels = 9;
alignas(64) static std::uint8_t spikes[2 * panels * panel];
alignas(64) static std::int8_t weights[3 * panels * panel];

#define LOAD(tile, from) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(std::int64_t{64}) : "memory")
#define DOT(sum, a, b) asm volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)

int main() {
  if (syscall(SYS_arch_prctl, 0x1023, 18)) return 1;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  struct {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shapes;
  asm volatile("ldtilecfg %0" : : "m"(shapes));
  std::vector<double> found;
  for (int turn = 0; turn < 7; ++turn) {
    const auto begin = std::chrono::steady_clock::now();
    double seconds = 0;
    std::int64_t count = 0;
    while (seconds < 0.05) {
      for (int repeat = 0; repeat < 100; ++repeat) {
        for (std::int64_t k = 0; k < panels; ++k) {
          const std::uint8_t* const seen = spikes + 2 * k * panel;
          const std::int8_t* const digits = weights + 3 * k * panel;
          LOAD(6, seen);
          LOAD(7, digits);
          DOT(0, 6, 7);
          LOAD(7, digits + panel);
          DOT(1, 6, 7);
          LOAD(7, digits + 2 * panel);
          DOT(2, 6, 7);
          LOAD(6, seen + panel);
          DOT(5, 6, 7);
          LOAD(7, digits + panel);
          DOT(4, 6, 7);
          LOAD(7, digits);
          DOT(3, 6, 7);
        }
      }
      count += 100 * panels * 6 * 16 * panel;
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    found.push_back(static_cast<double>(count) / seconds);
  }
  std::sort(found.begin(), found.end());
  std::printf("%.0f\n", found[found.size() / 2]);
}
