"""N-gram models as binary files of KenLM (Heafield, 2011, https://aclanthology.org/W11-2123), read by its package.

A file is mapped into memory rather than read: processes share it, and what is never asked for is never loaded.
"""

import math
import mmap
from functools import cached_property
from pathlib import Path
from typing import Any

from speechssl.decode.ngram import END, NEVER, START, UNKNOWN, Ngram
from speechssl.errors import LanguageModelError

_MAGIC = b"mmap lm http://kheafield.com/code"  # both kinds of tables, of any version, begin with it
_HAS_WORDS, _NUM_WORDS = 100, slice(108, 116)  # places in the header
_LN_10 = math.log(10)
_MOST_STATES = 100_000  # of contexts that are kept


def is_kenlm(path: Path) -> bool:
    """Tell a binary file of KenLM by its first bytes; what cannot be read is none."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


class KenlmModel:
    """A model with the interface of `NgramModel`, and its scores up to rounding to 32 bits."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            LanguageModelError: the package is missing, KenLM refuses the file, or its words are not in it.
        """
        try:
            import kenlm
        except ImportError:
            raise LanguageModelError(f"{path}: needs the package kenlm: pip install 'speechssl[kenlm]'") from None
        settings = kenlm.Config()
        settings.load_method = kenlm.LoadMethod.LAZY
        settings.show_progress = False
        try:
            self._model: Any = kenlm.Model(str(path), settings)
        except (OSError, RuntimeError) as error:
            raise LanguageModelError(f"{path}: {' '.join(str(error).split())}") from None
        self._new_state: Any = kenlm.State
        self.path, self.order = path, int(self._model.order)
        self.words = _read_words(path)
        self._states: dict[Ngram, Any] = {}

    def score(self, context: Ngram, word: str) -> float:
        """Return the natural logarithm of the probability of a word, or ``</s>``, after others, as `NgramModel` does.

        Where ``<unk>`` has no probability, a word that the model does not know is as likely as the least likely word.
        """
        found: float = self._model.BaseScore(self._state(self.shortened(context)), word, self._new_state()) * _LN_10
        return found if word in self._model else found + self._unknown_gain

    def shortened(self, context: Ngram) -> Ngram:
        """Return the end of a context that counts, with ``<unk>`` for words that the model does not know."""
        last = context[max(len(context) - self.order + 1, 0) :]
        return tuple(word if word in self._model else UNKNOWN for word in last)

    def _state(self, context: Ngram) -> Any:
        state = self._states.get(context)
        if state is None:
            if len(self._states) >= _MOST_STATES:
                self._states.clear()
            state = self._states[context] = self._new_state()
            if not context:
                self._model.NullContextWrite(state)
            else:
                self._model.BaseScore(self._state(context[:-1]), context[-1], state)
        return state

    @cached_property
    def _unknown_gain(self) -> float:
        own: float = self._model.BaseScore(self._state(()), UNKNOWN, self._new_state()) * _LN_10
        if own > NEVER:
            return 0.0
        return min(self.score((), word) for word in (*self.words, END)) - own

    def __reduce__(self) -> tuple[Any, ...]:
        return KenlmModel, (self.path,)


def _read_words(path: Path) -> frozenset[str]:
    """The words at the end of the file, each behind the one before it, ``<unk>`` first."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        number = int.from_bytes(content[_NUM_WORDS], "little")
        start = content.rfind(b"<unk>\0")
        words = content[start:].split(b"\0")[:-1] if content[_HAS_WORDS] and start >= 0 else []
    if len(words) != number:
        raise LanguageModelError(f"{path}: expected a file that holds its {number} words, as build_binary writes it")
    return frozenset(word.decode("utf-8", "surrogateescape") for word in words) - {START, END, UNKNOWN}
