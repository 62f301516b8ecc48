"""A contrast of the reversed future: the past read forward and the future read backward are each other's positive.

The idea is that of Self-GenomeNet (Gündüz et al., 2023, https://doi.org/10.1038/s42003-023-05310-2), which reads a DNA
sequence forward and its reverse complement with one network: what the network knows of the past up to a position shall
tell what it knows of the future, read from the end back to some steps further, among that of other sequences, and the
other way round. Scores are plain products, with a matrix for each number of steps, and without a temperature. What
differs:

* Speech has no complement. The future is the recording reversed in time; each direction hears a view of its own, with
  other noise, channel and level.
* Other recordings can be told by voice and channel alone. So all other split points of the same recording are wrong
  answers as well, and of other recordings all points, where Self-GenomeNet compares one point of each sequence.
* Here loss and measures say how often the right split is found among those of its own recording, and among those of
  others: if the second is high and the first is not, voice and channel are all that was learned.

What others share a batch decides the loss, unless ``negatives`` is "own".

Shapes: B batch, T samples, S frames, D model dim, G gaps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.batches import AudioBatch, Example, TaskBatch, collate_audio
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.collapse import spread_and_rank
from speechssl.objective.objective import Limit, Losses, Objective, ObjectiveConfig, Term
from speechssl.objective.projector import ValidNorm
from speechssl.objective.views import Views, ViewsConfig, apply_views, draw_views

_VIEWS = (54, 55)  # the purposes of the generators that draw the views of the two directions


class ReversedFutureConfig(ObjectiveConfig):
    """The objective; the gaps are those of Self-GenomeNet.

    Attributes:
        gaps: Frames from the last one of the past to the first one of the future; 1 leaves none out.
        negatives: What the right future is told from: the "own" recording's other split points, those of "others" of
            the batch, or "all".
        logit_temperature: Divides cosine similarities; None has plain products instead, as published.
        norm_over: The frames over which every dimension of what is compared has mean 0 and variance 1. Over an
            "utterance" nothing that is the same throughout a recording, as its voice, can be compared. Without any, as
            published, the context of wav2vec's network, which is positive, becomes the same everywhere.
    """

    best_metric: ClassVar[str] = "contrast"
    shown_metrics: ClassVar[tuple[str, ...]] = ("loss", "own_accuracy", "others_accuracy", "spread", "rank")
    predicts_future: ClassVar[bool] = True

    kind: Literal["reversed_future"] = "reversed_future"
    views: ViewsConfig = ViewsConfig()
    gaps: tuple[int, ...] = tuple(range(2, 20))
    negatives: Literal["own", "others", "all"] = "all"
    logit_temperature: Annotated[float, Field(gt=0)] | None = None
    norm_over: Literal["none", "batch", "utterance"] = "none"

    @model_validator(mode="after")
    def _looks_ahead(self) -> Self:
        if not self.gaps or min(self.gaps) < 1:
            raise ValueError("gaps needs at least one value, each of 1 or more")
        return self

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Of what is compared."""
        meaning = 'the context has become the same everywhere; try objective.norm_over = "utterance", or a lower rate'
        return Limit("spread", 0.01, 1000, meaning), Limit("rank", 1.5, 1000, meaning)

    def min_frames(self, geometry: FrameGeometry) -> int:
        """A past and a future of one frame, the nearest gap apart."""
        return min(self.gaps) + 1

    def make_collate(self, geometry: FrameGeometry, seed: int) -> "ReversedFutureCollate":
        """What draws the views."""
        return ReversedFutureCollate(geometry, self.views, self.gaps, seed)

    def build(self, encoder: EncoderConfig) -> "ReversedFutureObjective":
        """The predictions of this encoder's context."""
        return ReversedFutureObjective(self, encoder.context.model_dim)


@dataclass(frozen=True)
class ReversedFutureBatch(TaskBatch):
    """Whole frames of audio, and the views of both directions.

    It counts "pairs" of a past and a future a gap apart, in both directions; "compared" are those with others beside
    their recording.
    """

    views: Views  # of 2B rows: the past's, then the future's
    frame_lengths: Tensor  # (B,) int64


@dataclass(frozen=True)
class ReversedFutureCollate:
    """Makes a batch in the loader's worker: views depend on (seed, epoch, utterance) alone."""

    geometry: FrameGeometry
    views: ViewsConfig
    gaps: tuple[int, ...]
    seed: int

    def __call__(self, examples: Sequence[Example]) -> ReversedFutureBatch:
        """Draw views, and stack the audio, cut to whole frames."""
        lengths = [self.geometry.num_frames(len(example.waveform)) for example in examples]
        audio = cut_to_frames(collate_audio(examples), lengths, self.geometry)
        views = draw_views(examples, audio.waveforms.shape[1], self.views, self.seed, _VIEWS)
        pairs = 2 * sum(max(length - gap, 0) for length in lengths for gap in self.gaps)
        counts = {"pairs": pairs, "compared": pairs if len(examples) > 1 else 0}
        return ReversedFutureBatch(audio, counts, views, torch.tensor(lengths))


def cut_to_frames(audio: AudioBatch, frame_lengths: Sequence[int], geometry: FrameGeometry) -> AudioBatch:
    """Leave out the samples behind the last frame, so that the frames of reversed waveforms are those reversed."""
    num_samples = geometry.num_samples(geometry.num_frames(audio.waveforms.shape[1]))
    ends = torch.tensor([geometry.num_samples(length) for length in frame_lengths])
    valid = torch.arange(num_samples) < ends[:, None]
    return replace(
        audio,
        waveforms=audio.waveforms[:, :num_samples] * valid,
        clean=None if audio.clean is None else audio.clean[:, :num_samples] * valid,
        lengths=None if valid.all() else ends,
    )


def reverse_time(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse what is valid of each row in time, (B, T, ...); padding stays behind it."""
    if lengths is None:
        return values.flip(1)
    num_places = values.shape[1]
    sources = (lengths[:, None] - 1 - torch.arange(num_places, device=values.device)) % num_places
    return values[torch.arange(len(values), device=values.device)[:, None], sources]


class ReversedFutureObjective(Objective):
    """Predictions of the reversed future from the past, and of the past from the reversed future."""

    def __init__(self, config: ReversedFutureConfig, context_dim: int) -> None:
        super().__init__()
        self.config = config
        self.norm = ValidNorm(context_dim, affine=False)
        self.predictors = nn.ModuleList(nn.Linear(context_dim, context_dim) for _ in config.gaps)

    def forward(self, encoder: SpeechEncoder, batch: ReversedFutureBatch, step: int) -> Losses:
        """Find the future of each past, and the past of each future.

        Returns:
            Sums over pairs: ``contrast``, the cross-entropy; ``accuracy``, the right one scores higher than all others;
            ``own_accuracy``, than the others of its own recording; ``others_accuracy``, than those of other recordings;
            what chance would give of the last two; and `spread_and_rank` of what is compared.
        """
        past, future = self._read(encoder, batch)
        places = torch.arange(past.shape[1], device=past.device)
        valid = places < batch.frame_lengths[:, None]  # (B, S)
        past, future = self._normalize(past, valid), self._normalize(future, valid)
        with torch.no_grad():
            spread, rank = spread_and_rank(past.float().flatten(0, 1), valid.flatten().float())
            num_pairs = torch.stack([2 * valid[:, gap:].sum() for gap in self.config.gaps]).sum()
        found: list[dict[str, Tensor]] = []
        for gap, predictor in zip(self.config.gaps, self.predictors, strict=True):
            positions = places[: len(places) - gap] if gap < len(places) else places[:0]
            for known, wanted, at, right in (
                (past, future, positions, positions + gap),
                (future, past, positions + gap, positions),
            ):
                weights = valid[:, gap:].float()
                found.append(self._compare(predictor(known[:, at]), wanted, right, valid, weights))
        sums = {name: torch.stack([part[name] for part in found]).sum() for name in found[0]}
        return {
            "contrast": Term(sums["contrast"], "pairs", 1.0),
            "accuracy": Term(sums["accuracy"], "pairs"),
            "own_accuracy": Term(sums["own_accuracy"], "pairs"),
            "own_chance": Term(sums["own_chance"], "pairs"),
            "others_accuracy": Term(sums["others_accuracy"], "compared"),
            "others_chance": Term(sums["others_chance"], "compared"),
            "spread": Term(spread * num_pairs, "pairs"),
            "rank": Term(rank * num_pairs, "pairs"),
        }

    def _read(self, encoder: SpeechEncoder, batch: ReversedFutureBatch) -> tuple[Tensor, Tensor]:
        """Return (B, S, D) twice: what is known at each frame of all up to it, and of all from it on."""
        audio, num_rows = batch.audio, len(batch.frame_lengths)
        lengths = None if audio.lengths is None else audio.lengths.repeat(2)
        views = apply_views(batch.views, torch.cat((audio.waveforms, audio.clean_waveforms)), lengths)
        waveforms = torch.cat((views[:num_rows], reverse_time(views[num_rows:], audio.lengths)))
        context = encoder.contextualize(encoder.extract_frames(waveforms, lengths))
        frame_lengths = None if audio.lengths is None else batch.frame_lengths
        return context[:num_rows], reverse_time(context[num_rows:], frame_lengths)

    def _normalize(self, context: Tensor, valid: Tensor) -> Tensor:
        """(B, S, D) to the same shape; ``valid`` (B, S) tells frames from padding."""
        shape = context.shape
        if self.config.norm_over == "none":
            return context
        if self.config.norm_over == "batch":
            context, valid = context.flatten(0, 1)[None], valid.flatten()[None]
        normalized: Tensor = self.norm(context, valid)
        return normalized.view(shape)

    def _compare(
        self, predictions: Tensor, candidates: Tensor, right: Tensor, valid: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Compare (B, N, D) predictions with all (B, S, D) candidates, of which those at ``right`` (N,) are right.

        ``valid`` (B, S) tells candidates from padding, ``weights`` (B, N) the predictions that count.
        """
        batch, num_places, _ = candidates.shape
        rows = torch.arange(batch, device=right.device)
        with torch.autocast(predictions.device.type, enabled=False):
            predictions, candidates = predictions.float(), candidates.float()
            if self.config.logit_temperature is not None:
                predictions = F.normalize(predictions, dim=2, eps=1e-8) / self.config.logit_temperature
                candidates = F.normalize(candidates, dim=2, eps=1e-8)
            logits = torch.einsum("bnd,csd->bncs", predictions, candidates)
            logits = logits.masked_fill(~valid, -torch.inf)
            own = logits[rows, :, rows]  # (B, N, S)
            is_right = F.one_hot(right, num_places).bool()  # (N, S)
            score = own.gather(2, right[None, :, None].expand(batch, -1, -1))[:, :, 0]
            own_wrong = own.masked_fill(is_right, -torch.inf)
            is_own = torch.eye(batch, dtype=torch.bool, device=right.device)[:, None, :, None]
            others = logits.masked_fill(is_own, -torch.inf).flatten(2)
            wrong = {"own": own_wrong, "others": others, "all": torch.cat((own_wrong, others), dim=2)}
            losses = torch.cat((score[:, :, None], wrong[self.config.negatives]), dim=2).logsumexp(dim=2) - score
        best_own, best_other = own_wrong.amax(dim=2).detach(), others.amax(dim=2).detach()
        num_own = valid.sum(dim=1, keepdim=True)
        has_others = float(batch > 1)
        values = {
            "contrast": torch.where(weights > 0, losses, 0),
            "accuracy": (score > torch.maximum(best_own, best_other)).float(),
            "own_accuracy": (score > best_own).float(),
            "own_chance": 1 / num_own.clamp(min=1),
            "others_accuracy": has_others * (score > best_other),
            "others_chance": has_others / (1 + valid.sum() - num_own),
        }
        return {name: (value * weights).sum() for name, value in values.items()}
