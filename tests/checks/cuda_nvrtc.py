# SPDX-License-Identifier: Apache-2.0
"""cuda_nvrtc.py C_COMPILER CMAKE: what compile_kernels.py and the configuration make of an NVRTC, whatever it knows.

NVRTC is played by a few lines of C: a version, a list of architectures, and compiled kernels that name their architecture.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMPILER, CMAKE = sys.argv[1:]
FAKE = r"""
#include <stdio.h>
#include <string.h>
static const int known[] = {KNOWN};
static const char log_[] = "Compiling entry function 'k' for 'x'\n"
                           "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nUsed 8 registers";
static char image[100];
const char* nvrtcGetErrorString(int e) { return e == 5 ? "NVRTC_ERROR_INVALID_OPTION" : "?"; }
int nvrtcVersion(int* major, int* minor) { *major = MAJOR; *minor = MINOR; return 0; }
int nvrtcGetNumSupportedArchs(int* n) { *n = sizeof known / sizeof *known; return 0; }
int nvrtcGetSupportedArchs(int* all) { memcpy(all, known, sizeof known); return 0; }
int nvrtcCreateProgram(void** p, const char* s, const char* name, int n, void* h, void* i) { *p = image; return 0; }
int nvrtcDestroyProgram(void** p) { return 0; }
int nvrtcCompileProgram(void* p, int n, const char** options) {
  for (int i = 0; i < n; ++i)
    if (!strncmp(options[i], "-arch=", 6)) snprintf(image, sizeof image, "%s by %d.%d", options[i] + 6, MAJOR, MINOR);
  return 0;
}
int nvrtcGetProgramLogSize(void* p, size_t* n) { *n = sizeof log_; return 0; }
int nvrtcGetProgramLog(void* p, char* t) { strcpy(t, log_); return 0; }
int nvrtcGetCUBINSize(void* p, size_t* n) { *n = strlen(image); return 0; }
int nvrtcGetCUBIN(void* p, char* t) { memcpy(t, image, strlen(image)); return 0; }
int nvrtcGetPTXSize(void* p, size_t* n) { *n = strlen(image); return 0; }
int nvrtcGetPTX(void* p, char* t) { memcpy(t, image, strlen(image)); return 0; }
"""
NEW = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120", "compute_80"]


def fake(folder, version, known):
    library = folder / f"libnvrtc-{version}.so"
    major, minor = version.split(".")
    defines = [f"-DKNOWN={','.join(map(str, known))}", f"-DMAJOR={major}", f"-DMINOR={minor}"]
    command = [COMPILER, "-shared", "-fPIC", "-w", *defines, "-x", "c", "-", "-o", library]
    subprocess.run(command, input=FAKE, text=True, check=True)
    return library


def compile_kernels(*arguments, status=0):
    command = [sys.executable, ROOT / "tools/cuda/compile_kernels.py", *arguments]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ran.returncode == status, f"{command}: {ran.returncode}\n{ran.stdout}"
    return ran.stdout


def found(library):
    report = json.loads(compile_kernels("--find", "--nvrtc", library))
    return report["version"], report["known"].split(";"), report["unknown"].split(";")


def check_knowledge(new, old, oldest):
    assert found(new) == ("13.0", NEW, ["sm_70"]), found(new)
    unknown = ["sm_100", "sm_120"]
    assert found(old) == ("12.4", ["sm_70", *(name for name in NEW if name not in unknown)], unknown), found(old)
    assert "sm_90" in found(oldest)[1] and "sm_90a" in found(oldest)[2], found(oldest)
    told = compile_kernels("--find", "--nvrtc", "/nonexistent.so", status=1)
    assert "/nonexistent.so" in told and "CUDA 12 or later" in told, told


def check_files(folder, new, old):
    out = folder / "cubins"

    def images(library, *architectures, status=0):
        before = {path: path.stat().st_mtime_ns for path in out.glob("*_*")}
        told = compile_kernels(out, "--nvrtc", library, "--arch", *architectures, status=status)
        made = {path.stem for path in out.glob("*_*") if before.get(path) != path.stat().st_mtime_ns}
        return told, made

    assert images(old, "sm_80", "compute_80")[1] == {"sm_80", "compute_80"}
    lines = (out / "images.inc").read_text().splitlines()
    drivers = [line.split(", ")[5] for line in lines]
    assert drivers == ["12000", "12040"], lines  # a cubin's: the major version; PTX's: its own
    assert images(old, "sm_80", "compute_80")[1] == set(), "what is there was made again"
    (out / "sm_80.cubin").unlink()
    assert images(old, "sm_80", "compute_80")[1] == {"sm_80"}, "a lost cubin"
    assert images(new, "sm_80", "compute_80")[1] == {"sm_80", "compute_80"}, "another version's cubins"
    assert (out / "sm_80.cubin").read_text() == "sm_80 by 13.0"
    told, _ = images(new, "sm_70", "sm_80", status=1)
    assert "does not know sm_70" in told and "NVRTC 13.0" in told and "requirements.txt" in told, told


def configure(folder, library, *options, status=0):
    off = [f"-DINT8Q_BUILD_{part}=OFF" for part in ("TESTS", "TOOLS", "EXAMPLES", "BENCH")]
    command = [CMAKE, "-S", ROOT, "-B", folder / "build", f"-DINT8Q_NVRTC={library}", *off, *options]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    told = " ".join(ran.stdout.split())
    assert (ran.returncode == 0) == (status == 0), f"{command}: {ran.returncode}\n{ran.stdout}"
    return told


def check_configuration(folder, new):
    told = configure(folder, new)
    assert "no kernels for sm_70, which NVRTC 13.0 does not know" in told and "`make`" in told, told
    told = configure(folder, new, "-DINT8Q_CUDA=ON", status=1)
    assert "NVRTC 13.0 does not know sm_70" in told and f"INT8Q_CUDA_ARCHITECTURES='{';'.join(NEW)}'" in told, told
    told = configure(folder, new, f"-DINT8Q_CUDA_ARCHITECTURES={';'.join(NEW)}")
    assert "does not know" not in told, told
    told = configure(folder, "/nonexistent.so", status=1)
    assert "/nonexistent.so" in told and "INT8Q_NVRTC" in told, told


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        new = fake(folder, "13.0", (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121))
        old = fake(folder, "12.4", (50, 60, 70, 75, 80, 86, 87, 89, 90))
        check_knowledge(new, old, fake(folder, "11.8", (70, 75, 80, 86, 89, 90)))
        check_files(folder, new, old)
        check_configuration(folder, new)
    print("what three versions know, what is made again, three configurations")


main()
