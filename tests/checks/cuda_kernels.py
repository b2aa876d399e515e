# SPDX-License-Identifier: Apache-2.0
"""cuda_kernels.py FOLDER [ARCHITECTURE...]: compiles the CUDA kernels into FOLDER and reads what came out.

Of each kernel and architecture: no stack and no spills, registers for the blocks an SM that it claims; in its disassembly
the instructions that it is made for, in its innermost loop, with 16-byte accesses and one barrier.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/cuda"))
import compile_kernels  # noqa: E402

# name -> threads a block, blocks an SM
KERNELS = {
    "gemm_s8": (128, 2),
    "gemm_s8_unaligned": (128, 2),
    "gemm_small_s8": (128, 4),
    "finish_s8": (128, 4),
    **{f"quantize_rows_{dtype}{tail}": (256, 4) for dtype in ("f32", "f16", "bf16") for tail in ("", "_unaligned")},
    **{
        f"skinny_{codes}_{rows}{tail}": (256, 2)
        for codes in ("s8", "fused")
        for rows in (8, 16, 32, 64)
        for tail in ("", "_unaligned")[: 2 if codes == "s8" else 1]
    },
    **{
        name: (256, 4)
        for name in (
            "finish_columns",
            "list_columns",
            "copy_codes",
            "dequantize_rows",
            "dequantize_accumulators",
            "count_outliers",
        )
    },
}
NOT_BEFORE_75 = re.compile(r"skinny_\w+_(32|64)|backward_f16")


def kernels_of(architecture, version):
    kernels = {name: claim for name, claim in KERNELS.items() if version >= 75 or not NOT_BEFORE_75.match(name)}
    if version < 75:
        kernels |= {"gemm_small_s8": (128, 3), "finish_s8": (128, 3)}
    if architecture == "sm_90a":
        kernels["gemm_wgmma_s8"] = (384, 1)
    products = ("f16", "bf16") if version >= 80 else ("f16", "f32") if version >= 75 else ("f32",)
    for product in products:
        for tail in ("", "_unaligned"):
            kernels |= {f"backward_{product}{tail}": (128, 2), f"w8a16_{product}{tail}": (128, 2)}
            kernels |= {
                f"w8a16_skinny_{product}_{rows}{tail}": (256, 2) for rows in ((16,) if product == "f32" else (16, 48))
            }
        if product != "f32":
            kernels[f"w8a16_small_{product}"] = (128, 4)
    return kernels


REGISTERS_OF_AN_SM = 65536
# Tensor-core products, ldmatrix and 16-byte copies of a step of 64 k's, by architecture from which on.
GEMM_LOOP = {
    75: {"IMMA": 128, "LDSM": 12, "BAR": 1, "STS": 6, "LDGSTS": 0},
    80: {"IMMA": 64, "LDSM": 16, "BAR": 1, "STS": 0, "LDGSTS": 8},
}
# Of a step of 128 k's: four products of 32, one wait for the stage and one arrival, nothing by threads. In the whole kernel
# one copy of A and one of W, and registers moved twice.
WGMMA_LOOP = {"IGMMA": 4, "SYNCS": 2, "LDS": 0, "LDSM": 0, "STS": 0, "BAR": 0, "LDG": 0}
WGMMA_KERNEL = {"IGMMA": 4, "UTMALDG": 2, "USETMAXREG": 2}
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)(.*?);")
errors = []


def expect(condition, text):
    if not condition:
        errors.append(text)


def nvdisasm():
    for folder in sys.path:
        found = sorted(Path(folder).glob("nvidia/*/bin/nvdisasm"))
        if found:
            found[0].chmod(0o755)
            return found[0]
    sys.exit("cuda_kernels.py: no nvdisasm; pip install -r tests/checks/cuda-requirements.txt")


def functions(cubin):
    """kernel -> [(label or None, opcode, operands)]"""
    command = [nvdisasm(), "-c", cubin]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    found = {}
    for name, body in re.findall(r"\.text\.(\w+):(.*?)(?=\n\s*\.section|\Z)", text, re.S):
        code, labels = [], []
        for line in body.splitlines():
            label = re.match(r"\s*(\.L_x_\d+):", line)
            if label:
                labels.append(label[1])
            instruction = INSTRUCTION.search(line)
            if instruction:
                code.append((labels, *instruction.groups()))
                labels = []
        found[name] = code
    return found


def loop_around(code, opcode):
    """The instructions of the first loop that holds `opcode`."""
    places = {label: place for place, (labels, *_) in enumerate(code) for label in labels}
    for end, (_, operation, operands) in enumerate(code):
        target = re.search(r"`\((\.L_x_\d+)\)", operands)
        if operation.startswith("BRA") and target and places[target[1]] <= end:
            body = code[places[target[1]] : end + 1]
            if any(instruction.startswith(opcode) for _, instruction, _ in body):
                return body
    return []


def check_code(architecture, version, code):
    for kernel, instructions in code.items():
        counts = Counter(instruction.split(".")[0] for _, instruction, _ in instructions)
        expect(
            not counts["LDL"] and not counts["STL"], f"{kernel}: {counts['LDL'] + counts['STL']} accesses to local memory"
        )
    gemm = loop_around(code[f"gemm_s8_{architecture.replace('_', '')}"], "IMMA")
    counts = Counter(instruction.split(".")[0] for _, instruction, _ in gemm)
    wanted = GEMM_LOOP[max(start for start in GEMM_LOOP if start <= version)]
    for opcode, count in wanted.items():
        expect(
            counts[opcode] == count, f"{architecture}: {counts[opcode]} {opcode} in the loop of gemm_s8; expected {count}"
        )
    for rows in (8, 16, 32, 64):
        # Of four steps at once, from 64 rows on of two: two products an eighth of the rows, two loads of 16 bytes.
        steps = 2 if rows == 64 else 4
        loop = loop_around(code[f"skinny_s8_{rows}_{architecture.replace('_', '')}"], "IMMA")
        products = sum(instruction.startswith("IMMA") for _, instruction, _ in loop)
        loads = sum(bool(re.match(r"LDG\.E.*128", instruction)) for _, instruction, _ in loop)
        wanted = steps * rows // 4 * (4 if version < 80 else 1)
        expect(products == wanted, f"{architecture}: {products} IMMA in the loop of skinny_s8_{rows}; expected {wanted}")
        wanted = steps * (2 + rows // 8)
        expect(loads == wanted, f"{architecture}: {loads} 16-byte loads in the loop of skinny_s8_{rows}; expected {wanted}")
    for product in ("f16", "bf16") if version >= 80 else ("f16",):
        for kernel in (f"backward_{product}", f"w8a16_{product}"):
            loop = loop_around(code[f"{kernel}_{architecture.replace('_', '')}"], "HMMA")
            products = sum(instruction.startswith("HMMA") for _, instruction, _ in loop)
            wanted = 32 if version >= 80 else 64
            expect(products == wanted, f"{architecture}: {products} HMMA in the loop of {kernel}; expected {wanted}")
    for rows in (16, 48):
        # As skinny_s8, but four products and two loads of 16 bytes of x an eighth of the rows and step; a compiler may have
        # these twice, once for an argument that is 0.
        steps, kernel = 4 if rows == 16 else 2, f"w8a16_skinny_f16_{rows}"
        loop = loop_around(code[f"{kernel}_{architecture.replace('_', '')}"], "HMMA")
        products = sum(instruction.startswith("HMMA") for _, instruction, _ in loop)
        loads = sum(bool(re.match(r"LDG\.E.*128", instruction)) for _, instruction, _ in loop)
        wanted = steps * rows // 2 * (1 if version >= 80 else 2)
        copies = 2 if products == 2 * wanted else 1
        expect(products == copies * wanted, f"{architecture}: {products} HMMA in the loop of {kernel}; expected {wanted}")
        wanted = steps * (2 + copies * rows // 4)
        expect(loads == wanted, f"{architecture}: {loads} 16-byte loads in the loop of {kernel}; expected {wanted}")
    if architecture == "sm_90a":
        kernel = code["gemm_wgmma_s8_sm90a"]
        loop = loop_around(kernel, "IGMMA")
        for where, instructions, numbers in (("loop", loop, WGMMA_LOOP), ("code", kernel, WGMMA_KERNEL)):
            found = Counter(instruction.split(".")[0] for _, instruction, _ in instructions)
            for opcode, count in numbers.items():
                expect(
                    found[opcode] == count, f"{found[opcode]} {opcode} in the {where} of gemm_wgmma_s8; expected {count}"
                )
        print(f"{architecture}: loop of gemm_wgmma_s8 {len(loop)} instructions")
    narrow = [i for _, i, _ in gemm if re.match(r"LDGSTS|STS", i) and "128" not in i]
    expect(not narrow, f"{architecture}: {narrow} in the loop of gemm_s8; expected 16 bytes")
    most = ", ".join(f"{count} {opcode}" for opcode, count in counts.most_common(6))
    print(f"{architecture}: loop of gemm_s8 {len(gemm)} instructions, {most}")


def main():
    folder, wanted = Path(sys.argv[1]), sys.argv[2:] or list(compile_kernels.ARCHITECTURES)
    compiled = compile_kernels.compile_all(folder, [*wanted, "compute_70"])
    for architecture in wanted:
        if architecture.startswith("compute"):
            continue
        suffix = "_" + architecture.replace("_", "")
        version = int(re.search(r"\d+", architecture)[0])
        kernels = kernels_of(architecture, version)
        expect(
            set(compiled[architecture]) == {name + suffix for name in kernels},
            f"{architecture} has the kernels {sorted(compiled[architecture])}; expected {sorted(kernels)}",
        )
        for name, (threads, blocks) in kernels.items():
            found = compiled[architecture].get(name + suffix, {})
            for what in ("stack", "spill_stores", "spill_loads"):
                expect(found.get(what) == 0, f"{name}{suffix}: {found.get(what)} bytes of {what}; expected 0")
            registers = -(-found.get("registers", 256) // 8) * 8
            most = REGISTERS_OF_AN_SM // (threads * blocks)
            expect(
                registers <= most,
                f"{name}{suffix}: {registers} registers; expected at most {most} for {blocks} blocks an SM",
            )
        if version >= 75:
            check_code(architecture, version, functions(folder / f"{architecture}.cubin"))
    ptx = (folder / "compute_70.ptx").read_text()
    gemm = re.search(r"\.entry gemm_s8_ptx70\((.*?)\n}", ptx, re.S)[1]
    count = gemm.count("dp4a.s32.s32")
    expect(count >= 1024, f"sm_70: {count} dp4a in gemm_s8; expected 1024 for a step of 64 k's")
    if errors:
        sys.exit("\n".join(errors))
    print(f"{len(KERNELS)} kernels for {', '.join(wanted)}: no spills, occupancy as claimed")


main()
