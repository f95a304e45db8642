/* A stand-in for a generated program: logits are a hash of every token so far, spread over lanes that the threads share out.
 *
 * state: uint64_t lane[LANES].  A token replaces each lane by a mix of itself, its neighbour's old value and the token, so a
 * missing barrier, a lost state or a wrong position changes everything after it. tests/runtime/stand_in.py computes the same. */
#include <string.h>

#include "program.h"

#define LANES 16
#ifndef VOCAB
#define VOCAB 300
#endif
#ifndef CONTEXT
#define CONTEXT 96
#endif
#ifndef ABI
#define ABI SLM_PROGRAM_ABI
#endif
#ifndef STATE_BYTES
#define STATE_BYTES (LANES * sizeof(uint64_t))
#endif
#ifndef FEATURES
#define FEATURES NULL
#endif

static uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

static void step(const slm_frame *frame) {
  uint64_t *lanes = (uint64_t *)(void *)frame->state, *old = (uint64_t *)(void *)frame->arena;
  for (int32_t t = 0; t < frame->tokens; t++) {
    if (frame->thread == 0) memcpy(old, lanes, LANES * sizeof *old);
    slm_barrier_wait(frame->barrier, frame->threads);
    uint64_t token = (uint64_t)frame->ids[t] + 1000u * (uint64_t)(frame->position + t);
    for (int32_t i = frame->thread; i < LANES; i += frame->threads)
      lanes[i] = mix(old[i] + 3 * old[(i + 1) % LANES] + token + (uint64_t)i);
    slm_barrier_wait(frame->barrier, frame->threads);
    if (t < frame->first_logit) continue;
    float *row = frame->logits + (int64_t)(t - frame->first_logit) * VOCAB;
    for (int32_t v = frame->thread; v < VOCAB; v += frame->threads) {
      uint64_t value = frame->weights[v];
      for (int32_t i = 0; i < LANES; i++) value = mix(value + lanes[i] + (uint64_t)v);
      row[v] = (float)(value >> 40) * 0x1p-21f - 4.0f;
    }
  }
}

const slm_program slm_this_program = {
    .abi = ABI,
    .name = "stand-in",
    .vocab = VOCAB,
    .context = CONTEXT,
    .chunk = 8,
    .weights_bytes = WEIGHTS_BYTES,
    .state_bytes = STATE_BYTES,
    .arena_bytes = LANES * sizeof(uint64_t),
    .weights_hash = WEIGHTS_HASH,
    .cpu_features = FEATURES,
    .target = "cpu:isa=test",
    .step = step,
};
