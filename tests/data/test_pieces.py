"""Pieces, divided as SentencePiece divides words, without it."""

import json
import pickle
import random
import sys
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.data.pieces import SPACE, Pieces, train_pieces
from speechssl.data.units import BLANK
from speechssl.data.units_file import load_units
from speechssl.errors import CheckpointError, ConfigError, ManifestError

LETTERS = "abcde你好เк'é"
CHANCE = random.Random(0)
SYLLABLES = ["".join(CHANCE.choices(LETTERS, k=CHANCE.randint(1, 3))) for _ in range(30)]
TEXTS = ["".join(CHANCE.choices([*SYLLABLES, " "], k=12)) for _ in range(80)]
WORDS = st.text(LETTERS, min_size=1, max_size=12)

# Scores with ties and sums that 32 bits cannot hold exactly.
PIECES = Pieces(
    (BLANK, SPACE, *"abc", "ab", "bc", f"{SPACE}a", f"{SPACE}ab", "cab", f"{SPACE}c"),
    (0.0, -1.1, -2.3, -2.7, -3.1, -4.0, -4.9, -2.9, -4.5, -6.1, -3.3),
)


@cache
def train() -> Pieces:
    pytest.importorskip("sentencepiece")
    return train_pieces(TEXTS, 40)


@cache
def peer(pieces: Pieces) -> Any:
    """SentencePiece with these pieces, from a model of its own form."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    for number, (symbol, score) in enumerate(zip(pieces.symbols, pieces.scores, strict=True)):
        model.pieces.add(piece=symbol if number else "<unk>", score=score, type=1 if number else 2)
    model.trainer_spec.model_type = 1
    model.trainer_spec.unk_id = 0
    model.normalizer_spec.name = "identity"
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def test_a_word_has_the_pieces_of_the_highest_sum() -> None:
    assert [PIECES.symbols[i] for i in PIECES.encode("abc cab")] == [f"{SPACE}ab", "c", SPACE, "cab"]


@settings(deadline=None, max_examples=400)
@given(WORDS)
def test_words_are_divided_as_sentencepiece_does(word: str) -> None:
    assert train().encode(word) == peer(train()).encode(unicodedata.normalize("NFC", word))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_ties_and_rounding_are_those_of_sentencepiece(seed: int) -> None:
    """Scores of few values give many divisions of one sum."""
    pytest.importorskip("sentencepiece")
    chance = random.Random(seed)
    longer = {"".join(chance.choices("ab", k=chance.randint(2, 4))) for _ in range(12)}
    symbols = (BLANK, SPACE, "a", "b", *sorted(longer), *sorted(f"{SPACE}{piece}" for piece in longer))
    scores = (0.0, *(-chance.choice([1.1, 2.2, 3.3, 4.4]) for _ in symbols[1:]))
    pieces = Pieces(symbols, scores)
    theirs = peer(pieces)
    for _ in range(20):
        word = "".join(chance.choices("ab", k=chance.randint(1, 16)))
        assert pieces.encode(word) == theirs.encode(word), (word, symbols, scores)


@given(st.lists(WORDS, min_size=1, max_size=5))
@settings(deadline=None)
def test_texts_of_any_script_come_back(words: list[str]) -> None:
    pieces = train()
    text = unicodedata.normalize("NFC", " ".join(words))
    labels = pieces.encode(text)
    assert pieces.decode(labels) == text
    assert sum(pieces.word_starts(labels)) == len(words)
    # The labels of a text are those of its words.
    assert labels == [label for word in words for label in pieces.encode(word)]


def test_where_words_begin() -> None:
    ids = {symbol: i for i, symbol in enumerate(PIECES.symbols)}
    path = [ids[x] for x in ("b", "ab", SPACE, BLANK, "c", f"{SPACE}a", f"{SPACE}ab", "c", SPACE, f"{SPACE}c", BLANK)]
    starts = [True, False, False, False, True, True, True, False, False, True, False]
    assert PIECES.word_starts(path) == starts
    assert PIECES.decode(path) == "bab c a abc c"
    assert (PIECES.blank_id, PIECES.delimiter_id, PIECES.special_ids, PIECES.kind) == (0, 1, {0}, "pieces")


def test_what_no_piece_has_is_named() -> None:
    assert PIECES.unknown_characters(f"abx c{SPACE}a é") == f"xé{SPACE}"
    with pytest.raises(ManifestError, match=r"found 'x' \(U\+0078\) in 'ax'"):
        PIECES.encode("ax")
    with pytest.raises(ManifestError, match="found '<'"):
        PIECES.encode(BLANK)


def test_training_again_gives_the_same() -> None:
    trained = train()
    assert train_pieces(TEXTS, 40) == trained
    assert len(trained) == 40
    assert {*"".join(TEXTS)} - {" "} <= {*trained.symbols}


def test_they_come_back_from_their_file_and_without_sentencepiece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train()
    trained.save(tmp_path / "vocab.json")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    found = load_units(tmp_path / "vocab.json")
    assert found == trained == pickle.loads(pickle.dumps(trained))
    assert found.encode("abcde") == trained.encode("abcde")
    with pytest.raises(ConfigError, match=r"pip install 'speechssl\[pieces\]'"):
        train_pieces(TEXTS, 40)


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([" ", ""], 40, "expected texts to find pieces in, found no letter"),
        (TEXTS, 5, r"pieces: expected at least 1\d, one a character, found 5"),
        (TEXTS, 5000, r"pieces: expected at most \d+ of these texts, found 5000"),
        ([*TEXTS, "a ▅ b"], 40, r"reserves, found '▅' \(U\+2585\) in 'a ▅ b'"),
        ([*TEXTS, f"a{SPACE}b"], 40, "reserves, found '▁'"),
    ],
)
def test_texts_that_give_no_pieces(texts: list[str], size: int, message: str) -> None:
    pytest.importorskip("sentencepiece")
    with pytest.raises((ConfigError, ManifestError), match=message):
        train_pieces(texts, size)


@pytest.mark.parametrize(
    "change",
    [{"kind": "syllables"}, {"scores": [0.0]}, {"scores": None}, {"symbols": {"a": 0, SPACE: 1}}],
)
def test_files_that_are_no_pieces(tmp_path: Path, change: dict[str, Any]) -> None:
    PIECES.save(tmp_path / "vocab.json")
    content = json.loads((tmp_path / "vocab.json").read_text("utf-8")) | change
    (tmp_path / "vocab.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(CheckpointError, match="expected a vocabulary"):
        load_units(tmp_path / "vocab.json")
