"""The recipe amazon_queen: from the game's file to audio and manifests, and through every stage."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import miniature_amazon_queen as miniature
import numpy as np
import pytest
import soundfile
import torch
from miniature import TINY_ENCODER, recipe_modules, run_recipe, set_all
from warm_python import warm_python

from speechssl.data.corpus import Preparation
from speechssl.data.manifest import Manifest, read_manifest, read_utterance
from speechssl.model.encoder import SpeechEncoder
from speechssl.train.finetune import FinetuneConfig
from speechssl.train.pretrain import PretrainConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "amazon_queen"
SPLITS = ("train", "train_10min", "train_1h", "dev", "test", "pretrain_train", "pretrain_dev")
TINY = set_all("trainer.num_steps=2", "trainer.microbatches=2", "data.num_workers=0", "batches.seconds=8")

texts, program = recipe_modules("amazon_queen", "texts", "prepare")


def prepare(place: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [warm_python(), str(RECIPE / "prepare.py"), str(place), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def read_dropped(folder: Path) -> dict[str, list[str]]:
    dropped: dict[str, list[str]] = {}
    for line in (folder / "dropped.tsv").read_text("utf-8").splitlines()[1:]:
        reason, what = line.split("\t")
        dropped.setdefault(reason, []).append(what)
    return dropped


def spans(manifest: Manifest) -> list[tuple[Path, int, int]]:
    return [(item.path, item.start, item.start + item.num_samples) for item in manifest]


@pytest.fixture(scope="module")
def game() -> miniature.Game:
    return miniature.make_game()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "with space"
    miniature.make_tree(folder)
    return folder


@pytest.fixture(scope="module")
def data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "with space"
    result = prepare(corpus, folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def manifests(data: Path) -> dict[str, Manifest]:
    return {name: read_manifest(data / f"{name}.tsv") for name in SPLITS}


def test_every_label_is_what_is_heard(manifests: dict[str, Manifest], game: miniature.Game) -> None:
    expected = {prompt.text: (character, prompt) for character, prompt in game.said.values()}
    found = {item.text: item for name in ("train", "dev", "test") for item in manifests[name]}
    assert set(expected) == set(found) - {"café mister hmm"}
    for text, (character, prompt) in expected.items():
        item = found[text]
        assert (item.speaker, item.language, item.sample_rate) == (character, "en", 16_000)
        heard = read_utterance(item)
        # The codec adds silence around a clip and takes away what is above 5.5 kHz.
        assert len(prompt.samples) <= len(heard) <= len(prompt.samples) + 0.2 * 16_000
        likeness = np.correlate(heard, prompt.samples, "valid").max()
        assert likeness > 0.9 * np.linalg.norm(heard) * np.linalg.norm(prompt.samples), text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("  It's \"Trader Bob's\"... OKAY?! ", "it's trader bob's okay"),
        ("Super Soldier Treatment^_.", "super soldier treatment"),
        ("@@ She's beautiful! @@", "she's beautiful"),
        ("Dr. Who vs. Mr. C.I.A., with an ID.", "doctor who versus mister c i a with an i d"),
        ("Hmmmm... ummm, errrr, tsk tsk", "hmm um er tsk tsk"),
        ("Try the caf\u00e9, th\u00fcr", "try the caf\u00e9 th\u00fcr"),
        ("C ", "c"),
        ("2B or not 2B", None),
        ("RESTART (Y/N)?", None),
        ("&#$!!", None),
        ("<ahem>", None),
        ("Mffrlt!?", None),
        ("I'm soooo scared", None),
        ("...", None),
    ],
)
def test_texts_are_what_is_spoken(line: str, text: str | None) -> None:
    spoken, reason = texts.spoken_text(line)
    assert spoken == text
    assert bool(reason) == (text is None)


@pytest.mark.parametrize(("seconds", "is_kept"), [(0.5, False), (0.6, True), (4.8, True), (4.9, False)])
def test_ten_letters_last_from_ten_eighteenths_to_ten_thirds_of_a_second_and_a_pause(
    seconds: float, is_kept: bool, tmp_path: Path
) -> None:
    recording = program.Recording("a", "Hello there", "JOE", tmp_path / "joe.flac", 0, round(16_000 * seconds))
    assert bool(program._labeled([recording], Preparation(tmp_path))) == is_kept


def test_characters_are_in_one_part_only(manifests: dict[str, Manifest]) -> None:
    speakers = {name: {item.speaker for item in manifest} for name, manifest in manifests.items()}
    assert speakers["test"] == miniature.TEST
    assert speakers["dev"] == speakers["pretrain_dev"] == miniature.DEV
    assert speakers["train"] == speakers["pretrain_train"] == {"JOE", "BOB", "SPARKY", "TAM"}
    assert not {item.path for item in manifests["test"]} & {item.path for item in manifests["pretrain_train"]}


def test_subsets_are_nested(manifests: dict[str, Manifest]) -> None:
    small, large, all_ = (set(manifests[name]) for name in ("train_10min", "train_1h", "train"))
    assert small <= large <= all_


def test_pieces_cover_all_speech_once_in_up_to_8_s(manifests: dict[str, Manifest]) -> None:
    for part, manifest in (("train", manifests["pretrain_train"]), ("dev", manifests["pretrain_dev"])):
        pieces = sorted(spans(manifest))
        for path in {path for path, _, _ in pieces}:
            ends = [0, *(end for name, _, end in pieces if name == path)]
            assert [start for name, start, _ in pieces if name == path] == ends[:-1]
            assert ends[-1] == soundfile.info(path).frames
        assert all(item.text is None and item.seconds <= 8 for item in manifest)
        inside = [
            any(p == path and s <= start and end <= e for p, s, e in pieces)
            for path, start, end in spans(manifests[part])
        ]
        assert all(inside)
    assert any(item.seconds > 4 for item in manifests["pretrain_train"])


def test_what_is_left_out_is_named(data: Path) -> None:
    dropped = read_dropped(data)
    clips = {reason: [what.split(": ")[0].split(" is ")[0] for what in whats] for reason, whats in dropped.items()}
    assert clips.pop("dialogue that cannot be read")
    assert clips == {
        "recording without a line: a sound effect or an unused take": ["101SSSSS", "MIK_0019"],
        "recording of an animal's noises": ["140001P1"],
        "recording that is there before": ["CAGAI011"],
        "recording of an unknown character": ["CTEST051", "CTEST061"],
        "recording that cannot be decoded": ["350001P1", "350002P1"],
        "text, not audio: digits": ["570002P1"],
        "text, not audio: a sign or a noise in brackets": ["570003P1", "570004P1"],
        "text, not audio: a noise that no letters spell": ["570005P1", "570006P1"],
        "text, not audio: too few letters for its duration": ["570007P1"],
        "text, not audio: too many letters for its duration": ["570008P1"],
    }
    assert [what.split("queen.1c: ")[1].split(":")[0] for what in dropped["dialogue that cannot be read"]] == [
        "MAN2.DOG",
        "CBAD.CUT",
    ]


def test_preparing_again_changes_nothing(corpus: Path, data: Path, tmp_path: Path) -> None:
    names = [*(f"{name}.tsv" for name in SPLITS), "headers.tsv", "dropped.tsv", "audio/joe.flac"]
    before = [(data / name).read_bytes() for name in names]
    queen = next(corpus.rglob("queen.1c"))
    assert prepare(queen, data).returncode == 0
    assert [(data / name).read_bytes() for name in names] == before
    assert sorted(path.suffix for path in (data / "audio").iterdir()) == [".flac"] * 11
    assert prepare(corpus, tmp_path).returncode == 0
    here, there = ((folder / "train.tsv").read_text("utf-8").split("\n", 1)[1] for folder in (data, tmp_path))
    assert here == there


def test_an_output_folder_behind_a_link(corpus: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    result = prepare(corpus, tmp_path / "linked" / "q")
    assert result.returncode == 0, result.stderr
    for name in SPLITS:
        here, there = ((folder / f"{name}.tsv").read_text("utf-8") for folder in (tmp_path / "disk" / "q", data))
        assert here.split("\n", 1)[1] == there.split("\n", 1)[1]
        assert Path(read_manifest(tmp_path / "disk" / "q" / f"{name}.tsv")[0].path).is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"RIFF and more", "expected a file that begins with b'QTBL', found b'RIFF'"),
        (b"QTBLCEM10", "expected a table of entries, found 9 bytes: cut off"),
        (None, "the file is cut off"),
    ],
)
def test_a_file_that_is_not_the_games_is_refused(
    tmp_path: Path, corpus: Path, content: bytes | None, message: str
) -> None:
    queen = tmp_path / "queen.1c"
    queen.write_bytes(next(corpus.rglob("queen.1c")).read_bytes()[:-10] if content is None else content)
    result = prepare(queen, tmp_path / "data")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {queen}: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_character_cannot_choose_a_place_outside_the_folder(tmp_path: Path) -> None:
    game = miniature.make_game()
    game.entries["../BOB1.DOG"] = game.entries.pop("BOB1.DOG")
    game.write(tmp_path / "queen.1c")
    result = prepare(tmp_path / "queen.1c", tmp_path / "data")
    expected = f"expected a name inside {tmp_path / 'data' / 'audio'}, found '../bob.flac'"
    assert result.stderr == f"error: {tmp_path / 'queen.1c'}: '../BOB': {expected}\n"
    assert not list(tmp_path.rglob("*.flac"))


def refused(*arguments: str, **settings: str) -> str:
    result = run_recipe("amazon_queen", Path(settings.pop("out")), *arguments, **settings)
    assert result.returncode == 1
    return result.stderr.splitlines()[-1]


def test_wrong_settings_are_refused_in_one_line(tmp_path: Path, corpus: Path) -> None:
    out, empty = str(tmp_path / "out"), tmp_path / "empty"
    empty.mkdir()
    expected = "expected queen.1c or a folder with it, found none"
    assert refused(out=out, CORPUS=str(empty)) == f"error: CORPUS={empty}: {expected}"
    assert refused(out=out, CORPUS="nowhere") == f"error: CORPUS=nowhere: {expected}"
    assert refused(out=out, CORPUS=str(corpus), SIZE="big") == "error: SIZE=big: expected one of cpu gpu"
    assert refused(out=out, CORPUS=str(corpus), LABELS="2h") == "error: LABELS=2h: expected one of all 1h 10min"
    assert refused(out=out, FROM_SCRATCH="yes") == "error: FROM_SCRATCH=yes: expected one of 0 1"


def fake_tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n", "utf-8")
    (folder / name).chmod(0o755)


def test_the_package_is_fetched_and_unpacked_once(tmp_path: Path, corpus: Path) -> None:
    tools, out = tmp_path / "tools", tmp_path / "with space"
    fake_tool(tools, "apt-get", f'echo "$*" >>"{tmp_path}/calls"; touch "$2_1.0.0-9_all.deb"')
    fake_tool(tools, "dpkg-deb", f'[[ $1 == -x && -f $2 ]] && cp -r "{corpus}" "$3"')
    settings = {"PATH": f"{tools}:{os.environ['PATH']}"}
    for last in ("prepare", "fetch"):
        result = run_recipe("amazon_queen", out, **settings, TO=last)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "calls").read_text("utf-8") == "download flight-of-the-amazon-queen\n"
    assert (out / "data" / "test.tsv").is_file()

    (package := tmp_path / "a package.deb").touch()
    result = run_recipe("amazon_queen", tmp_path / "other", CORPUS=str(package), **settings, TO="fetch")
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "other" / "package").rglob("queen.1c"))


def test_a_package_that_cannot_be_fetched_is_one_line(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    fake_tool(tools, "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    fake_tool(tools, "dpkg-deb", "exit 1")
    path = f"{tools}:{os.environ['PATH']}"
    expected = (
        "apt-get could not download flight-of-the-amazon-queen: try 'apt-get update' first, or set CORPUS to queen.1c"
    )
    assert refused(out=str(tmp_path / "out"), PATH=path) == f"error: {expected}"
    (package := tmp_path / "bad.deb").touch()
    expected = f"error: {package}: expected a Debian package"
    assert refused(out=str(tmp_path / "out"), PATH=path, CORPUS=str(package)) == expected


@pytest.fixture
def tiny(corpus: Path) -> dict[str, str]:
    return {"CORPUS": str(corpus), "ENCODER": str(TINY_ENCODER), "LABELS": "10min"}


def described(model: Path) -> dict:
    return json.loads((model / "best" / "config.json").read_text("utf-8"))


def test_fresh_weights_are_fine_tuned_without_pretraining(tmp_path: Path, data: Path, tiny: dict[str, str]) -> None:
    out = tmp_path / "with space"
    shutil.copytree(data, out / "data")
    result = run_recipe("amazon_queen", out, *TINY, **tiny, FROM_SCRATCH="1", FROM="pretrain", TO="finetune")
    assert result.returncode == 0, result.stderr
    assert "left out: FROM_SCRATCH=1" in result.stderr
    description = described(out / "scratch_10min")
    assert [data["stage"] for data in description["training_data"]] == ["finetune"]
    assert description["encoder"]["context"]["model_dim"] == 32


def test_every_stage_runs_at_the_gpus_size(tmp_path: Path, tiny: dict[str, str]) -> None:
    out = tmp_path / "with space"
    result = run_recipe("amazon_queen", out, *TINY, **tiny, SIZE="gpu")
    assert result.returncode == 0, result.stderr
    scores = json.loads((out / "finetune_10min" / "scores.json").read_text("utf-8"))
    assert scores["evaluations"][0]["num_utterances"] == 10
    training_data = described(out / "finetune_10min")["training_data"]
    assert [data["stage"] for data in training_data] == ["pretrain", "finetune"]
    assert all("freeware" in data["license"] for data in training_data)


@pytest.mark.parametrize(("size", "num_parameters"), [("cpu", 918_416), ("gpu", 16_527_872)])
def test_encoders_have_the_stated_sizes(size: str, num_parameters: int) -> None:
    prompts, data = RECIPE.parent / "prompts", ["data.train=none", "data.dev=none"]
    files = [prompts / "encoder.toml" if size == "cpu" else RECIPE / "encoder_gpu.toml"]
    config = PretrainConfig.load([*files, prompts / "pretrain.toml", RECIPE / f"pretrain_{size}.toml"], data)
    with torch.device("meta"):
        encoder = SpeechEncoder(config.encoder)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == num_parameters
    finetuning = FinetuneConfig.load([*files, prompts / "finetune.toml", RECIPE / f"finetune_{size}.toml"], data)
    assert "freeware" in config.data.license
    assert config.data.license == finetuning.data.license
