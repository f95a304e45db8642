/* Feeds token ids to the library of an artifact and writes the logits that follow each.
 *
 *   driver LIBRARY DIRECTORY IDS LOGITS THREADS LENGTH...
 *
 * IDS: int32 of the machine, LOGITS: float32 [tokens][vocab]. The ids are taken in parts of LENGTH..., in one session.
 * What goes wrong is said on standard error, exit code 1. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct slm_model slm_model;
typedef struct slm_session slm_session;

static void *library;
static const char *(*last_error)(void);

static _Noreturn void fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why != NULL ? why : "failed");
  exit(1);
}

/* A function of the library; ISO C has no conversion from void * to a pointer to a function, POSIX has this one. */
static void find(const char *name, void *function) {
  void *found = dlsym(library, name);
  if (found == NULL) fail(name, dlerror());
  *(void **)function = found;
}

int main(int count, char **arguments) {
  if (count < 7) fail("usage", "driver LIBRARY DIRECTORY IDS LOGITS THREADS LENGTH...");
  slm_model *(*open_model)(const char *);
  slm_session *(*open_session)(slm_model *, int32_t);
  int32_t (*vocab_size)(const slm_model *);
  int32_t (*take)(slm_session *, const int32_t *, int32_t, float *);
  void (*close_session)(slm_session *);
  void (*close_model)(slm_model *);
  library = dlopen(arguments[1], RTLD_NOW);
  if (library == NULL) fail(arguments[1], dlerror());
  find("slm_last_error", &last_error);
  find("slm_open", &open_model);
  find("slm_session_open", &open_session);
  find("slm_vocab_size", &vocab_size);
  find("slm_logits", &take);
  find("slm_session_close", &close_session);
  find("slm_close", &close_model);

  slm_model *model = open_model(arguments[2]);
  if (model == NULL) fail("slm_open", last_error());
  slm_session *session = open_session(model, atoi(arguments[5]));
  if (session == NULL) fail("slm_session_open", last_error());
  FILE *ids = fopen(arguments[3], "rb"), *out = fopen(arguments[4], "wb");
  if (ids == NULL || out == NULL) fail(arguments[ids == NULL ? 3 : 4], "cannot be opened");
  size_t vocab = (size_t)vocab_size(model);
  for (int i = 6; i < count; i++) {
    size_t length = (size_t)atoi(arguments[i]);
    int32_t *part = malloc(length * sizeof *part);
    float *logits = malloc(length * vocab * sizeof *logits);
    if (part == NULL || logits == NULL) fail("memory", "there is not enough");
    if (fread(part, sizeof *part, length, ids) != length) fail(arguments[3], "is too short");
    if (take(session, part, (int32_t)length, logits) != 0) fail("slm_logits", last_error());
    if (fwrite(logits, sizeof *logits * vocab, length, out) != length) fail(arguments[4], "cannot be written");
    free(part);
    free(logits);
  }
  if (fclose(out) != 0) fail(arguments[4], "cannot be written");
  fclose(ids);
  close_session(session);
  close_model(model);
  return 0;
}
