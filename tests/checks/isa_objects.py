# SPDX-License-Identifier: Apache-2.0
"""isa_objects.py OBJECT_FOLDER...: no object of an ISA folder defines a weak symbol.

The linker keeps one of several weak definitions: an inline function compiled with AVX-512 flags could replace the same
function everywhere in the library, and crash older CPUs.
"""

import subprocess
import sys
from pathlib import Path

ISAS = ("avx2", "avxvnni", "avx512bw", "avx512vnni")


def main(folders):
    objects = [o for folder in folders for o in Path(folder).rglob("*.o") if o.parent.name in ISAS]
    if {o.parent.name for o in objects} != set(ISAS):
        sys.exit(f"objects of {sorted({o.parent.name for o in objects})} found under {folders}; expected {ISAS}")
    problems = 0
    for path in objects:
        nm = subprocess.run(["nm", "-C", "--defined-only", str(path)], check=True, capture_output=True, text=True)
        for line in nm.stdout.splitlines():
            _, kind, name = line.split(" ", 2)
            if kind in "WVwvu":
                print(f"{path} defines {name} ({kind}); make it static or put it into an anonymous namespace")
                problems += 1
    if problems:
        sys.exit(1)
    print(f"{len(objects)} objects of ISA folders define no weak symbol")


main(sys.argv[1:])
