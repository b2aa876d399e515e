# SPDX-License-Identifier: Apache-2.0
"""Importing int8q.as_bitsandbytes lets scripts that were written for bitsandbytes' LLM.int8() run on int8q, unchanged.

    import int8q.as_bitsandbytes                                       # before or after transformers and peft
    model = AutoModelForSeq2SeqLM.from_pretrained(path, load_in_8bit=True, device_map="auto")

What asks for 8 bits gets them from int8q.transformers, in every version: load_in_8bit=True,
quantization_config=BitsAndBytesConfig(load_in_8bit=True), and checkpoints whose config.json says so. What int8q does not do
is refused by name: 4 bits, bitsandbytes' optimizers, FSDP1, and by int8q.peft DoRA. Everything else is as before.

Functions are wrapped in place, so it does not matter who has imported what. undo() puts the originals back, and apply(),
which the import calls, wraps them again. See docs/as-bitsandbytes.md.
"""

import functools
import logging
import re
import sys

import torch

from . import _bitsandbytes_stand_in as stand_in

# importlib.reload keeps these.
_originals = globals().get("_originals", [])  # [(owner, name, what was there or _ABSENT)]
_ABSENT = globals().get("_ABSENT", object())
_said = globals().get("_said", set())
_had_int8q_peft = globals().get("_had_int8q_peft", "int8q.peft" in sys.modules)
stand_in.install()  # before peft and transformers ask

import transformers  # noqa: E402

from ._packed import why_no_gpu  # noqa: E402
from .nn import Linear8bit  # noqa: E402
from .transformers import HUB_OPTIONS, Int8qConfig, load_in_8bit  # noqa: E402

try:
    import peft

    from . import peft as int8q_peft
except Exception:  # absent or itself broken, which a script that uses it learns by its own import
    peft = int8q_peft = None

__all__ = ["apply", "undo"]

_UNDO = "int8q.as_bitsandbytes.undo() gives bitsandbytes back"
_LLM_INT8 = {  # option -> its default
    "llm_int8_threshold": 6.0,
    "llm_int8_skip_modules": None,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
}
_BITSANDBYTES_OPTIMIZER = re.compile("paged_|lion|ademamix|.*bnb|(galore_)?adamw_8bit")
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


def _say_once(text):
    if text not in _said:
        _said.add(text)
        logging.getLogger("int8q").warning(text)


# ---------------------------------------------------------------------------------------------------- from_pretrained


def _from_pretrained(original):
    """PreTrainedModel.from_pretrained, where the Auto classes end, too."""

    @functools.wraps(original.__func__)
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        path, options = pretrained_model_name_or_path, dict(kwargs)
        if isinstance(options.get("quantization_config"), Int8qConfig) or not _translate(cls, path, options):
            # The flags are gone in new versions; here they are False.
            kwargs.pop("load_in_8bit", None), kwargs.pop("load_in_4bit", None)
            return original.__get__(None, cls)(path, *args, **kwargs)
        return load_in_8bit(cls, path, *args, **options)

    return classmethod(from_pretrained)


def _translate(cls, path, kwargs):
    """Whether from_pretrained is asked for 8 bits; if so, kwargs become load_in_8bit's. ValueError names what cannot be."""
    saved, saved_dtype = _checkpoint(cls, path, kwargs)
    config = kwargs.pop("quantization_config", None)
    asked = _as_dict(config)
    flags = {name: kwargs.pop(name, False) for name in ("load_in_8bit", "load_in_4bit")}
    if config is not None and not set(flags) & set(asked):  # another method's
        if any(flags.values()):
            raise ValueError(f"load_in_8bit beside a {type(config).__name__}; expected a BitsAndBytesConfig, or none")
        return False
    if flags["load_in_4bit"] or asked.get("load_in_4bit") or (not any(flags.values()) and saved.get("load_in_4bit")):
        raise ValueError(f"load_in_4bit: int8q has no 4 bits; use load_in_8bit=True, or {_UNDO}")
    if not any(which.get("load_in_8bit") for which in (flags, asked, saved)):
        return False
    options = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith(("llm_int8_", "bnb_4bit_"))}
    if config is not None and options:
        raise ValueError(f"{sorted(options)[0]} beside quantization_config; expected one of both")
    options = {**_given(asked), **options}
    offloaded = _place(kwargs, options)
    kwargs["quantization_config"] = _config(options)
    if not saved:
        kwargs["quantization_config"].also_skip = offloaded
    _set_dtype(kwargs, saved_dtype)
    return True


def _as_dict(config):
    """A BitsAndBytesConfig of any version, or the dict of a config; {} of None and of other methods' configs."""
    if config is None or isinstance(config, dict):
        return config or {}
    if isinstance(config, Int8qConfig):
        return config.to_dict()
    names = ("load_in_8bit", "load_in_4bit", *_LLM_INT8)
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def _given(options):
    """The llm_int8_* of a config that are not what it has if nothing is said."""
    return {name: value for name, value in options.items() if name in _LLM_INT8 and value != _LLM_INT8[name]}


def _checkpoint(cls, path, kwargs):
    """(quantization_config in the checkpoint's config.json or {}, its dtype)."""
    config = kwargs.get("config")
    if isinstance(config, getattr(cls, "config_class", None) or ()):
        found = vars(config)
    else:
        found = _config_json(cls, config or path, kwargs)
    return _as_dict(found.get("quantization_config")), found.get("dtype", found.get("torch_dtype"))


def _config_json(cls, path, kwargs):
    """A checkpoint's config.json; {} where there is none, and from_pretrained will say so."""
    hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
    try:
        return cls.config_class.get_config_dict(path, **hub)[0]
    except (AttributeError, OSError, ValueError, TypeError):
        return {}


def _config(options):
    """The Int8qConfig of llm_int8_* options."""
    for name in sorted(options):
        if name.startswith("llm_int8_") and name not in _LLM_INT8:
            raise ValueError(f"{name}: int8q does not know it; it knows {', '.join(_LLM_INT8)}")
    if options.get("llm_int8_has_fp16_weight"):
        raise ValueError(
            f"llm_int8_has_fp16_weight=True: int8q's weights are int8 and frozen; train adapters instead, or {_UNDO}"
        )
    return Int8qConfig(options.get("llm_int8_threshold"), options.get("llm_int8_skip_modules"))


def _place(kwargs, options):
    """Makes device_map one of the CPU where there is no GPU, and names the GPU where nothing is said, as bitsandbytes does.

    The result are names of modules to keep in floats: those that device_map has on the CPU beside a GPU, if
    llm_int8_enable_fp32_cpu_offload says so; else none.
    """
    device_map = kwargs.get("device_map")
    places = device_map if isinstance(device_map, dict) else {"": device_map}
    if "disk" in places.values():
        raise ValueError('device_map sends modules to "disk"; int8 layers stay in memory: expected "auto" or "cpu"')
    on_cpu = {name for name, place in places.items() if isinstance(place, (str, torch.device)) and str(place) == "cpu"}
    elsewhere = {name for name, place in places.items() if place not in (None, *_STRATEGIES)} - on_cpu
    if {str(place) for place in places.values()} == {"cpu"}:
        missing = "the CPU is named"  # and CUDA left alone
    else:
        missing = why_no_gpu()
    if not missing:
        if device_map is None:
            kwargs["device_map"] = {"": torch.cuda.current_device()}
    else:
        if elsewhere and torch.cuda.is_available():
            raise ValueError(f'device_map={device_map!r} names a GPU, and {missing}; use "auto" or "cpu", or {_UNDO}')
        if elsewhere:
            _say_once("int8q: device_map names a GPU and there is none; the model is on the CPU")
        if device_map is not None:
            kwargs["device_map"] = {"": "cpu"}
    keeps = options.get("llm_int8_enable_fp32_cpu_offload") and elsewhere
    return sorted(on_cpu) if keeps else []


@functools.cache
def _half_runs():
    """Whether this torch computes float16 on a CPU; from 2.2 on it does."""
    x = torch.ones(2, 2, 2, dtype=torch.float16)
    try:
        torch.nn.functional.layer_norm(torch.nn.functional.linear(x @ x, x[0]), (2,)).softmax(-1)
    except RuntimeError:
        return False
    return True


def _set_dtype(kwargs, saved_dtype):
    """float32 instead of float16 where torch cannot compute it; bitsandbytes' own is float16 if nothing is said."""
    name = "dtype" if kwargs.get("dtype") is not None else "torch_dtype"
    dtype = saved_dtype if kwargs.get(name) == "auto" else kwargs.get(name)
    on_cpu = kwargs.get("device_map") in (None, "cpu", {"": "cpu"})
    if on_cpu and str(dtype).rpartition(".")[2] in ("float16", "half") and not _half_runs():
        kwargs[name] = torch.float32
        _say_once(
            f"int8q: {name} is float16, which torch {torch.__version__} does not compute on a CPU; it is float32 instead"
        )


# ---------------------------------------------------------------------------------------------------- Training


def _post_init(original):
    """TrainingArguments.__post_init__: no optimizers of bitsandbytes."""

    @functools.wraps(original)
    def __post_init__(self, *args, **kwargs):
        name = str(getattr(self.optim, "value", self.optim))
        if _BITSANDBYTES_OPTIMIZER.match(name):
            raise ValueError(
                f'optim="{name}" is of bitsandbytes, and int8q has no optimizers; use "adamw_torch", or {_UNDO}'
            )
        return original(self, *args, **kwargs)

    return __post_init__


def _fsdp_init(original):
    """FullyShardedDataParallel.__init__: no int8 layers."""

    @functools.wraps(original)
    def __init__(self, module, *args, **kwargs):
        name = next((name for name, layer in module.named_modules() if isinstance(layer, Linear8bit)), None)
        if name is not None:
            raise ValueError(
                f"FSDP1 (FullyShardedDataParallel) shards parameters in floats, and {name or 'the layer'} is int8; use "
                f"DistributedDataParallel, or FSDP2 (torch.distributed.fsdp.fully_shard, fsdp_version 2 of accelerate)"
            )
        original(self, module, *args, **kwargs)

    return __init__


# ---------------------------------------------------------------------------------------------------- apply and undo


def _replace(owner, name, value):
    _originals.append((owner, name, vars(owner).get(name, _ABSENT)))
    setattr(owner, name, value)


def _wrap(owner, name, wrapper):
    _replace(owner, name, wrapper(vars(owner)[name]))


def apply():
    """Lets scripts for bitsandbytes run on int8q; importing int8q.as_bitsandbytes does it. Again is nothing."""
    if _originals:
        return
    stand_in.install()
    _wrap(transformers.PreTrainedModel, "from_pretrained", _from_pretrained)
    _wrap(transformers.TrainingArguments, "__post_init__", _post_init)
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FullyShardedDataParallel

        _wrap(FullyShardedDataParallel, "__init__", _fsdp_init)
    if peft is not None:
        int8q_peft.install()
        if not hasattr(peft, "prepare_model_for_int8_training"):  # its name before peft 0.10
            _replace(peft, "prepare_model_for_int8_training", peft.prepare_model_for_kbit_training)
    _say_once("int8q: what asks for bitsandbytes' 8 bits runs on int8q; int8q.as_bitsandbytes.undo() ends it")


def undo():
    """Puts back all that apply() replaced. Models that were loaded before go on."""
    while _originals:
        owner, name, value = _originals.pop()
        if value is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, value)
    if peft is not None and not _had_int8q_peft:
        int8q_peft.uninstall()
    stand_in.uninstall()


apply()
