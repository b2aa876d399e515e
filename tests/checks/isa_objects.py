# SPDX-License-Identifier: Apache-2.0
"""isa_objects.py OBJECT_FOLDER...: instructions of an ISA stay in that ISA's folder.

No object of an ISA folder defines a weak symbol: the linker keeps one of several weak definitions, so an inline function
compiled with AVX-512 flags could replace the same function everywhere in the library, and crash older CPUs. And no other
object holds an AVX instruction.
"""

import re
import subprocess
import sys
from pathlib import Path

ISAS = ("avx2", "avxvnni", "avx512bw", "avx512vnni")
AVX = re.compile(r"^\s+[0-9a-f]+:\s+(?:\{\w+\} )?(v\w+)\s.*%[xyz]mm|^\s+[0-9a-f]+:\s+(vzero\w+)", re.M)


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def weak_symbols(path):
    for line in output_of("nm", "-C", "--defined-only", path).splitlines():
        _, kind, name = line.split(" ", 2)
        if kind in "WVwvu":
            yield f"{path} defines {name} ({kind}); make it static or put it into an anonymous namespace"


def avx_instructions(path):
    found = AVX.search(output_of("objdump", "-d", "--no-show-raw-insn", path))
    if found:
        yield f"{path} holds {found[1] or found[2]}: a CPU without AVX would crash; move it to an ISA's folder"


def main(folders):
    objects = [o for folder in folders for o in sorted(Path(folder).rglob("*.o"))]
    of_isas = [o for o in objects if o.parent.name in ISAS]
    if {o.parent.name for o in of_isas} != set(ISAS):
        sys.exit(f"objects of {sorted({o.parent.name for o in of_isas})} found under {folders}; expected {ISAS}")
    others = [o for o in objects if o not in of_isas]
    problems = [p for o in of_isas for p in weak_symbols(o)] + [p for o in others for p in avx_instructions(o)]
    if problems or not others:
        sys.exit("\n".join(problems) or f"no other objects under {folders}")
    print(f"{len(of_isas)} objects of ISA folders define no weak symbol; {len(others)} others hold no AVX instruction")


main(sys.argv[1:])
