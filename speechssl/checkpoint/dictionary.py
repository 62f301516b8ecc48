"""fairseq's dictionaries: what the outputs of its CTC models stand for."""

from collections.abc import Sequence
from pathlib import Path

from speechssl.checkpoint.pickles import shortened
from speechssl.data.units import BLANK, WORD_DELIMITER, Letters
from speechssl.errors import CheckpointError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # every dictionary begins with these; CTC's blank is the first
ENGLISH = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"  # the letters of LibriSpeech's models, as their frequency ranks them


def letters(symbols: Sequence[str], where: Path) -> Letters:
    """Return the units of a dictionary, in its order.

    Raises:
        CheckpointError: a symbol occurs twice, or there is no word delimiter or no blank.
    """
    if len(set(symbols)) != len(symbols):
        twice = next(symbol for number, symbol in enumerate(symbols) if symbol in symbols[:number])
        raise CheckpointError(f"{where}: expected a dictionary of different symbols, found {shortened(twice)} twice")
    for needed in (SPECIAL[0], WORD_DELIMITER):
        if needed not in symbols:
            found = ", ".join(shortened(symbol) for symbol in symbols[:8])
            raise CheckpointError(f"{where}: expected a dictionary of letters with {needed}, found {found}, ...")
    return Letters(tuple(BLANK if symbol == SPECIAL[0] else symbol for symbol in symbols))


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
