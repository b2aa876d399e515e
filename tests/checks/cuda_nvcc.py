# SPDX-License-Identifier: Apache-2.0
"""cuda_nvcc.py [FOLDER]: compiles the CUDA kernels by a toolkit's nvcc, a second opinion beside NVRTC's.

Of each architecture that this nvcc knows: no warning, no stack, no spills, and the kernels that NVRTC compiled into FOLDER;
without FOLDER one architecture is compiled by NVRTC. FOLDER's PTX is assembled for Orin, one of the GPUs that take it,
without spills. Exit status 77 where there is no nvcc.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/cuda"))
import compile_kernels  # noqa: E402

# kernel with its suffix -> (bytes of stack, of spill stores, of spill loads) that are known, of others none
EXPECTED = {}


def nvcc_of_this_machine():
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def known_architectures(nvcc):
    """Those of the kernels' that it knows; its list leaves out sm_90a and its like. Of PTX ptxas has nothing to say."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return [architecture for architecture in compile_kernels.ARCHITECTURES if architecture.removesuffix("a") in listed]


def run(command):
    """(kernel -> resources, or None; what went wrong)"""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return (None, done.stdout) if done.returncode else (compile_kernels.resources(done.stdout), "")


def compile_one(nvcc, architecture):
    """As run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc,
            "-cubin",
            f"-arch={architecture}",
            f"-DINT8Q_ARCH={compile_kernels.ARCHITECTURES[architecture]}",
            f"-DINT8Q_SUFFIX={compile_kernels.suffix_of(architecture)}",
            *compile_kernels.OPTIONS,
            "--Werror=all-warnings",
            "-Wno-deprecated-gpu-targets",
            f"-o={folder}/{architecture}.cubin",
            str(compile_kernels.SOURCES / "entries.cu"),
        ]
        return run(command)


def assemble(nvcc, ptx):
    """As run, what a driver does on a GPU that has no cubin."""
    with tempfile.TemporaryDirectory() as folder:
        return run([Path(nvcc).with_name("ptxas"), "-v", "-arch=sm_87", f"-o={folder}/sm_87.cubin", str(ptx)])


def kernels_by_nvrtc(folder):
    """architecture -> its kernels"""
    if folder:
        return json.loads((folder / "resources.json").read_text())
    with tempfile.TemporaryDirectory() as fresh:
        return compile_kernels.compile_all(Path(fresh), ["sm_80"])


def errors_of(architecture, kernels, by_nvrtc):
    if by_nvrtc is not None and set(kernels) != set(by_nvrtc):
        yield f"{architecture}: only one of nvcc and NVRTC has {sorted(set(kernels) ^ set(by_nvrtc))}"
    for kernel, found in kernels.items():
        bytes_of = tuple(found[what] for what in ("stack", "spill_stores", "spill_loads"))
        expected = EXPECTED.get(kernel, (0, 0, 0))
        if bytes_of != expected:
            yield f"{kernel}: {bytes_of} bytes of stack, spill stores, spill loads; expected {expected}"


def main():
    nvcc = nvcc_of_this_machine()
    if nvcc is None:
        print("cuda_nvcc.py: no nvcc in PATH or in /usr/local/cuda/bin; nothing was compiled")
        sys.exit(77)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    by_nvrtc = kernels_by_nvrtc(folder)
    architectures = known_architectures(nvcc)
    errors = [] if architectures else [f"{nvcc} knows none of {', '.join(compile_kernels.ARCHITECTURES)}"]
    compared = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda architecture: compile_one(nvcc, architecture), architectures)
        for architecture, (kernels, log) in zip(architectures, results):
            if kernels is None:
                errors.append(f"{architecture}: nvcc failed\n{log}")
                continue
            compared += architecture in by_nvrtc
            errors += errors_of(architecture, kernels, by_nvrtc.get(architecture))
            most = max((found["registers"] for found in kernels.values()), default=0)
            print(f"{architecture}: {len(kernels)} kernels, at most {most} registers", flush=True)
    if "compute_80" in by_nvrtc:
        kernels, log = assemble(nvcc, folder / "compute_80.ptx")
        if kernels is None:
            errors.append(f"compute_80.ptx: ptxas failed\n{log}")
        else:
            of_sm_80 = {kernel.replace("_sm80", "_ptx80") for kernel in by_nvrtc.get("sm_80", ())} or None
            errors += errors_of("sm_87 of compute_80.ptx", kernels, of_sm_80)
            print(f"sm_87 of compute_80.ptx: {len(kernels)} kernels")
    if not compared and not errors:
        errors.append("no architecture was compiled by both nvcc and NVRTC")
    if errors:
        sys.exit("\n".join(errors))
    print(f"{nvcc}: no warnings, no spills; the same kernels as NVRTC's for {compared} architectures")


main()
