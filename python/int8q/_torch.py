# SPDX-License-Identifier: Apache-2.0
"""The operators of torch: int8q::linear and int8q::linear_backward, over a packed layer that lies in a uint8 tensor.

    linear(Tensor x, Tensor packed, Tensor? bias, int out_features) -> Tensor    floats [..., K] -> [..., N] of x's dtype
    linear_backward(Tensor dy, Tensor packed, int in_features) -> Tensor         floats [..., N] -> [..., K] of dy's dtype

On the CPU and on CUDA devices, where they run on torch's current stream and neither wait nor copy to the host.
torch.library.Library defines them, which every torch from 2.0 on has. The gradient is registered by register_autograd where
that exists (2.4), so that torch.compile sees it, else under the Autograd key.
"""

import ctypes
import weakref
from math import prod

import torch
from torch.autograd import forward_ad

from . import _abi
from ._abi import int8q_matrix, library
from ._packed import CODES, MATRIX_BYTES, Rows, caller, fitting, floats, matrix
from .context import torch_context

# ---------------------------------------------------------------------------------------------------- Layers


def _version(tensor):
    """What changes when the tensor is written to; a tensor of inference mode does not say."""
    return -1 if tensor.is_inference() else tensor._version


class _Layer:
    """An open layer over a tensor's memory, kept as the tensor's attribute _int8q; its copies and pickles have none.

    version, address: of the tensor when it was opened. memory: what it reads, the tensor's own unless that has another
    device's form. workspaces: operation -> (most rows so far, bytes for these). bias: of what forward adds by itself.
    """

    is_cuda, bias = False, None

    def __init__(self, packed, bias):
        self.version, self.address = _version(packed), packed.data_ptr()
        self.memory = fitting(packed).detach()
        self.handle = ctypes.POINTER(_abi.int8q_linear)()
        self._open(bias)
        weakref.finalize(self, library().int8q_destroy_linear, self.handle).atexit = False
        self.workspaces = {_abi.INT8Q_FORWARD: (-1, 0), _abi.INT8Q_BACKWARD: (-1, 0)}

    def _open(self, bias):
        arguments = self.memory.data_ptr(), self.memory.numel(), _abi.INT8Q_TRUST_CHECKSUM, self.handle
        torch_context().call(library().int8q_open_linear, *arguments)

    def __deepcopy__(self, memo):
        return None

    def __reduce__(self):
        return type(None), ()


class _GpuLayer(_Layer):
    """The same on a GPU. Opening waits for it, running does not; workspaces are torch's, of the current stream.

    Nothing is copied: a captured graph reads the tensors' memory alone. The bias that it is opened with is read where it
    lies, as long as calls come with a tensor of this memory.
    """

    is_cuda = True

    def _open(self, bias):
        rows = Rows.of(self.memory)
        self.bias = _lent(bias, self.memory)
        options = _abi.int8q_linear_options(
            ctypes.sizeof(_abi.int8q_linear_options),
            rows.mode,
            rows.threshold,
            _abi.INT8Q_BORROW_WEIGHT | _abi.INT8Q_BORROW_BIAS,
        )
        bias_matrix = None if self.bias is None else matrix(bias.detach()[None])
        arguments = matrix(rows.codes), floats(rows.col_stats), bias_matrix, options, self.handle
        caller(self.memory)(library().int8q_create_linear, *arguments)

    def run(self, function, operation, x, x_matrix, flags, y_matrix):
        if x.device != self.memory.device:
            raise _two_devices(x, self.memory)
        call = caller(x)
        rows, size = self.workspaces[operation]
        if x_matrix.rows != rows:
            found = ctypes.c_uint64()
            call(library().int8q_query_workspace, self.handle, operation, x_matrix.rows, 0, found)
            size = found.value
            self.workspaces[operation] = x_matrix.rows, size
        workspace = x.new_empty(size, dtype=torch.uint8)
        call(function, self.handle, x_matrix, flags, y_matrix, workspace.data_ptr(), size)


def _lent(bias, packed):
    """What a layer remembers of a bias that it can read in place, or None."""
    if bias is None or not bias.is_cuda or bias.device != packed.device:
        return None
    if not bias.is_contiguous() or bias.dtype not in CODES:
        return None
    return bias.data_ptr(), bias.dtype, bias.numel()


def _two_devices(x, packed):
    return RuntimeError(f"x is on {x.device} and the layer on {packed.device}; expected one device")


_ANY = object()


def layer_of(packed, bias=_ANY):
    """The open layer of a packed tensor; opened anew once the tensor was written to or moved.

    bias: for forward, the call's, which may be None; a GPU's layer is opened with it, and anew for another.
    """
    layer = getattr(packed, "_int8q", None)
    if (
        layer is None
        or layer.version != _version(packed)
        or layer.address != packed.data_ptr()
        or (layer.is_cuda and bias is not _ANY and layer.bias != _lent(bias, packed))
    ):
        layer = packed._int8q = (_GpuLayer if packed.is_cuda else _Layer)(packed, None if bias is _ANY else bias)
    return layer


# ---------------------------------------------------------------------------------------------------- Operators


def _run(layer, function, operation, x, y, flags):
    """y [..., N] of x [..., K], by int8q_forward or int8q_backward; y is contiguous."""
    cols, y_cols = x.shape[-1], y.shape[-1]
    count = y.numel() // y_cols if y_cols else prod(y.shape[:-1])
    stride, code = cols, CODES[x.dtype]
    if not x.is_contiguous():
        x = x.reshape(count, cols)
        if x.stride(1) != 1 or (count > 1 and x.stride(0) < cols):
            x = x.contiguous()
        stride = x.stride(0)
    if layer.is_cuda is not x.is_cuda:
        raise _two_devices(x, layer.memory)
    x_matrix = int8q_matrix(MATRIX_BYTES, code, count, cols, stride if count > 1 else cols, x.data_ptr())
    y_matrix = int8q_matrix(MATRIX_BYTES, code, count, y_cols, y_cols, y.data_ptr())
    if layer.is_cuda:
        layer.run(function, operation, x, x_matrix, flags, y_matrix)
    else:
        torch_context().run(function, operation, layer.handle, layer.workspaces, x_matrix, flags, y_matrix)
    return y


def _empty(x, features):
    return x.new_empty((*x.shape[:-1], features))


def _linear(x, packed, bias, out_features):
    y, flags, layer = _empty(x, out_features), 0, layer_of(packed, bias)
    if bias is not None and layer.bias is None:
        if bias.is_cuda is not layer.is_cuda or (layer.is_cuda and bias.device != x.device):
            raise RuntimeError(f"bias is on {bias.device} and x on {x.device}; expected one device")
        y.copy_(bias)
        flags = _abi.INT8Q_ACCUMULATE
    return _run(layer, library().int8q_forward, _abi.INT8Q_FORWARD, x, y, flags)


def _is_watched(x):
    """Whether anything but the kernels may have to see a call with x: what the dispatcher is asked for.

    Subclasses and modes (FakeTensor, make_fx), functorch's transforms, torch.jit's tracing, lazy negation, the profiler.
    """
    return (
        type(x) is not torch.Tensor
        or not (x.is_cpu or x.is_cuda)
        or _modes() > 0
        or _function_modes() > 0
        or _transform() is not None
        or _tracing() is not None
        or x.is_neg()
        or _profiled()
    )


try:
    _modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
    _transform, _tracing = torch._C._functorch.peek_interpreter_stack, torch._C._get_tracing_state
    _profiled = torch.autograd._profiler_enabled
    _is_compiling = torch.compiler.is_compiling
except AttributeError:  # not all of these are public; without them, as before 2.1, every call is the dispatcher's

    def _is_watched(x):
        return True

    def _is_compiling():
        return False

    def _modes():
        return 0


def linear(x, packed, bias, out_features, fit):
    """torch.ops.int8q.linear; at once, without the dispatcher's 5 us, where no gradient is asked for and nobody watches.

    fit: gives the packed weights in the form of their device, where that was not looked at yet.
    Raises NotImplementedError for an x with a tangent (forward-mode gradients), which torch would drop in silence.
    """
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError("x has a tangent; int8q's layers have reverse-mode gradients (backward) only")
    compiling = _is_compiling()
    if not compiling and getattr(packed, "_int8q", None) is None and _modes() == 0 and not packed.is_meta:
        packed = fit()
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    if compiling or wants_gradient or _is_watched(x):
        return _operator(x, packed, bias, out_features)
    return _linear(x, packed, bias, out_features)


def _linear_backward(dy, packed, in_features):
    return _run(layer_of(packed), library().int8q_backward, _abi.INT8Q_BACKWARD, dy, _empty(dy, in_features), 0)


def _save(ctx, inputs, output):
    x, packed, bias, _ = inputs
    ctx.save_for_backward(packed)
    ctx.in_features = x.shape[-1]
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx, dy):
    (packed,) = ctx.saved_tensors
    dx = torch.ops.int8q.linear_backward(dy, packed, ctx.in_features) if ctx.needs_input_grad[0] else None
    dbias = None
    if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
        dbias = dy.flatten(0, -2).sum(0) if dy.dim() > 1 else dy
        dbias = dbias.to(ctx.bias_dtype)
    return dx, None, dbias, None


_library = torch.library.Library("int8q", "DEF")
_library.define("linear(Tensor x, Tensor packed, Tensor? bias, int out_features) -> Tensor")
_library.define("linear_backward(Tensor dy, Tensor packed, int in_features) -> Tensor")
for _key in "CPU", "CUDA":
    _library.impl("linear", _linear, _key)
    _library.impl("linear_backward", _linear_backward, _key)
_library.impl("linear", lambda x, packed, bias, out_features: _empty(x, out_features), "Meta")
_library.impl("linear_backward", lambda dy, packed, in_features: _empty(dy, in_features), "Meta")


def _no_second_gradient(ctx, dx):
    raise NotImplementedError("int8q's layers have first derivatives only")


if hasattr(torch.library, "register_autograd"):
    torch.library.register_autograd("int8q::linear", _gradients, setup_context=_save, lib=_library)
    torch.library.register_autograd("int8q::linear_backward", _no_second_gradient, lib=_library)
else:

    class _Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            _save(ctx, inputs, None)
            below = torch._C._AutoDispatchBelowAutograd()  # as long as it lives
            try:
                return torch.ops.int8q.linear(*inputs)
            finally:
                del below

        backward = staticmethod(torch.autograd.function.once_differentiable(_gradients))

    _library.impl("linear", lambda *inputs: _Linear.apply(*inputs), "Autograd")

_operator = torch.ops.int8q.linear.default
