from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import speechssl
from speechssl.checkpoint.native import CTCCheckpoint
from speechssl.errors import AudioError, CheckpointError
from speechssl.transcribe.transcriber import Transcriber, Transcript


def test_a_file_an_array_a_tensor_and_a_stream_say_the_same(checkpoint: CTCCheckpoint, plant, planted_waveform) -> None:
    transcriber = Transcriber(checkpoint)
    path, samples = plant("hello где абвгд"), planted_waveform("hello где абвгд")
    expected = Transcript("hello где абвгд", len(samples) / 16_000)
    assert str(expected) == "hello где абвгд"
    assert transcriber.transcribe(path) == expected
    assert transcriber.transcribe(str(path)) == expected
    assert transcriber.transcribe(samples, sample_rate=16_000) == expected
    assert transcriber.transcribe(np.stack([samples, samples], axis=1), 16_000) == expected
    assert transcriber.transcribe(torch.from_numpy(samples).requires_grad_(), 16_000) == expected
    with path.open("rb") as file:
        assert transcriber.transcribe(file) == expected
    assert all(checkpoint.model.inference_modes)


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
    transcripts = Transcriber(checkpoint).transcribe_waveforms([short, planted_waveform("ab"), short])
    assert [transcript.text for transcript in transcripts] == ["", "ab", ""]
    assert Transcriber(checkpoint).transcribe_waveforms([]) == []


def test_a_batch_says_what_its_recordings_say_alone(model_folder: Path) -> None:
    transcriber = Transcriber.load(model_folder, "cpu")
    generator = np.random.default_rng(0)
    waveforms = [
        (0.1 * generator.standard_normal(length)).astype(np.float32) for length in (4000, 16_000, 50, 9000, 16_000)
    ]
    alone = [transcriber.transcribe_waveforms([waveform])[0] for waveform in waveforms]
    assert transcriber.transcribe_waveforms(waveforms) == alone
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
    def fail(*_: object) -> None:
        torch.empty(2**55)

    monkeypatch.setattr(checkpoint.model, "forward", fail)
    with pytest.raises(AudioError, match="not enough memory on cpu for 1 s of audio"):
        Transcriber(checkpoint).transcribe(np.full(16_000, 0.1, np.float32), 16_000)


def test_other_failures_of_the_model_are_not_hidden(checkpoint: CTCCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(checkpoint.model, "forward", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        Transcriber(checkpoint).transcribe(np.full(16_000, 0.1, np.float32), 16_000)
