"""How exactly `speechssl align` finds words, and whether it sees where text and speech differ.

    python tools/score_alignment.py MODEL MANIFEST [--pause 0.5] [--changed 0.06]

Joins the utterances of a manifest, with pauses between them, into one recording, and aligns it with their texts. Where
each utterance is, is known, and its level says where its sound begins and ends in it: at the first and the last 10 ms
that are less than 30 dB below its loudest 10 ms. There the first word should begin and the last one end. Then some
words are taken out of the text, and others put in at random places: the first should be found as said alone, the second
as not said; and what `speechssl manifest --from-long` cuts from this text should have neither.
"""

import argparse
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from speechssl.cpu import tune_cpu

tune_cpu()  # before torch is imported

import numpy as np  # noqa: E402

from speechssl.data.audio import SAMPLE_RATE, Waveform  # noqa: E402
from speechssl.data.manifest import read_manifest, read_utterance  # noqa: E402
from speechssl.transcribe.align import AlignedWord, Status  # noqa: E402
from speechssl.transcribe.passages import find_passages, join_passages  # noqa: E402
from speechssl.transcribe.transcriber import Transcriber  # noqa: E402

STEP = SAMPLE_RATE // 100
MAX_SECONDS = 15.0  # of an utterance


def sound(samples: Waveform) -> tuple[float, float]:
    """Seconds at which the sound of an utterance begins and ends."""
    steps = samples[: len(samples) // STEP * STEP].reshape(-1, STEP)
    level = (steps.astype(np.float64) ** 2).mean(axis=1)
    loud = np.flatnonzero(level > level.max() / 1000)
    return loud[0] * STEP / SAMPLE_RATE, (loud[-1] + 1) * STEP / SAMPLE_RATE


def texts_words(words: Sequence[AlignedWord]) -> list[AlignedWord]:
    return [word for word in words if word.status is not Status.NOT_IN_TEXT]


def is_all_said(origins: Sequence[int | None], owners: Sequence[int], kept: Set[int | None]) -> bool:
    """Whether words follow one another as they were said, and none that was taken out stands beside them."""
    known = [origin for origin in origins if origin is not None]
    if len(known) < len(origins) or known != list(range(known[0], known[0] + len(known))):
        return False
    beside = [(known[0] - 1, known[0]), (known[-1] + 1, known[-1])]
    return not any(
        0 <= other < len(owners) and owners[other] == owners[word] and other not in kept for other, word in beside
    )


@dataclass
class Joined:
    """Utterances in one recording; times in seconds."""

    samples: Waveform
    words: list[str]
    owners: list[int]  # the utterance of each word
    spans: list[tuple[float, float]]  # of each utterance
    sounds: list[tuple[float, float]]  # likewise, from its first sound to its last one


def join(manifest: Path, pause_seconds: float) -> Joined:
    """Join the utterances with words, and a pause after each."""
    pause = np.zeros(round(pause_seconds * SAMPLE_RATE), np.float32)
    parts: list[Waveform] = []
    joined, start = Joined(pause, [], [], [], []), 0.0
    for utterance in read_manifest(manifest):
        samples = read_utterance(utterance)
        spoken = (utterance.text or "").split()
        if not spoken:
            continue
        joined.words += spoken
        joined.owners += [len(joined.spans)] * len(spoken)
        begin, end = sound(samples)
        joined.spans.append((start, start + len(samples) / SAMPLE_RATE))
        joined.sounds.append((start + begin, start + end))
        parts += [samples, pause]
        start += (len(samples) + len(pause)) / SAMPLE_RATE
    joined.samples = np.concatenate(parts)
    return joined


def print_borders(joined: Joined, found: Sequence[AlignedWord], hop_seconds: float) -> None:
    """Say how far first and last words are from the sound, and what is wrong though the text is right."""
    firsts, lasts, outside = [], [], 0
    owners = joined.owners
    for number, (word, owner) in enumerate(zip(found, owners, strict=True)):
        if word.start is None or word.end is None:
            continue
        outside += not joined.spans[owner][0] <= word.start <= word.end <= joined.spans[owner][1] + hop_seconds
        if number == 0 or owners[number - 1] != owner:
            firsts.append(1000 * (word.start - joined.sounds[owner][0]))
        if number + 1 == len(owners) or owners[number + 1] != owner:
            lasts.append(1000 * (word.end - joined.sounds[owner][1]))
    unsaid = sum(word.status is Status.NOT_SAID for word in found)
    print(f"* {outside} words lie outside their utterance, {unsaid} pass for not said")
    for name, values in (("first words begin", firsts), ("last words end", lasts)):
        low, middle, high = np.percentile(values, [10, 50, 90])
        print(f"* {name} {middle:+.0f} ms from the sound (median; 10 and 90 %: {low:+.0f}, {high:+.0f})")


def change(words: Sequence[str], share: float) -> tuple[list[str], list[int | None]]:
    """Take a share of words out and put others in; return the text, and which word each is, None if it is put in."""
    generator = np.random.default_rng(0)
    text: list[str] = []
    origins: list[int | None] = []
    for number, word in enumerate(words):
        draw = generator.random()
        if draw < share:
            continue
        if draw > 1 - share:
            text.append(str(generator.choice(words)))
            origins.append(None)
        text.append(word)
        origins.append(number)
    return text, origins


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the alignment of joined utterances.")
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two utterances")
    parser.add_argument("--changed", type=float, default=0.06, help="share of words taken out, and put in")
    arguments = parser.parse_args()
    joined = join(arguments.manifest, arguments.pause)
    recording, words, owners = joined.samples, joined.words, joined.owners
    transcriber = Transcriber.load(arguments.model)
    hop_seconds = transcriber.geometry.hop_samples / SAMPLE_RATE
    minutes = len(recording) / SAMPLE_RATE / 60
    frames = f"a frame every {1000 * hop_seconds:.0f} ms"
    print(f"{len(joined.spans)} utterances, {minutes:.1f} minutes, {len(words)} words, {frames}\n")
    print_borders(joined, texts_words(transcriber.align(recording, " ".join(words), SAMPLE_RATE).words), hop_seconds)

    text, origins = change(words, arguments.changed)
    alignment = transcriber.align(recording, " ".join(text), SAMPLE_RATE)
    aligned = alignment.words
    statuses = [word.status for word in texts_words(aligned)]
    seen = sum(status is Status.NOT_SAID for status, origin in zip(statuses, origins, strict=True) if origin is None)
    wrong = statuses.count(Status.NOT_SAID) - seen
    heard = sum(word.status is Status.NOT_IN_TEXT for word in aligned)
    print(f"* of {origins.count(None)} words put in {seen} are found as not said, and {wrong} of the others")
    taken_out = len(words) + origins.count(None) - len(text)
    print(f"* of {taken_out} words taken out {heard} are found as said alone (neighbors as one)")

    positions = {id(word): number for number, word in enumerate(texts_words(aligned))}
    cut = [passage for passage in join_passages(find_passages(alignment), MAX_SECONDS) if passage.agrees]
    is_right = [
        is_all_said([origins[positions[id(word)]] for word in passage.words], owners, set(origins)) for passage in cut
    ]
    minutes = sum(passage.end - passage.start for passage in cut) / 60
    print(
        f"* {minutes:.1f} minutes become {len(cut)} utterances, of which {len(cut) - sum(is_right)} have a wrong text"
    )


if __name__ == "__main__":
    main()
