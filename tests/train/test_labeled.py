from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from speechssl.data.batches import Example
from speechssl.data.units import Letters
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.train.labeled import LabeledCollate, RegularizationConfig

VOCABULARY = Letters.from_texts(["abcd"])
GEOMETRY = FrameGeometry((400,), (320,))


def make_collate(regularization: RegularizationConfig | None, seed: int = 0) -> LabeledCollate:
    return LabeledCollate(GEOMETRY, 8, VOCABULARY, regularization, seed)


def make_examples(texts: Sequence[str], epoch: int = 0, num_samples: int = 16_000) -> list[Example]:
    noise = np.random.default_rng(0).standard_normal(num_samples).astype(np.float32) / 10
    return [Example(index, epoch, noise, text) for index, text in enumerate(texts)]


class TestSpeeds:
    SPEEDS = RegularizationConfig(speeds=(0.8, 1.0, 1.25))

    def test_are_chosen_for_each_utterance_and_epoch(self) -> None:
        lengths = [
            tuple(make_collate(self.SPEEDS)(make_examples(["ab"] * 12, epoch)).audio.lengths.tolist())
            for epoch in (0, 0, 1)
        ]
        assert lengths[0] == lengths[1] != lengths[2]
        assert set(lengths[0]) == {12_800, 16_000, 20_000}

    def test_masks_fit_the_changed_recording(self) -> None:
        batch = make_collate(self.SPEEDS)(make_examples(["ab"] * 12))
        frames = GEOMETRY.num_frames(batch.audio.lengths)
        assert batch.mask.shape == (12, int(frames.max()))
        assert not (batch.mask & (torch.arange(batch.mask.shape[1]) >= frames[:, None])).any()

    def test_an_utterance_stays_as_it_is_where_faster_it_would_have_too_few_frames(self) -> None:
        text = "abcd" * 11  # 44 labels and the last delimiter; at 1.25 times the speed there are 39 frames
        faster = RegularizationConfig(speeds=(1.25,))
        assert make_collate(faster)(make_examples([text])).audio.waveforms.shape == (1, 16_000)
        assert make_collate(faster)(make_examples(["ab"])).audio.waveforms.shape == (1, 12_800)

    @pytest.mark.parametrize("speeds", [(), (0.0, 1.0), (3.0,)])
    def test_impossible_ones_are_refused(self, speeds: tuple[float, ...]) -> None:
        with pytest.raises(ValidationError, match=r"speeds needs values between 0\.5 and 2"):
            RegularizationConfig(speeds=speeds)


def test_without_regularization_nothing_is_changed_or_hidden() -> None:
    batch = make_collate(None)(make_examples(["ab", "cd"]))
    assert batch.audio.waveforms.shape == (2, 16_000)
    assert not batch.mask.any()
    assert not batch.channel_mask.any()
    assert batch.texts == ("ab", "cd")


def test_views_have_masks_of_their_own() -> None:
    hides = {
        "time_mask": MaskConfig(start_prob=0.1, span_frames=3),
        "channel_mask": MaskConfig(start_prob=0.1, span_frames=2),
    }
    one = make_collate(RegularizationConfig(**hides))(make_examples(["ab"] * 6))
    two = make_collate(RegularizationConfig(consistency=0.2, **hides))(make_examples(["ab"] * 6))
    for single, masks in ((one.mask, two.mask), (one.channel_mask, two.channel_mask)):
        first, second = masks.chunk(2)
        assert torch.equal(first, single)
        assert all(row.any() for row in second)
        assert (first != second).any(dim=1).sum() > 3
    assert two.audio.waveforms.shape == one.audio.waveforms.shape
    assert (two.num_labels, two.num_frames, two.counts) == (one.num_labels, one.num_frames, one.counts)


def test_masks_of_equal_counts_are_equal_in_each_view() -> None:
    hides = {
        "time_mask": MaskConfig(start_prob=0.1, span_frames=3, equal_counts=True),
        "channel_mask": MaskConfig(start_prob=0.2, span_frames=2, equal_counts=True),
    }
    batch = make_collate(RegularizationConfig(consistency=0.2, speeds=(0.8, 1.25), **hides))(make_examples(["ab"] * 6))
    for masks in (batch.mask, batch.channel_mask):
        for view in masks.chunk(2):
            assert len(set(view.sum(dim=1).tolist())) == 1
            assert view.any()
