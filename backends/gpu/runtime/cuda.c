/* The driver for CUDA, through the driver's own library alone: no toolkit is needed where a model runs. Its declarations are
 * its own, so that a library is compiled without CUDA's headers and loads where there is no CUDA; opening a model then says
 * so. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

typedef struct cu_object *cu; /* contexts, modules, functions, streams */
typedef uint64_t cu_pointer;

#define NAME_BYTES 128
#define MOST_ARGUMENTS 512
#define NO_BINARY 209 /* CUDA_ERROR_NO_BINARY_FOR_GPU */

/* FUNCTION(name, symbol, parameters) of all that is called; each returns an error code. */
#define FUNCTIONS(FUNCTION)                                                                                                   \
  FUNCTION(init, "cuInit", (unsigned))                                                                                        \
  FUNCTION(count_devices, "cuDeviceGetCount", (int *))                                                                        \
  FUNCTION(get_device, "cuDeviceGet", (int *, int))                                                                           \
  FUNCTION(get_name, "cuDeviceGetName", (char *, int, int))                                                                   \
  FUNCTION(retain_context, "cuDevicePrimaryCtxRetain", (cu *, int))                                                           \
  FUNCTION(release_context, "cuDevicePrimaryCtxRelease_v2", (int))                                                            \
  FUNCTION(push_context, "cuCtxPushCurrent_v2", (cu))                                                                         \
  FUNCTION(pop_context, "cuCtxPopCurrent_v2", (cu *))                                                                         \
  FUNCTION(load_module, "cuModuleLoadData", (cu *, const void *))                                                             \
  FUNCTION(unload_module, "cuModuleUnload", (cu))                                                                             \
  FUNCTION(get_function, "cuModuleGetFunction", (cu *, cu, const char *))                                                     \
  FUNCTION(allocate, "cuMemAlloc_v2", (cu_pointer *, size_t))                                                                 \
  FUNCTION(release, "cuMemFree_v2", (cu_pointer))                                                                             \
  FUNCTION(copy_in, "cuMemcpyHtoDAsync_v2", (cu_pointer, const void *, size_t, cu))                                           \
  FUNCTION(copy_out, "cuMemcpyDtoHAsync_v2", (void *, cu_pointer, size_t, cu))                                                \
  FUNCTION(fill, "cuMemsetD8Async", (cu_pointer, unsigned char, size_t, cu))                                                  \
  FUNCTION(create_stream, "cuStreamCreate", (cu *, unsigned))                                                                 \
  FUNCTION(destroy_stream, "cuStreamDestroy_v2", (cu))                                                                        \
  FUNCTION(synchronize, "cuStreamSynchronize", (cu))                                                                          \
  FUNCTION(launch, "cuLaunchKernel",                                                                                          \
           (cu, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, cu, void **, void **))                  \
  FUNCTION(get_error, "cuGetErrorString", (int, const char **))

struct slm_device {
  void *library;
#define DECLARE(name, symbol, parameters) int(*name) parameters;
  FUNCTIONS(DECLARE)
#undef DECLARE
  const slm_device_program *code;
  char label[NAME_BYTES];
  int number;
  cu context, module;
  cu *kernels;
  cu_pointer weights;
};

struct slm_queue {
  slm_device *device;
  cu stream;
  cu_pointer buffers[SLM_SPACES];
  uint64_t bytes[SLM_SPACES];
};

static const char *const names[] = {"libcuda.so.1", "libcuda.so", NULL};

static int32_t load(slm_device *device) {
  device->library = slm_load_library(names, "install NVIDIA's driver, where there is one of its graphics processors");
  if (device->library == NULL) return -1;
#define FIND(name, symbol, parameters)                                            \
  device->name = (int(*) parameters)(uintptr_t)dlsym(device->library, symbol);    \
  if (device->name == NULL) return slm_fail("%s has no function %s: install a newer driver", names[0], symbol);
  FUNCTIONS(FIND)
#undef FIND
  return 0;
}

static int32_t check(slm_device *device, int code, const char *what) {
  if (code == 0) return 0;
  const char *message = NULL;
  if (device->get_error(code, &message) != 0 || message == NULL) message = "unknown";
  return slm_fail("%s cannot %s: CUDA error %d, %s", *device->label != '\0' ? device->label : "CUDA", what, code, message);
}

static void drop_context(slm_device *device) {
  cu dropped;
  device->pop_context(&dropped);
}

static int32_t choose_device(slm_device *device) {
  char all[512] = "", name[NAME_BYTES];
  const char *wanted = slm_wanted_device();
  int count = 0, chosen = -1;
  if (check(device, device->init(0), "start") != 0 || check(device, device->count_devices(&count), "count devices") != 0)
    return -1;
  if (count == 0) return slm_fail("there is no CUDA device");
  for (int i = 0; i < count; i++) {
    int number = 0;
    name[0] = '\0';
    if (device->get_device(&number, i) == 0) device->get_name(name, NAME_BYTES, number);
    size_t length = strlen(all);
    snprintf(all + length, sizeof all - length, "%s%d %s", i > 0 ? ", " : "", i, name);
    if (chosen >= 0 || (*wanted != '\0' && !slm_is_wanted(wanted, i, name))) continue;
    chosen = i;
    device->number = number;
    memcpy(device->label, name, sizeof name);
  }
  return chosen >= 0 ? 0 : slm_fail("there is no CUDA device %s; there are %s", wanted, all);
}

/* With the device's context current. */
static int32_t fill_device(slm_device *device, const uint8_t *weights, uint64_t bytes) {
  const slm_device_program *code = device->code;
  int result = device->load_module(&device->module, code->code);
  if (result == NO_BINARY)
    return slm_fail("the library has no code for %s: compile the model for it, with cuda:arch=sm_...", device->label);
  if (check(device, result, "load the kernels") != 0) return -1;
  device->kernels = calloc((size_t)code->kernel_count + 1, sizeof *device->kernels);
  if (device->kernels == NULL) return slm_fail("out of memory");
  for (int32_t i = 0; i < code->kernel_count; i++)
    if (check(device, device->get_function(&device->kernels[i], device->module, code->kernels[i].name), "find a kernel") != 0)
      return -1;
  if (device->allocate(&device->weights, bytes > 0 ? (size_t)bytes : 64) != 0)
    return slm_fail("%s has no room for %llu bytes of weights", device->label, (unsigned long long)bytes);
  if (bytes > 0 && check(device, device->copy_in(device->weights, weights, (size_t)bytes, NULL), "take the weights") != 0)
    return -1;
  return check(device, device->synchronize(NULL), "take the weights");
}

static int32_t open_device(slm_device *device, const uint8_t *weights, uint64_t bytes) {
  if (load(device) != 0 || choose_device(device) != 0) return -1;
  if (check(device, device->retain_context(&device->context, device->number), "make a context") != 0) return -1;
  if (check(device, device->push_context(device->context), "use its context") != 0) return -1;
  int32_t code = fill_device(device, weights, bytes);
  drop_context(device);
  return code;
}

slm_device *slm_device_open(const slm_device_program *program, const uint8_t *weights, uint64_t bytes) {
  slm_device *device = calloc(1, sizeof *device);
  if (device == NULL) {
    slm_fail("out of memory");
    return NULL;
  }
  device->code = program;
  if (open_device(device, weights, bytes) == 0) return device;
  slm_device_close(device);
  return NULL;
}

void slm_device_close(slm_device *device) {
  if (device->context != NULL && device->push_context(device->context) == 0) {
    if (device->weights != 0) device->release(device->weights);
    if (device->module != NULL) device->unload_module(device->module);
    drop_context(device);
  }
  if (device->context != NULL) device->release_context(device->number);
  free(device->kernels);
  free(device); /* the driver's library stays: it has threads of its own */
}

static int32_t open_queue(slm_queue *queue, const uint64_t *bytes) {
  slm_device *device = queue->device;
  if (check(device, device->create_stream(&queue->stream, 1 /* waits for no other stream */), "make a stream") != 0) return -1;
  for (int32_t space = SLM_ARENA; space < SLM_SPACES; space++) {
    queue->bytes[space] = bytes[space] > 64 ? bytes[space] : 64;
    if (device->allocate(&queue->buffers[space], (size_t)queue->bytes[space]) != 0)
      return slm_fail("%s has no room for %llu bytes of a session", device->label, (unsigned long long)bytes[space]);
  }
  return 0;
}

slm_queue *slm_queue_open(slm_device *device, const uint64_t *bytes) {
  slm_queue *queue = calloc(1, sizeof *queue);
  if (queue == NULL) {
    slm_fail("out of memory");
    return NULL;
  }
  queue->device = device;
  int32_t code = check(device, device->push_context(device->context), "use its context");
  if (code == 0) {
    code = open_queue(queue, bytes);
    drop_context(device);
  }
  if (code == 0) return queue;
  slm_queue_close(queue);
  return NULL;
}

void slm_queue_close(slm_queue *queue) {
  slm_device *device = queue->device;
  if (device->push_context(device->context) == 0) {
    if (queue->stream != NULL) {
      device->synchronize(queue->stream);
      device->destroy_stream(queue->stream);
    }
    for (int32_t space = SLM_ARENA; space < SLM_SPACES; space++)
      if (queue->buffers[space] != 0) device->release(queue->buffers[space]);
    drop_context(device);
  }
  free(queue);
}

int32_t slm_queue_launch(slm_queue *queue, int32_t kernel, int32_t groups, const slm_argument *arguments, int32_t count) {
  slm_device *device = queue->device;
  const slm_kernel *described = &device->code->kernels[kernel];
  cu_pointer pointers[MOST_ARGUMENTS];
  int64_t offsets[MOST_ARGUMENTS];
  int32_t numbers[MOST_ARGUMENTS];
  void *given[2 * MOST_ARGUMENTS + 1];
  int32_t used = 0;
  if (count > MOST_ARGUMENTS)
    return slm_fail("%s has %d parameters, more than %d", described->name, (int)count, MOST_ARGUMENTS);
  for (int32_t i = 0; i < count; i++) {
    if (arguments[i].kind == SLM_NUMBER) {
      numbers[i] = (int32_t)arguments[i].value;
      given[used++] = &numbers[i];
    } else {
      pointers[i] = arguments[i].kind == SLM_WEIGHTS ? device->weights : queue->buffers[arguments[i].kind];
      offsets[i] = arguments[i].value;
      given[used++] = &pointers[i];
      given[used++] = &offsets[i];
    }
  }
  given[used++] = &groups;
  if (device->push_context(device->context) != 0) return slm_fail("%s: its context cannot be used", device->label);
  int code = device->launch(device->kernels[kernel], (unsigned)groups, 1, 1, (unsigned)described->threads, 1, 1, 0,
                            queue->stream, given, NULL);
  drop_context(device);
  return check(device, code, described->name);
}

/* What a copy or a wait returned, after the context it was made in is put away. */
static int32_t finish(slm_queue *queue, int code, const char *what) {
  drop_context(queue->device);
  return check(queue->device, code, what);
}

static int32_t begin(slm_queue *queue) {
  return check(queue->device, queue->device->push_context(queue->device->context), "use its context");
}

int32_t slm_queue_clear(slm_queue *queue, int32_t space) {
  if (begin(queue) != 0) return -1;
  int code = queue->device->fill(queue->buffers[space], 0, (size_t)queue->bytes[space], queue->stream);
  return finish(queue, code, "clear a buffer");
}

int32_t slm_queue_write(slm_queue *queue, int32_t space, const void *data, uint64_t bytes) {
  if (begin(queue) != 0) return -1;
  int code = queue->device->copy_in(queue->buffers[space], data, (size_t)bytes, queue->stream);
  if (code == 0) code = queue->device->synchronize(queue->stream); /* the caller's memory is free again */
  return finish(queue, code, "write a buffer");
}

int32_t slm_queue_read(slm_queue *queue, int32_t space, uint64_t offset, void *data, uint64_t bytes) {
  if (begin(queue) != 0) return -1;
  int code = queue->device->copy_out(data, queue->buffers[space] + offset, (size_t)bytes, queue->stream);
  if (code == 0) code = queue->device->synchronize(queue->stream);
  return finish(queue, code, "read a buffer");
}

int32_t slm_queue_finish(slm_queue *queue) {
  if (begin(queue) != 0) return -1;
  return finish(queue, queue->device->synchronize(queue->stream), "finish its work");
}
