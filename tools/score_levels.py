"""Does a model hear the same at any level and offset?

    python tools/score_levels.py MODEL MANIFEST [--sentences 40]

Scores some utterances of a manifest, spread evenly over it, at several levels and offsets, with the steps of 16 bits
and their clipping: in one piece each, split at pauses, and as a stream. Then it counts the letters that the model finds
where nothing is said.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from speechssl.cpu import tune_cpu

tune_cpu()  # before torch is imported

import numpy as np  # noqa: E402

from speechssl.data.audio import SAMPLE_RATE, Waveform  # noqa: E402
from speechssl.data.manifest import read_manifest, read_utterance  # noqa: E402
from speechssl.scoring.error_rates import score  # noqa: E402
from speechssl.transcribe.transcriber import Transcriber  # noqa: E402

LEVELS = (0, 6, -6, -12, -18, -24, -30, -40)  # dB; the first is what the others are compared with
OFFSETS = (0.01, 0.02, 0.05, 0.1)
NOISES = (-100, -90, -80, -60, -40)  # dBFS
SILENT_SECONDS = 60
WAYS = ("in one piece", "split at pauses", "as a stream")
_STEPS = 32768


def in_16_bits(samples: Waveform, decibels: float = 0.0, offset: float = 0.0) -> Waveform:
    """What a file of 16 bits would hold."""
    scaled = np.round(_STEPS * (samples * 10 ** (decibels / 20) + offset))
    return (scaled.clip(-_STEPS, _STEPS - 1) / _STEPS).astype(np.float32)


def transcribe(transcriber: Transcriber, recordings: Iterable[Waveform], way: str) -> list[str]:
    """The texts."""
    if way != "as a stream":
        sources = [lambda samples=samples: samples for samples in recordings]
        return [str(found) for found in transcriber.transcribe_many(sources, split_at_pauses=way == "split at pauses")]
    texts = []
    for samples in recordings:
        chunks = np.array_split(samples, max(1, len(samples) * 10 // SAMPLE_RATE))
        results = transcriber.stream(chunks, SAMPLE_RATE)
        texts.append(" ".join(word.text for result in results for word in result.words))
    return texts


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Score recordings at several levels and offsets.")
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--sentences", type=int, default=40)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    transcriber = Transcriber.load(arguments.model, arguments.device)
    utterances = list(read_manifest(arguments.manifest))
    chosen = utterances[:: max(1, len(utterances) // arguments.sentences)][: arguments.sentences]
    recordings = [read_utterance(utterance) for utterance in chosen]
    texts = [utterance.text or "" for utterance in chosen]
    seconds = sum(map(len, recordings)) / SAMPLE_RATE
    print(f"{arguments.manifest}: {len(chosen)} utterances, {seconds:.0f} s\n")
    print(f"| CER % | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    changes = [(f"{level:+d} dB", {"decibels": level}) for level in LEVELS]
    changes += [(f"offset {offset}", {"offset": offset}) for offset in OFFSETS]
    for name, change in changes:
        changed = [in_16_bits(samples, **change) for samples in recordings]
        found = (score(texts, transcribe(transcriber, changed, way)).characters.rate for way in WAYS)
        print(f"| {name} | {' | '.join(f'{100 * rate:.1f}' for rate in found)} |")
    print(f"\n| letters in {SILENT_SECONDS} s | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    noise = np.random.default_rng(0).standard_normal(SILENT_SECONDS * SAMPLE_RATE).astype(np.float32)
    for name, level in [("silence", -np.inf), *((f"white noise of {level} dBFS", level) for level in NOISES)]:
        quiet = [in_16_bits(noise, level)]
        counts = (len(transcribe(transcriber, quiet, way)[0].replace(" ", "")) for way in WAYS)
        print(f"| {name} | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    main()
