"""Opens what a run folder holds for other programs with those programs: transformers' TrainerState, TensorBoard's event
reader, W&B's log reader, the Hub's card parser.

    check_records.py WHOLE RESUMED    two folders of the same recipe, the second of a run that was killed and resumed

One line a check; status 1 at the first that fails. All figures are compared with events.jsonl, and those of the resumed
run with the uninterrupted one's.
"""
import glob
import json
import math
import struct
import sys

import wandb
from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.trainer_callback import TrainerState

wandb._assert_is_internal_process = True
from wandb.proto import wandb_internal_pb2  # noqa: E402
from wandb.sdk.internal.datastore import DataStore  # noqa: E402

TIMES = {"runtime", "samples_per_second", "steps_per_second"}  # what no two runs share


def is_time(tag):
    return any(tag.endswith(end) for end in TIMES)


def events_of(run):
    with open(f"{run}/events.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def expected_curves(run):
    """{tag: [(step, value)]} from events.jsonl."""
    keys = {"step": {"loss_nats": "train/loss", "grad_norm": "train/grad_norm", "learning_rate": "train/learning_rate",
                     "epoch": "train/epoch"},
            "eval": {"eval_loss_nats": "eval/loss"},
            "end": {"train_loss": "train/train_loss", "total_flos": "train/total_flos"}}
    curves = {}
    for event in events_of(run):
        for key, tag in keys.get(event["event"], {}).items():
            curves.setdefault(tag, []).append((event["step"], event[key]))
    for tag, points in curves.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), f"{run}: events.jsonl repeats steps of {tag}"
    return curves


def as_f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def check_trainer_state(run):
    state = TrainerState.load_from_json(f"{run}/trainer_state.json")
    curves = expected_curves(run)
    assert state.global_step == state.max_steps == curves["train/loss"][-1][0]
    logged = [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry]
    assert logged == curves["train/loss"], "log_history has other losses than events.jsonl"
    evals = [(entry["step"], entry["eval_loss"]) for entry in state.log_history if "eval_loss" in entry]
    assert evals == curves["eval/loss"]
    end = state.log_history[-1]
    assert set(end) == {"epoch", "step", "total_flos", "train_loss", "train_runtime", "train_samples_per_second",
                        "train_steps_per_second"}, sorted(end)
    mean = sum(loss for _, loss in logged) / len(logged)
    assert math.isclose(end["train_loss"], mean, rel_tol=1e-12), (end["train_loss"], mean)
    saved = f"{run}/loaded_state.json"
    state.save_to_json(saved)
    with open(saved, encoding="utf-8") as ours, open(f"{run}/trainer_state.json", encoding="utf-8") as theirs:
        assert json.load(ours) == json.load(theirs), "TrainerState writes back another document"
    log = [{key: value for key, value in entry.items() if not is_time(key)} for entry in state.log_history]
    return log


def check_tensorboard(run):
    files = glob.glob(f"{run}/runs/*/events.out.tfevents.*")
    assert len(files) == 1, files
    board = EventAccumulator(files[0], size_guidance={"scalars": 0, "tensors": 0})
    board.Reload()
    curves = {tag: [(point.step, point.value) for point in board.Scalars(tag)]
              for tag in board.Tags()["scalars"] if not is_time(tag)}
    expected = {tag: [(step, as_f32(value)) for step, value in points]
                for tag, points in expected_curves(run).items()}
    assert curves == expected, "TensorBoard reads other curves than events.jsonl has"
    assert "learning_rate" in board.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    return curves


def check_wandb(run):
    files = glob.glob(f"{run}/wandb/offline-run-*/run-*.wandb")
    assert len(files) == 1, files
    store = DataStore()
    store.open_for_scan(files[0])
    records = []
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        records.append(record)
    kinds = [record.WhichOneof("record_type") for record in records]
    assert kinds[:4] == ["header", "run", "metric", "metric"] and kinds[-2:] == ["summary", "exit"], kinds
    assert set(kinds[4:-2]) == {"history"}
    assert [record.num for record in records] == list(range(1, len(records) + 1))
    config = {item.key: json.loads(item.value_json) for item in records[1].run.config.update}
    assert config["train"]["learning_rate"] > 0 and len(records[1].run.run_id) == 8
    curves = {}
    for n, record in enumerate(records[4:-2]):
        row = {item.key: json.loads(item.value_json) for item in record.history.item}
        assert row["_step"] == record.history.step.num == n and row["_timestamp"] > 0
        for tag, value in row.items():
            if tag.startswith(("train/", "eval/")) and tag != "train/global_step" and not is_time(tag):
                curves.setdefault(tag, []).append((row["train/global_step"], value))
    expected = {tag: points for tag, points in expected_curves(run).items()
                if tag not in ("train/train_loss", "train/total_flos")}
    assert curves == expected, "W&B reads other curves than events.jsonl has"
    assert records[-1].exit.exit_code == 0
    return curves


def check_card(run):
    card = ModelCard.load(f"{run}/README.md")
    assert card.data.license == "gemma" and card.data.library_name == "peft"
    (result,) = [r for r in card.data.eval_results if r.metric_type == "loss"]
    assert result.metric_value == expected_curves(run)["eval/loss"][-1][1]
    for text in ("Gemma Terms of Use", "## فارسی", "## English", "charts/loss.svg", "@inproceedings{"):
        assert text in card.text, f"the card lacks {text!r}"


def main(whole, resumed):
    for what, check in (("trainer_state.json: transformers' TrainerState", check_trainer_state),
                        ("TensorBoard's event reader", check_tensorboard), ("W&B's log reader", check_wandb),
                        ("README.md: the Hub's ModelCard", check_card)):
        assert check(whole) == check(resumed), f"{what}: the resumed run differs from the uninterrupted one"
        print(f"ok      {what}")


main(*sys.argv[1:])
