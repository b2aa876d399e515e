# SPDX-License-Identifier: Apache-2.0
"""binding.py LIBRARY CC: the ctypes binding against the built library, and against libraries that it must refuse."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
sys.dont_write_bytecode = True
import int8q  # noqa: E402
from int8q import _abi, _rules  # noqa: E402

REINSTALL = _rules.reinstall()

LIBRARY, CC = os.path.realpath(sys.argv.pop(1)), sys.argv.pop(1)


def stub(level, hash_text):
    """The path of a library that has the bootstrap functions only."""
    folder = Path(tempfile.mkdtemp(dir=SCRATCH))
    (folder / "stub.c").write_text(
        f"unsigned int8q_abi_version(void) {{ return {level[0] << 16 | level[1]}u; }}\n"
        f'const char* int8q_abi_hash(unsigned level) {{ (void)level; return "{hash_text}"; }}\n'
    )
    subprocess.run([CC, "-shared", "-fPIC", "-o", folder / "stub.so", folder / "stub.c"], check=True)
    return str(folder / "stub.so")


def foreign():
    """The path of a library that is another one."""
    path = str(Path(tempfile.mkdtemp(dir=SCRATCH)) / "foreign.so")
    subprocess.run([CC, "-shared", "-fPIC", "-o", path, "-x", "c", "/dev/null"], check=True)
    return path


class Real(unittest.TestCase):
    def test_every_function_binds_and_runs(self):
        library = _abi.Library(LIBRARY)
        self.assertEqual(library.path, LIBRARY)
        self.assertEqual(library.level, _abi.LEVEL)
        for name in _abi.PROTOTYPES:
            self.assertIsNotNone(getattr(library, name).argtypes, name)
        self.assertEqual(library.int8q_status_name(_abi.INT8Q_BUSY), b"INT8Q_BUSY")

    def test_a_call_with_structs_and_handles(self):
        library = _abi.Library(LIBRARY)
        options = _abi.int8q_context_options(size=ctypes.sizeof(_abi.int8q_context_options), threads=1, isa=b"generic")
        context = ctypes.POINTER(_abi.int8q_context)()
        status = library.int8q_create_context(ctypes.byref(options), ctypes.byref(context))
        self.assertEqual(status, _abi.INT8Q_OK, library.int8q_last_error())
        text = ctypes.create_string_buffer(1 << 16)
        self.assertEqual(library.int8q_describe_context(context, text, len(text), None), _abi.INT8Q_OK)
        self.assertIn(b"generic", text.value)
        with self.assertRaises(ctypes.ArgumentError):
            library.int8q_destroy_context(ctypes.byref(options))
        self.assertEqual(library.int8q_destroy_context(context), _abi.INT8Q_OK)

    def test_a_function_of_a_newer_level(self):
        library = _abi.Library(LIBRARY)
        with mock.patch.dict(_abi.PROTOTYPES, {"int8q_f": ((1, 3), ctypes.c_int32, [])}):
            with self.assertRaises(_abi.NeedsNewer) as caught:
                library.int8q_f()
        self.assertEqual(str(caught.exception), f"int8q_f needs ABI 1.3, loaded 1.0 at {LIBRARY}. Run: {REINSTALL}")

    def test_an_unknown_function(self):
        with self.assertRaises(AttributeError):
            _ = _abi.Library(LIBRARY).int8q_no_such_function


class Search(unittest.TestCase):
    """INT8Q_LIBRARY, else beside the package, else the system; one is chosen, and its failure is an error."""

    def setUp(self):
        self.package = Path(tempfile.mkdtemp(dir=SCRATCH))
        patches = [mock.patch.object(int8q, "__path__", [str(self.package)]), mock.patch.dict(os.environ)]
        for patch in patches:
            patch.start()
            self.addCleanup(patch.stop)
        os.environ.pop("INT8Q_LIBRARY", None)

    def test_the_environment_comes_first(self):
        os.symlink(stub((2, 0), ""), self.package / _abi.SONAME)
        os.environ["INT8Q_LIBRARY"] = LIBRARY
        self.assertEqual(_abi.Library().path, LIBRARY)

    def test_then_beside_the_package(self):
        shutil.copy(LIBRARY, self.package / _abi.SONAME)
        self.assertEqual(_abi.Library().path, str(self.package / _abi.SONAME))

    def test_the_folders_of_the_package_in_their_order(self):
        other = Path(tempfile.mkdtemp(dir=SCRATCH))
        shutil.copy(LIBRARY, other / _abi.SONAME)
        with mock.patch.object(int8q, "__path__", [str(self.package), str(other)]):
            self.assertEqual(_abi.Library().path, str(other / _abi.SONAME))
            (self.package / _abi.SONAME).write_text("no library")
            with self.assertRaises(_abi.LibraryNotFound):
                _abi.Library()

    def test_then_the_system(self):
        folder = Path(tempfile.mkdtemp(dir=SCRATCH))
        os.symlink(LIBRARY, folder / _abi.SONAME)
        program = "import sys; sys.path.insert(0, sys.argv[1]); from int8q import _abi; print(_abi.Library().path)"
        arguments = [sys.executable, "-B", "-c", program, str(ROOT / "python")]
        run = subprocess.run(arguments, env={"LD_LIBRARY_PATH": str(folder)}, capture_output=True, text=True, check=True)
        self.assertEqual(run.stdout.strip(), str(folder / _abi.SONAME))

    def test_a_chosen_library_that_is_missing(self):
        os.symlink(LIBRARY, self.package / _abi.SONAME)
        os.environ["INT8Q_LIBRARY"] = "/nonexistent/libint8q.so"
        with self.assertRaises(_abi.LibraryNotFound) as caught:
            _abi.Library()
        for part in (
            "needs libint8q.so.1 with ABI 1.x",
            "/nonexistent/libint8q.so does not load",
            "Run: unset INT8Q_LIBRARY",
        ):
            self.assertIn(part, str(caught.exception))

    def test_a_library_beside_the_package_that_does_not_load(self):
        (self.package / _abi.SONAME).write_text("no library")
        message = f"{self.package}.* does not load: .*Run: {re.escape(REINSTALL)}$"
        with self.assertRaisesRegex(_abi.LibraryNotFound, message):
            _abi.Library()

    def test_none_anywhere(self):
        with mock.patch.object(_abi, "SONAME", "libint8q-nowhere.so.1"):
            message = f"libint8q-nowhere.so.1 does not load: .*Run: {re.escape(REINSTALL)}$"
            with self.assertRaisesRegex(_abi.LibraryNotFound, message):
                _abi.Library()


class Refused(unittest.TestCase):
    """A library that cannot serve: what was wanted, what was found, where, and the one command that mends it."""

    def assert_refused(self, error, path, wanted, found, call=lambda library: None):
        for chosen, mend in ((False, REINSTALL), (True, "unset INT8Q_LIBRARY")):
            with mock.patch.dict(os.environ, {"INT8Q_LIBRARY": path}), self.assertRaises(error) as caught:
                call(_abi.Library() if chosen else _abi.Library(path))
            for part in (wanted, found, path, f". Run: {mend}"):
                self.assertIn(part, str(caught.exception))

    def test_another_declaration_of_the_same_level(self):
        path = stub((1, 0), "0" * 64)
        wanted = f"needs ABI 1.0 with hash {_abi.HASHES[1, 0][:16]}"
        self.assert_refused(_abi.AbiMismatch, path, wanted, "loaded one with hash 0000000000000000")

    def test_a_newer_major_level(self):
        self.assert_refused(_abi.AbiMismatch, stub((2, 0), ""), "needs ABI 1.x", "loaded 2.0")

    def test_an_older_major_level(self):
        self.assert_refused(_abi.AbiMismatch, stub((0, 9), ""), "needs ABI 1.x", "loaded 0.9")

    def test_an_older_minor_level(self):
        path = stub((1, 0), _abi.HASHES[1, 0])
        newer = {"int8q_f": ((1, 3), ctypes.c_int32, [])}
        with mock.patch.object(_abi, "LEVEL", (1, 3)), mock.patch.dict(_abi.PROTOTYPES, newer):
            self.assert_refused(
                _abi.NeedsNewer, path, "int8q_f needs ABI 1.3", "loaded 1.0", lambda library: library.int8q_f
            )

    def test_a_newer_minor_level_serves(self):
        self.assertEqual(_abi.Library(stub((1, 7), _abi.HASHES[1, 0])).level, (1, 7))

    def test_a_library_that_lacks_what_its_level_has(self):
        path = stub((1, 0), _abi.HASHES[1, 0])
        wanted, found = "int8q_forward needs ABI 1.0", "loaded 1.0"
        self.assert_refused(_abi.AbiMismatch, path, wanted, found, lambda library: library.int8q_forward)

    def test_a_foreign_library(self):
        self.assert_refused(_abi.AbiMismatch, foreign(), "needs ABI 1.x", "loaded no int8q library")


with tempfile.TemporaryDirectory() as SCRATCH:
    unittest.main()
