// A libcuda.so.1 of a machine without NVIDIA's devices: kernels are C++ that this processor runs, one group of threads after the
// other. It sees to it that what calls it keeps to the driver's rules: a context is current, memory is freed, names exist.
//
// Compiled together with the kernels and a table of them (cuda_stand_in.py).
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "cuda_fp16.h"

Index threadIdx, blockIdx;

struct Entry {
  const char *name;
  int threads;
  bool meets;  // whether its threads wait for each other
  void (*call)(void **);
};
extern const Entry entries[];
extern const int entry_count;

namespace {
enum { OK = 0, INVALID = 1, NO_CONTEXT = 201, BAD_IMAGE = 200, NOT_FOUND = 500, LAUNCH_FAILED = 719 };
constexpr size_t STACK = 64 * 1024;
constexpr uint32_t FATBIN = 0xBA55ED50;

int contexts = 0, launches_left = -1;
std::map<uint64_t, size_t> memory;
char context, module, stream;

struct Fiber {
  ucontext_t state;
  std::vector<char> stack = std::vector<char>(STACK);
  bool done = false;
};
std::vector<Fiber> fibers;
ucontext_t scheduler;
const Entry *running;
void **given;
int current;

void enter() {
  running->call(given);
  fibers[current].done = true;
}

void run_fibers(int threads) {
  if (fibers.size() < (size_t)threads) fibers.resize(threads);
  for (int t = 0; t < threads; t++) {
    getcontext(&fibers[t].state);
    fibers[t].state.uc_stack.ss_sp = fibers[t].stack.data();
    fibers[t].state.uc_stack.ss_size = STACK;
    fibers[t].state.uc_link = &scheduler;
    fibers[t].done = false;
    makecontext(&fibers[t].state, enter, 0);
  }
  for (int left = threads; left > 0;) {
    for (int t = 0; t < threads; t++) {
      if (fibers[t].done) continue;
      threadIdx.x = current = t;
      swapcontext(&scheduler, &fibers[t].state);
      left -= fibers[t].done;
    }
  }
}

bool holds(uint64_t place, size_t bytes) {
  auto next = memory.upper_bound(place);
  if (next == memory.begin()) return false;
  --next;
  return place + bytes <= next->first + next->second;
}
}  // namespace

void __syncthreads() { swapcontext(&fibers[current].state, &scheduler); }

#define NEEDS_CONTEXT \
  if (contexts == 0) return NO_CONTEXT

extern "C" {
void stand_in_fail_after(int launches) { launches_left = launches; }
int stand_in_allocations() { return (int)memory.size(); }
int stand_in_contexts() { return contexts; }

int cuInit(unsigned) { return OK; }
int cuDeviceGetCount(int *count) { return *count = 1, OK; }
int cuDeviceGet(int *device, int number) { return *device = number, OK; }
int cuDeviceGetName(char *name, int bytes, int) { return snprintf(name, bytes, "stand-in"), OK; }
int cuDevicePrimaryCtxRetain(void **found, int) { return *found = &context, OK; }
int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
int cuCtxPushCurrent_v2(void *pushed) { return pushed == &context ? (contexts++, OK) : INVALID; }
int cuCtxPopCurrent_v2(void **popped) {
  NEEDS_CONTEXT;
  return contexts--, *popped = &context, OK;
}
int cuModuleLoadData(void **found, const void *image) {
  NEEDS_CONTEXT;
  uint32_t magic;
  memcpy(&magic, image, sizeof magic);
  return magic == FATBIN ? (*found = &module, OK) : BAD_IMAGE;
}
int cuModuleUnload(void *unloaded) { return unloaded == &module ? OK : INVALID; }
int cuModuleGetFunction(const void **found, void *, const char *name) {
  NEEDS_CONTEXT;
  for (int i = 0; i < entry_count; i++)
    if (strcmp(entries[i].name, name) == 0) return *found = &entries[i], OK;
  return NOT_FOUND;
}
int cuMemAlloc_v2(uint64_t *place, size_t bytes) {
  NEEDS_CONTEXT;
  *place = (uint64_t)aligned_alloc(256, (bytes + 255) / 256 * 256);
  memset((void *)*place, 0xFF, bytes);  // what was not written is no number
  return memory[*place] = bytes, OK;
}
int cuMemFree_v2(uint64_t place) {
  NEEDS_CONTEXT;
  return memory.erase(place) == 1 ? (free((void *)place), OK) : INVALID;
}
int cuMemcpyHtoDAsync_v2(uint64_t place, const void *data, size_t bytes, void *) {
  NEEDS_CONTEXT;
  return holds(place, bytes) ? (memcpy((void *)place, data, bytes), OK) : INVALID;
}
int cuMemcpyDtoHAsync_v2(void *data, uint64_t place, size_t bytes, void *) {
  NEEDS_CONTEXT;
  return holds(place, bytes) ? (memcpy(data, (void *)place, bytes), OK) : INVALID;
}
int cuMemsetD8Async(uint64_t place, unsigned char value, size_t bytes, void *) {
  NEEDS_CONTEXT;
  return holds(place, bytes) ? (memset((void *)place, value, bytes), OK) : INVALID;
}
int cuStreamCreate(void **made, unsigned) {
  NEEDS_CONTEXT;
  return *made = &stream, OK;
}
int cuStreamDestroy_v2(void *) { return contexts > 0 ? OK : NO_CONTEXT; }
int cuStreamSynchronize(void *) { return contexts > 0 ? OK : NO_CONTEXT; }
int cuGetErrorString(int code, const char **text) {
  static std::string said;
  return said = "stand-in error " + std::to_string(code), *text = said.c_str(), OK;
}
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared, void *, void **parameters, void **) {
  NEEDS_CONTEXT;
  running = (const Entry *)function;
  given = parameters;
  if (launches_left-- == 0) return LAUNCH_FAILED;
  if (y != 1 || z != 1 || ty != 1 || tz != 1 || shared != 0 || threads != (unsigned)running->threads) return INVALID;
  for (blockIdx.x = 0; blockIdx.x < (int)x; blockIdx.x++) {
    if (running->meets) {
      run_fibers((int)threads);
    } else {
      for (threadIdx.x = 0; threadIdx.x < (int)threads; threadIdx.x++) running->call(parameters);
    }
  }
  return OK;
}
}
