"""The published sizes: names and numbers of the weights without memory for them, and the numbers that they give."""

from pathlib import Path
from typing import Any

import hf_models
import pytest
import torch

from speechssl.checkpoint.huggingface import read_folder
from speechssl.checkpoint.reader import load_ctc
from speechssl.checkpoint.saved_model import SavedModel
from speechssl.checkpoint.transformers_names import to_transformers
from speechssl.model.ctc import CTCModel


def sizes(dim: int, layers: int, ffn: int, heads: int = 16, **others: Any) -> dict[str, Any]:
    """The sizes of a body."""
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    return dict(zip(names, (dim, layers, ffn, heads), strict=True)) | {"vocab_size": 32} | others


BASE = sizes(768, 12, 3072, 12)
LARGE = sizes(1024, 24, 4096, **hf_models.LARGE)
PUBLISHED = {
    "Wav2Vec2-base": ("Wav2Vec2", BASE),
    "Wav2Vec2-large": ("Wav2Vec2", LARGE),
    "Wav2Vec2-XLS-R-1B": ("Wav2Vec2", LARGE | sizes(1280, 48, 5120)),
    "Wav2Vec2-XLS-R-2B": ("Wav2Vec2", LARGE | sizes(1920, 48, 7680)),
    "Wav2Vec2-MMS-1B": ("Wav2Vec2", LARGE | sizes(1280, 48, 5120, adapter_attn_dim=16)),
    "Hubert-base": ("Hubert", BASE),
    "Hubert-xlarge": ("Hubert", LARGE | sizes(1280, 48, 5120)),
    "WavLM-base": ("WavLM", BASE),
    "WavLM-large": ("WavLM", LARGE | {"conv_bias": False}),
    "Data2VecAudio-base": ("Data2VecAudio", BASE),
    "Data2VecAudio-large": ("Data2VecAudio", sizes(1024, 24, 4096)),
    "UniSpeechSat-large": ("UniSpeechSat", LARGE),
}
NUM_PARAMETERS = {"Wav2Vec2-base": 94_371_712, "Wav2Vec2-large": 315_438_720}  # of the body, as published


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    family, settings = PUBLISHED[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    config.save_pretrained(tmp_path)
    saved = read(tmp_path)
    with torch.device("meta"):
        theirs = getattr(transformers, f"{family}ForCTC")(config).state_dict()
        ours = CTCModel(saved.description.encoder, 32)
    renamed = to_transformers(ours.state_dict(), config.model_type)
    assert {key: x.shape for key, x in renamed.items()} == {key: x.shape for key, x in theirs.items()}
    if name in NUM_PARAMETERS:
        assert sum(parameter.numel() for parameter in ours.encoder.parameters()) == NUM_PARAMETERS[name]


@pytest.mark.parametrize(
    ("dim", "layers", "ffn", "expected"),
    [
        (1024, 24, 4096, 325_494_996),
        (1280, 48, 5120, 975_065_300),
        (2048, 60, 8192, 3_080_423_636),
        (2048, 128, 8192, 6_504_786_132),
    ],
)
def test_omniasr_has_the_published_number_of_parameters(
    dim: int, layers: int, ffn: int, expected: int, tmp_path: Path
) -> None:
    import transformers

    body = {key: value for key, value in sizes(dim, layers, ffn).items() if key != "vocab_size"}
    transformers.OmniASRCTCConfig(audio_config=body, vocab_size=9_812).save_pretrained(tmp_path)
    with torch.device("meta"):
        model = CTCModel(read(tmp_path).description.encoder, 9_812)
    assert sum(parameter.numel() for parameter in model.parameters()) - dim == expected  # it has no mask embedding


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.endswith(("base", "-large"))])
def test_base_and_large_give_the_numbers_of_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    family, settings = PUBLISHED[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings, apply_spec_augment=False)
    model = getattr(transformers, f"{family}ForCTC")(config).eval()
    checkpoint = load_ctc(hf_models.save(model, tmp_path), "cpu")
    rows = torch.randn(2, 32_000) * 0.1
    lengths = torch.tensor([32_000, 23_000])
    with torch.no_grad():
        padded = checkpoint.model(rows, lengths).log_probs
        for row, length, found in zip(rows, lengths.tolist(), padded, strict=True):
            x = row[:length]
            theirs = model(((x - x.mean()) / (x.var(correction=0) + 1e-7).sqrt())[None], output_hidden_states=True)
            frames = checkpoint.model.encoder.extract_frames(x[None])
            for ours, expected in zip(
                checkpoint.model.encoder.layer_outputs(frames), theirs.hidden_states, strict=True
            ):
                torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
            expected = theirs.logits[0].log_softmax(dim=1)
            torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-4, atol=1e-4)


def read(folder: Path) -> SavedModel:
    saved = read_folder(folder)
    assert saved is not None
    return saved
