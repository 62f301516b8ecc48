import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import Result
from safetensors import safe_open
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.reader import load_encoder
from speechssl.checkpoint.saved_model import ModelDescription
from speechssl.data.recording import Recording
from speechssl.errors import AudioError
from speechssl.frames import FrameGeometry
from speechssl.model.causal import CausalConfig
from speechssl.model.encoder import EncoderConfig, Frames, SpeechEncoder
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig
from speechssl.transcribe import windows
from speechssl.transcribe.extract import frame_times
from speechssl.transcribe.transcriber import Transcriber

CPU = f"cpu x {torch.get_num_threads()}, float32"
LENGTHS = {"a.wav": 16_000, "b.wav": 3000, "file.wav": 9000}


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Noise of several lengths in the current folder."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    noises = {name: generator.normal(0, 0.1, length).astype(np.float32) for name, length in LENGTHS.items()}
    for name, noise in noises.items():
        soundfile.write(name, noise, 16_000, subtype="FLOAT")
    return noises


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["extract", *map(str, arguments)])


def read(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if path.endswith("npz"):
        arrays = dict(np.load(path))
        return arrays, json.loads(str(arrays.pop("__metadata__")))
    with safe_open(path, "numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("output", ["out.npz", "new/out.safetensors"])
@pytest.mark.parametrize("layer", [None, "0", "1"])
def test_a_recording_in_a_batch_has_the_features_it_has_alone(
    model_folder: Path, recordings: dict[str, np.ndarray], output: str, layer: str | None
) -> None:
    options = [] if layer is None else ["--layer", layer]
    result = run(model_folder, *LENGTHS, "-o", output, "--device", "cpu", *options)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"3 files, 0 failed, on {CPU}\n")
    arrays, metadata = read(output)
    assert set(arrays) == {*LENGTHS, *(f"{name}:times" for name in LENGTHS)}
    assert metadata == {
        "format": "speechssl-features",
        "model": str(model_folder),
        "layer": layer or "final",
        "hop_seconds": "0.005",
    }
    encoder = load_encoder(model_folder, "cpu")
    for name, noise in recordings.items():
        alone = encoder.encode(torch.from_numpy(noise)[None], layer=None if layer is None else int(layer))
        np.testing.assert_allclose(arrays[name], alone.context[0].numpy(), atol=1e-5)
        assert len(arrays[f"{name}:times"]) == len(arrays[name])


def test_all_layers_are_each_of_them(model_folder: Path, recordings: dict[str, np.ndarray]) -> None:
    assert run(model_folder, ".", "--layer", "all", "-o", "all.npz", "--device", "cpu").exit_code == 0
    arrays, metadata = read("all.npz")
    assert metadata["layer"] == "all"
    for layer in "01":
        assert run(model_folder, ".", "--layer", layer, "-o", "one.npz", "--device", "cpu").exit_code == 0
        one, _ = read("one.npz")
        for name in LENGTHS:
            np.testing.assert_array_equal(arrays[f"{name}:{layer}"], one[name])
    assert set(arrays) == {f"{name}:{part}" for name in LENGTHS for part in ("0", "1", "times")}


def test_all_layers_take_one_pass(
    model_folder: Path, recordings: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    original = SpeechEncoder.layer_outputs
    monkeypatch.setattr(SpeechEncoder, "layer_outputs", lambda *args: passes.append(1) or original(*args))
    monkeypatch.setattr(SpeechEncoder, "contextualize", None)
    assert run(model_folder, "a.wav", "--layer", "all", "-o", "all.npz", "--device", "cpu").exit_code == 0
    assert passes == [1]


def test_layers_of_different_widths(tmp_path: Path, recordings: dict[str, np.ndarray]) -> None:
    features = FeatureEncoderConfig(dims=(8, 8), kernels=(10, 8), strides=(10, 8))
    config = EncoderConfig(feature_encoder=features, context=CausalConfig(model_dim=4, kernels=(2, 3)))
    (tmp_path / "model").mkdir()
    save_model(
        tmp_path / "model",
        ModelDescription(kind="pretrained", step=1, encoder=config),
        {f"encoder.{name}": weight for name, weight in SpeechEncoder(config).state_dict().items()},
    )
    assert run("model", "a.wav", "--layer", "all", "-o", "all.safetensors", "--device", "cpu").exit_code == 0
    arrays, _ = read("all.safetensors")
    assert [arrays[f"a.wav:{layer}"].shape for layer in range(3)] == [(200, 8), (200, 4), (200, 4)]


def test_times_are_the_centers_of_what_the_frames_see() -> None:
    geometry = FrameGeometry((400,), (320,))
    np.testing.assert_allclose(frame_times(geometry, 3), [0.0125, 0.0325, 0.0525])


def test_bad_files_cost_a_line_each_and_the_good_ones_are_written(
    model_folder: Path, recordings: dict[str, np.ndarray]
) -> None:
    soundfile.write("short.wav", 0.1 * (-1.0) ** np.arange(79), 16_000)
    Path("text.wav").write_text("no audio, however long it goes on\n" * 50)
    result = run(
        model_folder, "none.wav", "a.wav", "short.wav", "text.wav", "b.wav", "-o", "out.npz", "--device", "cpu"
    )
    assert (result.exit_code, result.stdout) == (1, "")
    *errors, last = result.stderr.splitlines()
    for name, line in zip(["none.wav", "short.wav", "text.wav"], errors, strict=True):
        assert line.startswith(f"error: {name}: ")
    assert errors[1] == "error: short.wav: expected a frame (80 samples) or more, found 79"
    assert last == f"5 files, 3 failed, on {CPU}"
    assert set(read("out.npz")[0]) == {"a.wav", "b.wav", "a.wav:times", "b.wav:times"}
    assert not list(Path().glob(".*"))


def test_the_features_are_those_that_a_file_has_in_every_other_way(
    model_folder: Path, recordings: dict[str, np.ndarray]
) -> None:
    """To the last bit: of `extract`, of `SpeechEncoder.encode`, and of what the head of a transcriber is given."""
    transcriber = Transcriber.load(model_folder, "cpu")
    seen: list[torch.Tensor] = []
    transcriber.checkpoint.model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for name, noise in recordings.items():
        assert run(model_folder, name, "-o", "out.npz", "--device", "cpu").exit_code == 0
        extracted = read("out.npz")[0][name]
        encoded = load_encoder(model_folder, "cpu").encode(torch.from_numpy(noise)[None]).context[0]
        transcriber.transcribe(name)
        assert np.array_equal(extracted, encoded.numpy())
        assert np.array_equal(extracted, seen.pop()[0].numpy())
        assert not seen


@pytest.mark.parametrize("layer", ["0", "all"])
def test_long_recordings_are_encoded_in_windows(
    recordings: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str
) -> None:
    """In each there is context that is dropped: what sees little says the same."""
    convolutions = FeatureEncoderConfig(dims=(12, 16), kernels=(20, 4), strides=(20, 4), norm="layer")
    context = TransformerConfig(
        num_layers=1, model_dim=16, num_heads=2, ffn_dim=16, position_kernel=4, position_groups=2
    )
    config = EncoderConfig(feature_encoder=convolutions, context=context)
    Path("model").mkdir()
    weights = {f"encoder.{name}": weight for name, weight in SpeechEncoder(config).state_dict().items()}
    save_model(tmp_path / "model", ModelDescription(kind="pretrained", step=1, encoder=config), weights)
    long = (np.random.default_rng(1).normal(size=51_000) * np.linspace(0.02, 0.2, 51_000)).astype(np.float32)
    soundfile.write("long.wav", long, 16_000, subtype="FLOAT")
    monkeypatch.setattr(windows.cut_windows, "__defaults__", (1.0, 0.2))
    seen: list[int] = []
    original = SpeechEncoder.extract_frames

    def extract_frames(self: SpeechEncoder, waveforms: torch.Tensor, lengths: torch.Tensor | None = None) -> Frames:
        seen.extend([waveforms.shape[1]] * len(waveforms))
        return original(self, waveforms, lengths)

    monkeypatch.setattr(SpeechEncoder, "extract_frames", extract_frames)
    result = run("model", "b.wav", "long.wav", "file.wav", "-o", "out.npz", "--layer", layer, "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, f"3 files, 0 failed, on {CPU}\n")
    assert max(seen) == 16_000
    assert len(seen) > 5
    arrays, _ = read("out.npz")
    encoder = load_encoder("model", "cpu")
    name = "long.wav" if layer == "0" else "long.wav:0"
    whole = encoder.encode(torch.from_numpy(long)[None], layer=0).context[0].numpy()
    assert arrays[name].shape == (637, 16)
    assert len(arrays["long.wav:times"]) == 637
    np.testing.assert_allclose(arrays[name], whole, atol=1e-4)


def test_a_file_that_is_damaged_after_its_first_minute_costs_a_line(
    model_folder: Path, recordings: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(self: object) -> Iterator[np.ndarray]:
        yield from [recordings["a.wav"]] * 2
        raise AudioError("a.wav: damaged")

    monkeypatch.setattr(windows.cut_windows, "__defaults__", (1.0, 0.2))
    monkeypatch.setattr(Recording, "__iter__", decode)
    result = run(model_folder, "a.wav", "-o", "out.npz", "--device", "cpu")
    assert (result.exit_code, result.stderr) == (1, f"error: a.wav: damaged\n1 file, 1 failed, on {CPU}\n")


def test_too_little_memory_is_an_error_of_the_recordings(
    model_folder: Path, recordings: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpeechEncoder, "extract_frames", lambda *_, **__: torch.empty(2**55))
    result = run(model_folder, "a.wav", "-o", "out.npz", "--device", "cpu")
    assert result.stderr.startswith("error: a.wav: not enough memory on cpu for 1 s of audio at once\n1 file, 1 failed")
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out.txt"], "out.txt: expected a name that ends in .safetensors or .npz"),
        (["-o", "a.wav/out.npz"], "a.wav/out.npz: "),
        (["-o", "out.npz", "--layer", "2"], "--layer: expected \"all\" or a number from 0 to 1, found '2'"),
        (["-o", "out.npz", "--layer", "-1"], "--layer: expected"),
        (["-o", "out.npz", "--layer", "last"], "--layer: expected"),
    ],
)
def test_what_cannot_be_is_one_line(
    model_folder: Path, recordings: dict[str, np.ndarray], arguments: list[str], message: str
) -> None:
    result = run(model_folder, "a.wav", "--device", "cpu", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("output", ["out.npz", "out.safetensors"])
def test_names_that_are_no_utf8_are_escaped(model_folder: Path, recordings: dict[str, np.ndarray], output: str) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    Path("a.wav").rename(name)
    assert run(model_folder, name, "-o", output, "--device", "cpu").exit_code == 0
    assert "caf\\udce9.wav" in read(output)[0]
