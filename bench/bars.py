# SPDX-License-Identifier: Apache-2.0
"""What int8q must reach on a CPU, as data: for each bar the two measured rows, the quantity of them, and the limit.

A value is top / bottom, both of the same quantity: times ("ms") or rates ("Tops", "GB/s"); without a bottom it is the
quantity of the top. "linear" is quantize + product + decomposition (7 outlier columns, column scope) + dequantize + bias,
bf16 in and out.
"""

from dataclasses import dataclass

THREADS = 2


def select(source, operation, contender, size=0, m=0, **more):
    """Attributes of a results.Row; source is "c++", "native" or "avx2" (compare_python.py's), or "checkpoint"."""
    key = {"source": source, "operation": operation, "contender": contender, "K": size, "N": size, "M": m}
    return {**key, "threads": THREADS, "rotated": False, "outliers": 7, "scope": "column", **more}


def peak(name, threads=THREADS):
    return select("c++", "peak", name, threads=threads)


@dataclass(frozen=True)
class Cell:
    label: str  # "M=128"
    top: dict
    bottom: dict | None
    limit: float

    @property
    def m(self):
        return self.top["M"]


@dataclass(frozen=True)
class Bar:
    key: str  # of notes.toml
    row: str
    text: str
    quantity: str
    cells: tuple
    at_most: bool = False  # else the limit is the least
    unit: str = ""  # "%": the ratio as a percentage
    set_by: str = "design"  # or "library": a goal of its own, no bar of the design; judged alike

    def ratio(self, cell, value):
        """1 or more where the cell meets its limit, .85 where it is at .85 of it."""
        return cell.limit / value if self.at_most else value / cell.limit


@dataclass(frozen=True)
class Elsewhere:
    """A bar that these benchmarks do not measure."""

    key: str
    row: str
    text: str
    where: str
    set_by: str = "design"


BEST = "avx512vnni"
ISAS = (BEST, "avx512bw", "avxvnni", "avx2")


def linear(source, isa, m, size=4096, **more):
    return select(source, "linear", f"int8q:{isa}", size, m, **more)


def of_peak(key, isa, limit):
    cells = tuple(Cell(f"M={m}", linear("c++", isa, m), peak(isa), limit) for m in (128, 512))
    return Bar(key, "CPU prefill", f"linear 4096 x 4096 on {isa}: Tops / peak", "Tops", cells, unit="%")


def against(key, row, text, opponent, source, isa, limits, operation="linear", **more):
    """The opponent's time over int8q's, from one run of compare_python.py."""
    cells = tuple(
        Cell(
            f"M={m}",
            select(source, operation, opponent, 4096, m, **more),
            select(source, "backward" if operation == "backward" else "linear", f"int8q:{isa}", 4096, m, **more),
            limit,
        )
        for m, limit in limits.items()
    )
    return Bar(key, row, text, "ms", cells)


def of_fma(isa, dtype):
    fma = "fma512" if isa.startswith("avx512") else "fma256"
    cells = tuple(
        Cell(f"M={m}", select("c++", "backward", f"int8q:{isa}", 4096, m, dtype=dtype), peak(fma), 0.85) for m in (256, 512)
    )
    text = f"backward 4096 x 4096 on {isa}, {dtype} dY: Tops / fp32 FMA peak"
    return Bar(f"backward-{isa}-{dtype}", "backward", text, "Tops", cells, unit="%")


def costs(isa):
    """1% of K are outlier columns, beside none."""
    top, bottom = (linear("c++", isa, 128, outliers=columns) for columns in (41, 0))
    return Cell(isa, top, bottom, 1.08)


def of_copy(operation, dtype, **shape):
    """Bound by memory: bytes that must be read and written once, of a copy's."""
    cells = tuple(
        Cell(isa, select("c++", operation, f"int8q:{isa}", dtype=dtype, **shape), select("c++", "bandwidth", "copy"), 0.8)
        for isa in ISAS
    )
    text = f"{operation} 4096 x 8192{f', {dtype}' if dtype else ''}: GB/s / a copy's"
    key = "-".join(filter(None, (operation.replace("_", "-"), dtype)))
    return Bar(key, "quantization", text, "GB/s", cells, unit="%", set_by="library")


def microkernel(isa, m, n, k, limit):
    top = select("c++", "microkernel", f"int8q:{isa}", m=m, K=k, N=n, threads=1)
    return Cell(isa, top, peak(isa, threads=1), limit)


def checkpoint(cache, contender):
    """The file lies in the page cache (warm), or was dropped from it before (cold)."""
    return select("checkpoint", f"checkpoint_{cache}", contender)


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
        tuple(Cell(isa, linear("c++", isa, 1, rotated=True), select("c++", "bandwidth", "read"), 0.90) for isa in ISAS),
        unit="%",
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
    # bf16 on the best ISA is the bar above: its CPUs have AVX512-BF16.
    *(of_fma(isa, dtype) for isa in ISAS for dtype in ("f32", "f16", "bf16") if (isa, dtype) != (BEST, "bf16")),
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
        "bitsandbytes-rotated",
        "bitsandbytes",
        "the same, rotated weights",
        "bitsandbytes:6",
        "native",
        BEST,
        {1: 3.0, 8: 7.0},
        rotated=True,
    ),
    against(
        "bitsandbytes-avx2",
        "bitsandbytes",
        "the same, cached weights, both forced to AVX2",
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
        tuple(costs(isa) for isa in ISAS),
        at_most=True,
    ),
    Bar(
        "microkernel",
        "microkernel",
        "the register tile, its operands in L1, one thread: Tops / peak",
        "Tops",
        (
            microkernel(BEST, 6, 64, 320, 0.95),
            microkernel("avxvnni", 6, 16, 1024, 0.95),
            microkernel("avx2", 24, 64, 192, 0.80),
        ),
        unit="%",
        set_by="library",
    ),
    Bar(
        "quantization-share",
        "quantization",
        "quantize_rows M x 4096, bf16 / linear 4096 x 4096, time",
        "ms",
        tuple(
            Cell(f"{isa} M={m}", select("c++", "quantize_input", f"int8q:{isa}", K=4096, m=m), linear("c++", isa, m), 0.02)
            for isa in ISAS
            for m in (128, 512)
        ),
        at_most=True,
        unit="%",
        set_by="library",
    ),
    *(of_copy("quantize_rows", dtype, K=8192, m=4096) for dtype in ("f32", "f16", "bf16")),
    *(of_copy("quantize_weight", dtype, K=8192, N=4096) for dtype in ("f32", "f16", "bf16")),
    of_copy("pack", "", K=8192, N=4096),
    Bar(
        "call",
        "call",
        "linear 64 x 16, M=1, one thread: a call through the C ABI with hardly anything to compute",
        "us",
        tuple(
            Cell(isa, select("c++", "call", f"int8q:{isa}", K=64, N=16, m=1, threads=1, outliers=0), None, 1.0)
            for isa in ISAS
        ),
        at_most=True,
        unit=" us",
        set_by="library",
    ),
    Bar(
        "checkpoint-time",
        "checkpoint",
        "int8q quantize of a checkpoint: time of copying the same bytes / its time",
        "ms",
        tuple(Cell(cache, checkpoint(cache, "copy"), checkpoint(cache, "int8q"), 0.80) for cache in ("warm", "cold")),
        unit="%",
        set_by="library",
    ),
    Bar(
        "checkpoint-memory",
        "checkpoint",
        "the same: the most anonymous memory",
        "MiB",
        tuple(Cell(cache, checkpoint(cache, "int8q"), None, 256) for cache in ("warm", "cold")),
        at_most=True,
        unit=" MiB",
        set_by="library",
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
