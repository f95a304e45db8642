/* The last error of each thread. */
#include <stdarg.h>
#include <stdio.h>

#include "runtime.h"

static _Thread_local char message[1024];

int32_t slm_fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return -1;
}

const char *slm_last_error(void) { return message; }

uint32_t slm_abi_version(void) { return SLM_ABI_VERSION; }
