// The event-driven operators: layers of spikes as bytes, channels last.
#pragma once

#include "ort_api.h"

namespace snnc {

/// Adds them to the domain; they run on the CPU only.
void add_event_operators(const OrtApi* api, OrtCustomOpDomain* domain);

}  // namespace snnc
