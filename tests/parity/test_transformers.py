"""Encoder, CTC and waveforms against transformers: the same weights and input give the same numbers."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speechssl.checkpoint.transformers_names import to_transformers
from speechssl.model.ctc import CTCModel, ctc_losses
from speechssl.model.encoder import SpeechEncoder, normalize_waveforms

Case = Any  # of conftest.py, which pytest does not let a test import
Theirs = Any
Make = Callable[[CTCModel], Theirs]


@pytest.fixture(scope="session")
def make_theirs(peer: Callable[[str], ModuleType], transformers_settings: Any) -> Make:
    """Build the Wav2Vec2ForCTC that is a CTC model of ours, weight by weight, in evaluation mode."""
    module = peer("transformers.models.wav2vec2.modeling_wav2vec2")

    def make(model: CTCModel) -> Theirs:
        settings = transformers_settings(model.encoder.config)
        theirs = module.Wav2Vec2ForCTC(module.Wav2Vec2Config(**settings, vocab_size=model.head.out_features)).eval()
        theirs.load_state_dict(to_transformers(model.state_dict()))  # strict: every name of theirs
        return theirs

    return make


@pytest.fixture(scope="module")
def model(case: Case) -> CTCModel:
    return case.ctc()


@pytest.fixture(scope="module")
def theirs(model: CTCModel, make_theirs: Make) -> Theirs:
    return make_theirs(model)


def attention_mask(case: Case) -> Tensor | None:
    """What they take for lengths: (B, T), 1 for valid samples."""
    if case.lengths is None:
        return None
    return (torch.arange(case.waveforms.shape[1]) < case.lengths[:, None]).long()


class TestEncoder:
    @torch.no_grad()
    def test_frames_before_and_after_the_norm(self, case: Case, theirs: Theirs, assert_close: Any) -> None:
        found = case.encoder.feature_encoder(case.waveforms, case.lengths)
        expected = theirs.wav2vec2.feature_extractor(case.waveforms).transpose(1, 2)
        assert_close(found[case.valid], expected[case.valid])
        found = case.encoder.extract_frames(case.waveforms, case.lengths).values
        expected = theirs.wav2vec2(case.waveforms, attention_mask=attention_mask(case)).extract_features
        assert_close(found[case.valid], expected[case.valid])

    @torch.no_grad()
    def test_projected_frames(self, case: Case, theirs: Theirs, assert_close: Any) -> None:
        found = case.encoder.context.projection(case.encoder.extract_frames(case.waveforms, case.lengths).values)
        convolved = theirs.wav2vec2.feature_extractor(case.waveforms).transpose(1, 2)
        expected, _ = theirs.wav2vec2.feature_projection(convolved)
        assert_close(found[case.valid], expected[case.valid])

    @pytest.mark.parametrize("is_masked", [False, True])
    @torch.no_grad()
    def test_context_of_every_layer(self, case: Case, theirs: Theirs, assert_close: Any, is_masked: bool) -> None:
        mask = case.batch.mask if is_masked else None
        output = theirs.wav2vec2(
            case.waveforms, attention_mask=attention_mask(case), mask_time_indices=mask, output_hidden_states=True
        )
        for found, expected in zip(case.layers(mask), (*output.hidden_states, output.last_hidden_state), strict=True):
            assert_close(found[case.valid], expected[case.valid])

    def test_every_weight_matters_to_the_comparison(self, make_case: Any, make_theirs: Make, assert_close: Any) -> None:
        """Or a name mixed up with its neighbor could go unnoticed."""
        case = make_case("tiny-layer-pre", is_padded=True)
        model = case.ctc()
        theirs = make_theirs(model)
        with torch.no_grad():
            expected = theirs(case.waveforms, attention_mask=attention_mask(case)).logits.log_softmax(dim=2)
            for name, parameter in model.named_parameters():
                if name == "encoder.context.mask_embedding" or name.endswith(
                    "key.bias"
                ):  # which adds the same to all scores
                    continue
                before = parameter.clone()
                parameter.mul_(1 + 0.02 * torch.rand_like(parameter))
                found = model(case.waveforms, case.lengths).log_probs
                assert not torch.allclose(found[case.valid], expected[case.valid], rtol=0, atol=1e-5), name
                parameter.copy_(before)


class TestCTC:
    @torch.no_grad()
    def test_scores(self, case: Case, model: CTCModel, theirs: Theirs, assert_close: Any) -> None:
        found = model(case.waveforms, case.lengths)
        logits = theirs(case.waveforms, attention_mask=attention_mask(case)).logits
        assert_close(found.log_probs[case.valid], logits.log_softmax(dim=2)[case.valid])
        context = case.encoder.contextualize(case.encoder.extract_frames(case.waveforms, case.lengths))
        assert_close(model.head(context)[case.valid], logits[case.valid])
        assert found.frame_lengths.tolist() == case.valid.sum(dim=1).tolist()

    def test_loss_and_its_gradients(self, case: Case, model: CTCModel, theirs: Theirs, assert_gradients: Any) -> None:
        label_lengths = torch.tensor([5, 8, 3])
        labels = torch.randint(1, model.head.out_features, (16,), generator=torch.Generator().manual_seed(0))
        padded = torch.nn.utils.rnn.pad_sequence(
            labels.split(label_lengths.tolist()), batch_first=True, padding_value=-100
        )
        found = ctc_losses(
            model(case.waveforms, case.lengths), labels, case.valid.sum(dim=1).tolist(), label_lengths.tolist(), 0
        ).sum()
        expected = theirs(case.waveforms, attention_mask=attention_mask(case), labels=padded).loss  # their sum
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        assert_gradients(model, found, theirs, expected, to_transformers)


class TestWaveforms:
    RAW = np.random.default_rng(0).standard_normal((3, 4000)).astype(np.float32)
    LENGTHS = torch.tensor([2500, 4000, 1600])

    def theirs(self, peer: Any, waveforms: list[Any]) -> Tensor:
        extractor = peer("transformers").Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
        values: Tensor = extractor(waveforms, sampling_rate=16_000, padding=True, return_tensors="pt").input_values
        return values

    def normalized(self, peer: Any, loudness: float) -> tuple[Tensor, Tensor, Tensor]:
        """Ours, theirs and the variance of each row."""
        rows = [loudness * (row[:length] + 0.1) for row, length in zip(self.RAW, self.LENGTHS.tolist(), strict=True)]
        padded = torch.zeros(3, 4000)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = torch.from_numpy(row)
        variance = torch.tensor([row.var() for row in rows])[:, None]
        return normalize_waveforms(padded, self.LENGTHS), self.theirs(peer, rows), variance

    def test_agree_when_loud(self, peer: Any, assert_close: Any) -> None:
        ours, theirs, _ = self.normalized(peer, loudness=3.0)
        assert_close(ours, theirs)

    @pytest.mark.parametrize(("loudness", "ratio"), [(0.1, 0.9995), (0.01, 0.9535), (0.001, 0.3162)])
    def test_epsilon_is_1e_5_here_as_in_fairseq_and_1e_7_there(
        self, peer: Any, assert_close: Any, loudness: float, ratio: float
    ) -> None:
        """So quiet recordings are a little quieter here."""
        ours, theirs, variance = self.normalized(peer, loudness)
        assert_close(ours, theirs * ((variance + 1e-7) / (variance + 1e-5)).sqrt())
        assert (ours.norm() / theirs.norm()).item() == pytest.approx(ratio, abs=2e-3)


class TestDeviations:
    def test_group_norm_sees_padding_there_and_not_here(
        self, padded_group_case: Case, make_theirs: Make, assert_close: Any
    ) -> None:
        """Their context depends on the padding, with an attention mask too; ours is that of the utterance alone."""
        case = padded_group_case
        theirs = make_theirs(case.ctc()).wav2vec2
        silence = case.waveforms * attention_mask(case)
        with torch.no_grad():
            ours = case.encoder.encode(silence, case.lengths).context
            batched = theirs(silence).last_hidden_state
            with_mask = theirs(silence, attention_mask=attention_mask(case)).last_hidden_state
            for row, (length, valid) in enumerate(zip(case.lengths.tolist(), case.valid, strict=True)):
                alone = theirs(silence[row : row + 1, :length]).last_hidden_state[0]
                assert_close(ours[row, valid], alone)
                if length < silence.shape[1]:
                    for padded in (batched, with_mask):
                        assert (padded[row, valid] - alone).norm() / alone.norm() > 1e-2

    def test_a_row_without_a_frame_attends_to_padding_there(self, make_case: Any, make_theirs: Make) -> None:
        """Their mask of such a row is all ones, since -1 is the last frame. Here it has no frames."""
        case = make_case("tiny-layer-post", is_padded=True)
        theirs = make_theirs(case.ctc()).wav2vec2
        short = torch.ones_like(case.waveforms, dtype=torch.long)
        short[0, case.encoder.geometry.receptive_field_samples - 1 :] = 0
        num_frames = case.valid.shape[1]
        assert theirs._get_feature_vector_attention_mask(num_frames, short)[0].all()
        assert case.encoder.geometry.num_frames(short.sum(dim=1)).tolist() == [0, num_frames, num_frames]

    @torch.no_grad()
    def test_they_hide_frames_by_themselves_in_training(
        self, make_case: Any, make_theirs: Make, assert_close: Any
    ) -> None:
        """A twentieth of the frames, unless told otherwise; ours hides what it is told to."""
        case = make_case("tiny-layer-pre", is_padded=False)
        model = case.ctc()
        theirs = make_theirs(model)
        plain = theirs(case.waveforms).logits.log_softmax(dim=2)
        np.random.seed(0)  # noqa: NPY002  # theirs draws from the global generator
        noisy = theirs.train()(case.waveforms).logits.log_softmax(dim=2)
        assert (noisy - plain).norm() / plain.norm() > 1e-2
        assert_close(model.train()(case.waveforms).log_probs, plain)

    def test_their_positional_convolution_keeps_the_initialization_of_pytorch(self, make_case: Any, peer: Any) -> None:
        """They draw the published normal weights into a tensor that weight norm computes, which changes nothing."""
        case = make_case("tiny-layer-post", is_padded=False)
        dim, kernel, groups = 256, 128, 16
        module = peer("transformers.models.wav2vec2.modeling_wav2vec2")
        config = module.Wav2Vec2Config(
            hidden_size=dim,
            num_attention_heads=4,
            intermediate_size=8,
            num_hidden_layers=1,
            conv_dim=(8,),
            conv_kernel=(4,),
            conv_stride=(2,),
        )
        published = (4 / (kernel * dim)) ** 0.5
        theirs = module.Wav2Vec2Model(config).encoder.pos_conv_embed.conv.weight
        assert theirs.std().item() == pytest.approx((3 * kernel * dim / groups) ** -0.5, rel=0.02)
        context = case.encoder.config.context.model_copy(
            update={"model_dim": dim, "position_kernel": kernel, "position_groups": groups}
        )
        ours = SpeechEncoder(case.encoder.config.model_copy(update={"context": context})).context.position.conv.weight
        assert ours.std().item() == pytest.approx(published, rel=0.02)
        assert abs(theirs.std().item() / published - 1) > 0.1
