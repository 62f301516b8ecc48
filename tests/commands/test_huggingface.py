"""A tiny model of transformers through every command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_models
import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner, Result

import speechssl
from speechssl.__main__ import app
from speechssl.checkpoint.reader import read_model
from speechssl.commands.transcribe import app as transcribe_app
from speechssl.data.manifest import Utterance, write_manifest

TEXTS = ["HE SAID A LOT", "THAT IS IT", "NO", "TEN OR ELEVEN"]


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    """A model of a family and its folder; made when it is first asked for."""
    made: dict[str, tuple[Any, Path]] = {}

    def make(case: str) -> tuple[Any, Path]:
        if case not in made:
            model = hf_models.build(case)
            hf_models.make_talkative(model)
            made[case] = model, hf_models.save(model, tmp_path_factory.mktemp(case))
        return made[case]

    return make


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four recordings of noise of one to two seconds, with texts."""
    noise = np.random.default_rng(0)
    rows = []
    for number, text in enumerate(TEXTS):
        loudness = np.repeat(noise.uniform(0, 0.2, 4 + number), 5_000)
        samples = noise.uniform(-1, 1, len(loudness)) * loudness
        soundfile.write(tmp_path / f"{number}.wav", samples, 16_000)
        rows.append(Utterance(str(tmp_path / f"{number}.wav"), len(samples), text=text))
    write_manifest(tmp_path / "train.tsv", rows, ".")
    return tmp_path


def read(path: Path) -> np.ndarray[Any, Any]:
    samples: np.ndarray[Any, Any] = soundfile.read(path, dtype="float32")[0]
    return samples


@pytest.mark.parametrize("case", ["wav2vec2-base", "hubert-large", "wavlm-base", "data2vec"])
def test_the_text_is_that_of_transformers(case: str, models: Any, corpus: Path) -> None:
    import transformers

    model, folder = models(case)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    expected = []
    for number in range(4):
        inputs = processor(read(corpus / f"{number}.wav"), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            ids = model(inputs.input_values).logits.argmax(dim=2)
        expected.append(" ".join(processor.batch_decode(ids)[0].split()))
    assert len({*expected}) == 4, "a test of nothing"
    assert all(len(text) > 3 for text in expected), "a test of nothing"
    arguments = ["--model", str(folder), "--quiet", "--format", "json", str(corpus)]
    result = CliRunner().invoke(transcribe_app, arguments)
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == expected
    assert speechssl.Transcriber.load(folder, "cpu").transcribe(corpus / "1.wav").text == expected[1]


@pytest.mark.parametrize("case", ["wav2vec2-base", "hubert-large", "wavlm-base", "data2vec"])
def test_evaluate_tune_lm_extract_check_and_inspect(case: str, models: Any, corpus: Path) -> None:
    model, folder = models(case)
    manifest = corpus / "train.tsv"
    family = model.config.model_type
    assert f"transformers {family}" in run("inspect", folder).stdout
    assert f"({family})" in run("evaluate", folder, manifest, "--device", "cpu").stdout
    run("ngram", manifest, "-o", corpus / "lm.arpa")
    options = ("--lm", corpus / "lm.arpa", "--trials", 1, "--device", "cpu")
    run("tune-lm", folder, manifest, *options, "-o", corpus / "lm.toml")
    run("evaluate", folder, manifest, "--lm", corpus / "lm.toml", "--device", "cpu")
    run("check", manifest, "--model", folder)
    run("extract", folder, corpus / "0.wav", "--layer", "all", "-o", corpus / "features.npz", "--device", "cpu")
    with np.load(corpus / "features.npz") as features:
        found = features[f"{corpus / '0.wav'}:3"]
    encoder = speechssl.load_encoder(folder, "cpu")
    expected = encoder.encode(torch.from_numpy(read(corpus / "0.wav"))[None], layer=3).context[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("keep_head", [False, True])
def test_fine_tuning_starts_from_it(models: Any, corpus: Path, keep_head: bool) -> None:
    _, folder = models("data2vec")
    run(*_training("finetune", corpus, folder), "--set", f"keep_head={str(keep_head).lower()}")
    before, after = read_model(folder), read_model(corpus / "run")
    assert after.description.encoder.context.kind == "data2vec"
    name = "encoder.feature_encoder.layers.0.conv.weight"  # which is frozen
    assert torch.equal(after.weights[name], before.weights[name])
    assert after.vocabulary is not None
    assert (after.vocabulary == before.vocabulary) is keep_head
    stages = [data.stage for data in after.description.training_data]
    assert stages == [f"{folder.name} (data2vec-audio)", "finetune"]
    if keep_head:
        moved = (after.weights["head.bias"] - before.weights["head.bias"]).abs().max()
        assert 0 < moved < 0.1
    run("evaluate", corpus / "run", corpus / "train.tsv", "--device", "cpu")


def test_pretraining_goes_on_from_it(models: Any, corpus: Path) -> None:
    _, folder = models("wavlm-base")
    arguments = (*_training("pretrain", corpus, folder), "--set", "objective.kind=spectral_contrast")
    run(*arguments)
    before, after = read_model(folder), read_model(corpus / "run")
    assert after.description.encoder == before.description.encoder
    name = "encoder.context.distance_bias.weight"
    moved = (after.weights[name] - before.weights[name]).abs().max()
    assert 0 < moved < 0.1
    assert "finished" in run(*arguments).stderr, "the run is not its own"
    result = CliRunner().invoke(app, [*map(str, arguments), "--set", "encoder.context.dropout=0.3"])
    assert result.exit_code == 1
    assert "encoder: expected no such section beside init" in result.stderr


def _training(command: str, corpus: Path, init: Path) -> tuple[object, ...]:
    (corpus / "config.toml").write_text(
        f"""
init = "{init}"
[data]
train = "train.tsv"
dev = "train.tsv"
license = "CC0"
num_workers = 0
[batches]
seconds = 4
min_seconds = 0.5
[trainer]
num_steps = 2
microbatches = 1
device = "cpu"
"""
    )
    return command, corpus / "config.toml", "-o", corpus / "run"
