import pytest
import torch
from torch import Tensor, nn

from speechssl.model.encoder import EncoderConfig, SpeechEncoder, normalize_waveforms
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.quantizer import QuantizerConfig
from speechssl.model.transformer import TransformerConfig
from speechssl.objective.contrastive import ContrastiveConfig, ContrastiveObjective

BASE = EncoderConfig()
LARGE = EncoderConfig(
    feature_encoder=FeatureEncoderConfig(norm="layer", bias=True, gradient_scale=1.0),
    context=TransformerConfig(num_layers=24, model_dim=1024, num_heads=16, ffn_dim=4096, norm_first=True),
    normalize_waveforms=True,
)
KINDS = pytest.mark.parametrize(
    ("norm", "norm_first", "normalize"),
    [(norm, first, normalize) for norm in ("group", "layer") for first in (False, True) for normalize in (False, True)],
)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def make_encoder(config: EncoderConfig) -> SpeechEncoder:
    torch.manual_seed(0)
    return SpeechEncoder(config).eval()


def valid_frames(encoder: SpeechEncoder, lengths: Tensor, num_frames: int) -> Tensor:
    return torch.arange(num_frames) < encoder.geometry.num_frames(lengths)[:, None]


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


class TestSize:
    @pytest.mark.parametrize(
        ("config", "objective", "expected", "with_objective"),
        [
            (BASE, ContrastiveConfig(), 94_371_712, 95_044_608),
            (
                LARGE,
                ContrastiveConfig(quantizer=QuantizerConfig(code_dim=768), comparison_dim=768),
                315_438_720,
                317_390_592,
            ),
        ],
        ids=["base", "large"],
    )
    def test_is_that_of_the_published_models(
        self, config: EncoderConfig, objective: ContrastiveConfig, expected: int, with_objective: int
    ) -> None:
        with torch.device("meta"):
            encoder = SpeechEncoder(config)
            heads = ContrastiveObjective(objective, config.feature_encoder.dims[-1], config.context.model_dim)
        assert num_parameters(encoder) == expected
        assert num_parameters(encoder) + num_parameters(heads) == with_objective


@pytest.fixture(scope="module")
def wide_encoder() -> SpeechEncoder:
    """Wide enough that the deviation of a weight is known to two per cent."""
    torch.manual_seed(0)
    return SpeechEncoder(
        EncoderConfig(
            feature_encoder=FeatureEncoderConfig(
                dims=(256, 96, 80), kernels=(10, 3, 2), strides=(5, 2, 2), norm="layer", bias=True
            ),
            context=TransformerConfig(
                num_layers=2, model_dim=128, num_heads=4, ffn_dim=192, position_kernel=16, position_groups=4
            ),
        )
    )


class TestInitialization:
    def check_deviation(self, weight: Tensor, deviation: float) -> None:
        sampling = deviation / weight.numel() ** 0.5
        assert weight.std().item() == pytest.approx(deviation, abs=4 * sampling)
        assert weight.mean().item() == pytest.approx(0, abs=4 * sampling)

    def check_normal(self, weight: Tensor, deviation: float) -> None:
        self.check_deviation(weight, deviation)
        assert weight.abs().max() > 2.5 * deviation  # a uniform one ends at 1.7 deviations

    def test_convolutions_are_kaiming_normal(self, wide_encoder: SpeechEncoder) -> None:
        for layer, fan_in in zip(wide_encoder.feature_encoder.layers, (10, 256 * 3, 96 * 2), strict=True):
            self.check_normal(layer.conv.weight, (2 / fan_in) ** 0.5)
            assert 0 < layer.conv.bias.abs().max() <= fan_in**-0.5

    def test_norms_are_the_identity(self, wide_encoder: SpeechEncoder) -> None:
        norms = {name: parameter for name, parameter in wide_encoder.named_parameters() if "norm" in name}
        assert len(norms) == 2 * (3 + 1 + 1 + 2 * 2)
        for name, parameter in norms.items():
            assert parameter.eq(1.0 if name.endswith("weight") else 0.0).all(), name

    def test_projection_is_pytorchs(self, wide_encoder: SpeechEncoder) -> None:
        bound = 80**-0.5
        self.check_deviation(wide_encoder.context.projection.weight, bound / 3**0.5)
        assert wide_encoder.context.projection.weight.abs().max() <= bound
        assert 0 < wide_encoder.context.projection.bias.abs().max() <= bound

    def test_mask_embedding_is_uniform(self, wide_encoder: SpeechEncoder) -> None:
        values = wide_encoder.context.mask_embedding
        assert values.min() >= 0
        assert values.max() < 1
        assert values.mean().item() == pytest.approx(0.5, abs=0.1)
        assert values.std().item() == pytest.approx(12**-0.5, abs=0.05)

    def test_positional_convolution_is_what_was_drawn(self, wide_encoder: SpeechEncoder) -> None:
        conv = wide_encoder.context.position.conv
        self.check_normal(conv.weight, (4 / (16 * 128)) ** 0.5)
        assert not conv.bias.any()
        directions = conv.parametrizations.weight.original1
        torch.testing.assert_close(conv.weight, directions)  # the norm is that of the direction itself

    def test_linear_maps_of_the_transformer(self, wide_encoder: SpeechEncoder) -> None:
        linears = [module for module in wide_encoder.context.layers.modules() if isinstance(module, nn.Linear)]
        assert len(linears) == 2 * 6
        for linear in linears:
            self.check_normal(linear.weight, 0.02)
            assert not linear.bias.any()

    @pytest.mark.parametrize("norm", ["group", "layer"])
    def test_reset_replaces_every_parameter(self, tiny_config, norm: str) -> None:
        encoder = make_encoder(tiny_config(norm=norm))
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.fill_(7)
        for part in (encoder.feature_encoder, encoder.frame_norm, encoder.context):
            part.reset_parameters()
        for name, parameter in encoder.named_parameters():
            assert not parameter.eq(7).any(), name


class TestFrames:
    def test_shapes_and_lengths(self, tiny_config, padded_batch) -> None:
        encoder = make_encoder(tiny_config())
        waveforms, lengths = padded_batch
        frames = encoder.extract_frames(waveforms, lengths)
        assert frames.values.shape == (5, 49, 24)
        assert frames.lengths is not None
        assert frames.lengths.tolist() == [29, 49, 1, 21, 49]
        assert frames.energy.shape == (5,)
        assert encoder.contextualize(frames).shape == (5, 49, 32)
        assert encoder.extract_frames(waveforms).lengths is None

    def test_values_are_layer_normed_and_energy_is_from_before(self, tiny_config, padded_batch) -> None:
        encoder = make_encoder(tiny_config())
        waveforms, lengths = padded_batch
        frames = encoder.extract_frames(waveforms, lengths)
        for row, length in enumerate(frames.lengths.tolist()):
            features = encoder.feature_encoder(waveforms[row : row + 1, : lengths[row]])[0]
            assert features.shape == (length, 24)
            assert frames.energy[row].item() == pytest.approx(features.square().mean().item(), rel=1e-5)
            expected = nn.functional.layer_norm(features, (24,))
            torch.testing.assert_close(frames.values[row, :length], expected, rtol=1e-4, atol=1e-4)


class TestHiding:
    def test_nothing_passes_through_a_hidden_frame(self, tiny_config, padded_batch) -> None:
        encoder = make_encoder(tiny_config())
        frames = encoder.extract_frames(*padded_batch)
        mask = torch.rand(5, 49) < 0.4
        frames.values.retain_grad()
        encoder.contextualize(frames, mask)[valid_frames(encoder, padded_batch[1], 49)].square().sum().backward()
        gradient = frames.values.grad.abs().amax(dim=2)
        is_seen = valid_frames(encoder, padded_batch[1], 49) & ~mask
        assert not gradient[~is_seen].any()
        assert gradient[is_seen].min() > 0
        assert encoder.context.mask_embedding.grad.any()

    def test_hiding_nothing_changes_nothing(self, tiny_config, padded_batch) -> None:
        encoder = make_encoder(tiny_config())
        frames = encoder.extract_frames(*padded_batch)
        none, no_channels = torch.zeros(5, 49, dtype=torch.bool), torch.zeros(5, 32, dtype=torch.bool)
        assert torch.equal(encoder.contextualize(frames, none, no_channels), encoder.contextualize(frames))


class TestPadding:
    @KINDS
    def test_each_utterance_is_what_it_is_alone(
        self, tiny_config, padded_batch, norm: str, norm_first: bool, normalize: bool
    ) -> None:
        encoder = make_encoder(tiny_config(norm=norm, norm_first=norm_first, normalize_waveforms=normalize))
        waveforms, lengths = padded_batch
        mask = torch.rand(5, 49) < 0.4
        frames = encoder.extract_frames(waveforms, lengths)
        context = encoder.contextualize(frames, mask)
        for row, (length, count) in enumerate(zip(lengths.tolist(), frames.lengths.tolist(), strict=True)):
            alone = encoder.extract_frames(waveforms[row : row + 1, :length])
            assert_near(frames.values[row, :count], alone.values[0])
            assert frames.energy[row].item() == pytest.approx(alone.energy.item(), rel=1e-5)
            assert_near(context[row, :count], encoder.contextualize(alone, mask[row : row + 1, :count])[0])

    @KINDS
    def test_garbage_in_the_padding_changes_nothing(
        self, tiny_config, padded_batch, norm: str, norm_first: bool, normalize: bool
    ) -> None:
        encoder = make_encoder(tiny_config(norm=norm, norm_first=norm_first, normalize_waveforms=normalize))
        waveforms, lengths = padded_batch
        is_padding = torch.arange(1000) >= lengths[:, None]
        garbage = torch.where(is_padding, 100 * torch.randn(5, 1000) + 30, waveforms)
        valid = valid_frames(encoder, lengths, 49)
        expected, found = encoder.extract_frames(waveforms, lengths), encoder.extract_frames(garbage, lengths)
        assert_near(found.values[valid], expected.values[valid])
        assert_near(found.energy, expected.energy)
        assert_near(encoder.contextualize(found)[valid], encoder.contextualize(expected)[valid])

    def test_lengths_that_are_all_full_are_as_none(self, tiny_config, padded_batch) -> None:
        encoder = make_encoder(tiny_config(normalize_waveforms=True))
        waveforms = padded_batch[0]
        stated = encoder.contextualize(encoder.extract_frames(waveforms, torch.full((5,), 1000)))
        assert_near(stated, encoder.contextualize(encoder.extract_frames(waveforms)))


class TestGradientScale:
    def gradients(self, config: EncoderConfig, waveforms: Tensor, lengths: Tensor, part: str) -> dict[str, Tensor]:
        encoder = make_encoder(config)
        frames = encoder.extract_frames(waveforms, lengths)
        loss = frames.energy.sum() if part == "energy" else encoder.contextualize(frames)[0].square().sum()
        loss.backward()
        return {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None}

    @pytest.mark.parametrize("part", ["context", "energy"])
    def test_acts_on_the_feature_encoder_alone(self, tiny_config, padded_batch, part: str) -> None:
        whole = self.gradients(tiny_config(gradient_scale=1.0), *padded_batch, part)
        tenth = self.gradients(tiny_config(gradient_scale=0.1), *padded_batch, part)
        assert whole.keys() == tenth.keys()
        assert sum(name.startswith("feature_encoder.") for name in whole) == 5
        for name, gradient in whole.items():
            scale = 0.1 if name.startswith("feature_encoder.") else 1.0
            assert gradient.any() or name.endswith("key.bias")  # which softmax does not notice
            torch.testing.assert_close(tenth[name], gradient * scale, rtol=1e-4, atol=1e-6)

    def test_frozen_convolutions_get_none(self, tiny_config, padded_batch) -> None:
        encoder = make_encoder(tiny_config())
        encoder.feature_encoder.requires_grad_(False)
        encoder.contextualize(encoder.extract_frames(*padded_batch))[0].square().sum().backward()
        assert all(parameter.grad is None for parameter in encoder.feature_encoder.parameters())
        assert encoder.context.projection.weight.grad.any()


def test_input_dropout_acts_in_training_alone(tiny_config, padded_batch) -> None:
    encoder = make_encoder(tiny_config(input_dropout=0.5))
    frames = encoder.extract_frames(*padded_batch)
    quiet = make_encoder(tiny_config()).contextualize(frames)
    assert torch.equal(encoder.contextualize(frames), quiet)
    assert not torch.allclose(encoder.train().contextualize(frames), quiet, atol=1e-2)


class TestNormalizeWaveforms:
    def test_valid_samples_have_no_mean_and_unit_variance(self, padded_batch) -> None:
        waveforms, lengths = padded_batch
        for row, length in zip(normalize_waveforms(waveforms + 0.3, lengths), lengths.tolist(), strict=True):
            assert row[:length].mean().item() == pytest.approx(0, abs=1e-5)
            assert row[:length].var(correction=0).item() == pytest.approx(1, rel=0.05)
            assert not row[length:].any()

    def test_epsilon_is_1e_5(self) -> None:
        quiet = torch.tensor([[1e-3, -1e-3, 1e-3, -1e-3]])
        expected = quiet / (1e-6 + 1e-5) ** 0.5
        torch.testing.assert_close(normalize_waveforms(quiet, None), expected)
        torch.testing.assert_close(normalize_waveforms(quiet, torch.tensor([4])), expected)

    @pytest.mark.parametrize(("setting", "epsilon"), [(True, 1e-5), (1e-7, 1e-7), (1e-8, 1e-8), (False, None)])
    def test_the_setting_is_the_epsilon(
        self, tiny_config, padded_batch, setting: bool | float, epsilon: float | None
    ) -> None:
        plain = make_encoder(tiny_config(norm="layer"))
        waveforms, lengths = 1e-3 * padded_batch[0], padded_batch[1]
        expected = waveforms if epsilon is None else normalize_waveforms(waveforms, lengths, epsilon)
        config = EncoderConfig.from_dict(tiny_config(norm="layer", normalize_waveforms=setting).to_dict(), "saved")
        found = make_encoder(config).extract_frames(waveforms, lengths)
        assert torch.equal(found.features, plain.extract_frames(expected, lengths).features)

    @pytest.mark.parametrize("norm", ["group", "layer", "utterance"])
    def test_neither_level_nor_offset_matters(self, tiny_config, padded_batch, norm: str) -> None:
        encoder = make_encoder(tiny_config(norm=norm, normalize_waveforms=1e-12))
        waveforms, lengths = padded_batch
        valid = valid_frames(encoder, lengths, 49)
        expected = encoder.encode(waveforms, lengths).context[valid]
        for gain, offset in ((0.01, 0.0), (1.0, 0.1), (0.01, -0.1), (2.0, 0.02)):
            found = encoder.encode(gain * waveforms + offset, lengths).context[valid]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * expected.abs().max().item())

    def test_silence_stays_silence(self, tiny_config) -> None:
        encoder = make_encoder(tiny_config(norm="layer", normalize_waveforms=1e-8))
        silence = torch.zeros(2, 4000)
        expected = encoder.encode(silence).context
        for lengths in (None, torch.tensor([4000, 2000])):
            found = encoder.encode(silence + 0.1, lengths).context[:, :95]
            torch.testing.assert_close(found, expected[:, :95], rtol=0, atol=0.01)


class TestEncode:
    def test_each_recording_is_represented_as_it_is_alone(self, tiny_config, padded_batch) -> None:
        encoder = make_encoder(tiny_config(dropout=0.5, layer_drop=0.5)).train()
        waveforms, lengths = padded_batch
        encoded = encoder.encode(waveforms, lengths)
        assert encoded.frame_lengths.tolist() == [29, 49, 1, 21, 49]
        for row, (length, count) in enumerate(zip(lengths.tolist(), encoded.frame_lengths.tolist(), strict=True)):
            alone = encoder.encode(waveforms[row : row + 1, :length])
            assert alone.frame_lengths.tolist() == [count]
            assert_near(encoded.context[row, :count], alone.context[0])

    @pytest.mark.parametrize("training", [True, False])
    def test_is_without_noise_and_leaves_the_mode(self, tiny_config, padded_batch, training: bool) -> None:
        encoder = make_encoder(tiny_config(dropout=0.5)).train(training)
        first, second = encoder.encode(*padded_batch).context, encoder.encode(*padded_batch).context
        assert torch.equal(first, second)
        assert all(module.training is training for module in encoder.modules())

    def test_layers(self, tiny_config, padded_batch) -> None:
        encoder = make_encoder(tiny_config(norm_first=True))
        layers = [encoder.encode(*padded_batch, layer=layer).context for layer in (0, 1, 2, None)]
        with torch.no_grad():
            frames = encoder.extract_frames(*padded_batch)
            for number, context in zip((0, 1, 2, None), layers, strict=True):
                assert torch.equal(context, encoder.contextualize(frames, layer=number))
        assert torch.equal(layers[3], encoder.context.norm(layers[2]))

    def test_result_can_train_something_on_top(self, tiny_config, padded_batch) -> None:
        context = make_encoder(tiny_config()).encode(*padded_batch).context
        assert not context.requires_grad
        probe = nn.Linear(32, 3)
        probe(context).sum().backward()
        assert probe.weight.grad is not None
        assert probe.weight.grad.any()

    @pytest.mark.parametrize(
        ("shape", "lengths", "layer", "message"),
        [
            ((1000,), None, None, r"^waveforms: expected shape \(batch, samples\), found \(1000,\)$"),
            ((2, 1000), None, 3, "^layer: expected 0 to 2, found 3$"),
            ((2, 1000), None, -1, "^layer: expected 0 to 2, found -1$"),
            ((2, 1000), [1000], None, r"^lengths: expected 2 values .* found \[1000\]$"),
            ((2, 1000), [1000, 1001], None, r"between 35 \(one frame\) and 1000 samples, found \[1000, 1001\]$"),
            ((2, 1000), [34, 1000], None, r"between 35 \(one frame\) and 1000 samples, found \[34, 1000\]$"),
            ((2, 34), None, None, r"between 35 \(one frame\) and 34 samples, found \[34, 34\]$"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, tiny_config, shape: tuple[int, ...], lengths: list[int] | None, layer: int | None, message: str
    ) -> None:
        encoder = make_encoder(tiny_config())
        with pytest.raises(ValueError, match=message):
            encoder.encode(torch.zeros(shape), None if lengths is None else torch.tensor(lengths), layer)
