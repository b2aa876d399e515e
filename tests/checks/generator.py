# SPDX-License-Identifier: Apache-2.0
"""The ABI generator refuses what breaks the ABI's rules, and its hash sees every change that a binding would feel."""

import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/abi"))
sys.dont_write_bytecode = True
import declarations  # noqa: E402
import generate  # noqa: E402

HEADER = (ROOT / "include/int8q/int8q.h").read_text()
ONE = 1 << 16


def read(text, level=ONE):
    with tempfile.NamedTemporaryFile("w", suffix=".h") as file:
        file.write(text)
        file.flush()
        return declarations.read(file.name, level)


def edited(old, new):
    assert HEADER.count(old) >= 1, f"the header has no {old!r} any more; change this test"
    return HEADER.replace(old, new, 1)


def with_function(text):
    return edited("/* Ends the threads", text + "\n/* Ends the threads")


class Hash(unittest.TestCase):
    def assert_changes(self, text):
        self.assertNotEqual(read(text).hash(), read(HEADER).hash())

    def test_sees_a_changed_parameter(self):
        self.assert_changes(edited("int8q_negotiate(uint32_t want", "int8q_negotiate(uint64_t want"))

    def test_sees_a_changed_result(self):
        self.assert_changes(edited("uint32_t int8q_abi_version", "uint64_t int8q_abi_version"))

    def test_sees_a_changed_constant(self):
        self.assert_changes(edited("INT8Q_BUSY = 13", "INT8Q_BUSY = 23"))

    def test_sees_swapped_members(self):
        self.assert_changes(edited("int64_t rows;\n  int64_t cols;", "int64_t cols;\n  int64_t rows;"))

    def test_sees_a_changed_callback(self):
        self.assert_changes(edited("int64_t index, int32_t thread", "int64_t index, int64_t thread"))

    def test_ignores_comments_and_parameter_names(self):
        text = edited("int8q_negotiate(uint32_t want", "/* more */ int8q_negotiate(uint32_t level")
        self.assertEqual(read(text).hash(), read(HEADER).hash())


class Rules(unittest.TestCase):
    def assert_refused(self, text, message):
        with self.assertRaisesRegex(declarations.HeaderError, message):
            read(text)

    def test_implicit_padding(self):
        self.assert_refused(edited("  uint32_t reserved;\n  void* opaque;", "  void* opaque;"), "implicit padding")

    def test_struct_size(self):
        self.assert_refused(edited("} int8q_matrix;", "  int32_t extra;\n} int8q_matrix;"), "multiple of 8")

    def test_size_first(self):
        swapped = edited("  uint32_t size;\n  int32_t dtype;", "  int32_t dtype;\n  uint32_t size;")
        self.assert_refused(swapped, "first member")

    def test_struct_by_value(self):
        self.assert_refused(with_function("INT8Q_API int32_t int8q_f(int8q_matrix m);"), "by value")

    def test_long(self):
        self.assert_refused(with_function("INT8Q_API int32_t int8q_f(long n);"), "by value")

    def test_implicit_enumerator(self):
        self.assert_refused(edited("INT8Q_BUSY = 13", "INT8Q_BUSY"), "its number")

    def test_foreign_name(self):
        self.assert_refused(with_function("INT8Q_API int32_t f(void);"), "begins with int8q_")


class Levels(unittest.TestCase):
    newer = with_function("#if INT8Q_TARGET_LEVEL >= 0x10001\nINT8Q_API int32_t int8q_f(void);\n#endif")

    def test_a_newer_declaration_belongs_to_its_level(self):
        old, new = read(self.newer), read(self.newer, ONE + 1)
        self.assertEqual(old.hash(), read(HEADER).hash())
        self.assertEqual(set(new.functions) - set(old.functions), {"int8q_f"})
        script = generate.version_script({(1, 0): old, (1, 1): new})
        self.assertRegex(script, r"INT8Q_1\.1 \{\n  global:\n    int8q_f;\n\} INT8Q_1\.0;")

    def test_a_newer_level_only_adds(self):
        without = read(edited("INT8Q_API uint32_t int8q_abi_version(void);", ""))
        with self.assertRaisesRegex(declarations.HeaderError, "int8q_abi_version"):
            generate.check_only_adds(read(HEADER), without)


unittest.main()
