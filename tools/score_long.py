"""How well a model transcribes long recordings: as a whole, in windows, and split at pauses.

    python tools/score_long.py MODEL MANIFEST [--minutes 10] [--pause 0.8]

Joins the utterances of a manifest, in its order and with pauses between them, into recordings of so many minutes, and
scores what is heard in them against the joined texts: by the model over the whole recording at once, in the windows
that `transcribe-audio` uses, and with its `--split-at-pauses`. The utterances one by one are what can be expected.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

from speechssl.cpu import tune_cpu

tune_cpu()  # before torch is imported

import jiwer  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402

from speechssl.data.audio import SAMPLE_RATE, Waveform  # noqa: E402
from speechssl.data.manifest import read_manifest, read_utterance  # noqa: E402
from speechssl.data.recording import Recording  # noqa: E402
from speechssl.scoring import score  # noqa: E402
from speechssl.transcribe import transcriber as transcriber_module  # noqa: E402
from speechssl.transcribe.transcriber import Transcriber  # noqa: E402


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


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Score long recordings, whole, in windows and split at pauses.")
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--pause", type=float, default=0.8, help="seconds between utterances")
    parser.add_argument("--device")
    arguments = parser.parse_args()
    transcriber = Transcriber.load(arguments.model, arguments.device)
    manifest = read_manifest(arguments.manifest)
    alone = transcriber.transcribe_many([partial(read_utterance, utterance) for utterance in manifest])
    joined = join(arguments.manifest, arguments.minutes, arguments.pause)
    texts = [text for _, text in joined]
    heard = {}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.wav") for number in range(len(joined))]
        for file, (samples, _) in zip(files, joined, strict=True):
            soundfile.write(file, samples, SAMPLE_RATE, "FLOAT")
        sources = [partial(Recording, file) for file in files]
        heard["windows"] = [str(transcript) for transcript in transcriber.transcribe_many(sources)]
        heard["split at pauses"] = [
            str(transcript) for transcript in transcriber.transcribe_many(sources, split_at_pauses=True)
        ]
        transcriber_module.WINDOW_SECONDS = 1e6  # every recording fits into a window
        heard["whole"] = [str(transcript) for transcript in transcriber.transcribe_many(sources)]
    lengths = ", ".join(f"{len(samples) / SAMPLE_RATE / 60:.1f}" for samples, _ in joined)
    print(
        f"{arguments.manifest}: {len(joined)} recordings of {lengths} minutes, {arguments.pause} s between utterances\n"
    )
    print("| heard | WER % | CER % | CER % against whole |\n|---|---|---|---|")
    one_by_one = score([utterance.text or "" for utterance in manifest], [str(transcript) for transcript in alone])
    print(f"| utterances one by one | {percent(one_by_one.words.rate)} | {percent(one_by_one.characters.rate)} | - |")
    for name in ("whole", "windows", "split at pauses"):
        result = score(texts, heard[name])
        difference = jiwer.cer(heard["whole"], heard[name])
        rates = f"{percent(result.words.rate)} | {percent(result.characters.rate)}"
        print(f"| {name} | {rates} | {percent(difference)} |")


def percent(rate: float) -> str:
    """Of a fraction."""
    return f"{100 * rate:.1f}"


if __name__ == "__main__":
    main()
