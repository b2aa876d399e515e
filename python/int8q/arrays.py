# SPDX-License-Identifier: Apache-2.0
"""What goes in and out: dtypes, DLPack, and NumPy arrays as the C ABI's matrices."""

import ctypes
import math
from math import prod

import numpy as np

from . import _abi

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None


def _scalar_type(name, bits):
    return np.dtype(getattr(ml_dtypes, name) if ml_dtypes else [(name, bits)])


# Types that NumPy lacks: ml_dtypes' where that package is, else the bits in a structured type of one member.
bfloat16 = _scalar_type("bfloat16", "<u2")
float8_e4m3fn = _scalar_type("float8_e4m3fn", "u1")
float8_e5m2 = _scalar_type("float8_e5m2", "u1")

CODE_OF = {
    np.dtype(np.float32): _abi.INT8Q_F32,
    np.dtype(np.float16): _abi.INT8Q_F16,
    bfloat16: _abi.INT8Q_BF16,
    np.dtype(np.int8): _abi.INT8Q_S8,
    np.dtype(np.int32): _abi.INT8Q_S32,
    np.dtype(np.uint8): _abi.INT8Q_U8,
    np.dtype(np.float64): _abi.INT8Q_F64,
    np.dtype(np.int16): _abi.INT8Q_S16,
    np.dtype(np.uint16): _abi.INT8Q_U16,
    np.dtype(np.uint32): _abi.INT8Q_U32,
    np.dtype(np.int64): _abi.INT8Q_S64,
    np.dtype(np.uint64): _abi.INT8Q_U64,
    np.dtype(np.bool_): _abi.INT8Q_BOOL,
    float8_e4m3fn: _abi.INT8Q_F8_E4M3,
    float8_e5m2: _abi.INT8Q_F8_E5M2,
}
DTYPE_OF = {code: dtype for dtype, code in CODE_OF.items()}
FLOATS = (np.dtype(np.float32), np.dtype(np.float16), bfloat16)
S8, S32 = (np.dtype(np.int8),), (np.dtype(np.int32),)

_MATRIX_BYTES = ctypes.sizeof(_abi.int8q_matrix)


def float_dtype(dtype, name="dtype"):
    """float32, float16 or bfloat16 as a NumPy dtype, from anything that means one of them; else TypeError."""
    try:
        found = bfloat16 if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{name} is {dtype!r}; expected {dtype_names(FLOATS)}") from None
    _check_dtype(found, name, FLOATS)
    return found


def number(value, name, expected):
    """value as a float, from any number; text is a TypeError, what no float can hold a ValueError."""
    try:
        return math.ldexp(value, 0)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected {expected}") from None
    except OverflowError:
        raise ValueError(f"{name} is larger than a float can be; expected {expected}") from None


def as_array(value, name, writable=False):
    """value as a NumPy array: itself, a view of an object with __dlpack__ in host memory, or what np.asarray makes, which
    is a TypeError where it would be written to."""
    if type(value) is np.ndarray:
        return value
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        return _from_dlpack(value, name)
    if writable and not isinstance(value, np.ndarray):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a NumPy array, or one that exports DLPack")
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} makes no array: {error}") from error


def check_shape(array, name, shape):
    if array.shape != shape:
        raise ValueError(f"{name} has shape {tuple(array.shape)}; expected {shape}")


def _check_dtype(dtype, name, dtypes):
    if dtype not in dtypes:
        raise TypeError(f"{name} is {_dtype_name(dtype)}; expected {dtype_names(dtypes)}")


def dtype_names(dtypes):
    return " or ".join(map(_dtype_name, dtypes))


def _dtype_name(dtype):
    return dtype.names[0] if dtype.names else dtype.name if dtype.isnative else str(dtype)


def matrix(value, name, dtypes=FLOATS, writable=False):
    """An int8q_matrix over a two-dimensional array, which it keeps alive.

    Any address and any distance of rows that do not overlap are taken as they are. An input that lies otherwise is copied;
    an output (writable) that does is a ValueError.
    """
    array = as_array(value, name)
    if array.dtype not in dtypes:
        _check_dtype(array.dtype, name, dtypes)
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}; expected two dimensions")
    rows, cols = array.shape
    row_bytes, col_bytes = array.strides
    size = array.itemsize
    stride = row_bytes // size
    if not array.size:
        stride = cols
    elif (cols > 1 and col_bytes != size) or (rows > 1 and (stride < cols or stride * size != row_bytes)):
        if writable:
            raise ValueError(
                f"{name} has strides {array.strides}; expected rows of elements side by side that do not overlap"
            )
        array = np.ascontiguousarray(array)
        stride = cols
    address, read_only = array.__array_interface__["data"]
    if writable and read_only:
        raise ValueError(f"{name} is read-only; expected a writable array")
    result = _abi.int8q_matrix(_MATRIX_BYTES, CODE_OF[array.dtype], rows, cols, stride if rows > 1 else cols, address)
    result.array = array
    return result


def optional_matrix(value, name, dtypes=FLOATS):
    """The same for an argument that may be None."""
    return None if value is None else matrix(value, name, dtypes)


def fold(array, name, cols):
    """array [..., cols] as [M, cols]; without a copy if its strides allow that."""
    if array.ndim == 0 or array.shape[-1] != cols:
        raise ValueError(f"{name} has shape {array.shape}; expected (..., {cols})")
    return array if array.ndim == 2 else array.reshape(prod(array.shape[:-1]), cols)


def vector(value, name, dtype, length, writable=False):
    """A pointer to the elements of value [length], which it keeps alive.

    An input that is not contiguous and aligned is copied; an output (writable) that is not is a ValueError.
    """
    array = as_array(value, name, writable)
    dtype = np.dtype(dtype)
    _check_dtype(array.dtype, name, (dtype,))
    check_shape(array, name, (length,))
    if writable and not array.flags.writeable:
        raise ValueError(f"{name} is read-only; expected a writable array")
    if writable and not (array.flags.c_contiguous and array.flags.aligned):
        at = f"strides {array.strides} and address {array.ctypes.data:#x}"
        raise ValueError(f"{name} has {at}; expected elements side by side, at a multiple of {array.itemsize}")
    array = np.require(array, requirements=["C", "A"])
    pointer = array.ctypes.data_as(ctypes.POINTER(np.ctypeslib.as_ctypes_type(dtype)))
    pointer.array = array
    return pointer


class Host:
    """What the stateless operations ask of the place where they run, here the CPU; the other is _tensors.Gpu."""

    as_array, matrix, vector = staticmethod(as_array), staticmethod(matrix), staticmethod(vector)
    float_dtype, empty, copy = staticmethod(float_dtype), staticmethod(np.empty), staticmethod(np.copy)

    def bias_matrix(self, value, length):
        """The matrix of a bias [length], which is [1,N] in C, or None."""
        if value is None:
            return None
        array = self.as_array(value, "bias")
        check_shape(array, "bias", (length,))
        return self.matrix(array[np.newaxis], "bias")

    def col_numbers(self, value, name, cols):
        """The vector of numbers of columns, int64 [at most cols]. An empty list, which has no dtype, is none."""
        none = isinstance(value, (list, tuple)) and not value
        array = self.empty((0,), np.int64) if none else self.as_array(value, name)
        if array.ndim != 1 or len(array) > cols:
            raise ValueError(f"{name} has shape {tuple(array.shape)}; expected one dimension, of at most {cols}")
        return self.vector(array, name, np.int64, len(array))


HOST = Host()


class _Memory:
    """Memory that is not NumPy's, as np.asarray takes it; the array then keeps the owner alive."""

    def __init__(self, address, shape, dtype, owner, read_only, strides=None):
        typestr = dtype.str if dtype.isbuiltin == 1 else f"|u{dtype.itemsize}"
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "data": (address, read_only),
            "shape": shape,
            "strides": strides,
            "typestr": typestr,
        }


def array_over(address, shape, dtype, owner, read_only=True, strides=None):
    """An array over foreign memory, which lives as long as owner does."""
    if not prod(shape):
        return np.empty(shape, dtype)
    return np.asarray(_Memory(address, shape, dtype, owner, read_only, strides)).view(dtype)


# ---------------------------------------------------------------------------------------------------- DLPack
# By hand, since NumPy's own import refuses bfloat16.


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DLManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", _DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    ]


_CAPSULES = {  # name: (its struct, its name once it is taken)
    b"dltensor_versioned": (_DLManagedTensorVersioned, b"used_dltensor_versioned"),
    b"dltensor": (_DLManagedTensor, b"used_dltensor"),
}
_DL_CPU, _DL_CUDA_HOST = 1, 3
_DL_READ_ONLY = 1
_DL_DTYPES = {  # (code, bits)
    (0, 8): np.dtype(np.int8),
    (0, 16): np.dtype(np.int16),
    (0, 32): np.dtype(np.int32),
    (0, 64): np.dtype(np.int64),
    (1, 8): np.dtype(np.uint8),
    (1, 16): np.dtype(np.uint16),
    (1, 32): np.dtype(np.uint32),
    (1, 64): np.dtype(np.uint64),
    (2, 16): np.dtype(np.float16),
    (2, 32): np.dtype(np.float32),
    (2, 64): np.dtype(np.float64),
    (4, 16): bfloat16,
    (6, 8): np.dtype(np.bool_),
    (10, 8): float8_e4m3fn,
    (12, 8): float8_e5m2,
}
_capsule_is = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_capsule_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_SetName", ctypes.pythonapi)
)
_Deleter = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)  # keeps the GIL: exporters written in Python need it


class _Taken:
    """A managed tensor that is ours; given back when the last array over it goes."""

    def __init__(self, managed):
        self.managed = managed

    def __del__(self):
        if self.managed.deleter:
            _Deleter(self.managed.deleter)(ctypes.addressof(self.managed))


def _from_dlpack(exporter, name):
    if getattr(exporter, "requires_grad", False):
        raise ValueError(f"{name} requires grad, which an array cannot; pass {name}.detach()")
    try:
        device = exporter.__dlpack_device__()[0]
        if device in (_DL_CPU, _DL_CUDA_HOST):
            try:
                capsule = exporter.__dlpack__(max_version=(1, 0))
            except TypeError:  # an exporter from before DLPack 1.0
                capsule = exporter.__dlpack__()
    except (BufferError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name} exports no array: {error}") from error
    if device not in (_DL_CPU, _DL_CUDA_HOST):
        raise ValueError(
            f"{name} is on DLPack device type {int(device)}; expected host memory, where {name}.cpu() or its like copies "
            "it; on a CUDA device int8q.nn.Linear8bit works, and stateless operations do where all arrays are torch's there"
        )
    kind = next((kind for kind in _CAPSULES if _capsule_is(capsule, kind)), None)
    if kind is None:
        raise ValueError(f"{name} gives {capsule!r}; expected a DLPack capsule")
    struct, used = _CAPSULES[kind]
    managed = struct.from_address(_capsule_pointer(capsule, kind))
    if getattr(managed, "major", 1) != 1:
        raise ValueError(f"{name} is DLPack {managed.major}.{managed.minor}; expected 1.x")
    tensor = managed.tensor
    dtype = _DL_DTYPES.get((tensor.code, tensor.bits))
    if dtype is None or tensor.lanes != 1:
        found = f"code {tensor.code}, {tensor.bits} bits, {tensor.lanes} lanes"
        raise TypeError(f"{name} has DLPack type {found}; expected one that NumPy has, or bfloat16")
    _capsule_rename(capsule, used)
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(s * dtype.itemsize for s in tensor.strides[: tensor.ndim]) if tensor.strides else None
    read_only = bool(getattr(managed, "flags", 0) & _DL_READ_ONLY)
    return array_over((tensor.data or 0) + tensor.byte_offset, shape, dtype, _Taken(managed), read_only, strides)
