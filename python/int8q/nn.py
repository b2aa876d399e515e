# SPDX-License-Identifier: Apache-2.0
"""int8q.nn: the linear layer as a module of torch."""

import torch
from torch.utils._pytree import tree_map

from ._abi import library
from ._packed import (
    CODES,
    Rows,
    as_blob,
    as_rows,
    blob_bytes,
    fitting,
    floats,
    make_blob,
    matrix,
    quantize_weights,
    quantized_rows,
)
from ._torch import layer_of, linear
from .context import gpu, torch_context
from .operations import outlier_mode

_FLOATS = tuple(dtype for dtype in CODES if dtype.is_floating_point)

if hasattr(torch, "get_autocast_dtype"):  # from torch 2.4 on

    def _is_autocast(x):
        return torch.is_autocast_enabled("cpu" if x.is_cpu else x.device.type) if not x.is_meta else False

    def _autocast_dtype(x):
        return torch.get_autocast_dtype(x.device.type)

else:

    def _is_autocast(x):
        return torch.is_autocast_enabled() if x.is_cuda else torch.is_autocast_cpu_enabled()

    def _autocast_dtype(x):
        return torch.get_autocast_gpu_dtype() if x.is_cuda else torch.get_autocast_cpu_dtype()


class _Codes(torch.Tensor):
    """A Linear8bit's int8 codes; memory is taken, for the moment, when somebody asks for more than dtype and shape."""

    @classmethod
    def of(cls, layer):
        codes = torch.empty(layer.out_features, layer.in_features, dtype=torch.int8, device="meta").as_subclass(cls)
        codes._layer = layer
        return codes

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        if function in _ITSELF:
            return arguments[0]
        if function in _CHEAP:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*arguments, **(keywords or {}))
        name = getattr(function, "__name__", "")
        if _writes(name, arguments, keywords or {}):
            raise RuntimeError(f"{name} on a Linear8bit's weight would be lost; use layer.requantize(floats)")
        arguments, keywords = tree_map(_unpacked, (arguments, keywords or {}))
        return function(*arguments, **keywords)


def _writes(name, arguments, keywords):
    """Whether a function of torch changes a _Codes: by its name or as `out`."""
    in_place = (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__set__")
    return (in_place and isinstance(arguments[0], _Codes)) or isinstance(keywords.get("out"), _Codes)


def _unpacked(value):
    return value._layer.unpack() if isinstance(value, _Codes) else value


_ITSELF = {torch.Tensor.data.__get__, torch.Tensor.detach}
_CHEAP = {
    torch.Tensor.requires_grad_,
    torch.Tensor.requires_grad.__set__,
    torch.Tensor.dtype.__get__,
    torch.Tensor.shape.__get__,
    torch.Tensor.ndim.__get__,
    torch.Tensor.requires_grad.__get__,
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.is_floating_point,
}


def set_submodule(model, name, module):
    """Puts module in the place of model's submodule of a dotted name; torch's own from 2.5 on."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


class Linear8bit(torch.nn.Linear):
    """torch.nn.Linear with weights in LLM.int8() (arXiv 2208.07339), frozen; as bitsandbytes' Linear8bitLt in inference.

    in_features, out_features, bias, device, dtype: as nn.Linear's; dtype is the bias'. The weights are zeros until a
    state_dict is loaded; Linear8bit.from_linear quantizes those of an nn.Linear.
    outliers, threshold: as of int8q.Linear

    forward(x): floats [..., K] -> [..., N] of x's dtype; under autocast of autocast's, as F.linear. The gradients to x and
    bias are right, also where the output is changed in place; those of the weights do not exist.

    The packed weights are the storage: a uint8 buffer, `packed`, that casts (.half(), .to(torch.bfloat16)) leave alone, so
    that stats stay fp32. weight (int8 [N,K]) and SCB (float32 [N]) are unpacked at each access. state_dict is bitsandbytes'
    layout: weight, SCB, weight_format, bias; float weights are quantized as they are loaded. It is deep-copied, pickled
    and made on the meta device, too, where loading with assign=True gives it memory.

    saves_floats: set it, and state_dict has the weights as floats, [N,K] float32, from which the same layer is quantized.

    Thread safety: any thread may run it; loading into it or moving it while another runs it is an error.
    """

    saves_floats = False

    def __init__(self, in_features, out_features, bias=True, device=None, dtype=None, *, outliers="column", threshold=6.0):
        torch.nn.Module.__init__(self)
        self._mode = outlier_mode(outliers, threshold)
        self.in_features, self.out_features, self.outliers, self.threshold = in_features, out_features, outliers, threshold
        size = blob_bytes(out_features, in_features) if device is None or torch.device(device).type != "cuda" else 0
        self.register_buffer("packed", torch.empty(size, dtype=torch.uint8, device=device), persistent=False)
        if bias:
            self.bias = torch.nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        if not self.packed.is_meta:
            self._pack(torch.zeros(out_features, in_features, dtype=torch.int8), torch.zeros(out_features))

    @classmethod
    def from_linear(cls, linear, *, outliers="column", threshold=6.0):
        """The layer of an nn.Linear's or Conv1D's weights, quantized here row by row; the bias is the same Parameter.

        Conv1D is transformers' own layer, of GPT-2 for one, whose weight is [K,N].
        """
        weight = getattr(linear, "weight", None)
        if weight is None or weight.dim() != 2 or not hasattr(linear, "bias"):
            raise TypeError(f"linear is a {type(linear).__name__}; expected an nn.Linear, or transformers' Conv1D")
        weight = weight.detach()
        transposed = not isinstance(linear, torch.nn.Linear)
        in_features, out_features = weight.shape if transposed else weight.shape[::-1]
        made = cls._over(None, linear, in_features, out_features, outliers=outliers, threshold=threshold)
        (made._pack_transposed if transposed else made._pack)(weight)
        return made

    @classmethod
    def _over(cls, packed, like, in_features, out_features, **options):
        """A layer over packed weights (None: on the meta device, to be packed), with the bias and mode of `like`."""
        made = cls(in_features, out_features, bias=False, device="meta", **options)
        if packed is not None:
            made.packed = packed
        # Not by setattr: while another thread makes a model for transformers, accelerate sends what is registered to meta.
        made._parameters["bias"] = like.bias
        if packed is not None and packed.is_cuda:
            layer_of(packed, like.bias)
        return made.train(like.training)

    def __setattr__(self, name, value):
        if name in ("weight", "SCB"):
            raise AttributeError(f"{name} of a Linear8bit cannot be set; use requantize(floats) or load_state_dict")
        super().__setattr__(name, value)

    def extra_repr(self):
        return f"{super().extra_repr()}, outliers={self.outliers!r}, threshold={self.threshold:g}"

    def _apply(self, fn, *args, **kwargs):
        """Between the CPU and a GPU packed weights change their form; on a GPU the layer is then ready to be captured."""
        if not self.packed.is_meta and not self.packed.is_cuda:
            there = fn(self.packed.new_empty(1))
            if there.is_cuda:
                gpu(there.get_device())  # before anything is moved to where int8q cannot run
                self.packed = as_rows(self.packed)
        arrives = self.packed.is_cuda
        super()._apply(fn, *args, **kwargs)
        if self.packed.is_cuda:
            if Rows.of(self.packed) is not None:  # unless to_empty gave it memory
                layer_of(self.packed, self._parameters["bias"])
        elif arrives and not self.packed.is_meta:
            self.packed = as_blob(self.packed)
        return self

    # ------------------------------------------------------------------------------------------------ Running

    def forward(self, x):
        if _is_autocast(x):
            x = x.to(_autocast_dtype(x))
        if x.dtype not in _FLOATS:
            raise TypeError(f"x is {x.dtype}; expected float32, float16 or bfloat16")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (..., {self.in_features})")
        return linear(x, self._buffers["packed"], self._parameters["bias"], self.out_features, self._fit)

    def _fit(self):
        """Brings packed weights whose bytes alone were moved into the form of their device."""
        fits = fitting(self.packed)
        if fits is not self.packed:
            self.packed = fits
        return fits

    # ------------------------------------------------------------------------------------------------ Contents

    def _pack(self, weight, col_stats=None, place=None):
        """Packs floats [N,K], or int8 [N,K] with their stats, into new memory: on the layer's device, or that of place."""
        self.packed = self._packed_of(weight, col_stats, place)

    def _packed_of(self, weight, col_stats, place):
        shape = self.out_features, self.in_features
        if tuple(weight.shape) != shape:
            raise ValueError(f"weight has shape {tuple(weight.shape)}; expected {shape}")
        if weight.dtype not in CODES:
            raise TypeError(f"weight is {weight.dtype}; expected float32, float16 or bfloat16, or int8 with SCB")
        place = place if place is not None else weight if self.packed.is_meta else self.packed
        weight, stats = weight.to(place.device).contiguous(), None
        if weight.dtype == torch.int8:
            if col_stats is None:
                raise ValueError("weight is int8 and SCB is missing; expected float32 [out_features] beside it")
            stats = col_stats.detach().float().flatten().to(place.device).contiguous()
            if stats.numel() != self.out_features:
                raise ValueError(f"SCB has shape {tuple(col_stats.shape)}; expected ({self.out_features},)")
        with torch.inference_mode(False):  # a tensor of that mode has no version, by which a layer is opened
            if not place.is_cuda:
                return make_blob(weight, stats, self._mode, self.threshold)
            packed = quantized_rows(weight, stats, self._mode, self.threshold, place)
            layer_of(packed, self._parameters["bias"])  # looks at the stats
            return packed

    def _pack_transposed(self, weight):
        """Packs floats [K,N], as GPT-2's Conv1D has them; a few rows of W at a time are transposed."""
        if weight.dtype not in _FLOATS:
            raise TypeError(f"weight is {weight.dtype}; expected float32, float16 or bfloat16")
        codes = weight.new_empty((self.out_features, self.in_features), dtype=torch.int8)
        stats = weight.new_empty(self.out_features, dtype=torch.float32)
        for begin in range(0, self.out_features, 256):
            rows = weight[:, begin : begin + 256].t().contiguous()
            part = slice(begin, begin + len(rows))
            quantize_weights(rows, codes[part], stats[part])
        self._pack(codes, stats)

    @property
    def weight(self):
        """The codes, int8 [N,K]: a tensor that is unpacked anew by each use but for its dtype and shape (T5 asks at each
        call), so keep layer.weight.clone() for several; on the meta device while the layer is."""
        if self.packed.is_meta:
            return torch.empty(self.out_features, self.in_features, dtype=torch.int8, device="meta")
        return _Codes.of(self)

    def unpack(self):
        """The codes, int8 [N,K], in a new tensor."""
        if self.packed.is_meta or not self.packed.is_cuda:
            codes = torch.empty(self.out_features, self.in_features, dtype=torch.int8, device=self.packed.device)
            return codes if codes.is_meta else self._export(codes, matrix(codes), None)
        return self._rows().codes.clone(memory_format=torch.contiguous_format)

    @property
    def SCB(self):
        """absmax of each row of W, float32 [N], a new tensor at each access."""
        if self.packed.is_meta or not self.packed.is_cuda:
            stats = torch.empty(self.out_features, device=self.packed.device)
            return stats if stats.is_meta else self._export(stats, None, floats(stats))
        return self._rows().col_stats.clone()

    def _export(self, result, codes, col_stats):
        handle = layer_of(self.packed).handle
        torch_context().call(library().int8q_export_linear, handle, codes, col_stats, None, None, None)
        return result

    def _rows(self):
        return Rows.of(self._fit())

    def dequantize(self, dtype=torch.float32):
        """weight * SCB / 127, [N,K] of dtype; SCB where a code is 127, so that quantizing it gives the same layer."""
        codes, stats = self.unpack().float(), self.SCB[:, None]
        return torch.where(codes.abs() == 127, codes.sign() * stats, codes * (stats / 127)).to(dtype)

    def to_linear(self, dtype=torch.float32):
        """The nn.Linear with these weights in floats of dtype; the bias is the same Parameter."""
        made = torch.nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        made.weight = torch.nn.Parameter(self.dequantize(dtype))
        made.bias = self.bias
        return made.train(self.training)

    def requantize(self, weight):
        """Replaces the weights by floats [N,K], quantized row by row; all else stays. SCB is the new absmax of each row.

        On a CPU the packed weights get new memory: who holds the old `packed` has the old weights, and may set it again. On
        a GPU they are written in place, on torch's current stream: a graph that was captured with this layer has the new
        weights from its next replay on, as load_state_dict does it; keep packed.clone() to have the old ones. Raises
        ValueError of another shape and of NaN or Inf, TypeError of another dtype; the layer is unchanged then.
        """
        if weight.dtype not in _FLOATS:
            raise TypeError(f"weight is {weight.dtype}; expected float32, float16 or bfloat16")
        self._put(self._packed_of(weight.detach(), None, None))

    def _put(self, packed):
        """Takes packed weights of this shape; a GPU's into the memory of the old ones, which captured graphs read."""
        if packed.is_cuda and self.packed.is_cuda:
            packed = fitting(packed)
            if packed.shape == self.packed.shape:
                with torch.inference_mode(self.packed.is_inference()):
                    self.packed.copy_(packed)
                layer_of(self.packed, self._parameters["bias"])
                return
        self.packed = packed

    def _kept(self):
        """The packed weights, for _put; they stay as they are when others are put."""
        return self.packed.clone() if self.packed.is_cuda else self.packed

    # ------------------------------------------------------------------------------------------------ State

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        if self.saves_floats:
            destination[prefix + "weight"] = self.dequantize()
        else:
            destination[prefix + "weight"] = self.unpack()
            destination[prefix + "SCB"] = self.SCB
            destination[prefix + "weight_format"] = torch.tensor(0, dtype=torch.uint8)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs):
        names = [prefix + name for name in ("weight", "SCB", "weight_format")]
        weight, col_stats, layout = (state_dict.get(name) for name in names)
        rest = {key: value for key, value in state_dict.items() if key not in names}
        super()._load_from_state_dict(rest, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if weight is None:
            missing_keys.append(names[0])
            return
        layout = layout.item() if isinstance(layout, torch.Tensor) else layout
        if layout not in (None, 0, "row"):
            error_msgs.append(f'{names[2]} is {layout}; expected 0 (or "row"): weights in rows, as bitsandbytes saves them')
            return
        try:
            if (metadata or {}).get("assign_to_params_buffers"):
                self._pack(weight.detach(), col_stats, place=weight)
                return
            self._put(self._packed_of(weight.detach(), col_stats, None))
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{prefix[:-1] or type(self).__name__}: {error}")
