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

/// The instruction sets that have kernels, best last.  `dotprod` is NEON with products of bytes (aarch64), `avxvnni`
/// AVX2 with them and `avx512` AVX-512 with them; `amx` has tiles of bytes as well.
enum class Isa { generic, dotprod, avx2, avxvnni, avx512f, avx512, amx };
constexpr Isa all_isas[] = {Isa::generic, Isa::dotprod, Isa::avx2, Isa::avxvnni,
                            Isa::avx512f, Isa::avx512,  Isa::amx};

/// Whether this machine has an instruction set, and SNNC_MAX_ISA names no lesser one.
bool has_isa(Isa isa);
/// The best of them.
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
