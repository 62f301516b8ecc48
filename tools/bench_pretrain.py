"""Compare the speed and memory of training wav2vec 2.0 with transformers' Wav2Vec2ForPreTraining and Wav2Vec2ForCTC.

    python tools/bench_pretrain.py [--stage finetune] [--device cuda] [--models base large] [--batch-seconds 87.5]
        [--peak-tflops 989] [--compiled]

The models are recipes/models/wav2vec2_{base,large}.toml. Both sides are given the same waveforms, hidden frames and
distractors, drawn by our collate before the clock runs; that the same weights give the same loss is made sure of first.
An update is forward, backward and AdamW, in bfloat16 on a GPU and in float32 (never TF32) on a CPU. Both run in this
process, in turns, with the same allocator, optimizer and number of threads. With --compiled both are measured compiled
too: ours as by trainer.compile, theirs by its module's compile(dynamic=False), which may leave parts of it as they are.
The best of the repeats counts, because whatever else the machine does only ever slows down.

Fine-tuning is that of recipes/librispeech on 100 hours, once the encoder learns too: a CTC head, frozen convolutions,
batches of the recipe's size of clips of 20 s with 15 letters a second. Nothing is hidden on either side, since theirs
would draw it while the clock runs.

What differs: dropped layers are left out there and computed here, so that every process trains every parameter; where
waveforms are normalized, theirs come normalized; they have no penalty on the features.

FLOPs are counted by model_table.py, three times the forward ones for both sides, once those of what is frozen; their
share of what the processor can do (MFU) is told if --peak-tflops says how much that is. Peak memory is what one side
takes by itself in its first two updates, beside what the program had before. The last table is the mean loss of our
model, before any update and without dropout, in both precisions.
"""

import argparse
import ctypes
import gc
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.cpu import tune_cpu

tune_cpu()  # before torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from speechssl.checkpoint.transformers_config import to_transformers_config  # noqa: E402
from speechssl.checkpoint.transformers_names import from_transformers  # noqa: E402
from speechssl.data.audio import SAMPLE_RATE  # noqa: E402
from speechssl.data.batches import Example, TaskBatch  # noqa: E402
from speechssl.model.ctc import CTCModel  # noqa: E402
from speechssl.model.device import autocast, resolve_precision  # noqa: E402
from speechssl.model.encoder import EncoderConfig, normalize_waveforms  # noqa: E402
from speechssl.objective.contrastive import ContrastiveBatch  # noqa: E402
from speechssl.objective.objective import Losses, weighted_sum  # noqa: E402
from speechssl.train import compiled  # noqa: E402
from speechssl.train.finetune import FinetuneConfig  # noqa: E402
from speechssl.train.finetune_model import FinetuneModel  # noqa: E402
from speechssl.train.labeled import LabeledBatch, LabeledCollate, RegularizationConfig  # noqa: E402
from speechssl.train.optimizer import make_optimizer  # noqa: E402
from speechssl.train.pretrain import PretrainConfig, PretrainModel  # noqa: E402

sys.path.append(str(Path(__file__).parent))  # where the other tools are

from bench_transcribe import VOCABULARY, print_table  # noqa: E402
from model_table import ctc_head, model_parts  # noqa: E402

RECIPES = Path(__file__).parents[1] / "recipes"
SIDES = ("speechssl", "transformers")
COMPILED_SIDES = tuple(f"{side} compiled" for side in SIDES)
FINETUNED_SECONDS = 20.0  # of a clip: LibriSpeech's training has few as long and none over 25
LETTERS_PER_SECOND = 15
NO_DATA = ("data.train=none", "data.dev=none", "data.license=none")
TINY = (
    "encoder.feature_encoder.dims=[16, 16, 16, 16, 16, 16, 16]",
    "encoder.context.num_layers=2",
    "encoder.context.model_dim=32",
    "encoder.context.num_heads=2",
    "encoder.context.ffn_dim=48",
    "objective.comparison_dim=16",
    "objective.quantizer.codebook_size=8",
    "objective.quantizer.code_dim=12",
)
TINY_BATCHES = ("batches.seconds=4", "batches.max_seconds=2")
Theirs = transformers.Wav2Vec2ForPreTraining | transformers.Wav2Vec2ForCTC
Update = Callable[[], None]


@dataclass(frozen=True)
class Case(ABC):
    """A stage in the training of a model of the recipes, and a batch for it.

    Attributes:
        name: Of the model.
        pretraining: Where the model comes from.
        config: What is trained.
        batch: On the CPU: clips of one length, and what to predict.
    """

    name: str
    pretraining: PretrainConfig
    config: PretrainConfig | FinetuneConfig
    batch: TaskBatch

    @property
    @abstractmethod
    def flops_per_second(self) -> float:
        """FLOPs of training on a second of audio."""

    @abstractmethod
    def build_ours(self) -> nn.Module:
        """Our model, whose call with (batch, step) returns ``Losses``."""

    @abstractmethod
    def compiled_part(self, ours: nn.Module) -> nn.Module:
        """What of our model is compiled."""

    @abstractmethod
    def build_theirs(self) -> Theirs:
        """Their model with the same sizes and dropouts."""

    @abstractmethod
    def their_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """The batch as they want it."""

    @abstractmethod
    def compared(self, losses: Losses, theirs: Any) -> tuple[Tensor, Tensor]:
        """Sums that are the same on both sides: of our losses and of what they return."""

    @property
    def count(self) -> float:
        """What the loss is a mean over."""
        return next(iter(self.batch.counts.values()))

    @property
    def seconds(self) -> float:
        """Audio in the batch."""
        return self.batch.audio.seconds

    @property
    def clip_seconds(self) -> float:
        """Audio in one clip."""
        return self.seconds / len(self.batch.audio.waveforms)

    @property
    def label(self) -> str:
        """The batch for a table."""
        return f"{len(self.batch.audio.waveforms)} x {self.clip_seconds:g} s"

    @property
    def their_waveforms(self) -> Tensor:
        """(B, T) float32, normalized if the model normalizes."""
        waveforms = self.batch.audio.waveforms
        return normalize_waveforms(waveforms, None) if self.pretraining.encoder.normalize_waveforms else waveforms


class PretrainCase(Case):
    """With the hidden frames and distractors that pretraining draws."""

    config: PretrainConfig
    batch: ContrastiveBatch

    @property
    def flops_per_second(self) -> float:
        return 3 * sum(part.flops for part in model_parts(self.config, self.clip_seconds)) / self.clip_seconds

    def build_ours(self) -> PretrainModel:
        return PretrainModel(self.config.encoder, self.config.objective)

    def compiled_part(self, ours: nn.Module) -> nn.Module:
        return ours.objective

    def build_theirs(self) -> transformers.Wav2Vec2ForPreTraining:
        objective, quantizer = self.config.objective, self.config.objective.quantizer
        config = transformers.Wav2Vec2Config(
            **to_transformers_config(self.config.encoder),
            feat_quantizer_dropout=objective.target_dropout,
            num_codevector_groups=quantizer.num_codebooks,
            num_codevectors_per_group=quantizer.codebook_size,
            codevector_dim=quantizer.code_dim,
            proj_codevector_dim=objective.comparison_dim,
            contrastive_logits_temperature=objective.logit_temperature,
            num_negatives=objective.num_distractors,
            diversity_loss_weight=objective.diversity_weight,
        )
        model = transformers.Wav2Vec2ForPreTraining(config)
        model.set_gumbel_temperature(quantizer.temperature(0))
        return model

    def their_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Distractors are given for all frames, by their number in the whole batch."""
        batch = self.batch
        num_rows, num_frames = batch.mask.shape
        first = num_frames * torch.arange(num_rows)[:, None, None]
        distractors = first.repeat(1, num_frames, batch.distractors.shape[2])
        is_hidden = batch.weights.bool()
        hidden = batch.hidden.gather(1, batch.distractors.flatten(1)).view_as(batch.distractors)  # of those positions
        distractors[batch.mask] += hidden[is_hidden]
        inputs = {
            "input_values": self.their_waveforms,
            "mask_time_indices": batch.mask,
            "sampled_negative_indices": distractors,
        }
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def compared(self, losses: Losses, theirs: Any) -> tuple[Tensor, Tensor]:
        return losses["contrastive"].sum, theirs.contrastive_loss


class FinetuneCase(Case):
    """With a CTC head, and convolutions that stay as they are."""

    config: FinetuneConfig
    batch: LabeledBatch

    @property
    def flops_per_second(self) -> float:
        parts = [part for part in model_parts(self.pretraining, self.clip_seconds) if part.name.startswith("encoder.")]
        frozen = sum(part.flops for part in parts if part.name.startswith("encoder.feature_encoder."))
        head = ctc_head(self.pretraining, self.batch.mask.shape[1])
        return (3 * sum(part.flops for part in (*parts, head)) - 2 * frozen) / self.clip_seconds

    @property
    def encoder(self) -> EncoderConfig:
        """That of pretraining with fine-tuning's dropouts."""
        return self.config.regularization.apply(self.pretraining.encoder)

    def build_ours(self) -> FinetuneModel:
        model = FinetuneModel(CTCModel(self.encoder, len(VOCABULARY)), RegularizationConfig(), VOCABULARY.blank_id)
        model.ctc.encoder.feature_encoder.requires_grad_(False)
        return model

    def compiled_part(self, ours: nn.Module) -> nn.Module:
        return ours.ctc

    def build_theirs(self) -> transformers.Wav2Vec2ForCTC:
        config = transformers.Wav2Vec2Config(
            **to_transformers_config(self.encoder), vocab_size=len(VOCABULARY), apply_spec_augment=False
        )
        model = transformers.Wav2Vec2ForCTC(config)
        model.freeze_feature_encoder()
        return model

    def their_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Labels are rows as long as the longest, with -100 behind their end."""
        rows = self.batch.labels.split(self.batch.num_labels)
        labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        return {"input_values": self.their_waveforms.to(device), "labels": labels.to(device)}

    def compared(self, losses: Losses, theirs: Any) -> tuple[Tensor, Tensor]:
        return losses["ctc"].sum, theirs.loss


def make_case(stage: str, name: str, batch_seconds: float | None, is_tiny: bool) -> Case:
    """The batch has as many of the longest clips as training has in one, of noise."""
    model = RECIPES / "models" / f"wav2vec2_{name}.toml"
    batches = TINY_BATCHES if is_tiny else ()
    pretraining = PretrainConfig.load([model], [*NO_DATA, *(TINY if is_tiny else ()), *batches])
    geometry = pretraining.encoder.feature_encoder.geometry
    if stage == "pretrain":
        examples = make_examples(batch_seconds or pretraining.batches.seconds, pretraining.batches.max_seconds)
        batch = pretraining.objective.make_collate(geometry, pretraining.seed)(examples)
        return PretrainCase(name, pretraining, pretraining, batch)
    files = [RECIPES / "librispeech" / "finetune" / f"{file}.toml" for file in (name, f"{name}_100h")]
    config = FinetuneConfig.load(files, [*NO_DATA, "init=none", *batches])
    clip_seconds = min(config.batches.max_seconds, FINETUNED_SECONDS)
    examples = make_examples(batch_seconds or config.batches.seconds, clip_seconds)
    collate = LabeledCollate(geometry, pretraining.encoder.mask_dim, VOCABULARY, regularization=None, seed=config.seed)
    return FinetuneCase(name, pretraining, config, collate(examples))


def make_examples(seconds: float, clip_seconds: float) -> list[Example]:
    """As many clips as fit, of noise, with any letters."""
    clip_seconds = min(seconds, clip_seconds)
    num_clips = int(seconds // clip_seconds)
    generator = np.random.default_rng(0)
    waveforms = 0.1 * generator.standard_normal((num_clips, round(clip_seconds * SAMPLE_RATE)), np.float32)
    letters = generator.choice(VOCABULARY.symbols[2:], (num_clips, round(clip_seconds * LETTERS_PER_SECOND)))
    pairs = zip(waveforms, letters, strict=True)
    return [Example(index, 0, waveform, "".join(row)) for index, (waveform, row) in enumerate(pairs)]


def convert(theirs: Theirs, ours: PretrainModel | FinetuneModel) -> None:
    """Give our model their weights."""
    weights = from_transformers(theirs.state_dict())
    if isinstance(ours, FinetuneModel):
        ours.ctc.load_state_dict(weights)
        return
    codebooks = "objective.quantizer.codebooks"
    weights[codebooks] = weights[codebooks].view_as(ours.objective.quantizer.codebooks)
    ours.load_state_dict(weights)


def our_loss(model: nn.Module, case: Case, device: torch.device) -> Callable[[], Tensor]:
    """The mean loss, once the batch is on the device."""
    batch = case.batch.to(device)

    def loss() -> Tensor:
        return weighted_sum(model(batch, 0), batch.counts)

    return loss


def their_loss(model: Theirs, case: Case, device: torch.device) -> Callable[[], Tensor]:
    """As ours."""
    inputs = case.their_inputs(device)
    return lambda: model(**inputs).loss / case.count


def make_update(
    model: nn.Module, loss_of: Callable[[], Tensor], case: Case, device: torch.device, precision: str
) -> Update:
    """One step of training."""
    optimizer = make_optimizer(case.config.optimizer, model.train().parameters())

    def update() -> None:
        with autocast(device, resolve_precision(precision, device)):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def build_update(side: str, case: Case, device: torch.device, precision: str) -> Update:
    """A new model of one side, and its step of training."""
    is_compiled = side in COMPILED_SIDES
    if side.startswith("speechssl"):
        ours = case.build_ours().to(device)
        if is_compiled:
            part = case.compiled_part(ours)
            part.forward = compiled.compiled_call(part, compiled.GRAPHS_PER_SHAPE)
        return make_update(ours, our_loss(ours, case, device), case, device, precision)
    theirs = case.build_theirs().to(device)
    if is_compiled:
        theirs.compile(backend=compiled.BACKEND, dynamic=False)
    return make_update(theirs, their_loss(theirs, case, device), case, device, precision)


def wait(device: torch.device) -> None:
    """Until a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_memory(side: str, case: Case, device: torch.device, precision: str) -> float | None:
    """MiB at most in two updates of one side alone; None if that is more than there is."""
    before = start_counting(device)
    try:
        update = build_update(side, case, device, precision)
        for _ in range(2):  # the second has the optimizer's moments from the start
            update()
        wait(device)
    except torch.OutOfMemoryError:
        return None
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20 - before
    return memory_of_process("VmHWM") - before


def start_counting(device: torch.device) -> float:
    """MiB in use; the peak counts from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory_of_process("VmRSS")


def memory_of_process(name: str) -> float:
    """MiB, as the kernel counts."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**10


def measure_speeds(
    case: Case, sides: Sequence[str], device: torch.device, precision: str, repeats: int, num_updates: int
) -> dict[str, float]:
    """Seconds of audio trained a second, by side."""
    updates = {side: build_update(side, case, device, precision) for side in sides}
    best: dict[str, float] = {}
    for repeat in range(repeats + 1):  # the first one warms up
        for side, update in updates.items():
            wait(device)
            started = time.perf_counter()
            for _ in range(num_updates):
                update()
            wait(device)
            seconds = time.perf_counter() - started
            if repeat:
                best[side] = min(seconds, best.get(side, seconds))
    return {side: num_updates * case.seconds / seconds for side, seconds in best.items()}


@torch.no_grad()
def compare_losses(case: Case, device: torch.device, has_bfloat16: bool) -> tuple[float, float | None]:
    """Make sure that the same is trained on both sides, and tell our loss in float32 and in bfloat16."""
    torch.manual_seed(0)
    theirs, ours = case.build_theirs().eval(), case.build_ours().eval()
    convert(theirs, ours)
    batch = case.batch.to(device)
    losses = ours.to(device)(batch, 0)
    sums = case.compared(losses, theirs.to(device)(**case.their_inputs(device)))
    found, expected = (total.item() / case.count for total in sums)
    if not abs(found - expected) < 1e-3 * expected:  # rounding may choose another entry of a codebook
        raise AssertionError(f"{case.name}: expected transformers' loss of {expected:.4f}, found {found:.4f}")
    in_float32 = weighted_sum(losses, batch.counts).item()
    if not has_bfloat16:
        return in_float32, None
    with autocast(device, torch.bfloat16):
        losses = ours(batch, 0)
    return in_float32, weighted_sum(losses, batch.counts).item()


def show(value: float | None, digits: int) -> str:
    return "out of memory" if value is None else f"{value:.{digits}f}"


def ratios(found: Sequence[float | None]) -> list[str]:
    """Of what ours and theirs gave, then of both compiled."""
    pairs = zip(found[::2], found[1::2], strict=True)
    return ["-" if ours is None or theirs is None else f"{ours / theirs:.2f}" for ours, theirs in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the speed and memory of training with transformers.")
    parser.add_argument("--stage", choices=["pretrain", "finetune"], default="pretrain")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, help="between two looks at the clock (default: 10 on a GPU, 1 on a CPU)")
    parser.add_argument("--models", nargs="+", choices=["base", "large"], default=["base", "large"])
    parser.add_argument("--batch-seconds", type=float, help="audio in a batch (default: the recipe's batches.seconds)")
    parser.add_argument("--peak-tflops", type=float, help="of the processor in this precision, for the MFU")
    parser.add_argument("--compiled", action="store_true", help="measure both sides compiled too")
    parser.add_argument("--tiny", action="store_true", help="models of no size, to see that the program runs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    device = torch.device(arguments.device)
    is_gpu = device.type == "cuda"
    precision = arguments.precision or ("bfloat16" if is_gpu else "float32")
    num_updates = arguments.updates or (10 if is_gpu else 1)
    has_bfloat16 = is_gpu or arguments.tiny  # many a CPU is hundreds of times slower in it

    sides = (*SIDES, *COMPILED_SIDES) if arguments.compiled else SIDES
    compared = ["ours / theirs", "ours / theirs, compiled"][: len(sides) // 2]

    speeds, peaks, losses = [], [], []
    for name in arguments.models:
        case = make_case(arguments.stage, name, arguments.batch_seconds, arguments.tiny)
        in_float32, in_bfloat16 = compare_losses(case, device, has_bfloat16)
        if in_bfloat16 is not None:
            difference = in_bfloat16 / in_float32 - 1
            losses.append([name, case.label, f"{in_float32:.5f}", f"{in_bfloat16:.5f}", f"{100 * difference:+.3f} %"])
        peak = {side: measure_memory(side, case, device, precision) for side in sides}
        peaks.append([name, case.label, *(show(peak[side], 0) for side in sides), *ratios([*peak.values()])])
        start_counting(device)  # gives back what the last one took
        fitting = [side for side in sides if peak[side] is not None]
        speed = measure_speeds(case, fitting, device, precision, arguments.repeats, num_updates)
        found = [speed.get(side) for side in sides]
        row = [name, case.label, *(show(value, 2) for value in found)]
        if arguments.peak_tflops:
            share = case.flops_per_second / (arguments.peak_tflops * 1e12)
            row += ["-" if value is None else f"{100 * share * value:.1f} %" for value in found]
        speeds.append([*row, *ratios(found)])

    name = torch.cuda.get_device_name(device) if is_gpu else f"{arguments.threads} threads"
    where = f"{name}, {precision}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"Seconds of audio trained a second, {arguments.stage}, {where}:\n")
    shares = [f"MFU of {side}" for side in sides] if arguments.peak_tflops else []
    print_table(["model", "batch", *sides, *shares, *compared], speeds)
    print("\nPeak memory in MiB:\n")
    print_table(["model", "batch", *sides, *compared], peaks)
    if losses:
        print("\nbf16 against float32, our loss:\n")
        print_table(["model", "batch", "float32", "bfloat16", "difference"], losses)


if __name__ == "__main__":
    main()
