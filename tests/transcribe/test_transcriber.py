import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import speechssl
from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.data.recording import Recording
from speechssl.errors import AudioError, CheckpointError
from speechssl.transcribe.transcriber import Transcriber
from speechssl.transcribe.transcript import Transcript


def transcribe_all(transcriber: Transcriber, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
    return list(transcriber.transcribe_many([lambda wave=wave: wave for wave in waveforms]))


def assert_same(found: Transcript, expected: Transcript) -> None:
    """The same but for the rounding of confidences."""
    assert (found.text, found.seconds) == (expected.text, expected.seconds)
    for word, other in zip(found.words, expected.words, strict=True):
        assert (word.text, word.start, word.end) == (other.text, other.start, other.end)
        assert word.confidence == pytest.approx(other.confidence, rel=1e-4)


def test_a_file_an_array_a_tensor_and_a_stream_say_the_same(checkpoint: CTCCheckpoint, plant, planted_waveform) -> None:
    transcriber = Transcriber(checkpoint)
    path, samples = plant("hello где абвгд"), planted_waveform("hello где абвгд")
    expected = transcriber.transcribe(path)
    assert str(expected) == expected.text == "hello где абвгд"
    assert expected.seconds == len(samples) / 16_000
    assert [word.text for word in expected.words] == ["hello", "где", "абвгд"]
    # Two frames a symbol and one of blank; the delimiter is a symbol too.
    assert [(word.start, word.end) for word in expected.words] == [(0.0, 0.14), (0.18, 0.26), (0.30, 0.44)]
    for found in (
        transcriber.transcribe(str(path)),
        transcriber.transcribe(samples, sample_rate=16_000),
        transcriber.transcribe(np.stack([samples, samples], axis=1), 16_000),
        transcriber.transcribe(torch.from_numpy(samples).requires_grad_(), 16_000),
    ):
        assert_same(found, expected)
    with path.open("rb") as file:
        assert_same(transcriber.transcribe(file), expected)
    assert all(checkpoint.model.inference_modes)


def test_a_part_of_a_file_has_the_times_of_the_whole(checkpoint: CTCCheckpoint, plant, tmp_path: Path) -> None:
    path = plant("ab abc abcd")
    samples, rate = soundfile.read(path)
    soundfile.write(tmp_path / "two.wav", np.stack([np.zeros_like(samples), samples], axis=1), rate)
    transcriber = Transcriber(checkpoint)
    whole = transcriber.transcribe(path)
    part = transcriber.transcribe(tmp_path / "two.wav", channel=2, start=0.09, end=0.21)
    assert part.text == "abc"
    assert part.words[0].start == pytest.approx(whole.words[1].start)
    assert part.words[0].end == pytest.approx(whole.words[1].end)
    with pytest.raises(AudioError, match="expected neither channel nor start nor end beside samples"):
        transcriber.transcribe(samples, rate, start=0.1)


def test_any_rate_counts_the_same_seconds(checkpoint: CTCCheckpoint, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.full((22_050, 2), 0.02), 44_100)
    assert Transcriber(checkpoint).transcribe(tmp_path / "a.flac").seconds == pytest.approx(0.5, abs=1e-3)


def test_a_rate_is_for_samples_only(checkpoint: CTCCheckpoint, plant) -> None:
    transcriber = Transcriber(checkpoint)
    with pytest.raises(AudioError, match="sample rate"):
        transcriber.transcribe(np.zeros(16_000, np.float32))
    with pytest.raises(AudioError, match="expected no sample_rate beside a file, found 8000"):
        transcriber.transcribe(plant("a"), 8_000)


def test_less_than_a_frame_has_no_text(checkpoint: CTCCheckpoint, planted_waveform) -> None:
    frame = checkpoint.model.encoder.geometry.receptive_field_samples
    short = np.full(frame - 1, 0.05, np.float32)
    assert Transcriber(checkpoint).transcribe(short, 16_000) == Transcript("", (frame - 1) / 16_000)
    assert checkpoint.model.batch_shapes == []
    transcripts = transcribe_all(Transcriber(checkpoint), [short, planted_waveform("ab"), short])
    assert [transcript.text for transcript in transcripts] == ["", "ab", ""]
    assert transcribe_all(Transcriber(checkpoint), []) == []


def test_a_batch_says_what_its_recordings_say_alone(model_folder: Path) -> None:
    transcriber = Transcriber.load(model_folder, "cpu")
    generator = np.random.default_rng(0)
    waveforms = [
        (0.1 * generator.standard_normal(length)).astype(np.float32) for length in (4000, 16_000, 50, 9000, 16_000)
    ]
    alone = [transcribe_all(transcriber, [waveform])[0] for waveform in waveforms]
    for found, expected in zip(transcribe_all(transcriber, waveforms), alone, strict=True):
        assert_same(found, expected)
    assert len({transcript.text for transcript in alone}) > 3


def test_loads_a_model_folder_or_the_best_of_a_run(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "best").symlink_to(model_folder)
    samples = (0.1 * np.random.default_rng(1).standard_normal(16_000)).astype(np.float32)
    transcriber = speechssl.Transcriber.load(str(model_folder), device="cpu")
    assert not transcriber.checkpoint.model.training
    assert transcriber.transcribe(samples, 16_000).text
    assert Transcriber.load(tmp_path, "cpu").transcribe(samples, 16_000) == transcriber.transcribe(samples, 16_000)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_refuses_what_is_not_there(model_folder: Path, tmp_path: Path, device: str) -> None:
    with pytest.raises(CheckpointError, match=f"device {device}"):
        Transcriber.load(model_folder, device)
    with pytest.raises(CheckpointError, match="nowhere"):
        Transcriber.load(tmp_path / "nowhere")


def test_too_little_memory_is_an_error_of_the_recording(
    checkpoint: CTCCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        torch.empty(2**55)

    monkeypatch.setattr(checkpoint.model, "forward", fail)
    with pytest.raises(AudioError, match="array: not enough memory on cpu for 1 s of audio"):
        Transcriber(checkpoint).transcribe(np.full(16_000, 0.1, np.float32), 16_000)


def test_other_failures_of_the_model_are_not_hidden(checkpoint: CTCCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(checkpoint.model, "forward", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        Transcriber(checkpoint).transcribe(np.full(16_000, 0.1, np.float32), 16_000)


class TestMany:
    def test_results_come_in_order_with_errors_in_their_places(self, checkpoint, planted_waveform) -> None:
        texts = ["ab", "hello world", "", "abc def", "a", "hello where", "abcdef"] * 3

        def source(text: str):
            def read():
                if not text:
                    raise AudioError("nothing here")
                return planted_waveform(text)

            return read

        results = list(Transcriber(checkpoint).transcribe_many([source(text) for text in texts], batch_seconds=0.7))
        assert [str(result) for result in results] == [text or "nothing here" for text in texts]
        assert {type(result) for result in results} == {Transcript, AudioError}
        shapes = checkpoint.model.batch_shapes
        assert max(batch for batch, _ in shapes) > 1
        assert all(batch == 1 or batch * length <= 0.7 * 16_000 for batch, length in shapes)

    def test_no_recording_waits_for_a_much_longer_one(self, checkpoint, planted_waveform) -> None:
        waves = [planted_waveform("abc" * n) for n in (1, 4, 1, 4, 1)]
        list(Transcriber(checkpoint).transcribe_many((lambda wave=wave: wave) for wave in waves))
        assert sorted(checkpoint.model.batch_shapes) == [(2, len(waves[1])), (3, len(waves[0]))]

    def test_sources_are_read_meanwhile_but_not_all_at_once(self, checkpoint, planted_waveform) -> None:
        readers: list[str] = []

        def sources() -> Iterator[object]:
            while True:
                yield lambda: readers.append(threading.current_thread().name) or planted_waveform("hello")

        results = Transcriber(checkpoint).transcribe_many(sources(), batch_seconds=1.0)
        assert [next(results).text for _ in range(20)] == ["hello"] * 20
        assert threading.main_thread().name not in readers
        assert len(readers) < 150
        results.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]

    def test_what_does_not_fit_into_memory_together_is_heard_one_by_one(
        self, checkpoint, planted_waveform, monkeypatch
    ) -> None:
        forward = checkpoint.model.forward

        def fail(waveforms, lengths=None):
            return forward(waveforms, lengths) if len(waveforms) == 1 else torch.empty(2**55)

        monkeypatch.setattr(checkpoint.model, "forward", fail)
        waves = [planted_waveform(text) for text in ("hello", "abcde", "fghij")]
        results = Transcriber(checkpoint).transcribe_many((lambda wave=wave: wave) for wave in waves)
        assert [result.text for result in results] == ["hello", "abcde", "fghij"]
        assert len(checkpoint.model.batch_shapes) == 3

    @pytest.mark.parametrize("split_at_pauses", [False, True])
    def test_batches_are_bounded_by_seconds(self, checkpoint, planted_waveform, split_at_pauses: bool) -> None:
        wave = planted_waveform("hello where are you")
        pause = np.zeros(16_000, np.float32)
        recording = np.concatenate([wave, pause, -wave, pause] * 2)  # up and down: without an offset
        sources = [lambda: recording] if split_at_pauses else [lambda: wave] * 4
        options = {
            "split_at_pauses": split_at_pauses,
            "batch_seconds": 2.5 * (len(wave) / 16_000 + 0.5 * split_at_pauses),
        }
        transcripts = list(Transcriber(checkpoint).transcribe_many(sources, **options))
        assert " ".join(transcript.text for transcript in transcripts) == " ".join(["hello where are you"] * 4)
        assert max(shape[0] for shape in checkpoint.model.batch_shapes) == 2

    def test_too_little_memory_costs_the_recordings_that_do_not_fit(
        self, checkpoint, planted_waveform, monkeypatch
    ) -> None:
        forward = checkpoint.model.forward

        def fail(waveforms, lengths=None):
            return forward(waveforms, lengths) if waveforms.shape[1] < 4000 else torch.empty(2**55)

        monkeypatch.setattr(checkpoint.model, "forward", fail)
        waves = [planted_waveform(text) for text in ("hello where", "ab", "hello world")]
        results = list(Transcriber(checkpoint).transcribe_many((lambda wave=wave: wave) for wave in waves))
        assert [str(result)[:30] for result in results[::2]] == [
            f"recording {number}: not enough memory"[:30] for number in (1, 3)
        ]
        assert results[1].text == "ab"

    def test_a_long_recording_that_breaks_off_is_an_error_in_its_place(
        self, checkpoint, plant, planted_waveform
    ) -> None:
        path = plant("hello " * 700, "long.flac")
        path.write_bytes(path.read_bytes()[:-1000])
        sources = [lambda: planted_waveform("ab"), lambda: Recording(path), lambda: planted_waveform("abc")]
        results = list(Transcriber(checkpoint).transcribe_many(sources))
        assert [results[0].text, results[2].text] == ["ab", "abc"]
        assert isinstance(results[1], AudioError)

    def test_other_failures_are_raised(self, checkpoint) -> None:
        def read():
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            list(Transcriber(checkpoint).transcribe_many([read]))
