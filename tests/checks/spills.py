# SPDX-License-Identifier: Apache-2.0
"""spills.py OBJECT_FOLDER...: the innermost loops of the products keep their accumulators in registers.

g++ 12 spills the accumulators of intrinsics and halves their speed; the kernels' inline assembly avoids it, and this looks
whether it still does: no vector instruction touches the stack inside such a loop. The products are those of vpdpbusd,
vpmaddwd and vdpbf16ps, and the vfmadds of backward and of the outlier columns.
"""

import re
import subprocess
import sys
from pathlib import Path

# Of each instruction, in which functions its loops must be found in each of the ISAs.
VNNI, PAIRS, ALL = ("avxvnni", "avx512vnni"), ("avx2", "avx512bw"), ("avx2", "avxvnni", "avx512bw", "avx512vnni")
LOOPS = {
    "vpdpbusd": (("gem", VNNI), ("dot", VNNI)),
    "vpmaddwd": (("gem", PAIRS), ("dot", PAIRS)),
    "vdpbf16ps": (("backward", ("avx512vnni",)),),
    "vfmadd": (("backward", ALL), ("outliers|add_columns", ALL)),
}
STACK = re.compile(r"\(%r[sb]p")
INSTRUCTION = re.compile(r"^\s+([0-9a-f]+):\s+(?:\{\w+\} )?(\w+)\s*(.*)$")


def functions(path):
    """(name, [(address, mnemonic, operands)]) of each function."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for block in text.split("\n\n"):
        head = re.search(r"^[0-9a-f]+ <(.*)>:$", block, re.M)
        if head:
            found = (INSTRUCTION.match(line) for line in block.splitlines())
            yield head[1], [(int(m[1], 16), m[2], m[3]) for m in found if m]


def innermost_loops(code, instruction):
    """The instructions of each loop around `instruction` that has no such loop inside it; all jumps back to one address are
    one loop's."""
    ends = {}
    for address, mnemonic, operands in code:
        target = re.match(r"([0-9a-f]+) <", operands)
        if mnemonic.startswith("j") and target and int(target[1], 16) <= address:
            begin = int(target[1], 16)
            ends[begin] = max(ends.get(begin, address), address)
    loops = {span: [i for i in code if span[0] <= i[0] <= span[1]] for span in ends.items()}
    hot = {s: body for s, body in loops.items() if any(i[1].startswith(instruction) for i in body)}
    for (begin, end), body in hot.items():
        if not any((b, e) != (begin, end) and begin <= b and e <= end for b, e in hot):
            yield body


def main(folders):
    spills = 0
    objects = [o for folder in folders for o in Path(folder).rglob("*.o")]
    code_of = {o: list(functions(o)) for o in objects if o.parent.name in ALL}
    for instruction, places in LOOPS.items():
        for of, isas in places:
            count, seen = 0, set()
            for path, codes in code_of.items():
                for name, code in codes if path.parent.name in isas else ():
                    bodies = list(innermost_loops(code, instruction)) if re.search(of, name) else []
                    for body in bodies:
                        count += 1
                        seen.add(path.parent.name)
                        for address, mnemonic, operands in body:
                            if mnemonic.startswith("v") and STACK.search(operands) and re.search(r"%[xyz]mm", operands):
                                print(f"{path}: {name}: {address:x}: {mnemonic} {operands}")
                                spills += 1
            if seen != set(isas):
                sys.exit(f"{instruction} loops of {of}: found in {sorted(seen)} only, of {isas}; is {folders} the place?")
            print(f"{count} innermost {instruction} loops of {of}")
    print(f"{spills} spills")
    sys.exit(spills > 0)


main(sys.argv[1:])
