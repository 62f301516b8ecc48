"""Long recordings with their texts -> utterances: cut in pauses, without what text and speech disagree about."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from speechssl.data.manifest import Utterance
from speechssl.data.recording import audio_info
from speechssl.data.scan import require_path_of_manifest
from speechssl.errors import SpeechSSLError
from speechssl.terminal import print_error, print_status, progress
from speechssl.transcribe.align import AlignedWord, Alignment, Status
from speechssl.transcribe.align_job import Pair
from speechssl.transcribe.transcriber import Transcriber

PAUSE_SECONDS = 0.2  # between two words: there may be a cut
LONG_PAUSE_SECONDS = 1.0  # there is one
MARGIN_SECONDS = 0.3  # of a pause that belongs to what is said beside it, at most

AGREES = "cut"
DIFFERS = "text and speech differ"
TOO_LONG = "no pause comes in time"


@dataclass(frozen=True)
class Passage:
    """Words said one after another, between two pauses."""

    words: tuple[AlignedWord, ...]
    start: float  # in seconds, with half of the pause before, as the end
    end: float

    @property
    def text(self) -> str:
        """As it was written."""
        return " ".join(word.text for word in self.words)

    @property
    def agrees(self) -> bool:
        """Whether all of the text is said, and nothing else is."""
        return all(word.status is Status.SAID for word in self.words)


def find_passages(alignment: Alignment) -> list[Passage]:
    """Divide what is said at its pauses. Words of the text that are not said belong to what is said around them."""
    groups: list[list[AlignedWord]] = [[]]
    last_end: float | None = None
    is_after_unsaid = False
    for word in alignment.words:
        if word.start is not None:
            if last_end is not None and not is_after_unsaid and word.start - last_end >= PAUSE_SECONDS:
                groups.append([])
            last_end = word.end
        is_after_unsaid = word.start is None
        groups[-1].append(word)
    spans = []
    for group in groups:
        timed = [(word.start, word.end) for word in group if word.start is not None and word.end is not None]
        if timed:
            spans.append((tuple(group), timed[0][0], timed[-1][1]))
    passages = []
    for number, (words, start, end) in enumerate(spans):
        before = (start - spans[number - 1][2]) / 2 if number else start
        after = (spans[number + 1][1] - end) / 2 if number + 1 < len(spans) else alignment.seconds - end
        passages.append(Passage(words, start - min(before, MARGIN_SECONDS), end + min(after, MARGIN_SECONDS)))
    return passages


def join_passages(passages: Sequence[Passage], max_seconds: float) -> Iterator[Passage]:
    """Join those that agree and follow one another within a second, to at most ``max_seconds``; others stay alone."""
    pending: Passage | None = None
    for passage in passages:
        if pending is None:
            pending = passage
            continue
        is_near = passage.start - pending.end < LONG_PAUSE_SECONDS - 2 * MARGIN_SECONDS
        if is_near and pending.agrees and passage.agrees and passage.end - pending.start <= max_seconds:
            pending = Passage((*pending.words, *passage.words), pending.start, passage.end)
        else:
            yield pending
            pending = passage
    if pending is not None:
        yield pending


def cut_recordings(transcriber: Transcriber, pairs: Sequence[Pair], max_seconds: float) -> tuple[list[Utterance], bool]:
    """Align recordings with their texts and cut them into utterances.

    What was kept and what was left out, and why, is said on stderr, as is each recording that cannot be read.

    Args:
        transcriber: Of any CTC model.
        pairs: Recordings and what is said in each.
        max_seconds: Of an utterance.

    Returns:
        The utterances, and whether all recordings could be read.
    """
    utterances: list[Utterance] = []
    named = [pair for pair in pairs if _can_be_named(pair)]
    seconds = dict.fromkeys((AGREES, DIFFERS, TOO_LONG), 0.0)
    total, is_fine = 0.0, len(named) == len(pairs)
    results = transcriber.align_many((pair.open for pair in named), (pair.text for pair in named))
    with progress("", len(named)) as advance:
        for pair, result in zip(named, results, strict=True):
            advance()
            if isinstance(result, SpeechSSLError):
                print_error(result)
                is_fine = False
                continue
            for note in result.notes:
                print_status(f"{pair.path}: {note}")
            total += result.seconds
            info = audio_info(pair.path)
            for passage in join_passages(find_passages(result), max_seconds):
                length = passage.end - passage.start
                reason = DIFFERS if not passage.agrees else TOO_LONG if length > max_seconds else AGREES
                seconds[reason] += length
                if reason == AGREES:
                    start = round(passage.start * info.sample_rate)
                    stop = min(round(passage.end * info.sample_rate), info.num_samples)
                    utterances.append(Utterance(pair.path, stop - start, start, info.sample_rate, passage.text))
    left_out = ", ".join(f"{seconds[reason] / 60:.1f} where {reason}" for reason in (DIFFERS, TOO_LONG))
    left_out += f", {(total - sum(seconds.values())) / 60:.1f} of pauses"
    print_status(f"{seconds[AGREES] / 60:.1f} of {total / 60:.1f} minutes are utterances; left out: {left_out}")
    return utterances, is_fine


def _can_be_named(pair: Pair) -> bool:
    """Whether a manifest can name the recording; before hours of work, an error says that it cannot."""
    try:
        require_path_of_manifest(pair.path)
    except SpeechSSLError as error:
        print_error(error)
        return False
    return True
