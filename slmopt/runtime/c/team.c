/* A session's threads, and the barrier between the phases of a step.
 *
 * Workers wait for the next step by watching `epoch`: a short spin, which catches a decoding loop, then a condition variable,
 * so that an idle session costs nothing. Inside a step threads meet at the barrier, which spins, and yields after a while:
 * with more threads than cores the missing thread needs the core that waits for it. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

#define BARRIER_SPINS 2000 /* pauses before the first yield: some 20 to 80 microseconds */
#define IDLE_SPINS 4000    /* pauses before a worker goes to sleep */

struct slm_barrier {
  _Alignas(64) atomic_int arrived;
  _Alignas(64) atomic_uint generation;
  _Alignas(64) int32_t spins; /* 0 where the threads outnumber the cores */
};

typedef struct worker {
  slm_team *team;
  int32_t thread;
  pthread_t handle;
} worker;

struct slm_team {
  slm_barrier barrier;
  _Alignas(64) atomic_uint epoch; /* counts the steps begun */
  slm_frame frame;                /* of the step begun last; ordered by epoch and by the barrier at the end of a step */
  void (*step)(const slm_frame *frame);
  int stopping;
  int32_t threads, started;
  pthread_mutex_t mutex;
  pthread_cond_t begun;
  worker workers[]; /* [threads - 1] */
};

void slm_barrier_wait(slm_barrier *barrier, int32_t threads) {
  if (threads <= 1) return;
  /* The generation cannot move before this thread has arrived, so reading it first is safe. */
  unsigned generation = atomic_load_explicit(&barrier->generation, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == threads - 1) {
    atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&barrier->generation, generation + 1, memory_order_release);
    return;
  }
  int32_t spins = barrier->spins;
  while (atomic_load_explicit(&barrier->generation, memory_order_acquire) == generation) {
    if (spins > 0) {
      spins--;
      slm_pause();
    } else {
      sched_yield();
    }
  }
}

static void run_step(slm_team *team, int32_t thread) {
  slm_frame frame = team->frame;
  frame.thread = thread;
  team->step(&frame);
  slm_barrier_wait(&team->barrier, team->threads);
}

/* Waits until the epoch is another than `seen`, and returns it. */
static unsigned await_epoch(slm_team *team, unsigned seen) {
  unsigned epoch;
  for (int32_t spins = team->barrier.spins > 0 ? IDLE_SPINS : 0; spins > 0; spins--) {
    epoch = atomic_load_explicit(&team->epoch, memory_order_acquire);
    if (epoch != seen) return epoch;
    slm_pause();
  }
  pthread_mutex_lock(&team->mutex);
  while ((epoch = atomic_load_explicit(&team->epoch, memory_order_acquire)) == seen)
    pthread_cond_wait(&team->begun, &team->mutex);
  pthread_mutex_unlock(&team->mutex);
  return epoch;
}

static void *work(void *argument) {
  worker *self = argument;
  slm_team *team = self->team;
  unsigned epoch = 0;
  for (;;) {
    epoch = await_epoch(team, epoch);
    if (team->stopping) return NULL;
    run_step(team, self->thread);
  }
}

static void begin_epoch(slm_team *team) {
  pthread_mutex_lock(&team->mutex);
  atomic_fetch_add_explicit(&team->epoch, 1, memory_order_release);
  pthread_cond_broadcast(&team->begun);
  pthread_mutex_unlock(&team->mutex);
}

/* Starts the workers with all signals blocked: a host's handlers run in the host's own threads. 0 or -1. */
static int32_t start_workers(slm_team *team) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int code = 0;
  while (code == 0 && team->started < team->threads - 1) {
    worker *next = &team->workers[team->started];
    next->team = team;
    next->thread = team->started + 1;
    code = pthread_create(&next->handle, NULL, work, next);
    if (code == 0) team->started++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (code != 0)
    return slm_fail("cannot start thread %d of %d (%s); open the session with fewer", (int)team->started + 2,
                    (int)team->threads, strerror(code));
  return 0;
}

slm_team *slm_team_open(const slm_model *model, int32_t threads) {
  size_t bytes = sizeof(slm_team) + (size_t)(threads - 1) * sizeof(worker);
  void *memory = NULL;
  if (posix_memalign(&memory, _Alignof(slm_team), bytes) != 0) {
    slm_fail("out of memory: %zu bytes for %d threads", bytes, (int)threads);
    return NULL;
  }
  memset(memory, 0, bytes);
  slm_team *team = memory;
  atomic_init(&team->barrier.arrived, 0);
  atomic_init(&team->barrier.generation, 0);
  atomic_init(&team->epoch, 0);
  team->barrier.spins = threads > slm_usable_cores() ? 0 : BARRIER_SPINS;
  team->step = model->program->step;
  team->threads = threads;
  pthread_mutex_init(&team->mutex, NULL);
  pthread_cond_init(&team->begun, NULL);
  if (start_workers(team) != 0) {
    slm_team_close(team);
    return NULL;
  }
  return team;
}

int32_t slm_team_run(slm_team *team, const slm_frame *frame) {
  team->frame = *frame;
  team->frame.threads = team->threads;
  team->frame.barrier = &team->barrier;
  if (team->threads > 1) begin_epoch(team);
  run_step(team, 0);
  return 0;
}

void slm_team_close(slm_team *team) {
  if (team->started > 0) {
    team->stopping = 1; /* read after the epoch that begins here */
    begin_epoch(team);
    for (int32_t i = 0; i < team->started; i++) pthread_join(team->workers[i].handle, NULL);
  }
  pthread_cond_destroy(&team->begun);
  pthread_mutex_destroy(&team->mutex);
  free(team);
}
