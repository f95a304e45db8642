/* The driver for OpenCL 1.2 and later. Its declarations are its own, so that a library is compiled without OpenCL's headers and
 * loads where there is no OpenCL; opening a model then says so. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

typedef struct cl_object *cl; /* platforms, devices, contexts, queues, memory, programs, kernels */

#define DEVICE_TYPE_ALL 0xFFFFFFFFu
#define DEVICE_TYPE_CPU 2u
#define DEVICE_TYPE 0x1000
#define DEVICE_MAX_GROUP 0x1004
#define DEVICE_MAX_ALLOCATION 0x1010
#define DEVICE_SINGLE_CONFIG 0x101B
#define DEVICE_NAME 0x102B
#define ROUNDS_DIVISION (1u << 7) /* of DEVICE_SINGLE_CONFIG: can divide and take roots as IEEE 754 has it */
#define PROGRAM_LOG 0x1183
#define READ_WRITE 1u
#define READ_ONLY 4u
#define COPY_HOST 32u
#define TRUE 1u
#define MOST_DEVICES 64
#define NAME_BYTES 128

/* FUNCTION(result, name, parameters) of all that is called. */
#define FUNCTIONS(FUNCTION)                                                                                                    \
  FUNCTION(int32_t, clGetPlatformIDs, (uint32_t, cl *, uint32_t *))                                                            \
  FUNCTION(int32_t, clGetDeviceIDs, (cl, uint64_t, uint32_t, cl *, uint32_t *))                                                \
  FUNCTION(int32_t, clGetDeviceInfo, (cl, uint32_t, size_t, void *, size_t *))                                                 \
  FUNCTION(cl, clCreateContext, (const intptr_t *, uint32_t, const cl *, void *, void *, int32_t *))                           \
  FUNCTION(int32_t, clReleaseContext, (cl))                                                                                    \
  FUNCTION(cl, clCreateCommandQueue, (cl, cl, uint64_t, int32_t *))                                                            \
  FUNCTION(int32_t, clReleaseCommandQueue, (cl))                                                                               \
  FUNCTION(cl, clCreateBuffer, (cl, uint64_t, size_t, void *, int32_t *))                                                      \
  FUNCTION(int32_t, clReleaseMemObject, (cl))                                                                                  \
  FUNCTION(cl, clCreateProgramWithSource, (cl, uint32_t, const char **, const size_t *, int32_t *))                            \
  FUNCTION(int32_t, clBuildProgram, (cl, uint32_t, const cl *, const char *, void *, void *))                                  \
  FUNCTION(int32_t, clGetProgramBuildInfo, (cl, cl, uint32_t, size_t, void *, size_t *))                                       \
  FUNCTION(int32_t, clReleaseProgram, (cl))                                                                                    \
  FUNCTION(cl, clCreateKernel, (cl, const char *, int32_t *))                                                                  \
  FUNCTION(int32_t, clReleaseKernel, (cl))                                                                                     \
  FUNCTION(int32_t, clSetKernelArg, (cl, uint32_t, size_t, const void *))                                                      \
  FUNCTION(int32_t, clEnqueueNDRangeKernel,                                                                                    \
           (cl, cl, uint32_t, const size_t *, const size_t *, const size_t *, uint32_t, const cl *, cl *))                     \
  FUNCTION(int32_t, clEnqueueWriteBuffer, (cl, cl, uint32_t, size_t, size_t, const void *, uint32_t, const cl *, cl *))        \
  FUNCTION(int32_t, clEnqueueReadBuffer, (cl, cl, uint32_t, size_t, size_t, void *, uint32_t, const cl *, cl *))               \
  FUNCTION(int32_t, clEnqueueFillBuffer, (cl, cl, const void *, size_t, size_t, size_t, uint32_t, const cl *, cl *))           \
  FUNCTION(int32_t, clFinish, (cl))

struct slm_device {
  void *library;
#define DECLARE(result, name, parameters) result(*name) parameters;
  FUNCTIONS(DECLARE)
#undef DECLARE
  const slm_device_program *code;
  char name[NAME_BYTES];
  cl device, context, program, weights;
};

struct slm_queue {
  slm_device *device;
  cl queue, buffers[SLM_SPACES];
  cl *kernels; /* a kernel object holds its arguments, so each queue has its own */
  uint64_t bytes[SLM_SPACES];
};

static const char *const names[] = {"libOpenCL.so.1", "libOpenCL.so", NULL};

static int32_t load(slm_device *device) {
  device->library = slm_load_library(names, "install an OpenCL loader (Debian: ocl-icd-libopencl1) and a driver");
  if (device->library == NULL) return -1;
#define FIND(result, name, parameters)                                                  \
  device->name = (result(*) parameters)(uintptr_t)dlsym(device->library, #name);       \
  if (device->name == NULL) return slm_fail("%s has no function %s", names[0], #name);
  FUNCTIONS(FIND)
#undef FIND
  return 0;
}

static void name_device(slm_device *device, cl id, char *name) {
  name[0] = '\0';
  device->clGetDeviceInfo(id, DEVICE_NAME, NAME_BYTES - 1, name, NULL);
  name[NAME_BYTES - 1] = '\0';
}

static uint64_t ask(slm_device *device, cl id, uint32_t what) {
  uint64_t value = 0;
  return device->clGetDeviceInfo(id, what, sizeof value, &value, NULL) == 0 ? value : 0;
}

/* All devices of all platforms, in the order of the platforms. */
static int32_t list_devices(slm_device *device, cl *found) {
  cl platforms[MOST_DEVICES];
  uint32_t platform_count = 0;
  int32_t count = 0;
  if (device->clGetPlatformIDs(MOST_DEVICES, platforms, &platform_count) != 0) return 0;
  for (uint32_t i = 0; i < platform_count && i < MOST_DEVICES && count < MOST_DEVICES; i++) {
    uint32_t more = 0, room = (uint32_t)(MOST_DEVICES - count);
    if (device->clGetDeviceIDs(platforms[i], DEVICE_TYPE_ALL, room, found + count, &more) == 0)
      count += (int32_t)(more < room ? more : room);
  }
  return count;
}

static int32_t choose_device(slm_device *device) {
  cl found[MOST_DEVICES];
  char all[512] = "", name[NAME_BYTES];
  const char *wanted = slm_wanted_device();
  int32_t count = list_devices(device, found), chosen = -1;
  if (count == 0)
    return slm_fail("there is no OpenCL device: install its driver (Debian: pocl-opencl-icd computes on the processor)");
  for (int32_t i = 0; i < count; i++) {
    name_device(device, found[i], name);
    size_t length = strlen(all);
    snprintf(all + length, sizeof all - length, "%s%d %s", i > 0 ? ", " : "", (int)i, name);
    int better = *wanted != '\0' ? slm_is_wanted(wanted, i, name) : ask(device, found[i], DEVICE_TYPE) != DEVICE_TYPE_CPU;
    if (chosen < 0 && better) chosen = i;
  }
  if (chosen < 0 && *wanted != '\0') return slm_fail("there is no OpenCL device %s; there are %s", wanted, all);
  device->device = found[chosen < 0 ? 0 : chosen];
  name_device(device, device->device, device->name);
  return 0;
}

static int32_t build(slm_device *device) {
  int32_t code = 0;
  const char *text = (const char *)device->code->code;
  size_t length = (size_t)device->code->code_bytes;
  uint64_t config = ask(device, device->device, DEVICE_SINGLE_CONFIG);
  device->program = device->clCreateProgramWithSource(device->context, 1, &text, &length, &code);
  if (device->program == NULL) return slm_fail("%s: cannot make a program, OpenCL error %d", device->name, (int)code);
  code = device->clBuildProgram(device->program, 1, &device->device,
                                config & ROUNDS_DIVISION ? "-cl-fp32-correctly-rounded-divide-sqrt" : "", NULL, NULL);
  if (code == 0) return 0;
  char log[800] = "";
  device->clGetProgramBuildInfo(device->program, device->device, PROGRAM_LOG, sizeof log - 1, log, NULL);
  return slm_fail("%s cannot build the kernels (OpenCL error %d): %s", device->name, (int)code, log);
}

static int32_t open_device(slm_device *device, const uint8_t *weights, uint64_t bytes) {
  int32_t code = 0;
  if (load(device) != 0 || choose_device(device) != 0) return -1;
  uint64_t most = ask(device, device->device, DEVICE_MAX_GROUP);
  for (int32_t i = 0; i < device->code->kernel_count; i++)
    if ((uint64_t)device->code->kernels[i].threads > most)
      return slm_fail("%s has groups of %llu threads, and %s needs %d", device->name, (unsigned long long)most,
                      device->code->kernels[i].name, (int)device->code->kernels[i].threads);
  most = ask(device, device->device, DEVICE_MAX_ALLOCATION);
  if (bytes > most)
    return slm_fail("the weights take %llu bytes, and %s allocates at most %llu at once", (unsigned long long)bytes,
                    device->name, (unsigned long long)most);
  device->context = device->clCreateContext(NULL, 1, &device->device, NULL, NULL, &code);
  if (device->context == NULL) return slm_fail("%s: cannot make a context, OpenCL error %d", device->name, (int)code);
  if (build(device) != 0) return -1;
  static const uint8_t nothing[64];
  device->weights = device->clCreateBuffer(device->context, READ_ONLY | COPY_HOST, bytes > 0 ? (size_t)bytes : sizeof nothing,
                                           (void *)(uintptr_t)(bytes > 0 ? weights : nothing), &code);
  if (device->weights == NULL)
    return slm_fail("%s has no room for %llu bytes of weights (OpenCL error %d)", device->name, (unsigned long long)bytes,
                    (int)code);
  return 0;
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
  if (device->weights != NULL) device->clReleaseMemObject(device->weights);
  if (device->program != NULL) device->clReleaseProgram(device->program);
  if (device->context != NULL) device->clReleaseContext(device->context);
  free(device); /* the loader stays: drivers have threads of their own */
}

static int32_t open_queue(slm_queue *queue, const uint64_t *bytes) {
  slm_device *device = queue->device;
  int32_t code = 0;
  queue->queue = device->clCreateCommandQueue(device->context, device->device, 0, &code);
  if (queue->queue == NULL) return slm_fail("%s: cannot make a queue, OpenCL error %d", device->name, (int)code);
  for (int32_t space = SLM_ARENA; space < SLM_SPACES; space++) {
    queue->bytes[space] = bytes[space] > 64 ? bytes[space] : 64;
    queue->buffers[space] = device->clCreateBuffer(device->context, READ_WRITE, (size_t)queue->bytes[space], NULL, &code);
    if (queue->buffers[space] == NULL)
      return slm_fail("%s has no room for %llu bytes of a session (OpenCL error %d)", device->name,
                      (unsigned long long)bytes[space], (int)code);
  }
  queue->kernels = calloc((size_t)device->code->kernel_count + 1, sizeof *queue->kernels);
  if (queue->kernels == NULL) return slm_fail("out of memory");
  for (int32_t i = 0; i < device->code->kernel_count; i++) {
    queue->kernels[i] = device->clCreateKernel(device->program, device->code->kernels[i].name, &code);
    if (queue->kernels[i] == NULL)
      return slm_fail("%s: no kernel %s, OpenCL error %d", device->name, device->code->kernels[i].name, (int)code);
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
  if (open_queue(queue, bytes) == 0) return queue;
  slm_queue_close(queue);
  return NULL;
}

void slm_queue_close(slm_queue *queue) {
  slm_device *device = queue->device;
  if (queue->queue != NULL) device->clFinish(queue->queue);
  for (int32_t i = 0; queue->kernels != NULL && i < device->code->kernel_count; i++)
    if (queue->kernels[i] != NULL) device->clReleaseKernel(queue->kernels[i]);
  for (int32_t space = SLM_ARENA; space < SLM_SPACES; space++)
    if (queue->buffers[space] != NULL) device->clReleaseMemObject(queue->buffers[space]);
  if (queue->queue != NULL) device->clReleaseCommandQueue(queue->queue);
  free(queue->kernels);
  free(queue);
}

int32_t slm_queue_launch(slm_queue *queue, int32_t kernel, int32_t groups, const slm_argument *arguments, int32_t count) {
  slm_device *device = queue->device;
  cl object = queue->kernels[kernel];
  uint32_t index = 0;
  int32_t code = 0;
  for (int32_t i = 0; i < count && code == 0; i++) {
    int32_t kind = arguments[i].kind, number = (int32_t)arguments[i].value;
    if (kind == SLM_NUMBER) {
      code = device->clSetKernelArg(object, index++, sizeof number, &number);
      continue;
    }
    cl *buffer = kind == SLM_WEIGHTS ? &device->weights : &queue->buffers[kind];
    code = device->clSetKernelArg(object, index++, sizeof *buffer, buffer);
    if (code == 0) code = device->clSetKernelArg(object, index++, sizeof arguments[i].value, &arguments[i].value);
  }
  if (code == 0) code = device->clSetKernelArg(object, index++, sizeof groups, &groups);
  size_t local = (size_t)device->code->kernels[kernel].threads, global = local * (size_t)groups;
  if (code == 0) code = device->clEnqueueNDRangeKernel(queue->queue, object, 1, NULL, &global, &local, 0, NULL, NULL);
  if (code == 0) return 0;
  return slm_fail("%s cannot run %s, OpenCL error %d", device->name, device->code->kernels[kernel].name, (int)code);
}

static int32_t check(slm_queue *queue, int32_t code, const char *what) {
  return code == 0 ? 0 : slm_fail("%s cannot %s, OpenCL error %d", queue->device->name, what, (int)code);
}

int32_t slm_queue_clear(slm_queue *queue, int32_t space) {
  static const uint32_t zero;
  size_t bytes = (size_t)(queue->bytes[space] / sizeof zero * sizeof zero);
  return check(queue, queue->device->clEnqueueFillBuffer(queue->queue, queue->buffers[space], &zero, sizeof zero, 0, bytes, 0,
                                                         NULL, NULL), "clear a buffer");
}

int32_t slm_queue_write(slm_queue *queue, int32_t space, const void *data, uint64_t bytes) {
  return check(queue, queue->device->clEnqueueWriteBuffer(queue->queue, queue->buffers[space], TRUE, 0, (size_t)bytes, data, 0,
                                                          NULL, NULL), "write a buffer");
}

int32_t slm_queue_read(slm_queue *queue, int32_t space, uint64_t offset, void *data, uint64_t bytes) {
  return check(queue, queue->device->clEnqueueReadBuffer(queue->queue, queue->buffers[space], TRUE, (size_t)offset,
                                                         (size_t)bytes, data, 0, NULL, NULL), "read a buffer");
}

int32_t slm_queue_finish(slm_queue *queue) {
  return check(queue, queue->device->clFinish(queue->queue), "finish its work");
}
