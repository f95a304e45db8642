/* Reads `bytes` with `threads` threads, `rounds` times, and prints the best rate in bytes per second. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

typedef struct { const uint64_t *data; size_t count; uint64_t sum; } part;

enum { STREAMS = 4, LINE = 8 }; /* one stream alone does not keep the memory busy */

static void *read_part(void *argument) {
  part *p = argument;
  size_t length = p->count / STREAMS / LINE * LINE;
  uint64_t sums[STREAMS][LINE] = {{0}}, sum = 0;
  for (size_t i = 0; i < length; i += LINE)
    for (size_t stream = 0; stream < STREAMS; stream++) {
      const uint64_t *line = p->data + stream * length + i;
      __builtin_prefetch(line + 512, 0, 3);
      for (size_t j = 0; j < LINE; j++) sums[stream][j] += line[j];
    }
  for (size_t stream = 0; stream < STREAMS; stream++)
    for (size_t j = 0; j < LINE; j++) sum += sums[stream][j];
  p->sum = sum;
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
  uint64_t *data = mmap(NULL, count * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), sum = 0;
  if (data == MAP_FAILED) return 1;
  madvise(data, count * 8, MADV_HUGEPAGE);
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
  munmap(data, count * 8);
  return 0;
}
