#!/usr/bin/env python3
"""Writes tests/golden/parquet: small Parquet files by pyarrow, each with the same rows as a .jsonl file beside them.

    tools/make_parquet_fixtures.py        needs pyarrow (made with 26.0.1)

A file's name is SHAPE-HOW.parquet and its rows are those of SHAPE.jsonl. A developer's tool: tests read what it left.
"""
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "parquet"

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string()), ("weight", pa.float32())])


def conversation(i):
    turns = [
        {"role": "user", "content": f"پایتخت کشور شمارهٔ {i} کجاست؟", "name": None, "weight": None},
        {"role": "assistant", "content": "نمی‌دانم؛ " * (1 + i % 3) + "بپرسید.", "name": None, "weight": 1.0},
    ]
    if i % 4 == 3:
        turns += [{"role": "user", "content": "چرا؟", "name": "reza", "weight": None},
                  {"role": "assistant", "content": "```python\nprint(1)\n```", "name": None, "weight": None}]
    if i % 3 == 0:
        turns.insert(0, {"role": "system", "content": "کوتاه پاسخ بده.", "name": None, "weight": None})
    return turns


SHAPES = {
    "messages": (
        [{"id": i, "messages": conversation(i), "score": i / 2, "domain": "geo" if i % 2 else None} for i in range(24)],
        pa.schema([("id", pa.int64()), ("messages", pa.list_(MESSAGE)), ("score", pa.float64()), ("domain", pa.string())]),
    ),
    "sharegpt": (
        [{"conversations": [{"from": "human", "value": f"سلام {i}"}, {"from": "gpt", "value": "درود"}]} for i in range(5)],
        pa.schema([("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())])))]),
    ),
    "parts": (
        [{"messages": [{"role": "user", "content": [{"type": "text", "text": "الف"}, {"type": "text", "text": "ب"}]},
                       {"role": "assistant", "content": [{"type": "text", "text": f"پ{i}"}]}]} for i in range(3)],
        pa.schema([("messages", pa.list_(pa.struct([
            ("role", pa.string()),
            ("content", pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())])))])))]),
    ),
    "alpaca": (
        [{"instruction": f"ترجمه کن {i}", "input": [None, "", "book"][i % 3], "output": "کتاب", "text": None,
          "license": "cc-by-4.0"} for i in range(7)],
        pa.schema([("instruction", pa.string()), ("input", pa.string()), ("output", pa.large_string()), ("text", pa.null()),
                   ("license", pa.string())]),
    ),
    "text": (
        [{"text": "آب و هوا " * (i % 5 + 1) + str(i)} for i in range(40)],
        pa.schema([pa.field("text", pa.string(), nullable=False)]),
    ),
    # Small enough to be seeds of the fuzz target, which mutates at most 512 bytes.
    "seed": (
        [{"text": text} for text in ("آب", "آبان", "آب")],
        pa.schema([("text", pa.string())]),
    ),
    "chat": (
        [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "b"}]} for text in ("a", "c")],
        pa.schema([("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))]),
    ),
}

PLAIN = {"use_dictionary": False}
FILES = {
    "messages-none-v1": {"compression": "none"} | PLAIN,
    "messages-snappy-v1-dictionary": {"compression": "snappy"},
    "messages-gzip-v2-dictionary": {"compression": "gzip", "data_page_version": "2.0"},
    "messages-zstd-v2": {"compression": "zstd", "data_page_version": "2.0"} | PLAIN,
    "messages-none-v2-groups": {"compression": "none", "data_page_version": "2.0", "row_group_size": 7},
    "messages-snappy-v1-pages": {"compression": "snappy", "row_group_size": 10, "data_page_size": 64, "write_batch_size": 3,
                                 "write_page_checksum": True},
    "messages-gzip-old-lists": {"compression": "gzip", "version": "1.0", "use_compliant_nested_type": False},
    "messages-zstd-delta-length": {"compression": "zstd", "column_encoding": {
        "messages.list.element.content": "DELTA_LENGTH_BYTE_ARRAY"}} | PLAIN,
    "sharegpt-snappy-v1": {"compression": "snappy"},
    "parts-zstd-v2": {"compression": "zstd", "data_page_version": "2.0"},
    "alpaca-gzip-nulls": {"compression": "gzip"},
    "text-none-delta": {"compression": "none", "column_encoding": {"text": "DELTA_BYTE_ARRAY"}} | PLAIN,
    "text-zstd-v2-delta-length": {"compression": "zstd", "data_page_version": "2.0", "data_page_size": 128,
                                  "write_batch_size": 4, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}} | PLAIN,
    "seed-none-v1": {"compression": "none"} | PLAIN,
    "seed-none-v1-dictionary": {"compression": "none"},
    "seed-zstd-v2": {"compression": "zstd", "data_page_version": "2.0"} | PLAIN,
    "seed-gzip-v2-delta": {"compression": "gzip", "data_page_version": "2.0", "column_encoding": {
        "text": "DELTA_BYTE_ARRAY"}} | PLAIN,
    "seed-snappy-v1-delta-length": {"compression": "snappy", "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}} | PLAIN,
    "chat-none-v1": {"compression": "none"} | PLAIN,
    "chat-none-v2": {"compression": "none", "data_page_version": "2.0"} | PLAIN,
}

OUT.mkdir(parents=True, exist_ok=True)
for shape, (rows, schema) in SHAPES.items():
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (OUT / f"{shape}.jsonl").write_text(text, encoding="utf-8")
for name, options in FILES.items():
    rows, schema = SHAPES[name.split("-")[0]]
    options = {"write_statistics": False, "store_schema": False} | options
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), OUT / f"{name}.parquet", **options)
# What is refused, by name.
pq.write_table(pa.table({"text": ["a"]}), OUT / "refused-brotli.parquet", compression="brotli", store_schema=False)
pq.write_table(pa.table({"text": [1, 2]}), OUT / "refused-integers.parquet", store_schema=False)
