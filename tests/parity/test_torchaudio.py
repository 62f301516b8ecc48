"""Encoder and CTC against torchaudio: the same weights and input give the same numbers.

torchaudio has neither mask embedding nor quantizer. Its ``extract_features`` gives the output of every layer but not
the input of the first, which is therefore not compared; a large model's last layer comes without the final norm, as it
does with our ``layer``.
"""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechssl.export.torchaudio import to_torchaudio, torchaudio_arguments
from speechssl.model.ctc import CTCModel, ctc_losses
from speechssl.model.encoder import SpeechEncoder, normalize_waveforms

Case = Any  # of conftest.py, which pytest does not let a test import
Theirs = Any
Make = Callable[[CTCModel], Theirs]
NOISE = ("dropout", "layer_drop")


@pytest.fixture(scope="session")
def make_theirs(peer: Callable[[str], ModuleType]) -> Make:
    """Build the torchaudio model that is a CTC model of ours, weight by weight, in evaluation mode."""
    module = peer("torchaudio.models")

    def make(model: CTCModel) -> Theirs:
        quiet = {name: 0.0 for name in torchaudio_arguments(model.encoder.config, None) if name.endswith(NOISE)}
        arguments = torchaudio_arguments(model.encoder.config, model.head.out_features) | quiet
        theirs = module.wav2vec2_model(**arguments).eval()
        theirs.load_state_dict(to_torchaudio(model.state_dict()))  # strict: every name of theirs
        return theirs

    return make


@pytest.fixture(scope="module")
def model(case: Case) -> CTCModel:
    return case.ctc()


@pytest.fixture(scope="module")
def theirs(model: CTCModel, make_theirs: Make) -> Theirs:
    return make_theirs(model)


class TestEncoder:
    @torch.no_grad()
    def test_frames_before_and_after_the_norm_and_projected(
        self, case: Case, theirs: Theirs, assert_close: Any
    ) -> None:
        found = case.encoder.feature_encoder(case.waveforms, case.lengths)
        expected, lengths = theirs.feature_extractor(case.waveforms, case.lengths)
        assert_close(found[case.valid], expected[case.valid])
        if lengths is not None:
            assert lengths.tolist() == case.valid.sum(dim=1).tolist()
        projection = theirs.encoder.feature_projection
        frames = case.encoder.extract_frames(case.waveforms, case.lengths).values
        assert_close(frames[case.valid], projection.layer_norm(expected)[case.valid])
        assert_close(case.encoder.context.projection(frames)[case.valid], projection(expected)[case.valid])

    @torch.no_grad()
    def test_context_of_every_layer(self, case: Case, theirs: Theirs, assert_close: Any) -> None:
        layers, _ = theirs.extract_features(case.waveforms, case.lengths)
        for found, expected in zip(case.layers(mask=None)[1:-1], layers, strict=True):
            assert_close(found[case.valid], expected[case.valid])


class TestCTC:
    @torch.no_grad()
    def test_scores(self, case: Case, model: CTCModel, theirs: Theirs, assert_close: Any) -> None:
        logits, lengths = theirs(case.waveforms, case.lengths)
        context = case.encoder.contextualize(case.encoder.extract_frames(case.waveforms, case.lengths))
        assert_close(model.head(context)[case.valid], logits[case.valid])
        found = model(case.waveforms, case.lengths)
        assert_close(found.log_probs[case.valid], logits.log_softmax(dim=2)[case.valid])
        if lengths is not None:
            assert found.frame_lengths.tolist() == lengths.tolist()

    def test_gradients_of_the_loss(self, case: Case, model: CTCModel, theirs: Theirs, assert_gradients: Any) -> None:
        labels, label_lengths = torch.tensor([1, 2, 2, 3, 5, 10, 9, 4]), torch.tensor([3, 4, 1])
        logits, _ = theirs(case.waveforms, case.lengths)
        expected = nn.functional.ctc_loss(
            logits.log_softmax(dim=2).transpose(0, 1), labels, case.valid.sum(dim=1), label_lengths, reduction="sum"
        )
        found = ctc_losses(
            model(case.waveforms, case.lengths), labels, case.valid.sum(dim=1).tolist(), label_lengths.tolist(), 0
        ).sum()
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        assert_gradients(model, found, theirs, expected, to_torchaudio)


class TestDeviations:
    def test_group_norm_sees_padding_there_and_not_here(
        self, padded_group_case: Case, make_theirs: Make, assert_close: Any
    ) -> None:
        """Their context depends on the padding, lengths or not; ours is that of the utterance alone."""
        case = padded_group_case
        theirs = make_theirs(case.ctc())
        silence = case.waveforms * (torch.arange(case.waveforms.shape[1]) < case.lengths[:, None])
        with torch.no_grad():
            ours = case.encoder.encode(silence, case.lengths).context
            batched = theirs.extract_features(silence, case.lengths)[0][-1]
            for row, (length, valid) in enumerate(zip(case.lengths.tolist(), case.valid, strict=True)):
                alone = theirs.extract_features(silence[row : row + 1, :length])[0][-1][0]
                assert_close(ours[row, valid], alone)
                if length < silence.shape[1]:
                    assert (batched[row, valid] - alone).norm() / alone.norm() > 1e-2

    def test_scores_beyond_10000_reach_padding_there_and_not_here(
        self, make_case: Any, make_theirs: Make, assert_close: Any
    ) -> None:
        """They subtract 10,000 from the scores of padding; here padding has no part in the softmax."""
        case = make_case("tiny-layer-pre", is_padded=True)
        with torch.no_grad():
            for layer in case.encoder.context.layers:
                layer.attention.query.weight.mul_(3000)
                layer.attention.key.weight.mul_(3000)
        theirs = make_theirs(case.ctc())
        frames = case.encoder.extract_frames(case.waveforms, case.lengths)
        features, lengths = theirs.feature_extractor(case.waveforms, case.lengths)
        # In float64, or rounding would decide between scores as large as these.
        frames, features = replace(frames, values=frames.values.double()), features.double()
        case.encoder.double(), theirs.double()
        with torch.no_grad():
            ours, batched = case.encoder.contextualize(frames), theirs.encoder.extract_features(features, lengths)[-1]
            for row, length in enumerate(lengths.tolist()):
                one = replace(frames, values=frames.values[row : row + 1, :length], lengths=None)
                alone = case.encoder.contextualize(one)[0]
                assert_close(ours[row, :length], alone)
                theirs_alone = theirs.encoder.extract_features(features[row : row + 1, :length])[-1][0]
                difference = (batched[row, :length] - theirs_alone).norm() / theirs_alone.norm()
                assert bool(difference > 1e-2) is (length < features.shape[1])

    def test_their_flag_for_the_order_of_norms_means_the_opposite_inside(self, case: Case, theirs: Theirs) -> None:
        norm_first = case.encoder.config.context.norm_first
        assert theirs.encoder.transformer.layer_norm_first is not norm_first
        assert theirs.encoder.transformer.layers[0].layer_norm_first is norm_first
        assert case.encoder.context.norm_first is case.encoder.context.layers[0].norm_first is norm_first

    def test_their_pipelines_normalize_a_batch_as_one_recording(
        self, peer: Callable[[str], ModuleType], assert_close: Any
    ) -> None:
        """With their epsilon, 1e-5, alone we agree; in a batch each of our rows stays what it is alone."""
        utils = peer("torchaudio.pipelines._wav2vec2.utils")

        class Nothing(nn.Module):
            def forward(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, None]:
                return waveforms, None

        normalize = utils._extend_model(Nothing(), normalize_waveform=True)
        torch.manual_seed(0)
        waveforms = torch.randn(2, 500) * torch.tensor([[0.01], [0.5]]) + 0.1
        ours = normalize_waveforms(waveforms, None)
        for row in (0, 1):
            alone, _ = normalize(waveforms[row : row + 1])
            assert_close(ours[row], alone[0])
        together, _ = normalize(waveforms)
        assert (together - ours).norm() / ours.norm() > 0.5

    def test_their_positional_convolution_keeps_the_initialization_of_pytorch(self, peer: Any, make_case: Any) -> None:
        convolution = peer("torchaudio.models.wav2vec2.components").ConvolutionalPositionalEmbedding(256, 128, 16)
        published = (4 / (128 * 256)) ** 0.5
        assert convolution.conv.weight.std().item() == pytest.approx((3 * 128 * 256 / 16) ** -0.5, rel=0.02)
        config = make_case("tiny-layer-post", is_padded=False).encoder.config
        sizes = {"model_dim": 256, "position_kernel": 128, "position_groups": 16}
        ours = SpeechEncoder(config.model_copy(update={"context": config.context.model_copy(update=sizes)}))
        assert ours.context.position.conv.weight.std().item() == pytest.approx(published, rel=0.02)
