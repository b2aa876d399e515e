# SPDX-License-Identifier: Apache-2.0
"""The part of the ctypes binding that is the same whatever int8q.h says; generate.py appends what it says."""

import ctypes
import os
from ctypes import c_char, c_char_p, c_double, c_float, c_int8, c_int16, c_int32, c_int64  # noqa: F401
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64, c_void_p  # noqa: F401


class AbiError(RuntimeError):
    """The native library cannot serve this package."""


class LibraryNotFound(AbiError):
    """No candidate could be loaded."""


class AbiMismatch(AbiError):
    """The library declares something else than this binding under the same level."""


class NeedsNewer(AbiError):
    """The loaded library is older than the function that was called."""


def candidates():
    """Where the library is looked for, first match wins: INT8Q_LIBRARY alone if set, else beside this package, then
    wherever the system's loader looks."""
    chosen = os.environ.get("INT8Q_LIBRARY")
    if chosen:
        return [chosen]
    return [os.path.join(os.path.dirname(os.path.abspath(__file__)), SONAME), SONAME]


class Library:
    """One loaded library. Its functions are attributes, bound at their first use."""

    def __init__(self, path=None):
        self.path, self._handle = _load([path] if path else candidates())
        version = self._bind("int8q_abi_version")()
        self.level = (version >> 16, version & 0xFFFF)
        self._check_level()

    def _check_level(self):
        if self.level[0] != LEVEL[0]:
            raise AbiMismatch(
                f"{self.path} has ABI {_dotted(self.level)}; this package needs {LEVEL[0]}.x. "
                f"Install a matching {SONAME}, or set INT8Q_LIBRARY to one."
            )
        level = min(self.level, LEVEL)
        theirs = self._bind("int8q_abi_hash")(level[0] << 16 | level[1])
        theirs = theirs.decode() if theirs else "none"
        if theirs != HASHES[level]:
            raise AbiMismatch(
                f"{self.path} declares ABI {_dotted(level)} otherwise than this package does "
                f"(hash {theirs[:16]}, expected {HASHES[level][:16]}). "
                "Install package and library of the same release, or set INT8Q_LIBRARY."
            )

    def _bind(self, name):
        level, result, arguments = PROTOTYPES[name]
        try:
            function = getattr(self._handle, name)
        except AttributeError:
            if not hasattr(self, "level"):
                raise AbiMismatch(f"{self.path} is no int8q library: it has no {name}") from None
            if self.level >= level:
                raise AbiMismatch(f"{self.path} says ABI {_dotted(self.level)} but has no {name}") from None
            raise NeedsNewer(f"{name} needs ABI {_dotted(level)}, loaded {_dotted(self.level)} at {self.path}") from None
        function.restype = result
        function.argtypes = arguments
        return function

    def __getattr__(self, name):
        if name not in PROTOTYPES:
            raise AttributeError(f"ABI {_dotted(LEVEL)} has no function {name}")
        function = self._bind(name)
        setattr(self, name, function)
        return function


_library = None


def library():
    """The library of this process, loaded at the first call."""
    global _library
    if _library is None:
        _library = Library()
    return _library


def _dotted(level):
    return f"{level[0]}.{level[1]}"


def _load(paths):
    reasons = []
    for path in paths:
        try:
            handle = ctypes.CDLL(path)
        except OSError as error:
            reasons.append(f"  {path}: {error}")
            continue
        return _origin(handle) or path, handle
    raise LibraryNotFound(
        "no int8q library could be loaded; tried\n" + "\n".join(reasons) + f"\nSet INT8Q_LIBRARY to the path of {SONAME}."
    )


class _DlInfo(ctypes.Structure):
    _fields_ = [
        ("dli_fname", c_char_p),
        ("dli_fbase", c_void_p),
        ("dli_sname", c_char_p),
        ("dli_saddr", c_void_p),
    ]


def _origin(handle):
    """The file that the loader took, asked through one of its functions."""
    try:
        address = ctypes.cast(handle.int8q_abi_version, c_void_p)
        dladdr = ctypes.CDLL(None).dladdr
    except AttributeError:
        return None
    dladdr.argtypes, dladdr.restype = [c_void_p, ctypes.POINTER(_DlInfo)], ctypes.c_int
    info = _DlInfo()
    return os.fsdecode(info.dli_fname) if dladdr(address, ctypes.byref(info)) else None
