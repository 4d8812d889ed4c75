// The CUDA kernels, one launch per task.  Pointers are in device memory; `stream` is a cudaStream_t.
// Each function returns null, or what went wrong.  Nothing waits and nothing is allocated.
#pragma once

#include "tasks.h"

namespace snnc::cuda {

template <typename T>
const char* neuron(const NeuronTask<T>& task, void* stream);

template <typename T>
const char* scheduled(const ScheduledTask<T>& task, void* stream);

template <typename T>
const char* layered(const LayeredTask<T>& task, void* stream);

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

}  // namespace snnc::cuda
