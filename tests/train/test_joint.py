"""Labeled and unlabeled speech in one update: each with its own order, counts and weight; on two ranks as on one."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from speechssl.checkpoint.reader import load_ctc, read_model
from speechssl.checkpoint.training_state import load_progress
from speechssl.data.batches import Batch, TaskBatch
from speechssl.data.manifest import read_manifest
from speechssl.data.units import Letters
from speechssl.errors import ConfigError, TrainingError
from speechssl.model.encoder import SpeechEncoder
from speechssl.objective.masked_prediction import MaskedPredictionConfig, MaskedPredictionObjective
from speechssl.objective.objective import AllReduce, Limit, Losses
from speechssl.objective.teacher import Teacher
from speechssl.train.finetune import FinetuneConfig, finetune
from speechssl.train.finetune import make_task as make
from speechssl.train.joint import JointBatch, JointBatches
from speechssl.train.joint_objective import JointObjective
from speechssl.train.log import read_log
from speechssl.train.task import Task

OBJECTIVE = (
    'joint.objective={kind="masked_prediction", num_clusters=6, num_bands=8, comparison_dim=16, fit_seconds=20.0}',
    "joint.objective.mask={start_prob=0.1, span_frames=2}",
    "joint.batches={seconds=3.0, min_seconds=0.3, max_seconds=1.5, num_buckets=2}",
    "joint.weight=3.0",
)
SHORT = (
    "trainer.num_steps=4",
    "trainer.log_steps=1",
    "trainer.evaluate_steps=2",
    "trainer.checkpoint_steps=2",
    "optimizer.epsilon=1e-3",  # or rounding errors of gradients that are 0 would become whole steps
)


@pytest.fixture(scope="module")
def unlabeled(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = corpus.write(tmp_path_factory.mktemp("more") / "more.tsv", ["abcd", "dd cc", "ba", "cadb"] * 5, seed=7)
    return path


def configure(corpus: Any, unlabeled: Path, *overrides: str) -> FinetuneConfig:
    config: FinetuneConfig = corpus.finetune_config(
        *OBJECTIVE, f"data.unlabeled={unlabeled}", *overrides, stage="scratch"
    )
    return config


def make_task(config: FinetuneConfig) -> Task[Any]:
    torch.manual_seed(config.seed)
    assert config.data.unlabeled is not None
    train, dev, more = map(read_manifest, (config.data.train, config.data.dev, config.data.unlabeled))
    vocabulary = Letters.from_texts(utterance.text or "" for utterance in train)
    return make(config, None, vocabulary, train, dev, more)


def tensors_of(batch: Batch) -> Iterable[Tensor]:
    """All tensors of a batch."""
    found: list[Tensor] = []
    batch._map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


@pytest.mark.parametrize("labeled_too", [False, True])
def test_the_loss_is_that_of_the_labels_and_the_weighted_objectives(
    corpus: Any, unlabeled: Path, labeled_too: bool
) -> None:
    task = make_task(configure(corpus, unlabeled, f"joint.labeled_too={str(labeled_too).lower()}"))
    model = task.model.eval()
    batch = next(task.train.read([0]))
    losses = model(batch, 0)
    labels = model.labeled(batch.labeled, 0)
    assert {name: losses[name] for name in labels} == {
        name: replace(term, sum=losses[name].sum) for name, term in labels.items()
    }
    streams = ("unlabeled", "labeled") if labeled_too else ("unlabeled",)
    assert tuple(batch.others) == streams
    count = len(labels)
    for stream in streams:
        alone = model.parts[0].objective(model.labeled.ctc.encoder, batch.others[stream], 0)
        count += len(alone)
        for name, term in alone.items():
            found = losses[f"{stream}.{name}"]
            torch.testing.assert_close(found.sum, term.sum)
            assert (found.count, found.weight) == (f"{stream}.{term.count}", term.weight * 3 / len(streams))
            assert batch.counts[found.count] == batch.others[stream].counts[term.count]
    assert len(losses) == count
    assert batch.counts.items() >= batch.labeled.counts.items()


def test_each_data_set_has_an_order_of_its_own_that_workers_do_not_change(corpus: Any) -> None:
    # All three streams are of one manifest, with the same bounds.
    settings = ("joint.labeled_too=true", "joint.batches={seconds=4.0, min_seconds=0.1, max_seconds=30.0}")
    config = configure(corpus, corpus.train, *settings, "batches={seconds=4.0}")
    batches = list(make_task(config).train.read(range(12)))
    indices = [tuple(audio.indices for audio in batch.audios) for batch in batches]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert sum(set(parts[first]) == set(parts[second]) for parts in indices) < 6
    later = list(make_task(config).train.read([5, 9]))
    assert [tuple(audio.indices for audio in batch.audios) for batch in later] == [indices[5], indices[9]]
    by_worker = list(
        make_task(configure(corpus, corpus.train, *settings, "batches={seconds=4.0}", "data.num_workers=1")).train.read(
            [5, 9]
        )
    )
    for one, two, three in zip(
        map(tensors_of, later), map(tensors_of, by_worker), map(tensors_of, (batches[5], batches[9])), strict=True
    ):
        for a, b, c in zip(one, two, three, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


def test_all_tensors_of_a_batch_move_together(corpus: Any, unlabeled: Path) -> None:
    batch = next(make_task(configure(corpus, unlabeled, "joint.labeled_too=true")).train.read([0]))
    assert len(list(tensors_of(batch))) > 12
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, JointBatch)
    for part in (moved, moved.labeled, *moved.others.values()):
        assert all(tensor.is_meta for tensor in tensors_of(part))
        assert part.audio.waveforms.is_meta
    assert moved.counts == batch.counts
    assert [audio.indices for audio in moved.audios] == [audio.indices for audio in batch.audios]


class Followed(MaskedPredictionObjective):
    """An objective with everything that lasts: targets that are prepared, a teacher, a count of updates."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.teacher = Teacher(nn.Linear(self.projection.in_features, self.projection.out_features))
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, encoder: SpeechEncoder, batch: Any, step: int) -> Losses:
        losses = dict(super().forward(encoder, batch, step))
        frames = encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths)
        context = encoder.contextualize(frames)
        apart = (self.projection(context) - self.teacher(context)).square().mean(dim=2)
        apart = (apart * batch.mask).sum() * (1 + self.updates)
        return losses | {"apart": replace(losses["hidden_loss"], sum=apart, weight=0.5)}

    def after_update(self, encoder: SpeechEncoder, step: int, all_reduce: AllReduce) -> None:
        self.updates += 1
        self.teacher.follow(self.projection, decay=0.5)


class KilledError(Exception):
    """What a kill is."""


def test_a_run_that_was_killed_ends_as_if_it_had_never_been(
    corpus: Any, unlabeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(config: MaskedPredictionConfig, encoder: Any) -> Followed:
        return Followed(config, encoder.feature_encoder.geometry, encoder.context.model_dim)

    monkeypatch.setattr(MaskedPredictionConfig, "build", build)
    config = configure(corpus, unlabeled, *SHORT)
    finetune(config, tmp_path / "whole")
    after_update = JointObjective.after_update

    def killed(part: JointObjective, ctc: Any, step: int, all_reduce: AllReduce) -> None:
        if step == 3:
            raise KilledError
        after_update(part, ctc, step, all_reduce)

    with monkeypatch.context() as patch:
        patch.setattr(JointObjective, "after_update", killed)
        with pytest.raises(KilledError):
            finetune(config, tmp_path / "resumed")
    assert load_progress(tmp_path / "resumed").step == 2
    with monkeypatch.context() as patch:
        patch.setattr(Followed, "prepare", lambda *arguments: pytest.fail("a run that resumes has its targets"))
        finetune(config, tmp_path / "resumed")
    whole, resumed = (
        safetensors.torch.load_file(tmp_path / run / "latest" / "training.safetensors") for run in ("whole", "resumed")
    )
    assert whole.keys() == resumed.keys()
    assert whole["teacher/parts.0.objective.updates"] == 4
    assert whole["teacher/parts.0.objective.centers"].abs().max() > 0
    for name, tensor in chain(whole.items(), read_model(tmp_path / "whole").weights.items()):
        found = resumed[name] if name in resumed else read_model(tmp_path / "resumed").weights[name]
        assert torch.equal(found, tensor), name


@pytest.fixture(scope="module")
def of_one(corpus: Any, unlabeled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("joint") / "one"
    finetune(configure(corpus, unlabeled, *SHORT, "joint.labeled_too=true"), run)
    return run


def test_the_model_is_a_plain_one_that_learned_from_all(
    corpus: Any, unlabeled: Path, of_one: Path, tmp_path: Path
) -> None:
    finetune(corpus.finetune_config(*SHORT, stage="scratch"), tmp_path / "plain")
    found, plain = read_model(of_one), read_model(tmp_path / "plain")
    assert {name: weight.shape for name, weight in found.weights.items()} == {
        name: weight.shape for name, weight in plain.weights.items()
    }
    assert load_ctc(of_one).vocabulary == load_ctc(tmp_path / "plain").vocabulary
    assert [(data.stage, data.labeled) for data in found.description.training_data] == [
        ("finetune", True),
        ("finetune", False),
    ]
    seconds = [sum(utterance.seconds for utterance in read_manifest(path)) for path in (corpus.train, unlabeled)]
    assert [data.hours for data in found.description.training_data] == pytest.approx([s / 3600 for s in seconds])
    dev = [record for record in read_log(of_one) if record["split"] == "dev"]
    assert dev[0].keys() == {"step", "split", "loss", "ctc", "wer", "cer", "nothing_said"}, "dev has labels alone"
    record = read_log(of_one)[0]
    shares = (record[f"{stream}.prediction"] + 10 * record[f"{stream}.penalty"] for stream in ("unlabeled", "labeled"))
    assert record["loss"] == pytest.approx(record["ctc"] + 1.5 * sum(shares), rel=1e-5)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_it_as_one(
    kind: str, unlabeled: Path, of_one: Path, finetuned_by_two: Callable[..., None]
) -> None:
    overrides = (
        *OBJECTIVE,
        f"data.unlabeled={unlabeled}",
        *SHORT,
        "joint.labeled_too=true",
        f"trainer.parallel={kind}",
    )
    finetuned_by_two(of_one, "scratch", *overrides)


def test_what_is_learned_without_labels_reaches_the_encoder_and_what_predicts(
    corpus: Any, unlabeled: Path, tmp_path: Path
) -> None:
    def weights(*overrides: str) -> dict[str, Tensor]:
        run = tmp_path / str(len(list(tmp_path.iterdir())))
        finetune(configure(corpus, unlabeled, *SHORT, *overrides), run)
        tensors = safetensors.torch.load_file(run / "latest" / "training.safetensors")
        return dict(read_model(run).weights) | tensors

    one, other = weights("joint.weight=3.0"), weights("joint.weight=30.0")
    moved = [name for name in one if name.startswith("encoder.") and not torch.equal(one[name], other[name])]
    assert any(".feature_encoder." in name for name in moved)
    assert any(".context." in name for name in moved)
    assert one["step/parts.0.objective.embeddings"] == 4


def test_messages_name_the_utterances_of_the_right_manifest(
    corpus: Any, unlabeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(corpus, unlabeled, *SHORT)
    train = make_task(config).train
    batch = next(train.read([4]))  # the first of the third update
    assert isinstance(train, JointBatches)
    labeled, other = (
        [stream.manifest.where(i) for i in audio.indices]
        for stream, audio in zip(train.streams, batch.audios, strict=True)
    )
    forward = MaskedPredictionObjective.forward
    outcome: Callable[[Losses], Losses]

    def at_four(objective: Any, encoder: Any, batch: TaskBatch, step: int) -> Losses:
        losses = forward(objective, encoder, batch, step)  # type: ignore[arg-type]
        return outcome(losses) if step == 2 else losses

    monkeypatch.setattr(MaskedPredictionObjective, "forward", at_four)

    def outcome(losses: Losses) -> Losses:
        term = losses["prediction"]
        return {**losses, "prediction": replace(term, sum=term.sum * float("nan"))}

    with pytest.raises(TrainingError, match=r"^step 3: expected a finite loss, found nan on ") as caught:
        finetune(config, tmp_path / "nan")
    assert str(caught.value).partition(" on ")[2] == ", ".join([*labeled, *other])

    def outcome(losses: Losses) -> Losses:  # noqa: F811
        raise MemoryError

    with pytest.raises(TrainingError, match=r"^step 3 on cpu, a batch of ") as caught:
        finetune(config, tmp_path / "memory")
    assert f"({', '.join(labeled[:3])}" in str(caught.value)
    assert f" and a batch of {len(other)} x " in str(caught.value)
    assert f"({', '.join(other[:3])}" in str(caught.value)


def test_an_objectives_limits_hold_here_too(
    corpus: Any, unlabeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MaskedPredictionConfig, "limits", (Limit("hidden_accuracy", 1.1, 2, "it is impossible"),))
    message = r"^step 2: expected unlabeled\.hidden_accuracy of at least 1\.1, found .*: it is impossible$"
    with pytest.raises(TrainingError, match=message):
        finetune(configure(corpus, unlabeled, *SHORT), tmp_path / "run")


def test_unlabeled_speech_and_what_learns_from_it_need_each_other(corpus: Any, unlabeled: Path, tmp_path: Path) -> None:
    message = "configuration: data.unlabeled and what learns from it.* need each other$"
    with pytest.raises(ConfigError, match=message):
        corpus.finetune_config(f"data.unlabeled={unlabeled}", stage="scratch")
    with pytest.raises(ConfigError, match=message):
        corpus.finetune_config(*OBJECTIVE, stage="scratch")
    config = configure(corpus, unlabeled, "joint.batches.min_seconds=0.001")
    with pytest.raises(ConfigError, match=r"^joint\.batches\.min_seconds must be at least 0\.\d+, 2 frames$"):
        finetune(config, tmp_path / "run")
    for objective, message in (("apc", "does not see the future"), ("data2vec", "num_target_layers must be at most")):
        config = configure(corpus, unlabeled, f'joint.objective={{kind="{objective}"}}')
        with pytest.raises(ConfigError, match=rf"^joint\.objective: .*{message}"):
            make_task(config)


def test_other_unlabeled_speech_is_another_run(corpus: Any, unlabeled: Path, of_one: Path) -> None:
    config = configure(corpus, corpus.train, *SHORT, "joint.labeled_too=true")
    with pytest.raises(TrainingError, match=r"this run was started with different settings .*unlabeled"):
        finetune(config, of_one)


def test_what_an_objective_freezes_does_not_learn_here_either(
    corpus: Any, unlabeled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frozen(objective: nn.Module, encoder: SpeechEncoder, step: int) -> tuple[nn.Module, ...]:
        return (encoder.context.norm,) if step >= 3 else ()

    monkeypatch.setattr(MaskedPredictionObjective, "frozen", frozen)
    task = make_task(configure(corpus, unlabeled))
    norm = task.saved_module.encoder.context.norm
    assert norm not in task.frozen(2)
    assert norm in task.frozen(3)


def test_targets_of_another_model_are_for_pretraining(corpus: Any, unlabeled: Path) -> None:
    with pytest.raises(ConfigError, match=r"joint: .*pretraining of its own"):
        configure(corpus, unlabeled, 'joint.objective.targets={model="m", layer=1}')
