#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`int8q quantize` of a large checkpoint beside a copy of as many bytes, which is what disk and memory bus allow.

The copy reads the input and writes as much as the output has, block by block on the same number of threads, and syncs. Both
take turns, with the input in the page cache (warm) and dropped from it before (cold).

    bench/checkpoint.py --command build/release/bin/int8q --library build/release/lib/libint8q.so.1
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from machine import describe_machine, describe_process

SIDE = 4096
TENSOR_BYTES = 2 * SIDE * SIDE
BLOCK, PAGE = 1 << 20, 4096  # with 4 MiB, ext4 took .3 s and 2 s by turns for what takes .35 s so
SAMPLES = 64  # of a file, to see whether it is cached
SAMPLE_MEMORY_S = 0.002
SYNC_FILE_RANGE_WRITE = 2  # starts writing, as `int8q quantize` does


def write_checkpoint(path, count):
    """`count` bf16 linears; one period of random weights is enough, since times do not depend on them."""
    generator = random.Random(1)
    period = b"".join(struct.pack("<f", generator.gauss(0, 0.02))[2:] for _ in range(1 << 16))
    header = {
        f"model.layers.{i}.mlp.up_proj.weight": {
            "dtype": "BF16",
            "shape": [SIDE, SIDE],
            "data_offsets": [i * TENSOR_BYTES, (i + 1) * TENSOR_BYTES],
        }
        for i in range(count)
    }
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(count):
            file.write(period * (TENSOR_BYTES // len(period)))
        os.fsync(file.fileno())


def copy(source, target, bytes_out, threads):
    """Reads all of source, writes the first part of each block, bytes_out in all, and syncs."""
    bytes_in = source.stat().st_size
    blocks = -(-bytes_in // BLOCK)
    part = -(-bytes_out // blocks // PAGE) * PAGE  # a page shared by two writes would wait for the first
    start_writing = ctypes.CDLL(None).sync_file_range
    reader, writer = os.open(source, os.O_RDONLY), os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def work(thread):
        memory = memoryview(bytearray(BLOCK))
        for block in range(thread, blocks, threads):
            os.preadv(reader, [memory], block * BLOCK)
            written = os.pwrite(writer, memory[: max(0, min(part, bytes_out - block * part))], block * part)
            start_writing(writer, ctypes.c_int64(block * part), ctypes.c_int64(written), SYNC_FILE_RANGE_WRITE)

    os.posix_fallocate(writer, 0, bytes_out)
    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.fsync(writer)
    os.close(writer)
    os.close(reader)
    folder = os.open(target.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def quantize(command, source, target, threads):
    """Seconds, and the most anonymous memory of the process in bytes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("INT8Q_")}
    arguments = [command, "quantize", "--quiet", "--threads", str(threads), str(source), str(target)]
    sizes, ended = [], threading.Event()
    start = time.perf_counter()
    process = subprocess.Popen(arguments, env=environment)

    def watch():
        while not ended.wait(SAMPLE_MEMORY_S):
            with open(f"/proc/{process.pid}/status", encoding="utf-8") as status:
                sizes.extend(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon:"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # leaves its /proc entry for the watcher
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with status {process.returncode}; expected 0")
    return seconds, max(sizes)


def cached_share(path):
    """Of SAMPLES places in the file: can they be read without the disk?"""
    cached = 0
    with open(path, "rb") as file:
        for sample in range(SAMPLES):
            try:
                cached += os.preadv(file.fileno(), [bytearray(1)], path.stat().st_size * sample // SAMPLES, os.RWF_NOWAIT)
            except OSError:
                pass
    return cached / SAMPLES


def set_cache(path, cache):
    """Warm: reads the file. Cold: drops it, which needs no privilege for clean pages. Returns whether that worked."""
    with open(path, "rb") as file:
        if cache == "cold":
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return cached_share(path) < 0.1
        memory = bytearray(BLOCK)
        while file.readinto(memory):
            pass
        return cached_share(path) == 1.0


def take_turns(args, cache, source, target, bytes_out):
    """(seconds of each copy and of each int8q quantize, the most memory of the latter), or None if the cache disobeys."""
    copies, ours, most = [], [], 0
    for _ in range(args.repetitions):
        for is_copy in (True, False):
            target.unlink()
            os.sync()
            if not set_cache(source, cache):
                return None
            if is_copy:
                start = time.perf_counter()
                copy(source, target, bytes_out, args.threads)
                copies.append(time.perf_counter() - start)
            else:
                seconds, memory = quantize(args.command, source, target, args.threads)
                ours.append(seconds)
                most = max(most, memory)
    return copies, ours, most


def measure(args, folder):
    source, target = folder / "in.safetensors", folder / "out.safetensors"
    write_checkpoint(source, round(args.gigabytes * 1e9 / TENSOR_BYTES))
    quantize(args.command, source, target, args.threads)
    bytes_in, bytes_out = source.stat().st_size, target.stat().st_size
    rows, missing = [], []
    for cache in ("warm", "cold"):
        operation = f"checkpoint_{cache}"
        found = take_turns(args, cache, source, target, bytes_out)
        if found is None:
            missing.append({"operation": operation, "why": "the file system does not say that the page cache became so"})
            target.touch()
            continue
        copies, ours, most = found
        for contender, seconds, more in (("copy", copies, {}), ("int8q", ours, {"MiB": most / 2**20})):
            counters = {"GB/s": (bytes_in + bytes_out) / statistics.median(seconds) / 1e9, **more}
            rows.append({"operation": operation, "contender": contender, "seconds": seconds, "counters": counters})
    return {"bytes_in": bytes_in, "bytes_out": bytes_out, "missing": missing, "rows": rows}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--command", required=True, help="path of the int8q command")
    parser.add_argument("--library", required=True, help="path of libint8q.so.1 of the same build")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the checkpoint (default 2)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="on the disk that is measured")
    parser.add_argument("--json", help="store the results in this file")
    return parser.parse_args()


def main():
    args = parse_arguments()
    needed = 2e9 * args.gigabytes
    if shutil.disk_usage(args.folder).free < needed:
        raise SystemExit(f"{args.folder} has too little space; expected {needed / 1e9:.1f} GB")
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="checkpoint-") as folder:
        measured = measure(args, Path(folder))
    for row in measured["rows"]:
        times = f"{statistics.median(row['seconds']):.2f} s"
        counters = ", ".join(f"{value:.3g} {name}" for name, value in row["counters"].items())
        print(f"{row['operation']} {row['contender']}: {times}, {counters}")
    if args.json:
        file_system = subprocess.run(["stat", "-f", "-c", "%T", args.folder], capture_output=True, text=True, check=True)
        version = subprocess.run([args.command, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        record = {
            **describe_process(args.library, version, {}),
            "machine": describe_machine(),
            "threads": args.threads,
            "file_system": file_system.stdout.strip(),
            **measured,
        }
        Path(args.json).write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
