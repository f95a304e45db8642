/* Prints the ids that a model continues a prompt with, greedily:  generate ARTIFACT COUNT ID...
 * Build it with  cc generate.c $(pkg-config --cflags --libs ARTIFACT/NAME.pc) -o generate */
#include <stdio.h>
#include <stdlib.h>

#include "slm.h"

static int print(void *user, int32_t id) {
  (void)user;
  return printf("%d\n", (int)id) < 0;
}

int main(int argc, char **argv) {
  if (argc < 4 || argc > 1027) return 2;
  int32_t count = argc - 3, ids[1024], made = -1;
  for (int32_t i = 0; i < count; i++) ids[i] = atoi(argv[3 + i]);

  slm_model *model = slm_open(argv[1]);
  slm_session *session = model ? slm_session_open(model, 0) : NULL;
  slm_sampling greedy = slm_sampling_default();
  if (session) made = slm_generate(session, ids, count, &greedy, atoi(argv[2]), -1, print, NULL);
  if (made < 0) fprintf(stderr, "generate: %s\n", slm_last_error());
  slm_session_close(session);
  slm_close(model);
  return made < 0;
}
