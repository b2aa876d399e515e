#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# gpu.sh FOLDER [RESULTS]: all that a GPU can tell of int8q, in ten minutes at most, on a machine with a driver, a shell and
# Python 3.10 or later (PYTHON=): doctor, the tests, compute-sanitizer, the benchmark, and the comparison with bitsandbytes
# and torch where they are. FOLDER, or its bin/, lib/ or dist/, holds test_cuda, cuda_bench_linear with
# libbenchmark.so.1debian beside it, and a wheel, which is not installed but unpacked. RESULTS is
# bench/results/cuda-NAME_OF_THE_GPU if it is not given. Each step says what it found, or why it was left out; the end is
# tables of times and of steps. Status 1: a step failed. BENCH_OPTIONS and COMPARE_OPTIONS are added to the two's.
set -uo pipefail

if [ $# -lt 1 ] || [ ! -d "$1" ]; then
  sed -n '/^# gpu.sh/,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
given=$(realpath "$1")
root=$(realpath "$(dirname "$0")/../..")
python=${PYTHON:-python3}
whole=${SECONDS_IN_ALL:-570}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
steps=()
failed=0
read -ra bench_options <<<"${BENCH_OPTIONS:-}"
read -ra compare_options <<<"${COMPARE_OPTIONS:-}"

say() { printf '\n== %s\n' "$*"; }
note() { # STEP WHAT_CAME_OF_IT
  printf '%s: %s\n' "$1" "$2"
  steps+=("$1: $2")
}
fault() {
  note "$1" "$2"
  failed=1
}
file_named() {
  find -L "$given" "$given/bin" "$given/lib" "$given/dist" -maxdepth 1 -type f -name "$1" 2>/dev/null | sort | head -n 1
}
# Seconds for a step that asks for $1: what is left at most.
allowed() {
  local left=$((whole - SECONDS))
  [ "$left" -lt 1 ] && left=1
  [ "$1" -lt "$left" ] && echo "$1" || echo "$left"
}
# Runs a command for at most $1 seconds with its output in the file $2 and on the terminal.
timed() {
  local seconds log=$2
  seconds=$(allowed "$1")
  shift 2
  timeout -k 5 "$seconds" "$@" 2>&1 | tee "$log"
  return "${PIPESTATUS[0]}"
}
finish() { # STEP STATUS WHAT_CAME_OF_IT
  if [ "$2" -eq 0 ]; then note "$1" "$3"; else fault "$1" "$3; $(why "$2")"; fi
}
why() { # STATUS
  case $1 in
    124 | 137) echo "cut off, since time was up" ;;
    *) echo "status $1" ;;
  esac
}

# ---- What is there
test_cuda=$(file_named test_cuda)
bench=$(file_named cuda_bench_linear)
command=$(file_named int8q)
wheel=$(file_named 'int8q-*.whl')
if [ -n "$wheel" ]; then
  "$python" -m zipfile -e "$wheel" "$scratch/wheel" || fault wheel "$wheel does not unpack"
  export PYTHONPATH=$scratch/wheel
  unset INT8Q_LIBRARY
fi
# cuBLASLt may lie in Python's packages alone.
libraries=$("$python" - 2>/dev/null <<'PYTHON'
import glob, sys
found = []
for folder in [*sys.path, "/usr/local/cuda"]:
    for pattern in ("nvidia/cublas/lib", "nvidia/cu*/lib", "lib64", "targets/*/lib"):
        found += [f for f in sorted(glob.glob(f"{folder}/{pattern}")) if glob.glob(f"{f}/libcublasLt.so.1[23]")]
print(":".join(dict.fromkeys(found)))
PYTHON
)
name=$("$python" - 2>/dev/null <<'PYTHON'
import ctypes, json, re
from int8q import _abi
text = ctypes.create_string_buffer(1 << 16)
_abi.library().int8q_diagnose_json(text, len(text), None)
print(re.sub(r"[^a-z0-9]+", "-", json.loads(text.value)["gpu"]["devices"][0]["name"].lower()).strip("-"))
PYTHON
)
if [ -z "$name" ]; then
  name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr -cs '[:alnum:]\n' '-')
fi
results=${2:-$root/bench/results/cuda-${name:-unknown}}
mkdir -p "$results"
results=$(realpath "$results")
echo "GPU ${name:-that nothing names}; results in $results"
if command -v nvidia-smi >/dev/null; then
  fields=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,ecc.mode.current,utilization.gpu
  nvidia-smi --query-gpu="$fields" --format=csv | tee "$results/nvidia-smi.csv"
else
  note nvidia-smi "not found: clocks and limits are not told"
fi

say "doctor"
if [ -n "$wheel" ]; then
  timed 60 "$results/doctor.log" "$python" -m int8q doctor
  status=$?
  note doctor "status $status$([ $status -eq 0 ] || echo ', it says above what is wrong')"
else
  note doctor "left out: no int8q-*.whl in $given"
fi
if [ -n "$command" ]; then
  timed 30 "$results/doctor_command.log" "$command" doctor
  note "doctor of the command" "status $?"
fi

say "tests"
if [ -n "$test_cuda" ]; then
  timed 150 "$results/test_cuda.log" "$test_cuda" "--gtest_output=json:$results/test_cuda.json" --gtest_brief=0
  status=$?
  ran=$(grep -E 'tests ran on' "$results/test_cuda.log" | tail -n 1)
  passed=$(grep -cE '^\[       OK \]' "$results/test_cuda.log")
  skipped=$(grep -cE '^\[  SKIPPED \] .*\(' "$results/test_cuda.log")
  wrong=$(grep -cE '^\[  FAILED  \] .*\(' "$results/test_cuda.log")
  came="${ran:-where they ran is not told}; $passed passed, $skipped skipped, $wrong failed"
  finish tests $status "$came"
else
  note tests "left out: no test_cuda in $given"
fi

say "compute-sanitizer"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
reduced='CudaLife.ABlobComesAndGoesWithoutLoss:CudaLife.BackwardIsWithinItsBound:CudaLife.NanStaysInItsRow'
reduced+=':CudaLife.BorrowedWeightsAreUsedInPlace:CudaStateless.*:CudaLayer.*'
for tool in memcheck racecheck initcheck synccheck; do
  if [ -z "$sanitizer" ]; then
    note "$tool" "left out: no compute-sanitizer on this machine"
    continue
  elif [ -z "$test_cuda" ]; then
    note "$tool" "left out: no test_cuda in $given"
    continue
  fi
  INT8Q_TEST_GRID=small timed 40 "$results/$tool.log" "$sanitizer" --tool "$tool" --error-exitcode 9 \
    "$test_cuda" "--gtest_filter=$reduced" >/dev/null
  status=$?
  passed=$(grep -cE '^\[       OK \]' "$results/$tool.log")
  summary=$(grep -E 'SUMMARY' "$results/$tool.log" | tail -n 1 | sed 's/^=* *//')
  case $status in
    0) note "$tool" "$passed tests passed; ${summary:-no summary}" ;;
    124 | 137)
      errors=$(grep -cE '^=+ (Error|Invalid|Uninit|Race|Barrier)' "$results/$tool.log")
      note "$tool" "$(why $status); $passed tests passed until then, $errors lines of errors" ;;
    *) fault "$tool" "$passed tests passed; ${summary:-no summary}; status $status, see $tool.log" ;;
  esac
done

torch_sees_a_gpu() { # [MODULE that is needed, too]: True, or why not
  timeout 60 "$python" -c "import torch${1:+, $1}; print(torch.cuda.is_available())" 2>&1 | tail -n 1
}

say "tensors of torch"
has_torch=$(torch_sees_a_gpu pytest)
if [ -z "$wheel" ]; then
  note tensors "left out: no int8q-*.whl in $given"
elif [ "$has_torch" != True ]; then
  note tensors "left out: torch with CUDA and pytest are not there (${has_torch:-no answer})"
else
  timed 120 "$results/test_tensors.log" "$python" -m pytest -q -rs -p no:cacheprovider "$root/tests/python/test_cuda.py"
  status=$?
  finish tensors $status "$(tail -n 1 "$results/test_tensors.log")"
fi

say "benchmark"
if [ -n "$bench" ]; then
  sha256=$(sha256sum <"$bench" | cut -d ' ' -f 1)
  LD_LIBRARY_PATH=${libraries:+$libraries:}${LD_LIBRARY_PATH:-} timed 220 "$results/bench_linear.log" "$bench" \
    --benchmark_out="$results/bench_linear.json" --benchmark_out_format=json --benchmark_enable_random_interleaving=true \
    --benchmark_repetitions=7 --benchmark_display_aggregates_only=true --benchmark_counters_tabular=true \
    --benchmark_context=program_sha256="$sha256" "${bench_options[@]}" >/dev/null
  status=$?
  grep -E '^(no rows|cuBLASLt|.*: no usable)' "$results/bench_linear.log"
  came="$(grep -c '_median' "$results/bench_linear.log") rows"
  [ $status -eq 0 ] || came+="; $(tail -n 1 "$results/bench_linear.log")"
  finish benchmark $status "$came"
else
  note benchmark "left out: no cuda_bench_linear in $given"
fi

say "bitsandbytes and torch"
has_torch=$(torch_sees_a_gpu)
if [ -z "$wheel" ]; then
  note comparison "left out: no int8q-*.whl in $given"
elif [ "$has_torch" != True ]; then
  note comparison "left out: torch with CUDA is not there (${has_torch:-no answer})"
else
  left=$(allowed 170)
  timed "$left" "$results/compare_cuda.log" "$python" "$root/bench/compare_cuda.py" --json "$results/compare_cuda.json" \
    --seconds $((left > 60 ? left - 40 : left / 3)) "${compare_options[@]}"
  status=$?
  came="$(grep -c ' us ' "$results/compare_cuda.log") rows"
  [ $status -eq 0 ] || came+="; $(tail -n 1 "$results/compare_cuda.log")"
  finish comparison $status "$came"
fi

say "results"
timeout 30 "$python" "$root/bench/report_cuda.py" "$results" 2>&1 | tee "$results/report.txt"
say "steps, $SECONDS s"
printf '%s\n' "${steps[@]}" | tee "$results/steps.txt"
exit $failed
