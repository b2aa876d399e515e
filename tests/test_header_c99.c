/* SPDX-License-Identifier: Apache-2.0
 *
 * int8q.h from C99 with every warning an error, first in the file, and one layer through the shared library. */
#include "int8q/int8q.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define CHECK(holds)                                                                      \
  do {                                                                                    \
    if (!(holds)) {                                                                       \
      ++failures;                                                                         \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #holds, int8q_last_error()); \
    }                                                                                     \
  } while (0)

/* The layout of level 1.0 on LP64: sizes that no later level may shrink or shift. */
typedef char matrix_is_40_bytes[sizeof(int8q_matrix) == 40 ? 1 : -1];
typedef char allocator_is_32_bytes[sizeof(int8q_allocator) == 32 ? 1 : -1];
typedef char runner_is_24_bytes[sizeof(int8q_parallel_runner) == 24 ? 1 : -1];
typedef char context_options_are_48_bytes[sizeof(int8q_context_options) == 48 ? 1 : -1];
typedef char linear_options_are_40_bytes[sizeof(int8q_linear_options) == 40 ? 1 : -1];
typedef char linear_info_is_48_bytes[sizeof(int8q_linear_info) == 48 ? 1 : -1];
typedef char tensor_is_48_bytes[sizeof(int8q_tensor) == 48 ? 1 : -1];

static int8q_matrix matrix(int32_t dtype, int64_t rows, int64_t cols, void* data) {
  int8q_matrix m;
  m.size = sizeof m;
  m.dtype = dtype;
  m.rows = rows;
  m.cols = cols;
  m.row_stride = cols;
  m.data = data;
  return m;
}

static void check_layer(int8q_context* context) {
  enum { M = 3, N = 5, K = 8 };
  float w[N * K], x[M * K], bias[N], y[M * N];
  int8q_matrix wm = matrix(INT8Q_F32, N, K, w), xm = matrix(INT8Q_F32, M, K, x), bm = matrix(INT8Q_F32, 1, N, bias);
  int8q_matrix ym = matrix(INT8Q_F32, M, N, y);
  int8q_linear* linear = NULL;
  int8q_linear_info info;
  uint64_t bytes = 0;
  char* memory;
  void* workspace;
  int i, j, k;
  for (i = 0; i < N * K; ++i) w[i] = (float)(i % 7 - 3) / 4;
  for (i = 0; i < M * K; ++i) x[i] = (float)(i % 11 - 5) / 2;
  for (i = 0; i < N; ++i) bias[i] = (float)i;
  CHECK(int8q_create_linear(context, &wm, NULL, &bm, NULL, &linear) == INT8Q_OK);
  memset(&info, 0, sizeof info);
  info.size = sizeof info;
  CHECK(int8q_describe_linear(linear, &info) == INT8Q_OK);
  CHECK(info.out_features == N && info.in_features == K && info.has_bias == 1 && info.threshold == 6.0f);
  CHECK(int8q_query_workspace(context, linear, INT8Q_FORWARD, M, 0, &bytes) == INT8Q_OK);
  memory = malloc((size_t)bytes + 64);
  if (memory == NULL) {
    ++failures;
    return;
  }
  workspace = memory + (64 - (uintptr_t)memory % 64) % 64;
  CHECK(int8q_forward(context, linear, &xm, 0, &ym, workspace, bytes) == INT8Q_OK);
  for (i = 0; i < M; ++i) {
    for (j = 0; j < N; ++j) {
      /* each operand is off by at most half a step: absmax / 254 of w and of x, over K products */
      double exact = bias[j], slack = 0;
      for (k = 0; k < K; ++k) {
        exact += (double)x[i * K + k] * w[j * K + k];
        slack +=
            (double)fabsf(x[i * K + k]) * 0.75 / 254 + (double)fabsf(w[j * K + k]) * 2.5 / 254 + 0.75 / 254 * 2.5 / 254;
      }
      CHECK(fabs(y[i * N + j] - exact) <= slack + 1e-5);
    }
  }
  free(memory);
  CHECK(int8q_destroy_linear(linear) == INT8Q_OK);
}

int main(void) {
  int8q_context* context = NULL;
  int8q_context_options options;
  uint32_t got = 0;
  CHECK(int8q_negotiate(INT8Q_ABI_LEVEL, &got) == INT8Q_OK);
  CHECK(got == int8q_abi_version());
  CHECK(int8q_abi_hash(INT8Q_ABI_LEVEL) != NULL);
  CHECK(strcmp(int8q_status_name(INT8Q_BUSY), "INT8Q_BUSY") == 0);
  CHECK(strncmp(int8q_version_string(), "int8q ", 6) == 0);
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.threads = 2;
  CHECK(int8q_create_context(&options, &context) == INT8Q_OK);
  check_layer(context);
  CHECK(int8q_destroy_context(context) == INT8Q_OK);
  CHECK(int8q_destroy_context(NULL) == INT8Q_INVALID_HANDLE);
  CHECK(int8q_last_error()[0] != '\0');
  if (failures == 0) printf("int8q.h from C99: ok\n");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
