# SPDX-License-Identifier: Apache-2.0
"""Judges a run: its peaks, its opponents, and which bars are met. Nothing that is missing is ever met."""

from dataclasses import dataclass, field

from bars import BEST, THREADS, Elsewhere, peak, select
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
    """(name, threads) -> (Tops, MAC/cycle, what is required, verdict), for each peak that was measured."""
    core, macs = core_of(machine)
    judged = {}
    for name, threads in sorted({(row.contender, row.threads) for row in rows if row.operation == "peak"}):
        # Each process measured its own; the worst one speaks for all.
        found = [row for row in rows if all(getattr(row, key) == value for key, value in peak(name, threads).items())]
        per_cycle, row = min(((peak_macs_per_cycle(row, rows), row) for row in found), key=lambda pair: pair[0] or 0)
        required = AVX2_PAIR if name == "avx2" and core else LEAST * macs[name] if name in macs else None
        if required is None:
            verdict = "not checked: what this core can do is not known here"
        elif per_cycle is None:
            verdict = "not checked: the clock was not measured"
        else:
            verdict = "valid" if per_cycle >= required else "invalid"
        judged[name, threads] = (row.quantity("Tops"), per_cycle, required, verdict)
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
        tops, _, _, peak_verdict = peaks.get((reference.peak, THREADS), (None, None, None, "not measured"))
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
class CellVerdict:
    cell: object
    value: float | None  # None where not measured
    verdict: str  # one of VERDICTS
    doubts: list = field(default_factory=list)


# The worst first; a bar has that of its worst cell.
VERDICTS = ("invalid", "below .85", "missed", "not measured", "unchecked", "met")
LEAST_ELSEWHERE = 0.85  # of its bar, for cells that are not of MUST_MEET
MUST_MEET = (1, 128)  # M


@dataclass
class Verdict:
    bar: object
    cells: list  # of CellVerdict
    remarks: list = field(default_factory=list)

    @property
    def verdict(self):
        return min((cell.verdict for cell in self.cells), key=VERDICTS.index, default="not measured")


def find_both(cell, rows):
    """The rows of a cell, of the same process if one has both; either may be None."""
    top = find(rows, **cell.top)
    if cell.bottom is None:
        return (top,)
    return top, find([row for row in rows if top and row.run is top.run], **cell.bottom) or find(rows, **cell.bottom)


def evaluate(bar, rows):
    """(a value or None for each cell, what is not there or not what it seems)."""
    values, absent, remarks = [], {}, []
    for cell in bar.cells:
        numbers = []
        for row, wanted in zip(find_both(cell, rows), (cell.top, cell.bottom)):
            numbers.append(row and row.quantity(bar.quantity))
            if row and row.evex:
                remarks.append("avxvnni is EVEX-encoded")
            if numbers[-1] is None:
                # What differs in M only is said once.
                key = tuple((name, value) for name, value in wanted.items() if name != "M")
                absent.setdefault(key, []).append(wanted["M"])
        top, bottom = (*numbers, 1.0)[:2]
        values.append(None if None in numbers else top / bottom)
    remarks += [describe_absent(dict(key), all_m, bar.quantity) for key, all_m in absent.items()]
    return values, list(dict.fromkeys(remarks))


def describe_absent(wanted, all_m, quantity):
    size = f" {wanted['K']}x{wanted['N']}" if wanted["K"] else ""
    m = " M=" + ", ".join(map(str, dict.fromkeys(all_m))) if any(all_m) else ""
    more = " rotated" if wanted["rotated"] else ""
    more += f" dtype:{wanted['dtype']}" if wanted.get("dtype") else ""
    more += f" outliers:{wanted['outliers']}" if wanted["outliers"] != 7 else ""
    return f"no {quantity} of {wanted['operation']}/{wanted['contender']}{size}{m}{more} in the {wanted['source']} run"


def doubts_of(bar, cell, value, peaks, opponents):
    """What makes a ratio doubtful -> is it invalid."""
    doubts = {}
    wanted = cell.bottom or {}
    if wanted.get("operation") == "peak":
        verdict = peaks.get((wanted["contender"], wanted["threads"]), (None, None, None, "not measured"))[3]
        if verdict != "valid":
            doubts[f"peak {wanted['contender']} is {verdict}"] = verdict == "invalid"
    # More reads than a copy has may well be faster than it.
    if (wanted.get("operation") == "peak" or wanted.get("contender") == "read") and value > MOST:
        doubts[f"{wanted['operation']} {wanted['contender']} is invalid: int8q is faster"] = True
    for opponent in opponents:
        if opponent.reference.row in (cell.top, cell.bottom) and opponent.verdict in ("invalid", "slower than expected"):
            what = f"{opponent.reference.contender} M={opponent.reference.row['M']} is {opponent.verdict}"
            doubts[what] = opponent.verdict == "invalid"
    return doubts


def judge_cell(bar, cell, value, peaks, opponents):
    if value is None:
        return CellVerdict(cell, None, "not measured")
    doubts = doubts_of(bar, cell, value, peaks, opponents)
    if any(doubts.values()):
        verdict = "invalid"
    elif (ratio := bar.ratio(cell, value)) < 1:
        verdict = "missed" if ratio >= LEAST_ELSEWHERE else "below .85"
    else:
        verdict = "unchecked" if any("not checked" in doubt for doubt in doubts) else "met"
    return CellVerdict(cell, value, verdict, list(doubts))


def judge_bar(bar, rows, peaks, opponents):
    if isinstance(bar, Elsewhere):
        return Verdict(bar, [], [bar.where])
    values, remarks = evaluate(bar, rows)
    cells = [judge_cell(bar, cell, value, peaks, opponents) for cell, value in zip(bar.cells, values)]
    return Verdict(bar, cells, list(dict.fromkeys([*remarks, *(doubt for cell in cells for doubt in cell.doubts)])))


def failures(verdicts):
    """[(why, bar, its cells)] of the rule: each bar is met at M of MUST_MEET, no other cell is below .85 of its bar."""
    rules = {
        "missed at M=1 or M=128": lambda cell: cell.verdict in ("missed", "below .85") and cell.cell.m in MUST_MEET,
        "below .85 of its bar": lambda cell: cell.verdict == "below .85" and cell.cell.m not in MUST_MEET,
        "not judged": lambda cell: cell.verdict in ("invalid", "not measured", "unchecked"),
    }
    found = [(why, verdict.bar, list(filter(rule, verdict.cells))) for why, rule in rules.items() for verdict in verdicts]
    return [failure for failure in found if failure[2]]
