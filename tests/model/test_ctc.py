import itertools
import math

import pytest
import torch
from torch import Tensor

from speechssl.decode.greedy import PathToken, greedy_path
from speechssl.model.ctc import CTCModel, CTCOutput, consistency_losses, ctc_losses

NUM_SYMBOLS = 7
KINDS = pytest.mark.parametrize(
    ("norm", "norm_first", "normalize"),
    [(norm, first, normalize) for norm in ("group", "layer") for first in (False, True) for normalize in (False, True)],
)


def make_output(*rows: Tensor) -> CTCOutput:
    """A batch of (S, V) probabilities, the rest of each row being garbage."""
    lengths = torch.tensor([len(row) for row in rows])
    log_probs = torch.randn(len(rows), int(lengths.max()), rows[0].shape[1]).log_softmax(dim=2)
    for number, row in enumerate(rows):
        log_probs[number, : len(row)] = row.log()
    return CTCOutput(log_probs, lengths)


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != 0)


BLANK_ID = 0


def brute_force_loss(probabilities: Tensor, labels: tuple[int, ...]) -> float:
    """Over all paths that say the labels."""
    likelihood = 0.0
    for path in itertools.product(range(probabilities.shape[1]), repeat=len(probabilities)):
        if collapse(path) == labels:
            likelihood += math.prod(probabilities[frame, symbol].item() for frame, symbol in enumerate(path))
    return -math.log(likelihood)


class TestLoss:
    def test_is_that_of_all_paths(self) -> None:
        torch.manual_seed(0)
        rows = [torch.randn(length, 3).softmax(dim=1) for length in (5, 4, 5, 3, 1, 2)]
        labels = [(1, 2), (1, 1), (2, 1, 2), (), (2,), (1, 2)]
        output, symbols = make_output(*rows), torch.tensor([symbol for row in labels for symbol in row])
        losses = ctc_losses(output, symbols, output.frame_lengths.tolist(), [len(row) for row in labels], BLANK_ID)
        assert losses.shape == (6,)
        for loss, row, wanted in zip(losses.tolist(), rows, labels, strict=True):
            assert loss == pytest.approx(brute_force_loss(row, wanted), rel=1e-5)

    @pytest.mark.parametrize(
        ("num_frames", "labels", "fits"),
        [(3, (1, 1), True), (2, (1, 1), False), (2, (1, 2), True), (1, (1, 2), False), (5, (1, 1, 1), True)],
    )
    def test_is_infinite_where_the_labels_do_not_fit(
        self, num_frames: int, labels: tuple[int, ...], fits: bool
    ) -> None:
        rows = torch.full((num_frames, 3), 1 / 3), torch.full((9, 3), 1 / 3)
        output = make_output(*rows)
        num_frames_of = output.frame_lengths.tolist()
        loss, other = ctc_losses(output, torch.tensor((*labels, 1)), num_frames_of, (len(labels), 1), BLANK_ID).tolist()
        assert math.isfinite(loss) is fits
        assert loss > 0
        assert math.isfinite(other)

    def test_gradient_reaches_the_whole_model(self, tiny_config, padded_batch) -> None:
        torch.manual_seed(0)
        model = CTCModel(tiny_config(), NUM_SYMBOLS)
        output = model(*padded_batch)
        num_frames = output.frame_lengths.tolist()
        losses = ctc_losses(output, torch.tensor([1, 2, 3, 4, 4, 5, 6]), num_frames, (2, 3, 0, 1, 1), BLANK_ID)
        losses.sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            if name.endswith("mask_embedding"):
                assert not parameter.grad.any(), "nothing is hidden"
            elif not name.endswith("key.bias"):  # which softmax does not notice
                assert parameter.grad.any(), name


class TestConsistency:
    ONE, OTHER = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), torch.tensor([[0.25, 0.25, 0.5], [0.1, 0.8, 0.1]])

    def test_is_half_the_divergences_both_ways(self) -> None:
        wanted = 0.5 * (0.25 * math.log(2) + 0.25 * math.log(2))  # from either side 0.5 ln 2 - 0.25 ln 2 in one frame
        rows = [self.ONE[:1], self.ONE, self.OTHER[:1], self.OTHER]  # the first is padded by garbage
        assert consistency_losses(make_output(*rows)).tolist() == pytest.approx([wanted, wanted])

    def test_is_none_between_a_view_and_itself(self) -> None:
        assert consistency_losses(make_output(self.ONE, self.ONE)).tolist() == [0]

    def test_pulls_each_view_towards_the_other_as_given(self) -> None:
        logits = torch.stack((self.ONE, self.OTHER)).log().requires_grad_()
        output = CTCOutput(logits.log_softmax(dim=2), torch.tensor([2, 2]))
        consistency_losses(output).sum().backward()
        assert logits.grad is not None
        # Of a divergence from a fixed distribution the gradient is the difference of both.
        torch.testing.assert_close(logits.grad[0], (self.ONE - self.OTHER) / 2)
        torch.testing.assert_close(logits.grad[1], (self.OTHER - self.ONE) / 2)


class TestModel:
    def make_model(self, config) -> CTCModel:
        torch.manual_seed(0)
        model = CTCModel(config, NUM_SYMBOLS).eval()
        torch.nn.init.normal_(model.head.weight)  # so that different frames say different symbols
        return model

    @KINDS
    def test_padding_changes_no_result(
        self, tiny_config, padded_batch, norm: str, norm_first: bool, normalize: bool
    ) -> None:
        model = self.make_model(tiny_config(norm=norm, norm_first=norm_first, normalize_waveforms=normalize))
        waveforms, lengths = padded_batch
        labels, label_lengths = torch.randint(1, NUM_SYMBOLS, (12,)), torch.tensor([4, 3, 1, 0, 4])
        mask, channel_mask = torch.rand(5, 49) < 0.3, torch.rand(5, 32) < 0.2
        output = model(waveforms, lengths, mask, channel_mask)
        losses = ctc_losses(output, labels, output.frame_lengths.tolist(), label_lengths.tolist(), BLANK_ID)
        rows = zip(output.log_probs, output.frame_lengths.tolist(), strict=True)
        paths = [greedy_path([log_probs[:length]], BLANK_ID) for log_probs, length in rows]
        assert output.frame_lengths.tolist() == [29, 49, 1, 21, 49]
        assert len({token.symbol_id for path in paths for token in path}) > 2, "a test of nothing"
        for row, (length, count) in enumerate(zip(lengths.tolist(), output.frame_lengths.tolist(), strict=True)):
            alone = model(
                waveforms[row : row + 1, :length], None, mask[row : row + 1, :count], channel_mask[row : row + 1]
            )
            assert alone.frame_lengths.tolist() == [count]
            assert alone.frame_lengths.dtype == torch.int64
            torch.testing.assert_close(output.log_probs[row, :count], alone.log_probs[0], rtol=1e-4, atol=1e-4)
            [loss] = ctc_losses(
                alone, labels.split(label_lengths.tolist())[row], (count,), (int(label_lengths[row]),), BLANK_ID
            ).tolist()
            assert losses[row].item() == pytest.approx(loss, rel=1e-5, abs=1e-4)
            path = greedy_path(alone.log_probs, BLANK_ID)
            assert [PathToken(t.symbol_id, t.first_frame, t.last_frame, 0.0) for t in paths[row]] == [
                PathToken(t.symbol_id, t.first_frame, t.last_frame, 0.0) for t in path
            ]

    def test_views_are_as_if_each_mask_had_come_alone(self, tiny_config, padded_batch) -> None:
        model = self.make_model(tiny_config())
        waveforms, lengths = padded_batch
        masks, channel_masks = torch.rand(2, 5, 49) < 0.3, torch.rand(2, 5, 32) < 0.2
        calls = []
        model.encoder.feature_encoder.register_forward_hook(lambda *call: calls.append(call))
        both = model(waveforms, lengths, masks.flatten(0, 1), channel_masks.flatten(0, 1))
        assert len(calls) == 1
        alone = [model(waveforms, lengths, *pair) for pair in zip(masks, channel_masks, strict=True)]
        for rows, view in zip(both.log_probs.chunk(2), alone, strict=True):
            torch.testing.assert_close(rows, view.log_probs, rtol=1e-4, atol=1e-4)
        assert both.frame_lengths.tolist() == 2 * [29, 49, 1, 21, 49]
        assert not torch.allclose(alone[0].log_probs, alone[1].log_probs, atol=1e-2)

    def test_scores_are_probabilities_in_float32_even_under_autocast(self, tiny_config, padded_batch) -> None:
        model = self.make_model(tiny_config())
        with torch.autocast("cpu", torch.bfloat16):
            output = model(*padded_batch)
        assert output.log_probs.shape == (5, 49, NUM_SYMBOLS)
        assert output.log_probs.dtype == torch.float32
        torch.testing.assert_close(output.log_probs.exp().sum(dim=2), torch.ones(5, 49), rtol=1e-5, atol=0)

    def test_initialization_of_the_head(self, tiny_config) -> None:
        torch.manual_seed(0)
        head = CTCModel(tiny_config(), 300).head
        bound = (6 / (32 + 300)) ** 0.5
        assert bound * 0.99 < head.weight.abs().max() <= bound
        assert head.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert not head.bias.any()
