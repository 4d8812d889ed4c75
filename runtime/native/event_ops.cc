// The event-driven operators of `ai.snnc` for onnxruntime.  Their meaning is their function body in
// snncompiler/ir/dialect/; lowering a compiled model onto them is passes/lower/lower_events.py.

#include "event_ops.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "event_kernels.h"
#include "operator.h"

namespace snnc {
namespace {

using events::Source;

struct EventCpu {
  static constexpr const char* provider = "CPUExecutionProvider";
};

/// Work (steps times neurons) under which waking other threads costs more than it saves.
constexpr std::int64_t small = 1 << 14;
/// Parts into which a call is cut at least, so that every core gets one, but no more than needed: what
/// surrounds a strip of rows is read for every strip, and spikes are listed for every block of
/// channels.  For the same reason a part has some places times steps.
const std::int64_t least_parts = std::clamp<std::int64_t>(std::thread::hardware_concurrency(), 1, 8);
constexpr std::int64_t least_jobs = 256;

[[noreturn]] void refuse(const char* name, const Shape& shape, const std::string& wanted) {
  throw std::invalid_argument("`" + std::string(name) + "` of shape " + text(shape) + " must be " +
                              wanted);
}

/// What flows into a neuron.
enum class Kind { constant, convolution, with_residual, with_convolution };

/// The attributes of a convolution's window.
struct Geometry {
  Shape strides, pads, dilations;

  Geometry(const Attributes& attributes, const std::string& prefix)
      : strides(integers(attributes, prefix + "strides", 2, 1, 1)),
        pads(integers(attributes, prefix + "pads", 4, 0, 0)),
        dilations(integers(attributes, prefix + "dilations", 2, 1, 1)) {}

  /// The window over samples `[N, height, width, channels]` of a kernel `[height, width, ...]`.
  Source over(const Shape& sample, const Shape& kernel, std::int64_t group,
              std::int64_t levels) const {
    Source source{};
    for (std::size_t axis = 0; axis < 2; ++axis) {
      source.in[axis] = sample[axis + 1];
      source.kernel[axis] = kernel[axis];
      source.stride[axis] = strides[axis];
      source.dilation[axis] = dilations[axis];
      source.begin[axis] = pads[axis];
      source.end[axis] = pads[axis + 2];
    }
    source.pixel = sample[3];
    source.channels = sample[3] / group;
    source.levels = levels;
    return source;
  }

 private:
  static Shape integers(const Attributes& attributes, const std::string& name, std::size_t count,
                        std::int64_t otherwise, std::int64_t least) {
    Shape values = attributes.integers(name.c_str());
    if (values.empty()) values.assign(count, otherwise);
    bool good = values.size() == count;
    for (const std::int64_t value : values) good = good && value >= least && value < 1 << 20;
    if (!good) {
      throw std::invalid_argument("`" + name + "` " + text(values) + " must be " +
                                  std::to_string(count) + " numbers of at least " +
                                  std::to_string(least));
    }
    return values;
  }
};

/// The packed weights of every group, and what they were packed for.
struct Packed {
  std::int64_t group = 1, channels_in = 0, channels_out = 0;
  std::vector<std::unique_ptr<events::Weights>> groups;
};

template <Kind kind>
class EventLayer {
  static constexpr bool convolves = kind != Kind::constant;
  static constexpr bool pair = kind == Kind::with_convolution;
  static constexpr bool residual = kind == Kind::with_residual;
  // The inputs before the current, and before the threshold.
  static constexpr std::size_t first = !convolves ? 0 : pair || residual ? 4 : 2;
  static constexpr std::size_t neuron = convolves ? first + 1 : 2;

 public:
  static constexpr const char* name = !convolves ? "EventNeuron"
                                      : pair     ? "EventConvPair"
                                      : residual ? "EventConvAdd"
                                                 : "EventConv";
  // spikes and weights, more of them or residual and amplitude; current, its drive where nothing is
  // convolved, threshold, membrane, schedule, start, steps
  static constexpr auto inputs = [] {
    if constexpr (pair || residual) {
      return std::array{ort::uint8,   ort::float32, ort::uint8,   ort::float32, ort::float32,
                        ort::float32, ort::float32, ort::float32, ort::int64,   ort::int64};
    } else if constexpr (convolves) {
      return std::array{ort::uint8,   ort::float32, ort::float32, ort::float32,
                        ort::float32, ort::float32, ort::int64,   ort::int64};
    } else {
      return std::array{ort::float32, ort::float32, ort::float32, ort::float32,
                        ort::float32, ort::int64,   ort::int64};
    }
  }();
  static constexpr ort::ElementType outputs[] = {ort::uint8, ort::float32};
  static constexpr std::array<int, 1> states_in{neuron + 1}, states_out{1};

  explicit EventLayer(const Attributes& attributes)
      : group_(attributes.integer("group", 1)),
        levels_(attributes.integer("levels", 1)),
        geometry_(attributes, ""),
        more_(attributes, "more_") {
    if (group_ < 1) throw std::invalid_argument("`group` must be at least 1");
    if (levels_ < 1 || levels_ > events::max_levels) {
      throw std::invalid_argument("`levels` must be 1 to " + std::to_string(events::max_levels) +
                                  ", not " + std::to_string(levels_));
    }
    if constexpr (convolves) {
      // Packed once, where the weights are constant.
      const OrtValue* weights = attributes.constant(1);
      const OrtValue* more = pair ? attributes.constant(3) : weights;
      if (weights && more) packed_ = pack(attributes.read(weights), attributes.read(more));
    }
  }

  template <typename Device>
  void run(const Context& context) const {
    const Input current = context.input(first), threshold = context.input(neuron);
    const Input membrane = context.input(neuron + 1), schedule = context.input(neuron + 2);
    const std::int64_t steps = number_of("steps", context.input(neuron + 4), 1);
    const std::int64_t start = number_of("start", context.input(neuron + 3), 0);
    events::Call call{};
    std::vector<Source> sources;
    Shape out;
    Packed here;
    const Packed* packed = &packed_;
    if constexpr (convolves) {
      const Input weights = context.input(1);
      const Shape sample = add_source(context.input(0), weights, steps, group_, levels_, geometry_,
                                      "spikes", sources, call);
      out = {sample[0], sources[0].out(0), sources[0].out(1), weights.shape[3]};
      Input more = weights;
      if constexpr (pair) {
        more = context.input(3);
        const Shape other = add_source(context.input(2), more, steps, 1, 1, more_, "more_spikes",
                                       sources, call);
        const Shape same = {other[0], sources[1].out(0), sources[1].out(1), more.shape[3]};
        if (same != out) refuse("more_spikes", other, "such that their convolution gives " + text(out));
      }
      if (packed_.groups.empty()) {
        here = pack(weights, more);
        packed = &here;
      }
    } else {
      if (current.shape.size() != 4) refuse("current", current.shape, "[N, height, width, channels]");
      out = current.shape;
      const Input drive = context.input(1);
      if (drive.shape.size() != 1 || drive.shape[0] < 1) refuse("drive", drive.shape, "[D]");
      const float* const factors = drive.as<float>();
      const bool unit = drive.shape[0] == 1 && factors[0] == 1;
      call.drive = unit ? nullptr : factors;
      call.driven = drive.shape[0];
    }
    Shape folded_out = folded(out, steps);
    if constexpr (residual) {
      const Input shortcut = context.input(2), amplitude = context.input(3);
      if (shortcut.shape != folded_out) refuse("residual", shortcut.shape, text(folded_out));
      if (amplitude.shape != Shape{out[3]}) refuse("amplitude", amplitude.shape, text({out[3]}));
      call.residual = shortcut.as<std::uint8_t>();
      call.amplitude = amplitude.as<float>();
    }
    if (threshold.shape != Shape{out[3]}) refuse("threshold", threshold.shape, text({out[3]}));
    if (schedule.shape.size() != 2 || schedule.shape[0] < 1 || schedule.shape[1] != out[3]) {
      refuse("schedule", schedule.shape, "[S, " + std::to_string(out[3]) + "]");
    }
    call.current = current.as<float>();
    call.current_spread = spreads("current", current.shape, out);
    call.membrane = membrane.as<float>();
    call.membrane_spread = spreads("membrane", membrane.shape, out);
    call.threshold = threshold.as<float>();
    call.schedule = schedule.as<float>();
    call.scheduled = schedule.shape[0];
    call.start = start;
    call.steps = steps;
    call.samples = out[0];
    const float* const charges = call.schedule;
    if (call.scheduled == 1 && std::all_of(charges, charges + out[3], [](float b) { return b == 0; })) {
      call.schedule = nullptr;
    }
    call.spikes_out = context.output<std::uint8_t>(0, folded_out);
    call.membrane_out = context.output<float>(1, out);
    if (elements(out)) run_parts(context, call, sources, *packed, out);
  }

 private:
  /// Whether one row of channels serves every place; otherwise the tensor has them all.
  static bool spreads(const char* what, const Shape& shape, const Shape& out) {
    if (shape == Shape{out[3]} && shape != out) return true;
    if (shape != out) refuse(what, shape, text({out[3]}) + " or " + text(out));
    return false;
  }

  /// Checks spikes and weights; returns the samples' shape.
  static Shape add_source(const Input& spikes, const Input& weights, std::int64_t steps,
                          std::int64_t group, std::int64_t levels, const Geometry& geometry,
                          const char* what, std::vector<Source>& sources, events::Call& call) {
    if (spikes.shape.size() != 4) refuse(what, spikes.shape, "[steps*N, height, width, channels]");
    const Shape sample = samples_of(what, spikes.shape, steps);
    check_weights(weights, group);
    if (weights.shape[2] * group != sample[3]) {
      refuse(what, spikes.shape, "of " + std::to_string(weights.shape[2] * group) + " channels");
    }
    call.spikes[sources.size()] = spikes.as<std::uint8_t>();
    sources.push_back(geometry.over(sample, weights.shape, group, levels));
    return sample;
  }

  static void check_weights(const Input& weights, std::int64_t group) {
    const Shape& shape = weights.shape;
    const bool good = shape.size() == 4 && std::all_of(shape.begin(), shape.end(), [](std::int64_t n) {
                        return n >= 1;
                      });
    if (!good || shape[0] > events::max_kernel || shape[1] > events::max_kernel || shape[3] % group) {
      refuse("weights", shape, "[height, width, channels, channels out], kernels of at most " +
                                   std::to_string(events::max_kernel) + " rows and columns");
    }
  }

  static bool depthwise(const Shape& weights, std::int64_t group) {
    return group > 1 && weights[2] == 1 && weights[3] == group;
  }

  Packed pack(const Input& weights, const Input& more) const {
    check_weights(weights, group_);
    if (pair) check_weights(more, 1);
    Packed packed;
    const Shape& shape = weights.shape;
    const std::int64_t channels = shape[3], each = channels / group_;
    // Only the kernels' shapes matter here.
    std::vector<Source> sources{
        geometry_.over({1, 1, 1, shape[2] * group_}, shape, group_, levels_)};
    const float* from[] = {weights.as<float>(), more.as<float>()};
    if (pair) sources.push_back(more_.over({1, 1, 1, more.shape[2]}, more.shape, 1, 1));
    if (group_ == 1 || depthwise(shape, group_)) {
      packed.groups.push_back(
          std::make_unique<events::Weights>(sources, group_ > 1, channels, from));
      return packed;
    }
    if (pair) throw std::invalid_argument("`group` must be 1 beside another convolution");
    const std::int64_t rows = shape[0] * shape[1] * shape[2];
    std::vector<float> part(static_cast<std::size_t>(rows * each));
    for (std::int64_t g = 0; g < group_; ++g) {
      for (std::int64_t row = 0; row < rows; ++row) {
        std::copy_n(weights.as<float>() + row * channels + g * each, each,
                    part.begin() + row * each);
      }
      const float* own[] = {part.data()};
      packed.groups.push_back(std::make_unique<events::Weights>(sources, false, each, own));
    }
    return packed;
  }

  /// Runs a call in parts: samples, then channels of wide layers, then rows.
  void run_parts(const Context& context, const events::Call& call,
                 const std::vector<Source>& sources, const Packed& packed, const Shape& out) const {
    const events::Weights nothing({}, false, out[3], nullptr);
    const std::size_t groups = convolves ? packed.groups.size() : 1;
    std::vector<events::Layer> layers(groups);
    std::vector<std::vector<Source>> own(groups, sources);
    for (std::size_t g = 0; g < groups; ++g) {
      events::Layer& layer = layers[g];
      layer.weights = convolves ? packed.groups[g].get() : &nothing;
      for (Source& source : own[g]) {
        source.offset = static_cast<std::int64_t>(g) * source.channels;
        if (layer.weights->depthwise) source.channels = source.pixel;
      }
      layer.sources = own[g].data();
      layer.source_count = own[g].size();
      layer.out[0] = out[1];
      layer.out[1] = out[2];
      layer.pixel = out[3];
      layer.offset = static_cast<std::int64_t>(g) * layer.weights->channels;
    }
    const std::int64_t blocks = layers[0].weights->blocks;
    const std::int64_t alike = out[0] * static_cast<std::int64_t>(groups);
    // A wide layer is cut along its channels first: its rows would each need all its weights.
    const std::int64_t cuts = std::clamp<std::int64_t>((least_parts + alike - 1) / alike, 1, blocks);
    const std::int64_t most = std::clamp<std::int64_t>(out[1] * out[2] * call.steps / least_jobs, 1, out[1]);
    const std::int64_t strips =
        std::clamp<std::int64_t>((least_parts + alike * cuts - 1) / (alike * cuts), 1, most);
    std::atomic<bool> good{true};
    const auto part = [&](std::int64_t index) {
      const std::int64_t strip = index % strips, cut = index / strips % cuts;
      const std::int64_t rest = index / strips / cuts;
      const std::int64_t row = strip * out[1] / strips, block = cut * blocks / cuts;
      const auto& layer = layers[static_cast<std::size_t>(rest) % groups];
      if (!events::run(layer, call, rest / static_cast<std::int64_t>(groups), row,
                       (strip + 1) * out[1] / strips - row, block, (cut + 1) * blocks / cuts - block)) {
        good = false;
      }
    };
    const std::int64_t parts = alike * cuts * strips;
    if (call.steps * elements(out) < small) {
      for (std::int64_t index = 0; index < parts; ++index) part(index);
    } else {
      context.parallel(parts, part);
    }
    if (!good) throw std::runtime_error("out of memory");
  }

  std::int64_t group_, levels_;
  Geometry geometry_, more_;
  Packed packed_;
};

/// Sums of spikes over time, with a weight for every step.
class EventSum {
 public:
  static constexpr const char* name = "EventSum";
  static constexpr std::array inputs{ort::uint8, ort::float32, ort::float32, ort::int64};
  static constexpr ort::ElementType outputs[] = {ort::float32};
  static constexpr std::array<int, 1> states_in{2}, states_out{0};

  explicit EventSum(const Attributes&) {}

  template <typename Device>
  void run(const Context& context) const {
    const Input spikes = context.input(0), weights = context.input(1), total = context.input(2);
    const std::int64_t steps = number_of("steps", context.input(3), 1);
    const Shape sample = samples_of("spikes", spikes.shape, steps);
    if (weights.shape != Shape{steps}) refuse("weights", weights.shape, text({steps}));
    const std::int64_t count = elements(sample);
    const bool one = elements(total.shape) == 1;
    if (!one && total.shape != sample) refuse("total", total.shape, "one number or " + text(sample));
    const float* before = total.as<float>();
    float* after = context.output<float>(0, sample);
    if (one) {
      std::fill_n(after, count, *before);
    } else if (after != before) {
      std::copy_n(before, count, after);
    }
    for (std::int64_t t = 0; t < steps; ++t) {
      const std::uint8_t* row = spikes.as<std::uint8_t>() + t * count;
      const float weight = weights.as<float>()[t];
      for (std::int64_t i = 0; i < count; ++i) after[i] = after[i] + weight * static_cast<float>(row[i]);
    }
  }
};

/// What the two kinds of pooling have in common.
class Pool {
 public:
  explicit Pool(const Attributes& attributes)
      : geometry_(attributes, ""), kernel_(attributes.integers("kernel_shape")) {
    const bool good = kernel_.size() == 2 && std::all_of(kernel_.begin(), kernel_.end(), [](auto n) {
                        return n >= 1 && n < 1 << 20;
                      });
    if (!good) refuse("kernel_shape", kernel_, "two numbers of at least 1");
    for (std::size_t i = 0; i < 4; ++i) {
      if (geometry_.pads[i] >= kernel_[i % 2]) {
        refuse("pads", geometry_.pads, "smaller than the kernel");
      }
    }
  }

 protected:
  Source window(const Input& spikes, const Shape& sample) const {
    if (sample.size() != 4) refuse("spikes", spikes.shape, "[steps*N, height, width, channels]");
    return geometry_.over(sample, kernel_, 1, 1);
  }
  template <typename Work>
  static void in_parts(const Context& context, std::int64_t parts, std::int64_t work,
                       const Work& part) {
    if (work < small) {
      for (std::int64_t index = 0; index < parts; ++index) part(index);
    } else {
      context.parallel(parts, part);
    }
  }

 private:
  Geometry geometry_;
  Shape kernel_;
};

/// Sums of bytes over a window: average pooling without the division.
class EventSumPool : Pool {
 public:
  static constexpr const char* name = "EventSumPool";
  static constexpr std::array inputs{ort::uint8};
  static constexpr ort::ElementType outputs[] = {ort::uint8};
  static constexpr std::array<int, 0> states_in{}, states_out{};

  using Pool::Pool;

  template <typename Device>
  void run(const Context& context) const {
    const Input spikes = context.input(0);
    const Source source = window(spikes, spikes.shape);
    const Shape out = {spikes.shape[0], source.out(0), source.out(1), spikes.shape[3]};
    auto* const sums = context.output<std::uint8_t>(0, out);
    if (!elements(out)) return;
    const std::int64_t channels = out[3];
    in_parts(context, out[0] * out[1], elements(out), [&](std::int64_t index) {
      const std::int64_t y = index % out[1];
      const std::uint8_t* const from =
          spikes.as<std::uint8_t>() + index / out[1] * source.in[0] * source.in[1] * channels;
      std::uint8_t* const to = sums + index * out[2] * channels;
      std::fill_n(to, out[2] * channels, std::uint8_t{0});
      for (std::int64_t kh = 0; kh < source.kernel[0]; ++kh) {
        const std::int64_t row = source.row(y, kh);
        if (row < 0 || row >= source.in[0]) continue;
        for (std::int64_t kw = 0; kw < source.kernel[1]; ++kw) {
          std::int64_t x = 0, end = out[2];
          while (x < end && source.column(x, kw) < 0) ++x;
          while (end > x && source.column(end - 1, kw) >= source.in[1]) --end;
          const std::uint8_t* one = from + (row * source.in[1] + source.column(x, kw)) * channels;
          for (; x < end; ++x, one += source.stride[1] * channels) add(one, channels, to + x * channels);
        }
      }
    });
  }

 private:
  static void add(const std::uint8_t* __restrict__ from, std::int64_t count,
                  std::uint8_t* __restrict__ to) {
    constexpr std::int64_t lanes = 16;
    std::int64_t c = 0;
    for (; c + lanes <= count; c += lanes) {
      for (std::int64_t i = c; i < c + lanes; ++i) to[i] = static_cast<std::uint8_t>(to[i] + from[i]);
    }
    for (; c < count; ++c) to[c] = static_cast<std::uint8_t>(to[c] + from[c]);
  }
};

/// SpikeMaxPool of bytes, channels last.
class EventMaxPool : Pool {
 public:
  static constexpr const char* name = "EventMaxPool";
  static constexpr std::array inputs{ort::uint8, ort::float32, ort::int64};
  static constexpr ort::ElementType outputs[] = {ort::uint8, ort::float32};
  static constexpr std::array<int, 1> states_in{1}, states_out{1};

  using Pool::Pool;

  template <typename Device>
  void run(const Context& context) const {
    const Input spikes = context.input(0), counts = context.input(1);
    const std::int64_t steps = number_of("steps", context.input(2), 1);
    const Shape sample = samples_of("spikes", spikes.shape, steps);
    const Source source = window(spikes, sample);
    const Shape out = {sample[0], source.out(0), source.out(1), sample[3]};
    const bool one = elements(counts.shape) == 1;
    if (!one && counts.shape != sample) {
      refuse("counts", counts.shape, "one number or " + text(sample));
    }
    const events::Pooling call{source,
                               {out[1], out[2]},
                               steps,
                               sample[0],
                               spikes.as<std::uint8_t>(),
                               context.output<std::uint8_t>(0, folded(out, steps)),
                               counts.as<float>(),
                               one,
                               context.output<float>(1, sample)};
    if (!elements(out)) {
      count_only(call, elements(sample));
      return;
    }
    const bool in_place = call.before == call.after;
    const std::int64_t strips =
        in_place ? 1 : std::clamp<std::int64_t>(least_parts / sample[0], 1, out[1]);
    std::atomic<bool> good{true};
    in_parts(context, sample[0] * strips, steps * elements(sample), [&](std::int64_t index) {
      const std::int64_t strip = index % strips, row = strip * out[1] / strips;
      if (!events::max_pool(call, index / strips, row, (strip + 1) * out[1] / strips - row)) {
        good = false;
      }
    });
    if (!good) throw std::runtime_error("out of memory");
  }

 private:
  /// Where there are no windows.
  static void count_only(const events::Pooling& call, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      float sum = call.before[call.before_spread ? 0 : i];
      for (std::int64_t t = 0; t < call.steps; ++t) {
        sum = sum + static_cast<float>(call.spikes[t * count + i]);
      }
      call.after[i] = sum;
    }
  }
};

}  // namespace

void add_event_operators(const OrtApi* api, OrtCustomOpDomain* domain) {
  add<EventLayer<Kind::constant>, EventCpu>(api, domain);
  add<EventLayer<Kind::convolution>, EventCpu>(api, domain);
  add<EventLayer<Kind::with_residual>, EventCpu>(api, domain);
  add<EventLayer<Kind::with_convolution>, EventCpu>(api, domain);
  add<EventSum, EventCpu>(api, domain);
  add<EventSumPool, EventCpu>(api, domain);
  add<EventMaxPool, EventCpu>(api, domain);
}

}  // namespace snnc
