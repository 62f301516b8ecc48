import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.saved_model import CTCCheckpoint, TrainingData
from speechssl.data.manifest import Utterance, read_manifest, write_manifest
from speechssl.data.recording import audio_info
from speechssl.errors import AudioError, ManifestError
from speechssl.evaluate.evaluate import evaluate_model, results_row
from speechssl.scoring.error_rates import ErrorCounts
from speechssl.transcribe.transcriber import Transcriber

# Reference, and what the recording says: one word of ten is wrong, one is lost, one is added.
SAID = [
    ("five six", "nine six"),
    ("a very long sentence of words", "a very long sentence of words"),
    ("где я", "где"),
    ("", ""),
    ("abc", "abc abc"),
]

Corpus = Callable[..., Path]


@pytest.fixture
def corpus(plant, tmp_path: Path) -> Corpus:
    """Write a manifest of planted recordings, and give its path."""

    def write(said: list[tuple[str, str]], speakers: list[str] | None = None, name: str = "test.tsv") -> Path:
        utterances = []
        for index, (reference, hypothesis) in enumerate(said):
            path = plant(hypothesis.replace("я", ""), f"{name}.{index}.wav")
            speaker = speakers[index] if speakers else None
            utterances.append(
                Utterance(str(path), audio_info(path).num_samples, text=reference or None, speaker=speaker)
            )
        write_manifest(tmp_path / name, utterances, ".")
        return tmp_path / name

    return write


@pytest.fixture
def loaded(checkpoint: CTCCheckpoint, monkeypatch: pytest.MonkeyPatch) -> CTCCheckpoint:
    """Any model folder holds the planted model."""
    monkeypatch.setattr("speechssl.transcribe.transcriber.load_ctc", lambda path, device, language: checkpoint)
    monkeypatch.setattr("speechssl.evaluate.evaluate.language_for", lambda path, language: None)
    return checkpoint


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_planted_errors_are_found_in_the_order_of_the_manifest(checkpoint: CTCCheckpoint, corpus: Corpus) -> None:
    said = [pair for pair in SAID if pair[0]]
    result = evaluate_model(Transcriber(checkpoint), read_manifest(corpus(said)))
    assert [utterance["hypothesis"] for utterance in result.utterances] == [hypothesis for _, hypothesis in said]
    assert result.words == ErrorCounts(substitutions=1, deletions=1, insertions=1, reference_length=11)
    assert result.wer.value == pytest.approx(3 / 11)
    assert result.wer.low < result.wer.value < result.wer.high
    assert result.cer.value == result.characters.rate


def test_the_longest_are_transcribed_first(checkpoint: CTCCheckpoint, corpus: Corpus) -> None:
    manifest = read_manifest(corpus([("ab" * length, "ab" * length) for length in (5, 90, 3, 30, 8, 2, 300)]))
    assert evaluate_model(Transcriber(checkpoint), manifest).wer.value == 0
    lengths = [samples for _, samples in checkpoint.model.batch_shapes]
    assert len(lengths) > 2
    assert lengths == sorted(lengths, reverse=True)


def test_speakers_are_resampled_whole(checkpoint: CTCCheckpoint, corpus: Corpus) -> None:
    said = [("a", "a"), ("a", "a"), ("b", "c"), ("b", "c")] * 5
    alone = evaluate_model(Transcriber(checkpoint), read_manifest(corpus(said, name="alone.tsv"))).wer
    spoken = evaluate_model(
        Transcriber(checkpoint), read_manifest(corpus(said, speakers=["anna", "anna", "boris", "boris"] * 5))
    ).wer
    assert (spoken.low, spoken.value, spoken.high) == (0.0, 0.5, 1.0)
    assert 0 < alone.low < 0.5 < alone.high < 1


def test_a_manifest_without_texts_is_refused(checkpoint: CTCCheckpoint, corpus: Corpus, tmp_path: Path) -> None:
    path = corpus([("", "a")])
    fairseq = tmp_path / "fairseq.tsv"
    fairseq.write_text(f"{tmp_path}\ntest.tsv.0.wav\t{read_manifest(path)[0].num_samples}\n", "utf-8")
    for manifest in (path, fairseq):
        with pytest.raises(ManifestError, match=rf"{manifest.name}: expected texts to score against, found no column"):
            evaluate_model(Transcriber(checkpoint), read_manifest(manifest))


@pytest.mark.filterwarnings("ignore:.*silence")
def test_what_is_heard_where_nothing_is_said_counts(loaded: CTCCheckpoint, corpus: Corpus) -> None:
    quiet, noisy = corpus([("a b", "a b"), ("", "")]), corpus([("a b", "a b"), ("", "c d")], name="noisy.tsv")
    assert evaluate_model(Transcriber(loaded), read_manifest(quiet)).words == ErrorCounts(0, 0, 0, 2)
    assert evaluate_model(Transcriber(loaded), read_manifest(noisy)).words == ErrorCounts(0, 0, 2, 2)
    rows = run("m", quiet, noisy).stdout.splitlines()
    assert "test.tsv: 2 utterances (1 empty), " in rows[0]
    assert "| 100.0 [" in rows[1]


@pytest.mark.parametrize("language", [None, "tr"])
def test_texts_are_compared_in_their_language(loaded: CTCCheckpoint, corpus: Corpus, language: str | None) -> None:
    said = [("İ", "i"), ("IĞ", "ığ"), ("it’s “on”, isn’t it?", "it's on isn't it")]
    path = corpus([(reference, "abc") for reference, _ in said])
    lines = path.read_text("utf-8").splitlines()
    lines = [*lines[:1], f"{lines[1]}\tlanguage", *(f"{line}\t{language or ''}" for line in lines[2:])]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    result = evaluate_model(Transcriber(loaded), read_manifest(path))
    assert [utterance["reference"] for utterance in result.utterances][:2] == ["i", "ığ" if language else "iğ"]
    assert result.utterances[2]["reference"] == "it’s “on”, ısn’t it?".replace("ı", "i")
    assert ", lower case (tr) |" in run("m", path, "--language", "tr").stdout
    row = run("m", path, "--normalize", "--output", path.with_suffix(".json")).stdout
    assert f", words without punctuation{' (tr)' if language else ''} |" in row
    [evaluation] = json.loads(path.with_suffix(".json").read_text("utf-8"))["evaluations"]
    assert [utterance["reference"] for utterance in evaluation["utterances"]][2] == said[2][1]


def test_an_unreadable_recording_is_named_with_its_line(checkpoint: CTCCheckpoint, corpus: Corpus) -> None:
    path = corpus([("a", "a"), ("b", "b")])
    (path.parent / "test.tsv.1.wav").unlink()
    with pytest.raises(AudioError, match=r"test\.tsv:4: .*test\.tsv\.1\.wav"):
        evaluate_model(Transcriber(checkpoint), read_manifest(path))


def test_row_says_what_was_measured(checkpoint: CTCCheckpoint, corpus: Corpus) -> None:
    heard = (TrainingData(stage="pretrain", license="CC0", hours=1.5, labeled=False),)
    trained = replace(checkpoint, description=checkpoint.description.model_copy(update={"training_data": heard}))
    evaluation = evaluate_model(Transcriber(trained), read_manifest(corpus([("a b", "a c")] * 3)))
    row = results_row(evaluation, "runs/a|b", trained)
    assert row.startswith("| 20")
    cells = row.replace("\\|", "!").strip("| ").split(" | ")
    assert cells[1] == "runs/a!b"
    assert cells[4:7] == ["pretrain 1.50 h", "7", "test.tsv: 3 utterances, 0.0 minutes, lower case"]
    assert cells[7].startswith(f"cpu x {torch.get_num_threads()}, float32, ")
    assert cells[-4:-1] == ["greedy", "50.0", "33.3"]
    error = 0.5 - evaluation.utterances[0]["word_confidences"][0]
    assert cells[-1] == f"{100 * error:.1f} uncalibrated"


def test_command_writes_rows_and_json(loaded: CTCCheckpoint, corpus: Corpus, tmp_path: Path) -> None:
    said = [pair for pair in SAID if pair[0]]
    first, second, output = corpus(said), corpus([("a", "a")], name="dev.tsv"), tmp_path / "new" / "scores.json"
    result = run("some/model", first, second, "--output", output)
    assert result.exit_code == 0, result.stderr
    rows = result.stdout.splitlines()
    assert ["test.tsv: 4" in rows[0], "dev.tsv: 1" in rows[1], len(rows)] == [True, True, 2]
    head, rule = result.stderr.splitlines()[-2:]
    assert head.count("|") == rule.count("|") == rows[0].count("|")
    assert "five -> nine (1)" in result.stderr
    text = output.read_text("utf-8")
    assert "где" in text
    report = json.loads(text)
    assert {*report} == {"model", "num_parameters", "step", "training_data", "evaluations"}
    assert (report["model"], report["step"]) == ("some/model", 7)
    test, dev = report["evaluations"]
    assert {*test} == {
        *("manifest", "manifest_sha256", "num_utterances", "num_empty", "audio_seconds", "device", "seconds"),
        *("normalization", "decoding", "beam_search", "hotwords"),
        *("wer", "cer", "words", "characters", "word_confusions", "character_confusions", "utterances"),
        *("per", "phonemes"),
        *("confidences", "calibration", "reliability", "utterance_reliability"),
    }
    assert test["manifest"] == str(first)
    assert test["words"] == {"substitutions": 1, "deletions": 1, "insertions": 1, "reference_length": 11}
    assert {*test["wer"]} == {"value", "low", "high"}
    assert {"edit": "substitution", "reference": "five", "hypothesis": "nine", "count": 1} in test["word_confusions"]
    assert 0 < test["utterances"][2].pop("word_confidences")[0] < 1
    assert test["utterances"][2] | {"num_samples": 0, "characters": {}} == {
        "path": str(tmp_path / "test.tsv.2.wav"),
        "start": 0,
        "num_samples": 0,
        "speaker": None,
        "reference": "где я",
        "hypothesis": "где",
        "words": {"substitutions": 0, "deletions": 1, "insertions": 0, "reference_length": 2},
        "characters": {},
        "word_posteriors": [None],
        "words_right": [True],
    }
    assert dev["wer"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert [path.name for path in output.parent.iterdir()] == ["scores.json"]


def test_bad_manifests_cost_a_line_each_and_the_good_ones_are_done(
    loaded: CTCCheckpoint, corpus: Corpus, tmp_path: Path
) -> None:
    good, untold = corpus([("a", "a")]), corpus([("", "a")], name="untold.tsv")
    result = run("m", tmp_path / "missing.tsv", untold, good, "--output", tmp_path / "out.json")
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1].strip() for line in errors] == [str(tmp_path / "missing.tsv"), str(untold)]
    assert len(json.loads((tmp_path / "out.json").read_text())["evaluations"]) == 1


def test_nothing_evaluated_writes_nothing(loaded: CTCCheckpoint, tmp_path: Path) -> None:
    result = run("m", tmp_path / "missing.tsv", "--output", tmp_path / "out.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert not (tmp_path / "out.json").exists()


def test_a_missing_model_or_a_folder_as_output_is_one_line(corpus: Corpus, tmp_path: Path) -> None:
    manifest = corpus([("a", "a")])
    for arguments in (tmp_path / "nowhere", manifest), (tmp_path, manifest, "--output", tmp_path):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: {arguments[0]}")
        assert result.stderr.count("\n") == 1


def test_only_the_syntax_exits_2(tmp_path: Path) -> None:
    for arguments in [], ["model"], ["model", "test.tsv", "--nonsense"]:
        assert run(*arguments).exit_code == 2


def test_a_real_model_is_evaluated(model_folder: Path, corpus: Corpus) -> None:
    result = run(model_folder, corpus([("ab", "ab"), ("c", "c")]), "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("| 20")
