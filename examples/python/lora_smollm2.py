#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""LoRA on SmolLM2-135M in 8 bits without a GPU, with today's transformers and peft.

    .venvs/current/bin/python examples/python/lora_smollm2.py MODEL_FOLDER TEXT_FILE OUTPUT_FOLDER

Trains adapters of rank 8 on q, k, v and o for some steps on the text's first part, watches the loss on its last part, saves
the adapter, and loads it again.
"""

import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import int8q.peft  # noqa: F401  get_peft_model then knows int8 layers
from int8q.transformers import load_in_8bit

STEPS, BATCH, LENGTH = 20, 4, 128
HELD_OUT = 4  # sequences


def load(folder):
    return load_in_8bit(AutoModelForCausalLM, folder, dtype=torch.bfloat16)


@torch.no_grad()
def evaluate(model, ids):
    """The mean loss, and the logits of the first sequence."""
    model.eval()
    output = model(input_ids=ids, labels=ids, use_cache=False)
    return output.loss.item(), output.logits[0]


def train(model, ids):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    start = time.perf_counter()
    for step in range(STEPS):
        batch = ids[step * BATCH : (step + 1) * BATCH]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"  step {step + 1:2}  loss {loss.item():.3f}  {time.perf_counter() - start:.0f} s", flush=True)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__.split("\n\n")[1].strip())
    folder, text, output = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(Path(text).read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    ids = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    held_out = ids[-HELD_OUT:]

    model = load(folder)
    print(f"{model.get_memory_footprint() / 1e6:.0f} MB in 8 bits: {model.model.layers[0].self_attn.q_proj}")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
    model.print_trainable_parameters()
    before, _ = evaluate(model, held_out)
    train(model, ids)
    after, expected = evaluate(model, held_out)
    print(f"loss on text that was not trained on: {before:.3f} -> {after:.3f}")

    model.save_pretrained(output)
    reloaded = PeftModel.from_pretrained(load(folder), output)
    same = torch.equal(expected, evaluate(reloaded, held_out)[1])
    size = (Path(output) / "adapter_model.safetensors").stat().st_size / 1e6
    verdict = "the same logits, bit for bit" if same else "OTHER LOGITS"
    print(f"{output}: {size:.1f} MB; reloaded on the 8-bit model: {verdict}")
    if not same or after > before:
        sys.exit(1)


if __name__ == "__main__":
    main()
