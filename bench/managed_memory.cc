// All memory that a C++ program takes with `new` as CUDA's managed memory, which the host and the GPU
// both read: bench/gpu_acceptance.py links it to tests/runtime/kernel_driver.cc.

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <new>

void* operator new(std::size_t size) {
  void* pointer = nullptr;
  const cudaError_t error = cudaMallocManaged(&pointer, size ? size : 1, cudaMemAttachGlobal);
  if (error != cudaSuccess) {
    std::printf("no GPU for programs of this machine: %s\n", cudaGetErrorString(error));
    std::exit(77);
  }
  return pointer;
}

void operator delete(void* pointer) noexcept { cudaFree(pointer); }
void operator delete(void* pointer, std::size_t) noexcept { cudaFree(pointer); }
