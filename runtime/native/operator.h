// What every operator needs of onnxruntime: its API in C++, attributes, inputs and outputs, and the
// registration.
#pragma once

#include <algorithm>
#include <iterator>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "ort_api.h"

namespace snnc {

using Shape = std::vector<std::int64_t>;

inline std::string text(const Shape& shape) {
  std::string result = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    result += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return result + "]";
}

/// a * b and a + b: sizes and numbers of steps are whatever the user feeds, so none may wrap.
inline std::int64_t times(std::int64_t a, std::int64_t b) {
  std::int64_t result;
  if (__builtin_mul_overflow(a, b, &result)) {
    throw std::invalid_argument(std::to_string(a) + " times " + std::to_string(b) +
                                " is more than 64 bits hold");
  }
  return result;
}

inline std::int64_t plus(std::int64_t a, std::int64_t b) {
  std::int64_t result;
  if (__builtin_add_overflow(a, b, &result)) {
    throw std::invalid_argument(std::to_string(a) + " plus " + std::to_string(b) +
                                " is more than 64 bits hold");
  }
  return result;
}

inline std::int64_t product(Shape::const_iterator begin, Shape::const_iterator end) {
  // Nothing is nothing, whatever the other sizes.
  if (std::find(begin, end, 0) != end) return 0;
  return std::accumulate(begin, end, std::int64_t{1}, times);
}

// --- onnxruntime in C++ ------------------------------------------------------------------------

/// Calls a function of the API and throws what it reports.
template <typename Function, typename... Arguments>
void call(const OrtApi* api, Arguments... arguments) {
  OrtStatus* status = Function::call(api, arguments...);
  if (!status) return;
  const std::string message = ort::GetErrorMessage::call(api, status);
  ort::ReleaseStatus::call(api, status);
  throw std::runtime_error(message);
}

/// Runs `work` and reports what it throws: no exception crosses into onnxruntime.
template <typename Work>
OrtStatus* guarded(const OrtApi* api, const std::string& where, const Work& work) noexcept {
  ort::ErrorCode code = ort::fail;
  const char* message = "out of memory";
  std::string full;
  try {
    try {
      work();
      return nullptr;
    } catch (const std::invalid_argument& error) {
      code = ort::invalid_argument;
      full = where + ": " + error.what();
    } catch (const std::exception& error) {
      full = where + ": " + error.what();
    } catch (...) {
      full = where + ": unknown error";
    }
    message = full.c_str();
  } catch (...) {  // no memory for the message
  }
  return ort::CreateStatus::call(api, code, message);
}

struct Input {
  Shape shape;
  ort::ElementType type;
  const void* data;

  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

inline void* data_of(const OrtApi* api, OrtValue* value) {
  void* pointer = nullptr;
  call<ort::GetTensorMutableData>(api, value, &pointer);
  return pointer;
}

inline Input read(const OrtApi* api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  call<ort::GetTensorTypeAndShape>(api, value, &raw);
  const auto release = [api](OrtTensorTypeAndShapeInfo* info) {
    ort::ReleaseTensorTypeAndShapeInfo::call(api, info);
  };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> info(raw, release);

  Input result;
  std::size_t rank = 0;
  call<ort::GetDimensionsCount>(api, info.get(), &rank);
  result.shape.resize(rank);
  call<ort::GetDimensions>(api, info.get(), result.shape.data(), rank);
  call<ort::GetTensorElementType>(api, info.get(), &result.type);
  result.data = data_of(api, const_cast<OrtValue*>(value));
  return result;
}

/// The attributes of a node, at the time its kernel is made.
class Attributes {
 public:
  Attributes(const OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  /// Those of an operator inside of a node, whose names begin with `prefix`, and whose inputs have these
  /// numbers among the `count` inputs of the node, or larger ones, which are not constant.
  Attributes inside(const std::string& prefix, const Shape& inputs, std::int64_t count) const {
    Attributes inner(*this);
    inner.prefix_ = prefix;
    inner.inputs_ = inputs;
    inner.count_ = count;
    return inner;
  }

  std::string node_name() const {
    std::size_t size = 0;
    ignore(ort::KernelInfo_GetNodeName::call(api_, info_, nullptr, &size));
    std::string name(size, '\0');
    if (size) call<ort::KernelInfo_GetNodeName>(api_, info_, name.data(), &size);
    return name.c_str();  // without the closing zero
  }

  std::int64_t integer(const char* name, std::int64_t otherwise) const {
    std::int64_t value = otherwise;
    if (ignore(ort::KernelInfoGetAttribute_int64::call(api_, info_, full(name).c_str(), &value))) return value;
    return otherwise;
  }

  std::string string(const char* name, const char* otherwise) const {
    std::size_t size = 0;
    const std::string key = full(name);
    ignore(ort::KernelInfoGetAttribute_string::call(api_, info_, key.c_str(), nullptr, &size));
    if (!size) return otherwise;
    std::string value(size, '\0');
    call<ort::KernelInfoGetAttribute_string>(api_, info_, key.c_str(), value.data(), &size);
    return value.c_str();
  }

  /// The list, or an empty one where there is none.
  Shape integers(const char* name) const {
    std::size_t size = 0;
    using Get = ort::KernelInfoGetAttributeArray_int64;
    const std::string key = full(name);
    ignore(Get::call(api_, info_, key.c_str(), nullptr, &size));
    Shape values(size);
    if (size) call<Get>(api_, info_, key.c_str(), values.data(), &size);
    return values;
  }

  Input read(const OrtValue* value) const { return snnc::read(api_, value); }

  /// The value of an input that is constant, or null; it lives as long as the session.
  const OrtValue* constant(std::size_t index) const {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    if (count_) {
      if (index >= inputs_.size() || inputs_[index] < 0 || inputs_[index] >= count_) return nullptr;
      index = static_cast<std::size_t>(inputs_[index]);
    }
    using Get = ort::KernelInfoGetConstantInput_tensor;
    if (!ignore(Get::call(api_, info_, index, &is_constant, &value)) || !is_constant) return nullptr;
    return value;
  }

 private:
  /// Whether a call went well; its report is dropped.
  bool ignore(OrtStatus* status) const {
    if (status) ort::ReleaseStatus::call(api_, status);
    return !status;
  }

  std::string full(const char* name) const { return prefix_ + name; }

  const OrtApi* api_;
  const OrtKernelInfo* info_;
  std::string prefix_;
  Shape inputs_;
  std::int64_t count_ = 0;  // 0: the node itself
};

/// One call of a kernel.
class Context {
 public:
  Context(const OrtApi* api, OrtKernelContext* context) : api_(api), context_(context) {}

  Input input(std::size_t index) const {
    const OrtValue* value = nullptr;
    call<ort::KernelContext_GetInput>(api_, context_, index, &value);
    if (!value) throw std::invalid_argument("input " + std::to_string(index) + " is missing");
    return read(api_, value);
  }

  template <typename T>
  T* output(std::size_t index, const Shape& shape) const {
    // Every size that a kernel computes with is at most that of an input or of an output.
    times(product(shape.begin(), shape.end()), sizeof(T));
    OrtValue* value = nullptr;
    call<ort::KernelContext_GetOutput>(api_, context_, index, shape.data(), shape.size(), &value);
    if (!value) throw std::invalid_argument("output " + std::to_string(index) + " is not wired");
    return static_cast<T*>(data_of(api_, value));
  }

  /// Runs work(0) ... work(total - 1) on onnxruntime's threads.
  template <typename Work>
  void parallel(std::int64_t total, const Work& work) const {
    const auto task = [](void* data, std::size_t index) {
      (*static_cast<const Work*>(data))(static_cast<std::int64_t>(index));
    };
    call<ort::KernelContext_ParallelFor>(api_, context_, task, static_cast<std::size_t>(total),
                                         std::size_t{0}, const_cast<Work*>(&work));
  }

  void* stream() const {
    void* stream = nullptr;
    call<ort::KernelContext_GetGPUComputeStream>(api_, context_, &stream);
    return stream;
  }

 private:
  const OrtApi* api_;
  OrtKernelContext* context_;
};

// --- shapes ------------------------------------------------------------------------------------

inline void require_one(const char* name, const Input& input) {
  if (product(input.shape.begin(), input.shape.end()) != 1) {
    throw std::invalid_argument("`" + std::string(name) + "` must be one number, not of shape " +
                                text(input.shape));
  }
}

/// The number of time-steps of this call, or before it.
inline std::int64_t number_of(const char* name, const Input& input, std::int64_t least) {
  require_one(name, input);
  const std::int64_t number = *input.as<std::int64_t>();
  if (number < least) {
    throw std::invalid_argument("`" + std::string(name) + "` must be at least " + std::to_string(least) + ", not " +
                                std::to_string(number));
  }
  return number;
}

/// The shape `[N, ...]` of the samples whose `held` time-steps are folded into `folded`.
inline Shape samples_of(const char* name, const Shape& folded, std::int64_t held) {
  if (folded.empty()) {
    throw std::invalid_argument(std::string("`") + name + "` has no leading axis");
  }
  if (folded[0] % held) {
    throw std::invalid_argument("the leading axis of `" + std::string(name) + "`, of shape " +
                                text(folded) + ", does not divide into " + std::to_string(held) +
                                " time-steps");
  }
  Shape sample = folded;
  sample[0] /= held;
  return sample;
}

inline Shape folded(const Shape& sample, std::int64_t steps) {
  Shape result = sample;
  result[0] = times(result[0], steps);
  return result;
}

inline std::int64_t elements(const Shape& shape) { return product(shape.begin(), shape.end()); }

// --- registration ------------------------------------------------------------------------------

/// Whether an operator takes any number of inputs, of any types, and gives any number of outputs.
template <typename Operator, typename = void>
struct IsVariadic : std::false_type {};
template <typename Operator>
struct IsVariadic<Operator, std::void_t<decltype(Operator::variadic)>> : std::true_type {};

/// What onnxruntime keeps per node: the operator with its attributes, and how to name it.
template <typename Operator>
struct Kernel {
  const OrtApi* api;
  std::string where;
  Operator op;
};

/// An operator on a device, described to onnxruntime.
template <typename Operator, typename Device>
struct Registration : ort::CustomOp {
  static constexpr std::size_t input_count = std::size(Operator::inputs);
  static constexpr std::size_t output_count = std::size(Operator::outputs);

  Registration() {
    GetName = [](const CustomOp*) { return Operator::name; };
    GetExecutionProviderType = [](const CustomOp*) { return Device::provider; };
    // `undefined` is the type variable T: the same for the first input and the first output.
    GetInputType = [](const CustomOp*, std::size_t index) { return Operator::inputs[index]; };
    GetInputTypeCount = [](const CustomOp*) { return input_count; };
    GetOutputType = [](const CustomOp*, std::size_t index) { return Operator::outputs[index]; };
    GetOutputTypeCount = [](const CustomOp*) { return output_count; };
    constexpr ort::Characteristic kind =
        IsVariadic<Operator>::value ? ort::variadic : ort::required;
    GetInputCharacteristic = [](const CustomOp*, std::size_t) { return kind; };
    GetOutputCharacteristic = [](const CustomOp*, std::size_t) { return kind; };
    if constexpr (IsVariadic<Operator>::value) {
      GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const CustomOp*) { return 1; };
      GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
      GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
    }
    // Whole numbers, such as those of steps, are read by the host.
    GetInputMemoryType = [](const CustomOp*, std::size_t index) {
      return Operator::inputs[index] == ort::int64 ? ort::cpu_input : ort::device_default;
    };
    GetStartVersion = [](const CustomOp*) { return 1; };
    GetEndVersion = [](const CustomOp*) { return 0x7fffffff; };
    GetMayInplace = [](int** inputs, int** outputs) -> std::size_t {
      static auto states_in = Operator::states_in, states_out = Operator::states_out;
      *inputs = states_in.data();
      *outputs = states_out.data();
      return states_in.size();
    };
    ReleaseMayInplace = [](int*, int*) {};

    CreateKernelV2 = [](const CustomOp*, const OrtApi* api, const OrtKernelInfo* info,
                        void** kernel) {
      std::string where = Operator::name;
      return guarded(api, where, [&] {
        const Attributes attributes(api, info);
        const std::string node = attributes.node_name();
        if (!node.empty()) where += " '" + node + "'";
        *kernel = new Kernel<Operator>{api, where, Operator(attributes)};
      });
    };
    KernelComputeV2 = [](void* pointer, OrtKernelContext* raw) {
      const auto& kernel = *static_cast<const Kernel<Operator>*>(pointer);
      return guarded(kernel.api, kernel.where, [&] {
        kernel.op.template run<Device>(Context(kernel.api, raw));
      });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel<Operator>*>(kernel); };
  }
};

template <typename Operator, typename Device>
void add(const OrtApi* api, OrtCustomOpDomain* domain) {
  static const Registration<Operator, Device> registration;
  call<ort::CustomOpDomain_Add>(api, domain, &registration);
}

}  // namespace snnc
