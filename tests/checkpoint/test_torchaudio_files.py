"""State dictionaries of torchaudio's models: the same features, logits and text come out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import soundfile
import torch
from foreign_checks import assert_same_features, assert_same_scores
from torch import nn

from speechssl.checkpoint.reader import load_ctc, read_model
from speechssl.errors import CheckpointError
from speechssl.transcribe.transcriber import Transcriber

WAVEFORMS = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.05

Write = Callable[..., tuple[nn.Module, Path]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Save a model of published widths and geometry, otherwise tiny."""

    def save(kind: str, num_outputs: int | None = None, name: str = "a.pth", **sizes: Any) -> tuple[nn.Module, Path]:
        peer = foreign.make_peer(kind, num_outputs, **{**foreign.SMALL, **sizes})
        torch.save(peer.state_dict(), tmp_path / name)
        return peer, tmp_path / name

    return save


def as_heard(kind: str) -> torch.Tensor:
    """What a bundle gives its model: large ones are for normalized waveforms."""
    return nn.functional.layer_norm(WAVEFORMS, WAVEFORMS.shape[1:]) if kind == "large" else WAVEFORMS


@pytest.mark.parametrize("kind", ["base", "large"])
def test_pretrained(write: Write, kind: str) -> None:
    peer, file = write(kind)
    assert_same_features(file, peer, WAVEFORMS, as_heard(kind))
    assert read_model(file).description.kind == "pretrained"


@pytest.mark.parametrize("kind", ["base", "large"])
def test_wavlm(tmp_path: Path, kind: str) -> None:
    peer = foreign.make_wavlm(kind, **foreign.SMALL, encoder_num_buckets=320, encoder_max_distance=800)
    torch.save(peer.state_dict(), tmp_path / "a.pth")
    assert_same_features(tmp_path / "a.pth", peer, WAVEFORMS, as_heard(kind))


@pytest.mark.parametrize("kind", ["base", "large"])
@pytest.mark.parametrize("left_out", [(), (1, 2, 3)])
def test_fine_tuned(write: Write, kind: str, left_out: tuple[int, ...]) -> None:
    peer, file = write(kind, 29 + len(left_out))
    assert_same_features(file, peer, WAVEFORMS, as_heard(kind))
    checkpoint = load_ctc(file, "cpu")
    kept = [output for output in range(29 + len(left_out)) if output not in left_out]
    with torch.no_grad():
        expected = peer(as_heard(kind))[0][:, :, kept].log_softmax(dim=2)
        assert (checkpoint.model(WAVEFORMS).log_probs - expected).norm() <= 1e-5 * expected.norm()
    assert checkpoint.vocabulary.symbols == ("<s>", *foreign.LETTERS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("language", ["de", "en", "es", "fr", "it"])
@pytest.mark.parametrize("is_whole", [True, False])
def test_letters_of_the_bundles_of_voxpopuli(write: Write, language: str, is_whole: bool) -> None:
    pipelines = pytest.importorskip("torchaudio.pipelines")
    bundle = getattr(pipelines, f"VOXPOPULI_ASR_BASE_10K_{language.upper()}")
    labels, left_out = bundle.get_labels(), bundle._remove_aux_axis if is_whole else ()
    peer, file = write("base", len(labels) + len(left_out), f"wav2vec2_voxpopuli_base_10k_asr_{language}.pt")
    checkpoint = load_ctc(file, "cpu")
    assert checkpoint.vocabulary.symbols[1:] == tuple(labels[1:])  # type: ignore[attr-defined]
    weights = dict(peer.state_dict())
    if is_whole:
        pipelines._wav2vec2.utils._remove_aux_axes(weights, left_out)
    assert torch.equal(checkpoint.model.head.weight, weights["aux.weight"])
    assert torch.equal(checkpoint.model.head.bias, weights["aux.bias"])


def test_letters_of_the_english_bundles() -> None:
    pipelines = pytest.importorskip("torchaudio.pipelines")
    for bundle in (pipelines.WAV2VEC2_ASR_BASE_960H, pipelines.HUBERT_ASR_LARGE):
        assert bundle.get_labels() == ("-", *foreign.LETTERS)
        assert bundle._remove_aux_axis == (1, 2, 3)


def test_every_bundle_follows_the_rule_for_what_shapes_do_not_show() -> None:
    """Heads by width, and large designs read normalized waveforms and normalize their layers' inputs."""
    pipelines = pytest.importorskip("torchaudio.pipelines")
    heads = {768: 12, 1024: 16, 1280: 16, 1920: 16}
    bundles = [found for name in pipelines.__all__ if hasattr(found := getattr(pipelines, name), "_params")]
    bundles = [bundle for bundle in bundles if "extractor_mode" in bundle._params]
    assert len(bundles) >= 30
    for bundle in bundles:
        values = bundle._params
        is_large = values["extractor_mode"] == "layer_norm"
        assert (values["encoder_layer_norm_first"], bundle._normalize_waveform) == (is_large, is_large)
        assert values["encoder_num_heads"] == heads[values["encoder_embed_dim"]]
        assert [layer[1:] for layer in values["extractor_conv_layer_config"]] == [
            (10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2
        ]  # fmt: skip


def test_with_a_dictionary_beside_it(write: Write) -> None:
    _, file = write("base", 8)
    file.with_name("dict.ltr.txt").write_text("| 5\nb 3\na 2\nü 1\n", "utf-8")
    vocabulary = load_ctc(file, "cpu").vocabulary
    assert vocabulary.symbols == ("<s>", "<pad>", "</s>", "<unk>", "|", "b", "a", "ü")  # type: ignore[attr-defined]
    file.with_name("dict.ltr.txt").write_text("| 5\n", "utf-8")
    with pytest.raises(CheckpointError, match=r"expected a dictionary of 8 symbols, found 5$"):
        read_model(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_outputs": 30}, r"expected 29 or 32 outputs, or dict\.ltr\.txt beside it, found 30 outputs$"),
        ({"encoder_embed_dim": 32, "encoder_num_heads": 4}, r"expected a width of 768, .*, found 32$"),
        ({"extractor_conv_layer_config": [(8, 10, 5)] * 2}, r"of kernels \(10, .*\), found \(10, 10\)$"),
    ],
)
def test_what_nothing_tells_is_an_error(write: Write, changes: dict[str, Any], message: str) -> None:
    _, file = write("base", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_model(file)


def test_text_is_that_of_the_peer(write: Write, tmp_path: Path) -> None:
    """The greedy path, repeats joined and blanks dropped, of a whole recording."""
    peer, file = write("base", 29)
    samples = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "noise.wav", samples, 16_000, subtype="FLOAT")
    with torch.no_grad():
        best = peer(torch.from_numpy(samples)[None])[0][0].argmax(dim=1).unique_consecutive().tolist()
    expected = "".join(("-" + foreign.LETTERS)[symbol] for symbol in best if symbol).replace("|", " ").split()
    assert len(expected) > 0
    assert Transcriber.load(file, device="cpu").transcribe(tmp_path / "noise.wav").text.split() == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["WAV2VEC2_ASR_BASE_960H", "HUBERT_ASR_LARGE", "WAVLM_BASE_PLUS"])
def test_published_sizes(tmp_path: Path, name: str) -> None:
    pipelines = pytest.importorskip("torchaudio.pipelines")
    bundle = getattr(pipelines, name)
    torch.manual_seed(0)
    peer = foreign.randomize(pipelines._wav2vec2.utils._get_model(bundle._model_type, bundle._params)).eval()
    torch.save(peer.state_dict(), tmp_path / "a.pth")
    kind = "large" if bundle._normalize_waveform else "base"
    assert_same_features(tmp_path / "a.pth", peer, WAVEFORMS, as_heard(kind))
    if peer.aux is not None:
        assert_same_scores(tmp_path / "a.pth", peer, WAVEFORMS, as_heard(kind))
