// Random layers by counts, in every way of multiplying that this machine has, against plain loops.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "count_kernels.h"
#include "cpu_kernels.h"

namespace {

using namespace snnc;
using counts::Way;

std::mt19937 random_bits(7);
std::int64_t draw(std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(random_bits() % static_cast<std::uint64_t>(high - low + 1));
}

template <typename T>
std::vector<T> drawn(std::int64_t count, std::int64_t low, std::int64_t high) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = static_cast<T>(draw(low, high));
  return values;
}

std::vector<Way> ways() {
  std::vector<Way> found{Way::plain};
#if defined(__x86_64__)
  const cpu::Isa best = cpu::best_isa();
  if (best >= cpu::Isa::avx2) found.push_back(Way::avx2);
  if (best >= cpu::Isa::avx512) found.push_back(Way::vnni);
  if (best == cpu::Isa::amx) found.push_back(Way::tiles);
#endif
  if (counts::best_way() == Way::dotprod || counts::best_way() == Way::avxvnni) {
    found.push_back(counts::best_way());
  }
  return found;
}

/// What the layer sends, by its definition.
std::vector<std::uint8_t> wanted(const counts::Call& call, const counts::Neurons& neurons,
                                 const std::vector<std::int8_t>& weights, std::int64_t channels,
                                 std::int64_t origin) {
  const counts::Source& source = call.sources[0];
  std::vector<std::uint8_t> out(static_cast<std::size_t>(call.images * call.height * call.width * channels));
  std::size_t at = 0;
  for (std::int64_t n = 0; n < call.images; ++n) {
    for (std::int64_t y = 0; y < call.height; ++y) {
      for (std::int64_t x = 0; x < call.width; ++x) {
        for (std::int64_t c = 0; c < channels; ++c, ++at) {
          std::int64_t sum = neurons.membrane[c];
          for (std::int64_t ky = 0; ky < source.kernel[0]; ++ky) {
            for (std::int64_t kx = 0; kx < source.kernel[1]; ++kx) {
              const std::int64_t top = source.row(y, ky), left = source.column(x, kx);
              if (top < 0 || top >= source.in[0] || left < 0 || left >= source.in[1]) continue;
              for (std::int64_t i = 0; i < source.channels; ++i) {
                const std::int64_t count =
                    call.counts[0][((n * source.in[0] + top) * source.in[1] + left) * source.pixel + i];
                sum += (count - origin) *
                       weights[static_cast<std::size_t>(
                           ((ky * source.kernel[1] + kx) * source.channels + i) * channels + c)];
              }
            }
          }
          if (call.residual) sum += neurons.coefficient[c] * static_cast<std::int64_t>(call.residual[at]);
          const std::int64_t fired = sum < 0 ? 0 : sum / neurons.threshold[c];
          out[at] = static_cast<std::uint8_t>(std::min(fired, call.levels));
        }
      }
    }
  }
  return out;
}

bool check(Way way, int trial) {
  random_bits.seed(static_cast<unsigned>(trial));
  counts::Source source{};
  const std::int64_t channels = draw(1, 40), images = draw(1, 3), most = draw(0, 1) ? 15 : 255;
  for (int axis = 0; axis < 2; ++axis) {
    source.kernel[axis] = draw(1, 3);
    source.stride[axis] = draw(1, 2);
    source.dilation[axis] = draw(0, 3) ? 1 : 2;
    source.begin[axis] = draw(0, 2);
    source.end[axis] = draw(0, 2);
    source.in[axis] = draw(5, 12);
  }
  source.channels = source.pixel = draw(1, 70);
  const std::int64_t origin = draw(0, 2) ? 0 : draw(1, most);
  const std::int64_t height = source.out(0), width = source.out(1), all = images * height * width * channels;
  const auto weights = drawn<std::int8_t>(source.rows() * channels, -127, 127);
  const auto input = drawn<std::uint8_t>(images * source.in[0] * source.in[1] * source.pixel, 0, most);
  const auto past = drawn<std::uint8_t>(all, 0, 255);
  const auto membrane = drawn<std::int32_t>(channels, -5000, 5000);
  const auto threshold = drawn<std::int32_t>(channels, 1, 100 * most);
  const auto coefficient = drawn<std::int32_t>(channels, -32768, 32767);
  const bool residual = draw(0, 1);
  counts::Neurons neurons{};
  neurons.membrane = membrane.data();
  neurons.threshold = threshold.data();
  neurons.coefficient = residual ? coefficient.data() : nullptr;
  const std::int8_t* from[] = {weights.data(), nullptr};
  const counts::Layer layer({source}, false, channels, 0, channels, from, neurons, origin, way);
  std::vector<std::uint8_t> out(static_cast<std::size_t>(all));
  counts::Call call{};
  call.sources[0] = source;
  call.counts[0] = input.data();
  call.residual = residual ? past.data() : nullptr;
  call.out = out.data();
  call.images = images;
  call.height = height;
  call.width = width;
  call.levels = draw(1, 255);
  call.most = std::max(most, origin);
  call.quick = layer.quick(call.levels);
  if (!counts::run(layer, call, 0, images, 0, height, 0, layer.units)) return false;
  return out == wanted(call, neurons, weights, channels, origin);
}

}  // namespace

int main() {
  int done = 0;
  for (const Way way : ways()) {
    for (int trial = 0; trial < 60; ++trial, ++done) {
      if (!check(way, trial)) {
        std::printf("way %d, trial %d differs\n", static_cast<int>(way), trial);
        return EXIT_FAILURE;
      }
    }
  }
  std::printf("%d layers in %d ways\n", done, done / 60);
}
