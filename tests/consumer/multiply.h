/* SPDX-License-Identifier: Apache-2.0
 *
 * What every consumer does: a linear layer whose result is known by hand, through the C ABI. */
#ifndef MULTIPLY_H_
#define MULTIPLY_H_

#include <int8q/int8q.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Y = X . W^T with rows that quantize without loss: every entry is a multiple of its row's absmax / 127. */
static int multiply(void) {
  static float w[2][2] = {{127.0f, 1.0f}, {-127.0f, 64.0f}};
  static float x[1][2] = {{1.27f, 0.01f}};
  static const float expected[2] = {161.3f, -160.65f};
  float y[2] = {0.0f, 0.0f};
  const int8q_matrix weight = {sizeof weight, INT8Q_F32, 2, 2, 2, w};
  const int8q_matrix input = {sizeof input, INT8Q_F32, 1, 2, 2, x};
  const int8q_matrix output = {sizeof output, INT8Q_F32, 1, 2, 2, y};
  int8q_context* context = NULL;
  int8q_linear* linear = NULL;
  uint64_t bytes = 0;
  void* workspace = NULL;
  int good = int8q_create_context(NULL, &context) == INT8Q_OK &&
             int8q_create_linear(context, &weight, NULL, NULL, NULL, &linear) == INT8Q_OK &&
             int8q_query_workspace(context, linear, INT8Q_FORWARD, 1, 0, &bytes) == INT8Q_OK &&
             posix_memalign(&workspace, 64, bytes + 64) == 0 &&
             int8q_forward(context, linear, &input, 0, &output, workspace, bytes) == INT8Q_OK;
  if (!good) fprintf(stderr, "%s\n", int8q_last_error());
  free(workspace);
  if (linear != NULL) int8q_destroy_linear(linear);
  if (context != NULL) int8q_destroy_context(context);
  if (good) printf("%s: %g %g\n", int8q_version_string(), (double)y[0], (double)y[1]);
  return good && fabsf(y[0] - expected[0]) < 1e-3f && fabsf(y[1] - expected[1]) < 1e-3f;
}

#endif
