"""What a recording of hours costs: peak memory and time of `transcribe-audio` with a base-size model.

    python tools/bench_long.py [--hours 3] [--threads 2] [--split-at-pauses] [--tiny]

The model is wav2vec 2.0 base with a CTC head, its weights at random; the recording is speech of a manifest, over and
over, as FLAC. Both are written to a temporary folder, then the command runs on them as a user runs it, in a process of
its own, and the most memory that was resident at one time is printed.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

import soundfile
import torch

from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.saved_model import ModelDescription
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.manifest import read_manifest, read_utterance
from speechssl.data.units import Letters
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig

SPEECH = Path(__file__).parents[1] / "recipes" / "prompts" / "corpus" / "pretrain_train.tsv"
VOCABULARY = Letters.from_texts(["abcdefghijklmnopqrstuvwxyz'"])
TINY = EncoderConfig(
    feature_encoder=FeatureEncoderConfig(dims=(16,) * 7),
    context=TransformerConfig(num_layers=2, model_dim=32, num_heads=2, ffn_dim=48),
)


def write_recording(file: Path, manifest: Path, hours: float) -> None:
    """Utterances one after another, from the first again after the last."""
    utterances = cycle(read_manifest(manifest))
    missing = round(hours * 3600 * SAMPLE_RATE)
    with soundfile.SoundFile(file, "w", SAMPLE_RATE, 1) as sound:
        while missing:
            samples = read_utterance(next(utterances))[:missing]
            sound.write(samples)
            missing -= len(samples)


def write_model(folder: Path, is_tiny: bool) -> None:
    """A fine-tuned model at random."""
    torch.manual_seed(0)
    encoder = TINY if is_tiny else EncoderConfig()
    model = CTCModel(encoder, len(VOCABULARY))
    folder.mkdir()
    save_model(folder, ModelDescription(kind="ctc", step=0, encoder=encoder), model.state_dict(), VOCABULARY)


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory and time of a long recording.")
    parser.add_argument("--hours", type=float, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--manifest", type=Path, default=SPEECH)
    parser.add_argument("--split-at-pauses", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, to see that the program runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_recording(folder / "long.flac", arguments.manifest, arguments.hours)
        write_model(folder / "model", arguments.tiny)
        command = [sys.executable, "-m", "speechssl.commands.transcribe", folder / "long.flac"]
        command += ["--model", folder / "model", "--device", "cpu"]
        command += ["--output-dir", folder / "out", "--format", "json,srt"]
        command += ["--split-at-pauses"] if arguments.split_at_pauses else []
        started = time.perf_counter()
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(arguments.threads)})
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in (folder / "out").iterdir())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    print(
        f"{arguments.hours:g} hours: {peak:.0f} MiB resident at most, {seconds / 60:.1f} minutes, "
        f"{arguments.hours * 3600 / seconds:.1f} s of audio a second with {arguments.threads} threads; "
        f"{size / 2**20:.1f} MiB of JSON and SRT"
    )


if __name__ == "__main__":
    main()
