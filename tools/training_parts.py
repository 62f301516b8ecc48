"""Where the time of an update goes: each part of a model by itself, given what it is given in an update."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile
import torch
import transformers
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from training_cases import Case
from training_speed import Training, build, measure_seconds

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.manifest import Utterance, read_manifest, write_manifest
from speechssl.model.device import autocast
from speechssl.model.encoder import SpeechEncoder
from speechssl.train import compiled
from speechssl.train.task import Batches

NUM_READ = 6  # batches
Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def modules_of(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules of each part that both sides have."""
    if isinstance(model, transformers.PreTrainedModel):
        theirs = model.wav2vec2
        encoder, positions, layers = theirs.feature_extractor, theirs.encoder.pos_conv_embed, theirs.encoder.layers
    else:
        ours = next(module for module in model.modules() if isinstance(module, SpeechEncoder))
        encoder, positions, layers = ours.feature_encoder, ours.context.position, ours.context.layers
    return {"feature encoder": [encoder], "positions": [positions], "transformer": [*layers]}


def measure_parts(
    side: str, case: Case, device: torch.device, precision: str, repeats: int, num_workers: int
) -> dict[str, float]:
    """Seconds of each part of an update, the best of the repeats; a dropped layer that is left out takes none.

    Of "compiled" each part is compiled by itself.
    """
    who, _, variant = side.partition(" ")
    training = build(who, case, device, precision)
    calls = record_calls(training, modules_of(training.model))
    whole = build(side, case, device, precision) if variant else training

    def best(compute: Callable[[], object]) -> float:
        return min(measure_seconds(compute, device, 1) for _ in range(repeats + 1))  # one of which warms up

    found = {}
    for name, part in calls.items():
        if variant == "compiled":
            part = [(torch.compile(module, backend=compiled.BACKEND, dynamic=False), *given) for module, *given in part]
        found[name] = best(lambda: compute_calls(part, training))  # noqa: B023
        training.optimizer.zero_grad(set_to_none=True)
    whole.update()  # compiles, and makes the optimizer's moments
    found["objective and the rest"] = max(best(whole.compute_gradients) - sum(found.values()), 0.0)
    found["optimizer"] = best(whole.optimizer.step)
    found["waiting for data"] = measure_waiting(case, whole, num_workers)
    return found


def record_calls(training: Training, parts: dict[str, list[nn.Module]]) -> dict[str, list[Call]]:
    """What the modules of each part are called with in one update."""
    calls: dict[str, list[Call]] = {name: [] for name in parts}
    hooks = []
    for name, modules in parts.items():

        def note(module: nn.Module, args: Any, kwargs: Any, of_part: list[Call] = calls[name]) -> None:
            of_part.append((module, *tree_map(detach, (args, kwargs))))

        hooks += [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    training.compute_gradients()
    for hook in hooks:
        hook.remove()
    training.optimizer.zero_grad(set_to_none=True)
    return calls


def detach(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def compute_calls(calls: list[Call], training: Training) -> None:
    """Forward and, of what learns, backward."""
    for module, args, kwargs in calls:
        with autocast(training.device, training.dtype):
            output = module(*args, **kwargs)
        output = output[0] if isinstance(output, tuple) else output
        if output.requires_grad:
            output.backward(torch.ones_like(output))


def measure_waiting(case: Case, training: Training, num_workers: int) -> float:
    """Seconds an update waits for its batch, read from FLAC files that are in the memory of the machine."""
    with tempfile.TemporaryDirectory() as folder:
        clips = []
        for example in case.examples:
            path = f"{folder}/{example.index}.flac"
            soundfile.write(path, example.waveform, SAMPLE_RATE)
            clips.append(Utterance(path, len(example.waveform), text=example.text))
        write_manifest(Path(folder) / "clips.tsv", clips * NUM_READ, folder)
        seconds = case.seconds + 0.01  # which rounding does not make a clip less
        config = case.config.batches.model_copy(update={"seconds": seconds})
        manifest = read_manifest(Path(folder) / "clips.tsv")
        batches = Batches.of_manifest(manifest, config, case.collate, num_workers, 0, crop=case.crops)
        waits = []
        reading = batches.read(range(NUM_READ))
        for _ in range(NUM_READ):
            started = time.perf_counter()
            next(reading)
            waits.append(time.perf_counter() - started)
            training.update()
        reading.close()
    return sum(waits[1:]) / len(waits[1:])  # before the first, processes start
