#include "cpu_shared.h"

#include <algorithm>

namespace snnc::cpu {

void expand(const float* source, const Broadcast& over, Place place, std::int64_t count,
            float* out) {
  const int last = over.rank - 1;
  const std::int64_t stride = over.stride[last];
  while (count > 0) {
    const float* from = source + place.offset(over);
    const std::int64_t left = over.extent[last] - place.digit[last];
    const std::int64_t run = left < count ? left : count;
    if (stride == 0) {
      std::fill_n(out, run, *from);
    } else {
      for (std::int64_t i = 0; i < run; ++i) out[i] = from[i * stride];
    }
    out += run;
    count -= run;
    place.next_run(over);
  }
}

void start_state(const float* state, const Broadcast& over, std::int64_t first, std::int64_t count,
                 float* out) {
  if (state + first == out) return;  // onnxruntime gave us the input's buffer as output
  expand(state, over, Place(over, first), count, out);
}

}  // namespace snnc::cpu
