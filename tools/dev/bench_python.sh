#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# bench_python.sh BUILD_FOLDER (from the root of the sources): bench/compare_python.py in .venvs/current (6 GB), with
# everything that this machine runs and then with all contenders on AVX2, on two threads and on one; results are kept in
# BUILD_FOLDER/bench. Some ten minutes.
set -euo pipefail
build=$1
cd "$(dirname "$0")/../.."

tools/dev/env.sh current

mkdir -p "$build/bench"
compare() { # NAME ARGUMENTS...
  local name=$1
  shift
  .venvs/current/bin/python bench/compare_python.py --library "$build/lib/libint8q.so.1" --json "$build/bench/compare_$name.json" "$@" \
    2>"$build/bench/compare_$name.log" || { tail -n 20 "$build/bench/compare_$name.log" >&2 && exit 1; }
}

compare native_2threads --shapes 4096x4096 768x768 --rotated 4096x4096 --backward 4096x4096
compare avx2_2threads --isa avx2 --shapes 4096x4096 768x768 --rotated 4096x4096 --backward 4096x4096
compare native_2threads_wide --shapes 4096x14336 --rows 1 128
compare native_1thread --threads 1 --rows 1 128
compare avx2_1thread --threads 1 --rows 1 128 --isa avx2
