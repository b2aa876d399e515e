# SPDX-License-Identifier: Apache-2.0
"""int8q.transformers beside the models in floats, in whatever version of transformers is here."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not in this environment")
transformers = pytest.importorskip("transformers", reason="transformers is not in this environment")

import models  # noqa: E402
from models import FAMILIES, FORMATS, VERSION, inputs, layers, logits, make, reference, save  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

from int8q.nn import Linear8bit  # noqa: E402
from int8q.transformers import Int8qConfig, default_skip_modules, load_in_8bit, quantize_  # noqa: E402

pytest_plugins = ("models",)
transformers.logging.set_verbosity_error()

QUANTIZERS = pytest.mark.skipif(VERSION < (4, 50), reason="transformers before 4.50 has no quantizers to register")


def test_the_python_of_the_readme(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if "load_in_8bit" in b]
    names = {"AutoModelForSeq2SeqLM": transformers.AutoModelForSeq2SeqLM}
    exec(block.replace("google/flan-t5-base", save(make("t5"), tmp_path / "floats")), names)
    assert len(layers(names["model"])) == FAMILIES["t5"][2]


# ---------------------------------------------------------------------------------------------------- What is quantized


def test_quantizes_all_but_the_head(family):
    model = quantize_(make(family))
    assert len(layers(model)) == FAMILIES[family][2]
    floats = [name for name in layers(model, (torch.nn.Linear, Conv1D)) if name not in layers(model)]
    assert floats == ["lm_head"]


def test_logits_are_as_far_from_float_as_the_references(family):
    floats, exact, int8 = make(family), reference(family), quantize_(make(family))
    want = logits(floats, family)
    of_reference = (logits(exact, family) - want).norm()
    of_int8 = (logits(int8, family) - want).norm()
    assert 0 < of_reference < 0.5 * want.norm()
    # The same codes; where a sum in fp32 rounds the other way an activation's code moves by one.
    assert (logits(int8, family) - logits(exact, family)).norm() < 0.25 * of_reference
    assert of_int8 < 1.05 * of_reference


def test_a_base_model_is_quantized_whole(family):
    base = make(family).base_model if family != "t5" else make(family).encoder
    model = quantize_(copy.deepcopy(base))
    floats = [name for name in layers(model, (torch.nn.Linear, Conv1D)) if name not in layers(model)]
    assert floats == []


def test_skip_modules_are_names_not_parts_of_words(family):
    model = quantize_(make(family), llm_int8_skip_modules=["1"])  # the second block's number, T5's sublayers
    names = layers(model)
    assert names and all("1" not in name.split(".") for name in names)
    assert any("1" in name.split(".") for name in layers(make(family), (torch.nn.Linear, Conv1D)))
    assert "lm_head" in names
    assert len(layers(quantize_(make(family), llm_int8_skip_modules=["lm"]))) == FAMILIES[family][2] + 1


def test_default_skip_modules(family):
    assert "lm_head" in default_skip_modules(make(family))
    assert default_skip_modules(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))) == ["1"]


def test_a_conv1d_has_the_codes_of_its_transposed_linear():
    conv = Conv1D(600, 48)
    linear = torch.nn.Linear(48, 600)
    linear.weight.data, linear.bias.data = conv.weight.data.t().contiguous(), conv.bias.data
    module = quantize_(torch.nn.Sequential(conv, torch.nn.Linear(600, 4)))[0]
    want = Linear8bit.from_linear(linear)
    assert torch.equal(module.packed, want.packed)
    x = torch.randn(3, 48)
    assert torch.equal(module(x), want(x))


def test_options_reach_the_layers(family):
    model = quantize_(make(family), llm_int8_threshold=3, outliers="element")
    assert {(layer.outliers, layer.threshold) for layer in layers(model).values()} == {("element", 3.0)}
    assert {layer.outliers for layer in layers(quantize_(make(family), llm_int8_threshold=0)).values()} == {"off"}
    everything = quantize_(make(family), llm_int8_threshold=0, outliers="all")
    assert {layer.outliers for layer in layers(everything).values()} == {"all"}


@pytest.mark.parametrize(
    "options, named",
    [
        ({"llm_int8_threshold": -1}, "llm_int8_threshold is -1"),
        ({"llm_int8_threshold": float("nan")}, "llm_int8_threshold is nan"),
        ({"llm_int8_skip_modules": "lm_head"}, "llm_int8_skip_modules is 'lm_head'"),
        ({"outliers": "off"}, "outliers is 'off'"),
    ],
)
def test_wrong_options(options, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        Int8qConfig(**options)


def test_nan_in_a_weight_names_the_layer(family, auto, tmp_path):
    model = make(family)
    name = next(iter(layers(quantize_(make(family)))))
    model.get_submodule(name).weight.data[1, 0] = float("nan")
    path = save(model, tmp_path)
    with pytest.raises(ValueError, match=re.escape(name)):
        load_in_8bit(auto, path)
    with pytest.raises(ValueError, match=re.escape(name)):
        quantize_(model)


# ---------------------------------------------------------------------------------------------------- Loading


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("shards", [1, 3])
def test_loads_what_quantize_makes(family, auto, tmp_path, suffix, shards):
    source = make(family)
    size = sum(p.numel() * 4 for p in source.parameters())
    path = save(source, tmp_path, suffix, **({"max_shard_size": size // shards} if shards > 1 else {}))
    files = [name for name in os.listdir(path) if name.endswith(suffix)]
    assert len(files) >= shards
    model, want = load_in_8bit(auto, path), quantize_(source)
    assert layers(model).keys() == layers(want).keys() and not model.training
    assert torch.equal(logits(model, family), logits(want, family))
    assert model.is_loaded_in_8bit


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saves_and_loads_again(family, auto, folder, tmp_path, suffix, shards, dtype):
    model = load_in_8bit(auto, folder, torch_dtype=dtype)
    limit = {"max_shard_size": model.get_memory_footprint() // shards} if shards > 1 else {}
    path = save(model, tmp_path / "int8", suffix, **limit)
    assert len([name for name in os.listdir(path) if name.endswith(suffix)]) >= shards
    saved = json.load(open(f"{path}/config.json"))["quantization_config"]
    assert saved["quant_method"] == "bitsandbytes" and saved["load_in_8bit"] and saved["llm_int8_threshold"] == 6.0
    again = load_in_8bit(auto, path, torch_dtype=dtype)
    assert {p.dtype for p in again.parameters()} == {dtype}
    for name, layer in layers(model).items():
        other = again.get_submodule(name)
        assert torch.equal(layer.packed, other.packed), name  # codes and stats, fp32 in any dtype
    assert torch.equal(logits(again, family), logits(model, family))


def test_dtypes(family, auto, folder):
    want = logits(make(family), family)
    errors = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = load_in_8bit(auto, folder, torch_dtype=dtype)
        assert {p.dtype for name, p in model.named_parameters() if ".wo" not in name} == {dtype}
        assert (family == "t5" and dtype == torch.float16) == any("wo" in name for name in layers(model, torch.nn.Linear)
                                                                   if name not in layers(model))  # fmt: skip
        if dtype != torch.float16:  # torch 2.0 has no half products on a CPU
            errors[dtype] = ((logits(model, family) - want).norm() / want.norm()).item()
    assert errors[torch.float32] < 0.25 and errors[torch.bfloat16] < errors[torch.float32] + 0.1


@pytest.mark.parametrize("device_map", [None, "auto", {"": "cpu"}])
def test_device_maps(family, auto, folder, device_map):
    if torch.cuda.is_available():
        pytest.skip("device_map would choose the GPU")
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    model = load_in_8bit(auto, folder, device_map=device_map)
    assert torch.equal(logits(model, family), logits(quantize_(make(family)), family))
    assert model.device.type == "cpu"
    ids = inputs(family)["input_ids"]
    assert model.generate(ids, max_new_tokens=3, min_new_tokens=3).shape[0] == len(ids)


def test_generates_what_the_quantized_model_does(family, auto, folder):
    model, want = load_in_8bit(auto, folder), quantize_(make(family))
    ids = inputs(family)["input_ids"]
    for options in ({}, {"num_beams": 3}):
        tokens = model.generate(ids, max_new_tokens=8, do_sample=False, **options)
        assert torch.equal(tokens, want.generate(ids, max_new_tokens=8, do_sample=False, **options))
        assert tokens.shape[1] > 1


def test_loading_info(family, auto, folder):
    model, info = load_in_8bit(auto, folder, output_loading_info=True)
    assert layers(model) and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert not {key for key in info["missing_keys"] if "lm_head" not in key and "embed_tokens" not in key}


def test_a_base_models_checkpoint_fills_a_model_with_a_head(tmp_path):
    source = make("gpt2")
    save(source.transformer, tmp_path)
    model = load_in_8bit(transformers.GPT2LMHeadModel, str(tmp_path))
    assert torch.equal(logits(model, "gpt2"), logits(quantize_(source), "gpt2"))
    base = load_in_8bit(transformers.GPT2Model, save(source, tmp_path / "whole"))
    ids = inputs("gpt2")["input_ids"]
    with torch.no_grad():
        assert torch.equal(base(ids).last_hidden_state, quantize_(copy.deepcopy(source.transformer))(ids).last_hidden_state)


def test_layers_without_weights_are_named(tmp_path):
    """transformers fills what a checkpoint lacks with random numbers; frozen int8 layers cannot learn from there."""
    source = make("gpt2")
    state = {name: value for name, value in source.state_dict().items() if "h.1.mlp" not in name}
    save(source, tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"transformer\.h\.1\.mlp\.\w+ is to be int8 and the checkpoint has no weight"):
        load_in_8bit(transformers.GPT2LMHeadModel, str(tmp_path))
    model = load_in_8bit(transformers.GPT2LMHeadModel, str(tmp_path), llm_int8_skip_modules=["lm_head", "h.1.mlp"])
    assert "transformer.h.1.mlp.c_fc" not in layers(model) and len(layers(model)) == 6


def test_a_new_head_stays_in_floats(tmp_path):
    save(make("gpt2"), tmp_path)
    model = load_in_8bit(transformers.GPT2ForSequenceClassification, str(tmp_path), num_labels=3)
    assert type(model.score) is torch.nn.Linear and len(layers(model)) == 8


def test_checkpoints_of_other_methods_are_refused(tmp_path):
    save(make("gpt2"), tmp_path)
    config = json.load(open(tmp_path / "config.json"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the checkpoint is quantized by gptq"):
        load_in_8bit(transformers.GPT2LMHeadModel, str(tmp_path))


# ---------------------------------------------------------------------------------------------------- int8 checkpoints


def int8_checkpoint(family, auto, path, change, **options):
    """A model, and the folder of its int8 checkpoint whose tensors went through change(name -> tensor), as a .bin file."""
    model = load_in_8bit(auto, save(make(family), path / "floats"), **options)
    state = dict(model.state_dict())
    folder = Path(save(model, path / "int8"))
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        file.unlink()
    change(state)
    torch.save(state, folder / "pytorch_model.bin")
    return model, str(folder)


@pytest.mark.parametrize("layout", [None, "row"])
def test_checkpoints_of_2023(family, auto, tmp_path, layout):
    """bitsandbytes before 0.40 saved no weight_format, before 0.43.1 a string, which sharding dropped."""

    def change(state):
        for key in [key for key in state if key.endswith("weight_format")]:
            del state[key]
            if layout is not None:
                state[key] = layout

    model, path = int8_checkpoint(family, auto, tmp_path, change)
    again = load_in_8bit(auto, path)
    assert layers(again).keys() == layers(model).keys()
    assert all(torch.equal(layer.packed, again.get_submodule(name).packed) for name, layer in layers(model).items())


def test_layouts_that_nobody_saves_are_refused(family, auto, tmp_path):
    def change(state):
        state[next(key for key in state if key.endswith("weight_format"))] += 1

    _, path = int8_checkpoint(family, auto, tmp_path, change)
    with pytest.raises(ValueError, match="weight_format is 1; expected 0"):
        load_in_8bit(auto, path)


@pytest.mark.parametrize("part", ["weight", "SCB"])
def test_a_missing_tensor_is_named(family, auto, tmp_path, part):
    lost = []

    def change(state):
        lost.append(next(key for key in state if key.endswith(".SCB"))[: -len(".SCB")])
        del state[f"{lost[0]}.{part}"]

    _, path = int8_checkpoint(family, auto, tmp_path, change)
    with pytest.raises(ValueError, match=rf"{re.escape(lost[0])} is to be int8 and the checkpoint has no {part} for it"):
        load_in_8bit(auto, path)


def test_an_int8_head_is_read_as_one(family, auto, folder, tmp_path):
    name = {"t5": "q", "gpt2": "c_attn", "llama": "q_proj"}[family]
    model = load_in_8bit(auto, folder, llm_int8_skip_modules=[name])
    if family == "gpt2" and VERSION < (5, 0):
        assert "lm_head" not in layers(model)  # tied, and tied again when all is loaded
    again = load_in_8bit(auto, save(model, tmp_path / "int8"))
    assert layers(again).keys() == layers(model).keys()
    assert torch.equal(logits(again, family), logits(model, family))


def test_other_layers_in_floats_than_the_checkpoint_are_refused(family, auto, folder, tmp_path):
    path = save(load_in_8bit(auto, folder), tmp_path / "int8")
    name = {"t5": "v", "gpt2": "c_attn", "llama": "v_proj"}[family]
    with pytest.raises(ValueError, match=rf"llm_int8_skip_modules=\['{name}'\] has .*{name} in floats, and the checkpoint"):
        load_in_8bit(auto, path, llm_int8_skip_modules=[name])


def test_a_checkpoints_threshold_holds_unless_another_is_said(family, auto, folder, tmp_path):
    path = save(load_in_8bit(auto, folder, llm_int8_threshold=3.0), tmp_path / "int8")
    for said, threshold in ((None, 3.0), (5.0, 5.0), (6.0, 6.0)):
        options = {} if said is None else {"llm_int8_threshold": said}
        model = load_in_8bit(auto, path, **options)
        assert {layer.threshold for layer in layers(model).values()} == {threshold}


def test_an_update_says_no_threshold_by_itself():
    config = Int8qConfig()
    assert config.update(outliers="element", other=1) == {"other": 1}
    assert (config.outliers, config.llm_int8_threshold, config.says_threshold) == ("element", 6.0, False)
    config.update(llm_int8_threshold=3.0)
    config.update(outliers="column")
    assert (config.outliers, config.llm_int8_threshold, config.says_threshold) == ("column", 3.0, True)


def test_a_config_that_is_passed_stays_as_it_is(family, auto, folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    before = config.to_dict()
    model = load_in_8bit(auto, folder, config=config)
    assert layers(model)
    assert {key: value for key, value in config.to_dict().items() if not key.endswith("dtype")} == {
        key: value for key, value in before.items() if not key.endswith("dtype")
    }


# ---------------------------------------------------------------------------------------------------- Loading


MODELING = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class OwnConfig(PretrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    _no_split_modules = []

    def __init__(self, config):
        super().__init__(config)
        self.inner = torch.nn.Linear(32, 32)
        self.last = torch.nn.Linear(32, 4)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, x):
        return self.last(self.inner(x))
"""


def test_code_of_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.py").write_text(MODELING)
    names = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    state = {"inner.weight": torch.randn(32, 32), "inner.bias": torch.zeros(32)}
    state |= {"last.weight": torch.randn(4, 32), "last.bias": torch.zeros(4)}
    torch.save(state, folder / "pytorch_model.bin")
    model = load_in_8bit(transformers.AutoModel, str(folder), trust_remote_code=True)
    assert list(layers(model)) == ["inner"]


def test_threads_load_at_once(family, auto, folder):
    method = vars(transformers.PreTrainedModel).get("_load_pretrained_model")
    made, errors = [], []

    def load():
        try:
            made.extend(len(layers(load_in_8bit(auto, folder))) for _ in range(3))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and made == [FAMILIES[family][2]] * 12
    assert vars(transformers.PreTrainedModel).get("_load_pretrained_model") is method
    assert not layers(auto.from_pretrained(folder))


def test_low_cpu_mem_usage_is_taken(family, auto, folder):
    if VERSION >= (5, 0):
        pytest.skip("transformers 5 has no low_cpu_mem_usage")
    assert layers(load_in_8bit(auto, folder, low_cpu_mem_usage=True))


def test_float64_is_refused_by_name(family, auto, folder):
    with pytest.raises(ValueError, match=r"\w+: weight is torch.float64; expected float32"):
        load_in_8bit(auto, folder, torch_dtype=torch.float64)


def test_a_layer_in_two_places_stays_one():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    model.again = model[0]
    quantize_(model)
    assert isinstance(model[0], Linear8bit) and model.again is model[0]


def test_attention_of_torch_keeps_the_projection_that_it_multiplies_by_itself():
    layer = torch.nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    model = torch.nn.Sequential(layer, torch.nn.Linear(32, 4))
    x = torch.randn(2, 5, 32)
    want = layer(x)
    quantize_(model)
    assert sorted(layers(model)) == ["0.linear1", "0.linear2"]
    for mode in (True, False):
        with torch.no_grad():
            assert (layer.train(mode)(x) - want).norm() < 0.05 * want.norm()


def test_other_arguments(folder, auto):
    with pytest.raises(ValueError, match="quantization_config is a dict"):
        load_in_8bit(auto, folder, quantization_config={"load_in_8bit": True})
    with pytest.raises(ValueError, match="llm_int8_threshold beside quantization_config"):
        load_in_8bit(auto, folder, quantization_config=Int8qConfig(), llm_int8_threshold=3)


def test_other_threads_models_are_left_alone(family, auto, folder):
    started, done, seen = threading.Event(), threading.Event(), []

    class Slow(FAMILIES[family][1]):  # loads floats in the middle of the other's load
        pass

    def load_floats():
        started.wait(60)
        seen.append(auto.from_pretrained(folder))
        done.set()

    import int8q._incoming as incoming

    original = incoming.Incoming.take

    def take(self):
        if not started.is_set():
            started.set()
            done.wait(60)
        original(self)

    incoming.Incoming.take = take
    thread = threading.Thread(target=load_floats)
    thread.start()
    try:
        model = load_in_8bit(auto, folder)
    finally:
        started.set()
        thread.join()
        incoming.Incoming.take = original
    assert layers(model) and not layers(seen[0])
    assert torch.equal(logits(seen[0], family), logits(make(family), family))


def test_copies(family, auto, folder):
    model = load_in_8bit(auto, folder)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, family), logits(model, family))


def test_the_transformers_of_floats_is_unchanged(family, auto, folder):
    load_in_8bit(auto, folder)
    model = auto.from_pretrained(folder)
    assert not layers(model) and torch.equal(logits(model, family), logits(make(family), family))


# ---------------------------------------------------------------------------------------------------- from_pretrained


@QUANTIZERS
def test_from_pretrained_with_a_config(family, auto, folder, tmp_path):
    model = auto.from_pretrained(folder, quantization_config=Int8qConfig(llm_int8_threshold=4.0))
    assert len(layers(model)) == FAMILIES[family][2]
    assert {layer.threshold for layer in layers(model).values()} == {4.0}
    path = save(model, tmp_path / "int8")
    again = auto.from_pretrained(path, quantization_config=Int8qConfig(llm_int8_threshold=4.0))
    assert torch.equal(logits(again, family), logits(model, family))


@QUANTIZERS
def test_dequantizes(family, auto, folder):
    model = load_in_8bit(auto, folder)
    weights = {name: layer.dequantize() for name, layer in layers(model).items()}
    model = model.dequantize()
    assert not layers(model)
    assert all(torch.equal(model.get_submodule(name).weight, weight) for name, weight in weights.items())
    logits(model, family)


@pytest.mark.skipif(VERSION >= (4, 50), reason="transformers places modules itself")
def test_one_device_for_a_model(monkeypatch):
    module = sys.modules["int8q.transformers"]
    monkeypatch.setattr(module, "why_no_gpu", lambda: "there is none")
    for places in (None, {}, "auto", "cpu", {"": "cpu"}, torch.device("cpu")):
        assert str(module._one_place(places)) == "cpu"
    with pytest.raises(ValueError, match="device_map is {'': 0}, and there is none; expected"):
        module._one_place({"": 0})
    monkeypatch.setattr(module, "why_no_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert {str(module._one_place(places)) for places in ("auto", {"": 2}, "cuda", "cuda:2", 2)} == {"cuda:2"}
    for places in ({"encoder": 0, "decoder": "cpu"}, "disk", {"": "disk"}):
        with pytest.raises(ValueError, match="device_map is .*; expected one device"):
            module._one_place(places)


@QUANTIZERS
def test_disk_offload_is_refused(family, auto, folder):
    with pytest.raises(ValueError, match="disk"):
        load_in_8bit(auto, folder, device_map={"": "disk"})


def test_bitsandbytes_loads_what_is_saved(family, auto, folder, tmp_path):
    if VERSION < (5, 0):
        pytest.skip("transformers lets bitsandbytes run on a CPU from 5.0 on")
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not in this environment")
    model = load_in_8bit(auto, folder)
    other = auto.from_pretrained(save(model, tmp_path / "int8"))
    theirs = layers(other, bitsandbytes.nn.Linear8bitLt)
    ours = {name: layer for name, layer in layers(model).items() if not name.endswith(".wo")}  # T5's: fp32 there
    assert theirs.keys() == ours.keys()
    for name, layer in ours.items():
        assert torch.equal(theirs[name].weight.data, layer.weight), name
        scb = theirs[name].weight.SCB if theirs[name].weight.SCB is not None else theirs[name].state.SCB
        assert torch.equal(scb.float().flatten(), layer.SCB), name
    want = logits(make(family), family)
    assert (logits(other, family) - logits(model, family)).norm() < 2 * (logits(model, family) - want).norm()


def test_push_to_hub_uploads_the_int8_files(family, auto, folder, monkeypatch):
    import huggingface_hub

    uploaded = {}

    def create_commit(self=None, repo_id=None, operations=(), **kwargs):
        for operation in operations:
            source = operation.path_or_fileobj
            uploaded[operation.path_in_repo] = os.path.getsize(source) if isinstance(source, str) else None
        return type("Commit", (), {"commit_url": "url", "oid": "0", "repo_url": "url"})()

    def create_repo(self=None, repo_id=None, **kwargs):
        return type("Repo", (str,), {"repo_id": "someone/model"})("https://huggingface.co/someone/model")

    for name, function in (("create_commit", create_commit), ("create_repo", create_repo)):
        monkeypatch.setattr(huggingface_hub.HfApi, name, function)
        for module in [module for key, module in sys.modules.items() if key.startswith("transformers.")]:
            if getattr(module, "__dict__", {}).get(name) is not None:
                monkeypatch.setattr(
                    module, name, lambda *args, function=function, **kwargs: function(None, *args, **kwargs)
                )
    for name in ("preupload_lfs_files", "whoami", "repo_info", "model_info"):
        if hasattr(huggingface_hub.HfApi, name):
            monkeypatch.setattr(huggingface_hub.HfApi, name, lambda *args, **kwargs: {"name": "someone"})
    model = load_in_8bit(auto, folder)
    model.push_to_hub("someone/model")
    weights = [name for name in uploaded if name.endswith((".safetensors", ".bin"))]
    assert "config.json" in uploaded and weights


# ---------------------------------------------------------------------------------------------------- Memory

PEAK = """
import os, sys, threading, time
import torch, transformers
from int8q.transformers import load_in_8bit
import models
transformers.logging.set_verbosity_error()
family, path, saved = sys.argv[1:]
auto = models.FAMILIES[family][1]
load_in_8bit(auto, saved)  # what is imported and kept by a first load
def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024
peak, stop = 0, False
def watch():
    global peak
    while not stop:
        peak = max(peak, anonymous())
        time.sleep(0.0005)
before = anonymous()
thread = threading.Thread(target=watch); thread.start()
model = load_in_8bit(auto, path)
stop = True; thread.join()
print(before, peak - before, model.get_memory_footprint(), model.num_parameters())
"""


@pytest.mark.parametrize("suffix", FORMATS)
def test_loading_takes_the_int8_model_and_little_more(family, folder, tmp_path, suffix):
    source = make(family, scale=16)
    path = save(source, tmp_path / "large", suffix)
    largest = max(p.numel() * 4 for p in source.parameters())
    floats = sum(p.numel() * 4 for p in source.parameters())
    del source
    paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), os.path.dirname(models.__file__)])
    environment = {**os.environ, "PYTHONPATH": paths, "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", PEAK, family, path, folder]
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    _, taken, footprint, _ = (int(word) for word in ran.stdout.split()[-4:])
    print(f"{family}{suffix}: {floats >> 20} MB of floats, {footprint >> 20} MB of int8, peak {taken >> 20} MB")
    files = floats if suffix == ".bin" else 0  # one shard, which transformers reads
    assert footprint < 0.5 * floats
    assert taken <= footprint + 1.5 * largest + files + (4 << 20)
