"""The units of the texts that a model learns."""

import warnings
from typing import Literal

from speechssl.data.manifest import Manifest
from speechssl.data.phonemes import Phonemes
from speechssl.data.units import WORD_DELIMITER, Letters, Units, list_characters
from speechssl.errors import ManifestError


def make_vocabulary(kind: Literal["letters", "phonemes"], train_manifest: Manifest, dev_manifest: Manifest) -> Units:
    """The units of both manifests: ten minutes of labels may lack a rare one, which dev then counts as an error."""
    for manifest in (train_manifest, dev_manifest):
        for number, utterance in enumerate(manifest):
            if WORD_DELIMITER in (utterance.text or ""):
                where = manifest.where(number)
                raise ManifestError(f"{where}: expected a text without '{WORD_DELIMITER}', found {utterance.text!r}")
    texts = [utterance.text or "" for utterance in (*train_manifest, *dev_manifest)]
    make = Letters.from_texts if kind == "letters" else Phonemes.from_texts
    vocabulary = make(texts)
    learned = make(texts[: len(train_manifest)]).symbols
    unlearned = [symbol for symbol in vocabulary.symbols if symbol not in learned]
    if unlearned:
        lacking = f"{kind} that {train_manifest.path} lacks cannot be learned: {list_characters(unlearned)}"
        warnings.warn(f"{dev_manifest.path}: {lacking}", stacklevel=3)
    return vocabulary
