/* What a device's program, the part of the runtime that runs it (device.c), and the drivers of interfaces (opencl.c, cuda.c)
 * share. A library has one driver. */
#ifndef SLM_DEVICE_H
#define SLM_DEVICE_H

#include "runtime.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

/* What an argument of a kernel is: a number, or a place in one of the buffers. */
enum { SLM_NUMBER, SLM_WEIGHTS, SLM_ARENA, SLM_STATE, SLM_IDS, SLM_LOGITS, SLM_SPACES };

typedef struct slm_argument {
  int32_t kind;
  int64_t value; /* the number, or elements from the start of the buffer */
} slm_argument;

typedef struct slm_kernel {
  const char *name;
  int32_t threads; /* of a group */
} slm_kernel;

typedef struct slm_queue slm_queue; /* a session's buffers on the device, and its launches, which run in order */

extern const unsigned char slm_device_code[];

/* What program.c defines beside slm_this_program. */
typedef struct slm_device_program {
  const slm_kernel *kernels;
  int32_t kernel_count;
  const unsigned char *code; /* of all kernels: source, or what the driver takes */
  uint64_t code_bytes;
  const char *device; /* a number, or a part of a name; "" for the first that is a graphics processor, or else the first */
  int32_t (*step)(slm_queue *queue, int32_t tokens, int32_t position, int32_t first);
} slm_device_program;
extern const slm_device_program slm_this_device_program;

/* device.c. Called by a program's step: `rows` rows of work, `each` threads for a row. 0, or -1 with an error. */
int32_t slm_launch(slm_queue *queue, int32_t kernel, int64_t rows, int64_t each, const slm_argument *arguments, int32_t count);
void slm_no_step(const slm_frame *frame);   /* the step of processors, which is never called */
const char *slm_wanted_device(void);        /* the environment's SLM_DEVICE, or the program's */
int slm_is_wanted(const char *wanted, int32_t number, const char *name); /* by number, or by a part of the name */
void *slm_load_library(const char *const *names, const char *purpose);   /* of a driver; NULL with an error */

/* A driver. All that can fail gives 0 or an object, else -1 or NULL with an error. `bytes` has a size for each space. */
typedef struct slm_device slm_device;
slm_device *slm_device_open(const slm_device_program *program, const uint8_t *weights, uint64_t bytes);
void slm_device_close(slm_device *device);
slm_queue *slm_queue_open(slm_device *device, const uint64_t *bytes);
void slm_queue_close(slm_queue *queue);
int32_t slm_queue_launch(slm_queue *queue, int32_t kernel, int32_t groups, const slm_argument *arguments, int32_t count);
int32_t slm_queue_clear(slm_queue *queue, int32_t space);
int32_t slm_queue_write(slm_queue *queue, int32_t space, const void *data, uint64_t bytes);
int32_t slm_queue_read(slm_queue *queue, int32_t space, uint64_t offset, void *data, uint64_t bytes); /* waits */
int32_t slm_queue_finish(slm_queue *queue);                                                           /* waits */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
