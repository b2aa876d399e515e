# SPDX-License-Identifier: Apache-2.0
"""Small models of transformers with random weights, as far as the installed version has them."""

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
VOCABULARY = 128


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


def logits(model, family):
    with torch.no_grad():
        return model(**inputs(family)).logits.float()
