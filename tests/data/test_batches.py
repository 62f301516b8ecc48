import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from manifests import make_loader, make_manifest

from speechssl.data.batch_reader import BatchReader
from speechssl.data.batches import AudioBatch, Example, collate_audio
from speechssl.data.manifest import Manifest, Utterance, read_utterance
from speechssl.data.sampler import BatchConfig, BatchPlan, BatchSampler
from speechssl.errors import AudioError, TrainingError
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.objective.contrastive import ContrastiveBatch, ContrastiveCollate
from speechssl.objective.hiding import MaskedCollate

RATE = 16_000
STEP = 2.0**-20  # of a ramp: exact in float32, so that every sample tells where it stood
COLLATE = ContrastiveCollate(MaskedCollate(FrameGeometry((10, 8), (10, 8)), MaskConfig(), seed=3), num_distractors=5)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Spans of ramps, of 0.1 to 0.6 seconds, two to a file."""
    folder = tmp_path_factory.mktemp("ramps")
    generator = np.random.default_rng(0)
    utterances = []
    for number in range(12):
        path = folder / f"{number}.wav"
        soundfile.write(path, np.arange(20_000) * STEP, RATE, subtype="FLOAT")
        for start in (0, 10_000):
            start += int(generator.integers(100))
            length = int(generator.integers(1600, 9600))
            utterances.append(Utterance(str(path), length, start, text=f"text {len(utterances)}"))
    return make_manifest(folder / "train.tsv", utterances)


def make_sampler(manifest: Manifest, *, crop: bool = True) -> BatchSampler:
    config = BatchConfig(seconds=1.5, min_seconds=0.0, num_buckets=3)
    return BatchSampler(manifest.num_output_samples, config, 3, crop=crop)


def load_examples(manifest: Manifest, *plans: BatchPlan, seed: int = 3) -> list[list[Example]]:
    """What is read, before it is put together."""
    return list(make_loader(manifest, plans, list, seed=seed, num_workers=0))  # type: ignore[type-var]


def offset_of(waveform: np.ndarray) -> int:
    """Where in the ramp a waveform stands; it must be a piece of it."""
    positions = waveform / STEP
    assert np.array_equal(positions, positions[0] + np.arange(len(waveform)))
    return int(positions[0])


def assert_same(found: ContrastiveBatch, expected: ContrastiveBatch) -> None:
    assert found.audio.indices == expected.audio.indices
    assert found.counts == expected.counts
    for name in ("mask", "hidden", "weights", "distractors"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.audio.waveforms, expected.audio.waveforms)
    assert found.audio.lengths is expected.audio.lengths is None


class TestCrops:
    def test_are_pieces_of_their_utterance(self, manifest: Manifest) -> None:
        sampler = make_sampler(manifest)
        plans = sampler.epoch(0)
        seen = set()
        for plan, examples in zip(plans, load_examples(manifest, *plans), strict=True):
            assert [example.index for example in examples] == list(plan.indices)
            for example in examples:
                utterance = manifest[example.index]
                assert example.waveform.shape == (plan.crop_samples,)
                assert example.waveform.dtype == np.float32
                first = offset_of(example.waveform)
                assert utterance.start <= first
                assert first + len(example.waveform) <= utterance.start + utterance.num_samples
                seen.add(first - utterance.start)
        assert len(seen) > 10

    def test_are_spread_over_the_whole_utterance(self, manifest: Manifest) -> None:
        utterance = manifest[0]
        plans = [BatchPlan(epoch, (0,), utterance.num_samples - 3) for epoch in range(100)]
        offsets = [offset_of(example.waveform) - utterance.start for [example] in load_examples(manifest, *plans)]
        counts = np.bincount(offsets, minlength=4)
        assert len(counts) == 4
        assert ((counts - 25) ** 2 / 25).sum() < 16.3, "chi-square with 3 degrees of freedom, p = 0.001"

    def test_depend_on_seed_epoch_and_utterance_alone(self, manifest: Manifest) -> None:
        def offsets(*plans: BatchPlan, seed: int = 3) -> list[int]:
            batches = load_examples(manifest, *plans, seed=seed)
            return [offset_of(e.waveform) - manifest[e.index].start for examples in batches for e in examples]

        numbers = tuple(range(8))
        together = offsets(BatchPlan(0, numbers, 800))
        assert offsets(*(BatchPlan(0, (number,), 800) for number in numbers)) == together
        assert offsets(BatchPlan(0, numbers[::-1], 800)) == together[::-1]
        assert offsets(BatchPlan(1, numbers, 800)) != together
        assert offsets(BatchPlan(0, numbers, 800), seed=4) != together
        assert len(set(offsets(*[BatchPlan(0, (0, 0), 800)]))) == 1

    @given(st.integers(4_000, 200_000), st.integers(1, 5_000), st.integers(0, 99), st.integers(0), st.integers(0))
    def test_of_any_rate_stay_inside_their_utterance(
        self, sample_rate: int, num_samples: int, start: int, length: int, seed: int
    ) -> None:
        utterance = Utterance("a.wav", num_samples, start, sample_rate)
        length = 1 + length % utterance.num_output_samples

        def read(part: Utterance) -> np.ndarray:
            assert start <= part.start
            assert part.start + part.num_samples <= start + num_samples
            return np.zeros(part.num_output_samples, np.float32)

        manifest = make_manifest(Path("a.tsv"), [utterance])
        with patch("speechssl.data.batch_reader.read_utterance", read):
            [[example]] = load_examples(manifest, BatchPlan(0, (0,), length), seed=seed)
        assert example.waveform.shape == (length,)

    @pytest.mark.parametrize("sample_rate", [8_000, 44_100])
    def test_of_other_rates_have_the_exact_length(self, tmp_path: Path, sample_rate: int) -> None:
        num_samples = 3001
        ramp = np.arange(num_samples) / num_samples
        soundfile.write(tmp_path / "a.wav", ramp, sample_rate, subtype="FLOAT")
        utterance = Utterance(str(tmp_path / "a.wav"), num_samples - 7, 7, sample_rate)
        manifest = make_manifest(tmp_path / "a.tsv", [utterance])
        whole = utterance.num_output_samples
        plans = [
            BatchPlan(epoch, (0,), length)
            for epoch in range(5)
            for length in (1, 2, 333, 334, whole // 2, whole - 2, whole - 1, whole)
        ]
        for plan, [example] in zip(plans, load_examples(manifest, *plans), strict=True):
            assert plan.crop_samples is not None
            assert example.waveform.shape == (plan.crop_samples,)
            if plan.crop_samples > 300:  # resampled, not merely cut: it climbs as fast as the ramp does
                middle = example.waveform[100:-100]
                slope = (middle[-1] - middle[0]) / (len(middle) - 1)
                assert slope == pytest.approx(sample_rate / RATE / num_samples, rel=0.03)
        [[entire]] = load_examples(manifest, BatchPlan(0, (0,), None))
        assert entire.waveform.shape == (whole,)

    def test_a_pause_is_no_reason_for_a_warning(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", np.r_[np.zeros(9_000), np.full(1000, 0.1)], RATE, subtype="FLOAT")
        manifest = make_manifest(tmp_path / "a.tsv", [Utterance(str(tmp_path / "a.wav"), 10_000)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            batches = load_examples(manifest, *[BatchPlan(epoch, (0,), 400) for epoch in range(5)])
        assert any(not example.waveform.any() for [example] in batches)


class TestWhole:
    def test_utterances_are_read_as_they_are(self, manifest: Manifest) -> None:
        plans = make_sampler(manifest, crop=False).epoch(2)
        for plan, examples in zip(plans, load_examples(manifest, *plans), strict=True):
            for index, example in zip(plan.indices, examples, strict=True):
                assert (example.index, example.epoch) == (index, 2)
                assert example.text == f"text {index}"
                assert np.array_equal(example.waveform, read_utterance(manifest[index]))

    def test_collating_pads_with_zeros(self) -> None:
        examples = [Example(index, 0, np.full(length, 0.5, np.float32), None) for index, length in ((4, 3), (2, 5))]
        audio = collate_audio(examples)
        assert audio.waveforms.tolist() == [[0.5, 0.5, 0.5, 0, 0], [0.5] * 5]
        assert audio.waveforms.dtype == torch.float32
        assert audio.lengths is not None
        assert audio.lengths.tolist() == [3, 5]
        assert audio.indices == (4, 2)
        assert audio.seconds == pytest.approx(10 / RATE)

    def test_equal_lengths_need_no_padding(self) -> None:
        examples = [Example(index, 0, np.ones(3, np.float32), None) for index in range(2)]
        assert collate_audio(examples).lengths is None


class TestUnreadable:
    """Utterances of 1000, 1100, ... samples, of which some are missing."""

    @staticmethod
    def read(folder: Path, missing: Iterable[int], plan: BatchPlan, **options: Any) -> list[Example]:
        for number in set(range(20)) - set(missing):
            soundfile.write(folder / f"{number}.wav", np.full(1000 + 100 * number, 0.1), RATE)
        rows = [Utterance(str(folder / f"{number}.wav"), 1000 + 100 * number) for number in range(20)]
        reader = BatchReader(make_manifest(folder / "a.tsv", rows), list, 3, **options)  # type: ignore[type-var]
        return reader(plan)

    def test_the_next_one_that_fits_takes_its_place(self, tmp_path: Path) -> None:
        # 8 is in the batch already, 9 is missing too; with a crop of 1500 samples 0 to 4 are too short.
        cases: tuple[tuple[tuple[int, int], int | None, list[int]], ...] = (
            ((7, 8), 1500, [10, 8]),
            ((19, 5), 1500, [6, 5]),
            ((19, 18), 2800, [18, 18]),
            ((7, 8), None, [0, 8]),
        )
        for indices, crop, found in cases:
            examples = self.read(tmp_path, (7, 9, 19), BatchPlan(1, indices, crop), skips_unreadable=True)
            assert [example.index for example in examples] == found
            lengths = [len(example.waveform) for example in examples]
            assert lengths == ([crop] * 2 if crop else [1000 + 100 * index for index in found])
        first, second = self.read(tmp_path, (7, 9), BatchPlan(1, (7, 8), 1500), skips_unreadable=True)
        assert [unreadable.index for unreadable in first.unreadable] == [7, 9]
        assert first.unreadable[1].problem == f"{tmp_path / '9.wav'}: expected an audio file, found none"
        assert second.unreadable == ()
        assert collate_audio([second, first]).unreadable == first.unreadable

    def test_it_is_none_that_the_batches_leave_out(self, tmp_path: Path) -> None:
        plan = BatchPlan(1, (7, 8), None)
        [example, _] = self.read(tmp_path, (7,), plan, skips_unreadable=True, min_samples=1300)
        assert example.index == 3

    def test_a_store_that_is_out_of_reach_is_an_error(self, tmp_path: Path) -> None:
        plan = BatchPlan(1, (7, 8), 1500)
        message = r"a\.tsv:10: .*7\.wav: expected an audio file, found none; nor can any of 11 others that fit"
        with pytest.raises(AudioError, match=message):
            self.read(tmp_path, range(20), plan, skips_unreadable=True)

    def test_unless_asked_the_first_one_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError, match=r"7\.wav: expected an audio file, found none$"):
            self.read(tmp_path, (7,), BatchPlan(1, (7, 8), 1500))


@pytest.fixture(scope="module")
def expected(manifest: Manifest) -> list[ContrastiveBatch]:
    """One and a half epochs, without workers."""
    sampler = make_sampler(manifest)
    numbers = range(sampler.num_batches * 3 // 2)
    plans = (sampler[number] for number in numbers)
    return list(make_loader(manifest, plans, COLLATE, seed=3, num_workers=0))


class TestOrder:
    def test_is_that_of_the_plans(self, manifest: Manifest, expected: list[ContrastiveBatch]) -> None:
        sampler = make_sampler(manifest)
        assert len(expected) > 8
        for number, batch in enumerate(expected):
            assert batch.audio.indices == sampler[number].indices

    def test_workers_change_nothing(self, manifest: Manifest, expected: list[ContrastiveBatch]) -> None:
        sampler = make_sampler(manifest)
        plans = (sampler[number] for number in range(len(expected)))
        batches = list(make_loader(manifest, plans, COLLATE, seed=3, num_workers=2))
        assert len(batches) == len(expected)
        for found, wanted in zip(batches, expected, strict=True):
            assert_same(found, wanted)

    def test_starting_in_the_middle_goes_on_as_from_the_start(
        self, manifest: Manifest, expected: list[ContrastiveBatch]
    ) -> None:
        for first in (1, len(expected) // 2, len(expected) - 1):
            sampler = make_sampler(manifest)
            plans = (sampler[number] for number in range(first, len(expected)))
            batches = list(make_loader(manifest, plans, COLLATE, seed=3, num_workers=0))
            for found, wanted in zip(batches, expected[first:], strict=True):
                assert_same(found, wanted)

    def test_plans_may_be_endless(self, manifest: Manifest, expected: list[ContrastiveBatch]) -> None:
        batches = make_loader(manifest, make_sampler(manifest), COLLATE, seed=3, num_workers=0)  # type: ignore[arg-type]
        for found, wanted in zip(islice(batches, len(expected)), expected, strict=True):
            assert_same(found, wanted)

    def test_global_random_state_plays_no_part(self, manifest: Manifest, expected: list[ContrastiveBatch]) -> None:
        torch.manual_seed(12345)
        np.random.seed(12345)  # noqa: NPY002
        plans = [make_sampler(manifest)[0]]
        assert_same(next(make_loader(manifest, plans, COLLATE, seed=3, num_workers=0)), expected[0])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_file_is_named_in_one_line(manifest: Manifest, num_workers: int) -> None:
    missing = manifest.path.with_name("missing.wav")
    broken = make_manifest(manifest.path, [manifest[0], Utterance(str(missing), 1600)])
    plans = [BatchPlan(0, (0,), None), BatchPlan(0, (0, 1), None)]
    batches = make_loader(broken, plans, collate_audio, seed=0, num_workers=num_workers)
    assert next(batches).indices == (0,)
    with pytest.raises(AudioError) as caught:
        next(batches)
    assert str(caught.value) == f"{missing}: expected an audio file, found none"
    assert list(batches) == []


class _Unsendable:
    """What a worker has when there is no room left to share it in."""

    def __init__(self, _: list[Example]) -> None:
        pass

    def __reduce__(self) -> str:
        raise RuntimeError("No space left on device")


def test_a_batch_that_cannot_be_sent_is_an_error_and_no_endless_wait(manifest: Manifest) -> None:
    plans = [BatchPlan(0, (0,), None)] * 3
    batches = make_loader(manifest, plans, _Unsendable, seed=0, num_workers=1)  # type: ignore[type-var]
    message = r"^a batch that was read cannot be handed over: No space left on device; give /dev/shm more room"
    with pytest.raises(TrainingError, match=message):
        next(batches)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_recording_that_never_comes_ends_the_process(tmp_path: Path, num_workers: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 0.1), 16_000)
    (tmp_path / "a.tsv").write_text(".\npath\tnum_samples\n" + 4 * "a.wav\t16000\n", "utf-8")
    script = tmp_path / "read.py"
    script.write_text(
        f"""
import time
from speechssl.data import stuck
from speechssl.data.batch_reader import BatchReader
from speechssl.data.batches import load_batches
from speechssl.data.manifest import read_manifest
from speechssl.data.sampler import BatchPlan

def collate(examples):
    if len(examples) == 2:
        time.sleep(100)
    return examples

if __name__ == "__main__":
    plans = [BatchPlan(0, indices, 1600) for indices in [(0,), (1, 2), (3,)]]
    read = BatchReader(read_manifest({str(tmp_path / "a.tsv")!r}), collate, seed=0)
    batches = load_batches(read, read.where, plans, num_workers={num_workers})
    next(batches)
    stuck.LONGEST_SECONDS = 0.5
    next(batches)
""",
        "utf-8",
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    where = f"{tmp_path / 'a.tsv'}:4, {tmp_path / 'a.tsv'}:5"
    message = f"error: {where}: nothing was read for 0.5 seconds; does its storage answer?\n"
    assert (ended.returncode, ended.stderr[: len(message)]) == (1, message), ended.stderr


def test_a_batch_moves_as_one(manifest: Manifest) -> None:
    sampler = make_sampler(manifest, crop=False)
    [batch] = make_loader(manifest, [sampler[0]], COLLATE, seed=0, num_workers=0)
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, ContrastiveBatch)
    assert isinstance(moved.audio, AudioBatch)
    assert moved.audio.lengths is not None
    tensors = (moved.mask, moved.hidden, moved.weights, moved.distractors, moved.audio.waveforms, moved.audio.lengths)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert (moved.counts, moved.audio.indices) == (batch.counts, batch.audio.indices)
    assert batch.mask.device.type == "cpu"


def test_workers_end_with_a_killed_training_process(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 0.1), 16_000)
    (tmp_path / "a.tsv").write_text(".\npath\tnum_samples\na.wav\t16000\n", "utf-8")
    script = tmp_path / "read.py"
    script.write_text(
        f"""
import os, signal, subprocess
from speechssl.data.batch_reader import BatchReader
from speechssl.data.batches import collate_audio, load_batches
from speechssl.data.manifest import read_manifest
from speechssl.data.sampler import BatchPlan

if __name__ == "__main__":
    plans = [BatchPlan(0, (0,), None)] * 1000
    read = BatchReader(read_manifest({str(tmp_path / "a.tsv")!r}), collate_audio, seed=0)
    batches = load_batches(read, read.where, plans, num_workers=2)
    next(batches)
    os.kill(os.getpid(), signal.SIGKILL)
""",
        "utf-8",
    )
    # Every process of the run, and nothing else, has this in its environment.
    mark = f"SPEECHSSL_TEST_RUN={tmp_path}"
    environment = os.environ | dict([mark.split("=", 1)])
    killed = subprocess.run([sys.executable, str(script)], env=environment, check=False, stderr=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL

    def num_left() -> int:
        marked = 0
        for file in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                marked += mark.encode() in file.read_bytes()
        return marked

    deadline = time.monotonic() + 30
    while num_left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert num_left() == 0
