# SPDX-License-Identifier: Apache-2.0
"""spills.py OBJECT_FOLDER...: the innermost loops around vpdpbusd keep their accumulators in registers.

g++ 12 spills the accumulators of the intrinsic and halves its speed; the kernels' inline assembly avoids it, and this looks
whether it still does: no vector register is moved to or from the stack inside such a loop.
"""

import re
import subprocess
import sys
from pathlib import Path

ISAS = ("avxvnni", "avx512vnni")
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


def innermost_loops(code):
    """The instructions of each loop around vpdpbusd that has no such loop inside it."""
    spans = []
    for address, mnemonic, operands in code:
        target = re.match(r"([0-9a-f]+) <", operands)
        if mnemonic.startswith("j") and target and int(target[1], 16) <= address:
            spans.append((int(target[1], 16), address))
    loops = {span: [i for i in code if span[0] <= i[0] <= span[1]] for span in spans}
    hot = {s: body for s, body in loops.items() if any(i[1].startswith("vpdpbusd") for i in body)}
    for (begin, end), body in hot.items():
        if not any((b, e) != (begin, end) and begin <= b and e <= end for b, e in hot):
            yield body


def main(folders):
    objects = [o for folder in folders for o in Path(folder).rglob("*.o") if o.parent.name in ISAS]
    count, spills, seen = 0, 0, set()
    for path in objects:
        for name, code in functions(path):
            for body in innermost_loops(code):
                count += 1
                seen.add(path.parent.name)
                for address, mnemonic, operands in body:
                    if mnemonic.startswith("vmov") and STACK.search(operands) and re.search(r"%[xyz]mm", operands):
                        print(f"{path}: {name}: {address:x}: {mnemonic} {operands}")
                        spills += 1
    if seen != set(ISAS):
        sys.exit(f"vpdpbusd loops found in {sorted(seen)} only, of {ISAS}; is {folders} the right place?")
    print(f"{count} innermost vpdpbusd loops, {spills} spills")
    sys.exit(spills > 0)


main(sys.argv[1:])
