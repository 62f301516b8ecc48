"""An exported graph gives our numbers, padded and alone, and our text in sherpa-onnx and onnx-asr."""

import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechssl.data.phonemes import Phonemes
from speechssl.data.pieces import SPACE, Pieces
from speechssl.data.units import BLANK, Letters, Units
from speechssl.errors import CheckpointError
from speechssl.export.export import export_model
from speechssl.model.encoder import EncoderConfig

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

Sound = Callable[..., Tensor]

LETTERS = Letters(("<blank>", "|", *"abcdeé'"))
PIECES = Pieces((BLANK, SPACE, *"abc", "ad", f"{SPACE}ab", f"{SPACE}c", f"{SPACE}e"), (0.0, *[-1.0] * 8))
PHONEMES = Phonemes.from_texts(["t/ʃ a"])


def session(file: Path) -> Any:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("has_head", [True, False])
def test_every_row_of_a_batch_is_what_it_is_alone(
    has_head: bool, encoder: EncoderConfig, save: Any, letters: Letters, sound: Sound, tmp_path: Path
) -> None:
    ours = save(encoder, letters if has_head else None)
    export_model(ours.folder, tmp_path / "out", "onnx")
    graph = session(tmp_path / "out" / "model.onnx")
    for lengths in ((31_000,), (9_001, 8_000), (12_345, 23_456, 1_500)):
        rows = [sound(length) for length in lengths]
        batch = pad_sequence(rows, batch_first=True, padding_value=0.7)  # padding that would be heard
        inputs = {"input_values": batch.numpy(), "input_lengths": np.array(lengths)}
        values, frame_lengths = graph.run(["logprobs" if has_head else "context", "output_lengths"], inputs)
        for row, value, num_frames in zip(rows, values, frame_lengths, strict=True):
            with torch.no_grad():
                expected = ours.model(row[None]).log_probs if has_head else ours.model.encode(row[None]).context
            assert num_frames == expected.shape[1]
            assert (torch.from_numpy(value[:num_frames]) - expected[0]).norm() <= 1e-5 * expected.norm()
    assert (tmp_path / "out" / "vocab.json").exists() is has_head


@pytest.mark.parametrize("level", [0.1, 0.0003])
@pytest.mark.parametrize(
    ("name", "units"), [("large", LETTERS), ("prompts", LETTERS), ("data2vec", LETTERS), ("large", PIECES)]
)
def test_sherpa_says_what_we_say(
    name: str, units: Units, level: float, save: Any, encoders: Any, sound: Sound, tmp_path: Path
) -> None:
    """At any level: it normalizes with an epsilon of its own. Its times are those of its 20 ms."""
    sherpa = pytest.importorskip("sherpa_onnx")
    ours, out = save(encoders[name], units), tmp_path / "out"
    export_model(ours.folder, out, "onnx", "sherpa-onnx")
    recognizer = sherpa.OfflineRecognizer.from_omnilingual_asr_ctc(str(out / "model.onnx"), str(out / "tokens.txt"))
    stream, waveform = recognizer.create_stream(), sound(40_000, level)
    stream.accept_waveform(16_000, waveform.numpy())
    recognizer.decode_stream(stream)
    text = ours.transcribe(waveform)
    assert len(set(text)) > 2
    assert " ".join(stream.result.text.split()) == text
    words = ours.transcriber.transcribe(waveform, 16_000).words
    result = stream.result
    first, *_, last = [time for time, token in zip(result.timestamps, result.tokens, strict=True) if token != " "]
    assert abs(words[0].start - first) < 0.05
    assert abs(words[-1].end - last) < 0.1


def asr_class() -> Any:
    """onnx-asr's reader of these models; a release without it has the rest that is needed."""
    pytest.importorskip("onnx_asr")
    if importlib.util.find_spec("onnx_asr.models.wav2vec2"):
        return importlib.import_module("onnx_asr.models.wav2vec2").Wav2Vec2Ctc
    from onnx_asr.asr import _AsrWithCtcDecoding

    class Wav2Vec2Ctc(_AsrWithCtcDecoding):
        _preprocessor_name = "identity"
        _subsampling_factor = property(lambda self: self.config["subsampling_factor"])

        def __init__(self, files: dict[str, Path], make_preprocessor: Any, options: Any) -> None:
            super().__init__(files, make_preprocessor, options)
            self.session = session(files["model"])

        @staticmethod
        def _get_model_files(quantization: str | None = None) -> dict[str, str]:
            return {"model": "model.onnx", "vocab": "vocab.txt"}

        def _encode(self, waveforms: Any, lengths: Any) -> Any:
            [logprobs] = self.session.run(["logprobs"], {"input_values": waveforms, "input_lengths": lengths})
            return logprobs, np.minimum(lengths // self._subsampling_factor + 1, logprobs.shape[1])

    return Wav2Vec2Ctc


FOREIGN = Letters(("<pad>", "<unk>", "|", *"abcde"))


@pytest.mark.parametrize(
    ("name", "units"), [("base", FOREIGN), ("large", FOREIGN), ("prompts", FOREIGN), ("base", PIECES)]
)
def test_onnx_asr_says_what_we_say_of_each_row(
    name: str, units: Units, save: Any, encoders: Any, sound: Sound, tmp_path: Path
) -> None:
    """In a batch too, of which it reads some frames of padding."""
    ours, out = save(encoders[name], units), tmp_path / "out"
    export_model(ours.folder, out, "onnx", "onnx-asr")
    files = {"model": out / "model.onnx", "vocab": out / "vocab.txt", "config": out / "config.json"}
    reader = asr_class()(files, lambda _: lambda waveforms, lengths: (waveforms, lengths), {})
    rows = [sound(length) for length in (32_000, 31_300, 9_000)]
    batch = pad_sequence(rows, batch_first=True)
    results = list(reader.recognize_batch(batch.numpy(), np.array([len(row) for row in rows])))
    assert json.loads(files["config"].read_text("utf-8"))["model_type"] == "wav2vec2-ctc"
    for row, result in zip(rows, results, strict=True):
        text = ours.transcribe(row)
        assert len(set(text)) > 2
        assert " ".join(result.text.split()) == text


@pytest.mark.parametrize(
    ("runtime", "name", "units", "expected"),
    [
        ("sherpa-onnx", "base", LETTERS, "normalizes every recording, and this model's are as they were read"),
        ("sherpa-onnx", "large", None, "expected a model with a head for letters or pieces, found none"),
        ("onnx-asr", "base", None, "expected a model with a head for letters or pieces, found none"),
        ("onnx-asr", "base", PHONEMES, "expected a model with a head for letters or pieces, found phonemes"),
    ],
)
def test_what_a_runtime_cannot_serve_is_refused(
    runtime: Any, name: str, units: Units | None, expected: str, save: Any, encoders: Any, tmp_path: Path
) -> None:
    folder = save(encoders[name], units).folder
    with pytest.raises(CheckpointError, match=f"cannot be served by {runtime}: .*{expected}"):
        export_model(folder, tmp_path / "out", "onnx", runtime)


def test_frames_that_sherpa_cannot_time_are_refused(save: Any, encoders: Any, tmp_path: Path) -> None:
    convolutions = encoders["large"].feature_encoder.model_copy(update={"strides": (5, 8, 4)})
    folder = save(encoders["large"].model_copy(update={"feature_encoder": convolutions})).folder
    with pytest.raises(CheckpointError, match="multiple of 320 samples, found 160"):
        export_model(folder, tmp_path / "out", "onnx", "sherpa-onnx")


def test_a_space_that_onnx_asr_loses_is_told(
    save: Any, encoders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(save(encoders["base"]).folder, tmp_path / "out", "onnx", "onnx-asr")
    assert "warning: onnx-asr leaves out the space before a word that begins with '" in capsys.readouterr().err


def test_int8_is_smaller_and_keeps_its_convolutions(
    save: Any, encoders: Any, sound: Sound, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnx

    ours = save(encoders["large"])
    export_model(ours.folder, tmp_path / "whole", "onnx")
    export_model(ours.folder, tmp_path / "out", "onnx", int8=True)
    assert "pre-processing" not in capfd.readouterr().err
    small = tmp_path / "out" / "model.int8.onnx"
    kinds = [node.op_type for node in onnx.load(small).graph.node]
    assert "MatMulInteger" in kinds
    assert "ConvInteger" not in kinds
    assert not (tmp_path / "out" / "model.onnx").exists()
    waveform = sound(16_000)[None]
    found, _ = session(small).run(None, {"input_values": waveform.numpy(), "input_lengths": np.array([16_000])})
    expected = ours.model(waveform).log_probs.detach()
    assert 1e-4 < (torch.from_numpy(found) - expected).norm() / expected.norm() < 0.2


def test_packages_that_are_missing(save: Any, encoders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechssl.export.onnx.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="needs the package onnx: pip install 'speechssl"):
        export_model(save(encoders["base"]).folder, tmp_path / "out", "onnx")
