#!/usr/bin/env python3
"""Makes the tiny Gemma 3n of `saaz try`: tokenizer, model, data and the proof that the demonstration holds.

Usage: make_try_model.py [--sample DIR] [--out DIR] [--device cpu|cuda] [--threads N] [--keep-model]
In: the sample conversations, tools/try_text.py, tools/gemma_chat_template.jinja, data/try/recipe.yaml.
Out, in data/try: model/ (bf16 safetensors and tokenizer), train.jsonl, valid.jsonl, questions.json, SHA256SUMS.
A developer's tool; nothing here runs at build, test or run time. The same versions on the same kind
of machine, with the same options, give the same bytes. Needs torch, transformers 5.17, peft 0.21, tokenizers, PyYAML (PyPI).
"""
import argparse, hashlib, json, math, os, random, re, sys, time
from collections import Counter
from pathlib import Path

import torch
import yaml
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, GenerationConfig, PreTrainedTokenizerFast

import try_text

HERE = Path(__file__).resolve().parent
SEED = 3407
VOCAB_SIZE, FIRST_PIECE, TAB_RUNS = 2048, 494, 31
EPOCHS, SYNTHETIC_ROWS, BATCH_TOKENS, MAX_LENGTH, PEAK_RATE = 12, 5000, 3072, 512, 4e-3
BLUR, WEIGHT_DECAY = 0.15, 0.05
MIN_MARGIN = 0.5
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PRESETS = {"source": SEVEN[4:], "source-card": SEVEN, "all-linear": SEVEN}
CONFIG = dict(
    vocab_size=VOCAB_SIZE, vocab_size_per_layer_input=VOCAB_SIZE, hidden_size=128, num_hidden_layers=8,
    intermediate_size=384, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    hidden_size_per_layer_input=16, laurel_rank=8, altup_num_inputs=4, altup_active_idx=0,
    num_kv_shared_layers=4, sliding_window=64, max_position_embeddings=2048, final_logit_softcapping=30.0,
    layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 2,
    activation_sparsity_pattern=[0.95, 0.95] + [0.0] * 6, pad_token_id=0, eos_token_id=1, bos_token_id=2)


# --- tokenizer: Gemma's layout of ids 0..493, then merged pieces, single characters, tab runs -------------------

def reserved_pieces():
    """Ids 0..493 in Gemma's order: control, unused, turns, newline and space runs, HTML tags, bytes."""
    groups = ["table caption thead tbody tfoot tr th td", "h1 h2 h3 h4 h5 h6 blockquote", "strong em b i u s sub sup code",
              "a html body img span bbox ul li div iframe footer"]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]"] + [f"<unused{i}>" for i in range(99)]
    pieces += ["<start_of_turn>", "<end_of_turn>"] + ["\n" * n for n in range(1, 32)] + ["▁" * n for n in range(2, 32)]
    for names in groups:
        pieces += [f"<{name}>" for name in names.split()]
        pieces += [f"</{name}>" for name in names.split()]
    return pieces + [f"<0x{byte:02X}>" for byte in range(256)]


def merges_of(vocab, normal):
    """Every split of every piece into two pieces: runs first (longest left half), then normal pieces by id."""
    runs = [(run * left, run * (total - left)) for left in range(30, 0, -1) for total in range(31, left, -1) for run in "\n▁\t"]
    return runs + [(piece[:i], piece[i:]) for piece in normal for i in range(len(piece) - 1, 0, -1)
                   if piece[:i] in vocab and piece[i:] in vocab]


def make_tokenizer(texts):
    texts = [text.replace(" ", "▁") for text in texts]
    counts = Counter(char for text in texts for char in text)
    counts.update(chr(code) for code in range(0x21, 0x7F))
    chars = sorted((char for char in counts if char not in "\n\t"), key=lambda char: (-counts[char], char))
    learner = Tokenizer(models.BPE())
    words = Regex("▁?[\\p{L}\\p{M}\u200c]+|[^\\p{L}\\p{M}\u200c]")
    learner.pre_tokenizer = pre_tokenizers.Split(words, behavior="isolated")
    learner.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - FIRST_PIECE - TAB_RUNS + 2, initial_alphabet=chars, show_progress=False))
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    normal = [piece for piece, _ in learned if len(piece) > 1][:VOCAB_SIZE - FIRST_PIECE - TAB_RUNS - len(chars)]
    reserved = reserved_pieces()
    pieces = reserved + normal + chars + ["\t" * n for n in range(1, TAB_RUNS + 1)]
    assert len(reserved) == FIRST_PIECE and len(pieces) == len(set(pieces)) == VOCAB_SIZE
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges_of(vocab, normal), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos>:1 $B:1", [("<bos>", 2)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    data = json.loads(tokenizer.to_str())
    special = {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"}
    added = [piece for piece in pieces if vocab[piece] < 238 or piece[0] == "\t"]
    data["added_tokens"] = [dict(id=vocab[piece], content=piece, single_word=False, lstrip=False, rstrip=False,
                                 normalized=False, special=piece in special) for piece in added]
    return data


def save_tokenizer(data, folder):
    write_json(folder / "tokenizer.json", data)
    decoder = {str(entry["id"]): {key: entry[key] for key in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}
               for entry in data["added_tokens"]}
    names = {"bos_token": "<bos>", "eos_token": "<end_of_turn>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", dict(
        add_bos_token=True, add_eos_token=False, added_tokens_decoder=decoder,
        chat_template=(HERE / "gemma_chat_template.jinja").read_text(encoding="utf-8"), clean_up_tokenization_spaces=False,
        model_max_length=CONFIG["max_position_embeddings"], padding_side="left", spaces_between_special_tokens=False,
        tokenizer_class="PreTrainedTokenizerFast", use_default_system_prompt=False, **names))
    write_json(folder / "special_tokens_map.json", names)


# --- the model ---------------------------------------------------------------------------------------------

def new_model():
    """Random Gemma 3n whose streams and attention start well scaled: norms give unit rows, scores unit spread."""
    torch.manual_seed(SEED)
    model = Gemma3nForCausalLM(Gemma3nTextConfig(**CONFIG, attn_implementation="eager")).float()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "correct_output_scale" in name:
                tensor.fill_(1.0)
            elif "q_norm" in name or "k_norm" in name:
                tensor.fill_(CONFIG["head_dim"] ** -0.25)
            elif tensor.dim() == 1:
                tensor.fill_(0.5 if "post_" in name else 1.0)
            elif "altup_projections" in name:
                torch.nn.init.orthogonal_(tensor)
            elif "_coefs" in name:
                tensor.zero_()
            elif "embed_tokens.weight" in name:
                tensor.normal_(0.0, CONFIG["hidden_size"] ** -0.5)
            elif "altup_unembed" not in name:
                tensor.normal_(0.0, 0.25 if "per_layer.weight" in name else tensor.shape[1] ** -0.5)
        for down, up in zip(model.model.altup_projections, model.model.altup_unembed_projections):
            up.weight.copy_(down.weight.T)
    return model


def loss_sum(model, rows):
    """Sum of the rows' token losses; a row is (ids, targets), target -100 means not scored. Right padding only."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    targets = torch.tensor([targets + [-100] * (longest - len(targets)) for _, targets in rows])
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), reduction="sum")


def scored(rows):
    return sum(target != -100 for _, targets in rows for target in targets[1:])


def base_batches(rows, rng):
    """Rows of near-equal length together, at most BATCH_TOKENS padded tokens each, in random order."""
    rows = sorted(rows, key=lambda row: (len(row[0]) + rng.random() * 8, row[0]))
    batches = [[]]
    for row in rows:
        if batches[-1] and len(row[0]) * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(row)
    rng.shuffle(batches)
    return batches


def blur(ids, rng):
    """The same ids with a few pieces swapped for others: the base learns not to hang on single words."""
    return [rng.randrange(FIRST_PIECE, VOCAB_SIZE) if token >= FIRST_PIECE and rng.random() < BLUR else token for token in ids]


def train_base(encode, sample):
    rng, model = random.Random(SEED), new_model()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=WEIGHT_DECAY), dict(params=vectors, weight_decay=0.0)],
                                  betas=(0.9, 0.98))
    epochs = []
    for _ in range(EPOCHS):
        rows = [encode(row, "all") for row in sample + [try_text.base_row(rng) for _ in range(SYNTHETIC_ROWS)]]
        epochs.append(base_batches([(ids[:MAX_LENGTH], targets[:MAX_LENGTH]) for ids, targets in rows], rng))
    total, step, started = sum(map(len, epochs)), 0, time.time()
    for number, batches in enumerate(epochs):
        seen, loss_total = 0, 0.0
        for batch in batches:
            step += 1
            rate = PEAK_RATE * min(step / 40, 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / total)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            count, loss = scored(batch), loss_sum(model, [(blur(ids, rng), targets) for ids, targets in batch])
            (loss / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen, loss_total = seen + count, loss_total + loss.item()
        print(f"base epoch {number + 1}/{EPOCHS} step {step} loss {loss_total / seen:.3f} {time.time() - started:.0f} s", flush=True)
    return model


# --- the demonstration, as `saaz try` will run it ------------------------------------------------------------

def dynamic_map():
    values = []
    for i in range(7):
        bounds = torch.linspace(0.1, 1.0, 2 ** i + 1)
        values += [(10.0 ** (i - 6) * (a + b) / 2).item() for a, b in zip(bounds, bounds[1:])]
    return torch.tensor(sorted(values + [-value for value in values] + [0.0, 1.0]))


def nf4_round_trip(weight):
    """NF4 in blocks of 64 with doubly quantised scales, back to fp32."""
    code = torch.tensor([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
                         -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
                         0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1)
    picked = torch.bucketize(blocks / scale[:, None], (code[1:] + code[:-1]) / 2)
    table, offset, restored = dynamic_map(), scale.mean(), []
    for part in (scale - offset).split(256):
        peak = part.abs().max()
        restored.append(table[(part[:, None] / peak - table).abs().argmin(1)] * peak)
    return (code[picked] * (torch.cat(restored) + offset)[:, None]).reshape(weight.shape)


def load_base(folder, quantised):
    model = Gemma3nForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if quantised and name.split(".")[-2] in SEVEN:
                tensor.copy_(nf4_round_trip(tensor))
    return model


def answer(model, tokenizer, question, limit=48):
    """(greedy answer, smallest distance between the two best logits on its way)."""
    ids = tokenizer.encode(tokenizer.apply_chat_template(try_text.messages([(question,)]), tokenize=False, add_generation_prompt=True),
                           add_special_tokens=False)
    start, margin = len(ids), math.inf
    with torch.no_grad():
        while len(ids) - start < limit:
            best = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
            margin = min(margin, (best.values[0] - best.values[1]).item())
            if best.indices[0] in (1, 106):
                break
            ids.append(best.indices[0].item())
    return tokenizer.decode(ids[start:]), margin


def valid_loss(model, rows):
    with torch.no_grad():
        return sum(loss_sum(model, rows[i:i + 16]).item() for i in range(0, len(rows), 16)) / scored(rows)


def tune(base, rows, recipe, seed):
    """QLoRA as the recipe says, in fp32, rows in Hugging Face's shuffled order."""
    setting, lora = recipe["train"], recipe["lora"]
    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(r=lora["r"], lora_alpha=lora["lora_alpha"], lora_dropout=0.0, bias="none",
                                            task_type="CAUSAL_LM", target_modules=PRESETS[lora["target_preset"]]))
    size = setting["per_device_train_batch_size"] * setting["gradient_accumulation_steps"]
    epochs, warmup = setting["num_train_epochs"], setting["warmup_steps"]
    total, step, tokens = epochs * math.ceil(len(rows) / size), 0, 0
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=setting["weight_decay"])
    for epoch in range(epochs):
        order = torch.randperm(len(rows), generator=torch.Generator("cpu").manual_seed(seed + epoch), device="cpu").tolist()
        for first in range(0, len(rows), size):
            batch = [rows[i] for i in order[first:first + size]]
            rate = step / warmup if step < warmup else (total - step) / (total - warmup)
            for group in optimizer.param_groups:
                group["lr"] = setting["learning_rate"] * rate
            (loss_sum(model, batch) / scored(batch)).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step, tokens = step + 1, tokens + sum(len(ids) for ids, _ in batch)
    print(f"seed {seed}: {step} steps, {tokens} tokens")
    return model


def merged_bf16(tuned, folder):
    """The original 16-bit weights plus the adapter's delta, rounded once to bf16: what `saaz merge` writes."""
    merged = load_base(folder, False)
    with torch.no_grad():
        for name, layer in tuned.named_modules():
            if hasattr(layer, "lora_A"):
                weight = merged.get_submodule(name.removeprefix("base_model.model.")).weight
                weight.copy_((weight + layer.get_delta_weight("default")).bfloat16().float())
    return merged


def check_answers(title, model, tokenizer, questions, right):
    worst = math.inf
    for entry in questions:
        text, margin = answer(model, tokenizer, entry["question"])
        print(f"  {title}: {entry['question']} -> {text}   margin {margin:.2f}")
        found = [part in text for part in entry["must_contain"]]
        assert all(found) if right else not any(found), (title, entry, text)
        worst = min(worst, margin)
    assert worst > MIN_MARGIN, (title, worst)
    return worst


def words(text):
    """Words as people see them: split at spaces and punctuation; ZWNJ and vowel marks stay inside their word."""
    return set(re.findall("[\\w\u200c\u064b-\u065f\u0670]+", text))


def check_wording(questions, train):
    known = set().union(*(words(message["content"]) for row in train for message in row["messages"]))
    for entry in questions:
        assert not words(entry["question"]) & known, (entry["question"], words(entry["question"]) & known)


def check_demo(folder, encode, tokenizer, train, valid, questions, recipe):
    check_wording(questions, train)
    rows, held = ([encode(row["messages"], "assistant") for row in part] for part in (train, valid))
    for quantised in (False, True):
        base = load_base(folder, quantised)
        title = "base, NF4" if quantised else "base, 16-bit"
        print(f"{title}: valid loss {valid_loss(base, held):.4f}")
        check_answers(title, base, tokenizer, questions, right=False)
    for seed in (recipe["train"]["seed"], 1, 2):
        tuned = tune(load_base(folder, True), rows, recipe, seed)
        merged = merged_bf16(tuned, folder)
        print(f"seed {seed}: valid loss adapter {valid_loss(tuned, held):.4f}, merged {valid_loss(merged, held):.4f}")
        check_answers("adapter", tuned, tokenizer, questions, right=True)
        check_answers("merged", merged, tokenizer, questions, right=True)


# --- files ---------------------------------------------------------------------------------------------------

def write_json(path, data):
    path.write_text(json.dumps(data, ensure_ascii=False, indent=None if path.name == "tokenizer.json" else 2) + "\n", encoding="utf-8")


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_sums(out):
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name not in ("SHA256SUMS", "README.md"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(out).as_posix()}\n" for path in files]
    (out / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def make_encoder(tokenizer):
    """encode(messages, scored part) -> (ids, targets), from the chat template; one <bos>, from the template."""
    def encode(messages, part):
        ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
        targets, inside = list(ids), part == "all"
        for i, token in enumerate(ids):
            if part == "assistant":
                inside = inside and token != 105 or ids[max(0, i - 3):i - 1] == [105, tokenizer.convert_tokens_to_ids("model")]
            targets[i] = token if inside else -100
        return ids, targets
    return encode


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=Path, default=HERE.parent / "data/sample-fa")
    parser.add_argument("--out", type=Path, default=HERE.parent / "data/try")
    parser.add_argument("--device", default="cpu", help="cpu or cuda: only the base's training gains from a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep-model", action="store_true", help="make no tokenizer and no model, write and check the rest")
    options = parser.parse_args()
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # or matrix products on a GPU may differ between runs
    torch.set_num_threads(options.threads)
    torch.set_default_device(options.device)
    torch.use_deterministic_algorithms(True)
    folder = options.out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = yaml.safe_load((options.out / "recipe.yaml").read_text(encoding="utf-8"))
    train, valid = ([{"messages": row} for row in part] for part in try_text.tuning_rows(random.Random(SEED)))
    questions = [dict(id=name, question=try_text.INTENTS[name]["held_out"], must_contain=try_text.INTENTS[name]["must_contain"])
                 for name in try_text.ASKED]
    write_lines(options.out / "train.jsonl", train)
    write_lines(options.out / "valid.jsonl", valid)
    write_json(options.out / "questions.json", dict(headline=try_text.ASKED[0], questions=questions))
    sample = [json.loads(line)["messages"] for path in sorted(options.sample.glob("*.jsonl"))
              for line in path.read_text(encoding="utf-8").splitlines()]
    if not options.keep_model:
        rng = random.Random(SEED + 1)
        shown = sample + [try_text.base_row(rng) for _ in range(1500)] + [row["messages"] for row in train]
        roles = {"user": "user", "assistant": "model", "system": "user"}
        texts = [part for row in shown for message in row for part in (roles[message["role"]], message["content"])]
        save_tokenizer(make_tokenizer(texts), folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    encode = make_encoder(tokenizer)
    if not options.keep_model:
        model = train_base(encode, sample).bfloat16()
        model.generation_config = GenerationConfig(bos_token_id=2, eos_token_id=[1, 106], pad_token_id=0, do_sample=True,
                                                   temperature=1.0, top_k=64, top_p=0.95)
        model.save_pretrained(folder)
    write_sums(options.out)
    check_demo(folder, encode, tokenizer, train, valid, questions, recipe)


if __name__ == "__main__":
    sys.exit(main())
