// What the kernels of event-driven layers share.
#pragma once

#include "event_kernels.h"
#include "instruction_sets.h"

namespace snnc::events {

using namespace cpu;  // instruction sets and their vectors

/// Time-steps times pixels of a tile: many share the weights of a block while these are in the
/// second-level cache, and few keep lists, currents or spikes in there too.
constexpr std::int64_t jobs_of_one_block = 512;

#ifdef SNNC_AMX
/// As `run`, of a layer whose weights are digits.
bool run_digits(const Layer& layer, const Call& call, std::int64_t sample, std::int64_t first,
                std::int64_t count, std::int64_t block, std::int64_t block_count);
#endif

}  // namespace snnc::events
