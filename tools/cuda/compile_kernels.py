#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""compile_kernels.py OUT: the kernels of src/cuda/kernels/entries.cu by NVRTC, OUT/ARCH.cubin and OUT/compute_80.ptx.

OUT/resources.json says what ptxas says of each: architecture -> kernel -> registers, stack, spills, in bytes; and "nvrtc",
its version. OUT/images.inc is what src/cuda/images.cpp embeds. What is newer than its sources, by this version, is not
made again. --nvrtc names the library; without it, it is that of requirements.txt beside this one in this Python, else a
toolkit's.
"""

import argparse
import ctypes
import ctypes.util
import json
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src/cuda/kernels"
# name of the architecture -> number of its tag in arch.h. PTX is for GPUs to come, whose shared memory may be small.
ARCHITECTURES = {
    "sm_70": 70,
    "sm_75": 75,
    "sm_80": 80,
    "sm_86": 86,
    "sm_89": 86,
    "sm_90": 90,
    "sm_90a": 901,
    "sm_100": 90,
    "sm_120": 120,
    "compute_80": 86,
}
OPTIONS = ["-std=c++17", "-fmad=false", "-Xptxas=-v", f"-I{ROOT / 'src'}"]


def find_nvrtc():
    """Path, or None."""
    for folder in sys.path:
        found = sorted(Path(folder).glob("nvidia/cuda_nvrtc/lib/libnvrtc.so.*"))
        if found:
            return str(found[0])
    found = ctypes.util.find_library("nvrtc") or next(Path("/usr/local/cuda/lib64").glob("libnvrtc.so"), None)
    return found and str(found)


def number_of(architecture):
    return int(re.search(r"\d+", architecture)[0])


class Nvrtc:
    def __init__(self, path):
        """OSError if it does not load, AttributeError for one of before CUDA 11.2."""
        self.path = path
        self.library = ctypes.CDLL(path)
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        self.call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        self.numbers = (ctypes.c_int * count.value)()
        self.call("nvrtcGetSupportedArchs", self.numbers)

    def __str__(self):
        return f"NVRTC {self.version_text} ({self.path})"

    @property
    def version_text(self):
        return ".".join(map(str, self.version))

    def knows(self, architecture):
        return number_of(architecture) in self.numbers and (not architecture.endswith("a") or self.version >= (12, 0))

    def oldest_driver(self, architecture):
        """As cuDriverGetVersion tells: a cubin's of the same major version, PTX's of the same version."""
        major, minor = self.version
        return major * 1000 + (minor * 10 if architecture.startswith("compute") else 0)

    def call(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: {self.library.nvrtcGetErrorString(status).decode()}")

    def text(self, program, kind):
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{kind}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{kind}", program, buffer)
        return buffer.raw

    def compile(self, source, architecture):
        """(cubin or PTX, log)"""
        program = ctypes.c_void_p()
        self.call("nvrtcCreateProgram", ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
        try:
            options = [
                f"-arch={architecture}",
                f"-DINT8Q_ARCH={ARCHITECTURES[architecture]}",
                f"-DINT8Q_SUFFIX={suffix_of(architecture)}",
            ]
            options = [option.encode() for option in OPTIONS + options]
            try:
                self.call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
            except RuntimeError as error:
                raise RuntimeError(f"{architecture}: {error}\n{self.text(program, 'ProgramLog').decode()}") from None
            log = self.text(program, "ProgramLog").decode()
            warnings = [line for line in log.splitlines() if "warning" in line and "prior to '<compute/sm>_75'" not in line]
            if warnings:
                raise RuntimeError(f"{architecture}: warnings are errors\n{log}")
            if architecture.startswith("compute"):
                return self.text(program, "PTX").removesuffix(b"\0"), log
            return self.text(program, "CUBIN"), log
        finally:
            self.call("nvrtcDestroyProgram", ctypes.byref(program))


def resources(log):
    """kernel -> what ptxas -v says of it"""
    found = {}
    pieces = re.split(r"Compiling entry function '(\w+)'", log)[1:]
    for kernel, text in zip(pieces[::2], pieces[1::2]):
        stack, stores, loads = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", text
        ).groups()
        registers = re.search(r"Used (\d+) registers", text)[1]
        found[kernel] = {
            "registers": int(registers),
            "stack": int(stack),
            "spill_stores": int(stores),
            "spill_loads": int(loads),
        }
    return found


def suffix_of(architecture):
    """The end of its kernels' names."""
    return architecture.replace("sm_", "sm").replace("compute_", "ptx")


def file_of(out, architecture):
    return out / (architecture + (".ptx" if architecture.startswith("compute") else ".cubin"))


def compile_one(nvrtc, architecture, out):
    image, log = Nvrtc(nvrtc).compile(SOURCES / "entries.cu", architecture)
    file_of(out, architecture).write_bytes(image)
    return architecture, resources(log)


def write_images(out, architectures, nvrtc):
    """A line an architecture: INT8Q_IMAGE(name, suffix, capability, tag, runs, driver, file)"""

    def line(architecture):
        runs = "kLater" if architecture.startswith("compute") else "kAlone" if architecture.endswith("a") else "kOnMajor"
        file = json.dumps(str(file_of(out, architecture).resolve()))
        which = f"{architecture}, {suffix_of(architecture)}, {number_of(architecture)}, {ARCHITECTURES[architecture]}"
        return f"INT8Q_IMAGE({which}, {runs}, {nvrtc.oldest_driver(architecture)}, {file})\n"

    (out / "images.inc").write_text(
        "".join(line(architecture) for architecture in ARCHITECTURES if architecture in architectures)
    )


def load_nvrtc(path=None):
    path = path or find_nvrtc()
    if path is None:
        sys.exit("compile_kernels.py: no NVRTC; pip install -r tools/cuda/requirements.txt, or name one by --nvrtc")
    try:
        return Nvrtc(path)
    except (OSError, AttributeError) as error:
        sys.exit(f"compile_kernels.py: {path} is no NVRTC to use: {error}; name one of CUDA 12 or later by --nvrtc")


def compile_all(out, architectures, nvrtc=None):
    """architecture -> kernel -> resources; what is newer than the sources and by this NVRTC's version is not made again."""
    nvrtc = load_nvrtc(nvrtc)
    unknown = [architecture for architecture in architectures if not nvrtc.knows(architecture)]
    if unknown:
        sys.exit(
            f"compile_kernels.py: {nvrtc} does not know {', '.join(unknown)}; leave that out of --arch, "
            "or pip install -r tools/cuda/requirements.txt"
        )
    out.mkdir(parents=True, exist_ok=True)
    report = out / "resources.json"
    newest = max(path.stat().st_mtime for path in [*SOURCES.iterdir(), Path(__file__)])
    found = json.loads(report.read_text()) if report.exists() and report.stat().st_mtime >= newest else {}
    if found.pop("nvrtc", None) != nvrtc.version_text:
        found = {}
    found = {architecture: kernels for architecture, kernels in found.items() if file_of(out, architecture).exists()}
    wanted = [architecture for architecture in architectures if architecture not in found]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for architecture, kernels in pool.map(compile_one, [nvrtc.path] * len(wanted), wanted, [out] * len(wanted)):
            found[architecture] = kernels
    report.write_text(json.dumps({"nvrtc": nvrtc.version_text, **found}, indent=1) + "\n")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--nvrtc")
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument(
        "--find",
        action="store_true",
        help="only print, as JSON, which NVRTC is there and which architectures it knows; exit status 1 without one",
    )
    args = parser.parse_args()
    nvrtc = load_nvrtc(args.nvrtc)
    if args.find:
        known = [architecture for architecture in args.arch if nvrtc.knows(architecture)]
        unknown = [architecture for architecture in args.arch if architecture not in known]
        lists = {"known": ";".join(known), "unknown": ";".join(unknown)}
        print(json.dumps({"path": nvrtc.path, "version": nvrtc.version_text, **lists}))
        return
    if args.out is None:
        parser.error("OUT is missing")
    for architecture, kernels in compile_all(args.out, args.arch, args.nvrtc).items():
        print(f"{architecture}: {len(kernels)} kernels")
    write_images(args.out, args.arch, nvrtc)


if __name__ == "__main__":
    main()
