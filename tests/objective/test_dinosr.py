"""DinoSR and SpidR: codebooks that follow a teacher's layers, and the prediction of their entries."""

from typing import Any

import numpy as np
import pytest
import torch
from losses import loss_sum
from torch import Tensor
from torch.nn import functional as F

from speechssl.errors import TrainingError
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.model.encoder import SpeechEncoder
from speechssl.objective.dinosr import CodesConfig, DinoSRConfig, DinoSRObjective
from speechssl.objective.online_codebook import OnlineCodebooks
from speechssl.objective.spidr import SpidRConfig
from speechssl.train.guard import check_limits

MASK = MaskConfig(start_prob=0.1, span_frames=3)
CONFIGS = {
    "dinosr": DinoSRConfig(mask=MASK, num_target_layers=2, codebook_size=7),
    "spidr": SpidRConfig(mask=MASK, num_target_layers=2, codebook_size=7),
}
both = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def alone(tensor: Tensor) -> None:
    """The sum over the processes of a run on one."""


@pytest.fixture
def encoder(make_encoder: Any) -> SpeechEncoder:
    return make_encoder(norm="layer")


def make_objective(encoder: SpeechEncoder, config: CodesConfig) -> DinoSRObjective:
    torch.manual_seed(1)
    objective = config.build(encoder.config)
    objective.prepare(encoder, [], 0)
    return objective.eval()


class TestCodebooks:
    def test_entries_begin_normalized_and_count_as_one_vector(self) -> None:
        torch.manual_seed(0)
        codebooks = OnlineCodebooks(3, 50, 8, 0.9)
        variance, mean = torch.var_mean(codebooks.sums, dim=1, correction=0)
        torch.testing.assert_close(mean, torch.zeros(3, 8), rtol=0, atol=1e-5)
        torch.testing.assert_close(variance, torch.ones(3, 8), rtol=0, atol=1e-3)
        assert not torch.equal(codebooks.sums[0], codebooks.sums[1])
        assert (codebooks.counts == 1).all()

    def test_nearest_is_by_distance_to_the_mean_even_in_bfloat16(self) -> None:
        torch.manual_seed(0)
        codebooks = OnlineCodebooks(2, 20, 8, 0.9)
        codebooks.counts.uniform_(0.5, 20)
        vectors = 0.1 * torch.randn(2, 300, 8)
        expected = torch.cdist(vectors.double(), (codebooks.sums / codebooks.counts[:, :, None]).double()).argmin(dim=2)
        assert len(expected.unique()) > 2
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(codebooks(vectors), expected)

    def test_entries_are_moving_averages_over_the_batches_of_an_update(self) -> None:
        """Against numpy: two updates of two microbatches each; what has no vector stays, and weight 0 is nothing."""
        torch.manual_seed(0)
        codebooks = OnlineCodebooks(2, 6, 4, 0.9)
        sums, counts = codebooks.sums.double().numpy().copy(), codebooks.counts.double().numpy().copy()
        generator = np.random.default_rng(0)
        for _ in range(2):
            batch_sums, batch_counts = np.zeros_like(sums), np.zeros_like(counts)
            for size in (5, 9):
                vectors = generator.standard_normal((2, size, 4)).astype(np.float32)
                ids = generator.integers(0, 5, (2, size))  # never the last entry
                weights = (generator.random(size) < 0.7).astype(np.float32)
                codebooks.gather(*map(torch.from_numpy, (vectors, ids, weights)))
                for book in range(2):
                    for vector, entry, weight in zip(vectors[book], ids[book], weights, strict=True):
                        batch_sums[book, entry] += weight * vector
                        batch_counts[book, entry] += weight
            codebooks.update(alone)
            moved = batch_counts > 0
            sums[moved] = 0.9 * sums[moved] + 0.1 * batch_sums[moved]
            counts[moved] = 0.9 * counts[moved] + 0.1 * batch_counts[moved]
        np.testing.assert_allclose(codebooks.sums.numpy(), sums, atol=1e-5)
        np.testing.assert_allclose(codebooks.counts.numpy(), counts, atol=1e-5)
        assert (counts[:, :5] != 1).any()
        assert (counts[:, 5] == 1).all()

    def test_two_processes_are_one(self) -> None:
        torch.manual_seed(0)
        whole, part = OnlineCodebooks(1, 4, 3, 0.9), OnlineCodebooks(1, 4, 3, 0.9)
        part.load_state_dict(whole.state_dict())
        vectors, ids, weights = torch.randn(1, 10, 3), torch.randint(4, (1, 10)), torch.ones(10)
        whole.gather(vectors, ids, weights)
        whole.update(alone)
        part.gather(vectors[:, :6], ids[:, :6], weights[:6])
        other = OnlineCodebooks(1, 4, 3, 0.9)
        other.gather(vectors[:, 6:], ids[:, 6:], weights[6:])
        assert other._seen is not None
        part.update(lambda tensor: tensor.add_(other._seen))
        torch.testing.assert_close(part.sums, whole.sums)
        torch.testing.assert_close(part.counts, whole.counts)


def heads_read(objective: DinoSRObjective, encoder: SpeechEncoder, batch: Any) -> list[Tensor]:
    """What each head reads: DinoSR's the output, SpidR's what the feed-forward part of its layer gives."""
    outputs: list[Tensor] = []
    hooks = [
        layer.feed_forward.register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
        for layer in encoder.context.layers
    ]
    context = encoder.contextualize(encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths), batch.mask)
    for hook in hooks:
        hook.remove()
    return outputs if isinstance(objective.config, SpidRConfig) else [context, context]


@both
class TestLoss:
    def test_is_the_cross_entropy_of_each_layer_at_hidden_frames(
        self, encoder: SpeechEncoder, make_examples: Any, geometry: FrameGeometry, config: CodesConfig
    ) -> None:
        objective = make_objective(encoder, config)
        batch = config.make_collate(geometry, 0)(make_examples())
        read = heads_read(objective, encoder, batch)
        targets = objective.teacher(encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths))
        expected, correct, perplexities = [], [], []
        for layer in range(2):
            entries = objective.codebooks.sums[layer] / objective.codebooks.counts[layer, :, None]
            codes = torch.cdist(targets[layer][batch.mask], entries).argmin(dim=1)
            logits = objective.heads[layer](read[layer][batch.mask])
            expected.append(F.cross_entropy(logits, codes, reduction="sum").item())
            correct.append((logits.argmax(dim=1) == codes).sum().item())
            shares = np.bincount(codes.numpy(), minlength=7) / len(codes)
            perplexities.append(np.exp(-sum(share * np.log(share) for share in shares if share)))
        losses = objective(encoder, batch, 0)
        assert loss_sum(losses).item() == pytest.approx(np.mean(expected), rel=1e-4)
        assert losses["accuracy"].sum.item() == pytest.approx(np.mean(correct))
        count = batch.counts["hidden"]
        assert losses["target_perplexity"].sum.item() / count == pytest.approx(np.mean(perplexities), rel=1e-4)

    def test_codebooks_move_in_training_alone(
        self, encoder: SpeechEncoder, make_examples: Any, geometry: FrameGeometry, config: CodesConfig
    ) -> None:
        objective = make_objective(encoder, config).train()
        batch = config.make_collate(geometry, 0)(make_examples())
        objective(encoder, batch, 0)
        objective.eval()
        before = objective.codebooks.sums.clone()
        objective(encoder, batch, 0)
        assert objective.codebooks._seen is not None
        assert objective.codebooks._seen[:, :, -1].sum().item() == 2 * batch.counts["hidden"], "once, no filling"
        objective.after_update(encoder, 1, alone)
        assert not torch.equal(objective.codebooks.sums, before)
        assert objective.codebooks._seen is None

    def test_collapse_is_seen(
        self, encoder: SpeechEncoder, make_examples: Any, geometry: FrameGeometry, config: CodesConfig
    ) -> None:
        objective = make_objective(encoder, config)
        batch = config.make_collate(geometry, 0)(make_examples())

        def metrics() -> dict[str, float]:
            losses = objective(encoder, batch, 0)
            return {name: term.sum.item() / batch.counts["hidden"] for name, term in losses.items()}

        check_limits(config.limits, metrics(), 5000)
        for layer in objective.teacher.network.layers:
            torch.nn.init.zeros_(layer.feed_forward.output.weight)
        check_limits(config.limits, metrics(), 4999)
        with pytest.raises(TrainingError, match="expected target_perplexity of at least 2, found 1: nearly all frames"):
            check_limits(config.limits, metrics(), 5000)


class TestFreezing:
    def test_feature_encoder_and_projection_rest_from_a_step_on(self, encoder: SpeechEncoder) -> None:
        objective = make_objective(encoder, CONFIGS["dinosr"])
        assert objective.frozen(encoder, 199_999) == ()
        expected = (encoder.feature_encoder, encoder.frame_norm, encoder.context.projection)
        assert objective.frozen(encoder, 200_000) == expected
        forever = make_objective(encoder, CONFIGS["dinosr"].model_copy(update={"freeze_step": None}))
        assert forever.frozen(encoder, 10**9) == ()

    @pytest.mark.parametrize("norm_first", [False, True])
    def test_spidr_lets_rest_what_no_head_depends_on(self, make_encoder: Any, norm_first: bool) -> None:
        encoder = make_encoder(norm="layer", norm_first=norm_first)
        objective = make_objective(encoder, CONFIGS["spidr"])
        last = encoder.context.norm if norm_first else encoder.context.layers[-1].feed_forward_norm
        assert objective.frozen(encoder, 0) == (last,)
        assert objective.frozen(encoder, 200_000) == (
            last,
            encoder.feature_encoder,
            encoder.frame_norm,
            encoder.context.projection,
        )
