"""BYOL: predict, frame by frame, how a moving average of the network hears another view of the recording.

Grill et al., 2020, https://arxiv.org/abs/2006.07733, with two settings that leave parts of it out: SimSiam (Chen and
He, 2020, https://arxiv.org/abs/2011.10566) has no moving average (``decay`` 0), and DirectPred has no trained predictor
(``predictor``, see `direct_predictor`). Differences:

* They compare images as wholes; here every frame is compared with the same frame of the other view.
* Frames can be hidden from the network that learns, in each view others. The moving average hears its view whole.
  Without it, the targets are the network's own projections, some of them of hidden frames.
* The decay of the moving average is constant, and the loss is the mean of both directions instead of their sum.
* Batch norm leaves out padding, and takes the batch's statistics in evaluation, too. So a batch does not give what its
  utterances give one by one, unless ``norm_over`` is "utterance".

Shapes: B batch, T samples, S frames, D model dim, E width of the projections; rows 0 to B - 1 of 2B are first views.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.batches import Example, TaskBatch, collate_audio, stack_rows
from speechssl.frames import FrameGeometry, MaskConfig, draw_masks
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.collapse import spread_and_rank
from speechssl.objective.direct_predictor import DirectPredictor
from speechssl.objective.objective import AllReduce, Limit, Losses, Objective, ObjectiveConfig, Term
from speechssl.objective.projector import Perceptron
from speechssl.objective.teacher import Teacher
from speechssl.objective.views import Views, ViewsConfig, apply_views, draw_views
from speechssl.rng import keyed_generator

_VIEWS = (50, 51)  # the purposes of the generators that draw the two views
_HIDE = (52, 53)  # and what is hidden in them
_ADVICE = "the projections have become alike; try a trained predictor, or a decay nearer to 1"


class ByolConfig(ObjectiveConfig):
    """The objective; the sizes are those of BYOL for audio (BYOL-A)."""

    best_metric = None
    shown_metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "spread", "rank")

    kind: Literal["byol"] = "byol"
    views: ViewsConfig = ViewsConfig()
    mask: MaskConfig = MaskConfig(start_prob=0.0, min_spans=0)  # hidden from the network that learns
    decay: float = Field(0.996, ge=0, lt=1)  # of the moving average; 0 has none: SimSiam
    projector_layers: int = Field(2, ge=1)
    projector_dim: int = Field(4096, ge=1)  # of its hidden layers
    norm_output: bool = False  # of the projector (SimSiam)
    projection_dim: int = Field(256, ge=1)
    predictor: Literal["mlp", "direct", "copy"] = "mlp"
    predictor_dim: int = Field(4096, ge=1)  # of the mlp's hidden layer
    norm_over: Literal["batch", "utterance"] = "batch"  # what frames the norms of projector and predictor see
    correlation_decay: float = Field(0.3, ge=0, lt=1)  # of the correlation that sets the direct predictors
    correlation_epsilon: float = Field(0.01, ge=0)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Of the projections."""
        return Limit("spread", 0.1, 200, _ADVICE), Limit("rank", 1.5, 200, _ADVICE)

    def min_frames(self, geometry: FrameGeometry) -> int:
        """Two, that a norm has a variance."""
        return 2

    def make_collate(self, geometry: FrameGeometry, seed: int) -> "ByolCollate":
        """What draws the views."""
        return ByolCollate(geometry, self.views, self.mask, seed)

    def build(self, encoder: EncoderConfig) -> "ByolObjective":
        """Projector, predictor and teacher for this encoder."""
        return ByolObjective(self, encoder)


@dataclass(frozen=True)
class ByolBatch(TaskBatch):
    """Audio and its views; it counts "pairs" of a frame and the same frame of the other view, twice each."""

    views: Views  # of 2B rows
    mask: Tensor  # (2B, S) bool, True = hidden
    valid: Tensor  # (2B, S) float32, 1 for frames and 0 for padding


@dataclass(frozen=True)
class ByolCollate:
    """Makes a batch in the loader's worker: views and masks depend on (seed, epoch, utterance), by `draw_masks`."""

    geometry: FrameGeometry
    views: ViewsConfig
    mask: MaskConfig
    seed: int

    def __call__(self, examples: Sequence[Example]) -> ByolBatch:
        """Draw views and masks, and stack the audio."""
        audio = collate_audio(examples)
        views = draw_views(examples, audio.waveforms.shape[1], self.views, self.seed, _VIEWS)
        lengths = [self.geometry.num_frames(len(example.waveform)) for example in examples]
        generators = [
            keyed_generator(self.seed, example.epoch, example.index, purpose)
            for purpose in _HIDE
            for example in examples
        ]
        places = torch.arange(self.geometry.num_frames(audio.waveforms.shape[1]))
        valid = places < torch.tensor(2 * lengths)[:, None]
        mask = stack_rows(draw_masks(2 * lengths, self.mask, generators), len(places))
        return ByolBatch(audio, {"pairs": 2 * sum(lengths)}, views, mask, valid.float())


class ByolObjective(Objective):
    """Projector, predictor, and the moving average of encoder and projector."""

    predictor: Perceptron | DirectPredictor

    def __init__(self, config: ByolConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.projection_dim
        hidden = [config.projector_dim] * (config.projector_layers - 1)
        dims = (encoder.context.model_dim, *hidden, dim)
        self.projector = Perceptron(dims, norm_output=config.norm_output)
        if config.predictor == "mlp":
            self.predictor = Perceptron((dim, config.predictor_dim, dim))
        else:
            decay, epsilon = config.correlation_decay, config.correlation_epsilon
            self.predictor = DirectPredictor(dim, config.predictor, decay, epsilon)
        self.teacher: Teacher | None = None
        if config.decay:
            self.teacher = Teacher(_network(SpeechEncoder(encoder), Perceptron(dims, norm_output=config.norm_output)))

    def prepare(self, encoder: SpeechEncoder, batches: Iterable[TaskBatch], seed: int) -> None:
        """Begin the moving average with the first weights."""
        self._move_teacher(encoder, 0.0)

    def after_update(self, encoder: SpeechEncoder, step: int, all_reduce: AllReduce) -> None:
        """Set a direct predictor, then move the average."""
        if isinstance(self.predictor, DirectPredictor):
            self.predictor.follow(step, all_reduce)
        self._move_teacher(encoder, self.config.decay)

    def _move_teacher(self, encoder: SpeechEncoder, decay: float) -> None:
        if self.teacher is not None:
            self.teacher.follow(_network(encoder, self.projector), decay)

    def forward(self, encoder: SpeechEncoder, batch: ByolBatch, step: int) -> Losses:
        """Predict each view's projections from the other view.

        Returns:
            Sums over frames of both views: ``distance``, 2 - 2 cos of prediction and target; ``accuracy``, the
            predictions nearer to their own target than to that of any other frame of the utterance; and
            `spread_and_rank` of the projections.
        """
        audio = batch.audio
        online = _network(encoder, self.projector)
        projections = self._project(online, batch, audio.waveforms, batch.mask)
        predictions = self._by_group(self.predictor, projections, batch.valid)
        with torch.no_grad():
            if self.teacher is not None:
                targets = self._project(self.teacher.network, batch, audio.clean_waveforms, None)
            elif audio.clean is not None:
                targets = self._project(online, batch, audio.clean, batch.mask)
            else:
                targets = projections.detach()
        targets = targets.roll(len(targets) // 2, dims=0)  # those of the other view

        with torch.autocast(predictions.device.type, enabled=False):
            predictions = F.normalize(predictions.float(), dim=2, eps=1e-8)
            targets = F.normalize(targets.float(), dim=2, eps=1e-8)
            distances = 2 - 2 * (predictions * targets).sum(dim=2)
            correct = _correct(predictions.detach(), targets, batch.valid)
            spread, rank = spread_and_rank(projections.detach().float().flatten(0, 1), batch.valid.flatten())
        count = batch.valid.sum()  # by which measures of a batch as a whole count
        return {
            "distance": Term((distances * batch.valid).sum(), "pairs", 1.0),
            "accuracy": Term((correct * batch.valid).sum(), "pairs"),
            "spread": Term(spread * count, "pairs"),
            "rank": Term(rank * count, "pairs"),
        }

    def _project(self, network: nn.Module, batch: ByolBatch, waveforms: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T) to (2B, S, E)."""
        encoder = network.get_submodule("encoder")
        assert isinstance(encoder, SpeechEncoder)
        lengths = None if batch.audio.lengths is None else batch.audio.lengths.repeat(2)
        views = apply_views(batch.views, waveforms.repeat(2, 1), lengths)
        context = encoder.contextualize(encoder.extract_frames(views, lengths), mask)
        return self._by_group(network.get_submodule("projector"), context, batch.valid)

    def _by_group(self, head: Callable[[Tensor, Tensor], Tensor], x: Tensor, valid: Tensor) -> Tensor:
        """Call what works on groups of frames with (2B, S, C): each view is a group, or each utterance's view."""
        if self.config.norm_over == "utterance":
            return head(x, valid)
        y = head(x.reshape(2, -1, x.shape[2]), valid.reshape(2, -1))
        return y.reshape(*x.shape[:2], -1)


def _network(encoder: nn.Module, projector: nn.Module) -> nn.Module:
    """What the teacher follows."""
    return nn.ModuleDict({"encoder": encoder, "projector": projector})


def _correct(predictions: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """(2B, S, E) twice to (2B, S): whether no other frame's target is as near to a prediction as its own."""
    similarity = predictions @ targets.transpose(1, 2)
    right = similarity.diagonal(dim1=1, dim2=2)
    others = valid[:, None, :].bool() & ~torch.eye(len(right[0]), dtype=torch.bool, device=right.device)
    return similarity.masked_fill(~others, -torch.inf).amax(dim=2) < right
