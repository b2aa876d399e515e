# SPDX-License-Identifier: Apache-2.0
"""int8q.peft: LoRA over Linear8bit as users write it, beside twins whose layers hold the same weights as floats.

One file, since all parts use the same models, twins and bounds."""

import contextlib
import copy
import inspect
import json
import pickle
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not in this environment")
transformers = pytest.importorskip("transformers", reason="transformers is not in this environment")
peft = pytest.importorskip("peft", reason="peft is not in this environment")

import models  # noqa: E402
from models import logits  # noqa: E402

import int8q.peft  # noqa: E402
from int8q.nn import Linear8bit, set_submodule  # noqa: E402
from int8q.peft import LoraLinear8bit, merge, merge_and_unload, unmerge  # noqa: E402
from int8q.transformers import quantize_  # noqa: E402

pytest_plugins = ("models",)
VERSION = tuple(int(part) for part in peft.__version__.split(".")[:2])
TARGETS = {"t5": ["q", "v"], "gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "v_proj"]}
TASKS = {"t5": "SEQ_2_SEQ_LM", "gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM"}
ADAPTED = {"t5": 12, "gpt2": 6, "llama": 4}  # layers that TARGETS names
OPTIONS = {field for field in peft.LoraConfig.__dataclass_fields__}


def since(*version):
    return pytest.mark.skipif(VERSION < version, reason=f"peft {'.'.join(map(str, version))} has it first")


def has(option):
    return pytest.mark.skipif(option not in OPTIONS, reason=f"this peft's LoraConfig has no {option}")


def config_of(family, **options):
    base = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": TARGETS[family], "task_type": TASKS[family]}
    return peft.LoraConfig(**{**base, **options})


def int8_model(family, dtype=torch.float32, gain=1, **options):
    """A model whose targets and all else are int8. gain=1/3: weights as small as transformers makes them."""
    model = models.make(family).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(gain)
    return quantize_(model, **options)


def float_twin(model):
    """A copy of the model whose Linear8bit are nn.Linear of the same weights."""
    twin = copy.deepcopy(model)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, Linear8bit):
            set_submodule(twin, name, layer.to_linear())
    twin.is_loaded_in_8bit = twin.is_quantized = False
    return twin


def adapted(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear8bit)}


def base_of(layer):
    return layer.get_base_layer() if VERSION >= (0, 7) else layer


def adapter_parameters(model, ending="weight"):
    return {name: p for name, p in model.named_parameters() if "lora_" in name and name.endswith(ending)}


def lora_model(family, model=None, seed=5, std=0.1, **options):
    """get_peft_model in eval mode; adapters whose B is not zero."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(int8_model(family) if model is None else model, config_of(family, **options)).eval()
    fill(model, std)
    assert adapted(model) or not any(isinstance(layer, Linear8bit) for layer in model.modules())
    return model


def fill(model, std=0.1, seed=6):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def delta_of(layer, name="default"):
    A, B, scaling = layer.lora_A, layer.lora_B, layer.scaling
    if isinstance(A, torch.nn.ModuleDict):
        A, B, scaling = A[name], B[name], scaling[name]
    return (scaling * (B.weight.float() @ A.weight.float())).detach()


def half_steps(layer):
    """[N,1]: how far a merged weight may be from the sum: SCB/254, and fp32's rounding of B A (r + 1 terms) and of W."""
    return base_of(layer).SCB[:, None] * (1 / 254 + 8 * torch.finfo(torch.float32).eps)


def difference(a, b):
    return (a - b).norm() / b.norm()


# ---------------------------------------------------------------------------------------------------- Adapters


def test_a_new_adapter_changes_nothing(family):
    model = int8_model(family)
    want = logits(model, family)
    model = lora_model(family, model, std=0.0)
    assert len(adapted(model)) == ADAPTED[family]
    assert torch.equal(logits(model, family), want)


def test_each_layer_has_adapters_of_its_own_and_gradients_reach_only_them(family):
    model = lora_model(family)
    inputs = models.inputs(family)
    model(**{**inputs, "labels": inputs["input_ids"]}).loss.backward()
    adapters = adapter_parameters(model)
    assert len(adapters) == len({p.data_ptr() for p in adapters.values()}) == 2 * ADAPTED[family]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters.values())
    others = {name: p for name, p in model.named_parameters() if name not in adapters}
    assert others and not any(p.requires_grad or p.grad is not None for p in others.values())


def test_the_same_seed_makes_the_adapters_of_the_float_twin(family):
    model = int8_model(family)
    twin = float_twin(model)
    torch.manual_seed(1)
    want = adapter_parameters(peft.get_peft_model(twin, config_of(family)))
    torch.manual_seed(1)
    got = adapter_parameters(peft.get_peft_model(model, config_of(family)))
    assert want.keys() == got.keys() and all(torch.equal(got[name], want[name]) for name in want)


def test_saved_and_loaded(family, tmp_path):
    model = lora_model(family)
    model.save_pretrained(tmp_path / "int8")
    lora_model(family, float_twin(int8_model(family))).save_pretrained(tmp_path / "float")
    text = (tmp_path / "int8" / "adapter_config.json").read_text()
    assert "int8q" not in text and "8bit" not in text
    saved, twins = (json.loads((tmp_path / kind / "adapter_config.json").read_text()) for kind in ("int8", "float"))
    for entries in (saved, twins):
        entries["target_modules"] = sorted(entries["target_modules"])  # a set, from 0.6 on
    assert saved == twins
    assert sorted(p.name for p in (tmp_path / "int8").iterdir()) == sorted(p.name for p in (tmp_path / "float").iterdir())
    loaded = peft.PeftModel.from_pretrained(int8_model(family), tmp_path / "int8").eval()
    assert len(adapted(loaded)) == ADAPTED[family]
    assert torch.equal(logits(loaded, family), logits(model, family))
    beside_floats = peft.PeftModel.from_pretrained(float_twin(int8_model(family)), tmp_path / "int8").eval()
    # W is the same, x is quantized in one: the adapter belongs to this model.
    assert difference(logits(beside_floats, family), logits(model, family)) < difference(
        logits(int8_model(family), family), logits(model, family)
    )


def test_disabled(family):
    model = int8_model(family)
    base = logits(model, family)
    model = lora_model(family, model)
    with model.disable_adapter():
        assert torch.equal(logits(model, family), base)
    assert not torch.equal(logits(model, family), base)


@since(0, 3)
def test_disabling_unmerges(family):
    model = int8_model(family)
    base = logits(model, family)
    model = lora_model(family, model)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model, family), base)


@since(0, 3)
def test_two_adapters(family):
    model = lora_model(family)
    model.add_adapter("second", config_of(family, r=2))
    fill(model, seed=8)
    first = logits(model, family)
    model.set_adapter("second")
    second = logits(model, family)
    assert difference(second, first) > 0.01
    sums = {name: base_of(layer).dequantize() + delta_of(layer, "second") for name, layer in adapted(model).items()}
    assert len(sums) == ADAPTED[family]
    model.merge_adapter()
    for name, layer in adapted(model).items():
        assert ((base_of(layer).dequantize() - sums[name]).abs() <= half_steps(layer)).all()
    model.unmerge_adapter()
    assert torch.equal(logits(model, family), second)
    model.set_adapter("default")
    assert torch.equal(logits(model, family), first)


@since(0, 10)
def test_adapters_by_row(family):
    model = lora_model(family, int8_model(family, llm_int8_threshold=0))  # outlier columns would couple the rows
    model.add_adapter("second", config_of(family))
    fill(model, seed=8)
    first = logits(model, family)
    model.set_adapter("second")
    second = logits(model, family)
    both = logits(model, family, adapter_names=["default", "second"])
    assert difference(both[0], first[0]) < 1e-4 < 0.01 < difference(both[0], second[0])
    assert difference(both[1], second[1]) < 1e-4


@has("use_rslora")
def test_rslora_and_rank_pattern(family):
    model = lora_model(family, use_rslora=True, rank_pattern={TARGETS[family][0]: 8})
    layers = {name: layer for name, layer in adapted(model).items() if name.endswith("." + TARGETS[family][0])}
    assert layers and all(layer.scaling["default"] == 8 / 8**0.5 and layer.r["default"] == 8 for layer in layers.values())


def test_dropout_is_the_twins():
    """Where x is so small a set of integers that int8 holds it, so that the layers agree up to fp32's rounding."""
    torch.manual_seed(0)
    layer = Linear8bit.from_linear(torch.nn.Linear(32, 24))
    x = torch.randint(-127, 128, (5, 32)).float() / 127
    x[:, 0] = 1
    results = []
    for inner in (layer, layer.to_linear()):
        holder = torch.nn.Module()
        holder.inner, holder.config, holder.forward = inner, transformers.PretrainedConfig(), lambda x: None
        torch.manual_seed(4)
        config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.5, target_modules=["inner", "none"])
        make_lora(holder, config)
        fill(holder)
        holder.inner.train()
        torch.manual_seed(9)
        results.append(holder.inner(x).detach())
    assert (results[0] - results[1]).abs().max() < 1e-4 < (results[0] - layer(x)).abs().max()


def make_lora(model, config):
    arguments = (config, model) if VERSION < (0, 3) else (model, {"default": config}, "default")
    return peft.tuners.lora.LoraModel(*arguments)


def test_bias_trains(family):
    if family != "gpt2":
        pytest.skip("only GPT-2's layers have a bias")
    model = lora_model(family, bias="all")
    inputs = models.inputs(family)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for layer in adapted(model).values():
        bias = base_of(layer).bias
        assert bias.requires_grad and bias.grad.abs().max() > 0
    model = merge_and_unload(model)
    assert all(layer.bias is not None for layer in model.modules() if isinstance(layer, Linear8bit))


def test_nn_linear_beside_linear8bit(family):
    kept = TARGETS[family][1]
    if VERSION < (0, 3) and family == "gpt2":  # it would give Conv1D the module that it made just before
        with pytest.raises(ValueError, match="c_proj is a Conv1D.*share the adapter"):
            lora_model(family, int8_model(family, llm_int8_skip_modules=[kept, "lm_head"]))
        return
    model = lora_model(family, int8_model(family, llm_int8_skip_modules=[kept, "lm_head"]))
    ours = adapted(model)
    theirs = [layer for layer in model.modules() if isinstance(layer, peft.tuners.lora.LoraLayer)]
    assert 0 < len(ours) < ADAPTED[family] == len(theirs)
    adapters = adapter_parameters(model)
    assert len(adapters) == len({p.data_ptr() for p in adapters.values()}) == 2 * ADAPTED[family]
    want = logits(model, family)
    floats = [layer for layer in theirs if not isinstance(layer, LoraLinear8bit)]
    before = [base_of(layer).weight.detach().clone() for layer in floats]
    merge(model)
    merged = logits(model, family)
    for layer, old in zip(floats, before):
        delta = delta_of(layer).t() if layer.fan_in_fan_out else delta_of(layer)
        assert torch.allclose(base_of(layer).weight, old + delta, atol=1e-5)
    unmerge(model)
    assert difference(logits(model, family), want) < 1e-5  # peft subtracts floats
    plain = merge_and_unload(model)
    assert difference(logits(plain, family), merged) < 1e-5
    assert not any("lora" in name for name, _ in plain.named_modules())


# ---------------------------------------------------------------------------------------------------- Merging


def test_merged_weights_are_within_half_a_step_of_the_sum(family):
    model = lora_model(family)
    want = {name: base_of(layer).dequantize() + delta_of(layer) for name, layer in adapted(model).items()}
    merge(model)
    for name, layer in adapted(model).items():
        weight, stats = base_of(layer).dequantize(), base_of(layer).SCB
        eps = torch.finfo(torch.float32).eps
        assert torch.allclose(stats, want[name].abs().amax(1), rtol=4 * eps)
        assert ((weight - want[name]).abs() <= half_steps(layer)).all()
        assert (weight - want[name]).abs().max() > 0


def test_merged_and_unloaded(family):
    model = lora_model(family, int8_model(family, llm_int8_threshold=3.0, outliers="element"))
    want = float_twin(int8_model(family, llm_int8_threshold=3.0, outliers="element"))
    bias = {name: base_of(layer).bias for name, layer in adapted(model).items()}
    names = {name.split("base_model.model.")[1]: delta_of(layer) for name, layer in adapted(model).items()}
    plain = merge_and_unload(model)
    layers = {name: layer for name, layer in plain.named_modules() if isinstance(layer, Linear8bit)}
    assert not adapted(plain) and not any("lora" in name for name, _ in plain.named_modules())
    assert all(type(layer) is Linear8bit for layer in layers.values())
    for name, delta in names.items():
        layer = layers[name]
        assert (layer.outliers, layer.threshold) == ("element", 3.0)
        assert layer.bias is bias["base_model.model." + name]
        linear = want.get_submodule(name)
        linear.weight.data += delta
        expected = Linear8bit.from_linear(linear)
        # B A is summed in another order: a code may be the neighbour where the sum is midway.
        assert (layer.weight.int() - expected.weight.int()).abs().max() <= 1
        assert (layer.weight != expected.weight).float().mean() < 1e-3
    y = logits(plain, family)
    assert torch.isfinite(y).all()


def test_unmerging_is_exact(family):
    model = lora_model(family)
    want = logits(model, family)
    before = {name: base_of(layer).packed.clone() for name, layer in adapted(model).items()}
    for _ in range(3):
        merge(model)
        assert all(not torch.equal(base_of(layer).packed, before[name]) for name, layer in adapted(model).items())
        assert not torch.equal(logits(model, family), want)
        unmerge(model)
    assert all(torch.equal(base_of(layer).packed, before[name]) for name, layer in adapted(model).items())
    assert torch.equal(logits(model, family), want)


def test_merging_an_adapter_of_zeros_leaves_the_weights(family):
    model = lora_model(family, std=0.0)
    before = {name: base_of(layer).packed for name, layer in adapted(model).items()}
    merge(model)
    assert all(torch.equal(base_of(layer).packed, before[name]) for name, layer in adapted(model).items())
    assert all(base_of(layer).packed is not before[name] for name, layer in adapted(model).items())


def test_merging_bf16_adapters_adds_in_fp32(family):
    model = lora_model(family)
    for parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.bfloat16()
    want = {name: base_of(layer).dequantize() + delta_of(layer) for name, layer in adapted(model).items()}
    merge(model)
    for name, layer in adapted(model).items():
        assert ((base_of(layer).dequantize() - want[name]).abs() <= half_steps(layer)).all()


def test_merging_nan_is_refused_and_changes_nothing(family):
    model = lora_model(family)
    layer = next(iter(adapted(model).values()))
    before = base_of(layer).packed
    next(p for name, p in layer.named_parameters() if "lora_B" in name).data[3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        layer.merge()
    assert base_of(layer).packed is before and not layer.merged


def test_merged_layers_are_copied_and_pickled(family):
    if VERSION < (0, 3):
        pytest.skip("peft 0.2.0 keeps a lambda in its layers")
    model = lora_model(family)
    want = logits(model, family)
    merge(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        unmerge(other)
        assert torch.equal(logits(other, family), want)


@has("lora_bias")
def test_lora_bias():
    model = lora_model("gpt2", lora_bias=True)
    with torch.no_grad():
        for parameter in adapter_parameters(model, "bias").values():
            parameter.normal_()
    want = logits(model, "gpt2")
    before = {name: base_of(layer).bias.clone() for name, layer in adapted(model).items()}
    merge(model)
    for name, layer in adapted(model).items():
        added = layer.scaling["default"] * layer.lora_B["default"].bias
        assert torch.equal(base_of(layer).bias, before[name] + added)
    unmerge(model)
    assert all(torch.equal(base_of(layer).bias, before[name]) for name, layer in adapted(model).items())
    assert torch.equal(logits(model, "gpt2"), want)


@has("lora_bias")
def test_lora_bias_without_a_bias_is_refused_and_changes_nothing():
    model = lora_model("t5", lora_bias=True)
    layer = next(iter(adapted(model).values()))
    packed = base_of(layer).packed
    with pytest.raises(RuntimeError, match="bias"):
        layer.merge()
    assert base_of(layer).packed is packed and not layer.merged


@since(0, 7)
def test_merging_two_adapters_rounds_once():
    model = lora_model("t5")
    model.add_adapter("second", config_of("t5"))
    fill(model, 0.2, seed=8)
    layers = adapted(model)
    sums = {n: base_of(la).dequantize() + delta_of(la) + delta_of(la, "second") for n, la in layers.items()}
    model.base_model.set_adapter(["default", "second"])
    model.merge_adapter()
    for name, layer in layers.items():
        assert layer.merged_adapters == ["default", "second"]
        assert ((base_of(layer).dequantize() - sums[name]).abs() <= half_steps(layer)).all()


# ---------------------------------------------------------------------------------------------------- GPT-2's Conv1D


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_fan_in_fan_out_is_ignored(fan_in_fan_out):
    """GPT-2 was [K,N] and is [N,K] since it is int8; users' configs say fan_in_fan_out=True."""
    model = lora_model("gpt2", fan_in_fan_out=fan_in_fan_out)
    want = lora_model("gpt2")
    assert torch.equal(logits(model, "gpt2"), logits(want, "gpt2"))
    merge(model)
    merge(want)
    for name, layer in adapted(model).items():
        assert torch.equal(base_of(layer).packed, base_of(adapted(want)[name]).packed)
        if VERSION >= (0, 7):  # what add_weighted_adapter asks
            assert torch.allclose(layer.get_delta_weight("default"), delta_of(layer))


@has("enable_lora")
def test_enable_lora():
    """peft 0.2.0 makes q and v of GPT-2's c_attn, not k, where it is the one target."""
    model = int8_model("gpt2")
    twin = lora_model("gpt2", float_twin(model), target_modules=["c_attn"])
    model = lora_model("gpt2", model, target_modules=["c_attn"])
    layers, twins = list(adapted(model).values()), [la for la in twin.modules() if hasattr(la, "enable_lora")]
    assert len(layers) == len(twins) == 2 and layers[0].enable_lora == [True, False, True]
    x = torch.randint(-127, 128, (2, 5, 64)).float() / 127
    x[..., 0] = 1
    for layer, other in zip(layers, twins):
        assert (layer(x) - other(x)).abs().max() < 1e-4 * other(x).abs().max()
        before, y = layer.dequantize(), layer(x) - Linear8bit.forward(layer, x)
        layer.merge()
        change = layer.dequantize() - before
        assert (x @ change.t() - y).norm() < 0.02 * y.norm()
        kept = slice(64, 128)
        assert torch.equal(layer.dequantize()[kept], before[kept])
        layer.unmerge()
    merge_and_unload(model)


# ---------------------------------------------------------------------------------------------------- Refusals


@pytest.mark.parametrize("inside", [False, True])
def test_int8_modules_to_save_are_refused_by_name(family, inside):
    layer = {"t5": ("SelfAttention", "o"), "gpt2": ("mlp", "c_fc"), "llama": ("mlp", "up_proj")}[family]
    saved = layer[0] if inside else layer[1]
    with pytest.raises(ValueError, match=rf"modules_to_save has '{saved}', and .* is int8"):
        peft.get_peft_model(int8_model(family), config_of(family, modules_to_save=[saved]))
    assert peft.get_peft_model(int8_model(family), config_of(family, modules_to_save=["lm_head"]))


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
    ],
    ids=lambda options: str(next(iter(options.items()))),
)
def test_what_needs_float_weights_is_refused_by_name(options):
    if not OPTIONS.issuperset(options) or VERSION < (0, 7):
        pytest.skip(f"this peft has no {sorted(options)}")
    try:
        config = config_of("t5", **options)
    except ImportError as error:
        pytest.skip(str(error))
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=rf"{name}={value!r} needs float weights.*target_modules"):
        peft.get_peft_model(int8_model("t5"), config)
    model = lora_model("t5")
    with pytest.raises(ValueError, match=rf"{name}={value!r} needs float weights"):
        model.add_adapter("second", config)


@has("use_dora")
def test_dora_beside_int8_layers_is_not_refused():
    model = int8_model("t5", llm_int8_skip_modules=["q", "lm_head"])
    model = peft.get_peft_model(model, config_of("t5", target_modules=["q"], use_dora=True))
    assert torch.isfinite(logits(model, "t5")).all()


@since(0, 4)
def test_gaussian_and_no_initialization(family):
    if VERSION >= (0, 8):
        assert len(adapted(lora_model(family, init_lora_weights="gaussian"))) == ADAPTED[family]
    assert len(adapted(lora_model(family, init_lora_weights=False))) == ADAPTED[family]


# ---------------------------------------------------------------------------------------------------- Training


def prepare(model):
    if hasattr(peft, "prepare_model_for_kbit_training"):
        return peft.prepare_model_for_kbit_training(model)
    return peft.prepare_model_for_int8_training(model)


def test_prepared_for_training(family):
    model = int8_model(family, torch.bfloat16)
    before = {name: layer.packed.clone() for name, layer in model.named_modules() if isinstance(layer, Linear8bit)}
    model = prepare(model)
    assert model.is_gradient_checkpointing and not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(model.get_submodule(name).packed, packed) for name, packed in before.items())
    model = lora_model(family, model).train()
    model.config.use_cache = False
    inputs = models.inputs(family)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**{**inputs, "labels": inputs["input_ids"]}).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter_parameters(model).values())


def test_gradient_checkpointing_gives_the_same_gradients(family):
    gradients = []
    for checkpointing in (False, True):
        model = int8_model(family)
        model.config.use_cache = False
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        model = lora_model(family, model).train()
        inputs = models.inputs(family)
        model(**{**inputs, "labels": inputs["input_ids"]}).loss.backward()
        gradients.append({name: p.grad for name, p in adapter_parameters(model).items()})
    # fp32's rounding: gradients are added up in another order
    assert all(difference(gradients[1][name], want) < 1e-4 for name, want in gradients[0].items())


def batches(family):
    made = []
    for step in range(20):
        inputs = models.inputs(family, rows=4, seed=step % 2)
        made.append({**inputs, "labels": inputs["input_ids"]})
    return made


def train(model, family, context, seed=11):
    """The losses of 20 steps."""
    torch.manual_seed(seed)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for batch in batches(family):
        with context():
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "autocast"])
def test_20_steps_end_at_the_loss_of_the_float_twin(family, compute):
    dtype = torch.bfloat16 if compute == "bfloat16" else torch.float32
    context = (lambda: torch.autocast("cpu", torch.bfloat16)) if compute == "autocast" else contextlib.nullcontext
    model = int8_model(family, dtype, gain=1 / 3)
    twin = float_twin(model).to(dtype if VERSION >= (0, 3) else torch.float32)  # 0.2.0's own layers take no bf16
    losses = []
    for each in (model, twin):
        torch.manual_seed(5)
        each = peft.get_peft_model(each, config_of(family, lora_dropout=0.1))
        losses.append(train(each, family, context))
    ours, floats = losses
    assert floats[-1] < 0.97 * floats[0]
    assert abs(ours[-1] - floats[-1]) <= 0.02 * floats[-1]
    assert ours != floats


def test_trainer(family, tmp_path):
    on_cpu = (
        {"use_cpu": True}
        if "use_cpu" in inspect.signature(transformers.TrainingArguments).parameters
        else {"no_cuda": True}
    )
    model = lora_model(family, std=0.0)
    before = {name: p.clone() for name, p in adapter_parameters(model).items()}
    rows = [{name: tensor[row] for name, tensor in batch.items()} for batch in batches(family)[:2] for row in range(4)]
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        save_steps=20,
        seed=3,
        **on_cpu,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 20 and losses[-1] < losses[0]
    assert not any(torch.equal(p, before[name]) for name, p in adapter_parameters(model).items())
    assert (tmp_path / "checkpoint-20").is_dir()


def test_accelerator(family):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = lora_model(family, std=0.0).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    rows = [{name: tensor[row] for name, tensor in batch.items()} for batch in batches(family)[:2] for row in range(4)]
    model, optimizer, loader = accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(rows, batch_size=4))
    losses = []
    for _ in range(3):
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    plain = merge_and_unload(accelerator.unwrap_model(model))
    assert torch.isfinite(logits(plain.eval(), family)).all()


# ---------------------------------------------------------------------------------------------------- Installation


def test_a_config_made_before_the_import_is_served():
    int8q.peft.uninstall()
    try:
        config = config_of("t5")
    finally:
        int8q.peft.install()
    assert len(adapted(peft.get_peft_model(int8_model("t5"), config))) == ADAPTED["t5"]


def test_installing_is_idempotent_and_undone():
    script = """
import peft
model = peft.tuners.lora.LoraModel
before = dict(vars(model))
import int8q.peft
once = dict(vars(model))
int8q.peft.install()
assert dict(vars(model)) == once != before
int8q.peft.uninstall()
int8q.peft.uninstall()
assert dict(vars(model)) == before
int8q.peft.install()
assert vars(model).keys() == once.keys() and dict(vars(model)) != before
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_without_peft_the_import_says_so():
    script = "import sys; sys.modules['peft'] = None; import int8q.peft"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: int8q.peft is for peft, which is not installed in this Python; pip install peft" in done.stderr


@pytest.mark.skipif(VERSION >= (0, 12), reason="from 0.12 on peft asks for bitsandbytes only where it has layers of it")
def test_bitsandbytes_need_not_be_installed():
    script = """
import sys, importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "bitsandbytes" else real(name, *rest)
sys.modules["bitsandbytes"] = None
import test_peft
model = test_peft.lora_model("t5", test_peft.int8_model("t5"))
assert len(test_peft.adapted(model)) == test_peft.ADAPTED["t5"] and model.base_model.model.is_loaded_in_8bit
test_peft.merge_and_unload(model)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, cwd=__file__.rpartition("/")[0])
