#!/usr/bin/env python3
"""Logits of a quantised folder (`saaz quantize`) by transformers and bitsandbytes on the CPU, in f32, as compare_logits
reads them: the independent peer of docs/formats.md 1.

    bitsandbytes_logits.py FOLDER IDS.txt OUT.bin

IDS.txt: a line of ids a sequence. 8-bit linears are dequantised by bitsandbytes' own function first: LLM.int8() rounds
activations, and one that lies at the edge between two codes may fall on either side. Needs torch, transformers and
bitsandbytes.
"""
import sys

import bitsandbytes as bnb
import numpy as np
import torch
import transformers

folder, ids_path, out_path = sys.argv[1:4]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
model.eval()

kinds = {}
for module in list(model.modules()):
    for name, child in list(module.named_children()):
        kinds[type(child).__name__] = kinds.get(type(child).__name__, 0) + 1
        if isinstance(child, bnb.nn.Linear4bit):
            child.compute_dtype, child.compute_type_is_set = torch.float32, True
        if isinstance(child, bnb.nn.Linear8bitLt):
            dense = torch.nn.Linear(child.in_features, child.out_features, bias=False)
            dense.weight.data = bnb.functional.int8_vectorwise_dequant(child.weight.data, child.weight.SCB).float()
            setattr(module, name, dense)
print({kind: n for kind, n in kinds.items() if "Linear" in kind})

with open(ids_path, encoding="utf-8") as lines, open(out_path, "wb") as out, torch.no_grad():
    for line in lines:
        ids = torch.tensor([[int(word) for word in line.split()]])
        logits = model(input_ids=ids, use_cache=False).logits[0].float().numpy()
        out.write(np.array(logits.shape, dtype="<i4").tobytes() + logits.astype("<f4").tobytes())
