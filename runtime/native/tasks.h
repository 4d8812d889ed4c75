// What there is to compute: plain descriptions of one call of an operator, shared by the CPU and
// the CUDA kernels.  Nothing here knows onnxruntime.
//
// A temporal tensor is `steps` rows of `neurons` values, one row per time-step; a state is one row.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SNNC_DEVICE __host__ __device__
#else
#define SNNC_DEVICE
#endif

namespace snnc {

/// IEEE binary16 by its bits.
enum class Half : std::uint16_t {};

/// How a tensor spreads over a row by broadcasting: element j of the row is found by writing j in
/// mixed radix with the digits' `extent`s (outermost first) and summing digit * `stride`.
/// Neighbouring axes are merged, so that a scalar and a full tensor have one axis each, and
/// `[C, 1, 1]` over `[N, C, H, W]` has three.
struct Broadcast {
  static constexpr int max_rank = 8;

  int rank = 1;
  std::int64_t extent[max_rank] = {};
  std::int64_t stride[max_rank] = {};

  /// That of a tensor which is the row.
  static Broadcast row(std::int64_t neurons) {
    Broadcast over;
    over.extent[0] = neurons;
    over.stride[0] = 1;
    return over;
  }
  /// Whether the tensor has every element of the row, in order.
  SNNC_DEVICE bool full() const { return rank == 1 && stride[0] == 1; }
};

enum class Reset { soft, hard };

template <typename T>
struct NeuronTask {
  const T* current;
  const float* threshold;
  const float* membrane;
  T* spikes;
  float* membrane_out;
  Broadcast threshold_over;
  Broadcast membrane_over;
  std::int64_t steps;
  std::int64_t neurons;
  bool static_current;
  bool stream;  // on the CPU: write the spikes past the caches
  Reset reset;
};

/// What a neuron with a schedule sends at a step: one spike, a number of them, or a number of either
/// sign that takes back no more than was sent.
enum class Firing { single, burst, balanced };

/// Where the current of a neuron comes from: a row for each step, one for all steps, or one that is
/// multiplied by another factor at each of the first steps.
enum class Current { temporal, fixed, driven };

/// The factors of a driven current; the last one holds for all later steps.
struct Factors {
  const float* values;  // [count]
  std::int64_t count;

  /// The factor at step `t` of a call before which `start` steps were done; no `start` overflows.
  SNNC_DEVICE float at(std::int64_t start, std::int64_t t) const {
    return values[start < count - 1 && t < count - 1 - start ? start + t : count - 1];
  }
};

/// A neuron with soft reset and a schedule: at step t, counted from the very first one, row
/// min(t, rows - 1) of the schedule is added to the current.
template <typename T>
struct ScheduledTask {
  const T* current;
  const float* threshold;
  const float* membrane;
  const float* balance;  // the sum of all that was sent; only for `balanced`
  const float* schedule;
  T* spikes;
  float* membrane_out;
  float* balance_out;
  Broadcast threshold_over;
  Broadcast membrane_over;
  Broadcast balance_over;
  Broadcast row_over;
  std::int64_t rows;
  std::int64_t row_size;  // elements
  std::int64_t start;     // steps before this call
  std::int64_t steps;
  std::int64_t neurons;
  float levels;  // the largest number that is sent; not for `single`
  Factors drive;  // only for `driven`; each product is rounded to the type of the currents
  bool stream;    // on the CPU: write the spikes past the caches
  Current kind;
  Firing firing;
  std::int64_t current_first;  // on the CPU: the neuron that a row of `current` begins with

  /// The currents from neuron `first` on at step `t` of this call.
  const T* current_of(std::int64_t first, std::int64_t t) const {
    return current + t * neurons + (first - current_first);
  }
  /// The first step of this call that takes the last row; all later ones do.
  SNNC_DEVICE std::int64_t settled() const {
    if (start >= rows - 1) return 0;
    return rows - 1 - start < steps ? rows - 1 - start : steps;
  }
  /// The row of step `t` of this call, which is at most `settled()`.
  SNNC_DEVICE const float* row(std::int64_t t) const {
    return schedule + (start < rows - 1 ? start + t : rows - 1) * row_size;
  }
};

/// A neuron of layered time: it receives a whole window of current, then it fires for as many steps.
/// A spike of step t, counted from 0, weighs 2^(steps - 1 - t) with `radix`, else 1.
template <typename T>
struct LayeredTask {
  const T* current;
  const float* threshold;
  const float* membrane;
  T* spikes;
  Broadcast threshold_over;
  Broadcast membrane_over;
  std::int64_t steps;
  std::int64_t neurons;
  bool static_current;  // the current is complete: one row
  bool radix;
  bool stream;  // on the CPU: write the spikes past the caches

  /// Rows of the current.
  SNNC_DEVICE std::int64_t held() const { return static_current ? 1 : steps; }
  /// What the first of `rows` rows weighs; each later one weighs `fading()` times what is before it,
  /// and the last one 1.
  SNNC_DEVICE float first_weight(std::int64_t rows) const {
    return radix ? static_cast<float>(std::uint64_t{1} << (rows - 1)) : 1.0f;
  }
  SNNC_DEVICE float fading() const { return radix ? 0.5f : 1.0f; }
};

template <typename T>
struct SumTask {
  const T* values;
  const float* total;
  float* total_out;
  Broadcast total_over;
  std::int64_t steps;
  std::int64_t neurons;
  const float* weights;  // one for each step, or null: a plain sum
};

/// A driven current, at every step.
template <typename T>
struct DriveTask {
  const T* values;
  Factors drive;
  T* currents;
  std::int64_t start;  // steps before this call
  std::int64_t steps;
  std::int64_t neurons;
};

enum class Analog { running_mean, telescope };

/// What stands around an operator that is kept analog: the mean over the steps so far before it,
/// and behind it the undoing.
template <typename T>
struct AnalogTask {
  const T* values;
  const float* state;
  T* out;
  float* state_out;
  Broadcast state_over;
  std::int64_t start;  // steps before this call
  std::int64_t steps;
  std::int64_t neurons;
  Analog kind;

  /// The number of steps done after step `t` of this call (from 1), rounded to float32; unsigned,
  /// so that no `start` overflows.
  SNNC_DEVICE float done(std::int64_t t) const {
    return static_cast<float>(static_cast<std::uint64_t>(start) + static_cast<std::uint64_t>(t));
  }
};

/// Random numbers from a counter: a state of two words, to which numbers are added, each followed by
/// rounds of a Feistel network.  No operation leaves what int64 holds, for the function body.
struct Random {
  static constexpr int rounds = 6;
  static constexpr std::uint32_t key = 0x9E3779B9;

  std::uint32_t a = 0, b = 0;

  SNNC_DEVICE Random with(std::uint64_t number) const {
    std::uint32_t x = a + static_cast<std::uint32_t>(number);
    std::uint32_t y = b + static_cast<std::uint32_t>(number >> 32);
#ifndef __CUDACC__
#pragma GCC unroll 6  // else a loop over elements is not vectorized
#endif
    for (std::uint32_t i = 1; i <= rounds; ++i) {
      const std::int64_t root = static_cast<std::int32_t>(x + i * key);
      const std::uint32_t sum = y + static_cast<std::uint32_t>(root * root >> 16);
      y = x;
      x = sum;
    }
    Random mixed;
    mixed.a = x;
    mixed.b = y;
    return mixed;
  }
};

/// Spikes at random: value x fires with the sign of x and the probability |x| / scale.
template <typename T>
struct PoissonTask {
  const T* values;
  const float* scale;
  T* spikes;
  std::int64_t seed;
  std::int64_t first_image;  // number of the first sample of this call
  std::int64_t start;        // steps before this call
  std::int64_t steps;
  std::int64_t images;
  std::int64_t size;  // elements of an image

  SNNC_DEVICE std::int64_t neurons() const { return images * size; }

  /// The state of image `image` of this call.
  SNNC_DEVICE Random random(std::int64_t image) const {
    return Random{}.with(static_cast<std::uint64_t>(seed)).with(sum(first_image, image));
  }
  /// And that at step `t` of this call.
  SNNC_DEVICE Random at_step(const Random& image, std::int64_t t) const {
    return image.with(sum(start, t));
  }
  /// A random number in [0, 1) of 24 bits for one element.
  SNNC_DEVICE static float uniform(const Random& random, std::int64_t element) {
    const std::uint32_t word = random.with(static_cast<std::uint64_t>(element)).a;
    return static_cast<float>(static_cast<std::int32_t>(word >> 8)) * 5.9604644775390625e-8f;
  }

 private:
  SNNC_DEVICE static std::uint64_t sum(std::int64_t a, std::int64_t b) {
    return static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b);
  }
};

/// A pooling window over up to three axes; axes that are not there come first and have extent 1.
struct Window {
  std::int64_t in[3] = {1, 1, 1};
  std::int64_t out[3] = {1, 1, 1};
  std::int64_t kernel[3] = {1, 1, 1};
  std::int64_t stride[3] = {1, 1, 1};
  std::int64_t dilation[3] = {1, 1, 1};
  std::int64_t pad[3] = {0, 0, 0};  // at the beginning of each axis

  SNNC_DEVICE std::int64_t inputs() const { return in[0] * in[1] * in[2]; }
  SNNC_DEVICE std::int64_t outputs() const { return out[0] * out[1] * out[2]; }
};

template <typename T>
struct PoolTask {
  const T* spikes;
  const float* counts;
  T* pooled;
  float* counts_out;
  Broadcast counts_over;
  Window window;
  std::int64_t steps;
  std::int64_t planes;  // samples times channels
};

}  // namespace snnc
