# SPDX-License-Identifier: Apache-2.0
"""Reads a folder of bench_*.json (Google Benchmark), compare_*.json (compare_python.py) and checkpoint.json as rows."""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

COMPARISONS = ("native", "avx2")  # runs of compare_python.py


@dataclass
class Run:
    """One process: everything in it took turns on the same machine."""

    path: Path
    source: str  # "c++", a comparison, or "checkpoint"
    facts: dict  # date, command, versions, machine, library: what the file says about itself
    missing: list = field(default_factory=list)


@dataclass
class Row:
    """A measured cell. ms is the median of `samples`; counters are Tops, GB/s, GHz and so on."""

    run: Run
    operation: str
    contender: str
    K: int = 0
    N: int = 0
    M: int = 0
    threads: int = 1
    dtype: str = ""
    outliers: int = 7  # columns, as in the definition of "linear"
    scope: str = "column"
    rotated: bool = False
    ms: float = 0.0
    low_ms: float = 0.0  # quartiles
    high_ms: float = 0.0
    samples: int = 1
    error: float | None = None
    counters: dict = field(default_factory=dict)

    @property
    def source(self):
        return self.run.source

    @property
    def evex(self):
        """AVX-VNNI's kernels as the test library has them."""
        return self.contender == "int8q:avxvnni" and self.run.facts.get("avxvnni") == "EVEX"

    def quantity(self, name):
        """ms, us, or a counter; Tops follow from the time where the file has none. None if the row does not have it."""
        if name in ("ms", "us"):
            return self.ms * {"ms": 1.0, "us": 1e3}[name] or None
        if name == "Tops" and name not in self.counters and self.K * self.N * self.M:
            return 2e-9 * self.K * self.N * self.M / self.ms
        return self.counters.get(name)


TO_MS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
INTEGERS = {"K": "K", "N": "N", "M": "M", "T": "threads", "outliers": "outliers"}
TEXTS = {"dtype": "dtype", "scope": "scope"}
# Keys of a Google Benchmark record that are no counters.
RECORD_KEYS = (
    "family_index per_family_instance_index repetitions repetition_index threads iterations real_time cpu_time".split()
)


def parse_name(name):
    """operation/contender/K:4096/.../rotated -> arguments of Row. Unknown parts are Google Benchmark's own."""
    operation, contender, *parts = name.split("/")
    arguments = {"operation": operation, "contender": contender}
    for part in parts:
        key, _, value = part.partition(":")
        if key in INTEGERS and value.isdigit():
            arguments[INTEGERS[key]] = int(value)
        elif key in TEXTS:
            arguments[TEXTS[key]] = value
        elif part == "rotated":
            arguments["rotated"] = True
    return arguments


def quartiles(values):
    return statistics.quantiles(values, n=4, method="inclusive")[::2] if len(values) > 1 else (values[0], values[0])


def read_google_benchmark(path, content):
    context = content.get("context", {})
    facts = {name: context.get(name) for name in ("date", "cpu", "library_sha256", "avxvnni")}
    facts["command"] = context.get("command") or context.get("executable")
    facts["versions"] = {name: context[name] for name in ("int8q", "onednn", "compiler") if name in context}
    facts["machine"] = {}
    if "vendor_id" in context:
        family, model = int(context["cpu family"]), int(context["model"])
        flags = context["flags"].split()
        facts["machine"] = {"vendor": context["vendor_id"], "family": family, "model": model, "flags": flags}
    run = Run(path, "c++", facts)
    repetitions = {}
    for record in content["benchmarks"]:
        name = record.get("run_name", record["name"])
        if record.get("error_occurred") or record.get("skipped"):
            why = record.get("error_message") or record.get("skip_message")
            run.missing.append({**parse_name(name), "why": why or "skipped"})
        elif record.get("run_type", "iteration") == "iteration" or record.get("aggregate_name") == "median":
            repetitions.setdefault(name, []).append(record)
    rows = []
    for name, records in repetitions.items():
        # The repetitions themselves say more than their median; a file of aggregates has only that.
        records = [r for r in records if r.get("run_type") != "aggregate"] or records
        times = [r["real_time"] * TO_MS[r["time_unit"]] for r in records]
        numbers = {k for r in records for k, v in r.items() if isinstance(v, (int, float)) and k not in RECORD_KEYS}
        counters = {k: statistics.median(r[k] for r in records if k in r) for k in numbers}
        low, high = quartiles(times)
        ms = statistics.median(times)
        rows.append(Row(run, **parse_name(name), ms=ms, low_ms=low, high_ms=high, samples=len(times), counters=counters))
    return run, rows


def with_library(content):
    return {**content, "library_sha256": content["versions"].get("int8q_library_sha256")}


def read_comparison(path, content):
    run = Run(path, content["isa"], with_library(content), content["missing"])
    rows = []
    for record in content["rows"]:
        low, high = quartiles(record["samples_ms"])
        names = ("operation", "contender", "K", "N", "M", "threads", "dtype", "rotated", "ms")
        rows.append(
            Row(
                run,
                **{name: record[name] for name in names},
                outliers=content["outliers"],
                low_ms=low,
                high_ms=high,
                samples=len(record["samples_ms"]),
                error=record["relative_error"],
            )
        )
    return run, rows


def read_checkpoint(path, content):
    run = Run(path, "checkpoint", with_library(content), content["missing"])
    rows = []
    for record in content["rows"]:
        samples = [1e3 * seconds for seconds in record["seconds"]]
        low, high = quartiles(samples)
        row = Row(run, record["operation"], record["contender"], threads=content["threads"], counters=record["counters"])
        row.ms, row.low_ms, row.high_ms, row.samples = statistics.median(samples), low, high, len(samples)
        rows.append(row)
    return run, rows


READERS = {"bench": read_google_benchmark, "compare": read_comparison, "checkpoint": read_checkpoint}


def read_folder(folder):
    """(runs, rows, unreadable): a file that cannot be read is named with its reason, never skipped in silence."""
    runs, rows, unreadable = [], [], []
    for path in sorted(Path(folder).glob("*.json")):
        reader = READERS.get(path.stem.split("_")[0])
        if reader is None:
            unreadable.append((path.name, "none of bench_*.json, compare_*.json, checkpoint.json"))
            continue
        try:
            run, new = reader(path, json.loads(path.read_text(encoding="utf-8")))
        except KeyError as error:
            unreadable.append((path.name, f"has no {error}"))
            continue
        except (ValueError, TypeError) as error:
            unreadable.append((path.name, f"{type(error).__name__}: {error}"))
            continue
        runs.append(run)
        rows += new
    return runs, rows, unreadable


def find(rows, **wanted):
    """The row with these attributes; of several, in files of several processes, the one with the most samples. Or None."""
    found = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    return max(found, key=lambda row: row.samples, default=None)
