# SPDX-License-Identifier: Apache-2.0
"""int8q.peft: LoRA (arXiv 2106.09685) of peft 0.2.0 and newer over int8q.nn.Linear8bit; importing it is enough.

    import int8q.peft
    model = get_peft_model(model, LoraConfig(...))    # as ever; target_modules may mix nn.Linear and Linear8bit

peft makes the adapters, saves and loads them: their files name nothing of int8q. Methods of peft's LoraModel are wrapped in
place, so that names imported from peft and configs made before are served, too; uninstall() puts the originals back.

    peft           a LoRA layer is                               it is made by
    0.12 and on    a lora.Linear around the Linear8bit           LoraConfig._register_custom_module, which is peft's hook
    0.7 to 0.11    the same                                      LoraModel._create_new_module
    0.2 to 0.6     a Linear8bit that holds peft's adapters       LoraModel._replace_module, from the module peft just made

Merging adds in fp32 and rounds once, row by row:  W' = quantize(dequantize(W) + sum of scaling * B A), so that each weight
of W' is within half a step, SCB'/254, of the sum. The packed W is kept while the layer is merged; unmerging puts it back,
bit for bit.
"""

import functools
import inspect
import warnings
from contextlib import contextmanager

import torch

try:
    import peft
except ModuleNotFoundError as error:
    if error.name != "peft":
        raise
    raise ImportError("int8q.peft is for peft, which is not installed in this Python; pip install peft") from error
from peft.tuners import lora

from .nn import Linear8bit, set_submodule

__all__ = ["LoraLinear8bit", "install", "merge", "merge_and_unload", "unmerge", "uninstall"]

_WRAPS = not issubclass(lora.Linear, torch.nn.Linear)  # from 0.7 on lora.Linear has a base_layer; before, it is the layer
_HAS_HOOK = hasattr(lora.LoraConfig, "_register_custom_module")

# ---------------------------------------------------------------------------------------------------- Layers

if _WRAPS:
    from peft.tuners import tuners_utils

    # init_lora_weights that leave W alone, and the variants of LoRA that never ask for its values or its dtype
    _INITS = (True, False, "gaussian", "eva")
    _VARIANTS = ("alora_invocation_tokens", "arrow_config", "monteclora_config")

    def _check(config, where):
        """ValueError for what needs float weights: DoRA, PiSSA, OLoRA, LoftQ, CorDA, ..."""
        refused = ["use_dora", "use_qalora"]
        refused += [key for key, field in config.__dataclass_fields__.items() if field.metadata.get("is_lora_variant")]
        for name in refused:
            if name not in _VARIANTS and getattr(config, name, None):
                raise ValueError(
                    f"{name}={getattr(config, name)!r} needs float weights, and {where} is int8 (int8q.nn.Linear8bit); "
                    f"leave {name} out, or leave the int8 layers out of target_modules"
                )
        init = config.init_lora_weights
        if (init.lower() if isinstance(init, str) else init) not in _INITS:
            raise ValueError(
                f"init_lora_weights={init!r} needs float weights, and {where} is int8 (int8q.nn.Linear8bit); expected one "
                f"of {', '.join(map(repr, _INITS))}, or leave the int8 layers out of target_modules"
            )

    class LoraLinear8bit(lora.Linear):
        """peft's LoRA layer around a Linear8bit, base_layer: adapters and forward are peft's, merging is int8q's.

        Its adapters are fp32, as W gives them no dtype. fan_in_fan_out is False whatever the config says: a Linear8bit is
        always [N,K], also where it was made of a Conv1D. `unmerged`: the packed W of before merging, else None.
        """

        def __init__(self, base_layer, adapter_name, *args, **kwargs):
            super().__init__(base_layer, adapter_name, *args, **kwargs)
            self.fan_in_fan_out = False
            self.register_buffer("unmerged", None, persistent=False)
            self.unmerged_bias = None

        @torch.no_grad()
        def merge(self, safe_merge=False, adapter_names=None):
            """Merges the active adapters or adapter_names into base_layer.

            ValueError if the sum is not finite, whatever safe_merge says; RuntimeError for lora_bias without a bias: the
            layer is unchanged then.
            """
            find = getattr(tuners_utils, "check_adapters_to_merge", lambda layer, names: names or layer.active_adapters)
            names = [name for name in find(self, adapter_names) if name in self.lora_A]
            if not names:
                return
            base, variants = self.get_base_layer(), getattr(self, "lora_variant", {})
            with_bias = [name for name in names if getattr(self, "lora_bias", {}).get(name)]
            if with_bias and base.bias is None:
                raise RuntimeError("an adapter with lora_bias=True cannot be merged into a layer that has no bias")
            weight = base.dequantize()
            for name in names:
                if name in variants:
                    weight = variants[name].merge_safe(self, name, weight)
                else:
                    weight += self.scaling[name] * (self.lora_B[name].weight.float() @ self.lora_A[name].weight.float())
            packed = base._kept()
            base.requantize(weight)
            if not self.merged:
                self.unmerged = packed
            if with_bias:
                self.unmerged_bias = base.bias.data if self.unmerged_bias is None else self.unmerged_bias
                base.bias.data = base.bias + sum(self.scaling[name] * self.lora_B[name].bias for name in with_bias)
            self.merged_adapters.extend(names)

        def unmerge(self):
            """Takes all merged adapters out of base_layer, whose weights are bit for bit those of before."""
            if not self.merged:
                warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
                return
            base = self.get_base_layer()
            base._put(self.unmerged)
            self.unmerged = None
            if self.unmerged_bias is not None:
                base.bias.data, self.unmerged_bias = self.unmerged_bias, None
            self.merged_adapters.clear()

else:
    from ._peft_early import LoraLinear8bit, delta


# ---------------------------------------------------------------------------------------------------- Merging


def merge(model):
    """Merges the active adapters of a PeftModel into its layers: model.merge_adapter(), which peft has from 0.3 on."""
    _each(model, "merge_adapter", lambda layer: layer.merge(), +1)


def unmerge(model):
    """Takes merged adapters out of the layers: model.unmerge_adapter(), which peft has from 0.3 on."""
    _each(model, "unmerge_adapter", lambda layer: layer.unmerge(), -1)


def merge_and_unload(model):
    """The base model with the active adapters merged, without LoRA layers: model.merge_and_unload(), from peft 0.3 on.

    A Linear8bit stays one, as do its outliers, threshold and bias; other layers become nn.Linear in peft 0.2.0.
    """
    tuner = _tuner(model)
    if hasattr(lora.LoraModel, "merge_and_unload"):
        return tuner.merge_and_unload()
    layers = [(name, layer) for name, layer in tuner.model.named_modules() if isinstance(layer, lora.LoraLayer)]
    if not all(layer.merged for _, layer in layers):
        merge(model)
    for name, layer in layers:
        if isinstance(layer, LoraLinear8bit):
            plain = layer.without_adapters()
        else:
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = torch.nn.Parameter(layer.weight.data.t() if layer.fan_in_fan_out else layer.weight.data)
            plain.bias = layer.bias
        set_submodule(tuner.model, name, plain)
    return tuner.model


def _tuner(model):
    tuner = model if isinstance(model, lora.LoraModel) else getattr(model, "base_model", None)
    if not isinstance(tuner, lora.LoraModel):
        raise TypeError(f"model is {type(model).__name__}; expected a PeftModel with LoRA")
    return tuner


@torch.no_grad()
def _each(model, method, run, sign):
    tuner = _tuner(model)
    if hasattr(lora.LoraModel, method):
        return getattr(tuner, method)()
    for layer in tuner.modules():
        if isinstance(layer, LoraLinear8bit):
            run(layer)
        elif isinstance(layer, lora.LoraLayer) and layer.merged == (sign < 0):
            change = sign * delta(layer)
            layer.weight.data += (change.t() if layer.fan_in_fan_out else change).to(layer.weight.dtype)
            layer.merged = not layer.merged


# ---------------------------------------------------------------------------------------------------- peft's methods


def _create_and_replace(original):
    def create_and_replace(self, lora_config, adapter_name, target, *args, **kwargs):
        if isinstance(_base(target), Linear8bit):
            _check(lora_config, kwargs.get("current_key") or "a target")
            _refuse_to_save(self.model, lora_config)
            if _HAS_HOOK:
                lora_config._register_custom_module({Linear8bit: LoraLinear8bit})
        return original(self, lora_config, adapter_name, target, *args, **kwargs)

    return create_and_replace


def _create_new_module(original):
    def create_new_module(lora_config, adapter_name, target, **kwargs):
        if isinstance(_base(target), Linear8bit):
            return LoraLinear8bit(target, adapter_name, **kwargs)
        return original(lora_config, adapter_name, target, **kwargs)

    return create_new_module


def _replace_module(original):
    def replace_module(*args):  # with or without self: peft 0.5 and 0.6 have a static method
        parent, name, new, old = args[-4:]
        if _WRAPS and isinstance(new, (LoraLinear8bit, Linear8bit)):
            setattr(parent, name, new)  # peft's would unpack the weights a dozen times, to learn their device
        elif _WRAPS:
            original(*args)
        elif vars(new).get("in_use"):
            raise ValueError(
                f"{name} is a {type(old).__name__}, for which peft {peft.__version__} makes no LoRA layer: it would share "
                "the adapter of another; leave it out of target_modules"
            )
        elif not isinstance(old, Linear8bit):
            original(*args)
            new.in_use = True
        elif isinstance(new, lora.LoraLayer):
            setattr(parent, name, LoraLinear8bit.over(new, old))
        else:
            setattr(parent, name, old.without_adapters())

    return replace_module


def _in_float(original):
    """peft before 0.12 takes is_loaded_in_8bit for layers of bitsandbytes: it asks for these and refuses to merge."""

    def run(self, *args, **kwargs):
        if original.__name__ in (
            "_find_and_replace",
            "inject_adapter",
        ):  # whose last argument that is a name is the adapter's
            configs, names = self.peft_config, [name for name in (*args, *kwargs.values()) if isinstance(name, str)]
            _refuse_to_save(args[0] if len(args) > 1 else self.model, configs[names[0]] if names else configs)
        with _unflagged(self.model):
            return original(self, *args, **kwargs)

    return run


def _refuse_to_save(model, config):
    """ValueError for modules_to_save that are int8 or hold what is: these would neither train nor fit a float model."""
    ends = config.modules_to_save or ()
    for name, layer in model.named_modules() if ends else ():
        parts = name.split(".")
        if isinstance(layer, Linear8bit) and not {"lora_A", "modules_to_save"} & set(parts):
            for end in ends:
                if f".{end}." in f".{name}.":
                    raise ValueError(
                        f"modules_to_save has {end!r}, and {name} is int8 (int8q.nn.Linear8bit), whose weights do not "
                        f"train; leave {end!r} out, or load the model with it in llm_int8_skip_modules"
                    )


@contextmanager
def _unflagged(model):
    layers = list(model.modules()) if vars(model).get("is_loaded_in_8bit") else []
    ours = any(isinstance(layer, Linear8bit) for layer in layers)
    hide = ours and not any(type(layer).__name__ == "Linear8bitLt" for layer in layers)
    try:
        if hide:
            model.is_loaded_in_8bit = False
        yield
    finally:
        if hide:
            model.is_loaded_in_8bit = True


def _base(target):
    return target.get_base_layer() if hasattr(target, "get_base_layer") else target


_originals = {}  # method of LoraModel -> what the class itself had there, or None where it inherits


def install():
    """Wraps LoraModel's methods; importing int8q.peft does it. Again is nothing."""
    wrappers = {"_replace_module": _replace_module}
    if _WRAPS:
        wrappers["_create_and_replace"] = _create_and_replace
    if _WRAPS and not _HAS_HOOK:
        wrappers["_create_new_module"] = _create_new_module
    if not _HAS_HOOK:
        names = ("_find_and_replace", "inject_adapter", "_unload_and_optionally_merge", "merge_and_unload")
        wrappers.update((name, _in_float) for name in names if hasattr(lora.LoraModel, name))
    for name, wrap in wrappers.items():
        if name not in _originals:
            static = isinstance(inspect.getattr_static(lora.LoraModel, name), staticmethod)
            method = getattr(lora.LoraModel, name)
            wrapper = functools.wraps(method)(wrap(method))
            _originals[name] = vars(lora.LoraModel).get(name)
            setattr(lora.LoraModel, name, staticmethod(wrapper) if static else wrapper)


def uninstall():
    """Puts LoraModel's own methods back. Layers that were made before go on, but peft before 0.12 does not unload them."""
    while _originals:
        name, original = _originals.popitem()
        if original is None:
            delattr(lora.LoraModel, name)
        else:
            setattr(lora.LoraModel, name, original)


install()
