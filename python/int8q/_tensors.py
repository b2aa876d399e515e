# SPDX-License-Identifier: Apache-2.0
"""The stateless operations on a GPU: torch's tensors as the C ABI's matrices, as arrays.py has NumPy's arrays."""

import ctypes

import numpy as np
import torch

from . import _packed, arrays

_TORCH = {
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float16): torch.float16,
    arrays.bfloat16: torch.bfloat16,
    np.dtype(np.int8): torch.int8,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
}
_NUMPY = {of_torch: dtype for dtype, of_torch in _TORCH.items()}


class Gpu(arrays.Host):
    """The GPU of an operation's first tensor. Calls run on torch's current stream, results are of torch's allocator."""

    copy = staticmethod(torch.clone)

    def __init__(self, first, context):
        if context is not None:
            raise ValueError(
                f"context is {context!r}; expected None, since the first array is on {first.device}, where operations run "
                "on torch's current stream"
            )
        self._first = first
        self.call = _packed.caller(first)

    def as_array(self, value, name):
        first = self._first
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"{name} is a {type(value).__name__}; expected a torch tensor on {first.device}, where the first array is; "
                f"torch.as_tensor({name}, device={str(first.device)!r}) makes one"
            )
        if not value.is_cuda or value.get_device() != first.get_device():
            raise ValueError(
                f"{name} is on {value.device}; expected {first.device}, where the first array is; {name}.to("
                f"{str(first.device)!r}) copies it"
            )
        if value.requires_grad:
            raise ValueError(f"{name} requires grad, which operations do not give; pass {name}.detach()")
        return value

    def _checked(self, value, name, dtypes):
        tensor = self.as_array(value, name)
        if tensor.dtype not in [_TORCH[dtype] for dtype in dtypes]:
            raise TypeError(f"{name} is {tensor.dtype}; expected {arrays.dtype_names(dtypes)}")
        return tensor

    def matrix(self, value, name, dtypes=arrays.FLOATS):
        tensor = self._checked(value, name, dtypes)
        if tensor.dim() != 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected two dimensions")
        rows, cols = tensor.shape
        if (cols > 1 and tensor.stride(1) != 1) or (rows > 1 and tensor.stride(0) < cols):
            tensor = tensor.contiguous()
        result = _packed.matrix(tensor)
        result.array = tensor
        return result

    def vector(self, value, name, dtype, length, writable=False):
        dtype = np.dtype(dtype)
        tensor = self._checked(value, name, (dtype,))
        arrays.check_shape(tensor, name, (length,))
        if writable and not tensor.is_contiguous():
            raise ValueError(f"{name} has stride {tensor.stride(0)}; expected elements side by side")
        tensor = tensor.contiguous()
        pointer = ctypes.cast(tensor.data_ptr(), ctypes.POINTER(np.ctypeslib.as_ctypes_type(dtype)))
        pointer.array = tensor
        return pointer

    def float_dtype(self, dtype):
        return arrays.float_dtype(_NUMPY.get(dtype, dtype) if isinstance(dtype, torch.dtype) else dtype)

    def empty(self, shape, dtype):
        return self._first.new_empty(shape, dtype=_TORCH[np.dtype(dtype)])
