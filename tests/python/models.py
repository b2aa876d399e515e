# SPDX-License-Identifier: Apache-2.0
"""Small models of transformers with random weights, as far as the installed version has them; what their tests share.

A pytest plug-in, too: pytest_plugins = ("models",) gives a file the fixtures family, auto and folder.
"""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.pytorch_utils import Conv1D

from int8q.nn import Linear8bit, set_submodule
from int8q.transformers import quantize_

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
VOCABULARY = 128
# Of checkpoints. save_pretrained of 4.27 cannot write shared tensors as safetensors; int8 models have them, too.
FORMATS = [".bin"] if VERSION < (4, 35) else [".safetensors"] if VERSION >= (5, 0) else [".bin", ".safetensors"]


def _t5(scale):
    config = transformers.T5Config(
        vocab_size=VOCABULARY * scale,
        d_model=64 * scale,
        d_kv=16 * scale,
        d_ff=128 * scale,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    return transformers.T5ForConditionalGeneration(config)


def _gpt2(scale):
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY * scale,
        n_positions=64,
        n_embd=64 * scale,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.GPT2LMHeadModel(config)


def _llama(scale):
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY * scale,
        hidden_size=64 * scale,
        intermediate_size=128 * scale,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config)


# name -> (maker, Auto class, number of layers that become int8)
FAMILIES = {"t5": (_t5, AutoModelForSeq2SeqLM, 32), "gpt2": (_gpt2, AutoModelForCausalLM, 8)}
if hasattr(transformers, "LlamaConfig"):
    FAMILIES["llama"] = (_llama, AutoModelForCausalLM, 14)


def make(family, scale=1, seed=0):
    """A model in eval mode whose weights are three times as large as transformers makes them: logits are not all alike."""
    torch.manual_seed(seed)
    model = FAMILIES[family][0](scale).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model


def inputs(family, rows=2, length=16, vocabulary=VOCABULARY, seed=1):
    ids = torch.randint(2, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.clone()} if family == "t5" else {"input_ids": ids}


def logits(model, family, **options):
    with torch.no_grad():
        return model(**inputs(family), **options).logits.float()


def save(model, folder, suffix=FORMATS[-1], **kwargs):
    if VERSION < (5, 0):
        kwargs["safe_serialization"] = suffix == ".safetensors"
    model.save_pretrained(str(folder), **kwargs)
    return str(folder)


def layers(model, of=Linear8bit):
    return {name: module for name, module in model.named_modules() if isinstance(module, of)}


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def auto(family):
    return FAMILIES[family][1]


@pytest.fixture
def folder(family, tmp_path):
    return save(make(family), tmp_path / "floats")


class ReferenceLinear(torch.nn.Module):
    """LLM.int8() of an nn.Linear or Conv1D, evaluated in float64."""

    def __init__(self, module, threshold=6.0):
        super().__init__()
        weight = module.weight.detach().double()
        weight = weight.t() if isinstance(module, Conv1D) else weight
        self.stats = weight.abs().amax(1)
        self.codes = (weight * (127 / self.stats)[:, None]).round()
        self.bias, self.threshold = module.bias, threshold
        # T5 looks at the dtype of this.
        self.weight = torch.empty(0, dtype=torch.int8)

    def forward(self, x):
        rows = x.double().flatten(0, -2)
        outlier_cols = (rows.abs() >= self.threshold).any(0)
        absmax = rows.masked_fill(rows.abs() >= self.threshold, 0).abs().amax(1)
        codes = torch.where(absmax[:, None] > 0, rows * (127 / absmax)[:, None], torch.zeros(())).round()
        codes[:, outlier_cols] = 0
        y = (codes @ self.codes.t()) * absmax[:, None] * self.stats / 127**2
        y += rows[:, outlier_cols] @ (self.codes * self.stats[:, None] / 127)[:, outlier_cols].t()
        if self.bias is not None:
            y += self.bias.double()
        return y.to(x.dtype).view(*x.shape[:-1], -1)


def reference(family):
    """The model with all that int8q quantizes replaced by ReferenceLinear."""
    model, names = make(family), layers(quantize_(make(family)))
    for name in names:
        set_submodule(model, name, ReferenceLinear(model.get_submodule(name)))
    return model
