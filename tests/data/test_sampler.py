import hashlib
import json
import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from speechssl.data import sampler as module
from speechssl.data.sampler import BatchConfig, BatchPlan, BatchSampler
from speechssl.errors import ManifestError
from speechssl.rng import keyed_generator

RATE = 16_000
CONFIG = BatchConfig(seconds=20.0, min_seconds=0.5, max_seconds=6.0, num_buckets=4)

all_lengths = st.lists(st.integers(1, 10 * RATE), min_size=1, max_size=80).filter(
    lambda lengths: any(RATE / 2 <= length <= 6 * RATE for length in lengths)
)
configs = st.builds(
    BatchConfig,
    seconds=st.floats(0.1, 60),
    min_seconds=st.floats(0, 0.5),
    max_seconds=st.floats(6, 8),
    num_buckets=st.none() | st.integers(1, 20),
    max_utterances=st.none() | st.integers(1, 10),
)
updates = st.integers(1, 9)  # batches in each
seeds, epochs = st.integers(0, 2**31), st.integers(0, 1000)


def speechlike_lengths(number: int = 300) -> list[int]:
    lengths = np.random.default_rng(0).lognormal(0.7, 0.8, number) * RATE
    return [max(int(length), 1) for length in lengths]


def batch_seconds(plan: BatchPlan, lengths: list[int]) -> float:
    """Audio in the batch, padding included."""
    longest = plan.crop_samples or max(lengths[index] for index in plan.indices)
    return longest * len(plan.indices) / RATE


@given(all_lengths, configs, seeds, epochs, st.booleans(), updates)
def test_every_admitted_utterance_is_in_every_epoch_once(
    lengths: list[int], config: BatchConfig, seed: int, epoch: int, crop: bool, microbatches: int
) -> None:
    sampler = BatchSampler(lengths, config, seed, crop=crop, microbatches=microbatches)
    seen = Counter(index for plan in sampler.epoch(epoch) for index in plan.indices)
    admitted = {
        index
        for index, length in enumerate(lengths)
        if length >= config.min_seconds * RATE and (crop or length <= round(config.max_seconds * RATE))
    }
    assert seen == Counter(admitted)
    assert sampler.left_out.tolist() == sorted(set(range(len(lengths))) - admitted)


@given(all_lengths, configs, seeds, epochs, st.booleans())
def test_batches_keep_to_the_bound_unless_single(
    lengths: list[int], config: BatchConfig, seed: int, epoch: int, crop: bool
) -> None:
    for plan in BatchSampler(lengths, config, seed, crop=crop).epoch(epoch):
        assert len(plan.indices) == 1 or batch_seconds(plan, lengths) <= config.seconds
        assert len(plan.indices) <= (config.max_utterances or math.inf)


@given(all_lengths, configs, seeds, epochs)
def test_crops_are_no_longer_than_any_member_nor_the_bound(
    lengths: list[int], config: BatchConfig, seed: int, epoch: int
) -> None:
    for plan in BatchSampler(lengths, config, seed, crop=True).epoch(epoch):
        assert plan.crop_samples is not None
        assert config.min_seconds * RATE <= plan.crop_samples <= round(config.max_seconds * RATE)
        assert plan.crop_samples <= min(lengths[index] for index in plan.indices)


@given(all_lengths, configs, seeds, epochs)
def test_nothing_is_cropped_when_padding(lengths: list[int], config: BatchConfig, seed: int, epoch: int) -> None:
    plans = BatchSampler(lengths, config, seed, crop=False).epoch(epoch)
    assert all(plan.crop_samples is None for plan in plans)


@given(all_lengths, configs, seeds, st.integers(0, 3), st.booleans(), updates)
def test_numbers_run_on_through_epochs_of_equal_size(
    lengths: list[int], config: BatchConfig, seed: int, first_epoch: int, crop: bool, microbatches: int
) -> None:
    sampler = BatchSampler(lengths, config, seed, crop=crop, microbatches=microbatches)
    expected = [plan for epoch in range(first_epoch, first_epoch + 3) for plan in sampler.epoch(epoch)]
    assert len(expected) == 3 * sampler.num_batches
    start = first_epoch * sampler.num_batches
    assert [sampler[start + number] for number in range(len(expected))] == expected
    assert {plan.epoch for plan in expected} == {first_epoch, first_epoch + 1, first_epoch + 2}


@given(all_lengths, configs, seeds, st.lists(st.integers(0, 200), min_size=1, max_size=5), updates)
def test_a_batch_depends_on_lengths_seed_and_number_alone(
    lengths: list[int], config: BatchConfig, seed: int, numbers: list[int], microbatches: int
) -> None:
    """So that a run resumed at any number, and another rank, see what they must."""
    sampler = BatchSampler(lengths, config, seed, crop=True, microbatches=microbatches)
    for number in numbers:
        assert sampler[number] == BatchSampler(lengths, config, seed, crop=True, microbatches=microbatches)[number]


def test_a_run_resumes_without_what_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = BatchSampler(speechlike_lengths(), CONFIG, 0, crop=True, microbatches=4)
    shuffled: list[int] = []

    def note(seed: int, epoch: int, purpose: int) -> np.random.Generator:
        shuffled.append(epoch)
        return keyed_generator(seed, epoch, purpose)

    monkeypatch.setattr(module, "keyed_generator", note)
    first = 1000 * sampler.num_batches + 17
    assert sampler[first].epoch == sampler[first + 1].epoch == 1000
    assert shuffled == [1000]


def test_the_order_of_published_runs_stays() -> None:
    """With one batch in an update, to the last utterance: curves and runs that resume depend on it."""
    lengths = speechlike_lengths()
    for crop, expected in ((False, "fc947b705ac2fb59"), (True, "ab31836623c9cbb7")):
        sampler = BatchSampler(lengths, CONFIG, 0, crop=crop)
        indices = [plan.indices for epoch in range(2) for plan in sampler.epoch(epoch)]
        assert hashlib.sha256(json.dumps(indices).encode()).hexdigest().startswith(expected)


def updates_of(sampler: BatchSampler, first: int, number: int) -> list[list[int]]:
    """The lengths of the batches of each update."""
    size = sampler.microbatches
    return [
        [sampler[number].crop_samples or 0 for number in range(step * size, (step + 1) * size)]
        for step in range(first, first + number)
    ]


@given(all_lengths, configs, seeds, updates)
def test_an_update_is_of_one_bucket_where_there_are_enough(
    lengths: list[int], config: BatchConfig, seed: int, microbatches: int
) -> None:
    sampler = BatchSampler(lengths, config, seed, crop=True, microbatches=microbatches)
    of_bucket = Counter(plan.crop_samples for plan in sampler.epoch(0))
    num_enough = sum(number // microbatches for number in of_bucket.values())
    # In so many epochs they are a whole number of updates; at the seams two epochs share one.
    updates = updates_of(sampler, 0, sampler.num_batches)
    num_equal = sum(len(set(update)) == 1 for update in updates)
    assert num_equal >= microbatches * num_enough - 2 * (microbatches - 1)


@pytest.mark.parametrize("crop", [False, True])
def test_what_is_left_over_joins_its_neighbors(crop: bool) -> None:
    lengths = [length for length in speechlike_lengths(5000) if length <= 6 * RATE]
    config = CONFIG.model_copy(update={"num_buckets": 32, "fixed_shapes": True})
    sampler = BatchSampler(lengths, config, 0, crop=crop, microbatches=8)
    lengths_of = [plan.fixed_samples for plan in islice(sampler, 5 * sampler.num_batches)]
    updates = [lengths_of[first : first + 8] for first in range(0, len(lengths_of) - 7, 8)]
    buckets = sorted(set(lengths_of))
    apart = [buckets.index(max(update)) - buckets.index(min(update)) for update in updates]
    enough = Counter(lengths_of[: sampler.num_batches])
    assert apart.count(0) >= 5 * (sum(number // 8 for number in enough.values()) - 2)
    assert max(apart) <= 8
    # A mixed order, and no epoch that begins with the same.
    means = [np.mean(update) for update in updates]
    assert np.corrcoef(means[:-1], means[1:])[0, 1] < 0.5


@pytest.mark.parametrize("crop", [False, True])
def test_order_and_grouping_change_with_epoch_and_seed(crop: bool) -> None:
    lengths = speechlike_lengths()
    sampler = BatchSampler(lengths, CONFIG, 0, crop=crop)
    first, second = sampler.epoch(0), sampler.epoch(1)
    other = BatchSampler(lengths, CONFIG, 1, crop=crop).epoch(0)
    for plans in (second, other):
        assert [plan.indices for plan in plans] != [plan.indices for plan in first]
        groups = {frozenset(plan.indices) for plan in first}
        assert len(groups & {frozenset(plan.indices) for plan in plans}) < len(groups) / 2
    lengths_in_order = [plan.crop_samples or max(lengths[i] for i in plan.indices) for plan in first]
    assert lengths_in_order not in (sorted(lengths_in_order), sorted(lengths_in_order, reverse=True))


def lost_share(sampler: BatchSampler, lengths: list[int], max_seconds: float) -> float:
    """Of the audio below the cap, what crops leave out, or of the batches what is padding."""
    plans = sampler.epoch(0)
    in_batches = sum(batch_seconds(plan, lengths) for plan in plans)
    usable = sum(min(lengths[index] / RATE, max_seconds) for plan in plans for index in plan.indices)
    return abs(usable - in_batches) / max(usable, in_batches)


@pytest.mark.parametrize("crop", [False, True])
def test_the_fewest_buckets_that_lose_little_are_taken(crop: bool) -> None:
    lengths = [length for length in speechlike_lengths(3000) if crop or length <= 8 * RATE]
    config = BatchConfig(seconds=20.0, min_seconds=1.0, max_seconds=8.0)
    sampler = BatchSampler(lengths, config, 0, crop=crop)
    plans = sampler.epoch(0)
    lost = {
        number: lost_share(
            BatchSampler(lengths, config.model_copy(update={"num_buckets": number}), 0, crop=crop), lengths, 8.0
        )
        for number in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    }
    chosen = lost_share(sampler, lengths, 8.0)
    assert chosen < 0.01 < lost[1]
    (fewest,) = (number for number, share in lost.items() if share == chosen)
    assert lost[fewest // 2] >= 0.01, "half as many would do"
    assert sum(batch_seconds(plan, lengths) > 12 for plan in plans) > 0.95 * len(plans), "batches are to be full"


def test_what_crops_leave_out_is_stated() -> None:
    lengths = [4 * RATE, 5 * RATE, 6 * RATE, 60 * RATE]
    config = BatchConfig(seconds=12.0, min_seconds=1.0, max_seconds=6.0, num_buckets=2)
    sampler = BatchSampler([RATE // 2, *lengths], config, 0, crop=True)
    crops = {plan.crop_samples: set(plan.indices) for plan in sampler.epoch(0)}
    assert crops == {4 * RATE: {1, 2}, 6 * RATE: {3, 4}}
    assert sampler.seconds_per_epoch == 2 * 4 + 2 * 6
    assert sampler.cropped_share == 1 - 20 / 75
    padded = BatchSampler([RATE // 2, *lengths], config, 0, crop=False)
    assert (padded.cropped_share, padded.seconds_per_epoch) == (0, 15)


@pytest.mark.parametrize("number", [1, 3, 50])
def test_few_utterances_lose_little_too(number: int) -> None:
    lengths = speechlike_lengths(number)
    config = BatchConfig(seconds=60.0, min_seconds=0.0, max_seconds=8.0)
    sampler = BatchSampler(lengths, config, 0, crop=True)
    sixteen = BatchSampler(lengths, config.model_copy(update={"num_buckets": 16}), 0, crop=True)
    assert sampler.cropped_share <= sixteen.cropped_share
    assert sampler.num_batches <= sixteen.num_batches + 1


def test_equal_lengths_share_a_bucket() -> None:
    sampler = BatchSampler([RATE] * 50 + [2 * RATE] * 50, CONFIG, 0, crop=True)
    assert Counter(plan.crop_samples for plan in sampler.epoch(0)) == {2 * RATE: 5, RATE: 3}


def test_leftovers_move_to_shorter_crops_or_longer_paddings() -> None:
    lengths = [RATE] * 25 + [4 * RATE] * 7
    cropped = BatchSampler(lengths, CONFIG, 0, crop=True).epoch(0)
    assert sorted((plan.crop_samples, len(plan.indices)) for plan in cropped) == [(RATE, 7), (RATE, 20), (4 * RATE, 5)]
    padded = BatchSampler(lengths, CONFIG, 0, crop=False).epoch(0)
    assert sorted(len(plan.indices) for plan in padded) == [2, 5, 5, 20]


def test_bounds_on_lengths_are_inclusive() -> None:
    lengths = [RATE // 2 - 1, RATE // 2, 6 * RATE, 6 * RATE + 1]
    assert BatchSampler(lengths, CONFIG, 0, crop=False).left_out.tolist() == [0, 3]
    assert BatchSampler(lengths, CONFIG, 0, crop=True).left_out.tolist() == [0]


def test_a_longer_utterance_than_the_bound_is_a_batch() -> None:
    config = BatchConfig(seconds=1.0, min_seconds=0.0, max_seconds=6.0)
    plans = BatchSampler([5 * RATE, 5 * RATE], config, 0, crop=False).epoch(0)
    assert sorted(plan.indices for plan in plans) == [(0,), (1,)]


@pytest.mark.parametrize(("lengths", "crop"), [([], False), ([100, 200], True), ([100, 7 * RATE], False)])
def test_no_utterance_of_an_admitted_length_is_an_error(lengths: list[int], crop: bool) -> None:
    message = f"^expected utterances of 0.5 to 6.0 seconds, found none among {len(lengths)}$"
    with pytest.raises(ManifestError, match=message):
        BatchSampler(lengths, CONFIG, 0, crop=crop)


def test_can_be_walked_without_end() -> None:
    sampler = BatchSampler([RATE, 2 * RATE], CONFIG, 0, crop=True)
    epochs = [plan.epoch for plan in islice(sampler, 3 * sampler.num_batches)]
    assert epochs == sorted(epochs)
    assert set(epochs) == {0, 1, 2}


@pytest.mark.parametrize(
    "values", [{"seconds": 0.0}, {"num_buckets": 0}, {"max_utterances": 0}, {"min_seconds": -1.0}, {"max_seconds": 0.0}]
)
def test_an_impossible_configuration_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        BatchConfig(**values)  # type: ignore[arg-type]
