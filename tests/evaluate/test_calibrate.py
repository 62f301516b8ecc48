"""`speechssl calibrate`: confidences become shares of right words, as long as nothing on which they depend changes."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.calibration_file import CalibrationFile
from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.data.manifest import Utterance, write_manifest
from speechssl.data.recording import audio_info
from speechssl.decode.arpa import write_arpa
from speechssl.decode.calibration import Calibration, fit_calibration
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.errors import CheckpointError, ConfigError
from speechssl.transcribe.job import describe_settings
from speechssl.transcribe.transcriber import Transcriber

# What is said, and what is heard: of 30 times e 15 are right, of 30 times o 27. Nothing is heard in the last one.
SAID = [("e o", "e o")] * 14 + [("ee o", "e o")] * 13 + [("ee oo", "e o")] * 2 + [("e oo", "e o"), ("a", "")]
SURE_OF = {"e": 6.0, "o": 8.0}

Corpus = Callable[..., Path]


@pytest.fixture
def corpus(plant: Callable[..., Path], tmp_path: Path) -> Corpus:
    def write(said: list[tuple[str, str]], name: str = "dev.tsv") -> Path:
        paths = [plant(heard, f"{name}.{number}.wav") for number, (_, heard) in enumerate(said)]
        utterances = [
            Utterance(str(path), audio_info(path).num_samples, text=text)
            for path, (text, _) in zip(paths, said, strict=True)
        ]
        write_manifest(tmp_path / name, utterances, ".")
        return tmp_path / name

    return write


@pytest.fixture
def model(checkpoint: CTCCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The planted model, said to come from a file, which is surer of some letters than of others."""
    letters: Any = checkpoint.vocabulary
    sureness = torch.full((len(letters),), 7.0)
    for letter, value in SURE_OF.items():
        sureness[letters.symbols.index(letter)] = value
    checkpoint.model.sureness = sureness
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"first")
    loaded = replace(checkpoint, weights_files=(folder / "weights",))
    monkeypatch.setattr("speechssl.transcribe.transcriber.load_ctc", lambda path, device, language: loaded)
    for module in ("evaluate", "calibrate"):
        monkeypatch.setattr(f"speechssl.evaluate.{module}.language_for", lambda path, language: None)
    return folder


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(["e o", "ee oo"], 2))
    (tmp_path / "lm.toml").write_text('lm = "lm.arpa"\n')
    return tmp_path / "lm.toml"


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result


def evaluate(model: Path, manifest: Path, *options: object) -> tuple[dict[str, Any], str]:
    output = manifest.with_suffix(".json")
    row = run("evaluate", model, manifest, "-o", output, *options).stdout
    [evaluation] = json.loads(output.read_text("utf-8"))["evaluations"]
    return evaluation, row


def test_confidences_become_shares_of_right_words(model: Path, corpus: Corpus) -> None:
    dev = corpus(SAID)
    before, row = evaluate(model, dev)
    assert (before["confidences"], before["calibration"]) == ("uncalibrated", None)
    assert row.rstrip(" |\n").endswith("] uncalibrated")
    result = run("calibrate", model, dev)
    assert "60 words, 70.0 % right, greedy: slope " in result.stderr
    assert str(model / "weights.calibration.json") in result.stderr
    after, row = evaluate(model, dev)
    assert (after["confidences"], after["calibration"]["fitted_on"]) == ("calibrated", "dev.tsv: 60 words")
    assert "uncalibrated" not in row
    assert after["reliability"]["error"]["value"] < 0.05 < 0.2 < before["reliability"]["error"]["value"]
    assert 0.45 < after["utterances"][0]["word_confidences"][0] < 0.55
    assert 0.85 < after["utterances"][0]["word_confidences"][1] < 0.95
    assert after["utterances"][0]["words_right"] == [True, True]
    assert after["utterances"][14]["words_right"] == [False, True]
    assert after["utterances"][-1]["word_confidences"] == []
    assert [utterance["hypothesis"] for utterance in after["utterances"]] == [
        utterance["hypothesis"] for utterance in before["utterances"]
    ]
    assert sum(found["num_words"] for found in after["utterance_reliability"]["bins"]) == len(SAID) - 1


def test_it_is_fitted_on_what_the_model_says_and_not_on_an_older_calibration(model: Path, corpus: Corpus) -> None:
    dev, file = corpus(SAID), model / "weights.calibration.json"
    run("calibrate", model, dev)
    first = file.read_bytes()
    run("calibrate", model, dev)
    assert file.read_bytes() == first


def test_the_transcript_says_whether_it_is_calibrated(model: Path, corpus: Corpus) -> None:
    dev = corpus(SAID[:3])
    speech = dev.with_name("dev.tsv.0.wav")
    raw = Transcriber.load(model).transcribe(speech)
    calibration = Calibration(slope=0.5, offset=-1.0)
    CalibrationFile.of((model / "weights",)).write(calibration)
    transcriber = Transcriber.load(model)
    found = transcriber.transcribe(speech)
    assert [word.confidence for word in found.words] == [calibration(word.confidence) for word in raw.words]
    assert [word.letters for word in found.words] == [word.letters for word in raw.words]
    assert (raw.to_dict()["confidences"], found.to_dict()["confidences"]) == ("uncalibrated", "calibrated")
    assert found.confidence == pytest.approx(sum(word.confidence for word in found.words) / 2)
    assert found.shifted(3.0).is_calibrated
    assert transcriber.transcribe(speech, split_at_pauses=True).words == found.words
    samples, rate = soundfile.read(speech, dtype="float32")
    streamed = [word for part in transcriber.stream([samples], rate) for word in part.words]
    assert [word.confidence for word in streamed] == pytest.approx([word.confidence for word in found.words])


def test_a_language_model_has_a_calibration_of_its_own(model: Path, corpus: Corpus, lm: Path) -> None:
    dev = corpus(SAID[:-1])
    run("calibrate", model, dev, "--lm", lm)
    assert Transcriber.load(model).decoding.calibration is None
    found = Transcriber.load(model, lm=lm).decoding.calibration
    assert found is not None
    assert evaluate(model, dev, "--lm", lm)[0]["calibration"] == found.to_dict()
    hotwords = model / "hot.tsv"
    hotwords.write_text("eo\n")
    assert Transcriber.load(model, lm=lm, hotwords=hotwords).decoding.calibration == found
    lm.write_text('lm = "lm.arpa"\nlm_weight = 0.7\n')
    with pytest.warns(
        UserWarning, match=r"lm\.toml\.calibration\.json: expected a calibration of weights, lm\.arpa and "
    ):
        assert Transcriber.load(model, lm=lm).decoding.calibration is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.write_text('# a comment\nlm = "lm.arpa"\n')
        assert Transcriber.load(model, lm=lm).decoding.calibration == found
    write_arpa(lm.with_suffix(".arpa"), estimate_ngrams(["e o"], 2))
    with pytest.warns(UserWarning, match="found one of others"):
        assert Transcriber.load(model, lm=lm).decoding.calibration is None


def test_posteriors_of_the_search_count_where_they_were_fitted(
    model: Path, lm: Path, planted_waveform: Callable[[str], Any]
) -> None:
    def words(**options: Any) -> Any:
        return Transcriber.load(model, lm=lm, **options).transcribe(planted_waveform("e o"), 16_000).words

    assert [word.posterior for word in words()] == [None, None]
    posteriors = [word.posterior for word in words(calibrated=False)]
    assert all(0 < posterior <= 1 for posterior in posteriors)
    CalibrationFile.of((model / "weights",), lm).write(Calibration(slope=0.0, posterior_slope=1.0, offset=0.0))
    assert [word.confidence for word in words()] == pytest.approx(posteriors, abs=1e-4)


def test_posteriors_are_fitted_with_a_language_model_alone(
    model: Path, lm: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def record(confidences: Any, is_right: Any, fitted_on: str, posteriors: Any) -> Calibration:
        given.append(posteriors)
        return fit_calibration(confidences, is_right, fitted_on, posteriors)

    monkeypatch.setattr("speechssl.evaluate.calibrate.fit_calibration", record)
    dev = corpus(SAID[:3])
    run("calibrate", model, dev)
    run("calibrate", model, dev, "--lm", lm)
    [without, with_model] = given
    assert without is None
    assert len(with_model) == 6
    assert all(0 < posterior <= 1 for posterior in with_model)


def test_other_weights_are_uncalibrated_and_copies_are_not(model_folder: Path, tmp_path: Path, corpus: Corpus) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "first")
    run("calibrate", folder, corpus([("a b", "abc def")]), "--device", "cpu")
    copy = shutil.copytree(folder, tmp_path / "second")
    found = Transcriber.load(copy, "cpu").decoding.calibration
    assert found is not None
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.warns(
        UserWarning, match="calibration of model.safetensors, found one of others: confidences are uncalibrated"
    ):
        assert Transcriber.load(copy, "cpu").decoding.calibration is None


def test_finished_transcripts_with_other_confidences_are_not_taken_for_these(
    model_folder: Path, tmp_path: Path, lm: Path
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    greedy, with_lm = (describe_settings(folder, path, None) for path in (None, lm))
    CalibrationFile.of((folder / "model.safetensors",)).write(Calibration(slope=1.0, offset=0.0))
    assert describe_settings(folder, None, None) != greedy
    assert describe_settings(folder, lm, None) == with_lm


def test_damaged_files_and_speech_without_words_are_one_line(model: Path, corpus: Corpus) -> None:
    (model / "weights.calibration.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"weights\.calibration\.json: expected a calibration: .* found list"):
        Transcriber.load(model)
    (model / "weights.calibration.json").write_text('{"sha256": "0", "calibration": {"slope": -1.0, "offset": 0.0}}')
    with pytest.raises(ConfigError, match=r"weights\.calibration\.json: calibration\.slope: .* found -1"):
        Transcriber.load(model)
    (model / "weights.calibration.json").unlink()
    result = CliRunner().invoke(app, ["calibrate", str(model), str(corpus([("a", "")]))])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "dev.tsv: expected speech in which the model hears words, found none" in result.stderr


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    model: Path, corpus: Corpus, checkpoint: CTCCheckpoint
) -> None:
    (model / "weights.calibration.json").mkdir()
    result = CliRunner().invoke(app, ["calibrate", str(model), str(corpus([("e", "e")]))])
    assert result.exit_code == 1
    assert result.stderr == f"error: {model}/weights.calibration.json: expected a file to write, found a folder\n"
    assert checkpoint.model.batch_shapes == []
