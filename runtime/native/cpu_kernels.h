// The CPU kernels.  Each function does a part of a task, so that parts can run in parallel; the
// parts share nothing.  The vector instructions are chosen once, at run time.
#pragma once

#include "tasks.h"

// A compiler with these headers comes with an assembler that knows the instructions.
#if defined(__x86_64__) && defined(__linux__)
#if __has_include(<amxint8intrin.h>) || __has_include(<amxintrin.h>)
#define SNNC_AMX 1
#endif
#endif

namespace snnc::cpu {

/// Neurons that are taken through all time-steps together: their membrane potentials and
/// thresholds stay in the L1 cache meanwhile.
constexpr std::int64_t block = 2048;

/// The instruction sets that have kernels, best last.  `amx` is AVX-512 with tiles of 8-bit integers.
enum class Isa { generic, avx2, avx512, amx };

/// The best instruction set of this machine, at most the one that SNNC_MAX_ISA names.
Isa best_isa();

/// The neurons [first, first + count) of a task; count is at most `block`.
template <typename T>
void neuron(const NeuronTask<T>& task, std::int64_t first, std::int64_t count,
            Isa isa = best_isa());

/// The neurons [first, first + count) of a task with a schedule; count is at most `block`.
template <typename T>
void scheduled(const ScheduledTask<T>& task, std::int64_t first, std::int64_t count,
               Isa isa = best_isa());

/// The neurons [first, first + count) of a task of layered time; count is at most `block`.
template <typename T>
void layered(const LayeredTask<T>& task, std::int64_t first, std::int64_t count,
             Isa isa = best_isa());

/// The sums [first, first + count) of a task; count is at most `block`.
template <typename T>
void time_sum(const SumTask<T>& task, std::int64_t first, std::int64_t count,
              Isa isa = best_isa());

/// The currents [first, first + count) of a task; count is at most `block`.
template <typename T>
void drive(const DriveTask<T>& task, std::int64_t first, std::int64_t count,
           Isa isa = best_isa());

/// The neurons [first, first + count) of a running mean or its undoing; count is at most `block`.
template <typename T>
void analog(const AnalogTask<T>& task, std::int64_t first, std::int64_t count,
            Isa isa = best_isa());

/// The elements [first, first + count) of all images of a task; count is at most `block`.
template <typename T>
void poisson(const PoissonTask<T>& task, std::int64_t first, std::int64_t count,
             Isa isa = best_isa());

/// One plane of a task.  False where memory ran out.
template <typename T>
bool pool(const PoolTask<T>& task, std::int64_t plane, Isa isa = best_isa());

}  // namespace snnc::cpu
