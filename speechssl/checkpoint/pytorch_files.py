"""Single files of PyTorch, by whichever toolkit wrote them."""

from pathlib import Path

from speechssl.checkpoint.fairseq import read_fairseq
from speechssl.checkpoint.fairseq2 import read_fairseq2
from speechssl.checkpoint.foreign import shortened
from speechssl.checkpoint.pickles import read_pickle
from speechssl.checkpoint.saved_model import SavedModel
from speechssl.checkpoint.spidr import read_spidr
from speechssl.checkpoint.torchaudio_files import read_torchaudio
from speechssl.checkpoint.wav2vec import read_wav2vec
from speechssl.errors import CheckpointError

_TOOLKITS = (read_fairseq2, read_wav2vec, read_fairseq, read_torchaudio, read_spidr)


def read_file(file: Path, language: str | None = None) -> SavedModel | None:
    """Read a model of another toolkit; None if this is not a file.

    Raises:
        CheckpointError: it is damaged, holds what could run code, or is none of those that are known.
    """
    if not file.is_file():
        return None
    contents = read_pickle(file)
    for read in _TOOLKITS:
        if (model := read(contents, file)) is not None:
            return model
    found = ", ".join(shortened(str(name)) for name in list(contents)[:5]) if isinstance(contents, dict) else "none"
    expected = "expected a model of fairseq, S3PRL, torchaudio, fairseq2, WavLM or SpidR"
    raise CheckpointError(f"{file}: {expected}, found the parts {found}")
