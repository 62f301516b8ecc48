"""Our model in PyTorch against the same model in ONNX Runtime, in float32 and with 8-bit matrices, on a CPU.

    python tools/bench_onnx.py [MODEL MANIFEST] [--repeats 5]

Without MODEL it is wav2vec 2.0 base with a CTC head and random weights, on noise: how fast, how much memory, how large.
With one, its manifest is transcribed too, greedily, and the character error rates are told. All run in this process, in
turns, from waveforms to log probabilities, on one thread; it is the processor's time that counts, the best of the
repeats, because whatever else the machine does only ever slows down. "PyTorch int8" is its dynamic quantization of the
linear maps.

Peak memory is that of a process which has only what it needs, while it reads the longest recording once.
"""

import argparse
import copy
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from speechssl.cpu import tune_cpu

tune_cpu()  # before torch is imported

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402

sys.path.append(str(Path(__file__).parent))  # where the other tools are

SAMPLE_RATE = 16_000
FILES = {"ONNX Runtime": "model.onnx", "ONNX Runtime int8": "model.int8.onnx"}
NAMES = ("PyTorch", "PyTorch int8", *FILES)

Array = npt.NDArray[np.float32]
Score = Callable[[Array, npt.NDArray[np.int64]], Array]  # (B, T) and lengths to (B, S, V)


def build(name: str, folder: Path) -> Score:
    """What turns waveforms into log probabilities."""
    if name in FILES:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = folder / name.replace(" ", "_") / FILES[name]
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda batch, lengths: session.run(["logprobs"], {"input_values": batch, "input_lengths": lengths})[0]
    import torch

    from speechssl.checkpoint.reader import load_ctc

    torch.set_num_threads(1)
    model = load_ctc(folder / "model", "cpu").model
    if name == "PyTorch int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this is to move to another package
            model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, torch.qint8)

    @torch.inference_mode()
    def score(batch: Array, lengths: npt.NDArray[np.int64]) -> Array:
        is_padded = bool((lengths < batch.shape[1]).any())
        scores: Array = model(
            torch.from_numpy(batch), torch.from_numpy(lengths) if is_padded else None
        ).log_probs.numpy()
        return scores

    return score


def prepare(source: Path | None, folder: Path, is_tiny: bool) -> None:
    """Put the model in all forms into a folder."""
    from bench_long import write_model

    from speechssl.checkpoint.native import save_model
    from speechssl.checkpoint.reader import read_model
    from speechssl.export.onnx import write_onnx

    if source is None:
        write_model(folder / "model", is_tiny)
    else:
        (folder / "model").mkdir()
        saved = read_model(source)
        save_model(folder / "model", saved.description, saved.weights, saved.vocabulary)
    for name in FILES:
        (folder / name.replace(" ", "_")).mkdir()
        write_onnx(folder / name.replace(" ", "_"), read_model(folder / "model"), int8="int8" in name)


def noise(lengths: Sequence[float]) -> tuple[Array, npt.NDArray[np.int64]]:
    """A padded batch of so many seconds each."""
    samples = np.array([round(seconds * SAMPLE_RATE) for seconds in lengths])
    batch = 0.1 * np.random.default_rng(0).standard_normal((len(samples), samples.max()), np.float32)
    for row, number in zip(batch, samples, strict=True):
        row[number:] = 0
    return batch, samples


def measure_times(models: dict[str, Score], batches: Sequence[Sequence[float]], repeats: int) -> list[list[str]]:
    """Rows of the table of speeds; ratios are to PyTorch in float32."""
    rows = []
    for lengths in batches:
        batch, samples = noise(lengths)
        best = dict.fromkeys(models, float("inf"))
        for repeat in range(repeats + 1):  # the first one warms up
            for name, score in models.items():
                started = time.process_time()
                score(batch, samples)
                if repeat:
                    best[name] = min(best[name], time.process_time() - started)
        speeds = [sum(lengths) / best[name] for name in models]
        cells = [f"{speed:.2f} ({speed / speeds[0]:.2f})" for speed in speeds]
        rows.append([" + ".join(f"{seconds:g}" for seconds in lengths) + " s", *cells])
    return rows


def measure_errors(models: dict[str, Score], folder: Path, manifest: Path) -> list[str]:
    """The character error rate of each on a manifest."""
    from speechssl.checkpoint.reader import read_model
    from speechssl.data.manifest import read_manifest, read_utterance
    from speechssl.scoring.error_rates import score as score_texts

    units = read_model(folder / "model").vocabulary
    assert units is not None
    utterances = list(read_manifest(manifest))
    waveforms = [read_utterance(utterance) for utterance in utterances]
    rates = []
    for score in models.values():
        texts = []
        for waveform in waveforms:
            path = score(waveform[None], np.array([len(waveform)]))[0].argmax(axis=1)
            kept = path[np.append(True, path[1:] != path[:-1])]
            texts.append(units.decode(int(unit) for unit in kept if unit != units.blank_id))
        rates.append(score_texts([utterance.text or "" for utterance in utterances], texts).cer)
    return [f"{100 * rate:.2f}" for rate in rates]


def peak_memory(name: str, folder: Path, seconds: float) -> float:
    """MiB of this process while a recording is read."""
    score = build(name, folder)
    score(*noise([seconds]))
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**10


def file_size(name: str, folder: Path) -> str:
    """MB of the weights; PyTorch makes its integers anew each time."""
    if name == "PyTorch int8":
        return "-"
    file = folder / name.replace(" ", "_") / FILES[name] if name in FILES else folder / "model" / "model.safetensors"
    return f"{file.stat().st_size / 1e6:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare PyTorch with ONNX Runtime, in float32 and int8.")
    parser.add_argument("model", type=Path, nargs="?", help="a fine-tuned model")
    parser.add_argument("manifest", type=Path, nargs="?", help="what it is scored on")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, nargs="+", default=[5, 15], help="recordings read one by one")
    parser.add_argument("--mixed", type=float, nargs="+", default=[4, 6, 8, 12], help="recordings read together")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, to see that the program runs")
    parser.add_argument("--memory-of", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        name, folder = arguments.memory_of
        print(peak_memory(name, Path(folder), max(arguments.seconds)))
        return
    from bench_transcribe import print_table

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(arguments.model, folder, arguments.tiny)
        models = {name: build(name, folder) for name in NAMES}
        batches = [*([seconds] for seconds in arguments.seconds), arguments.mixed]
        print("Seconds of audio a second of one core, and as multiples of PyTorch in float32:\n")
        print_table(["input", *NAMES], measure_times(models, batches, arguments.repeats))
        rows = [["file, MB", *(file_size(name, folder) for name in NAMES)]]
        peaks = []
        for name in NAMES:
            command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name, str(folder)]
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peaks.append(f"{float(child.stdout.split()[-1]):.0f}")
        rows.append([f"peak memory, {max(arguments.seconds):g} s, MiB", *peaks])
        if arguments.manifest:
            rows.append([f"CER % on {arguments.manifest.name}", *measure_errors(models, folder, arguments.manifest)])
        print()
        print_table(["", *NAMES], rows)


if __name__ == "__main__":
    main()
