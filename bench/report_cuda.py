#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Short tables of what tools/dev/gpu.sh has measured: bench_linear.json and compare_cuda.json of a folder. What is missing
is said.

    bench/report_cuda.py bench/results/cuda-NAME

Times are medians, of graphs where not said otherwise; ratios are the opponent's time over int8q's: below 1.00 int8q loses.
"""

import json
import sys
from pathlib import Path

from results import read_google_benchmark

MOST_ROTATED_ROWS = 64
SWEEP = (0, 7, 64)


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
        self.run, rows = read_google_benchmark(path, content)
        records = {}  # names, in the order of rows
        for record in content["benchmarks"]:
            if record.get("run_type", "iteration") == "iteration" and not record.get("error_occurred"):
                records.setdefault(record["run_name"])
        self.by_key = {}
        for name, row in zip(records, rows):
            contender = "int8q" if row.contender.startswith("int8q:") else row.contender
            key = self.key(row.operation, contender, row.K, row.N, row.M, "/graph/" in name)
            self.by_key[key, row.outliers, row.scope] = row

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
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths)))
    print()


def show_linears(rows, context):
    try:
        read = float(context["read_GB/s"])
    except (KeyError, ValueError):
        read = 0.0
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
    table(head, lines)


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
    print("quantize_rows alone; bytes read and written, % of a copy's")
    table("K M scope us GB/s %copy".split(), lines)


def show_bench(path):
    content = load(path)
    if content is None:
        return
    context, rows = content["context"], Rows(path, content)
    print(f"{context.get('gpu')}, capability {context.get('capability')}, driver of CUDA {context.get('driver')}")
    print(f"read {context.get('read_GB/s')} GB/s ({context.get('bandwidth_of')}), copy {context.get('copy_GB/s')} GB/s")
    print(f"%peak: of twice the best bf16 product's Tops: {context.get('bf16_Tops', 'not measured')}")
    print(f"cuBLASLt: {context.get('cublaslt')}; equals int8q's product: {context.get('cublaslt_s8_equals_int8q')}\n")
    show_linears(rows, context)
    show_backward(rows)
    show_sweep(rows)
    show_quantize(rows)
    for row in {json.dumps(row, sort_keys=True): row for row in rows.run.missing}.values():
        print("not measured: " + " ".join(str(value) for value in row.values()))


def show_comparison(path):
    content = load(path)
    if content is None:
        return
    print(f"{content['gpu']}, {content['versions']}")
    us_of = {(r["contender"], r["K"], r["N"], r["M"], r["graph"]): r["us"] for r in content["rows"]}
    names = list(dict.fromkeys((r["contender"], r["graph"]) for r in content["rows"]))
    others = [(name, graph) for name, graph in names if (name, graph) != ("int8q", graph)]
    lines = []
    for k, n, m in dict.fromkeys((r["K"], r["N"], r["M"]) for r in content["rows"]):
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


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    show_bench(folder / "bench_linear.json")
    show_comparison(folder / "compare_cuda.json")


if __name__ == "__main__":
    main()
