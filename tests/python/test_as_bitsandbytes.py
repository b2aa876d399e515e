# SPDX-License-Identifier: Apache-2.0
"""int8q.as_bitsandbytes: what calls written for bitsandbytes get. Whole scripts are test_as_bitsandbytes_scripts.py's."""

import copy
import inspect
import json
import logging
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not in this environment")
transformers = pytest.importorskip("transformers", reason="transformers is not in this environment")
peft = pytest.importorskip("peft", reason="peft is not in this environment")

from models import FAMILIES, VERSION, layers, logits, make, reference, save  # noqa: E402
from transformers import BitsAndBytesConfig, PreTrainedModel, TrainingArguments  # noqa: E402

import int8q.peft  # noqa: E402, F401  stays installed for the other files' tests
from int8q import as_bitsandbytes  # noqa: E402
from int8q.nn import Linear8bit  # noqa: E402
from int8q.transformers import Int8qConfig, load_in_8bit, quantize_  # noqa: E402

pytest_plugins = ("models",)
as_bitsandbytes.undo()
transformers.logging.set_verbosity_error()

HAS_4BIT = "load_in_4bit" in inspect.signature(BitsAndBytesConfig.__init__).parameters


@pytest.fixture(autouse=True)
def applied():
    as_bitsandbytes.apply()
    yield
    as_bitsandbytes.undo()


@pytest.fixture
def t5(tmp_path):
    return save(make("t5"), tmp_path / "floats")


@pytest.fixture
def said(caplog, monkeypatch):
    """The lines that int8q logs; as if it had said nothing yet."""
    as_bitsandbytes._said.clear()
    caplog.set_level(logging.WARNING, "int8q")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "int8q"]


T5 = transformers.T5ForConditionalGeneration


# ---------------------------------------------------------------------------------------------------- Loading


@pytest.mark.parametrize("form", ["keyword", "config", "dict"])
@pytest.mark.parametrize("device_map", [None, "auto", "cpu", {"": "cpu"}, {"": 0}, "cuda:0", torch.device("cpu")], ids=str)
def test_what_asks_for_8_bits_gets_them(family, auto, folder, form, device_map):
    asking = {
        "keyword": {"load_in_8bit": True},
        "config": {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
        "dict": {"quantization_config": {"load_in_8bit": True}},
    }[form]
    kwargs = {} if device_map is None else {"device_map": device_map}
    model = auto.from_pretrained(folder, **asking, **kwargs)
    assert len(layers(model)) == FAMILIES[family][2]
    assert torch.equal(logits(model, family), logits(quantize_(make(family)), family))
    assert model.is_loaded_in_8bit
    assert {str(tensor.device) for tensor in model.state_dict().values()} == {"cpu"}


def test_a_models_own_class_loads_it_too(family, folder):
    model = type(make(family)).from_pretrained(pretrained_model_name_or_path=folder, load_in_8bit=True)
    assert len(layers(model)) == FAMILIES[family][2]


@pytest.mark.parametrize("own_class", [False, True])
@pytest.mark.parametrize("asking", [{}, {"load_in_8bit": True}, "config"], ids=str)
def test_int8_checkpoints(family, auto, folder, tmp_path, own_class, asking):
    """Their threshold and their floats are kept."""
    if asking == "config" and not own_class and not hasattr(BitsAndBytesConfig, "to_dict"):
        pytest.skip(
            "this transformers' Auto classes cannot write a BitsAndBytesConfig into the config of an int8 checkpoint"
        )
    names = [name for name in layers(quantize_(make(family))) if re.search(r"\b1\.", name)][:1]
    made = load_in_8bit(auto, folder, llm_int8_threshold=3.0, llm_int8_skip_modules=[*names, "lm_head"])
    int8 = save(made, tmp_path / "int8")
    asking = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)} if asking == "config" else asking
    model = (type(made) if own_class else auto).from_pretrained(int8, **asking)
    assert set(layers(model)) == set(layers(made)) and names[0] not in layers(model)
    assert {layer.threshold for layer in layers(model).values()} == {3.0}
    assert torch.equal(logits(model, family), logits(made, family))


def test_options_of_a_call_go_before_the_checkpoints(t5, tmp_path):
    int8 = save(load_in_8bit(T5, t5, llm_int8_threshold=3.0), tmp_path / "int8")
    for asking in (
        {"load_in_8bit": True, "llm_int8_threshold": 4.0},
        {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=4.0)},
    ):
        model = T5.from_pretrained(int8, **asking)
        assert {layer.threshold for layer in layers(model).values()} == {4.0}


@pytest.mark.parametrize("form", ["keywords", "config"])
def test_threshold_and_skip_modules(family, auto, folder, form):
    options = {"llm_int8_threshold": 0.0, "llm_int8_skip_modules": ["1"]}
    if form == "keywords":
        model = auto.from_pretrained(folder, load_in_8bit=True, **options)
    else:
        model = auto.from_pretrained(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True, **options))
    want = quantize_(make(family), **options)
    tied = {"lm_head"} if VERSION < (5, 0) and model.config.tie_word_embeddings else set()
    assert set(layers(model)) == set(layers(want)) - tied
    assert {layer.outliers for layer in layers(model).values()} == {"off"}


def test_what_was_asked_for_is_not_changed(t5):
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["wo"])
    before = copy.deepcopy(vars(config))
    device_map = {"": "cpu"}
    T5.from_pretrained(t5, quantization_config=config, device_map=device_map)
    assert vars(config) == before and device_map == {"": "cpu"}


def test_modules_offloaded_to_the_cpu_stay_in_floats_if_the_option_says_so(t5):
    device_map = {"shared": 0, "lm_head": 0, "encoder": 0, "decoder": "cpu"}
    split = T5.from_pretrained(t5, load_in_8bit=True, device_map=device_map, llm_int8_enable_fp32_cpu_offload=True)
    assert layers(split) and all(name.startswith("encoder.") for name in layers(split))
    assert all(type(layer) is Linear8bit or "encoder" not in name for name, layer in layers(split, torch.nn.Linear).items())
    assert len(layers(T5.from_pretrained(t5, load_in_8bit=True, device_map=device_map))) == 32
    whole = T5.from_pretrained(t5, load_in_8bit=True, device_map="auto", llm_int8_enable_fp32_cpu_offload=True)
    assert len(layers(whole)) == 32


@pytest.mark.parametrize(
    "extra", [{"low_cpu_mem_usage": True}, {"use_cache": False}, {"bnb_4bit_compute_dtype": "float32"}]
)
def test_other_arguments(t5, extra):
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(t5, load_in_8bit=True, **extra)
    assert len(layers(model)) == 32
    assert model.config.use_cache == extra.get("use_cache", True)


def test_loading_info(t5):
    model, info = T5.from_pretrained(t5, load_in_8bit=True, output_loading_info=True)
    assert len(layers(model)) == 32 and not info["missing_keys"]


def test_dtypes(family, auto, folder, said):
    assert auto.from_pretrained(folder, load_in_8bit=True).dtype == torch.float32
    assert auto.from_pretrained(folder, load_in_8bit=True, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    runs = as_bitsandbytes._half_runs()
    for _ in range(2):
        model = auto.from_pretrained(folder, load_in_8bit=True, torch_dtype=torch.float16)
        assert model.dtype == (torch.float16 if runs else torch.float32)
    logits(model, family)
    assert sum("torch_dtype is float16" in line for line in said()) == (0 if runs else 1)


def test_half_checkpoints_read_as_they_are(t5, tmp_path):
    half = save(make("t5").half(), tmp_path / "half")
    for model_class in (T5, transformers.AutoModelForSeq2SeqLM):
        model = model_class.from_pretrained(half, load_in_8bit=True, torch_dtype="auto")
        assert torch.isfinite(logits(model, "t5")).all()


def test_half_runs_is_true():
    x = torch.ones(1, 2, 2, dtype=torch.float16)
    if as_bitsandbytes._half_runs():
        torch.baddbmm(x, x, x)
    else:
        with pytest.raises(RuntimeError, match="Half"):
            torch.baddbmm(x, x, x)


# ---------------------------------------------------------------------------------------------------- Everything else


def test_floats_stay_floats(family, auto, folder):
    for kwargs in (
        {},
        {"load_in_8bit": False},
        {"load_in_8bit": False, "load_in_4bit": False},
        {"quantization_config": None},
    ):
        model = auto.from_pretrained(folder, **kwargs)
        assert not layers(model)
        assert torch.equal(logits(model, family), logits(make(family), family))


def test_other_calls_reach_the_original_as_they_were(monkeypatch, t5):
    as_bitsandbytes.undo()
    calls = []
    spy = classmethod(lambda cls, *args, **kwargs: calls.append((cls, args, kwargs)))
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", spy)
    as_bitsandbytes.apply()
    other, config = object(), Int8qConfig()
    T5.from_pretrained("nowhere")
    T5.from_pretrained(t5, 1, quantization_config=other, config=transformers.T5Config(), state_dict={})
    T5.from_pretrained(None, quantization_config=config, load_in_8bit=True)
    assert [args for _, args, _ in calls] == [("nowhere",), (t5, 1), (None,)]
    assert set(calls[1][2]) == {"quantization_config", "config", "state_dict"}
    assert calls[1][2]["quantization_config"] is other and calls[2][2] == {"quantization_config": config}
    assert all(cls is T5 for cls, _, _ in calls)
    as_bitsandbytes.undo()


def test_missing_checkpoints_are_reported_as_ever(tmp_path):
    with pytest.raises(OSError, match="config.json|no file named"):
        T5.from_pretrained(str(tmp_path), load_in_8bit=True)


# ---------------------------------------------------------------------------------------------------- Refused


@pytest.mark.parametrize(
    "kwargs, named",
    [
        ({"load_in_4bit": True}, "load_in_4bit"),
        ({"quantization_config": {"load_in_4bit": True}}, "load_in_4bit"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "llm_int8_has_fp16_weight=True"),
        ({"load_in_8bit": True, "llm_int8_colour": 1}, "llm_int8_colour"),
        ({"load_in_8bit": True, "device_map": "disk"}, "disk"),
        ({"load_in_8bit": True, "device_map": {"encoder": "disk", "decoder": "cpu"}}, "disk"),
        ({"load_in_8bit": True, "quantization_config": object()}, "expected a BitsAndBytesConfig"),
        (
            {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "llm_int8_threshold": 5.0},
            "llm_int8_threshold beside quantization_config",
        ),
        ({"load_in_8bit": True, "llm_int8_threshold": -1.0}, "llm_int8_threshold is -1.0"),
    ],
)
def test_refused_by_name(t5, kwargs, named):
    for model_class in (T5, transformers.AutoModelForSeq2SeqLM):
        with pytest.raises(ValueError, match=re.escape(named)):
            model_class.from_pretrained(t5, **kwargs)


@pytest.mark.skipif(not HAS_4BIT, reason="this BitsAndBytesConfig knows no 4 bits")
def test_configs_are_refused_by_name(t5):
    with pytest.raises(ValueError, match="load_in_4bit: int8q has no 4 bits"):
        T5.from_pretrained(t5, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
    with pytest.raises(ValueError, match="llm_int8_has_fp16_weight=True"):
        T5.from_pretrained(t5, quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_has_fp16_weight=True))


def test_checkpoints_of_4_bits_are_refused_by_name(t5):
    path = Path(t5) / "config.json"
    saved = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": saved}))
    for model_class in (T5, transformers.AutoModelForSeq2SeqLM):
        with pytest.raises(ValueError, match="load_in_4bit: int8q has no 4 bits"):
            model_class.from_pretrained(t5)


def test_a_gpu_that_cannot_be_used_is_not_ignored(t5, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1000)
    for device_map in ({"": 0}, "cuda:0", {"encoder": "cpu", "decoder": 0}):
        with pytest.raises(ValueError, match="names a GPU, and no usable GPU"):
            T5.from_pretrained(t5, load_in_8bit=True, device_map=device_map)
    assert layers(T5.from_pretrained(t5, load_in_8bit=True, device_map="auto"))


@pytest.mark.parametrize(
    ("device_map", "want"),
    [(None, {"": 3}), ("auto", "auto"), ({"": 1}, {"": 1}), ({"encoder": 0, "decoder": "cpu"},) * 2, ("cpu", {"": "cpu"})],
)
def test_a_gpu_that_is_there_is_used(monkeypatch, device_map, want):
    monkeypatch.setattr(as_bitsandbytes, "why_no_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    kwargs = {} if device_map is None else {"device_map": device_map}
    as_bitsandbytes._place(kwargs, {})
    assert kwargs["device_map"] == want


def test_a_gpu_that_is_not_there_is_said_once(t5, said):
    for _ in range(2):
        T5.from_pretrained(t5, load_in_8bit=True, device_map={"": 0})
    assert ["names a GPU and there is none" in line for line in said()] == [True]


OPTIMIZERS = [name.value for name in transformers.training_args.OptimizerNames]
BITSANDBYTES_OPTIMIZERS = [
    name
    for name in OPTIMIZERS
    if "bnb" in name
    or name.split("_")[0] in ("paged", "lion", "ademamix")
    or name.endswith("adamw_8bit")
    or "w_8bit_" in name
]


@pytest.mark.parametrize("name", BITSANDBYTES_OPTIMIZERS)
@pytest.mark.parametrize("kind", [TrainingArguments, transformers.Seq2SeqTrainingArguments])
def test_optimizers_of_bitsandbytes_are_refused_by_name(tmp_path, name, kind):
    assert "adamw_bnb_8bit" in BITSANDBYTES_OPTIMIZERS
    with pytest.raises(ValueError, match=f'optim="{name}".*adamw_torch'):
        kind(str(tmp_path), optim=name)


@pytest.mark.parametrize("name", ["adamw_torch", "sgd", "adafactor", None])
def test_other_optimizers_are_not(tmp_path, name):
    arguments = TrainingArguments(str(tmp_path), **({} if name is None else {"optim": name}))
    assert arguments.optim in OPTIMIZERS


def test_fsdp1_is_refused_by_name(t5):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = T5.from_pretrained(t5, load_in_8bit=True)
    with pytest.raises(ValueError, match=r"FSDP1 \(FullyShardedDataParallel\).* encoder\.\S+ is int8.*FSDP2"):
        FullyShardedDataParallel(model)
    with pytest.raises((RuntimeError, ValueError)) as raised:  # no process group, or no GPU
        FullyShardedDataParallel(torch.nn.Linear(2, 2))
    assert "FSDP1" not in str(raised.value)


@pytest.mark.skipif("use_dora" not in peft.LoraConfig.__dataclass_fields__, reason="this peft has no DoRA")
def test_dora_is_refused_by_name(t5):
    model = T5.from_pretrained(t5, load_in_8bit=True)
    with pytest.raises(ValueError, match="use_dora=True"):
        peft.get_peft_model(model, peft.LoraConfig(use_dora=True, target_modules=["q"], task_type="SEQ_2_SEQ_LM"))


# ---------------------------------------------------------------------------------------------------- Models


def test_logits_are_as_far_from_float_as_the_references(family, auto, folder):
    want = logits(make(family), family)
    of_int8 = (logits(auto.from_pretrained(folder, load_in_8bit=True, device_map="auto"), family) - want).norm()
    assert 0 < of_int8 < 1.05 * (logits(reference(family), family) - want).norm()


@pytest.mark.parametrize("prepare", ["prepare_model_for_int8_training", "prepare_model_for_kbit_training"])
def test_prepared_for_training(family, auto, folder, prepare):
    if prepare.endswith("kbit_training") and not hasattr(peft, prepare):
        pytest.skip("peft 0.3 has it first")
    model = getattr(peft, prepare)(auto.from_pretrained(folder, load_in_8bit=True, device_map="auto"))
    assert len(layers(model)) == FAMILIES[family][2]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.is_gradient_checkpointing


def test_models_outlive_undo(t5):
    model = T5.from_pretrained(t5, load_in_8bit=True)
    as_bitsandbytes.undo()
    assert torch.equal(logits(model, "t5"), logits(quantize_(make("t5")), "t5"))


def test_an_int8q_peft_that_was_there_stays():
    as_bitsandbytes.undo()
    assert int8q.peft._originals


def test_lora_after_undo(t5):
    as_bitsandbytes.undo()
    int8q.peft.uninstall()  # as undo() does where nobody else imported it
    model = load_in_8bit(transformers.AutoModelForSeq2SeqLM, t5)
    config = peft.LoraConfig(target_modules=["q", "v"], lora_alpha=8, lora_dropout=0.0, task_type="SEQ_2_SEQ_LM")
    model = peft.get_peft_model(model, config)
    assert any(isinstance(layer, int8q.peft.LoraLinear8bit) for layer in model.modules())
