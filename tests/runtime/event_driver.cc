// Runs the event kernels of every instruction set of this machine, in every way and cut into parts,
// against plain loops, and prints how many cases agreed.  Weights are whole numbers of up to 16 bits, or multiples of
// 2^-12, and all else is whole or a multiple of 1/16, so that sums are exact in any order.  Also run under the
// sanitizers.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#if !defined(__SANITIZE_ADDRESS__) && (defined(__linux__) || defined(__APPLE__))
#include <sys/mman.h>
#include <unistd.h>
#define SNNC_GUARD 1
#endif

#include "event_kernels.h"

using namespace snnc;
using events::Way;

namespace {

/// Memory of exactly the right size.  Without AddressSanitizer a page follows it that nobody may
/// touch: assembly that reads too far is not seen by the sanitizer.
template <typename T>
struct Exact {
  using value_type = T;
  Exact() = default;
  template <typename U>
  Exact(const Exact<U>&) {}
#ifdef SNNC_GUARD
  T* allocate(std::size_t count) {
    const std::size_t size = count * sizeof(T), held = pages(size);
    void* const memory = mmap(nullptr, held + page(), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANON, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    char* const guard = static_cast<char*>(memory) + held;
    if (mprotect(guard, page(), PROT_NONE)) throw std::bad_alloc();
    return reinterpret_cast<T*>(guard - size);
  }
  void deallocate(T* memory, std::size_t count) {
    const std::size_t size = count * sizeof(T), held = pages(size);
    munmap(reinterpret_cast<char*>(memory) + size - held, held + page());
  }
  static std::size_t page() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }
  static std::size_t pages(std::size_t size) { return (size + page() - 1) / page() * page(); }
#else
  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T))); }
  void deallocate(T* memory, std::size_t) { ::operator delete(memory); }
#endif
  friend bool operator==(const Exact&, const Exact&) { return true; }
  friend bool operator!=(const Exact&, const Exact&) { return false; }
};

using Bytes = std::vector<std::uint8_t, Exact<std::uint8_t>>;
using Floats = std::vector<float, Exact<float>>;

unsigned state = 1;
unsigned random_bits() { return (state = state * 1664525u + 1013904223u) >> 8; }
std::int64_t random_from(std::int64_t least, std::int64_t most) {
  return least + random_bits() % (most - least + 1);
}
bool one_in(std::int64_t count) { return random_from(1, count) == 1; }
template <typename T>
T one_of(std::initializer_list<T> values) {
  return values.begin()[random_bits() % values.size()];
}
Floats multiples(float unit, std::int64_t count, std::int64_t least, std::int64_t most) {
  Floats values(count);
  for (float& x : values) x = unit * static_cast<float>(random_from(least, most));
  return values;
}
Bytes random_spikes(std::int64_t count, double density, std::int64_t levels) {
  Bytes values(count);
  for (std::uint8_t& s : values) {
    s = random_bits() < density * (1 << 24) ? static_cast<std::uint8_t>(random_from(1, levels)) : 0;
  }
  return values;
}
/// Bounds of parts of [0, count).
std::vector<std::int64_t> random_cuts(std::int64_t count) {
  std::vector<std::int64_t> cuts{0};
  while (cuts.back() < count) cuts.push_back(random_from(cuts.back() + 1, count));
  return cuts;
}

int cases = 0, by_digits = 0, by_one = 0, by_two = 0;

template <typename A>
bool same(const A& a, const A& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
}

const char* name_of(Way way) {
  return way == Way::choose ? "choose" : way == Way::events ? "events" : "dense";
}

void print(const events::Source& s) {
  std::printf("  in %ld x %ld, channels %ld of %ld, levels %ld, kernel %ld x %ld, strides %ld %ld, "
              "dilations %ld %ld, pads %ld %ld %ld %ld\n",
              long(s.in[0]), long(s.in[1]), long(s.channels), long(s.pixel), long(s.levels),
              long(s.kernel[0]), long(s.kernel[1]), long(s.stride[0]), long(s.stride[1]),
              long(s.dilation[0]), long(s.dilation[1]), long(s.begin[0]), long(s.begin[1]),
              long(s.end[0]), long(s.end[1]));
}

std::vector<cpu::Isa> instruction_sets() {
  std::vector<cpu::Isa> all;
  for (const cpu::Isa isa : cpu::all_isas) {
    if (cpu::has_isa(isa)) all.push_back(isa);
  }
  return all;
}

// --- convolution and neuron ----------------------------------------------------------------------

/// A call on arrays of its own; `from[i]` are the weights of source i,
/// `[kernel height, kernel width, channels of a group, channels out]`.
struct Layer {
  std::vector<events::Source> sources;
  std::int64_t group = 1, channels, out[2], steps, samples, start, rows_of_schedule;
  bool current_spread, membrane_spread, in_place;
  std::vector<Bytes> spikes;
  std::vector<Floats> from;
  Floats current, membrane, threshold, amplitude, schedule;
  Bytes residual;

  std::int64_t places() const { return samples * out[0] * out[1]; }
  bool depthwise() const { return group > 1 && sources[0].channels == 1 && channels == group; }
};

/// What a layer leaves behind.
struct Result {
  Bytes spikes;
  Floats membrane;
};

/// The row, or column, of the input that output row `at` sees through kernel row `k`.
std::int64_t seen_by(const events::Source& s, int axis, std::int64_t at, std::int64_t k) {
  return at * s.stride[axis] - s.begin[axis] + k * s.dilation[axis];
}
bool outside(const events::Source& s, std::int64_t row, std::int64_t column) {
  return row < 0 || row >= s.in[0] || column < 0 || column >= s.in[1];
}

Result plain(const Layer& layer) {
  const std::int64_t channels = layer.channels, each = channels / layer.group;
  Result result{Bytes(layer.steps * layer.places() * channels), Floats(layer.places() * channels)};
  std::vector<float> sums(channels);
  for (std::int64_t place = 0; place < layer.places(); ++place) {
    const std::int64_t x = place % layer.out[1], y = place / layer.out[1] % layer.out[0];
    const std::int64_t sample = place / layer.out[1] / layer.out[0];
    float* const v = &result.membrane[place * channels];
    std::copy_n(&layer.membrane[layer.membrane_spread ? 0 : place * channels], channels, v);
    for (std::int64_t t = 0; t < layer.steps; ++t) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (std::size_t i = 0; i < layer.sources.size(); ++i) {
        const events::Source& s = layer.sources[i];
        for (std::int64_t k = 0; k < s.kernel[0] * s.kernel[1]; ++k) {
          const std::int64_t row = seen_by(s, 0, y, k / s.kernel[1]);
          const std::int64_t column = seen_by(s, 1, x, k % s.kernel[1]);
          if (outside(s, row, column)) continue;
          const std::int64_t image = t * layer.samples + sample;
          const std::int64_t seen = (image * s.in[0] + row) * s.in[1] + column;
          for (std::int64_t c = 0; c < s.pixel; ++c) {
            const std::uint8_t spike = layer.spikes[i][seen * s.pixel + c];
            if (!spike) continue;
            const std::int64_t first = c / s.channels * each;
            const float* const w =
                &layer.from[i][(k * s.channels + c % s.channels) * channels + first];
            for (std::int64_t o = 0; o < each; ++o) sums[first + o] += spike * w[o];
          }
        }
      }
      const float* const current = &layer.current[layer.current_spread ? 0 : place * channels];
      for (std::int64_t o = 0; o < channels; ++o) sums[o] += current[o];
      const std::int64_t now = (t * layer.places() + place) * channels;
      const std::int64_t row = std::min(layer.start + t, layer.rows_of_schedule - 1);
      for (std::int64_t o = 0; o < channels; ++o) {
        float x = sums[o];
        if (!layer.residual.empty() && layer.residual[now + o]) x += layer.amplitude[o];
        float u = v[o] + x;
        if (!layer.schedule.empty()) u += layer.schedule[row * channels + o];
        const bool fires = u >= layer.threshold[o];
        v[o] = fires ? u - layer.threshold[o] : u;
        result.spikes[now + o] = fires;
      }
    }
  }
  return result;
}

/// The weights of every group, packed.
std::vector<events::Weights> pack(const Layer& layer, cpu::Isa isa) {
  std::vector<events::Weights> packed;
  const std::size_t groups = layer.depthwise() ? 1 : static_cast<std::size_t>(layer.group);
  const std::int64_t each = layer.channels / static_cast<std::int64_t>(groups);
  for (std::size_t g = 0; g < groups; ++g) {
    std::vector<Floats> parts;
    std::vector<const float*> from;
    for (const Floats& all : layer.from) {
      Floats part;
      for (std::size_t i = g * each; i < all.size(); i += layer.channels) {
        part.insert(part.end(), &all[i], &all[i] + each);
      }
      part.shrink_to_fit();
      parts.push_back(std::move(part));
    }
    for (const Floats& part : parts) from.push_back(part.data());
    packed.emplace_back(layer.sources, layer.depthwise(), each, from.data(), isa);
  }
  return packed;
}

Result run(const Layer& layer, const std::vector<events::Weights>& packed, Way way, cpu::Isa isa) {
  Result result{Bytes(layer.steps * layer.places() * layer.channels),
                Floats(layer.places() * layer.channels)};
  if (layer.in_place) result.membrane = layer.membrane;
  events::Call call{};
  for (std::size_t i = 0; i < layer.sources.size(); ++i) call.spikes[i] = layer.spikes[i].data();
  call.current = layer.current.data();
  call.current_spread = layer.current_spread;
  call.residual = layer.residual.empty() ? nullptr : layer.residual.data();
  call.amplitude = layer.amplitude.data();
  call.threshold = layer.threshold.data();
  call.schedule = layer.schedule.empty() ? nullptr : layer.schedule.data();
  call.scheduled = layer.rows_of_schedule;
  call.start = layer.start;
  call.membrane = layer.in_place ? result.membrane.data() : layer.membrane.data();
  call.membrane_spread = layer.membrane_spread;
  call.spikes_out = result.spikes.data();
  call.membrane_out = result.membrane.data();
  call.steps = layer.steps;
  call.samples = layer.samples;
  for (std::size_t g = 0; g < packed.size(); ++g) {
    std::vector<events::Source> sources = layer.sources;
    for (events::Source& source : sources) {
      source.offset = static_cast<std::int64_t>(g) * source.channels;
      if (packed[g].depthwise) source.channels = source.pixel;
    }
    const events::Layer part{&packed[g], sources.data(), sources.size(),
                             {layer.out[0], layer.out[1]}, layer.channels,
                             static_cast<std::int64_t>(g) * packed[g].channels};
    const std::vector<std::int64_t> rows = random_cuts(layer.out[0]);
    const std::vector<std::int64_t> blocks = random_cuts(packed[g].blocks);
    for (std::int64_t sample = 0; sample < layer.samples; ++sample) {
      for (std::size_t r = 1; r < rows.size(); ++r) {
        for (std::size_t b = 1; b < blocks.size(); ++b) {
          if (!events::run(part, call, sample, rows[r - 1], rows[r] - rows[r - 1], blocks[b - 1],
                           blocks[b] - blocks[b - 1], way, isa)) {
            std::puts("out of memory");
            std::exit(1);
          }
        }
      }
    }
  }
  return result;
}

void expect_same(const Result& got, const Result& wanted, const char* what, const Layer& layer,
                 Way way, cpu::Isa isa) {
  ++cases;
  if (same(got.spikes, wanted.spikes) && same(got.membrane, wanted.membrane)) return;
  std::printf("%s: differs by %s with instruction set %d\n", what, name_of(way), int(isa));
  for (const events::Source& source : layer.sources) print(source);
  std::printf("  group %ld, out %ld x %ld x %ld, %ld steps from %ld of %ld samples, %ld rows of a "
              "schedule, residual %d, spread %d %d\n",
              long(layer.group), long(layer.out[0]), long(layer.out[1]), long(layer.channels),
              long(layer.steps), long(layer.start), long(layer.samples),
              long(layer.schedule.empty() ? 0 : layer.rows_of_schedule), !layer.residual.empty(),
              layer.current_spread, layer.membrane_spread);
  std::exit(1);
}

/// The ways that there are with these weights: digits are the only one where a layer has them.
std::vector<Way> ways(const std::vector<events::Weights>& packed) {
  if (packed[0].digits) return {Way::choose};
  return {Way::choose, Way::events, Way::dense};
}

bool whole(const Layer& layer) {
  for (const Floats& weights : layer.from) {
    for (const float w : weights) {
      if (std::trunc(w) != w) return false;
    }
  }
  return !layer.from.empty();
}

/// All instruction sets in all ways.
void check(Layer layer) {
  const Result wanted = plain(layer);
  for (const cpu::Isa isa : instruction_sets()) {
    const std::vector<events::Weights> packed = pack(layer, isa);
    for (const Way way : ways(packed)) {
      expect_same(run(layer, packed, way, isa), wanted, "exact", layer, way, isa);
      by_digits += packed[0].kind != events::Digits::none;
      by_one += packed[0].kind == events::Digits::one;
      by_two += packed[0].kind == events::Digits::two;
    }
  }
  if (whole(layer)) {
    // Beside a static current that rounds: its sum with a whole one is rounded once, whatever the way.
    for (float& x : layer.current) x += static_cast<float>(random_bits()) / (1 << 24);
    const Result once = plain(layer);
    for (const cpu::Isa isa : instruction_sets()) {
      const std::vector<events::Weights> packed = pack(layer, isa);
      if (!packed[0].whole_values && packed[0].kind == events::Digits::none) continue;
      for (const Way way : ways(packed)) {
        expect_same(run(layer, packed, way, isa), once, "beside a fraction", layer, way, isa);
      }
    }
  }
  for (const events::Source& source : layer.sources) {
    if (source.levels > 1) return;
  }
  // Where sums round: the same order by events and densely, and in every instruction set.  Digits are
  // the same however the call is cut into parts.
  for (Floats& weights : layer.from) {
    for (float& w : weights) w *= 1 + static_cast<float>(random_bits()) / (1 << 24);
  }
  const std::vector<events::Weights> rounding = pack(layer, cpu::Isa::generic);
  const Result tables = run(layer, rounding, Way::choose, cpu::Isa::generic);
  const Result rows = run(layer, rounding, Way::events, cpu::Isa::generic);
  for (const cpu::Isa isa : instruction_sets()) {
    const std::vector<events::Weights> packed = pack(layer, isa);
    const bool digits = packed[0].digits != nullptr;
    for (const Way way : ways(packed)) {
      const bool by_tables = way == Way::choose && packed[0].tables;
      const Result again = digits ? run(layer, packed, way, isa) : by_tables ? tables : rows;
      expect_same(run(layer, packed, way, isa), again, "rounding", layer, way, isa);
    }
  }
}

events::Source random_source(std::int64_t channels, std::int64_t group, std::int64_t levels) {
  events::Source source{};
  source.channels = channels;
  source.pixel = channels * group;
  source.levels = levels;
  const int kernel = one_of({0, 1, 1, 2});
  const bool strided = one_in(2), dilated = one_in(4), padded = !one_in(4);
  for (int axis = 0; axis < 2; ++axis) {
    source.kernel[axis] = kernel == 0 ? 1 : kernel == 1 ? 3 : 2 + axis;
    source.stride[axis] = strided ? random_from(1, 4) : 1;
    source.dilation[axis] = dilated ? random_from(1, 3) : 1;
    source.begin[axis] = padded ? random_from(0, 3) : 0;
    source.end[axis] = padded ? random_from(0, 3) : 0;
  }
  return source;
}

/// Gives a source the extent for which its output is as wanted; false where there is none.
bool fit(events::Source& source, const std::int64_t* out) {
  for (int axis = 0; axis < 2; ++axis) {
    const std::int64_t reach = (source.kernel[axis] - 1) * source.dilation[axis] + 1;
    source.in[axis] = (out[axis] - 1) * source.stride[axis] + reach - source.begin[axis] -
                      source.end[axis] + random_from(0, source.stride[axis] - 1);
    if (source.in[axis] < 1 || source.out(axis) != out[axis]) return false;
  }
  return true;
}

/// Fills the arrays of a layer whose shapes are known.
void fill(Layer& layer, double density) {
  std::int64_t products = 0;
  for (const events::Source& source : layer.sources) products += source.rows() * source.levels;
  // Weights up to 1, in steps of 2^-16: sums below 256 are exact, and all digits of a weight count.  Or whole ones of
  // one digit or two, beside which the rest is whole, too, or not; a float holds what all this adds up to.
  float unit = 0x1p-16f, rest = 0x1p-4f;
  std::int64_t most = 65536, top = 16;
  if (const int digits = one_of({0, 1, 2})) {
    unit = 1;
    if (!one_in(4)) rest = 1;
    const std::int64_t bound = rest == 1 ? 1 << 23 : 1 << 18;
    most = std::clamp<std::int64_t>(bound / ((products + 3) * (layer.steps + 1)), 1, digits == 1 ? 127 : 32767);
    top = rest == 1 ? std::max<std::int64_t>(most, 4) : 16;
  }
  for (const events::Source& source : layer.sources) {
    const std::int64_t pixels = layer.steps * layer.samples * source.in[0] * source.in[1];
    layer.spikes.push_back(random_spikes(pixels * source.pixel, density, source.levels));
    // The digits of two sources may differ.
    const std::int64_t here = unit == 1 && layer.from.empty() && one_in(2) ? std::min<std::int64_t>(most, 127) : most;
    Floats weights = multiples(unit, source.rows() * layer.channels, -here, here);
    if (unit == 1 && rest == 1 && here > 127) weights[0] = one_of({32767.0f, -32767.0f, weights[0]});
    layer.from.push_back(std::move(weights));
  }
  const std::int64_t channels = layer.channels, all = layer.places() * channels;
  layer.current_spread = one_in(2);
  layer.membrane_spread = one_in(2);
  layer.in_place = !layer.membrane_spread && one_in(2);
  layer.current = multiples(rest, layer.current_spread ? channels : all, -top, top);
  layer.membrane = multiples(rest, layer.membrane_spread ? channels : all, -top, top);
  // Too large for some of the whole numbers that the kernels take, but exact.
  if (rest == 1 && one_in(4)) layer.membrane[0] = one_of({-8388607.0f, 4194304.0f});
  layer.threshold = multiples(rest, channels, top / 4, 3 * top);
  layer.start = random_from(0, 4);
  // Longer ones too, as growing thresholds have: charges go on in later blocks of steps.
  layer.rows_of_schedule = one_in(3) ? random_from(7, 48) : random_from(1, 6);
  if (one_in(3)) layer.schedule = multiples(rest, layer.rows_of_schedule * channels, -top, top);
  if (one_in(3)) {
    layer.residual = random_spikes(layer.steps * all, density, 1);
    layer.amplitude = multiples(rest, channels, -top, top);
  }
}

/// A layer at random; false where it would take too long.
bool random_layer(Layer& layer) {
  layer = Layer{};
  const int kind = one_of({0, 0, 0, 1, 1, 2, 3, 4});  // plain, two sources, groups, depthwise, none
  layer.channels = one_of({1, 3, 16, 17, 40, 64, 130});
  std::int64_t seen = one_of({1, 3, 16, 17, 40, 64, 130});
  if (kind == 2) {
    layer.group = one_of({2, 3});
    layer.channels = one_of({1, 3, 16, 17, 40}) * layer.group;
    seen = one_of({2, 3, 16, 17, 20});
  } else if (kind == 3) {
    layer.group = layer.channels = one_of({3, 16, 17, 40, 64, 130});
    seen = 1;
  }
  layer.out[0] = random_from(1, 9);
  layer.out[1] = random_from(1, 12);
  layer.steps = one_of({1, 5, 17, 40});
  layer.samples = random_from(1, 2);
  const std::int64_t levels = one_of({1, 1, 1, 4});
  if (kind != 4) layer.sources.push_back(random_source(seen, layer.group, levels));
  if (kind == 1) layer.sources.push_back(random_source(one_of({1, 3, 16, 17, 40}), 1, 1));
  std::int64_t work = layer.steps * layer.places() * layer.channels;
  std::int64_t rows = 1;
  for (events::Source& source : layer.sources) {
    if (!fit(source, layer.out)) return false;
    rows += source.rows();
  }
  if ((work *= rows) > 1 << 20) return false;
  // A potential that nothing lowers adds up over the steps, and must stay exact.
  if (layer.steps > 17 && rows > 100) return false;
  fill(layer, one_of({0.0, 0.05, 0.5, 1.0}));
  return true;
}

/// Too large for many cases: rows cut into several tiles, and many channels on both sides.
void large_layers() {
  struct Extent {
    std::int64_t in, out, height, width, steps;
  };
  for (const Extent& extent : {Extent{3, 16, 2, 80, 17}, Extent{3, 16, 2, 300, 17},
                               Extent{3, 130, 2, 80, 17}, Extent{3, 130, 2, 300, 17},
                               Extent{130, 130, 2, 5, 5}, Extent{64, 80, 4, 3, 17},
                               Extent{130, 40, 2, 20, 17}, Extent{64, 80, 4, 3, 40},
                               Extent{130, 40, 2, 20, 40}}) {
    Layer layer;
    layer.channels = extent.out;
    layer.out[0] = extent.height;
    layer.out[1] = extent.width;
    layer.steps = extent.steps;
    layer.samples = 1;
    events::Source source{};
    source.channels = source.pixel = extent.in;
    source.levels = 1;
    for (int axis = 0; axis < 2; ++axis) {
      source.kernel[axis] = 3;
      source.stride[axis] = source.dilation[axis] = 1 + axis;
      source.begin[axis] = source.end[axis] = 1;
    }
    if (!fit(source, layer.out)) std::exit(1);
    layer.sources.push_back(source);
    fill(layer, 0.1);
    if (extent.steps == 40) {  // charges in every block of steps, as growing thresholds have
      layer.start = 2;
      layer.rows_of_schedule = 48;
      layer.schedule = multiples(1, layer.rows_of_schedule * layer.channels, -1, 1);
    }
    check(std::move(layer));
  }
}

/// An output that sees nothing but padding, and not all of that.
void only_padding() {
  Layer layer;
  layer.channels = 16;
  layer.out[0] = layer.out[1] = 1;
  layer.steps = 5;
  layer.samples = 1;
  events::Source source{};
  source.channels = source.pixel = 130;
  source.levels = 1;
  for (int axis = 0; axis < 2; ++axis) {
    source.in[axis] = source.kernel[axis] = source.dilation[axis] = 1;
    source.stride[axis] = axis ? 4 : 1;
    source.begin[axis] = axis ? 3 : 0;
  }
  if (source.out(0) != 1 || source.out(1) != 1) std::exit(1);
  layer.sources.push_back(source);
  fill(layer, 0.5);
  check(std::move(layer));
}

// --- max pooling ---------------------------------------------------------------------------------

void pool(const events::Source& s, std::int64_t steps, std::int64_t samples, bool spread,
          double density) {
  const std::int64_t out[] = {s.out(0), s.out(1)}, channels = s.pixel;
  if (!out[0] || !out[1]) return;
  const std::int64_t image = s.in[0] * s.in[1] * channels;
  const std::int64_t pooled_image = out[0] * out[1] * channels;
  const Bytes spikes = random_spikes(steps * samples * image, density, s.levels);
  Floats before(spread ? 1 : samples * image);
  for (float& count : before) count = static_cast<float>(random_from(0, 5));
  Floats counts(samples * image);
  for (std::size_t i = 0; i < counts.size(); ++i) counts[i] = before[spread ? 0 : i];
  Bytes wanted(steps * samples * pooled_image);
  std::vector<float> largest(samples * pooled_image);
  for (std::int64_t t = -1; t < steps; ++t) {
    for (std::size_t i = 0; t >= 0 && i < counts.size(); ++i) {
      counts[i] += spikes[t * samples * image + i];
    }
    for (std::int64_t o = 0; o < samples * pooled_image; ++o) {
      const std::int64_t c = o % channels, x = o / channels % out[1];
      const std::int64_t y = o / channels / out[1] % out[0], sample = o / pooled_image;
      float most = 0;
      for (std::int64_t k = 0; k < s.kernel[0] * s.kernel[1]; ++k) {
        const std::int64_t row = seen_by(s, 0, y, k / s.kernel[1]);
        const std::int64_t column = seen_by(s, 1, x, k % s.kernel[1]);
        if (outside(s, row, column)) continue;
        most = std::max(most, counts[sample * image + (row * s.in[1] + column) * channels + c]);
      }
      if (t >= 0) {
        wanted[t * samples * pooled_image + o] = static_cast<std::uint8_t>(most - largest[o]);
      }
      largest[o] = most;
    }
  }
  for (const cpu::Isa isa : instruction_sets()) {
    for (const bool in_place : {false, true}) {
      if (in_place && spread) continue;
      Bytes pooled(wanted.size());
      Floats after = in_place ? before : Floats(counts.size());
      const events::Pooling call{s, {out[0], out[1]}, steps, samples, spikes.data(), pooled.data(),
                                 in_place ? after.data() : before.data(), spread, after.data()};
      const std::vector<std::int64_t> rows =
          in_place ? std::vector<std::int64_t>{0, out[0]} : random_cuts(out[0]);
      bool good = true;
      for (std::int64_t sample = 0; sample < samples; ++sample) {
        for (std::size_t r = 1; r < rows.size(); ++r) {
          good = good && events::max_pool(call, sample, rows[r - 1], rows[r] - rows[r - 1], isa);
        }
      }
      ++cases;
      if (good && same(pooled, wanted) && same(after, counts)) continue;
      std::printf("pooling differs with instruction set %d: %ld steps of %ld samples, in place %d, "
                  "one number %d\n", int(isa), long(steps), long(samples), in_place, spread);
      print(s);
      std::exit(1);
    }
  }
}

void random_pool() {
  events::Source source{};
  source.channels = source.pixel = one_of({1, 3, 16, 40, 64, 80});
  source.levels = one_of({1, 1, 4});
  const bool dilated = one_in(4);
  for (int axis = 0; axis < 2; ++axis) {
    source.in[axis] = random_from(1, 12);
    source.kernel[axis] = random_from(1, 4);
    source.stride[axis] = random_from(1, 5);
    source.dilation[axis] = dilated ? random_from(1, 3) : 1;
    source.begin[axis] = random_from(0, source.kernel[axis] - 1);
    source.end[axis] = random_from(0, source.kernel[axis] - 1);
  }
  pool(source, one_of({1, 5, 17}), random_from(1, 2), one_in(3), one_of({0.0, 0.05, 0.5, 1.0}));
}

}  // namespace

// How many random layers, and how many random pools, may be given.
int main(int count, char** words) {
  const int many = count > 1 ? std::atoi(words[1]) : 400;
  for (int i = 0; i < many;) {
    Layer layer;
    if (!random_layer(layer)) continue;
    check(std::move(layer));
    ++i;
  }
  large_layers();
  only_padding();
  for (int i = 0; i < many; ++i) random_pool();
  std::printf("%d cases, %d by digits, %d of one, %d of two, best instruction set %d\n", cases, by_digits, by_one,
              by_two, int(cpu::best_isa()));
}
