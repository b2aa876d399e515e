# SPDX-License-Identifier: Apache-2.0
"""generator.py CC CXX: the ABI generator refuses what breaks the ABI's rules, its hash sees every change that a binding
would feel, and what it makes of a level 1.1 keeps callers of 1.0 working."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/abi"))
sys.dont_write_bytecode = True
import declarations  # noqa: E402
import generate  # noqa: E402

CC, CXX = sys.argv.pop(1), sys.argv.pop(1)
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

    def test_a_status_that_is_not_explained(self):
        self.assert_refused(with_function("INT8Q_API int32_t int8q_f(void);"), "int8q_f: its comment lacks")
        self.assert_refused(with_function("/* Fails. */\nINT8Q_API int32_t int8q_f(void);"), "int8q_f: its comment lacks")
        read(with_function("/* Returns BUSY. */\nINT8Q_API int32_t int8q_f(void);"))
        section = edited("\n * Returns (each, unless it has a list of its own)", "\n * May give")
        self.assert_refused(section, "int8q_quantize_rows: its comment lacks")

    def test_foreign_name(self):
        self.assert_refused(with_function("INT8Q_API int32_t f(void);"), "begins with int8q_")


class Levels(unittest.TestCase):
    def test_a_newer_level_only_adds(self):
        without = read(edited("INT8Q_API uint32_t int8q_abi_version(void);", ""))
        with self.assertRaisesRegex(declarations.HeaderError, "int8q_abi_version"):
            generate.check_only_adds(read(HEADER), without)


def newer(text):
    return f"#if INT8Q_TARGET_LEVEL >= INT8Q_LEVEL(1, 1)\n{text}\n#endif\n"


def next_header():
    """Level 1.1: a function, a struct, and a member at the end of a struct that is read and of one that is written."""
    added = {
        "#define INT8Q_ABI_MINOR 0": "#define INT8Q_ABI_MINOR 1",
        "} int8q_context_options;": newer("  int64_t more;") + "} int8q_context_options;",
        "} int8q_linear_info;": newer("  int64_t more;") + "} int8q_linear_info;",
        "/* Ends the threads": newer(
            "typedef struct int8q_new {\n  uint32_t size;\n  int32_t value;\n  int64_t more;\n} int8q_new;\n"
            "/* Returns INVALID_ARGUMENT. */\nINT8Q_API int32_t int8q_f(const int8q_new* value);"
        )
        + "/* Ends the threads",
    }
    text = HEADER
    for old, new in added.items():
        assert text.count(old) == 1, f"the header has no {old!r} any more; change this test"
        text = text.replace(old, new)
    return text


# What an old, a new and a wrong caller of a grown struct get; and of a struct that is new itself.
BOUNDARY = r"""
#include <cstdio>
#include <string>
#include "api/boundary.h"
using namespace int8q;

#define CHECK(holds) if (!(holds)) return std::printf("%s\n", #holds), 1

template <class Body>
std::string refused(Body body) {
  return api::guarded(body) == INT8Q_ABI_MISMATCH ? last_error() : "accepted";
}

int main() {
  int8q_context_options options{};
  options.more = 7;
  options.size = 48;
  CHECK(api::read_struct(&options, "options").more == 0);
  options.size = sizeof options;
  CHECK(sizeof options == 56 && api::read_struct(&options, "options").more == 7);
  options.size = 47;
  CHECK(refused([&] { api::read_struct(&options, "options"); }).find("below level 1.0's 48") != std::string::npos);

  int8q_linear_info mine{}, theirs{};
  mine.blob_bytes = 5;
  mine.more = 6;
  theirs.size = 48;
  theirs.more = 7;
  api::write_struct(mine, &theirs, "info");
  CHECK(theirs.size == 48 && theirs.blob_bytes == 5 && theirs.more == 7);
  theirs.size = sizeof theirs;
  api::write_struct(mine, &theirs, "info");
  CHECK(sizeof theirs == 56 && theirs.more == 6);
  theirs.size = 47;
  CHECK(refused([&] { api::write_struct(mine, &theirs, "info"); }).find("below level 1.0's 48") != std::string::npos);

  int8q_new value{};
  value.size = 8;
  CHECK(refused([&] { api::read_struct(&value, "value"); }).find("below level 1.1's 16") != std::string::npos);
  return 0;
}
"""
NO_ENTRY = r"""
#include "api/boundary.h"
struct Stranger { uint32_t size; };
int main() { Stranger s{}; return static_cast<int>(int8q::api::read_struct(&s, "s").size); }
"""
CALLER = """
#include "int8q/int8q.h"
#if INT8Q_TARGET_LEVEL >= INT8Q_LEVEL(1, 1)
int call(void);
int call(void) { return int8q_f(0); }
#endif
#ifdef USES
int use(void);
int use(void) { return int8q_f(0); }
#endif
"""


class NextLevel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.tree = Path(scratch.name)
        cls.header = cls.write("include/int8q/int8q.h", next_header())
        for path, text in generate.outputs(cls.header).items():
            cls.write(path, text)

    @classmethod
    def write(cls, path, text):
        target = cls.tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def compile(self, *arguments, good=True):
        # What was generated for level 1.1 comes before the repository's own.
        include = [f"-I{folder}" for folder in (self.tree / "src", self.tree / "include", ROOT / "src")]
        command = [*arguments, "-Wall", "-Wextra", "-Werror", *include]
        result = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(result.returncode == 0, good, result.stderr)
        return result.stderr

    def manifest(self, level):
        return json.loads((self.tree / f"docs/abi/manifest-{level}.json").read_text())

    def test_a_newer_declaration_belongs_to_its_level(self):
        released = json.loads((ROOT / "docs/abi/manifest-1.0.json").read_text())
        self.assertEqual(self.manifest("1.0"), released)
        added = self.manifest("1.1")["functions"].keys() - released["functions"].keys()
        self.assertEqual(added, {"int8q_f"})
        script = (self.tree / "src/api/libint8q.map").read_text()
        self.assertRegex(script, r"INT8Q_1\.1 \{\n  global:\n    int8q_f;\n\} INT8Q_1\.0;")

    def test_callers_in_c_and_cpp_hide_it_by_their_level(self):
        source = self.write("caller.c", CALLER)
        for compiler in ([CC, "-std=c99", "-pedantic-errors", "-x", "c"], [CXX, "-std=c++17", "-x", "c++"]):
            command = [*compiler, "-fsyntax-only", source]
            self.compile(*command)
            self.compile(*command, "-DUSES")
            self.compile(*command, "-DUSES", "-DINT8Q_TARGET_LEVEL=INT8Q_LEVEL(1,1)")
            self.compile(*command, "-DINT8Q_TARGET_LEVEL=INT8Q_LEVEL(1,0)")
            hidden = self.compile(*command, "-DUSES", "-DINT8Q_TARGET_LEVEL=INT8Q_LEVEL(1,0)", good=False)
            self.assertIn("int8q_f", hidden)

    def test_callers_of_the_old_level_keep_their_structs(self):
        source, program = self.write("boundary.cpp", BOUNDARY), self.tree / "boundary"
        sources = [source, ROOT / "src/api/boundary.cpp", ROOT / "src/core/error.cpp"]
        self.compile(CXX, "-std=c++20", "-o", program, *sources)
        result = subprocess.run([program], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stdout)

    def test_a_struct_without_a_first_size_does_not_compile(self):
        source = self.write("no_entry.cpp", NO_ENTRY)
        refused = self.compile(CXX, "-std=c++20", "-fsyntax-only", source, good=False)
        self.assertIn("is_no_struct_of_the_abi", refused)

    def test_the_exports_are_checked_node_by_node(self):
        names = self.manifest("1.1")["functions"]
        source = self.write("stub.c", "".join(f"void {name}(void);\nvoid {name}(void) {{}}\n" for name in names))
        script = (self.tree / "src/api/libint8q.map").read_text()
        moved = script.replace("    int8q_f;\n", "    none;\n").replace("  global:\n", "  global:\n    int8q_f;\n", 1)
        for text, good in ((script, True), (moved, False)):
            library = self.tree / "libint8q.so"
            link = "-Wl,-soname,libint8q.so.1,-z,nodelete,-z,now,-z,relro,-z,noexecstack,-Bsymbolic"
            version = f"-Wl,--version-script={self.write('stub.map', text)}"
            self.compile(CC, "-shared", "-fPIC", "-o", library, source, link, version)
            command = [sys.executable, ROOT / "tests/checks/library.py", library, self.tree / "docs/abi/manifest-1.1.json"]
            result = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(result.returncode == 0, good, result.stdout)
            if not good:
                self.assertIn("does not export int8q_f@@INT8Q_1.1", result.stdout)


unittest.main()
