#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes report.md and its pictures from a folder of results, and prints which bars are met.

    bench/report.py build/release/bench

The folder holds bench_*.json (Google Benchmark), compare_*.json (compare_python.py) and checkpoint.json (checkpoint.py);
what is not there is reported as not measured. notes.toml beside them may explain bars that are missed: key = "text" for a
whole bar, or key.cell = "text", the keys and cells being those of bars.py.
"""

import argparse
import textwrap
from pathlib import Path

import tomllib
from bars import BARS, ISAS, THREADS, Elsewhere, linear
from pictures import draw
from provenance import common_machine, disagreements
from results import COMPARISONS, find, read_folder
from tabulate import tabulate
from verdicts import REFERENCE_MACHINE, core_of, failures, judge_bar, judge_opponents, judge_peaks

WIDTHS = (7, 12, 40, 20, 30, 9, 36)  # of the table on a terminal

RULE = "Each bar that is measured is met at M=1 and M=128, no other cell is below .85 of its bar, and all of it is one run"

HONESTY = f"""\
Bars are ratios of two things that were measured here, and are never rescaled. They were set on {REFERENCE_MACHINE},
whose cores do up to twice the int8 operations of a Zen 4 core in a cycle: where int8q is bound by arithmetic and its
opponent by memory or overheads, a ratio that was set there may be out of reach here, and it is missed all the same.

A peak is a loop that touches registers only. It must reach what the core can do in a cycle, else something disturbed
the run and its shares of the peak are invalid. Where the core is not known, the peak is said to be unchecked.

The references of the opponents were measured on {REFERENCE_MACHINE}. On that machine an opponent below .9 of its
reference makes its bar invalid. On any other machine a reference says little: times that are bound by arithmetic (M >=
128) are scaled by the ratio of the measured peaks, which assumes that the opponent reaches the same share of the peak
on both; bitsandbytes spends much of its time in passes over memory, for which that is a guess. Times for M = 1 and 8
are bound by memory or overheads, which the references do not tell, and are not judged. An opponent that is slower than
its scaled reference is marked at its bars, since its ratio may flatter int8q; it does not make them invalid.

AVX-VNNI's kernels that are said to be EVEX-encoded are those of the test library, which CPUs with AVX512-VNNI run; the
library's own are the same instructions, VEX-encoded.

The bandwidth that quantization and packing are compared with is a copy's: half of its bytes are read, half are written by
non-temporal stores, all in huge pages. Quantization reads more than it writes, writes through the caches, which read a line
before, and works on what malloc gives: pages of 4 KiB."""

CHECKPOINT = """\
`int8q quantize` reads bf16 and writes codes and scales, and syncs the file and its folder; the copy reads as many bytes and
writes as many, from the same number of threads, and syncs. GB/s are of both together, MiB the most of anonymous memory.
Warm: the input is in the page cache; cold: it was dropped from it."""

PICTURES = """\
Rooflines: int8q as C++ calls it, oneDNN bare, the others as torch calls them; weights that a cache holds between calls
may lie above the memory's roof. FBGEMM's AVX2 kernel may lie above the roof of the exact pair: its vpmaddubsw makes
twice the products of vpmaddwd, and saturates. Times and ratios: one process each, cached weights; hollow red marks left
of 1 are losses."""


def value_text(bar, value):
    return f"{100 * value:.4g}%" if bar.unit == "%" else f"{value:.4g}{bar.unit}"


def limit_text(bar, cells):
    limits = [cell.limit for cell in cells]
    limits = limits[:1] if len(set(limits)) == 1 else limits
    return ("≤ " if bar.at_most else "≥ ") + " / ".join(value_text(bar, limit) for limit in limits)


def cell_text(bar, cell):
    value = "" if cell.value is None else f" {value_text(bar, cell.value)}"
    return f"{cell.cell.label}{value} {cell.verdict}"


def on_one_line(text):
    """As a cell of a table."""
    return " ".join(text.split())


def note_of(notes, bar, cell):
    """The text on a bar, or on this cell of it; "" if there is none."""
    note = notes.get(bar.key, "")
    return on_one_line(note if isinstance(note, str) else note.get(cell.cell.label, ""))


def unexplained(bar, cells, notes):
    return [cell for cell in cells if cell.verdict in ("missed", "below .85") and not note_of(notes, bar, cell)]


def remarks_of(verdict, notes):
    note = notes.get(verdict.bar.key, {})
    texts = [note] if isinstance(note, str) else [f"{label}: {text}" for label, text in note.items()]
    texts = [on_one_line(text) for text in texts]
    missed = ", ".join(cell.cell.label for cell in unexplained(verdict.bar, verdict.cells, notes))
    return "; ".join([*verdict.remarks, *texts, *([f"{missed}: not explained"] if missed else [])])


def bar_table(verdicts, notes, widths=None):
    """One line a bar; with widths, cells are wrapped for a terminal."""
    table = []
    for verdict in verdicts:
        bar = verdict.bar
        measured = ["", ""]
        if not isinstance(bar, Elsewhere):
            measured = [limit_text(bar, bar.cells), ", ".join(cell_text(bar, cell) for cell in verdict.cells)]
        table.append([bar.set_by, bar.row, bar.text, *measured, verdict.verdict, remarks_of(verdict, notes)])
    if widths:
        table = [["\n".join(textwrap.wrap(cell, width)) for cell, width in zip(row, widths)] for row in table]
    headers = ["set by", "row", "what", "bar", "measured", "verdict", "remarks"]
    return tabulate(table, headers, tablefmt="simple" if widths else "github")


def acceptance(verdicts, notes, doubts):
    """The rule, whether this folder keeps it, and by name what does not."""
    failed = failures(verdicts)
    lines = [f"{RULE}: {'no' if doubts or failed else 'yes'}.", ""]
    lines += [f"- not one run: {doubt}" for doubt in doubts]
    for why, bar, cells in failed:
        missed = ", ".join(cell.cell.label for cell in unexplained(bar, cells, notes))
        limit = limit_text(bar, [cell.cell for cell in cells])
        text = f"- {why}: {bar.key} ({limit}): " + ", ".join(cell_text(bar, cell) for cell in cells)
        lines.append(text + (f"; not explained: {missed}" if missed else ""))
    return "\n".join(lines).strip()


def number(value, digits=3):
    return "" if value is None else f"{value:.{digits}g}"


def validity(peaks, opponents, machine):
    name, _ = core_of(machine)
    table = [
        [name, threads, number(tops), number(macs), number(least), verdict]
        for (name, threads), (tops, macs, least, verdict) in peaks.items()
    ]
    parts = [f"The core: {name or 'not known here'}.", ""]
    parts += (
        [tabulate(table, ["peak", "threads", "Tops/s", "MAC/cycle", "required", ""], tablefmt="github")]
        if table
        else ["No peak was measured."]
    )
    table = []
    for opponent in opponents:
        reference = opponent.reference
        where = f"{reference.row['operation']} M={reference.row['M']}" + (" rotated" if reference.row["rotated"] else "")
        run = reference.row["source"]
        scaled = number(opponent.scaled_ms)
        table.append([reference.contender, run, where, number(opponent.ms), number(reference.ms), scaled, opponent.verdict])
    headers = ["opponent, 4096 x 4096", "run", "", "ms", "reference ms", "scaled to this peak", ""]
    return "\n".join([*parts, "", tabulate(table, headers, tablefmt="github"), "", HONESTY])


def description(run):
    facts = run.facts
    machine = facts.get("machine", {})
    cpu = facts.get("cpu") or machine.get("cpu") or "CPU not said"
    family = f", family {machine['family']} model {machine['model']}" if "family" in machine else ""
    versions = [(name, text) for name, text in facts.get("versions", {}).items() if "sha256" not in name]
    versions = ", ".join(text if text.startswith(name) else f"{name} {text}" for name, text in versions)
    environment = [f"{name}={value}" for name, value in facts.get("environment", {}).items()]
    command = " ".join([*environment, str(facts.get("command"))])
    return f"- `{run.path.name}`: {facts.get('date')}; {cpu}{family}; {versions}; `{command}`"


def comparison_tables(runs, rows):
    """Each run of compare_python.py: medians, and in brackets how many times int8q's."""
    for run in runs:
        own = [row for row in rows if row.run is run]
        if run.source not in COMPARISONS:
            continue
        for key in dict.fromkeys((row.operation == "backward", row.K, row.N, row.rotated) for row in own):
            group = [row for row in own if (row.operation == "backward", row.K, row.N, row.rotated) == key]
            backward, k, n, rotated = key
            title = f"{'backward' if backward else 'linear'} {k} x {n}" + (", rotated weights" if rotated else "")
            yield f"{title} ({run.path.name})", contender_table(group)


def contender_table(group):
    all_m = sorted({row.M for row in group})
    cells = {(row.contender, row.M): row for row in group}
    contenders = list(dict.fromkeys(row.contender for row in group))
    ours = next((name for name in contenders if name.startswith("int8q")), None)
    table = []
    for name in contenders:
        line = [name]
        for m in all_m:
            row, our = cells.get((name, m)), cells.get((ours, m))
            line.append("-" if row is None else f"{number(row.ms, 4)}" + (f" ({row.ms / our.ms:.2f})" if our else ""))
        errors = [row.error for row in group if row.contender == name and row.error is not None]
        table.append([*line, number(max(errors), 2) if errors else ""])
    return tabulate(
        table, ["ms (times int8q's)", *(f"M={m}" for m in all_m), "error"], tablefmt="github", disable_numparse=True
    )


def google_benchmark_table(rows):
    wanted = [row for row in rows if row.source == "c++" and row.threads == THREADS]
    wanted.sort(key=lambda row: (row.operation, row.K, row.N, row.rotated, row.scope, row.outliers, row.M, row.contender))
    table = []
    for row in wanted:
        more = [
            row.dtype,
            "rotated" if row.rotated else "",
            f"outliers {row.outliers} {row.scope}" if row.outliers != 7 else "",
        ]
        shape = f"{row.K} x {row.N}" if row.K else ""
        values = [row.quantity(name) for name in ("Tops", "%peak", "GB/s", "%bandwidth")]
        times = [number(row.ms, 4), f"{number(row.low_ms)}–{number(row.high_ms)}", row.samples]
        name = [
            f"{row.operation}/{row.contender}" + (", EVEX" if row.evex else ""),
            shape,
            row.M or "",
            " ".join(filter(None, more)),
        ]
        table.append([*name, *times, *(number(value) for value in values)])
    headers = ["", "K x N", "M", "", "ms", "quartiles", "runs", "Tops", "%peak", "GB/s", "%bandwidth"]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True) if table else "No bench_*.json."


def layer_table(rows):
    """oneDNN's bare product beside int8q's whole linear, layer by layer."""
    ratios = {}
    for row in rows:
        if row.source == "c++" and row.contender == "onednn:s8" and row.operation == "gemm" and row.threads == THREADS:
            our = None if row.rotated else ours_for(row, rows)
            if our:
                ratios.setdefault((row.K, row.N), {}).setdefault(row.M, row.ms / our.ms)
    all_m = sorted({m for layer in ratios.values() for m in layer})
    table = [
        [f"{k} x {n}", *(f"{layer[m]:.2f}" if m in layer else "-" for m in all_m)]
        for (k, n), layer in sorted(ratios.items())
    ]
    headers = ["oneDNN's time / int8q's, K x N", *(f"M={m}" for m in all_m)]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True) if table else "Not measured."


def outlier_table(rows):
    """What outlier columns cost: M=128, 4096 x 4096, times of what no outlier column costs."""
    columns = (0, 1, 7, 41, 1352)
    table = []
    for isa in ISAS:
        for scope in ("column", "element"):
            found = [find(rows, **linear("c++", isa, 128, outliers=count, scope=scope)) for count in columns]
            if found[0]:
                ratios = (f"{row.ms / found[0].ms:.3f}" if row else "-" for row in found[1:])
                table.append([isa, scope, number(found[0].ms, 4), *ratios])
    headers = ["linear 4096 x 4096, M=128", "scope", "none, ms", *(f"× with {count}" for count in columns[1:])]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True) if table else "Not measured."


def checkpoint_table(runs, rows):
    """int8q quantize beside a copy of the same bytes."""
    table = []
    for row in (row for row in rows if row.source == "checkpoint"):
        name = f"{row.operation.removeprefix('checkpoint_')}, {row.contender}"
        times = [number(row.ms, 4), f"{number(row.low_ms)}–{number(row.high_ms)}", row.samples]
        table.append([name, *times, *(number(row.quantity(name)) for name in ("GB/s", "MiB"))])
    if not table:
        return "Not measured."
    sizes = "; ".join(
        f"{run.facts['bytes_in'] / 1e9:.2f} GB in, {run.facts['bytes_out'] / 1e9:.2f} GB out, on {run.facts['file_system']}"
        for run in runs
        if run.source == "checkpoint"
    )
    headers = ["cache, what", "ms", "quartiles", "runs", "GB/s", "MiB"]
    return f"{CHECKPOINT} {sizes}.\n\n" + tabulate(table, headers, tablefmt="github", disable_numparse=True)


def ours_for(row, rows):
    """int8q's row that an opponent's is compared with: the same process, shape and kind, its best ISA. Or None."""
    kind = "linear" if row.operation == "gemm" else row.operation
    dtype = row.contender.split(":")[1] if row.source == "c++" and kind == "backward" else None

    def is_counterpart(our):
        same = all(
            getattr(our, name) == getattr(row, name) for name in ("run", "K", "N", "M", "threads", "rotated", "outliers")
        )
        ours = our.contender.startswith("int8q:") and not our.contender.endswith(":off")
        return same and ours and our.operation == kind and dtype in (None, our.dtype)

    return min(filter(is_counterpart, rows), key=lambda our: our.ms, default=None)


def losses(rows):
    """Every opponent that is faster than int8q, the worst first."""
    found = []
    for row in rows:
        our = None if row.contender.startswith("int8q:") else ours_for(row, rows)
        if our and row.ms < our.ms:
            shape = f"{row.operation} {row.K} x {row.N}, M={row.M}" + (", rotated" if row.rotated else "")
            found.append([row.ms / our.ms, shape, row.contender, our.contender, f"{row.source}, threads: {row.threads}"])
    table = [[f"{ratio:.2f}", *rest] for ratio, *rest in sorted(found)]
    headers = ["opponent's time / int8q's", "", "opponent", "int8q", "run"]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True) if table else "None."


CONTENDERS = """\
`:6` and `:0` are thresholds; `:off` is int8q without decomposition; `:train` is bitsandbytes in training mode. `error` is
relative to the fp32 product, of `torch:int_mm` to the exact integers. `torch:int_mm` and `fbgemm:static` are bare products:
neither quantizes X. `fbgemm:dynamic` and `onednn:dynamic` take and return fp32, have one scale for all of X, and no
decomposition. bitsandbytes' int8 operators on a CPU are torch's, so what forces torch to an ISA forces them; its own
library is not called by them. MKL, which torch's fp32 products call, was asked for AVX2 in the avx2 run, but does not say
what it took."""


def contenders_text(runs):
    """The contenders, and what each run of compare_python.py found out about them."""
    lines = [CONTENDERS, ""]
    for run in runs:
        if run.source not in COMPARISONS:
            continue
        cleared = ", ".join(f"{name}={value}" for name, value in run.facts.get("cleared_environment", {}).items())
        saturates = "saturates where all codes are 127" if run.facts["torch_int_mm_saturates"] else "is exact"
        calls = ", ".join(f"{name} {number(us)} us" for name, us in run.facts["call_overhead_us"].items())
        blobs = ", ".join(f"{b['K']} x {b['N']} {b['blob_bytes'] - b['K'] * b['N']:+d}" for b in run.facts["blobs"])
        taken = ", ".join(f"{name} {isa}" for name, isa in run.facts["isa_taken"].items())
        lines.append(
            f"- `{run.path.name}`: {taken}; torch._int_mm {saturates}; through ctypes {calls};"
            f" bytes of int8q's packed weights beyond K·N: {blobs}" + (f"; cleared: {cleared}" if cleared else "")
        )
    return "\n".join(lines)


def missing_text(runs, unreadable, undrawn):
    lines = [f"- {name}: {why}" for name, why in unreadable]
    for run in runs:
        for entry in run.missing:
            what = " ".join(f"{name}={value}" for name, value in entry.items() if name != "why")
            lines.append(f"- {run.path.name}: {what}: {entry['why']}")
    lines += [f"- {why}" for why in undrawn]
    sources = {run.source for run in runs}
    lines += [
        f"- no results of the {source} run" for source in ("c++", *COMPARISONS, "checkpoint") if source not in sources
    ]
    return "\n".join(lines) or "Nothing."


def picture_text(pictures):
    text = "\n\n".join(f"![{caption}]({name})" for caption, name in pictures)
    return f"{PICTURES}\n\n{text}" if pictures else "None."


def read_notes(path):
    """notes.toml, or {}; a key that is no bar's, or no cell's of it, is an error, since its text would be lost."""
    if not path.exists():
        return {}
    notes = tomllib.loads(path.read_text(encoding="utf-8"))
    known = {bar.key: [cell.label for cell in getattr(bar, "cells", ())] for bar in BARS}
    for key, note in notes.items():
        if key not in known:
            raise SystemExit(f"{path} explains {key}; expected keys of bars.py: {', '.join(known)}")
        for label in set() if isinstance(note, str) else set(note) - set(known[key]):
            raise SystemExit(f"{path} explains {key}.{label}; expected its cells: {', '.join(known[key])}")
    return notes


def shortened(notes):
    """For the terminal."""
    says = "explained in the report"
    return {key: says if isinstance(note, str) else dict.fromkeys(note, says) for key, note in notes.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where bench_*.json and compare_*.json are; report.md goes there")
    folder = parser.parse_args().folder
    if not folder.is_dir():
        raise SystemExit(
            f"{folder} is no folder; expected one with bench_*.json and compare_*.json, as `make bench` leaves"
        )
    notes = read_notes(folder / "notes.toml")
    runs, rows, unreadable = read_folder(folder)
    machine = common_machine(runs)
    peaks = judge_peaks(rows, machine)
    opponents = judge_opponents(rows, machine, peaks)
    verdicts = [judge_bar(bar, rows, peaks, opponents) for bar in BARS]
    pictures, undrawn = draw(runs, rows, folder)
    accepted = acceptance(verdicts, notes, disagreements(runs))
    sections = [
        ("Acceptance", accepted),
        ("Bars", f"On {THREADS} threads, unless a row says otherwise.\n\n" + bar_table(verdicts, notes)),
        ("Is the run valid?", validity(peaks, opponents, machine)),
        ("Where int8q is slower", losses(rows)),
        ("Layers of models", layer_table(rows)),
        ("What outlier columns cost", outlier_table(rows)),
        ("int8q quantize", checkpoint_table(runs, rows)),
        ("Not measured", missing_text(runs, unreadable, undrawn)),
        ("The contenders at torch level", contenders_text(runs)),
        ("Pictures", picture_text(pictures)),
        *((f"Torch level: {title}", table) for title, table in comparison_tables(runs, rows)),
        (f"C++ level, {THREADS} threads", google_benchmark_table(rows)),
        ("Where it comes from", "\n".join(description(run) for run in runs) or "No result files."),
    ]
    text = "# int8q's benchmarks\n\n" + "\n\n".join(f"## {title}\n\n{body}" for title, body in sections) + "\n"
    (folder / "report.md").write_text(text, encoding="utf-8")
    print(accepted, end="\n\n")
    print(bar_table(verdicts, shortened(notes), WIDTHS))
    print(f"{folder / 'report.md'} and {len(pictures)} pictures are written.")


if __name__ == "__main__":
    main()
