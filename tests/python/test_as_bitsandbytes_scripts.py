# SPDX-License-Identifier: Apache-2.0
"""Whole scripts under int8q.as_bitsandbytes, each a process of its own, with bitsandbytes installed, broken and absent."""

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not in this environment")
transformers = pytest.importorskip("transformers", reason="transformers is not in this environment")
peft = pytest.importorskip("peft", reason="peft is not in this environment")

from models import VERSION, make, save  # noqa: E402
from transformers import BitsAndBytesConfig  # noqa: E402

import int8q  # noqa: E402

HAS_4BIT = "load_in_4bit" in inspect.signature(BitsAndBytesConfig.__init__).parameters
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
SCRIPT = Path(__file__).resolve().parents[2] / "examples/python/finetune_report.py"
ANNOUNCEMENT = "what asks for bitsandbytes' 8 bits runs on int8q"


@pytest.fixture
def t5(tmp_path):
    return save(make("t5"), tmp_path / "floats")


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


def test_run_needs_no_import_in_the_script(t5, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from transformers import AutoModelForSeq2SeqLM\n"
        "assert __name__ == '__main__' and sys.path[0] == __file__.rpartition('/')[0]\n"
        "model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], load_in_8bit=True)\n"
        "print('int8:', sum(type(layer).__name__ == 'Linear8bit' for layer in model.modules()), sys.argv[2:])\n"
        "sys.exit(3)\n"
    )
    command = [sys.executable, "-m", "int8q", "run", script, t5, "--own", "option"]
    paths = str(Path(int8q.__file__).resolve().parents[1])
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment(PYTHONPATH=paths))
    assert made.returncode == 3 and "int8: 32 ['--own', 'option']" in made.stdout


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
