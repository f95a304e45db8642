/* The search for the best scale of each group of weights; the reference is rounding.py, equal to the last bit.
 *
 * Groups are columns: x[j * count + g] is element j of group g, so that a vector register holds one element of several
 * groups and sums run over j in order. Candidate c for group g is scale[c * count + g], minimum[c * count + g].
 *
 * codes[g * group + j] = clamp(rint((x - minimum) / scale)), for the candidate of least squared error. */
#include <math.h>
#include <stdint.h>

enum { TILE = 16 }; /* groups at a time */

static inline float code(float x, float inverse, float low, float high) {
  float q = rintf(x * inverse);
  q = q < low ? low : q;
  return q > high ? high : q;
}

/* One tile of `width` groups; `best[t]` becomes the index of the best candidate, -1 where none is a number. */
static inline __attribute__((always_inline)) void search(
    const float *x, int64_t count, const float *scale, const float *minimum, int32_t candidates, float low, float high,
    int32_t elements, int32_t *best, int32_t width) {
  float smallest[TILE];
  for (int32_t t = 0; t < width; t++) smallest[t] = INFINITY, best[t] = -1;
  for (int32_t c = 0; c < candidates; c++) {
    float error[TILE] = {0}, inverse[TILE], step[TILE], least[TILE];
    for (int32_t t = 0; t < width; t++) {
      step[t] = scale[c * count + t];
      least[t] = minimum ? minimum[c * count + t] : 0.0f;
      inverse[t] = step[t] == 0.0f ? 0.0f : 1.0f / step[t];
    }
    for (int32_t j = 0; j < elements; j++)
      for (int32_t t = 0; t < width; t++) {
        float shifted = x[j * count + t] - least[t];
        float difference = code(shifted, inverse[t], low, high) * step[t] - shifted;
        error[t] += difference * difference;
      }
    for (int32_t t = 0; t < width; t++) {
      int better = error[t] < smallest[t];
      best[t] = better ? c : best[t];
      smallest[t] = better ? error[t] : smallest[t];
    }
  }
}

/* Of every `period`-th group only the first `last` elements count, the others fill it up. */
void round_groups(
    const float *x, int64_t count, int32_t group, const float *scale, const float *minimum, int32_t candidates,
    float low, float high, int32_t last, int32_t period, float *chosen_scale, float *chosen_minimum, uint8_t *codes) {
  for (int64_t start = 0; start < count; start += TILE) {
    int32_t width = count - start < TILE ? (int32_t)(count - start) : TILE, best[TILE];
    if (width == TILE && (last == group || !minimum)) { /* symmetric groups are filled with zeros, which have no error */
      search(x + start, count, scale + start, minimum ? minimum + start : 0, candidates, low, high, group, best, TILE);
    } else {
      for (int32_t t = 0; t < width; t++) {
        int64_t g = start + t;
        int32_t elements = g % period == period - 1 ? last : group;
        search(x + g, count, scale + g, minimum ? minimum + g : 0, candidates, low, high, elements, best + t, 1);
      }
    }
    for (int32_t t = 0; t < width; t++) {
      int64_t g = start + t, at = best[t] * count + g;
      float step = best[t] < 0 ? 0.0f : scale[at], least = best[t] < 0 || !minimum ? 0.0f : minimum[at];
      float inverse = step == 0.0f ? 0.0f : 1.0f / step;
      chosen_scale[g] = step;
      if (chosen_minimum) chosen_minimum[g] = least;
      for (int32_t j = 0; j < group; j++)
        codes[g * group + j] = (uint8_t)(int32_t)code(x[j * count + g] - least, inverse, low, high);
    }
  }
}
