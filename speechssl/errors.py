"""The errors a user can cause, each with a message of one line: where, what was expected, what was found."""

from collections.abc import Iterator
from contextlib import contextmanager


class SpeechSSLError(Exception):
    """Any failure with a cause outside the program. Commands print it on one line and exit with status 1."""


class ConfigError(SpeechSSLError):
    """A configuration file, an override or a combination of settings is wrong."""


class AudioError(SpeechSSLError):
    """A recording cannot be read, or is not what its description says."""


class ManifestError(SpeechSSLError):
    """A manifest is malformed, or does not fit what is asked of it."""


class CheckpointError(SpeechSSLError):
    """A model or a training state is missing, damaged or of another kind than expected."""


class TrainingError(SpeechSSLError):
    """Training cannot start, or cannot go on."""


class LanguageModelError(SpeechSSLError):
    """A language model cannot be read or estimated, or does not fit the acoustic model."""


class StoppedError(SpeechSSLError):
    """Training was asked to stop, and can be resumed. Commands exit with status 75, the scheduler's "try again"."""


@contextmanager
def system_errors(kind: type[SpeechSSLError], where: object) -> Iterator[None]:
    """Raise what the system says of a file as an error of this kind."""
    try:
        yield
    except OSError as error:
        raise kind(f"{where}: {error.strerror or error}") from None
