from typing import Any

import numpy as np
import pytest
import torch
from losses import loss_sum

from speechssl.errors import TrainingError
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.model.encoder import SpeechEncoder
from speechssl.objective.data2vec import Data2VecObjective, Data2VecObjectiveConfig
from speechssl.objective.objective import Losses
from speechssl.train.guard import check_limits

CONFIG = Data2VecObjectiveConfig(mask=MaskConfig(start_prob=0.1, span_frames=3), num_target_layers=2)


@pytest.fixture
def encoder(make_encoder: Any) -> SpeechEncoder:
    return make_encoder(norm="layer")


def make_objective(encoder: SpeechEncoder, **changes: Any) -> Data2VecObjective:
    torch.manual_seed(1)
    objective = CONFIG.model_copy(update=changes).build(encoder.config).eval()
    objective.prepare(encoder, [], 0)
    return objective


def hidden_pairs(objective: Data2VecObjective, encoder: SpeechEncoder, batch: Any) -> tuple[Any, Any]:
    """Predictions and targets of each hidden frame, (N, D)."""
    frames = encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths)
    predictions = objective.head(encoder.contextualize(frames, batch.mask))[batch.mask]
    targets = objective.teacher(frames).mean(dim=0)[batch.mask]
    return predictions.detach().double().numpy(), targets.double().numpy()


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_loss_is_the_distance_at_hidden_frames(
    encoder: SpeechEncoder, make_examples: Any, geometry: FrameGeometry, beta: float
) -> None:
    objective = make_objective(encoder, beta=beta)
    batch = CONFIG.make_collate(geometry, 0)(make_examples())
    predictions, targets = hidden_pairs(objective, encoder, batch)
    apart = np.abs(predictions - targets)
    distances = np.where(apart < beta, apart**2 / (2 * beta), apart - beta / 2) if beta else apart**2
    losses = objective(encoder, batch, 0)
    assert batch.counts["hidden"] == len(predictions) > 20
    assert loss_sum(losses).item() == pytest.approx(distances.sum() / 32**0.5, rel=1e-4)
    assert losses["regression"].sum.item() == loss_sum(losses).item()


def test_measures_are_those_of_numpy(encoder: SpeechEncoder, make_examples: Any, geometry: FrameGeometry) -> None:
    objective = make_objective(encoder)
    batch = CONFIG.make_collate(geometry, 0)(make_examples())
    predictions, targets = hidden_pairs(objective, encoder, batch)
    losses = objective(encoder, batch, 0)
    count = len(targets)
    for name, values in (("target_deviation", targets), ("prediction_deviation", predictions)):
        expected = np.sqrt(values.var(axis=0, ddof=1) + 1e-6).mean()
        assert losses[name].sum.item() / count == pytest.approx(expected, rel=1e-4), name
    unexplained = (((predictions - targets) ** 2).sum(axis=1) / (targets**2).sum(axis=1)).mean()
    assert losses["skill"].sum.item() / count == pytest.approx(1 - unexplained, rel=1e-3)


def means(losses: Losses, count: float) -> dict[str, float]:
    return {name: term.sum.item() / count for name, term in losses.items()}


@pytest.mark.parametrize("collapsed", ["targets", "predictions"])
def test_collapse_is_seen(encoder: SpeechEncoder, make_examples: Any, geometry: FrameGeometry, collapsed: str) -> None:
    """The published guards: targets, or predictions, that are the same in all frames end the run."""
    objective = make_objective(encoder)
    batch = CONFIG.make_collate(geometry, 0)(make_examples())
    check_limits(CONFIG.limits, means(objective(encoder, batch, 0), batch.counts["hidden"]), 5000)
    with torch.no_grad():
        if collapsed == "targets":
            for layer in objective.teacher.network.layers:
                layer.feed_forward.output.weight.zero_()
        else:
            objective.head.weight.mul_(1e-3)
    found = means(objective(encoder, batch, 0), batch.counts["hidden"])
    check_limits(CONFIG.limits, found, 4999)
    with pytest.raises(
        TrainingError, match=rf"step 5000: expected {collapsed[:-1]}_deviation of at least .* {collapsed} are"
    ):
        check_limits(CONFIG.limits, found, 5000)


def test_teacher_follows_by_the_schedule(encoder: SpeechEncoder) -> None:
    objective = make_objective(encoder)
    name = "layers.0.attention.query.weight"
    before = objective.teacher.network.get_parameter(name).clone()
    with torch.no_grad():
        encoder.context.get_parameter(name).add_(1.0)
    objective.after_update(encoder, 20_000, lambda tensor: None)
    moved = objective.teacher.network.get_parameter(name) - before
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - 0.9996), rtol=0, atol=1e-7)
