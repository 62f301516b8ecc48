"""The files of a Hugging Face folder: every form in which they come, and what is wrong with some."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_models
import pytest
import safetensors.torch
import torch
from torch import Tensor

from speechssl.checkpoint.huggingface import read_license
from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.reader import load_ctc, load_encoder, read_model
from speechssl.data.tokens import Tokens
from speechssl.errors import CheckpointError

WAVEFORMS = torch.randn(2, 1_600, generator=torch.Generator().manual_seed(1))
GAIN, DIRECTION = (f"pos_conv_embed.conv.parametrizations.weight.original{number}" for number in (0, 1))
MASK = "wav2vec2.masked_spec_embed"
QUERY = "wav2vec2.encoder.layers.1.attention.q_proj.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it."""
    return hf_models.save(hf_models.build("wav2vec2-large"), tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    for file in original.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def log_probs(folder: Path, language: str | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = load_ctc(folder, "cpu", language).model(WAVEFORMS).log_probs
    return found


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    file = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in safetensors.torch.load_file(file).items()}
    change(weights)
    safetensors.torch.save_file(weights, file)


def change_json(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text("utf-8")) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}), "utf-8")


def old_weight_norm(weights: dict[str, Tensor]) -> None:
    for new, old in ((GAIN, "pos_conv_embed.conv.weight_g"), (DIRECTION, "pos_conv_embed.conv.weight_v")):
        weights[f"wav2vec2.encoder.{old}"] = weights.pop(f"wav2vec2.encoder.{new}")


def folded_weight_norm(weights: dict[str, Tensor]) -> None:
    gain, direction = (weights.pop(f"wav2vec2.encoder.{name}") for name in (GAIN, DIRECTION))
    folded = gain * direction / direction.norm(dim=(0, 1), keepdim=True)
    weights["wav2vec2.encoder.pos_conv_embed.conv.weight"] = folded


def without_mask_embedding(weights: dict[str, Tensor]) -> None:
    weights.pop(MASK, None)


def with_other_heads(weights: dict[str, Tensor]) -> None:
    for name in ("quantizer.codevectors", "project_q.weight", "project_hid.bias", "classifier.weight"):
        weights[name] = torch.ones(2)


def head_beside_a_body(weights: dict[str, Tensor]) -> None:
    for name in list(weights):
        weights[name.removeprefix("wav2vec2.")] = weights.pop(name)


@pytest.mark.parametrize(
    "change",
    [old_weight_norm, folded_weight_norm, without_mask_embedding, with_other_heads, head_beside_a_body],
)
def test_every_form_of_the_weights_is_the_same_model(
    original: Path, folder: Path, change: Callable[[dict[str, Tensor]], None]
) -> None:
    change_weights(folder, change)
    torch.testing.assert_close(log_probs(folder), log_probs(original), rtol=1e-5, atol=1e-5)


def test_pickles_and_parts_are_read(original: Path, folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = [dict(list(weights.items())[start::2]) for start in (0, 1)]
    digests = set()
    for suffix, save in (("safetensors", safetensors.torch.save_file), ("bin", torch.save)):
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        parts = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
        for part, half in zip(parts, halves, strict=True):
            save(half, folder / part)
        index = {"weight_map": {name: part for part, half in zip(parts, halves, strict=True) for name in half}}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
        assert torch.equal(log_probs(folder), log_probs(original))
        digests.add(read_model(folder).digest)
        (folder / parts[1]).write_bytes(b"")
        digests.add(read_model(folder).digest)
        with pytest.raises(CheckpointError, match=re.escape(parts[1])):
            log_probs(folder)
        (folder / f"{stem}.{suffix}.index.json").unlink()
    assert len(digests) == 4, "a part that changes must change the digest"
    torch.save(weights, folder / "pytorch_model.bin")
    assert torch.equal(log_probs(folder), log_probs(original))


def test_half_precision_becomes_float32(original: Path, folder: Path) -> None:
    def halve(weights: dict[str, Tensor]) -> None:
        weights |= {name: tensor.half() for name, tensor in weights.items()}

    change_weights(folder, halve)
    torch.testing.assert_close(log_probs(folder), log_probs(original), rtol=0.1, atol=0.1)


def test_a_body_alone_and_a_model_of_pretraining_are_encoders(tmp_path: Path) -> None:
    full = hf_models.build("wav2vec2-base", "ForPreTraining")
    for name, model in (("pretraining", full), ("body", full.wav2vec2)):
        folder = hf_models.save(model, tmp_path / name)
        assert read_model(folder).vocabulary is None
        found = load_encoder(folder, "cpu").encode(WAVEFORMS).context
        rows = (WAVEFORMS - WAVEFORMS.mean(dim=1, keepdim=True)) / WAVEFORMS.std(dim=1, correction=0, keepdim=True)
        with torch.no_grad():
            expected = full.wav2vec2(rows).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(CheckpointError, match=r"expected a fine-tuned \(ctc\) model, found a pretrained one"):
            load_ctc(folder)


@pytest.mark.parametrize(
    ("present", "normalize"),
    [("processor_config.json", True), ("preprocessor_config.json", True), ("preprocessor_config.json", False), ("", 1)],
)
def test_either_processor_file_rules_the_input(folder: Path, present: str, normalize: bool) -> None:
    values = json.loads((folder / "processor_config.json").read_text())["feature_extractor"]
    (folder / "processor_config.json").unlink()
    values["do_normalize"] = normalize
    if present:
        wrapped = {"feature_extractor": values} if present == "processor_config.json" else values
        (folder / present).write_text(json.dumps(wrapped))
    saved = read_model(folder)
    assert saved.description.encoder.normalize_waveforms == (1e-7 if normalize else False)
    assert ("neither processor_config.json" in " ".join(saved.remarks)) is not bool(present)
    moved = log_probs(folder) - load_ctc(folder, "cpu").model(3 * WAVEFORMS + 1).log_probs
    assert (moved.abs().max() < 1e-3) == bool(normalize)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(QUERY), rf"{QUERY}: expected \(32, 32\), found none$"),
        (lambda weights: weights.update({QUERY: torch.ones(3)}), rf"{QUERY}: expected \(32, 32\), found \(3,\)$"),
        (
            lambda weights: weights.update({"lm_head.bias": torch.ones(3), "../etc/passwd": torch.ones(1)}),
            r"expected weights of the family, found '\.\./etc/passwd' beside them$",
        ),
        (
            lambda weights: weights.update({str(number): torch.ones(1) for number in range(12)}),
            r"found '0', '1', .* and 4 more beside them$",
        ),
        (
            lambda weights: [weights.pop(name) for name in list(weights) if ".layers.2." in name],
            r"layers\.2\.attention.*: expected .*; .*|and \d+ more$",
        ),
    ],
)
def test_what_is_missing_left_over_or_of_another_shape_is_listed(
    folder: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    change_weights(folder, change)
    for load in (load_ctc, load_encoder):
        with pytest.raises(CheckpointError, match=message) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10\0\0\0\0\0\0\0{}",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        b"\x02\0\0\0\0\0\0\0{}more",
        b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4000000000]}}',
    ],
)
def test_damaged_safetensors_cost_one_line(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a complete safetensors file: .") as caught:
        load_ctc(folder)
    assert "\n" not in str(caught.value)


class Hostile:
    """A pickle that would run a program."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps({"a": Hostile()}), pickle.dumps([1, 2])])
def test_a_pickle_of_anything_but_tensors_is_refused_and_not_run(
    folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: expected a complete PyTorch file") as caught:
        load_ctc(folder)
    assert "\n" not in str(caught.value)
    torch.save({"a": Hostile()}, folder / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin: expected weights and settings, found .*, which is refused"
    ):
        load_ctc(folder)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("part", ["../secret.safetensors", "/etc/passwd", "a\nb", "a\0b", "..", ""])
def test_an_index_cannot_name_files_elsewhere(folder: Path, part: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))
    with pytest.raises(CheckpointError, match="expected the name of a file in"):
        read_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "swish"}, r"hidden_act: input should be 'gelu', found 'swish'$"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm: input should be"),
        ({"add_adapter": True}, "add_adapter: input should be"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps: input should be"),
        ({"hidden_size": "large"}, "hidden_size: input should be"),
        ({"num_attention_heads": 5}, "model_dim must be a multiple of num_heads"),
        ({"model_type": "whisper"}, "expected a model_type of wav2vec2, .*, found 'whisper'"),
        ({"num_hidden_layers": 10**7}, "num_layers: input should be"),
        ({"vocab_size": 10**12}, "vocab_size: input should be"),
        ({"vocab_size": "many"}, "vocab_size: input should be"),
        ({"architectures": 1}, "architectures: input should be"),
    ],
)
def test_settings_that_would_change_the_numbers_are_refused(folder: Path, changes: Any, message: str) -> None:
    change_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        read_model(folder)


def test_sizes_that_are_stated_and_not_there_claim_no_memory(folder: Path) -> None:
    change_json(folder / "config.json", intermediate_size=10**12)
    for load in (load_ctc, load_encoder):
        with pytest.raises(CheckpointError, match=r"intermediate_dense\.bias: expected \(1000000000000,\), found"):
            load(folder, "cpu")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", ["<s>"]),
        ("added_tokens.json", {"<s>": "32"}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": "<pad>"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"first": {"content": "<pad>"}}}),
        ("tokenizer_config.json", {"pad_token": ["<pad>"]}),
        ("tokenizer_config.json", {"additional_special_tokens": 3}),
        ("tokenizer_config.json", {"replace_word_delimiter_char": 1}),
        ("tokenizer_config.json", {"word_delimiter_token": {"content": 1}}),
        ("tokenizer.json", {"model": {}}),
        ("tokenizer.json", {"model": {"vocab": [1]}}),
    ],
)
def test_tokenizers_that_are_malformed(folder: Path, name: str, content: Any) -> None:
    if name == "tokenizer.json":
        (folder / "vocab.json").unlink()
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"{name}: "):
        read_model(folder)


@pytest.mark.parametrize("tokens", [{"pad_token": "|", "replace_word_delimiter_char": "-"}, {"pad_token": "<same>"}])
def test_a_blank_that_is_no_unit_of_its_own(folder: Path, tokens: dict[str, str]) -> None:
    ids = {"<same>": 2} | {symbol: i for i, symbol in enumerate(hf_models.SYMBOLS)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    change_json(folder / "tokenizer_config.json", **tokens)
    with pytest.raises(CheckpointError, match="expected the blank, which is the padding token"):
        read_model(folder)


def test_nulls_in_a_tokenizer_are_what_was_not_stated(folder: Path) -> None:
    nulls = dict.fromkeys(("added_tokens_decoder", "additional_special_tokens", "replace_word_delimiter_char"))
    change_json(folder / "tokenizer_config.json", do_lower_case=None, **nulls)
    units = read_model(folder).vocabulary
    assert units.decode(units.encode("TWO WORDS")) == "TWO WORDS"


def test_a_rate_that_is_not_ours_is_refused(folder: Path) -> None:
    values = {"feature_extractor": {"do_normalize": True, "sampling_rate": 8_000}}
    (folder / "processor_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"processor_config\.json: sampling_rate: .*16000, found 8000"):
        read_model(folder)


@pytest.mark.parametrize("settings", ["both", "old", "none"])
def test_the_vocabulary_says_which_unit_is_what(folder: Path, settings: str) -> None:
    if settings != "both":
        (folder / "tokenizer_config.json").unlink()
    if settings == "old":
        tokens = {"unk_token": {"content": "Z"}, "pad_token": "<pad>", "bos_token": None, "eos_token": "</s>"}
        (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    units = read_model(folder).vocabulary
    assert isinstance(units, Tokens)
    assert (units.blank_id, units.delimiter_id) == (0, 4)
    names = {units.symbols[i] for i in units.special_ids}
    assert names == ({"<pad>", "</s>", "Z"} if settings == "old" else {"<pad>", "<s>", "</s>", "<unk>"})
    assert units.decode(units.encode("hello  WORLD")) == "HELLO WORLD"


def test_case_delimiter_longer_units_and_rows_without_a_name(folder: Path) -> None:
    symbols = ("[PAD]", "_", "A", "SCH", "B", "[UNK]")
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"pad_token": "[PAD]", "unk_token": "[UNK]", "word_delimiter_token": "_", "do_lower_case": True}
            | {"added_tokens_decoder": {"6": {"content": "<s>", "special": True}}}
        )
    )
    change_json(folder / "config.json", vocab_size=8)
    units = read_model(folder).vocabulary
    assert isinstance(units, Tokens)
    assert (len(units), units.blank_id, units.delimiter_id) == (8, 0, 1)
    assert units.special_ids == {0, 5, 6, 7}
    ids = units.encode("schab a")
    assert ids == [3, 2, 4, 1, 2, 1]
    assert units.decode([*ids, 6, 7]) == "schab a"
    assert units.word_starts(ids) == [True, False, False, False, True, False]
    assert units.unknown_characters("schac d") == "cd"


def test_a_delimiter_that_is_not_written_as_a_space_ends_no_word(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", replace_word_delimiter_char="")
    units = read_model(folder).vocabulary
    assert isinstance(units, Tokens)
    assert units.delimiter_id is None
    assert units.decode([5, 4, 6]) == "ET"
    assert units.word_starts([5, 4, 6]) == [True, False, False]


def test_phonemes_are_words(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", tokenizer_class="Wav2Vec2PhonemeCTCTokenizer")
    units = read_model(folder).vocabulary
    assert units is not None
    assert units.decode([5, 6, 0, 7]) == "E T A"
    assert units.word_starts([5, 6, 0, 7]) == [True, True, False, True]


def test_a_head_without_a_vocabulary_is_an_encoder_that_says_so(folder: Path) -> None:
    (folder / "vocab.json").unlink()
    load_encoder(folder, "cpu")
    with pytest.raises(CheckpointError, match=r"found a pretrained one; no vocab\.json"):
        load_ctc(folder)


def test_a_checkpoint_of_a_trainer_says_where_its_vocabulary_is(original: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-500"
    checkpoint.mkdir()
    for file in original.iterdir():
        above = file.name not in ("config.json", "model.safetensors")
        ((tmp_path if above else checkpoint) / file.name).write_bytes(file.read_bytes())
    message = r"no vocab\.json: .* \(the folder above has one: copy vocab\.json and \*_config\.json from there\)"
    with pytest.raises(CheckpointError, match=message):
        load_ctc(checkpoint)


def test_an_adapter_is_called_one_and_names_its_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}', "utf-8")
    with pytest.raises(CheckpointError, match="expected a model, found an adapter of PEFT for owner/name"):
        load_ctc(tmp_path)


def test_our_own_folder_keeps_the_rules(folder: Path, tmp_path: Path) -> None:
    change_json(folder / "tokenizer_config.json", do_lower_case=True)
    saved = read_model(folder)
    ours = tmp_path / "ours"
    ours.mkdir()
    save_model(ours, saved.description, saved.weights, saved.vocabulary)
    assert read_model(ours).vocabulary == saved.vocabulary
    assert torch.equal(log_probs(ours), log_probs(folder))


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\nlicense: none", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: 'mine'\n---\n", "mine"),
        ("# Model\nlicense: mit\n", None),
        ("---\ntags:\n- a\n---\n", None),
    ],
)
def test_the_license_is_that_of_the_card(folder: Path, card: str, expected: str | None) -> None:
    (folder / "README.md").write_text(card)
    assert read_license(folder / "README.md") == expected
    saved = read_model(folder)
    assert saved.description.training_data[0].license == (expected or "unknown")
    assert ("no license in README.md" in saved.remarks) is (expected is None)
