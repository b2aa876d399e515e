#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# bench.sh BUILD_FOLDER [OPTION...]: runs every benchmark of the library alone, one after another, with its opponents and the
# machine's peaks interleaved, then `int8q quantize` of a checkpoint of 2 GB; raw results are kept in BUILD_FOLDER/bench. Options
# go to each of the former, as --isa avx2.
set -euo pipefail

build=$1
shift
mkdir -p "$build/bench"
library=$build/lib/libint8q.so.1
found=0
for bench in "$build"/bin/bench_*; do
  [ -x "$bench" ] || continue
  found=1
  "$bench" --benchmark_enable_random_interleaving=true --benchmark_repetitions=9 --benchmark_min_time=0.05 \
    --benchmark_display_aggregates_only=true --benchmark_counters_tabular=true \
    --benchmark_out_format=json --benchmark_out="$build/bench/$(basename "$bench").json" \
    --benchmark_context=library_sha256="$(sha256sum <"$library" | cut -d ' ' -f 1)" "$@" \
    >"$build/bench/$(basename "$bench").log"
done
if [ $found -eq 0 ]; then
  echo "bench.sh: no bench_* in $build/bin; are Google Benchmark (libbenchmark-dev) installed, INT8Q_BUILD_BENCH and" \
    "INT8Q_BUILD_TESTS on?" >&2
  exit 1
fi
/usr/bin/python3 "$(dirname "$0")/../../bench/checkpoint.py" --command "$build/bin/int8q" --library "$library" --folder "$build" \
  --json "$build/bench/checkpoint.json"
