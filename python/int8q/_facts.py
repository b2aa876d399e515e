# SPDX-License-Identifier: Apache-2.0
"""What doctor knows of this process's environment: nothing is imported here that could be broken; what must be tried is
tried in a process of its own, which may crash or hang."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import urllib.parse
import urllib.request

PACKAGES = (
    "numpy",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "pyarrow",
    "safetensors",
    "sentencepiece",
)
PROBED = ("numpy", "torch", "bitsandbytes", "pyarrow")

# Standard output may carry what a package prints while it is imported; the answer is the last line.
_TRY_PACKAGE = """
import importlib, json, sys
name = sys.argv[1]
module = importlib.import_module(name)
found = {}
if name == "torch":
    found = {"cuda": bool(module.cuda.is_available()), "built_for_cuda": module.version.cuda}
print("\\n" + json.dumps(found))
"""

# The package as it is in this process, with its folders. What _abi loads is the library, whether it fits or not; what it
# passed over for that is among what was tried.
_TRY_LIBRARY = """
import ctypes, importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("int8q", sys.argv[1], submodule_search_locations=sys.argv[2:])
sys.modules["int8q"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from int8q import _abi as abi

def text(library, write, *handle):
    length = ctypes.c_uint64()
    write(*handle, None, 0, ctypes.byref(length))
    buffer = ctypes.create_string_buffer(length.value + 1)
    write(*handle, buffer, len(buffer), None)
    return json.loads(buffer.value.decode("utf-8", "replace"))

def described(library):
    context = ctypes.POINTER(abi.int8q_context)()
    if library.int8q_create_context(None, ctypes.byref(context)):
        return {"refused": library.int8q_last_error().decode()}
    try:
        return text(library, library.int8q_describe_context, context)
    finally:
        library.int8q_destroy_context(context)

path = abi.candidate()
found = {"wanted": "%d.%d" % abi.LEVEL, "tried": []}
if path == abi.SONAME:
    for folder in package.__path__:
        found["tried"].append({"path": os.path.join(folder, path), "error": "there is no such file"})
print(path, file=sys.stderr, flush=True)  # what a crash was about
try:
    handle = ctypes.CDLL(path)
except OSError as error:
    found["tried"].append({"path": path, "error": str(error)})
else:
    try:
        found["path"] = abi._origin(handle) or path
        if hasattr(handle, "int8q_abi_version"):
            version = handle.int8q_abi_version()
            found["found"] = "%d.%d" % (version >> 16 & 0xFFFF, version & 0xFFFF)
        library = abi.Library(path)
        found["diagnosis"] = text(library, library.int8q_diagnose_json)
        found["context"] = described(library)
    except abi.AbiError as error:
        found["mismatch"] = str(error).split(" Run: ")[0]
print("\\n" + json.dumps(found))
"""


def gather(timeout=60.0):
    """Every fact, as one JSON-able dictionary. Nothing that is tried takes longer than `timeout` seconds."""
    return {
        "interpreter": {**_interpreter(), "on_path": _on_path(min(timeout, 10.0))},
        "platform": _platform(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("INT8Q_")},
        "packages": {name: version(name) for name in PACKAGES},
        "imports": {name: _probe(name, timeout) for name in PROBED},
        "library": _try(_TRY_LIBRARY, _package(), timeout),
    }


def version(package):
    """Its version by its metadata, or None."""
    try:
        return importlib.metadata.version(package)
    except Exception:  # metadata may be damaged in any way
        return None


# What a command asks its reader to put in: int8q is on no index, so a name says nothing.
UNKNOWN_SOURCE = "YOUR_WHEEL_OR_SOURCES_OF_INT8Q"


def source():
    """[what pip takes to install this package again, where it came from], or None where pip did not put it.

    Of a checkout, an editable install: that comes before all of sys.path, so also before PYTHONPATH that named it.
    """
    folder = os.path.dirname(os.path.realpath(_package()[0]))
    checkout = os.path.dirname(os.path.dirname(folder))
    if os.path.exists(os.path.join(checkout, "include/int8q/int8q.h")):
        return ["-e", checkout]
    if os.path.dirname(folder) not in map(os.path.realpath, _site_packages()):
        return None
    try:
        return [_recorded(json.loads(importlib.metadata.distribution("int8q").read_text("direct_url.json")))]
    except Exception:  # installed by its name, not by pip, or damaged
        return [UNKNOWN_SOURCE]


def _recorded(direct):
    """The requirement that direct_url.json stands for, by the specification of Direct URLs."""
    url = direct["url"]
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file" and not os.path.exists(urllib.request.url2pathname(parts.path)):
        return UNKNOWN_SOURCE
    if "vcs_info" in direct:
        url = "{vcs}+{url}@{commit_id}".format(url=url, **direct["vcs_info"])
    return f"{url}#subdirectory={direct['subdirectory']}" if "subdirectory" in direct else url


def _package():
    """The file and the folders of this package."""
    package = sys.modules[__name__.rpartition(".")[0]]
    return [package.__file__, *package.__path__]


def _interpreter():
    return {
        "path": sys.executable,
        "version": platform.python_version(),
        "prefix": sys.prefix,
        "kind": kind(),
        "site_packages": _site_packages(),
    }


def kind():
    if os.path.isdir(os.path.join(sys.prefix, "conda-meta")):
        return "conda"
    return "venv" if sys.prefix != sys.base_prefix else "system"


def _site_packages():
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        paths.append(site.getusersitepackages())
    return [path for path in dict.fromkeys(paths) if os.path.isdir(path)]


def _on_path(timeout):
    """Which interpreter `python` and `pip` are: asked, since both may be links or scripts."""
    found = {}
    for name, asks in (
        ("python", ["-c", "import sys; print(sys.prefix)"]),
        ("pip", ["--version"]),
    ):
        path = shutil.which(name)
        if not path:
            continue
        answer = _run([path, *asks], timeout)["output"]
        if name == "pip":
            answer = (re.search(r" from (.+?)(?:/pip)? \(python", answer) or ("", ""))[1]
            ours = answer in map(os.path.realpath, _site_packages()) or answer in _site_packages()
        else:
            answer = answer.strip()
            ours = os.path.realpath(answer) == os.path.realpath(sys.prefix)
        found[name] = {"path": path, "belongs_to": answer, "ours": ours or not answer}
    return found


def _platform():
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        "bits": 64 if sys.maxsize > 2**32 else 32,
    }


def _probe(name, timeout):
    """Whether it imports. What it writes to stderr is kept: packages hide failures in warnings."""
    if importlib.util.find_spec(name) is None:
        return {"state": "missing"}
    return _try(_TRY_PACKAGE, [name], timeout)


def _try(program, arguments, timeout):
    ran = _run([sys.executable, "-c", program, *arguments], timeout)
    lines = [line for line in ran["errors"].splitlines() if line.strip()]
    if ran["status"] == 0:
        try:
            return {"state": "ok", "stderr": "\n".join(lines[-20:]), **json.loads(ran["output"].splitlines()[-1])}
        except (ValueError, IndexError):
            return {"state": "fails", "error": "it ended the interpreter", "stderr": "\n".join(lines[-20:])}
    if ran["status"] is None:
        return {"state": "hangs", "error": f"no answer in {timeout:g} s", "stderr": "\n".join(lines[-20:])}
    if ran["status"] < 0:
        return {"state": "crashes", "error": f"killed by {_signal(-ran['status'])}", "stderr": "\n".join(lines[-20:])}
    error = lines[-1] if lines else f"exit status {ran['status']}"
    return {"state": "fails", "error": error, "stderr": "\n".join(lines[-20:])}


def _run(command, timeout):
    """A process group of its own, so that what it starts ends with it."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return {"status": 127, "output": "", "errors": str(error)}
    try:
        output, errors = process.communicate(timeout=timeout)
        return {"status": process.returncode, "output": output, "errors": errors}
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        return {"status": None, "output": output, "errors": errors}
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def _signal(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
