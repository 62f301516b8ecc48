"""Pretraining: what it learns, what it saves, what it refuses."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from losses import loss_sum
from torch import Tensor

from speechssl.checkpoint.reader import load_encoder, read_model
from speechssl.data.batches import Example
from speechssl.data.manifest import Utterance, read_manifest, read_utterance, write_manifest
from speechssl.errors import AudioError, ConfigError, ManifestError, TrainingError
from speechssl.objective.contrastive import ContrastiveBatch, ContrastiveObjective
from speechssl.objective.objective import weighted_sum
from speechssl.train.log import read_log
from speechssl.train.pretrain import PretrainConfig, pretrain
from speechssl.train.pretrain import make_task as make
from speechssl.train.task import Task

NO_NOISE = (
    "encoder.context.input_dropout=0.0",
    "encoder.context.dropout=0.0",
    "encoder.context.attention_dropout=0.0",
    "encoder.context.layer_drop=0.0",
    "objective.target_dropout=0.0",
)


def make_task(config: PretrainConfig) -> Task[Any]:
    torch.manual_seed(config.seed)
    return make(config, read_manifest(config.data.train), read_manifest(config.data.dev))


def slow_melodies(corpus: Any, folder: Path) -> list[str]:
    """Overrides for recordings of long tones: what is hidden of a tone can be told from the rest of it."""
    generator = np.random.default_rng(5)
    texts = ["".join(generator.choice(list("abcd"), size=6)) for _ in range(44)]
    train = corpus.write(folder / "train.tsv", texts[8:], seed=1, letter_samples=4_800)
    dev = corpus.write(folder / "dev.tsv", texts[:8], seed=2, letter_samples=4_800)
    return [f"data.train={train}", f"data.dev={dev}", "batches.max_seconds=30", "batches.seconds=10", *NO_NOISE]


def knows_nothing(self: ContrastiveObjective, *arguments: Tensor) -> Tensor:
    """Logits that prefer none of the candidates."""
    return torch.where(original_logits(self, *arguments).isinf(), -torch.inf, 0.0)


original_logits = ContrastiveObjective._logits


def test_a_repeated_batch_is_learnt_by_heart(corpus: Any, tmp_path: Path) -> None:
    overrides = slow_melodies(corpus, tmp_path)
    task = make_task(corpus.pretrain_config("objective.num_distractors=100", *overrides))
    batch = next(task.train.read([0]))
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=5e-3)
    for step in range(60):
        torch.manual_seed(step)
        losses = task.model(batch, step)
        weighted_sum(losses, batch.counts).backward()
        optimizer.step()
        optimizer.zero_grad()
    parts = {name: term.sum.item() / batch.counts[term.count] for name, term in losses.items()}
    assert parts["contrastive"] < 1.2 < math.log(101) - 3
    assert parts["accuracy"] > 0.7
    assert parts["left_out"] < 0.4, "targets have collapsed"


def test_pretraining_learns_what_holds_for_new_recordings(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = corpus.pretrain_config(
        *slow_melodies(corpus, tmp_path),
        "objective.num_distractors=100",
        "optimizer.learning_rate=5e-3",
        "trainer.num_steps=100",
        "trainer.microbatches=1",
        "trainer.log_steps=50",
        "trainer.evaluate_steps=100",
        "trainer.checkpoint_steps=100",
    )
    pretrain(config, tmp_path / "run")
    dev = read_log(tmp_path / "run")[-1]
    task = make_task(config)
    task.model.load_state_dict(read_model(tmp_path / "run").weights)
    monkeypatch.setattr(ContrastiveObjective, "_logits", knows_nothing)
    task.model.eval()
    with torch.no_grad():
        measured = [task.evaluate(batch, 100) for batch in task.dev.read_share(0, 1)]
    lost = sum(of_batch.losses["contrastive"].sum.item() for of_batch in measured)
    chance = lost / sum(of_batch.counts["hidden"] for of_batch in measured)
    assert 4 < chance < math.log(101)
    assert dev["contrastive"] < chance - 1
    assert dev["accuracy"] > 0.4
    assert dev["left_out"] < 0.4


def test_gradients_add_up_over_microbatches(
    corpus: Any, tmp_path: Path, record_gradients: Callable[[Callable[[], None]], Any]
) -> None:
    texts = ["abc", "dcb", "ab d", "ccda", "bdab", "a bc", "dd a", "cab"]
    train = corpus.write(tmp_path / "train.tsv", texts)

    def gradients(microbatches: int, seconds: float) -> Any:
        config = corpus.pretrain_config(
            *NO_NOISE,
            "objective.diversity_weight=0.0",  # of a batch's codes together: the one part that is no sum
            f"data.train={train}",
            f"trainer.microbatches={microbatches}",
            "trainer.num_steps=2",
            "batches.num_buckets=1",
            f"batches.seconds={seconds}",
        )
        run = tmp_path / str(microbatches)
        found = record_gradients(lambda: pretrain(config, run))
        batches = make_task(config).train.read(range(microbatches))
        assert [len(batch.audio.indices) for batch in batches] == [8 // microbatches] * microbatches
        return found, [record["loss"] for record in read_log(run) if record["split"] == "train"]

    (whole, whole_losses), (parts, part_losses) = gradients(1, 8 * 0.46), gradients(4, 2 * 0.46)
    assert len(whole.updates) == 2
    parts.assert_close(whole)
    assert part_losses == pytest.approx(whole_losses, rel=1e-5)


def test_padding_changes_no_gradient(corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda tensor: tensor.fill_(1.0))
    task = make_task(corpus.pretrain_config(*NO_NOISE, "objective.diversity_weight=0.0"))
    examples = [
        Example(index, 0, read_utterance(utterance), None) for index, utterance in enumerate(task.train.manifest)
    ]
    assert len({len(example.waveform) for example in examples}) > 3

    def gradients(*batches: ContrastiveBatch) -> list[Tensor]:
        task.model.zero_grad()
        for batch in batches:
            loss_sum(task.model(batch, 0)).backward()
        return [parameter.grad.clone() for parameter in task.model.parameters() if parameter.grad is not None]

    padded, alone = gradients(task.train.collate(examples)), gradients(*(task.train.collate([e]) for e in examples))
    whole = max(gradient.norm() for gradient in alone)
    for found, expected in zip(padded, alone, strict=True):
        assert (found - expected).norm() <= 1e-5 * max(expected.norm(), 1e-3 * whole)


def test_the_dev_set_is_the_same_at_every_evaluation(corpus: Any) -> None:
    task = make_task(corpus.pretrain_config())
    once, again = list(task.dev.read_share(0, 1)), list(task.dev.read_share(0, 1))
    assert sorted(index for batch in once for index in batch.audio.indices) == list(range(5))
    for one, other in zip(once, again, strict=True):
        assert torch.equal(one.audio.waveforms, other.audio.waveforms)
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.distractors, other.distractors)
    ranks = [list(task.dev.read_share(rank, 2)) for rank in range(2)]
    shares = [sorted(index for batch in share for index in batch.audio.indices) for share in ranks]
    assert sorted(shares[0] + shares[1]) == list(range(5))


def test_an_evaluation_reads_ahead_as_training_does(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr("speechssl.train.task.load_batches", lambda *_, **options: given.append(options))
    made = make_task(corpus.pretrain_config("data.num_workers=3"))
    made.train.read([0], pin_memory=True)
    made.dev.read_share(0, 1, pin_memory=True)
    assert given == [{"num_workers": 3, "pin_memory": True}] * 2


def test_an_epoch_has_every_utterance_once_each_time_cropped_and_hidden_otherwise(corpus: Any) -> None:
    task = make_task(corpus.pretrain_config("batches.num_buckets=1"))
    epochs = [
        list(
            task.train.read(range(epoch * task.train.sampler.num_batches, (epoch + 1) * task.train.sampler.num_batches))
        )
        for epoch in range(2)
    ]
    seen: list[dict[int, tuple[bytes, bytes]]] = []
    for batches in epochs:
        rows = [
            (index, (batch.audio.waveforms[row].numpy().tobytes(), batch.mask[row].numpy().tobytes()))
            for batch in batches
            for row, index in enumerate(batch.audio.indices)
        ]
        assert sorted(index for index, _ in rows) == list(range(16))
        seen.append(dict(rows))
    assert sum(seen[0][index][0] != seen[1][index][0] for index in range(16)) > 8
    assert sum(seen[0][index][1] != seen[1][index][1] for index in range(16)) > 8


def test_a_run_is_an_encoder_with_its_history(corpus: Any, pretrained: Path) -> None:
    description = read_model(pretrained).description
    config = corpus.pretrain_config("trainer.num_steps=4")
    assert (description.kind, description.step) == ("pretrained", 4)
    assert description.encoder == config.encoder
    assert description.objective == config.objective.to_dict()
    (data,) = description.training_data
    seconds = sum(utterance.seconds for utterance in read_manifest(corpus.train))
    assert (data.stage, data.license, data.labeled) == ("pretrain", "CC0: tones", False)
    assert data.hours == pytest.approx(seconds / 3600)
    waveform = torch.from_numpy(read_utterance(read_manifest(corpus.dev)[0]))[None]
    assert load_encoder(pretrained).encode(waveform).context.shape[2] == 32


def test_the_log_has_what_tells_a_collapse(pretrained: Path) -> None:
    parts = {"loss", "contrastive", "accuracy", "code_perplexity", "prob_perplexity", "left_out", "unused", "penalty"}
    train, dev = read_log(pretrained)[-2:]
    of_training = {
        "audio_seconds_per_second",
        "waiting_for_data",
        "gflop_per_second",
        "gradient_norm",
        "learning_rate",
        "clip_scale",
        "silence",
        "level",
        "level_deviation",
    }
    assert train.keys() == {"step", "split", *parts, *of_training}
    assert dev.keys() == {"step", "split", *parts}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_recording_that_breaks_off_stops_the_run_with_its_name(corpus: Any, tmp_path: Path, num_workers: int) -> None:
    utterances = list(read_manifest(corpus.train))
    damaged = tmp_path / "damaged.flac"
    soundfile.write(damaged, np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 16_000)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    damaged.write_bytes(content)
    write_manifest(tmp_path / "train.tsv", [*utterances, Utterance(str(damaged), 16_000)], Path("/"))
    config = corpus.pretrain_config(f"data.train={tmp_path / 'train.tsv'}", f"data.num_workers={num_workers}")
    with pytest.raises(AudioError, match=r"damaged\.flac: ") as caught:
        pretrain(config, tmp_path / "run")
    assert str(caught.value).startswith(str(damaged))
    assert "\n" not in str(caught.value)


def test_missing_recordings_are_refused_before_training(
    corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    utterances = [*read_manifest(corpus.train), Utterance(str(tmp_path / "gone.wav"), 16_000)]
    write_manifest(tmp_path / "train.tsv", utterances, Path("/"))
    config = corpus.pretrain_config(f"data.train={tmp_path / 'train.tsv'}")
    with pytest.raises(TrainingError, match=r"^1 utterances are unfit for training; see `speechssl check`$"):
        pretrain(config, tmp_path / "run")
    assert f"{tmp_path / 'train.tsv'}:19: " in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_data_without_admitted_lengths_are_refused(corpus: Any, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"expected utterances of 100\.0 to 200\.0 seconds, found none among 16"):
        pretrain(corpus.pretrain_config("batches.min_seconds=100.0", "batches.max_seconds=200.0"), tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.mask.min_spans=0", r"objective: mask\.min_spans must be at least 1, .* predict$"),
        ("batches.min_seconds=0.04", r"configuration: batches\.min_seconds must be at least 0\.040625, 2 frames$"),
        ("seed=-1", "seed"),
        ("encoder.context.num_heads=3", r"encoder\.context: model_dim must be a multiple of num_heads, found 32$"),
        ("teacher=model", "teacher: unknown setting"),
    ],
)
def test_settings_that_cannot_work_are_refused(corpus: Any, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        corpus.pretrain_config(override)


def test_clusters_are_found_once_and_kept(corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objective = 'objective={kind="masked_prediction", num_clusters=8, num_bands=10, mask={span_frames=4}}'
    centers = []
    for num_steps in (2, 4):
        more = (f"trainer.num_steps={num_steps}", "schedule.on_extend=restart")
        pretrain(corpus.pretrain_config(objective, *more), tmp_path / "run")
        centers.append(read_model(tmp_path / "run" / "latest").weights["objective.centers"])
    assert torch.equal(*centers)
    assert len(centers[0].unique(dim=0)) == 8
    assert capsys.readouterr().err.count("finding targets") == 1
