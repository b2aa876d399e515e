# SPDX-License-Identifier: Apache-2.0
"""Linear8bit layers whose weights are still being read.

transformers' loaders differ in how they read, rename and cast tensors, and agree in what they do last: they set the tensor
as a module's parameter. An Incoming layer has a `weight` on the meta device for them, and packs what is set in its place.
"""

import torch
import transformers
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from .nn import Linear8bit, set_submodule

_V5 = int(transformers.__version__.split(".")[0]) >= 5


def replaceable(module):
    """Whether it is an nn.Linear or GPT-2's Conv1D, and not yet int8.

    nn.MultiheadAttention multiplies by its out_proj's weight itself.
    """
    return type(module) in (torch.nn.Linear, Conv1D) or (
        isinstance(module, torch.nn.Linear)
        and type(module).forward is torch.nn.Linear.forward
        and not isinstance(module, torch.nn.modules.linear.NonDynamicallyQuantizableLinear)
    )


def places_of(model, skipped):
    """For each layer to replace, all of its names: a module can stand in several places. None of them may be skipped."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if replaceable(module):
            found.setdefault(id(module), []).append(name)
    return [names for names in found.values() if not any(map(skipped, names))]


class _Watched(dict):
    """A module's parameters or buffers, told of each that is set."""

    def __init__(self, layer, contents):
        super().__init__(contents)
        self.layer = layer

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        self.layer.take()

    def __reduce__(self):
        return dict, (dict(self),)


class Incoming(Linear8bit):
    """A Linear8bit to be; finish() makes it one.

    Parameters: weight, on the meta device, in the checkpoint's shape and dtype; bias. Buffers, if these are int8:
    SCB float32 [N], weight_format uint8.
    """

    def __init__(self, module, floats, options, progress):
        torch.nn.Module.__init__(self)
        self.transposed = isinstance(module, Conv1D) and floats
        rows, cols = module.weight.shape
        self.in_features, self.out_features = (rows, cols) if isinstance(module, Conv1D) else (cols, rows)
        self.options, self.progress, self.packed, self.error = options, progress, None, None
        self.unflagged = ["weight"]
        shape = (rows, cols) if self.transposed else (self.out_features, self.in_features)
        dtype = module.weight.dtype if floats else torch.int8
        weight = torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
        buffers = {}
        if not floats:
            buffers["SCB"] = torch.empty(self.out_features, dtype=torch.float32, device="meta")
            # bitsandbytes before 0.43.1 saved a string or nothing, which both meant this.
            buffers["weight_format"] = torch.zeros((), dtype=torch.uint8)
        self.train(module.training)
        self.__dict__["_parameters"] = _Watched(self, {"weight": weight, "bias": module.bias})
        self.__dict__["_buffers"] = _Watched(self, buffers)

    weight = property(lambda self: self._parameters["weight"])
    SCB = property(lambda self: self._buffers["SCB"])
    __setattr__ = torch.nn.Module.__setattr__
    _is_hf_initialized = True  # finish() says what is missing; transformers would fill it with random numbers
    _save_to_state_dict = torch.nn.Module._save_to_state_dict
    _load_from_state_dict = torch.nn.Module._load_from_state_dict

    def _apply(self, fn, *args, **kwargs):
        """Moves and casts what is there; accelerate does so before a model is finished."""
        if self.packed is not None:
            self.packed = fn(self.packed)
        if self.bias is not None and not self.bias.is_meta:
            self.bias.data = fn(self.bias.data)
        return self

    def extra_repr(self):
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def take(self):
        """Packs the weights once they are there, and lets the tensor go."""
        weight, stats = self._parameters["weight"], self._buffers.get("SCB")
        if weight is None or weight.is_meta or (stats is not None and stats.is_meta):
            return
        made = Linear8bit(self.in_features, self.out_features, bias=False, device="meta", **self.options)
        try:
            if self.transposed:
                made._pack_transposed(weight.detach())
            else:
                made._pack(weight.detach(), stats)
            self.packed, self.error = made.packed, None
        except (TypeError, ValueError) as error:  # may be memory that a loader has not filled; finish() knows
            self.packed, self.error = None, error
        empty = torch.nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
        if _V5:  # before, accelerate's contexts of other threads would trip over an attribute
            empty._is_hf_initialized = True
        parts = {"weight": weight, "SCB": stats}
        self.unflagged = [
            part for part, t in parts.items() if t is not None and not getattr(t, "_is_hf_initialized", False)
        ]
        dict.__setitem__(self._parameters, "weight", empty)
        self.progress.update(1)

    def absent(self, name, part):
        """The error of a checkpoint without this layer's tensors."""
        return ValueError(
            f"{name} is to be int8 and the checkpoint has no {part} for it; load another checkpoint, or name it in "
            f"llm_int8_skip_modules to have it in floats"
        )

    def finish(self, name):
        """Becomes a Linear8bit."""
        # transformers 5 flags what the checkpoint has and fills the rest with whatever lies there; before, expect() looked.
        if _V5 and self.unflagged:
            raise self.absent(name, self.unflagged[0])
        if self.error is not None:
            raise ValueError(f"{name}: {self.error}") from self.error
        if self.packed is None:
            raise self.absent(name, "weight")
        layout = self._buffers.get("weight_format")
        if _V5 and not getattr(layout, "_is_hf_initialized", False):
            layout = None
        if layout is not None and layout.item() != 0:
            raise ValueError(
                f"{name}.weight_format is {layout.item()}; expected 0: weights in rows, as bitsandbytes saves them"
            )
        hooks = {key: value for key, value in self.__dict__.items() if key in ("_hf_hook", "_old_forward", "forward")}
        made = Linear8bit._over(self.packed, self, self.in_features, self.out_features, **self.options)
        self.__dict__.clear()
        self.__dict__.update(made.__dict__, **hooks)
        self.__class__ = Linear8bit


def expect(model, keys):
    """Tells the Incoming layers of a model which keys the checkpoint has; ValueError where it lacks their tensors.

    Keys of a base model and of a model with a head differ by a prefix.
    """
    prefix = f"{model.base_model_prefix}."
    known = set(keys) | {key[len(prefix) :] for key in keys if key.startswith(prefix)}
    for name, module in model.named_modules():
        if isinstance(module, Incoming):
            parts = [*module._parameters, *module._buffers]
            found = {
                part for part in parts if not known.isdisjoint((f"{name}.{part}", f"{name}.{part}".removeprefix(prefix)))
            }
            for part in parts:
                if part in ("weight", "SCB") and part not in found:
                    raise module.absent(name, part)
            if "weight_format" not in found:  # transformers would initialize what it misses, and all around it
                module._non_persistent_buffers_set.add("weight_format")


def receive(model, skipped, floats, options, progress):
    """Puts an Incoming in the place of each nn.Linear and Conv1D of a model on the meta device, but for skipped names.

    floats(name): whether the checkpoint has its weights as floats, else int8. options: of Linear8bit.
    progress: whether to show a bar, one step a layer.
    """
    wanted = places_of(model, skipped)
    bar = logging.tqdm(total=len(wanted), desc="Quantizing to int8", unit="layer", disable=not progress)
    for names in wanted:
        incoming = Incoming(model.get_submodule(names[0]), floats(names[0]), options, bar)
        for name in names:
            set_submodule(model, name, incoming)


def untie(model):
    """Takes Incoming layers of int8 tensors out of what transformers 5 ties once all is loaded."""
    tied = model.all_tied_weights_keys
    for key in list(tied):
        module = model.get_submodule(key.rpartition(".")[0])
        if isinstance(module, Incoming) and "SCB" in module._buffers:
            del tied[key]


def finish(model):
    """Makes Linear8bit layers of all that receive() put in; ValueError where weights have not come."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Incoming):
            module.progress.close()
            module.finish(name)
