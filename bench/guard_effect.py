#!/usr/bin/env python3
"""What the decoding guard changes: the same prompts and seeds with and without it, and how often answers break a rule.

  bench/guard_effect.py SAAZ MODEL [N_PROMPTS]      a table on stdout; progress of the runs on stderr

Counts are made here from Unicode's own tables, not by the program's rules. Code (fenced, inline) is left out."""
import json, re, subprocess, sys, tempfile, time, unicodedata
from pathlib import Path

saaz, model, n = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100
rows = [json.loads(line) for line in (Path(__file__).parent / "../data/sample-fa/train.jsonl").open()]
prompts = [next(m["content"] for m in row["messages"] if m["role"] == "user") for row in rows][:n]
work = Path(tempfile.mkdtemp())
with (work / "in.jsonl").open("w") as out:
    for i, prompt in enumerate(prompts):
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 120, "temperature": 1.0, "top_k": 64, "top_p": 0.95}
        out.write(json.dumps({"custom_id": f"p{i}", "method": "POST", "url": "/v1/chat/completions", "body": body | {"model": "m"}}) + "\n")

KNOWN = ("ARABIC", "LATIN")


def script(c):
    return unicodedata.name(c, "?").split(" ")[0]


def prose(text):
    text = re.sub(r"```.*?(```|\Z)", " ", text, flags=re.S)
    return re.sub(r"`[^`\n]*`", " ", text)


def faults(text):
    text = re.sub(r"(?m)^[ \t*#>-]*[0-9]{1,2}[.)]", " ", prose(text))  # Markdown's list numbers
    letters = [c for c in text if c.isalpha()]
    digits = {"fa": bool(re.search("[۰-۹]", text)), "ar": bool(re.search("[٠-٩]", text)),
              "en": bool(re.search(r"(?<![A-Za-z0-9._/+-])[0-9]", text))}
    return {
        "Arabic yeh or kaf": any(c in "يىك" for c in text),
        "other non-Persian letters of the Arabic script": any(c in "ہھەےںٹڈڑۃ" or "\ufb50" <= c <= "\ufdfb" or "\ufe70" <= c <= "\ufefc" for c in text),
        "letters of other scripts": any(script(c) not in KNOWN and script(c) != "GREEK" and c not in "ªºـ" for c in letters),
        "two or more styles of digits": sum(digits.values()) > 1,
        "Latin digits in prose": digits["en"],
        "invisible marks other than ZWNJ": any(unicodedata.category(c) == "Cf" and c not in "\u200c\u200d" for c in text),
        "ZWNJ at a word's edge or twice": bool(re.search("(^|[\\s\u200c])\u200c|\u200c(\\s|$)", text)),
        "any of these": False,
    }


print(f"{len(prompts)} prompts, 120 tokens, temperature 1, top_k 64, top_p 0.95\n")
table, lengths = {}, {}
for guard in ("off", "fa"):
    start = time.time()
    subprocess.run([saaz, "generate", "--model", model, "--batch", work / "in.jsonl", "-o", work / guard, "--context", "1024", "--guard", guard], check=True)
    answers = [json.loads(line)["response"]["body"] for line in (work / guard).open()]
    texts = [a["choices"][0]["message"]["content"] for a in answers]
    found = [faults(t) for t in texts]
    for f in found:
        f["any of these"] = any(f.values())
    table[guard] = {name: sum(f[name] for f in found) for name in found[0]}
    lengths[guard] = (sum(a["usage"]["completion_tokens"] for a in answers), sum(t.count("\u200c") for t in texts), time.time() - start)
print("| answers with | guard off | guard fa |\n| --- | --- | --- |")
for name in table["off"]:
    print(f"| {name} | {table['off'][name]} | {table['fa'][name]} |")
for i, name in enumerate(("tokens", "ZWNJ in all", "seconds")):
    print(f"| {name} | {lengths['off'][i]:.0f} | {lengths['fa'][i]:.0f} |")
