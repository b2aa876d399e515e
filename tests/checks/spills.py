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

# Of each instruction, whose functions and in which ISAs.
LOOPS = {
    "vpdpbusd": ("", ("avxvnni", "avx512vnni")),
    "vdpbf16ps": ("", ("avx512vnni",)),
    "vpmaddwd": ("gem", ("avx2", "avx512bw")),
    "vfmadd": ("backward_tile|add_columns", ("avx2", "avxvnni", "avx512bw", "avx512vnni")),
}
INSTRUCTION = re.compile(r"^\s+([0-9a-f]+):\s+(?:\{\w+\} )?(\w+)\s*(.*)$")
STACK = re.compile(r"\(%r[sb]p")


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
    """The instructions of each loop around `instruction` that has no such loop inside it."""
    spans = []
    for address, mnemonic, operands in code:
        target = re.match(r"([0-9a-f]+) <", operands)
        if mnemonic.startswith("j") and target and int(target[1], 16) <= address:
            spans.append((int(target[1], 16), address))
    loops = {span: [i for i in code if span[0] <= i[0] <= span[1]] for span in spans}
    hot = {s: body for s, body in loops.items() if any(i[1].startswith(instruction) for i in body)}
    for (begin, end), body in hot.items():
        if not any((b, e) != (begin, end) and begin <= b and e <= end for b, e in hot):
            yield body


def main(folders):
    spills = 0
    objects = [o for folder in folders for o in Path(folder).rglob("*.o")]
    code_of = {o: list(functions(o)) for o in objects if any(o.parent.name in isas for _, isas in LOOPS.values())}
    for instruction, (of, isas) in LOOPS.items():
        count, seen = 0, set()
        for path, codes in code_of.items():
            for name, code in codes:
                for body in innermost_loops(code, instruction) if re.search(of, name) and path.parent.name in isas else ():
                    count += 1
                    seen.add(path.parent.name)
                    for address, mnemonic, operands in body:
                        if mnemonic.startswith("v") and STACK.search(operands) and re.search(r"%[xyz]mm", operands):
                            print(f"{path}: {name}: {address:x}: {mnemonic} {operands}")
                            spills += 1
        if seen != set(isas):
            sys.exit(f"{instruction} loops found in {sorted(seen)} only, of {isas}; is {folders} the right place?")
        print(f"{count} innermost {instruction} loops")
    print(f"{spills} spills")
    sys.exit(spills > 0)


main(sys.argv[1:])
