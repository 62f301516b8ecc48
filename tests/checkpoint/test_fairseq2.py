"""fairseq2's files, composed by hand; what the models inside them compute is torchaudio's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from fairseq2_files import PIECES, to_fairseq2, tokenizer
from foreign_checks import assert_same_features, assert_same_scores
from torch import nn

from speechssl.checkpoint.reader import load_ctc, load_encoder, read_model
from speechssl.checkpoint.sentencepiece import read_pieces
from speechssl.errors import CheckpointError

WAVEFORMS = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.05
HEARD = {"base": WAVEFORMS, "large": nn.functional.layer_norm(WAVEFORMS, WAVEFORMS.shape[1:])}
Write = Callable[..., tuple[nn.Module, Path]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Save a model, and a tokenizer beside it."""

    def save(
        kind: str, has_head: bool = True, pieces: Sequence[str] = PIECES, **changes: Any
    ) -> tuple[nn.Module, Path]:
        peer = foreign.make_peer(kind, len(PIECES) if has_head else None, **foreign.SMALL)
        weights = {**to_fairseq2(peer, kind), **changes}
        torch.save({"model": {f"module.{name}": tensor for name, tensor in weights.items()}}, tmp_path / "model.pt")
        (tmp_path / "tokenizer.model").write_bytes(tokenizer(pieces))
        return peer, tmp_path / "model.pt"

    return save


@pytest.mark.parametrize("kind", ["base", "large"])
class TestModels:
    def test_pretrained(self, write: Write, kind: str) -> None:
        heads = ("quantizer.entries", "quantizer.entry_proj.weight", "final_target_proj.weight", "final_proj.weight")
        mask = {"masker.temporal_mask_embed": torch.rand(768)}
        peer, file = write(kind, False, **{name: torch.rand(3, 4) for name in heads}, **mask)
        assert_same_features(file, peer, WAVEFORMS, HEARD[kind])
        saved = read_model(file)
        assert saved.vocabulary is None
        assert torch.equal(saved.weights["encoder.context.mask_embedding"], mask["masker.temporal_mask_embed"])

    def test_fine_tuned(self, write: Write, kind: str) -> None:
        peer, file = write(kind)
        file.with_name("another.model").write_bytes(tokenizer(PIECES[:-1]))  # of another version
        assert_same_features(file, peer, WAVEFORMS, HEARD[kind])
        assert_same_scores(file, peer, WAVEFORMS, HEARD[kind])
        vocabulary = load_ctc(file, "cpu").vocabulary
        assert (vocabulary.blank_id, vocabulary.delimiter_id, len(vocabulary)) == (0, 4, len(PIECES))
        assert vocabulary.special_ids == {0, 1, 2, 3}
        assert vocabulary.decode([5, 0, 17, 4, 3, 18, 6]) == "e| \u0436t"


def test_what_the_outputs_stand_for_must_be_told(write: Write) -> None:
    _, file = write("base", pieces=PIECES[:-2])
    with pytest.raises(CheckpointError, match=r"NAME\.model of 19 pieces, found tokenizer\.model of 17$"):
        read_model(file)
    file.with_name("tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"NAME\.model of 19 pieces, found none$"):
        read_model(file)
    write("base", pieces=(*PIECES[:-1], "\u2581the"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: expected pieces of letters, found \u2581the$"):
        read_model(file)


def test_heads_are_those_of_the_published_width() -> None:
    """With 1,280 channels that is not one for every 64."""
    from speechssl.checkpoint.sizes import published_heads

    heads = {768: 12, 1024: 16, 1280: 16, 2048: 16}
    for width, count in heads.items():
        weights = {"encoder.context.projection.weight": torch.empty(width, 512, device="meta")}
        assert published_heads(weights, Path("x")) == count


def test_weights_that_are_not_known(write: Write) -> None:
    _, file = write("base", **{"encoder.layers.0.conv.weight": torch.rand(3)})
    with pytest.raises(CheckpointError, match=r"found 'encoder\.layers\.0\.conv\.weight' beside them$"):
        load_encoder(file, "cpu")


def test_tokenizers_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "a.model"
    whole = tokenizer(PIECES)
    file.write_bytes(whole)
    assert read_pieces(file).texts == PIECES
    for content in (whole[:-1], whole[:50], b"\xff" * 30, b"\x0a\x02\x18\x01", b"\x0a\x03\x0a\x01\xff", b"\x0b"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.model: expected a model of SentencePiece"):
            read_pieces(file)
