# SPDX-License-Identifier: Apache-2.0
"""bench_report.py: what the benchmarks' report reads, judges and says, on results that are written here."""

import json
import sys
import tempfile
import types
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
sys.dont_write_bytecode = True
# What draws tables and pictures is not Python's own, and is not what is checked.
sys.modules["tabulate"] = types.SimpleNamespace(tabulate=lambda table, headers, **_: "\n".join(map(str, table)))
sys.modules["pictures"] = types.SimpleNamespace(draw=lambda *_: ([], []))
# E402: they are found by the path above.
import report  # noqa: E402
from bars import BARS, Elsewhere  # noqa: E402
from provenance import common_machine, disagreements  # noqa: E402
from results import Row, parse_name, read_folder  # noqa: E402
from verdicts import CellVerdict, Verdict, failures, judge_bar, judge_opponents, judge_peaks  # noqa: E402

BAR = {bar.key: bar for bar in BARS}
ZEN4 = {"vendor_id": "AuthenticAMD", "cpu family": "25", "model": "17", "flags": "avx2 avx512_vnni", "avxvnni": "EVEX"}
ZEN5 = {**ZEN4, "cpu family": "26"}
SAID = {"date": "2026-01-01T10:00:00+00:00", "library_sha256": "a" * 64}
PEAK = 64 * 2 * 2.5e-3 * 2  # Tops: 64 multiply-adds a cycle, 2.5 GHz, 2 threads
CLOCK = {"clock/core/T:1": {"GHz": 2.5}}
LINEAR = "linear/int8q:{}/K:4096/N:4096/M:{}/T:2/dtype:bf16"


def google(rows, **context):
    """rows: name -> microseconds or counters."""
    records = []
    for name, row in rows.items():
        us, counters = (1.0, row) if isinstance(row, dict) else (row, {})
        records.append({"name": name, "run_name": name + "/real_time", "real_time": us, "time_unit": "us", **counters})
    return {"context": {**ZEN4, **SAID, **context}, "benchmarks": records}


def comparison(rows, isa="native", **facts):
    """rows: (operation, contender, M, rotated) -> ms."""
    machine = {"vendor": "AuthenticAMD", "family": 25, "model": 17, "flags": ["avx512_vnni"]}
    versions = {"int8q_library_sha256": "a" * 64}
    content = {"date": SAID["date"], "isa": isa, "machine": machine, "versions": versions, "missing": [], "outliers": 7}
    content["rows"] = [
        {"operation": operation, "contender": contender, "K": 4096, "N": 4096, "M": m, "rotated": rotated}
        | {"threads": 2, "dtype": "bf16", "ms": ms, "samples_ms": [ms], "relative_error": 0.0}
        for (operation, contender, m, rotated), ms in rows.items()
    ]
    return {**content, **facts}


def checkpoint(mib, **facts):
    rows = [
        {"operation": "checkpoint_warm", "contender": contender, "seconds": seconds, "counters": {"MiB": mib}}
        for contender, seconds in (("copy", [1.0, 2.0, 1.5]), ("int8q", [2.0, 2.0, 2.0]))
    ]
    content = comparison({}, threads=2, **facts)
    return {**content, "rows": rows}


class Case(unittest.TestCase):
    def read(self, **files):
        """runs and rows of files NAME=content."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / f"{name}.json").write_text(json.dumps(content))
            runs, rows, unreadable = read_folder(folder)
        self.assertEqual(unreadable, [])
        return runs, rows

    def judge(self, key, **files):
        runs, rows = self.read(**files)
        machine = common_machine(runs)
        peaks = judge_peaks(rows, machine)
        return judge_bar(BAR[key], rows, peaks, judge_opponents(rows, machine, peaks))

    def verdicts(self, key, **files):
        return [cell.verdict for cell in self.judge(key, **files).cells]


class Reading(Case):
    def test_names(self):
        name = "linear/int8q:avx2/K:4096/N:768/M:8/T:2/dtype:bf16/rotated/outliers:41/scope:element/real_time"
        expected = {"operation": "linear", "contender": "int8q:avx2", "K": 4096, "N": 768, "M": 8, "threads": 2}
        expected |= {"dtype": "bf16", "rotated": True, "outliers": 41, "scope": "element"}
        self.assertEqual(parse_name(name), expected)
        self.assertEqual(parse_name("bandwidth/read/T:1"), {"operation": "bandwidth", "contender": "read", "threads": 1})

    def test_repetitions(self):
        content = google({})
        record = {"name": "call/x/T:1", "time_unit": "us", "run_type": "iteration"}
        content["benchmarks"] = [{**record, "real_time": us, "Tops": us} for us in (9.0, 1.0, 2.0)]
        content["benchmarks"] += [{"name": "call/y", "error_occurred": True, "error_message": "why"}]
        (run,), (row,) = self.read(bench_gemm=content)
        self.assertEqual((row.quantity("us"), row.samples, row.quantity("Tops")), (2.0, 3, 2.0))
        self.assertEqual(run.missing, [{"operation": "call", "contender": "y", "why": "why"}])

    def test_what_cannot_be_read_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("bench_a", "{"), ("compare_b", "{}"), ("other", "{}")):
                (Path(folder) / f"{name}.json").write_text(text)
            _, _, unreadable = read_folder(folder)
        self.assertEqual([name for name, _ in unreadable], ["bench_a.json", "compare_b.json", "other.json"])

    def test_kept_results_are_read_and_their_notes_are_of_bars(self):
        kept = [path for path in (ROOT / "bench/results").iterdir() if path.is_dir() and not path.name.startswith("cuda-")]
        self.assertTrue(kept)
        for folder in kept:  # a GPU's are report_cuda.py's
            self.assertEqual(read_folder(folder)[2], [], folder)
            report.read_notes(folder / "notes.toml")


class Bars(unittest.TestCase):
    def test_keys_are_unique_and_rows_can_be_found(self):
        self.assertEqual(len(BAR), len(BARS))
        attributes = set(Row.__dataclass_fields__) | {"source"}
        for bar in (bar for bar in BARS if not isinstance(bar, Elsewhere)):
            self.assertEqual(len({cell.label for cell in bar.cells}), len(bar.cells), bar.key)
            for cell in bar.cells:
                self.assertLessEqual(set(cell.top) | set(cell.bottom or {}), attributes, bar.key)


class Judging(Case):
    def prefill(self, of_peak, peak=PEAK, **context):
        rows = {LINEAR.format("avx512vnni", m): {"Tops": share * peak} for m, share in zip((128, 512), of_peak)}
        rows |= {**CLOCK, "peak/avx512vnni/T:2": {"Tops": peak}}
        return {"bench_linear": google(rows, **context)}

    def test_least(self):
        for share, verdict in ((0.93, "met"), (0.921, "met"), (0.91, "missed"), (0.79, "missed"), (0.78, "below .85")):
            found = self.judge("prefill-avx512vnni-peak", **self.prefill((share, 1.0)))
            self.assertEqual([cell.verdict for cell in found.cells], [verdict, "met"])
            self.assertEqual(found.verdict, verdict)

    def test_faster_than_the_bandwidth(self):
        name = "quantize_rows/int8q:avx2/K:8192/N:0/M:4096/T:2/dtype:f32"
        rows = {name: {"GB/s": 60.0}, "bandwidth/copy/T:2": {"GB/s": 50.0}}
        cells = self.judge("quantize-rows-f32", bench_quantize=google(rows)).cells
        self.assertEqual({cell.cell.label: cell.verdict for cell in cells}["avx2"], "met")
        name = "linear/int8q:avx2/K:4096/N:4096/M:1/T:2/dtype:bf16/rotated"
        rows = {name: {"GB/s": 60.0}, "bandwidth/read/T:2": {"GB/s": 50.0}}
        cells = self.judge("decode-bandwidth", bench_linear=google(rows)).cells
        self.assertEqual({cell.cell.label: cell.verdict for cell in cells}["avx2"], "invalid")

    def test_at_most(self):
        for ratio, verdict in ((1.0, "met"), (1.08, "met"), (1.09, "missed"), (1.26, "missed"), (1.28, "below .85")):
            name = LINEAR.format("avx2", 128) + "/outliers:"
            found = self.judge("outliers", bench_linear=google({name + "0": 100.0, name + "41": 100.0 * ratio}))
            self.assertEqual({cell.cell.label: cell.verdict for cell in found.cells}["avx2"], verdict)
            self.assertEqual(found.verdict, "not measured" if verdict == "met" else verdict)

    def test_no_second_row(self):
        for us, verdict in ((0.3, "met"), (1.1, "missed"), (1.2, "below .85")):
            name = "call/int8q:avx2/K:64/N:16/M:1/T:1/dtype:bf16/outliers:0"
            self.assertEqual(self.verdicts("call", bench_linear=google({name: us}))[-1], verdict)

    def test_missing_rows(self):
        files = self.prefill((0.95, 0.95))
        del files["bench_linear"]["benchmarks"][1]
        found = self.judge("prefill-avx512vnni-peak", **files)
        self.assertEqual([cell.verdict for cell in found.cells], ["met", "not measured"])
        self.assertEqual(found.verdict, "not measured")
        self.assertEqual(found.remarks, ["no Tops of linear/int8q:avx512vnni 4096x4096 M=512 in the c++ run"])
        self.assertEqual(self.judge("memory").verdict, "not measured")

    def test_peaks(self):
        key = "prefill-avx512vnni-peak"
        self.assertEqual(self.verdicts(key, **self.prefill((0.95, 0.5), peak=0.94 * PEAK)), ["invalid", "invalid"])
        self.assertEqual(self.verdicts(key, **self.prefill((1.03, 0.95))), ["invalid", "met"])
        unknown = self.prefill((0.95, 0.5), **{"cpu family": "6"})
        self.assertEqual(self.verdicts(key, **unknown), ["unchecked", "below .85"])
        # One disturbed process speaks for all; one thread's peak does not speak for two.
        files = self.prefill((0.95, 0.95))
        files["bench_gemm"] = google({**CLOCK, "peak/avx512vnni/T:2": {"Tops": PEAK / 2}})
        self.assertEqual(self.verdicts(key, **files), ["invalid", "invalid"])
        files["bench_gemm"] = google({**CLOCK, "peak/avx512vnni/T:1": {"Tops": PEAK / 4}})
        self.assertEqual(self.verdicts(key, **files), ["met", "met"])
        tile = {"microkernel/int8q:avx512vnni/K:320/N:64/M:6/T:1": {"Tops": 0.24 * PEAK}}
        files["bench_gemm"] = google({**CLOCK, **tile, "peak/avx512vnni/T:1": {"Tops": PEAK / 4}})
        self.assertEqual(self.verdicts("microkernel", **files)[0], "invalid")

    def test_opponents(self):
        """On the machine of the references, .9 of them; elsewhere they only leave a remark."""
        for context, ms, verdict in ((ZEN5, 2.3, "met"), (ZEN5, 2.4, "invalid"), (ZEN4, 99.0, "met")):
            rows = {"gemm/onednn:s8/K:4096/N:4096/M:128/T:2": 1e3 * ms, LINEAR.format("avx512vnni", 128): 1e3 * ms}
            rows |= {**CLOCK, "peak/avx512vnni/T:2": {"Tops": PEAK}}
            found = self.judge("prefill-onednn", bench_linear=google(rows, **context))
            self.assertEqual(found.cells[0].verdict, verdict)
            self.assertEqual("onednn:s8 M=128 is slower than expected" in found.remarks, ms == 99.0)

    def test_rotated(self):
        rows = {
            ("linear", contender, 1, True): ms for contender, ms in (("bitsandbytes:6", 3.0), ("int8q:avx512vnni", 1.0))
        }
        found = self.judge("bitsandbytes-rotated", compare_native=comparison(rows))
        self.assertEqual([(cell.value, cell.verdict) for cell in found.cells], [(3.0, "met"), (None, "not measured")])
        self.assertEqual(self.verdicts("bitsandbytes-eval", compare_native=comparison(rows)), ["not measured"] * 4)

    def test_checkpoint(self):
        self.assertEqual(self.judge("checkpoint-time", checkpoint=checkpoint(10)).cells[0].value, 0.75)
        for mib, verdict in ((256, "met"), (257, "missed"), (302, "below .85")):
            self.assertEqual(self.verdicts("checkpoint-memory", checkpoint=checkpoint(mib))[0], verdict)

    def test_encoding(self):
        rows = {**CLOCK, LINEAR.format("avxvnni", 128): {"Tops": PEAK}, "peak/avxvnni/T:2": {"Tops": PEAK}}
        for encoding, is_said in (("EVEX", True), ("VEX", False)):
            remarks = self.judge("prefill-avxvnni-peak", bench_linear=google(rows, avxvnni=encoding)).remarks
            self.assertEqual("avxvnni is EVEX-encoded" in remarks, is_said)


class OneRun(Case):
    def doubts(self, **files):
        runs, _ = self.read(**files)
        return disagreements(runs)

    def test_agreement(self):
        late = comparison({}, date="2026-01-01T12:59:00+00:00")
        self.assertEqual(self.doubts(bench_a=google({}), compare_b=late, checkpoint=checkpoint(1)), [])

    def test_machines(self):
        files = {"bench_a": google({}, **ZEN5), "compare_b": comparison({})}
        (doubt,) = self.doubts(**files)
        self.assertIn(
            "AuthenticAMD family 26 model 17: bench_a.json; AuthenticAMD family 25 model 17: compare_b.json", doubt
        )
        self.assertEqual(common_machine(self.read(**files)[0]), {})

    def test_libraries(self):
        (doubt,) = self.doubts(bench_a=google({}), bench_b=google({}, library_sha256="b" * 64))
        self.assertTrue(doubt.startswith("the library differs"), doubt)

    def test_dates(self):
        (doubt,) = self.doubts(bench_a=google({}), bench_b=google({}, date="2026-01-01T13:30:00+00:00"))
        self.assertEqual(doubt, "bench_a.json and bench_b.json were begun 3.5 hours apart")

    def test_silence(self):
        silent = {"context": {}, "benchmarks": []}
        expected = [f"the {what} is not said by bench_b.json" for what in ("machine", "library", "date")]
        self.assertEqual(self.doubts(bench_a=google({}), bench_b=silent), expected)
        runs, _ = self.read(bench_a=google({}), bench_b=silent)
        self.assertEqual(common_machine(runs)["family"], 25)


class Acceptance(unittest.TestCase):
    KEY = "bitsandbytes-eval"  # cells M=1, 8, 128, 512; limits 3, 7, 2.5, 2.3

    def verdict(self, *of_cells):
        cells = [CellVerdict(cell, cell.limit, verdict) for cell, verdict in zip(BAR[self.KEY].cells, of_cells)]
        return [Verdict(BAR[self.KEY], cells), Verdict(BAR["memory"], [])]

    def names(self, *of_cells):
        return [(why, [cell.cell.label for cell in cells]) for why, _, cells in failures(self.verdict(*of_cells))]

    def test_rule(self):
        self.assertEqual(self.names("met", "missed", "met", "missed"), [])
        must, below, not_judged = "missed at M=1 or M=128", "below .85 of its bar", "not judged"
        self.assertEqual(self.names("missed", "met", "missed", "met"), [(must, ["M=1", "M=128"])])
        self.assertEqual(self.names("met", "below .85", "met", "met"), [(below, ["M=8"])])
        self.assertEqual(self.names("below .85", "met", "met", "met"), [(must, ["M=1"])])
        self.assertEqual(self.names("invalid", "unchecked", "not measured", "met"), [(not_judged, ["M=1", "M=8", "M=128"])])

    def test_text(self):
        kept = report.acceptance(self.verdict("met", "missed", "met", "met"), {}, [])
        self.assertEqual(kept, f"{report.RULE}: yes.")
        text = report.acceptance(self.verdict("missed", "met", "met", "below .85"), {}, [])
        self.assertIn(": no.\n", text)
        missed = f"- missed at M=1 or M=128: {self.KEY} (≥ 3): M=1 3 missed; not explained: M=1"
        below = f"- below .85 of its bar: {self.KEY} (≥ 2.3): M=512 2.3 below .85; not explained: M=512"
        self.assertEqual(text.splitlines()[2:], [missed, below])
        text = report.acceptance(self.verdict("met", "met", "met", "met"), {}, ["the machine differs"])
        self.assertEqual(text.splitlines()[0][-5:] + text.splitlines()[2], ": no.- not one run: the machine differs")

    def test_notes(self):
        verdicts = self.verdict("missed", "missed", "met", "missed")
        for notes, unexplained in (
            ({}, "M=1, M=8, M=512"),
            ({self.KEY: {"M=1": "why"}}, "M=8, M=512"),
            ({self.KEY: "why"}, ""),
        ):
            remarks = report.remarks_of(verdicts[0], notes)
            self.assertEqual(remarks.partition(": not explained")[0].split("; ")[-1] if unexplained else "", unexplained)
            self.assertEqual("not explained" in remarks, bool(unexplained))
            self.assertEqual("not explained" in report.acceptance(verdicts, notes, []), "M=1" in unexplained.split(", "))

    def test_notes_of_nothing(self):
        for text in ('nothing = "why"', f'{self.KEY}."M=2" = "why"', f'{self.KEY} = {{ "M=8" = "why" }}'):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "notes.toml"
                path.write_text(text)
                if "M=8" in text:
                    self.assertEqual(report.read_notes(path), {self.KEY: {"M=8": "why"}})
                else:
                    self.assertRaisesRegex(SystemExit, "expected", report.read_notes, path)

    def test_table(self):
        table = report.bar_table(self.verdict("met", "missed", "met", "below .85"), {})
        for part in ("'design'", "≥ 3 / 7 / 2.5 / 2.3", "M=1 3 met, M=8 7 missed, M=128 2.5 met, M=512 2.3 below .85"):
            self.assertIn(part, table)


if __name__ == "__main__":
    unittest.main()
