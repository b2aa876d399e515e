#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# bench_python.sh BUILD_FOLDER (from the root of the sources): bench/compare_python.py in an environment of its own (6 GB), with everything that this
# machine runs and then with all opponents on AVX2; results are kept in BUILD_FOLDER/bench.
set -euo pipefail
build=$1
cd "$(dirname "$0")/../.."

venv=build/venv-bench
stamp=$venv/$(sha256sum <bench/requirements.txt | cut -c1-16).installed
[ -x $venv/bin/python ] || /usr/bin/python3 -m venv $venv
if [ ! -e "$stamp" ]; then
  $venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: -r bench/requirements.txt
  touch "$stamp"
fi

mkdir -p "$build/bench"
compare=("$venv/bin/python" bench/compare_python.py --library "$build/lib/libint8q.so.1")
"${compare[@]}" --json "$build/bench/compare_python.json" 2>"$build/bench/compare_python.log"
ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 INT8Q_CPU_ISA=avx2 \
  "${compare[@]}" --json "$build/bench/compare_python_avx2.json" 2>"$build/bench/compare_python_avx2.log"
