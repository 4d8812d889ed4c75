#include <cstdlib>
#include <cstring>

#include "cpu_kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#ifdef SNNC_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace snnc::cpu {
namespace {

#if defined(__x86_64__)
/// Whether the processor converts halves (F16C); not every compiler can ask for that by name.
bool has_halves() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 29);
}
#endif

#ifdef SNNC_AMX
/// Whether the processor has tiles of 8-bit integers and the kernel lets this process use them.
bool has_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned tile_and_int8 = 3u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & tile_and_int8) != tile_and_int8) return false;
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
}
#endif

Isa detect_isa() {
  Isa isa = Isa::generic;
#if defined(__x86_64__)
  const char* const named = std::getenv("SNNC_MAX_ISA");
  const auto allowed = [named](const char* name) { return !named || std::strcmp(named, name); };
  __builtin_cpu_init();
  if (!allowed("generic") || !__builtin_cpu_supports("avx2") || !has_halves() ||
      !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("popcnt") ||
      !__builtin_cpu_supports("bmi2")) {
    return isa;
  }
  isa = Isa::avx2;
  if (!allowed("avx2") || !__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return isa;
  }
  isa = Isa::avx512;
#ifdef SNNC_AMX
  if (allowed("avx512") && has_tiles()) isa = Isa::amx;
#endif
#endif
  return isa;
}

}  // namespace

Isa best_isa() {
  static const Isa isa = detect_isa();
  return isa;
}

}  // namespace snnc::cpu
