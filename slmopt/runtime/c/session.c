/* Sessions: the state of one conversation, and the steps that advance it. */
#define _GNU_SOURCE /* MAP_ANONYMOUS, MADV_DONTNEED */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime.h"

#define SMALL_STATE (256u * 1024u) /* bytes up to which writing zeros is cheaper than giving pages back */

static size_t mapped_bytes(const slm_session *session) {
  uint64_t bytes = session->model->program->state_bytes;
  return bytes > 0 ? (size_t)bytes : 1;
}

/* Fresh pages of a map are zero and take no memory before they are written: a long context costs what is used of it. */
static uint8_t *map_state(size_t bytes) {
  void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return map == MAP_FAILED ? NULL : map;
}

static void clear_state(slm_session *session) {
  size_t bytes = mapped_bytes(session);
#ifdef __linux__
  if (bytes > SMALL_STATE && madvise(session->state, bytes, MADV_DONTNEED) == 0) return;
#endif
  memset(session->state, 0, bytes);
}

static int32_t allocate(slm_session *session, const slm_program *program) {
  size_t vocab = (size_t)program->vocab;
  size_t arena_bytes = program->arena_bytes > 0 ? (size_t)program->arena_bytes : 64;
  void *arena = NULL;
  session->state = map_state(mapped_bytes(session));
  if (posix_memalign(&arena, 64, arena_bytes) == 0) session->arena = arena;
  session->logits = malloc(vocab * sizeof *session->logits);
  session->seen = calloc(vocab, 1);
  session->sampler.vocab = program->vocab;
  session->sampler.seen = session->seen;
  session->sampler.candidates = malloc(vocab * sizeof *session->sampler.candidates);
  if (session->state == NULL || session->arena == NULL || session->logits == NULL || session->seen == NULL ||
      session->sampler.candidates == NULL)
    return slm_fail("out of memory: a session of %s needs %llu bytes of state and %llu of scratch", program->name,
                    (unsigned long long)program->state_bytes, (unsigned long long)program->arena_bytes);
  return 0;
}

static void release(slm_session *session) {
  /* After a fork the child has no such threads to end; their records are left alone. */
  if (session->team != NULL && (session->threads == 1 || session->process == getpid())) slm_team_close(session->team);
  if (session->state != NULL) munmap(session->state, mapped_bytes(session));
  free(session->arena);
  free(session->logits);
  free(session->seen);
  free(session->sampler.candidates);
  slm_model_release(session->model);
  free(session);
}

slm_session *slm_session_open(slm_model *model, int32_t threads) {
  if (model == NULL) {
    slm_fail("slm_session_open: the model is NULL");
    return NULL;
  }
  if (threads < 0 || threads > SLM_MAX_THREADS) {
    slm_fail("slm_session_open: %d threads; give 1 to %d, or 0 for one per usable core", (int)threads, SLM_MAX_THREADS);
    return NULL;
  }
  slm_session *session = calloc(1, sizeof *session);
  if (session == NULL) {
    slm_fail("out of memory");
    return NULL;
  }
  atomic_fetch_add_explicit(&model->references, 1, memory_order_relaxed);
  session->model = model;
  session->threads = threads > 0 ? threads : slm_usable_cores();
  session->process = getpid();
  atomic_flag_clear(&session->busy);
  if (allocate(session, model->program) == 0) session->team = slm_team_open(model, session->threads);
  if (session->team == NULL) {
    release(session);
    return NULL;
  }
  return session;
}

void slm_session_close(slm_session *session) {
  if (session != NULL) release(session);
}

int32_t slm_position(const slm_session *session) {
  return session != NULL ? session->position : slm_fail("slm_position: the session is NULL");
}

int32_t slm_thread_count(const slm_session *session) {
  return session != NULL ? session->threads : slm_fail("slm_thread_count: the session is NULL");
}

int32_t slm_session_enter(slm_session *session) {
  if (session == NULL) return slm_fail("the session is NULL");
  if (session->threads > 1 && session->process != getpid())
    return slm_fail("the session was opened before fork(), and its threads stayed behind: open one in this process");
  if (atomic_flag_test_and_set_explicit(&session->busy, memory_order_acquire))
    return slm_fail("the session is serving another call; open one session for each thread");
  return 0;
}

void slm_session_leave(slm_session *session) { atomic_flag_clear_explicit(&session->busy, memory_order_release); }

int32_t slm_check_ids(const slm_session *session, const int32_t *ids, int32_t count) {
  const slm_program *program = session->model->program;
  if (session->failed) return slm_fail("the device failed in an earlier call, and the session's state is lost: reset it");
  if (count < 1 || ids == NULL) return slm_fail("no tokens: count is %d%s", (int)count, ids == NULL ? ", ids is NULL" : "");
  if (count > program->context - session->position)
    return slm_fail("%d tokens do not fit: the context has %d positions and %d are taken", (int)count, (int)program->context,
                    (int)session->position);
  for (int32_t i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= program->vocab)
      return slm_fail("token %d at index %d is out of range: the vocabulary has %d tokens, 0 to %d", (int)ids[i], (int)i,
                      (int)program->vocab, (int)program->vocab - 1);
  }
  return 0;
}

int32_t slm_session_take(slm_session *session, const int32_t *ids, int32_t count, float *logits, int all) {
  const slm_program *program = session->model->program;
  for (int32_t done = 0, tokens; done < count; done += tokens) {
    tokens = count - done < program->chunk ? count - done : program->chunk;
    int last = done + tokens == count;
    slm_frame frame = {
        .weights = session->model->weights,
        .arena = session->arena,
        .state = session->state,
        .ids = ids + done,
        .logits = logits == NULL ? NULL : all ? logits + (size_t)done * (size_t)program->vocab : logits,
        .tokens = tokens,
        .position = session->position,
        .first_logit = logits == NULL ? tokens : all ? 0 : last ? tokens - 1 : tokens,
    };
    if (slm_team_run(session->team, &frame) != 0) {
      session->failed = 1;
      return -1;
    }
    session->position += tokens;
  }
  for (int32_t i = 0; i < count; i++) session->seen[ids[i]] = 1;
  return 0;
}

int32_t slm_prefill(slm_session *session, const int32_t *ids, int32_t count, float *logits) {
  if (slm_session_enter(session) != 0) return -1;
  int32_t code = slm_check_ids(session, ids, count);
  if (code == 0) code = slm_session_take(session, ids, count, logits, 0);
  slm_session_leave(session);
  return code;
}

int32_t slm_decode(slm_session *session, int32_t id, float *logits) { return slm_prefill(session, &id, 1, logits); }

int32_t slm_logits(slm_session *session, const int32_t *ids, int32_t count, float *logits) {
  if (logits == NULL) return slm_fail("slm_logits: logits is NULL");
  if (slm_session_enter(session) != 0) return -1;
  int32_t code = slm_check_ids(session, ids, count);
  if (code == 0) code = slm_session_take(session, ids, count, logits, 1);
  slm_session_leave(session);
  return code;
}

int32_t slm_reset(slm_session *session) {
  if (slm_session_enter(session) != 0) return -1;
  clear_state(session);
  memset(session->seen, 0, (size_t)session->model->program->vocab);
  session->position = 0;
  session->failed = 0;
  session->sampler.seeded = 0;
  slm_session_leave(session);
  return 0;
}
