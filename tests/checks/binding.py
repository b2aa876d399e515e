# SPDX-License-Identifier: Apache-2.0
"""binding.py LIBRARY CC: the ctypes binding against the built library, and against libraries that it must refuse."""

import ctypes
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python/int8q"))
sys.dont_write_bytecode = True
import _abi  # noqa: E402

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

    def test_the_environment_chooses(self):
        with mock.patch.dict(os.environ, {"INT8Q_LIBRARY": LIBRARY}):
            self.assertEqual(_abi.Library().path, LIBRARY)

    def test_a_function_of_a_newer_level(self):
        library = _abi.Library(LIBRARY)
        with mock.patch.dict(_abi.PROTOTYPES, {"int8q_f": ((1, 3), ctypes.c_int32, [])}):
            with self.assertRaises(_abi.NeedsNewer) as caught:
                library.int8q_f()
        self.assertEqual(str(caught.exception), f"int8q_f needs ABI 1.3, loaded 1.0 at {LIBRARY}")

    def test_an_unknown_function(self):
        with self.assertRaises(AttributeError):
            _ = _abi.Library(LIBRARY).int8q_no_such_function


class Refused(unittest.TestCase):
    def test_another_declaration_of_the_same_level(self):
        path = stub((1, 0), "0" * 64)
        with self.assertRaisesRegex(_abi.AbiMismatch, f"{path} declares ABI 1.0 otherwise"):
            _abi.Library(path)

    def test_another_major_level(self):
        with self.assertRaisesRegex(_abi.AbiMismatch, "has ABI 2.0; this package needs 1.x"):
            _abi.Library(stub((2, 0), _abi.HASHES[1, 0]))

    def test_a_library_that_lacks_what_its_level_has(self):
        library = _abi.Library(stub((1, 0), _abi.HASHES[1, 0]))
        with self.assertRaisesRegex(_abi.AbiMismatch, "says ABI 1.0 but has no int8q_forward"):
            _ = library.int8q_forward

    def test_a_foreign_library(self):
        with self.assertRaisesRegex(_abi.AbiMismatch, "no int8q library"):
            _abi.Library("libm.so.6")

    def test_no_library(self):
        with self.assertRaisesRegex(_abi.LibraryNotFound, "/nonexistent/libint8q.so"):
            _abi.Library("/nonexistent/libint8q.so")


with tempfile.TemporaryDirectory() as SCRATCH:
    unittest.main()
