#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""int8q beside bitsandbytes, torch, FBGEMM and oneDNN as torch has them, interleaved in one process.

Activations are bf16 [M,K] with 7 outlier columns; contenders.py says what each contender is. Rotated rows use layers of
more than 128 MiB of int8 weights one after another, so that no cache holds the next one. Medians are printed; with --json
every sample is stored with the machine, the versions and the environment.

    bench/compare_python.py --library build/release/lib/libint8q.so.1 --json build/release/bench/compare_native.json
    bench/compare_python.py --library build/release/lib/libint8q.so.1 --isa avx2
"""

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import time

from machine import describe_machine, describe_process, torch_versions

# What forces each library to AVX2. bitsandbytes' int8 operators on a CPU are torch's; its own library is not called by
# them. MKL, which torch's fp32 products call, obeys on Intel CPUs and does not say what it took on others.
AVX2 = {
    "INT8Q_CPU_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
# What would hold a contender below what this machine can do; no run heeds what its environment says of them.
HOLDS_BACK = (*AVX2, "DNNL_MAX_CPU_ISA")
OUTLIERS = 7
ROTATED_BYTES = 128 << 20
# OpenMP's threads spin for some milliseconds after a parallel region, on the core that the next contender's second thread
# needs.
PAUSE_S = 0.02
# Threads that have slept and caches that others have filled take some milliseconds of calls to be what they are in a
# model's loop.
WARM_S, TIMED_S, MAX_TIMED = 0.006, 0.04, 20
MIN_TURNS = 7
# A contender whose calls take longer than SLOW_S takes part in SLOW_TURNS turns only. One call of more than ENOUGH_S is all
# that is measured, and larger M of that contender are left out.
SLOW_S, SLOW_TURNS, ENOUGH_S = 0.3, 3, 3.0


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def warm_up(call):
    """Seconds of the last of the calls."""
    end = time.perf_counter() + WARM_S
    while True:
        seconds, _ = timed(call)
        if time.perf_counter() >= end:
            return seconds


def take_turns(calls, seconds):
    """name -> samples in ms. A turn: for each contender a pause, uncounted calls for WARM_S, counted ones for TIMED_S."""
    samples = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for turn in itertools.count():
        if turn >= MIN_TURNS and time.perf_counter() >= end:
            return samples
        for name, call in calls.items():
            slow = bool(samples[name]) and samples[name][-1] > SLOW_S * 1e3
            if slow and turn >= SLOW_TURNS:
                continue
            time.sleep(PAUSE_S)
            warm = warm_up(call)
            for _ in range(min(MAX_TIMED, math.ceil(TIMED_S / warm))):
                samples[name].append(timed(call)[0] * 1e3)


class Comparison:
    """Runs the contenders of a shape and keeps rows and what is missing."""

    def __init__(self, library, threads, seconds):
        self.library, self.threads, self.seconds = library, threads, seconds
        self.rows, self.missing = [], []

    def miss(self, why, **key):
        self.missing.append({**key, "why": why})
        print("  not measured: " + " ".join(f"{name}={value}" for name, value in key.items()) + f": {why}")

    def build(self, makers, weights, bias, **key):
        layers = {}
        for name, make in makers.items():
            try:
                layers[name] = [make(weight, bias) for weight in weights]
            except Exception as error:  # whatever an opponent raises is the reason why it is missing
                self.miss(f"{type(error).__name__}: {error}", operation=make.operation, contender=name, **key)
        return layers

    def measure(self, makers, inputs, shape, rotated, reference):
        """All contenders on each M of inputs; one table."""
        k, n = shape
        count = ROTATED_BYTES // (k * n) + 1 if rotated else 1
        weights = [random_weight(n, k, seed) for seed in range(count)]
        bias = random_weight(1, n, -1)[0]
        layers = self.build(makers, weights, bias, K=k, N=n)
        medians = {name: {} for name in layers}
        for m, x in inputs.items():
            calls, samples, errors = {}, {}, {}
            for name, instances in layers.items():
                key = {"operation": makers[name].operation, "contender": name, "K": k, "N": n, "M": m}
                slow = {smaller: ms for smaller, ms in medians[name].items() if ms > ENOUGH_S * 1e3}
                if slow:
                    self.miss("M={} took {:.0f} ms already".format(*next(iter(slow.items()))), **key)
                    continue
                try:
                    call, first_s, errors[name] = prepare(instances, x, reference(x, weights[0], bias))
                except Exception as error:
                    self.miss(f"{type(error).__name__}: {error}", **key)
                    continue
                if first_s > ENOUGH_S:
                    samples[name] = [first_s * 1e3]
                else:
                    calls[name] = call
            samples.update(take_turns(calls, self.seconds))
            for name in layers:
                if name in samples:
                    medians[name][m] = statistics.median(samples[name])
                    key = {"K": k, "N": n, "M": m, "rotated": rotated, "layers": count}
                    self.add_row(name, makers[name], key, samples[name], errors[name])
        print_table(medians, list(inputs))

    def add_row(self, name, maker, key, samples, error):
        self.rows.append(
            {
                "operation": maker.operation,
                "contender": name,
                **key,
                "threads": self.threads,
                "dtype": maker.dtype,
                "ms": round_to(statistics.median(samples)),
                "quartiles_ms": [round_to(q) for q in statistics.quantiles(samples, n=4)] if len(samples) > 1 else None,
                "relative_error": error,
                "samples_ms": [round_to(sample) for sample in samples],
            }
        )


def prepare(instances, x, reference):
    """A call of the next of the layers; seconds of a first call of the first one; its relative error."""
    prepared = [layer.prepare(x) for layer in instances]
    seconds, y = timed(lambda: instances[0](prepared[0]))
    y = y.dequantize() if y.is_quantized else y.double()
    if hasattr(instances[0], "reference"):
        reference = instances[0].reference(prepared[0])
    turns = itertools.cycle(zip(instances, prepared))

    def call():
        layer, argument = next(turns)
        layer(argument)

    return call, seconds, round_to(((y - reference).norm() / reference.norm()).item())


def round_to(value, digits=5):
    return float(f"{value:.{digits}g}")


def print_table(table, all_m):
    """Median ms, and in brackets how many times int8q's."""
    ours = next((times for name, times in table.items() if name.startswith("int8q:")), {})
    print(f"  {'contender':20}" + "".join(f"{f'M={m}':>10}{'':9}" for m in all_m))
    for name, times in table.items():
        cells = []
        for m in all_m:
            ratio = f"({times[m] / ours[m]:.2f})" if m in times and m in ours else ""
            cells.append(f"{times[m]:10.3f} {ratio:8}" if m in times else f"{'-':>10} {'':8}")
        print(f"  {name:20}" + "".join(cells), flush=True)


def random_weight(rows, cols, seed):
    import torch

    generator = torch.Generator().manual_seed(seed + 2)
    return (torch.randn(rows, cols, generator=generator) / math.sqrt(cols)).half().float()


def activations(m, k):
    """Normal, cut at 3.5, with OUTLIERS columns of 40 on three of four rows."""
    import torch

    x = torch.randn(m, k, generator=torch.Generator().manual_seed(1)).clamp(-3.5, 3.5)
    rows = torch.arange(m) % 4 != 3
    for t in range(OUTLIERS):
        x[rows, t * (k // OUTLIERS)] = 40.0
    return x.to(torch.bfloat16)


def call_overhead(library, forward):
    """Microseconds through ctypes: a call that does nothing, and M=1 on a layer so small that the call takes the time."""
    import torch

    layer = forward(random_weight(64, 64, 0), torch.zeros(64))
    argument = layer.prepare(activations(1, 64))

    def microseconds(call, rounds=50, calls=200):
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in range(calls):
                call()
            times.append((time.perf_counter() - start) / calls * 1e6)
        return round_to(statistics.median(times))

    result = {
        "int8q_abi_version": microseconds(library.abi.int8q_abi_version),
        "forward 64x64 M=1": microseconds(lambda: layer(argument)),
    }
    print("calls through ctypes, us: " + ", ".join(f"{name} {us:.2f}" for name, us in result.items()))
    return result


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library", required=True, help="path of libint8q.so.1")
    parser.add_argument("--isa", choices=["native", "avx2"], default="native", help="avx2: all contenders are forced to it")
    parser.add_argument("--shapes", nargs="+", default=["4096x4096"], metavar="KxN", help="default 4096x4096")
    parser.add_argument("--rotated", nargs="*", default=[], metavar="KxN", help="shapes with rotated weights, M up to 8")
    parser.add_argument("--backward", nargs="*", default=[], metavar="KxN", help="shapes to run backward")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 128, 512], help="M (default 1 8 128 512)")
    parser.add_argument("--backward-rows", type=int, nargs="+", default=[1, 128, 256, 512], help="default 1 128 256 512")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help=f"for each M, at least {MIN_TURNS} turns (default 3)")
    parser.add_argument("--json", help="store the results in this file")
    return parser.parse_args()


def shapes(texts):
    return [tuple(map(int, text.split("x"))) for text in texts]


def prepare_process(args):
    """Loads torch, int8q and the opponents, on the ISA and the threads that are asked for."""
    # Before the libraries that read them are loaded.
    cleared = {name: os.environ.pop(name) for name in HOLDS_BACK if name in os.environ}
    if cleared:
        print("cleared from the environment: " + ", ".join(f"{name}={value}" for name, value in cleared.items()))
    os.environ["INT8Q_NUM_THREADS"] = str(args.threads)
    os.environ.update(AVX2 if args.isa == "avx2" else {})
    import contenders
    import torch

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    capability = torch.backends.cpu.get_cpu_capability()
    if args.isa == "avx2" and capability != "AVX2":
        sys.exit(f"torch took {capability} although ATEN_CPU_CAPABILITY is avx2; expected AVX2")
    library = contenders.Int8qLibrary(args.library)
    taken = {"int8q": library.description()["isa"], "torch": capability}
    print(f"int8q on {taken['int8q']}, torch on {capability}, {args.threads} threads; median ms (times int8q's)")
    facts = {"isa": args.isa, "isa_taken": taken, "torch_int_mm_saturates": contenders.saturates()}
    facts["cleared_environment"] = cleared
    return library, contenders.forward_contenders(library), contenders.backward_contenders(library), facts


def measure_all(run, args, forward, backward):
    from torch.nn.functional import linear

    for k, n in shapes(args.shapes):
        print(f"linear, K={k} N={n}")
        inputs = {m: activations(m, k) for m in args.rows}
        run.measure(forward, inputs, (k, n), False, lambda x, w, b: linear(x.float(), w, b))
    for k, n in shapes(args.rotated):
        print(f"linear, K={k} N={n}, weights rotated over more than {ROTATED_BYTES >> 20} MiB")
        inputs = {m: activations(m, k) for m in args.rows if m <= 8}
        run.measure(forward, inputs, (k, n), True, lambda x, w, b: linear(x.float(), w, b))
    for k, n in shapes(args.backward):
        print(f"backward to the input, K={k} N={n}")
        inputs = {m: random_weight(m, n, m).bfloat16() for m in args.backward_rows}
        run.measure(backward, inputs, (k, n), False, lambda dy, w, b: dy.float() @ w)


def main():
    args = parse_arguments()
    library, forward, backward, facts = prepare_process(args)
    ours = forward[f"int8q:{facts['isa_taken']['int8q']}"]
    overhead = call_overhead(library, ours)
    blobs = [
        {"K": k, "N": n, "blob_bytes": ours(random_weight(n, k, 0), random_weight(1, n, -1)[0]).blob_bytes()}
        for k, n in shapes(args.shapes)
    ]
    run = Comparison(library, args.threads, args.seconds)
    measure_all(run, args, forward, backward)
    if args.json:
        record = {
            **describe_process(args.library, library.version(), torch_versions()),
            "machine": describe_machine(),
            **facts,
            "threads": args.threads,
            "outliers": OUTLIERS,
            "call_overhead_us": overhead,
            "blobs": blobs,
            "missing": run.missing,
            "rows": run.rows,
        }
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
