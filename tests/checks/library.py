# SPDX-License-Identifier: Apache-2.0
"""library.py LIBRARY MANIFEST: the built library exports, needs and is what the ABI promises. Reads ELF of any machine."""

import json
import re
import subprocess
import sys

ALLOWED = re.compile(r"lib(c|m|pthread|dl|stdc\+\+|gcc_s)\.so\.\d+|ld-linux[\w-]*\.so\.\d+")
NEWEST_GLIBC = (2, 34)


def readelf(*arguments):
    return subprocess.run(["readelf", "-W", *arguments], check=True, capture_output=True, text=True).stdout


def symbols(library):
    """(name with version, defined?) of each dynamic symbol."""
    for line in readelf("--dyn-syms", library).splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[0][:-1].isdigit() and fields[4] != "LOCAL":
            yield fields[7], fields[6] != "UND"


def main(library, manifest_path):
    with open(manifest_path, encoding="utf-8") as file:
        manifest = json.load(file)
    dynamic = readelf("-d", library)
    problems = []

    functions = {name: "INT8Q_" + f["since"] for name, f in manifest["functions"].items()}
    nodes = sorted(set(functions.values()))
    # Each version node is itself listed, as an absolute symbol; some versions of readelf add "@@NODE" to it.
    exported = {name for name, defined in symbols(library) if defined}
    exported = {name.partition("@@")[0] if name.startswith("INT8Q_") else name for name in exported}
    expected = {f"{name}@@{node}" for name, node in functions.items()} | set(nodes)
    problems += [f"exports {name}, which the manifest lacks" for name in sorted(exported - expected)]
    problems += [f"does not export {name}" for name in sorted(expected - exported)]

    soname = re.search(r"\(SONAME\).*\[(.*)\]", dynamic)
    if not soname or soname[1] != "libint8q.so." + manifest["abi"].split(".")[0]:
        problems.append(f"SONAME is {soname and soname[1]}")
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    problems += [f"needs {name}" for name in needed if not ALLOWED.fullmatch(name)]
    for name, _ in symbols(library):
        glibc = re.search(r"@GLIBC_(\d+)\.(\d+)", name)
        if glibc and (int(glibc[1]), int(glibc[2])) > NEWEST_GLIBC:
            problems.append(f"needs {name}, newer than glibc 2.34")

    flags = " ".join(line for line in dynamic.splitlines() if "FLAGS" in line)
    problems += [f"is not linked with {flag}" for flag in ("NODELETE", "NOW", "SYMBOLIC") if flag not in dynamic]
    if "STATIC_TLS" in flags:
        problems.append("uses initial-exec thread-local storage, which makes a late dlopen fail")
    problems += [f"has {tag}" for tag in ("TEXTREL", "RPATH", "RUNPATH") if tag in dynamic]
    headers = readelf("-l", library)
    if not re.search(r"GNU_STACK.* RW +0x", headers):
        problems.append("asks for an executable stack")
    if "GNU_RELRO" not in headers:
        problems.append("has no RELRO segment")

    for problem in problems:
        print(f"{library} {problem}")
    if problems:
        sys.exit(1)
    print(f"{len(functions)} functions exported under {', '.join(nodes)}; needs {', '.join(needed)}")


main(*sys.argv[1:])
