/* Choosing a token.
 *
 * The vocabulary may have 150,000 tokens and the filters keep a few, so nothing is sorted: one pass collects the candidates
 * that the filters could keep, a heap gives them in order until the filters have had enough. Ties go to the lower id
 * throughout, so that a choice depends on no order of work. */
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
static int after(slm_candidate a, slm_candidate b) { return before(b, a); }

/* Sinks heap[at] to its place in a heap that has the first of an order on top. */
static void sink(slm_candidate *heap, int32_t size, int32_t at, int (*precedes)(slm_candidate, slm_candidate)) {
  slm_candidate moved = heap[at];
  for (;;) {
    int64_t child = 2 * (int64_t)at + 1;
    if (child >= size) break;
    if (child + 1 < size && precedes(heap[child + 1], heap[child])) child++;
    if (!precedes(heap[child], moved)) break;
    heap[at] = heap[child];
    at = (int32_t)child;
  }
  heap[at] = moved;
}

static void make_heap(slm_candidate *heap, int32_t size, int (*precedes)(slm_candidate, slm_candidate)) {
  for (int32_t i = size / 2 - 1; i >= 0; i--) sink(heap, size, i, precedes);
}

/* What one choice works with. */
typedef struct choice {
  const slm_sampler *sampler;
  const slm_sampling *sampling;
  const float *logits;
  float largest; /* penalised logit */
} choice;

/* The penalised logit of a token. */
static float penalise(const choice *c, int32_t id) {
  float logit = c->logits[id], penalty = c->sampling->repetition_penalty;
  if (penalty == 1.0f || !c->sampler->seen[id]) return logit;
  return logit > 0.0f ? logit / penalty : logit * penalty;
}

/* The probability of a logit, relative to the most likely token's. */
static double weigh(const choice *c, float logit) {
  return exp(((double)logit - (double)c->largest) / (double)c->sampling->temperature);
}

/* Finds the most likely token and its logit; -1 with an error on bad logits. */
static int32_t find_best(choice *c) {
  int32_t best = -1;
  c->largest = -INFINITY;
  for (int32_t i = 0; i < c->sampler->vocab; i++) {
    float logit = penalise(c, i);
    if (logit <= c->largest) continue; /* false for what is not a number too */
    if (isnan(logit)) return slm_fail("the logit of token %d is not a number", (int)i);
    c->largest = logit;
    best = i;
  }
  if (!isfinite(c->largest)) return slm_fail("the largest logit is %g, of token %d", (double)c->largest, (int)best);
  return best;
}

/* Collects the `limit` most likely tokens, in no order. */
static void collect_top(const choice *c, int32_t limit) {
  slm_candidate *heap = c->sampler->candidates; /* the least likely on top */
  for (int32_t i = 0; i < limit; i++) heap[i] = (slm_candidate){penalise(c, i), i};
  make_heap(heap, limit, after);
  for (int32_t i = limit; i < c->sampler->vocab; i++) {
    slm_candidate next = {penalise(c, i), i};
    if (!before(next, heap[0])) continue;
    heap[0] = next;
    sink(heap, limit, 0, after);
  }
}

/* Collects every token that top_p and min_p may keep; returns how many. Tokens lighter than their even share of what top_p
 * leaves out weigh less than that together, so top_p is reached without them. */
static int32_t collect_heavy(const choice *c, double *total) {
  int32_t vocab = c->sampler->vocab, count = 0;
  double least = (double)c->sampling->min_p;
  *total = 0.0;
  if (c->sampling->top_p < 1.0f) {
    for (int32_t i = 0; i < vocab; i++) *total += weigh(c, penalise(c, i));
    double share = (1.0 - (double)c->sampling->top_p) * *total / vocab;
    if (share > least) least = share;
  }
  /* The comparison is done on logits, a little below the exact value: what is too light is dropped later. */
  double lowest = (double)c->largest + (double)c->sampling->temperature * (log(least) - 1e-3);
  for (int32_t i = 0; i < vocab; i++) {
    float logit = penalise(c, i);
    if ((double)logit >= lowest) c->sampler->candidates[count++] = (slm_candidate){logit, i};
  }
  return count;
}

/* Chooses among all tokens: sums weights by blocks, then walks the block that holds the target. */
static int32_t choose_among_all(const choice *c, double uniform) {
  enum { BLOCKS = 256 };
  double sums[BLOCKS] = {0.0}, total = 0.0;
  int32_t vocab = c->sampler->vocab, size = vocab / BLOCKS + 1, chosen = -1, block = 0;
  for (int32_t start = 0; start < vocab; start += size, block++) {
    int32_t end = vocab - start < size ? vocab : start + size;
    for (int32_t i = start; i < end; i++) sums[block] += weigh(c, penalise(c, i));
    total += sums[block];
  }
  double target = uniform * total;
  int32_t last = block - 1;
  for (block = 0; block < last && sums[block] <= target; block++) target -= sums[block];
  for (int32_t i = block * size; i < vocab; i++) {
    double weight = weigh(c, penalise(c, i));
    if (weight > 0.0) chosen = i; /* rounding may leave the target unreached: the last one then */
    target -= weight;
    if (target < 0.0 && chosen >= 0) break;
  }
  return chosen;
}

/* Chooses among what the filters keep. top_p is a share of the weight that top_k left. */
static int32_t choose_filtered(const choice *c, double uniform) {
  const slm_sampling *s = c->sampling;
  slm_candidate *heap = c->sampler->candidates;
  int32_t vocab = c->sampler->vocab, count, kept = 0;
  double total = 0.0, sum = 0.0, walked = 0.0;
  if (s->top_k > 0 && s->top_k < vocab) {
    collect_top(c, count = s->top_k);
    for (int32_t i = 0; i < count; i++) total += weigh(c, heap[i].logit);
  } else {
    count = collect_heavy(c, &total);
  }
  make_heap(heap, count, before);
  double enough = s->top_p < 1.0f ? (double)s->top_p * total : INFINITY;
  while (kept < count && sum < enough) { /* moves the most likely to the end of what is left */
    double weight = weigh(c, heap[0].logit);
    if (kept > 0 && (weight < (double)s->min_p || weight == 0.0)) break;
    slm_candidate top = heap[0];
    heap[0] = heap[count - 1 - kept];
    heap[count - 1 - kept] = top;
    kept++;
    sink(heap, count - kept, 0, before);
    sum += weight;
  }
  int32_t i = 0;
  for (; i < kept - 1; i++) {
    walked += weigh(c, heap[count - 1 - i].logit);
    if (walked > uniform * sum) break;
  }
  return heap[count - 1 - i].id;
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
  choice c = {.sampler = sampler, .sampling = sampling, .logits = logits};
  int32_t best = find_best(&c);
  if (best < 0 || sampling->temperature == 0.0f) return best;
  if (!sampler->seeded || sampler->seed != sampling->seed) seed_random(sampler, sampling->seed);
  double uniform = draw(sampler);
  int filtered = (sampling->top_k > 0 && sampling->top_k < sampler->vocab) || sampling->top_p < 1.0f || sampling->min_p > 0.0f;
  return filtered ? choose_filtered(&c, uniform) : choose_among_all(&c, uniform);
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
