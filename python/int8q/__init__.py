# SPDX-License-Identifier: Apache-2.0
"""int8q: LLM.int8() (arXiv 2208.07339) on NumPy arrays.

    layer = int8q.Linear(weight, bias)     # quantize and pack, once
    y = layer(x)                           # [..., K] -> [..., N]

The import loads nothing; NumPy and the native library are loaded at the first use.
"""

from ._abi import AbiError, AbiMismatch, LibraryNotFound, NeedsNewer

# What needs NumPy is imported at its first use: `python -m int8q doctor` runs where NumPy is broken.
_MODULES = {
    "arrays": "bfloat16 float8_e4m3fn float8_e5m2",
    "checkpoint": "Progress load_safetensors quantize_checkpoint save_safetensors",
    "context": "Context StatusError StatusFileNotFoundError StatusMemoryError StatusOSError StatusTypeError "
    "StatusValueError default_context diagnose",
    "linear": "Linear forward_many",
    "operations": "QuantizedRows count_outliers dequantize_accumulators dequantize_rows matmul mixed_scaled_multiply "
    "multiply quantize_rows scaled_multiply select_outlier_cols",
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = ["AbiError", "AbiMismatch", "LibraryNotFound", "NeedsNewer", *_WHERE]


def __getattr__(name):
    if name in _WHERE:
        from importlib import import_module

        globals()[name] = value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
        return value
    if name == "__version__":
        from importlib.metadata import version

        return version("int8q")
    raise AttributeError(f"module 'int8q' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
