"""Which commands the settings of a recipe become: each run.sh with a Python that writes down how it is called."""

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from miniature import RECIPES, clean_environment

from speechssl.train.finetune import FinetuneConfig

NAMES = ("librispeech", "common_voice", "amazon_queen", "own_data", "prompts")
MODELS = RECIPES / "models"
PROMPTS = RECIPES / "prompts"
MANIFESTS = (
    *("pretrain_train", "pretrain_dev", "train", "dev", "test", "dev_clean", "dev_other", "test_clean", "test_other"),
    *("train_5min", "train_10min", "train_1h", "train_10h", "train_100h", "train_960h"),
)
STUB = """#!/bin/sh
if [ "$1" = -P ]; then # the question of tools/bootstrap.sh: yes, here is everything
    echo "$0"
    exit
fi
printf '%s\\t' "$@" >>"$CALLS"
echo >>"$CALLS"
while [ $# -gt 0 ]; do
    if [ "$1" = --output ]; then mkdir -p "$2"; fi # of a training; that of an evaluation is in there
    shift
done
"""


class Commands:
    """What a run.sh started.

    Attributes:
        out: Where it was to write.
        calls: The arguments of Python in each command.
    """

    def __init__(self, out: Path, calls: list[list[str]]) -> None:
        self.out = out
        self.calls = calls

    def all_of(self, name: str) -> list[list[str]]:
        """The arguments of a command of speechssl, or of a program of the recipe, wherever it was called."""
        found = []
        for call in self.calls:
            position = next(number for number, part in enumerate(call) if part == "speechssl" or part.endswith(".py"))
            is_program = call[position].endswith(".py")
            if name == (Path(call[position]).name if is_program else call[position + 1]):
                found.append(call[position + (1 if is_program else 2) :])
        return found

    def one(self, name: str) -> list[str]:
        """The same of the only call."""
        (arguments,) = self.all_of(name)
        return arguments

    def files(self, stage: str) -> list[Path]:
        """The configurations of a training."""
        found = [Path(part) for part in self.one(stage) if part.endswith(".toml")]
        assert all(file.is_file() for file in found), found
        return [file.resolve() for file in found]

    def override(self, stage: str, key: str) -> str | None:
        """What a training's `--set` says of a key."""
        arguments = self.one(stage)
        values = dict(text.split("=", 1) for flag, text in pairwise(arguments) if flag == "--set")
        return values.get(key)


class Recipes:
    """Runs them."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "an output"
        python = folder / "environment" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(STUB)
        python.chmod(0o755)
        self.calls = folder / "calls"
        environment = clean_environment() | {
            "VIRTUAL_ENV": str(folder / "environment"),
            "CALLS": str(self.calls),
            "OUT": str(self.out),
        }
        self.environment = environment | {"CORPUS": str(folder / "a corpus")}
        for data in ("data", "unpacked"):  # as if it were prepared
            (self.out / data).mkdir(parents=True)
            for name in MANIFESTS:
                (self.out / data / f"{name}.tsv").touch()

    def __call__(self, recipe: str, *arguments: str, **settings: str) -> Commands:
        self.calls.write_text("")
        process = subprocess.run(
            ["bash", str(RECIPES / recipe / "run.sh"), *arguments],
            env=self.environment | {"TO": "evaluate"} | settings,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert process.returncode == 0, process.stderr
        lines = self.calls.read_text("utf-8").splitlines()
        return Commands(self.out, [line.removesuffix("\t").split("\t") for line in lines])


@pytest.fixture
def run(tmp_path: Path) -> Recipes:
    return Recipes(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "settings", "encoder"),
    [
        pytest.param("librispeech", {}, MODELS / "wav2vec2_base.toml", id="librispeech"),
        pytest.param("librispeech", {"MODEL": "large"}, MODELS / "wav2vec2_large.toml", id="librispeech large"),
        pytest.param("common_voice", {}, MODELS / "wav2vec2_base.toml", id="common_voice"),
        pytest.param("amazon_queen", {}, PROMPTS / "encoder.toml", id="amazon_queen"),
        pytest.param("amazon_queen", {"SIZE": "cpu"}, PROMPTS / "encoder.toml", id="amazon_queen cpu"),
        pytest.param(
            "amazon_queen", {"SIZE": "gpu"}, RECIPES / "amazon_queen" / "encoder_gpu.toml", id="amazon_queen gpu"
        ),
        pytest.param("own_data", {}, RECIPES / "own_data" / "encoder_small.toml", id="own_data"),
        pytest.param("own_data", {"SIZE": "base"}, MODELS / "wav2vec2_base.toml", id="own_data base"),
        pytest.param("prompts", {}, PROMPTS / "encoder.toml", id="prompts"),
    ],
)
def test_the_encoder_is_the_recipes_or_the_given_one(
    recipe: str, settings: dict[str, str], encoder: Path, run: Recipes
) -> None:
    own = run(recipe, **settings).files("pretrain")
    assert own[0] == encoder
    other = Path(__file__).with_name("tiny_encoder.toml")
    assert run(recipe, **settings, ENCODER=str(other)).files("pretrain") == [other, *own[1:]]


@pytest.mark.parametrize("recipe", NAMES)
def test_what_follows_goes_to_both_trainings_last(recipe: str, run: Recipes) -> None:
    ran = run(recipe, "--set", "trainer.num_steps=7")
    for stage in ("pretrain", "finetune"):
        assert ran.one(stage)[-2:] == ["--set", "trainer.num_steps=7"]
    assert ran.override("finetune", "init") == str(ran.out / "pretrain")


@pytest.mark.parametrize("recipe", NAMES)
def test_gpus_and_nodes_become_processes_of_the_trainings_alone(recipe: str, run: Recipes) -> None:
    alone = run(recipe).calls
    single = ["-m", "speechssl", "pretrain"]
    assert [call[:3] for call in alone].count(single) == 1

    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "0"]
    expected = [[*several, *call] if call[2] in ("pretrain", "finetune") else call for call in alone]
    assert run(recipe, GPUS="2").calls == expected

    (pretrain,) = (call for call in alone if call[:3] == single)
    ran = run(recipe, FROM="pretrain", TO="pretrain", GPUS="2")
    assert ran.calls == [[*several, *pretrain]]
    ran = run(recipe, FROM="pretrain", TO="pretrain", GPUS="4", NODES="2", HEAD="h", RESTARTS="3")
    nodes = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "4", "--max-restarts", "3"]
    nodes += ["--rdzv-backend", "c10d"]
    nodes += ["--rdzv-id", f"{ran.out}:pretrain", "--rdzv-endpoint", "h"]
    assert ran.calls == [[*nodes, *pretrain]]


@pytest.mark.parametrize("recipe", ["own_data", "prompts"])
def test_a_language_model_learns_from_train_is_tuned_on_dev_and_scored_on_test(recipe: str, run: Recipes) -> None:
    ran = run(recipe, TO="language_model", TRIALS="7")
    finetuned, data = str(ran.out / "finetune"), ran.out / "data"
    texts, model, settings = str(data / "train.tsv"), f"{finetuned}/lm.arpa", f"{finetuned}/lm.toml"
    options = ["--normalize"] if recipe == "own_data" else []
    assert ran.one("ngram") == [texts, *options, "--output", model]
    tuned = [finetuned, str(data / "dev.tsv"), "--lm", model, "--output", settings, "--trials", "7"]
    assert ran.one("tune-lm") == tuned
    calibrated = [finetuned, str(data / "dev.tsv")]
    assert ran.all_of("calibrate") == [calibrated, [*calibrated, "--lm", settings]]
    order = [call[call.index("speechssl") + 1] for call in ran.calls if "speechssl" in call]
    assert order[-5:] == ["ngram", "tune-lm", "calibrate", "calibrate", "evaluate"]
    scored = [finetuned, str(data / "test.tsv")]
    assert ran.all_of("evaluate") == [
        [*scored, "--output", f"{finetuned}/scores.json"],
        [*scored, "--lm", settings, "--output", f"{finetuned}/scores_lm.json"],
    ]


def test_librispeech_models_and_labels(run: Recipes) -> None:
    finetune = RECIPES / "librispeech" / "finetune"
    for settings, model, labels in (
        ({}, "base", "100h"),
        ({"LABELS": "10min"}, "base", "10min"),
        ({"MODEL": "large"}, "large", "100h"),
        ({"MODEL": "large", "LABELS": "960h"}, "large", "960h"),
    ):
        ran = run("librispeech", **settings)
        assert ran.files("finetune") == [finetune / f"{model}.toml", finetune / f"{model}_{labels}.toml"]
        assert ran.override("finetune", "data.train") == str(ran.out / "data" / f"train_{labels}.tsv")
        assert str(ran.out / "data" / f"train_{labels}.tsv") in ran.all_of("check")[1]
        assert ran.one("evaluate")[0] == str(ran.out / f"finetune_{labels}")


def test_librispeech_corpora_and_mirrors(run: Recipes, tmp_path: Path) -> None:
    corpus = str(tmp_path / "a corpus")
    ran = run("librispeech")
    assert ran.one("prepare.py") == [corpus, str(ran.out / "data")]
    assert ran.all_of("download.py") == []
    ran = run("librispeech", LIBRILIGHT="libri light")
    assert ran.one("prepare.py") == [corpus, str(ran.out / "data"), "--librilight", "libri light"]
    ran = run("librispeech", DOWNLOAD="train-clean-100 dev-other")
    assert ran.one("download.py") == [corpus, "train-clean-100", "dev-other"]
    ran = run("librispeech", DOWNLOAD="all", MIRROR="https://a", LIBRILIGHT_MIRROR="https://b")
    assert ran.one("download.py") == [corpus, "all", "--mirror", "https://a", "--librilight-mirror", "https://b"]


def test_own_data_preparation(run: Recipes, tmp_path: Path) -> None:
    corpus = str(tmp_path / "a corpus")
    ran = run("own_data")
    places = [corpus, str(ran.out / "data")]
    assert ran.one("prepare.py") == [*places, "--texts", "normalized"]
    assert ran.override("pretrain", "data.license") == ran.override("finetune", "data.license") == "unknown"
    ran = run("own_data", TEXTS="asis", LABELS="my labels.csv", KEEP="exp/mine/data", LICENSE="CC-BY-4.0, ours")
    assert ran.one("prepare.py") == [*places, "--texts", "asis", "--labels", "my labels.csv", "--keep", "exp/mine/data"]
    assert ran.override("pretrain", "data.license") == ran.override("finetune", "data.license") == "CC-BY-4.0, ours"
    ran = run("own_data", LANGUAGE="az-Latn", TIER="tx, said", TO="language_model")
    chosen = ["--tiers", "tx, said", "--language", "az-Latn"]
    assert ran.one("prepare.py") == [*places, "--texts", "normalized", *chosen]
    assert ran.one("ngram")[1:4] == ["--normalize", "--language", "az-Latn"]
    ran = run("own_data", LANGUAGE="en_US:en", TO="language_model")  # as many systems set it
    assert ran.one("prepare.py") == [*places, "--texts", "normalized"]
    assert ran.one("ngram")[1:3] == ["--normalize", "--output"]


def test_own_data_sizes(run: Recipes) -> None:
    own = RECIPES / "own_data"
    for settings, pretrain, finetune in (
        (
            {},
            [PROMPTS / "pretrain.toml", own / "small_pretrain.toml"],
            [PROMPTS / "finetune.toml", own / "small_finetune.toml"],
        ),
        ({"SIZE": "base"}, [own / "base_pretrain.toml"], [own / "base_finetune.toml"]),
    ):
        ran = run("own_data", **settings)
        assert ran.files("pretrain")[1:] == pretrain
        assert ran.files("finetune") == finetune


@pytest.mark.parametrize("recipe", ["own_data", "common_voice"])
def test_unpacked_recordings_are_what_is_checked_trained_on_and_scored(recipe: str, run: Recipes) -> None:
    for settings, data in (({}, "data"), ({"UNPACK": "1"}, "unpacked")):
        ran = run(recipe, **settings)
        folder = ran.out / data
        for stage, train, dev in (("pretrain", "pretrain_train", "pretrain_dev"), ("finetune", "train", "dev")):
            assert ran.override(stage, "data.train") == str(folder / f"{train}.tsv")
            assert ran.override(stage, "data.dev") == str(folder / f"{dev}.tsv")
        assert ran.one("evaluate")[1] == str(folder / "test.tsv")
        assert all(part.startswith(f"{folder}/") for call in ran.all_of("check") for part in call)
        if data == "data":
            assert ran.all_of("unpack") == []
            continue
        *manifests, flag, output = ran.one("unpack")
        assert [flag, output] == ["--output", str(folder)]
        names = {"pretrain_train", "pretrain_dev", "train", "dev", "test"}
        names |= {"train_1h", "train_10min"} if recipe == "common_voice" else set()
        assert set(manifests) == {str(ran.out / "data" / f"{name}.tsv") for name in names}


@pytest.mark.parametrize("recipe", ["own_data", "common_voice", "librispeech", "prompts"])
def test_a_given_model_stands_in_for_pretraining(recipe: str, run: Recipes) -> None:
    ran = run(recipe, INIT="exp/another model")
    assert ran.all_of("pretrain") == []
    assert ran.override("finetune", "init") == "exp/another model"


def test_common_voice_labels(run: Recipes) -> None:
    recipe = RECIPES / "common_voice"
    for labels, manifest, files in (
        ("train", "train", ["finetune", "finetune_train"]),
        ("1h", "train_1h", ["finetune"]),
        ("10min", "train_10min", ["finetune"]),
    ):
        ran = run("common_voice", LABELS=labels)
        assert ran.files("finetune") == [recipe / f"{file}.toml" for file in files]
        assert ran.override("finetune", "data.train") == str(ran.out / "data" / f"{manifest}.tsv")
        assert ran.one("evaluate")[0] == str(ran.out / f"finetune_{labels}")


def test_common_voice_alphabet(run: Recipes, tmp_path: Path) -> None:
    ran = run("common_voice")
    places = [str(tmp_path / "a corpus"), str(ran.out / "data")]
    assert ran.one("prepare.py") == places
    assert run("common_voice", MIN_COUNT="3").one("prepare.py") == [*places, "--min-count", "3"]


@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_amazon_queen_sizes_and_labels(size: str, run: Recipes) -> None:
    recipe = RECIPES / "amazon_queen"
    for labels, suffix in (("all", ""), ("1h", "_1h"), ("10min", "_10min")):
        ran = run("amazon_queen", SIZE=size, LABELS=labels)
        assert ran.files("pretrain")[1:] == [PROMPTS / "pretrain.toml", recipe / f"pretrain_{size}.toml"]
        assert ran.files("finetune") == [PROMPTS / "finetune.toml", recipe / f"finetune_{size}.toml"]
        assert ran.override("finetune", "data.train") == str(ran.out / "data" / f"train{suffix}.tsv")
        assert ran.one("evaluate")[0] == str(ran.out / f"finetune{suffix}")


def test_amazon_queen_from_scratch(run: Recipes) -> None:
    for settings, encoder in (
        ({"SIZE": "cpu"}, PROMPTS / "encoder.toml"),
        ({"SIZE": "gpu"}, RECIPES / "amazon_queen" / "encoder_gpu.toml"),
        ({"ENCODER": str(MODELS / "wav2vec2_base.toml")}, MODELS / "wav2vec2_base.toml"),
    ):
        ran = run("amazon_queen", LABELS="1h", FROM_SCRATCH="1", **settings)
        assert ran.all_of("pretrain") == []
        assert ran.override("finetune", "init") is None
        assert encoder in ran.files("finetune")
        assert ran.one("evaluate")[0] == str(ran.out / "scratch_1h")


def test_prompts_labels_and_variant(run: Recipes) -> None:
    for labels in ("train", "train_10min", "train_5min"):
        ran = run("prompts", LABELS=labels)
        assert ran.override("finetune", "data.train") == str(ran.out / "data" / f"{labels}.tsv")
    variant = PROMPTS / "objectives" / "wav2vec2.toml"
    ran = run("prompts", VARIANT=str(variant))
    assert ran.files("pretrain") == [PROMPTS / "encoder.toml", PROMPTS / "pretrain.toml", variant]
    assert variant not in ran.files("finetune")


@pytest.mark.parametrize(
    ("recipe", "settings", "unlabeled", "labeled"),
    [
        pytest.param("own_data", {"TEXTS": "asis", "LICENSE": "CC0"}, "pretrain_train", "train", id="own_data"),
        pytest.param("prompts", {"LABELS": "train_5min", "TO": "self_train"}, "train", "train_5min", id="prompts"),
        pytest.param("amazon_queen", {"LABELS": "1h"}, "pretrain_train", "train_1h", id="amazon_queen"),
    ],
)
def test_each_round_labels_everything_and_starts_from_the_pretrained_encoder(
    recipe: str, settings: dict[str, str], unlabeled: str, labeled: str, run: Recipes
) -> None:
    assert run(recipe, **{**settings, "TO": "self_train"}).all_of("label") == []
    ran = run(recipe, "--set", "trainer.num_steps=7", **{**settings, "TO": "self_train"}, ROUNDS="2", TRIALS="7")
    data, (first, *_) = ran.out / "data", ran.all_of("evaluate")
    runs = [first[0], f"{first[0]}_round1", f"{first[0]}_round2"]
    manifests = {name: str(data / f"{name}.tsv") for name in (unlabeled, labeled, "dev", "test")}
    assert ran.all_of("label") == [
        [
            *(one, manifests[unlabeled], "--labeled", manifests[labeled]),
            *("--lm", f"{one}/lm.toml", "--output", f"{other}/labels.tsv"),
        ]
        for one, other in pairwise(runs)
    ]
    plain, *rounds = ran.all_of("finetune")
    assert manifests[labeled] in " ".join(plain)
    for call, folder in zip(rounds, runs[1:], strict=True):
        expected = " ".join(plain).replace(manifests[labeled], f"{folder}/labels.tsv")
        assert " ".join(call) == expected.replace(f"--output {runs[0]} ", f"--output {folder} ")
        assert f"init={ran.out}/pretrain" in call
    for folder in runs:
        assert [call for call in ran.all_of("ngram") if call[0] == manifests[labeled] and folder in call[-1]]
        assert [folder, manifests["dev"]] in [call[:2] for call in ran.all_of("tune-lm")]
        assert [folder, manifests["dev"]] in ran.all_of("calibrate")
        assert [call[:2] for call in ran.all_of("evaluate")].count([folder, manifests["test"]]) == 2
    assert len(ran.all_of("tune-lm")) == 3  # of which the first may be of the stage before
    again = run(recipe, "--set", "trainer.num_steps=7", **{**settings, "TO": "self_train"}, ROUNDS="2", TRIALS="7")
    assert len(again.all_of("tune-lm")) == (1 if recipe != "amazon_queen" else 0)  # the stage's own
    assert again.all_of("label") == ran.all_of("label")


def test_prompts_have_nothing_to_label_if_all_is_labeled(run: Recipes) -> None:
    with pytest.raises(AssertionError, match="error: ROUNDS=1: expected LABELS=train_10min or train_5min, found train"):
        run("prompts", ROUNDS="1")


def test_prompts_unlabeled_speech_in_fine_tuning(run: Recipes) -> None:
    assert run("prompts").override("finetune", "data.unlabeled") is None
    tuning = PROMPTS / "joint.toml"
    for name, section in {"joint": "joint", "momentum": "pseudo_labels"}.items():
        files = [PROMPTS / "finetune.toml", PROMPTS / f"{name}.toml"]
        given = [f"{key}=x" for key in ("init", "data.train", "data.dev", "data.unlabeled")]
        assert getattr(FinetuneConfig.load(files, given), section) is not None
    ran = run("prompts", TUNING=str(tuning))
    assert ran.files("finetune") == [PROMPTS / "finetune.toml", tuning]
    assert ran.override("finetune", "data.unlabeled") == str(ran.out / "data" / "pretrain_train.tsv")
    assert tuning not in ran.files("pretrain")
    assert ran.override("pretrain", "data.unlabeled") is None
    ran = run("prompts", TUNING=str(tuning), UNLABELED="train")
    assert ran.override("finetune", "data.unlabeled") == str(ran.out / "data" / "train.tsv")
