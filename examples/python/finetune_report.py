# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning script of many bug reports since 2023, unchanged but for its first import; it needs no GPU.

    python examples/python/finetune_report.py [FOLDER]

A T5 in 8 bits, LoRA on q and v, Seq2SeqTrainer, the adapter saved and loaded, generate. So that nothing is downloaded, a
small T5 with random weights stands for google/flan-t5-xxl, and random ids for tokenized text; both are made first.
"""

import int8q.as_bitsandbytes  # noqa: F401, I001  the one new line

import sys
import tempfile

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_int8_training
from transformers import (
    AutoModelForSeq2SeqLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    default_data_collator,
    set_seed,
)

# ------------------------------------------------------------------------------------ Instead of a download

folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
model_id = f"{folder}/t5"
set_seed(7)
T5ForConditionalGeneration(
    T5Config(
        vocab_size=256,
        d_model=192,
        d_kv=24,
        d_ff=512,
        num_layers=2,
        num_heads=8,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
).save_pretrained(model_id)
tokenized_dataset = [{"input_ids": torch.randint(2, 256, (16,)), "labels": torch.randint(2, 6, (8,))} for _ in range(64)]

# ------------------------------------------------------------------------------------ The script

model = AutoModelForSeq2SeqLM.from_pretrained(model_id, load_in_8bit=True, device_map="auto")

lora_config = LoraConfig(
    r=16, lora_alpha=32, target_modules=["q", "v"], lora_dropout=0.05, bias="none", task_type=TaskType.SEQ_2_SEQ_LM
)
model = prepare_model_for_int8_training(model)
model = get_peft_model(model, lora_config)
model.print_trainable_parameters()

training_args = Seq2SeqTrainingArguments(
    output_dir=f"{folder}/output",
    auto_find_batch_size=True,
    learning_rate=1e-2,
    max_steps=20,
    logging_strategy="steps",
    logging_steps=1,
    save_strategy="no",
    report_to=[],
)
trainer = Seq2SeqTrainer(
    model=model, args=training_args, data_collator=default_data_collator, train_dataset=tokenized_dataset
)
model.config.use_cache = False
trainer.train()

peft_model_id = f"{folder}/adapter"
trainer.model.save_pretrained(peft_model_id)

config = PeftConfig.from_pretrained(peft_model_id)
loaded = AutoModelForSeq2SeqLM.from_pretrained(config.base_model_name_or_path, load_in_8bit=True, device_map={"": 0})
loaded = PeftModel.from_pretrained(loaded, peft_model_id, device_map={"": 0})
loaded.eval()

sample = tokenized_dataset[0]["input_ids"][None]
outputs = loaded.generate(input_ids=sample, max_new_tokens=10, do_sample=True, top_p=0.9)
print("generated", outputs[0].tolist())
