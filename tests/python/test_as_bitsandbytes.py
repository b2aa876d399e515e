# SPDX-License-Identifier: Apache-2.0
"""int8q.as_bitsandbytes: scripts for bitsandbytes, unchanged, with bitsandbytes installed, broken and absent."""

import copy
import importlib
import inspect
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not in this environment")
transformers = pytest.importorskip("transformers", reason="transformers is not in this environment")
peft = pytest.importorskip("peft", reason="peft is not in this environment")

from models import FAMILIES, VERSION, logits, make  # noqa: E402
from test_transformers import layers, reference, save  # noqa: E402
from transformers import BitsAndBytesConfig, PreTrainedModel, TrainingArguments  # noqa: E402

import int8q.peft  # noqa: E402, F401  stays installed for the other files' tests
from int8q import as_bitsandbytes  # noqa: E402
from int8q.nn import Linear8bit  # noqa: E402
from int8q.transformers import Int8qConfig, load_in_8bit, quantize_  # noqa: E402

as_bitsandbytes.undo()
transformers.logging.set_verbosity_error()

HAS_4BIT = "load_in_4bit" in inspect.signature(BitsAndBytesConfig.__init__).parameters
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
SCRIPT = Path(__file__).resolve().parents[2] / "examples/python/finetune_report.py"
ANNOUNCEMENT = "what asks for bitsandbytes' 8 bits runs on int8q"


@pytest.fixture(autouse=True)
def applied():
    as_bitsandbytes.apply()
    yield
    as_bitsandbytes.undo()


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def auto(family):
    return FAMILIES[family][1]


@pytest.fixture
def folder(family, tmp_path):
    return save(make(family), tmp_path / "floats")


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


def test_a_gpu_that_is_there_is_not_ignored(t5, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device_map in ({"": 0}, "cuda:0", {"encoder": "cpu", "decoder": 0}):
        with pytest.raises(ValueError, match="names a GPU, and int8q runs on a CPU"):
            T5.from_pretrained(t5, load_in_8bit=True, device_map=device_map)


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


# ---------------------------------------------------------------------------------------------------- Whole scripts


def environment(**more):
    keep = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **keep, **more}


def run(code, *arguments, state="installed", tmp_path=None, expect=0):
    """The output of Python running code, where bitsandbytes is in this state: installed, broken, absent."""
    flags, paths = [], [str(Path(int8q.__file__).resolve().parents[1])]
    if state == "broken":
        package = tmp_path / "broken/bitsandbytes"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("from . import nn\nmatmul = print\nraise RuntimeError('CUDA Setup failed')\n")
        (package / "cuda_setup.py").write_text("")
        (package / "nn.py").write_text("class Linear8bitLt: pass\n")
        paths.insert(0, str(package.parent))
    if state.startswith("absent"):
        absent = ("bitsandbytes", "peft") if "peft" in state else ("bitsandbytes",)
        packages = str(Path(transformers.__file__).parents[1])
        paths = [path for path in paths if path != packages] + [str(without(absent, tmp_path / "site"))]
        flags = ["-S"]  # no site-packages but that
    command = [sys.executable, *flags, "-c", code, *map(str, arguments)]
    made = subprocess.run(
        command, capture_output=True, text=True, env=environment(PYTHONPATH=os.pathsep.join(paths)), cwd=tmp_path
    )
    assert (made.returncode == 0) == (expect == 0), made.stdout[-2000:] + made.stderr[-6000:]
    return made.stdout + made.stderr


def without(names, site):
    """A folder of links to all of site-packages but these packages."""
    site.mkdir()
    for entry in Path(transformers.__file__).parents[1].iterdir():
        if not re.match(rf"({'|'.join(names)})(-|$)", entry.name):
            (site / entry.name).symlink_to(entry)
    return site


CHECKS = """
import copy, json
from int8q.nn import Linear8bit

def int8_of(model):
    linears = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    return sum(isinstance(m, Linear8bit) for m in linears), len(linears)

base = loaded.get_base_model() if hasattr(loaded, "get_base_model") else loaded.base_model.model
int8 = AutoModelForSeq2SeqLM.from_pretrained(model_id, load_in_8bit=True)
floats = T5ForConditionalGeneration.from_pretrained(model_id)
losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
batch = default_data_collator([{k: v.clone() for k, v in row.items()} for row in tokenized_dataset[:4]])
batch = {k: v.to("cpu") for k, v in batch.items()}
trained = trainer.model.eval()
with torch.no_grad():
    of_trained, of_loaded = trained(**batch).logits, loaded(**batch).logits
print(json.dumps({
    "int8": int8_of(int8),
    "adapted": sum(isinstance(m, Linear8bit) for m in base.modules()),
    "footprint": int8.get_memory_footprint() / floats.get_memory_footprint(),
    "losses": losses,
    "equal": torch.equal(of_trained, of_loaded),
    "changed": not torch.equal(of_loaded, int8(**batch).logits),
    "generated": outputs.shape[1],
}))
"""
ORDERS = {
    "first": "import int8q.as_bitsandbytes",
    "last": "import transformers, peft, transformers.trainer; from transformers import AutoModelForSeq2SeqLM\n"
    "import int8q.as_bitsandbytes",
}


@pytest.mark.skipif(not SCRIPT.exists(), reason="the examples are not here")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("state", ["installed", "broken", "absent"])
def test_the_reports_script(state, order, tmp_path):
    if state == "installed" and not HAS_BITSANDBYTES:
        pytest.skip("bitsandbytes is not in this environment")
    if state == "broken" and order == "last":
        probe = "try:\n    import peft\nexcept Exception as error:\n    print('dies of', error)"
        if "dies of CUDA Setup failed" in run(probe, state=state, tmp_path=tmp_path):
            pytest.skip("this peft does not import where bitsandbytes is broken")
    code = f"{ORDERS[order]}\n{SCRIPT.read_text()}\n{CHECKS}"
    output = run(code, tmp_path / "out", state=state, tmp_path=tmp_path)
    result = json.loads(re.search(r"^\{\"int8\".*", output, re.M).group())
    got, eligible = result["int8"]
    assert eligible == 32 and got >= 0.9 * eligible
    assert result["adapted"] == eligible
    assert result["footprint"] <= 0.35
    assert len(result["losses"]) == 20
    assert sum(result["losses"][-5:]) < 0.8 * sum(result["losses"][:5])
    assert result["equal"] and result["changed"]
    assert 2 <= result["generated"] <= 11
    assert output.count(ANNOUNCEMENT) == 1


@pytest.mark.skipif(not SCRIPT.exists(), reason="the examples are not here")
@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not in this environment")
def test_the_reports_script_does_not_run_without(tmp_path):
    script = SCRIPT.read_text().replace("import int8q.as_bitsandbytes", "import warnings")
    as_bitsandbytes.undo()
    if not hasattr(peft, "prepare_model_for_int8_training"):
        script = script.replace("prepare_model_for_int8_training", "prepare_model_for_kbit_training")
    if VERSION < (4, 30):
        error = "Some modules are dispatched on the CPU or the disk"
    elif VERSION < (5, 0):
        error = (
            "ImportError: Using `load_in_8bit=True` requires Accelerate|CUDA is required but not available for bitsandbytes"
        )
    else:
        error = "unexpected keyword argument 'load_in_8bit'"
    assert re.search(error, run(script, tmp_path / "out", tmp_path=tmp_path, expect=1))


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


# ---------------------------------------------------------------------------------------------------- Coming and going

STATE = """
import sys, importlib.util, importlib.metadata
import torch, transformers, peft
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from transformers import PreTrainedModel, TrainingArguments, T5ForConditionalGeneration, AutoModelForSeq2SeqLM

def state():
    owners = [PreTrainedModel, TrainingArguments, FSDP, peft, peft.PeftModel, peft.LoraModel, peft.LoraConfig,
              T5ForConditionalGeneration, AutoModelForSeq2SeqLM, transformers.BitsAndBytesConfig]
    kept = {(str(owner), name): value for owner in owners for name, value in list(vars(owner).items())}
    finders = [finder for finder in sys.meta_path if type(finder).__module__.startswith("int8q")]
    return kept, finders, {name for name in sys.modules if name.split(".")[0] == "bitsandbytes"}

def same(a, b):
    return a[0].keys() == b[0].keys() and all(a[0][name] is b[0][name] for name in a[0]) and a[1:] == b[1:]
"""


@pytest.mark.parametrize("state", ["installed", "absent"])
def test_undo_leaves_the_very_same_objects(state, tmp_path):
    if state == "installed" and not HAS_BITSANDBYTES:
        pytest.skip("bitsandbytes is not in this environment")
    code = f"""{STATE}
before = state()
import int8q.as_bitsandbytes as it
applied = state()
assert not same(before, applied)
it.apply()
assert same(applied, state())
import importlib
importlib.reload(it)
changed = set(n for n in applied[0] if before[0].get(n) is not applied[0][n])
wrapped = (PreTrainedModel, "from_pretrained"), (TrainingArguments, "__post_init__"), (FSDP, "__init__")
assert changed >= {{(str(owner), name) for owner, name in wrapped}}
it.undo()
assert same(before, state()), [n for n in before[0] if before[0][n] is not state()[0].get(n)] + list(state()[1:])
it.undo()
assert same(before, state())
it.apply()
assert {{n for n in applied[0] if before[0].get(n) is not state()[0].get(n)}} == changed
it.undo()
assert same(before, state())
"""
    output = run(code, state=state, tmp_path=tmp_path)
    assert output.count(ANNOUNCEMENT) == 1


def test_models_outlive_undo(t5):
    model = T5.from_pretrained(t5, load_in_8bit=True)
    as_bitsandbytes.undo()
    assert torch.equal(logits(model, "t5"), logits(quantize_(make("t5")), "t5"))


def test_an_int8q_peft_that_was_there_stays():
    as_bitsandbytes.undo()
    assert int8q.peft._originals


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not in this environment")
def test_a_working_bitsandbytes_is_the_real_one(tmp_path):
    code = """
import int8q.as_bitsandbytes as it
import bitsandbytes, importlib.metadata, importlib.util, sys
assert not hasattr(bitsandbytes, "int8q_stands_in") and bitsandbytes.__file__.endswith("bitsandbytes/__init__.py")
assert type(bitsandbytes.__loader__).__module__.startswith(("_frozen", "importlib"))
assert bitsandbytes.__spec__.loader is bitsandbytes.__loader__ and bitsandbytes.__path__
assert "int8q" not in importlib.metadata.version("bitsandbytes")
assert issubclass(bitsandbytes.optim.AdamW, bitsandbytes.optim.optimizer.Optimizer8bit)
it.undo()
assert sys.modules["bitsandbytes"] is bitsandbytes
"""
    run(code, tmp_path=tmp_path)


@pytest.mark.parametrize("state", ["broken", "absent"])
def test_the_stand_in(state, tmp_path):
    code = """
import importlib.metadata, importlib.util, sys
state = sys.argv[1]
import int8q.as_bitsandbytes as it
import torch
import bitsandbytes as bnb
assert importlib.util.find_spec("bitsandbytes") is not None
from packaging.version import parse
assert state == "broken" or parse(importlib.metadata.version("bitsandbytes")) >= parse("0.48")
assert bnb.__version__ == importlib.metadata.version("bitsandbytes")
assert bnb.__doc__.startswith("int8q's stand-in") and ("CUDA Setup failed" in bnb.__doc__) == (state == "broken")
for make in (lambda: bnb.nn.Linear8bitLt(4, 4), lambda: bnb.optim.AdamW8bit([torch.zeros(1)])):
    try:
        make()
    except RuntimeError as error:
        assert "int8q only stands in for it; use" in str(error) and "bitsandbytes." in str(error)
    else:
        raise AssertionError
from bitsandbytes.optim import Lion, AdamW
import bitsandbytes.nn, bitsandbytes.optim
assert not hasattr(bnb.nn, "Linear4bit") and not hasattr(bnb, "matmul") and not hasattr(bnb.optim, "__wrapped__")
try:
    import bitsandbytes.cuda_setup
except ImportError:
    pass
else:
    raise AssertionError
assert not isinstance(torch.nn.Linear(2, 2), bnb.nn.Linear8bitLt)
it.undo()
assert not [name for name in sys.modules if name.startswith("bitsandbytes")]
try:
    import bitsandbytes
except (ImportError if state == "absent" else RuntimeError):
    pass
else:
    raise AssertionError
if state == "absent":
    assert importlib.util.find_spec("bitsandbytes") is None
    try:
        importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        raise AssertionError
it.apply()
import bitsandbytes
assert bitsandbytes.int8q_stands_in
"""
    run(code, state, state=state, tmp_path=tmp_path)


@pytest.mark.skipif(not HAS_4BIT, reason="this BitsAndBytesConfig knows no 4 bits")
def test_4_bits_are_refused_by_name_without_bitsandbytes(t5, tmp_path):
    code = """
import sys
from transformers import BitsAndBytesConfig, T5ForConditionalGeneration
import int8q.as_bitsandbytes
try:
    T5ForConditionalGeneration.from_pretrained(sys.argv[1], quantization_config=BitsAndBytesConfig(load_in_4bit=True))
except ValueError as error:
    assert "load_in_4bit: int8q has no 4 bits" in str(error)
else:
    raise AssertionError
"""
    run(code, t5, state="absent", tmp_path=tmp_path)


def test_peft_need_not_be_installed(t5, tmp_path):
    code = """
import sys, int8q.as_bitsandbytes as it
from transformers import T5ForConditionalGeneration
assert "peft" not in sys.modules
from int8q.nn import Linear8bit
model = T5ForConditionalGeneration.from_pretrained(sys.argv[1], load_in_8bit=True, device_map="auto")
assert sum(isinstance(layer, Linear8bit) for layer in model.modules()) == 32
it.undo()
"""
    run(code, t5, state="absent with peft", tmp_path=tmp_path)
