# SPDX-License-Identifier: Apache-2.0
"""The bitsandbytes plug-in: its CPU operators of LLM.int8() run on int8q.

bitsandbytes, from 0.46 on, calls each entry point of the group bitsandbytes.backends at the end of its import, and dies if
one raises; register() is int8q's. CA, CB, SCA, SCB are bitsandbytes' names: codes of A [..., K] and of the weight [N,K],
and their absmax.

A kernel here takes float32, float16 or bfloat16, and int8, of any batch. All else goes to bitsandbytes' kernel for every
device: other dtypes, empty tensors, shapes that broadcast or are wrong, columns that do not ascend. What bitsandbytes
refuses, it still refuses itself. Nothing is kept from call to call.
"""

import ctypes
import functools
import os
import sys
import warnings

import torch

from . import _abi
from ._abi import int8q_matrix, library

try:
    from ._packed import CODES
    from .context import StatusValueError, torch_context
    from .nn import _autocast_dtype, _is_autocast

    _broken = None
except Exception as error:  # NumPy's, above all: bitsandbytes runs without it
    _broken = error

_FUNCTIONS = """int8q_quantize_rows int8q_multiply int8q_dequantize_accumulators int8q_scaled_multiply
int8q_mixed_scaled_multiply int8q_dequantize_rows int8q_create_linear int8q_destroy_linear int8q_query_workspace
int8q_backward"""
_FLOATS = torch.float32, torch.float16, torch.bfloat16
_NO_FLOATS, _NO_COLS = ctypes.c_float * 0, ctypes.c_int64 * 0
_MATRIX_BYTES = ctypes.sizeof(int8q_matrix)
# Under this key lie bitsandbytes' kernels for every device, whatever replaces them on the CPU.
_OWN = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)


class _Declined(Exception):
    """This call is bitsandbytes' own."""


# ---------------------------------------------------------------------------------------------------- Arguments


def _matrix(tensor, *dtypes):
    """An int8q_matrix over a tensor [..., K] as rows of K, which it keeps alive; strided elements are copied."""
    if tensor.dtype not in dtypes or tensor.dim() == 0 or tensor.numel() == 0:
        raise _Declined
    rows = tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])
    count, cols = rows.shape
    stride = rows.stride(0) if count > 1 else cols
    if rows.stride(1) != 1 or stride < cols:
        rows, stride = rows.contiguous(), cols
    code = _abi.INT8Q_S32 if rows.dtype == torch.int32 else CODES[rows.dtype]
    made = int8q_matrix(_MATRIX_BYTES, code, count, cols, stride, rows.data_ptr())
    made.tensor = rows
    return made


def _weight(tensor):
    if tensor.dim() != 2:
        raise _Declined
    return _matrix(tensor, torch.int8)


def _output(tensor):
    """_matrix of a tensor that is written to, so never of a copy."""
    if not tensor.is_contiguous():
        raise _Declined
    return _matrix(tensor, *_FLOATS, torch.int8, torch.int32)


def _stats(tensor, count):
    """float* to count stats, which it keeps alive; bitsandbytes would broadcast another number of them."""
    if tensor.dtype != torch.float32 or tensor.numel() != count:
        raise _Declined
    tensor = tensor.contiguous()
    made = _NO_FLOATS.from_address(tensor.data_ptr())
    made.tensor = tensor
    return made


def _bias(tensor):
    if tensor is None:
        return None
    if tensor.dim() != 1:
        raise _Declined
    return _matrix(tensor, *_FLOATS)


@functools.lru_cache(maxsize=64)
def _threshold(threshold, dtype):
    """The threshold as torch compares it with a tensor: rounded to its dtype. 0, to which small ones round, is 6 in C."""
    rounded = torch.tensor(threshold, dtype=dtype).item()
    if rounded == 0:
        raise _Declined
    return rounded


# ---------------------------------------------------------------------------------------------------- Operators
# With the parameters of bitsandbytes' schemas; register() compares the names.


def _quantize_rows(A, threshold=0.0):
    """floats [..., K] -> int8 [..., K], float32 [rows], int64 [outlier columns] or None; A is not written to."""
    x = _matrix(A, *_FLOATS)
    codes, stats = A.new_empty(A.shape, dtype=torch.int8), A.new_empty(x.rows, dtype=torch.float32)
    mode, rounded = _abi.INT8Q_OUTLIERS_OFF, 0.0
    if threshold > 0:
        mode, rounded = _abi.INT8Q_OUTLIERS_COLUMN, _threshold(threshold, A.dtype)
    cols, count = A.new_empty(x.cols, dtype=torch.int64), ctypes.c_int64()
    outputs = _output(codes), _stats(stats, x.rows), None, _NO_COLS.from_address(cols.data_ptr()), count
    torch_context().call(library().int8q_quantize_rows, x, mode, rounded, *outputs)
    return codes, stats, cols[: count.value].clone() if threshold > 0 else None


def _dequantize_rows(A, stats):
    """int8 [..., K], float32 [rows] -> float32 [..., K]"""
    q = _matrix(A, torch.int8)
    y = torch.empty_like(A, dtype=torch.float32)
    torch_context().call(library().int8q_dequantize_rows, q, _stats(stats, q.rows), _output(y))
    return y


def _linear_matmul(A, B):
    """int8 [..., K], int8 [N,K] -> int32 [..., N], exact"""
    a, b = _matrix(A, torch.int8), _weight(B)
    c = A.new_empty((*A.shape[:-1], b.rows), dtype=torch.int32)
    torch_context().call(library().int8q_multiply, a, b, _output(c))
    return c


def _linear_matmul_out(A, B, out):
    """The same into out."""
    a, b = _matrix(A, torch.int8), _weight(B)
    if out.dtype != torch.int32 or out.shape != (*A.shape[:-1], b.rows):
        raise _Declined
    torch_context().call(library().int8q_multiply, a, b, _output(out))


def _mm_dequant(A, row_stats, col_stats, dtype=None, bias=None):
    """int32 [..., N], float32 [rows], float32 [N] -> dtype (float16) [..., N]"""
    acc = _matrix(A, torch.int32)
    y = torch.empty_like(A, dtype=dtype or torch.float16)
    stats = _stats(row_stats, acc.rows), _stats(col_stats, acc.cols)
    torch_context().call(library().int8q_dequantize_accumulators, acc, *stats, _bias(bias), _output(y))
    return y


def _scaled_mm(A, B, row_stats, col_stats, bias=None, dtype=None):
    """int8 [..., K], int8 [N,K], float32 [rows], float32 [N] -> dtype (float16) [..., N]"""
    a, b = _matrix(A, torch.int8), _weight(B)
    y = A.new_empty((*A.shape[:-1], b.rows), dtype=dtype or torch.float16)
    stats = _stats(row_stats, a.rows), _stats(col_stats, b.rows)
    torch_context().call(library().int8q_scaled_multiply, a, stats[0], b, stats[1], _bias(bias), _output(y))
    return y


def _mixed_scaled_mm(A, CA, CB, SCA, SCB, outlier_cols=None, bias=None):
    """_scaled_mm of CA and CB, plus A's outlier columns by the weight's -> A's dtype [..., N], A's outlier columns"""
    if outlier_cols is None or not outlier_cols.numel():
        return _scaled_mm(CA, CB, SCA, SCB, bias, A.dtype), A.new_empty(0)
    if outlier_cols.dtype != torch.int64 or outlier_cols.dim() != 1:
        raise _Declined
    x, a, b, cols = _matrix(A, *_FLOATS), _matrix(CA, torch.int8), _weight(CB), outlier_cols.contiguous()
    y = A.new_empty((*CA.shape[:-1], b.rows))
    stats = _stats(SCA, a.rows), _stats(SCB, b.rows)
    outliers = _abi.INT8Q_OUTLIERS_COLUMN, 0.0, _NO_COLS.from_address(cols.data_ptr()), cols.numel()
    torch_context().call(
        library().int8q_mixed_scaled_multiply, x, a, stats[0], b, stats[1], *outliers, _bias(bias), _output(y)
    )
    return y, A.index_select(-1, cols)


_KERNELS = {
    "int8_vectorwise_quant": _quantize_rows,
    "int8_vectorwise_dequant": _dequantize_rows,
    "int8_linear_matmul": _linear_matmul,
    "int8_linear_matmul.out": _linear_matmul_out,
    "int8_mm_dequant": _mm_dequant,
    "int8_scaled_mm": _scaled_mm,
    "int8_mixed_scaled_mm": _mixed_scaled_mm,
}


def _or_own(run, operator):
    """The kernel that is registered: run, or bitsandbytes' own where run or the library declines."""

    def kernel(*arguments):
        try:
            return run(*arguments)
        except (_Declined, StatusValueError):
            return operator.redispatch(_OWN, *arguments)

    return kernel


# ---------------------------------------------------------------------------------------------------- Training


def _gradient(dy, codes):
    return dy.new_empty((*dy.shape[:-1], codes.shape[1]))


def _backward(dy, codes, stats):
    """floats [..., N], int8 [N,K], float32 [N] -> [..., K] of dy's dtype. The weight is packed for this call alone."""
    dx = _gradient(dy, codes)
    try:
        x, y, weight = _output(dx), _matrix(dy, *_FLOATS), _weight(codes)
        context, layer = torch_context(), ctypes.POINTER(_abi.int8q_linear)()
        context.call(library().int8q_create_linear, weight, _stats(stats, weight.rows), None, None, layer)
        try:
            sizes = {_abi.INT8Q_BACKWARD: (-1, 0)}
            context.run(library().int8q_backward, _abi.INT8Q_BACKWARD, layer, sizes, y, 0, x)
        finally:
            library().int8q_destroy_linear(layer)
        return dx
    except (_Declined, StatusValueError):  # nothing to multiply, or stats that are not finite
        return dy @ (codes * (stats[:, None] / 127)).to(dy.dtype)


class _Frozen(torch.autograd.Function):
    """Y = A . W^T + bias by the operators, as bitsandbytes in eval mode; gradients to A and bias."""

    @staticmethod
    def forward(ctx, A, CB, SCB, bias, threshold):
        operators, rows = torch.ops.bitsandbytes, A.reshape(-1, A.shape[-1])
        CA, SCA, cols = operators.int8_vectorwise_quant.default(rows.to(torch.float16), threshold)
        if threshold > 0:
            y, _ = operators.int8_mixed_scaled_mm.default(rows, CA, CB, SCA, SCB, cols, bias)
        else:
            y = operators.int8_scaled_mm.default(CA, CB, SCA, SCB, bias, A.dtype)
        ctx.save_for_backward(CB, SCB)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y.reshape(*A.shape[:-1], CB.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            dx = torch.ops.int8q.bitsandbytes_backward.default(dy, *ctx.saved_tensors)
        if ctx.needs_input_grad[3]:
            dbias = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=ctx.bias_dtype)
        return dx, None, None, dbias, None


def _replace_training(functions):
    """Puts int8q before MatMul8bitFp, which bitsandbytes' training mode calls on CPUs; weights that train stay with it."""
    own = functions.MatMul8bitFp

    class MatMul8bitFp:
        @staticmethod
        def apply(A, B, out=None, bias=None, state=None):
            frozen = A.device.type == "cpu" and not state.has_fp16_weights and state.CB is not None
            if not frozen or A.dtype not in _FLOATS:
                return own.apply(A, B, out, bias, state)
            if _is_autocast(A):
                A = A.to(_autocast_dtype(A))
            return _Frozen.apply(A, state.CB, state.SCB, bias, state.threshold)

    global _library
    _library = torch.library.Library("int8q", "FRAGMENT")  # its operators live as long as it
    _library.define("bitsandbytes_backward(Tensor dy, Tensor codes, Tensor stats) -> Tensor")
    _library.impl("bitsandbytes_backward", _backward, "CPU")
    _library.impl("bitsandbytes_backward", lambda dy, codes, stats: _gradient(dy, codes), "Meta")
    functions.MatMul8bitFp = MatMul8bitFp


# ---------------------------------------------------------------------------------------------------- Entry point


def _register(name, kernel):
    """Makes kernel the operator's on the CPU. Older versions of torch refuse to replace what Python registered, or warn."""
    getattr(torch.library, "_impls", set()).discard(name.replace("::", "/") + "/CPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(torch.library, "register_kernel", torch.library.impl)(name, "cpu", kernel)


def _install(training):
    if _broken is not None:
        raise _broken
    for name in _FUNCTIONS.split():
        getattr(library(), name)  # binds it now, or raises
    torch_context()
    kernels = {}
    for name, run in _KERNELS.items():
        packet, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.bitsandbytes, packet), overload or "default")
        expected = run.__code__.co_varnames[: run.__code__.co_argcount]
        found = tuple(argument.name for argument in operator._schema.arguments)
        if found != expected:
            raise TypeError(f"bitsandbytes::{name} takes {', '.join(found)}; expected {', '.join(expected)}")
        kernels[f"bitsandbytes::{name}"] = _or_own(run, operator)
    for name, kernel in kernels.items():
        _register(name, kernel)
    if training:
        from bitsandbytes.autograd import _functions

        if hasattr(_functions, "MatMul8bitFp"):  # without it, as in 0.46, training calls the operators
            _replace_training(_functions)


@functools.cache  # a second entry, of an installation beside this one, changes nothing
def register():
    """The entry point. INT8Q_BITSANDBYTES: "1" (default), "0" for off, "train". Never raises: it warns, and leaves
    bitsandbytes as it is."""
    choice = os.environ.get("INT8Q_BITSANDBYTES") or "1"
    try:
        if choice not in ("0", "1", "train"):
            raise ValueError(f"INT8Q_BITSANDBYTES is {choice!r}; expected '0', '1' or 'train'")
        if choice != "0":
            _install(choice == "train")
    except Exception as error:
        message = f"int8q leaves bitsandbytes' kernels as they are: {error}"
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        except Warning:  # an error, by the program's filter; raised here it would be bitsandbytes' end
            print(message, file=sys.stderr)
