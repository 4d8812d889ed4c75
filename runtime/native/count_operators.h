// The operators by counts, each as it is called: of a node of its own, or as a part of a CountNetwork.
// What gives them their inputs, outputs and threads is a `Calls`: Context, or one that is like it, with
// `hands()`, the threads that may share a call, and `at_hand`, how many times sooner they come than when
// onnxruntime wakes them.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "count_kernels.h"
#include "operator.h"

namespace snnc {

using counts::Source;

/// Products below which waking another thread takes longer than they do, some 10 µs.
inline std::int64_t small_products(counts::Way way) {
  switch (way) {
    case counts::Way::tiles: return 8 << 20;
    case counts::Way::vnni: return 3 << 20;
    case counts::Way::avxvnni: return 2 << 20;
    case counts::Way::avx2:
    case counts::Way::dotprod: return 1 << 20;
    default: return 1 << 17;
  }
}

[[noreturn]] inline void refuse(const char* name, const Shape& shape, const std::string& wanted) {
  throw std::invalid_argument("`" + std::string(name) + "` of shape " + text(shape) + " must be " +
                              wanted);
}

inline Shape integers(const Attributes& attributes, const std::string& name, std::size_t count,
               std::int64_t otherwise, std::int64_t least) {
  Shape values = attributes.integers(name.c_str());
  if (values.empty()) values.assign(count, otherwise);
  const bool good = values.size() == count && std::all_of(values.begin(), values.end(), [&](auto value) {
                      return value >= least && value < 1 << 20;
                    });
  if (!good) {
    throw std::invalid_argument("`" + name + "` " + text(values) + " must be " +
                                std::to_string(count) + " numbers of at least " +
                                std::to_string(least));
  }
  return values;
}

/// An attribute that a byte holds.
inline std::int64_t byte_of(const Attributes& attributes, const char* name, std::int64_t otherwise,
                     std::int64_t least) {
  const std::int64_t number = attributes.integer(name, otherwise);
  if (number < least || number > 255) {
    throw std::invalid_argument("`" + std::string(name) + "` must be " + std::to_string(least) +
                                " to 255, not " + std::to_string(number));
  }
  return number;
}

/// `lowest` and `highest`, of at most `most` in size.
inline std::array<std::int64_t, 2> bounds_of(const Attributes& attributes, std::int64_t most) {
  const std::int64_t lowest = attributes.integer("lowest", 0), highest = attributes.integer("highest", 0);
  if (lowest < -most || lowest > highest || highest > most) {
    throw std::invalid_argument("`lowest` " + std::to_string(lowest) + " and `highest` " +
                                std::to_string(highest) + " must be bounds within " + std::to_string(most));
  }
  return {lowest, highest};
}

/// The levels of this call.
inline std::int64_t levels_of(const Input& input, std::int64_t top) {
  const std::int64_t levels = number_of("levels", input, 1);
  if (levels > top) {
    throw std::invalid_argument("`levels` is " + std::to_string(levels) + ", and by counts at most " +
                                std::to_string(top) + " are exact here (events=False takes more)");
  }
  return levels;
}

/// Runs work(0) ... work(total - 1) of rows, alone, or divided among threads.
template <typename Calls, typename Work>
void in_rows(const Calls& context, std::int64_t total, bool alone, const Work& work) {
  const std::int64_t parts = alone ? 1 : std::min(total, 4 * context.hands());
  const auto part = [&](std::int64_t index) {
    for (std::int64_t i = index * total / parts; i < (index + 1) * total / parts; ++i) work(i);
  };
  if (parts == 1) return part(0);
  context.parallel(parts, part);
}

/// The window of a convolution or pooling, by its attributes.
struct CountWindow {
  Shape strides, pads, dilations;

  CountWindow(const Attributes& attributes, const std::string& prefix)
      : strides(integers(attributes, prefix + "strides", 2, 1, 1)),
        pads(integers(attributes, prefix + "pads", 4, 0, 0)),
        dilations(integers(attributes, prefix + "dilations", 2, 1, 1)) {}

  /// Over counts `[N, height, width, channels]`, of a kernel `[height, width, ...]`.
  Source over(const Shape& sample, const Shape& kernel, std::int64_t channels) const {
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
    source.channels = channels;
    return source;
  }
};

/// What flows into a neuron besides the convolution; `scaled`: sums are on another grid than neurons.
enum class Kind { alone, scaled, residual, pair };

template <Kind kind>
class CountLayer {
  static constexpr bool pair = kind == Kind::pair, residual = kind == Kind::residual;
  static constexpr bool scaled = kind == Kind::scaled;
  static constexpr std::size_t neuron = kind == Kind::alone ? 2 : 4;

 public:
  static constexpr const char* name = pair       ? "CountConvPair"
                                      : residual ? "CountConvAdd"
                                      : scaled   ? "CountConvScaled"
                                                 : "CountConv";
  // counts and weights; more of them, residual and coefficient, or bias and factor; membrane, threshold
  // and levels
  static constexpr auto inputs = [] {
    if constexpr (pair) {
      return std::array{ort::uint8, ort::int8,  ort::uint8, ort::int8,
                        ort::int32, ort::int32, ort::int64};
    } else if constexpr (residual) {
      return std::array{ort::uint8, ort::int8,  ort::uint8, ort::int32,
                        ort::int32, ort::int32, ort::int64};
    } else if constexpr (scaled) {
      return std::array{ort::uint8, ort::int8,  ort::int32, ort::float32,
                        ort::int32, ort::int32, ort::int64};
    } else {
      return std::array{ort::uint8, ort::int8, ort::int32, ort::int32, ort::int64};
    }
  }();
  static constexpr ort::ElementType outputs[] = {ort::uint8};
  static constexpr std::array<int, 0> states_in{}, states_out{};

  explicit CountLayer(const Attributes& attributes)
      : group_(attributes.integer("group", 1)),
        top_(byte_of(attributes, "top", 255, 1)),
        origin_(byte_of(attributes, "origin", 0, 0)),
        levels_in_{byte_of(attributes, "levels_in", 255, 0),
                   pair ? byte_of(attributes, "more_levels_in", 255, 0) : 1},
        windows_{CountWindow(attributes, ""), CountWindow(attributes, "more_")},
        bounds_(scaled ? bounds_of(attributes, 1 << 23) : std::array<std::int64_t, 2>{}) {
    if (group_ < 1 || (pair && group_ > 1)) {
      throw std::invalid_argument("`group` must be 1 or, of one convolution, more");
    }
    // Packed once, where all is constant.
    std::vector<Input> fixed;
    for (const std::size_t index : constants) {
      const OrtValue* value = attributes.constant(index);
      if (!value) return;
      fixed.push_back(attributes.read(value));
    }
    packed_ = pack(fixed);
  }

  template <typename Device, typename Calls>
  void run(const Calls& context) const {
    const std::vector<counts::Layer>* layers = &packed_.layers;
    Packed made;
    if (layers->empty()) {
      std::vector<Input> given;
      for (const std::size_t index : constants) given.push_back(context.input(index));
      made = pack(given);
      layers = &made.layers;
    }
    const Packed& packed = layers == &made.layers ? made : packed_;

    counts::Call call{};
    call.levels = levels_of(context.input(neuron + 2), top_);
    call.most = std::max<std::int64_t>(origin_, 1);  // padding holds it, too
    for (const std::int64_t most : levels_in_) call.most = std::max(call.most, most ? most : call.levels);
    Shape out;
    Source sources[2] = {};
    for (std::size_t s = 0; s < (pair ? 2 : 1); ++s) {
      const char* const what = s ? "more_counts" : "counts";
      const Input input = context.input(2 * s);
      const Shape& kernel = packed.kernels[s];
      if (input.shape.size() != 4 || input.shape[3] != kernel[2] * group_) {
        refuse(what, input.shape, "[N, height, width, " + std::to_string(kernel[2] * group_) + "]");
      }
      call.counts[s] = input.as<std::uint8_t>();
      sources[s] = windows_[s].over(input.shape, kernel, kernel[2]);
      const Shape own = {input.shape[0], sources[s].out(0), sources[s].out(1), kernel[3]};
      if (s && own != out) refuse(what, input.shape, "such that their convolution gives " + text(out));
      out = own;
    }
    if constexpr (residual) {
      const Input shortcut = context.input(2);
      if (shortcut.shape != out) refuse("residual", shortcut.shape, text(out));
      call.residual = shortcut.as<std::uint8_t>();
    }
    call.out = context.template output<std::uint8_t>(0, out);
    call.images = out[0];
    call.height = out[1];
    call.width = out[2];
    if (elements(out)) run_parts(context, call, sources, *layers);
  }

 private:
  static constexpr auto constants = [] {
    if constexpr (pair) {
      return std::array<std::size_t, 4>{1, 4, 5, 3};
    } else if constexpr (residual) {
      return std::array<std::size_t, 4>{1, 4, 5, 3};
    } else if constexpr (scaled) {
      return std::array<std::size_t, 5>{1, 4, 5, 2, 3};
    } else {
      return std::array<std::size_t, 3>{1, 2, 3};
    }
  }();

  /// The layers of every group, and the kernels' shapes.
  struct Packed {
    std::vector<counts::Layer> layers;
    Shape kernels[2];
  };

  void check_weights(const char* what, const Shape& shape) const {
    const bool good = shape.size() == 4 && std::all_of(shape.begin(), shape.end(), [](std::int64_t n) {
                        return n >= 1;
                      });
    if (!good || shape[3] % group_) {
      refuse(what, shape, "[height, width, channels, channels out]");
    }
  }

  /// Of weights, membrane, threshold, and more weights, the coefficient, or bias and factor.
  Packed pack(const std::vector<Input>& given) const {
    const Input &weights = given[0], &membrane = given[1], &threshold = given[2];
    check_weights("weights", weights.shape);
    const std::int64_t channels = weights.shape[3], each = channels / group_;
    if (membrane.shape != Shape{channels}) refuse("membrane", membrane.shape, text({channels}));
    if (threshold.shape != Shape{channels}) refuse("threshold", threshold.shape, text({channels}));
    counts::Neurons neurons{};
    neurons.membrane = membrane.as<std::int32_t>();
    neurons.threshold = threshold.as<std::int32_t>();
    Packed packed;
    packed.kernels[0] = weights.shape;
    const std::int8_t* from[] = {weights.as<std::int8_t>(), nullptr};
    // Only the kernels matter here.
    std::vector<Source> sources{
        windows_[0].over({1, 1, 1, 1}, weights.shape, weights.shape[2])};
    if constexpr (pair) {
      check_weights("more_weights", given[3].shape);
      if (given[3].shape[3] != channels) refuse("more_weights", given[3].shape, "of as many channels out");
      packed.kernels[1] = given[3].shape;
      from[1] = given[3].as<std::int8_t>();
      sources.push_back(windows_[1].over({1, 1, 1, 1}, given[3].shape, given[3].shape[2]));
    }
    if constexpr (residual) {
      if (given[3].shape != Shape{channels}) refuse("coefficient", given[3].shape, text({channels}));
      neurons.coefficient = given[3].as<std::int32_t>();
    }
    if constexpr (scaled) {
      if (given[3].shape != Shape{channels}) refuse("bias", given[3].shape, text({channels}));
      if (given[4].shape != Shape{channels}) refuse("factor", given[4].shape, text({channels}));
      neurons.bias = given[3].as<std::int32_t>();
      neurons.factor = given[4].as<float>();
      neurons.lowest = bounds_[0];
      neurons.highest = bounds_[1];
    }
    // The taps of a depthwise layer are added in float32, which holds their sums.
    const Shape& kernel = weights.shape;
    const bool depthwise = group_ > 1 && !origin_ && kernel[2] == 1 && each == 1 &&
                           kernel[0] * kernel[1] <= counts::max_kernel * counts::max_kernel;
    if (depthwise) {
      packed.layers.emplace_back(sources, true, channels, 0, channels, from, neurons);
      return packed;
    }
    packed.layers.reserve(static_cast<std::size_t>(group_));
    for (std::int64_t g = 0; g < group_; ++g) {
      packed.layers.emplace_back(sources, false, channels, g * each, each, from, neurons, origin_);
    }
    return packed;
  }

  /// Runs a call in parts: images, or rows, or, where there is more of weights than of inputs, channels.
  template <typename Calls>
  void run_parts(const Calls& context, const counts::Call& call, const Source* sources,
                 const std::vector<counts::Layer>& layers) const {
    std::vector<counts::Call> calls(layers.size(), call);
    for (std::size_t g = 0; g < layers.size(); ++g) {
      for (std::size_t s = 0; s < layers[g].sources.size(); ++s) {
        calls[g].sources[s] = sources[s];
        calls[g].sources[s].offset = static_cast<std::int64_t>(g) * sources[s].channels;
        calls[g].quick = layers[g].quick(call.levels);
      }
    }
    const counts::Layer& first = layers[0];
    const auto groups = static_cast<std::int64_t>(layers.size());
    const std::int64_t pixels = call.images * call.height * call.width;
    const std::int64_t weights = first.inputs * first.channels;
    const bool alone = groups * pixels * weights < small_products(first.way) / context.at_hand;
    const std::int64_t wanted = alone ? 1 : context.hands();
    std::int64_t images = 1, rows = 1, units = 1;
    if (groups < wanted) {
      const std::int64_t read = call.images * sources[0].in[0] * sources[0].in[1] * sources[0].channels;
      if (!first.depthwise && weights > read && first.units >= wanted) {
        units = wanted;
      } else if (call.images >= wanted) {
        images = wanted;
      } else {
        images = call.images;
        rows = std::min((wanted + images - 1) / images, call.height);
        if (rows == 1 && images == 1) units = std::min(wanted, first.units);
      }
    }
    std::atomic<bool> good{true};
    const auto part = [&](std::int64_t index) {
      const auto cut = [&](std::int64_t count, std::int64_t of) {
        const std::int64_t here = index % of, begin = here * count / of;
        index /= of;
        return std::array{begin, (here + 1) * count / of - begin};
      };
      const auto [image, image_count] = cut(call.images, images);
      const auto [row, row_count] = cut(call.height, rows);
      const auto [unit, unit_count] = cut(first.units, units);
      const auto g = static_cast<std::size_t>(index);
      if (!counts::run(layers[g], calls[g], image, image_count, row, row_count, unit, unit_count)) {
        good = false;
      }
    };
    const std::int64_t parts = groups * images * rows * units;
    if (alone || parts == 1 || wanted == 1) {
      for (std::int64_t index = 0; index < parts; ++index) part(index);
    } else {
      context.parallel(parts, part);
    }
    if (!good) throw std::runtime_error("out of memory");
  }

  std::int64_t group_, top_, origin_, levels_in_[2];
  CountWindow windows_[2];
  std::array<std::int64_t, 2> bounds_;
  Packed packed_;
};

/// Neurons of a current that is given as float32, channels first, for thresholds that are whole numbers.
class CountNeuron {
 public:
  static constexpr const char* name = "CountNeuron";
  static constexpr std::array inputs{ort::float32, ort::float32, ort::float32, ort::int64};
  static constexpr ort::ElementType outputs[] = {ort::uint8};
  static constexpr std::array<int, 0> states_in{}, states_out{};

  explicit CountNeuron(const Attributes& attributes) : top_(byte_of(attributes, "top", 255, 1)) {}

  template <typename Device, typename Calls>
  void run(const Calls& context) const {
    const Input current = context.input(0), membrane = context.input(1), threshold = context.input(2);
    if (current.shape.size() != 4) refuse("current", current.shape, "[N, channels, height, width]");
    const std::int64_t channels = current.shape[1], levels = levels_of(context.input(3), top_);
    if (membrane.shape != Shape{channels}) refuse("membrane", membrane.shape, text({channels}));
    if (threshold.shape != Shape{channels}) refuse("threshold", threshold.shape, text({channels}));
    const std::int64_t images = current.shape[0], height = current.shape[2], width = current.shape[3];
    auto* const out = context.template output<std::uint8_t>(0, {images, height, width, channels});
    if (!elements(current.shape)) return;
    const auto row = [&](std::int64_t index) {
      const std::int64_t image = index / height, y = index % height;
      counts::fire_row(current.as<float>() + (image * channels * height + y) * width, height * width,
                       width, channels, membrane.as<float>(), threshold.as<float>(), levels,
                       out + index * width * channels);
    };
    in_rows(context, images * height, elements(current.shape) < 1 << 15, row);
  }

 private:
  std::int64_t top_;
};

/// Neurons of real weights whose current is complete, and stays as it is laid out.
class LevelNeuron {
 public:
  static constexpr const char* name = "LevelNeuron";
  static constexpr std::array inputs{ort::float32, ort::float32, ort::float32, ort::int64};
  static constexpr ort::ElementType outputs[] = {ort::float32};
  static constexpr std::array<int, 1> states_in{0}, states_out{0};

  explicit LevelNeuron(const Attributes&) {}

  template <typename Device, typename Calls>
  void run(const Calls& context) const {
    const Input current = context.input(0), membrane = context.input(1), threshold = context.input(2);
    if (current.shape.size() < 2) refuse("current", current.shape, "[N, channels, ...]");
    const std::int64_t channels = current.shape[1];
    if (elements(membrane.shape) != channels) refuse("membrane", membrane.shape, "one for each channel");
    if (elements(threshold.shape) != channels) refuse("threshold", threshold.shape, "one for each channel");
    const std::int64_t levels = number_of("levels", context.input(3), 1);
    if (levels > 1 << 20) {
      throw std::invalid_argument("`levels` is " + std::to_string(levels) +
                                  ", and here at most 2^20 are taken (events=False takes more)");
    }
    auto* const counts = context.template output<float>(0, current.shape);
    const std::int64_t all = elements(current.shape), rows = current.shape[0] * channels;
    if (!all) return;
    const std::int64_t each = all / rows;
    const auto row = [&](std::int64_t index) {
      const std::int64_t c = index % channels;
      snnc::counts::level_row(current.as<float>() + index * each, each, membrane.as<float>()[c],
                        threshold.as<float>()[c], levels, counts + index * each);
    };
    in_rows(context, rows, all < 1 << 15, row);
  }
};

/// Numbers on a grid, as bytes.
class CountInput {
 public:
  static constexpr const char* name = "CountInput";
  static constexpr std::array inputs{ort::float32, ort::float32};
  static constexpr ort::ElementType outputs[] = {ort::uint8};
  static constexpr std::array<int, 0> states_in{}, states_out{};

  explicit CountInput(const Attributes& attributes)
      : origin_(byte_of(attributes, "origin", 0, 0)), bounds_(bounds_of(attributes, 255)) {
    if (bounds_[0] + origin_ < 0 || bounds_[1] + origin_ > 255) {
      throw std::invalid_argument("`lowest` and `highest` plus `origin` must be 0 to 255");
    }
  }

  template <typename Device, typename Calls>
  void run(const Calls& context) const {
    const Input values = context.input(0), factor = context.input(1);
    if (values.shape.size() != 4) refuse("values", values.shape, "[N, channels, height, width]");
    const std::int64_t images = values.shape[0], channels = values.shape[1];
    const std::int64_t height = values.shape[2], width = values.shape[3];
    if (factor.shape != Shape{channels}) refuse("factor", factor.shape, text({channels}));
    auto* const out = context.template output<std::uint8_t>(0, {images, height, width, channels});
    if (!elements(values.shape)) return;
    const auto row = [&](std::int64_t index) {
      const std::int64_t image = index / height, y = index % height;
      counts::grid_row(values.as<float>() + (image * channels * height + y) * width, height * width,
                       width, channels, factor.as<float>(), static_cast<float>(bounds_[0]),
                       static_cast<float>(bounds_[1]), static_cast<float>(origin_),
                       out + index * width * channels);
    };
    in_rows(context, images * height, elements(values.shape) < 1 << 15, row);
  }

 private:
  std::int64_t origin_;
  std::array<std::int64_t, 2> bounds_;
};

/// Max pooling of counts: all windows of time are complete.
class CountMaxPool {
 public:
  static constexpr const char* name = "CountMaxPool";
  static constexpr std::array inputs{ort::uint8};
  static constexpr ort::ElementType outputs[] = {ort::uint8};
  static constexpr std::array<int, 0> states_in{}, states_out{};

  explicit CountMaxPool(const Attributes& attributes)
      : window_(attributes, ""), kernel_(integers(attributes, "kernel_shape", 2, 1, 1)) {
    for (std::size_t i = 0; i < 4; ++i) {
      if (window_.pads[i] >= kernel_[i % 2]) refuse("pads", window_.pads, "smaller than the kernel");
    }
  }

  template <typename Device, typename Calls>
  void run(const Calls& context) const {
    const Input input = context.input(0);
    if (input.shape.size() != 4) refuse("counts", input.shape, "[N, height, width, channels]");
    const Source source = window_.over(input.shape, kernel_, input.shape[3]);
    const Shape out = {input.shape[0], source.out(0), source.out(1), input.shape[3]};
    auto* const pooled = context.template output<std::uint8_t>(0, out);
    if (!elements(out)) return;
    const std::int64_t image = source.in[0] * source.in[1] * source.pixel;
    std::atomic<bool> good{true};
    const auto row = [&](std::int64_t index) {
      if (!counts::max_pool(source, input.as<std::uint8_t>() + index / out[1] * image, index % out[1],
                            out[2], pooled + index * out[2] * out[3])) {
        good = false;
      }
    };
    in_rows(context, out[0] * out[1], elements(out) * kernel_[0] * kernel_[1] < 1 << 19, row);
    if (!good) throw std::runtime_error("out of memory");
  }

 private:
  CountWindow window_;
  Shape kernel_;
};

}  // namespace snnc
