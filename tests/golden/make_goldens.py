# SPDX-License-Identifier: Apache-2.0
"""Makes the golden files: small fp16 linears, and what bitsandbytes' own Linear8bitLt saves for them.

    make env-current
    INT8Q_BITSANDBYTES=0 .venvs/current/bin/python tests/golden/make_goldens.py FOLDER

writes linears_f16.safetensors (input), linears_int8.safetensors (bitsandbytes' output), gpt2_f16.safetensors,
gpt2_int8.safetensors (Conv1D, quantized as the transpose) and versions.json.
"""

import json
import platform
import sys
from pathlib import Path

import bitsandbytes
import safetensors
import torch
from safetensors.torch import save_file

HALF = torch.float16


def weights():
    generator = torch.Generator().manual_seed(20260101)

    def normal(n, k, scale=1.0):
        return (torch.randn(n, k, generator=generator) * scale).to(HALF)

    outliers = normal(17, 33, 0.05)
    outliers[::3, 5] = 60.0
    outliers[1, 7] = -65504.0
    zero_row = normal(5, 48)
    zero_row[2] = 0
    zero_row[4] = -0.0
    # absmax 127: every half is a tie between two codes.
    ties = (torch.arange(-126, 127).to(torch.float32) + 0.5).reshape(1, -1).repeat(3, 1)
    ties[:, 0] = torch.tensor([127.0, -127.0, 127.0])
    ties[1] = -ties[1]
    ties[2] *= 2.0**-6
    denormals = torch.full((4, 31), 2.0**-24)
    denormals[0] *= torch.arange(31)
    denormals[1] *= torch.arange(31) * 33 - 500
    denormals[2, ::2] = 2.0**-15
    return {
        "normal": normal(64, 128),
        "odd": normal(17, 33, 0.02),
        "outliers": outliers,
        "zero_row": zero_row,
        "ties": ties.to(HALF),
        "denormals": denormals.to(HALF),
        "one_row": normal(1, 257),
        "one_column": normal(257, 1),
        "one_element": normal(1, 1),
        "tall": normal(130, 7, 3.0),
    }


def quantized(weight):
    """state_dict of bitsandbytes' layer, quantized by itself on the CPU."""
    n, k = weight.shape
    layer = bitsandbytes.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict({"weight": weight})
    return {name: t.contiguous() for name, t in layer.to("cpu").state_dict().items()}


def save(folder, stem, inputs, int8):
    save_file(inputs, folder / f"{stem}_f16.safetensors", metadata={"format": "pt"})
    save_file(int8, folder / f"{stem}_int8.safetensors", metadata={"format": "pt"})


def main():
    folder = Path(sys.argv[1])
    inputs, int8 = {}, {}
    for name, weight in weights().items():
        inputs[f"{name}.weight"] = weight
        int8.update({f"{name}.{part}": t for part, t in quantized(weight).items()})
        inputs[f"{name}.bias"] = int8[f"{name}.bias"] = weight[:, 0].clone()
    inputs["position_ids"] = int8["position_ids"] = torch.arange(9)
    save(folder, "linears", inputs, int8)

    generator = torch.Generator().manual_seed(7)
    inputs, int8 = {}, {}
    for name, n, k in (("attn.c_attn", 36, 12), ("attn.c_proj", 12, 12), ("mlp.c_fc", 48, 12), ("mlp.c_proj", 12, 48)):
        stored = torch.randn(k, n, generator=generator).to(HALF)
        inputs[f"h.0.{name}.weight"] = stored
        int8.update({f"h.0.{name}.{part}": t for part, t in quantized(stored.T.contiguous()).items()})
        inputs[f"h.0.{name}.bias"] = int8[f"h.0.{name}.bias"] = torch.randn(n, generator=generator).to(HALF)
    inputs["wte.weight"] = int8["wte.weight"] = torch.randn(20, 12, generator=generator).to(HALF)
    save(folder, "gpt2", inputs, int8)

    versions = {
        "bitsandbytes": bitsandbytes.__version__,
        "python": platform.python_version(),
        "safetensors": safetensors.__version__,
        "torch": torch.__version__,
    }
    (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
