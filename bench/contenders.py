# SPDX-License-Identifier: Apache-2.0
"""int8q and its opponents as torch sees them, for compare_python.py.

A contender is a class: `operation` ("linear", "gemm" for a bare product, or "backward"), `dtype` of its input. An
instance is one layer made from a float weight [N,K] and bias [N]. `prepare(x)` turns bf16 activations [M,K] (for backward,
gradients [M,N]) into what the layer takes, outside the measured time; calling it is what is measured. Every linear returns
a new tensor, int8q's too. A contender that cannot be made raises, and is reported as missing.
"""

import ctypes as C
import json
import logging
import sys
from pathlib import Path

import bitsandbytes
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python" / "int8q"))
import _abi  # noqa: E402  the generated ctypes layer

# bitsandbytes warns at each call that it casts bf16 to fp16; writing that would be counted as its time.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

THRESHOLD = 6.0
DTYPES = {torch.float32: _abi.INT8Q_F32, torch.bfloat16: _abi.INT8Q_BF16}
# torch.quantize_per_channel's codes, symmetric as LLM.int8()'s are.
SCALES_TO_CODES = 127


def matrix(tensor):
    rows, cols = (1, *tensor.shape)[-2:]
    return _abi.int8q_matrix(C.sizeof(_abi.int8q_matrix), DTYPES[tensor.dtype], rows, cols, cols, tensor.data_ptr())


class Int8qLibrary:
    """libint8q.so and one context; INT8Q_NUM_THREADS and INT8Q_CPU_ISA are read here."""

    def __init__(self, path):
        self.abi = _abi.Library(path)
        self.context = C.POINTER(_abi.int8q_context)()
        self.check(self.abi.int8q_create_context(None, C.byref(self.context)))

    def check(self, status):
        if status != _abi.INT8Q_OK:
            raise RuntimeError(f"{self.abi.int8q_status_name(status).decode()}: {self.abi.int8q_last_error().decode()}")

    def description(self):
        size = C.c_uint64()
        self.abi.int8q_describe_context(self.context, None, 0, C.byref(size))
        text = C.create_string_buffer(size.value + 1)
        self.check(self.abi.int8q_describe_context(self.context, text, len(text), None))
        return json.loads(text.value)

    def version(self):
        return self.abi.int8q_version_string().decode()


class Int8qLinear:
    """One call of int8q_forward through ctypes, with a new Y; X's descriptor and the workspace are ready."""

    operation, dtype = "linear", "bf16"
    outlier_mode, direction = _abi.INT8Q_OUTLIERS_COLUMN, _abi.INT8Q_FORWARD

    def __init__(self, library, weight, bias):
        self.library, self.bias = library, bias
        self.out_features = weight.shape[0] if self.direction == _abi.INT8Q_FORWARD else weight.shape[1]
        options = _abi.int8q_linear_options(C.sizeof(_abi.int8q_linear_options), self.outlier_mode, THRESHOLD)
        self.linear = C.POINTER(_abi.int8q_linear)()
        create = library.abi.int8q_create_linear
        library.check(create(library.context, matrix(weight), None, matrix(bias), options, C.byref(self.linear)))
        self.run = library.abi.int8q_forward

    def __del__(self):
        if self.linear:
            self.library.abi.int8q_destroy_linear(self.linear)

    def prepare(self, x):
        need = C.c_uint64()
        query = self.library.abi.int8q_query_workspace
        self.library.check(query(self.library.context, self.linear, self.direction, x.shape[0], 0, C.byref(need)))
        workspace = torch.empty(need.value + 64, dtype=torch.uint8)
        return x, matrix(x), workspace, (workspace.data_ptr() + 63) // 64 * 64, need.value

    def __call__(self, prepared):
        x, x_matrix, _, workspace, workspace_bytes = prepared
        y = torch.empty(x.shape[0], self.out_features, dtype=x.dtype)
        self.library.check(self.run(self.library.context, self.linear, x_matrix, 0, matrix(y), workspace, workspace_bytes))
        return y

    def blob_bytes(self):
        info = _abi.int8q_linear_info(C.sizeof(_abi.int8q_linear_info))
        self.library.check(self.library.abi.int8q_describe_linear(self.linear, C.byref(info)))
        return info.blob_bytes


class Int8qWithoutOutliers(Int8qLinear):
    outlier_mode = _abi.INT8Q_OUTLIERS_OFF


class Int8qBackward(Int8qLinear):
    operation, direction = "backward", _abi.INT8Q_BACKWARD

    def __init__(self, library, weight, bias):
        super().__init__(library, weight, bias)
        self.run = library.abi.int8q_backward


class Bitsandbytes:
    """Linear8bitLt with int8 weights, in eval mode."""

    operation, dtype = "linear", "bf16"
    threshold, training = THRESHOLD, False

    def __init__(self, weight, bias):
        self.features = weight.shape
        self.module = bitsandbytes.nn.Linear8bitLt(
            weight.shape[1], weight.shape[0], bias=True, has_fp16_weights=False, threshold=self.threshold
        )
        self.module.load_state_dict({"weight": weight, "bias": bias})
        self.module = self.module.to("cpu").train(self.training)

    def prepare(self, x):
        return x

    def __call__(self, x):
        return self.module(x)


class BitsandbytesWithoutOutliers(Bitsandbytes):
    threshold = 0.0


class BitsandbytesTraining(Bitsandbytes):
    """Forward as in LoRA fine-tuning: the int8 weight is frozen, the input requires a gradient."""

    training = True

    def prepare(self, x):
        return x.clone().requires_grad_()

    def __call__(self, x):
        with torch.enable_grad():
            return self.module(x)


class BitsandbytesBackward(BitsandbytesTraining):
    """Backward to the input alone, through a graph that one forward has left."""

    operation = "backward"

    def prepare(self, dy):
        x = torch.zeros(dy.shape[0], self.features[1], dtype=dy.dtype).requires_grad_()
        with torch.enable_grad():
            return self.module(x), x, dy

    def __call__(self, prepared):
        y, x, dy = prepared
        return torch.autograd.grad(y, x, dy, retain_graph=True)[0]


class TorchFp32:
    operation, dtype, torch_dtype = "linear", "f32", torch.float32

    def __init__(self, weight, bias):
        self.weight, self.bias = weight.to(self.torch_dtype, copy=True), bias.to(self.torch_dtype)

    def prepare(self, x):
        return x.to(self.torch_dtype)

    def __call__(self, x):
        return torch.nn.functional.linear(x, self.weight, self.bias)


class TorchBf16(TorchFp32):
    dtype, torch_dtype = "bf16", torch.bfloat16


class TorchFp32Backward(TorchFp32):
    operation = "backward"

    def __call__(self, dy):
        return dy @ self.weight


class TorchBf16Backward(TorchFp32Backward):
    dtype, torch_dtype = "bf16", torch.bfloat16


def rows_to_codes(x):
    stats = x.abs().amax(1, keepdim=True).float()
    return torch.round(x * (SCALES_TO_CODES / stats)).to(torch.int8), stats


class TorchIntMm:
    """torch._int_mm alone: s8 . s8 -> s32, without quantization, outliers, scales or bias."""

    operation, dtype = "gemm", "s8"

    def __init__(self, weight, bias):
        self.codes = rows_to_codes(weight)[0].t()

    def prepare(self, x):
        return rows_to_codes(x)[0]

    def __call__(self, codes):
        return torch._int_mm(codes, self.codes)

    def reference(self, codes):
        return codes.double() @ self.codes.double()


class TorchDynamic:
    """torch's dynamic int8 linear: fp32 in and out, one u8 scale for all of X, s8 weights with a scale a row, bias."""

    operation, dtype, engine = "linear", "f32", None

    def __init__(self, weight, bias):
        supported = torch.backends.quantized.supported_engines
        if self.engine not in supported:
            raise RuntimeError(f"this torch has no quantized engine {self.engine}, only {', '.join(supported)}")
        torch.backends.quantized.engine = self.engine
        scales = weight.abs().amax(1) / SCALES_TO_CODES
        codes = torch.quantize_per_channel(weight, scales, torch.zeros(len(scales), dtype=torch.int64), 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(codes, bias)

    def prepare(self, x):
        return x.float()

    def __call__(self, x):
        # reduce_range, as torch.ao.nn.quantized.dynamic.Linear has it: 7 bits of X, so that nothing saturates without VNNI.
        return torch.ops.quantized.linear_dynamic(x, self.packed, True)


class FbgemmDynamic(TorchDynamic):
    engine = "fbgemm"


class OnednnDynamic(TorchDynamic):
    engine = "onednn"


class FbgemmStatic(FbgemmDynamic):
    """FBGEMM's kernel as bare as torch has it: X is u8 already, all 8 bits, and Y is requantized to u8 on its way out."""

    operation, dtype = "gemm", "s8"

    def prepare(self, x):
        x = x.float()
        low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
        scale = (high - low) / 255
        return torch.quantize_per_tensor(x, scale, round(-low / scale), torch.quint8), scale

    def __call__(self, prepared):
        x, scale = prepared
        return torch.ops.quantized.linear(x, self.packed, scale, 128)


def saturates():
    """Does torch._int_mm return a wrong sum where all codes are 127, as kernels on vpmaddubsw do?"""
    codes = torch.full((16, 64), SCALES_TO_CODES, dtype=torch.int8)
    return torch._int_mm(codes, codes.t()).unique().tolist() != [64 * SCALES_TO_CODES**2]


class Ours:
    """A class of int8q's, bound to the library."""

    def __init__(self, library, layer_class):
        self.library, self.layer_class = library, layer_class
        self.operation, self.dtype = layer_class.operation, layer_class.dtype

    def __call__(self, weight, bias):
        return self.layer_class(self.library, weight, bias)


def forward_contenders(library):
    isa = library.description()["isa"]
    return {
        f"int8q:{isa}": Ours(library, Int8qLinear),
        f"int8q:{isa}:off": Ours(library, Int8qWithoutOutliers),
        "bitsandbytes:6": Bitsandbytes,
        "bitsandbytes:0": BitsandbytesWithoutOutliers,
        "bitsandbytes:train": BitsandbytesTraining,
        "torch:fp32": TorchFp32,
        "torch:bf16": TorchBf16,
        "torch:int_mm": TorchIntMm,
        "fbgemm:dynamic": FbgemmDynamic,
        "fbgemm:static": FbgemmStatic,
        "onednn:dynamic": OnednnDynamic,
    }


def backward_contenders(library):
    return {
        f"int8q:{library.description()['isa']}": Ours(library, Int8qBackward),
        "bitsandbytes:train": BitsandbytesBackward,
        "torch:fp32": TorchFp32Backward,
        "torch:bf16": TorchBf16Backward,
    }
