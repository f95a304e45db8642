/* Opening an artifact: the checks, and the memory map of its weights.
 *
 * weights.bin:  offset 0 "SLMW" | 4 version, u32 | 8 size of the file, u64 | 16 sha256 of the data, 64 hex digits | zeros
 *               offset 4096 the data.  Integers are little endian. */
#define _GNU_SOURCE /* MAP_ANONYMOUS, MADV_HUGEPAGE */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime.h"

#define WEIGHTS_VERSION 1u
#define HASH_DIGITS 64
#define HUGE_PAGE ((size_t)2 << 20)

static uint64_t read_little_endian(const uint8_t *bytes, int count) {
  uint64_t value = 0;
  for (int i = count - 1; i >= 0; i--) value = value << 8 | bytes[i];
  return value;
}

static int32_t check_program(const slm_program *program) {
  if (program->abi != SLM_PROGRAM_ABI)
    return slm_fail("the program speaks version %u of the runtime's contract, this library %u: compile the model again",
                    (unsigned)program->abi, SLM_PROGRAM_ABI);
  if (program->vocab < 1 || program->context < 1 || program->chunk < 1 || program->step == NULL)
    return slm_fail("the program is malformed: vocab %d, context %d, chunk %d", (int)program->vocab, (int)program->context,
                    (int)program->chunk);
  if (program->weights_hash == NULL || strlen(program->weights_hash) != HASH_DIGITS)
    return slm_fail("the program is malformed: its weights have no hash");
  if (program->weights_bytes > SIZE_MAX / 2 || program->state_bytes > SIZE_MAX / 2 || program->arena_bytes > SIZE_MAX / 2)
    return slm_fail("%s does not fit the address space of this machine", program->name);
  return 0;
}

/* The header against the file it heads and the program that uses it. */
static int32_t check_header(const uint8_t *header, uint64_t file_bytes, const slm_program *program, const char *path) {
  if (memcmp(header, "SLMW", 4) != 0) return slm_fail("%s is not a weights file of slmopt", path);
  uint64_t version = read_little_endian(header + 4, 4), size = read_little_endian(header + 8, 8);
  if (version != WEIGHTS_VERSION)
    return slm_fail("%s has format version %llu, this library reads %u", path, (unsigned long long)version, WEIGHTS_VERSION);
  if (size != file_bytes)
    return slm_fail("%s is damaged: it has %llu bytes and should have %llu", path, (unsigned long long)file_bytes,
                    (unsigned long long)size);
  if (size != program->weights_bytes + SLM_WEIGHTS_HEADER || memcmp(header + 16, program->weights_hash, HASH_DIGITS) != 0)
    return slm_fail("%s belongs to another compilation than the library of %s", path, program->name);
  return 0;
}

/* Maps a file where a huge page can begin: what the page cache holds of it in huge pages is then read through as few
 * entries. A step reads all weights, and otherwise spends up to a third of its time on the tables of small pages. NULL, with
 * errno, where there is no room. */
static const uint8_t *map_file(slm_model *model, size_t bytes, int file) {
  size_t room = bytes + HUGE_PAGE;
  uint8_t *space = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (space == MAP_FAILED) return NULL;
  uint8_t *start = space + (HUGE_PAGE - (uintptr_t)space % HUGE_PAGE) % HUGE_PAGE;
  if (mmap(start, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
    int code = errno;
    munmap(space, room);
    errno = code;
    return NULL;
  }
#ifdef MADV_HUGEPAGE
  madvise(start, bytes, MADV_HUGEPAGE); /* advice only: read the file in huge pages */
#endif
  model->map = space;
  model->map_bytes = room;
  return start;
}

/* Maps the open weights file. 0 or -1. */
static int32_t map_weights(slm_model *model, int file, const char *path) {
  struct stat status;
  if (fstat(file, &status) != 0) return slm_fail("cannot read %s: %s", path, strerror(errno));
  if (!S_ISREG(status.st_mode)) return slm_fail("%s is not a file", path);
  if (status.st_size < SLM_WEIGHTS_HEADER)
    return slm_fail("%s is damaged: %lld bytes are less than its header", path, (long long)status.st_size);
  size_t bytes = (size_t)status.st_size;
  const uint8_t *data = map_file(model, bytes, file);
  if (data == NULL) return slm_fail("cannot map %zu bytes of %s: %s", bytes, path, strerror(errno));
  if (check_header(data, bytes, model->program, path) != 0) {
    munmap(model->map, model->map_bytes);
    return -1;
  }
  posix_madvise((void *)data, bytes, POSIX_MADV_WILLNEED); /* advice only: start reading ahead */
  model->weights = data + SLM_WEIGHTS_HEADER;
  return 0;
}

static int32_t open_weights(slm_model *model, const char *directory) {
  size_t length = strlen(directory) + sizeof "/weights.bin";
  char *path = malloc(length);
  if (path == NULL) return slm_fail("out of memory");
  snprintf(path, length, "%s/weights.bin", directory);
  int32_t code;
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) {
    code = slm_fail("cannot open %s: %s", path, strerror(errno));
  } else {
    code = map_weights(model, file, path);
    close(file);
  }
  free(path);
  return code;
}

slm_model *slm_open(const char *directory) {
  const slm_program *program = &slm_this_program;
  if (directory == NULL) {
    slm_fail("slm_open: the directory is NULL");
    return NULL;
  }
  if (check_program(program) != 0) return NULL;
  slm_model *model = calloc(1, sizeof *model);
  if (model == NULL) {
    slm_fail("out of memory");
    return NULL;
  }
  model->program = program;
  atomic_init(&model->references, 1);
  if (open_weights(model, directory) != 0) {
    free(model);
    return NULL;
  }
  if (slm_machine_open(model) != 0) {
    munmap(model->map, model->map_bytes);
    free(model);
    return NULL;
  }
  return model;
}

void slm_model_release(slm_model *model) {
  if (atomic_fetch_sub_explicit(&model->references, 1, memory_order_acq_rel) != 1) return;
  slm_machine_close(model);
  munmap(model->map, model->map_bytes);
  free(model);
}

void slm_close(slm_model *model) {
  if (model != NULL) slm_model_release(model);
}

int32_t slm_vocab_size(const slm_model *model) {
  return model != NULL ? model->program->vocab : slm_fail("slm_vocab_size: the model is NULL");
}

int32_t slm_context_length(const slm_model *model) {
  return model != NULL ? model->program->context : slm_fail("slm_context_length: the model is NULL");
}
