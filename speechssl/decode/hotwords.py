"""Hot words: phrases that a user expects in recordings, and that decoding listens for."""

import math
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

from torch import Tensor

from speechssl.data.normalize import lower_case
from speechssl.data.units import Units, list_characters
from speechssl.decode.greedy import PathToken, join_repeats
from speechssl.decode.sentences import cut_sentences
from speechssl.decode.spotting import Phrase, Spot, Spotter
from speechssl.errors import ConfigError

BOOST = 1.5
"""In nats a letter, of phrases for which the file states none."""
_NUM_LACKING = 8  # letters that are named


class Hotwords:
    """Phrases from a file, and decoding that listens for them.

    A phrase is written where its letters, with its boost, are likelier than the greedy path between the same two word
    borders. Frames without a phrase keep what they had.
    """

    def __init__(self, path: Path, phrases: Sequence[Phrase], units: Units, sentence_frames: int | None = None) -> None:
        assert units.delimiter_id is not None
        self.path, self.units, self.sentence_frames = path, units, sentence_frames
        silent_ids = units.special_ids | {units.delimiter_id}
        self.spotter = Spotter(phrases, units.blank_id, units.delimiter_id, silent_ids)

    @classmethod
    def read(
        cls, path: Path, units: Units, sentence_frames: int | None = None, language: str | None = None
    ) -> "Hotwords":
        """Read a table without a header: phrase, boost in nats a letter, what is written for it; the last two optional.

        Capitals become small letters, or the reverse, where the model has only the others. Phrases that it cannot spell
        cost a warning. Recordings longer than ``sentence_frames`` are parted at long pauses.

        Raises:
            ConfigError: a line is wrong, no phrase can be spelled, or the units do not tell where words end.
        """
        if units.delimiter_id is None:
            raise ConfigError(f"{path}: hot words need a model with a unit that ends a word, such as '|'")
        phrases: dict[tuple[int, ...], Phrase] = {}
        unspelled: list[str] = []
        lacking: set[str] = set()
        for number, line in enumerate(_read_lines(path), start=1):
            if not line.strip():
                continue
            text, per_letter, shown = _parse(f"{path}:{number}", line)
            spelled = _fold(text, units, language)
            if unknown := units.unknown_characters(spelled):
                unspelled.append(text)
                lacking |= set(unknown)
                continue
            labels = tuple(units.encode(spelled)[:-1])  # the border behind a phrase is no part of it
            if labels in phrases:
                raise ConfigError(f"{path}:{number}: expected each phrase once, found {text!r} again")
            phrases[labels] = Phrase(labels, per_letter * len("".join(spelled.split())), shown)
        if unspelled:
            num_phrases = len(unspelled) + len(phrases)
            message = (
                f"{path}: {len(unspelled)} of {num_phrases} phrases cannot be spelled with the model's letters and are "
                f"never found, such as {unspelled[0]!r:.40}; it lacks {list_characters(sorted(lacking)[:_NUM_LACKING])}"
            )
            if not phrases:
                raise ConfigError(message)
            warnings.warn(message, stacklevel=2)
        if not phrases:
            raise ConfigError(f"{path}: expected phrases, found none")
        return cls(path, list(phrases.values()), units, sentence_frames)

    def describe(self) -> str:
        """Return what they are in a few words, for a table of results."""
        return f"{len(self.spotter.phrases)} phrases of {self.path.name}"

    def find_path(self, parts: Iterable[Tensor]) -> list[PathToken]:
        """Return the tokens of a recording: those of `greedy_path`, except where a phrase is said."""
        log_probs: list[float] = []
        symbols: list[int] = []
        spot_of_frame: dict[int, Spot] = {}
        sentences = cut_sentences(parts, self.units, self.sentence_frames)
        is_border = True
        for sentence, following in pairwise(chain(sentences, [None])):
            assert sentence is not None
            first = len(symbols)
            best = sentence.max(dim=1)
            log_probs += best.values.tolist()
            symbols += best.indices.tolist()
            for spot in self.find(sentence, is_border=is_border, is_end=following is None):
                for frame, symbol in spot.symbol_of_frame():
                    log_probs[first + frame], symbols[first + frame] = float(sentence[frame, symbol]), symbol
                    spot_of_frame[first + frame] = spot
            said = [symbol for symbol in symbols[first:] if symbol not in self.units.special_ids]
            is_border = said[-1] == self.units.delimiter_id if said else is_border
        tokens = join_repeats(log_probs, symbols, self.units.blank_id)
        border = self.units.delimiter_id
        return [
            token if token.symbol_id == border else replace(token, spot=spot_of_frame.get(token.first_frame))
            for token in tokens
        ]

    def find(self, log_probs: Tensor, *, is_border: bool = True, is_end: bool = True) -> list[Spot]:
        """Return the phrases that are said in a sentence, as `Spotter.find` does."""
        return self.spotter.find(log_probs.double().numpy(), is_border=is_border, is_end=is_end)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8: {error}") from None


def _parse(where: str, line: str) -> tuple[str, float, str | None]:
    """Return the phrase, its boost a letter and what is written for it."""
    cells = [cell.strip() for cell in line.split("\t")]
    if len(cells) > 3 or not cells[0]:
        raise ConfigError(
            f"{where}: expected a phrase, a boost and what to write, with tabs between, found {line!r:.80}"
        )
    text, boost, shown = (*cells, "", "")[:3]
    try:
        per_letter = float(boost) if boost else BOOST
    except ValueError:
        per_letter = math.nan
    if not 0 <= per_letter < math.inf:
        raise ConfigError(f"{where}: expected a boost of 0 or more nats a letter, found {boost!r:.40}")
    return text, per_letter, shown or None


def _fold(text: str, units: Units, language: str | None) -> str:
    """Return a text in the case that the units have."""
    folded = []
    for letter in unicodedata.normalize("NFC", text):
        forms = (letter, lower_case(letter, language), letter.upper())
        folded.append(next((form for form in forms if not units.unknown_characters(form)), letter))
    return "".join(folded)
