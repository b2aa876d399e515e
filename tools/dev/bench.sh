#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# bench.sh BUILD_FOLDER [OPTION...]: runs every benchmark of the library alone, one after another, with its opponents and the
# machine's peaks interleaved, then the linear layers of models, then `int8q quantize` of a checkpoint of 2 GB; raw results are
# kept in BUILD_FOLDER/bench. Options go to each of the benchmarks, as --isa avx2.
set -euo pipefail

build=$1
shift
mkdir -p "$build/bench"
library=$build/lib/libint8q.so.1
sha256=$(sha256sum <"$library" | cut -d ' ' -f 1)

measure() { # BENCH NAME_OF_THE_RESULTS OPTION...
  local bench=$1 results=$build/bench/$2
  shift 2
  "$bench" --benchmark_display_aggregates_only=true --benchmark_counters_tabular=true --benchmark_out_format=json \
    --benchmark_out="$results.json" --benchmark_context=library_sha256="$sha256" "$@" >"$results.log"
}

found=0
for bench in "$build"/bin/bench_*; do
  [ -x "$bench" ] || continue
  found=1
  measure "$bench" "$(basename "$bench")" --benchmark_enable_random_interleaving=true --benchmark_repetitions=9 \
    --benchmark_min_time=0.05 "$@"
done
if [ $found -eq 0 ]; then
  echo "bench.sh: no bench_* in $build/bin; are Google Benchmark (libbenchmark-dev) installed, INT8Q_BUILD_BENCH and" \
    "INT8Q_BUILD_TESTS on?" >&2
  exit 1
fi
# Layers in turn, since together they are larger than the memory: a layer's rows follow each other.
measure "$build/bin/bench_linear" bench_layers --all-shapes --threads 2 --benchmark_repetitions=3 --benchmark_min_time=0.01 \
  --benchmark_filter='^(linear|gemm)/[^/]*/K:[0-9]*/N:[0-9]*/M:[0-9]*/T:2(/dtype:bf16)?/real_time$' "$@"
/usr/bin/python3 "$(dirname "$0")/../../bench/checkpoint.py" --command "$build/bin/int8q" --library "$library" --folder "$build" \
  --json "$build/bench/checkpoint.json"
