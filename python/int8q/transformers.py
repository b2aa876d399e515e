# SPDX-License-Identifier: Apache-2.0
"""int8q.transformers: models of Hugging Face transformers, 4.27 to 5.x, with LLM.int8() weights.

    model = load_in_8bit(AutoModelForSeq2SeqLM, path)                                   # in every version
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=Int8qConfig())    # from 4.50 on
    quantize_(model)                                                                    # a model that is in memory

Weights are quantized one by one as transformers reads them; see docs/transformers.md.
"""

import copy
import functools
import importlib.util
import re
import threading
import warnings
from contextlib import contextmanager

import torch
import transformers

from ._incoming import _V5, expect, finish, places_of, receive, replaceable, untie
from ._packed import why_no_gpu
from .nn import Linear8bit, set_submodule

try:
    from transformers.utils.quantization_config import QuantizationConfigMixin as _ConfigBase
except ImportError:  # before 4.34
    _ConfigBase = object

try:  # from 4.50 on
    from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
    from transformers.quantizers.auto import AutoHfQuantizer
except ImportError:
    HfQuantizer = None

METHOD = "int8q"
HUB_OPTIONS = (
    "cache_dir code_revision force_download local_files_only proxies resume_download revision subfolder token "
    "trust_remote_code use_auth_token"
).split()
_OPTIONS = ("llm_int8_threshold", "llm_int8_skip_modules", "outliers")


class Int8qConfig(_ConfigBase):
    """What to quantize and how, as transformers' BitsAndBytesConfig(load_in_8bit=True).

    llm_int8_threshold: |x| from which an activation is an outlier; 0: none is. None: what an int8 checkpoint says, else 6.0
    llm_int8_skip_modules: names of modules to leave in floats, each whole, or the end or a part of a dotted name between
        dots. None: the output embeddings, what is tied, and the last module, as bitsandbytes; of an int8 checkpoint what
        it has in floats
    outliers: "column" (arXiv 2208.07339), "element" or "all", as of int8q.Linear; "all" has no threshold

    A checkpoint's config.json gets to_dict(): bitsandbytes' entries, so that it loads with either. There
    llm_int8_skip_modules are all layers that stayed in floats.
    Raises ValueError of another value.
    """

    def __init__(self, llm_int8_threshold=None, llm_int8_skip_modules=None, outliers="column"):
        if outliers not in ("column", "element", "all"):
            raise ValueError(
                f'outliers is {outliers!r}; expected "column", "element" or "all" (or llm_int8_threshold=0 for none)'
            )
        self.says_threshold = llm_int8_threshold is not None
        llm_int8_threshold = llm_int8_threshold if self.says_threshold else 6.0
        if type(llm_int8_threshold) not in (int, float) or not llm_int8_threshold >= 0:
            raise ValueError(f"llm_int8_threshold is {llm_int8_threshold!r}; expected a number from 0 on")
        if isinstance(llm_int8_skip_modules, str) or not all(isinstance(n, str) for n in llm_int8_skip_modules or []):
            raise ValueError(f"llm_int8_skip_modules is {llm_int8_skip_modules!r}; expected a list of names, or None")
        self.quant_method = METHOD
        self.llm_int8_threshold = float(llm_int8_threshold)
        self.llm_int8_skip_modules = llm_int8_skip_modules
        self.outliers = outliers
        self.saved_skip_modules = None  # of the int8 checkpoint that is read
        self.also_skip = ()  # beside the default, of a checkpoint in floats

    @property
    def layer_options(self):
        """The keyword arguments of Linear8bit."""
        if self.llm_int8_threshold == 0 and self.outliers != "all":
            return {"outliers": "off"}
        return {"outliers": self.outliers, "threshold": self.llm_int8_threshold}

    def to_dict(self):
        return {
            "quant_method": "bitsandbytes",
            "load_in_8bit": True,
            "load_in_4bit": False,
            "llm_int8_threshold": self.llm_int8_threshold,
            "llm_int8_skip_modules": self.llm_int8_skip_modules,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
        }

    to_diff_dict = to_dict

    @classmethod
    def from_dict(cls, config_dict, return_unused_kwargs=False, **kwargs):
        """From a config.json's quantization_config; other methods' entries are ignored."""
        made = cls(**{name: value for name, value in {**config_dict, **kwargs}.items() if name in _OPTIONS})
        unused = {name: value for name, value in kwargs.items() if name not in _OPTIONS}
        return (made, unused) if return_unused_kwargs else made

    def update(self, **kwargs):
        """Sets the options among kwargs; returns the others."""
        now = {name: getattr(self, name) for name in _OPTIONS if name != "llm_int8_threshold" or self.says_threshold}
        self.__init__(**{**now, **{name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}})
        return kwargs

    def __repr__(self):
        return f"Int8qConfig({', '.join(f'{name}={getattr(self, name)!r}' for name in _OPTIONS)})"


# ---------------------------------------------------------------------------------------------------- What is quantized


def _matcher(names):
    """The predicate of dotted module names that are, end in, or have between dots one of these."""
    patterns = [re.compile(rf"(^|\.){re.escape(name)}($|\.)") for name in names]
    return lambda name: any(pattern.search(name) for pattern in patterns)


def _kept_in_fp32(model):
    """Names of modules that bitsandbytes leaves in fp32 since fp16 overflows there: T5's wo."""
    return sorted(getattr(model, "_keep_in_fp32_modules", None) or [])


def _skipped(model, config, dtype, pre_quantized=False):
    """The predicate of module names that stay in floats. ValueError where an int8 checkpoint has none for one of them."""
    saved = _saved_names(model, config) if pre_quantized else default_skip_modules(model) + list(config.also_skip)
    kept = _kept_in_fp32(model) if dtype == torch.float16 else []
    if config.llm_int8_skip_modules is None:
        return _matcher(saved + kept)
    skipped = _matcher(list(config.llm_int8_skip_modules) + kept)
    if pre_quantized:
        in_file = _floats_in_file(model, config, pre_quantized)
        for name in (name for name, module in model.named_modules() if replaceable(module)):
            if skipped(name) and not in_file(name):
                raise ValueError(
                    f"llm_int8_skip_modules={config.llm_int8_skip_modules!r} has {name} in floats, and the checkpoint has "
                    f"it in int8; leave llm_int8_skip_modules out, or model.dequantize() what was loaded"
                )
    return skipped


def _saved_names(model, config):
    return default_skip_modules(model) if config.saved_skip_modules is None else list(config.saved_skip_modules)


def _skipped_while_loading(model, config, dtype, pre_quantized):
    """The same, and tied output embeddings, which transformers before 5.0 ties when all is loaded."""
    skipped, head = _skipped(model, config, dtype, pre_quantized), None
    if not _V5 and getattr(model.config, "tie_word_embeddings", False):
        head = model.get_output_embeddings()
    return lambda name: skipped(name) or (head is not None and model.get_submodule(name) is head)


def _floats_in_file(model, config, pre_quantized):
    """The predicate of module names that a checkpoint has as floats: all, or what bitsandbytes leaves so."""
    if not pre_quantized:
        return lambda name: True
    return _matcher(_saved_names(model, config) + _kept_in_fp32(model))


def default_skip_modules(model):
    """Names of modules that bitsandbytes, too, leaves in floats: output embeddings, what is tied, the last module.

    Source: transformers' get_keys_to_not_convert.
    """
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = {name for name, module in model.named_modules() if module is output and output is not None}
    tied = getattr(model, "all_tied_weights_keys", None)  # from 5.0 on
    if tied is not None:
        names |= {key.rpartition(".")[0] for pair in tied.items() for key in pair}
    elif getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        for pattern in getattr(model, "_tied_weights_keys", None) or []:
            found = {name for name, _ in model.named_parameters(remove_duplicate=False) if re.search(pattern, name)}
            names |= {name.rpartition(".")[0] for name in found}
    parameters = [name for name, _ in model.named_parameters()]
    if parameters:
        last = parameters[-1].rpartition(".")[0]
        # A base model ends in a layer like all others.
        if "." not in last or output is None:
            names.add(last)
    return sorted(names - {""})


def quantize_(model, *, llm_int8_threshold=None, llm_int8_skip_modules=None, outliers="column"):
    """Replaces a model's nn.Linear and Conv1D layers in place by Linear8bit, one by one; returns the model.

    model: any nn.Module in host memory; for a PreTrainedModel config.json is told, so that save_pretrained's result loads
    with bitsandbytes, too. The rest as of Int8qConfig.

    Raises ValueError of options, and of NaN or Inf in weights, by the layer's name; layers before it are replaced by then.
    """
    config = Int8qConfig(llm_int8_threshold, llm_int8_skip_modules, outliers)
    skipped = _skipped(model, config, getattr(model, "dtype", None))
    for names in places_of(model, skipped):
        try:
            made = Linear8bit.from_linear(model.get_submodule(names[0]), **config.layer_options)
        except ValueError as error:
            raise ValueError(f"{names[0]}: {error}") from error
        for name in names:
            set_submodule(model, name, made)
    _mark(model, config)
    return model


class _Saved(dict):
    """A quantization_config for versions that write it to JSON as it is, and for peft, which calls to_dict."""

    to_dict = dict.copy


def _let_peft_in():
    """LoRA over our layers, by user code that does not name int8q."""
    if importlib.util.find_spec("peft") is None:
        return
    try:
        from . import peft

        peft.install()  # again, where as_bitsandbytes.undo() took it out
    except Exception as error:  # peft that does not fit this transformers: no reason not to load a model
        warnings.warn(f"peft does not import, so int8q's layers take no adapters: {error}", stacklevel=4)


def _mark(model, config):
    """Says of a model what transformers, accelerate and peft ask for."""
    model.is_loaded_in_8bit = True
    _let_peft_in()
    if not isinstance(model, transformers.PreTrainedModel):
        return
    config = copy.copy(config)
    config.llm_int8_skip_modules = [name for name, module in model.named_modules() if replaceable(module)]
    kept = _matcher(_kept_in_fp32(model))
    for name, module in model.named_modules():
        if isinstance(module, Linear8bit) and kept(name):
            module.saves_floats = True  # as bitsandbytes reads it
    model.is_quantized = True
    model.is_8bit_serializable = True  # 4.3x
    model._is_int8_training_enabled = model._is_quantized_training_enabled = True  # 4.27; 4.3x
    model.config.quantization_config = config if HfQuantizer is not None else _Saved(config.to_dict())
    if HfQuantizer is not None:
        if getattr(model, "hf_quantizer", None) is None:
            model.hf_quantizer = Int8qQuantizer(config, pre_quantized=False)
        model.quantization_method = METHOD
    # One device needs no map, and by one that names the CPU accelerate refuses to train.
    if {str(where) for where in (getattr(model, "hf_device_map", None) or {}).values()} == {"cpu"}:
        del model.hf_device_map


# ---------------------------------------------------------------------------------------------------- Loading


def load_in_8bit(model_class, path, *args, **kwargs):
    """model_class.from_pretrained(path, ...) with int8 weights, in every version of transformers.

    model_class: AutoModelFor..., or a model's class
    path: a folder or a name on the hub; floats, sharded or not, or int8 as bitsandbytes or int8q saves it
    kwargs: those of Int8qConfig, or quantization_config=Int8qConfig(...); all others go to from_pretrained

    At most the int8 model and 1.5 of the largest tensor in anonymous memory while safetensors are read; .bin files, which
    transformers itself reads, add the largest of them.

    Raises what from_pretrained does; ValueError where a layer that is to be int8 has no weights in the checkpoint.
    """
    config = kwargs.pop("quantization_config", None)
    options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
    if config is None:
        config = Int8qConfig(**options)
    elif options:
        raise ValueError(f"{sorted(options)[0]} beside quantization_config; expected one of both")
    elif not isinstance(config, Int8qConfig):
        raise ValueError(f"quantization_config is a {type(config).__name__}; expected an Int8qConfig")
    if _V5:
        return model_class.from_pretrained(path, *args, quantization_config=config, **kwargs)
    with _loading:
        if HfQuantizer is not None:
            return model_class.from_pretrained(path, *args, quantization_config=config, **kwargs)
        return _load_before_quantizers(model_class, path, args, kwargs, config)


# One model at a time: before 5.0 transformers, and this module before 4.50, change classes while they make one.
_loading = threading.RLock()


def _load_before_quantizers(model_class, path, args, kwargs, config):
    """By transformers before 4.50: from_pretrained, told of our layers between making the model and reading its weights."""
    device_map, dtype = kwargs.pop("device_map", None), kwargs.pop("torch_dtype", None)
    kwargs.pop("low_cpu_mem_usage", None)  # it is always so
    place = _one_place(device_map)
    model_config = copy.deepcopy(kwargs.pop("config", None))
    if not isinstance(model_config, transformers.PretrainedConfig):
        # As from_pretrained: what is no option of the configuration goes on to the model.
        config_class = getattr(model_class, "config_class", None) or transformers.AutoConfig
        for_files = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        model_config, kwargs = config_class.from_pretrained(model_config or path, return_unused_kwargs=True, **kwargs)
        kwargs.update(for_files)
    saved = getattr(model_config, "quantization_config", None)
    saved = saved.to_dict() if hasattr(saved, "to_dict") else saved
    if saved is not None:
        del model_config.quantization_config  # from_pretrained would take bitsandbytes for it
        config = _with_saved(config, saved)
    if dtype == "auto":
        dtype = getattr(model_config, "torch_dtype", None)
    dtype = dtype or torch.get_default_dtype()
    # These versions cast all floats, and stats must stay fp32.
    reading_dtype = torch.float32 if saved is not None else dtype
    wants_info = kwargs.get("output_loading_info", False)
    with _replacing_linears(config, pre_quantized=saved is not None, dtype=dtype):
        loaded = model_class.from_pretrained(
            path, *args, config=model_config, torch_dtype=reading_dtype, low_cpu_mem_usage=True, **kwargs
        )
    model = loaded[0] if wants_info else loaded
    if dtype != reading_dtype:
        torch.nn.Module.to(model, dtype)
        model.config.torch_dtype = dtype
    if device_map is not None:
        torch.nn.Module.to(model, place)
        model.hf_device_map = {"": place.index if place.type == "cuda" else "cpu"}
    _mark(model, config)
    return loaded


def _one_place(device_map):
    """The device of a device_map; strategies choose the current GPU, where int8q runs on it."""
    places = set((device_map or {"": "cpu"}).values()) if isinstance(device_map, dict) else {device_map or "cpu"}
    place = places.pop() if len(places) == 1 else "disk"
    if place in ("auto", "balanced", "balanced_low_0", "sequential"):
        place = "cpu" if why_no_gpu() else torch.cuda.current_device()
    place = f"cuda:{place}" if isinstance(place, int) else str(place)
    place = f"cuda:{torch.cuda.current_device()}" if place == "cuda" else place
    if not re.fullmatch("cpu|cuda:[0-9]+", place):
        raise ValueError(f'device_map is {device_map!r}; expected one device: "auto", {{"": "cpu"}}, {{"": 0}}, or None')
    if place != "cpu" and (missing := why_no_gpu()):
        raise ValueError(f'device_map is {device_map!r}, and {missing}; expected "cpu", or "auto"')
    return torch.device(place)


def _with_saved(config, saved):
    """The config, for a checkpoint whose config.json has this quantization_config; ValueError if that is not int8."""
    if not saved.get("load_in_8bit"):
        raise ValueError(
            f"the checkpoint is quantized by {saved.get('quant_method')}; expected floats, or bitsandbytes' int8"
        )
    config = copy.copy(config)
    config.saved_skip_modules = saved.get("llm_int8_skip_modules")
    if not config.says_threshold:
        config.llm_int8_threshold = float(saved.get("llm_int8_threshold", config.llm_int8_threshold))
    return config


@contextmanager
def _replacing_linears(config, pre_quantized, dtype):
    """While it lasts, models that from_pretrained makes in this thread get our layers before their weights are read."""
    base, thread = transformers.PreTrainedModel, threading.get_ident()
    original = base.__dict__["_load_pretrained_model"]

    def _load_pretrained_model(cls, model, state_dict, loaded_keys, *args, **kwargs):
        if threading.get_ident() != thread:
            return original.__get__(None, cls)(model, state_dict, loaded_keys, *args, **kwargs)
        floats = _floats_in_file(model, config, pre_quantized)
        skipped = _skipped_while_loading(model, config, dtype, pre_quantized)
        receive(model, skipped, floats, config.layer_options, progress=True)
        expect(model, loaded_keys)
        result = original.__get__(None, cls)(model, state_dict, loaded_keys, *args, **kwargs)
        finish(model)
        return result

    base._load_pretrained_model = classmethod(_load_pretrained_model)
    try:
        yield
    finally:
        base._load_pretrained_model = original


def _without_strings(load):
    """transformers' load_state_dict without weight_format "row", as bitsandbytes before 0.43.1 saved it in .bin files."""

    @functools.wraps(load)
    def load_state_dict(*args, **kwargs):
        state = load(*args, **kwargs)
        for key in [key for key, value in state.items() if value == "row" and key.endswith("weight_format")]:
            del state[key]
        return state

    return load_state_dict


transformers.modeling_utils.load_state_dict = _without_strings(transformers.modeling_utils.load_state_dict)


if HfQuantizer is not None:

    @register_quantizer(METHOD)
    class Int8qQuantizer(HfQuantizer):
        """What transformers asks while it loads a model with an Int8qConfig; both generations, 4.50 and 5.0."""

        requires_calibration = False
        requires_parameters_quantization = False  # our layers take float tensors
        required_packages = ()
        use_keep_in_fp32_modules = False

        def validate_environment(self, *args, device_map=None, **kwargs):
            if isinstance(device_map, dict) and "disk" in device_map.values():
                raise ValueError('device_map sends modules to "disk"; int8 layers stay in memory: expected "cpu" or a GPU')

        def _process_model_before_weight_loading(self, model, **kwargs):
            config = self.quantization_config
            dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
            dtype = dtype or next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
            floats = _floats_in_file(model, config, self.pre_quantized)
            skipped = _skipped_while_loading(model, config, dtype, self.pre_quantized)
            receive(model, skipped, floats, config.layer_options, progress=not _V5)
            if _V5:
                untie(model)
                # Old checkpoints have none.
                model._keys_to_ignore_on_load_missing = {
                    *(model._keys_to_ignore_on_load_missing or ()),
                    r"\.weight_format$",
                }
            return model

        def _process_model_after_weight_loading(self, model, **kwargs):
            finish(model)
            _mark(model, self.quantization_config)
            return model

        def update_expected_keys(self, model, expected_keys, loaded_keys):  # asked before 5.0
            expect(model, loaded_keys)
            return list(model.state_dict())

        def check_quantized_param(self, *args, **kwargs):
            return False

        def create_quantized_param(self, *args, **kwargs):
            raise NotImplementedError("int8q's layers take float tensors")

        def adjust_target_dtype(self, torch_dtype=None, **kwargs):
            return torch.int8

        def param_element_size(self, model, param_name, param):
            module = model.get_submodule(param_name.rpartition(".")[0])
            return 1 if isinstance(module, Linear8bit) and param_name.endswith(".weight") else param.element_size()

        def is_serializable(self, safe_serialization=None):
            return True

        @property
        def is_trainable(self):
            return True

        def _dequantize(self, model, dtype=None):
            for name, module in list(model.named_modules()):
                if isinstance(module, Linear8bit):
                    set_submodule(model, name, module.to_linear(dtype or model.dtype))
            model.is_loaded_in_8bit = False
            return model

    register_quantization_config(METHOD)(Int8qConfig)

    _merge = AutoHfQuantizer.__dict__["merge_quantization_configs"].__get__(None, AutoHfQuantizer)

    def _merge_quantization_configs(cls, quantization_config, quantization_config_from_args):
        """An Int8qConfig that was passed takes the place of a checkpoint's bitsandbytes config of 8 bits."""
        if isinstance(quantization_config_from_args, Int8qConfig):
            saved = quantization_config if isinstance(quantization_config, dict) else quantization_config.to_dict()
            return _with_saved(quantization_config_from_args, saved)
        return _merge(quantization_config, quantization_config_from_args)

    AutoHfQuantizer.merge_quantization_configs = classmethod(_merge_quantization_configs)
