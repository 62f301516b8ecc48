"""fairseq's dictionaries: what the outputs of its CTC models stand for."""

from collections.abc import Collection, Sequence
from pathlib import Path

from speechssl.checkpoint.foreign import listed, shortened
from speechssl.data.tokens import Tokens
from speechssl.data.units import WORD_DELIMITER
from speechssl.errors import CheckpointError

BLANK = "<s>"
SPECIAL = (BLANK, "<pad>", "</s>", "<unk>")  # every dictionary begins with these
ENGLISH = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"  # the letters of LibriSpeech's models, as their frequency ranks them


def tokens(
    symbols: Sequence[str], where: Path, special: Collection[str] = SPECIAL, delimiter: str = WORD_DELIMITER
) -> Tokens:
    """Return the units of a dictionary, in its order; CTC's blank is the first of fairseq's special symbols.

    Args:
        symbols: All of them.
        where: The file, for errors.
        special: Those that are no part of any text.
        delimiter: What stands between words, if it is among the symbols.

    Raises:
        CheckpointError: a symbol occurs twice, or there is no blank.
    """
    if len(set(symbols)) != len(symbols):
        twice = next(symbol for number, symbol in enumerate(symbols) if symbol in symbols[:number])
        raise CheckpointError(f"{where}: expected a dictionary of different symbols, found {shortened(twice)} twice")
    if BLANK not in symbols:
        raise CheckpointError(f"{where}: expected a dictionary with {BLANK}, found {listed(symbols)}")
    has_delimiter = delimiter in symbols
    has_letters = all(len(symbol) == 1 for symbol in symbols if symbol not in special)
    return Tokens(
        tuple(symbols),
        BLANK,
        delimiter if has_delimiter else None,
        frozenset(symbols) & {*special, BLANK},
        each_is_a_word=not has_delimiter and not has_letters,  # phonemes
    )


def read_dictionary(file: Path) -> tuple[str, ...] | None:
    """Read a file with a symbol and its count a line; None if there is none.

    Raises:
        CheckpointError: it cannot be read, or is no such file.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: expected a dictionary of fairseq: {error}") from None
    symbols = list(SPECIAL)
    for number, line in enumerate(lines, 1):
        symbol, _, count = line.rstrip().rpartition(" ")
        if not symbol or not count.isdecimal():
            raise CheckpointError(f"{file}:{number}: expected a symbol and its count, found {shortened(line)}")
        symbols.append(symbol)
    return tuple(symbols)
