# SPDX-License-Identifier: Apache-2.0
"""The LoRA layer of int8q.peft where peft is older than 0.7, whose layers are the nn.Linear themselves."""

import warnings

import torch
import torch.nn.functional as F
from peft.tuners import lora

from .nn import Linear8bit


class LoraLinear8bit(Linear8bit, lora.LoraLayer):
    """A Linear8bit that holds adapters of peft before 0.7: it is the layer and has lora_A, lora_B beside its weights.

    Unlike peft's own layers it never merges by itself (eval(), merge_weights). `unmerged`: the packed W of before
    merging, else None.
    """

    @classmethod
    def over(cls, made, layer):
        """`made`, the module that peft just made: its adapters, over the weights of `layer` instead of its own."""
        made.__class__ = cls
        for name in ("weight", "bias"):
            made._parameters.pop(name, None)
        made.register_buffer("packed", layer.packed, persistent=False)
        made.register_buffer("unmerged", None, persistent=False)
        made.register_parameter("bias", layer.bias)
        for name in ("_mode", "outliers", "threshold"):
            setattr(made, name, getattr(layer, name))
        made.in_use = True
        return made

    def without_adapters(self):
        """The Linear8bit alone, over the same weights and bias."""
        options = {"outliers": self.outliers, "threshold": self.threshold}
        return Linear8bit._over(self.packed, self, self.in_features, self.out_features, **options)

    @property
    def merged(self):
        return self.unmerged is not None

    def forward(self, x):
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = super().forward(x)
        if self.disable_adapters or self.merged:
            return result
        total = result
        for A, B, dropout, scaling in _active(self):
            y = A(dropout(x.to(A.weight.dtype)))
            total = total + scaling * (B(y) if not hasattr(self, "enable_lora") else _spread(self, B, y))
        return total.to(result.dtype)

    @torch.no_grad()
    def merge(self, safe_merge=False):
        """Merges the active adapters. ValueError if the sum is not finite: the layer is unchanged then."""
        if self.merged:
            warnings.warn("Already merged. Nothing to do.", stacklevel=2)
        elif _active(self):
            packed = self._kept()
            self.requantize(self.dequantize() + delta(self))
            self.unmerged = packed

    def unmerge(self):
        """Takes the merged adapters out: the weights are bit for bit those of before."""
        if self.merged:
            self._put(self.unmerged)
            self.unmerged = None
        else:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)


# What follows serves peft 0.2.0's own LoRA layers, too, which int8q.peft.merge may meet beside these.


def _active(layer):
    """[(lora_A, lora_B, dropout, scaling)] of the active adapters; peft 0.2.0 has one and no names."""
    if not hasattr(layer, "lora_A"):
        return []
    if not isinstance(layer.lora_A, torch.nn.ModuleDict):
        return [(layer.lora_A, layer.lora_B, layer.lora_dropout, layer.scaling)]
    names = [layer.active_adapter] if isinstance(layer.active_adapter, str) else layer.active_adapter
    parts = layer.lora_A, layer.lora_B, layer.lora_dropout, layer.scaling
    return [tuple(part[name] for part in parts) for name in names if name in layer.lora_A]


def _groups(layer, B):
    """W is thirds (q, k, v), and enable_lora names those that have an adapter: B [out, r, 1], one after another."""
    return B.weight.squeeze(-1).chunk(sum(layer.enable_lora))


def _spread(layer, B, y):
    """B of a layer with enable_lora: y [..., groups * r] -> [..., N], zeros where no adapter is."""
    parts = [F.linear(part, b) for part, b in zip(y.chunk(sum(layer.enable_lora), -1), _groups(layer, B))]
    result = parts[0].new_zeros(*y.shape[:-1], layer.out_features)
    result[..., layer.lora_ind] = torch.cat(parts, -1)
    return result


def delta(layer):
    """sum of scaling * B A over the active adapters, float32 [N,K]."""
    total = torch.zeros(layer.out_features, layer.in_features, device=next(layer.parameters()).device)
    for A, B, _, scaling in _active(layer):
        a = A.weight.float()
        if hasattr(layer, "enable_lora"):
            parts = [b.float() @ part for part, b in zip(a.chunk(sum(layer.enable_lora)), _groups(layer, B))]
            total[layer.lora_ind] += scaling * torch.cat(parts)
        else:
            total += scaling * (B.weight.float() @ a)
    return total
