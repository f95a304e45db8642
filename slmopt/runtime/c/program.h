/* The contract between a generated program (program.c and the kernels beside it) and the runtime that links it.
 *
 * A program is the constant `slm_this_program` and one function, `step`. It allocates nothing, keeps nothing between steps
 * but what lies in `state`, and cannot fail: the runtime checks tokens, lengths and the processor before it calls. */
#ifndef SLM_PROGRAM_H
#define SLM_PROGRAM_H

#include <stdint.h>

#define SLM_PROGRAM_ABI 1u
#define SLM_WEIGHTS_HEADER 4096 /* bytes before the data of weights.bin; the frame's `weights` points behind them */

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

typedef struct slm_barrier slm_barrier;

typedef struct slm_frame {  /* what one thread needs to run one step */
  const uint8_t *weights;   /* data of weights.bin, memory-mapped, 64-byte aligned, read only */
  uint8_t *arena;           /* scratch of the session, 64-byte aligned; holds anything at the start of a step */
  uint8_t *state;           /* recurrent state (KV caches, ...), page-aligned; all zero at position 0 */
  const int32_t *ids;       /* [tokens], each in 0 .. vocab - 1 */
  float *logits;            /* [tokens - first_logit][vocab]; not to be touched when first_logit == tokens */
  int32_t tokens, position; /* this step: tokens at positions position .. position + tokens - 1 < context */
  int32_t first_logit;      /* rows first_logit .. tokens - 1 get logits (tokens: none needed) */
  int32_t thread, threads;  /* 0 <= thread < threads */
  slm_barrier *barrier;
} slm_frame;

/* Returns once all `threads` threads of the step have called it; what they wrote before is visible after. Every thread of a
 * step calls it equally often; `threads` is the frame's. Costs nothing when threads == 1. */
void slm_barrier_wait(slm_barrier *barrier, int32_t threads);

typedef struct slm_program {
  uint32_t abi; /* SLM_PROGRAM_ABI */
  const char *name;
  int32_t vocab, context;
  int32_t chunk;          /* most tokens a step takes */
  uint64_t weights_bytes; /* of the data: the file has SLM_WEIGHTS_HEADER more */
  uint64_t state_bytes, arena_bytes;
  const char *weights_hash;        /* sha256 of the data, 64 lower-case hex digits, as in the header of weights.bin */
  const char *const *cpu_features; /* NULL-terminated, names as in __builtin_cpu_supports; NULL means none */
  const char *target;
  void (*step)(const slm_frame *frame); /* every thread calls it with its own frame; barriers inside */
} slm_program;

extern const slm_program slm_this_program; /* defined by program.c */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
