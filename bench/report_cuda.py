#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Short tables of what tools/dev/gpu.sh has measured: bench_linear.json and compare_cuda.json of a folder and of its folder
sm_90a, and the bars that int8q sets itself, met or missed. What is missing is said.

    bench/report_cuda.py bench/results/cuda-NAME

Times are medians, of graphs where not said otherwise; ratios are the opponent's time over int8q's: below 1.00 int8q loses.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from results import read_google_benchmark

MOST_ROTATED_ROWS = 64
WORDS = ("bar", "image", "where", "verdict")  # columns of tables
SWEEP = (0, 7, 64)
ONE_LAUNCH = 16 << 10  # kFusedBytes of src/cuda/layer.cpp


def load(path):
    """The file's content, or None, said."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"not measured: {path.name}: {error}")
        return None


class Rows:
    """Medians of Google Benchmark's rows, by operation, contender without image, K, N, M and what else the name says."""

    def __init__(self, path, content):
        _, rows = read_google_benchmark(path, content)
        self.context = content["context"]
        self.image = self.context.get("image", "?")
        records = {}  # names, in the order of rows
        for record in content["benchmarks"]:
            if record.get("run_type", "iteration") == "iteration" and not record.get("error_occurred"):
                records.setdefault(record["run_name"])
        self.by_key = {}
        for name, row in zip(records, rows):
            contender = "int8q" if row.contender.startswith("int8q:") else row.contender
            key = self.key(row.operation, contender, row.K, row.N, row.M, "/graph/" in name)
            self.by_key[key, row.outliers, row.scope] = row
        # Name -> why, of rows that were never measured.
        self.missing = {
            record["run_name"].removesuffix("/iterations:1/manual_time"): record["error_message"]
            for record in content["benchmarks"]
            if record.get("error_occurred") and record["run_name"] not in records
        }

    @property
    def read(self):
        """GB/s of a kernel that reads, or 0."""
        is_read = self.context.get("bandwidth_of") == "a kernel that reads"
        return float(self.context["read_GB/s"]) if is_read else 0.0

    @staticmethod
    def key(operation, contender, k, n, m, graph):
        return operation, contender, k, n, m, graph

    def find(self, operation, contender, k, n, m, graph=True, outliers=7, scope="column"):
        return self.by_key.get((self.key(operation, contender, k, n, m, graph), outliers, scope))

    def shapes(self, operation):
        return sorted({(key[2], key[3]) for key, *_ in self.by_key if key[0] == operation})

    def all_m(self, operation):
        return sorted({key[4] for key, *_ in self.by_key if key[0] == operation})


def us(row):
    return f"{row.ms * 1e3:.2f}" if row else "-"


def times(row, ours):
    return f"{row.ms / ours.ms:.2f}" if row and ours else "-"


def counter(row, name):
    return f"{row.counters[name]:.1f}" if row and name in row.counters else "-"


def over_reading(row, read):
    """Microseconds beyond one read of the weights; the share of bytes is told by the row's own counters."""
    return f"{row.ms * 1e3 - row.K * row.N / read * 1e-3:.1f}" if row and read else "-"


def table(head, lines):
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    for line in (head, *lines):
        cells = [
            cell.ljust(width) if column in WORDS else cell.rjust(width) for cell, width, column in zip(line, widths, head)
        ]
        print(("  " + "  ".join(cells)).rstrip())
    print()


def show_linears(rows):
    read = rows.read
    head = "K N M us eager %read us-over-read %peak gemm-us gemm-%peak x-s8 x-bf16 spread".split()
    lines = []
    for k, n in rows.shapes("linear"):
        for m in rows.all_m("linear"):
            ours, eager = rows.find("linear", "int8q", k, n, m), rows.find("linear", "int8q", k, n, m, False)
            gemm = rows.find("gemm", "int8q", k, n, m)
            s8, bf16 = rows.find("gemm", "cublaslt:s8", k, n, m), rows.find("gemm", "cublaslt:bf16", k, n, m)
            decode = m <= MOST_ROTATED_ROWS
            spread = f"{100 * (ours.high_ms - ours.low_ms) / ours.ms:.1f}%" if ours else "-"
            line = [str(k), str(n), str(m), us(ours), us(eager), counter(ours, "%bandwidth") if decode else ""]
            line += [over_reading(ours, read) if decode else "", counter(ours, "%peak"), us(gemm), counter(gemm, "%peak")]
            lines.append([*line, times(s8, ours), times(bf16, ours), spread])
    print("linear, bf16, 7 outlier columns, bias; x-s8, x-bf16: times of cuBLASLt's bare products; spread: of quartiles")
    print(
        "gemm: int8q's own product alone, whose blocks never share K, as the linear's may for M = 65 .. 512 and few tiles"
    )
    table(head, lines)


def show_all_mode(rows):
    lines = []
    for k, n in rows.shapes("linear"):
        for m in rows.all_m("linear"):
            ours, eager = (rows.find("linear", "int8q", k, n, m, graph, scope="all") for graph in (True, False))
            decode = m <= MOST_ROTATED_ROWS
            line = [str(k), str(n), str(m), us(ours), us(eager), counter(ours, "%bandwidth") if decode else ""]
            lines.append([*line, times(rows.find("gemm", "cublaslt:bf16", k, n, m), ours)])
    print("the same in mode ALL (W8A16): bf16 activations, int8 weights, no codes of activations")
    table("K N M us eager %read x-bf16".split(), lines)


def show_limit(rows):
    """Over 16 KiB of codes int8q takes two launches instead of one. If that step costs more than a row more does with the
    same launches on either side, one launch would be faster beyond the limit, and it is too low; if less, too high."""
    lines, before = [], None
    for k, n in rows.shapes("limit"):
        for m in rows.all_m("limit"):
            row = rows.find("limit", "int8q", k, n, m)
            if row is None:
                continue
            same = before and (before.K, before.M) == (k, m - 1)
            step = f"{1e3 * (row.ms - before.ms):+.2f}" if same else ""
            lines.append([str(k), str(n), str(m), f"{m * k / 1024:g}", "1" if m * k <= ONE_LAUNCH else "2", us(row), step])
            before = row
    print(
        "one launch up to 16 KiB of codes, then two: the step from the last of one to the first of two, beside steps of a"
    )
    print("row more with the same launches; a greater one says that the limit is too low, a smaller one too high")
    table("K N M KiB launches us step-us".split(), lines)


def show_backward(rows):
    head, lines = "K N M us x-bf16".split(), []
    for k, n in rows.shapes("backward"):
        for m in rows.all_m("backward"):
            ours = rows.find("backward", "int8q", k, n, m)
            lines.append([str(k), str(n), str(m), us(ours), times(rows.find("backward", "cublaslt:bf16", k, n, m), ours)])
    print("backward to the input; x-bf16: cuBLASLt's bf16 product's time over it")
    table(head, lines)


def show_sweep(rows):
    lines = []
    for k, n in rows.shapes("sweep"):
        for m in rows.all_m("sweep"):
            bf16 = rows.find("gemm", "cublaslt:bf16", k, n, m)
            for scope in ("column", "element"):
                none = rows.find("sweep", "int8q", k, n, m, outliers=0, scope=scope)
                for outliers in dict.fromkeys((*SWEEP, k)):
                    row = rows.find("sweep", "int8q", k, n, m, outliers=outliers, scope=scope)
                    more = f"{100 * (row.ms / none.ms - 1):+.1f}%" if row and none else "-"
                    lines.append([str(k), str(n), str(m), scope, str(outliers), us(row), more, times(row, bf16)])
    print("outlier columns; more: than without any; in-bf16: times of cuBLASLt's bf16 product")
    table("K N M scope columns us more in-bf16".split(), lines)


def show_quantize(rows):
    lines = []
    for k, n in rows.shapes("quantize_input"):
        for m in rows.all_m("quantize_input"):
            for scope in ("column", "element"):
                row = rows.find("quantize_input", "int8q", k, n, m, scope=scope)
                lines.append([str(k), str(m), scope, us(row), counter(row, "GB/s"), counter(row, "%bandwidth")])
    print("quantize_rows alone, of other rows at each call; bytes read and written, % of a copy's")
    table("K M scope us GB/s %copy".split(), lines)


def show_bench(rows):
    context = rows.context
    print(f"{context.get('gpu')}, capability {context.get('capability')}, driver of CUDA {context.get('driver')}")
    print(f"image {rows.image}, linears of more than {MOST_ROTATED_ROWS} rows by {context.get('gemm')}")
    print(f"read {context.get('read_GB/s')} GB/s ({context.get('bandwidth_of')}), copy {context.get('copy_GB/s')} GB/s")
    print(f"%peak: of twice the best bf16 product's Tops: {context.get('bf16_Tops', 'not measured')}")
    print(f"cuBLASLt: {context.get('cublaslt')}; equals int8q's product: {context.get('cublaslt_s8_equals_int8q')}")
    samples = [row.samples for row in rows.by_key.values()] or [0]
    print(f"{len(rows.by_key)} rows, of {min(samples)} to {max(samples)} repetitions\n")
    for show in (show_linears, show_all_mode, show_limit, show_backward, show_sweep, show_quantize):
        show(rows)
    for why in dict.fromkeys(rows.missing.values()):
        names = [name for name, reason in rows.missing.items() if reason == why]
        print(f"not measured, {why}: {len(names)} rows")
        for name in names:
            print(f"  {name}")


def show_images(usual, wgmma):
    """The rows that both runs have."""
    images = [rows.image for rows in (usual, wgmma)]
    head = "K N M".split() + [f"{what}:{image}" for what in ("linear-us", "gemm-us", "gemm-%peak") for image in images]
    lines = []
    for k, n in wgmma.shapes("linear"):
        for m in wgmma.all_m("linear"):
            linears = [rows.find("linear", "int8q", k, n, m) for rows in (usual, wgmma)]
            gemms = [rows.find("gemm", "int8q", k, n, m) for rows in (usual, wgmma)]
            if not any(linears + gemms):
                continue
            line = [str(k), str(n), str(m), *map(us, linears), *map(us, gemms)]
            line += [counter(gemm, "%peak") for gemm in gemms] + [times(linears[0], linears[1]), times(gemms[0], gemms[1])]
            lines.append(line)
    print(f"{images[0]} beside {images[1]}, each in a run of its own; x: times as fast by {images[1]}")
    table([*head, "x-linear", "x-gemm"], lines)


# ---- From Python


class Comparison:
    def __init__(self, content):
        self.content = content
        self.image = content["context"]["image"]
        self.us_of = {(r["contender"], r["K"], r["N"], r["M"], r["graph"]): r["us"] for r in content["rows"]}

    def cells(self):
        return dict.fromkeys((r["K"], r["N"], r["M"]) for r in self.content["rows"])

    def ratio(self, names, k, n, m, graph):
        """One (where, times as fast as the fastest of these contenders), or none."""
        ours = self.us_of.get(("int8q", k, n, m, graph))
        theirs = [self.us_of[key] for name in names if (key := (name, k, n, m, graph)) in self.us_of]
        if ours and theirs:
            yield f"{k}x{n}, M={m}", min(theirs) / ours


def show_comparison(comparison):
    content, us_of = comparison.content, comparison.us_of
    print(f"{content['gpu']}, int8q's image {comparison.image}, {content['versions']}")
    names = list(dict.fromkeys((r["contender"], r["graph"]) for r in content["rows"]))
    others = [(name, graph) for name, graph in names if (name, graph) != ("int8q", graph)]
    lines = []
    for k, n, m in comparison.cells():
        line = [str(k), str(n), str(m)]
        line += [f"{us_of[cell]:.2f}" if (cell := ("int8q", k, n, m, graph)) in us_of else "-" for graph in (False, True)]
        for name, graph in others:
            ours, theirs = us_of.get(("int8q", k, n, m, graph)), us_of.get((name, k, n, m, graph))
            line.append(f"{theirs / ours:.2f}" if ours and theirs else "-")
        lines.append(line)
    print("from Python: int8q's us, then times of others over it, eager over eager, graph over graph")
    table("K N M eager graph".split() + [name + (" graph" if graph else "") for name, graph in others], lines)
    errors = {}
    for row in content["rows"]:
        if row["relative_error"] is not None:
            errors.setdefault(row["contender"], []).append(row["relative_error"])
    print("relative error to fp32, greatest: " + ", ".join(f"{name} {max(e):.2g}" for name, e in errors.items()))
    for miss in content["missing"]:
        print("not measured: " + " ".join(f"{name}={value}" for name, value in miss.items()))


# ---- Bars

LARGE = 2048  # rows of a prefill


def over_one_read(rows):
    for k, n in rows.shapes("linear"):
        row = rows.find("linear", "int8q", k, n, 1)
        if row and rows.read:
            yield f"{k}x{n}", row.ms * 1e3 - k * n / rows.read * 1e-3


def against_torch(comparison):
    for k, n, m in comparison.cells():
        if m == 1 and k * n > 56e6:
            yield from comparison.ratio(("torch:bf16",), k, n, m, graph=True)


def products(rows):
    for k, n in rows.shapes("gemm"):
        for m in rows.all_m("gemm"):
            row = rows.find("gemm", "int8q", k, n, m)
            if m >= LARGE and row and "%peak" in row.counters:
                yield f"{k}x{n}, M={m}", row.counters["%peak"] / 100


def outlier_columns(count):
    def cells(rows):
        for k, n in rows.shapes("sweep"):
            for m in rows.all_m("sweep"):
                row, none = (rows.find("sweep", "int8q", k, n, m, outliers=c) for c in (count, 0))
                if row and none:
                    yield f"{k}x{n}, M={m}", row.ms / none.ms

    return cells


def all_columns(rows):
    for k, n in rows.shapes("sweep"):
        for m in rows.all_m("sweep"):
            row, bf16 = rows.find("sweep", "int8q", k, n, m, outliers=k), rows.find("gemm", "cublaslt:bf16", k, n, m)
            if row and bf16:
                yield f"{k}x{n}, M={m}", row.ms / bf16.ms


def backwards(rows):
    for k, n in rows.shapes("backward"):
        for m in rows.all_m("backward"):
            ours, bf16 = (rows.find("backward", name, k, n, m) for name in ("int8q", "cublaslt:bf16"))
            if ours and bf16:
                yield f"{k}x{n}, M={m}", bf16.ms / ours.ms


def against_bitsandbytes(is_judged):
    def cells(comparison):
        for k, n, m in comparison.cells():
            if is_judged(m):
                yield from comparison.ratio(("bitsandbytes:6", "bitsandbytes:6:f16"), k, n, m, graph=False)

    return cells


def errors_of_int8q(comparison):
    for row in comparison.content["rows"]:
        if row["contender"].startswith("int8q") and row["relative_error"] is not None:
            error = row["relative_error"]
            yield f"{row['K']}x{row['N']}, M={row['M']}, {row['contender']}", math.inf if math.isnan(error) else error


@dataclass(frozen=True)
class Bar:
    text: str
    sense: str  # what the figure of every cell must be of the limit: "<=" or ">="
    limit: float
    file: type  # Rows or Comparison, whose
    cells: Callable  # gives (where, figure)...
    wgmma: bool | None = None  # of runs with this kernel alone, or without it


# Of the norm of compare_cuda.py's results: no code is further from its value than half a step, 1 / 254 of its row's
# greatest. That is 3.5 deviations of the activations, where they are cut, and some 4.3 of the weights, in rows of up to
# 14336. The result is rounded to bf16.
MOST_ERROR = 3.5 / 254 + 4.3 / 254 + 2**-8

BARS = (
    Bar("decode, M=1: us over one read of the weights", "<=", 3.0, Rows, over_one_read),
    Bar("decode, M=1, weights above 56 MB: x torch bf16, by graph", ">=", 1.6, Comparison, against_torch),
    Bar("product alone, M >= 2048, mma.sync: of twice bf16's rate", ">=", 0.6, Rows, products, wgmma=False),
    Bar("product alone, M >= 2048, wgmma: of twice bf16's rate", ">=", 0.85, Rows, products, wgmma=True),
    Bar("7 outlier columns, column scope: x time without", "<=", 1.05, Rows, outlier_columns(7)),
    Bar("64 outlier columns, column scope: x time without", "<=", 1.15, Rows, outlier_columns(64)),
    Bar("all columns are outliers, column scope: in bf16 products", "<=", 3.0, Rows, all_columns),
    Bar("backward: x bf16's product", ">=", 0.8, Rows, backwards),
    Bar("M=1: x bitsandbytes, the faster of its dtypes", ">=", 4.0, Comparison, against_bitsandbytes(lambda m: m == 1)),
    Bar("M=512: x bitsandbytes", ">=", 2.0, Comparison, against_bitsandbytes(lambda m: m == 512)),
    Bar(
        "M >= 2048, mma: x bitsandbytes",
        ">=",
        1.1,
        Comparison,
        against_bitsandbytes(lambda m: m >= LARGE),
        wgmma=False,
    ),
    Bar("M >= 2048, wgmma: x bitsandbytes", ">=", 1.6, Comparison, against_bitsandbytes(lambda m: m >= LARGE), wgmma=True),
    Bar("error to fp32, relative to the result's norm", "<=", round(MOST_ERROR, 3), Comparison, errors_of_int8q),
)


def judge(bar, run):
    """The line of a bar and a run (Rows or None, Comparison or None): its worst cell; None without any."""
    source = next((source for source in run if isinstance(source, bar.file)), None)
    if source is None or bar.wgmma not in (None, source.image == "sm_90a"):
        return None
    cells = list(bar.cells(source))
    if not cells:
        return None
    at_most = bar.sense == "<="
    where, worst = (max if at_most else min)(cells, key=lambda cell: cell[1])
    missed = sum(figure > bar.limit if at_most else figure < bar.limit for _, figure in cells)
    verdict = f"missed by {100 * abs(worst / bar.limit - 1):.1f}%, {missed} of {len(cells)}" if missed else "met"
    return [bar.text, source.image, f"{bar.sense} {bar.limit:g}", f"{worst:.3f}", where, verdict]


def show_bars(runs):
    lines = []
    for bar in BARS:
        judged = [line for run in runs if (line := judge(bar, run))]
        lines += judged or [[bar.text, "", f"{bar.sense} {bar.limit:g}", "-", "", "not measured"]]
    print("bars: the worst shape's figure")
    table("bar image limit worst where verdict".split(), lines)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    runs = []
    for folder in (Path(sys.argv[1]), Path(sys.argv[1]) / "sm_90a"):
        if folder.name == "sm_90a" and not folder.is_dir():
            continue
        path = folder / "bench_linear.json"
        bench, compared = load(path), load(folder / "compare_cuda.json")
        rows, comparison = bench and Rows(path, bench), compared and Comparison(compared)
        runs.append((rows, comparison))
        if rows:
            show_bench(rows)
        if comparison:
            show_comparison(comparison)
    if len(runs) == 2 and all(rows for rows, _ in runs):
        show_images(*(rows for rows, _ in runs))
    show_bars(runs)


if __name__ == "__main__":
    main()
