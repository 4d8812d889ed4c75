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

template <typename T>
struct SumTask {
  const T* values;
  const float* total;
  float* total_out;
  Broadcast total_over;
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
