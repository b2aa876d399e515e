# SPDX-License-Identifier: Apache-2.0
"""The part of the ctypes binding that is the same whatever int8q.h says; generate.py appends what it says."""

import ctypes
import os
import sys
from ctypes import c_char, c_char_p, c_double, c_float, c_int8, c_int16, c_int32, c_int64  # noqa: F401
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64, c_void_p  # noqa: F401


class AbiError(RuntimeError):
    """The native library cannot serve this package."""


class LibraryNotFound(AbiError):
    """The library could not be loaded."""


class AbiMismatch(AbiError):
    """The library declares something else than this binding under the same level."""


class NeedsNewer(AbiError):
    """The loaded library is older than the function that was called."""


def candidate():
    """The one library to load: INT8Q_LIBRARY if set, else the first that lies in a folder of this package, else what the
    system's loader finds. A library that was chosen and does not load is an error, never a reason to take the next."""
    beside = (os.path.join(folder, SONAME) for folder in _folders())
    return os.environ.get("INT8Q_LIBRARY") or next(filter(os.path.exists, beside), SONAME)


def _folders():
    """Those of the package, in its order: of an editable install the one of its build, then the one of its sources."""
    own = os.path.dirname(os.path.abspath(__file__))
    return list(getattr(sys.modules.get(__name__.rpartition(".")[0]), "__path__", [own]))


class Library:
    """One loaded library. Its functions are attributes, bound at their first use."""

    def __init__(self, path=None):
        self._chosen = not path and bool(os.environ.get("INT8Q_LIBRARY"))
        self.path, self._handle = self._load(path or candidate())
        version = self._bind("int8q_abi_version")()
        self.level = (version >> 16, version & 0xFFFF)
        self._check_level()

    def _mend(self):
        """The command that mends it if it cannot serve."""
        if self._chosen:
            return "unset INT8Q_LIBRARY"
        try:
            from ._rules import reinstall
        except ImportError:  # this file was loaded without its package
            return f"{sys.executable} -m pip install --force-reinstall --no-deps YOUR_SOURCES_OF_INT8Q"
        return reinstall()

    def _check_level(self):
        if self.level[0] != LEVEL[0]:
            raise AbiMismatch(
                f"this package needs ABI {LEVEL[0]}.x, loaded {_dotted(self.level)} at {self.path}. Run: {self._mend()}"
            )
        level = min(self.level, LEVEL)
        theirs = self._bind("int8q_abi_hash")(level[0] << 16 | level[1])
        theirs = theirs.decode() if theirs else "none"
        if theirs != HASHES[level]:
            raise AbiMismatch(
                f"this package needs ABI {_dotted(level)} with hash {HASHES[level][:16]}, loaded one with hash "
                f"{theirs[:16]} at {self.path}: another declaration of the same level. Run: {self._mend()}"
            )

    def _bind(self, name):
        level, result, arguments = PROTOTYPES[name]
        try:
            function = getattr(self._handle, name)
        except AttributeError:
            if not hasattr(self, "level"):
                problem = f"this package needs ABI {LEVEL[0]}.x, loaded no int8q library at {self.path}: it has no {name}"
                raise AbiMismatch(f"{problem}. Run: {self._mend()}") from None
            problem = f"{name} needs ABI {_dotted(level)}, loaded {_dotted(self.level)} at {self.path}"
            if self.level >= level:
                raise AbiMismatch(f"{problem}, which lacks it all the same. Run: {self._mend()}") from None
            raise NeedsNewer(f"{problem}. Run: {self._mend()}") from None
        function.restype = result
        function.argtypes = arguments
        return function

    def _load(self, path):
        try:
            handle = ctypes.CDLL(path)
        except OSError as error:
            raise LibraryNotFound(
                f"this package needs {SONAME} with ABI {LEVEL[0]}.x; {path} does not load: {error}. Run: {self._mend()}"
            ) from None
        return _origin(handle) or path, handle

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
