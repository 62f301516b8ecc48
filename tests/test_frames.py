import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.errors import ConfigError
from speechssl.frames import FrameGeometry, MaskConfig, draw_mask, draw_masks, most_hidden
from speechssl.rng import keyed_generator

BASE = FrameGeometry(kernels=(10, 3, 3, 3, 3, 2, 2), strides=(5, 2, 2, 2, 2, 2, 2))

geometries = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=5).map(
    lambda layers: FrameGeometry(*map(tuple, zip(*layers, strict=True)))
)


def conv_lengths(geometry: FrameGeometry, num_samples: int) -> list[int]:
    """The lengths that torch's convolutions give; 0 from where the input is too short for them."""
    signal = torch.empty(1, 1, num_samples, device="meta")
    lengths = []
    for kernel, stride in zip(geometry.kernels, geometry.strides, strict=True):
        if signal.shape[-1] >= kernel:
            signal = torch.nn.Conv1d(1, 1, kernel, stride, device="meta")(signal)
        else:
            signal = torch.empty(1, 1, 0, device="meta")
        lengths.append(signal.shape[-1])
    return lengths


class TestGeometry:
    def test_of_the_base_model(self) -> None:
        assert BASE.hop_samples == 320
        assert BASE.receptive_field_samples == 400

    def test_lengths_of_the_base_model(self) -> None:
        assert [BASE.num_frames(length) for length in (0, 399, 400, 719, 720)] == [0, 0, 1, 1, 2]
        assert [BASE.num_frames(length) for length in (16_000, 160_000, 240_000)] == [49, 499, 749]
        assert [BASE.num_frames(length) for length in (250_000, 320_000)] == [781, 999]

    @settings(deadline=None)  # the first use of torch takes long
    @given(geometries, st.integers(0, 3000))
    def test_lengths_are_those_of_torch_after_every_convolution(self, geometry: FrameGeometry, length: int) -> None:
        assert geometry.layer_lengths(length) == conv_lengths(geometry, length)

    @settings(deadline=None)  # the first use of torch takes long
    @given(geometries, st.lists(st.integers(0, 100_000), min_size=1, max_size=8))
    def test_ints_arrays_and_tensors_agree(self, geometry: FrameGeometry, lengths: list[int]) -> None:
        expected = [geometry.num_frames(length) for length in lengths]
        of_array = geometry.num_frames(np.array(lengths))
        of_tensor = geometry.num_frames(torch.tensor(lengths))
        assert all(type(count) is int for count in expected)
        assert of_array.dtype == np.int64
        assert of_array.tolist() == expected
        assert of_tensor.dtype == torch.int64
        assert of_tensor.tolist() == expected

    @given(geometries, st.integers(1, 500))
    def test_num_samples_is_the_least_that_gives_the_frames(self, geometry: FrameGeometry, num_frames: int) -> None:
        num_samples = geometry.num_samples(num_frames)
        assert geometry.num_frames(num_samples) == num_frames
        assert geometry.num_frames(num_samples - 1) == num_frames - 1

    @pytest.mark.parametrize(
        ("geometry", "first", "last"),
        [
            (BASE, 0, 0),
            (BASE, 3, 3),
            (BASE, 2, 7),
            (FrameGeometry((20, 4, 3), (10, 4, 2)), 1, 4),
            (FrameGeometry((5,), (5,)), 2, 3),
        ],
    )
    def test_the_samples_of_a_span_are_those_its_frames_depend_on(
        self, geometry: FrameGeometry, first: int, last: int
    ) -> None:
        samples = torch.zeros(1, 1, geometry.num_samples(last + 3), dtype=torch.float64, requires_grad=True)
        frames: torch.Tensor = samples
        for kernel, stride in zip(geometry.kernels, geometry.strides, strict=True):
            frames = torch.nn.functional.conv1d(frames, torch.ones(1, 1, kernel, dtype=torch.float64), stride=stride)
        (gradient,) = torch.autograd.grad(frames[0, 0, first : last + 1].sum(), samples)
        seen = gradient[0, 0].nonzero()[:, 0]
        assert geometry.span_samples(first, last) == (int(seen[0]), int(seen[-1]) + 1)


def masks(config: MaskConfig, num_frames: int, count: int, seed: int = 0) -> npt.NDArray[np.bool_]:
    """(count, num_frames) masks of utterances 0, 1, ... with keys of their own."""
    return np.stack([draw_mask(num_frames, config, keyed_generator(seed, index)) for index in range(count)])


def span_lengths(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Lengths of the runs of hidden frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return edges[1::2] - edges[::2]


class TestMaskStatistics:
    """Shares of hidden frames as measured on fairseq's ``compute_mask_indices``; a point of tolerance."""

    @pytest.mark.parametrize(
        ("fairseq_prob", "span", "hidden"),
        [(0.65, 10, 0.492), (0.8, 10, 0.567), (0.75, 10, 0.544), (0.5, 10, 0.403), (0.5, 5, 0.41)],
    )
    def test_time_masks_at_500_frames(self, fairseq_prob: float, span: int, hidden: float) -> None:
        drawn = masks(MaskConfig(start_prob=fairseq_prob / span, span_frames=span), 500, 1000)
        assert drawn.mean() == pytest.approx(hidden, abs=0.01)

    @pytest.mark.parametrize(("fairseq_prob", "hidden"), [(0.5, 0.40), (0.25, 0.23), (0.1, 0.10)])
    def test_channel_masks_at_768_channels(self, fairseq_prob: float, hidden: float) -> None:
        drawn = masks(MaskConfig(start_prob=fairseq_prob / 64, span_frames=64, min_spans=0), 768, 1000)
        assert drawn.mean() == pytest.approx(hidden, abs=0.01)

    def test_spread_and_runs_of_the_default(self) -> None:
        long, short = masks(MaskConfig(), 500, 1000), masks(MaskConfig(), 100, 1000)
        assert long.mean(axis=1).std() == pytest.approx(0.029, abs=0.004)
        assert short.mean(axis=1).std() == pytest.approx(0.068, abs=0.006)
        assert np.concatenate([span_lengths(mask) for mask in long]).mean() == pytest.approx(14.7, abs=0.3)

    def test_the_number_of_spans_is_right_on_average(self) -> None:
        # One frame a span: no overlaps, so hidden frames are spans. 0.06 x 90 = 5.4.
        drawn = masks(MaskConfig(start_prob=0.06, span_frames=1), 90, 4000).sum(axis=1)
        assert set(drawn) == {5, 6}
        assert drawn.mean() == pytest.approx(5.4, abs=0.03)

    def test_every_start_is_equally_likely_and_the_last_frame_never_hidden(self) -> None:
        share = masks(MaskConfig(start_prob=0.1, span_frames=4), 40, 6000).mean(axis=0)
        assert share[-1] == 0
        # 4 distinct starts among 36: a frame in the middle can be covered from 4 of them, the first from 1.
        assert share[0] == pytest.approx(4 / 36, abs=0.02)
        assert share[3:-4] == pytest.approx(1 - (32 * 31 * 30 * 29) / (36 * 35 * 34 * 33), abs=0.035)


mask_configs = st.builds(
    MaskConfig, start_prob=st.floats(0, 1), span_frames=st.integers(1, 20), min_spans=st.integers(0, 5)
)


class TestMasks:
    @given(mask_configs, st.integers(1, 300), st.integers(0, 2**32))
    def test_never_hide_everything_and_only_in_whole_spans(
        self, config: MaskConfig, num_frames: int, seed: int
    ) -> None:
        mask = draw_mask(num_frames, config, keyed_generator(seed))
        assert mask.shape == (num_frames,)
        assert mask.dtype == np.bool_
        assert not mask.all()
        assert all(span_lengths(mask) >= min(config.span_frames, num_frames - 1))

    @given(mask_configs, st.integers(2, 300), st.integers(0, 2**32))
    def test_hide_no_more_than_their_spans_and_at_least_one(
        self, config: MaskConfig, num_frames: int, seed: int
    ) -> None:
        mask = draw_mask(num_frames, config, keyed_generator(seed))
        assert mask.sum() <= most_hidden(num_frames, config)
        if config.min_spans:
            assert mask.sum() >= min(config.span_frames, num_frames - 1)

    def test_the_most_is_near_what_is_hidden(self) -> None:
        assert most_hidden(781, MaskConfig()) == 510  # 51 spans of ten; on average half of the frames are hidden
        assert most_hidden(9, MaskConfig()) == 8

    @pytest.mark.parametrize("num_frames", range(2, 13))
    def test_short_utterances_have_hidden_and_visible_frames(self, num_frames: int) -> None:
        drawn = masks(MaskConfig(), num_frames, 50)
        assert drawn.any(axis=1).all()
        assert not drawn.all(axis=1).any()

    @pytest.mark.parametrize("num_frames", [0, 1])
    def test_nothing_is_hidden_where_nothing_would_stay(self, num_frames: int) -> None:
        assert not draw_mask(num_frames, MaskConfig(), keyed_generator(0)).any()

    def test_nothing_is_hidden_without_spans(self) -> None:
        assert not masks(MaskConfig(start_prob=0, min_spans=0), 100, 50).any()

    def test_the_fewest_spans_hold_for_short_utterances(self) -> None:
        drawn = masks(MaskConfig(start_prob=0, span_frames=1, min_spans=3), 20, 50)
        assert set(drawn.sum(axis=1)) == {3}

    @given(mask_configs, st.integers(1, 300), st.integers(0, 2**32), st.integers(0, 100))
    def test_depend_on_the_generator_alone(self, config: MaskConfig, num_frames: int, seed: int, index: int) -> None:
        first = draw_mask(num_frames, config, keyed_generator(seed, index))
        np.random.default_rng(1).random()
        assert (first == draw_mask(num_frames, config, keyed_generator(seed, index))).all()

    def test_do_not_depend_on_the_utterances_drawn_before(self) -> None:
        config, lengths = MaskConfig(), [300, 40, 7, 120, 500]
        in_order = [draw_mask(length, config, keyed_generator(3, 1, index)) for index, length in enumerate(lengths)]
        for index in (4, 2, 0):
            alone = draw_mask(lengths[index], config, keyed_generator(3, 1, index))
            assert (alone == in_order[index]).all()

    def test_of_neighboring_utterances_epochs_and_seeds_are_unrelated(self) -> None:
        keys = [(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(20)]
        drawn = np.stack([draw_mask(400, MaskConfig(), keyed_generator(*key)) for key in keys])
        assert len(np.unique(drawn, axis=0)) == len(keys)
        share = drawn.mean()
        agreement = (drawn[1:] == drawn[:-1]).mean()
        assert agreement == pytest.approx(share**2 + (1 - share) ** 2, abs=0.01)

    @pytest.mark.parametrize(
        ("setting", "value"), [("start_prob", -0.1), ("start_prob", 1.1), ("span_frames", 0), ("min_spans", -1)]
    )
    def test_settings_out_of_range_are_refused(self, setting: str, value: float) -> None:
        with pytest.raises(ConfigError, match=rf": {setting}: "):
            MaskConfig.from_dict({setting: value}, "test")


EQUAL = MaskConfig(equal_counts=True)


def batch_of_masks(
    lengths: list[int], config: MaskConfig, seed: int = 0, first: int = 0
) -> list[npt.NDArray[np.bool_]]:
    return draw_masks(lengths, config, [keyed_generator(seed, first + index) for index in range(len(lengths))])


class TestMasksOfABatch:
    @given(mask_configs, st.lists(st.integers(0, 300), min_size=1, max_size=8), st.integers(0, 2**32))
    def test_are_whole_and_each_alone_by_default(self, config: MaskConfig, lengths: list[int], seed: int) -> None:
        for index, (length, mask) in enumerate(zip(lengths, batch_of_masks(lengths, config, seed), strict=True)):
            assert (mask == draw_mask(length, config, keyed_generator(seed, index))).all()

    @given(mask_configs, st.lists(st.integers(0, 300), min_size=1, max_size=8), st.integers(0, 2**32))
    def test_of_equal_counts_are_parts_of_them(self, config: MaskConfig, lengths: list[int], seed: int) -> None:
        whole = batch_of_masks(lengths, config, seed)
        equal = batch_of_masks(lengths, config.model_copy(update={"equal_counts": True}), seed)
        assert {int(mask.sum()) for mask in equal} == {min(int(mask.sum()) for mask in whole)}
        assert all((part <= mask).all() for part, mask in zip(equal, whole, strict=True))

    def test_of_equal_counts_depend_on_their_keys_and_batch_alone(self) -> None:
        first, again = (batch_of_masks([500, 480, 90], EQUAL) for _ in range(2))
        assert all((one == other).all() for one, other in zip(first, again, strict=True))
        other = batch_of_masks([500, 480], EQUAL)
        assert other[0].sum() > first[0].sum(), "the short one no longer counts"

    def test_of_equal_counts_lose_any_of_their_frames(self) -> None:
        config = MaskConfig(start_prob=0, span_frames=4, min_spans=1, equal_counts=True)
        generators = [keyed_generator(index) for index in range(4000)]
        drawn = [draw_masks([9, 3], config, [generator, generator])[0] for generator in generators]
        assert {int(mask.sum()) for mask in drawn} == {2}
        # A span of 4 starts at 0..4 and half of it is kept, so that frame k stays in the share of starts that reach it.
        starts = np.array([1, 2, 3, 4, 4, 3, 2, 1, 0]) / 5
        assert np.mean(drawn, axis=0) == pytest.approx(starts / 2, abs=0.03)

    @pytest.mark.parametrize(
        ("config", "length", "hidden", "block", "cut"),
        [
            pytest.param(EQUAL, 740, 0.456, 7.6, 0.63, id="frames of 15 s"),
            pytest.param(
                MaskConfig(start_prob=0.5 / 64, span_frames=64, min_spans=0, equal_counts=True),
                768,
                0.33,
                None,
                None,
                id="channels",
            ),
        ],
    )
    def test_of_equal_counts_hide_as_much_as_fairseqs(
        self, config: MaskConfig, length: int, hidden: float, block: float | None, cut: float | None
    ) -> None:
        """Measured with its ``compute_mask_indices`` in batches of LibriSpeech's lengths, here of six equal rows."""
        drawn = [mask for batch in range(200) for mask in batch_of_masks([length] * 6, config, first=6 * batch)]
        assert np.mean(drawn) == pytest.approx(hidden, abs=0.012)
        if block is not None:
            lengths = np.concatenate([span_lengths(mask) for mask in drawn])
            assert lengths.mean() == pytest.approx(block, abs=0.4)
            assert (lengths < config.span_frames).mean() == pytest.approx(cut, abs=0.03)
