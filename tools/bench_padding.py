"""What it costs that padding changes nothing: time of group norm and of a whole encoder, with and without padding.

    python tools/bench_padding.py [--threads 2] [--repeats 7] [--device cpu]

Four rows of equal length, of which "padded" takes the last three for partly padding, so that both do the same work but
for the statistics over valid frames alone. The two take turns; the best time of each counts. Sizes are base's.
"""

import argparse
import time
from collections.abc import Callable

import torch

from speechssl.cpu import tune_cpu

tune_cpu()

from speechssl.model.encoder import EncoderConfig, SpeechEncoder  # noqa: E402
from speechssl.model.norm import ChannelNorm  # noqa: E402

SECONDS = 5
SHARES = torch.tensor([1.0, 0.9, 0.8, 0.7])


def best_times(*functions: Callable[[], object], repeats: int) -> list[float]:
    """The shortest time of each function in seconds, taking turns; the first turn warms up."""
    times = [[0.0] * repeats for _ in functions]
    for repeat in range(-1, repeats):
        for number, function in enumerate(functions):
            started = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[number][repeat] = time.perf_counter() - started
    return [min(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what masked statistics cost.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    samples = SECONDS * 16_000
    encoder = SpeechEncoder(EncoderConfig()).to(arguments.device).eval()
    waveforms = torch.randn(len(SHARES), samples, device=arguments.device)
    lengths = (SHARES * samples).long().to(arguments.device)
    frames = encoder.geometry.layer_lengths(samples)[0]
    norm = ChannelNorm(512).to(arguments.device)
    x = torch.randn(len(SHARES), 512, frames, device=arguments.device, requires_grad=True)
    frame_lengths = encoder.geometry.layer_lengths(lengths)[0]

    def normalize(valid: torch.Tensor | None) -> None:
        norm(x, valid).sum().backward()

    def encode(valid: torch.Tensor | None) -> None:
        with torch.inference_mode():
            encoder.contextualize(encoder.extract_frames(waveforms, valid))

    print(
        f"{len(SHARES)} x {SECONDS} s on {arguments.device}, {arguments.threads} threads, best of {arguments.repeats}"
    )
    print("| | all valid | padded | ratio |\n|---|---:|---:|---:|")
    for name, function, valid in (
        ("group norm of the first layer, forward and backward", normalize, frame_lengths),
        ("base encoder, forward", encode, lengths),
    ):
        full, padded = best_times(
            lambda f=function: f(None), lambda f=function, v=valid: f(v), repeats=arguments.repeats
        )
        print(f"| {name} | {1000 * full:.0f} ms | {1000 * padded:.0f} ms | {padded / full:.2f} |")


if __name__ == "__main__":
    main()
