"""A model in the form of another toolkit, with a card, in a folder and on the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from speechssl.checkpoint.calibration_file import copy_calibration
from speechssl.checkpoint.reader import read_model
from speechssl.checkpoint.saved_model import SavedModel
from speechssl.errors import CheckpointError
from speechssl.export.hub import require_hub, upload
from speechssl.export.huggingface import write_huggingface
from speechssl.export.model_card import make_card
from speechssl.export.onnx import INT8_FILE, MODEL_FILE, Runtime, write_onnx
from speechssl.export.torchaudio import write_torchaudio
from speechssl.files import replaced_folder, write_text_file
from speechssl.terminal import print_status

Format = Literal["huggingface", "torchaudio", "onnx"]


def export_model(
    model: Path,
    folder: Path,
    export_format: Format,
    runtime: Runtime | None = None,
    *,
    int8: bool = False,
    scores: Sequence[Path] = (),
    push: str | None = None,
) -> None:
    """Write a model for another toolkit; the arguments are the options of ``speechssl export``.

    Raises:
        CheckpointError: the model cannot be read or expressed there, the folder is not empty, or the hub refuses.
        ConfigError: a file with scores is none of this model's.
    """
    if push is not None:
        require_hub()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: expected a new or an empty folder, found something in it")
    saved = read_model(model)
    name = push or folder.resolve().name
    with replaced_folder(folder) as temporary:
        if export_format == "huggingface":
            write_huggingface(temporary, saved)
        elif export_format == "torchaudio":
            write_torchaudio(temporary, saved)
        else:
            write_onnx(temporary, saved, runtime, int8=int8)
        if not int8:  # which computes other numbers
            weights = temporary / (MODEL_FILE if export_format == "onnx" else "model.safetensors")
            copy_calibration(saved.weights_files, (weights,))
        library = "transformers" if export_format == "huggingface" else export_format
        usage = _describe_use(name, saved, export_format, runtime, INT8_FILE if int8 else MODEL_FILE)
        write_text_file(temporary / "README.md", make_card(name, saved, library, usage, scores))
    print_status(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if push is not None:
        print_status(f"uploaded to {upload(folder, push)}")


def _describe_use(name: str, saved: SavedModel, export_format: Format, runtime: Runtime | None, file: str) -> str:
    has_head = saved.vocabulary is not None
    if export_format == "huggingface":
        return _HUGGINGFACE[has_head].replace("NAME", name) + _limits(saved)
    if export_format == "torchaudio":
        return _TORCHAUDIO + _NORMALIZATION[bool(saved.description.encoder.normalize_waveforms)]
    return (_RUNTIMES[runtime] if runtime else _ONNX[has_head]).replace("FILE", file)


def _limits(saved: SavedModel) -> str:
    """What transformers does otherwise around the model, whose numbers are the same."""
    encoder = saved.description.encoder
    limits = ""
    if saved.vocabulary is not None:
        limits += "\n\nLeave the pipeline's `batch_size` at 1: it spells padding out."
    if encoder.feature_encoder.norm == "group":
        limits += "\n\nGive it recordings one by one: the group norm of transformers takes padding for sound."
    if epsilon := encoder.normalize_waveforms:
        limits += (
            "\n\nThe processor adds 1e-7 to the variance of a recording, where speechssl adds "
            f"{1e-5 if epsilon is True else epsilon:g}: very quiet recordings may come out differently."
        )
    return limits


_HUGGINGFACE = {
    True: """```python
from transformers import pipeline

print(pipeline("automatic-speech-recognition", model="NAME")("recording.wav")["text"])
```""",
    False: """```python
from transformers import AutoFeatureExtractor, AutoModel

extract, encoder = AutoFeatureExtractor.from_pretrained("NAME"), AutoModel.from_pretrained("NAME")
context = encoder(**extract(samples, sampling_rate=16000, return_tensors="pt")).last_hidden_state  # (1, S, D)
```""",
}
_TORCHAUDIO = """```python
import json
from safetensors.torch import load_file
from torchaudio.models import wav2vec2_model

model = wav2vec2_model(**json.load(open("config.json"))).eval()
model.load_state_dict(load_file("model.safetensors"))
logits, _ = model(waveforms)  # (B, T) at 16 kHz to (B, S, V); without a head, to the context (B, S, D)
```

"""
_NORMALIZATION = {
    True: "Bring each recording to zero mean and unit variance first.",
    False: "Waveforms are in [-1, 1], as read.",
}
_ONNX = {
    True: """`FILE` takes `input_values` (B, T), float32 in [-1, 1] at 16 kHz, and `input_lengths` (B,), int64 samples
of each row, and gives `logprobs` (B, S, V) and `output_lengths` (B,) in frames. Padding changes nothing. `vocab.json`
names the symbols.""",
    False: """`FILE` takes `input_values` (B, T), float32 in [-1, 1] at 16 kHz, and `input_lengths` (B,), int64 samples
of each row, and gives `context` (B, S, D) and `output_lengths` (B,) in frames. Padding changes nothing.""",
}
_RUNTIMES = {
    "sherpa-onnx": """```python
import sherpa_onnx

recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc("FILE", "tokens.txt")
stream = recognizer.create_stream()
stream.accept_waveform(16000, samples)
recognizer.decode_stream(stream)
print(stream.result.text)
```""",
    "onnx-asr": """```python
import onnx_asr  # newer than 0.12.0, the first with wav2vec2-ctc

print(onnx_asr.load_model("wav2vec2-ctc", ".").recognize("recording.wav"))
```""",
}
