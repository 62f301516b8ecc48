"""fairseq's files, composed by hand; what the models inside them compute is torchaudio's."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from foreign_checks import assert_same_features, assert_same_scores
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.checkpoint.reader import load_ctc, load_encoder, read_model
from speechssl.errors import CheckpointError
from speechssl.model.transformer import TransformerConfig

WAVEFORMS = torch.randn(2, 700, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.05
LENGTHS = torch.tensor([700, 430])
MODES = {"base": "default", "large": "layer_norm"}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Save contents as a file of PyTorch's newer or older format."""

    def save(contents: Any, *, is_zip: bool = True) -> Path:
        torch.save(contents, tmp_path / "model.pt", _use_new_zipfile_serialization=is_zip)
        return tmp_path / "model.pt"

    return save


def fine_tuned(kind: str, inner: dict[str, Any], symbols: list[str] | None, **task: Any) -> tuple[nn.Module, Any]:
    peer = foreign.make_peer(kind, len(foreign.SYMBOLS))
    weights = foreign.fine_tuned_names(foreign.fairseq_names(peer, MODES[kind]), peer.aux)
    settings = {"_name": "wav2vec_ctc", "w2v_path": "/nowhere/else.pt", "normalize": False, "dropout": 0.0, **inner}
    contents = foreign.fairseq_contents(weights, settings, labels="ltr", **task)
    if symbols is not None:
        contents["task_state"] = {"target_dictionary": foreign.Dictionary(symbols)}
    return peer, contents


def normalized(waveforms: Tensor) -> Tensor:
    return F.layer_norm(waveforms, waveforms.shape[1:])


def assert_same(path: Path, peer: nn.Module, waveforms: Tensor) -> None:
    """All layers, and logits if there are any."""
    assert_same_features(path, peer, WAVEFORMS, waveforms)
    if getattr(peer, "aux", None) is not None:
        assert_same_scores(path, peer, WAVEFORMS, waveforms)


@pytest.mark.parametrize("kind", ["base", "large"])
class TestPretrained:
    def test_settings_in_a_namespace(self, write: Write, kind: str) -> None:
        peer = foreign.make_peer(kind)
        weights = {**foreign.fairseq_names(peer, MODES[kind]), **foreign.pretraining_heads()}
        settings = argparse.Namespace(arch="wav2vec2", normalize=kind == "large", **foreign.fairseq_settings(kind))
        for is_zip in (True, False):
            file = write({"args": settings, "model": weights, "extra_state": {}}, is_zip=is_zip)
            assert_same(file, peer, normalized(WAVEFORMS) if kind == "large" else WAVEFORMS)
        found = read_model(file)
        assert found.vocabulary is None
        assert found.description.kind == "pretrained"
        with pytest.raises(CheckpointError, match="expected a fine-tuned"):
            found.ctc("cpu")

    def test_settings_in_dictionaries(self, write: Write, kind: str) -> None:
        peer = foreign.make_peer(kind)
        weights = {**foreign.fairseq_names(peer, MODES[kind]), **foreign.pretraining_heads()}
        file = write(foreign.fairseq_contents(weights, foreign.fairseq_settings(kind), normalize=True))
        assert_same(file, peer, normalized(WAVEFORMS))
        description = read_model(file).description
        assert description.step == 400
        context = description.encoder.context
        assert isinstance(context, TransformerConfig)
        assert (context.num_heads, context.norm_first) == (4, kind == "large")
        assert (context.dropout, context.attention_dropout, context.layer_drop) == (0.05, 0.15, 0.2)
        assert (context.input_dropout, description.encoder.feature_encoder.gradient_scale) == (0.25, 0.1)
        assert torch.equal(read_model(file).weights["encoder.context.mask_embedding"], weights["mask_emb"])

    def test_settings_in_containers_of_omegaconf(self, write: Write, kind: str) -> None:
        peer = foreign.make_peer(kind)
        contents = foreign.fairseq_contents(
            foreign.fairseq_names(peer, MODES[kind]), foreign.fairseq_settings(kind), normalize=True
        )
        kinds = (type("D", (foreign.Container,), {}), type("L", (foreign.Container,), {}))
        node = type("N", (foreign.Node,), {})
        with foreign.modules(
            omegaconf__dictconfig__DictConfig=kinds[0],
            omegaconf__listconfig__ListConfig=kinds[1],
            omegaconf__nodes__AnyNode=node,
            omegaconf__base__Metadata=foreign.Metadata,
        ):
            file = write({**contents, "cfg": foreign.omega(contents["cfg"], (*kinds, node))})
        assert_same(file, peer, normalized(WAVEFORMS))

    def test_files_that_s3prl_converted(self, write: Write, kind: str) -> None:
        peer = foreign.make_peer(kind)
        contents = {
            "task_cfg": {"normalize": True, "sample_rate": 16000},
            "model_cfg": foreign.fairseq_settings(kind),
            "model_weight": foreign.fairseq_names(peer, MODES[kind]),
            "dictionaries_symbols": [["a", "b"]],
        }
        assert_same(write(contents), peer, normalized(WAVEFORMS))

    def test_half_precision(self, write: Write, kind: str) -> None:
        peer = foreign.make_peer(kind).half().float()
        weights = {name: tensor.half() for name, tensor in foreign.fairseq_names(peer, MODES[kind]).items()}
        assert_same(write(foreign.fairseq_contents(weights, foreign.fairseq_settings(kind))), peer, WAVEFORMS)


@pytest.mark.parametrize("kind", ["base", "large"])
class TestFineTuned:
    @pytest.mark.parametrize("is_zip", [True, False])
    def test_with_a_dictionary_inside(self, write: Write, kind: str, is_zip: bool) -> None:
        symbols = [*foreign.SYMBOLS[:4], *"zyx|wvutsrqponmlkjihgfedcba'"]
        inner = {"w2v_args": {"model": foreign.fairseq_settings(kind), "task": {"normalize": True}}}
        peer, contents = fine_tuned(kind, inner, symbols, normalize=True)
        with foreign.modules(fairseq__data__dictionary__Dictionary=foreign.Dictionary):
            file = write(contents, is_zip=is_zip)
        assert_same(file, peer, normalized(WAVEFORMS))
        vocabulary = load_ctc(file, "cpu").vocabulary
        assert vocabulary.symbols == tuple(symbols)  # type: ignore[attr-defined]
        assert (vocabulary.blank_id, vocabulary.delimiter_id) == (0, 7)
        assert vocabulary.special_ids == {0, 1, 2, 3}
        assert vocabulary.decode([4, 1, 2, 3, 5, 0, 7, 31]) == "zy '"

    def test_with_a_dictionary_beside_it_and_settings_in_namespaces(self, write: Write, kind: str) -> None:
        peer, contents = fine_tuned(kind, {}, None)
        pretrained = argparse.Namespace(normalize=False, **foreign.fairseq_settings(kind))
        args = argparse.Namespace(normalize=False, w2v_args=pretrained, labels="phn", arch="wav2vec_ctc")
        file = write({"args": args, "model": contents["model"]})
        symbols = ["|", *"abcdefghijklmnopqrstuvwxyz'"]
        file.with_name("dict.phn.txt").write_text("".join(f"{symbol} 9\n" for symbol in symbols), "utf-8")
        file.with_name("dict.ltr.txt").write_text("a 1\n", "utf-8")  # not what it was trained with
        assert_same(file, peer, WAVEFORMS)
        assert load_ctc(file, "cpu").vocabulary.symbols[4:] == tuple(symbols)  # type: ignore[attr-defined]

    def test_with_a_namespace_inside_a_container(self, write: Write, kind: str) -> None:
        pretrained = argparse.Namespace(**foreign.fairseq_settings(kind))
        peer, contents = fine_tuned(kind, {"w2v_args": pretrained}, None)
        file = write(contents)
        assert_same(file, peer, WAVEFORMS)
        assert "".join(load_ctc(file, "cpu").vocabulary.symbols[4:]) == foreign.LETTERS  # type: ignore[attr-defined]


class TestFamilies:
    def test_hubert(self, write: Write) -> None:
        peer = foreign.make_peer("large")
        heads = {"label_embs_concat": torch.rand(9, 6), "final_proj.weight": torch.rand(6, 32)}
        weights = {**foreign.fairseq_names(peer, "layer_norm"), **heads, "final_proj.bias": torch.rand(6)}
        settings = foreign.fairseq_settings("large", _name="hubert", label_rate=50, skip_nomask=False)
        assert_same(write(foreign.fairseq_contents(weights, settings, normalize=True)), peer, normalized(WAVEFORMS))

    @pytest.mark.parametrize("kind", ["base", "large"])
    def test_wavlm_in_its_original_files(self, write: Write, kind: str) -> None:
        peer = foreign.make_wavlm(kind)
        settings = foreign.fairseq_settings(kind, conv_bias=False, normalize=kind == "large")
        settings |= {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 16, "max_distance": 20}
        file = write({"cfg": settings, "model": foreign.fairseq_names(peer, MODES[kind])})
        assert_same(file, peer, normalized(WAVEFORMS) if kind == "large" else WAVEFORMS)
        file = write({"cfg": settings | {"max_distance": 30}, "model": foreign.fairseq_names(peer, MODES[kind])})
        with pytest.raises(AssertionError, match="layer 1"):  # what no shape shows, and yet matters
            assert_same(file, peer, normalized(WAVEFORMS) if kind == "large" else WAVEFORMS)

    def data2vec_settings(self) -> dict[str, Any]:
        settings = foreign.fairseq_settings("base", _name="data2vec_audio", extractor_mode="layer_norm")
        return settings | {"conv_pos": 10, "pos_conv_depth": 2}

    def test_data2vec(self, write: Write) -> None:
        peer = foreign.make_data2vec()
        teacher = {"layers.0.fc1.weight": torch.rand(48, 32)}
        weights = {**foreign.data2vec_names(peer), "_ema": teacher, "final_proj.weight": torch.rand(32, 32)}
        file = write(foreign.fairseq_contents(weights, self.data2vec_settings(), normalize=True))
        assert_same(file, peer, normalized(WAVEFORMS))

    def test_data2vec_with_a_head(self, write: Write) -> None:
        peer, head = foreign.make_data2vec(), nn.Linear(32, 32)
        weights = foreign.fine_tuned_names(foreign.data2vec_names(peer), head)
        file = write(
            foreign.fairseq_contents(weights, {"w2v_args": {"model": self.data2vec_settings()}}, normalize=True)
        )
        with torch.no_grad():
            expected = head(peer(normalized(WAVEFORMS)).last_hidden_state).log_softmax(dim=2)
            found = load_ctc(file, "cpu").model(WAVEFORMS).log_probs
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert "the letters are those of LibriSpeech's models" in "; ".join(read_model(file).remarks)

    def test_dinosr(self, write: Write) -> None:
        peer = foreign.make_data2vec()
        weights = {**foreign.data2vec_names(peer), "_ema": {"layers.0.fc1.weight": torch.rand(48, 32)}}
        weights |= {"_codebook0": torch.rand(8, 32), "_codebook_cnts0": torch.rand(8), "heads.0.weight": torch.rand(8)}
        file = write(foreign.fairseq_contents(weights, self.data2vec_settings(), normalize=True))
        assert_same(file, peer, normalized(WAVEFORMS))

    def test_unispeech_sat(self, write: Write) -> None:
        peer = foreign.make_peer()
        heads = ("label_embs_concat", "spk_proj.weight", "encoder.layer_norm_for_extract.weight", "quantizer.vars")
        weights = {**foreign.fairseq_names(peer, "default"), **{name: torch.rand(3, 3) for name in heads}}
        assert_same(write(foreign.fairseq_contents(weights, foreign.fairseq_settings())), peer, WAVEFORMS)

    def test_equal_widths_need_no_projection(self, write: Write) -> None:
        convolutions = [(12, 10, 5), (16, 3, 2), (32, 2, 2)]
        peer = foreign.make_peer(extractor_conv_layer_config=convolutions)
        weights = foreign.fairseq_names(peer, "default")
        with torch.no_grad():
            weights.pop("post_extract_proj.weight").copy_(torch.eye(32))
            weights.pop("post_extract_proj.bias").zero_()
        settings = foreign.fairseq_settings(conv_feature_layers=str(convolutions))
        assert_same(write(foreign.fairseq_contents(weights, settings)), peer, WAVEFORMS)


def write_damaged(write: Write, kind: str = "base", **changes: Any) -> Path:
    """A pretrained model with weights or, by names in capitals, settings replaced or (None) removed."""
    weights = foreign.fairseq_names(foreign.make_peer(kind), MODES[kind])
    settings = foreign.fairseq_settings(kind)
    for name, value in changes.items():
        place, name = (weights, name.replace("__", ".")) if "__" in name else (settings, name)
        place.pop(name, None)
        if value is not None:
            place[name] = value
    return write(foreign.fairseq_contents(weights, settings))


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"encoder__layers__1__fc1__weight": None},
                r"encoder\.layers\.1\.fc1\.weight: expected \(48, 32\), found none",
            ),
            ({"encoder__layers__1__fc1__weight": torch.zeros(3, 4)}, r"encoder\.layers\.1\.fc1\.weight: .* \(3, 4\)"),
            ({"encoder__layers__0__fc1__weight": torch.zeros(4)}, r"layers\.0\.feed_forward\.inner\.weight: expected"),
            ({"post_extract_proj__weight": torch.zeros(0, 24)}, r"projection\.weight: expected a weight of 2"),
            (
                {"encoder__layers__1__adapter__weight": torch.zeros(3)},
                r"found 'encoder\.layers\.1\.adapter\.weight' beside",
            ),
            ({"encoder__pos_conv__0__weight_v": None}, r"position.*original1: expected a weight of 3"),
            ({"encoder__layers__9999__fc1__weight": torch.zeros(48, 32)}, r"encoder_layers 3, not 4"),
            ({"encoder_layers": 10**9}, r"encoder_layers 1000000000, not 3"),
            ({"encoder_embed_dim": 64}, r"encoder_embed_dim 64, not 32"),
            ({"encoder_attention_heads": 5}, r"model_dim must be a multiple of num_heads"),
            ({"encoder_attention_heads": "4"}, r"encoder_attention_heads"),
            ({"activation_fn": "swish"}, r"activation_fn"),
            ({"layer_type": "conformer"}, r"layer_type"),
            ({"extractor_mode": "layer_norm"}, r"extractor_mode layer_norm, not default"),
            ({"conv_pos": 128}, r"conv_pos 128, not 8"),
            ({"conv_feature_layers": "[(12, 10, 5)]"}, r"expected convolutions with a stride each"),
            ({"conv_feature_layers": "__import__('os').system('x')"}, r"expected \(channels, kernel, stride\) a layer"),
            ({"dropout": float("nan")}, r"dropout"),
        ],
    )
    def test_name_what_is_wrong(self, write: Write, changes: dict[str, Any], message: str) -> None:
        file = write_damaged(write, **changes)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_encoder(file, "cpu")
        assert str(caught.value).startswith(str(file))
        assert "\n" not in str(caught.value)

    def test_heads_change_the_numbers_and_no_shape(self, write: Write) -> None:
        """So they follow the file."""
        as_written = load_encoder(write_damaged(write), "cpu").encode(WAVEFORMS).context
        with_others = load_encoder(write_damaged(write, encoder_attention_heads=8), "cpu").encode(WAVEFORMS).context
        assert (as_written - with_others).norm() > 1e-3 * as_written.norm()

    @pytest.mark.parametrize(
        ("symbols", "message"),
        [
            (foreign.SYMBOLS[:-1], "expected a dictionary of 32 symbols, found 31$"),
            ([*foreign.SYMBOLS[:-1], "E"], "found E twice$"),
            (["<S>", *foreign.SYMBOLS[1:]], "expected a dictionary with <s>, found <S>, <pad>, "),
        ],
    )
    def test_dictionaries(self, write: Write, symbols: list[str], message: str) -> None:
        _, contents = fine_tuned("base", {"w2v_args": {"model": foreign.fairseq_settings()}}, symbols)
        with foreign.modules(fairseq__data__dictionary__Dictionary=foreign.Dictionary):
            file = write(contents)
        with pytest.raises(CheckpointError, match=message):
            read_model(file)

    @pytest.mark.parametrize("lines", ["a\n", "a 1\nb x\n", " 3\n"])
    def test_dictionary_files(self, write: Write, lines: str) -> None:
        _, contents = fine_tuned("base", {"w2v_args": {"model": foreign.fairseq_settings()}}, None)
        file = write(contents)
        file.with_name("dict.ltr.txt").write_text(lines, "utf-8")
        with pytest.raises(CheckpointError, match=r"dict\.ltr\.txt:[12]: expected a symbol and its count, found "):
            read_model(file)

    def test_a_file_cannot_choose_where_its_dictionary_is(self, write: Write, tmp_path: Path) -> None:
        _, contents = fine_tuned("base", {"w2v_args": {"model": foreign.fairseq_settings()}}, None)
        contents["cfg"]["task"]["labels"] = "x/../../secret"
        (tmp_path / "dict.x").mkdir()
        (tmp_path.parent / "secret.txt").write_text("this 1\n", "utf-8")
        assert "".join(load_ctc(write(contents), "cpu").vocabulary.symbols[4:]) == foreign.LETTERS  # type: ignore[attr-defined]

    def test_settings_of_the_pretrained_encoder_are_needed(self, write: Write) -> None:
        _, contents = fine_tuned("base", {"w2v_args": None}, None)
        with pytest.raises(CheckpointError, match=r"found no w2v_args$"):
            read_model(write(contents))
