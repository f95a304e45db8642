/* The generation loop: take, sample, report. */
#include "runtime.h"

static int32_t generate(slm_session *session, const int32_t *ids, int32_t count, const slm_sampling *sampling,
                        int32_t max_new, int32_t stop_id, slm_callback callback, void *user) {
  int32_t context = session->model->program->context, id = 0;
  for (int32_t reported = 0; reported < max_new; reported++) {
    if (reported > 0 && session->position == context) return reported;
    int32_t code = reported == 0 ? slm_session_take(session, ids, count, session->logits, 0)
                                 : slm_session_take(session, &id, 1, session->logits, 0);
    if (code != 0) return -1;
    id = slm_choose(&session->sampler, session->logits, sampling);
    if (id < 0) return -1;
    if (id == stop_id) return reported;
    if (callback != NULL && callback(user, id) != 0) return reported + 1;
  }
  return max_new;
}

int32_t slm_generate(slm_session *session, const int32_t *ids, int32_t count, const slm_sampling *sampling,
                     int32_t max_new, int32_t stop_id, slm_callback callback, void *user) {
  slm_sampling chosen = sampling != NULL ? *sampling : slm_sampling_default();
  if (max_new < 1) return slm_fail("slm_generate: max_new is %d; it must be 1 or more", (int)max_new);
  if (slm_check_sampling(&chosen) != 0 || slm_session_enter(session) != 0) return -1;
  int32_t result = slm_check_ids(session, ids, count);
  if (result == 0) result = generate(session, ids, count, &chosen, max_new, stop_id, callback, user);
  slm_session_leave(session);
  return result;
}
