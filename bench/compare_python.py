#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""int8q's linear beside bitsandbytes' Linear8bitLt and torch's bf16 linear, interleaved in one process.

Activations are bf16 [M, K] with 7 outlier columns, threshold 6, bias, eval mode, two or more threads. The opponents take
turns, so that a busy machine is busy for all of them; the medians and their ratios are printed and, with --json, stored
with the machine and the versions. Run it through `make bench-python`, which makes its environment.

    bench/compare_python.py --library build/release/lib/libint8q.so.1
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 INT8Q_CPU_ISA=avx2 bench/compare_python.py --library ...
"""

import argparse
import ctypes as C
import json
import os
import platform
import statistics
import sys
import time

import bitsandbytes
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python", "int8q"))
import _abi  # noqa: E402  the generated ctypes layer


def matrix(tensor, rows, cols):
    dtype = {torch.float32: _abi.INT8Q_F32, torch.bfloat16: _abi.INT8Q_BF16}[tensor.dtype]
    return _abi.int8q_matrix(C.sizeof(_abi.int8q_matrix), dtype, rows, cols, cols, tensor.data_ptr())


class Int8qLinear:
    """A linear of libint8q.so, called with torch tensors' memory."""

    def __init__(self, path, weight, bias):
        self.lib = _abi.Library(path)
        self.context, self.linear = C.POINTER(_abi.int8q_context)(), C.POINTER(_abi.int8q_linear)()
        self.check(self.lib.int8q_create_context(None, C.byref(self.context)))
        self.n, self.k = weight.shape
        w, b = matrix(weight, self.n, self.k), matrix(bias, 1, self.n)
        self.check(self.lib.int8q_create_linear(self.context, w, None, b, None, C.byref(self.linear)))
        self.workspace, self.rows = None, 0

    def check(self, status):
        if status != _abi.INT8Q_OK:
            raise RuntimeError(f"status {status}: {self.lib.int8q_last_error().decode()}")

    def __call__(self, x):
        m = x.shape[0]
        y = torch.empty(m, self.n, dtype=x.dtype)
        if self.rows < m:
            need = C.c_uint64()
            self.check(self.lib.int8q_query_workspace(self.context, self.linear, _abi.INT8Q_FORWARD, m, 0, C.byref(need)))
            self.workspace, self.rows = torch.empty(need.value + 64, dtype=torch.uint8), m
        base = (self.workspace.data_ptr() + 63) // 64 * 64
        room = self.workspace.data_ptr() + self.workspace.numel() - base
        self.check(
            self.lib.int8q_forward(self.context, self.linear, matrix(x, m, self.k), 0, matrix(y, m, self.n), base, room)
        )
        return y

    def isa(self):
        size = C.c_uint64()
        self.lib.int8q_describe_context(self.context, None, 0, C.byref(size))
        text = C.create_string_buffer(size.value + 1)
        self.check(self.lib.int8q_describe_context(self.context, text, len(text), None))
        return json.loads(text.value)["isa"]


def activations(m, k, generator):
    x = torch.randn(m, k, generator=generator).clamp(-3.5, 3.5)
    rows = torch.arange(m) % 4 != 3
    for t in range(7):
        x[rows, t * (k // 7)] = 40.0
    return x.to(torch.bfloat16)


def median_times(candidates, x, seconds):
    """Medians in ms; the candidates take turns until `seconds` have passed, at least 7 turns each.

    A turn is a pause, one call that is not timed, and three that are. OpenMP's threads spin for some milliseconds after a
    parallel region, on the core that the next candidate's second thread needs; the pause is longer.
    """
    times = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 21:
        for name, run in candidates.items():
            time.sleep(0.02)
            run(x)
            for _ in range(3):
                start = time.perf_counter()
                run(x)
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        fields = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    return f"{fields.get('model name', 'CPU')} family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library", required=True, help="path of libint8q.so.1")
    parser.add_argument("--size", type=int, default=4096, help="K and N (default 4096)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 128, 512], help="M (default 1 8 128 512)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="a shape (default 4)")
    parser.add_argument("--json", help="store the results in this file")
    args = parser.parse_args()

    os.environ["INT8Q_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    generator = torch.Generator().manual_seed(1)
    k = n = args.size
    float_linear = torch.nn.Linear(k, n)
    weight = (torch.randn(n, k, generator=generator) / k**0.5).half().float()
    bias = torch.randn(n, generator=generator)
    float_linear.weight.data, float_linear.bias.data = weight, bias
    bnb = bitsandbytes.nn.Linear8bitLt(k, n, bias=True, has_fp16_weights=False, threshold=6.0)
    bnb.load_state_dict(float_linear.state_dict())
    bnb = bnb.to("cpu").eval()
    int8q = Int8qLinear(args.library, weight, bias)
    candidates = {"int8q": int8q, "bitsandbytes": bnb, "torch bf16": torch.nn.Linear(k, n).to(torch.bfloat16)}
    candidates["torch bf16"].load_state_dict(float_linear.to(torch.bfloat16).state_dict())

    exact = torch.nn.functional.linear
    results = []
    print(
        f"linear {k}x{n}, bf16, 7 outlier columns, threshold 6, eval, {args.threads} threads; int8q on {int8q.isa()},"
        f" torch on {torch.backends.cpu.get_cpu_capability()}; median ms"
    )
    print(
        f"{'M':>5} {'int8q':>9} {'bitsandbytes':>13} {'torch bf16':>11} {'bnb/int8q':>10} {'bf16/int8q':>11} {'error':>8}"
    )
    for m in args.rows:
        x = activations(m, k, generator)
        reference = exact(x.float(), weight, bias)
        error = ((int8q(x).float() - reference).norm() / reference.norm()).item()
        ms = median_times(candidates, x, args.seconds)
        results.append({"M": m, "K": k, "N": n, "ms": ms, "relative_error": error})
        print(
            f"{m:5d} {ms['int8q']:9.3f} {ms['bitsandbytes']:13.3f} {ms['torch bf16']:11.3f}"
            f" {ms['bitsandbytes'] / ms['int8q']:10.2f} {ms['torch bf16'] / ms['int8q']:11.2f} {error:8.4f}"
        )
    if args.json:
        record = {
            "command": " ".join(sys.argv),
            "machine": f"{cpu_model()}, {platform.machine()}",
            "isa": int8q.isa(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": args.threads,
            "versions": {
                "torch": torch.__version__,
                "bitsandbytes": bitsandbytes.__version__,
                "python": platform.python_version(),
            },
            "results": results,
        }
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
