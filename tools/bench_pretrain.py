"""Compare the speed and memory of training wav2vec 2.0 with transformers' Wav2Vec2ForPreTraining and Wav2Vec2ForCTC.

    python tools/bench_pretrain.py [--stage finetune] [--device cuda] [--models base own_data] [--batch-seconds 87.5]
        [--peak-tflops 989] [--variants compiled checkpointed] [--parts]

The models are recipes/models/wav2vec2_{base,large}.toml, and the small encoders of recipes/own_data and recipes/prompts
with recipes/prompts/objectives/wav2vec2.toml. Both sides are given the same waveforms, hidden frames and
distractors, drawn by our collate before the clock runs; that the same weights give the same loss is made sure of first.
An update is forward, backward and AdamW, in bfloat16 on a GPU and in float32 (never TF32) on a CPU. Both run in this
process, in turns, with the same allocator, optimizer and number of threads; but our trainer gives a small model one
thread, unless OMP_NUM_THREADS is set, and turns oneDNN off for it. The best of the repeats counts, because
whatever else the machine does only ever slows down.

--variants measures both sides compiled too: ours as by trainer.compile, theirs by its module's compile(dynamic=False),
which may leave parts of it as they are; and checkpointed: ours as by trainer.checkpoint_activations, theirs by
gradient_checkpointing_enable(). --parts adds where the time of an update goes: each part by itself, forward and
backward, with what it is given in an update; what is left of an update is the objective and the rest, such as norms and
projections between the parts. An update waits for its batch, which --workers processes read from FLAC files, as long as
it says.

Fine-tuning is that of recipes/librispeech on 100 hours, once the encoder learns too: a CTC head, frozen convolutions,
batches of the recipe's size of clips of 20 s with 15 letters a second. Nothing is hidden on either side, since theirs
would draw it while the clock runs.

What differs: dropped layers are left out there and computed here, so that every process trains every parameter; where
waveforms are normalized, theirs come normalized; they have no penalty on the features.

FLOPs are counted by model_table.py, three times the forward ones for both sides, once those of what is frozen; their
share of what the processor can do (MFU) is that of --peak-tflops or, without it, of what the product of two matrices of
2048 x 2048 reaches in the same run. Peak memory is what one side
takes by itself in its first two updates, beside what the program had before. The last table is the mean loss of our
model, before any update and without dropout, in both precisions.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from speechssl.cpu import tune_cpu

tune_cpu()  # before torch is imported

import torch  # noqa: E402
import transformers  # noqa: E402

sys.path.append(str(Path(__file__).parent))  # where the other tools are

from bench_transcribe import print_table  # noqa: E402
from training_cases import FILES, SMALL, Case, make_case  # noqa: E402
from training_parts import measure_parts  # noqa: E402
from training_speed import (  # noqa: E402
    SIDES,
    VARIANTS,
    compare_losses,
    measure_memory,
    measure_products,
    measure_speeds,
    start_counting,
)


def show(value: float | None, digits: int) -> str:
    return "out of memory" if value is None else f"{value:.{digits}f}"


def ratios(found: Sequence[float | None]) -> list[str]:
    """Of what ours and theirs gave, then of each variant."""
    pairs = zip(found[::2], found[1::2], strict=True)
    return ["-" if ours is None or theirs is None else f"{ours / theirs:.2f}" for ours, theirs in pairs]


def parts_table(case: Case, sides: Sequence[str], device: torch.device, arguments: argparse.Namespace) -> None:
    """Milliseconds, and shares of an update."""
    found = {
        side: measure_parts(side, case, device, arguments.precision, arguments.repeats, arguments.workers)
        for side in sides
    }
    totals = {side: sum(parts.values()) for side, parts in found.items()}
    rows = [
        [part, *(f"{1e3 * found[side][part]:.1f} ({found[side][part] / totals[side]:.0%})" for side in sides)]
        for part in found[sides[0]]
    ]
    rows.append(["an update", *(f"{1e3 * totals[side]:.1f}" for side in sides)])
    print(f"\nParts of an update of {case.name}, {case.label}, in milliseconds:\n")
    print_table(["part", *sides], rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the speed and memory of training with transformers.")
    parser.add_argument("--stage", choices=["pretrain", "finetune"], default="pretrain")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, help="between two looks at the clock (default: 10 on a GPU, 1 on a CPU)")
    parser.add_argument("--models", nargs="+", choices=list(FILES), default=["base", "large"])
    parser.add_argument("--batch-seconds", type=float, help="audio in a batch (default: the recipe's batches.seconds)")
    parser.add_argument(
        "--peak-tflops", type=float, help="of the processor in this precision, for the MFU (default: measured)"
    )
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=[], help="measure both sides in these ways too"
    )
    parser.add_argument("--parts", action="store_true", help="say where the time of an update goes")
    parser.add_argument("--workers", type=int, default=2, help="processes that read batches, for --parts")
    parser.add_argument("--tiny", action="store_true", help="models of no size, to see that the program runs")
    arguments = parser.parse_args()
    if arguments.stage == "finetune" and (small := sorted(SMALL.keys() & arguments.models)):
        parser.error(f"expected base or large for --stage finetune, found {' and '.join(small)}")
    is_gpu = torch.device(arguments.device).type == "cuda"
    arguments.precision = arguments.precision or ("bfloat16" if is_gpu else "float32")
    arguments.updates = arguments.updates or (10 if is_gpu else 1)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    device, precision = torch.device(arguments.device), arguments.precision
    is_gpu = device.type == "cuda"
    has_bfloat16 = is_gpu or arguments.tiny  # many a CPU is hundreds of times slower in it
    ways = ["", *(f" {variant}" for variant in arguments.variants)]
    sides = [side + way for way in ways for side in SIDES]
    compared = [f"ours / theirs{way}" for way in ways]

    cases = [make_case(arguments.stage, name, arguments.batch_seconds, arguments.tiny) for name in arguments.models]
    speeds, peaks, losses = [], [], []
    for case in cases:
        in_float32, in_bfloat16 = compare_losses(case, device, has_bfloat16)
        if in_bfloat16 is not None:
            difference = in_bfloat16 / in_float32 - 1
            loss = [f"{in_float32:.5f}", f"{in_bfloat16:.5f}", f"{100 * difference:+.3f} %"]
            losses.append([case.name, case.label, *loss])
        peak = {side: measure_memory(side, case, device, precision) for side in sides}
        peaks.append([case.name, case.label, *(show(peak[side], 0) for side in sides), *ratios([*peak.values()])])
        start_counting(device)  # gives back what the last one took
        fitting = [side for side in sides if peak[side] is not None]
        speed = measure_speeds(case, fitting, device, precision, arguments.repeats, arguments.updates)
        found = [speed.get(side) for side in sides]
        row = [case.name, case.label, *(show(value, 2) for value in found)]
        peak_flops = 1e12 * (arguments.peak_tflops or 0) or measure_products(device, precision, arguments.repeats)
        share = case.flops_per_second / peak_flops
        row += ["-" if value is None else f"{100 * share * value:.1f} %" for value in found]
        speeds.append([*row, *ratios(found)])

    name = torch.cuda.get_device_name(device) if is_gpu else f"{arguments.threads} threads"
    where = f"{name}, {precision}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"Seconds of audio trained a second, {arguments.stage}, {where}:\n")
    shares = [f"MFU of {side}" for side in sides]
    print_table(["model", "batch", *sides, *shares, *compared], speeds)
    print("\nPeak memory in MiB:\n")
    print_table(["model", "batch", *sides, *compared], peaks)
    if losses:
        print("\nbf16 against float32, our loss:\n")
        print_table(["model", "batch", "float32", "bfloat16", "difference"], losses)
    if arguments.parts:
        for case in cases:
            parts_table(case, [side for side in sides if "checkpointed" not in side], device, arguments)


if __name__ == "__main__":
    main()
