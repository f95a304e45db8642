/* The processor: which instruction sets it has, how many cores are ours, how to wait politely. */
#define _GNU_SOURCE
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "runtime.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define SLM_X86 1
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#define SLM_ARM 1

/* Bits of AT_HWCAP and AT_HWCAP2 (asm/hwcap.h), by the names that /proc/cpuinfo gives them. */
static const struct {
  const char *name;
  unsigned word, bit;
} arm_features[] = {
    {"fp", 0, 0},       {"asimd", 0, 1},     {"aes", 0, 3},      {"pmull", 0, 4},     {"sha1", 0, 5},   {"sha2", 0, 6},
    {"crc32", 0, 7},    {"atomics", 0, 8},   {"fphp", 0, 9},     {"asimdhp", 0, 10},  {"asimdrdm", 0, 12},
    {"jscvt", 0, 13},   {"fcma", 0, 14},     {"lrcpc", 0, 15},   {"sha3", 0, 17},     {"asimddp", 0, 20},
    {"sha512", 0, 21},  {"sve", 0, 22},      {"asimdfhm", 0, 23}, {"sve2", 1, 1},     {"svei8mm", 1, 9},
    {"svebf16", 1, 12}, {"i8mm", 1, 13},     {"bf16", 1, 14},    {"sme", 1, 23},
};
#endif

/* 1 has it, 0 lacks it, -1 unknown name. __builtin_cpu_supports also asks whether the system saves the wide registers. */
static int has_feature(const char *name) {
#ifdef SLM_X86
#define FEATURE(text) \
  if (strcmp(name, text) == 0) return __builtin_cpu_supports(text) != 0
  FEATURE("sse2");
  FEATURE("sse3");
  FEATURE("ssse3");
  FEATURE("sse4.1");
  FEATURE("sse4.2");
  FEATURE("sse4a");
  FEATURE("popcnt");
  FEATURE("avx");
  FEATURE("avx2");
  FEATURE("fma");
  FEATURE("fma4");
  FEATURE("xop");
  FEATURE("bmi");
  FEATURE("bmi2");
  FEATURE("avx512f");
  FEATURE("avx512vl");
  FEATURE("avx512bw");
  FEATURE("avx512dq");
  FEATURE("avx512cd");
  FEATURE("avx512ifma");
  FEATURE("avx512vbmi");
  FEATURE("avx512vbmi2");
  FEATURE("avx512vnni");
  FEATURE("avx512bitalg");
  FEATURE("avx512vpopcntdq");
  FEATURE("avx512bf16");
  FEATURE("avx512vp2intersect");
  FEATURE("gfni");
  FEATURE("vpclmulqdq");
#undef FEATURE
  /* Not every compiler's builtin knows these: read the bits. */
  unsigned a = 0, b = 0, c = 0, d = 0;
  int avx = __builtin_cpu_supports("avx") != 0; /* the system saves ymm */
  if (strcmp(name, "f16c") == 0) return avx && __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1u);
  if (strcmp(name, "avxvnni") == 0) return avx && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1u);
#elif defined(SLM_ARM)
  for (size_t i = 0; i < sizeof arm_features / sizeof *arm_features; i++) {
    if (strcmp(name, arm_features[i].name) != 0) continue;
    return (getauxval(arm_features[i].word ? AT_HWCAP2 : AT_HWCAP) >> arm_features[i].bit & 1u) != 0;
  }
#else
  (void)name;
#endif
  return -1;
}

int32_t slm_machine_open(slm_model *model) {
  const slm_program *program = model->program;
  if (program->cpu_features == NULL) return 0;
#ifdef SLM_X86
  __builtin_cpu_init();
#endif
  for (const char *const *name = program->cpu_features; *name != NULL; name++) {
    int found = has_feature(*name);
    if (found < 0)
      return slm_fail("%s was compiled for %s, which needs the CPU feature '%s'; this library cannot check for it here",
                      program->name, program->target, *name);
    if (found == 0)
      return slm_fail("%s was compiled for %s, and this CPU lacks '%s'; compile the model for this machine", program->name,
                      program->target, *name);
  }
  return 0;
}

void slm_machine_close(slm_model *model) { (void)model; }

int32_t slm_usable_cores(void) {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    int count = CPU_COUNT(&set);
    if (count > 0) return count < SLM_MAX_THREADS ? count : SLM_MAX_THREADS;
  }
#endif
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online < 1 ? 1 : online < SLM_MAX_THREADS ? (int32_t)online : SLM_MAX_THREADS;
}

void slm_pause(void) {
#if defined(SLM_X86)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ volatile("yield");
#endif
}
