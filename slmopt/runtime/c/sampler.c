/* Choosing a token.
 *
 * The filters need tokens in order of likelihood, mostly a few of many: the candidates form a heap (linear in the vocabulary)
 * and are popped until the filters have had enough. Ties go to the lower id throughout, so a choice never depends on a sort. */
#include <math.h>
#include <string.h>

#include "runtime.h"

static uint64_t rotate_left(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

/* splitmix64 (Steele, Lea, Flood 2014) spreads the seed over the state. */
static void seed_random(slm_sampler *sampler, uint64_t seed) {
  sampler->seed = seed;
  sampler->seeded = 1;
  for (int i = 0; i < 4; i++) {
    uint64_t z = seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    sampler->random[i] = z ^ z >> 31;
  }
}

/* xoshiro256** (Blackman, Vigna 2018), as a number in [0, 1). */
static double draw(slm_sampler *sampler) {
  uint64_t *s = sampler->random;
  uint64_t result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = rotate_left(s[3], 45);
  return (double)(result >> 11) * 0x1p-53;
}

static int before(slm_candidate a, slm_candidate b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

static void sift_down(slm_candidate *heap, int32_t size, int32_t at) {
  slm_candidate moved = heap[at];
  for (;;) {
    int64_t child = 2 * (int64_t)at + 1;
    if (child >= size) break;
    if (child + 1 < size && before(heap[child + 1], heap[child])) child++;
    if (!before(heap[child], moved)) break;
    heap[at] = heap[child];
    at = (int32_t)child;
  }
  heap[at] = moved;
}

/* Moves the most likely of heap[size] to its end. */
static void pop(slm_candidate *heap, int32_t size) {
  slm_candidate top = heap[0];
  heap[0] = heap[size - 1];
  heap[size - 1] = top;
  sift_down(heap, size - 1, 0);
}

/* Fills the candidates with penalised logits and returns the index of the most likely one; -1 with an error on bad logits. */
static int32_t fill_candidates(slm_sampler *sampler, const float *logits, float penalty) {
  int32_t best = 0;
  for (int32_t i = 0; i < sampler->vocab; i++) {
    float logit = logits[i];
    if (isnan(logit)) return slm_fail("the logit of token %d is not a number", (int)i);
    if (penalty != 1.0f && sampler->seen[i]) logit = logit > 0.0f ? logit / penalty : logit * penalty;
    sampler->candidates[i] = (slm_candidate){logit, i};
    if (logit > sampler->candidates[best].logit) best = i;
  }
  if (!isfinite(sampler->candidates[best].logit))
    return slm_fail("the largest logit is %g, of token %d", (double)sampler->candidates[best].logit, (int)best);
  return best;
}

static double weigh(slm_candidate candidate, float largest, float temperature) {
  return exp(((double)candidate.logit - (double)largest) / (double)temperature);
}

/* Pops what the filters keep to the end of candidates[vocab], most likely last; returns how many, and the sum of their weights.
 * top_p is a share of the weight that top_k left. */
static int32_t filter(slm_sampler *sampler, const slm_sampling *sampling, float largest, double *kept_weight) {
  slm_candidate *heap = sampler->candidates;
  int32_t vocab = sampler->vocab, limit = sampling->top_k > 0 && sampling->top_k < vocab ? sampling->top_k : vocab;
  for (int32_t i = vocab / 2 - 1; i >= 0; i--) sift_down(heap, vocab, i);
  int32_t popped = 0;
  double total = 0.0;
  if (limit < vocab) {
    for (; popped < limit; popped++) {
      pop(heap, vocab - popped);
      total += weigh(heap[vocab - 1 - popped], largest, sampling->temperature);
    }
  } else if (sampling->top_p < 1.0f) {
    for (int32_t i = 0; i < vocab; i++) total += weigh(heap[i], largest, sampling->temperature);
  }
  double enough = sampling->top_p < 1.0f ? (double)sampling->top_p * total : INFINITY, sum = 0.0;
  int32_t kept = 0;
  while (kept < limit && sum < enough) {
    if (kept == popped) pop(heap, vocab - popped++);
    double weight = weigh(heap[vocab - 1 - kept], largest, sampling->temperature);
    if (kept > 0 && weight < (double)sampling->min_p) break;
    sum += weight;
    kept++;
  }
  *kept_weight = sum;
  return kept;
}

/* Walks candidates from `at` in steps of `stride` until `target` of their weight is behind. */
static int32_t pick(const slm_sampler *sampler, int32_t at, int32_t stride, int32_t count, double target, float largest,
                    float temperature) {
  int32_t chosen = -1;
  double sum = 0.0;
  for (int32_t i = 0; i < count; i++, at += stride) {
    double weight = weigh(sampler->candidates[at], largest, temperature);
    if (weight > 0.0) chosen = sampler->candidates[at].id; /* rounding may leave the target unreached: the last one then */
    sum += weight;
    if (sum > target) break;
  }
  return chosen;
}

int32_t slm_check_sampling(const slm_sampling *s) {
  if (!(isfinite(s->temperature) && s->temperature >= 0.0f))
    return slm_fail("temperature is %g; it must be 0 (greedy) or more", (double)s->temperature);
  if (s->top_k < 0) return slm_fail("top_k is %d; it must be 0 (all tokens) or more", (int)s->top_k);
  if (!(s->top_p > 0.0f && s->top_p <= 1.0f)) return slm_fail("top_p is %g; it must lie in (0, 1]", (double)s->top_p);
  if (!(s->min_p >= 0.0f && s->min_p <= 1.0f)) return slm_fail("min_p is %g; it must lie in [0, 1]", (double)s->min_p);
  if (!(isfinite(s->repetition_penalty) && s->repetition_penalty > 0.0f))
    return slm_fail("repetition_penalty is %g; it must be above 0", (double)s->repetition_penalty);
  return 0;
}

int32_t slm_choose(slm_sampler *sampler, const float *logits, const slm_sampling *sampling) {
  int32_t best = fill_candidates(sampler, logits, sampling->repetition_penalty);
  if (best < 0 || sampling->temperature == 0.0f) return best;
  if (!sampler->seeded || sampler->seed != sampling->seed) seed_random(sampler, sampling->seed);
  float largest = sampler->candidates[best].logit, temperature = sampling->temperature;
  double uniform = draw(sampler), weight = 0.0;
  int32_t vocab = sampler->vocab;
  if (sampling->top_k == 0 && sampling->top_p >= 1.0f && sampling->min_p <= 0.0f) {
    for (int32_t i = 0; i < vocab; i++) weight += weigh(sampler->candidates[i], largest, temperature);
    return pick(sampler, 0, 1, vocab, uniform * weight, largest, temperature);
  }
  int32_t kept = filter(sampler, sampling, largest, &weight);
  return pick(sampler, vocab - 1, -1, kept, uniform * weight, largest, temperature);
}

slm_sampling slm_sampling_default(void) {
  return (slm_sampling){.temperature = 0.0f, .top_k = 0, .top_p = 1.0f, .min_p = 0.0f, .repetition_penalty = 1.0f, .seed = 0};
}

int32_t slm_sample(slm_session *session, const float *logits, const slm_sampling *sampling) {
  slm_sampling chosen = sampling != NULL ? *sampling : slm_sampling_default();
  if (logits == NULL) return slm_fail("slm_sample: logits is NULL");
  if (slm_check_sampling(&chosen) != 0 || slm_session_enter(session) != 0) return -1;
  int32_t id = slm_choose(&session->sampler, logits, &chosen);
  slm_session_leave(session);
  return id;
}
