# SPDX-License-Identifier: Apache-2.0
"""python -m int8q doctor in made-up environments, with libraries that must be refused and packages that raise, abort and
hang; python -m int8q quantize beside the native command. The library is INT8Q_LIBRARY, made ones are built by INT8Q_CC, the
native command is INT8Q_COMMAND. The standard library suffices.

One file, since one bare interpreter runs it, and all its cases run programs in the same made-up environments."""

import contextlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from ctypes.util import find_library
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "python"))
from int8q import _abi, _facts, _rules, doctor  # noqa: E402 (found by that path)

LIBRARY, CC, COMMAND = (
    os.path.realpath(os.environ["INT8Q_LIBRARY"]),
    os.environ["INT8Q_CC"],
    os.environ.get("INT8Q_COMMAND"),
)
SCRATCH = tempfile.TemporaryDirectory()
TODAY = {
    "numpy": "2.4.6",
    "torch": "2.15.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "accelerate": "1.9.0",
    "bitsandbytes": "0.50.2",
    "pyarrow": "26.0.0",
}
PINNED = {
    "numpy": "1.26.4",
    "torch": "2.0.1",
    "transformers": "4.27.2",
    "peft": "0.2.0",
    "accelerate": "0.17.1",
    "bitsandbytes": "0.41.2.post2",
    "pyarrow": "25.0.0",
}
REPORTED = (
    "ImportError: Using `load_in_8bit=True` requires Accelerate: `pip install accelerate` and the latest version of"
    " bitsandbytes `pip install -i https://test.pypi.org/simple/ bitsandbytes` or pip install bitsandbytes` "
)


def folder():
    return Path(tempfile.mkdtemp(dir=SCRATCH.name))


def facts(versions=TODAY, cuda=False, stderr="", **changed):
    """Made-up facts; a version of None is a package that is not installed."""
    packages = {**dict.fromkeys(_facts.PACKAGES), **versions, **changed}
    imports = {name: {"state": "ok" if packages[name] else "missing", "stderr": ""} for name in _facts.PROBED}
    imports["torch"]["cuda"] = cuda
    imports["bitsandbytes"]["stderr"] = stderr
    return {
        "interpreter": {"path": sys.executable, "site_packages": [], "on_path": {}},
        "environment": {},
        "packages": packages,
        "imports": imports,
        "library": {"state": "ok", "path": "l.so", "wanted": "1.0", "found": "1.0", "diagnosis": {}, "context": {}},
    }


def findings(*arguments, traceback="", **changed):
    return doctor.findings(facts(*arguments, **changed), traceback)


def fired(*arguments, **changed):
    return [finding["name"] for finding in findings(*arguments, **changed)]


class Rules(unittest.TestCase):
    """Each rule where it fires, and next to it where it does not."""

    def expect(self, name, fires, silent, says=""):
        self.assertIn(name, fired(**fires))
        self.assertNotIn(name, fired(**silent))
        finding = next(f for f in findings(**fires) if f["name"] == name)
        self.assertIn(says, finding["says"] + finding["do"])

    def test_nothing_is_wrong_today(self):
        self.assertEqual(fired(), [])

    def test_the_pinned_report_on_a_gpu(self):
        self.assertEqual(fired(PINNED, cuda=True), [])

    def test_the_pinned_report_on_a_cpu(self):
        self.assertEqual(fired(PINNED), ["cpu-dispatch", "bitsandbytes-cpu-library"])

    def test_missing_package(self):
        for absent in ("accelerate", "bitsandbytes"):
            fires = {**PINNED, absent: None}
            self.expect("missing-package", {"versions": fires}, {"versions": PINNED}, f"needs {absent},")
        self.expect("missing-package", {"accelerate": None}, {"accelerate": None, "transformers": None}, "accelerate>=1.1")

    def test_cuda_condition(self):
        since = {**PINNED, "transformers": "4.32.0"}
        self.expect("cuda-condition", {"versions": since}, {"versions": since, "cuda": True}, "is_available() is False")
        for version in ("4.31.0", "4.45.0"):
            self.assertNotIn("cuda-condition", fired(since, transformers=version))
        self.assertNotIn("cuda-condition", fired(since, cuda=None))

    def test_cuda_required(self):
        old = {"transformers": "4.57.6", "bitsandbytes": "0.45.5"}
        self.expect("cuda-required", old, {**old, "bitsandbytes": "0.46.1"}, "no CPU backend")
        self.assertNotIn("cuda-required", fired(**old, cuda=True))

    def test_version_floor(self):
        self.expect("version-floor", {"bitsandbytes": "0.46.0"}, {"bitsandbytes": "0.46.1"}, "bitsandbytes>=0.46.1")
        self.expect("version-floor", {"accelerate": "1.0.1"}, {"accelerate": "1.1.0"}, "accelerate>=1.1")
        self.assertNotIn("version-floor", fired(transformers="4.57.6", accelerate="1.0.1"))

    def test_keyword_gone(self):
        told = {"traceback": "TypeError: T5.__init__() got an unexpected keyword argument 'load_in_8bit'"}
        self.expect(
            "keyword-gone", {**told, "transformers": "5.0.0rc1"}, {**told, "transformers": "4.57.6"}, "BitsAndBytes"
        )

    def test_scripts_that_ask_for_8_bits_run_on_int8q(self):
        told = "TypeError: T5.__init__() got an unexpected keyword argument 'load_in_8bit'"
        for name, made in (
            ("cpu-dispatch", {"versions": PINNED}),
            ("bitsandbytes-cpu-library", {"versions": PINNED}),
            ("cuda-condition", {"versions": {**PINNED, "transformers": "4.40.0"}}),
            ("cuda-required", {"transformers": "4.57.6", "bitsandbytes": "0.45.5"}),
            ("keyword-gone", {"traceback": told}),
        ):
            mend = next(finding["do"] for finding in findings(**made) if finding["name"] == name)
            self.assertEqual(mend, f"{sys.executable} -m int8q run YOUR_SCRIPT.py")

    def test_cpu_dispatch(self):
        self.expect("cpu-dispatch", {"versions": PINNED}, {"versions": PINNED, "cuda": True}, "Some modules are dispatched")
        self.assertNotIn("cpu-dispatch", fired(PINNED, transformers="4.32.0"))

    def test_bitsandbytes_cpu_library(self):
        old = {"bitsandbytes": "0.42.0"}
        self.expect("bitsandbytes-cpu-library", old, {"bitsandbytes": "0.43.0"}, "cget_col_row_stats")
        self.assertNotIn("bitsandbytes-cpu-library", fired(**old, cuda=True))

    def test_cuda_library(self):
        lost = "OSError: libnvJitLink.so.13: cannot open shared object file: No such file or directory"
        self.expect(
            "cuda-library", {"stderr": lost}, {"stderr": "libm.so.6: cannot open shared object"}, "nvidia-nvjitlink"
        )
        self.expect(
            "cuda-library", {"stderr": lost.replace("nvJitLink.so.13", "cudart.so.12")}, {}, "nvidia-cuda-runtime-cu12"
        )

    def test_cuda_library_that_lies_where_the_loader_does_not_look(self):
        where = folder() / "nvidia/cu13/lib"
        where.mkdir(parents=True)
        (where / "libnvJitLink.so.13").touch()
        made = facts(stderr="libnvJitLink.so.13: cannot open shared object file")
        made["interpreter"]["site_packages"] = [str(where.parents[2])]
        mends = {finding["name"]: finding["do"] for finding in doctor.findings(made)}
        self.assertEqual(mends["cuda-library"], f"export LD_LIBRARY_PATH={where}:$LD_LIBRARY_PATH")

    def test_numpy_torch(self):
        self.expect("numpy-torch", {"torch": "2.2.2+cpu"}, {"torch": "2.3.0"}, "numpy<2")
        self.assertNotIn("numpy-torch", fired(torch="2.2.2", numpy="1.26.4"))

    def test_pyarrow_numpy(self):
        self.expect("pyarrow-numpy", {"numpy": "1.26.4"}, {"numpy": "1.26.4", "pyarrow": "25.0.0"}, "pyarrow<26")
        self.assertNotIn("pyarrow-numpy", fired())

    def test_memory_efficient_backward(self):
        self.expect("memory-efficient-backward", {"peft": "0.13.2"}, {"peft": "0.14.0"}, "peft>=0.14")
        self.assertNotIn("memory-efficient-backward", fired(peft="0.13.2", bitsandbytes="0.44.1"))

    def test_peft_too_old(self):
        self.expect("peft-too-old", {"peft": "0.19.1"}, {"peft": "0.20.0"}, "peft>=0.20")
        middle = {"transformers": "4.40.0"}
        self.expect("peft-too-old", {**middle, "peft": "0.4.0"}, {**middle, "peft": "0.5.0"}, "peft>=0.5")

    def test_peft_too_new(self):
        self.expect("peft-too-new", {"transformers": "4.42.4"}, {"transformers": "4.43.4"}, "peft<0.14")

    def test_every_rule_has_a_test(self):
        tests = {name for name in dir(self) if name.startswith("test_")}
        self.assertEqual([r.name for r in _rules.RULES if f"test_{r.name.replace('-', '_')}" not in tests], [])


class Tracebacks(unittest.TestCase):
    def explained(self, traceback, **changed):
        return doctor.explain(facts(**changed), traceback)

    def test_the_reported_error_means_what_is_wrong_here(self):
        cases = (
            ("missing-package", {"versions": {**PINNED, "accelerate": None}}),
            ("cuda-condition", {"versions": {**PINNED, "transformers": "4.40.0"}}),
            ("version-floor", {"bitsandbytes": "0.45.0"}),
        )
        for name, changed in cases:
            self.assertEqual(self.explained(REPORTED, **changed)["causes_here"], [name])

    def test_the_reported_error_of_another_interpreter(self):
        explained = self.explained(REPORTED)
        self.assertEqual(explained["causes_here"], [])
        self.assertIn("cuda-condition", explained["causes_elsewhere"])

    def test_its_later_wordings(self):
        for what in ("Accelerate", "accelerate", "bitsandbytes", "the latest version of bitsandbytes"):
            explained = self.explained(
                f"ImportError: Using `bitsandbytes` 8-bit quantization requires {what}: `pip install"
            )
            self.assertIn("missing-package", explained["causes_elsewhere"], what)
        self.assertEqual(self.explained("this app requires accelerate and bitsandbytes")["causes_elsewhere"], [])

    def test_others(self):
        cases = {
            "TypeError: T5.__init__() got an unexpected keyword argument 'load_in_8bit'": "keyword-gone",
            "ValueError: Some modules are dispatched on the CPU or the disk. Make sure": "cpu-dispatch",
            "libbitsandbytes_cpu.so: undefined symbol: cget_col_row_stats": "bitsandbytes-cpu-library",
            "libnvJitLink.so.13: cannot open shared object file": "cuda-library",
            "A module that was compiled using NumPy 1.x cannot be run in": "numpy-torch",
            "ImportError: pyarrow requires NumPy 2.0 or newer, found 1.26.4": "pyarrow-numpy",
            "'MatmulLtState' object has no attribute 'memory_efficient_backward'": "memory-efficient-backward",
            "ImportError: cannot import name 'HybridCache' from 'transformers'": "peft-too-old",
            "ImportError: cannot import name 'EncoderDecoderCache' from 'transformers'": "peft-too-new",
            "RuntimeError: CUDA is required but not available for bitsandbytes.": "cuda-required",
        }
        for traceback, name in cases.items():
            explained = self.explained(traceback)
            self.assertIn(name, explained["causes_here"] + explained["causes_elsewhere"], traceback)

    def test_an_unknown_one(self):
        explained = self.explained("KeyError: 'x'")
        self.assertEqual(explained, {"causes_here": [], "causes_elsewhere": []})


class Mends(unittest.TestCase):
    """The command is one for this interpreter, and quotes what a shell would take for a redirection."""

    def test_pip(self):
        with mock.patch.object(_rules, "find_spec", return_value=True), mock.patch.object(sys, "prefix", "/a/venv"):
            self.assertEqual(_rules.pip("numpy<2"), f"{sys.executable} -m pip install 'numpy<2'")

    def test_an_interpreter_that_its_distribution_guards(self):
        stdlib = folder()
        (stdlib / "EXTERNALLY-MANAGED").touch()
        with mock.patch.object(_rules, "find_spec", return_value=True), mock.patch.object(sys, "prefix", sys.base_prefix):
            with mock.patch.object(_rules, "get_path", return_value=str(stdlib)):
                self.assertIn("--break-system-packages", _rules.pip("numpy"))

    def test_an_interpreter_without_pip(self):
        with mock.patch.object(_rules, "find_spec", return_value=None):
            with mock.patch.object(_rules, "which", return_value="/bin/uv"):
                self.assertEqual(_rules.pip("numpy"), f"uv pip install --python {sys.executable} numpy")
            with mock.patch.object(_rules, "which", return_value=None):
                self.assertIn("-m ensurepip && ", _rules.pip("numpy"))


def other_interpreter():
    """A folder for PATH, whose python and pip are somebody else's."""
    path = folder()
    for name, says in (("python", "/opt/other"), ("pip", "pip 24.0 from /opt/other/site-packages/pip (python 3.9)")):
        (path / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (path / name).chmod(0o755)
    return path


def site(broken=None, **versions):
    """A folder for PYTHONPATH: packages that import, but for those whose text `broken` has."""
    where = folder()
    for name, version in {**TODAY, **versions}.items():
        text = "class cuda:\n    is_available = staticmethod(bool)\nclass version:\n    cuda = None\n"
        (where / name).mkdir()
        (where / name / "__init__.py").write_text((broken or {}).get(name, text))
        (where / f"{name}-{version}.dist-info").mkdir()
        (where / f"{name}-{version}.dist-info/METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    return where


def run(*arguments, packages=None, library=LIBRARY, environment=None, path=None, bare=False, **options):
    """python -m int8q; bare: without site-packages."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INT8Q_")}
    clean.update(PYTHONPATH=os.pathsep.join([str(packages or site()), str(ROOT / "python")]), PATH=str(path or folder()))
    clean.update({"INT8Q_LIBRARY": library} if library else {}, PYTHONDONTWRITEBYTECODE="1", **(environment or {}))
    command = [sys.executable, *(["-S"] if bare else []), "-m", "int8q", *arguments]
    return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120, **options)


class Source(unittest.TestCase):
    """pip installs again what was installed."""

    def setUp(self):
        self.site = folder()
        (self.site / "int8q-0.1.0.dist-info").mkdir()
        (self.site / "int8q-0.1.0.dist-info/METADATA").write_text("Name: int8q\nVersion: 0.1.0\n")

    def source(self, direct_url=None, where=None):
        """As of a package in `where`, a site-packages."""
        if direct_url is not None:
            (self.site / "int8q-0.1.0.dist-info/direct_url.json").write_text(direct_url)
        package = str((where or self.site) / "int8q")
        with mock.patch.object(_facts, "_package", return_value=[f"{package}/__init__.py", package]):
            with mock.patch.object(_facts, "_site_packages", return_value=[str(self.site)]):
                with mock.patch.object(sys, "path", [str(self.site)]):
                    return _facts.source()

    def recorded(self, **direct_url):
        return self.source(json.dumps(direct_url))

    def test_where_it_came_from(self):
        (wheel := folder() / "int8q-0.1.0-py3-none-any.whl").touch()
        self.assertEqual(self.recorded(url=wheel.as_uri(), archive_info={}), [wheel.as_uri()])
        self.assertEqual(self.recorded(url=wheel.parent.as_uri(), dir_info={}), [wheel.parent.as_uri()])
        self.assertEqual(self.recorded(url="https://e.org/i.whl", archive_info={}), ["https://e.org/i.whl"])
        git = {"vcs": "git", "commit_id": "4f42", "requested_revision": "main"}
        self.assertEqual(self.recorded(url="https://e.org/i", vcs_info=git), ["git+https://e.org/i@4f42"])
        self.assertEqual(
            self.recorded(url="https://e.org/i", vcs_info=git, subdirectory="a/b"),
            ["git+https://e.org/i@4f42#subdirectory=a/b"],
        )

    def test_what_is_gone_or_was_never_recorded(self):
        unknown = [_facts.UNKNOWN_SOURCE]
        self.assertEqual(self.source(), unknown)
        self.assertEqual(self.source("damaged"), unknown)
        self.assertEqual(self.recorded(url=(folder() / "gone.whl").as_uri(), archive_info={}), unknown)

    def test_a_checkout(self):
        checkout = folder()
        self.assertIsNone(self.source(where=checkout / "python"))
        (checkout / "pyproject.toml").touch()  # of any project
        self.assertIsNone(self.source(where=checkout / "python"))
        (checkout / "include/int8q").mkdir(parents=True)
        (checkout / "include/int8q/int8q.h").touch()
        self.assertEqual(self.source(where=checkout / "python"), ["-e", os.path.realpath(checkout)])

    def test_the_command(self):
        for source, command in (
            (["-e", "/a checkout"], "install --force-reinstall --no-deps -e '/a checkout'"),
            (["file:///i.whl"], "install --force-reinstall --no-deps file:///i.whl"),
            (None, "export INT8Q_LIBRARY=YOUR_LIBINT8Q.so.1"),
        ):
            with mock.patch.object(_facts, "source", return_value=source), mock.patch.object(sys, "prefix", "/a/venv"):
                with mock.patch.object(_rules, "find_spec", return_value=True):
                    pip = "" if source is None else f"{sys.executable} -m pip "
                    self.assertEqual(_rules.reinstall(), pip + command)

    def test_what_builds_it_again(self):
        """A wheel has no sources."""
        for source, end in (
            (["-e", "/checkout"], "--no-binary int8q -e /checkout"),
            (["file:///i.tar.gz"], "--no-binary int8q file:///i.tar.gz"),
            (["file:///i.whl"], "--force-reinstall --no-deps YOUR_SOURCES_OF_INT8Q"),
            ([_facts.UNKNOWN_SOURCE], "--force-reinstall --no-deps YOUR_SOURCES_OF_INT8Q"),
        ):
            with mock.patch.object(_facts, "source", return_value=source):
                self.assertTrue(doctor._rebuild().endswith(end), doctor._rebuild())


class Options(unittest.TestCase):
    def refused(self, *arguments):
        ran = run(*arguments)
        self.assertEqual((ran.returncode, ran.stdout), (2, ""))
        self.assertNotIn("Traceback", ran.stderr)
        return ran.stderr.splitlines()[-1]

    def test_timeouts(self):
        for text in ("nan", "0", "-1", "inf", "1e7", "soon", ""):
            expected = f"argument --timeout: {text!r}; expected seconds, more than 0 and at most 1000000"
            self.assertIn(expected, self.refused("doctor", f"--timeout={text}"))
        self.assertEqual([doctor._seconds(text) for text in ("0.5", "60", "1e6")], [0.5, 60, 1e6])

    def test_the_longest_timeout_is_one_that_the_system_takes(self):
        self.assertEqual(_facts._run([sys.executable, "-c", ""], doctor._seconds("1e6"))["status"], 0)


class Run(unittest.TestCase):
    """python -m int8q run, where what it needs is not installed."""

    def test_missing_packages(self):
        (script := folder() / "script.py").write_text("print('ran')")
        for present, missing in (([], "torch and transformers"), (["torch"], "transformers"), (["transformers"], "torch")):
            packages = folder()
            for name in present:
                (packages / f"{name}.py").touch()
            environment = {"PYTHONNOUSERSITE": "1"}
            ran = run("run", str(script), packages=packages, environment=environment, bare=True)
            self.assertEqual((ran.returncode, ran.stdout), (1, ""))
            self.assertEqual(len(ran.stderr.splitlines()), 1, ran.stderr)
            self.assertIn(f"int8q: error: run needs {missing}, not installed here. Run: ", ran.stderr)
            self.assertTrue(ran.stderr.endswith(f" {missing.replace(' and', '')}\n"), ran.stderr)
            self.assertIn(sys.executable, ran.stderr)


class Doctor(unittest.TestCase):
    def diagnose(self, status, *arguments, **options):
        ran = run("doctor", "--json", *arguments, **options)
        self.assertEqual(ran.returncode, status, ran.stdout + ran.stderr)
        report = json.loads(ran.stdout)
        return report, {finding["name"]: finding for finding in report["findings"]}

    def test_all_is_well(self):
        report, found = self.diagnose(0)
        self.assertEqual(found, {})
        self.assertEqual(report["packages"], {**dict.fromkeys(_facts.PACKAGES), **report["packages"], **TODAY})
        self.assertEqual(report["library"]["path"], LIBRARY)
        gpu = report["library"]["diagnosis"]["gpu"]
        self.assertIn(gpu["state"], ("works", "no driver", "driver too old", "fails", "no GPU", "no kernels"))
        self.assertEqual([gpu["images"][-1], gpu["images"].count("sm_80")], ["compute_80", 1])
        self.assertIn("kernels", report["library"]["context"])
        self.assertEqual(report["imports"]["torch"]["cuda"], False)
        self.assertEqual(report["environment"], {"INT8Q_LIBRARY": LIBRARY})

    def test_what_is_no_driver(self):
        cut, stub = folder(), folder()
        (cut / "libcuda.so.1").touch()
        text = "int cuDriverGetVersion(int* version) { return 34; }"
        command = [CC, "-shared", "-x", "c", "-", "-o", str(stub / "libcuda.so.1")]
        subprocess.run(command, input=text, text=True, check=True)
        for where, says in (
            (cut, f"the NVIDIA driver does not load: {cut}/libcuda.so.1: file too short"),
            (stub, f"{stub}/libcuda.so.1 is the CUDA toolkit's stub"),
        ):
            ran = run("doctor", environment={"LD_LIBRARY_PATH": str(where)})
            self.assertEqual((ran.returncode, ran.stderr), (0, ""))
            self.assertIn(f"gpu fails: {says}", " ".join(ran.stdout.split()))
            self.assertIn("out of LD_LIBRARY_PATH", " ".join(ran.stdout.split()))
            self.assertIn("no fault found", ran.stdout)

    def test_text(self):
        ran = run("doctor", packages=site(torch="2.0.1"), path=other_interpreter())
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        self.assertIn("[numpy-torch]", ran.stdout)
        self.assertLess(ran.stdout.index("[numpy-torch]"), ran.stdout.index("[python-elsewhere]"))
        self.assertIn("no fault found", ran.stdout)
        self.assertTrue(ran.stdout.isascii())
        ours = [line for line in ran.stdout.splitlines() if "/" not in line]
        self.assertLessEqual(max(map(len, ours)), 100)

    def test_packages_that_raise_abort_hang_and_exit(self):
        cases = {
            "raise OSError('libtorch_cpu.so: undefined symbol: iJIT_NotifyEvent')": ("fails", "iJIT_NotifyEvent"),
            "import os\nos.abort()": ("crashes", "SIGABRT"),
            "import time\ntime.sleep(60)": ("hangs", "no answer in 2 s"),
            "import sys\nsys.exit(0)": ("fails", "ended the interpreter"),
            "import subprocess, sys\nsubprocess.run(['/bin/sleep', '60'])": ("hangs", "no answer in 2 s"),
        }
        for text, (state, error) in cases.items():
            with self.subTest(text):
                start = time.monotonic()
                report, found = self.diagnose(0, "--timeout", "2", packages=site({"torch": text}))
                self.assertLess(time.monotonic() - start, 30)
                self.assertEqual(report["imports"]["torch"]["state"], state)
                self.assertIn(error, report["imports"]["torch"]["error"])
                self.assertEqual(found["torch-broken"]["level"], "warning")
                self.assertIn("torch==2.15.0", found["torch-broken"]["do"])

    def test_a_failure_that_a_rule_explains_is_told_once(self):
        text = "raise ImportError('pyarrow requires NumPy 2.0 or newer, found 1.26.4')"
        self.assertEqual(list(self.diagnose(0, packages=site({"pyarrow": text}, numpy="1.26.4"))[1]), ["pyarrow-numpy"])
        self.assertEqual(list(self.diagnose(0, packages=site({"pyarrow": text}))[1]), ["pyarrow-broken"])

    def test_numpy_is_broken(self):
        _, found = self.diagnose(1, packages=site({"numpy": "raise ImportError('DLL')"}))
        self.assertEqual(found["numpy-broken"]["level"], "fault")

    def test_numpy_is_missing(self):
        made = facts(numpy=None)
        self.assertIn(("numpy-missing", "fault"), [(f["name"], f["level"]) for f in doctor.findings(made)])

    def test_damaged_metadata(self):
        packages = site()
        (packages / "peft-0.21.2.dist-info/METADATA").write_bytes(b"\xff\xfe\x00")
        report, _ = self.diagnose(0, packages=packages)
        self.assertIsNone(report["packages"]["peft"])

    def test_what_a_package_prints_is_searched(self):
        lost = "import sys\nprint('libnvJitLink.so.13: cannot open shared object file', file=sys.stderr)\nprint('hello')\n"
        report, found = self.diagnose(0, packages=site({"bitsandbytes": lost}))
        self.assertEqual(report["imports"]["bitsandbytes"]["state"], "ok")
        self.assertIn("cuda-library", found)

    def test_another_interpreter_comes_first(self):
        path = other_interpreter()
        _, found = self.diagnose(0, path=path)
        self.assertIn("/opt/other", found["python-elsewhere"]["says"])
        self.assertIn("/opt/other/site-packages", found["pip-elsewhere"]["says"])
        (path / "python").write_text(f"#!/bin/sh\necho '{sys.prefix}'\n")
        (path / "pip").write_text(f"#!/bin/sh\necho 'pip 24.0 from {_facts._site_packages()[0]}/pip (python 3.9)'\n")
        self.assertEqual(self.diagnose(0, path=path)[1], {})

    def test_a_traceback(self):
        (path := folder() / "traceback").write_text(REPORTED)
        packages = site(transformers="4.40.0", peft="0.13.2", bitsandbytes="0.44.1")
        for ran in (
            run("doctor", "--error", str(path), packages=packages),
            run("doctor", "--error", "-", packages=packages, input=REPORTED),
        ):
            self.assertIn("traceback known as cuda-condition, see above", ran.stdout)
        ran = run("doctor", "--error", str(path))
        self.assertIn("but nothing here causes it", " ".join(ran.stdout.split()))
        ran = run("doctor", "--error", str(path.parent / "none"))
        self.assertEqual((ran.returncode, ran.stdout), (3, ""))
        self.assertIn("int8q: error: ", ran.stderr)

    def test_an_isa_that_the_library_refuses(self):
        _, found = self.diagnose(1, environment={"INT8Q_CPU_ISA": "bogus"})
        self.assertEqual(found["library-refuses"]["do"], "unset INT8Q_CPU_ISA")


def build(text, *options):
    where = folder()
    (where / "stub.c").write_text(text)
    subprocess.run([CC, "-shared", "-fPIC", "-o", where / "stub.so", where / "stub.c", *options], check=True)
    return str(where / "stub.so")


def stub(level, hash_text):
    return build(
        f"unsigned int8q_abi_version(void) {{ return {level[0] << 16 | level[1]}u; }}\n"
        f'const char* int8q_abi_hash(unsigned level) {{ (void)level; return "{hash_text}"; }}\n'
    )


class Libraries(unittest.TestCase):
    """Not installed, won't load and ABI mismatch are told apart."""

    def beside(self, library):
        """The fault of a package in which `library` lies, without INT8Q_LIBRARY and without a library in the system."""
        packages = site()
        shutil.copytree(ROOT / "python/int8q", packages / "int8q", ignore=shutil.ignore_patterns("*.so*", "__pycache__"))
        if library:
            shutil.copy(library, packages / "int8q" / _abi.SONAME)
        return self.found(None, packages)

    def found(self, library, packages=None):
        ran = run("doctor", "--json", library=library, packages=packages)
        self.assertEqual(ran.returncode, 1, ran.stdout + ran.stderr)
        faults = [f for f in json.loads(ran.stdout)["findings"] if f["level"] == "fault"]
        self.assertEqual(len(faults), 1)
        self.assertNotIn("diagnosis", json.loads(ran.stdout)["library"])
        return faults[0]

    def test_not_installed(self):
        fault = self.found("/nonexistent/libint8q.so.1")
        self.assertEqual((fault["name"], fault["do"]), ("library-not-installed", "unset INT8Q_LIBRARY"))

    @unittest.skipIf(find_library("int8q"), "the system has the library")
    def test_not_installed_anywhere(self):
        fault = self.beside(None)
        self.assertEqual(fault["name"], "library-not-installed")
        self.assertRegex(fault["says"], r"looked for /.*/int8q/libint8q\.so\.1 and libint8q\.so\.1$")
        self.assertEqual(fault["do"], "export INT8Q_LIBRARY=YOUR_LIBINT8Q.so.1")

    def test_beside_the_package(self):
        fault = self.beside(stub((2, 0), "0" * 64))
        self.assertEqual((fault["name"], fault["do"]), ("abi-newer", "export INT8Q_LIBRARY=YOUR_LIBINT8Q.so.1"))
        self.assertEqual(self.beside(stub((0, 9), "0" * 64))["name"], "abi-older")

    def test_a_library_that_it_needs_is_missing(self):
        needed = build("int needed(void) { return 0; }", "-Wl,-soname,libneeded.so.7")
        path = build("int needed(void); int other(void) { return needed(); }", needed)
        os.remove(needed)
        fault = self.found(path)
        self.assertEqual(fault["name"], "library-wont-load")
        self.assertIn("libneeded.so.7: cannot open shared object file", fault["says"])

    def test_glibc_is_too_old(self):
        where = folder()
        (where / "v").write_text("GLIBC_2.99 { global: newer; };")
        libc = build(
            "int newer(void) { return 0; }", "-nostdlib", "-Wl,-soname,libc.so.6", f"-Wl,--version-script={where}/v"
        )
        path = build("int newer(void); int other(void) { return newer(); }", "-nostdlib", libc)
        self.assertEqual(self.found(path)["do"], "unset INT8Q_LIBRARY")
        fault = self.beside(path)
        self.assertEqual(fault["name"], "library-wont-load")
        self.assertIn("`GLIBC_2.99' not found", fault["says"])
        self.assertEqual(fault["do"], "export INT8Q_LIBRARY=YOUR_LIBINT8Q.so.1")

    def test_what_mends_the_loader(self):
        newer = "/lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by l.so)"
        with mock.patch.object(_facts, "kind", return_value="conda"):
            self.assertEqual(doctor._loader(newer, "reinstall"), "conda install -c conda-forge libstdcxx-ng")
        with mock.patch.object(_facts, "kind", return_value="venv"):
            self.assertIn("--no-binary int8q", doctor._loader(newer, "reinstall"))
        lost = "{}: cannot open shared object file: No such file or directory"
        self.assertEqual(doctor._loader(lost.format("libstdc++.so.6"), "reinstall"), "sudo apt-get install libstdc++6")
        self.assertEqual(doctor._loader(lost.format("libneeded.so.7"), "reinstall"), "reinstall")

    def test_no_library_at_all(self):
        (path := folder() / "libint8q.so.1").write_text("not ELF, and long enough to be read as a header of it")
        self.assertEqual(self.found(str(path))["name"], "library-wont-load")

    def test_a_library_that_crashes(self):
        path = build("#include <stdlib.h>\n__attribute__((constructor)) static void start(void) { abort(); }")
        fault = self.found(path)
        self.assertEqual(fault["name"], "library-wont-load")
        self.assertIn(f"{path} does not load: killed by SIGABRT", fault["says"])

    def test_older(self):
        path = stub((0, 9), "0" * 64)
        fault = self.found(path)
        self.assertEqual(fault["name"], "abi-older")
        self.assertIn(f"wanted ABI 1.0, found 0.9 at {path}", fault["says"])

    def test_newer(self):
        fault = self.found(stub((2, 0), "0" * 64))
        self.assertEqual((fault["name"], fault["do"]), ("abi-newer", "unset INT8Q_LIBRARY"))
        self.assertIn("wanted ABI 1.0, found 2.0", fault["says"])

    def test_foreign(self):
        for path in ("libm.so.6", stub((1, 0), "0" * 64), stub((1, 0), _abi.HASHES[1, 0])):
            self.assertEqual(self.found(path)["name"], "abi-foreign", path)

    def test_older_by_a_minor_level(self):
        library = {"state": "ok", "path": "l.so", "wanted": "1.1", "found": "1.0", "diagnosis": {}, "context": {}}
        self.assertEqual(doctor.findings({**facts(), "library": library})[0]["name"], "abi-older")

    def test_every_mismatch_is_mended_by_force(self):
        """pip says of the same version that it is there already."""
        for found in ("0.9", "2.0", None):
            library = {"state": "ok", "path": "l.so", "wanted": "1.0", "found": found, "mismatch": "another"}
            (fault,) = doctor.findings({**facts(), "library": library})
            self.assertRegex(fault["do"], rf"install .*--force-reinstall --no-deps -e {ROOT}$")

    def test_newer_by_a_minor_level(self):
        library = {"state": "ok", "path": "l.so", "wanted": "1.0", "found": "1.1", "diagnosis": {}, "context": {}}
        self.assertEqual(doctor.findings({**facts(), "library": library}), [])


def safetensors(path, tensors):
    """tensors: name -> (shape, floats)."""
    header, offset = {}, 0
    for name, (shape, count) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + 4 * count]}
        offset += 4 * count
    text = json.dumps(header).encode()
    generator = random.Random(1)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, count in tensors.values():
            file.write(struct.pack(f"<{count}f", *(generator.gauss(0, 1) for _ in range(count))))


class Quantize(unittest.TestCase):
    def setUp(self):
        self.folder = folder()
        self.source, self.out = self.folder / "m.safetensors", self.folder / "q.safetensors"
        tensors = {f"layers.{i}.fc.weight": ([24, 40], 960) for i in range(2)}
        safetensors(self.source, {**tensors, "layers.0.fc.bias": ([24], 24), "embed_tokens.weight": ([10, 40], 400)})

    def quantize(self, status, *arguments, says="", **options):
        ran = run("quantize", *map(str, arguments), **options)
        self.assertEqual(ran.returncode, status, ran.stdout + ran.stderr)
        self.assertIn(says, ran.stdout + ran.stderr)
        self.assertNotIn("Traceback", ran.stderr)
        return ran

    @unittest.skipUnless(COMMAND, "no native command")
    def test_as_the_native_command(self):
        cases = (
            ["-n", self.source],
            ["-n", "-v", "--exclude", r"layers\.1", self.source],
            ["-n", "--include", r"layers\.1.*weight", self.source],
            ["-n", "--include", "nosuch", self.source],
            ["--json", "-n", self.source],
            ["--include", "nosuch", self.source, self.out],
            ["--include", "(", self.source, self.out],
            ["-f", self.source, self.out],
            [self.source, self.out],
            ["--json", "-f", "--threshold", "5", self.source, self.out],
            [self.source, self.source],
            [self.source],
            [self.folder / "none", self.out],
            ["-q", "-f", self.source, self.out],
        )
        for arguments in cases:
            with self.subTest(arguments):
                native = subprocess.run([COMMAND, "quantize", *arguments], capture_output=True, text=True, timeout=120)
                written = self.out.read_bytes() if self.out.exists() else None
                ran = self.quantize(native.returncode, *arguments)
                self.assertEqual(*(_timeless(text) for text in (ran.stdout, native.stdout)))
                # A hint may name the command itself.
                self.assertEqual(ran.stderr.split("\nhint")[0], native.stderr.split("\nhint")[0])
                self.assertEqual(self.out.read_bytes() if self.out.exists() else None, written)

    def test_result(self):
        summary = json.loads(self.quantize(0, "--json", self.source, self.out).stdout)
        self.assertEqual(summary["quantized"], {"tensors": 2, "bytes_in": 7680, "bytes_out": 2 * (960 + 96 + 1)})
        self.assertEqual(self.quantize(0, "-q", "-f", self.source, self.out).stdout, "")

    def test_usage(self):
        self.quantize(2)
        self.quantize(2, self.source, says="OUT is missing")
        self.quantize(2, self.source, self.source, says="IN itself")
        self.quantize(2, self.source, self.out, environment={"INT8Q_CPU_ISA": "bogus"}, says="python -m int8q doctor")

    def test_bad_input(self):
        self.quantize(3, self.folder / "none", self.out, says="hint: check the path")
        (short := self.folder / "short.safetensors").write_bytes(self.source.read_bytes()[:-5])
        self.quantize(4, short, self.out, says="hint: the file is damaged")

    def test_no_library(self):
        self.quantize(70, self.source, self.out, library="/nonexistent/l.so", says="hint: `python -m int8q doctor`")

    def test_a_reader_that_goes_away(self):
        command = f"{sys.executable} -m int8q quantize {self.source} {self.out} | true; exit ${{PIPESTATUS[0]}}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "INT8Q_LIBRARY": LIBRARY}
        shell = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60)
        self.assertEqual((shell.returncode, shell.stderr), (0, ""))
        self.assertTrue(self.out.exists())

    def test_interruption(self):
        rows, tensors = 40_000, 16
        header = {
            f"l{i}.weight": {
                "dtype": "F32",
                "shape": [rows, 1000],
                "data_offsets": [i * rows * 4000, (i + 1) * rows * 4000],
            }
            for i in range(tensors)
        }
        text = json.dumps(header).encode()
        with open(self.folder / "large.safetensors", "wb") as file:  # 2.6 GB of zeros that take no space
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + tensors * rows * 4000)
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "INT8Q_LIBRARY": LIBRARY}
        command = [sys.executable, "-m", "int8q", "quantize", "large.safetensors", "large-out.safetensors"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A shell that starts the tests in the background lets them ignore SIGINT.
        heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        process = subprocess.Popen(command, env=environment, cwd=self.folder, **pipes, **heeding)
        while not list(self.folder.glob(".*.tmp")) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, errors)
        self.assertIn("nothing was left behind", errors)
        self.assertEqual({path.name for path in self.folder.iterdir()}, {"m.safetensors", "large.safetensors"})

    def on_a_terminal(self, packages):
        script = [
            "script",
            "-qec",
            f"stty cols 60; {sys.executable} -m int8q quantize -f {self.source} {self.out}",
            "/dev/null",
        ]
        path = os.pathsep.join([str(packages), str(ROOT / "python")])
        environment = {**os.environ, "PYTHONPATH": path, "INT8Q_LIBRARY": LIBRARY}
        return subprocess.run(script, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)

    def test_a_bar_without_tqdm(self):
        (packages := folder() / "tqdm").mkdir()
        (packages / "__init__.py").write_text("raise ImportError('none')")
        screen = self.on_a_terminal(packages.parent)
        bars = [part for part in screen.stdout.split("\x1b[K") if part.startswith("[")]
        self.assertTrue(screen.returncode == 0 and bars, screen)
        self.assertLess(max(len(bar.splitlines()[0]) for bar in bars), 60)  # text mode reads \r as a line's end

    def test_a_bar_of_tqdm(self):
        (packages := folder() / "tqdm").mkdir()
        (packages / "__init__.py").write_text(
            "class tqdm:\n"
            "    n = total = 0\n"
            "    def __init__(self, **options): pass\n"
            "    def set_postfix_str(self, text, refresh): pass\n"
            "    def update(self, more): self.n += more\n"
            "    def close(self): print('tqdm saw', self.n, self.total)\n"
        )
        screen = self.on_a_terminal(packages.parent)
        self.assertIn("tqdm saw 9376 9376", screen.stdout)


def _timeless(text):
    """Without what a clock says."""
    with contextlib.suppress(ValueError):
        return {**json.loads(text), "seconds": 0}
    return text.rsplit(" in ", 1)[0]


if __name__ == "__main__":
    unittest.main()
