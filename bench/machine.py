# SPDX-License-Identifier: Apache-2.0
"""What a result must say about the machine, the versions and the environment that it came from."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import sys

# Variables that change what a contender does.
PREFIXES = tuple("INT8Q_ ATEN_ TORCH_ ONEDNN_ DNNL_ FBGEMM_ MKL_ OMP_ GOMP_ KMP_ MALLOC_ LD_PRELOAD".split())
INTERESTING_FLAGS = ("avx2", "avx_vnni", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "hypervisor")


def describe_machine():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        first = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    cpu = {name.strip(): value.strip() for name, value in first.items()}
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "vendor": cpu.get("vendor_id", ""),
        "family": int(cpu.get("cpu family", 0)),
        "model": int(cpu.get("model", 0)),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in INTERESTING_FLAGS if flag in flags],
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
    }


def torch_versions():
    """torch and what works on it. torch carries oneDNN and MKL and names them; it carries FBGEMM too, without a version."""
    import torch

    text = torch.__config__.show()
    found = {
        "onednn": re.search(r"MKL-DNN (v\S+)", text),
        "mkl": re.search(r"Math Kernel Library Version (\S+)", text),
    }
    versions = {name: importlib.metadata.version(name) for name in ("torch", "bitsandbytes", "numpy")}
    versions |= {name: match.group(1) if match else "not in this torch" for name, match in found.items()}
    versions["fbgemm"] = f"of torch {torch.__version__}" if "USE_FBGEMM" in text else "not in this torch"
    return versions


def describe_process(library, int8q_version, other_versions):
    with open(library, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES)},
        "versions": {
            "int8q": int8q_version,
            "int8q_library_sha256": digest,
            **other_versions,
            "python": platform.python_version(),
        },
    }
