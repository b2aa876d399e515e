# SPDX-License-Identifier: Apache-2.0
"""cuda_bench.py BENCH LIBCUDA_FOLDER LIBCUBLASLT_FOLDER: benchmarks on a GPU that a driver plays: one whose time is over in
its first row, and one whose integers cuBLASLt multiplies.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BENCH, FOLDER, CUBLASLT = sys.argv[1:]
REPORT = Path(__file__).resolve().parents[2] / "bench/report_cuda.py"
OPTIONS = """--shapes=256x128 --sweep-rows=65 --rotated-mib=0 --sample-ms=.001 --benchmark_display_aggregates_only=true
--benchmark_out_format=json""".split()
# One repetition after the other of one row after the other.
CUT_OFF = "--rows=1,128 --seconds=4 --benchmark_filter=gemm --benchmark_repetitions=20000".split()
problems = []


def expect(condition, text):
    if not condition:
        problems.append(text)


def run(command, **environment):
    ran = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    expect(ran.returncode == 0, f"{command}: exit status {ran.returncode}\n{ran.stdout[-2000:]}")
    return ran.stdout


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "bench_linear.json"
    said = run(
        [BENCH, *OPTIONS, *CUT_OFF, f"--benchmark_out={path}"],
        LD_LIBRARY_PATH=FOLDER,
        INT8Q_STUB_GPUS="9.0",
        INT8Q_CUDA_IMAGE="sm_90",
    )
    expect("--seconds=4: " in said and "repetitions of rows were left out" in said, f"it does not say so:\n{said[-2000:]}")
    content = json.loads(path.read_text())
    told = run([sys.executable, str(REPORT), folder])
context = content["context"]
expect((context["image"], context["gemm"]) == ("sm_90", "int8q"), f"image and product are {context}")
reached, left_out = {}, {}
for record in content["benchmarks"]:
    if record["run_type"] == "iteration":
        kind = left_out if record.get("error_occurred") else reached
        kind[record["run_name"]] = kind.get(record["run_name"], 0) + 1
first, *others = dict.fromkeys(record["run_name"] for record in content["benchmarks"])
expect(reached.get(first, 0) > 1 and left_out.get(first, 0) > 1, f"{first} was not cut in two: {reached}, {left_out}")
expect(set(reached) == {first}, f"reached: {reached}")
medians = [record for record in content["benchmarks"] if record.get("aggregate_name") == "median"]
expect([record["run_name"] for record in medians] == [first], f"medians: {medians}")
expect("not reached in --seconds=4: 3 rows" in told, f"the report does not count what is missing:\n{told}")
for name in others:
    short = name.removesuffix("/iterations:1/manual_time")
    expect(f"\n  {short}\n" in told, f"the report does not name {short}:\n{told}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "bench_linear.json"
    options = [*OPTIONS, "--rows=128", "--benchmark_filter=^(linear|gemm)/int8q.*graph", f"--benchmark_out={path}"]
    run([BENCH, *options], LD_LIBRARY_PATH=f"{FOLDER}:{CUBLASLT}", INT8Q_STUB_GPUS="8.0", INT8Q_CUDA_GEMM="cublaslt")
    content = json.loads(path.read_text())
context = content["context"]
expect(context["image"] == "sm_80" and context["gemm"].startswith("cuBLASLt"), f"image and product are {context}")
expect(context["cublaslt_s8_equals_int8q"] == "yes", f"the products: {context}")
kinds = [
    record["run_name"].split("/K:")[0] + "/all" * ("scope:all" in record["run_name"]) for record in content["benchmarks"]
]
by_cublaslt = ["linear/int8q:sm_80:cublaslt", "linear/int8q:sm_80/all", "gemm/int8q:sm_80"]
expect(kinds == by_cublaslt, f"rows are {kinds}; expected {by_cublaslt}")
if problems:
    sys.exit("\n".join(problems))
print(f"{first}: {reached[first]} repetitions; {len(others)} rows not reached, and named")
