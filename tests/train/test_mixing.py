"""Mixing in pretraining: the encoder hears it, targets and the dev set do not, whatever the objective."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from speechssl.checkpoint.reader import read_model
from speechssl.data.manifest import Utterance, read_manifest, write_manifest
from speechssl.errors import ManifestError, TrainingError
from speechssl.objective import wav2vec
from speechssl.objective.objective import weighted_sum
from speechssl.train.pretrain import PretrainModel, make_task, pretrain

MIXING = "mixing={probability=1.0}"
NO_NOISE = tuple(
    f"encoder.context.{name}=0.0" for name in ("input_dropout", "dropout", "attention_dropout", "layer_drop")
)
OBJECTIVES = {
    "contrastive": "objective.target_dropout=0.0",
    "silenced contrastive": "objective.silence={}",
    "wav2vec": 'objective={kind="wav2vec"}',
    "masked_prediction": 'objective={kind="masked_prediction", num_clusters=8, num_bands=10}',
    "spectral_contrast": 'objective={kind="spectral_contrast", num_bands=10}',
}


def task_of(config: Any) -> Any:
    torch.manual_seed(0)
    return make_task(config, read_manifest(config.data.train), read_manifest(config.data.dev))


def watch_targets(model: PretrainModel, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Gather what the objective compares its predictions with."""
    seen: list[Tensor] = []
    objective = model.objective

    def watch(owner: Any, name: str, pick: Callable[[Any, Any], Tensor]) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            result = original(*arguments)
            seen.append(pick(arguments, result).detach().clone())
            return result

        monkeypatch.setattr(owner, name, watched)

    match objective.__class__.__name__:
        case "ContrastiveObjective":
            watch(objective.quantizer, "forward", lambda arguments, result: arguments[0])
        case "Wav2vecObjective":
            watch(wav2vec, "_candidates", lambda arguments, result: result)
        case "MaskedPredictionObjective":
            watch(objective, "targets", lambda arguments, result: result)
        case "SpectralContrastObjective":
            watch(objective.target_projection, "forward", lambda arguments, result: arguments[0])
    return seen


@pytest.mark.parametrize("name", OBJECTIVES)
def test_targets_are_bit_equal_and_the_encoder_hears_the_mixture(
    corpus: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for mixing in ((), (MIXING,)):
        task = task_of(corpus.pretrain_config(OBJECTIVES[name], *mixing, *NO_NOISE))
        task.model.objective.prepare(task.model.encoder, task.train.read([0, 1]), 0)
        targets = watch_targets(task.model, monkeypatch)
        heard = []
        task.model.encoder.context.register_forward_hook(lambda *arguments, to=heard: to.append(arguments[2]))
        losses = task.model.eval()(next(task.train.read([0])), 0)
        monkeypatch.undo()
        found.append((targets, heard, losses))
    (targets, heard, losses), (mixed_targets, mixed_heard, mixed_losses) = found
    assert len(targets) == len(mixed_targets) == 1
    assert torch.equal(targets[0], mixed_targets[0])
    assert (mixed_heard[0] - heard[0]).norm() > 0.05 * heard[0].norm()
    assert losses.keys() == mixed_losses.keys()


def test_only_training_is_mixed_and_only_its_waveforms(corpus: Any) -> None:
    clean, mixed = (task_of(corpus.pretrain_config(*more)) for more in ((), (MIXING,)))
    for one, other in zip(clean.dev.read_share(0, 1), mixed.dev.read_share(0, 1), strict=True):
        assert torch.equal(one.audio.waveforms, other.audio.waveforms)
        assert other.audio.clean is None
    one, other = next(clean.train.read([0])), next(mixed.train.read([0]))
    assert torch.equal(one.audio.waveforms, other.audio.clean)
    is_mixed = (one.audio.waveforms != other.audio.waveforms).any(dim=1)
    assert is_mixed.float().mean() > 0.8
    assert torch.equal(one.mask, other.mask)
    assert one.counts == other.counts


def test_workers_mix_the_same(corpus: Any) -> None:
    alone, workers = (
        list(task_of(corpus.pretrain_config("mixing={}", f"data.num_workers={number}")).train.read(range(4)))
        for number in (0, 2)
    )
    for one, other in zip(alone, workers, strict=True):
        assert torch.equal(one.audio.waveforms, other.audio.waveforms)
        assert torch.equal(one.audio.clean, other.audio.clean)


def write_noise(folder: Path, num_samples: int = 20_000) -> Path:
    folder.mkdir()
    signal = np.random.default_rng(0).uniform(-0.5, 0.5, num_samples)
    soundfile.write(folder / "noise.wav", signal, 16_000)
    write_manifest(folder / "noise.tsv", [Utterance(str(folder / "noise.wav"), num_samples)], ".")
    return folder / "noise.tsv"


def test_a_run_with_noise_resumes_with_the_same_noise_only(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_noise(tmp_path / "other", 20_001)

    def run(folder: str, noise: Path | str, *more: str) -> None:
        mixing = (f"mixing.noise={noise}", "trainer.num_steps=4", "trainer.checkpoint_steps=2")
        pretrain(corpus.pretrain_config(*mixing, *more), tmp_path / folder)

    noise = write_noise(tmp_path / "noise")
    run("whole", noise)
    monkeypatch.setattr("speechssl.train.update.weighted_sum", stop_after(5))
    with pytest.raises(KeyboardInterrupt):
        run("parts", noise)
    monkeypatch.undo()
    shutil.move(tmp_path / "noise", tmp_path / "moved")  # what counts is what it holds
    noise = tmp_path / "moved" / "noise.tsv"
    for refused, message in (
        ((other,), r"inputs\.noise was '\w+', now '\w+'"),
        (("pink",), r"inputs\.noise was '\w+', now 'pink'"),
        ((noise, "mixing.probability=0.4"), r"mixing\.probability was 0\.5, now 0\.4"),
    ):
        with pytest.raises(TrainingError, match=message):
            run("parts", *refused)
    run("parts", noise)
    whole, parts = (read_model(tmp_path / folder).weights for folder in ("whole", "parts"))
    assert all(torch.equal(parts[name], weight) for name, weight in whole.items())


def stop_after(count: int) -> Callable[..., Tensor]:
    calls = iter(range(count))

    def stopping(*arguments: Any) -> Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return weighted_sum(*arguments)

    return stopping


def test_missing_noise_is_refused_before_training(corpus: Any, tmp_path: Path) -> None:
    noise = write_noise(tmp_path / "a")
    (tmp_path / "a" / "noise.wav").unlink()
    with pytest.raises(TrainingError, match="1 utterances are unfit for training"):
        pretrain(corpus.pretrain_config(f"mixing.noise='{noise}'"), tmp_path / "run")
    with pytest.raises(ManifestError, match=r"none\.tsv: expected a file, found none"):
        pretrain(corpus.pretrain_config("mixing.noise=none.tsv"), tmp_path / "run")


def test_prepared_targets_know_nothing_of_mixing(corpus: Any, tmp_path: Path) -> None:
    objective = 'objective={kind="masked_prediction", num_clusters=8, num_bands=10, mask={span_frames=4}}'
    centers = []
    for folder, mixing in (("clean", ()), ("mixed", (MIXING,))):
        pretrain(corpus.pretrain_config(objective, "trainer.num_steps=1", *mixing), tmp_path / folder)
        centers.append(read_model(tmp_path / folder).weights["objective.centers"])
    assert torch.equal(*centers)
