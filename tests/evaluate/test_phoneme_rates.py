"""Models of phonemes have a phoneme error rate, and TIMIT's phones are folded."""

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
from planted import PlantedModel, planted_speech
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.saved_model import CTCCheckpoint, ModelDescription
from speechssl.data.manifest import Utterance, write_manifest
from speechssl.data.phonemes import Phonemes
from speechssl.data.tokens import Tokens
from speechssl.data.units import Letters, Units
from speechssl.model.encoder import EncoderConfig

# Reference, and what the recording says.
WORDS = [("HH/AH/L/OW W/ER", "HH/AH/L/AH W/ER"), ("W/ER", "W/ER HH")]
PHONES = [("h# sh iy hv q ix", "h# zh iy hh ih sh")]


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Evaluate a planted model of some units, and give the evaluation as JSON and the command's result."""

    def evaluate(units: Units, said: list[tuple[str, str]], *options: str) -> tuple[dict[str, Any], Any]:
        description = ModelDescription(kind="ctc", step=7, encoder=EncoderConfig())
        checkpoint = CTCCheckpoint(PlantedModel(len(units)), units, description)  # type: ignore[arg-type]
        monkeypatch.setattr("speechssl.transcribe.transcriber.load_ctc", lambda *_: checkpoint)
        monkeypatch.setattr("speechssl.evaluate.evaluate.language_for", lambda path, language: None)
        utterances = []
        for number, (reference, heard) in enumerate(said):
            samples = planted_speech(heard, units)
            soundfile.write(tmp_path / f"{number}.wav", samples, 16_000)
            utterances.append(Utterance(str(tmp_path / f"{number}.wav"), len(samples), text=reference))
        write_manifest(tmp_path / "test.tsv", utterances, ".")
        arguments = ["evaluate", "any", str(tmp_path / "test.tsv"), "-o", str(tmp_path / "out.json"), *options]
        result = CliRunner().invoke(app, arguments)
        if result.exit_code:
            return {}, result
        [found] = json.loads((tmp_path / "out.json").read_text("utf-8"))["evaluations"]
        return found, result

    return evaluate


def test_phonemes_words_and_characters_have_rates(evaluate: Any) -> None:
    found, result = evaluate(Phonemes.from_texts(text for pair in WORDS for text in pair), WORDS)
    assert found["per"]["value"] == pytest.approx(2 / 8)
    assert found["wer"]["value"] == pytest.approx(2 / 3)
    assert (found["phonemes"]["substitutions"], found["phonemes"]["insertions"]) == (1, 1)
    assert "greedy, PER % 25.0 [" in result.stdout
    assert ": PER % 25.0 [" in result.stderr


def test_timits_phones_are_folded_if_that_is_asked_for(evaluate: Any) -> None:
    units = Phonemes.from_texts(text for pair in PHONES for text in pair)
    plain, _ = evaluate(units, PHONES)
    assert plain["per"]["value"] == pytest.approx(4 / 6)
    folded, result = evaluate(units, PHONES, "--timit")
    assert folded["per"]["value"] == pytest.approx(1 / 5)
    assert "39 phones of TIMIT" in result.stdout


def test_foreign_models_of_phonemes_have_it_too(evaluate: Any) -> None:
    units = Tokens(("<pad>", "t", "ʃ", "tʃ"), "<pad>", each_is_a_word=True)
    found, _ = evaluate(units, [("t ʃ tʃ ʃ", "t ʃ tʃ t")])
    assert found["per"]["value"] == found["wer"]["value"] == 0.25


def test_models_of_letters_have_none(evaluate: Any) -> None:
    found, result = evaluate(Letters.from_texts(["ab"]), [("ab", "ba")])
    assert found["per"] is found["phonemes"] is None
    assert "PER" not in result.output
    _, refused = evaluate(Letters.from_texts(["ab"]), [("ab", "ba")], "--timit")
    assert refused.exit_code == 1
    assert refused.stderr == "error: --timit: expected a model of phonemes, found letters\n"
