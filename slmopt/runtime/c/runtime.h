/* What the runtime's files share. Nothing here is exported. */
#ifndef SLM_RUNTIME_H
#define SLM_RUNTIME_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "program.h"
#include "slm.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#define SLM_PRINTF __attribute__((format(printf, 1, 2)))
#else
#define SLM_PRINTF
#endif

/* error.c: writes the message of slm_last_error; returns -1 so that a caller can return it. */
int32_t slm_fail(const char *format, ...) SLM_PRINTF;

/* The machine that computes: cpu.c and team.c, or a backend's own files in their place (link.py). Opening finds out whether
 * the machine is here and can run the program, with the model's weights mapped; 0, or -1 with an error. */
int32_t slm_machine_open(slm_model *model);
void slm_machine_close(slm_model *model); /* of an opened one, before the weights are unmapped */
int32_t slm_usable_cores(void);           /* the number of cores this process may use, at least 1 */
void slm_pause(void);

/* model.c */
struct slm_model {
  const slm_program *program;
  const uint8_t *weights; /* inside the map, SLM_WEIGHTS_HEADER behind the start of the file */
  void *map;              /* where the file lies, and what is reserved around it */
  size_t map_bytes;
  void *machine;         /* what slm_machine_open keeps */
  atomic_int references; /* the opener's, and one of each session */
};
void slm_model_release(slm_model *model);

/* The part of the machine that runs a session's steps. Of team.c it is threads: the caller of slm_team_run is thread 0; the
 * others sleep between runs. Running fills in thread, threads and barrier; 0, or -1 with an error. */
typedef struct slm_team slm_team;
slm_team *slm_team_open(const slm_model *model, int32_t threads);
int32_t slm_team_run(slm_team *team, const slm_frame *frame);
void slm_team_close(slm_team *team);

/* sampler.c */
typedef struct slm_candidate {
  float logit;
  int32_t id;
} slm_candidate;

typedef struct slm_sampler {
  uint64_t random[4]; /* xoshiro256** */
  uint64_t seed;
  int seeded;
  int32_t vocab;
  const uint8_t *seen;       /* [vocab] 1 where the session has taken the token */
  slm_candidate *candidates; /* [vocab] scratch */
} slm_sampler;
int32_t slm_check_sampling(const slm_sampling *sampling);
int32_t slm_choose(slm_sampler *sampler, const float *logits, const slm_sampling *sampling);

/* session.c */
struct slm_session {
  slm_model *model;
  slm_team *team;
  uint8_t *state;
  uint8_t *arena;
  float *logits; /* [vocab] of slm_generate */
  uint8_t *seen;
  slm_sampler sampler;
  int32_t position, threads;
  int32_t failed;   /* the machine failed in a step: what the state holds is unknown until a reset */
  pid_t process;    /* threads do not survive fork() */
  atomic_flag busy; /* one call at a time */
};

/* Takes the session for one call: 0, or -1 with an error where it cannot serve. */
int32_t slm_session_enter(slm_session *session);
void slm_session_leave(slm_session *session);
/* Checks that ids[count] can be taken now. 0, or -1 with an error. */
int32_t slm_check_ids(const slm_session *session, const int32_t *ids, int32_t count);
/* Takes checked ids; writes logits of all rows, of the last one, or of none (NULL). 0, or -1 where the machine failed. */
int32_t slm_session_take(slm_session *session, const int32_t *ids, int32_t count, float *logits, int all);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
