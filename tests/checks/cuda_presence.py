# SPDX-License-Identifier: Apache-2.0
"""cuda_presence.py LIBRARY COMMAND LIBCUDA_FOLDER: which GPUs are found, and what is said where there are none.

LIBCUDA_FOLDER has the stub of libcuda.so.1, which plays what its environment variables say.
"""

import json
import os
import subprocess
import sys

LIBRARY, COMMAND, FOLDER = sys.argv[1:]
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
# capability -> image
CHOICES = {
    "7.0": "sm_70", "7.5": "sm_75", "8.0": "sm_80", "8.6": "sm_86", "8.7": "compute_80", "8.9": "sm_89",
    "9.0": "sm_90", "10.0": "sm_100", "10.3": "sm_100", "11.0": "compute_80", "12.0": "sm_120", "12.1": "sm_120",
}  # fmt: skip
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


def main():
    failures = {
        "driver too old": ({"INT8Q_STUB_DRIVER": "11080"}, ["CUDA 11.8", "525"]),
        "no GPU": ({"INT8Q_STUB_GPUS": ""}, ["finds no GPU", "CUDA_VISIBLE_DEVICES"]),
        "no kernels": ({"INT8Q_STUB_GPUS": "5.2"}, ["capability 5.2", "sm_70"]),
    }
    has_driver = os.path.exists("/proc/driver/nvidia/version")
    if not has_driver:
        failures["no driver"] = ({"stub": False}, ["libcuda.so.1"])
    for state, (played, texts) in failures.items():
        gpu = doctor(**played)
        expect(gpu["state"] == state, f"doctor says {gpu['state']} ({gpu['why']}); expected {state}")
        expect(len(gpu["images"]) == 10, f"doctor lists {gpu['images']}")
        status, message = create(**played).strip().split("\n", 1)
        expect(status == "INT8Q_NO_DEVICE", f"{state}: a context gives {status}")
        for text in texts:
            expect(text in message, f"{state}: {text!r} is not in: {message}")
    for capability, image in CHOICES.items():
        gpu = doctor(INT8Q_STUB_GPUS=capability)
        found = [(device["capability"], device["image"]) for device in gpu["devices"]]
        expect(gpu["state"] == "works" and found == [(capability, image)], f"{capability}: {gpu}; expected {image}")
    gpu = doctor(INT8Q_STUB_GPUS="9.0", INT8Q_CUDA_IMAGE="sm_90a")
    expect(gpu["devices"][0]["image"] == "sm_90a", f"INT8Q_CUDA_IMAGE is not obeyed: {gpu}")
    gpu = doctor(INT8Q_STUB_GPUS="5.2,8.6")
    expect([device["image"] for device in gpu["devices"]] == [None, "sm_86"], f"of two GPUs: {gpu}")
    text = run([COMMAND, "doctor"], INT8Q_STUB_GPUS="8.6")
    expect("0: emulated GPU of capability 8.6, capability 8.6, runs sm_86" in text and "kernels for sm_70, " in text, text)

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
    print(f"{len(failures)} failures told apart{skipped}, {len(CHOICES)} capabilities, two GPUs, a fork")


main()
