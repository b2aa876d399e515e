# SPDX-License-Identifier: Apache-2.0
"""cuda_presence.py LIBRARY COMMAND LIBCUDA_FOLDER C_COMPILER IMAGE...: which GPUs are found, and what is said where there
are none.

LIBCUDA_FOLDER has the stub of libcuda.so.1, which plays what its environment variables say; files that are no driver are
made by C_COMPILER. IMAGES: what was embedded.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARY, COMMAND, FOLDER, COMPILER, *IMAGES = sys.argv[1:]
# Makes a context of GPU 0 by the C functions alone; prints status and message.
CREATE = """
import ctypes, os, sys
lib = ctypes.CDLL(sys.argv[1])
lib.int8q_last_error.restype = lib.int8q_status_name.restype = ctypes.c_char_p
class Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint32), ("backend", ctypes.c_int32), ("threads", ctypes.c_int32),
                ("device", ctypes.c_int32), ("isa", ctypes.c_char_p), ("runner", ctypes.c_void_p),
                ("allocator", ctypes.c_void_p), ("stream", ctypes.c_void_p)]
def create(device=0):
    options = Options(size=ctypes.sizeof(Options), backend=2, device=device)
    context = ctypes.c_void_p()
    status = lib.int8q_create_context(ctypes.byref(options), ctypes.byref(context))
    return lib.int8q_status_name(status).decode(), "" if status == 0 else lib.int8q_last_error().decode()
"""
# capability -> what it runs, best first, of what a build has
CHOICES = {
    "7.0": ["sm_70"], "7.5": ["sm_75", "sm_70"], "8.0": ["sm_80", "compute_80"], "8.6": ["sm_86", "sm_80", "compute_80"],
    "8.7": ["compute_80"], "8.9": ["sm_89", "sm_86", "sm_80", "compute_80"], "9.0": ["sm_90a", "sm_90", "compute_80"],
    "10.0": ["sm_100", "compute_80"], "10.3": ["sm_100", "compute_80"], "11.0": ["compute_80"],
    "12.0": ["sm_120", "compute_80"], "12.1": ["sm_120", "compute_80"],
}  # fmt: skip
# As the CUDA toolkit's stub, whose functions all give CUDA_ERROR_STUB_LIBRARY, and name no error.
TOOLKITS_STUB = """
int cuDriverGetVersion(int* version) { return 34; }
int cuInit(unsigned flags) { return 34; }
int cuGetErrorName(int error, const char** name) { return 34; }
int cuGetErrorString(int error, const char** text) { return 34; }
int cuGetProcAddress_v2(const char* name, void** function, int version, unsigned long flags, int* status) { return 34; }
"""
VERSION = "int cuDriverGetVersion(int* version) { return *version = 12080, 0; }\n"
WITHOUT_TENSOR_MAPS = """
#include <string.h>
int cuGetProcAddress_v2(const char* name, void** function, int version, unsigned long flags, int* status) {
  *function = strcmp(name, "cuTensorMapEncodeTiled") ? (void*)cuDriverGetVersion : 0;
  return 0;
}
"""
problems = []


def expect(condition, text):
    if not condition:
        problems.append(text)


def run(arguments, **played):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("INT8Q_STUB")}
    if played.pop("stub", True):
        environment["LD_LIBRARY_PATH"] = FOLDER
    environment.update(played)
    ran = subprocess.run(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    expect(ran.returncode == 0, f"{arguments} with {played}: exit status {ran.returncode}\n{ran.stdout}")
    return ran.stdout


def doctor(**played):
    return json.loads(run([COMMAND, "doctor", "--json"], **played))["gpu"]


def create(code="print(*create(), sep='\\n')", **played):
    return run([sys.executable, "-c", CREATE + code, LIBRARY], **played)


# A diagnosis after an error: status, whether the error is still told, modules loaded and unloaded, contexts that are held.
DIAGNOSED = """
print(create(7)[0])
before = lib.int8q_last_error()
buffer = ctypes.create_string_buffer(100000)
assert lib.int8q_diagnose_json(buffer, ctypes.c_uint64(100000), None) == 0
print(lib.int8q_last_error() == before)
stub = ctypes.CDLL("libcuda.so.1")
stub.int8q_stub_count.restype = ctypes.c_int64
count = lambda name: stub.int8q_stub_count(name.encode())
held = count("cuDevicePrimaryCtxRetain") - count("cuDevicePrimaryCtxRelease_v2")
print(count("cuModuleLoadData"), count("cuModuleUnload"), held)
"""


def broken_gpus():
    """what (behind a context's status, unless that is NO_DEVICE), doctor's state, what is played, what both say of it"""
    if "compute_80" in IMAGES:
        played = {"INT8Q_STUB_GPUS": "8.7", "INT8Q_STUB_DRIVER": "12000"}
        wanted = re.search(r"takes an NVIDIA driver of CUDA (\d+)\.(\d+) or later", doctor(**played)["why"])
        yield (
            "PTX by an old driver",
            "driver too old",
            played,
            ["compute_80", wanted[0] if wanted else "", "is of CUDA 12.0"],
        )
        version = int(wanted[1]) * 1000 + int(wanted[2]) * 10 if wanted else 0
        state = doctor(INT8Q_STUB_GPUS="8.7", INT8Q_STUB_DRIVER=str(version))["state"]
        expect(wanted and state == "works", f"by a driver of version {version}, as it said, doctor says {state}")
    for forced in ("sm_99", "sm_120"):
        played = {"INT8Q_STUB_GPUS": "8.6", "INT8Q_CUDA_IMAGE": forced}
        runnable = ", ".join(name for name in IMAGES if name in CHOICES["8.6"])
        yield f"image {forced}", "no kernels", played, [f"INT8Q_CUDA_IMAGE is {forced}; expected", runnable, "unset it"]
    for error, text in ((209, "update"), (218, "update"), (220, "NVLink"), (221, "ptxjitcompiler"), (222, "update"),
                        (223, "CUDA_DISABLE_PTX_JIT")):  # fmt: skip
        yield f"module {error}", "fails", {"INT8Q_STUB_FAULT": f"cuModuleLoadData={error}"}, ["does not take", text]
    played = {"INT8Q_STUB_FAULT": "cuDevicePrimaryCtxRetain"}
    told = ["GPU 0", "does not start: cuDevicePrimaryCtxRetain: CUDA_ERROR_ILLEGAL_ADDRESS", "start this process again"]
    yield "DEVICE_FAILED: Retain", "fails", played, told
    for call in ("cuDevicePrimaryCtxRetain", "cuModuleLoadData"):
        played = {"INT8Q_STUB_FAULT": f"{call}=2"}
        yield f"OUT_OF_MEMORY: {call}", "fails", played, ["GPU 0", "no memory left", call, "nvidia-smi"]
    played = {"INT8Q_STUB_FAULT": "cuDevicePrimaryCtxRetain=46"}
    yield "a GPU of another process", "fails", played, ["GPU 0", "another process", "nvidia-smi -c 0"]


def compiled(folder, text, *options, name="libcuda.so.1"):
    """`folder`, with the library of a few lines of C."""
    folder.mkdir(exist_ok=True)
    command = [COMPILER, "-shared", "-fPIC", "-w", "-x", "c", "-", "-x", "none", "-o", folder / name, *options]
    subprocess.run(command, input=text, text=True, check=True)
    return folder


def patched(folder, offset, byte):
    """`folder`, with a library one of whose bytes is another."""
    made = compiled(folder, VERSION) / "libcuda.so.1"
    text = bytearray(made.read_bytes())
    text[offset] = byte
    made.write_bytes(text)
    return folder


def broken_drivers(folder, has_driver):
    """what, the driver's version, what is played, what doctor and a context's making say of it"""

    def there(name, contents=None):
        (folder / name).mkdir()
        if contents is not None:
            (folder / name / "libcuda.so.1").write_bytes(contents)
        return folder / name

    def failing(what, where, *texts, version=None):
        told = [f"does not load: {where}/libcuda.so.1", *texts, "LD_LIBRARY_PATH", "reinstall"]
        return what, version, {"LD_LIBRARY_PATH": str(where)}, told

    for call, version in (("cuDriverGetVersion", None), ("cuInit", "13.9")):
        told = [f"{FOLDER}/libcuda.so.1 is the CUDA toolkit's stub", call, f"take {FOLDER} out of LD_LIBRARY_PATH"]
        yield f"{call} of a stub", version, {"INT8Q_STUB_FAULT": f"{call}=34"}, told
        told = ["does not start", f"{call}: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (", "restart"]
        yield f"{call} fails", version, {"INT8Q_STUB_FAULT": f"{call}=803"}, told
    for error, remedy in ((802, "nvidia-fabricmanager"), (304, "/dev/nvidiactl"), (999, "/dev/nvidiactl"), (3, "fork"),
                          (804, "cuda-compat"), (805, "nvidia-cuda-mps-control")):  # fmt: skip
        yield f"cuInit gives {error}", "13.9", {"INT8Q_STUB_FAULT": f"cuInit={error}"}, ["does not start", remedy]
    told = ["does not start", "cuDeviceGetCount: CUDA_ERROR_ILLEGAL_ADDRESS"]
    yield "cuDeviceGetCount fails", "13.9", {"INT8Q_STUB_FAULT": "cuDeviceGetCount"}, told
    stub = compiled(folder / "stubs", TOOLKITS_STUB)
    told = [f"{stub}/libcuda.so.1 is the CUDA toolkit's stub", f"take {stub} out of LD_LIBRARY_PATH"]
    yield "the toolkit's stub", None, {"LD_LIBRARY_PATH": str(stub)}, told
    yield failing("no functions", compiled(folder / "empty", ""), "lacks cuDriverGetVersion")
    where = compiled(folder / "12.8", VERSION)
    yield failing("no cuGetProcAddress_v2", where, "of CUDA 12.8", "lacks cuGetProcAddress_v2", version="12.8")
    where = compiled(folder / "no_tensor_maps", VERSION + WITHOUT_TENSOR_MAPS)
    yield failing("no cuTensorMapEncodeTiled", where, "of CUDA 12.8", "lacks cuTensorMapEncodeTiled", version="12.8")
    yield failing("an empty file", there("no_bytes", b""), "file too short", "--gpus all")
    yield failing("a cut file", there("cut", Path(FOLDER, "libcuda.so.1").read_bytes()[:40]), "file too short")
    yield failing("text", there("text", b"version https://git-lfs.github.com/spec/v1\n" * 3), "invalid ELF header")
    directory = there("directory")
    (directory / "libcuda.so.1").mkdir()
    yield failing("a directory", directory, "--gpus all")
    where = compiled(folder / "needs", "void gone(void) {}", "-Wl,-soname,libgone.so.7", name="libgone.so")
    compiled(where, VERSION, "-Wl,--no-as-needed", where / "libgone.so")
    yield failing("a missing library", where, "libgone.so.7: cannot open shared object file")
    if not has_driver:  # which would be found behind these
        yield failing("another class", patched(folder / "class", 4, 1), "architecture", "expected")
        yield failing("another machine", patched(folder / "machine", 18, 8), "architecture", "expected")


def check_broken_drivers(has_driver):
    with tempfile.TemporaryDirectory() as folder:
        cases = list(broken_drivers(Path(folder), has_driver))
        for what, version, played, texts in cases:
            gpu = doctor(**played)
            found = (gpu["state"], gpu["driver"], gpu["devices"])
            expect(found == ("fails", version, []), f"{what}: doctor says {gpu}; expected fails, driver {version}")
            status, _, message = create(**played).strip().partition("\n")
            expect(status == "INT8Q_NO_DEVICE", f"{what}: a context gives {status}")
            for text in texts:
                expect(text in gpu["why"], f"{what}: doctor does not say {text!r}: {gpu['why']}")
                expect(text in message, f"{what}: {text!r} is not in: {message}")
    return len(cases)


def main():
    failures = {
        "driver too old": ({"INT8Q_STUB_DRIVER": "11080"}, ["of CUDA 11.8", "525"]),
        "no GPU": ({"INT8Q_STUB_GPUS": ""}, ["finds no GPU", "CUDA_VISIBLE_DEVICES"]),
        "no kernels": ({"INT8Q_STUB_GPUS": "5.2"}, ["capability 5.2", IMAGES[0], IMAGES[-1]]),
        "fails": ({"INT8Q_STUB_FAULT": "cuInit=803"}, ["does not start", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "restart"]),
    }
    has_driver = os.path.exists("/proc/driver/nvidia/version")
    if not has_driver:
        failures["no driver"] = ({"stub": False}, ["libcuda.so.1: cannot open", "install", "--gpus all"])
    for state, (played, texts) in failures.items():
        gpu = doctor(**played)
        expect(gpu["state"] == state, f"doctor says {gpu['state']} ({gpu['why']}); expected {state}")
        expect(gpu["images"] == IMAGES, f"doctor lists {gpu['images']}; expected {IMAGES}")
        status, message = create(**played).strip().split("\n", 1)
        expect(status == "INT8Q_NO_DEVICE", f"{state}: a context gives {status}")
        for text in texts:
            expect(text in message, f"{state}: {text!r} is not in: {message}")
    drivers = check_broken_drivers(has_driver)
    for what, state, played, texts in broken_gpus():
        gpu = doctor(**played)
        expect((gpu["state"], gpu["devices"][0]["image"]) == (state, None), f"{what}: doctor says {gpu}; expected {state}")
        expect(gpu["devices"][0].get("why") == gpu["why"], f"{what}: doctor gives two reasons, {gpu}")
        status, _, message = create(**played).strip().partition("\n")
        expected = "INT8Q_" + (what.split(":")[0] if ": " in what else "NO_DEVICE")
        expect(status == expected, f"{what}: a context gives {status}")
        for text in texts:
            expect(text in gpu["why"], f"{what}: doctor does not say {text!r}: {gpu['why']}")
            expect(text in message, f"{what}: {text!r} is not in: {message}")
    for capability, choices in CHOICES.items():
        image = next((name for name in choices if name in IMAGES), None)
        if image is None:
            continue
        gpu = doctor(INT8Q_STUB_GPUS=capability)
        found = [(device["capability"], device["image"]) for device in gpu["devices"]]
        expect(gpu["state"] == "works" and found == [(capability, image)], f"{capability}: {gpu}; expected {image}")
    if "sm_90" in IMAGES:
        gpu = doctor(INT8Q_STUB_GPUS="9.0", INT8Q_CUDA_IMAGE="sm_90")
        expect(gpu["devices"][0]["image"] == "sm_90", f"INT8Q_CUDA_IMAGE is not obeyed: {gpu}")
    runs = next(name for name in CHOICES["8.6"] if name in IMAGES)
    gpu = doctor(INT8Q_STUB_GPUS="5.2,8.6")
    expect([device["image"] for device in gpu["devices"]] == [None, runs], f"of two GPUs: {gpu}")
    expect(gpu["state"] == "works" and gpu["why"].startswith("1 of 2 GPUs; GPU 0, "), f"of two GPUs: {gpu}")
    text = run([COMMAND, "doctor"], INT8Q_STUB_GPUS="8.6")
    expect(f"0: emulated GPU of capability 8.6, capability 8.6, runs {runs}\n" in text, text)
    expect(f"kernels for {', '.join(IMAGES)}\n" in text, text)
    text = run([COMMAND, "doctor"], INT8Q_STUB_GPUS="8.6", INT8Q_STUB_FAULT="cuModuleLoadData")
    for said in ("does not start: cuModuleLoadData: CUDA_ERROR_ILLEGAL_ADDRESS", "runs nothing that is here"):
        expect(said in text, text)
    told = create(DIAGNOSED, INT8Q_STUB_GPUS="8.6").splitlines()
    expect(told[:2] == ["INT8Q_NO_DEVICE", "True"], f"diagnosis changed the last error: {told}")
    expect(told[2] == "1 1 0", f"loaded, unloaded and still retained contexts after a diagnosis: {told[2]}; expected 1 1 0")

    told = create("print(create()[0], *create(2), sep='\\n')", INT8Q_STUB_GPUS="9.0,8.0").split("\n")
    expect(told[:2] == ["INT8Q_OK", "INT8Q_NO_DEVICE"] and "0 to 1" in told[2], f"an ordinal beyond the GPUs: {told}")
    status, message = create(INT8Q_STUB_GPUS="8.6", INT8Q_CUDA_GEMM="mkl").strip().split("\n", 1)
    expect(status == "INT8Q_INVALID_ARGUMENT" and "INT8Q_CUDA_GEMM is mkl; expected cublaslt" in message, message)
    status, message = create(INT8Q_STUB_GPUS="8.6", INT8Q_CUDA_GEMM="cublaslt").strip().split("\n", 1)
    expect(status == "INT8Q_NO_DEVICE" and "libcublasLt.so.13" in message and "LD_LIBRARY_PATH" in message, message)
    forked = """
length = ctypes.c_uint64()
lib.int8q_diagnose_json(None, ctypes.c_uint64(0), ctypes.byref(length))  # uses CUDA
print("INT8Q_OK", flush=True)
if os.fork() == 0:
    print(*create(), sep='\\n', flush=True)
    os._exit(0)
os.wait()
"""
    told = create(forked, INT8Q_STUB_GPUS="9.0").split("\n")
    expect(told[:2] == ["INT8Q_OK", "INT8Q_NO_DEVICE"] and "fork" in told[2], f"after a fork: {told}")
    if problems:
        sys.exit("\n".join(problems))
    skipped = " (no driver: skipped, since this machine has one)" if has_driver else ""
    print(f"{len(failures)} failures told apart{skipped}, {drivers} broken drivers, {len(CHOICES)} capabilities, a fork")


main()
