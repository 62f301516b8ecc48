from typing import Any

import numpy as np
import pytest
import torch
from losses import loss_sum
from torch.nn import functional as F

from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.objective.spectral_contrast import SpectralContrastConfig, SpectralContrastObjective

CONFIG = SpectralContrastConfig(mask=MaskConfig(start_prob=0.1, span_frames=3), num_bands=6, comparison_dim=8)


@pytest.fixture(params=["log_mel", "cepstra"])
def objective(make_encoder: Any, request: pytest.FixtureRequest) -> SpectralContrastObjective:
    torch.manual_seed(0)
    return CONFIG.model_copy(update={"spectra": request.param}).build(make_encoder().config).eval()


@pytest.mark.parametrize("visible_weight", [0.0, 0.5])
def test_the_right_spectrum_is_told_from_those_of_all_other_frames(
    objective: SpectralContrastObjective,
    make_encoder: Any,
    make_examples: Any,
    geometry: FrameGeometry,
    visible_weight: float,
) -> None:
    objective.config = CONFIG.model_copy(update={"visible_weight": visible_weight})
    encoder, batch = make_encoder(), objective.config.make_collate(geometry, 0)(make_examples())
    losses = objective(encoder, batch, 0)
    frames = encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths)
    context = encoder.contextualize(frames, batch.mask)
    expected, count, hidden_losses, visible_correct = 0.0, 0.0, [], []
    for row, length in enumerate(frames.lengths.tolist()):
        num_samples = int(batch.audio.lengths[row])
        spectra = objective.target_projection(objective.spectrum(batch.audio.waveforms[row : row + 1, :num_samples])[0])
        assert len(spectra) == length
        for frame in range(length):
            logits = F.cosine_similarity(objective.context_projection(context[row, frame])[None], spectra, dim=1) / 0.1
            loss = (logits.logsumexp(dim=0) - logits[frame]).item()
            is_hidden = bool(batch.mask[row, frame])
            weight = 1.0 if is_hidden else visible_weight
            expected += weight * (loss + 10 * frames.energy[row].item())
            count += weight
            if is_hidden:
                hidden_losses.append(loss)
            else:
                visible_correct.append(int(logits.argmax()) == frame)
    assert batch.counts["frames"] == pytest.approx(count)
    assert batch.counts["visible"] == len(visible_correct)
    assert loss_sum(losses).item() == pytest.approx(expected, rel=1e-4)
    assert losses["hidden_loss"].sum.item() == pytest.approx(np.sum(hidden_losses), rel=1e-4)
    assert losses["visible_accuracy"].sum.item() == pytest.approx(np.sum(visible_correct), rel=1e-4)


def test_is_the_sum_of_its_utterances(
    objective: SpectralContrastObjective, make_encoder: Any, make_examples: Any, geometry: FrameGeometry
) -> None:
    objective.config = CONFIG.model_copy(update={"visible_weight": 0.5})
    encoder, collate = make_encoder(), CONFIG.make_collate(geometry, 0)
    together = objective(encoder, collate(make_examples()), 0)
    alone = [objective(encoder, collate([example]), 0) for example in make_examples()]
    assert loss_sum(together).item() == pytest.approx(sum(loss_sum(losses).item() for losses in alone), rel=1e-5)


def test_everything_learns_and_nothing_is_undefined(
    objective: SpectralContrastObjective, make_encoder: Any, make_examples: Any, geometry: FrameGeometry
) -> None:
    encoder = make_encoder()
    loss_sum(objective(encoder, CONFIG.make_collate(geometry, 0)(make_examples()), 0)).backward()
    for name, parameter in [*objective.named_parameters(), *encoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A shift of all keys alike changes no attention.
        assert parameter.grad.abs().max() > 0 or name.endswith("key.bias"), name
