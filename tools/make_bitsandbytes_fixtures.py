"""Writes tests/golden/bitsandbytes: small matrices as bitsandbytes itself quantises and serialises them, beside their
source and what bitsandbytes computes with them. A developer's tool; needs torch, bitsandbytes and safetensors.

    make_bitsandbytes_fixtures.py FOLDER

nf4.safetensors, nf4-single.safetensors, fp4.safetensors: `m.weight` and its parts, `source` (bf16), `values` (f32, the
dequantised matrix). int8.safetensors: `m.weight`, `m.SCB`, `m.weight_format`, `source`, `values`, and LLM.int8() with
threshold 6: `x` [rows, in] (f32) and `y` [rows, out], each row alone through bitsandbytes' own product.
"""
import os
import sys

import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

torch.manual_seed(3407)
folder = sys.argv[1]
os.makedirs(folder, exist_ok=True)


def save(name, tensors):
    save_file({key: value.contiguous() for key, value in tensors.items()}, f"{folder}/{name}.safetensors",
              metadata={"format": "pt"})


def four_bit(name, quant_type, nested, shape):
    source = (torch.randn(shape) * 0.03).to(torch.bfloat16)
    source[1] = 0
    codes, state = F.quantize_4bit(source, blocksize=64, compress_statistics=nested, quant_type=quant_type)
    parts = {f"m.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    values = F.dequantize_4bit(codes, state).float()
    save(name, {"m.weight": codes, "source": source, "values": values, **parts})


def eight_bit():
    source = (torch.randn(24, 160) * 0.05).to(torch.bfloat16)
    codes, scales, _ = F.int8_vectorwise_quant(source.to(torch.float16))
    values = F.int8_vectorwise_dequant(codes, scales)
    x = torch.randn(6, 160) * 1.5
    x[0, 3], x[0, 77], x[2, 5] = 9.25, -6.0, 30.0
    rows = []
    for row in x:
        row = row[None]
        row_codes, row_scale, outliers = F.int8_vectorwise_quant(row.to(torch.float16), threshold=6.0)
        product, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(row, row_codes, codes, row_scale, scales, outliers, None)
        rows.append(product)
    save("int8", {"m.weight": codes, "m.SCB": scales, "m.weight_format": torch.tensor(0, dtype=torch.uint8),
                  "source": source, "values": values, "x": x, "y": torch.cat(rows)})


four_bit("nf4", "nf4", True, (40, 640))
four_bit("nf4-single", "nf4", False, (7, 128))
four_bit("fp4", "fp4", True, (9, 128))
eight_bit()
