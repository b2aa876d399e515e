#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""LoRA on a T5 in 8 bits without a GPU, by a script as it was written for bitsandbytes in 2023; the first import is new.

    .venvs/pinned-2023/bin/python examples/python/lora_t5.py build/demo-lora

torch 2.0.1, transformers 4.27.2, peft 0.2.0, accelerate 0.17.1. The T5 is small enough to be trained here: in floats it
learns to reverse eight digits, then int8 layers with adapters learn to reverse them and add one to each.
"""

import int8q.as_bitsandbytes  # noqa: F401, I001  the one new line

import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_int8_training
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

DIGITS, PAD, END, ZERO = 8, 0, 1, 2  # ids: 2 to 11 are the digits


def batch_of(size, generator, plus=0):
    """ids of digits, and the labels: the digits reversed, each more by plus."""
    digits = torch.randint(10, (size, DIGITS), generator=generator)
    end = torch.full((size, 1), END)
    labels = torch.cat([(digits.flip(1) + plus) % 10 + ZERO, end], 1)
    return {"input_ids": torch.cat([digits + ZERO, end], 1), "labels": labels}


def train(model, steps, rate, plus, size=64, report=100):
    """The losses of all steps."""
    generator = torch.Generator().manual_seed(plus)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 50, (steps - step) / (steps / 2))
    )
    model.train()
    losses, start = [], time.perf_counter()
    for step in range(1, steps + 1):
        loss = model(**batch_of(size, generator, plus)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step % report == 0 or step == 1:
            print(f"  step {step:4}  loss {losses[-1]:.4f}  {time.perf_counter() - start:.0f} s", flush=True)
    return losses


@torch.no_grad()
def answers(model, plus):
    """(generated ids of 200 new inputs, how many are right)."""
    model.eval()
    batch = batch_of(200, torch.Generator().manual_seed(1000), plus)
    output = model.generate(input_ids=batch["input_ids"], max_new_tokens=DIGITS + 1, do_sample=False)[:, 1:]
    return output, sum(row.tolist() == label.tolist() for row, label in zip(output, batch["labels"]))


@torch.no_grad()
def logits(model, plus):
    return model(**batch_of(16, torch.Generator().manual_seed(2000), plus)).logits


def make_base(folder):
    """A T5 that reverses digits, in floats."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=PAD,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    print(f"training a T5 of {model.num_parameters() / 1e6:.1f} M parameters to reverse {DIGITS} digits")
    train(model, steps=1000, rate=2e-3, plus=0, report=200)
    print(f"  {answers(model, 0)[1]} of 200 right")
    model.save_pretrained(folder)


def load_in_8bit(folder):
    return AutoModelForSeq2SeqLM.from_pretrained(folder, load_in_8bit=True, device_map="auto")


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo-lora")
    base, adapter = folder / "t5-digits", folder / "t5-digits-lora"
    if not (base / "config.json").exists():
        make_base(base)

    model = load_in_8bit(base)
    print(f"in 8 bits: {model.encoder.block[0].layer[0].SelfAttention.q}")
    print(f"  {answers(model, 0)[1]} of 200 right, and {answers(model, 1)[1]} of the task that comes")
    model = prepare_model_for_int8_training(model)
    # Names that end so: "o" is wo, too.
    config = LoraConfig(r=16, lora_alpha=32, target_modules=["v", "o"], lora_dropout=0.05, task_type="SEQ_2_SEQ_LM")
    model = get_peft_model(model, config)
    model.print_trainable_parameters()
    losses = train(model, steps=400, rate=5e-3, plus=1)
    print(f"  loss {losses[0]:.3f} -> {losses[-1]:.3f}; {answers(model, 1)[1]} of 200 right")

    model.eval()
    expected = logits(model, 1)
    model.save_pretrained(adapter)
    reloaded = PeftModel.from_pretrained(load_in_8bit(base), adapter).eval()
    same = torch.equal(expected, logits(reloaded, 1))
    size = sum(file.stat().st_size for file in adapter.iterdir()) / 1e3
    verdict = "the same logits, bit for bit" if same else "OTHER LOGITS"
    print(f"{adapter}: {size:.0f} kB; reloaded on the 8-bit model: {verdict}")
    if not same or losses[-1] > losses[0] / 2:
        sys.exit(1)


if __name__ == "__main__":
    main()
