"""An exported folder is a model of transformers: the same numbers and text, with nothing of ours."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_models
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.checkpoint.calibration_file import CalibrationFile
from speechssl.checkpoint.reader import read_model
from speechssl.data.phonemes import Phonemes
from speechssl.data.pieces import SPACE, Pieces
from speechssl.data.units import BLANK, Letters, Units
from speechssl.decode.calibration import Calibration
from speechssl.errors import CheckpointError
from speechssl.export.export import export_model
from speechssl.model.encoder import EncoderConfig
from speechssl.transcribe.transcriber import Transcriber

transformers = pytest.importorskip("transformers")

Sound = Callable[..., Tensor]
CLASSES = {
    "base": "Wav2Vec2",
    "large": "Wav2Vec2",
    "prompts": "Wav2Vec2",
    "adapters": "Wav2Vec2",
    "wavlm": "WavLM",
    "data2vec": "Data2VecAudio",
}
OURS = tuple(CLASSES)


def their_input(encoder: EncoderConfig, waveform: Tensor) -> Tensor:
    """What the model is given after our own normalization."""
    epsilon = encoder.normalize_waveforms
    if not epsilon:
        return waveform[None]
    return F.layer_norm(waveform, waveform.shape, eps=1e-5 if epsilon is True else epsilon)[None]


def load(kind: Any, folder: Path) -> Any:
    """A model of theirs, of which no weight is missing, left over or of another shape."""
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


@pytest.mark.parametrize("name", OURS)
def test_logits_are_ours(name: str, save: Any, encoders: Any, sound: Sound, tmp_path: Path) -> None:
    ours, out = save(encoders[name]), tmp_path / "out"
    export_model(ours.folder, out, "huggingface")
    theirs = load(transformers.AutoModelForCTC, out)
    assert type(theirs).__name__ == f"{CLASSES[name]}ForCTC"
    for num_samples in (9_000, 23_457):
        waveform = sound(num_samples)
        with torch.no_grad():
            expected = ours.model(waveform[None]).log_probs
            found = theirs(their_input(encoders[name], waveform)).logits.log_softmax(dim=2)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert expected.argmax(dim=2).unique().numel() > 2  # something is said


@pytest.mark.parametrize("name", ["large", "prompts"])
def test_a_padded_batch_with_its_mask(name: str, save: Any, encoders: Any, sound: Sound, tmp_path: Path) -> None:
    ours, out = save(encoders[name]), tmp_path / "out"
    export_model(ours.folder, out, "huggingface")
    theirs = load(transformers.AutoModelForCTC, out)
    processor = transformers.AutoProcessor.from_pretrained(out)
    waveforms = [sound(20_000), sound(13_000), sound(7_777)]
    batch = processor([w.numpy() for w in waveforms], sampling_rate=16_000, return_tensors="pt", padding=True)
    assert "attention_mask" in batch
    with torch.no_grad():
        found = theirs(**batch).logits.log_softmax(dim=2)
        for row, waveform in enumerate(waveforms):
            expected = ours.model(waveform[None]).log_probs[0]
            assert (found[row, : len(expected)] - expected).norm() <= 1e-4 * expected.norm()  # by their own epsilon


@pytest.mark.parametrize("name", OURS)
def test_the_pipeline_says_what_we_say(name: str, save: Any, encoders: Any, sound: Sound, tmp_path: Path) -> None:
    ours, out = save(encoders[name]), tmp_path / "out"
    export_model(ours.folder, out, "huggingface")
    said = transformers.pipeline("automatic-speech-recognition", model=str(out))
    waveform = sound(40_000)
    text = ours.transcribe(waveform)
    assert len(set(text)) > 3
    assert " ".join(said(waveform.numpy())["text"].split()) == text
    assert Transcriber.load(out, "cpu").transcribe(waveform, 16_000).text == text  # read back


@pytest.mark.parametrize("kept", ["processor_config.json", "preprocessor_config.json"])
def test_either_processor_file_suffices(kept: str, save: Any, encoders: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(save(encoders["large"]).folder, out, "huggingface")
    for name in {"processor_config.json", "preprocessor_config.json"} - {kept}:
        (out / name).unlink()
    if transformers.__version__ < "5" and kept == "processor_config.json":
        pytest.skip("transformers 4 reads preprocessor_config.json")
    processor = transformers.AutoProcessor.from_pretrained(out)
    assert processor.feature_extractor.do_normalize
    assert processor.feature_extractor.return_attention_mask
    assert processor.tokenizer("a'é b").input_ids == [2, 8, 7, 1, 3]
    assert processor.tokenizer.pad_token_id == 0


def test_an_encoder_alone(save: Any, encoders: Any, sound: Sound, tmp_path: Path) -> None:
    ours, out = save(encoders["large"], None), tmp_path / "out"
    export_model(ours.folder, out, "huggingface")
    theirs = load(transformers.AutoModel, out)
    assert type(theirs).__name__ == "Wav2Vec2Model"
    extract = transformers.AutoFeatureExtractor.from_pretrained(out)
    assert extract.do_normalize
    waveform = sound(12_345)
    expected = ours.model.encode(waveform[None]).context
    with torch.no_grad():
        found = theirs(their_input(encoders["large"], waveform)).last_hidden_state
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_files_name_what_theirs_name(save: Any, encoders: Any, tmp_path: Path) -> None:
    """The names of all weights, a positional convolution in its two parts, and settings of their types."""
    out = tmp_path / "out"
    export_model(save(encoders["prompts"]).folder, out, "huggingface")
    config = json.loads((out / "config.json").read_text("utf-8"))
    known = transformers.Wav2Vec2Config().to_dict()
    for name, value in config.items():
        if name != "dtype" and known.get(name) is not None and value is not None:
            expected = int if type(known[name]) is int and name not in ("layerdrop",) else type(known[name])
            assert type(value) is expected or {type(value), expected} <= {tuple, list}, name
    theirs = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config.from_pretrained(out))
    from safetensors import safe_open

    with safe_open(out / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.metadata() == {"format": "pt"}
    assert names == theirs.state_dict().keys()
    assert "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0" in names
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight" not in names


@pytest.mark.parametrize("blank", ["[PAD]", "<blank>"])
def test_a_blank_anywhere_and_special_units(blank: str, save: Any, encoders: Any, sound: Sound, tmp_path: Path) -> None:
    letters = Letters(("A", "<unk>", blank, "|", "B", "C", "D", *(["<pad>"] if blank == "<blank>" else [])))
    ours, out = save(encoders["base"], letters), tmp_path / "out"
    export_model(ours.folder, out, "huggingface")
    processor = transformers.AutoProcessor.from_pretrained(out)
    assert (processor.tokenizer.pad_token_id, processor.tokenizer.unk_token_id) == (2, 1)
    assert load(transformers.AutoModelForCTC, out).config.pad_token_id == 2
    waveform = sound(30_000)
    said = transformers.pipeline("automatic-speech-recognition", model=str(out))(waveform.numpy())["text"]
    assert " ".join(re.sub("<unk>|<pad>", "", said).split()) == ours.transcribe(waveform)


@pytest.mark.parametrize(
    ("part", "settings", "expected"),
    [
        ("feature_encoder", {"norm": "utterance"}, "norm: expected group or layer, found utterance"),
        ("feature_encoder", {"activation": "relu"}, "activation: expected gelu, found relu"),
        ("feature_encoder", {"log_compression": True}, "log_compression: expected false, found true"),
        ("feature_encoder", {"frame_norm": False}, "frame_norm: expected true, found false"),
        ("context", "wav2vec", "expected transformer, wavlm, data2vec as context network, found causal$"),
        ("context", "causal_transformer", "as context network, found causal_transformer$"),
    ],
)
def test_what_theirs_cannot_compute_is_refused(
    part: str, settings: Any, expected: str, save: Any, encoders: Any, tmp_path: Path
) -> None:
    config = encoders["base"]
    if isinstance(settings, str):
        changed = encoders[settings]
    else:
        changed = config.model_copy(update={part: getattr(config, part).model_copy(update=settings)})
    folder = save(changed).folder
    for export_format in ("huggingface", "torchaudio"):
        with pytest.raises(CheckpointError, match=expected):
            export_model(folder, tmp_path / "out", export_format)
        assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    "units",
    [Pieces((BLANK, SPACE, "a"), (0.0, -1.0, -1.0)), Phonemes.from_texts(["t/a"])],
    ids=lambda units: units.kind,
)
def test_units_of_another_kind_are_refused(units: Units, save: Any, encoders: Any, tmp_path: Path) -> None:
    """Their tokenizer joins units as they are written, and pieces would keep their marks."""
    folder = save(encoders["base"], units).folder
    with pytest.raises(CheckpointError, match=f"expected a vocabulary of letters, found {units.kind}$"):
        export_model(folder, tmp_path / "out", "huggingface")
    assert not (tmp_path / "out").exists()


def test_what_a_foreign_vocabulary_says_of_texts_stays(tmp_path: Path) -> None:
    symbols = ("[PAD]", "_", *"ABC", "[UNK]", "<s>")
    folder = hf_models.save(
        hf_models.build("wav2vec2-large", vocab_size=8),
        tmp_path / "theirs",
        vocabulary={symbol: i for i, symbol in enumerate(symbols)},
        pad_token="[PAD]",
        unk_token="[UNK]",
        word_delimiter_token="_",
        do_lower_case=True,
    )
    export_model(folder, tmp_path / "again", "huggingface")
    units = [read_model(path).vocabulary for path in (folder, tmp_path / "again")]
    assert [units.decode(range(8)) for units in units] == ["abc", "abc"]
    assert [units.decode([2, 1, 3]) for units in units] == ["a b", "a b"]
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "again")
    assert processor.decode([2, 1, 3]) == "a b"


def test_the_calibration_of_confidences_goes_along(save: Any, encoders: Any, tmp_path: Path) -> None:
    ours, calibration = save(encoders["base"]), Calibration(slope=0.5, offset=-1.0, fitted_on="dev.tsv: 3 words")
    CalibrationFile.of((ours.folder / "model.safetensors",)).write(calibration)
    export_model(ours.folder, tmp_path / "out", "huggingface")
    assert Transcriber.load(tmp_path / "out", "cpu").decoding.calibration == calibration
    export_model(tmp_path / "out", tmp_path / "again", "torchaudio")
    assert CalibrationFile.of((tmp_path / "again" / "model.safetensors",)).read() == calibration
