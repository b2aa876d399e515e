# SPDX-License-Identifier: Apache-2.0
"""cuda_report.py: what bench/report_cuda.py judges and says of a GPU's results, on results that are written here."""

import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
sys.dont_write_bytecode = True
import report_cuda  # noqa: E402

READ = {"bandwidth_of": "a kernel that reads", "read_GB/s": "2000"}  # 4096 x 4096 in 8.39 us
LINEAR = "linear/int8q:{}/K:4096/N:4096/M:{}/dtype:bf16{}/graph"
GEMM = "gemm/{}/K:4096/N:4096/M:{}/dtype:{}/graph"
SWEEP = "sweep/int8q:sm_90/K:4096/N:4096/M:512/dtype:bf16/outliers:{}/scope:column/graph"
BACKWARD = "backward/{}/K:4096/N:4096/M:512/dtype:bf16/graph"


def bench(rows, image="sm_90", **context):
    """rows: name -> microseconds, (microseconds, counters), or why it failed."""
    records = []
    for name, row in rows.items():
        record = {"run_name": f"{name}/iterations:1/manual_time", "run_type": "iteration", "time_unit": "us"}
        if isinstance(row, str):
            record |= {"error_occurred": True, "error_message": row, "real_time": 0.0}
        else:
            us, counters = row if isinstance(row, tuple) else (row, {})
            record |= {"real_time": us, **counters}
        records.append({"name": name, **record})
    return {"context": {"image": image, **READ, **context}, "benchmarks": records}


def comparison(rows, image="sm_90"):
    """rows: (contender, K, N, M, graph) -> microseconds."""
    records = [
        dict(zip(("contender", "K", "N", "M", "graph"), key), us=us, relative_error=None) for key, us in rows.items()
    ]
    return {"context": {"image": image}, "gpu": "a play", "versions": {}, "missing": [], "rows": records}


def report_of(folder):
    said = io.StringIO()
    before, sys.argv = sys.argv, ["report_cuda.py", str(folder)]
    try:
        with contextlib.redirect_stdout(said):
            report_cuda.main()
    finally:
        sys.argv = before
    return said.getvalue()


def report(**files):
    """Of bench, python, and the same of the folder sm_90a: bench_sm_90a, python_sm_90a."""
    names = {"bench": "bench_linear.json", "python": "compare_cuda.json"}
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            kind, _, below = name.partition("_")
            path = Path(folder) / below / names[kind]
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content))
        return report_of(folder)


class CudaReport(unittest.TestCase):
    def bar(self, text, begin, image=""):
        """The verdict in the line of a bar."""
        found = [line for line in text.split("bars: ")[1].splitlines() if line.strip().startswith(begin)]
        found = [line for line in found if f" {image} " in line] if image else found
        self.assertEqual(len(found), 1, text)
        return found[0]

    def judge(self, begin, verdict, image="", **files):
        self.assertIn(verdict, self.bar(report(**files), begin, image))

    def test_every_bar_says_that_nothing_was_measured(self):
        text = report(bench=bench({}), python=comparison({}))
        self.assertEqual(text.count("not measured\n"), len(report_cuda.BARS) + 1, text)  # and the peak

    def test_decode(self):
        for us, verdict in ((11.3, "met"), (11.5, "missed by 3.7%, 1 of 1")):
            self.judge("decode, M=1: us", verdict, bench=bench({LINEAR.format("sm_90", 1, "/rotated"): us}))
        rows = {LINEAR.format("sm_90", 1, "/rotated"): 9.0}
        self.judge("decode, M=1: us", "not measured", bench=bench(rows, bandwidth_of="a copy, bytes read and written"))

    def test_decode_beside_torch(self):
        ours, theirs = (("int8q", 14336, 4096, 1, True), ("torch:bf16", 14336, 4096, 1, True))
        for us, verdict in ((16.1, "met"), (15.2, "missed by 5.0%")):
            self.judge("decode, M=1, weights above", verdict, python=comparison({ours: 10.0, theirs: us}))
        small = {("int8q", 4096, 4096, 1, True): 10.0, ("torch:bf16", 4096, 4096, 1, True): 11.0}
        self.judge("decode, M=1, weights above", "not measured", python=comparison(small))

    def test_products(self):
        gemm = GEMM.format("int8q:sm_90", 2048, "s8")
        for peak, verdict in ((61.0, "met"), (54.0, "missed by 10.0%")):
            self.judge("product alone, M >= 2048, mma", verdict, bench=bench({gemm: (9.0, {"%peak": peak})}))
        few = GEMM.format("int8q:sm_90", 512, "s8")
        self.judge("product alone, M >= 2048, mma", "not measured", bench=bench({few: (9.0, {"%peak": 10.0})}))
        of_90a = {GEMM.format("int8q:sm_90a", 2048, "s8"): (9.0, {"%peak": 68.0})}
        files = {"bench": bench({gemm: (9.0, {"%peak": 61.0})}), "bench_sm_90a": bench(of_90a, image="sm_90a")}
        self.judge("product alone, M >= 2048, wgmma", "missed by 20.0%", image="sm_90a", **files)
        self.judge("product alone, M >= 2048, mma", " sm_90 ", **files)  # its line alone

    def test_images_side_by_side(self):
        files = {"bench": bench({LINEAR.format("sm_90", 2048, ""): 120.0})}
        files["bench_sm_90a"] = bench({LINEAR.format("sm_90a", 2048, ""): 80.0}, image="sm_90a")
        line = report(**files).split("sm_90 beside sm_90a")[1].splitlines()[2].split()
        self.assertEqual(line, ["4096", "4096", "2048", "120.00", "80.00", "-", "-", "-", "-", "1.50", "-"])

    def test_outlier_columns(self):
        none = {SWEEP.format(0): 100.0, GEMM.format("cublaslt:bf16", 512, "bf16"): 50.0}
        for columns, begin, us, more in ((7, "7 outlier", 105.0, 106.0), (64, "64 outlier", 115.0, 117.0)):
            self.judge(begin, "met", bench=bench({**none, SWEEP.format(columns): us}))
            self.judge(begin, "missed by", bench=bench({**none, SWEEP.format(columns): more}))
        self.judge("all columns", "met", bench=bench({**none, SWEEP.format(4096): 149.0}))
        self.judge("all columns", "missed by 2.0%", bench=bench({**none, SWEEP.format(4096): 153.0}))

    def test_backward(self):
        for us, verdict in ((62.0, "met"), (80.0, "missed by 21.9%")):
            rows = {BACKWARD.format("int8q:sm_90"): us, BACKWARD.format("cublaslt:bf16"): 50.0}
            self.judge("backward", verdict, bench=bench(rows))

    def test_bitsandbytes(self):
        for m, image, begin, limit in (
            (1, "sm_90", "M=1: x", 4.0),
            (512, "sm_90", "M=512: x", 2.0),
            (2048, "sm_90", "M >= 2048, mma", 1.1),
            (2048, "sm_90a", "M >= 2048, wgmma", 1.6),
        ):
            rows = {("int8q", 4096, 4096, m, False): 100.0, ("bitsandbytes:6", 4096, 4096, m, False): 1000.0}
            for factor, verdict in ((1.01, "met"), (0.9, "missed by 10.0%")):
                rows["bitsandbytes:6:f16", 4096, 4096, m, False] = 100 * limit * factor
                self.judge(begin, verdict, python=comparison(rows, image=image))

    def test_errors(self):
        for contender, error, verdict in (
            ("int8q", 0.008, "met"),
            ("int8q:element", 0.044, "missed by 25.7%, 1 of 1"),
            ("int8q", float("nan"), "missed by inf%"),
            ("bitsandbytes:0", 0.5, "not measured"),
        ):
            python = comparison({(contender, 4096, 4096, 512, False): 1.0})
            python["rows"][0]["relative_error"] = error
            self.judge("error to fp32", verdict, python=python)

    def test_the_worst_shape_counts(self):
        rows = {
            GEMM.format("int8q:sm_90", 2048, "s8"): (9.0, {"%peak": 66.0}),
            GEMM.format("int8q:sm_90", 4096, "s8"): (9.0, {"%peak": 30.0}),
        }
        line = self.bar(report(bench=bench(rows)), "product alone, M >= 2048, mma")
        self.assertIn("4096x4096, M=4096", line)
        self.assertIn("missed by 50.0%, 1 of 2", line)

    def test_all_mode_and_choices_are_shown(self):
        rows = {
            LINEAR.format("sm_90:cublaslt", 2048, ""): 111.11,
            LINEAR.format("sm_90", 2048, "/scope:all"): 222.22,
            GEMM.format("cublaslt:bf16", 2048, "bf16"): 444.44,
        }
        text = report(bench=bench(rows, gemm="cuBLASLt 13"))
        self.assertIn("111.11", text.split("mode ALL")[0])
        self.assertRegex(text.split("mode ALL")[1], r"2048 +222.22 .* 2.00")
        self.assertIn("image sm_90, linears of more than 64 rows by cuBLASLt 13", text)

    def test_the_limit_of_one_launch(self):
        rows = {f"limit/int8q:sm_90/K:4096/N:4096/M:{m}/dtype:bf16/rotated/graph": us for m, us in ((3, 8.0), (4, 8.25))}
        rows["limit/int8q:sm_90/K:4096/N:4096/M:5/dtype:bf16/rotated/graph"] = 10.0
        lines = [line.split() for line in report(bench=bench(rows)).split("one launch up to")[1].splitlines()[3:6]]
        self.assertEqual(
            [line[3:] for line in lines], [["12", "1", "8.00"], ["16", "1", "8.25", "+0.25"], ["20", "2", "10.00", "+1.75"]]
        )

    def test_kept_results_have_the_report_beside_them(self):
        kept = sorted((ROOT / "bench/results").glob("cuda-*"))
        self.assertTrue(kept)
        for folder in kept:
            self.assertEqual(report_of(folder), (folder / "report.txt").read_text(), folder)

    def test_what_was_not_reached_is_named(self):
        rows = {LINEAR.format("sm_90", m, ""): "not reached in --seconds=5" for m in (128, 512)}
        rows[BACKWARD.format("int8q:sm_90")] = "cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS"
        text = report(bench=bench(rows))
        self.assertIn("not measured, not reached in --seconds=5: 2 rows\n  " + LINEAR.format("sm_90", 128, ""), text)
        self.assertIn("not measured, cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS: 1 rows\n", text)


if __name__ == "__main__":
    unittest.main()
