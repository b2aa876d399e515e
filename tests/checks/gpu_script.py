# SPDX-License-Identifier: Apache-2.0
"""gpu_script.py [TEST_CUDA]: tools/dev/gpu.sh with programs that play: the order and the image in which it runs them, its
status; and that TEST_CUDA has the tests that it names."""

import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "tools/dev/gpu.sh"
# Each says in $PLAYED who was called; what else it does is $DO_NAME.
PROGRAM = """#!/bin/bash
echo "NAME ${INT8Q_CUDA_IMAGE:-usual}${INT8Q_CUDA_GEMM:+:$INT8Q_CUDA_GEMM} $*" >>"$PLAYED"
ACTION
"""
ACTIONS = {
    "test_cuda": """
echo "[       OK ] A.B (1 ms)"
case "${INT8Q_CUDA_GEMM:-} $LD_LIBRARY_PATH" in "cublaslt ${LOADED_FROM:-$CUDA_HOME/lib64}"*) eval "$LOADS" ;; esac
echo "1 tests ran on A Play, capability $(grep -o '[0-9]*[.][0-9]' "$DIAGNOSIS"), image sm_90"
[ "$*" = --gtest_filter=CudaStateless.LongerRowsAreRefused ] || eval "${DO_TEST:-}"
""",
    "cuda_bench_linear": """
for option in "$@"; do case $option in --benchmark_out=*) cp "$BENCH" "${option#*=}" ;; esac; done
echo "linear/int8q:sm_90/K:256/N:128/M:1/graph_median 1 us"
eval "${DO_BENCH:-}"
""",
    "int8q": 'if [ "$*" = "doctor --json" ]; then cat "$DIAGNOSIS"; else eval "${DO_DOCTOR:-}"; fi',
    "ncu": """
for option in "$@"; do case $option in *.csv) log=$option ;; esac; done
echo '"ID","of a head"' >"$log"
eval "${DO_NCU-$SEES}"
""",
    "compute-sanitizer": 'echo "========= COMPUTE-SANITIZER"; eval "${DO_SANITIZER-$PASSES}"',
}
PASSES = 'echo "[       OK ] A.B (1 ms)"'
TELLING = "CudaDispatch.SeveralLinearsTakeTheLargestWorkspace"  # passes where cuBLASLt loads
LOADS = f'echo "[       OK ] {TELLING} (1 ms)"'
SEES = """echo '"0","line"' >>"$log" """
PYTHON = f"""#!/bin/bash
exec {sys.executable} -S "$@"
"""  # whose packages have no cuBLASLt
# What gpu.sh asks of a wheel.
WHEEL = {
    "int8q/__init__.py": "",
    "int8q/__main__.py": "import os, sys\nsys.exit(int(os.environ['DOCTOR_OF_THE_WHEEL']))",
    "int8q/_abi.py": """
import os
class library:
    def int8q_diagnose_json(self, text, size, needed):
        text.value = open(os.environ["DIAGNOSIS"], "rb").read()
""",
}
ROW = {"run_type": "iteration", "real_time": 9.0, "time_unit": "us", "iterations": 1}


class Played:
    def __init__(
        self, capability="9.0", programs=tuple(ACTIONS), seconds=16, state="works", again=False, cublaslt=False, **actions
    ):
        with tempfile.TemporaryDirectory() as folder:
            given, self.results = Path(folder) / "bin", Path(folder) / "results"
            given.mkdir()
            self.results.mkdir()
            (self.results / "compare_cuda.json").write_text("of a run before")
            cuda, python = Path(folder) / "cuda", Path(folder) / "python"
            (cuda / "lib64").mkdir(parents=True)
            if cublaslt:
                (cuda / "lib64/libcublasLt.so.13").touch()
            python.write_text(PYTHON)
            python.chmod(0o755)
            played, diagnosis, bench = (Path(folder) / name for name in ("played", "diagnosis.json", "bench.json"))
            played.touch()
            devices = [{"name": "A Play", "capability": capability}]
            diagnosis.write_text(json.dumps({"gpu": {"state": state, "devices": devices}}))
            if "DOCTOR_OF_THE_WHEEL" in actions:
                with zipfile.ZipFile(given / "int8q-0.1.0-py3-none-any.whl", "w") as wheel:
                    for name, text in WHEEL.items():
                        wheel.writestr(name, text)
            name = "linear/int8q:sm_90/K:256/N:128/M:1/dtype:bf16/graph/iterations:1/manual_time"
            rows = [{"name": name, "run_name": name, **ROW}]
            bench.write_text(json.dumps({"context": {"image": "sm_90"}, "benchmarks": rows}))
            for program in programs:
                path = given / program
                path.write_text(PROGRAM.replace("NAME", program).replace("ACTION", ACTIONS[program]))
                path.chmod(0o755)
            environment = {
                **{name: value for name, value in os.environ.items() if not name.startswith("INT8Q_")},
                **{"PATH": f"{given}:{os.environ['PATH']}", "PLAYED": str(played), "DIAGNOSIS": str(diagnosis)},
                **{"BENCH": str(bench), "PYTHON": str(python), "CUDA_HOME": str(cuda), "SECONDS_IN_ALL": str(seconds)},
                **{"PASSES": PASSES, "LOADS": LOADS, "SEES": SEES},
                **actions,
            }
            command = [SCRIPT, given, self.results]
            ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self.status, self.output = ran.returncode, ran.stdout
            self.calls = [line.split(" ", 2) for line in played.read_text().splitlines()]
            self.kept = sorted(str(path.relative_to(self.results)) for path in self.results.rglob("*.json"))
            self.of_before = (Path(folder) / "results.before/compare_cuda.json").read_text()
            self.stored_steps = (self.results / "steps.txt").read_text()
            if again:
                self.again = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)

    def programs(self):
        """(name, image) of the calls, without doctor's and what asks which GPU it is."""
        asked = "--gtest_filter=CudaStateless.LongerRowsAreRefused"
        return [(name, image) for name, image, rest in self.calls if name != "int8q" and rest != asked]

    def profiles(self):
        """Image, name, kernel, rows."""
        found = r"regex:(\S+) .*/profiles/(\w+)\.csv .*--benchmark_filter=(\S+)"
        matches = [(image, re.search(rf"--kernel-name {found}", rest)) for name, image, rest in self.calls if name == "ncu"]
        return [(image, match[2], match[1], match[3]) for image, match in matches]

    def step(self, name):
        """What the last list says of it."""
        return [line for line in self.output.split("== steps")[1].splitlines() if line.startswith(f"{name}: ")]


def sweep(outliers, scope="column"):
    return f"sweep/int8q:sm_90a/K:4096/N:4096/M:2048/dtype:bf16/outliers:{outliers}/scope:{scope}/graph"


class GpuScript(unittest.TestCase):
    def test_the_order_and_the_images(self):
        played = Played()
        self.assertEqual(played.status, 0, played.output)
        both = [("test_cuda", "sm_90"), ("cuda_bench_linear", "sm_90")]
        both += [("test_cuda", "sm_90a"), ("cuda_bench_linear", "sm_90a")]
        of_each_tile, of_others = ("sm_90", "sm_90", "sm_90a"), ("sm_90", "sm_90a")
        by_image = of_each_tile + 2 * of_others + of_each_tile
        sanitized = [("compute-sanitizer", image) for image in by_image]
        profiled = [("ncu", image) for image in 2 * (3 * ["sm_90a"] + ["sm_90"]) + ["sm_90a"]]
        self.assertEqual(played.programs(), both + profiled + sanitized)
        self.assertIn("left out: no libcublasLt", played.step("tests of cublaslt")[0])
        self.assertIn("left out: no cuBLASLt", played.step("profile of finish")[0])
        self.assertEqual(played.kept, ["bench_linear.json", "sm_90a/bench_linear.json"])
        self.assertEqual(played.of_before, "of a run before")
        self.assertIn(played.stored_steps, played.output)
        options = [rest for name, image, rest in played.calls if (name, image) == ("cuda_bench_linear", "sm_90a")][0]
        self.assertRegex(options, r"--seconds=\d+ .*--benchmark_filter=\S*128\|512\|2048\|4096")
        of_wgmma = [rest for name, image, rest in played.calls if (name, image) == ("compute-sanitizer", "sm_90a")]
        for tool, rest in zip(("memcheck", "initcheck", "synccheck", "racecheck"), of_wgmma):
            self.assertIn(f"--tool {tool}", rest)
        self.assertIn("beside sm_90", played.output)

    def test_other_gpus_have_one_image_and_two_runs_are_kept(self):
        played = Played(capability="8.6", again=True)
        self.assertEqual(played.again.returncode, 2, played.again.stderr)
        self.assertIn("results.before have results; move one elsewhere", played.again.stderr)
        self.assertEqual(played.status, 0, played.output)
        self.assertEqual({image for _, image in played.programs()}, {"usual"})
        self.assertIn("left out", played.step("sm_90a")[0])
        names = [name for _, name, _, _ in played.profiles()]
        self.assertEqual(names, "decode quantize product columns_64 columns_all mode_all backward".split())

    def test_cublaslt(self):
        played = Played(cublaslt=True)
        self.assertEqual(played.status, 0, played.output)
        self.assertEqual(played.step("tests of cublaslt")[0].split("; ")[1], "2 passed, 0 skipped, 0 failed")
        by_cublaslt = [call for call in played.programs() if call[1].endswith(":cublaslt")]
        self.assertEqual(by_cublaslt, [("test_cuda", "sm_90:cublaslt"), ("ncu", "sm_90a:cublaslt")])
        before = [("test_cuda", "sm_90"), ("test_cuda", "sm_90:cublaslt"), ("cuda_bench_linear", "sm_90")]
        self.assertEqual(played.programs()[:3], before)
        options = [rest for _, image, rest in played.calls if image == "sm_90:cublaslt"][0]
        self.assertRegex(options, rf"/test_cuda_cublaslt\.json .*--gtest_filter=CudaLayer\.\*:{TELLING}$")
        self.assertEqual(Played(cublaslt=True, capability="8.0").step("profile of finish"), ["profile of finish: 1 lines"])

    def test_cublaslt_that_does_not_multiply(self):
        """None of its tests fails, and the one that tells has not run."""
        played = Played(cublaslt=True, LOADED_FROM="/elsewhere")
        self.assertEqual(played.status, 1, played.output)
        self.assertIn(f"{TELLING} did not pass", played.step("tests of cublaslt")[1])

    def test_profiles(self):
        played = Played(cublaslt=True)
        of = {name: (image, kernel, rows) for image, name, kernel, rows in played.profiles()}
        self.assertEqual(len(of), 10)
        for name in of:
            self.assertEqual(played.step(f"profile of {name}"), [f"profile of {name}: 1 lines"])
        # A kernel of each image and a row of the benchmark.
        at = "K:4096/N:4096/M"
        for name, image, kernel, row in (
            ("decode", "sm_90a", "skinny_fused_8", f"linear/int8q:sm_90a/{at}:1/dtype:bf16/rotated/graph"),
            ("quantize", "sm_90a", "quantize_rows_bf16", f"linear/int8q:sm_90a/{at}:2048/dtype:bf16/eager"),
            ("product", "sm_90a", "gemm_wgmma_s8_256", f"linear/int8q:sm_90a/{at}:2048/dtype:bf16/graph"),
            ("mode_all", "sm_90a", "w8a16_wgmma_bf16_256", f"linear/int8q:sm_90a/{at}:2048/dtype:bf16/scope:all/graph"),
            ("columns_64", "sm_90a", "gemm_wgmma_s8_256", sweep(64)),
            ("columns_all", "sm_90a", "gemm_wgmma_s8_256", sweep(4096)),
            ("backward", "sm_90a", "backward_wgmma_bf16_256", f"backward/int8q:sm_90a/{at}:2048/dtype:bf16/graph"),
            ("finish", "sm_90a:cublaslt", "finish_s8", f"linear/int8q:sm_90a:cublaslt/{at}:2048/dtype:bf16/eager"),
            ("product_sm_90", "sm_90", "gemm_s8", f"linear/int8q:sm_90/{at}:2048/dtype:bf16/graph"),
            ("backward_sm_90", "sm_90", "backward_bf16", f"backward/int8q:sm_90/{at}:2048/dtype:bf16/graph"),
        ):
            with self.subTest(name):
                its_image, its_kernel, its_rows = of[name]
                self.assertEqual(its_image, image)
                self.assertRegex(kernel, its_kernel)
                self.assertRegex(f"{row}/iterations:1/manual_time", its_rows)
        for name in ("columns_64", "columns_all"):
            for other in (sweep(0), sweep(7), sweep(64, "element"), sweep(4096, "element")):
                self.assertNotRegex(f"{other}/iterations:1/manual_time", of[name][2])
        self.assertNotRegex("gemm_wgmma_s8_256", of["product_sm_90"][1])
        for rest in [rest for name, _, rest in played.calls if name == "ncu"]:
            self.assertRegex(rest, r"--metrics regex:\S*issue_stalled.* --shapes=4096x4096$")

    def test_profiles_of_nothing(self):
        """Without a line that is no head; one that is cut off is no fault, and leaves the others their part."""
        played = Played(DO_NCU="echo '==WARNING== No kernels were profiled.' >>\"$log\"")
        self.assertEqual(played.status, 1, played.output)
        self.assertEqual(
            played.step("profile of backward"), ["profile of backward: 0 lines; ==WARNING== No kernels were profiled."]
        )
        played = Played(DO_NCU=f"{SEES}; exit 3")
        self.assertEqual(played.status, 0, played.output)
        self.assertEqual(played.step("profile of backward"), ["profile of backward: 1 lines; status 3"])
        played = Played(DO_NCU='case $log in */decode.csv) sleep 100 ;; *) eval "$SEES" ;; esac')
        self.assertEqual(played.status, 0, played.output)
        self.assertEqual(played.step("profile of decode"), ["profile of decode: 0 lines; cut off, since time was up"])
        self.assertEqual(played.step("profile of backward"), ["profile of backward: 1 lines"])
        played = Played(DO_NCU="sleep 100", seconds=8)  # a second each, of which there are fewer than profiles
        self.assertEqual(played.step("profile of backward"), ["profile of backward: left out: no time is left"])

    def test_what_hangs_leaves_the_others_their_time(self):
        played = Played(DO_TEST="sleep 100")
        self.assertEqual(played.status, 1, played.output)
        self.assertIn("cut off", played.step("tests")[0])
        self.assertIn(("cuda_bench_linear", "sm_90"), played.programs())
        self.assertIn(("cuda_bench_linear", "sm_90a"), played.programs())
        self.assertIn(("compute-sanitizer", "sm_90"), played.programs())

    def test_a_sanitizer_that_is_cut_off(self):
        played = Played(DO_SANITIZER=f"{PASSES}; sleep 100")
        self.assertEqual(played.status, 0, played.output)
        self.assertIn("1 tests passed; no summary; cut off", played.step("memcheck")[0])
        for line in ("========= Invalid __global__ write of size 4 bytes", "[  FAILED  ] A.B"):
            played = Played(DO_SANITIZER=f"{PASSES}; echo '{line}'; sleep 100")
            self.assertEqual(played.status, 1, played.output)
            self.assertIn("1 lines of errors", played.step("memcheck")[0])

    def test_a_sanitizer_that_checks_nothing(self):
        for action in ("sleep 100", "exit 0"):
            played = Played(DO_SANITIZER=action)
            self.assertEqual(played.status, 1, played.output)
            self.assertIn("nothing was checked", played.step("memcheck")[0])

    def test_a_sanitizer_that_fails(self):
        self.assertEqual(Played(DO_SANITIZER=f"{PASSES}; exit 9").status, 1)

    def test_each_filter_has_tests(self):
        if not TEST_CUDA:
            self.skipTest("no test_cuda is given")
        listed = subprocess.run([*TEST_CUDA, "--gtest_list_tests"], check=True, capture_output=True, text=True).stdout
        tests, suite = [], ""
        for line in listed.splitlines():
            suite = suite if line.startswith(" ") else line.strip()
            tests += [suite + line.split()[0]] if line.startswith(" ") else []
        self.assertGreater(len(tests), 20, listed)
        played = Played(programs=("test_cuda", "compute-sanitizer"), cublaslt=True)
        options = " ".join(rest for _, _, rest in played.calls)
        filters = set(re.findall(r"--gtest_filter=(\S+)", options))
        self.assertGreater(len(filters), 3, options)
        for item in {item for one in filters for item in one.split(":")}:
            self.assertTrue(fnmatch.filter(tests, item), f"{item} matches none of {tests}")

    def test_doctor_of_the_wheel(self):
        """Packages that Python lacks are no fault, a GPU that does not work is."""
        for status, state, expected in (("0", "works", 0), ("1", "works", 0), ("0", "no kernels", 1)):
            played = Played(state=state, DOCTOR_OF_THE_WHEEL=status)
            self.assertEqual(played.status, expected, played.output)
            self.assertIn(f"by the wheel: the GPU {state}", played.step("doctor")[0])

    def test_a_command_that_does_not_load(self):
        played = Played(DO_DOCTOR="echo 'int8q: libint8q.so.1: cannot open shared object file'; exit 127")
        self.assertEqual(played.status, 0, played.output)
        self.assertIn("left out: int8q: libint8q.so.1: cannot open", played.step("doctor of the command")[0])

    def test_the_capability_by_test_cuda(self):
        played = Played(programs=("test_cuda", "cuda_bench_linear", "compute-sanitizer"))
        self.assertIn("GPU a-play;", played.output)
        self.assertIn(("test_cuda", "sm_90a"), played.programs())

    def test_faults(self):
        wrong = "echo \"cuBLASLt's s8 product equals int8q's: NO, of M=1\" >&2"
        row = "echo \"gemm/int8q:sm_90/K:8/graph ERROR OCCURRED: 'cuLaunchKernel'\""
        for actions in ({"DO_DOCTOR": "exit 1"}, {"DO_TEST": "exit 1"}, {"DO_BENCH": wrong}, {"DO_BENCH": row}):
            self.assertEqual(Played(**actions).status, 1, actions)
        self.assertEqual(Played(DO_BENCH=row.replace("cuLaunchKernel", "not reached in --seconds=1")).status, 0)

    def test_all_left_out(self):
        played = Played(programs=("int8q",))
        self.assertEqual(played.status, 1, played.output)
        self.assertIn("all were left out", played.output)


TEST_CUDA = sys.argv[1:]
if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
