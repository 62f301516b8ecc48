"""Models for many languages: adapters (MMS), and omniASR."""

import json
from pathlib import Path
from typing import Any

import hf_models
import pytest
import safetensors.torch
import torch

from speechssl.checkpoint.reader import load_ctc, read_model
from speechssl.errors import CheckpointError
from speechssl.transcribe.transcriber import Transcriber

LANGUAGES = {
    "eng": ("<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"),
    "fra": ("<pad>", "|", "<unk>", *"àâçéèêëîïôùû"),
}
WAVEFORM = torch.randn(32_000, generator=torch.Generator().manual_seed(1)) * 0.1


@pytest.fixture(scope="module")
def mms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with adapters for two languages, and a model of transformers for each."""
    import transformers

    folder = tmp_path_factory.mktemp("mms")
    peers = {}
    for language, symbols in LANGUAGES.items():
        model = hf_models.build("mms", vocab_size=len(symbols))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "adapter_layer" in name:
                    parameter.normal_(0, 0.3)
                elif peers and "lm_head" not in name:  # the rest is common to all
                    parameter.copy_(peers["eng"].get_parameter(name))
        hf_models.make_talkative(model)
        peers[language] = model
        own = {name: x for name, x in model.state_dict().items() if "adapter_layer" in name or "lm_head" in name}
        safetensors.torch.save_file(own, folder / f"adapter.{language}.safetensors")
    nested = {language: {symbol: i for i, symbol in enumerate(s)} for language, s in LANGUAGES.items()}
    peers["eng"].save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(nested))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), target_lang="eng")
    transformers.Wav2Vec2Processor(transformers.Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder, peers


@pytest.mark.parametrize("language", [None, "eng", "fra"])
def test_each_language_has_its_adapter_head_and_vocabulary(mms: Any, language: str | None) -> None:
    folder, peers = mms
    model, symbols = peers[language or "eng"], LANGUAGES[language or "eng"]
    checkpoint = load_ctc(folder, "cpu", language)
    assert checkpoint.vocabulary.symbols == symbols
    normalized = (WAVEFORM - WAVEFORM.mean()) / WAVEFORM.std(correction=0)
    with torch.no_grad():
        found = checkpoint.model(WAVEFORM[None]).log_probs
        expected = model(normalized[None]).logits.log_softmax(dim=2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_text_changes_with_the_language(mms: Any) -> None:
    texts = [
        Transcriber.load(mms[0], "cpu", language=language).transcribe(WAVEFORM.numpy(), 16_000).text
        for language in ("eng", "fra")
    ]
    assert not set(texts[0]) & set(texts[1]) - {" "}
    assert all(len(text) > 3 for text in texts)
    digests = {read_model(mms[0], language).digest for language in (None, "eng", "fra")}
    assert len(digests) == 3


def test_languages_that_are_not_there(mms: Any, tmp_path: Path) -> None:
    folder, _ = mms
    with pytest.raises(CheckpointError, match=r"vocab\.json: expected a language of eng, fra, found 'deu'$"):
        read_model(folder, "deu")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    adapter = safetensors.torch.load_file(folder / "adapter.fra.safetensors")
    name = next(name for name in adapter if "linear_1.bias" in name)
    for changed, message in (
        ({name: None}, f"found {name} missing"),
        ({"other": torch.ones(1)}, "found other beside them"),
    ):
        tensors = {key: x for key, x in (adapter | changed).items() if x is not None}
        safetensors.torch.save_file(tensors, tmp_path / "adapter.fra.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_ctc(tmp_path, "cpu", "fra")
    (tmp_path / "adapter.fra.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected adapter\.fra\.safetensors for the language, found none"):
        read_model(tmp_path, "fra")
    plain = hf_models.save(hf_models.build("wav2vec2-base"), tmp_path / "plain")
    with pytest.raises(CheckpointError, match="expected a model with a choice of languages, found one without"):
        read_model(plain, "fra")


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny omniASR model and its folder, with a vocabulary as the tokenizers package writes it."""
    import transformers

    folder = tmp_path_factory.mktemp("omni")
    symbols = ("<s>", "<pad>", "</s>", "<unk>", "\N{LOWER ONE EIGHTH BLOCK}", *"abcdeéß")
    sizes = {name: value for name, value in hf_models.TINY.items() if name != "vocab_size"} | hf_models.KERNEL
    torch.manual_seed(0)
    config = transformers.OmniASRCTCConfig(audio_config=sizes, vocab_size=len(symbols))
    model = hf_models.randomize(transformers.OmniASRForCTC(config).eval())
    model.save_pretrained(folder)
    vocabulary = {"type": "BPE", "vocab": {symbol: i for i, symbol in enumerate(symbols)}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": vocabulary}))
    extractor = {"do_normalize": True, "sampling_rate": 16_000, "feature_extractor_type": "OmniASRFeatureExtractor"}
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    return folder, model


def test_omniasr_padded_and_alone(omni: Any) -> None:
    folder, model = omni
    checkpoint = load_ctc(folder, "cpu")
    units = checkpoint.vocabulary
    assert (units.blank_id, units.delimiter_id, units.decode([5, 4, 6, 1])) == (0, 4, "a b")
    lengths = torch.tensor([32_000, 21_000])
    rows = torch.stack([WAVEFORM, WAVEFORM]) * (torch.arange(32_000) < lengths[:, None])
    padded = checkpoint.model(rows, lengths).log_probs
    for row, length, found in zip(rows, lengths.tolist(), padded, strict=True):
        x = row[:length]
        x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
        with torch.no_grad():
            expected = model(x[None, None]).logits[0].log_softmax(dim=1)
        torch.testing.assert_close(checkpoint.model(row[None, :length]).log_probs[0], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-5, atol=2e-5)


def test_the_heads_do_not_show_in_the_shapes_but_count(omni: Any, tmp_path: Path) -> None:
    folder, _ = omni
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((tmp_path / "config.json").read_text())
    values["audio_config"]["num_attention_heads"] = 2
    (tmp_path / "config.json").write_text(json.dumps(values))
    with torch.no_grad():
        found, expected = (load_ctc(path, "cpu").model(WAVEFORM[None]).log_probs for path in (tmp_path, folder))
    assert (found - expected).abs().max() > 1e-2
