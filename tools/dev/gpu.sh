#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# gpu.sh FOLDER [RESULTS]: all that a GPU can tell of int8q, in ten minutes at most, on a machine with a driver, a shell and
# Python 3.10 or later (PYTHON=): doctor, the tests, those of the layer once more by cuBLASLt's products where it is, the
# benchmark, the comparison with bitsandbytes and torch where they are, what ncu sees of some kernels and, with what time is
# left, compute-sanitizer. cuBLASLt is looked for in Python's packages and, as ncu and compute-sanitizer are, in CUDA_HOME or
# /usr/local/cuda. On a GPU of capability 9.0 all with sm_90's kernels, and then what differs with sm_90a's (wgmma).
# FOLDER, or its bin/, lib/ or dist/, holds test_cuda, cuda_bench_linear with libbenchmark.so.1debian beside it, and a wheel,
# which is not installed but unpacked; the command int8q, too, with libint8q.so.1. Built on Debian 12, they need x86-64 with
# glibc 2.34 and a libstdc++.so.6 of GCC 12 (GLIBCXX_3.4.30), without the benchmark of GCC 11: Ubuntu 22.04 has both. With all
# images test_cuda, the benchmark and the wheel take 65 MiB; with those of one GPU, of an H100 say, 16 MiB:
#   cmake --preset release -DINT8Q_CUDA_ARCHITECTURES="sm_90;sm_90a"       an A100: sm_80; an L4 or RTX 40: sm_89
#   build/venv/bin/python -m build -w -C cmake.define.INT8Q_CUDA_ARCHITECTURES="sm_90;sm_90a"
# RESULTS is bench/results/cuda-NAME_OF_THE_GPU if it is not given; sm_90a's are in its folder sm_90a. What lies there already is
# moved to RESULTS.before, which must not be there. Results are written as they come, so that a run that is cut off leaves what
# it has. Each step says what it found, or why it was left out; the end is tables of times, of bars and of steps. Status 1: a
# step failed, or all were left out. BENCH_OPTIONS and COMPARE_OPTIONS are added to the two's.
set -uo pipefail

if [ $# -lt 1 ] || [ ! -d "$1" ]; then
  sed -n '/^# gpu.sh/,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
given=$(realpath "$1")
root=$(realpath "$(dirname "$0")/../..")
python=${PYTHON:-python3}
cuda=${CUDA_HOME:-/usr/local/cuda}
whole=${SECONDS_IN_ALL:-570}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
results=
steps=()
failed=0
ran=0 # steps that use the GPU
read -ra bench_options <<<"${BENCH_OPTIONS:-}"
read -ra compare_options <<<"${COMPARE_OPTIONS:-}"

say() { printf '\n== %s\n' "$*"; }
note() { # STEP WHAT_CAME_OF_IT
  printf '%s: %s\n' "$1" "$2"
  steps+=("$1: $2")
  [ -z "$results" ] || printf '%s\n' "${steps[@]}" >"$results/steps.txt"
}
fault() {
  note "$1" "$2"
  failed=1
}
joined() { # PATH...: with colons between those that are not empty
  local all="" one
  for one in "$@"; do all+=${one:+${all:+:}$one}; done
  echo "$all"
}
file_named() {
  find -L "$given" "$given/bin" "$given/lib" "$given/dist" -maxdepth 1 -type f -name "$1" 2>/dev/null | sort | head -n 1
}
# Seconds that each step has for certain, of 570; it may use besides what those before it have left.
declare -A share=([doctor]=40 [command]=10 [torch]=20 [tests]=50 [tensors]=40 [tests_of_cublaslt]=20 [benchmark]=70
  [comparison]=50 [tests_of_sm_90a]=30 [tensors_of_sm_90a]=40 [benchmark_of_sm_90a]=30 [comparison_of_sm_90a]=40 [profiles]=50
  [sanitizers]=70 [report]=10)
reserved=0
for step in "${!share[@]}"; do reserved=$((reserved + share[$step])); done
[ "$reserved" -eq 570 ] || { echo "gpu.sh: the shares of the steps are $reserved seconds; expected 570" >&2; exit 2; }
# What the step $1 takes is reserved no longer, whether it runs or not; `seconds` is what it may take.
begin() {
  reserved=$((reserved - share[$1]))
  seconds=$((whole - SECONDS - reserved * whole / 570))
  [ "$seconds" -ge 1 ] || seconds=1
}
# Of what is left until $until_then the part of one of $waiting runs.
take_part() {
  seconds=$(((until_then - SECONDS) / waiting))
  waiting=$((waiting - 1))
}
# Runs a command for at most $seconds with its output in the file $1 and on the terminal.
timed() {
  local log=$1
  shift
  timeout -k 5 "$seconds" "$@" 2>&1 | tee "$log"
  return "${PIPESTATUS[0]}"
}
# When a program that ends by itself is told to, so that it is through $1 seconds later.
told_to_end() { echo $((seconds > 2 * $1 ? seconds - $1 : (seconds + 1) / 2)); }
finish() { # STEP STATUS WHAT_CAME_OF_IT
  if [ "$2" -eq 0 ]; then note "$1" "$3"; else fault "$1" "$3; $(why "$2")"; fi
}
finish_rows() { # STEP STATUS LOG WHAT_EACH_ROW_HAS
  local came
  came="$(grep -c "$4" "$3") rows"
  [ "$2" -eq 0 ] || came+="; $(tail -n 1 "$3")"
  finish "$1" "$2" "$came"
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
libraries=$("$python" - "$cuda" 2>/dev/null <<'PYTHON'
import glob, sys
found = []
for folder in [*sys.path, sys.argv[1]]:
    for pattern in ("nvidia/cublas/lib", "nvidia/cu*/lib", "lib64", "targets/*/lib"):
        found += [f for f in sorted(glob.glob(f"{folder}/{pattern}")) if glob.glob(f"{f}/libcublasLt.so.1[23]")]
print(":".join(dict.fromkeys(found)))
PYTHON
)
with_libraries=$(joined "$libraries" "${LD_LIBRARY_PATH:-}")
library=$(file_named libint8q.so.1)
int8q=(env "LD_LIBRARY_PATH=$(joined "${library%/*}" "${LD_LIBRARY_PATH:-}")" "${command:-false}")
diagnosis_by_wheel() {
  timeout 60 "$python" -c '
import ctypes
from int8q import _abi
text = ctypes.create_string_buffer(1 << 16)
_abi.library().int8q_diagnose_json(text, len(text), None)
print(text.value.decode())' 2>/dev/null
}
# CAPABILITY NAME of the first GPU of a diagnosis, or what is wrong with all.
gpu_of() {
  "$python" -c '
import json, sys
gpu = json.load(sys.stdin)["gpu"]
print(gpu["state"] if sys.argv[1] == "state" else "{capability} {name}".format(**gpu["devices"][0]))' "$1" 2>/dev/null
}
first_of() { timeout 20 nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
diagnosis=$(diagnosis_by_wheel)
gpu=$(gpu_of name <<<"$diagnosis")
[ -n "$gpu" ] || gpu=$(timeout 30 "${int8q[@]}" doctor --json 2>/dev/null | gpu_of name)
[ -n "$gpu" ] || gpu=$(timeout 30 "${test_cuda:-false}" --gtest_filter=CudaStateless.LongerRowsAreRefused 2>/dev/null |
  sed -n 's/^[0-9]* tests ran on \(.*\), capability \([0-9.]*\), image .*/\2 \1/p')
[ -n "$gpu" ] || gpu="$(first_of compute_cap) $(first_of name)"
read -r capability name <<<"$gpu"
name=$(tr '[:upper:]' '[:lower:]' <<<"$name" | tr -cs '[:alnum:]\n' '-' | sed 's/^-*//; s/-*$//')
into=${2:-$root/bench/results/cuda-${name:-unknown}}
if [ -n "$(ls -A "$into" 2>/dev/null)" ]; then # of a run before, which would be taken for this one's
  [ ! -e "$into.before" ] || { echo "gpu.sh: $into and $into.before have results; move one elsewhere" >&2; exit 2; }
  mv "$into" "$into.before"
fi
mkdir -p "$into"
results=$(realpath "$into")
echo "GPU ${name:-that nothing names}; results in $results"
[ "$capability" != 9.0 ] || export INT8Q_CUDA_IMAGE=sm_90
if command -v nvidia-smi >/dev/null; then
  fields=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,ecc.mode.current,utilization.gpu
  timeout 20 nvidia-smi --query-gpu="$fields" --format=csv | tee "$results/nvidia-smi.csv"
else
  note nvidia-smi "not found: clocks and limits are not told"
fi

say "doctor"
begin doctor
if [ -n "$wheel" ]; then
  # What it says of the interpreter, in which packages may be missing, is no fault of the GPU.
  timed "$results/doctor.log" "$python" -m int8q doctor
  status=$?
  state=$(gpu_of state <<<"$diagnosis")
  came="by the wheel: the GPU ${state:-is told nothing of}"
  [ $status -eq 0 ] || came+="; $(why $status), see doctor.log"
  if [ "$state" = works ]; then note doctor "$came"; else fault doctor "$came"; fi
else
  note doctor "left out: no int8q-*.whl in $given"
fi
begin command
if [ -n "$command" ]; then
  timed "$results/doctor_command.log" "${int8q[@]}" doctor
  status=$?
  if [ $status -eq 127 ]; then
    note "doctor of the command" "left out: $(tail -n 1 "$results/doctor_command.log")"
  else
    finish "doctor of the command" $status "$command"
  fi
fi

begin torch
torch_sees_a_gpu() { # [MODULE that is needed, too]: True, or why not
  timeout $((seconds / 2 + 1)) "$python" -c "import torch${1:+, $1}; print(torch.cuda.is_available())" 2>&1 | tail -n 1
}
has_torch=$(torch_sees_a_gpu)
has_pytest=$(torch_sees_a_gpu pytest)

run_tests() { # STEP RESULTS OPTION...: into RESULTS.log and RESULTS.json
  local step=$1 log=$2.log json=$2.json status where passed skipped wrong
  shift 2
  say "$step"
  if [ -z "$test_cuda" ]; then
    note "$step" "left out: no test_cuda in $given"
    return
  fi
  ran=$((ran + 1))
  timed "$log" "$test_cuda" "--gtest_output=json:$json" --gtest_brief=0 "$@"
  status=$?
  where=$(grep -E 'tests ran on' "$log" | tail -n 1)
  passed=$(grep -cE '^\[       OK \]' "$log")
  skipped=$(grep -cE '^\[  SKIPPED \] .*\(' "$log")
  wrong=$(grep -cE '^\[  FAILED  \] .*\(' "$log")
  finish "$step" $status "${where:-where they ran is not told}; $passed passed, $skipped skipped, $wrong failed"
  [ "$passed" -gt 0 ] || fault "$step" "none passed"
}

# The layer's products by cuBLASLt. Results are the same by either, so what tells is the room for cuBLASLt's sums, which one
# test asks for. That sums lie there is told by the profile of finish_s8, which takes them on.
run_tests_of_cublaslt() {
  local step="tests of cublaslt" to=$results/test_cuda_cublaslt telling=CudaDispatch.SeveralLinearsTakeTheLargestWorkspace
  if [ -z "$libraries" ]; then
    note "$step" "left out: no libcublasLt.so.12 or .13 in Python's packages or $cuda"
    return
  fi
  INT8Q_CUDA_GEMM=cublaslt LD_LIBRARY_PATH=$with_libraries run_tests "$step" "$to" "--gtest_filter=CudaLayer.*:$telling"
  [ -z "$test_cuda" ] || grep -qF "[       OK ] $telling " "$to.log" ||
    fault "$step" "that cuBLASLt multiplies is not told: $telling did not pass"
}

run_benchmark() { # STEP FOLDER OPTION...
  local step=$1 folder=$2 status
  shift 2
  say "$step"
  if [ -z "$bench" ]; then
    note "$step" "left out: no cuda_bench_linear in $given"
    return
  fi
  ran=$((ran + 1))
  LD_LIBRARY_PATH=$with_libraries timed "$folder/bench_linear.log" "$bench" \
    --seconds="$(told_to_end 20)" --benchmark_out="$folder/bench_linear.json" --benchmark_out_format=json \
    --benchmark_enable_random_interleaving=true --benchmark_repetitions=7 --benchmark_display_aggregates_only=true \
    --benchmark_counters_tabular=true --benchmark_context=program_sha256="$(sha256sum <"$bench" | cut -d ' ' -f 1)" \
    "$@" "${bench_options[@]}" >/dev/null
  status=$?
  grep -E '^(no rows|cuBLASLt|--seconds|.*: no usable)' "$folder/bench_linear.log"
  finish_rows "$step" $status "$folder/bench_linear.log" _median
  ! grep -q "^cuBLASLt's s8 product equals int8q's: NO" "$folder/bench_linear.log" ||
    fault "$step" "int8q's product is not cuBLASLt's"
  ! grep -E '^[a-z_]+/int8q.*ERROR OCCURRED' "$folder/bench_linear.log" | grep -v "'not reached in" ||
    fault "$step" "rows of int8q failed, see above"
}

run_comparison() { # STEP FOLDER OPTION...
  local step=$1 folder=$2
  shift 2
  say "$step"
  if [ -z "$wheel" ]; then
    note "$step" "left out: no int8q-*.whl in $given"
    return
  elif [ "$has_torch" != True ]; then
    note "$step" "left out: torch with CUDA is not there (${has_torch:-no answer})"
    return
  fi
  ran=$((ran + 1))
  timed "$folder/compare_cuda.log" "$python" "$root/bench/compare_cuda.py" --json "$folder/compare_cuda.json" \
    --seconds "$(told_to_end 20)" "$@" "${compare_options[@]}"
  finish_rows "$step" $? "$folder/compare_cuda.log" ' us '
}

run_tensors() { # STEP FOLDER
  say "$1 of torch"
  if [ -z "$wheel" ]; then
    note "$1" "left out: no int8q-*.whl in $given"
    return
  elif [ "$has_pytest" != True ]; then
    note "$1" "left out: torch with CUDA and pytest are not there (${has_pytest:-no answer})"
    return
  fi
  ran=$((ran + 1))
  timed "$2/test_tensors.log" "$python" -m pytest -q -rs -p no:cacheprovider "$root"/tests/python/test_cuda*.py
  finish "$1" $? "$(tail -n 1 "$2/test_tensors.log")"
}

begin tests
run_tests tests "$results/test_cuda"
begin tensors
run_tensors tensors "$results"
begin tests_of_cublaslt
run_tests_of_cublaslt

begin benchmark
run_benchmark benchmark "$results"
begin comparison
run_comparison comparison "$results"

# The kernels for a GPU of capability 9.0 alone: what takes more rows than skinny kernels.
begin tests_of_sm_90a
if [ "$capability" = 9.0 ]; then
  export INT8Q_CUDA_IMAGE=sm_90a
  mkdir -p "$results/sm_90a"
  run_tests "tests of sm_90a" "$results/sm_90a/test_cuda"
  begin tensors_of_sm_90a
  run_tensors "tensors of sm_90a" "$results/sm_90a"
  begin benchmark_of_sm_90a
  run_benchmark "benchmark of sm_90a" "$results/sm_90a" --benchmark_filter='bandwidth|/M:(64|128|512|2048|4096)(/|$)'
  begin comparison_of_sm_90a
  run_comparison "comparison of sm_90a" "$results/sm_90a" --rows 2048 4096 512
  export INT8Q_CUDA_IMAGE=sm_90
else
  begin tensors_of_sm_90a
  begin benchmark_of_sm_90a
  begin comparison_of_sm_90a
  note sm_90a "left out: this GPU is of capability ${capability:-that nothing tells}, not 9.0"
fi

# Where the time of a kernel goes, for the bars that it misses, and what its warps wait for: its third launch in the benchmark's
# rows of this name. NAME|IMAGE|KERNEL|ROWS[|GEMM]: images are those of a GPU of capability 9.0; another has the lines of sm_90a
# by its own.
square=K:4096/N:4096/M
profiles=(
  "decode|sm_90a|^skinny|linear/int8q.*/$square:1/.*bf16/rotated"
  "quantize|sm_90a|^quantize_rows|linear/int8q.*/$square:2048/"
  "product|sm_90a|^gemm_(wgmma_)?s8|linear/int8q.*/$square:2048/"
  "product_sm_90|sm_90|^gemm_s8|linear/int8q.*/$square:2048/"
  "columns_64|sm_90a|^gemm_(wgmma_)?s8|sweep/int8q.*/$square:2048/.*/outliers:64/scope:column/"
  "columns_all|sm_90a|^gemm_(wgmma_)?s8|sweep/int8q.*/$square:2048/.*/outliers:4096/scope:column/"
  "mode_all|sm_90a|^w8a16|linear/int8q.*/$square:2048/.*scope:all"
  "backward_sm_90|sm_90|^backward|backward/int8q.*/$square:2048/"
  "backward|sm_90a|^backward|backward/int8q.*/$square:2048/"
  "finish|sm_90a|^finish_s8|linear/int8q.*:cublaslt/$square:2048/.*/eager|cublaslt"
)
stall_reasons='regex:smsp__average_warps_issue_stalled_.*_per_issue_active\.ratio'
say "profiles"
begin profiles
ncu=$(command -v ncu || ls "$cuda/bin/ncu" 2>/dev/null || true)
profile() { # NAME KERNEL ROWS GEMM: an equal part of what is left
  local step="profile of $1" log=$results/profiles/$1.csv status lines came
  take_part
  if [ "$SECONDS" -ge "$until_then" ]; then
    note "$step" "left out: no time is left"
    return
  fi
  [ "$seconds" -ge 1 ] || seconds=1
  INT8Q_CUDA_GEMM=$4 LD_LIBRARY_PATH=$with_libraries timeout -k 5 "$seconds" "$ncu" --csv --page details \
    --section SpeedOfLight --section WarpStateStats --section Occupancy --metrics "$stall_reasons" \
    --kernel-name "regex:$2" --launch-skip 2 --launch-count 1 --log-file "$log" \
    "$bench" --benchmark_filter="$3" --shapes=4096x4096 >/dev/null 2>&1
  status=$?
  lines=$(grep -c '^"[0-9]' "$log" 2>/dev/null)
  came="${lines:-0} lines"
  [ $status -eq 0 ] || came+="; $(why $status)"
  case $status,${lines:-0} in
    124,0 | 137,0 | *,[1-9]*) note "$step" "$came" ;;
    *) fault "$step" "$came; $(grep -m 1 -E '^==(ERROR|WARNING)==' "$log" 2>/dev/null || echo "ncu does not say why")" ;;
  esac
}
if [ -z "$ncu" ] || [ -z "$bench" ]; then
  note profiles "left out: no ncu on this machine, or no cuda_bench_linear in $given"
else
  mkdir -p "$results/profiles"
  todo=()
  for line in "${profiles[@]}"; do
    case $capability,$libraries,$line in
      *,,*\|cublaslt) note "profile of ${line%%|*}" "left out: no cuBLASLt, as above" ;;
      9.0,* | *\|sm_90a\|*) todo+=("$line") ;;
    esac
  done
  until_then=$((SECONDS + seconds)) waiting=${#todo[@]}
  for line in "${todo[@]}"; do
    IFS='|' read -r what image kernel rows gemm <<<"$line"
    [ "$capability" != 9.0 ] || export INT8Q_CUDA_IMAGE=$image
    profile "$what" "$kernel" "$rows" "$gemm"
  done
  [ "$capability" != 9.0 ] || export INT8Q_CUDA_IMAGE=sm_90
fi

say "compute-sanitizer"
begin sanitizers
sanitizer=$(command -v compute-sanitizer || ls "$cuda/bin/compute-sanitizer" 2>/dev/null || true)
few_rows='CudaLife.ABlobComesAndGoesWithoutLoss:CudaLife.NanStaysInItsRow:CudaLife.BorrowedWeightsAreUsedInPlace'
few_rows+=':CudaBackward.EveryShapeDtype:CudaCapture.*:CudaDispatch.*:CudaLayer.EveryShapeDtypeMode:CudaSplitK.*:CudaStateless.*'
each_tile='CudaLayer.FewRows*:CudaLayer.EachTile*:CudaBackward.EachTile'
wrong_lines='^=+ (Error|Invalid|Misaligned|Out-of-range|Uninit|Race|Barrier|Malloc|Program hit)|^\[  FAILED  \]'
until_then=$((SECONDS + seconds)) waiting=6 # runs

sanitize() { # STEP FOLDER TOOL FILTER: an equal part of what is left
  local step=$1 log=$2/${1// /_}.log status summary errors passed came
  take_part
  if [ -z "$sanitizer" ]; then
    note "$step" "left out: no compute-sanitizer on this machine"
    return
  elif [ -z "$test_cuda" ]; then
    note "$step" "left out: no test_cuda in $given"
    return
  elif [ "$seconds" -lt 1 ]; then
    note "$step" "left out: no time is left"
    return
  fi
  INT8Q_TEST_GRID=small timed "$log" "$sanitizer" --tool "$3" --error-exitcode 9 "$test_cuda" "--gtest_filter=$4" >/dev/null
  status=$?
  summary=$(grep -E 'SUMMARY' "$log" | tail -n 1 | sed 's/^=* *//')
  errors=$(grep -cE "$wrong_lines" "$log")
  passed=$(grep -cE '^\[       OK \]' "$log")
  came="$passed tests passed; ${summary:-no summary}"
  [ $status -eq 0 ] || came+="; $(why $status)"
  case $status,$errors,$passed in
    *,0,0) fault "$step" "nothing was checked: $came; see $log" ;;
    0,0,* | 124,0,* | 137,0,*) note "$step" "$came" ;;
    *) fault "$step" "$came; $errors lines of errors, see $log" ;;
  esac
}
[ "$capability" != 9.0 ] || waiting=10
for tool in memcheck initcheck synccheck racecheck; do # the slowest last: it has what time the others leave
  sanitize $tool "$results" $tool "$few_rows"
  case $tool in memcheck | racecheck) sanitize "$tool of each tile" "$results" $tool "$each_tile" ;; esac
  [ "$capability" != 9.0 ] || INT8Q_CUDA_IMAGE=sm_90a sanitize "$tool of wgmma" "$results/sm_90a" $tool "$each_tile"
done

[ $ran -gt 0 ] || fault gpu.sh "no test and no benchmark ran: all were left out"

say "results"
begin report
timed "$results/report.txt" "$python" "$root/bench/report_cuda.py" "$results"
finish report $? "report.txt"
say "steps, $SECONDS s"
printf '%s\n' "${steps[@]}"
exit $failed
