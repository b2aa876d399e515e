# SPDX-License-Identifier: Apache-2.0
"""What int8q must reach on a CPU, as data: for each bar the two measured rows, the quantity of them, and the limit.

A value is top / bottom, both of the same quantity: times ("ms") or rates ("Tops", "GB/s"). "linear" is quantize + product +
decomposition (7 outlier columns, column scope) + dequantize + bias, bf16 in and out.
"""

from dataclasses import dataclass

THREADS = 2


def select(source, operation, contender, size=0, m=0, **more):
    """Attributes of a results.Row; source is "c++", "native" or "avx2", the last two compare_python.py's."""
    key = {"source": source, "operation": operation, "contender": contender, "K": size, "N": size, "M": m}
    return {**key, "threads": THREADS, "rotated": False, "outliers": 7, "scope": "column", **more}


def peak(name):
    return select("c++", "peak", name)


@dataclass(frozen=True)
class Cell:
    label: str  # "M=128"
    top: dict
    bottom: dict
    limit: float


@dataclass(frozen=True)
class Bar:
    key: str  # of notes.toml
    row: str
    text: str
    quantity: str
    cells: tuple
    at_most: bool = False  # else the limit is the least
    percent: bool = False
    peak: str | None = None  # whose validity this bar depends on
    opponent: str | None = None

    def meets(self, cell, value):
        return value <= cell.limit if self.at_most else value >= cell.limit


@dataclass(frozen=True)
class Elsewhere:
    """A bar that these benchmarks do not measure."""

    key: str
    row: str
    text: str
    where: str


def linear(source, isa, m, size=4096, **more):
    return select(source, "linear", f"int8q:{isa}", size, m, **more)


def of_peak(key, isa, limit):
    cells = tuple(Cell(f"M={m}", linear("c++", isa, m), peak(isa), limit) for m in (128, 512))
    text = f"linear 4096 x 4096 on {isa}: Tops / peak"
    return Bar(key, "CPU prefill", text, "Tops", cells, percent=True, peak=isa)


def against(key, row, text, opponent, source, isa, limits, operation="linear"):
    """The opponent's time over int8q's, from one run of compare_python.py."""
    cells = tuple(
        Cell(
            f"M={m}",
            select(source, operation, opponent, 4096, m),
            select(source, "backward" if operation == "backward" else "linear", f"int8q:{isa}", 4096, m),
            limit,
        )
        for m, limit in limits.items()
    )
    return Bar(key, row, text, "ms", cells, opponent=opponent)


def of_fma(key, isa, dtype, fma):
    cells = tuple(
        Cell(f"M={m}", select("c++", "backward", f"int8q:{isa}", 4096, m, dtype=dtype), peak(fma), 0.85) for m in (256, 512)
    )
    text = f"backward 4096 x 4096 on {isa}, {dtype} dY: Tops / fp32 FMA peak"
    return Bar(key, "backward", text, "Tops", cells, percent=True, peak=fma)


def costs(isa):
    """1% of K are outlier columns, beside none."""
    top, bottom = (linear("c++", isa, 128, outliers=columns) for columns in (41, 0))
    return Cell(isa, top, bottom, 1.08)


BEST = "avx512vnni"
BARS = (
    of_peak("prefill-avx512vnni-peak", BEST, 0.92),
    of_peak("prefill-avxvnni-peak", "avxvnni", 0.88),
    Bar(
        "prefill-onednn",
        "CPU prefill",
        "oneDNN's bare s8 GEMM / linear 4096 x 4096 on avx512vnni, time",
        "ms",
        tuple(
            Cell(f"M={m}", select("c++", "gemm", "onednn:s8", 4096, m), linear("c++", BEST, m), 0.97) for m in (128, 512)
        ),
        opponent="onednn:s8",
    ),
    of_peak("prefill-avx2-peak", "avx2", 0.88),
    against(
        "prefill-avx2-fbgemm",
        "CPU prefill",
        "FBGEMM's AVX2 kernel, which saturates / linear 4096 x 4096 on avx2, time",
        "fbgemm:static",
        "avx2",
        "avx2",
        {128: 0.8, 512: 0.8},
        operation="gemm",
    ),
    Bar(
        "decode-bandwidth",
        "CPU decode",
        "linear 4096 x 4096, M=1, rotated weights: GB/s of weights / read bandwidth",
        "GB/s",
        tuple(
            Cell(isa, linear("c++", isa, 1, rotated=True), select("c++", "bandwidth", "read"), 0.90)
            for isa in (BEST, "avx2")
        ),
        percent=True,
    ),
    Bar(
        "decode-m8",
        "CPU decode",
        "linear 4096 x 4096 on avx512vnni, rotated weights: time of M=8 / M=1",
        "ms",
        (Cell("M=8", linear("c++", BEST, 8, rotated=True), linear("c++", BEST, 1, rotated=True), 1.15),),
        at_most=True,
    ),
    Bar(
        "small-onednn",
        "CPU small",
        "linear 768 x 768, M=1, one call through the C ABI / oneDNN's bare primitive, time",
        "ms",
        (Cell("M=1", linear("c++", BEST, 1, 768), select("c++", "gemm", "onednn:s8", 768, 1), 1.5),),
        at_most=True,
    ),
    against(
        "backward-bf16",
        "backward",
        "torch's bf16 matmul / backward 4096 x 4096, bf16 dY, time",
        "torch:bf16",
        "native",
        BEST,
        {256: 1.0, 512: 1.0},
        operation="backward",
    ),
    of_fma("backward-avx512vnni-f32", BEST, "f32", "fma512"),
    of_fma("backward-avx2-f32", "avx2", "f32", "fma256"),
    of_fma("backward-avx2-bf16", "avx2", "bf16", "fma256"),
    against(
        "bitsandbytes-eval",
        "bitsandbytes",
        "bitsandbytes, threshold 6, eval / int8q, 4096 x 4096, time",
        "bitsandbytes:6",
        "native",
        BEST,
        {1: 3.0, 8: 7.0, 128: 2.5, 512: 2.3},
    ),
    against(
        "bitsandbytes-avx2",
        "bitsandbytes",
        "the same, both forced to AVX2",
        "bitsandbytes:6",
        "avx2",
        "avx2",
        {1: 100.0, 8: 38.0, 128: 5.0, 512: 3.5},
    ),
    against(
        "bitsandbytes-train",
        "bitsandbytes",
        "the same in training mode, forward",
        "bitsandbytes:train",
        "native",
        BEST,
        {1: 300.0, 8: 150.0, 128: 20.0, 512: 6.5},
    ),
    Bar(
        "outliers",
        "outlier columns",
        "linear 4096 x 4096, M=128: time with 41 outlier columns, 1% of K / with none",
        "ms",
        (costs(BEST), costs("avx2")),
        at_most=True,
    ),
    Elsewhere(
        "accuracy-smollm2", "accuracy", "SmolLM2-135M: KL within 5% of the float64 reference", "no benchmark runs a model"
    ),
    Elsewhere(
        "accuracy-first", "accuracy", "accuracy-first mode: KL at most .25 of LLM.int8()'s", "no benchmark runs a model"
    ),
    Elsewhere("accuracy-minilm", "accuracy", "MiniLM-L6: mean cosine to fp32 at least .999", "`make demo` prints it"),
    Elsewhere("memory", "memory", "resident bytes and workspaces", "the tests compare them with what was queried"),
)
