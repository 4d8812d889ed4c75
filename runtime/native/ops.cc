// The operators of the domain `ai.snnc`, version 1, as custom operators of onnxruntime.
//
// An operator checks its inputs, describes the call as a task (tasks.h) and hands it to its device.
// The meaning of every operator is its function body in snncompiler/ir/dialect/.

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <stdexcept>
#include <string>

#include "count_ops.h"
#include "cpu_kernels.h"
#include "event_ops.h"
#include "operator.h"
#ifdef SNNC_CUDA
#include "cuda_kernels.h"
#endif

/// Says how this library was built; runtime/library.py looks for it in the file.
__attribute__((used)) static const char build_info[] = "snnc-build-info:" SNNC_BUILD_INFO;

namespace snnc {
namespace {

/// How a tensor of shape `from` broadcasts to the samples.
Broadcast broadcast(const char* name, const Shape& from, const Shape& sample) {
  const auto fail = [&](const char* why) {
    throw std::invalid_argument("`" + std::string(name) + "` of shape " + text(from) + why +
                                text(sample));
  };
  const std::size_t surplus = from.size() > sample.size() ? from.size() - sample.size() : 0;
  if (product(from.begin(), from.begin() + static_cast<std::ptrdiff_t>(surplus)) != 1) {
    fail(" does not broadcast to the samples' shape ");
  }
  // Axes from the innermost one outwards, each merged with its inner neighbour where one stride
  // serves both.
  std::int64_t extents[Broadcast::max_rank], strides[Broadcast::max_rank];
  int rank = 0;
  std::int64_t step = 1;
  for (std::size_t back = 1; back <= sample.size(); ++back) {
    const std::int64_t extent = sample[sample.size() - back];
    const std::int64_t own = back <= from.size() ? from[from.size() - back] : 1;
    if (own != extent && own != 1) fail(" does not broadcast to the samples' shape ");
    const std::int64_t stride = own == 1 ? 0 : step;
    step *= own;
    if (extent == 1) continue;
    if (rank && stride == extents[rank - 1] * strides[rank - 1]) {
      extents[rank - 1] *= extent;
      continue;
    }
    if (rank == Broadcast::max_rank) fail(" broadcasts too unevenly to the samples' shape ");
    extents[rank] = extent;
    strides[rank] = stride;
    ++rank;
  }
  Broadcast over;
  over.extent[0] = 1;  // a single neuron
  over.stride[0] = 1;
  over.rank = rank ? rank : 1;
  for (int axis = 0; axis < rank; ++axis) {
    over.extent[axis] = extents[rank - 1 - axis];
    over.stride[axis] = strides[rank - 1 - axis];
  }
  return over;
}

// --- devices -----------------------------------------------------------------------------------

struct Cpu {
  static constexpr const char* provider = "CPUExecutionProvider";

  /// Values of a task under which waking other threads costs more than it saves.
  static constexpr std::int64_t small = 1 << 14;

  /// Bytes of spikes from which on they do not stay in the caches until they are read anyway.
  /// Writing them past the caches saves reading their memory first (bench/neuron.py).
  static constexpr std::int64_t streamed = 32 << 20;

  /// Runs work(first, count) over all neurons in blocks, in parallel.
  template <typename Work>
  static void in_blocks(const Context& context, std::int64_t neurons, std::int64_t steps,
                        const Work& work) {
    // Few neurons: smaller blocks, so that every thread gets some.
    const std::int64_t size = neurons >= 16 * cpu::block ? cpu::block : cpu::block / 8;
    const std::int64_t blocks = (neurons + size - 1) / size;
    const auto block = [&](std::int64_t index) {
      const std::int64_t first = index * size;
      work(first, std::min(size, neurons - first));
    };
    if (neurons * steps < small) {
      for (std::int64_t index = 0; index < blocks; ++index) block(index);
    } else {
      context.parallel(blocks, block);
    }
  }

  /// Whether the spikes of a task are written past the caches.
  template <typename Task>
  static bool streams(const Task& task) {
    const auto row = task.neurons * std::int64_t{sizeof(*task.spikes)};
    return task.steps * row >= streamed && row % 64 == 0 &&
           reinterpret_cast<std::uintptr_t>(task.spikes) % 64 == 0;
  }

  template <typename T>
  static void run(const Context& context, NeuronTask<T> task) {
    task.stream = streams(task);
    in_blocks(context, task.neurons, task.steps, [&](std::int64_t first, std::int64_t count) {
      cpu::neuron(task, first, count);
    });
  }

  template <typename T>
  static void run(const Context& context, ScheduledTask<T> task) {
    task.stream = streams(task);
    in_blocks(context, task.neurons, task.steps, [&](std::int64_t first, std::int64_t count) {
      cpu::scheduled(task, first, count);
    });
  }

  template <typename T>
  static void run(const Context& context, LayeredTask<T> task) {
    task.stream = streams(task);
    in_blocks(context, task.neurons, task.steps, [&](std::int64_t first, std::int64_t count) {
      cpu::layered(task, first, count);
    });
  }

  template <typename T>
  static void run(const Context& context, const SumTask<T>& task) {
    in_blocks(context, task.neurons, task.steps, [&](std::int64_t first, std::int64_t count) {
      cpu::time_sum(task, first, count);
    });
  }

  template <typename T>
  static void run(const Context& context, const DriveTask<T>& task) {
    in_blocks(context, task.neurons, task.steps, [&](std::int64_t first, std::int64_t count) {
      cpu::drive(task, first, count);
    });
  }

  template <typename T>
  static void run(const Context& context, const AnalogTask<T>& task) {
    in_blocks(context, task.neurons, task.steps, [&](std::int64_t first, std::int64_t count) {
      cpu::analog(task, first, count);
    });
  }

  template <typename T>
  static void run(const Context& context, const PoissonTask<T>& task) {
    in_blocks(context, task.neurons(), task.steps, [&](std::int64_t first, std::int64_t count) {
      cpu::poisson(task, first, count);
    });
  }

  template <typename T>
  static void run(const Context& context, const PoolTask<T>& task) {
    std::atomic<bool> good{true};  // nothing may throw on onnxruntime's threads
    const auto plane = [&](std::int64_t index) {
      if (!cpu::pool(task, index)) good = false;
    };
    if (task.planes * task.window.inputs() * task.steps < small) {
      for (std::int64_t index = 0; index < task.planes; ++index) plane(index);
    } else {
      context.parallel(task.planes, plane);
    }
    if (!good) throw std::runtime_error("out of memory");
  }
};

#ifdef SNNC_CUDA
struct Cuda {
  static constexpr const char* provider = "CUDAExecutionProvider";

  static void check(const char* error) {
    if (error) throw std::runtime_error(std::string("CUDA: ") + error);
  }
  template <typename T>
  static void run(const Context& context, const NeuronTask<T>& task) {
    check(cuda::neuron(task, context.stream()));
  }
  template <typename T>
  static void run(const Context& context, const ScheduledTask<T>& task) {
    check(cuda::scheduled(task, context.stream()));
  }
  template <typename T>
  static void run(const Context& context, const LayeredTask<T>& task) {
    check(cuda::layered(task, context.stream()));
  }
  static void run(const Context& context, const LevelTask& task) {
    check(cuda::level(task, context.stream()));
  }
  template <typename T>
  static void run(const Context& context, const SumTask<T>& task) {
    check(cuda::time_sum(task, context.stream()));
  }
  template <typename T>
  static void run(const Context& context, const DriveTask<T>& task) {
    check(cuda::drive(task, context.stream()));
  }
  template <typename T>
  static void run(const Context& context, const AnalogTask<T>& task) {
    check(cuda::analog(task, context.stream()));
  }
  template <typename T>
  static void run(const Context& context, const PoissonTask<T>& task) {
    check(cuda::poisson(task, context.stream()));
  }
  template <typename T>
  static void run(const Context& context, const PoolTask<T>& task) {
    check(cuda::pool(task, context.stream()));
  }
};
#endif

// --- operators ---------------------------------------------------------------------------------

/// Calls `work` with a value of the type of the currents or spikes: float or Half.
template <typename Work>
void for_type(ort::ElementType type, const Work& work) {
  switch (type) {
    case ort::float32:
      return work(float{});
    case ort::float16:
      return work(Half{});
    default:
      throw std::invalid_argument("currents and spikes must be float32 or float16");
  }
}

/// The factors of a driven current.
Factors factors_of(const Input& drive) {
  if (drive.shape.size() != 1 || drive.shape[0] < 1) {
    throw std::invalid_argument("`drive` of shape " + text(drive.shape) +
                                " must have one axis and at least one element");
  }
  return {drive.as<float>(), drive.shape[0]};
}

template <Reset reset>
class Neuron {
 public:
  static constexpr const char* name = reset == Reset::soft ? "RMPNeuron" : "HardResetNeuron";
  static constexpr ort::ElementType inputs[] = {ort::undefined, ort::float32, ort::float32,
                                                ort::int64};
  static constexpr ort::ElementType outputs[] = {ort::undefined, ort::float32};
  static constexpr std::array<int, 1> states_in{2}, states_out{1};

  explicit Neuron(const Attributes& attributes)
      : static_current_(attributes.integer("static_current", 0) != 0) {}

  template <typename Device>
  void run(const Context& context) const {
    const Input current = context.input(0), threshold = context.input(1);
    const Input membrane = context.input(2);
    const std::int64_t steps = number_of("steps", context.input(3), 1);
    const Shape sample = samples_of("current", current.shape, static_current_ ? 1 : steps);
    for_type(current.type, [&](auto zero) {
      using T = decltype(zero);
      NeuronTask<T> task{};
      task.current = current.as<T>();
      task.threshold = threshold.as<float>();
      task.membrane = membrane.as<float>();
      task.threshold_over = broadcast("threshold", threshold.shape, sample);
      task.membrane_over = broadcast("membrane", membrane.shape, sample);
      task.spikes = context.output<T>(0, folded(sample, steps));
      task.membrane_out = context.output<float>(1, sample);
      task.steps = steps;
      task.neurons = elements(sample);
      task.static_current = static_current_;
      task.reset = reset;
      if (task.neurons) Device::run(context, task);
    });
  }

 private:
  bool static_current_;
};

/// A neuron with a schedule; `driven`: its current is static, and multiplied by a factor of each step.
template <Firing firing, bool driven>
class ScheduledNeuron {
  static constexpr bool balanced = firing == Firing::balanced;
  static constexpr std::size_t threshold_input = driven ? 2 : 1;
  static constexpr std::size_t membrane_input = threshold_input + 1;
  static constexpr std::size_t schedule_input = membrane_input + (balanced ? 2 : 1);

 public:
  static constexpr const char* name =
      firing == Firing::single  ? (driven ? "DrivenRMPNeuron" : "ScheduledRMPNeuron")
      : firing == Firing::burst ? (driven ? "DrivenBurstNeuron" : "BurstNeuron")
                                : (driven ? "DrivenSignedNeuron" : "SignedNeuron");
  // current, drive where there is one, threshold, membrane, balance where there is one, schedule,
  // start, steps
  static constexpr auto inputs = [] {
    std::array<ort::ElementType, schedule_input + 3> types{};
    for (auto& type : types) type = ort::float32;
    types[0] = ort::undefined;
    types[schedule_input + 1] = types[schedule_input + 2] = ort::int64;
    return types;
  }();
  static constexpr auto outputs = [] {
    std::array<ort::ElementType, balanced ? 3 : 2> types{};
    for (auto& type : types) type = ort::float32;
    types[0] = ort::undefined;
    return types;
  }();
  static constexpr auto states_in = [] {
    constexpr int first = membrane_input;
    if constexpr (balanced) {
      return std::array{first, first + 1};
    } else {
      return std::array{first};
    }
  }();
  static constexpr auto states_out = [] {
    if constexpr (balanced) {
      return std::array{1, 2};
    } else {
      return std::array{1};
    }
  }();

  explicit ScheduledNeuron(const Attributes& attributes)
      : kind_(driven                                        ? Current::driven
              : attributes.integer("static_current", 0) != 0 ? Current::fixed
                                                             : Current::temporal),
        levels_(firing == Firing::single ? 1 : attributes.integer("levels", 0)) {
    if (levels_ < 1 || levels_ > 1 << 24) {
      throw std::invalid_argument("`levels` must be 1 to 2^24, not " + std::to_string(levels_));
    }
  }

  template <typename Device>
  void run(const Context& context) const {
    const Input current = context.input(0), threshold = context.input(threshold_input);
    const Input membrane = context.input(membrane_input), schedule = context.input(schedule_input);
    const std::int64_t steps = number_of("steps", context.input(schedule_input + 2), 1);
    const std::int64_t start = number_of("start", context.input(schedule_input + 1), 0);
    const Shape sample =
        samples_of("current", current.shape, kind_ == Current::temporal ? steps : 1);
    if (schedule.shape.empty() || schedule.shape[0] < 1) {
      throw std::invalid_argument("`schedule` of shape " + text(schedule.shape) + " has no rows");
    }
    const Shape row(schedule.shape.begin() + 1, schedule.shape.end());
    for_type(current.type, [&](auto zero) {
      using T = decltype(zero);
      ScheduledTask<T> task{};
      task.current = current.as<T>();
      if constexpr (driven) task.drive = factors_of(context.input(1));
      task.threshold = threshold.as<float>();
      task.membrane = membrane.as<float>();
      task.schedule = schedule.as<float>();
      task.threshold_over = broadcast("threshold", threshold.shape, sample);
      task.membrane_over = broadcast("membrane", membrane.shape, sample);
      task.row_over = broadcast("schedule", row, sample);
      task.spikes = context.output<T>(0, folded(sample, steps));
      task.membrane_out = context.output<float>(1, sample);
      if constexpr (balanced) {
        const Input balance = context.input(membrane_input + 1);
        task.balance = balance.as<float>();
        task.balance_over = broadcast("balance", balance.shape, sample);
        task.balance_out = context.output<float>(2, sample);
      }
      task.rows = schedule.shape[0];
      task.row_size = elements(row);
      task.start = start;
      task.steps = steps;
      task.neurons = elements(sample);
      task.levels = static_cast<float>(levels_);
      task.kind = kind_;
      task.firing = firing;
      if (task.neurons) Device::run(context, task);
    });
  }

 private:
  Current kind_;
  std::int64_t levels_;
};

class LayeredNeuron {
 public:
  static constexpr const char* name = "LayeredRMPNeuron";
  static constexpr ort::ElementType inputs[] = {ort::undefined, ort::float32, ort::float32,
                                                ort::int64};
  static constexpr ort::ElementType outputs[] = {ort::undefined};
  static constexpr std::array<int, 0> states_in{}, states_out{};
  /// The numbers of more digits are not all exact in float32.
  static constexpr std::int64_t most_digits = 24;

  explicit LayeredNeuron(const Attributes& attributes)
      : static_current_(attributes.integer("static_current", 0) != 0),
        radix_(attributes.integer("radix", 0) != 0) {}

  template <typename Device>
  void run(const Context& context) const {
    const Input current = context.input(0), threshold = context.input(1);
    const Input membrane = context.input(2);
    const std::int64_t steps = number_of("steps", context.input(3), 1);
    if (radix_ && steps > most_digits) {
      throw std::invalid_argument("`steps` must be at most " + std::to_string(most_digits) +
                                  " with `radix`, not " + std::to_string(steps));
    }
    const Shape sample = samples_of("current", current.shape, static_current_ ? 1 : steps);
    for_type(current.type, [&](auto zero) {
      using T = decltype(zero);
      LayeredTask<T> task{};
      task.current = current.as<T>();
      task.threshold = threshold.as<float>();
      task.membrane = membrane.as<float>();
      task.threshold_over = broadcast("threshold", threshold.shape, sample);
      task.membrane_over = broadcast("membrane", membrane.shape, sample);
      task.spikes = context.output<T>(0, folded(sample, steps));
      task.steps = steps;
      task.neurons = elements(sample);
      task.static_current = static_current_;
      task.radix = radix_;
      if (task.neurons) Device::run(context, task);
    });
  }

 private:
  bool static_current_, radix_;
};

#ifdef SNNC_CUDA
/// On CUDA; for the CPU it is among the operators by counts.
class LevelNeuron {
 public:
  static constexpr const char* name = "LevelNeuron";
  static constexpr ort::ElementType inputs[] = {ort::float32, ort::float32, ort::float32,
                                                ort::int64};
  static constexpr ort::ElementType outputs[] = {ort::float32};
  static constexpr std::array<int, 1> states_in{0}, states_out{0};

  explicit LevelNeuron(const Attributes&) {}

  template <typename Device>
  void run(const Context& context) const {
    const Input current = context.input(0), membrane = context.input(1), threshold = context.input(2);
    const std::int64_t levels = number_of("levels", context.input(3), 1);
    if (levels > 1 << 20) {
      throw std::invalid_argument("`levels` is " + std::to_string(levels) +
                                  ", and here at most 2^20 are taken (events=False takes more)");
    }
    const Shape sample = samples_of("current", current.shape, 1);
    LevelTask task{};
    task.current = current.as<float>();
    task.membrane = membrane.as<float>();
    task.threshold = threshold.as<float>();
    task.membrane_over = broadcast("membrane", membrane.shape, sample);
    task.threshold_over = broadcast("threshold", threshold.shape, sample);
    task.counts = context.output<float>(0, current.shape);
    task.neurons = elements(sample);
    task.levels = static_cast<float>(levels);
    if (task.neurons) Device::run(context, task);
  }
};
#endif

template <bool weighted>
class TimeSum {
 public:
  static constexpr const char* name = weighted ? "WeightedTimeSum" : "TimeSum";
  static constexpr auto inputs = [] {
    if constexpr (weighted) {
      return std::array{ort::undefined, ort::float32, ort::float32, ort::int64};
    } else {
      return std::array{ort::undefined, ort::float32, ort::int64};
    }
  }();
  static constexpr ort::ElementType outputs[] = {ort::float32};
  static constexpr std::array<int, 1> states_in{weighted ? 2 : 1}, states_out{0};

  explicit TimeSum(const Attributes&) {}

  template <typename Device>
  void run(const Context& context) const {
    const Input values = context.input(0), total = context.input(weighted ? 2 : 1);
    const std::int64_t steps = number_of("steps", context.input(weighted ? 3 : 2), 1);
    const Shape sample = samples_of("values", values.shape, steps);
    const float* weights = nullptr;
    if constexpr (weighted) {
      const Input given = context.input(1);
      if (elements(given.shape) != steps) {
        throw std::invalid_argument("`weights` of shape " + text(given.shape) + " are not " +
                                    std::to_string(steps) + ", one for each step");
      }
      weights = given.as<float>();
    }
    for_type(values.type, [&](auto zero) {
      using T = decltype(zero);
      SumTask<T> task{};
      task.values = values.as<T>();
      task.total = total.as<float>();
      task.total_over = broadcast("total", total.shape, sample);
      task.total_out = context.output<float>(0, sample);
      task.weights = weights;
      task.steps = steps;
      task.neurons = elements(sample);
      if (task.neurons) Device::run(context, task);
    });
  }
};

class Drive {
 public:
  static constexpr const char* name = "Drive";
  static constexpr ort::ElementType inputs[] = {ort::undefined, ort::float32, ort::int64,
                                                ort::int64};
  static constexpr ort::ElementType outputs[] = {ort::undefined};
  static constexpr std::array<int, 0> states_in{}, states_out{};

  explicit Drive(const Attributes&) {}

  template <typename Device>
  void run(const Context& context) const {
    const Input values = context.input(0);
    const Factors drive = factors_of(context.input(1));
    const std::int64_t steps = number_of("steps", context.input(3), 1);
    const std::int64_t start = number_of("start", context.input(2), 0);
    const Shape sample = samples_of("values", values.shape, 1);
    for_type(values.type, [&](auto zero) {
      using T = decltype(zero);
      DriveTask<T> task{};
      task.values = values.as<T>();
      task.drive = drive;
      task.currents = context.output<T>(0, folded(sample, steps));
      task.start = start;
      task.steps = steps;
      task.neurons = elements(sample);
      if (task.neurons) Device::run(context, task);
    });
  }
};

template <Analog kind>
class AnalogOperator {
  static constexpr bool mean = kind == Analog::running_mean;

 public:
  static constexpr const char* name = mean ? "RunningMean" : "Telescope";
  static constexpr ort::ElementType inputs[] = {ort::undefined, ort::float32, ort::int64,
                                                ort::int64};
  static constexpr ort::ElementType outputs[] = {ort::undefined, ort::float32};
  static constexpr std::array<int, 1> states_in{1}, states_out{1};

  explicit AnalogOperator(const Attributes&) {}

  template <typename Device>
  void run(const Context& context) const {
    const Input values = context.input(0), state = context.input(1);
    const std::int64_t steps = number_of("steps", context.input(3), 1);
    const std::int64_t start = number_of("start", context.input(2), 0);
    const Shape sample = samples_of("values", values.shape, steps);
    for_type(values.type, [&](auto zero) {
      using T = decltype(zero);
      AnalogTask<T> task{};
      task.values = values.as<T>();
      task.state = state.as<float>();
      task.state_over = broadcast(mean ? "total" : "previous", state.shape, sample);
      task.out = context.output<T>(0, values.shape);
      task.state_out = context.output<float>(1, sample);
      task.start = start;
      task.steps = steps;
      task.neurons = elements(sample);
      task.kind = kind;
      if (task.neurons) Device::run(context, task);
    });
  }
};

class PoissonEncoder {
 public:
  static constexpr const char* name = "PoissonEncoder";
  static constexpr ort::ElementType inputs[] = {ort::undefined, ort::float32, ort::int64,
                                                ort::int64,     ort::int64,   ort::int64};
  static constexpr ort::ElementType outputs[] = {ort::undefined};
  static constexpr std::array<int, 0> states_in{}, states_out{};

  explicit PoissonEncoder(const Attributes&) {}

  template <typename Device>
  void run(const Context& context) const {
    constexpr std::int64_t any = std::numeric_limits<std::int64_t>::min();
    const Input values = context.input(0), scale = context.input(1);
    require_one("scale", scale);
    const std::int64_t seed = number_of("seed", context.input(2), any);
    const std::int64_t first_image = number_of("first_image", context.input(3), any);
    const std::int64_t steps = number_of("steps", context.input(5), 1);
    const std::int64_t start = number_of("start", context.input(4), 0);
    const Shape sample = samples_of("values", values.shape, 1);
    for_type(values.type, [&](auto zero) {
      using T = decltype(zero);
      PoissonTask<T> task{};
      task.values = values.as<T>();
      task.scale = scale.as<float>();
      task.spikes = context.output<T>(0, folded(sample, steps));
      task.seed = seed;
      task.first_image = first_image;
      task.start = start;
      task.steps = steps;
      task.images = sample[0];
      task.size = product(sample.begin() + 1, sample.end());
      if (task.neurons()) Device::run(context, task);
    });
  }
};

/// Counts the time-steps of a trip through a loop.  There is one for the CPU only: on CUDA, too, the
/// host reads these numbers.
class TimeSteps {
 public:
  static constexpr const char* name = "TimeSteps";
  static constexpr ort::ElementType inputs[] = {ort::int64, ort::int64, ort::int64, ort::int64};
  static constexpr ort::ElementType outputs[] = {ort::int64, ort::int64, ort::int64, ort::boolean};
  static constexpr std::array<int, 0> states_in{}, states_out{};

  explicit TimeSteps(const Attributes&) {}

  template <typename Device>
  void run(const Context& context) const {
    const std::int64_t iteration = number_of("iteration", context.input(0), 0);
    const std::int64_t done = number_of("done", context.input(1), 0);
    const std::int64_t total = number_of("total", context.input(2), 1);
    const std::int64_t chunk = number_of("chunk", context.input(3), 1);
    const std::int64_t start = plus(done, times(iteration, chunk));
    const std::int64_t steps = std::min(chunk, total - start);  // both at least 0
    *context.output<std::int64_t>(0, {}) = start;
    *context.output<std::int64_t>(1, {}) = steps;
    *context.output<std::int64_t>(2, {}) = start + steps;
    *context.output<bool>(3, {}) = start + steps < total;
  }
};

class SpikeMaxPool {
 public:
  static constexpr const char* name = "SpikeMaxPool";
  static constexpr ort::ElementType inputs[] = {ort::undefined, ort::float32, ort::int64};
  static constexpr ort::ElementType outputs[] = {ort::undefined, ort::float32};
  static constexpr std::array<int, 1> states_in{1}, states_out{1};

  explicit SpikeMaxPool(const Attributes& attributes)
      : kernel_(attributes.integers("kernel_shape")),
        strides_(attributes.integers("strides")),
        dilations_(attributes.integers("dilations")),
        pads_(attributes.integers("pads")),
        auto_pad_(attributes.string("auto_pad", "NOTSET")),
        ceil_mode_(attributes.integer("ceil_mode", 0) != 0) {
    const std::size_t rank = kernel_.size();
    if (rank < 1 || rank > 3) throw std::invalid_argument("`kernel_shape` must have 1 to 3 axes");
    if (auto_pad_ != "NOTSET" && auto_pad_ != "VALID" && auto_pad_ != "SAME_UPPER" &&
        auto_pad_ != "SAME_LOWER") {
      throw std::invalid_argument("unknown `auto_pad` " + auto_pad_);
    }
    if (strides_.empty()) strides_.assign(rank, 1);
    if (dilations_.empty()) dilations_.assign(rank, 1);
    if (pads_.empty() || auto_pad_ != "NOTSET") pads_.assign(2 * rank, 0);
    require("kernel_shape", kernel_, rank, 1);
    require("strides", strides_, rank, 1);
    require("dilations", dilations_, rank, 1);
    require("pads", pads_, 2 * rank, 0);
    for (std::size_t i = 0; i < pads_.size(); ++i) {
      if (pads_[i] >= kernel_[i % rank]) {
        throw std::invalid_argument("`pads` " + text(pads_) + " must be smaller than `kernel_shape` " +
                                    text(kernel_));
      }
    }
  }

  template <typename Device>
  void run(const Context& context) const {
    const Input spikes = context.input(0), counts = context.input(1);
    const std::int64_t steps = number_of("steps", context.input(2), 1);
    const Shape sample = samples_of("spikes", spikes.shape, steps);
    if (sample.size() != kernel_.size() + 2) {
      throw std::invalid_argument("`spikes` of shape " + text(spikes.shape) + " do not fit a window of " +
                                  text(kernel_));
    }
    const Window window = window_over(sample);
    Shape pooled = sample;
    std::copy(window.out + 3 - kernel_.size(), window.out + 3, pooled.begin() + 2);
    for_type(spikes.type, [&](auto zero) {
      using T = decltype(zero);
      PoolTask<T> task{};
      task.spikes = spikes.as<T>();
      task.counts = counts.as<float>();
      task.counts_over = broadcast("counts", counts.shape, sample);
      task.pooled = context.output<T>(0, folded(pooled, steps));
      task.counts_out = context.output<float>(1, sample);
      task.window = window;
      task.steps = steps;
      if (!elements(sample)) return;
      task.planes = sample[0] * sample[1];
      Device::run(context, task);
    });
  }

 private:
  static void require(const char* attribute, const Shape& values, std::size_t count,
                      std::int64_t least) {
    bool good = values.size() == count;
    for (const std::int64_t value : values) good = good && value >= least;
    if (!good) {
      throw std::invalid_argument("`" + std::string(attribute) + "` " + text(values) + " must be " +
                                  std::to_string(count) + " numbers of at least " +
                                  std::to_string(least));
    }
  }

  /// Padding and output sizes as onnxruntime computes them for MaxPool.
  Window window_over(const Shape& sample) const {
    Window window;
    const std::size_t rank = kernel_.size();
    for (std::size_t i = 0; i < rank; ++i) {
      const std::size_t axis = 3 - rank + i;
      const std::int64_t in = sample[2 + i], kernel = kernel_[i], stride = strides_[i];
      std::int64_t begin = pads_[i], both = plus(pads_[i], pads_[rank + i]);
      if (auto_pad_ == "SAME_UPPER" || auto_pad_ == "SAME_LOWER") {
        both = plus(times(plus(in, stride - 1) / stride - 1, stride), kernel) - in;
        if (both < 0) throw std::invalid_argument("`auto_pad` asks for negative padding");
        begin = (auto_pad_ == "SAME_LOWER" ? both + 1 : both) / 2;
      }
      const std::int64_t room = plus(in, both) - times(dilations_[i], kernel - 1) - 1;
      std::int64_t out = room / stride + 1;
      if (ceil_mode_) {
        out = plus(room, room > 0 ? stride - 1 : 0) / stride + 1;
        // A last window that starts in the padding at the end is dropped.
        if (times(out - 1, stride) >= plus(in, begin)) --out;
      }
      if (out < 0) {
        throw std::invalid_argument("the window of `kernel_shape` " + text(kernel_) +
                                    " is larger than samples of shape " + text(sample));
      }
      window.in[axis] = in;
      window.out[axis] = out;
      window.kernel[axis] = kernel;
      window.stride[axis] = stride;
      window.dilation[axis] = dilations_[i];
      window.pad[axis] = begin;
    }
    return window;
  }

  Shape kernel_, strides_, dilations_, pads_;
  std::string auto_pad_;
  bool ceil_mode_;
};

// --- registration ------------------------------------------------------------------------------

template <typename Device>
void add_all(const OrtApi* api, OrtCustomOpDomain* domain) {
  add<Neuron<Reset::soft>, Device>(api, domain);
  add<Neuron<Reset::hard>, Device>(api, domain);
  add<ScheduledNeuron<Firing::single, false>, Device>(api, domain);
  add<ScheduledNeuron<Firing::burst, false>, Device>(api, domain);
  add<ScheduledNeuron<Firing::balanced, false>, Device>(api, domain);
  add<ScheduledNeuron<Firing::single, true>, Device>(api, domain);
  add<ScheduledNeuron<Firing::burst, true>, Device>(api, domain);
  add<ScheduledNeuron<Firing::balanced, true>, Device>(api, domain);
  add<LayeredNeuron, Device>(api, domain);
  add<TimeSum<false>, Device>(api, domain);
  add<TimeSum<true>, Device>(api, domain);
  add<SpikeMaxPool, Device>(api, domain);
  add<Drive, Device>(api, domain);
  add<AnalogOperator<Analog::running_mean>, Device>(api, domain);
  add<AnalogOperator<Analog::telescope>, Device>(api, domain);
  add<PoissonEncoder, Device>(api, domain);
}

/// The domain, made once and shared by all sessions.  It lives as long as the library is loaded.
class Domain {
 public:
  explicit Domain(const OrtApi* api) : api_(api) {
    call<ort::CreateCustomOpDomain>(api, "ai.snnc", &domain_);
    add_all<Cpu>(api, domain_);
    add_event_operators(api, domain_);
    add_count_operators(api, domain_);
    add<TimeSteps, Cpu>(api, domain_);
#ifdef SNNC_CUDA
    add_all<Cuda>(api, domain_);
    add<LevelNeuron, Cuda>(api, domain_);
#endif
  }
  ~Domain() { ort::ReleaseCustomOpDomain::call(api_, domain_); }
  Domain(const Domain&) = delete;
  Domain& operator=(const Domain&) = delete;

  OrtCustomOpDomain* get() const { return domain_; }

 private:
  const OrtApi* api_;
  OrtCustomOpDomain* domain_ = nullptr;
};

}  // namespace
}  // namespace snnc

/// The only exported symbol: onnxruntime calls it to register the operators for a session.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const snnc::ort::ApiBase* base) {
  const OrtApi* api = base->GetApi(snnc::ort::api_version);
  // An older onnxruntime has no such table, and so no way to make a status; it reports by itself.
  if (!api) {
    const OrtApi* oldest = base->GetApi(1);
    return snnc::ort::CreateStatus::call(oldest, snnc::ort::fail,
                                         "ai.snnc needs onnxruntime 1.18 or newer");
  }
  return snnc::guarded(api, "ai.snnc", [&] {
    static const snnc::Domain domain(api);
    snnc::call<snnc::ort::AddCustomOpDomain>(api, options, domain.get());
  });
}
