"""Letters, pieces and phonemes: whatever the outputs of a model stand for, everything downstream works with them."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from planted import FRAME, TINY, PlantedModel, planted_speech

from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.reader import load_ctc
from speechssl.checkpoint.saved_model import CTCCheckpoint, ModelDescription
from speechssl.data.phonemes import Phonemes
from speechssl.data.pieces import SPACE, Pieces
from speechssl.data.tokens import Tokens
from speechssl.data.units import BLANK, Letters, Units
from speechssl.decode.arpa import write_arpa
from speechssl.decode.hotwords import Hotwords
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.decode.settings import BeamSearchConfig
from speechssl.errors import ConfigError
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.transcribe.decoding import make_beam_search
from speechssl.transcribe.transcriber import Transcriber

_FRAME_SECONDS = FRAME / 16_000


@dataclass(frozen=True)
class Kind:
    units: Units
    text: str
    word_spans: tuple[tuple[int, int], ...]  # frames, the second behind the last: two a symbol, then a blank
    misheard: tuple[str, str]  # a text, and another that a language model of the first one makes of it


KINDS = {
    "letters": Kind(Letters.from_texts(["abcde"]), "ab cad e", ((0, 5), (9, 17), (21, 23)), ("ab cad", "ab cbd")),
    "pieces": Kind(
        Pieces((BLANK, SPACE, *"abcde", f"{SPACE}ab", "ad", f"{SPACE}e", f"{SPACE}c"), (0.0, -9.0, *[-5.0] * 9)),
        "ab cad bc e",
        ((0, 2), (3, 8), (12, 17), (18, 20)),  # ▁ab, ▁c ad, ▁ b c, ▁e
        ("ab cad", "ab cbd"),
    ),
    "phonemes": Kind(
        Phonemes.from_texts(["t/ʃ tʃ/a b"]), "t/ʃ tʃ/a b", ((0, 5), (9, 14), (18, 20)), ("tʃ/a b", "tʃ/ʃ b")
    ),
    "phonemes, each a word": Kind(
        Phonemes.from_texts(["sh iy hh s"]), "sh iy hh iy", ((0, 2), (3, 5), (6, 8), (9, 11)), ("sh iy hh", "sh s hh")
    ),
    "foreign phonemes": Kind(
        Tokens(("<pad>", "t", "ʃ", "tʃ", "a"), "<pad>", each_is_a_word=True),
        "t ʃ tʃ a",
        ((0, 2), (3, 5), (6, 8), (9, 11)),
        ("t a tʃ", "t ʃ tʃ"),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def transcriber_of(units: Units, sureness: float = 7.0) -> Transcriber:
    model = PlantedModel(len(units))
    model.sureness = sureness
    description = ModelDescription(kind="ctc", step=7, encoder=EncoderConfig())
    return Transcriber(CTCCheckpoint(model, units, description))  # type: ignore[arg-type]


def test_words_are_where_they_are_said(kind: Kind) -> None:
    found = transcriber_of(kind.units).transcribe(planted_speech(kind.text, kind.units), 16_000)
    assert found.text == kind.text
    spans = tuple((round(word.start / _FRAME_SECONDS), round(word.end / _FRAME_SECONDS)) for word in found.words)
    assert [word.text for word in found.words] == kind.text.split()
    assert spans == kind.word_spans


def test_a_stream_says_the_same(kind: Kind) -> None:
    """And each word before the recording is over, although nothing but the next one tells its end."""
    text = " ".join([kind.text] * 30)
    samples = planted_speech(text, kind.units)
    results = list(transcriber_of(kind.units).stream(samples.reshape(-1, FRAME), 16_000, 0.1))
    words = [word.text for result in results for word in result.words]
    assert words == text.split()
    assert len([word for result in results[:-1] for word in result.words]) > len(words) / 3


def test_a_text_is_aligned(kind: Kind) -> None:
    found = transcriber_of(kind.units).align(planted_speech(kind.text, kind.units), kind.text, 16_000)
    assert [(word.text, str(word.status)) for word in found.words] == [(word, "said") for word in kind.text.split()]
    spans = tuple((round(word.start / _FRAME_SECONDS), round(word.end / _FRAME_SECONDS)) for word in found.words)
    assert spans == kind.word_spans
    assert found.notes == ()


def test_what_the_units_cannot_say_is_noted(kind: Kind) -> None:
    first = kind.text.split()[0]
    found = transcriber_of(kind.units).align(planted_speech(first, kind.units), f"{first} xyz", 16_000)
    assert str(found.words[0].status) == "said"
    assert len(found.notes) == 1
    assert "'xyz' is skipped over: no unit for 'x" in found.notes[0]


def test_a_language_model_of_words_counts(kind: Kind, tmp_path: Path) -> None:
    right, wrong = kind.misheard
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams([right] * 3, 2))
    transcriber = transcriber_of(kind.units, sureness=3.0)
    samples = planted_speech(wrong, kind.units)
    assert transcriber.transcribe(samples, 16_000).text == wrong
    config = BeamSearchConfig(lm=tmp_path / "lm.arpa", lm_weight=3.0)
    search = make_beam_search(config, transcriber.checkpoint)
    found = Transcriber(transcriber.checkpoint, beam_search=search).transcribe(samples, 16_000)
    assert found.text == right
    assert [word.text for word in found.words] == right.split()


def test_a_saved_model_is_complete(kind: Kind, tmp_path: Path) -> None:
    model = CTCModel(TINY, len(kind.units))
    save_model(tmp_path, ModelDescription(kind="ctc", step=1, encoder=TINY), model.state_dict(), kind.units)
    assert load_ctc(tmp_path, "cpu").vocabulary == kind.units


@pytest.mark.parametrize("text", ["你好世界 你好", "สวัสดีครับ ชาวโลก", "今日は いい天気"])
def test_scripts_without_spaces_come_back_without(text: str) -> None:
    """A space that is in the text stays; each letter, with its marks, has times of its own."""
    units = Letters.from_texts([text])
    found = transcriber_of(units).transcribe(planted_speech(text, units), 16_000)
    assert found.text == text
    assert len(found.words) > 2 * len(text.split())
    assert found.words[1].is_joined
    aligned = transcriber_of(units).align(planted_speech(text, units), text, 16_000)
    assert [word.text for word in aligned.words] == text.split()


@pytest.mark.parametrize("name", ["pieces", "phonemes, each a word"])
def test_hot_words_need_a_delimiter(name: str, tmp_path: Path) -> None:
    (tmp_path / "hot.tsv").write_text("ab\n", "utf-8")
    with pytest.raises(ConfigError, match="hot words need a model with a unit that ends a word"):
        Hotwords.read(tmp_path / "hot.tsv", KINDS[name].units)
