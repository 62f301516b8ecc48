"""Hot words in the transcriber and in the commands; how they are found is tested in tests/decode."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.commands import transcribe as cli
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.manifest import Utterance, write_manifest
from speechssl.data.recording import audio_info
from speechssl.decode.arpa import write_arpa
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.errors import ConfigError
from speechssl.transcribe import windows
from speechssl.transcribe.transcriber import Transcriber

HEARD, MEANT = "where iz the cat", "where is the cat"


@pytest.fixture
def loaded(checkpoint: CTCCheckpoint, monkeypatch: pytest.MonkeyPatch) -> CTCCheckpoint:
    """Any model folder holds the planted model, fairly sure of what it hears."""
    checkpoint.model.sureness = 4.0
    monkeypatch.setattr("speechssl.transcribe.transcriber.load_ctc", lambda path, device, language: checkpoint)
    return checkpoint


@pytest.fixture
def hotwords(tmp_path: Path) -> Path:
    (tmp_path / "hot.tsv").write_text("Where is\nthe cat\t\tThe Cat\n")
    return tmp_path / "hot.tsv"


def transcribe(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["--model", "m", *map(str, arguments)])


def test_long_recordings_have_them_too_with_times(loaded, hotwords, planted_waveform) -> None:
    pause = np.zeros(SAMPLE_RATE, np.float32)
    waveform = np.concatenate([planted_waveform(HEARD), pause] * 50)
    assert len(waveform) > windows.WINDOW_SECONDS * SAMPLE_RATE
    greedy = Transcriber.load("m").transcribe(waveform, SAMPLE_RATE)
    for split_at_pauses in False, True:
        transcriber = Transcriber.load("m", hotwords=hotwords)
        found = transcriber.transcribe(waveform, SAMPLE_RATE, split_at_pauses=split_at_pauses)
        assert [word.text for word in found.words] == ["where", "is", "The Cat"] * 50
        if not split_at_pauses:
            kept = [word.start for number, word in enumerate(greedy.words) if number % 4 != 3]
            assert [word.start for word in found.words] == kept
            assert [word.end for word in found.words[2::3]] == [word.end for word in greedy.words[3::4]]
            assert max(word.confidence for word in found.words[1::3]) < greedy.words[1].confidence
            assert found.words[::3] == greedy.words[::4]


def test_they_work_beside_a_language_model(loaded, hotwords, planted_waveform, tmp_path: Path) -> None:
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(["where in the cat"] * 3, 2))
    (tmp_path / "lm.toml").write_text('lm = "lm.arpa"\nunknown_score = -20.0\nmin_symbol_log_prob = -15.0\n')
    waveform = planted_waveform(HEARD)
    lm = tmp_path / "lm.toml"
    assert str(Transcriber.load("m", lm=lm).transcribe(waveform, SAMPLE_RATE)) == "where in the cat"
    transcriber = Transcriber.load("m", lm=lm, hotwords=hotwords)
    assert str(transcriber.transcribe(waveform, SAMPLE_RATE)) == "where is The Cat"
    assert transcriber.decoding.describe().startswith(
        "beam 50, lm.arpa x 0.8, word +2, unknown -20, 2 phrases of hot.tsv"
    )


def test_a_stream_takes_none(loaded, hotwords) -> None:
    with pytest.raises(ConfigError, match="stream: expected a transcriber without hot words"):
        Transcriber.load("m", hotwords=hotwords).stream([], SAMPLE_RATE)


def test_the_command_listens_for_them_and_does_so_again_if_they_changed(loaded, hotwords, plant, tmp_path) -> None:
    recording, output = plant(HEARD), tmp_path / "out"
    assert transcribe(recording).stdout == f"{HEARD}\n"
    assert transcribe(recording, "--hotwords", hotwords).stdout == "where is The Cat\n"
    assert transcribe(recording, "--output-dir", output, "--hotwords", hotwords).exit_code == 0
    assert "1 finished before" in transcribe(recording, "--output-dir", output, "--hotwords", hotwords).stderr
    assert "--overwrite" in transcribe(recording, "--output-dir", output).stderr
    hotwords.write_text("the cat\n")
    result = transcribe(recording, "--output-dir", output, "--hotwords", hotwords)
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr


def test_a_bad_table_is_one_line(loaded, plant, hotwords, tmp_path: Path) -> None:
    for table, message in ("cat\tmuch\n", f"{hotwords}:1: expected a boost"), ("K2\n", "1 of 1 phrases cannot be"):
        hotwords.write_text(table)
        result = transcribe(plant("a"), "--hotwords", hotwords)
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    hotwords.write_text("K2\ncat\n")
    result = transcribe(plant("a"), "--hotwords", hotwords, "--quiet")
    assert (result.exit_code, result.stdout) == (0, "a\n")
    assert "it lacks '2' (U+0032)" in result.stderr
    assert result.stderr.count("\n") == 1


def test_evaluate_says_that_it_had_them(loaded, hotwords, plant, tmp_path: Path) -> None:
    path = plant(HEARD)
    write_manifest(tmp_path / "dev.tsv", [Utterance(str(path), audio_info(path).num_samples, text=MEANT)], ".")

    def evaluate(*options: object) -> Result:
        return CliRunner().invoke(app, ["evaluate", "m", *map(str, (tmp_path / "dev.tsv", *options))])

    output = tmp_path / "scores.json"
    assert "| greedy | 25.0 |" in evaluate("-o", output).stdout
    [evaluation] = json.loads(output.read_text())["evaluations"]
    assert evaluation["hotwords"] is None
    assert "| greedy, 2 phrases of hot.tsv | 0.0 |" in evaluate("-o", output, "--hotwords", hotwords).stdout
    [evaluation] = json.loads(output.read_text())["evaluations"]
    assert evaluation["hotwords"]["path"] == str(hotwords)
    assert len(evaluation["hotwords"]["sha256"]) == 64
