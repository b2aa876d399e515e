# SPDX-License-Identifier: Apache-2.0
"""The packed weights of a layer, in a uint8 tensor: on the CPU the library's blob, on a GPU rows of codes.

A GPU's, of a layer [N,K] whose rows are P = K to a multiple of 16 bytes apart:

    0            header     int64 [5]: _MAGIC, N, K, the outlier mode, the bits of the threshold
    64           col_stats  float32 [N]
    64 + 4 N     codes      int8 [N] rows of P, zeros behind K; begins at a multiple of 64

Whoever moves such a tensor from the CPU to a GPU or back moves bytes, as accelerate does. Linear8bit then brings them into
the other form (fitting), as its .to does beforehand.
"""

import ctypes
import struct
from contextlib import contextmanager

import torch

from . import _abi
from ._abi import int8q_matrix, library
from .context import check, gpu, torch_context

CODES = {
    torch.float32: _abi.INT8Q_F32,
    torch.float16: _abi.INT8Q_F16,
    torch.bfloat16: _abi.INT8Q_BF16,
    torch.int8: _abi.INT8Q_S8,
}
_CODE_OF = {**CODES, torch.int32: _abi.INT8Q_S32}
MATRIX_BYTES = ctypes.sizeof(int8q_matrix)
_MAGIC = int.from_bytes(b"int8qrow", "little")
_HEADER_BYTES, _ALIGNMENT = 64, 64


def matrix(rows):
    """An int8q_matrix over a tensor [M,N] whose elements of a row lie side by side; the tensor must outlive it."""
    count, cols = rows.shape
    stride = rows.stride(0) if count > 1 else cols
    return int8q_matrix(MATRIX_BYTES, _CODE_OF[rows.dtype], count, cols, stride, rows.data_ptr())


def floats(tensor):
    """A pointer to the elements of a float32 tensor, which must outlive it."""
    return ctypes.cast(tensor.data_ptr(), ctypes.POINTER(ctypes.c_float))


def stream_of(tensor):
    """torch's current stream of a tensor's GPU, as CUDA's."""
    return torch.cuda.current_stream(tensor.device).cuda_stream


def why_no_gpu():
    """None where layers can run on torch's current GPU, else a text that says what is missing."""
    if not torch.cuda.is_available():
        return "torch has no GPU here"
    try:
        gpu(torch.cuda.current_device())
    except RuntimeError as error:  # StatusError; torch's of a forked process
        return str(error)
    return None


def caller(tensor):
    """call(function, *arguments) on the tensor's device: a function of the ABI that takes a context first."""
    if not tensor.is_cuda:
        return torch_context().call
    return lambda function, *arguments: gpu(tensor.get_device()).call(stream_of(tensor), function, *arguments)


def quantize_weights(weight, codes, col_stats):
    """Fills codes int8 [N,K] and col_stats float32 [N] from floats [N,K], on the device of all three."""
    caller(weight)(
        library().int8q_quantize_rows, matrix(weight), _abi.INT8Q_OUTLIERS_OFF, 0.0, matrix(codes), floats(col_stats),
        None, None, None,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- The CPU's form


def blob_bytes(out_features, in_features):
    size = ctypes.c_uint64()
    check(library().int8q_query_blob(out_features, in_features, 0, 0, size))
    return size.value


def make_blob(weight, col_stats, mode, threshold):
    """The blob of floats [N,K], or of int8 [N,K] with float32 [N]; contiguous, on the CPU."""
    blob = torch.empty(blob_bytes(*weight.shape), dtype=torch.uint8, device="cpu")
    options = _abi.int8q_linear_options(ctypes.sizeof(_abi.int8q_linear_options), mode, threshold)
    stats = None if col_stats is None else floats(col_stats)
    arguments = matrix(weight), stats, None, options, blob.data_ptr(), blob.numel()
    torch_context().call(library().int8q_pack_linear, *arguments)
    return blob


@contextmanager
def opened(blob):
    """The int8q_linear of a blob."""
    handle = ctypes.POINTER(_abi.int8q_linear)()
    arguments = blob.data_ptr(), blob.numel(), _abi.INT8Q_TRUST_CHECKSUM, handle
    torch_context().call(library().int8q_open_linear, *arguments)
    try:
        yield handle
    finally:
        library().int8q_destroy_linear(handle)


# ---------------------------------------------------------------------------------------------------- A GPU's form


class Rows:
    """The parts of packed weights in a GPU's form: out_features, in_features, mode, threshold, and views of the tensor.

    codes: int8 [N,K]; col_stats: float32 [N].
    """

    def __init__(self, packed, out_features, in_features, mode, threshold):
        self.packed, self.mode, self.threshold = packed, mode, threshold
        self.out_features, self.in_features = out_features, in_features
        at, stride = self._places(out_features, in_features)
        self.col_stats = packed[_HEADER_BYTES : _HEADER_BYTES + 4 * out_features].view(torch.float32)
        self.codes = packed[at:].view(torch.int8).view(out_features, stride)[:, :in_features]

    @staticmethod
    def _places(out_features, in_features):
        """(where the codes begin, the bytes from row to row)"""
        at = _HEADER_BYTES + -(-4 * out_features // _ALIGNMENT) * _ALIGNMENT
        return at, -(-in_features // 16) * 16

    @classmethod
    def make(cls, like, out_features, in_features, mode, threshold):
        """New ones on the device of a tensor, of which the caller fills codes and col_stats."""
        at, stride = cls._places(out_features, in_features)
        packed = like.new_zeros(at + out_features * stride, dtype=torch.uint8)
        bits = int.from_bytes(struct.pack("<f", threshold), "little")
        header = torch.tensor([_MAGIC, out_features, in_features, mode, bits], device="cpu")
        packed[:_HEADER_BYTES].view(torch.int64)[: len(header)].copy_(header)
        return cls(packed, out_features, in_features, mode, threshold)

    @classmethod
    def of(cls, packed):
        """Those of a tensor, or None if it is a blob. Waits for its GPU."""
        if packed.numel() < _HEADER_BYTES:
            return None
        magic, out_features, in_features, mode, bits = packed[:_HEADER_BYTES].cpu().view(torch.int64)[:5].tolist()
        if magic != _MAGIC:
            return None
        at, stride = cls._places(out_features, in_features)
        if packed.numel() != at + out_features * stride:  # memory that to_empty found
            return None
        return cls(packed, out_features, in_features, mode, struct.unpack("<f", bits.to_bytes(4, "little"))[0])


def quantized_rows(weight, col_stats, mode, threshold, like):
    """Packed weights on the GPU of a tensor, from floats [N,K] or from int8 [N,K] with float32 [N], there too."""
    rows = Rows.make(like, *weight.shape, mode, threshold)
    if col_stats is None:
        quantize_weights(weight, rows.codes, rows.col_stats)
    else:
        rows.codes.copy_(weight)
        rows.col_stats.copy_(col_stats)
    return rows.packed


def as_rows(packed):
    """The same weights in a GPU's form, on the CPU. packed, in either form, is on the CPU, too."""
    if Rows.of(packed) is not None:
        return packed
    with opened(packed) as handle:
        info = _abi.int8q_linear_info(ctypes.sizeof(_abi.int8q_linear_info))
        check(library().int8q_describe_linear(handle, info))
        rows = Rows.make(packed, info.out_features, info.in_features, info.outlier_mode, info.threshold)
        arguments = handle, matrix(rows.codes), floats(rows.col_stats), None, None, None
        torch_context().call(library().int8q_export_linear, *arguments)
    return rows.packed


def as_blob(packed):
    """The same weights in the CPU's form, on the CPU. packed, in either form, is on the CPU, too."""
    rows = Rows.of(packed)
    if rows is None:
        return packed
    return make_blob(rows.codes, rows.col_stats.contiguous(), rows.mode, rows.threshold)


def fitting(packed):
    """The same weights in the form of the device that they are on; packed itself if they are already. Waits for a GPU."""
    with torch.inference_mode(False):  # a tensor of that mode has no version, by which a layer is opened
        if not packed.is_cuda:
            return as_blob(packed)
        if Rows.of(packed) is not None:
            return packed
        rows = as_rows(packed.cpu())
        return packed.new_empty(rows.numel()).copy_(rows)
