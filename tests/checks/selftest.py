# SPDX-License-Identifier: Apache-2.0
"""selftest.py COMMAND CPU [EMULATOR...]: `int8q selftest` under every ISA, and the other subcommands once.

CPU is `host`, or the name of a CPU that EMULATOR emulates. What must run is told by /proc/cpuinfo or by the model's name,
not by the library; every other ISA must be refused by name.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile

ISAS = {
    "generic": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avxvnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx512bw": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx512vnni": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
}
MODELS = {"Nehalem": set(), "Haswell": {"avx2", "fma", "f16c"}, "aarch64": set()}


def features(cpu):
    if cpu != "host":
        return MODELS[cpu]
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next((line for line in file if line.startswith("flags")), ":")
    return set(flags.split(":")[1].split())


def other_subcommands(command, emulator, folder):
    """quantize, inspect and doctor: code that no self-test runs must run on this CPU, too."""
    source, out = f"{folder}/in.safetensors", f"{folder}/out.safetensors"
    header = json.dumps({"a.weight": {"dtype": "F32", "shape": [8, 100], "data_offsets": [0, 3200]}}).encode()
    with open(source, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + struct.pack("<800f", *(i / 7 - 50 for i in range(800))))
    failures = 0
    for arguments in (["quantize", source, out], ["inspect", out], ["doctor"]):
        run = subprocess.run([*emulator, command, *arguments], capture_output=True, text=True)
        print(f"{arguments[0]}: {'ok' if run.returncode == 0 else 'FAILED'}")
        if run.returncode != 0:
            print(f"exit status {run.returncode}\n{run.stdout}{run.stderr}")
            failures += 1
    return failures


def main(command, cpu, *emulator):
    available = features(cpu)
    failures = 0
    for isa in [None, *ISAS]:
        environment = {k: v for k, v in os.environ.items() if k != "INT8Q_CPU_ISA"}
        if isa:
            environment["INT8Q_CPU_ISA"] = isa
        run = subprocess.run([*emulator, command, "selftest"], env=environment, capture_output=True, text=True)
        text = run.stdout + run.stderr
        runnable = isa is None or ISAS[isa] <= available
        if runnable:
            good = run.returncode == 0
        else:
            good = run.returncode > 0 and isa in text
        print(f"{isa or 'default'}: {'runs' if runnable else 'is refused'}: {'ok' if good else 'FAILED'}")
        if not good:
            print(f"exit status {run.returncode}\n{text}")
            failures += 1
    with tempfile.TemporaryDirectory() as folder:
        failures += other_subcommands(command, emulator, folder)
    sys.exit(failures != 0)


main(*sys.argv[1:])
