/* SPDX-License-Identifier: Apache-2.0 */
#include "../multiply.h"

int main(void) { return multiply() ? 0 : 1; }
