"""Units of a few letters each, found in texts by SentencePiece (Kudo, 2018, https://arxiv.org/abs/1804.10959).

SentencePiece finds the pieces. It is not needed afterwards: the pieces and their scores are in our own file, and texts
are divided here, as it divides each word.
"""

import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from speechssl.data.units import BLANK, Units, list_characters, split_words
from speechssl.errors import ConfigError, ManifestError
from speechssl.files import write_text_file

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What pieces that begin a word begin with."""

_NUM_THREADS = 4  # of training, on any machine: sums depend on it


@dataclass(frozen=True)
class Pieces(Units):
    """Units of one or more letters of a word. Those that begin a word begin with `SPACE`, which alone has no letter.

    The blank is the first symbol.
    """

    scores: tuple[float, ...]  # natural logarithms of how frequent each is, in 32 bits

    def __post_init__(self) -> None:
        assert self.symbols[:1] == (BLANK,), self.symbols
        assert SPACE in self.symbols, self.symbols
        assert len(set(self.symbols)) == len(self.symbols) == len(self.scores), self.symbols

    @property
    def kind(self) -> str:
        """What the units are."""
        return "pieces"

    @cached_property
    def delimiter_id(self) -> int:
        """The piece of a space alone, behind which a word begins."""
        return self._ids[SPACE]

    def encode(self, text: str) -> list[int]:
        """Turn a text into labels: the pieces of each word whose scores have the highest sum."""
        if unknown := self.unknown_characters(text):
            found = list_characters(unknown)
            raise ManifestError(f"expected characters of the vocabulary, found {found} in {text!r:.60}")
        return [piece for word in split_words(text) for piece in self._divide(SPACE + word)]

    def _divide(self, word: str) -> list[int]:
        """Find the best pieces by dynamic programming, in 32 bits and with ties as in SentencePiece."""
        ends: list[tuple[np.float32, int, int] | None] = [None] * len(word)  # the score, the start and the last piece
        total = np.float32(0)
        for start in range(len(word)):
            if start:
                before = ends[start - 1]
                assert before is not None, "each character is a piece"
                total = before[0]
            for stop in range(start + 1, min(start + self._longest, len(word)) + 1):
                piece = self._piece_ids.get(word[start:stop])
                if piece is None:
                    continue
                score, best = total + self._scores[piece], ends[stop - 1]
                if best is None or score > best[0]:
                    ends[stop - 1] = score, start, piece
        pieces: list[int] = []
        stop = len(word)
        while stop:
            end = ends[stop - 1]
            assert end is not None
            _, stop, piece = end
            pieces.append(piece)
        return pieces[::-1]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn labels into text, words with single spaces between; repeats stay repeats."""
        text = "".join(self.symbols[i] for i in ids if i != self.blank_id)
        return " ".join(text.replace(SPACE, " ").split())

    def _begins_word(self, i: int) -> bool:
        return self.symbols[i].startswith(SPACE)

    def unknown_characters(self, text: str) -> str:
        """Return the distinct characters of a text that no piece has, sorted."""
        characters = {character for word in split_words(text) for character in word}
        return "".join(sorted(characters - (self._piece_ids.keys() - {SPACE})))

    def save(self, path: Path) -> None:
        """Write them as JSON; `load_units` reads it."""
        content = {"kind": self.kind, "symbols": self._ids, "scores": self.scores}
        write_text_file(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @cached_property
    def _piece_ids(self) -> dict[str, int]:
        return {symbol: i for symbol, i in self._ids.items() if i != self.blank_id}

    @cached_property
    def _scores(self) -> list[np.float32]:
        return [np.float32(score) for score in self.scores]

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.symbols[1:]))


def train_pieces(texts: Iterable[str], size: int) -> Pieces:
    """Find pieces in texts; the same texts give the same pieces.

    Args:
        texts: Of any script. Every character of them becomes a piece; no piece reaches beyond a word.
        size: How many units, the blank among them.

    Raises:
        ConfigError: there is no package sentencepiece, or no such number of pieces in the texts.
        ManifestError: there are no texts, or there is a character in them that SentencePiece reserves.
    """
    try:
        import sentencepiece
    except ImportError:
        raise ConfigError("pieces need the package sentencepiece: pip install 'speechssl[pieces]'") from None
    lines = [" ".join(words) for text in texts if (words := split_words(text))]
    if not lines:
        raise ManifestError("expected texts to find pieces in, found no letter")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type="unigram",
            vocab_size=size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=max(len(line.encode()) for line in lines) + 1,  # longer ones it would leave out
            unk_id=0,  # where the blank will be
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=_NUM_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        if found := re.search(r"too high.*<= (\d+)", str(error)):
            raise ConfigError(f"pieces: expected at most {found[1]} of these texts, found {size}") from None
        if found := re.search(r"required_chars[.] \d+ vs (\d+)", str(error)):
            raise ConfigError(f"pieces: expected at least {found[1]}, one a character, found {size}") from None
        raise ConfigError(f"SentencePiece: {' '.join(str(error).split())}") from None
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    symbols = [BLANK, *(model.id_to_piece(i) for i in range(1, len(model)))]
    pieces = Pieces(tuple(symbols), (0.0, *(model.get_score(i) for i in range(1, len(model)))))
    for line in lines:  # it leaves lines with some characters out without a word
        if unknown := pieces.unknown_characters(line):
            found_characters = list_characters(unknown)
            raise ManifestError(
                f"expected no characters that SentencePiece reserves, found {found_characters} in {line!r:.60}"
            )
    return pieces
