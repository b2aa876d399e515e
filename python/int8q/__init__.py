# SPDX-License-Identifier: Apache-2.0
"""int8q: LLM.int8() (arXiv 2208.07339) on NumPy arrays.

    layer = int8q.Linear(weight, bias)     # quantize and pack, once
    y = layer(x)                           # [..., K] -> [..., N]

The import loads nothing but NumPy; the native library is loaded at the first call.
"""

from ._abi import AbiError, AbiMismatch, LibraryNotFound, NeedsNewer
from .arrays import bfloat16, float8_e4m3fn, float8_e5m2
from .checkpoint import Progress, load_safetensors, quantize_checkpoint, save_safetensors
from .context import (
    Context,
    StatusError,
    StatusFileNotFoundError,
    StatusMemoryError,
    StatusOSError,
    StatusTypeError,
    StatusValueError,
    default_context,
    diagnose,
)
from .linear import Linear, forward_many
from .operations import (
    QuantizedRows,
    count_outliers,
    dequantize_accumulators,
    dequantize_rows,
    matmul,
    mixed_scaled_multiply,
    multiply,
    quantize_rows,
    scaled_multiply,
    select_outlier_cols,
)

__all__ = [
    "AbiError",
    "AbiMismatch",
    "Context",
    "LibraryNotFound",
    "Linear",
    "NeedsNewer",
    "Progress",
    "QuantizedRows",
    "StatusError",
    "StatusFileNotFoundError",
    "StatusMemoryError",
    "StatusOSError",
    "StatusTypeError",
    "StatusValueError",
    "bfloat16",
    "count_outliers",
    "default_context",
    "dequantize_accumulators",
    "dequantize_rows",
    "diagnose",
    "float8_e4m3fn",
    "float8_e5m2",
    "forward_many",
    "load_safetensors",
    "matmul",
    "mixed_scaled_multiply",
    "multiply",
    "quantize_checkpoint",
    "quantize_rows",
    "save_safetensors",
    "scaled_multiply",
    "select_outlier_cols",
]


def __getattr__(name):
    if name == "__version__":
        from importlib.metadata import version

        return version("int8q")
    raise AttributeError(f"module 'int8q' has no attribute {name!r}")
