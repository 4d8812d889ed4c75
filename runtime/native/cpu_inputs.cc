#include <algorithm>
#include <cmath>

#include "cpu_shared.h"

namespace snnc::cpu {
namespace {

// --- a driven current -------------------------------------------------------------------------

SNNC_BODY void drive_row(const float* __restrict__ x, float factor, std::int64_t count,
                         float* __restrict__ out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = factor * x[i];
}

template <typename Set, typename T>
SNNC_BODY void drive_body(const DriveTask<T>& task, std::int64_t first, std::int64_t count) {
  alignas(64) float wide[block], results[block];
  const float* x = as_floats<Set>(task.values + first, count, wide);
  for (std::int64_t t = 0; t < task.steps; ++t) {
    T* out = task.currents + t * task.neurons + first;
    drive_row(x, task.drive.at(task.start, t), count, place_of(out, results));
    write_back<Set>(results, count, out);
  }
}

// --- spikes at random -------------------------------------------------------------------------

/// Elements from `first` on of one image at one step.
template <typename T>
SNNC_BODY void poisson_row(const Random& random, std::int64_t first, std::int64_t count,
                           const float* __restrict__ probability, const T* __restrict__ sign,
                           T* __restrict__ spikes) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float uniform = PoissonTask<T>::uniform(random, first + i);
    spikes[i] = uniform < probability[i] ? sign[i] : T{};
  }
}

template <typename Set, typename T>
SNNC_BODY void poisson_body(const PoissonTask<T>& task, std::int64_t first, std::int64_t count) {
  alignas(64) float wide[block], probability[block];
  alignas(64) T sign[block];
  const float scale = *task.scale;
  while (count > 0) {
    const std::int64_t image = first / task.size, element = first % task.size;
    const std::int64_t run = std::min(count, task.size - element);
    const float* x = as_floats<Set>(task.values + first, run, wide);
    for (std::int64_t i = 0; i < run; ++i) {
      probability[i] = std::fabs(x[i]) / scale;
      sign[i] = signed_spike<T>(x[i] < 0);
    }
    const Random random = task.random(image);
    for (std::int64_t t = 0; t < task.steps; ++t) {
      poisson_row(task.at_step(random, t), element, run, probability, sign,
                  task.spikes + t * task.neurons() + first);
    }
    first += run;
    count -= run;
  }
}

}  // namespace

template <typename T>
void drive(const DriveTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
  on(isa, [&](auto set) SNNC_INLINE { drive_body<decltype(set)>(task, first, count); });
}

template <typename T>
void poisson(const PoissonTask<T>& task, std::int64_t first, std::int64_t count, Isa isa) {
  on(isa, [&](auto set) SNNC_INLINE { poisson_body<decltype(set)>(task, first, count); });
}

template void drive(const DriveTask<float>&, std::int64_t, std::int64_t, Isa);
template void drive(const DriveTask<Half>&, std::int64_t, std::int64_t, Isa);
template void poisson(const PoissonTask<float>&, std::int64_t, std::int64_t, Isa);
template void poisson(const PoissonTask<Half>&, std::int64_t, std::int64_t, Isa);

}  // namespace snnc::cpu
