# SPDX-License-Identifier: Apache-2.0
"""command.py COMMAND: the int8q command on good and bad input: exit status, messages, what is left behind."""

import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time

BUILT = sys.argv[1]


def safetensors(path, tensors):
    """tensors: name -> (dtype, shape, bytes)."""
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def floats(count, seed=1):
    generator = random.Random(seed)
    return struct.pack(f"<{count}f", *(generator.gauss(0, 1) for _ in range(count)))


def run(*arguments, environment=None, **options):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("INT8Q_")}
    result = subprocess.run(
        [BUILT, *arguments], capture_output=True, text=True, env={**clean, **(environment or {})}, timeout=120, **options
    )
    for stream in (result.stdout, result.stderr):
        assert "\x1b" not in stream and "\r" not in stream, f"{arguments}: control characters in a pipe"
    return result


def expect(status, *arguments, says="", hint=None, **options):
    result = run(*arguments, **options)
    shown = f"{arguments}: exit status {result.returncode}\n{result.stdout}{result.stderr}"
    assert result.returncode == status, shown
    assert says in result.stdout + result.stderr, f"{says!r} is missing: {shown}"
    assert hint is None or f"hint: {hint}" in result.stderr, f"hint {hint!r} is missing: {shown}"
    if status not in (0, 1):
        assert result.stderr and not result.stdout.startswith("int8q: error"), shown
    return result


def check_usage():
    expect(2)
    expect(2, "bogus", says='"bogus" is no subcommand')
    expect(2, "quantize")
    expect(0, "--version", says="int8q ")
    for command in ("quantize", "inspect", "doctor", "selftest"):
        expect(0, command, "--help", says="Examples:")
        expect(2, command, "--bogus")
    expect(0, "--help", says="Exit status")


def check_quantize(folder):
    source, out = f"{folder}/m.safetensors", f"{folder}/q.safetensors"
    safetensors(
        source,
        {
            "layers.0.fc.weight": ("F32", [24, 40], floats(960)),
            "layers.1.fc.weight": ("F32", [24, 40], floats(960, 2)),
            "layers.0.fc.bias": ("F32", [24], floats(24)),
            "embed_tokens.weight": ("F32", [10, 40], floats(400)),
        },
    )
    expect(2, "quantize", source, says="OUT")
    expect(0, "quantize", "--dry-run", source, says="to int8: 2 tensors; copied: 2 tensors")
    assert os.listdir(folder) == ["m.safetensors"], os.listdir(folder)
    expect(0, "quantize", source, out, says="quantized linears")
    expect(2, "quantize", source, out, says="out")
    before = os.stat(out).st_mtime_ns
    expect(0, "quantize", "-f", source, out)
    assert os.stat(out).st_mtime_ns != before
    summary = json.loads(expect(0, "quantize", "--json", "-f", source, out).stdout)
    assert summary["quantized"] == {"tensors": 2, "bytes_in": 7680, "bytes_out": 2 * (960 + 96 + 1)}, summary
    assert expect(0, "quantize", "--quiet", "-f", source, out).stdout == ""
    expect(0, "quantize", "--dry-run", "--exclude", r"layers\.1", source, says="to int8: 2 tensors")
    expect(0, "quantize", "--dry-run", "--include", r"layers\.1.*weight", source, says="to int8: 1 tensors")
    expect(2, "quantize", "--include", "(", "-f", source, out, says="include")
    expect(0, "quantize", "--dry-run", "--verbose", source, says="layers.0.fc.weight")
    # As the help's example has it: a pattern does not swallow IN and OUT.
    expect(0, "quantize", "--exclude", "embed|vision", "--include", "fc", "--include", "vision", "-f", source, out)
    expect(0, "quantize", "--dry-run", "--include", "nosuch", source, says="to int8: 0 tensors")
    expect(2, "quantize", "--include", "nosuch", "-f", source, out, says="no tensor is to be quantized")
    expect(2, "quantize", "-f", source, source, says="IN itself")
    bare = f"{folder}/bare"
    os.mkdir(bare)
    os.link(source, f"{bare}/model.safetensors")
    expect(0, "quantize", bare, f"{bare}-out", says="no config.json")
    # A terminal of 40 columns: a line that wraps could not be overwritten.
    screen = subprocess.run(
        ["script", "-qec", f"stty cols 40; '{BUILT}' quantize -f '{source}' '{out}'", "/dev/null"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    bars = [part for part in screen.stdout.split("\x1b[K") if part.startswith("[")]
    assert screen.returncode == 0 and bars, screen
    assert all(len(bar.split("\r")[0]) <= 60 for bar in bars), bars
    return source, out


def check_bad_input(folder, source):
    out = f"{folder}/bad-out.safetensors"
    expect(3, "quantize", f"{folder}/none.safetensors", out, says="none.safetensors", hint="check the path")
    expect(3, "inspect", f"{folder}/none.safetensors", hint="check the path")
    with open(f"{folder}/short.safetensors", "wb") as file:
        file.write(open(source, "rb").read()[:-5])
    expect(4, "quantize", f"{folder}/short.safetensors", out, hint="the file is damaged")
    expect(4, "inspect", f"{folder}/short.safetensors", hint="the file is damaged")
    nan = floats(960)[:-4] + struct.pack("<f", float("nan"))
    safetensors(f"{folder}/nan.safetensors", {"a.weight": ("F32", [24, 40], nan)})
    result = expect(4, "quantize", f"{folder}/nan.safetensors", out, says="a.weight", hint="these weights cannot")
    assert "23" in result.stderr, "the row of the NaN is not named"
    expect(3, "quantize", source, f"{folder}/no/such/folder/q.safetensors")
    os.mkdir(f"{folder}/empty")
    expect(3, "inspect", f"{folder}/empty", says="holds no .safetensors")
    assert not [name for name in os.listdir(folder) if "bad-out" in name or "tmp" in name], os.listdir(folder)


def limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def check_interruptions(folder):
    source, out = f"{folder}/large.safetensors", f"{folder}/large-out.safetensors"
    rows, tensors = 40_000, 16
    with open(source, "wb") as file:  # 2.6 GB of zeros that take no space
        header = json.dumps(
            {
                f"l{i}.weight": {
                    "dtype": "F32",
                    "shape": [rows, 1000],
                    "data_offsets": [i * rows * 4000, (i + 1) * rows * 4000],
                }
                for i in range(tensors)
            }
        ).encode()
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + tensors * rows * 4000)
    expect(3, "quantize", source, out, hint="check permissions and free space", preexec_fn=limit_file_size)
    assert not [name for name in os.listdir(folder) if "large-out" in name], os.listdir(folder)

    process = subprocess.Popen([BUILT, "quantize", source, out], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not [name for name in os.listdir(folder) if name.endswith(".tmp")] and process.poll() is None:  # until it writes
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, f"Ctrl-C: exit status {process.returncode}\n{errors}"
    assert not [name for name in os.listdir(folder) if "large-out" in name or name.endswith(".tmp")], os.listdir(folder)


def check_inspect(source, out):
    expect(0, "inspect", source, says="absmax")
    listing = json.loads(expect(0, "inspect", "--json", out).stdout)
    tensors = {t["name"]: t for t in listing["files"][0]["tensors"]}
    assert tensors["layers.0.fc.weight"]["dtype"] == "I8" and tensors["layers.0.fc.weight"]["stats"]["scb"]["max"] > 0
    assert tensors["layers.0.fc.weight_format"]["shape"] == []
    assert listing["totals"]["I8"] == {"tensors": 2, "bytes": 1920}, listing["totals"]
    expect(0, "inspect", "--no-stats", source)
    prone = f"{os.path.dirname(source)}/prone.safetensors"
    columns = [100.0 if i % 40 == 5 else (-1.0) ** i for i in range(960)]
    safetensors(prone, {"a.weight": ("F32", [24, 40], struct.pack("<960f", *columns))})
    expect(0, "inspect", prone, says="outlier-prone 1: 5")
    expect(0, "quantize", prone, prone + ".int8")
    expect(0, "inspect", prone + ".int8", says="outlier-prone 1: 5")
    pipe = subprocess.run(f'"{BUILT}" inspect "{source}" | head -1', shell=True, capture_output=True, text=True)
    assert "m.safetensors" in pipe.stdout and pipe.stderr == "", pipe


def check_doctor():
    doctor = json.loads(expect(0, "doctor", "--json").stdout)
    assert doctor["faults"] == [] and doctor["selftest"]["wrong"] == 0 and os.path.exists(doctor["library"]), doctor
    expect(0, "doctor", says="no fault found")
    result = expect(1, "doctor", environment={"INT8Q_CPU_ISA": "bogus"}, says="unset INT8Q_CPU_ISA")
    assert "generic, avx2" in result.stdout or "generic" in result.stdout
    assert json.loads(run("doctor", "--json", environment={"INT8Q_NUM_THREADS": "0"}).stdout)["faults"]
    expect(2, "selftest", environment={"INT8Q_CPU_ISA": "bogus"}, says="INT8Q_CPU_ISA", hint="`int8q doctor`")
    expect(2, "selftest", "--isa", "bogus", says="expected one of")
    expect(0, "selftest", environment={"INT8Q_CPU_ISA": "generic"}, says="generic")


with tempfile.TemporaryDirectory() as work:
    check_usage()
    files = check_quantize(work)
    check_inspect(*files)
    check_bad_input(work, files[0])
    check_interruptions(work)
    check_doctor()
print("command: all checks passed")
