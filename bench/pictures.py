# SPDX-License-Identifier: Apache-2.0
"""Draws the rows of a run: roofline, time against M, ratio to each opponent. SVG, text as text."""

from collections import defaultdict

import matplotlib.pyplot as plt
from bars import THREADS, select
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from results import COMPARISONS, find

plt.switch_backend("agg")

# Okabe and Ito's colours, which colour-blind eyes tell apart; int8q is always the first.
OURS = "#d55e00"
COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#000000", "#e69f00", "#999999", "#8c6bb1", "#66a61e", "#a6761d")
MARKERS = "osD^vPX*<>"
plt.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "int8q",
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.axisbelow": True,
    }
)

# Bytes of one element of X, W and Y: what a contender must move once.
ELEMENT_BYTES = {
    "int8q": (2, 1, 2),
    "bitsandbytes": (2, 1, 2),
    "onednn:s8": (1, 1, 4),
    "onednn:bf16": (2, 2, 2),
    "torch:int_mm": (1, 1, 4),
    "torch:bf16": (2, 2, 2),
    "torch:fp32": (4, 4, 4),
    "fbgemm:static": (1, 1, 1),
    "fbgemm:dynamic": (4, 1, 4),
    "onednn:dynamic": (4, 1, 4),
}


def intensity(row):
    """Operations a byte, 2MNK / bytes; None for a contender whose traffic is not known."""
    sizes = ELEMENT_BYTES.get(row.contender) or ELEMENT_BYTES.get(row.contender.split(":")[0])
    if sizes is None:
        return None
    x, w, y = sizes
    return 2 * row.M * row.N * row.K / (x * row.M * row.K + w * row.N * row.K + y * row.M * row.N)


# In this order they get their colours, the same in every picture; others follow.
KNOWN = (
    "bitsandbytes:6 bitsandbytes:0 bitsandbytes:train torch:fp32 torch:bf16 torch:int_mm fbgemm:dynamic fbgemm:static "
    "onednn:dynamic onednn:s8"
).split()


def styles(contenders):
    """contender -> (colour, marker); int8q's first."""
    ours = [name for name in contenders if name.startswith("int8q")]
    others = [name for name in contenders if name not in ours]
    table = {name: (OURS if i == 0 else "#f0a87a", MARKERS[i]) for i, name in enumerate(ours)}
    order = KNOWN + [name for name in others if name not in KNOWN]
    return table | {name: (COLOURS[i % 10], MARKERS[i % 10]) for name in others for i in [order.index(name)]}


def save(figure, folder, name):
    figure.savefig(folder / name, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return name


def plain(axis):
    """Numbers instead of powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def roofs(axes, rows, names, low, high):
    """The memory roof and a roof for each peak that was measured; False if there is neither."""
    bandwidth = find(rows, **select("c++", "bandwidth", "read"))
    peaks = {name: row.quantity("Tops") for name in names if (row := find(rows, **select("c++", "peak", name)))}
    gbs = bandwidth and bandwidth.quantity("GB/s")
    if not peaks or not gbs:
        return False
    for name, tops in peaks.items():
        ridge = tops * 1e3 / gbs
        axes.plot([min(ridge, high), high], [tops, tops], color="#444444", lw=1.2)
        axes.annotate(
            f"peak {name} {tops:.3g} Tops/s", (high, tops), (-2, 4), textcoords="offset points", ha="right", fontsize=8
        )
    top = max(peaks.values())
    end = min(top * 1e3 / gbs, high)
    axes.plot([low, end], [low * gbs / 1e3, end * gbs / 1e3], color="#444444", lw=1.2)
    x = low * 1.15
    text = axes.annotate(f"read {gbs:.3g} GB/s", (x, x * gbs / 1e3), (0, 8), textcoords="offset points", fontsize=8)
    text.set(rotation=45, rotation_mode="anchor", transform_rotates_text=True)
    return True


def roofline(drawn, rows, folder, isa, peaks):
    """Filled markers: weights rotated through memory; hollow: weights that a cache may hold."""
    drawn = [(intensity(row), row) for row in drawn if row.threads == THREADS]
    drawn = [(x, row) for x, row in drawn if x and row.quantity("Tops")]
    if not drawn:
        return None
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    low, high = min(x for x, _ in drawn) / 1.5, max(x for x, _ in drawn) * 1.5
    if not roofs(axes, rows, peaks, low, high):
        plt.close(figure)
        return None
    looks = styles(sorted({row.contender for _, row in drawn}))
    for x, row in sorted(drawn, key=lambda pair: pair[1].contender.startswith("int8q")):  # int8q's on top
        colour, marker = looks[row.contender]
        face = colour if row.rotated else "none"
        axes.plot(x, row.quantity("Tops"), marker, color=colour, mfc=face, ms=6)
    axes.set(
        xscale="log", yscale="log", xlabel="arithmetic intensity, operations a byte", ylabel="Tops/s", xlim=(low, high)
    )
    axes.set_title(f"Roofline, {isa}, {THREADS} threads")
    plain(axes.xaxis)
    plain(axes.yaxis)
    handles = [Line2D([], [], color=c, marker=m, ls="", mfc="none", label=name) for name, (c, m) in looks.items()]
    handles.append(Line2D([], [], color="#777777", marker="o", ls="", label="filled: weights from memory"))
    axes.legend(handles=handles, fontsize=8, loc="lower right")
    return save(figure, folder, f"roofline_{isa}.svg")


def series(run_rows, operation, size):
    """contender -> {M: row} of cached weights."""
    table = defaultdict(dict)
    for row in run_rows:
        if (row.K, row.N) == size and not row.rotated and row.operation in operation:
            table[row.contender][row.M] = row
    return table


def time_against_m(table, folder, title, name):
    figure, axes = plt.subplots(figsize=(6.8, 4.2))
    looks = styles(list(table))
    for contender, by_m in table.items():
        colour, marker = looks[contender]
        all_m = sorted(by_m)
        ours = contender.startswith("int8q")
        axes.plot(
            all_m,
            [by_m[m].ms for m in all_m],
            marker=marker,
            color=colour,
            lw=2.2 if ours else 1.0,
            ms=5,
            label=contender,
            zorder=3 if ours else 2,
        )
    axes.set(xscale="log", yscale="log", xlabel="M, rows of X", ylabel="ms, median", title=title)
    axes.set_xticks(sorted({m for by_m in table.values() for m in by_m}))
    plain(axes.xaxis)
    plain(axes.yaxis)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return save(figure, folder, name)


def ratios(table, folder, title, name):
    """A line for each opponent, a dot for each M: its time / int8q's. Left of 1 int8q loses: shaded, hollow, in red."""
    ours = next(
        (by_m for contender, by_m in table.items() if contender.startswith("int8q") and ":off" not in contender), {}
    )
    opponents = [contender for contender in table if not contender.startswith("int8q")]
    if not ours or not opponents:
        return None
    figure, axes = plt.subplots(figsize=(6.8, 0.36 * len(opponents) + 1.3))
    markers = dict(zip(sorted({m for by_m in table.values() for m in by_m}), MARKERS))
    for y, contender in enumerate(reversed(opponents)):
        for m in sorted(set(table[contender]) & set(ours)):
            ratio = table[contender][m].ms / ours[m].ms
            lost = ratio < 1
            axes.plot(
                ratio, y, markers[m], color="#c00000" if lost else COLOURS[0], mfc="none" if lost else COLOURS[0], ms=6
            )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low = min(low, 0.5)
    axes.axvspan(low, 1, color="#c00000", alpha=0.08, lw=0)
    axes.axvline(1, color="#444444", lw=1)
    axes.set(xlim=(low, high), xlabel="opponent's time / int8q's; shaded: int8q is slower", title=title)
    axes.set_yticks(range(len(opponents)), list(reversed(opponents)))
    plain(axes.xaxis)
    handles = [Line2D([], [], color="#444444", marker=marker, ls="", label=f"M={m}") for m, marker in markers.items()]
    axes.legend(handles=handles, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return save(figure, folder, name)


# isa: (run of compare_python.py, peaks that are roofs, contenders beside int8q).
ROOFLINES = {
    "avx512vnni": ("native", ("avx512vnni", "bf16"), ("onednn:s8", "torch:bf16", "fbgemm:static", "bitsandbytes:6")),
    "avx2": ("avx2", ("avx2", "fma256"), ("torch:bf16", "fbgemm:static", "bitsandbytes:6")),
}


def roofline_rows(rows, isa):
    """int8q's as C++ calls it, opponents from where they are measured, on 4096 x 4096."""
    source, _, opponents = ROOFLINES[isa]
    for row in rows:
        if (row.K, row.N, row.outliers, row.scope) != (4096, 4096, 7, "column") or row.operation not in ("linear", "gemm"):
            continue
        ours = row.source == "c++" and row.contender == f"int8q:{isa}" and row.operation == "linear"
        if ours or (row.contender in opponents and row.source in ("c++", source)):
            yield row


def draw_comparison(run, rows, folder):
    """Time against M, and ratios, of one run of compare_python.py."""
    own = [row for row in rows if row.run is run and not row.rotated]
    for operations in (("linear", "gemm"), ("backward",)):
        for k, n in dict.fromkeys((row.K, row.N) for row in own if row.operation in operations):
            table = series(own, operations, (k, n))
            what = f"{operations[0]} {k} x {n}, {run.source}, threads: {own[0].threads}"
            stem = f"{operations[0]}_{k}x{n}_{run.path.stem.removeprefix('compare_')}.svg"
            if max(len(by_m) for by_m in table.values()) > 2:  # else there is no line to see
                yield f"Time, {what}", time_against_m(table, folder, what, f"time_{stem}")
            if name := ratios(table, folder, f"Against int8q: {what}", f"ratio_{stem}"):
                yield f"Ratio, {what}", name


def draw(runs, rows, folder):
    """[(caption, file)] of everything that the rows allow; [why] of what they do not."""
    pictures, missing = [], []
    for isa, (_, peaks, _) in ROOFLINES.items():
        if name := roofline(list(roofline_rows(rows, isa)), rows, folder, isa, peaks):
            pictures.append((f"Roofline, {isa}, 4096 x 4096", name))
        else:
            missing.append(f"roofline of {isa}: needs peak/{peaks[0]}, bandwidth/read and rows of 4096 x 4096")
    comparisons = sorted(
        (run for run in runs if run.source in COMPARISONS), key=lambda run: (-run.facts["threads"], run.source != "native")
    )
    for run in comparisons:
        pictures += draw_comparison(run, rows, folder)
    if not comparisons:
        missing.append("time against M and ratios: need compare_*.json")
    return pictures, missing
