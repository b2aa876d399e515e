# SPDX-License-Identifier: Apache-2.0
"""cuda_mutations.py COMPILER BUILD_FOLDER [FILE]: breaks CUDA kernels in one place at a time; the emulator must notice.

Mutants are generated: each match of each rule in each kernel's file is one. They are compiled beside the intact rest and
run, by a kernel's own test or as libcuda's GPU under test_cuda; these must pass without a mutant. The table names who
caught each; a mutant that survives is an error, unless EQUIVALENT says why nothing changes.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "src/cuda/kernels"
TESTS = {
    "elements.h": [("test_skinny.cpp", "*"), ("test_w8a16.cpp", "*"), ("test_gemm.cpp", "*")],
    "quantize_rows.h": [("test_quantize_rows.cpp", "*"), ("test_skinny.cpp", "*")],
    "outlier_columns.h": [("test_gemm.cpp", "*"), ("entries.cpp", "CudaStateless*:-*Largest*")],
    "gemm.h": ("test_gemm.cpp", "*"),
    "epilogue.h": [("test_gemm.cpp", "*"), ("test_gemm_wgmma.cpp", "*"), ("entries.cpp", "CudaLayer*")],
    "finish_products.h": ("test_gemm.cpp", "*FinishesSums*"),
    "gemm_wgmma.h": ("test_gemm_wgmma.cpp", "*"),
    "skinny.h": ("test_skinny.cpp", "*"),
    "weight_stream.h": [("test_skinny.cpp", "*"), ("test_w8a16.cpp", "*Skinny*")],
    "backward.h": ("test_backward.cpp", "*"),
    "halves.h": [("test_w8a16.cpp", "*"), ("test_backward_wgmma.cpp", "*")],
    "w8a16.h": ("test_w8a16.cpp", "*"),
    "w8a16_skinny.h": ("test_w8a16.cpp", "*Skinny*"),
    "w8a16_gemm.h": ("test_w8a16.cpp", "*Gemm*"),
    "w8a16_wgmma.h": [("test_w8a16_wgmma.cpp", "*"), ("test_backward_wgmma.cpp", "*")],
    "results.h": [("test_gemm.cpp", "*"), ("test_backward.cpp", "*")],
    "kept_columns.h": ("entries.cpp", "CudaLayer*"),
    "shapes.h": [("test_gemm.cpp", "*"), ("test_skinny.cpp", "*"), ("test_gemm_wgmma.cpp", "*")],
    "stateless.h": [
        ("entries.cpp", "CudaStateless*:-*Largest*:*QuantizeRows*"),
        ("entries.cpp", "CudaStateless.QuantizeRows*"),
    ],
}
# What kernels share.
OF_ALL = ("elements.h", "halves.h", "outlier_columns.h", "results.h", "kept_columns.h", "shapes.h", "weight_stream.h")
# rule -> (expression, what takes its place)
RULES = {
    "no barrier": (r"\bblock_barrier\(\);", ";"),
    "no wait": (r"\bptx::wait_copies<[^>]*>\(\);", ";"),
    "a wait for one stage too few": (r"kStages - 2>", "kStages - 1>"),
    "one row, column or k too many": (
        r"(?<=[\w)] )<(?= (?:p_?\.(?:m|n|k|rows)|m_|k_|left_of_\w+|rows_of_w_|rows_|rows|words|columns_?\.count|count)\b)",
        "<=",
    ),
    "one too few": (r"(?<=[\w)] )<(?= (?:p_?\.(?:m|n|k|rows)|m_|k_|rows_of_w_|rows_|columns_?\.count)\b)", "+ 1 <"),
    "codes beyond K": (r"valid_codes\(left\)", "kCodeChunk"),
    "chunks beyond K": (r" && left > 0 \? kCodeChunk", " ? kCodeChunk"),
    "a row of results more": (r"(exchange(?:<kApart>)?)\(p_\.m - row_,", r"\1(p_.m - row_ + 1,"),
    "a chunk in the place of another": (r"store_shared\(stage \+ swizzled\(i / 4, i % 4\)", "store_shared(stage + i * 16u"),
    "weights in the place of others": (r"stage \+ w_at\((i / \w+), (i % \w+)\)", r"stage + w_at(\1, \2 ^ \1 % 2)"),
    "columns in the place of others": (
        r"store_shared\(swizzled\(row, chunk\)",
        "store_shared(static_cast<uint32_t>(row * 64 + chunk * 16)",
    ),
    "the other sums of floats": (r"pair \* 2 \+ e % 2\]\[r \* 2 \+ e / 2", "pair * 2 + e / 2][r * 2 + e % 2"),
    "the first chunk of weights": (r"w_at\(n, col / kCodeChunk\)", "w_at(n, 0)"),
    "a code twice": (r"code_at\(codes, 3\)", "code_at(codes, 2)"),
    "four codes twice": (r"code_at\((lows|highs)\[t \+ e / 4\]", r"code_at(\1[t]"),
    "sums of all lanes": (r"if \(m % 4 != q\) continue;", ""),
    "an outlier column's float for its neighbour's": (r"fma\(x, w\[j\]\[1\]", "fma(x, w[j][0]"),
    "no room for the list": (r"return list > kStagesBytes \? list : kStagesBytes;", "return kStagesBytes;"),
    "no room for sums": (
        r"columns_at\(int rows\) \{ return 2 \* rows \* kRowsOfW \* 4;",
        "columns_at(int rows) { return rows * kRowsOfW * 4;",
    ),
    "no room for how many were gathered": (r"2 \* kGathered \* 4 \+ 4;", "2 * kGathered * 4;"),
    "elements beyond a row": (r"if \(i \+ e < k\)", "if (i + e <= k)"),
    "a chunk beyond a row": (r"i \+ (?:a \* step \+ )?(?:kChunk|kWords \* kPerWord) <= k\b", "i < k"),
    "results beyond a tile": (r"row >= rows \|\| col >= cols", "row > rows || col >= cols"),
    "neighbours for halves of a row": (r"kNext = kApart \? Tile::kN / 2 : 4", "kNext = 4"),
    "results of a warp's first tile": (r"\bat\(0, beside\)", "0"),
    "another half of a fragment": (r"\bmatrix % 2\b", "matrix / 2"),
    "fragments swapped": (r"two\[0\], b\[j\]\[1\] = two\[1\]", "two[1], b[j][1] = two[0]"),
    "operands of one k swapped": (r"\{x\.x, x\.y\}", "{x.y, x.x}"),
    "rows of an operand swapped": (r"low\.x, high\.x, low\.y, high\.y", "low.x, low.y, high.x, high.y"),
    "stored without the swizzle": (
        r"swizzled\((\w+)\.row, \1\.column\)",
        r"static_cast<uint32_t>(\1.row * 64 + \1.column * 16)",
    ),
    "held registers in another order": (r"held\[kChunksM \+ c\] =", "held[kChunksM + (c ^ 1)] ="),
    "no test of an outlier": (r"is_outlier\(magnitude\([^)]*\), p?_?\.?limit\)", "false"),
    "columns are not subtracted": (
        r"if \(p_\.scope == OutlierScope::kColumns[^;]*?\) (?:subtract_columns|for_each_group)\([^;]*;",
        ";",
    ),
    "columns are not passed over": (r"if \(passes_over_\)", "if (false)"),
    "columns of the first step": (r"step \* \(Tile::kK / 8\)", "0"),
    "columns of the other half": (r"\(stage, 1, over\.y\)", "(stage, 1, over.x)"),
    "columns of the other 16": (r"over >> 16 >> lane", "over >> lane"),
    "columns of another chunk": (r"half \* 2 \+ 1, over >> 16", "half * 2 + 1, over"),
    "columns of another word": (r"other_bytes\(over >> 8\)", "other_bytes(over >> 4)"),
    "passed over and subtracted": (r" && !\(kDone == Columns::kPassedOver && passes_over\(\)\)", ""),
    "no list": (r"kDone == Columns::kNone \|\| ", ""),
    "no list where there is no room before": (r"kDone == Columns::kNone \|\| !finds_first\(\)", "kDone == Columns::kNone"),
    "gathered columns stay": (r"if \(kGathered && gathered\.there > 0\) multiply_s8[^;]*;", ";"),
    "gathered columns twice": (r"(subtract_columns|add_columns)\(columns, gathered\.there\)", r"\1(columns, 0)"),
    "no list of more than were gathered": (r"!kGathered \|\| gathered\.count > gathered\.there", "!kGathered"),
    "fp16 for bf16": (r"== (Dtype::kF16 \? multiply_halves<true>\(kStage)", r"!= \1"),
    "no meeting": (r"\bmeet\(\);", ";"),
    "one warp's columns": (r"const int thread = warp \* kWarp \+ lane_index\(\)", "const int thread = lane_index()"),
    "columns behind the first": (r"bits != 0 && rank < Tile::kGathered", "bits != 0"),
    "kept columns among the gathered": (r"column >= 0 && is_kept\(p_, column\) \? -1 : column", "column"),
    "gathered codes of A as they are": (r"code\[e\] = \(0 - code\[e\]\) & 0xffu;", ";"),
    "the first eighth of codes twice": (r"codes_stride\), list, i % 2", "codes_stride), list, 0"),
    "the first eighth of halves twice": (r"at\(2 \+ eighth\)", "at(2)"),
    "codes behind the gathered": (r"store_shared\(at\(1\)[^;]*;", ";"),
    "a byte of no column": (r"0x00204081", "0x00204080"),
    "columns of the first lane alone": (r" \|\| mine != below", ""),
    "the first chunk of a bitmap": (r"\* words\) \+ quad\)", "* words) + 0)"),
    "columns beyond the list": (r"columns\[e\] < 0 \? 0 : v\[e\]", "v[e]"),
    "outlier columns of one row": (r"(?<=return x_of\(kRows\) \+ static_cast<uint32_t>\()m \*", "0 *"),
    "columns of the first group alone": (r"bring_columns\(first\);", "bring_columns(0);"),
    "an outlier column's code of another row": (r"(?<=p_\.w \+ )n(?= \* p_\.w_stride \+ column_)", "col"),
    "codes in halves": (r"0x1\.8p23f", "0x1.8p22f"),
    "another byte of a code": (r"byte_permute\(a, b, 0x0040\)", "byte_permute(a, b, 0x0051)"),
    "tiny rows as others": (r"stat >= 0x1p-120f", "stat > 0.0f"),
    "outliers in absmax": (r"!outlier && bits", "bits"),
    "half of a warp's maximum": (r"mask = kWarp / 2", "mask = kWarp / 4"),
    "half of a warp's sum": (r"by < kWarp; by \*= 2", "by < kWarp / 2; by *= 2"),
    "even for odd bytes": (r"odd \? 0x4341 : 0x4240", "odd ? 0x4240 : 0x4341"),
    "tiles of columns swapped": (
        r"bits_of\(even\[r \* 2\]\), bits_of\(odd\[r \* 2\]\)",
        "bits_of(odd[r * 2]), bits_of(even[r * 2])",
    ),
    "another bias": (r"0x64806480", "0x64806481"),
    "another term": (r"(bf16_term\([^;]*?), term\)", r"\1, 0)"),
    "the first term alone": (r"for \(; term > 0; --term\)", "for (; false;)"),
    "the first chunk again": (r"bits\[a\]\[w\] = chunks\.bits\[a \+ 1\]\[w\]", "bits[a][w] = chunks.bits[a][w]"),
    "no bias": (r"value\[e\] \+= bias\[e\];", ";"),
    "a sign": (r"\(0 - code\) & 0xffu", "code"),
    "rank of another word": (r"low \* 32 \+ lowest_bit", "low * 32 + 1 + lowest_bit"),
    "columns beyond those found": (r"t < parts\[0\] && !whole", "!whole"),
    "columns that nobody found stay": (r"if \(lane_index\(\) < kListed && [^;]*;", ";"),
    "no fence": (r"\bdevice_fence\(\);", ";"),
    "the counter stays": (r"if \(before \+ 1 == [^;]*;", ";"),
    "a split's sums twice": (r"if \(s == split\) continue;", ""),
    "another split": (r"block_index\(\) % p_\.splits \* share", "0"),
    "counters are not cleared": (r"store\(p\.counters \+ i, 0u\);", ";"),
    "kept columns twice": (r"return p\.kept_count > 0 && \(load", "return false && (load"),
    "kept columns that hold no outlier": (r" && !holds_column\(bitmap, k\)", " && false"),
    "another kept column": (r"p\.kept_weights \+ t \* p", "p.kept_weights + 0 * p"),
    "one code or element too many": (r"if \((col \+ e) < (p\.to_cols)\)", r"if (\1 <= \2)"),
    "codes beyond a row": (r"valid_codes\(p\.cols - col\)", "kCodeChunk"),
    "elements of another row": (r"row \* p\.(?:stride|x_stride|y_stride|codes_stride|to_stride|from_stride)", "0"),
    "counts of another column": (r"p\.counts \+ first \+", "p.counts +"),
    "rows of one block": (r"block_index\(\) / groups \* kWarps \+ ", ""),
    "counts of warps that are not over": (r"if \(counts\[e\] != 0\) atomic_add", "if (e > 0) atomic_add"),
    "columns of any number": (r"if \(column >= 0 && column < p\.k\) ", ""),
    "a list from one block": (
        r"columns\.merge\(p\.found, p\.bitmaps, p\.found_blocks,",
        "columns.merge(p.found, p.bitmaps, 1,",
    ),
    "no wait for an mbarrier": (r"\bptx::wait_barrier\([^;]*;", ";"),
    "another parity": (r"parity\((step[^)]*)\)\)", r"parity(\1) ^ 1u)"),
    "no wait for products": (r"\bptx::wait_products<\d>\(\);", ";"),
    "a wait for one group too few": (r"wait_products<1>", "wait_products<2>"),
    "no fence of products": (r"\bptx::fence_products\([^)]*\);", ";"),
    "no group of products": (r"\bptx::commit_products\(\);", ";"),
    "no proxy fence": (r"\bptx::proxy_fence\(\);", ";"),
    "the other parity": (r"\bparity \^ 1\b", "parity"),
    "no arrival": (r"if \((?:step > 0 && )?lane_index\(\) == 0\) ptx::arrive[^;]*;", ";"),
    "an arrival before the others": (r"\bwarp_barrier\(\);(?=[^;]*\n\s*if \(lane_index\(\) == 0\) ptx::arrive)", ";"),
    "another stage is given back": (r"ptx::arrive\(empty\(step - 1\)\)", "ptx::arrive(empty(step))"),
    "this stage is given back": (r"empty\(before\)", "empty(place.stage)"),
    "one arrival fewer": (r"\(empty\(s\), (kWarps[^)]*)\)", r"(empty(s), \1 - 1)"),
    "no arrival of ratios": (r"kGradient \? 2 : 1", "1"),
    "other bytes are expected": (r"\((full\(step\)|barrier), Tile::kStageBytes\)", r"(\1, Tile::kStageBytes - 16)"),
    "rows of another tile": (r"static_cast<int>\((?:row_|col_)\), (full|barrier)", r"0, \1"),
    "columns of another tile": (r"col = static_cast<int>\(col_\)", "col = 0"),
    "one swizzle for the other": (r"kRow == 64 \? n / 2 : n", "kRow == 64 ? n : n / 2"),
    "codes without the swizzle": (r"slice \^ g % 4", "slice"),
    "a ratio of 16 bits": (r"fma_halves<kF16>\(halves, ratio\.y, 0\)", "0"),
    "one ratio for two": (r"codes\.ratios\[i / 2\]", "codes.ratios[0]"),
    "columns of a pair swapped": (r"i % 2 == 0 \? 0x0400 : 0x0501", "i % 2 == 0 ? 0x0501 : 0x0400"),
    "half of the sum": (r"low \+= float_of\(others\.x\), ", ""),
    "the first of the sum": (r"slice \* kSlice \* 2\b", "0"),
    "a stage too few": (r"2 \* kEvery - 1\)", "kEvery - 1)"),
    "another warpgroup's rows": (r"warp_index\(\) / kWarpsOfGroup \* 64", "0"),
    "another k of an operand": (r"\b([ab]) \+ k\b", r"\1"),
    "leaves as if it stayed": (r"return leave_block\(\);", "return;"),
    "another sign": (r"0x00800080, (0x(?:4300|6400))", r"0x00800000, \1"),
    "nothing is left of a term": (r"x - float_of\(bits_of\(x\) & 0xffff0000u\)", "0.0f"),
    "Inf less Inf": (r"magnitude\(x\) == kInfBits \? 0\.0f : ", ""),
    "kept floats stay": (r"if \(kept == 0\) return;", "return;"),
    "kept halves stay": (r"if \(kept != 0\) \{", "if (false) {"),
    "halves of another order": (r"0x4140", "0x4041"),
    "a chunk in its own order": (r"byte_permute\(w\.x, w\.z, 0x5410\)", "w.x"),
    "one half of the rows of W": (r"\*high = low \+ 8 \* p_\.w_stride", "*high = low"),
    "no last chunk": (r"if \(last && whole_k_ < k_\)", "if (false)"),
    "the last chunk of another lane": (r"s \* kStride == until", "s == 0"),
    "the same place for each 16 rows": (r"other_ = !other_", "other_ = false"),
    "sums that stay": (r"if \(row\(r\) < m_\) store_shared<int32_t>\(sum_at\(row\(r\), n\), 0\);", ";"),
    "columns' codes of 16 rows before": (r"if \(kEarly\) load_column_codes\(next_col, codes\);", ";"),
    "sums of one warp": (r"warp < Shape::kWarps; \+\+warp", "warp < 1; ++warp"),
    "sums of other lanes": (r"shuffle_xor\(bits_of\(sum\), 2\)", "shuffle_xor(bits_of(sum), 1)"),
    "the other four floats": (r"upper \? v\[4\] : v\[0\]", "upper ? v[0] : v[4]"),
    "sums of another row": (r"p_\.partials \+ row \* p_\.n", "p_.partials + row_ * p_.n"),
    "sums beyond a row": (r"\|\| col >= p_\.n\) continue", ") continue"),
    "one sum twice": (r"static_cast<int32_t>\(two\.y\)", "static_cast<int32_t>(two.x)"),
    "neighbours that are none": (r"columns\[kCount - 1\] - columns\[0\] == kCount - 1", "true"),
    "neighbours at any place": (r"neighbours && [^{]* == 0\)", "neighbours)"),
    "kept columns in the product": (r"!kCodes && column >= 0 && is_kept\(p_, column\)", "false"),
    "ratios of another stage": (r"store_ratio\(step \+ 1", "store_ratio(step"),
    "words of a lane alike": (r"before \+= static_cast<uint32_t>\(count_bits\(bits\)\);", ";"),
    "the first rows of W again": (r"begin_rows\(next_col\)", "begin_rows(col)"),
    "no row's scale": (r"load\(p_\.row_stats \+ row\)", "load(p_.row_stats)"),
}
# (file, rule, a part of the line) -> why it changes nothing
ZEROS = "what is read there counts as zero"
EQUIVALENT = {
    ("outlier_columns.h", "one row, column or k too many", "const int last"): "both are the same there",
    ("epilogue.h", "one row, column or k too many", "first < columns.count"): ZEROS,
    ("skinny.h", "one row, column or k too many", "for (int64_t col"): "nothing of it is stored",
    ("w8a16_skinny.h", "one row, column or k too many", "for (; col"): "nothing of it is stored",
    ("weight_stream.h", "one row, column or k too many", "load_rest"): "there is no rest to load",
    ("weight_stream.h", "one row, column or k too many", "multiply("): ZEROS,
    ("weight_stream.h", "one row, column or k too many", "while"): "of a round without steps",
    ("skinny.h", "one row, column or k too many", "first < columns_.count"): ZEROS,
    ("skinny.h", "one too few", "chunks.template load"): "what is not loaded ahead is loaded later",
    ("skinny.h", "one row, column or k too many", "atomic_add_shared(sum_at"): "the sums have rows for whole eights",
}


def mutants():
    texts = {file: (KERNELS / file).read_text() for file in TESTS}
    for rule, (expression, _) in RULES.items():
        if not any(re.search(expression, text) for text in texts.values()):
            sys.exit(f"rule {rule!r} finds nothing to break: {expression}")
    for file, text in texts.items():
        for rule, (expression, replacement) in RULES.items():
            for match in re.finditer(expression, text):
                start = text.rfind("\n", 0, match.start()) + 1
                line = text[start : text.find("\n", match.start())]
                if line.lstrip().startswith("//"):
                    continue
                number = text.count("\n", 0, start) + 1
                yield (
                    file,
                    rule,
                    number,
                    line.strip(),
                    text[: match.start()] + match.expand(replacement) + text[match.end() :],
                )


def run(compiler, build, scratch, mutant):
    """What caught it: a fault's kind, or "values" of a test; None if nothing did; one of NOT_JUDGED."""
    file, rule, number, line, text = mutant
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        shutil.copytree(KERNELS, folder / "cuda/kernels")
        (folder / "cuda/kernels" / file).write_text(text)
        return next(filter(None, (run_test(compiler, build, folder, *test) for test in tests_of(file))), None)
    finally:
        shutil.rmtree(folder)


def tests_of(file):
    return TESTS[file] if isinstance(TESTS[file], list) else [TESTS[file]]


def check_intact(compiler, build, scratch, pool, files):
    """What runs mutants must pass without one: else all would be caught by it."""
    tests = sorted({test for file in files for test in tests_of(file)})
    folders = [Path(tempfile.mkdtemp(dir=scratch)) for _ in tests]
    for folder in folders:
        shutil.copytree(KERNELS, folder / "cuda/kernels")
    verdicts = pool.map(lambda folder, test: run_test(compiler, build, folder, *test), folders, tests)
    failed = [f"{source} {filters}: {verdict}" for (source, filters), verdict in zip(tests, verdicts) if verdict]
    if failed:
        sys.exit("without a mutant failed\n" + "\n".join(failed))


NOT_JUDGED = ("does not compile", "crash", "time limit")  # what is no verdict on a mutant
ARCHITECTURES = ("Sm80", "Sm70")  # all code but Sm75's mma; most is in the first
OPTIONS = ["-std=c++20", "-Og", "-w", "-ffp-contract=off"]
OPTIONS += [f'-DINT8Q_{name}_DIR="{ROOT}"' for name in ("SOURCE", "BINARY")]
INCLUDES = [f"-I{path}" for path in (ROOT / "src", ROOT / "tests", ROOT / "include", "/usr/include/eigen3")]


def compile_prelude(compiler, scratch):
    """What all tests include and no mutation touches, compiled once."""
    prelude = Path(scratch) / "prelude.h"
    headers = ("gtest/gtest.h", "support/kernel_cases.h", "support/oracle.h")
    prelude.write_text("".join(f"#include <{header}>\n" for header in headers))
    command = [compiler, *OPTIONS, *INCLUDES, "-x", "c++-header", prelude, "-o", f"{prelude}.gch"]
    subprocess.run(command, check=True)


def run_test(compiler, build, folder, source, tests):
    if source == "entries.cpp":
        return run_as_libcuda(compiler, build, folder, tests)
    typed = "Architectures" in (ROOT / "tests/cuda_emulation" / source).read_text()
    of_each = (run_on_emulator(compiler, build, folder, source, tests, arch) for arch in ARCHITECTURES[: 2 if typed else 1])
    return next(filter(None, of_each), None)


def run_on_emulator(compiler, build, folder, source, tests, architecture):
    libraries = [
        build / f"lib/lib{name}.a" for name in ("int8q_cuda_emulation", "int8q_test_support_objects", "int8q_testing")
    ]
    command = [compiler, *OPTIONS, "-include", folder.parent / "prelude.h", f"-I{folder}", *INCLUDES]
    command += [f"-DINT8Q_EMULATED_ARCHITECTURES={architecture}", ROOT / "tests/cuda_emulation" / source, *libraries]
    command += ["-lboost_context", "-lgtest", "-lgtest_main", "-lpthread", "-ldl", "-o", folder / "test"]
    if subprocess.run(command, capture_output=True).returncode:
        return "does not compile"
    return catcher([folder / "test", f"--gtest_filter={tests}"])


def run_as_libcuda(compiler, build, folder, tests):
    """The mutant as the kernels of the stub's GPU."""
    includes = [f"-I{path}" for path in (folder, ROOT / "src", ROOT / "tests", ROOT / "include")]
    command = [compiler, "-std=c++20", "-Og", "-w", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-shared"]
    command += ["-DINT8Q_ARCH=80", "-DINT8Q_SUFFIX=sm80", *includes, ROOT / "tests/cuda_emulation/entries.cpp"]
    objects = build / "CMakeFiles/int8q_libcuda.dir/tests/cuda_emulation"
    command += [objects / f"{name}.cpp.o" for name in ("libcuda", "emulator", "memory", "sm90")]
    if subprocess.run([*command, "-lboost_context", "-o", folder / "libcuda.so.1"], capture_output=True).returncode:
        return "does not compile"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "INT8Q_STUB_GPUS": "8.0"}
    return catcher([build / "bin/test_cuda", f"--gtest_filter={tests}"], environment)


def catcher(command, environment=None):
    """What a test's first failure was: None if there was none."""
    command = [*command, "--gtest_break_on_failure"]
    try:
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "time limit"
    if result.returncode == 0:
        return None
    fault = re.search(r"C\+\+ exception with description \"(.*?)\" thrown", result.stdout)
    fault = fault or re.search(r"libcuda stub: (.*)", result.stderr)
    if fault is None:
        return "values" if result.returncode == -signal.SIGTRAP else "crash"
    names = {
        "waits at": "divergence",
        "before its copy": "missing wait",
        "nobody wrote": "uninitialized",
        "is being": "race",
        "touches": "bounds",
        "leaves with": "unfinished copies",
        "nobody can go on": "deadlock",
        "on its way": "missing wait",
        "on their way": "missing wait",
        "arrives where": "missing wait",
        "without a": "missing wait",
    }
    return next((name for words, name in names.items() if words in fault[1]), "fault")


SEVERAL = ("stateless.h",)  # kernels of a file, a function each
FUNCTION = re.compile(r"^INT8Q_DEVICE void (\w+)\(", re.M)


def kernel_of(mutant):
    """Its file, or file and function."""
    file, _, number, _, _ = mutant
    if file not in SEVERAL:
        return file
    before = "\n".join((KERNELS / file).read_text().splitlines()[:number])
    return f"{file} {FUNCTION.findall(before)[-1]}"


def kernels():
    for file in TESTS:
        if file in SEVERAL:
            yield from (f"{file} {name}" for name in FUNCTION.findall((KERNELS / file).read_text()))
        elif file not in OF_ALL:
            yield file


def fits(key, mutant):
    """Whether this key of EQUIVALENT names it."""
    file, rule, _, line, _ = mutant
    return key[:2] == (file, rule) and key[2] in line


def equivalent(mutant):
    """Why it changes nothing, or None."""
    return next((why for key, why in EQUIVALENT.items() if fits(key, mutant)), None)


def main():
    compiler, build = sys.argv[1], Path(sys.argv[2])
    only = sys.argv[3] if len(sys.argv) > 3 else ""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what fails traps
    wanted = [mutant for mutant in mutants() if only in mutant[0]]
    caught, survivors, per_kernel = [], [], Counter()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        compile_prelude(compiler, scratch)
        check_intact(compiler, build, scratch, pool, {mutant[0] for mutant in wanted})
        judged = pool.map(lambda mutant: None if equivalent(mutant) else run(compiler, build, scratch, mutant), wanted)
        for mutant, caught_by in zip(wanted, judged):
            file, rule, number, line, _ = mutant
            reason = equivalent(mutant)
            verdict = caught_by or (f"equivalent: {reason}" if reason else "SURVIVED")
            print(f"{file}:{number}: {rule}: {verdict}    {line}", flush=True)
            if caught_by and caught_by not in NOT_JUDGED:
                caught.append(caught_by)
                per_kernel[kernel_of(mutant)] += 1
            elif not reason:
                survivors.append(mutant)
    print(f"{len(caught)} of {len(wanted)} mutants caught: {dict(Counter(caught))}; by kernel: {dict(per_kernel)}")
    unknown = [key for key in EQUIVALENT if only in key[0] and not any(fits(key, m) for m in wanted)]
    few = [name for name in kernels() if only in name and per_kernel[name] < 3]
    if survivors or few or unknown:
        sys.exit(
            f"{len(survivors)} survived or were not judged; too few mutants of: {few or 'none'}; "
            f"equivalent and no mutant: {unknown or 'none'}"
        )


main()
