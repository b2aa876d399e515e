#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# headers.sh INCLUDE_FOLDER CC CXX: each public header compiles alone, as strictly as a user may ask.
set -euo pipefail
include=$1 cc=$2 cxx=$3

warnings=(-Wall -Wextra -Wconversion -Wshadow -pedantic-errors -Werror -fsyntax-only -I "$include")
"$cc" -std=c99 -Wstrict-prototypes -Wc++-compat -Wpadded "${warnings[@]}" -x c "$include/int8q/int8q.h"
for standard in c++11 c++17 c++20; do
  "$cxx" -std=$standard "${warnings[@]}" -x c++ "$include/int8q/int8q.h"
done
for standard in c++17 c++20; do
  for loader in "" -DINT8Q_HPP_DLOPEN; do
    for exceptions in "" "-fno-exceptions -DINT8Q_NO_EXCEPTIONS"; do
      # shellcheck disable=SC2086 # both may be empty, or two words
      "$cxx" -std=$standard $loader $exceptions "${warnings[@]}" -x c++ "$include/int8q/int8q.hpp"
    done
  done
done
