"""How well a model transcribes long recordings: as a whole, in windows, split at pauses, and as a stream.

    python tools/score_long.py MODEL MANIFEST [--minutes 10] [--pause 0.8] [--noise 10]

Joins the utterances of a manifest, in its order and with pauses between them, into recordings of so many minutes, and
scores their transcripts against the joined texts: by the model over the whole recording in one piece, in the windows
that `transcribe-audio` uses, with its `--split-at-pauses`, and by `Transcriber.stream`, whose delay is told too. The
utterances one by one are what can be expected. White noise may lie over everything. The streams of a causal model are
exact: the whole is also normalized as they are, and the texts are compared.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from speechssl.cpu import tune_cpu

tune_cpu()  # before torch is imported

import jiwer  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402

from speechssl.data.audio import SAMPLE_RATE, Waveform  # noqa: E402
from speechssl.data.manifest import read_manifest, read_utterance  # noqa: E402
from speechssl.data.recording import Recording  # noqa: E402
from speechssl.decode.words import Word, join_words  # noqa: E402
from speechssl.scoring.error_rates import score  # noqa: E402
from speechssl.transcribe import windows  # noqa: E402
from speechssl.transcribe.listener import STEP_SECONDS  # noqa: E402
from speechssl.transcribe.running_norm import RunningNorm  # noqa: E402
from speechssl.transcribe.transcriber import Transcriber  # noqa: E402

CHUNK_SECONDS = 0.1
WHOLE_AS_STREAM = "whole, normalized as a stream"


def join(manifest_path: Path, minutes: float, pause_seconds: float) -> list[tuple[Waveform, str]]:
    """Recordings with their texts; a last one that is shorter than half is left out."""
    pause = np.zeros(round(pause_seconds * SAMPLE_RATE), np.float32)
    recordings: list[tuple[Waveform, str]] = []
    parts: list[Waveform] = []
    texts: list[str] = []

    def finish() -> None:
        recordings.append((np.concatenate(parts), " ".join(texts)))
        parts.clear()
        texts.clear()

    for utterance in read_manifest(manifest_path):
        parts += [read_utterance(utterance), pause]
        texts.append(utterance.text or "")
        if sum(map(len, parts)) >= minutes * 60 * SAMPLE_RATE:
            finish()
    if parts and (not recordings or sum(map(len, parts)) > minutes * 30 * SAMPLE_RATE):
        finish()
    return recordings


def add_noise(samples: Waveform, decibels: float | None) -> Waveform:
    """White noise so far below the speech, pauses not counted."""
    if decibels is None:
        return samples
    power = float((samples[samples != 0] ** 2).mean()) * 10 ** (-decibels / 10)
    noise = np.random.default_rng(0).normal(0, power**0.5, len(samples))
    return (samples + noise).astype(np.float32)


def stream(transcriber: Transcriber, samples: Waveform) -> tuple[str, list[float], list[float]]:
    """The text, by how many seconds of audio each word became final after its end, and the seconds each step took."""
    step = round(CHUNK_SECONDS * SAMPLE_RATE)
    chunks = (samples[first : first + step] for first in range(0, len(samples), step))
    words: list[Word] = []
    delays, times = [], []
    started = time.perf_counter()
    for result in transcriber.stream(chunks, SAMPLE_RATE):
        times.append(time.perf_counter() - started)
        words += result.words
        delays += [result.seconds - word.end for word in result.words]
        started = time.perf_counter()
    return join_words(words), delays, times


@contextmanager
def running_norm(transcriber: Transcriber, samples: Sequence[Waveform]) -> Iterator[list[Waveform]]:
    """Recordings normalized as an exact stream normalizes them, and a model that does not do so again."""
    encoder = transcriber.checkpoint.model.encoder
    config, epsilon = encoder.config, encoder.config.normalization_epsilon
    encoder.config = config.model_copy(update={"normalize_waveforms": False})
    yield [waveform if epsilon is None else RunningNorm(epsilon)(waveform) for waveform in samples]
    encoder.config = config


def main() -> None:
    parser = argparse.ArgumentParser(description="Score long recordings, whole, in windows, split and as a stream.")
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--pause", type=float, default=0.8, help="seconds between utterances")
    parser.add_argument("--noise", type=float, metavar="DB", help="white noise, so many dB below the speech")
    parser.add_argument("--device")
    arguments = parser.parse_args()
    transcriber = Transcriber.load(arguments.model, arguments.device)
    utterances = read_manifest(arguments.manifest)
    joined = [
        (add_noise(samples, arguments.noise), text)
        for samples, text in join(arguments.manifest, arguments.minutes, arguments.pause)
    ]
    texts = [text for _, text in joined]
    found_texts = {}

    def transcribe(sources: Sequence[Callable[[], Waveform | Recording]], **options: Any) -> list[str]:
        return [str(transcript) for transcript in transcriber.transcribe_many(sources, **options)]

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.wav") for number in range(len(joined))]
        for file, (samples, _) in zip(files, joined, strict=True):
            soundfile.write(file, samples, SAMPLE_RATE, "FLOAT")
        sources = [partial(Recording, file) for file in files]
        found_texts["in windows"] = transcribe(sources)
        found_texts["split at pauses"] = transcribe(sources, split_at_pauses=True)
        if find_spec("silero_vad"):
            found_texts["split at pauses, by Silero VAD"] = transcribe(sources, split_at_pauses=True, vad="silero")
        windows.cut_windows.__defaults__ = (1e6, windows.CONTEXT_SECONDS)  # every recording fits into a window
        found_texts["whole"] = transcribe(sources)
    is_causal = transcriber.checkpoint.model.encoder.config.context.is_causal
    if is_causal:
        with running_norm(transcriber, [samples for samples, _ in joined]) as normalized:
            found_texts[WHOLE_AS_STREAM] = transcribe([partial(np.asarray, waveform) for waveform in normalized])
    streamed, delays, times = zip(*(stream(transcriber, samples) for samples, _ in joined), strict=True)
    found_texts["as a stream"] = list(streamed)

    lengths = ", ".join(f"{len(samples) / SAMPLE_RATE / 60:.1f}" for samples, _ in joined)
    noise = "" if arguments.noise is None else f", white noise {arguments.noise} dB below the speech"
    print(
        f"{arguments.manifest}: {len(joined)} recordings of {lengths} minutes, pauses of {arguments.pause} s{noise}\n"
    )
    print("| processed | WER % | CER % | CER % against whole |\n|---|---|---|---|")
    if arguments.noise is None:
        alone = transcribe([partial(read_utterance, utterance) for utterance in utterances])
        print_row("utterances one by one", [utterance.text or "" for utterance in utterances], alone, "-")
    for name, found in found_texts.items():
        print_row(name, texts, found, percent(jiwer.cer(found_texts["whole"], found)))
    step = CHUNK_SECONDS if is_causal else STEP_SECONDS
    delay = np.percentile(np.concatenate(delays), [50, 95, 100])
    took = 1000 * np.percentile(np.concatenate(times), [50, 100])
    print(
        f"\nIn the stream a word is final {delay[0]:.1f} s of audio after its end in the median, {delay[1]:.1f} s for "
        f"95 % of the words, {delay[2]:.1f} s at most; a step of {step} s takes "
        f"{took[0]:.0f} ms in the median, {took[1]:.0f} at most ({torch.get_num_threads()} threads)."
    )
    if is_causal:
        num_equal = sum(map(str.__eq__, found_texts[WHOLE_AS_STREAM], streamed))
        print(f"Its text is that of the {WHOLE_AS_STREAM} in {num_equal} of {len(joined)} recordings.")


def print_row(name: str, references: Sequence[str], hypotheses: Sequence[str], difference: str) -> None:
    """Of the table."""
    result = score(references, hypotheses)
    print(f"| {name} | {percent(result.words.rate)} | {percent(result.characters.rate)} | {difference} |")


def percent(rate: float) -> str:
    """Of a fraction."""
    return f"{100 * rate:.1f}"


if __name__ == "__main__":
    main()
