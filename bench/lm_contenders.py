# SPDX-License-Identifier: Apache-2.0
"""The same language model as fp32, bf16, bitsandbytes' int8 and int8q's, and as a float64 reference; for language_model.py.

A contender is a function: folder of safetensors, device -> a causal language model of transformers, in eval mode.
"""

import logging
import os

# bitsandbytes is to run as its users have it, also where int8q is installed as its plug-in.
os.environ["INT8Q_BITSANDBYTES"] = "0"

import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

# It warns at each call that it casts bf16 to fp16; writing that would be counted as its time.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

transformers.utils.logging.disable_progress_bar()
THRESHOLD = 6.0


def load_fp32(folder, device):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)


def load_bf16(folder, device):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)


def load_bitsandbytes(folder, device):
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=THRESHOLD)
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.bfloat16, device_map={"": device}
    )


def load_int8q(folder, device, dtype=torch.bfloat16, outliers="column"):
    from int8q.transformers import load_in_8bit

    options = {"llm_int8_threshold": THRESHOLD, "outliers": outliers, "dtype": dtype}
    return load_in_8bit(AutoModelForCausalLM, folder, **options).to(device)


def load_reference(folder, device, load=load_fp32):
    """Of the linears that the others have in int8; everything else is as load has it, between linears too."""
    model = load(folder, device)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, ReferenceLinear(module))
    return model


# Whose accuracy alone is measured; the last is what all are compared with.
FOR_ACCURACY = {
    "int8q, fp32 model": lambda folder, device: load_int8q(folder, device, torch.float32),
    "int8q, all columns in floats": lambda folder, device: load_int8q(folder, device, outliers="all"),
    "int8q, all columns in floats, fp32 model": lambda folder, device: load_int8q(folder, device, torch.float32, "all"),
    "LLM.int8() in float64, bf16 model": lambda folder, device: load_reference(folder, device, load_bf16),
    "LLM.int8() in float64, fp32 model": load_reference,
}
CONTENDERS = {"fp32": load_fp32, "bf16": load_bf16, "bitsandbytes": load_bitsandbytes, "int8q": load_int8q}


def quantize_rows(x, inliers=None):
    """(codes as float64, absmax): q = rint(x * (127 / absmax)), half to even, in fp32; of inliers only, where given."""
    inlier = x if inliers is None else x.masked_fill(~inliers, 0)
    absmax = inlier.abs().amax(-1, keepdim=True)
    codes = (inlier * (127 / absmax.clamp_min(torch.finfo(torch.float32).tiny))).round()
    return codes.double(), absmax.double()


class ReferenceLinear(torch.nn.Module):
    """LLM.int8() (arXiv 2208.07339) by its definition: codes of fp32 values, everything after them in float64.

        Y = (Xq Wq^T) o (absmax_x absmax_w^T) / 127^2 + X_o W_o^T,  W_o = Wq absmax_w / 127

    X_o: the columns of X with |x| >= 6 in any row of the call, which have no codes. absmax_x is of inlier elements.
    """

    def __init__(self, linear):
        super().__init__()
        self.weight, self.col_stats = quantize_rows(linear.weight.detach().float())
        self.bias = linear.bias

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1]).float()
        inliers = rows.abs() < THRESHOLD
        outlier_cols = ~inliers.all(0)
        codes, row_stats = quantize_rows(rows, inliers)
        codes[:, outlier_cols] = 0
        y = (codes @ self.weight.T) * (row_stats * self.col_stats.T) / 127**2
        y += rows[:, outlier_cols].double() @ (self.weight * self.col_stats / 127)[:, outlier_cols].T
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)
