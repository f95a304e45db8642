/* slm.h: run a language model compiled by slmopt. C11; the library needs libc, libm and threads, nothing else.
 *
 *   slm_model *model = slm_open("build/stories");               weights are memory-mapped, shared and read only
 *   slm_session *session = slm_session_open(model, 0);          state of one conversation and its threads
 *   slm_prefill(session, prompt, length, logits);               logits[slm_vocab_size(model)] of the last token
 *   for (...) { id = slm_sample(session, logits, &sampling); slm_decode(session, id, logits); }
 *   slm_session_close(session);
 *   slm_close(model);
 *
 * Errors: a function that can fail returns NULL or -1 and leaves a message for slm_last_error. A call that failed changed
 * nothing, and the session stays usable (only slm_generate may have gone part of its way; a session in which a device failed
 * takes nothing more before slm_reset).
 * Threads: a model may be used from any thread. Sessions are independent: each may run in a thread of its own. One session
 * serves one call at a time; a second one meanwhile is refused with an error. */
#ifndef SLM_H
#define SLM_H

#include <stdint.h>

#if defined(__GNUC__)
#define SLM_API __attribute__((visibility("default")))
#else
#define SLM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define SLM_ABI_VERSION 1u
#define SLM_MAX_THREADS 256

typedef struct slm_model slm_model;
typedef struct slm_session slm_session;

/* SLM_ABI_VERSION of the library, to be compared with this header's. */
SLM_API uint32_t slm_abi_version(void);

/* What the last failed call in this thread has to say; "" before the first failure. Never NULL. */
SLM_API const char *slm_last_error(void);

/* Opens the artifact in `directory`; NULL on failure, also where this processor lacks an instruction set of the library.
 * Sessions keep the model alive: it is unmapped once it and its sessions are all closed. */
SLM_API slm_model *slm_open(const char *directory);
SLM_API void slm_close(slm_model *model);

/* Tokens the model knows (ids 0 .. size - 1), and most positions a session can hold. -1 for a NULL model. */
SLM_API int32_t slm_vocab_size(const slm_model *model);
SLM_API int32_t slm_context_length(const slm_model *model);

/* Opens a session that computes with `threads` threads, the caller's included; 0: one per usable core. Idle threads sleep.
 * A library for a device takes any number: the device has threads of its own. */
SLM_API slm_session *slm_session_open(slm_model *model, int32_t threads);
SLM_API void slm_session_close(slm_session *session);

/* Tokens taken so far, and threads in use. -1 for a NULL session. */
SLM_API int32_t slm_position(const slm_session *session);
SLM_API int32_t slm_thread_count(const slm_session *session);

/* Takes ids[count]; writes the logits that follow the last of them to logits[vocab], unless that is NULL. 0 or -1. */
SLM_API int32_t slm_prefill(slm_session *session, const int32_t *ids, int32_t count, float *logits);

/* Takes one token: slm_prefill(session, &id, 1, logits). */
SLM_API int32_t slm_decode(slm_session *session, int32_t id, float *logits);

/* As slm_prefill, with the logits of every position: logits[count][vocab]. Continues where the session is. */
SLM_API int32_t slm_logits(slm_session *session, const int32_t *ids, int32_t count, float *logits);

/* Back to position 0, as if just opened. */
SLM_API int32_t slm_reset(slm_session *session);

/* How to choose a token. The filters apply in this order: repetition penalty, temperature, top_k, top_p, min_p. */
typedef struct slm_sampling {
  float temperature;        /* 0: the most likely token, ties to the lowest id (top_k, top_p, min_p change nothing) */
  int32_t top_k;            /* keep the k most likely tokens; 0: all */
  float top_p;              /* keep the most likely tokens that together reach this share of the rest; 1: all */
  float min_p;              /* drop tokens less likely than this times the most likely one; 0: none */
  float repetition_penalty; /* > 1 makes tokens that the session has taken less likely (Keskar et al. 2019, CTRL); 1: off */
  uint64_t seed;            /* of the session's generator; the same seed, calls and logits give the same tokens */
} slm_sampling;

/* Greedy, no filter: {0, 0, 1, 0, 1, 0}. */
SLM_API slm_sampling slm_sampling_default(void);

/* Chooses a token by logits[vocab]; NULL sampling is the default one. The id, or -1. The generator starts from the seed at
 * the first call after slm_session_open or slm_reset, and again whenever the seed differs from the call before. */
SLM_API int32_t slm_sample(slm_session *session, const float *logits, const slm_sampling *sampling);

/* Called with each new token; anything but 0 ends the generation. It must not call into the same session. */
typedef int (*slm_callback)(void *user, int32_t id);

/* Takes ids[count], then samples and takes tokens until `max_new` are out, `stop_id` comes (-1: none; it is not reported),
 * the callback says so, or the context is full. The number of tokens reported, or -1. The last reported token has not been
 * taken by the session yet: to go on, put it first in the next call's ids. A NULL callback is allowed. */
SLM_API int32_t slm_generate(slm_session *session, const int32_t *ids, int32_t count, const slm_sampling *sampling,
                             int32_t max_new, int32_t stop_id, slm_callback callback, void *user);

#ifdef __cplusplus
}
#endif

#endif
