"""Compare the speed and memory of transcription with transformers' and torchaudio's models, on the same weights.

    python tools/bench_transcribe.py [--device cuda] [--threads 2] [--repeats 3]

The model is wav2vec 2.0 base with a CTC head, its weights at random, the audio noise: what is recognized costs nothing.
All three run in this process, in turns, in float32, with the same allocator and number of threads; the best of the
repeats counts, because whatever else the machine does only ever slows down. Ours is timed from waveforms to words with
times, theirs from waveforms to the likeliest symbol of each frame. A group norm sees padding in their models, so that a
recording must come alone or gets other features: what they take for the mixed batch is the sum of its recordings one by
one. What they would take with padding is shown too, but is not a valid way to use them.

Peak memory is measured in a process that transcribes the longest recording once; on a GPU, it is what tensors took.
"""

import argparse
import copy
import ctypes
import difflib
import gc
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from speechssl.cpu import tune_cpu

tune_cpu()  # before torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torchaudio.models.wav2vec2.utils import import_huggingface_model  # noqa: E402

from speechssl.checkpoint.saved_model import CTCCheckpoint, ModelDescription  # noqa: E402
from speechssl.checkpoint.transformers_names import from_transformers  # noqa: E402
from speechssl.data.audio import SAMPLE_RATE, Waveform  # noqa: E402
from speechssl.data.units import Letters  # noqa: E402
from speechssl.model.ctc import CTCModel  # noqa: E402
from speechssl.model.encoder import EncoderConfig  # noqa: E402
from speechssl.model.transformer import TransformerConfig  # noqa: E402
from speechssl.transcribe.transcriber import Transcriber  # noqa: E402

VOCABULARY = Letters.from_texts(["abcdefghijklmnopqrstuvwxyz'äöü"])
MODELS = ("speechssl", "transformers", "torchaudio")
Transcribe = Callable[[Sequence[Waveform], bool], list[str]]  # recordings, whether theirs are padded into one batch


def random_model(is_tiny: bool) -> transformers.Wav2Vec2ForCTC:
    """The weights that all have."""
    torch.manual_seed(0)
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.Wav2Vec2Config(vocab_size=len(VOCABULARY), **(tiny if is_tiny else {}))
    return transformers.Wav2Vec2ForCTC(config).eval()


def build(name: str, peer: transformers.Wav2Vec2ForCTC, device: torch.device) -> Transcribe:
    """What turns waveforms into texts."""
    if name == "speechssl":
        transcriber = Transcriber(convert(peer, device), precision="float32")
        return lambda waveforms, _: [
            str(transcript) for transcript in transcriber.transcribe_many([partial(np.asarray, w) for w in waveforms])
        ]
    if name == "torchaudio":
        theirs = import_huggingface_model(peer).eval().to(device)
        return lambda waveforms, is_padded: by_peer(lambda *batch: theirs(*batch)[0], waveforms, is_padded, device)
    theirs = copy.deepcopy(peer).to(device)
    return lambda waveforms, is_padded: by_peer(lambda batch, _: theirs(batch).logits, waveforms, is_padded, device)


def convert(peer: transformers.Wav2Vec2ForCTC, device: torch.device) -> CTCCheckpoint:
    """Our model with a peer's weights."""
    sizes = peer.config
    context = TransformerConfig(
        num_layers=sizes.num_hidden_layers,
        model_dim=sizes.hidden_size,
        num_heads=sizes.num_attention_heads,
        ffn_dim=sizes.intermediate_size,
    )
    config = EncoderConfig(context=context)
    model = CTCModel(config, len(VOCABULARY)).eval()
    model.load_state_dict(from_transformers(peer.state_dict()))
    return CTCCheckpoint(model.to(device), VOCABULARY, ModelDescription(kind="ctc", step=0, encoder=config))


@torch.inference_mode()
def by_peer(
    model: Callable[[Tensor, Tensor | None], Tensor],
    waveforms: Sequence[Waveform],
    is_padded: bool,
    device: torch.device,
) -> list[str]:
    """One by one, or as one batch with its lengths for a model that takes some: logits, (B, S, V), to texts."""
    if is_padded:
        batch = nn.utils.rnn.pad_sequence([torch.from_numpy(waveform) for waveform in waveforms], batch_first=True)
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        rows = list(model(batch.to(device), lengths.to(device)))
    else:
        rows = [model(torch.from_numpy(waveform)[None].to(device), None)[0] for waveform in waveforms]
    return [VOCABULARY.decode(row.argmax(dim=1).unique_consecutive().tolist()) for row in rows]


def noise(seconds: float) -> Waveform:
    """Something to hear."""
    generator = np.random.default_rng(round(1000 * seconds))
    return (0.1 * generator.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def measure_times(arguments: argparse.Namespace, device: torch.device) -> list[list[str]]:
    """Rows of the table of speeds."""
    peer = random_model(arguments.tiny)
    models = {name: build(name, peer, device) for name in MODELS}
    mixed = [noise(seconds) for seconds in arguments.mixed]
    lengths = " + ".join(f"{seconds:g}" for seconds in arguments.mixed)
    cases = [(f"{seconds:g} s", [noise(seconds)], False) for seconds in arguments.seconds]
    cases += [(f"{lengths} s", mixed, False), (f"{lengths} s, theirs padded (not valid)", mixed, True)]
    best: dict[tuple[str, str], float] = {}
    for repeat in range(arguments.repeats + 1):  # the first one warms up
        for case, waveforms, is_padded in cases:
            said = {}
            for name, transcribe in models.items():
                started = time.perf_counter()
                said[name] = transcribe(waveforms, is_padded)  # as text, so that a GPU has finished
                seconds = time.perf_counter() - started
                if repeat:
                    best[case, name] = min(seconds, best.get((case, name), seconds))
            compare(case, said, is_padded)
    rows = []
    for case, waveforms, _ in cases:
        audio_seconds = sum(map(len, waveforms)) / SAMPLE_RATE
        speeds = [audio_seconds / best[case, name] for name in MODELS]
        rows.append([case, *(f"{speed:.2f}" for speed in speeds), f"{speeds[0] / max(speeds[1:]):.2f}"])
    return rows


def compare(case: str, said: dict[str, list[str]], is_padded: bool) -> None:
    """Make sure that the same model is timed: the texts agree, but for letters that rounding decides."""
    ours = said["speechssl"]
    for name in MODELS[1:]:
        errors = sum(
            1 - difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
            for a, b in zip(ours, said[name], strict=True)
        )
        if not is_padded and errors > 0.02 * len(ours):
            raise AssertionError(f"{case}: {name} says something else than speechssl")


def measure_memory(name: str, arguments: argparse.Namespace, device: torch.device) -> float:
    """MiB at most while one recording is transcribed."""
    transcribe = build(name, random_model(arguments.tiny), device)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    waveform = noise(max(arguments.seconds))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    transcribe([waveform], False)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare speed and memory with transformers and torchaudio.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[5, 15, 60], help="recordings transcribed one by one"
    )
    parser.add_argument("--mixed", type=float, nargs="+", default=[4, 6, 8, 12], help="recordings transcribed together")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, to see that the program runs")
    parser.add_argument("--memory-of", choices=MODELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.memory_of:
        print(measure_memory(arguments.memory_of, arguments, device))
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{arguments.threads} threads"
    print(f"Seconds of audio a second, {name}, torch {torch.__version__}, transformers {transformers.__version__}:\n")
    print_table(["input", *MODELS, "ours / faster peer"], measure_times(arguments, device))
    peaks = []
    for model in MODELS:
        child = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--memory-of", model],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        peaks.append(float(child.stdout.split()[-1]))
    print(f"\nPeak memory in MiB, {max(arguments.seconds):g} s:\n")
    print_table(
        [*MODELS, "ours / smaller peer"], [[*(f"{peak:.0f}" for peak in peaks), f"{peaks[0] / min(peaks[1:]):.2f}"]]
    )


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Markdown."""
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
