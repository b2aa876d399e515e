# SPDX-License-Identifier: Apache-2.0
"""Safetensors files, and checkpoints in bitsandbytes' int8 layout."""

import contextlib
import ctypes
import json
import os
import weakref
from typing import NamedTuple, Optional

import numpy as np

from . import _abi, arrays
from ._abi import library
from .context import check, default_context

_SAFETENSORS_NAMES = {
    _abi.INT8Q_F32: "F32",
    _abi.INT8Q_F16: "F16",
    _abi.INT8Q_BF16: "BF16",
    _abi.INT8Q_S8: "I8",
    _abi.INT8Q_S32: "I32",
    _abi.INT8Q_U8: "U8",
    _abi.INT8Q_F64: "F64",
    _abi.INT8Q_S16: "I16",
    _abi.INT8Q_U16: "U16",
    _abi.INT8Q_U32: "U32",
    _abi.INT8Q_S64: "I64",
    _abi.INT8Q_U64: "U64",
    _abi.INT8Q_BOOL: "BOOL",
    _abi.INT8Q_F8_E4M3: "F8_E4M3",
    _abi.INT8Q_F8_E5M2: "F8_E5M2",
}
_LONGEST_HEADER = 100_000_000  # the format's


class _File:
    """An open int8q_safetensors; closed when the last array over it goes."""

    def __init__(self, path):
        self.handle = ctypes.POINTER(_abi.int8q_safetensors)()
        check(library().int8q_open_safetensors(_c_path(path, "path"), self.handle))
        weakref.finalize(self, library().int8q_close_safetensors, self.handle).atexit = False


def _c_path(path, name):
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} is {path!r}; expected a path: str, bytes or os.PathLike")
    path = os.fsencode(path)
    if b"\0" in path:
        raise ValueError(f"{name} is {path!r}; expected a path, which has no null byte")
    return path


def load_safetensors(path):
    """The tensors of a safetensors file, {name: array}, without reading them: read-only views of the mapped file, which
    stays open as long as one of them lives. A file that somebody truncates meanwhile is that somebody's error.

    The header is validated before anything else. BF16 and F8 are ml_dtypes' types where that package is installed, else
    int8q.bfloat16 and its like.

    Raises FileNotFoundError, OSError, ValueError (contradicts itself), StatusError INT8Q_UNSUPPORTED (an unknown dtype).
    """
    lib, file = library(), _File(path)
    count, tensor = ctypes.c_int64(), _abi.int8q_tensor(ctypes.sizeof(_abi.int8q_tensor))
    check(lib.int8q_count_tensors(file.handle, count))
    tensors = {}
    for index in range(count.value):
        check(lib.int8q_get_tensor(file.handle, index, tensor))
        shape = tuple(tensor.shape[: tensor.rank])
        tensors[tensor.name.decode()] = arrays.array_over(tensor.data, shape, arrays.DTYPE_OF[tensor.dtype], file)
    return tensors


def save_safetensors(tensors, path, metadata=None):
    """Writes {name: array} as a safetensors file, under a temporary name that then replaces path.

    Arrays are NumPy's or of any library that exports DLPack in host memory, of the dtypes that load_safetensors gives.
    Names are str that UTF-8 can hold, without null characters, and not "__metadata__". metadata: {str: str} or None.

    Raises TypeError and ValueError for what load_safetensors would not take, before anything is written; OSError.
    """
    tensors, metadata = _named(tensors, "tensors"), _named({} if metadata is None else metadata, "metadata")
    if "__metadata__" in tensors:
        raise ValueError("tensors has the name '__metadata__'; expected another, since the format keeps it for metadata")
    for name, text in metadata.items():
        _check_text(text, f"metadata[{name!r}] is")
    named = {name: arrays.as_array(value, f"tensors[{name!r}]") for name, value in tensors.items()}
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    # The widest types first keep each tensor aligned to its elements.
    order = sorted(named, key=lambda name: (-named[name].itemsize, name))
    for name in order:
        array, begin = named[name], end
        if array.dtype not in arrays.CODE_OF:
            raise TypeError(f"tensors[{name!r}] is {array.dtype}; expected a type that safetensors has")
        end += array.nbytes
        dtype = _SAFETENSORS_NAMES[arrays.CODE_OF[array.dtype]]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _LONGEST_HEADER:
        raise ValueError(f"tensors and metadata make a header of {len(text)} bytes; expected at most {_LONGEST_HEADER}")
    path = os.fsdecode(_c_path(path, "path"))
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                file.write(np.ascontiguousarray(named[name]).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _named(mapping, argument):
    """A dict of a mapping, whose names are checked to be ones that a file can hold."""
    if not hasattr(mapping, "items"):
        raise TypeError(f"{argument} is a {type(mapping).__name__}; expected a mapping from str")
    named = dict(mapping.items())
    for name in named:
        _check_text(name, f"{argument} has the name")
        if "\0" in name:
            raise ValueError(f"{argument} has the name {name!r}; expected one without null characters")
    return named


def _check_text(value, says):
    if not isinstance(value, str):
        raise TypeError(f"{says} {value!r}; expected a str")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{says} {value!r}; expected text that UTF-8 can hold, without lone surrogates") from None


class Progress(NamedTuple):
    """What quantize_checkpoint is doing (int8q_progress).

    phase: "plan" once for each tensor before anything is written, "write" at least once for each, "finish" once; file: the
    output file; tensor: its name, None in "finish"; action: "quantize" or why it is copied: "dtype", "shape", "name",
    "include", "exclude"; bytes_in and bytes_out: in "plan" this tensor's, then all consumed and written so far, of total_in
    and total_out.
    """

    phase: str
    file: str
    tensor: Optional[str]
    action: str
    rows: int
    cols: int
    bytes_in: int
    bytes_out: int
    total_in: int
    total_out: int


_PHASES = {_abi.INT8Q_PHASE_PLAN: "plan", _abi.INT8Q_PHASE_WRITE: "write", _abi.INT8Q_PHASE_FINISH: "finish"}
_ACTIONS = {
    _abi.INT8Q_TENSOR_QUANTIZE: "quantize",
    _abi.INT8Q_TENSOR_COPY_DTYPE: "dtype",
    _abi.INT8Q_TENSOR_COPY_SHAPE: "shape",
    _abi.INT8Q_TENSOR_COPY_NAME: "name",
    _abi.INT8Q_TENSOR_COPY_INCLUDE: "include",
    _abi.INT8Q_TENSOR_COPY_EXCLUDE: "exclude",
}


def quantize_checkpoint(
    src,
    dst,
    *,
    threshold=6.0,
    include=None,
    exclude=None,
    overwrite=False,
    dry_run=False,
    progress=None,
    context=None,
):
    """Quantizes a checkpoint to bitsandbytes' int8 layout (int8q_quantize_checkpoint).

    Each chosen 2-D float tensor P.weight becomes P.weight int8 [N,K], P.SCB float32 [N] and P.weight_format uint8; all
    others are copied byte for byte. Memory is bounded by a few row blocks, not by the model.

    src: a .safetensors file, or a Hugging Face folder; dst: likewise, written under a temporary name first
    threshold: written to quantization_config
    include, exclude: lists of ECMAScript regexes searched in tensor names; None: all weights, but for embeddings, norms and
    output heads, which transformers leaves as they are
    overwrite: replace dst; else an existing one is an error. dry_run: only the plan; nothing is written, dst may be None
    progress: called with a Progress; what it raises stops the call and is raised from here

    Raises FileNotFoundError, OSError (full disk), ValueError (corrupt; NaN or Inf in a weight; a bad regex; dst exists),
    StatusError INT8Q_UNSUPPORTED (already quantized, an architecture that cannot be loaded in int8).
    """
    raised = []

    def report(_, info):
        info = info.contents
        try:
            progress(
                Progress(
                    _PHASES[info.phase],
                    os.fsdecode(info.file),
                    info.tensor and info.tensor.decode(),
                    _ACTIONS[info.action],
                    info.rows,
                    info.cols,
                    info.bytes_in,
                    info.bytes_out,
                    info.total_in,
                    info.total_out,
                )
            )
        except BaseException as error:
            raised.append(error)
        return len(raised)

    if dst is None and not dry_run:
        raise ValueError("dst is None; expected a path, or dry_run=True")
    options = _abi.int8q_checkpoint_options(
        ctypes.sizeof(_abi.int8q_checkpoint_options),
        bool(dry_run),
        bool(overwrite),
        arrays.number(threshold, "threshold", "a finite number > 0, or 0 for 6.0"),
        *_texts(include, "include"),
        *_texts(exclude, "exclude"),
    )
    paths = _c_path(src, "src"), None if dst is None else _c_path(dst, "dst")
    callback = _abi.int8q_progress_fn(report) if progress else _abi.int8q_progress_fn()
    try:
        function = library().int8q_quantize_checkpoint
        (context or default_context()).call(function, *paths, options, callback, None, names=_PATHS)
    except RuntimeError:
        if raised:
            raise raised[0] from None
        raise


# What the library's messages call a path, and what it is here.
_PATHS = (
    (r'(^|\band )in is "', r'\1src is "'),
    (r'^out is "', 'dst is "'),
    ("`in`", "`src`"),
    ("`out`", "`dst`"),
    (r"\bset overwrite to 1$", "overwrite=True"),
)


def _texts(texts, name):
    """(char**, count) of a list of str; None is NULL."""
    if texts is None:
        return None, 0
    if isinstance(texts, str):
        raise TypeError(f"{name} is {texts!r}, a str; expected a list of regexes")
    for text in texts:
        _check_text(text, f"{name} has")
        if "\0" in text:
            raise ValueError(f"{name} has {text!r}; expected regexes without null characters")
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts)), len(texts)
