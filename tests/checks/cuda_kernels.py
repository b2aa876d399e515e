# SPDX-License-Identifier: Apache-2.0
"""cuda_kernels.py FOLDER SHARED_MEMORY [ARCHITECTURE...]: compiles the CUDA kernels into FOLDER and reads what came out.

Of each kernel and architecture: no stack and no spills, registers, threads and shared memory for the blocks an SM that it
claims; SHARED_MEMORY, a program, says how much that is. In its disassembly no access to local memory, and the instructions
that it is made for: products in the main loop, 16-byte accesses (docs/cuda.md lists them); of the epilogue that its
gathered loads overlap.
"""

import re
import subprocess
import sys
import tempfile
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


GEMM_WGMMA = ["gemm_wgmma_s8_128", "gemm_wgmma_s8_256"]
WGMMA_OF_HALVES = [
    f"{kernel}_wgmma_{dtype}_{rows}"
    for kernel in ("w8a16", "backward")
    for dtype in ("f16", "bf16")
    for rows in (64, 128, 256)
]


def kernels_of(architecture, version):
    kernels = {name: claim for name, claim in KERNELS.items() if version >= 75 or not NOT_BEFORE_75.match(name)}
    if version < 75:
        kernels |= {"gemm_small_s8": (128, 3), "finish_s8": (128, 3)}
    if architecture == "sm_90a":
        kernels |= {name: (384, 1) for name in (*GEMM_WGMMA, *WGMMA_OF_HALVES)}
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
# KiB of shared memory and threads of an SM (CUDA C++ Programming Guide, Compute Capabilities). From 8.0 on the driver takes
# 1 KiB a block of it.
SM = {70: (96, 2048), 75: (64, 1024), 80: (164, 2048), 86: (100, 1536), 89: (100, 1536), 90: (228, 2048)}
SM |= {100: (228, 2048), 120: (100, 1536)}
# Fewer blocks than registers are there for: 36 KiB, for 64 rows of 256 codes.
BLOCKS_BY_SHARED_MEMORY = {(75, "skinny_fused_64"): 1}
# Barriers and 16-byte accesses of a step of 64 k's, and products and ldmatrix of two: one of all columns, one that passes
# over some; by architecture from which on. Small tiles have the second where shared memory has room for its bitmap.
GEMM_LOOP = {
    70: {"IDP.4A": 2 * 1024, "LDG*128": 6, "STS*128": 6, "LDS*128": 2 * 64, "BAR": 1},
    75: {"IMMA": 2 * 128, "LDSM": 2 * 12, "BAR": 1, "LDG*128": 6, "STS": 6, "STS*128": 6, "LDGSTS": 0},
    80: {"IMMA": 2 * 64, "LDSM": 2 * 16, "BAR": 1, "STS": 0, "LDGSTS": 8, "LDGSTS*128": 8},
}
ONE_WAY = {"IMMA": 16, "LDSM": 8, "BAR": 1, "STS": 0, "LDGSTS": 4, "LDGSTS*128": 4}
TWO_WAYS = ONE_WAY | {"IMMA": 2 * 16, "LDSM": 2 * 8}
GEMM_SMALL_LOOP = {
    70: {"IDP.4A": 512, "LDG*128": 4, "STS*128": 4, "LDS*128": 48, "BAR": 1},
    75: {"IMMA": 64, "LDSM": 8, "BAR": 1, "LDG*128": 4, "STS": 4, "STS*128": 4},
    80: TWO_WAYS,
    86: ONE_WAY,
    90: TWO_WAYS,
    120: ONE_WAY,
}
# Of a step of 128 k's: four products of 32, begun once and waited for once (serialized ones are at each product), one wait
# for the stage and one arrival, nothing by threads. In the whole kernel a copy of A and one of W, registers moved twice,
# and one wait more, for the last products.
WGMMA_LOOP = {"IGMMA": 4, "WARPGROUP.ARRIVE": 1, "WARPGROUP.DEPBAR": 1, "SYNCS": 2}
WGMMA_LOOP |= {"LDS": 0, "LDSM": 0, "STS": 0, "BAR": 0, "LDG": 0}
WGMMA_KERNEL = {"IGMMA": 4, "WARPGROUP.ARRIVE": 1, "WARPGROUP.DEPBAR": 2, "UTMALDG": 2, "USETMAXREG": 2}
# Of two stages of 64: eight products, begun and waited for by fours, two waits for a stage and one arrival each; codes are
# read by two bytes, 16 of a stage, for the gradient also 8 bytes of ratios for every two of them.
HALVES_LOOP = {
    "HGMMA": 8,
    "WARPGROUP.ARRIVE": 2,
    "WARPGROUP.DEPBAR": 2,
    "LDS.U16": 32,
    "LDSM": 0,
    "STS": 0,
    "BAR": 0,
    "LDG": 0,
}
# In the whole kernel, of 32 outlier columns: their codes, two fp16 products or one of bf16 in each of two places.
FINISH = {70: {"IDP.4A": 256}, 75: {"IMMA": 32}, 80: {"IMMA": 8, "HMMA": 24}}
# In the whole kernel. Eight floats are two accesses of 16 bytes as fp32, one as 16 bits: of X, bias and Y one or the other,
# of accumulators and col_stats two. A block's list is four, of bitmaps four at once and up to three that are left.
STATELESS = {
    "copy_codes": {"LDG*128": 1, "STG*128": 1},
    "dequantize_rows": {"STG*128": 2 + 1},
    "dequantize_accumulators": {"LDG*128": 2 + 2 + 2 + 1, "STG*128": 2 + 1},
    "finish_columns": {"LDG*128": 4 + 4 + 3},
}
# What ptxas tells, as information, of products that it serializes (C7510, C7511) and of waits that it adds (C7517, C7519).
SERIALIZED = re.compile(r".*\(C75\d\d\).*")
WGMMA_SOURCE = """
#include "cuda/kernels/gemm_wgmma.h"
#include "cuda/kernels/w8a16_wgmma.h"
#define KERNEL(name, Maps) \\
  extern "C" __global__ void __launch_bounds__(384, 1) name(const __grid_constant__ Maps maps)
namespace int8q::gpu {
KERNEL(gemm_128, GemmByMaps) { gemm_wgmma<Sm90a, WgmmaTile<128>>(maps); }
KERNEL(gemm_256, GemmByMaps) { gemm_wgmma<Sm90a, WgmmaTile<256>>(maps); }
KERNEL(forward_64, W8a16ByMaps) { w8a16_wgmma<Sm90a, W8a16WgmmaTile<64, 64>, true>(maps); }
KERNEL(forward_256, W8a16ByMaps) { w8a16_wgmma<Sm90a, W8a16WgmmaTile<256, 128>, false>(maps); }
KERNEL(backward_64, BackwardByMaps) { backward_wgmma<Sm90a, W8a16WgmmaTile<64, 64>, true>(maps); }
KERNEL(backward_256, BackwardByMaps) { backward_wgmma<Sm90a, W8a16WgmmaTile<256, 128>, false>(maps); }
}  // namespace int8q::gpu
"""
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)(.*?);")
SECOND_HALF = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")
errors = []


def expect(condition, text):
    if not condition:
        errors.append(text)


def nvdisasm(version):
    """That of CUDA 13 reads no sm_70."""
    of_this_version = "nvidia/*/bin/nvdisasm" if version >= 75 else "triton/third_party/cuda/bin/nvdisasm"
    for folder in sys.path:
        found = sorted(Path(folder).glob(of_this_version))
        if found:
            found[0].chmod(0o755)
            return found[0]
    sys.exit(f"cuda_kernels.py: no {of_this_version}; pip install -r tests/checks/cuda-requirements.txt")


class Instruction:
    """Of 128 bits; bits 105 to 125 tell how it is issued: which of six barriers it completes, and which it waits for."""

    def __init__(self, labels, opcode, operands):
        self.labels, self.opcode, self.operands = labels, opcode, operands

    def take_second_half(self, bits):
        self.completes, self.waits = bits >> 46 & 7, bits >> 52 & 63


def functions(cubin, version):
    """kernel -> its instructions"""
    command = [nvdisasm(version), "-c", "-hex", cubin]
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
                code.append(Instruction(labels, *instruction.groups()))
                labels = []
            second = SECOND_HALF.match(line)
            if second:
                code[-1].take_second_half(int(second[1], 16))
        found[name] = code
    return found


def loop_around(code, opcode):
    """The instructions of the first loop that holds `opcode`."""
    places = {label: place for place, instruction in enumerate(code) for label in instruction.labels}
    for end, last in enumerate(code):
        target = re.search(r"`\((\.L_x_\d+)\)", last.operands)
        if last.opcode.startswith("BRA") and target and places[target[1]] <= end:
            body = code[places[target[1]] : end + 1]
            if any(instruction.opcode.startswith(opcode) for instruction in body):
                return body
    return []


def expect_overlap(kernel, code):
    """Columns are gathered by loads of a byte, all under way before one is waited for; schedulers have a few others."""
    loads = [place for place, instruction in enumerate(code) if instruction.opcode.startswith("LDG.E.U8")]
    waited_for = sum(
        any(later.waits >> code[place].completes & 1 for later in code[place + 1 : place + 3]) for place in loads
    )
    expect(
        loads and waited_for <= len(loads) / 10,
        f"{kernel}: {waited_for} of {len(loads)} loads of a byte are waited for at once; expected a tenth at most",
    )


def count(code, opcode):
    """Instructions whose name begins so; of OPCODE*128 those of 16 bytes."""
    name, wide, _ = opcode.partition("*128")
    pattern = re.compile(re.escape(name) + r"\b" + (r".*\b128\b" if wide else ""))
    return sum(bool(pattern.match(instruction.opcode)) for instruction in code)


def expect_counts(where, code, numbers):
    for opcode, wanted in numbers.items():
        expect(count(code, opcode) == wanted, f"{count(code, opcode)} {opcode} in {where}; expected {wanted}")


def from_version(numbers, version):
    return numbers[max(start for start in numbers if start <= version)]


def check_skinny(architecture, version, loop_of):
    for rows in (8, 16, 32, 64) if version >= 75 else (8, 16):
        # Of four steps at once, of 64 rows two, fused one: two loads of 16 bytes of W, one of codes an eighth of the rows,
        # and two products. With dp4a of two steps, of 16 rows one: two rows of W and each of x, 16 bytes of both.
        steps = (2 if rows == 64 else 4) if version >= 75 else (2 if rows == 8 else 1)
        fused = 1 if rows == 64 else steps
        of_a_step = {"IMMA": rows // 4 * (4 if version < 80 else 1)} if version >= 75 else {"IDP.4A": 2 * rows * 4}
        codes = rows // 8 if version >= 75 else rows
        products = {opcode: steps * number for opcode, number in of_a_step.items()}
        expect_counts(
            f"the loop of skinny_s8_{rows} of {architecture}",
            loop_of(f"skinny_s8_{rows}", next(iter(products))),
            {**products, "LDG*128": steps * (2 + codes)},
        )
        expect_counts(
            f"the loop of skinny_fused_{rows} of {architecture}",
            loop_of(f"skinny_fused_{rows}", next(iter(products))),
            {opcode: fused * number for opcode, number in {**of_a_step, "LDG*128": 2, "LDS*128": codes}.items()},
        )
        at_once = 2 if version >= 75 and rows < 64 else 1
        expect_counts(
            f"the loop of skinny_s8_{rows}_unaligned of {architecture}",
            loop_of(f"skinny_s8_{rows}_unaligned", next(iter(products))),
            {opcode: at_once * number for opcode, number in of_a_step.items()},
        )


def check_fp32_products(architecture, loop_of):
    # 128 results a thread, by one of the sum, or four; of two steps, 16 codes of two rows of W by 16 rows of x.
    for kernel, products in (("backward_f32", 128), ("w8a16_f32", 512), ("w8a16_skinny_f32_16", 1024)):
        expect_counts(f"the loop of {kernel} of {architecture}", loop_of(kernel, "FFMA"), {"FFMA": products})


def check_float_products(architecture, version, loop_of):
    of_16 = 1 if version >= 80 else 2  # products for 16 of the sum
    for product in ("f16", "bf16") if version >= 80 else ("f16",):
        for kernel, products in (("backward", 32), ("w8a16", 32), ("w8a16_small", 8)):
            for tail in ("", "_unaligned")[: 1 if kernel == "w8a16_small" else 2]:
                where = f"{kernel}_{product}{tail}"
                expect_counts(f"the loop of {where} of {architecture}", loop_of(where, "HMMA"), {"HMMA": of_16 * products})
    for rows in (16, 48):
        # As skinny_s8, but four products and two loads of 16 bytes of x an eighth of the rows and step; a compiler may have
        # these twice, once for an argument that is 0.
        steps, kernel = 4 if rows == 16 else 2, f"w8a16_skinny_f16_{rows}"
        loop = loop_of(kernel, "HMMA")
        products = steps * rows // 2 * of_16
        copies = 2 if count(loop, "HMMA") == 2 * products else 1
        wanted = {"HMMA": copies * products, "LDG*128": steps * (2 + copies * rows // 4)}
        expect_counts(f"the loop of {kernel} of {architecture}", loop, wanted)


def check_whole_kernels(architecture, version, suffix, code):
    wanted = {**STATELESS, "finish_s8": from_version(FINISH, version) | {"STG*128": 7}}
    wanted["count_outliers"] = {"LDG*128": 2 + 1 if version < 100 else 2 + 2}
    if version >= 80:  # steps of one term and of three; from sm_100 on a first product stands before the loop of terms
        for rows, products in ((16, 32), (48, 48)):
            wanted[f"w8a16_skinny_bf16_{rows}"] = {"HMMA": 2 * products + (2 if version >= 100 else 0)}
    for kernel, numbers in wanted.items():
        expect_counts(f"{kernel} of {architecture}", code[kernel + suffix], numbers)


def check_wgmma(code):
    for name in GEMM_WGMMA:
        kernel = code[name + "_sm90a"]
        loop = loop_around(kernel, "IGMMA")
        expect_counts(f"the loop of {name}", loop, WGMMA_LOOP)
        expect_counts(name, kernel, WGMMA_KERNEL)
        expect_overlap(name, kernel)
        print(f"sm_90a: loop of {name} {len(loop)} instructions")
    for name in WGMMA_OF_HALVES:
        ratios = 16 if name.startswith("backward") else 0
        wanted = HALVES_LOOP | {"LDS": HALVES_LOOP["LDS.U16"] + ratios, "LDS.64": ratios}
        expect_counts(f"the loop of {name}", loop_around(code[name + "_sm90a"], "HGMMA"), wanted)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "gemm_wgmma.cu"
        source.write_text(WGMMA_SOURCE)
        _, log = compile_kernels.Nvrtc(compile_kernels.find_nvrtc()).compile(source, "sm_90a")
    for entry in re.findall(r"KERNEL\((\w+), \w+\) {", WGMMA_SOURCE):
        expect(f"Compiling entry function '{entry}'" in log, f"ptxas did not say that it compiled {entry}:\n{log}")
    expect(not SERIALIZED.search(log), f"ptxas serializes the products of a kernel:\n{log}")


def check_code(architecture, version, code):
    suffix = "_" + architecture.replace("_", "")

    def loop_of(kernel, opcode):
        return loop_around(code[kernel + suffix], opcode)

    for kernel, instructions in code.items():
        expect_counts(kernel, instructions, {"LDL": 0, "STL": 0})
    product = "IMMA" if version >= 75 else "IDP.4A"
    gemm = loop_of("gemm_s8", product)
    expect_counts(f"the loop of gemm_s8 of {architecture}", gemm, from_version(GEMM_LOOP, version))
    small = loop_of("gemm_small_s8", product)
    expect_counts(f"the loop of gemm_small_s8 of {architecture}", small, from_version(GEMM_SMALL_LOOP, version))
    unaligned = loop_of("gemm_s8_unaligned", product)
    expect_counts(f"the loop of gemm_s8_unaligned of {architecture}", unaligned, {product: count(gemm, product)})
    expect_overlap(f"finish_s8{suffix}", code[f"finish_s8{suffix}"])
    check_skinny(architecture, version, loop_of)
    # 64 bytes of a row ahead for the greatest, eight elements for the codes.
    for dtype, loads in (("f32", 6), ("f16", 5), ("bf16", 5)):
        for tail, wanted in (("", loads), ("_unaligned", 0)):
            kernel = f"quantize_rows_{dtype}{tail}{suffix}"
            expect_counts(kernel, code[kernel], {"LDG*128": wanted})
    check_whole_kernels(architecture, version, suffix, code)
    if version >= 75:
        check_float_products(architecture, version, loop_of)
    if version < 80:
        check_fp32_products(architecture, loop_of)
    if architecture == "sm_90a":
        check_wgmma(code)
    most = ", ".join(f"{n} {opcode}" for opcode, n in Counter(i.opcode.split(".")[0] for i in gemm).most_common(6))
    print(f"{architecture}: loop of gemm_s8 {len(gemm)} instructions, {most}")


def check_occupancy(name, version, threads, blocks, registers, shared):
    most = REGISTERS_OF_AN_SM // (threads * blocks)
    up_to_eights = -(-registers // 8) * 8
    expect(up_to_eights <= most, f"{name}: {registers} registers; expected at most {most} for {blocks} blocks an SM")
    kib, most_threads = SM[version]
    expect(threads * blocks <= most_threads, f"{name}: {blocks} blocks of {threads} threads; an SM has {most_threads}")
    blocks = BLOCKS_BY_SHARED_MEMORY.get((version, name), blocks)
    needed = blocks * (shared + (1024 if version >= 80 else 0))
    expect(
        needed <= kib * 1024,
        f"{name} of sm_{version}: {needed} bytes of shared memory for {blocks} blocks; an SM has {kib} KiB",
    )


def shared_memory(program):
    """(tag, kernel) -> bytes"""
    lines = subprocess.run([program], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {(int(tag), kernel): int(size) for tag, kernel, size in map(str.split, lines)}


def main():
    folder, wanted = Path(sys.argv[1]), sys.argv[3:] or list(compile_kernels.ARCHITECTURES)
    shared = shared_memory(sys.argv[2])
    compiled = compile_kernels.compile_all(folder, wanted)
    for architecture in wanted:
        if architecture.startswith("compute"):
            continue
        suffix = "_" + architecture.replace("_", "")
        version, tag = int(re.search(r"\d+", architecture)[0]), compile_kernels.ARCHITECTURES[architecture]
        kernels = kernels_of(architecture, version)
        expect(
            set(compiled[architecture]) == {name + suffix for name in kernels},
            f"{architecture} has the kernels {sorted(compiled[architecture])}; expected {sorted(kernels)}",
        )
        for name, (threads, blocks) in kernels.items():
            found = compiled[architecture].get(name + suffix, {})
            for what in ("stack", "spill_stores", "spill_loads"):
                expect(found.get(what) == 0, f"{name}{suffix}: {found.get(what)} bytes of {what}; expected 0")
            bytes_of_it = shared[tag, name.removesuffix("_unaligned")]
            check_occupancy(name, version, threads, blocks, found.get("registers", 256), bytes_of_it)
        check_code(architecture, version, functions(folder / f"{architecture}.cubin", version))
    if errors:
        sys.exit("\n".join(errors))
    print(f"{len(KERNELS)} kernels for {', '.join(wanted)}: no spills, occupancy as claimed")


main()
