/* SPDX-License-Identifier: Apache-2.0
 *
 * reload LIBRARY: 1000 rounds of dlopen, a context with threads, dlclose leave no thread, file or mapping behind. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "int8q/int8q.h"

static int entries(const char* folder) {
  DIR* dir = opendir(folder);
  int count = 0;
  if (dir == NULL) return -1;
  while (readdir(dir) != NULL) ++count;
  closedir(dir);
  return count;
}

static int mappings(void) {
  FILE* file = fopen("/proc/self/maps", "r");
  int count = 0, c;
  if (file == NULL) return -1;
  while ((c = fgetc(file)) != EOF) count += c == '\n';
  fclose(file);
  return count;
}

/* ISO C has no conversion from void* to a function pointer. */
static int load(void* library, const char* name, void* function) {
  void* symbol = dlsym(library, name);
  if (symbol == NULL) return fprintf(stderr, "%s\n", dlerror()), 0;
  memcpy(function, &symbol, sizeof symbol);
  return 1;
}

static int round_trip(const char* path) {
  int32_t (*create)(const int8q_context_options*, int8q_context**);
  int32_t (*prepare)(int8q_context*);
  int32_t (*destroy)(int8q_context*);
  int8q_context_options options;
  int8q_context* context;
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return fprintf(stderr, "%s\n", dlerror()), 0;
  if (!load(library, "int8q_create_context", &create) || !load(library, "int8q_prepare_context", &prepare) ||
      !load(library, "int8q_destroy_context", &destroy)) {
    return 0;
  }
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.threads = 2;
  if (create(&options, &context) != INT8Q_OK || prepare(context) != INT8Q_OK || destroy(context) != INT8Q_OK) {
    return fprintf(stderr, "a context could not be made, prepared or destroyed\n"), 0;
  }
  return dlclose(library) == 0;
}

int main(int argc, char** argv) {
  int i, tasks = 0, files = 0, maps = 0;
  if (argc != 2) return 2;
  for (i = 0; i < 1000; ++i) {
    if (i == 100) { /* malloc's arenas and cached thread stacks have settled */
      tasks = entries("/proc/self/task");
      files = entries("/proc/self/fd");
      maps = mappings();
    }
    if (!round_trip(argv[1])) return fprintf(stderr, "round %d failed\n", i), 1;
  }
  printf("tasks %d -> %d, files %d -> %d, mappings %d -> %d\n", tasks, entries("/proc/self/task"), files,
         entries("/proc/self/fd"), maps, mappings());
  return entries("/proc/self/task") != tasks || entries("/proc/self/fd") != files || mappings() > maps;
}
