#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# bench.sh BUILD_FOLDER: runs every benchmark alone, one after another; raw results are kept in BUILD_FOLDER/bench.
set -euo pipefail

results=$1/bench
mkdir -p "$results"
found=0
for bench in "$1"/bin/bench_*; do
  [ -x "$bench" ] || continue
  found=1
  "$bench" --benchmark_out_format=json --benchmark_out="$results/$(basename "$bench").json" --benchmark_counters_tabular=true
done
if [ $found -eq 0 ]; then
  echo "bench.sh: no bench_* in $1/bin; is Google Benchmark (libbenchmark-dev) installed, and INT8Q_BUILD_BENCH on?" >&2
  exit 1
fi
