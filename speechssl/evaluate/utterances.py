"""The utterances of a manifest, with what is said in them, as batches."""

from collections.abc import Iterable, Iterator

from speechssl.data.audio import Waveform
from speechssl.data.manifest import Manifest, read_utterance
from speechssl.errors import AudioError, ManifestError

BATCH_SECONDS = 60.0


def read_references(manifest: Manifest) -> list[str]:
    """What is said in each utterance.

    Raises:
        ManifestError: an utterance has no text, or there are none.
    """
    if not len(manifest):
        raise ManifestError(f"{manifest.path}: expected utterances, found none")
    references = []
    for index, utterance in enumerate(manifest):
        if utterance.text is None:
            raise ManifestError(f"{manifest.where(index)}: expected a text to score against, found none")
        references.append(utterance.text)
    return references


def read_batches(
    manifest: Manifest, batch_seconds: float = BATCH_SECONDS, indices: Iterable[int] | None = None
) -> Iterator[tuple[list[int], list[Waveform]]]:
    """Utterances by falling length, so that padding is short and what does not fit in memory shows at once.

    Args:
        manifest: The utterances.
        batch_seconds: Bound on the audio of a batch, padding included; a longer utterance is a batch of its own.
        indices: Which of them; None is all.

    Yields:
        Indices and waveforms.

    Raises:
        AudioError: a recording cannot be read.
    """
    batch: list[int] = []
    chosen = range(len(manifest)) if indices is None else indices
    seconds = manifest.seconds
    for index in sorted(chosen, key=lambda index: -seconds[index]):
        if batch and seconds[batch[0]] * (len(batch) + 1) > batch_seconds:
            yield batch, [_read(manifest, index) for index in batch]
            batch = []
        batch.append(index)
    if batch:
        yield batch, [_read(manifest, index) for index in batch]


def _read(manifest: Manifest, index: int) -> Waveform:
    try:
        return read_utterance(manifest[index])
    except AudioError as error:
        raise AudioError(f"{manifest.where(index)}: {error}") from None
