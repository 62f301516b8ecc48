"""What exact streaming costs: the time of a chunk and of a second of audio, early and late, beside the whole recording.

    python tools/bench_stream.py [--seconds 300] [--chunks 0.1 0.5] [--base]

The encoder has the sizes of recipes/prompts/encoder.toml (--base: those of wav2vec 2.0 base), a causal context network
and a CTC head, its weights at random; the audio is noise. Compared are a transformer that attends to two seconds in
each layer, one that attends to the whole past, and convolutions. "Early" and "late" are the first and the last tenth of
the stream. A frame's symbol is known a chunk, and what the model takes for it, after its last sample. "Whole" is ten
seconds in one pass. All times are those of the processor, of one thread, so that other programs do not count.
"""

import argparse
import json
import time
import tomllib
from pathlib import Path
from typing import Any

from speechssl.cpu import tune_cpu

tune_cpu()  # before torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench_long import VOCABULARY  # noqa: E402

from speechssl.checkpoint.saved_model import CTCCheckpoint, ModelDescription  # noqa: E402
from speechssl.data.audio import SAMPLE_RATE, Waveform  # noqa: E402
from speechssl.model.ctc import CTCModel  # noqa: E402
from speechssl.model.encoder import EncoderConfig  # noqa: E402
from speechssl.model.feature_encoder import FeatureEncoderConfig  # noqa: E402
from speechssl.transcribe.listener import make_listener  # noqa: E402
from speechssl.transcribe.stream import stream_transcripts  # noqa: E402
from speechssl.transcribe.transcriber import Transcriber  # noqa: E402

RECIPE = Path(__file__).parents[1] / "recipes" / "prompts" / "encoder.toml"
SPAN_SECONDS = 2.0
WHOLE_SECONDS = 10.0
COLUMNS = (
    "attends to",
    "chunk in s",
    "ms a chunk",
    "latency in ms, 95 %",
    "real-time factor, early",
    "late",
    "whole",
    "MiB of past",
)


def encoders(is_base: bool) -> dict[str, EncoderConfig]:
    """What is compared."""
    small: dict[str, Any] = tomllib.loads(RECIPE.read_text("utf-8"))["encoder"]
    encoder = {"feature_encoder": {"norm": "layer"}, "context": {}} if is_base else small
    features = FeatureEncoderConfig.model_validate_json(json.dumps(encoder["feature_encoder"]))
    span = round(SPAN_SECONDS * SAMPLE_RATE / features.geometry.hop_samples)
    transformer = encoder["context"] | {"kind": "causal_transformer"}
    sizes = {} if is_base else {"model_dim": 128, "kernels": [2, 3, 4, 5, 6, 7, 8, 9]}
    contexts = {
        f"{SPAN_SECONDS:g} s": transformer | {"attention_frames": span},
        "the whole past": transformer,
        "convolutions": sizes | {"kind": "causal", "norm": "frame"},
    }
    return {
        name: EncoderConfig.model_validate_json(json.dumps(encoder | {"context": context}))
        for name, context in contexts.items()
    }


def build(encoder: EncoderConfig) -> Transcriber:
    """A model at random."""
    torch.manual_seed(0)
    model = CTCModel(encoder, len(VOCABULARY)).eval()
    return Transcriber(CTCCheckpoint(model, VOCABULARY, ModelDescription(kind="ctc", step=0, encoder=encoder)))


def noise(seconds: float) -> Waveform:
    """Something to hear."""
    return (0.1 * np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def time_chunks(transcriber: Transcriber, seconds: float, chunk_seconds: float) -> tuple[list[float], int]:
    """Seconds that each chunk took, and the bytes that the past takes in the end."""
    listener = make_listener(transcriber.checkpoint.model, transcriber.inference)
    assert listener.past is not None
    chunks = [noise(chunk_seconds)] * round(seconds / chunk_seconds)
    times, started = [], time.process_time()
    for _ in stream_transcripts(chunks, SAMPLE_RATE, None, listener, VOCABULARY, transcriber.geometry):
        times.append(time.process_time() - started)
        started = time.process_time()
    return times[:-1], listener.past.num_bytes  # the last result is that of the end


def time_whole(transcriber: Transcriber) -> float:
    """The best of three passes over a recording."""
    samples, times = noise(WHOLE_SECONDS), []
    for _ in range(4):  # the first one warms up
        started = time.process_time()
        transcriber.transcribe(samples, SAMPLE_RATE)
        times.append(time.process_time() - started)
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description="What exact streaming costs.")
    parser.add_argument("--seconds", type=float, default=300, help="length of each stream")
    parser.add_argument("--chunks", type=float, nargs="+", default=[0.1, 0.5], help="lengths of chunks in seconds")
    parser.add_argument("--base", action="store_true", help="sizes of wav2vec 2.0 base")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Streams of {arguments.seconds:g} s, one thread, torch {torch.__version__}:\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name, encoder in encoders(arguments.base).items():
        transcriber = build(encoder)
        whole = time_whole(transcriber) / WHOLE_SECONDS
        for chunk in arguments.chunks:
            times, num_bytes = time_chunks(transcriber, arguments.seconds, chunk)
            tenth = max(1, len(times) // 10)
            early, late = np.median(times[1 : tenth + 1]), np.median(times[-tenth:])
            latency = 1000 * (chunk + np.percentile(times[-tenth:], 95))
            print(
                f"| {name} | {chunk:g} | {1000 * late:.1f} | {latency:.0f} | {early / chunk:.3f} | {late / chunk:.3f} "
                f"| {whole:.3f} | {num_bytes / 2**20:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
