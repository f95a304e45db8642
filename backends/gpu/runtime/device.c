/* A device as the machine that computes (runtime.h): a model's weights lie on it, a session has buffers and a queue there. */
#define _GNU_SOURCE /* strcasestr */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device.h"

typedef struct {
  slm_device *device;
  pid_t process;
} opened_device;

/* Drivers do not survive fork(): in a child nothing is asked of them, and what is closed there stays as it is. */
static int32_t is_ours(const opened_device *opened) { return opened->process == getpid(); }

struct slm_team {
  slm_queue *queue;
  const slm_program *program;
  const opened_device *opened;
};

int32_t slm_usable_cores(void) { return 1; }
void slm_no_step(const slm_frame *frame) { (void)frame; }

int32_t slm_machine_open(slm_model *model) {
  opened_device *opened = malloc(sizeof *opened);
  if (opened == NULL) return slm_fail("out of memory");
  opened->process = getpid();
  opened->device = slm_device_open(&slm_this_device_program, model->weights, model->program->weights_bytes);
  if (opened->device == NULL) {
    free(opened);
    return -1;
  }
  model->machine = opened;
  return 0;
}

void slm_machine_close(slm_model *model) {
  opened_device *opened = model->machine;
  if (is_ours(opened)) slm_device_close(opened->device);
  free(opened);
}

slm_team *slm_team_open(const slm_model *model, int32_t threads) {
  (void)threads; /* the device has its own */
  const slm_program *program = model->program;
  const opened_device *opened = model->machine;
  if (!is_ours(opened)) {
    slm_fail("the model was opened before fork(), which a device's driver does not survive: open it in this process");
    return NULL;
  }
  slm_team *team = calloc(1, sizeof *team);
  if (team == NULL) {
    slm_fail("out of memory");
    return NULL;
  }
  uint64_t chunk = (uint64_t)program->chunk;
  uint64_t bytes[SLM_SPACES] = {
      [SLM_ARENA] = program->arena_bytes,
      [SLM_STATE] = program->state_bytes,
      [SLM_IDS] = chunk * sizeof(int32_t),
      [SLM_LOGITS] = chunk * (uint64_t)program->vocab * sizeof(float),
  };
  team->program = program;
  team->opened = opened;
  team->queue = slm_queue_open(opened->device, bytes);
  if (team->queue == NULL) {
    free(team);
    return NULL;
  }
  return team;
}

int32_t slm_team_run(slm_team *team, const slm_frame *frame) {
  if (!is_ours(team->opened))
    return slm_fail("the session was opened before fork(), which a device's driver does not survive: open one in this process");
  uint64_t row = (uint64_t)team->program->vocab * sizeof(float), first = (uint64_t)frame->first_logit;
  uint64_t rows = (uint64_t)frame->tokens - first;
  if (frame->position == 0 && slm_queue_clear(team->queue, SLM_STATE) != 0) return -1;
  if (slm_queue_write(team->queue, SLM_IDS, frame->ids, (uint64_t)frame->tokens * sizeof(int32_t)) != 0) return -1;
  if (slm_this_device_program.step(team->queue, frame->tokens, frame->position, frame->first_logit) != 0) return -1;
  if (rows == 0) return slm_queue_finish(team->queue);
  return slm_queue_read(team->queue, SLM_LOGITS, first * row, frame->logits, rows * row);
}

void slm_team_close(slm_team *team) {
  if (is_ours(team->opened)) slm_queue_close(team->queue);
  free(team);
}

int32_t slm_launch(slm_queue *queue, int32_t kernel, int64_t rows, int64_t each, const slm_argument *arguments, int32_t count) {
  int64_t threads = slm_this_device_program.kernels[kernel].threads;
  int64_t groups = (rows * each + threads - 1) / threads;
  if (groups == 0) return 0;
  if (groups > INT32_MAX / threads)
    return slm_fail("%s takes %lld threads, more than a device numbers; compile the model with a smaller chunk",
                    slm_this_device_program.kernels[kernel].name, (long long)(rows * each));
  return slm_queue_launch(queue, kernel, (int32_t)groups, arguments, count);
}

const char *slm_wanted_device(void) {
  const char *wanted = getenv("SLM_DEVICE");
  return wanted != NULL && *wanted != '\0' ? wanted : slm_this_device_program.device;
}

int slm_is_wanted(const char *wanted, int32_t number, const char *name) {
  char *end = NULL;
  long given = strtol(wanted, &end, 10);
  return *end == '\0' ? given == number : strcasestr(name, wanted) != NULL;
}

void *slm_load_library(const char *const *names, const char *purpose) {
  for (int i = 0; names[i] != NULL; i++) {
    void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (library != NULL) return library;
    if (i == 0) slm_fail("the library cannot be loaded: %s; %s", dlerror(), purpose);
  }
  return NULL;
}
