// The CUDA kernels, one launch per task.  Pointers are in device memory; `stream` is a cudaStream_t.
// Each function returns null, or what went wrong.  Nothing waits and nothing is allocated.
#pragma once

#include "tasks.h"

namespace snnc {

/// Neurons of layered time whose current is complete, and which send what their spikes stand for:
/// floor((membrane + current) / threshold), from 0 to `levels`.
struct LevelTask {
  const float* current;
  const float* membrane;
  const float* threshold;
  float* counts;
  Broadcast membrane_over;
  Broadcast threshold_over;
  std::int64_t neurons;
  float levels;  // at most 2^20
};

namespace cuda {

template <typename T>
const char* neuron(const NeuronTask<T>& task, void* stream);

template <typename T>
const char* scheduled(const ScheduledTask<T>& task, void* stream);

template <typename T>
const char* layered(const LayeredTask<T>& task, void* stream);

const char* level(const LevelTask& task, void* stream);

template <typename T>
const char* time_sum(const SumTask<T>& task, void* stream);

template <typename T>
const char* drive(const DriveTask<T>& task, void* stream);

template <typename T>
const char* analog(const AnalogTask<T>& task, void* stream);

template <typename T>
const char* poisson(const PoissonTask<T>& task, void* stream);

template <typename T>
const char* pool(const PoolTask<T>& task, void* stream);

}  // namespace cuda
}  // namespace snnc
