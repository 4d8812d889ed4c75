// The operators by counts: layers of spike counts as bytes, channels last.
#pragma once

#include "ort_api.h"

namespace snnc {

/// Adds them to the domain; they run on the CPU only.
void add_count_operators(const OrtApi* api, OrtCustomOpDomain* domain);

}  // namespace snnc
