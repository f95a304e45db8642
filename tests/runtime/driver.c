/* Drives the runtime through its C ABI, built with it under the sanitizers:  driver CHECK ARTIFACT. Exit 0: all held. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "slm.h"

#define TOKENS 90 /* of a test sequence; the stand-in's context is 96 and its chunk 8 */

static void fail(int line, const char *condition) {
  fprintf(stderr, "line %d: %s (last error: %s)\n", line, condition, slm_last_error());
  exit(1);
}
#define CHECK(condition) ((condition) ? (void)0 : fail(__LINE__, #condition))
#define REFUSED(call, text) (CHECK((call) < 0), CHECK(strstr(slm_last_error(), text) != NULL))

static int32_t vocab;
static const char *directory;

static slm_model *open_model(void) {
  slm_model *model = slm_open(directory);
  CHECK(model != NULL);
  vocab = slm_vocab_size(model);
  return model;
}

static slm_session *open_session(slm_model *model, int32_t threads) {
  slm_session *session = slm_session_open(model, threads);
  CHECK(session != NULL);
  return session;
}

static float *make_logits(int32_t rows) {
  float *logits = malloc((size_t)rows * (size_t)vocab * sizeof *logits);
  CHECK(logits != NULL);
  return logits;
}

static void make_ids(int32_t *ids, int32_t seed) {
  for (int32_t i = 0; i < TOKENS; i++) ids[i] = (seed * 31 + i * i * 7 + i) % vocab;
}

static int same(const float *a, const float *b, int32_t rows) {
  return memcmp(a, b, (size_t)rows * (size_t)vocab * sizeof *a) == 0;
}

/* Any number of threads and any cut into calls gives the same logits, before and after a reset. */
static void check_equal(slm_model *model) {
  int32_t ids[TOKENS];
  make_ids(ids, 1);
  float *expected = make_logits(TOKENS), *found = make_logits(TOKENS);
  slm_session *session = open_session(model, 1);
  CHECK(slm_logits(session, ids, TOKENS, expected) == 0 && slm_position(session) == TOKENS);
  slm_session_close(session);
  const int32_t threads[] = {1, 2, 3, 7, 40, 0}, cuts[] = {1, 3, 8, 13, TOKENS};
  for (int t = 0; t < 6; t++) {
    session = open_session(model, threads[t]);
    CHECK(threads[t] == 0 ? slm_thread_count(session) > 0 : slm_thread_count(session) == threads[t]);
    for (int c = 0; c < 5; c++) {
      CHECK(slm_reset(session) == 0 && slm_position(session) == 0);
      for (int32_t at = 0, part; at < TOKENS; at += part) {
        part = at + cuts[c] < TOKENS ? cuts[c] : TOKENS - at;
        float *last = found + (size_t)(at + part - 1) * (size_t)vocab;
        if (at % 2 == 0) CHECK(slm_logits(session, ids + at, part, found + (size_t)at * (size_t)vocab) == 0);
        else if (part == 1) CHECK(slm_decode(session, ids[at], last) == 0);
        else CHECK(slm_prefill(session, ids + at, part, last) == 0);
        CHECK(same(last, expected + (size_t)(at + part - 1) * (size_t)vocab, 1));
      }
    }
    slm_session_close(session);
  }
  free(expected);
  free(found);
}

static void check_errors(slm_model *model) {
  int32_t ids[TOKENS];
  make_ids(ids, 2);
  float *logits = make_logits(TOKENS), *again = make_logits(1);
  slm_session *session = open_session(model, 2);
  CHECK(slm_open(NULL) == NULL && slm_session_open(NULL, 1) == NULL);
  CHECK(slm_session_open(model, -1) == NULL && strstr(slm_last_error(), "-1 threads") != NULL);
  CHECK(slm_session_open(model, SLM_MAX_THREADS + 1) == NULL);
  slm_close(NULL);
  slm_session_close(NULL);
  REFUSED(slm_vocab_size(NULL), "NULL");
  REFUSED(slm_context_length(NULL), "NULL");
  REFUSED(slm_position(NULL), "NULL");
  REFUSED(slm_thread_count(NULL), "NULL");
  REFUSED(slm_prefill(NULL, ids, 1, NULL), "NULL");
  REFUSED(slm_reset(NULL), "NULL");
  REFUSED(slm_sample(NULL, logits, NULL), "NULL");
  REFUSED(slm_generate(NULL, ids, 1, NULL, 1, -1, NULL, NULL), "NULL");
  CHECK(slm_prefill(session, ids, 5, again) == 0);
  REFUSED(slm_prefill(session, NULL, 5, logits), "NULL");
  REFUSED(slm_prefill(session, ids, 0, logits), "no tokens");
  REFUSED(slm_prefill(session, ids, INT32_MIN, logits), "no tokens");
  REFUSED(slm_prefill(session, ids, 92, logits), "92 tokens do not fit: the context has 96 positions and 5 are taken");
  REFUSED(slm_prefill(session, ids, INT32_MAX, logits), "do not fit");
  REFUSED(slm_logits(session, ids, 5, NULL), "logits is NULL");
  REFUSED(slm_decode(session, -1, logits), "token -1 at index 0");
  int32_t bad[] = {1, 2, vocab};
  REFUSED(slm_prefill(session, bad, 3, logits), "at index 2 is out of range: the vocabulary has 300 tokens, 0 to 299");
  REFUSED(slm_sample(session, NULL, NULL), "logits is NULL");
  REFUSED(slm_generate(session, ids, 0, NULL, 4, -1, NULL, NULL), "no tokens");
  REFUSED(slm_generate(session, ids, 1, NULL, 0, -1, NULL, NULL), "max_new");
  /* Nothing of that moved the session. */
  CHECK(slm_position(session) == 5);
  CHECK(slm_logits(session, ids + 5, 1, logits) == 0);
  slm_session *fresh = open_session(model, 1);
  CHECK(slm_prefill(fresh, ids, 6, again) == 0 && same(logits, again, 1));
  slm_session_close(fresh);
  slm_session_close(session);
  free(logits);
  free(again);
}

typedef struct run {
  slm_model *model;
  int32_t seed, threads;
  int32_t made[40];
} run;

static int collect(void *user, int32_t id) {
  int32_t **next = user;
  *(*next)++ = id;
  return 0;
}

static void *generate(void *argument) {
  run *self = argument;
  int32_t ids[TOKENS], *next = self->made;
  make_ids(ids, self->seed);
  slm_session *session = open_session(self->model, self->threads);
  slm_sampling sampling = {.temperature = 0.8f, .top_k = 20, .top_p = 0.9f, .repetition_penalty = 1.1f, .seed = 7};
  CHECK(slm_generate(session, ids, 20, &sampling, 40, -1, collect, &next) == 40);
  slm_session_close(session);
  return NULL;
}

/* Sessions side by side give the tokens of one after the other, and keep a model that was closed alive. */
static void check_parallel(slm_model *model) {
  run alone[4], together[4];
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) {
    alone[i] = together[i] = (run){.model = model, .seed = i, .threads = 1 + i};
    generate(&alone[i]);
  }
  for (int i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, generate, &together[i]) == 0);
  for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  for (int i = 0; i < 4; i++) CHECK(memcmp(alone[i].made, together[i].made, sizeof alone[i].made) == 0);
  slm_model *closed = open_model();
  slm_session *session = open_session(closed, 2);
  slm_close(closed);
  CHECK(slm_decode(session, 1, NULL) == 0);
  slm_session_close(session);
}

static slm_session *shared;
static int32_t served, refused;

static void *hammer(void *argument) {
  (void)argument;
  for (int i = 0; i < 40; i++) {
    if (slm_decode(shared, 1, NULL) == 0) {
      __atomic_add_fetch(&served, 1, __ATOMIC_RELAXED);
    } else {
      CHECK(strstr(slm_last_error(), "another call") != NULL);
      __atomic_add_fetch(&refused, 1, __ATOMIC_RELAXED);
    }
  }
  return NULL;
}

static int reenter(void *user, int32_t id) {
  REFUSED(slm_decode(user, id, NULL), "another call");
  return id >= 0;
}

/* One session called from two threads at once serves one and refuses the other; from its own callback it refuses. */
static void check_busy(slm_model *model) {
  shared = open_session(model, 2);
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, hammer, NULL) == 0);
  for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK(served + refused == 80 && served > 0 && slm_position(shared) == served);
  CHECK(slm_reset(shared) == 0);
  int32_t id = 1;
  CHECK(slm_generate(shared, &id, 1, NULL, 10, -1, reenter, shared) == 1);
  slm_session_close(shared);
}

/* Generation stops at max_new, at the stop token, at the callback's word, and where the context ends. */
static void check_generate(slm_model *model) {
  int32_t ids[TOKENS], made[TOKENS + 8], *next = made;
  make_ids(ids, 3);
  slm_session *session = open_session(model, 2);
  CHECK(slm_generate(session, ids, TOKENS, NULL, 100, -1, collect, &next) == 7); /* 6 positions left, and one token beyond */
  CHECK(slm_position(session) == slm_context_length(model));
  REFUSED(slm_decode(session, 0, NULL), "1 tokens do not fit");
  CHECK(slm_reset(session) == 0);
  CHECK(slm_generate(session, ids, TOKENS, NULL, 3, -1, NULL, NULL) == 3 && slm_position(session) == TOKENS + 2);
  CHECK(slm_reset(session) == 0);
  CHECK(slm_generate(session, ids, TOKENS, NULL, 9, made[2], NULL, NULL) == 2);
  float *logits = make_logits(1);
  CHECK(slm_reset(session) == 0 && slm_prefill(session, ids, TOKENS, logits) == 0);
  for (int i = 0; i < 6; i++) {
    CHECK(slm_sample(session, logits, NULL) == made[i]);
    CHECK(slm_decode(session, made[i], logits) == 0);
  }
  CHECK(slm_sample(session, logits, NULL) == made[6]);
  free(logits);
  slm_session_close(session);
}

/* An idle session's threads sleep. */
static void check_idle(slm_model *model) {
  slm_session *session = open_session(model, 4);
  CHECK(slm_decode(session, 1, NULL) == 0);
  usleep(50000);
  struct timespec before, after;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  usleep(200000);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  double used = (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
  CHECK(used < 0.02);
  CHECK(slm_decode(session, 1, NULL) == 0);
  slm_session_close(session);
}

static void check_fork(slm_model *model) {
  slm_session *session = open_session(model, 2), *single = open_session(model, 1);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    REFUSED(slm_decode(session, 1, NULL), "fork");
    CHECK(slm_decode(single, 1, NULL) == 0);
    slm_session_close(session);
    slm_session_close(single);
    _exit(0);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(slm_decode(session, 1, NULL) == 0);
  slm_session_close(session);
  slm_session_close(single);
}

/* Without address space for their stacks threads cannot start: an error, and what had started is gone. */
static void check_threads_fail(slm_model *model) {
  struct rlimit before, small = {64u << 20, 64u << 20};
  CHECK(getrlimit(RLIMIT_AS, &before) == 0);
  small.rlim_max = before.rlim_max;
  CHECK(setrlimit(RLIMIT_AS, &small) == 0);
  CHECK(slm_session_open(model, 64) == NULL && strstr(slm_last_error(), "cannot start thread") != NULL);
  CHECK(setrlimit(RLIMIT_AS, &before) == 0);
  slm_session *session = open_session(model, 64);
  CHECK(slm_decode(session, 1, NULL) == 0);
  slm_session_close(session);
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  directory = argv[2];
  if (strcmp(argv[1], "open") == 0) { /* prints why it cannot be opened */
    slm_model *model = slm_open(argv[2]);
    slm_session *session = model != NULL ? slm_session_open(model, 1) : NULL;
    puts(session != NULL ? "opened" : slm_last_error());
    slm_session_close(session);
    slm_close(model);
    return 0;
  }
  const struct {
    const char *name;
    void (*run)(slm_model *model);
  } checks[] = {{"equal", check_equal},       {"errors", check_errors}, {"parallel", check_parallel},
                {"busy", check_busy},         {"idle", check_idle},     {"generate", check_generate},
                {"fork", check_fork},         {"threads", check_threads_fail}};
  CHECK(slm_last_error()[0] == '\0' && slm_abi_version() == SLM_ABI_VERSION);
  for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
    if (strcmp(argv[1], checks[i].name) != 0) continue;
    slm_model *model = open_model();
    checks[i].run(model);
    slm_close(model);
    return 0;
  }
  return 2;
}
