"""Momentum pseudo-labels: what the teacher says, who learns it, how the teacher moves, and that collapse is seen."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from speechssl.checkpoint.reader import load_ctc, read_model
from speechssl.checkpoint.training_state import load_progress
from speechssl.data.batches import AudioBatch, Example
from speechssl.data.manifest import read_manifest, read_utterance, write_manifest
from speechssl.data.units import Letters
from speechssl.decode.greedy import greedy_path
from speechssl.errors import ConfigError, TrainingError
from speechssl.frames import FrameGeometry
from speechssl.model.ctc import CTCModel, CTCOutput
from speechssl.objective.objective import AllReduce
from speechssl.scoring.error_rates import score
from speechssl.train.finetune import FinetuneConfig, finetune
from speechssl.train.finetune import make_task as make
from speechssl.train.labeled import LabeledBatch, LabeledCollate, RegularizationConfig
from speechssl.train.log import read_log
from speechssl.train.pseudo_labels import PseudoBatch, PseudoCollate, PseudoLabels, PseudoLabelsConfig, _labels
from speechssl.train.task import Task
from speechssl.train.trainer_config import TrainerConfig

SHORT = (
    "keep_head=true",
    "pseudo_labels.min_labels_per_frame=0.0",
    "trainer.num_steps=4",
    "trainer.log_steps=1",
    "trainer.evaluate_steps=2",
    "trainer.checkpoint_steps=2",
    "optimizer.epsilon=1e-3",
)
LETTERS = Letters.from_texts(["abc"])  # <blank> | a b c
A, B, C = 2, 3, 4
PLAIN = RegularizationConfig()


@pytest.fixture(scope="module")
def unlabeled(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = corpus.write(tmp_path_factory.mktemp("more") / "more.tsv", ["abcd", "dd cc", "ba", "cadb"] * 5, seed=7)
    return path


@pytest.fixture(scope="module")
def finetuned(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finetuned") / "run"
    finetune(corpus.finetune_config("trainer.num_steps=40", "optimizer.learning_rate=5e-3", stage="scratch"), run)
    return run


def settings(unlabeled: Path, finetuned: Path) -> tuple[str, ...]:
    return (*SHORT, f"init={finetuned}", f"data.unlabeled={unlabeled}", "pseudo_labels={}")


def configure(corpus: Any, unlabeled: Path, finetuned: Path, *overrides: str) -> FinetuneConfig:
    config: FinetuneConfig = corpus.finetune_config(
        "pseudo_labels={}", *settings(unlabeled, finetuned)[:-1], *overrides
    )
    return config


def make_task(config: FinetuneConfig) -> Task[Any]:
    torch.manual_seed(config.seed)
    assert config.data.unlabeled is not None
    assert config.init is not None
    saved = read_model(config.init)
    assert saved.vocabulary is not None
    train, dev, more = map(read_manifest, (config.data.train, config.data.dev, config.data.unlabeled))
    return make(config, saved, saved.vocabulary, train, dev, more)


class Says(nn.Module):
    """A model that says these symbols, a row a recording, with probability ``certainty`` each."""

    def __init__(self, rows: Sequence[Sequence[int]], certainty: float = 0.9) -> None:
        super().__init__()
        num_frames = max(map(len, rows))
        best = torch.tensor([[*row, *[C] * (num_frames - len(row))] for row in rows])  # behind the end it says c
        probs = torch.full((*best.shape, len(LETTERS)), (1 - certainty) / (len(LETTERS) - 1))
        self.logits = nn.Parameter(probs.scatter(2, best[:, :, None], certainty).log())

    def forward(self, waveforms: Tensor, *masks: Any) -> CTCOutput:
        return CTCOutput(self.logits.log_softmax(dim=2), torch.empty(0))


def planted(
    teacher: Sequence[Sequence[int]],
    student: Sequence[Sequence[int]],
    texts: Sequence[str | None] | None = None,
    **changes: Any,
) -> tuple[dict[str, float], PseudoBatch, Says, Any]:
    """The means of what is measured, and of the loss."""
    says = Says(student)
    part = PseudoLabels(
        PseudoLabelsConfig(**changes),
        Says(teacher),
        PLAIN,
        LETTERS,
        TrainerConfig(num_steps=10),
        has_texts=texts is not None,
    )  # type: ignore[arg-type]
    frames = tuple(map(len, student))
    empty = torch.zeros(0, dtype=torch.int64)
    audio = AudioBatch(torch.zeros(len(frames), 1), None, tuple(range(len(frames))))
    changed = LabeledBatch(audio, {}, empty, (0,) * len(frames), frames, empty, empty, texts=("",) * len(frames))
    texts = texts or [None] * len(frames)
    counts = {
        "utterances": len(frames),
        "frames": sum(map(len, teacher)),
        "characters": sum(map(len, filter(None, texts))),
    }
    batch = PseudoBatch(audio, counts, tuple(map(len, teacher)), changed, tuple(texts))
    losses = part(says, {"pseudo": batch}, 5)  # type: ignore[arg-type]
    means = {
        name.removeprefix("pseudo."): term.sum.item() / counts[term.count.removeprefix("pseudo.")]
        for name, term in losses.items()
    }
    return means, batch, says, losses


def test_the_student_learns_what_the_teacher_says_and_the_measures_are_right() -> None:
    teacher = [[A, A, 0, A, B, 0, 0, 0], [0, C, C, 0]]  # "aab", and "c" in fewer frames
    student = [[A, 0, 0, B, B, 0, 0, 0], [0, 0, 0, 0]]  # "ab", nothing
    means, _, says, losses = planted(teacher, student, ["aabc", None])
    log_probs = says.logits.log_softmax(dim=2).transpose(0, 1)
    wanted = nn.functional.ctc_loss(log_probs, torch.tensor([A, A, B, C]), (8, 4), (3, 1), blank=0, reduction="none")
    assert means["ctc"] == pytest.approx(wanted.mean().item(), rel=1e-5)
    assert means["labels_per_frame"] == pytest.approx(4 / 12)
    assert means["left_out"] == 0
    assert means["agreement"] == pytest.approx((2 / 3 + 0) / 2)
    assert means["teacher_cer"] == pytest.approx(1 / 4)
    losses["pseudo.ctc"].sum.backward()
    assert says.logits.grad is not None
    assert all(row.abs().max() > 0 for row in says.logits.grad)


def test_empty_labels_and_too_many_are_left_out_and_counted() -> None:
    # Nothing; "aaa", which needs five frames, twice; six labels. The student hears all but the first faster.
    teacher = [[0] * 6, [A, 0, A, 0, A, 0], [A, 0, A, 0, A, 0], [A, B, C, A, B, C]]
    student = [[0] * 6, [A, 0, A, B, 0], [A, 0, A, 0], [A, B, C, A, B]]
    means, _, says, losses = planted(teacher, student)
    assert means["left_out"] == pytest.approx(3 / 4)
    assert "teacher_cer" not in means
    assert means["labels_per_frame"] == pytest.approx(12 / 24), "they are counted before they are left out"
    assert means["agreement"] == pytest.approx((1 + 2 / 3 + 2 / 3 + 5 / 6) / 4), "that both say nothing is agreement"
    loss = losses["pseudo.ctc"].sum
    assert torch.isfinite(loss)
    loss.backward()
    assert says.logits.grad is not None
    assert says.logits.grad.isfinite().all()
    assert [bool(row.abs().max() > 0) for row in says.logits.grad] == [False, True, False, False]
    assert losses["pseudo.ctc"].weight == 1.0
    assert planted(teacher, student, weight=0.25)[3]["pseudo.ctc"].weight == 0.25


def test_labels_are_those_of_the_greedy_path() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(5, 30, 4, generator=generator)
    frames = (30, 1, 17, 29, 8)
    expected = [
        [token.symbol_id for token in greedy_path([row[:length]], 1)]
        for row, length in zip(log_probs, frames, strict=True)
    ]
    assert _labels(log_probs.argmax(dim=2), frames, 1) == expected


def test_the_teacher_moves_by_the_momentum_from_where_it_starts(corpus: Any, unlabeled: Path, finetuned: Path) -> None:
    for start_step in (0, 2):
        task = make_task(
            configure(
                corpus, unlabeled, finetuned, f"pseudo_labels.start_step={start_step}", "pseudo_labels.share_left=0.1"
            )
        )
        part, ctc = task.model.parts[0], task.model.labeled.ctc
        decay = 0.1 ** (1 / (4 - start_step))
        assert decay ** (4 - start_step) == pytest.approx(0.1)
        expected = {name: weight.clone() for name, weight in ctc.named_parameters()}
        for step in range(1, 5):
            with torch.no_grad():
                for weight in ctc.parameters():
                    weight += torch.randn_like(weight)
            task.after_update(step, lambda tensor: None)
            for name, weight in part.teacher.network.named_parameters():
                student = ctc.get_parameter(name)
                if step == start_step:
                    expected[name] = student.detach().clone()
                elif step > start_step:
                    expected[name] = decay * expected[name] + (1 - decay) * student.detach()
                torch.testing.assert_close(weight.detach(), expected[name], msg=f"{name} after {step}")


def test_a_real_run_moves_its_teacher(corpus: Any, unlabeled: Path, finetuned: Path, tmp_path: Path) -> None:
    finetune(
        configure(
            corpus, unlabeled, finetuned, "trainer.num_steps=1", "schedule.warmup=0.0", "schedule.start_scale=1.0"
        ),
        tmp_path / "run",
    )
    before, after = read_model(finetuned).weights, read_model(tmp_path / "run").weights
    teacher = safetensors.torch.load_file(tmp_path / "run" / "latest" / "training.safetensors")
    moved = 0
    for name, weight in after.items():
        found = teacher[f"teacher/parts.0.teacher.network.{name}"]
        torch.testing.assert_close(found - before[name], 0.5 * (weight - before[name]), rtol=1e-3, atol=1e-7, msg=name)
        moved += int(not torch.equal(found, before[name]))
    assert moved > len(after) / 2


def test_the_teacher_hears_the_recording_as_it_is_without_noise_and_learns_nothing(
    corpus: Any, unlabeled: Path, finetuned: Path
) -> None:
    overrides = (
        "regularization.speeds=[0.8, 1.25]",
        "regularization.time_mask.min_spans=1",
        "regularization.dropout=0.3",
    )
    task = make_task(configure(corpus, unlabeled, finetuned, *overrides))
    task.model.train()
    part = task.model.parts[0]
    batch = next(task.train.read([0]))
    pseudo = batch.others["pseudo"]
    utterances = [read_manifest(unlabeled)[index] for index in pseudo.audio.indices]
    plain = load_ctc(finetuned).model
    rows = []
    for row, utterance in zip(pseudo.audio.waveforms, utterances, strict=True):
        waveform = torch.from_numpy(read_utterance(utterance))
        assert torch.equal(row[: len(waveform)], waveform)
        (log_probs,) = plain(waveform[None]).log_probs
        rows.append([token.symbol_id for token in greedy_path([log_probs], 0)])
    heard = part.teacher(pseudo.audio.waveforms, pseudo.audio.lengths)
    assert _labels(heard.log_probs.argmax(dim=2), pseudo.num_frames, 0) == rows
    assert any(rows)
    assert pseudo.changed.audio.waveforms.shape[1] != pseudo.audio.waveforms.shape[1]
    assert pseudo.changed.mask.any()
    losses = task.model(batch, 0)
    texts, hypotheses = (
        [utterance.text or "" for utterance in utterances],
        [task.train.collate.vocabulary.decode(row) for row in rows],
    )
    expected = score(texts, hypotheses).characters
    assert losses["pseudo.teacher_cer"].sum == expected.total
    assert batch.counts["pseudo.characters"] == expected.reference_length
    losses["pseudo.ctc"].sum.backward()
    assert all(weight.grad is None and not weight.requires_grad for weight in part.teacher.parameters())
    assert task.model.labeled.ctc.head.weight.grad.abs().max() > 0


def test_true_texts_are_measured_and_never_learned(
    corpus: Any, unlabeled: Path, finetuned: Path, tmp_path: Path
) -> None:
    utterances = list(read_manifest(unlabeled))
    for name, texts in (("none", None), ("wrong", "wxyz")):
        write_manifest(tmp_path / f"{name}.tsv", [replace(utterance, text=texts) for utterance in utterances], "/")
    runs = {"true": unlabeled, "none": tmp_path / "none.tsv", "wrong": tmp_path / "wrong.tsv"}
    for name, path in runs.items():
        finetune(configure(corpus, path, finetuned), tmp_path / name)
    weights = [read_model(tmp_path / name).weights for name in runs]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], weight) for name, weight in other.items())
    logs = {name: read_log(tmp_path / name)[0] for name in runs}
    assert logs["none"].keys() == logs["true"].keys() - {"pseudo.teacher_cer"}
    assert logs["true"]["pseudo.teacher_cer"] < logs["wrong"]["pseudo.teacher_cer"]


def test_before_it_starts_nothing_is_learned_of_unlabeled_speech(corpus: Any, unlabeled: Path, tmp_path: Path) -> None:
    overrides = ("pseudo_labels.start_step=2", "keep_head=false")
    config = corpus.finetune_config(*SHORT, f"data.unlabeled={unlabeled}", *overrides, stage="scratch")
    finetune(config, tmp_path / "run")
    finetune(corpus.finetune_config(*SHORT[2:], stage="scratch"), tmp_path / "plain")
    found, plain = (
        [record for record in read_log(tmp_path / run) if record["split"] == "train"] for run in ("run", "plain")
    )
    assert ["pseudo.ctc" in record for record in found] == [False, False, True, True]
    for mine, theirs in zip(found[:3], plain, strict=False):
        assert mine["ctc"] == theirs["ctc"]
    assert found[3]["ctc"] != plain[3]["ctc"]


def test_a_teacher_that_says_nothing_ends_the_run(
    corpus: Any, unlabeled: Path, finetuned: Path, tmp_path: Path
) -> None:
    silent = read_model(finetuned).ctc("cpu").model
    config = configure(corpus, unlabeled, finetuned, "pseudo_labels.min_labels_per_frame=0.02")
    finetune(config, tmp_path / "healthy")
    forward = CTCModel.forward

    def blank(model: CTCModel, *arguments: Any) -> CTCOutput:
        output = forward(model, *arguments)
        bias = torch.zeros(output.log_probs.shape[2])
        bias[0] = 0.0 if model.training else 50.0  # only the teacher collapsed
        return replace(output, log_probs=(output.log_probs + bias).log_softmax(dim=2))

    assert silent.head.out_features == len(load_ctc(finetuned).vocabulary)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CTCModel, "forward", blank)
        message = (
            r"^step 1: expected pseudo\.labels_per_frame of at least 0\.02, found 0: the teacher says next to nothing"
        )
        with pytest.raises(TrainingError, match=message):
            finetune(config, tmp_path / "collapsed")


class KilledError(Exception):
    """What a kill is."""


JOINT = (
    'joint.objective={kind="masked_prediction", num_clusters=6, num_bands=8, comparison_dim=16, fit_seconds=20.0}',
    "joint.objective.mask={start_prob=0.1, span_frames=2}",
    "joint.batches={seconds=3.0, min_seconds=0.3, max_seconds=1.5, num_buckets=2}",
)


@pytest.fixture(scope="module")
def of_one(corpus: Any, unlabeled: Path, finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("momentum") / "one"
    finetune(configure(corpus, unlabeled, finetuned, *JOINT, "pseudo_labels.share_left=0.01"), run)
    return run


def test_it_resumes_exactly_with_its_teacher_and_an_objective_beside_it(
    corpus: Any, unlabeled: Path, finetuned: Path, of_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(corpus, unlabeled, finetuned, *JOINT, "pseudo_labels.share_left=0.01")
    after_update = PseudoLabels.after_update

    def killed(part: PseudoLabels, ctc: Any, step: int, all_reduce: AllReduce) -> None:
        if step == 3:
            raise KilledError
        after_update(part, ctc, step, all_reduce)

    with monkeypatch.context() as patch:
        patch.setattr(PseudoLabels, "after_update", killed)
        with pytest.raises(KilledError):
            finetune(config, tmp_path / "run")
    assert load_progress(tmp_path / "run").step == 2
    finetune(config, tmp_path / "run")
    for file in ("training.safetensors", "model.safetensors"):
        found, expected = (safetensors.torch.load_file(run / "latest" / file) for run in (tmp_path / "run", of_one))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_it_as_one(
    kind: str, unlabeled: Path, finetuned: Path, of_one: Path, finetuned_by_two: Callable[..., None]
) -> None:
    overrides = (
        *settings(unlabeled, finetuned)[:-1],
        *JOINT,
        "pseudo_labels.share_left=0.01",
        f"trainer.parallel={kind}",
    )
    finetuned_by_two(of_one, "finetune", *overrides)


def test_shapes_are_fixed_if_asked_for() -> None:
    geometry = FrameGeometry((10, 4), (5, 4))
    labeled = LabeledCollate(geometry, 8, LETTERS, RegularizationConfig(speeds=(0.9, 1.0, 1.1), consistency=0.2), 0)
    generator = torch.Generator().manual_seed(0)

    def shapes(fixed_samples: int | None) -> set[str]:
        found = set()
        for first in range(6):
            lengths = (4000, 3000 + 100 * first) if first else (4000, 4000)
            examples = [
                Example(first * 2 + row, 0, torch.randn(n, generator=generator).numpy(), "ab", fixed_samples)
                for row, n in enumerate(lengths)
            ]
            batch = PseudoCollate(labeled)(examples)
            tensors: list[Any] = []
            batch._map(lambda tensor: tensors.append(tuple(tensor.shape)) or tensor)  # type: ignore[func-returns-value] # noqa: B023
            found.add(str(tensors))
        return found

    assert len(shapes(4000)) == 1
    assert len(shapes(None)) > 1


def test_fixed_shapes_change_no_loss(corpus: Any, unlabeled: Path, finetuned: Path) -> None:
    sums = []
    for fixed in ("false", "true"):
        config = configure(
            corpus,
            unlabeled,
            finetuned,
            "pseudo_labels.batches={seconds=4.0, min_seconds=0.0, max_seconds=30.0, num_buckets=2}",
            f"pseudo_labels.batches.fixed_shapes={fixed}",
        )
        task = make_task(config)
        task.model.eval()
        losses = task.model(next(task.train.read([0])), 0)
        sums.append({name: term.sum.item() for name, term in losses.items()})
    assert sums[0] == pytest.approx(sums[1], rel=1e-4, abs=1e-4)


def test_it_needs_a_model_that_says_something(corpus: Any, unlabeled: Path, finetuned: Path) -> None:
    message = "pseudo_labels need a model that says something: give init with keep_head, or pseudo_labels.start_step"
    with pytest.raises(ConfigError, match=message):
        configure(corpus, unlabeled, finetuned, "keep_head=false")
    with pytest.raises(ConfigError, match=r"pseudo_labels\.start_step must be below trainer\.num_steps, found 4$"):
        configure(corpus, unlabeled, finetuned, "pseudo_labels.start_step=4")
