# SPDX-License-Identifier: Apache-2.0
"""readme.py LIBRARY CC CXX: the C and C++ of README.md compile as they stand there, link, and compute the right thing."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What the surrounding engine would have: a 2x3 product whose operands quantize without loss.
BEFORE = """
enum { M = 2, N = 2, K = 3 };
static float weights[N * K] = {127, 1, 2, -127, 64, 3};
static float activations[M * K] = {1.27f, 0.01f, 0, -1.27f, 0, 0.05f};
static float result[M * N];
"""
AFTER = """
static const float expected[M * N] = {161.3f, -160.65f, -161.19f, 161.44f};
for (int i = 0; i < M * N; ++i) {
  float difference = result[i] - expected[i];
  if (difference > 1e-3f || difference < -1e-3f) return fprintf(stderr, "result[%d] is %g\\n", i, (double)result[i]), 1;
}
return 0;
"""
HEADERS = "#define _ISOC11_SOURCE\n#include <stdio.h>\n#include <stdlib.h>\n"


def program(block):
    includes = "".join(re.findall(r"^#include.*\n", block, re.M))
    body = re.sub(r"^#include.*\n", "", block, flags=re.M)
    return f"{HEADERS}{includes}{BEFORE}int main(void) {{\n{body}{AFTER}}}\n"


def main(library, cc, cxx):
    text = (ROOT / "README.md").read_text()
    folder = str(Path(library).parent)
    for language, compiler in (("c", [cc, "-std=c99", "-x", "c"]), ("cpp", [cxx, "-std=c++17", "-x", "c++"])):
        blocks = re.findall(rf"```{language}\n(.*?)```", text, re.S)
        if len(blocks) != 1:
            sys.exit(f"README.md has {len(blocks)} blocks of {language}; expected 1")
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "readme"
            source.write_text(program(blocks[0]))
            flags = ["-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "include"), "-o", f"{scratch}/run"]
            link = ["-x", "none", library, f"-Wl,-rpath,{folder}", "-ldl"]
            subprocess.run([*compiler, *flags, str(source), *link], check=True)
            subprocess.run([f"{scratch}/run"], check=True)
        print(f"README's {language} compiles, links and computes the right thing")


main(*sys.argv[1:])
