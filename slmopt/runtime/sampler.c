/* The sampler of slm.h by itself, for sessions whose steps are run by something else than the library of an artifact. */
#include <stdlib.h>
#include <string.h>

#include "c/error.c"
#include "c/sampler.c"

/* sampler.c asks for a session's; there is none here, and slm_sample is not called. */
int32_t slm_session_enter(slm_session *session) { return session != NULL ? 0 : -1; }
void slm_session_leave(slm_session *session) { (void)session; }

typedef struct chooser {
  slm_sampler sampler;
  uint8_t *seen;
} chooser;

SLM_API void chooser_close(chooser *c) {
  if (c == NULL) return;
  free(c->seen);
  free(c->sampler.candidates);
  free(c);
}

SLM_API chooser *chooser_open(int32_t vocab) {
  chooser *c = calloc(1, sizeof *c);
  if (c == NULL) return NULL;
  c->seen = calloc((size_t)vocab, 1);
  c->sampler.vocab = vocab;
  c->sampler.seen = c->seen;
  c->sampler.candidates = malloc((size_t)vocab * sizeof *c->sampler.candidates);
  if (c->seen != NULL && c->sampler.candidates != NULL) return c;
  chooser_close(c);
  return NULL;
}

/* As after opening it. */
SLM_API void chooser_reset(chooser *c) {
  memset(c->seen, 0, (size_t)c->sampler.vocab);
  c->sampler.seeded = 0;
}

/* The session has taken the token. */
SLM_API void chooser_take(chooser *c, int32_t id) { c->seen[id] = 1; }

/* As slm_sample. */
SLM_API int32_t chooser_choose(chooser *c, const float *logits, const slm_sampling *sampling) {
  return slm_check_sampling(sampling) != 0 ? -1 : slm_choose(&c->sampler, logits, sampling);
}
