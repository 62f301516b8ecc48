"""Sentences from manifests and text files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from speechssl.data.manifest import read_manifest
from speechssl.data.normalize import has_digits, normalize_text
from speechssl.errors import LanguageModelError


def read_texts(paths: Sequence[Path], is_normalized: bool = False) -> Iterator[str]:
    """The texts of manifests (``.tsv``; utterances without one are left out) and the lines of other files.

    Args:
        paths: The files.
        is_normalized: Whether to reduce texts to their words by ``normalize_text``, leaving out those with digits.

    Raises:
        LanguageModelError: a file is missing or not in UTF-8.
        ManifestError: a manifest is malformed.
    """
    texts = (text for path in paths for text in _read(path))
    return (normalize_text(text) for text in texts if not has_digits(text)) if is_normalized else texts


def _read(path: Path) -> Iterator[str]:
    if path.suffix == ".tsv":
        yield from (utterance.text for utterance in read_manifest(path) if utterance.text is not None)
    else:
        try:
            with path.open(encoding="utf-8-sig") as lines:
                yield from lines
        except OSError as error:
            raise LanguageModelError(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise LanguageModelError(f"{path}: expected UTF-8: {error}") from None
