# SPDX-License-Identifier: Apache-2.0
"""Reads int8q.h: its functions, structs, callbacks and constants as they stand at one ABI level.

A level is what the preprocessor leaves with INT8Q_TARGET_LEVEL set to it, so the header needs no annotation beyond the
`#if INT8Q_TARGET_LEVEL >= ...` that hides newer declarations from C callers too.
"""

import hashlib
import json
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from pycparser import c_ast, c_parser

# LP64 size, which is also the alignment; and the ctypes name.
SCALARS = {
    "int8_t": (1, "c_int8"),
    "uint8_t": (1, "c_uint8"),
    "int16_t": (2, "c_int16"),
    "uint16_t": (2, "c_uint16"),
    "int32_t": (4, "c_int32"),
    "uint32_t": (4, "c_uint32"),
    "int64_t": (8, "c_int64"),
    "uint64_t": (8, "c_uint64"),
    "float": (4, "c_float"),
    "double": (8, "c_double"),
}
POINTER_SIZE = 8
FAKE_STDINT = "".join(
    f"typedef {'unsigned ' if name.startswith('u') else 'signed '}"
    f"{({1: 'char', 2: 'short', 4: 'int', 8: 'long long'})[size]} {name};\n"
    for name, (size, _) in SCALARS.items()
    if name.endswith("_t")
)


class HeaderError(Exception):
    """int8q.h breaks a rule of its own ABI."""


@dataclass
class Value:
    """A parameter, a struct's member or a return value."""

    name: str
    c: str
    ctypes: str
    size: int
    offset: int = 0


@dataclass
class Function:
    result: Value
    parameters: list


@dataclass
class Struct:
    members: list
    size: int


@dataclass
class Declarations:
    functions: dict = field(default_factory=dict)
    structs: dict = field(default_factory=dict)
    opaque: list = field(default_factory=list)
    callbacks: dict = field(default_factory=dict)
    constants: dict = field(default_factory=dict)

    def normalized(self):
        """What a binding depends on, without parameter names and comments."""
        return {
            "callbacks": {n: [f.result.c, [p.c for p in f.parameters]] for n, f in self.callbacks.items()},
            "constants": self.constants,
            "functions": {n: [f.result.c, [p.c for p in f.parameters]] for n, f in self.functions.items()},
            "opaque": sorted(self.opaque),
            "structs": {n: [s.size, [[m.name, m.c, m.offset, m.size] for m in s.members]] for n, s in self.structs.items()},
        }

    def hash(self):
        text = json.dumps(self.normalized(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def preprocess(header, level):
    with tempfile.TemporaryDirectory() as fake:
        (Path(fake) / "stdint.h").write_text(FAKE_STDINT)
        command = ["gcc", "-std=c99", "-E", "-P", "-nostdinc", "-I", fake, f"-DINT8Q_TARGET_LEVEL={level:#x}", str(header)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def newest_level(header):
    text = Path(header).read_text()
    major, minor = (int(re.search(rf"^#define INT8Q_ABI_{part} (\d+)$", text, re.M)[1]) for part in ("MAJOR", "MINOR"))
    return major, minor


def read(header, level):
    declarations = Declarations()
    for node in c_parser.CParser().parse(preprocess(header, level), str(header)).ext:
        Reader(declarations).add(node)
    check_rules(declarations)
    check_comments(Path(header).read_text(), declarations)
    return declarations


class Reader:
    def __init__(self, declarations):
        self.all = declarations

    def add(self, node):
        if isinstance(node, c_ast.Typedef):
            self.add_typedef(node)
        elif isinstance(node.type, c_ast.FuncDecl):
            self.all.functions[node.name] = self.function(node.type)
        elif isinstance(node.type, c_ast.Enum):
            self.add_enum(node.type)
        else:
            raise HeaderError(f"{node.name or node.coord}: neither a function, a typedef nor an anonymous enum")

    def add_typedef(self, node):
        kind = node.type
        if node.name in SCALARS:
            return
        if isinstance(kind, c_ast.PtrDecl) and isinstance(kind.type, c_ast.FuncDecl):
            self.all.callbacks[node.name] = self.function(kind.type)
        elif isinstance(kind.type, c_ast.Struct) and kind.type.name == node.name:
            if kind.type.decls is None:
                self.all.opaque.append(node.name)
            else:
                self.add_struct(node.name, kind.type.decls)
        else:
            raise HeaderError(f"typedef {node.name}: neither `struct {node.name}` nor a function pointer")

    def add_struct(self, name, nodes):
        members, end = [], 0
        for node in nodes:
            member = self.value(node.name, node.type)
            member.offset = -(-end // member.size) * member.size
            if member.offset != end:
                raise HeaderError(f"struct {name}: {member.offset - end} bytes of implicit padding before {member.name}")
            end = member.offset + member.size
            members.append(member)
        self.all.structs[name] = Struct(members, end)

    def add_enum(self, node):
        if node.name is not None:
            raise HeaderError(f"enum {node.name}: named enums have no fixed size; use an anonymous one")
        for item in node.values.enumerators:
            if item.value is None:
                raise HeaderError(f"{item.name}: give every constant its number")
            self.all.constants[item.name] = self.number(item.value)

    def number(self, node):
        if isinstance(node, c_ast.Constant):
            return int(node.value.rstrip("uUlL"), 0)
        if isinstance(node, c_ast.ID):
            return self.all.constants[node.name]
        if isinstance(node, c_ast.UnaryOp) and node.op == "-":
            return -self.number(node.expr)
        if isinstance(node, c_ast.BinaryOp) and node.op in ("|", "<<", "+"):
            left, right = self.number(node.left), self.number(node.right)
            return {"|": left | right, "<<": left << right, "+": left + right}[node.op]
        raise HeaderError(f"{node.coord}: a constant may use numbers, -, |, << and + only")

    def function(self, node):
        parameters = [self.value(p.name, p.type) for p in node.args.params]
        if len(parameters) == 1 and parameters[0].c == "void":
            parameters = []
        return Function(self.value("", node.type), parameters)

    def value(self, name, node):
        if isinstance(node, c_ast.PtrDecl):
            c, ctypes = self.pointer(node)
            return Value(name, c, ctypes, POINTER_SIZE)
        if not isinstance(node, c_ast.TypeDecl):
            raise HeaderError(f"{name}: arrays are not allowed")
        type_name = named(node)
        if type_name in SCALARS:
            size, ctypes = SCALARS[type_name]
            return Value(name, type_name, ctypes, size)
        if type_name in self.all.callbacks:
            return Value(name, type_name, type_name, POINTER_SIZE)
        if type_name == "void":
            return Value(name, "void", "None", 0)
        raise HeaderError(f"{name}: {type_name} by value; only fixed-size numbers, pointers and callbacks are allowed")

    def pointer(self, node):
        target = node.type
        const = " const" if "const" in node.quals else ""
        if isinstance(target, c_ast.FuncDecl):
            f = self.function(target)
            arguments = ", ".join([f.result.ctypes] + [p.ctypes for p in f.parameters])
            return f"{f.result.c} (*)({', '.join(p.c for p in f.parameters)})", f"ctypes.CFUNCTYPE({arguments})"
        if isinstance(target, c_ast.PtrDecl):
            c, ctypes = self.pointer(target)
            return f"{c}*{const}", f"ctypes.POINTER({ctypes})"
        name = named(target)
        c = f"{'const ' if 'const' in target.quals else ''}{name}*{const}"
        if name == "void":
            return c, "c_void_p"
        if name == "char":
            return c, "c_char_p" if "const" in target.quals else "ctypes.POINTER(c_char)"
        if name in SCALARS:
            return c, f"ctypes.POINTER({SCALARS[name][1]})"
        if name in self.all.structs or name in self.all.opaque:
            return c, f"ctypes.POINTER({name})"
        raise HeaderError(f"{c}: not a type of this ABI")


def named(node):
    """The name of a TypeDecl's type: one typedef name, or float, double, char, void."""
    if isinstance(node.type, c_ast.Struct):
        return node.type.name
    return " ".join(node.type.names)


def check_rules(declarations):
    for name in [*declarations.functions, *declarations.structs, *declarations.opaque, *declarations.callbacks]:
        if not name.startswith("int8q_"):
            raise HeaderError(f"{name}: every name begins with int8q_")
    for name in declarations.constants:
        if not name.startswith("INT8Q_"):
            raise HeaderError(f"{name}: every constant begins with INT8Q_")
    for name, struct in declarations.structs.items():
        first = struct.members[0]
        if (first.name, first.c) != ("size", "uint32_t"):
            raise HeaderError(f"struct {name}: the first member is {first.c} {first.name}, not uint32_t size")
        if struct.size % 8 != 0:
            raise HeaderError(f"struct {name}: {struct.size} bytes, not a multiple of 8; add a reserved member")


# A comment (a group), a function's name, or an empty line, which ends what a comment speaks of.
COMMENTED = re.compile(r"/\*(.*?)\*/|^INT8Q_API [\w ]+\*? ?(int8q_\w+)\(|\n(?=\n)", re.S | re.M)


def check_comments(text, declarations):
    """Each function that returns a status says which, in its comment or in that of its section."""
    section = own = ""
    for comment, function in COMMENTED.findall(text):
        if comment.startswith(" ---"):
            section, own = comment, ""
        elif function:
            known = declarations.functions.get(function)
            if known and known.result.c == "int32_t" and "Returns " not in section + own:
                raise HeaderError(f'{function}: its comment lacks "Returns" and the statuses')
        else:
            own = comment
