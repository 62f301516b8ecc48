"""Momentum pseudo-labeling: the model learns unlabeled speech from what a moving average of it says there.

As published (Higuchi et al., 2021, https://arxiv.org/abs/2106.08922): the teacher hears the recording as it is, without
noise, and says its greedy labels; the student learns them by CTC from the changed and masked recording; after each
update the teacher's weights keep a share m of themselves, m^updates being ``share_left``. Two things differ. Labeled
and unlabeled batches are in one update, where the paper alternates between them; and with two views the student's
views of unlabeled speech are to agree too, as those of labeled speech.

Shapes: B batch, S frames, W views.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from speechssl.config import Config
from speechssl.data.batches import Example, TaskBatch, collate_audio
from speechssl.data.manifest import Manifest
from speechssl.data.sampler import BatchConfig
from speechssl.data.units import Units, num_frames_needed
from speechssl.model.ctc import CTCModel, CTCOutput, consistency_losses, mean_ctc_losses
from speechssl.objective.objective import AllReduce, Limit, Losses, Term
from speechssl.objective.teacher import Teacher
from speechssl.scoring.error_rates import normalize_for_scoring, score
from speechssl.train.joint import Part, of_stream, stream_seed
from speechssl.train.labeled import LabeledBatch, LabeledCollate, RegularizationConfig, stack_labels
from speechssl.train.task import Batches
from speechssl.train.trainer_config import TrainerConfig

STREAM = "pseudo"


class PseudoLabelsConfig(Config):
    """The section ``pseudo_labels`` of a fine-tuning configuration."""

    weight: float = Field(1.0, gt=0)  # of unlabeled speech, where labeled speech has 1
    share_left: float = Field(0.5, gt=0, lt=1)  # of the teacher's first weights, that is in it at the end of the run
    start_step: int = Field(0, ge=0)  # updates with labels alone, after which the teacher is a copy of the student
    min_labels_per_frame: float = Field(0.02, ge=0)  # a teacher that says less ends the run
    batches: BatchConfig | None = None  # None is as for labeled speech


@dataclass(frozen=True)
class PseudoBatch(TaskBatch):
    """Unlabeled speech as it is and as the student hears it; its counts are "utterances", "frames" and "characters"."""

    num_frames: tuple[int, ...]  # of the recordings as they are
    changed: LabeledBatch  # without labels
    texts: tuple[str | None, ...]  # to measure the pseudo-labels with, if there are any; nothing is learned from them


@dataclass(frozen=True)
class PseudoCollate:
    """Makes a batch in the loader's worker."""

    labeled: LabeledCollate

    def __call__(self, examples: Sequence[Example]) -> PseudoBatch:
        """Stack the recordings as they are, and as labeled ones are changed and masked."""
        texts = tuple(example.text or None for example in examples)
        frames = tuple(self.labeled.geometry.num_frames(len(example.waveform)) for example in examples)
        characters = sum(len(normalize_for_scoring(text)) for text in texts if text)
        counts = {"utterances": len(texts), "frames": sum(frames), "characters": characters}
        changed = self.labeled([replace(example, text=None) for example in examples])
        if examples[0].fixed_samples is not None:  # as there, no batch is without padding
            examples = [replace(example, fixed_samples=(example.fixed_samples or 0) + 1) for example in examples]
        return PseudoBatch(collate_audio(examples), counts, frames, changed, texts)


class PseudoLabels(Part):
    """A teacher, and what the student learns from it."""

    streams = (STREAM,)

    def __init__(
        self,
        config: PseudoLabelsConfig,
        ctc: CTCModel,
        regularization: RegularizationConfig,
        vocabulary: Units,
        trainer: TrainerConfig,
        *,
        has_texts: bool,
    ) -> None:
        super().__init__()
        self.config = config
        self.teacher = Teacher(deepcopy(ctc))
        self.regularization = regularization
        self.vocabulary = vocabulary
        self.has_texts = has_texts
        self.decay = config.share_left ** (1 / (trainer.num_steps - config.start_step))
        meaning = (
            "the teacher says next to nothing; start from a model that was fine-tuned already (keep_head), or later "
            "(pseudo_labels.start_step), or give unlabeled speech less weight (pseudo_labels.weight)"
        )
        metric, first = (
            f"{STREAM}.labels_per_frame",
            config.start_step + trainer.log_steps,
        )  # a line without earlier updates
        self.limits = (Limit(metric, config.min_labels_per_frame, first, meaning),)
        self.shown_metrics = (metric, f"{STREAM}.agreement", *([f"{STREAM}.teacher_cer"] if has_texts else []))

    def forward(self, ctc: CTCModel, batches: Mapping[str, Any], step: int) -> Losses:
        """Compute the student's loss on the teacher's labels, once there is a teacher.

        What is left out, because the teacher says nothing or more than the student's frames can carry, counts as an
        utterance without loss: the counts are known before the labels are.

        Returns:
            The loss, of several views their mean, and how far the views are apart; the labels a frame, the share of
            the utterances left out, the mean over utterances of how much of the teacher's text the student says too
            (1 - edits / length, from the changed recording), and the teacher's error rate where there are texts.
        """
        if step < self.config.start_step:
            return {}
        batch: PseudoBatch = batches[STREAM]
        changed, blank_id, num_views = batch.changed, self.vocabulary.blank_id, self.regularization.num_views
        taught = _best(self.teacher(batch.audio.waveforms, batch.audio.lengths))
        output = ctc(changed.audio.waveforms, changed.audio.lengths, changed.mask, changed.channel_mask)
        # CTC takes labels' lengths on the host: this waits for a GPU, which has both models' work to do.
        labels = _labels(taught, batch.num_frames, blank_id)
        said = _labels(_best(output), changed.num_frames, blank_id)

        fits = [bool(row) and num_frames_needed(row) <= n for row, n in zip(labels, changed.num_frames, strict=True)]
        learned = [row if is_kept else [] for row, is_kept in zip(labels, fits, strict=True)]
        device = output.log_probs.device
        targets = stack_labels(learned, output.log_probs.shape[1] if changed.labels.dim() == 2 else None).to(device)
        lengths = [*map(len, learned)]
        ctc_losses = mean_ctc_losses(output, targets, changed.num_frames, lengths, blank_id, num_views)
        terms = {"ctc": Term((ctc_losses * torch.tensor(fits, device=device)).sum(), "utterances", 1.0)}
        if self.regularization.consistency:
            terms["consistency"] = Term(consistency_losses(output).sum(), "utterances", self.regularization.consistency)
        measures = {
            "labels_per_frame": (sum(map(len, labels)), "frames"),
            "left_out": (len(fits) - sum(fits), "utterances"),
            **self._compare(labels, said, batch.texts),
        }
        values = torch.tensor([float(value) for value, _ in measures.values()], device=device)
        terms |= {name: Term(value, count) for value, (name, (_, count)) in zip(values, measures.items(), strict=True)}
        return of_stream(STREAM, terms, self.config.weight)

    def _compare(
        self, labels: Sequence[Sequence[int]], said: Sequence[Sequence[int]], texts: Sequence[str | None]
    ) -> dict[str, tuple[float, str]]:
        taught, heard = ([self.vocabulary.decode(row) for row in rows] for rows in (labels, said))
        pairs = score(taught, heard).character_counts
        agreement = sum(1 - pair.total / max(pair.total, pair.reference_length, 1) for pair in pairs)
        found = {"agreement": (agreement, "utterances")}
        if self.has_texts:
            known = [(text, guess) for text, guess in zip(texts, taught, strict=True) if text]
            errors = score(*zip(*known, strict=True)).characters.total if known else 0
            found["teacher_cer"] = (errors, "characters")
        return found

    def after_update(self, ctc: CTCModel, step: int, all_reduce: AllReduce) -> None:
        """Follow the student; as long as labels are learned alone, there is nobody to follow it."""
        if step >= self.config.start_step:
            self.teacher.follow(ctc, decay=0.0 if step == self.config.start_step else self.decay)


def make_stream(
    config: PseudoLabelsConfig, labeled: Batches[LabeledBatch], unlabeled: Manifest, seed: int
) -> Batches[PseudoBatch]:
    """Make the batches of unlabeled speech, as those of labeled speech are made."""
    assert isinstance(labeled.collate, LabeledCollate)
    own_seed = stream_seed(seed, STREAM)
    collate = PseudoCollate(replace(labeled.collate, seed=own_seed))
    batches = config.batches or labeled.sampler.config
    microbatches = labeled.sampler.microbatches
    return Batches.of_manifest(
        unlabeled, batches, collate, labeled.num_workers, own_seed, crop=False, microbatches=microbatches
    )


def _best(output: CTCOutput) -> Tensor:
    return output.log_probs.argmax(dim=2)


def _labels(best: Tensor, num_frames: Sequence[int], blank_id: int) -> list[list[int]]:
    """The labels of greedy paths, (B or more, S), of the first rows with so many frames."""
    return [
        [symbol for symbol, _ in groupby(path[:length]) if symbol != blank_id]
        for path, length in zip(best.tolist(), num_frames, strict=False)
    ]
