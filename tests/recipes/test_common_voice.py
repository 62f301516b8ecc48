"""Common Voice's recipe: its manifests and its alphabet, what is wrong in a release, and its configurations."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from miniature import RECIPES, recipe_modules, run_recipe
from miniature_common_voice import (
    COLUMNS,
    NUM_DEV,
    NUM_TEST,
    NUM_TRAIN,
    Line,
    client_id,
    clip,
    make_tree,
    write_clip,
    write_list,
)

from speechssl.data import headers
from speechssl.data.container import inspect
from speechssl.data.manifest import Manifest, read_manifest, read_utterance
from speechssl.data.recording import AudioInfo, audio_info
from speechssl.errors import ConfigError, ManifestError
from speechssl.train.finetune import FinetuneConfig
from speechssl.train.pretrain import PretrainConfig

RECIPE = RECIPES / "common_voice"
NO_MANIFESTS = ("headers", "dropped", "alphabet")
DATA = ("data.train=none", "data.dev=none")

TONE = (0.1 * np.sin(np.arange(16_000) / 5)).astype(np.float32)  # a second

alphabet, lists, prepare = recipe_modules("common_voice", "alphabet", "lists", "prepare")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with space")
    return Path(make_tree(folder)["CORPUS"])


@pytest.fixture
def language(tree: Path, tmp_path: Path) -> Path:
    """The language's folder, to be changed."""
    return Path(shutil.copytree(tree, tmp_path / "release" / "en"))


@pytest.fixture(scope="module")
def prepared(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare.prepare(str(tree), folder, 2)
    return folder


@pytest.fixture(scope="module")
def manifests(prepared: Path) -> dict[str, Manifest]:
    return read_all(prepared)


def read_all(folder: Path) -> dict[str, Manifest]:
    return {path.stem: read_manifest(path) for path in folder.glob("*.tsv") if path.stem not in NO_MANIFESTS}


def names(manifest: Manifest) -> list[str]:
    return [Path(utterance.path).stem.removeprefix("common_voice_en_") for utterance in manifest]


def numbered(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(count)]


def dropped(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (folder / "dropped.tsv").read_text("utf-8").splitlines()[1:]:
        reason, what = line.split("\t")
        found.setdefault(reason, []).append(what)
    return found


# Manifests


def test_every_manifest_has_its_clips(manifests: dict[str, Manifest]) -> None:
    train, dev, test = numbered("train", NUM_TRAIN), numbered("dev", NUM_DEV), numbered("test", NUM_TEST)
    without_usable_text = ["digits", "rare", "empty_text", "marks_only", "cut"]
    assert {name: names(manifest) for name, manifest in manifests.items()} == {
        "train": train,
        "dev": dev,
        "test": [*test, "test_digits", "test_cut"],
        "pretrain_train": [*train, *without_usable_text, "validated0", "other0"],
        "pretrain_dev": [*dev, "dev_digits"],
    }


def test_texts_are_normalised_and_quotation_marks_are_no_syntax(manifests: dict[str, Manifest]) -> None:
    texts = [utterance.text for utterance in manifests["train"]]
    assert texts[:4] == [
        "please enter your password followed by the pound key",
        "call forward unconditional he said",
        "please enter the channel number followed by the pound key",
        "please enter your conference number followed by the pound key",
    ]
    assert [utterance.text for utterance in manifests["test"]][-2] == "press 9 for the café"


def test_pretraining_has_no_texts(manifests: dict[str, Manifest]) -> None:
    for name in ("pretrain_train", "pretrain_dev"):
        assert {utterance.text for utterance in manifests[name]} == {None}
        assert all(utterance.speaker and utterance.language == "en" for utterance in manifests[name])


def test_speakers_are_short_different_and_in_one_split_only(manifests: dict[str, Manifest]) -> None:
    speakers = {name: {utterance.speaker for utterance in manifest} for name, manifest in manifests.items()}
    assert client_id("ann")[:11] == client_id("bob")[:11]
    assert speakers["train"] == {client_id(name)[:12] for name in ("ann", "bob", "cem")}
    assert speakers["pretrain_train"] >= speakers["train"]
    assert not speakers["pretrain_train"] & (speakers["dev"] | speakers["test"])
    assert not speakers["dev"] & speakers["test"]


@given(st.sets(st.text("ab", min_size=1, max_size=14), max_size=12))
def test_short_names_stay_different(speakers: set[str]) -> None:
    short = lists.short_names(speakers)
    assert len(set(short.values())) == len(speakers)
    assert all(speaker.startswith(name) for speaker, name in short.items())


def test_lengths_are_those_of_the_decoded_clips(tree: Path, manifests: dict[str, Manifest]) -> None:
    stated = {}
    for utterance in (manifests["test"][0], manifests["test"][1]):
        with Path(utterance.path).open("rb") as file:
            stated[utterance.sample_rate] = inspect(file).has_true_mp3_tag
        assert len(read_utterance(utterance)) == utterance.num_output_samples
    assert stated == {48_000: True, 32_000: False}  # so PyAV is needed, as for the real corpus


def test_a_release_reached_by_a_link_from_another_folder(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    (tmp_path / "below").mkdir()
    prepare.prepare(str(tmp_path / "below" / ".." / "link"), tmp_path / "data", 2)
    assert Path(read_manifest(tmp_path / "data" / "test.tsv")[0].path).is_file()


# What is dropped


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("line that repeats a clip", [": common_voice_en_train3.mp3"]),
        ("line with other columns than its header", ["expected 13, found 12", "found 14", "found 1"]),
        ("line without path or client_id", ["train.tsv:", "train.tsv:"]),
        ("line whose path is no name of a file in clips", ["../common_voice_en_train0.mp3"]),
        ("line that is no UTF-8", ["found the byte 0xe9"]),
        ("dev: speaker who is in test too", [clip("dev_of_test")]),
        ("train: speaker who is in dev too", [clip("of_dev")]),
        ("pretraining: speaker of dev or test", [clip("of_dev"), clip("validated_of_test"), clip("other_of_dev")]),
        ("pretraining: clip that invalidated.tsv has too", [clip("contested")]),
        ("recording that cannot be read", [f"{clip('missing')}: ", f"{clip('empty')}: ", f"{clip('damaged')}: "]),
        ("recording shorter than a frame (test keeps it)", [clip("dev_tiny"), clip("tiny")]),
        ("test: no text", [f"{clip('test_no_text')}: '\"\"'"]),
        ("train: no text", [f"{clip('empty_text')}: ''", clip("marks_only")]),
        ("train: text too long for its recording", [f"{clip('cut')}: expected 51 frames or more, found "]),
        ("train: digits", [f"{clip('digits')}: press 5 now"]),
        ("train: rare character", [f"'é' (U+00E9, LATIN SMALL LETTER E WITH ACUTE) in {clip('rare')}: the café"]),
        ("dev: character outside the alphabet", ["'7' (U+0037, DIGIT SEVEN) in " + clip("dev_digits")]),
    ],
)
def test_everything_dropped_is_listed(prepared: Path, reason: str, expected: list[str]) -> None:
    found = dropped(prepared)[reason]
    assert len(found) == len(expected)
    for what, part in zip(found, expected, strict=True):
        assert part in what


def test_nothing_else_is_dropped(prepared: Path) -> None:
    assert sum(map(len, dropped(prepared).values())) == 26


def test_lists_may_be_missing(language: Path, tmp_path: Path) -> None:
    for name in ("validated", "other", "invalidated"):
        (language / f"{name}.tsv").unlink()
    prepare.prepare(str(language), tmp_path / "data", 2)
    assert dropped(tmp_path / "data")["list of clips that is missing"] == [
        "validated.tsv",
        "other.tsv",
        "invalidated.tsv",
    ]
    manifest = read_manifest(tmp_path / "data" / "pretrain_train.tsv")
    assert names(manifest)[:NUM_TRAIN] == numbered("train", NUM_TRAIN)


def test_clips_and_speakers_of_test_are_left_to_it(
    language: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (Line("test0", "ann", "A clip of test."), Line("other0", "test_speaker", "A speaker of test."))
    with (language / "train.tsv").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    prepare.prepare(str(language), tmp_path / "data", 2)
    manifests = read_all(tmp_path / "data")
    assert names(manifests["train"]) == numbered("train", NUM_TRAIN)
    assert "test0" in names(manifests["test"])
    assert not {"test0", "other0"} & set(names(manifests["pretrain_train"]))
    found = dropped(tmp_path / "data")
    assert found["train: clip that test has too"] == [clip("test0")]
    assert found["train: speaker who is in test too"] == [clip("other0")]
    assert "no speaker and no clip is in two" not in capsys.readouterr().err


def test_disjoint_splits_are_confirmed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    language = tmp_path / "xx"
    make_small(language)
    prepare.prepare(str(language), tmp_path / "data", None)
    assert "no speaker and no clip is in two of train.tsv, dev.tsv and test.tsv" in capsys.readouterr().err


# Releases


def make_small(language: Path, columns: tuple[str, ...] = COLUMNS, suffix: str = ".mp3") -> None:
    """A clip a split, in lists of these columns."""
    (language / "clips").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        write_clip(language, split, TONE)
        values = dict(zip(COLUMNS, str(Line(split, split, "Ab ba.")).split("\t"), strict=True))
        values["path"] = values["path"].removesuffix(".mp3") + suffix
        line = "\t".join(values.get(name, "") for name in columns)
        write_list(language / f"{split}.tsv", [line], columns)


@pytest.mark.parametrize(
    ("columns", "suffix"),
    [
        (("client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender", "accent"), ""),  # 1
        (("sentence", "path", "client_id", "up_votes", "locale", "segment"), ".mp3"),  # 5.0, in another order
        (tuple(name for name in COLUMNS if not name.startswith("sentence_")), ".mp3"),  # 13 to 16
        (COLUMNS, ".mp3"),
    ],
)
def test_columns_of_all_releases(tmp_path: Path, columns: tuple[str, ...], suffix: str) -> None:
    language = tmp_path / "xx"
    make_small(language, columns, suffix)
    prepare.prepare(str(language), tmp_path / "data", None)
    (utterance,) = read_manifest(tmp_path / "data" / "train.tsv")
    assert Path(utterance.path) == language / "clips" / clip("train")
    assert (utterance.text, utterance.speaker) == ("ab ba", client_id("train")[:8])
    assert utterance.language == ("en" if "locale" in columns else "xx")


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    language = tmp_path / "xx"
    make_small(language)
    content = (language / "train.tsv").read_text("utf-8").replace("Ab ba.", "Ab\rba.").replace("\n", "\r\n")
    content = content.replace(client_id("train"), f"ann\r{client_id('train')}")
    (language / "train.tsv").write_bytes(b"\xef\xbb\xbf" + content.encode())
    prepare.prepare(str(language), tmp_path / "data", None)
    (utterance,) = read_manifest(tmp_path / "data" / "train.tsv")
    assert (utterance.text, utterance.language) == ("ab ba", "en")
    assert utterance.speaker == f"ann {client_id('train')[:4]}"


# The alphabet


def test_the_alphabet_is_reported(prepared: Path) -> None:
    rows = [line.split("\t") for line in (prepared / "alphabet.tsv").read_text("utf-8").splitlines()]
    assert rows[0] == ["character", "code_point", "name", "train", "dev", "test", "use"]
    found = {row[0]: row[1:] for row in rows[1:]}
    assert found["é"] == ["U+00E9", "LATIN SMALL LETTER E WITH ACUTE", "1", "0", "1", "rare"]
    assert found["9"] == ["U+0039", "DIGIT NINE", "0", "0", "1", "unseen"]
    assert found["e"] == ["U+0065", "LATIN SMALL LETTER E", "15", "4", "5", "letter"]
    counts = [int(row[3]) for row in rows[1:]]
    assert counts == sorted(counts, reverse=True)


def test_the_letters_are_those_of_train(prepared: Path, manifests: dict[str, Manifest]) -> None:
    rows = [line.split("\t") for line in (prepared / "alphabet.tsv").read_text("utf-8").splitlines()]
    letters = {row[0] for row in rows if row[-1] == "letter"}
    assert letters == {letter for utterance in manifests["train"] for letter in utterance.text or ""} - {" "}
    assert letters >= {letter for utterance in manifests["dev"] for letter in utterance.text or ""} - {" "}


def test_what_no_model_can_write_in_test_is_said(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.prepare(str(tree), tmp_path, 2)
    said = capsys.readouterr().err
    assert f"{tmp_path / 'alphabet.tsv'}: 22 letters, rare characters: 1 (in fewer than 2 texts of train" in said
    assert (
        f"{tmp_path / 'test.tsv'}: 1 of 5 utterances have characters outside the alphabet, which count as errors: "
        "'9' (U+0039, DIGIT NINE) in 1, 'é' (U+00E9, LATIN SMALL LETTER E WITH ACUTE) in 1\n"
    ) in said


def test_a_small_corpus_has_no_rare_characters_by_default(tree: Path, tmp_path: Path) -> None:
    prepare.prepare(str(tree), tmp_path, None)
    manifest = read_manifest(tmp_path / "train.tsv")
    assert "rare" in names(manifest)
    assert "train: rare character" not in dropped(tmp_path)


@pytest.mark.parametrize(("num_texts", "expected"), [(0, 1), (499, 1), (500, 2), (4499, 9), (4500, 10), (10**6, 10)])
def test_how_rare_is_rare(num_texts: int, expected: int) -> None:
    assert alphabet.default_min_count(num_texts) == expected


@given(st.lists(st.text("abcd ", max_size=5), max_size=12), st.integers(1, 4))
def test_letters_are_in_enough_texts_and_kept_texts_have_no_others(texts: list[str], min_count: int) -> None:
    letters = alphabet.choose_letters(texts, min_count)
    counts = Counter(letter for text in texts for letter in set(text) - {" "})
    assert all(counts[letter] >= min_count for letter in letters)
    kept = [text for text in texts if alphabet.characters(text) <= letters]
    assert {letter for text in kept for letter in text} - {" "} == letters
    assert kept == [text for text in texts if all(counts[letter] >= min_count for letter in set(text) - {" "})]


# Label subsets


def test_subsets_are_nested_and_go_away_when_train_shrinks(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "SUBSET_MINUTES", {"train_10min": 0.3, "train_1h": 0.5})
    prepare.prepare(str(tree), tmp_path, 2)
    found = {name: set(names(manifest)) for name, manifest in read_all(tmp_path).items()}
    assert found["train_10min"] < found["train_1h"] < found["train"]
    seconds = sum(utterance.seconds for utterance in read_manifest(tmp_path / "train_10min.tsv"))
    assert 18 <= seconds < 18 + 4
    assert "letters do not fit" not in capsys.readouterr().err
    monkeypatch.setattr(prepare, "SUBSET_MINUTES", {"train_10min": 0.05, "train_1h": 60})
    prepare.prepare(str(tree), tmp_path, 2)
    said = capsys.readouterr().err
    assert not (tmp_path / "train_1h.tsv").exists()
    assert f"{tmp_path / 'train_1h.tsv'}: not written, train has less" in said
    assert f"{tmp_path / 'train_10min.tsv'}: " in said
    assert "of 22 letters do not fit into 0.05 minutes" in said


# Again


def test_a_second_preparation_is_the_same_and_reads_no_clip_twice(
    tree: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.prepare(str(tree), tmp_path, 2)
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.tsv")}
    read: list[str] = []

    def counted(path: str, **how: bool) -> AudioInfo:
        read.append(path)
        return audio_info(path, **how)

    monkeypatch.setattr(headers, "audio_info", counted)
    prepare.prepare(str(tree), tmp_path, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.tsv")} == first
    assert {Path(path).name for path in read} == {clip(name) for name in ("missing", "empty", "damaged")}
    assert {path.name: path.read_bytes() for path in prepared.glob("*.tsv")} == first


# Mistakes


def test_a_missing_column_is_one_error(language: Path, tmp_path: Path) -> None:
    write_list(language / "dev.tsv", ["a\tb"], ("client_id", "text"))
    expected = r"dev\.tsv:1: expected the columns client_id, path, sentence among others, found client_id, text$"
    with pytest.raises(ManifestError, match=expected):
        prepare.prepare(str(language), tmp_path / "data", None)


def test_an_empty_list_is_an_error(language: Path, tmp_path: Path) -> None:
    (language / "test.tsv").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"test\.tsv:1: expected the columns .*, found $"):
        prepare.prepare(str(language), tmp_path / "data", None)
    write_list(language / "test.tsv", [])
    with pytest.raises(ManifestError, match=r"test\.tsv: expected at least one utterance, found none$"):
        prepare.prepare(str(language), tmp_path / "data", None)
    assert (tmp_path / "data" / "dropped.tsv").is_file()


def test_wrong_folders(language: Path, tmp_path: Path) -> None:
    expected = "expected a language's folder of Common Voice with clips, train.tsv, dev.tsv, test.tsv, found "
    for stated, found in (
        ("", "nothing"),
        (str(tmp_path / "nowhere"), "none"),
        (str(language / "train.tsv"), "a file"),
        (
            str(language.parent),
            "one without clips, train.tsv, dev.tsv, test.tsv; perhaps one in it is meant: en",
        ),
        (str(language / "clips"), "one without clips, train.tsv, dev.tsv, test.tsv"),
    ):
        with pytest.raises(ManifestError) as raised:
            prepare.prepare(stated, tmp_path / "data", None)
        assert str(raised.value) == f"CORPUS={stated}: {expected}{found}"
    for split in ("train", "dev", "test"):  # what a delta release is
        (language / f"{split}.tsv").unlink()
    with pytest.raises(ManifestError, match=r"found one without train\.tsv, dev\.tsv, test\.tsv$"):
        prepare.prepare(str(language), tmp_path / "data", None)


def test_without_pyav_nothing_is_begun(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"expected PyAV .* pip install 'speechssl\[av\]'; found none$"):
        prepare.prepare(str(tree), tmp_path / "data", None)


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "²"])
def test_counts_are_whole_numbers(value: str) -> None:
    with pytest.raises(ConfigError, match=r"--min-count: expected a whole number of at least 1, found "):
        prepare.at_least_one(value)


# The stages


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"LABELS": "10h"}, "error: LABELS=10h: expected one of train 1h 10min"),
        ({"UNPACK": "yes"}, "error: UNPACK=yes: expected one of 0 1"),
        ({"MIN_COUNT": "many"}, "error: --min-count: expected a whole number of at least 1, found 'many'"),
        ({"CORPUS": ""}, "error: CORPUS=: expected a language's folder of Common Voice with "),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, settings: dict[str, str], expected: str) -> None:
    result = run_recipe("common_voice", tmp_path / "out", **({"CORPUS": "nowhere"} | settings))
    errors = [line for line in result.stderr.splitlines() if not line.startswith("== ")]
    assert (result.returncode, len(errors)) == (1, 1), result.stderr
    assert errors[0].startswith(expected)


def test_clips_are_unpacked_once_if_wished(tree: Path, tmp_path: Path) -> None:
    settings = {"CORPUS": str(tree), "MIN_COUNT": "2", "UNPACK": "1", "TO": "check"}
    (tmp_path / "an out" / "unpacked").mkdir(parents=True)
    (tmp_path / "an out" / "unpacked" / "train_1h.tsv").touch()  # of an earlier preparation, which had so much
    result = run_recipe("common_voice", tmp_path / "an out", **settings)
    assert result.returncode == 0, result.stderr
    assert "0 errors" in (tmp_path / "an out" / "check.txt").read_text("utf-8")
    unpacked = read_all(tmp_path / "an out" / "unpacked")
    assert set(unpacked) == {"pretrain_train", "pretrain_dev", "train", "dev", "test"}
    assert {utterance.sample_rate for manifest in unpacked.values() for utterance in manifest} == {16_000}
    assert f"{tmp_path / 'an out' / 'unpacked' / 'train.tsv'}: 14 utterances" in (
        tmp_path / "an out" / "check.txt"
    ).read_text("utf-8")


def test_a_given_model_takes_the_place_of_pretraining(tmp_path: Path) -> None:
    result = run_recipe("common_voice", tmp_path, INIT="another/model", FROM="pretrain", TO="pretrain")
    assert result.returncode == 0, result.stderr
    assert "not needed: INIT=another/model" in result.stderr


# Configurations


def test_pretraining_has_an_hour_an_update_on_one_to_eight_gpus() -> None:
    config = PretrainConfig.load([RECIPES / "models" / "wav2vec2_base.toml", RECIPE / "pretrain.toml"], DATA)
    assert config.trainer.microbatches * config.batches.seconds >= 3600
    assert all(config.trainer.microbatches % gpus == 0 for gpus in (1, 2, 3, 4, 6, 8))
    published = PretrainConfig.load([RECIPES / "models" / "wav2vec2_base.toml"], [*DATA, "data.license=x"])
    assert config.encoder == published.encoder
    quantizer, original = config.objective.quantizer, published.objective.quantizer
    for share in (0.25, 0.5, 0.69, 0.7, 1.0):  # the same temperature at the same share of the run
        temperatures = (
            quantizer.temperature(round(share * config.trainer.num_steps)),
            original.temperature(round(share * published.trainer.num_steps)),
        )
        assert temperatures[0] == pytest.approx(temperatures[1], rel=1e-3)
    assert quantizer.temperature(config.trainer.num_steps) == 0.5
    assert config.data.license.startswith("CC0-1.0")


@pytest.mark.parametrize("files", [["finetune.toml"], ["finetune.toml", "finetune_train.toml"]])
def test_fine_tuning_trains_the_encoder_too(files: list[str]) -> None:
    config = FinetuneConfig.load([RECIPE / file for file in files], [*DATA, "init=none"])
    assert config.head_only_steps < config.trainer.num_steps
    assert config.trainer.microbatches * config.batches.seconds == 1120
    assert config.data.license.startswith("CC0-1.0")
