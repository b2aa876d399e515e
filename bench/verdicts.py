# SPDX-License-Identifier: Apache-2.0
"""Judges a run: its peaks, its opponents, and which bars are met. Nothing that is missing is ever met."""

from dataclasses import dataclass, field

from bars import BEST, Elsewhere, peak, select
from results import find

# What a core does in a cycle, multiply-adds. A peak loop below LEAST of it was disturbed, and shares of it say nothing; nor
# do they where a kernel is above MOST of the peak.
LEAST, MOST = 0.95, 1.02
CORES = (  # name, vendor, family, a flag that tells designs of one family apart
    ("Zen 5", "AuthenticAMD", 26, "avx512_vnni", {"avx512vnni": 128, "avxvnni": 64, "fma512": 32, "fma256": 16}),
    ("Zen 4", "AuthenticAMD", 25, "avx512_vnni", {"avx512vnni": 64, "avxvnni": 64, "fma512": 16, "fma256": 16, "bf16": 32}),
)
AVX2_PAIR = 27  # vpmaddwd + vpaddd, on any core that the bars know; the loop must reach it as it is


# Times of opponents on the machine of the bars. An opponent slower than LEAST_OPPONENT of them is not at its best.
LEAST_OPPONENT = 0.9
REFERENCE_CPU = ("AuthenticAMD", 26)
REFERENCE_MACHINE = "two threads of a Zen 5 machine"
REFERENCE_PEAKS = {"avx512vnni": 2.1, "avxvnni": 1.06, "avx2": 0.5}


@dataclass(frozen=True)
class Reference:
    contender: str
    row: dict
    ms: float
    peak: str | None  # whose ratio scales it to another machine; None where memory or overheads take the time


def references(source, operation, contender, peak_name, times, **more):
    for m, ms in times.items():
        bound = peak_name if m >= 128 else None
        yield Reference(contender, select(source, operation, contender, 4096, m, **more), ms, bound)


REFERENCES = (
    *references("c++", "gemm", "onednn:s8", BEST, {1: 0.076, 8: 0.151, 128: 2.14, 512: 8.47}),
    *references("native", "linear", "torch:bf16", BEST, {1: 0.37, 8: 1.0, 128: 5.2, 512: 19.0}),
    *references("native", "linear", "bitsandbytes:6", BEST, {1: 0.33, 8: 1.8, 128: 5.9, 512: 21.0}),
    *references("native", "linear", "bitsandbytes:6", BEST, {1: 1.04, 8: 2.65}, rotated=True),
    *references("native", "linear", "bitsandbytes:train", BEST, {1: 45.0, 8: 45.0, 128: 50.0, 512: 64.0}),
    *references("avx2", "linear", "bitsandbytes:6", "avx2", {1: 22.0, 8: 26.0, 128: 57.0, 512: 150.0}),
    # .50 Tops/s
    *references("avx2", "gemm", "fbgemm:static", "avx2", {m: 2e-9 * m * 4096**2 / 0.5 for m in (128, 512)}),
)


def peak_macs_per_cycle(row, rows):
    """Of one core: the counter of the file, or from the clock that the same process measured."""
    if "MAC/cycle" in row.counters:
        return row.counters["MAC/cycle"]
    clock = find([other for other in rows if other.run is row.run], operation="clock", contender="core")
    ghz = clock and clock.quantity("GHz")
    return row.quantity("Tops") * 1e3 / 2 / ghz / row.threads if ghz else None


def core_of(machine):
    for name, vendor, family, flag, macs in CORES:
        if (machine.get("vendor"), machine.get("family")) == (vendor, family) and flag in machine.get("flags", []):
            return name, macs
    return None, {}


def judge_peaks(rows, machine):
    """name -> (Tops, MAC/cycle, what is required, verdict), for each peak measured on the bars' number of threads."""
    core, macs = core_of(machine)
    judged = {}
    for name in sorted({row.contender for row in rows if row.operation == "peak"}):
        # Each process measured its own; the worst one speaks for all.
        found = [row for row in rows if all(getattr(row, key) == value for key, value in peak(name).items())]
        if not found:
            continue
        per_cycle, row = min(((peak_macs_per_cycle(row, rows), row) for row in found), key=lambda pair: pair[0] or 0)
        required = AVX2_PAIR if name == "avx2" and core else LEAST * macs[name] if name in macs else None
        if required is None:
            verdict = "not checked: what this core can do is not known here"
        elif per_cycle is None:
            verdict = "not checked: the clock was not measured"
        else:
            verdict = "valid" if per_cycle >= required else "invalid"
        judged[name] = (row.quantity("Tops"), per_cycle, required, verdict)
    return judged


@dataclass(frozen=True)
class OpponentVerdict:
    reference: Reference
    ms: float | None
    scaled_ms: float | None  # the reference on this machine, by the peaks
    verdict: str


def judge_opponents(rows, machine, peaks):
    """Each reference beside what was measured. Only on the machine of the references is the rule a rule."""
    same = (machine.get("vendor"), machine.get("family")) == REFERENCE_CPU
    judged = []
    for reference in REFERENCES:
        row = find(rows, **reference.row)
        ms = row and row.ms
        tops, _, _, peak_verdict = peaks.get(reference.peak, (None, None, None, "not measured"))
        scaled = reference.ms * REFERENCE_PEAKS[reference.peak] / tops if tops else None
        if ms is None:
            verdict = "not measured"
        elif same:
            verdict = "valid" if reference.ms >= LEAST_OPPONENT * ms else "invalid"
        elif reference.peak is None:
            verdict = "not judged: not bound by arithmetic"
        elif peak_verdict != "valid":
            verdict = f"not judged: peak {reference.peak} is {peak_verdict}"
        else:
            verdict = "as expected" if scaled >= LEAST_OPPONENT * ms else "slower than expected"
        judged.append(OpponentVerdict(reference, ms, scaled, verdict))
    return judged


@dataclass
class Verdict:
    bar: object
    verdict: str  # met, missed, invalid, unchecked, not measured
    values: list = field(default_factory=list)  # one a cell, None where not measured
    remarks: list = field(default_factory=list)


def find_both(cell, rows):
    """The rows of a cell, of the same process if one has both; either may be None."""
    top = find(rows, **cell.top)
    bottom = find([row for row in rows if top and row.run is top.run], **cell.bottom) or find(rows, **cell.bottom)
    return top, bottom


def evaluate(bar, rows):
    """(a value or None for each cell, what is not there)."""
    values, absent = [], {}
    for cell in bar.cells:
        numbers = []
        for row, wanted in zip(find_both(cell, rows), (cell.top, cell.bottom)):
            numbers.append(row and row.quantity(bar.quantity))
            if numbers[-1] is None:
                # What differs in M only is said once.
                absent.setdefault(tuple((name, value) for name, value in wanted.items() if name != "M"), []).append(
                    wanted["M"]
                )
        values.append(None if None in numbers else numbers[0] / numbers[1])
    return values, [describe_absent(dict(key), all_m, bar.quantity) for key, all_m in absent.items()]


def describe_absent(wanted, all_m, quantity):
    size = f" {wanted['K']}x{wanted['N']}" if wanted["K"] else ""
    m = " M=" + ", ".join(map(str, dict.fromkeys(all_m))) if any(all_m) else ""
    more = " rotated" if wanted["rotated"] else ""
    more += f" dtype:{wanted['dtype']}" if "dtype" in wanted else ""
    more += f" outliers:{wanted['outliers']}" if wanted["outliers"] != 7 else ""
    return f"no {quantity} of {wanted['operation']}/{wanted['contender']}{size}{m}{more} in the {wanted['source']} run"


def judge_bar(bar, rows, peaks, opponents):
    if isinstance(bar, Elsewhere):
        return Verdict(bar, "not measured", remarks=[bar.where])
    values, remarks = evaluate(bar, rows)
    missed = [not bar.meets(cell, value) for cell, value in zip(bar.cells, values) if value is not None]
    verdict = "missed" if any(missed) else "not measured" if None in values else "met"
    doubts = {}  # what makes the ratio doubtful: is it invalid
    if bar.peak in peaks and peaks[bar.peak][3] != "valid":
        doubts[f"peak {bar.peak} is {peaks[bar.peak][3]}"] = peaks[bar.peak][3] == "invalid"
    if bar.percent and any(value is not None and value > MOST for value in values):
        doubts[f"peak {bar.peak or 'bandwidth'} is invalid: int8q is faster"] = True
    rows_used = [cell.top for cell in bar.cells] + [cell.bottom for cell in bar.cells]
    for opponent in opponents:
        if opponent.reference.row in rows_used and opponent.verdict in ("invalid", "slower than expected"):
            what = f"{opponent.reference.contender} M={opponent.reference.row['M']} is {opponent.verdict}"
            doubts[what] = opponent.verdict == "invalid"
    if any(doubts.values()) and verdict != "not measured":
        verdict = "invalid"
    elif verdict == "met" and bar.peak in peaks and peaks[bar.peak][3].startswith("not checked"):
        verdict = "unchecked"
    return Verdict(bar, verdict, values, remarks + list(doubts))
