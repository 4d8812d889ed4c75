// All memory that a C++ program takes with `new` as CUDA's managed memory, which the host and the GPU
// both read: bench/gpu_acceptance.py links it to tests/runtime/kernel_driver.cc.

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <new>

namespace {

enum class Runtime { down, starting, up } runtime = Runtime::down;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("no GPU for programs of this machine: %s\n", cudaGetErrorString(error));
  std::exit(77);
}

/// Starts CUDA.  The driver's library is loaded then, and may itself take memory with `new`.
void start() {
  runtime = Runtime::starting;
  check(cudaFree(nullptr));
  runtime = Runtime::up;
}

}  // namespace

void* operator new(std::size_t size) {
  if (runtime == Runtime::down) start();
  void* pointer = nullptr;
  if (runtime == Runtime::starting) {
    pointer = std::malloc(size ? size : 1);
    if (!pointer) std::abort();
    return pointer;
  }
  check(cudaMallocManaged(&pointer, size ? size : 1, cudaMemAttachGlobal));
  return pointer;
}

void operator delete(void* pointer) noexcept {
  cudaPointerAttributes found{};
  const bool known = runtime == Runtime::up &&
                     cudaPointerGetAttributes(&found, pointer) == cudaSuccess &&
                     found.type == cudaMemoryTypeManaged;
  if (known) {
    cudaFree(pointer);
  } else {
    std::free(pointer);
  }
}

void operator delete(void* pointer, std::size_t) noexcept { operator delete(pointer); }
