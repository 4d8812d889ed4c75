// The operators by counts of `ai.snnc` for onnxruntime.  Their meaning is their function body in
// snncompiler/ir/dialect/; lowering a layered network onto them is passes/lower/collapse_time.py, and
// making one node of many passes/lower/fuse_counts.py.

#include "count_ops.h"

#include <memory>
#include <optional>
#include <thread>

#include "count_operators.h"
#include "crew.h"
#include "scratch.h"

namespace snnc {
namespace {

struct CountCpu {
  static constexpr const char* provider = "CPUExecutionProvider";
};

/// A call of a node of its own, on onnxruntime's threads.
class NodeCalls : public Context {
 public:
  static constexpr std::int64_t at_hand = 1;

  explicit NodeCalls(const Context& context) : Context(context) {}

  /// More parts than needed would copy their inputs for nothing.
  std::int64_t hands() const { return most_hands; }

 private:
  static const std::int64_t most_hands;
};
const std::int64_t NodeCalls::most_hands =
    std::clamp<std::int64_t>(std::thread::hardware_concurrency(), 1, 16);

/// An operator as a node of its own.
template <typename Operator>
struct Alone : Operator {
  using Operator::Operator;

  template <typename Device>
  void run(const Context& context) const {
    Operator::template run<Device>(NodeCalls(context));
  }
};

// --- many operators in one node ------------------------------------------------------------------

/// Operators one after the other, of one node: nothing is asked of onnxruntime between them, what flows
/// from one to the next stays in a few buffers, and threads are woken once.
///
/// Values have numbers: first the inputs of the node, then what the operators give, one each.
/// Attributes: `results`, the operators whose values go out; for operator k, counted from 0, `k.operator`,
/// its name, `k.inputs`, the numbers of what it reads, and its own attributes behind `k.`.
class CountNetwork {
 public:
  static constexpr const char* name = "CountNetwork";
  static constexpr bool variadic = true;
  static constexpr std::array inputs{ort::undefined};
  static constexpr ort::ElementType outputs[] = {ort::uint8};
  static constexpr std::array<int, 0> states_in{}, states_out{};

  explicit CountNetwork(const Attributes& attributes)
      : given_(attributes.integer("given", 0)) {
    const std::int64_t count = attributes.integer("operators", 0);
    if (given_ < 1 || count < 1) throw std::invalid_argument("`given` and `operators` must be at least 1");
    for (std::int64_t i = 0; i < given_; ++i) {
      const OrtValue* value = attributes.constant(static_cast<std::size_t>(i));
      fixed_.push_back(value ? std::optional(attributes.read(value)) : std::nullopt);
    }
    for (std::int64_t k = 0; k < count; ++k) {
      const std::string prefix = std::to_string(k) + ".";
      Shape read = attributes.integers((prefix + "inputs").c_str());
      for (const std::int64_t value : read) {
        if (value < 0 || value >= given_ + k) {
          throw std::invalid_argument("`" + prefix + "inputs` " + text(read) + " must be of values before it");
        }
      }
      parts_.push_back(make(attributes.string((prefix + "operator").c_str(), ""),
                            attributes.inside(prefix, read, given_)));
      reads_.push_back(std::move(read));
    }
    place(attributes.integers("results"));
  }

  template <typename Device>
  void run(const Context& context) const {
    Crew crew;
    bool asked = false;
    const auto lead = [&] {
      static thread_local std::vector<Slot> slots;
      if (slots.size() < slot_count_) slots.resize(slot_count_);
      std::vector<Input> made(parts_.size());
      for (std::size_t k = 0; k < parts_.size(); ++k) {
        parts_[k]->run({*this, context, crew, asked, slots, made, k});
      }
    };
    // Threads are woken where the call before this one could use them.
    if (shared_.load(std::memory_order_relaxed)) {
      context.parallel(NodeCalls(context).hands(), [&](std::int64_t) { crew.join(lead); });
    } else {
      crew.join(lead);
    }
    crew.check();
    shared_.store(asked, std::memory_order_relaxed);
  }

 private:
  struct Slot {
    Buffer<std::uint8_t> bytes;
    std::int64_t size = 0;
  };

  /// A call of one of the operators.
  struct PartCalls {
    static constexpr std::int64_t at_hand = 8;

    const CountNetwork& network;
    const Context& context;
    Crew& crew;
    bool& asked;
    std::vector<Slot>& slots;
    std::vector<Input>& made;
    std::size_t k;

    Input input(std::size_t index) const {
      const std::int64_t value = network.reads_[k].at(index);
      if (value >= network.given_) return made[static_cast<std::size_t>(value - network.given_)];
      const std::optional<Input>& fixed = network.fixed_[static_cast<std::size_t>(value)];
      return fixed ? *fixed : context.input(static_cast<std::size_t>(value));
    }

    template <typename T>
    T* output(std::size_t, const Shape& shape) const {
      static_assert(sizeof(T) == 1);
      const std::int64_t result = network.results_[k], size = product(shape.begin(), shape.end());
      T* data;
      if (result >= 0) {
        data = context.output<T>(static_cast<std::size_t>(result), shape);
      } else {
        Slot& slot = slots[network.slots_[k]];
        if (!slot.bytes || size > slot.size) {
          slot.bytes = allocate<std::uint8_t>(std::max<std::int64_t>(size, 1));
          slot.size = slot.bytes ? size : 0;
          if (!slot.bytes) throw std::runtime_error("out of memory");
        }
        data = slot.bytes.get();
      }
      made[k] = {shape, ort::uint8, data};
      return data;
    }

    std::int64_t hands() const {
      asked = true;
      return crew.hands();
    }

    template <typename Work>
    void parallel(std::int64_t total, const Work& work) const {
      crew.parallel(total, work);
    }
  };

  /// One of the operators.
  struct Part {
    virtual ~Part() = default;
    virtual void run(const PartCalls& calls) const = 0;
  };

  template <typename Operator>
  struct PartOf : Part {
    explicit PartOf(const Attributes& attributes) : op(attributes) {}
    void run(const PartCalls& calls) const override { op.template run<CountCpu>(calls); }
    Operator op;
  };

  template <typename... Operators>
  static std::unique_ptr<Part> one_of(const std::string& wanted, const Attributes& attributes) {
    std::unique_ptr<Part> made;
    const auto attempt = [&](auto* op) {
      using Operator = std::remove_pointer_t<decltype(op)>;
      if (wanted == Operator::name) made = std::make_unique<PartOf<Operator>>(attributes);
    };
    (attempt(static_cast<Operators*>(nullptr)), ...);
    if (!made) throw std::invalid_argument("no operator `" + wanted + "`");
    return made;
  }

  static std::unique_ptr<Part> make(const std::string& wanted, const Attributes& attributes) {
    return one_of<CountLayer<Kind::alone>, CountLayer<Kind::scaled>, CountLayer<Kind::residual>,
                  CountLayer<Kind::pair>, CountNeuron, CountInput, CountMaxPool>(wanted, attributes);
  }

  /// Gives every value that does not go out a buffer, which is free again behind its last reader.
  void place(const Shape& results) {
    const auto count = static_cast<std::int64_t>(parts_.size());
    results_.assign(parts_.size(), -1);
    for (std::size_t i = 0; i < results.size(); ++i) {
      if (results[i] < 0 || results[i] >= count) {
        throw std::invalid_argument("`results` " + text(results) + " must be operators");
      }
      results_[static_cast<std::size_t>(results[i])] = static_cast<std::int64_t>(i);
    }
    std::vector<std::size_t> last(parts_.size()), free;
    for (std::size_t k = 0; k < parts_.size(); ++k) {
      last[k] = k;
      for (const std::int64_t value : reads_[k]) {
        if (value >= given_) last[static_cast<std::size_t>(value - given_)] = k;
      }
    }
    slots_.assign(parts_.size(), 0);
    for (std::size_t k = 0; k < parts_.size(); ++k) {
      if (results_[k] < 0) {
        if (free.empty()) free.push_back(slot_count_++);
        slots_[k] = free.back();
        free.pop_back();
      }
      for (std::size_t i = 0; i <= k; ++i) {
        if (last[i] == k && results_[i] < 0) free.push_back(slots_[i]);
      }
    }
  }

  std::int64_t given_;
  std::vector<std::optional<Input>> fixed_;  // the inputs of the node that are constant
  std::vector<std::unique_ptr<Part>> parts_;
  std::vector<Shape> reads_;           // of every operator: the values that it reads
  Shape results_;                      // and the output of the node that it gives, or -1
  std::vector<std::size_t> slots_;     // and the buffer that it gives
  std::size_t slot_count_ = 0;
  mutable std::atomic<bool> shared_{true};
};

}  // namespace

void add_count_operators(const OrtApi* api, OrtCustomOpDomain* domain) {
  add<Alone<CountLayer<Kind::alone>>, CountCpu>(api, domain);
  add<Alone<CountLayer<Kind::scaled>>, CountCpu>(api, domain);
  add<Alone<CountLayer<Kind::residual>>, CountCpu>(api, domain);
  add<Alone<CountLayer<Kind::pair>>, CountCpu>(api, domain);
  add<Alone<CountNeuron>, CountCpu>(api, domain);
  add<Alone<LevelNeuron>, CountCpu>(api, domain);
  add<Alone<CountInput>, CountCpu>(api, domain);
  add<Alone<CountMaxPool>, CountCpu>(api, domain);
  add<CountNetwork, CountCpu>(api, domain);
}

}  // namespace snnc
