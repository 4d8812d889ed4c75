#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "cpu_kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
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

/// Whether the processor has AVX-VNNI; not every compiler can ask for that by name.
bool has_products() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
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

/// What the processor has.
bool detect(Isa isa) {
  if (isa == Isa::generic) return true;
#if defined(__x86_64__)
  static const bool initialized = (__builtin_cpu_init(), true);
  (void)initialized;
  const auto has = [](Isa other) { return detect(other); };
  switch (isa) {
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && has_halves() && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi2");
    case Isa::avxvnni:
      return has(Isa::avx2) && has_products();
    case Isa::avx512f:
      return has(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::avx512:
      return has(Isa::avx512f) && __builtin_cpu_supports("avx512vnni");
#ifdef SNNC_AMX
    case Isa::amx:
      return has(Isa::avx512) && has_tiles();
#endif
    default:
      return false;
  }
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long dot_products = 1ul << 20;  // HWCAP_ASIMDDP
  return isa == Isa::dotprod && (getauxval(AT_HWCAP) & dot_products);
#else
  return false;
#endif
}

/// The one that SNNC_MAX_ISA names, or the last one.
Isa most_isa() {
  static constexpr const char* names[] = {"generic", "dotprod", "avx2", "avxvnni", "avx512f", "avx512", "amx"};
  const char* const named = std::getenv("SNNC_MAX_ISA");
  for (const Isa isa : all_isas) {
    if (named && !std::strcmp(named, names[static_cast<int>(isa)])) return isa;
  }
  return Isa::amx;
}

}  // namespace

bool has_isa(Isa isa) {
  static const auto here = [] {
    std::array<bool, std::size(all_isas)> all{};
    const Isa most = most_isa();
    for (const Isa one : all_isas) all[static_cast<std::size_t>(one)] = one <= most && detect(one);
    return all;
  }();
  return here[static_cast<std::size_t>(isa)];
}

Isa best_isa() {
  static const Isa best = *std::find_if(std::rbegin(all_isas), std::rend(all_isas), has_isa);
  return best;
}

}  // namespace snnc::cpu
