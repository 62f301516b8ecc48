"""The page that compares objectives, from runs whose numbers are made up."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from miniature import RECIPES, recipe_modules

from speechssl.errors import ConfigError
from speechssl.train.pretrain import PretrainConfig

RECIPE = RECIPES / "prompts"
budget, runs, search, objectives = recipe_modules("prompts", "budget", "runs", "search", "objectives")
DATA = ("data.train=none", "data.dev=none", "data.license=none")


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def write_finetuning(folder: Path, errors: list[int], dev: list[float], seconds: int = 200) -> None:
    """Edits of 100 characters in each utterance, and the dev CER every 50 updates."""
    counts = [{"substitutions": n, "deletions": 0, "insertions": 0, "reference_length": 100} for n in errors]
    rate = sum(errors) / 100 / len(errors)
    evaluation = {
        "manifest_sha256": "abc",
        "cer": {"value": rate, "low": rate - 0.03, "high": rate + 0.03},
        "utterances": [{"words": count, "characters": count} for count in counts],
    }
    write(folder / "scores.json", {"evaluations": [evaluation]})
    lines = [{"step": 50 * number, "split": "dev", "cer": cer} for number, cer in enumerate(dev, 1)]
    write(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write(folder / "seconds", f"{seconds}\n")
    write(folder / "finished", "")


def write_pretraining(folder: Path, name: str, letters: list[float]) -> None:
    files = [RECIPE / "encoder.toml", RECIPE / "pretrain.toml"]
    files += [RECIPE / "objectives" / f"{name}.toml"] if name != "masked_prediction" else []
    config = PretrainConfig.load(files, [*DATA, "trainer.num_steps=1234"]).to_dict()
    write(folder / "pretrain" / "run.json", {"config": config})
    lines = [{"step": 1234, "split": split, "loss": 1.0, "code_perplexity": 57.4} for split in ("train", "dev")]
    write(folder / "pretrain" / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write(folder / "pretrain" / "seconds", "100\n")
    write(folder / "pretrain" / "finished", "")
    write(folder / "probes.json", {"rows": [{"features": "x", "layers": layers(letters)}]})


def layers(letters: list[float]) -> list[dict[str, float]]:
    return [
        {"letters": share, "abx": 0.8 - share, "language_one_voice": 0.9, "voice_new_language": 0.5 + share / 4}
        for share in letters
    ]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two objectives, one of them with two seeds, a third that failed, and scratch at two rates."""
    out = tmp_path / "out"
    for seed, errors in ((0, [30, 40, 20]), (1, [32, 40, 24])):
        write_pretraining(out / f"masked_prediction_{seed}", "masked_prediction", [0.4, 0.5, 0.55, 0.53])
        write_finetuning(out / f"masked_prediction_{seed}" / "finetune_train", errors, [0.9, 0.5, 0.3])
    write_pretraining(out / "wav2vec_0", "wav2vec", [0.3, 0.2])
    write_finetuning(out / "wav2vec_0" / "finetune_train", [70, 60, 80], [0.99, 0.9, 0.7], seconds=600)
    write_finetuning(out / "scratch_0" / "train_5e-3", [45, 45, 45], [0.95, 0.7, 0.4])
    write_finetuning(out / "scratch_0" / "train_1e-2", [50, 50, 50], [0.95, 0.7, 0.5])
    write_finetuning(out / "scratch_0" / "train_5min_1e-2", [80, 80, 80], [0.95, 0.9, 0.8])
    write(out / "wav2vec2_0" / "failed", "error: pretrain: collapsed\n")
    probed = {"rows": [{"features": name, "layers": layers([0.35])} for name in ("log-mel", "fresh weights", "it")]}
    letters = {"manifest": "data/train.tsv", "test_frames": 9, "train_frames": 40, "chance": 0.2}
    chances = {"language_one_voice": 0.5, "voice_new_language": 0.25}
    probed["letters"] = letters | {"abx_pairs": 6, "abx_triples": 300}
    probed["voices"] = {"utterances": 500, "chance": chances}
    write(out / "baselines.json", probed)
    write(
        out / "costs.tsv",
        "objective\tupdate_ratio\tprepare_updates\tgflop_per_second\tpeak_mib\nwav2vec\t3.7\t3\t2.1\t1107\n",
    )
    return out


def rows(page: str, title: str) -> dict[str, list[str]]:
    """The table of a section, by the first cell."""
    section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_an_objective_whose_name_begins_as_others_do_has_a_row(out: Path, tmp_path: Path) -> None:
    for other in "abcdef":  # whatever the order in which folders are listed
        (out / f"hubert_{other}_0").mkdir()
    for name in ("hubert", "hubert_second"):
        write_pretraining(out / f"{name}_0", name, [0.3, 0.4])
    objectives.write_page(out, tmp_path / "page.md", 0)
    assert {"hubert", "hubert_second"} <= rows((tmp_path / "page.md").read_text("utf-8"), "What the layers know").keys()


def test_the_page(out: Path, tmp_path: Path) -> None:
    page = tmp_path / "page" / "OBJECTIVES.md"
    objectives.write_page(out, page, 0)
    text = page.read_text("utf-8")
    found = rows(text, "Errors")
    assert [*found] == ["objective", "---", "masked_prediction", "scratch", "wav2vec"]  # by the error
    assert found["masked_prediction"][:5] == ["the same", "1234", "", "", "31.0 (30.0, 32.0)"]
    assert found["masked_prediction"][5].startswith("0.69 [")
    assert found["scratch"] == ["the same", "", "80.0 [77.0, 83.0]", "", "45.0 [42.0, 48.0]", ""]
    assert found["wav2vec"][0] == "a frame every 10 ms, context `causal`"
    assert "5e-3 on `train`" in text
    known = rows(text, "What the layers know")
    assert [*known][2:] == ["masked_prediction", "wav2vec", "log-mel", "fresh weights"]
    assert known["masked_prediction"][:2] == ["55.0 (2)", "25.0 (2)"]
    assert len(known["features"]) == 4  # what no row has is no column
    assert "finetune.toml) for 150 updates" in text
    links = re.findall(r"\]\((.*?)\)", text)
    assert len(links) == 6
    assert all((page.parent / link).exists() for link in links)
    assert "in a new language" in text
    assert rows(text, "Costs")["wav2vec"] == ["3.70", "3", "2.10", "1107", "code perplexity 57"]
    assert "* wav2vec2_0: error: pretrain: collapsed" in text
    assert "## Search" not in text
    write(out / "search" / "trials.md", "| objective | settings |\n|---|---|\n| apc | none |\n")
    objectives.write_page(out, page, 0)
    assert rows(page.read_text("utf-8"), "Search")["apc"] == ["none"]
    for name in ("layers", "errors"):
        assert f"(curves/objectives_{name}.svg)" in text
        assert "<svg" in (page.parent / "curves" / f"objectives_{name}.svg").read_text("utf-8")


def test_the_page_of_a_corpus_of_one_language(out: Path, tmp_path: Path) -> None:
    write(out / "masked_prediction_0" / "probes.json", {"rows": [{"features": "x", "layers": [{"voice": 0.4}]}]})
    shutil.rmtree(out / "wav2vec_0")
    probed = json.loads((out / "baselines.json").read_text("utf-8"))
    probed["voices"]["chance"] = {"voice": 0.2}
    probed["rows"] = [{"features": name, "layers": [{"voice": 0.3}]} for name in ("log-mel", "it")]
    write(out / "baselines.json", probed)
    objectives.write_page(out, tmp_path / "OBJECTIVES.md", 0)
    text = (tmp_path / "OBJECTIVES.md").read_text("utf-8")
    assert rows(text, "What the layers know")["features"] == ["voice, %"]
    assert "drawn at random are right in %: voice 20." in text
    assert "in a new language" not in text


def test_what_is_written_by_hand_is_kept(out: Path, tmp_path: Path) -> None:
    page = tmp_path / "OBJECTIVES.md"
    by_hand = "* Masked prediction wins.\n\n### Why\n\nIt does."
    write(page, f"# Old\n\n## What to take from it\n\n{by_hand}\n\n## Errors\n\nold\n")
    for _ in range(2):
        objectives.write_page(out, page, 0)
        text = page.read_text("utf-8")
        assert text.count(f"## What to take from it\n\n{by_hand}\n\n## Errors\n") == 1
        assert "\nold\n" not in text


def test_the_same_runs_give_the_same_page_and_pictures(out: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        objectives.write_page(out, folder / "OBJECTIVES.md", 0)
    first, second = (
        {file.name: file.read_bytes() for file in folder.rglob("*.*") if file.is_file()} for folder in folders
    )
    assert first == second
    assert len(first) == 3


def test_nothing_finished_is_a_page_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    objectives.write_page(tmp_path / "out", tmp_path / "OBJECTIVES.md", 0)
    assert "svg" not in (tmp_path / "OBJECTIVES.md").read_text("utf-8")


def test_scratch_learns_at_the_best_rate_of_its_labels(out: Path) -> None:
    assert runs.find_rate(out, "train", 0) == "5e-3"
    assert runs.find_rate(out, "train_5min", 0) == "1e-2"
    assert runs.find_rate(out, "train_10min", 0) is None


def test_the_first_seed_is_the_one_asked_for(out: Path) -> None:
    for first, rates in ((0, [0.3, 0.32]), (1, [0.32, 0.3])):
        found = runs.read_runs(out, ["masked_prediction"], first).rows["masked_prediction"]
        assert [run.finetunings["train"].cer.value for run in found] == pytest.approx(rates)


def test_times_of_alike_encoders_are_one(out: Path) -> None:
    found = runs.read_runs(out, budget.objective_names(), 0)
    assert (
        found.finetuning_seconds("masked_prediction", "train")
        == found.finetuning_seconds("scratch", "train")
        == 200 / 150
    )
    assert found.finetuning_seconds("wav2vec", "train") == 4


def test_updates_follow_from_the_time() -> None:
    cost = budget.Cost("x", update_ratio=2.0, prepare_updates=400.0, gflop_per_second=1.0, peak_mib=1.0)
    assert budget.num_updates(cost, 300, 0.075) == (4000 - 400) // 2
    with pytest.raises(ConfigError, match="x: 30 s are too few"):
        budget.num_updates(cost, 30, 0.075)


def test_every_objective_is_a_row_with_settings_that_load() -> None:
    names = budget.objective_names()
    assert names[0] == "masked_prediction"
    assert {*names[1:]} == {file.stem for file in (RECIPE / "objectives").glob("*.toml")}
    with pytest.raises(ConfigError, match="nothing: expected one of masked_prediction"):
        budget.settings_of("nothing", Path("run"))


def test_targets_of_a_model_are_the_references(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(budget, "RECIPE", tmp_path)
    write(tmp_path / "objectives" / "second.toml", '[objective.targets]\nmodel = "some"\nlayer = 3\n')
    assert budget.settings_of("second", Path("a run"))[-2:] == ["--set", "objective.targets.model=a run"]
    assert "--set" not in budget.settings_of("second")
    assert "--set" not in budget.settings_of("masked_prediction", Path("a run"))


def test_damaged_costs_are_one_line(tmp_path: Path) -> None:
    write(tmp_path / "costs.tsv", "objective\tupdate_ratio\nx\t1\n")
    with pytest.raises(ConfigError, match=r"costs\.tsv: expected columns objective update_ratio"):
        budget.read_costs(tmp_path / "costs.tsv")


def test_every_searched_objective_has_as_many_trials(tmp_path: Path) -> None:
    trials = search.read_trials()
    assert {*trials} <= {*budget.objective_names()}
    for name, settings in trials.items():
        for setting in settings:
            arguments = budget.settings_of(name, Path("run"))
            files = [Path(argument) for argument in arguments[: 3 if name != "masked_prediction" else 2]]
            PretrainConfig.load(files, [*DATA, *setting])
    write(tmp_path / "search.tsv", "objective\tsettings\na\t-\na\tx=1 y=2\nb\t-\n")
    with pytest.raises(ConfigError, match=r"expected as many trials of each objective, found \{.a.: 2, .b.: 1\}"):
        search.read_trials(tmp_path / "search.tsv")
    write(tmp_path / "search.tsv", "objective\tsettings\na\t-\na x=1\n")
    with pytest.raises(ConfigError, match=r"search\.tsv:3: expected an objective, a tab and settings, found 'a x=1'"):
        search.read_trials(tmp_path / "search.tsv")


def test_the_best_trial_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(search, "read_trials", lambda: {"a": [[], ["x=1", "y=2"]], "b": [[], []]})
    for name, letters in (("a_0", [0.3, 0.4]), ("a_1", [0.5, 0.2]), ("b_0", [0.1])):
        write(tmp_path / "search" / name / "probes.json", {"rows": [{"features": "x", "layers": layers(letters)}]})
    assert search.format_trials(tmp_path).splitlines()[2:] == [
        "| a | as in its file | 40.0 |",
        "| a | `x=1` `y=2` | **50.0** |",
        "| b | as in its file | **10.0** |",
    ]


assert sys.modules.get("budget") is None, "left behind by recipe_modules"
