// Just enough of CUDA to run the kernels of cuda_kernels.cu on the CPU, one thread after the other.
// The test rewrites each launch `kernel<<<blocks, threads, shared, stream>>>(task, ...)` into
// `launch(kernel, blocks, threads, shared, task, ...)`.  No kernel has shared memory or barriers.
#pragma once

#include <math.h>

#include <cfloat>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

struct Index {
  unsigned x;
};
inline Index blockIdx, threadIdx;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
template <typename T>
void __stwb(T* to, T value) {
  *to = value;
}

using half = _Float16;
inline half __ushort_as_half(unsigned short bits) {
  half value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline unsigned short __half_as_ushort(half value) {
  unsigned short bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float __half2float(half value) { return static_cast<float>(value); }
inline half __float2half_rn(float value) { return static_cast<half>(value); }

enum cudaError_t { cudaSuccess };
struct Stream;
using cudaStream_t = Stream*;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

/// Every other launch begins with its last thread: no thread may read what another one writes.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, std::size_t,
            const Arguments&... arguments) {
  static bool backwards = false;
  backwards = !backwards;
  for (unsigned block = 0; block < blocks; ++block) {
    for (unsigned thread = 0; thread < threads; ++thread) {
      blockIdx.x = backwards ? blocks - 1 - block : block;
      threadIdx.x = backwards ? threads - 1 - thread : thread;
      kernel(arguments...);
    }
  }
}
