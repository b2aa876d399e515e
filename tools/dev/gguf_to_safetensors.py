#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A GGUF file as a Hugging Face folder: fp32 safetensors, config and tokenizer.

    tools/dev/gguf_to_safetensors.py MODEL.gguf FOLDER

The weights are what GGUF's dequantization gives, so a model made from a 4-bit file stays one of 4-bit precision.
"""

import collections
import json
import os
import shutil
import sys
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    types = collections.Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(source).tensors)
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # save_pretrained would take it for a quantized model.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(**where).save_pretrained(unfinished)
    origin = {"file": source.name, "tensors": dict(types)}
    (unfinished / "origin.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(unfinished, folder)
    print(f"{folder}: {model.num_parameters() / 1e6:.1f} M weights in fp32, from " + ", ".join(map(str, types)))


if __name__ == "__main__":
    main()
