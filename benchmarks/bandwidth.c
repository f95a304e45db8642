/* Reads `bytes` with `threads` threads, `rounds` times, and prints the best rate in bytes per second. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct { const uint64_t *data; size_t count; uint64_t sum; } part;

static void *read_part(void *argument) {
  part *p = argument;
  uint64_t a = 0, b = 0, c = 0, d = 0;
  for (size_t i = 0; i + 32 <= p->count; i += 32)
    for (size_t j = 0; j < 32; j += 4) {
      a += p->data[i + j], b += p->data[i + j + 1], c += p->data[i + j + 2], d += p->data[i + j + 3];
    }
  p->sum = a + b + c + d;
  return NULL;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  size_t count = strtoull(argv[1], NULL, 10) / 8;
  int threads = atoi(argv[2]), rounds = atoi(argv[3]);
  if (threads < 1 || threads > 64 || rounds < 1) return 2;
  uint64_t *data = malloc(count * 8), sum = 0;
  if (!data) return 1;
  for (size_t i = 0; i < count; i++) data[i] = i;
  double best = 0;
  for (int round = 0; round < rounds; round++) {
    pthread_t workers[64];
    part parts[64];
    double start = now();
    for (int i = 0; i < threads; i++) {
      parts[i] = (part){data + count / (size_t)threads * (size_t)i, count / (size_t)threads, 0};
      if (pthread_create(&workers[i], NULL, read_part, &parts[i])) return 1;
    }
    for (int i = 0; i < threads; i++) pthread_join(workers[i], NULL), sum += parts[i].sum;
    double rate = (double)(count * 8) / (now() - start);
    if (rate > best) best = rate;
  }
  printf("%.0f %llu\n", best, (unsigned long long)(sum & 1));
  free(data);
  return 0;
}
