"""The file of a vocabulary, whatever its units are."""

import json
from pathlib import Path

from speechssl.data.phonemes import Phonemes
from speechssl.data.pieces import Pieces
from speechssl.data.tokens import Tokens
from speechssl.data.units import Letters, Units
from speechssl.errors import CheckpointError


def load_units(path: Path) -> Units:
    """Read a vocabulary that the ``save`` of some units wrote.

    Raises:
        CheckpointError: the file is missing, or is no such vocabulary.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("symbols"), dict):
            return Letters.load(path)
        ids = content.pop("symbols")
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError("expected symbols numbered 0, 1, 2, ...")
        symbols = tuple(sorted(ids, key=ids.__getitem__))
        match content.pop("kind", None):
            case None:
                return Tokens(symbols, **(content | {"special": frozenset(content["special"])}))
            case "pieces":
                return Pieces(symbols, tuple(map(float, content["scores"])))
            case "phonemes":
                return Phonemes(symbols)
            case kind:
                raise ValueError(f"expected units that this version knows, found {kind!r}")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise CheckpointError(f"{path}: expected a vocabulary: {error}") from None
