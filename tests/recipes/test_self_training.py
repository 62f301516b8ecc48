"""Self-training by the recipe of the prompts, on a language of tones that a tiny model learns from a few labels."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
import torch
from miniature import TINY_ENCODER, run_recipe, set_all

from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.saved_model import ModelDescription
from speechssl.data.manifest import Utterance, read_manifest, write_manifest
from speechssl.data.units import Letters
from speechssl.model.ctc import CTCModel
from speechssl.train.pretrain import PretrainConfig

TONES = {"a": 300, "b": 800, "c": 2000}  # in Hz, farther apart than the speeds of training move them
NUM_LABELED = 40
SETTINGS = set_all(
    *("trainer.num_steps=150", "trainer.checkpoint_steps=50", "trainer.evaluate_steps=50", "trainer.log_steps=50"),
    *("optimizer.learning_rate=5e-3", "batches.seconds=20", "regularization.speeds=[0.95, 1.0, 1.05]"),
    *("regularization.consistency=0.0", "regularization.dropout=0.0"),
)


def say(text: str, randomness: np.random.Generator) -> np.ndarray:
    """A tenth of a second for each letter, a space a pause."""
    times = np.arange(1600) / 16_000
    parts = [np.sin(2 * np.pi * TONES[letter] * times) if letter in TONES else 0 * times for letter in f" {text} "]
    return 0.1 * np.concatenate(parts) + randomness.normal(0, 0.002, 1600 * (len(text) + 2))


def write_corpus(folder: Path) -> None:
    folder.mkdir(parents=True)
    randomness = np.random.default_rng(0)
    words = ["".join(letters) for length in (1, 2) for letters in product(TONES, repeat=length)]
    splits: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    for split, number in (("train", 60), ("dev", 6), ("test", 6)):
        for index in range(number):
            text = " ".join(randomness.choice(words, 4))
            file = folder / f"{split}{index}.wav"
            samples = say(text, randomness)
            soundfile.write(file, samples, 16_000)
            splits[split].append(Utterance(str(file), len(samples), text=text))
    splits["train_5min"] = splits["train"][:NUM_LABELED]
    splits["said"] = splits["train"]
    splits["train"] = splits["train"][:NUM_LABELED] + [replace(one, text="c") for one in splits["said"][NUM_LABELED:]]
    for name, utterances in splits.items():
        write_manifest(folder / f"{name}.tsv", utterances, ".")


def test_a_round_learns_from_what_the_model_heard(tmp_path: Path) -> None:
    out = tmp_path / "an output"
    write_corpus(out / "data")
    torch.manual_seed(0)
    encoder = PretrainConfig.load([TINY_ENCODER], ["data.train=none", "data.dev=none", "data.license=none"]).encoder
    start = tmp_path / "start"
    start.mkdir()
    description = ModelDescription(kind="ctc", step=1, encoder=encoder)
    save_model(start, description, CTCModel(encoder, 3).state_dict(), Letters.from_texts("a"))
    settings = {"LABELS": "train_5min", "INIT": str(start), "FROM": "finetune", "ROUNDS": "1"}
    result = run_recipe("prompts", out, *SETTINGS, **settings, TO="self_train")
    assert result.returncode == 0, result.stderr
    first, second = out / "finetune", out / "finetune_round1"
    said = {(one.path, one.text) for one in read_manifest(out / "data" / "said.tsv")}
    true, made = list(read_manifest(second / "labels.tsv"))[:NUM_LABELED], list(read_manifest(second / "labels.tsv"))
    assert true == list(read_manifest(out / "data" / "train_5min.tsv"))
    assert NUM_LABELED < len(made) <= NUM_LABELED + 14  # the best of 20
    assert {(one.path, one.text) for one in made} <= said  # and not what the manifest says of them
    past = [json.loads((run / "best" / "config.json").read_text("utf-8"))["training_data"] for run in (first, second)]
    assert [len(data) for data in past] == [1, 1]  # the round began with the encoder, not with the model before
    assert past[0][0]["hours"] < past[1][0]["hours"]
    rows = [out / run / f"results_rows{suffix}.md" for suffix in ("", "_lm") for run in (first, second)]
    assert result.stdout == "".join(row.read_text("utf-8") for row in rows)

    before = (second / "log.jsonl").read_bytes()
    result = run_recipe("prompts", out, *SETTINGS, **settings | {"FROM": "self_train"}, TO="self_train")
    assert result.returncode == 0, result.stderr
    assert f"label: {second}/labels.tsv is finished\n" in result.stderr
    assert f"finetune: {second} is finished after step 150\n" in result.stderr
    assert "tune-lm" not in result.stderr
    assert (second / "log.jsonl").read_bytes() == before
