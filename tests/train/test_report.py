"""The report of runs: one page, from real folders."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from speechssl.__main__ import main
from speechssl.config import default_values, differences
from speechssl.data.manifest import read_manifest
from speechssl.errors import ConfigError, TrainingError
from speechssl.evaluate.evaluate import evaluate_manifests
from speechssl.report.page import write_report
from speechssl.report.reliability import describe_reliability, reliability_picture
from speechssl.report.results import Result
from speechssl.report.run import read_runs
from speechssl.report.svg import Chart, Line, draw
from speechssl.report.transcripts import choose_samples, mark
from speechssl.train.curves import write_curves
from speechssl.train.finetune import finetune
from speechssl.train.pretrain import PretrainConfig, pretrain

_VOID = {"meta", "br"}
RENAMED = {"step", "split", "wer", "cer", "audio_seconds_per_second", "gflop_per_second"}  # which have other titles


class Page(HTMLParser):
    """What a page has, if every element that was opened is closed again."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.titles: list[str] = []
        self.tags: set[str] = set()
        self.feed(file.read_text("utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "data", "action")]
        self.ids += [values["id"] or ""] if "id" in values else []
        self.tags.add(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("path", "circle", "polygon")  # of SVG; HTML takes such a tag for an open one

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["h3"]:
            self.titles.append(data)
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


@pytest.fixture(scope="module")
def runs(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pretrainings, and two fine-tunings with scores."""
    folder = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    for seed in (0, 1):
        pretrain(corpus.pretrain_config("trainer.num_steps=6", f"seed={seed}"), folder / f"pretrain_{seed}")
        config = corpus.finetune_config(
            "trainer.num_steps=6", f"seed={seed}", f"init={folder / f'pretrain_{seed}'}", "data.license=A <b> & C"
        )
        finetune(config, folder / f"finetune_{seed}")
        run = folder / f"finetune_{seed}"
        assert evaluate_manifests(run, [corpus.dev], run / "scores.json")
    return [folder / f"{stage}_{seed}" for stage in ("pretrain", "finetune") for seed in (0, 1)]


def test_a_page_needs_no_other_file(runs: list[Path], tmp_path: Path) -> None:
    write_report(runs, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    content = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"url\(|@import|<script|<link|<img|http-equiv", content)
    assert "A <b> & C" in page.text  # not as a tag
    assert "nan" not in re.sub(r">[^<]*<", "", content).lower()


def test_texts_are_no_markup(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "<q>run&"
    run.mkdir()
    for name in ("run.json", "log.jsonl"):
        (run / name).write_bytes((runs[2] / name).read_bytes())
    scores = json.loads((runs[2] / "scores.json").read_text("utf-8"))
    evaluation = scores["evaluations"][0]
    evaluation["manifest"] = evaluation["decoding"] = evaluation["device"] = "<u>&"
    for utterance in evaluation["utterances"]:
        utterance |= {"reference": "<i>&amp;", "hypothesis": "<i>&lt;"}
    evaluation["word_confusions"] = [{"reference": "<s>", "hypothesis": "<s>&", "count": 1}]
    (run / "scores.json").write_text(json.dumps(scores), "utf-8")
    (run / "warnings.jsonl").write_text('{"step": 1, "kind": "loss", "message": "<em>&"}', "utf-8")
    write_report([run], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert not {"u", "s", "em", "q"} & page.tags
    for text in ("<q>run&", "<u>&", "<i>&amp;", "<s> → <s>&", "<em>&"):
        assert text in page.text


def test_a_page_tells_what_the_folders_hold(runs: list[Path], corpus: Any, tmp_path: Path) -> None:
    write_report(runs, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    for run in runs:
        for line in (run / "log.jsonl").read_text("utf-8").splitlines():
            for metric in json.loads(line).keys() - RENAMED:
                assert metric.replace("_", " ") in page.titles
    assert "6 of 6" in page.text
    assert "optimizer.max_gradient_norm" in page.text  # differs from the default
    assert "optimizer.betas" not in page.text  # does not
    scores = json.loads((runs[2] / "scores.json").read_text("utf-8"))["evaluations"][0]
    assert f"{100 * scores['wer']['value']:.1f} [" in page.text
    assert all(utterance["reference"] in page.text for utterance in scores["utterances"])
    assert "finetune_1 against finetune_0" in page.text
    assert {"GFLOP/s", "seconds of audio a second"} <= set(page.titles)
    assert f"torch {torch.__version__}" in page.text
    assert str(corpus.train) in page.text


def test_what_runs_took_is_read_from_their_files(runs: list[Path]) -> None:
    (runs[0] / "tensorboard" / "events.out.tfevents.9999999999.1").touch()  # of a start on a full disk
    for run in read_runs(runs):
        assert run.cost is not None
        assert 0 < run.cost.seconds < 60
        # Two batches of at most 4 s an update; the sum of speed x time is that of the batches.
        assert 6 < run.cost.audio_seconds <= 6 * 2 * 4 * 1.2


def test_values_that_are_not_finite_are_said_and_not_drawn(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_bytes((runs[0] / "run.json").read_bytes())
    lines = [json.loads(line) for line in (runs[0] / "log.jsonl").read_text("utf-8").splitlines()]
    lines[-1] |= {"loss": float("nan"), "contrastive": float("inf")}
    assert lines[-1]["split"] == "dev"
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    write_report([run], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "run: update 6: dev loss, contrastive not finite, so not drawn" in page.text
    assert "best dev contrastive" not in page.text
    assert "nan" not in re.sub(r">[^<]*<", "", (tmp_path / "report.html").read_text("utf-8")).lower()


def test_a_level_of_chance_is_drawn_beside_runs_that_have_no_such_metric(
    runs: list[Path], corpus: Any, tmp_path: Path
) -> None:
    other = 'objective={ kind = "reconstruction" }'
    pretrain(corpus.pretrain_config(other, "trainer.num_steps=1"), tmp_path / "other")
    for folders in (runs[:1], [runs[0], tmp_path / "other"], [tmp_path / "other", runs[0]]):
        write_report(folders, tmp_path / "report.html")
        charts = (tmp_path / "report.html").read_text("utf-8").split("</svg>")
        (chart,) = [chart for chart in charts if 'aria-label="accuracy: ' in chart]
        assert ">chance</text>" in chart


def test_bands_lie_behind_runs_of_the_same_length(runs: list[Path], tmp_path: Path) -> None:
    write_curves(tmp_path / "curves.tsv", runs[:2], ["contrastive"])
    write_report(runs[:1], tmp_path / "report.html", [tmp_path / "curves.tsv"])
    content = (tmp_path / "report.html").read_text("utf-8")
    assert content.count('class="band"') == 1  # train; dev has one evaluation
    longer = (tmp_path / "curves.tsv").read_text("utf-8") + "train\tcontrastive\t100\t1\t1\n"
    (tmp_path / "curves.tsv").write_text(longer, "utf-8")
    write_report(runs[:1], tmp_path / "report.html", [tmp_path / "curves.tsv"])
    assert 'class="band"' not in (tmp_path / "report.html").read_text("utf-8")
    assert "curves of another number of updates; not drawn" in Page(tmp_path / "report.html").text


def test_a_changed_or_missing_manifest_is_said(runs: list[Path], tmp_path: Path) -> None:
    record = json.loads((runs[0] / "run.json").read_text("utf-8"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_bytes((runs[0] / "log.jsonl").read_bytes())
    for change, said in (("train", "has changed since"), ("gone", "no longer readable")):
        record["inputs"]["train"] = "0" * 64
        record["config"]["data"]["train"] = record["config"]["data"]["train"] + ("x" if change == "gone" else "")
        (run / "run.json").write_text(json.dumps(record), "utf-8")
        write_report([run], tmp_path / "report.html")
        assert said in Page(tmp_path / "report.html").text


def test_a_page_tells_what_could_not_be_read(runs: list[Path], corpus: Any, tmp_path: Path) -> None:
    copies = []
    for name, number in (("many", 7), ("one", 1), ("none", 0)):
        copies.append(tmp_path / name)
        copies[-1].mkdir()
        for file in ("run.json", "log.jsonl"):
            (copies[-1] / file).write_bytes((runs[0] / file).read_bytes())
        lines = [{"step": 2, "where": f"train.tsv:{row}", "problem": f"cause {row} <b>"} for row in range(number)]
        (copies[-1] / "unreadable.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    write_report(copies, tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text("utf-8")
    data = re.findall(r"<section id=data>.*?</section>", content, re.DOTALL)[0]
    text = Page(tmp_path / "report.html").text
    total = len(read_manifest(corpus.train))
    assert f"many: 7 utterances of {total} ({7 / total:.1%}) could not be read" in text
    assert f"one: 1 utterance of {total} ({1 / total:.1%}) could not be read" in text
    assert "none: 0" not in text
    assert re.findall(r"<code>train.tsv:(\d)</code>: cause (\d) &lt;b&gt;", data) == [
        *((str(row), str(row)) for row in range(5)),
        ("0", "0"),
    ]
    assert f"2 more, which {copies[0] / 'unreadable.jsonl'} names" in text
    record = json.loads((copies[1] / "run.json").read_text("utf-8"))
    record["inputs"]["train"] = "0" * 64  # the manifest has changed since
    (copies[1] / "run.json").write_text(json.dumps(record), "utf-8")
    write_report(copies[1:2], tmp_path / "report.html")
    assert "one: 1 utterance could not be read" in Page(tmp_path / "report.html").text


def test_folders_without_a_run_are_refused_in_one_line(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["speechssl", "report", str(tmp_path), "-o", str(tmp_path / "a.html")])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path}: expected a training run with run.json, found none\n"
    with pytest.raises(TrainingError, match="each run once"):
        write_report([runs[0], runs[0]], tmp_path / "a.html")
    (tmp_path / "run.json").write_text('{"stage": "probe"}', "utf-8")
    with pytest.raises(TrainingError, match=r"expected a run of pretrain or finetune, found 'probe'"):
        write_report([tmp_path], tmp_path / "a.html")
    (tmp_path / "run.json").write_bytes((runs[0] / "run.json").read_bytes())
    with pytest.raises(TrainingError, match=r"with a log, found none"):
        write_report([tmp_path], tmp_path / "a.html")
    (tmp_path / "log.jsonl").write_bytes((runs[0] / "log.jsonl").read_bytes())
    (tmp_path / "scores.json").write_text("[]", "utf-8")
    with pytest.raises(ConfigError, match=r"scores\.json: expected scores by speechssl evaluate"):
        write_report([tmp_path], tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_mistakes_are_marked_by_letter() -> None:
    assert mark("cat", "cat") == "cat"
    assert mark("cat", "cut") == 'c<mark class=changed title="instead of a">u</mark>t'
    assert mark("a cat", "acat") == "a<del>␣</del>cat"
    assert mark("cat", "cats") == "cat<ins>s</ins>"
    assert mark("", "<b>") == "<ins>&lt;b&gt;</ins>"
    assert mark("a<b", "") == "<del>a&lt;b</del>"
    assert mark("a", "<") == '<mark class=changed title="instead of a">&lt;</mark>'


def test_transcripts_over_time_show_each_change(runs: list[Path], tmp_path: Path) -> None:
    samples = [("ab c", 5, "a"), ("ab c", 10, "ab"), ("ab c", 15, "ab"), ("ab c", 1200, "ab c")]
    copies = []
    for name, of_run in (("x", samples), ("y", samples[:2])):
        run = tmp_path / name
        run.mkdir()
        for file in ("run.json", "log.jsonl"):
            (run / file).write_bytes((runs[2] / file).read_bytes())
        keys = ("reference", "step", "hypothesis")
        lines = [{"utterance": 7, **dict(zip(keys, sample, strict=True))} for sample in of_run]
        (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        copies.append(run)
    write_report(copies[:1], tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text("utf-8")
    rows = re.findall(r"<tr>?<td>(updates? [^<]*)</td><td>(.*?)</td></tr>", content)
    assert rows == [
        ("update 5", "a<del>b␣c</del>"),
        ("updates 10 to 15", "ab<del>␣c</del>"),
        ("update 1,200", "ab c"),
    ]
    write_report(copies, tmp_path / "report.html")
    text = Page(tmp_path / "report.html").text
    assert text.count("referenceab c") == 1  # both runs below it
    assert "x, updates 10 to 15" in text
    assert "y, update 10" in text
    many = [{"step": step, "utterance": 7, "reference": "a", "hypothesis": "b" * step} for step in range(1, 100)]
    (copies[0] / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in many), "utf-8")
    write_report(copies[:1], tmp_path / "report.html")
    steps = re.findall(r"<td>update (\d+)</td>", (tmp_path / "report.html").read_text("utf-8"))
    assert (len(steps), steps[0], steps[-1]) == (8, "1", "99")


def test_samples_go_from_the_best_to_the_worst() -> None:
    counts = {"substitutions": 0, "insertions": 0, "reference_length": 100}
    utterances = [{"reference": "a", "characters": counts | {"deletions": (7 * n) % 100}} for n in range(100)]
    chosen = [utterances[index]["characters"]["deletions"] for index in choose_samples(utterances, 5)]
    assert chosen == [0, 25, 50, 74, 99]
    assert len(choose_samples(utterances[:3], 5)) == 3


def test_a_spike_of_a_long_curve_is_drawn() -> None:
    points = [(float(step), 5.0 if step == 4321 else 1.0) for step in range(10_000)]
    picture = draw(Chart("loss", [Line("train", points)]))
    heights = {float(height) for height in re.findall(r"L[\d.]+ ([\d.]+)", picture)}
    assert len(heights) == 2
    assert picture.count("L") < 400


def evaluation(*bins: tuple[float, float]) -> dict[str, Any]:
    """What a report needs of the scores: bins of mean confidence and share of right words."""
    found = [{"num_words": 5, "confidence": confidence, "share_right": share} for confidence, share in bins]
    reliability = {"error": {"value": 0.042, "low": 0.01, "high": 0.06}, "bins": found} if bins else None
    names = {"manifest": "a/test.tsv", "manifest_sha256": "0", "beam_search": None, "confidences": "uncalibrated"}
    return {"reliability": reliability, **names}


def test_words_that_are_as_right_as_they_are_confident_lie_on_the_line(tmp_path: Path) -> None:
    found = {"calibrated": evaluation((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)), "raw": evaluation((0.5, 0.25))}
    picture = ElementTree.fromstring(reliability_picture(found))
    ideal, calibrated, raw = (
        [tuple(map(float, point.split())) for point in re.split("[ML]", path.attrib["d"])[1:]]
        for path in picture.iter("{http://www.w3.org/2000/svg}path")
        if path.attrib["class"].startswith("line")
    )
    [(left, bottom), (right, top)] = ideal
    assert calibrated == [
        (left, bottom),
        ((left + right) / 2, pytest.approx((bottom + top) / 2, abs=0.1)),
        (right, top),
    ]
    assert raw == [((left + right) / 2, pytest.approx(bottom + (top - bottom) / 4, abs=0.1))]
    assert "raw, confidence 0.5: 25 %" in reliability_picture(found)
    assert "silent" not in reliability_picture({"silent": evaluation()})


def test_a_report_says_how_far_confidences_are_off(runs: list[Path]) -> None:
    [run, *_] = read_runs(runs[2:3])
    old = {name: value for name, value in evaluation().items() if name != "reliability"}  # of an earlier version
    results = [Result(run, run.folder, content) for content in (evaluation((0.5, 0.25)), evaluation(), old)]
    shown = describe_reliability(results)
    assert shown.count("<figure>") == shown.count("</figure>") == 1
    assert "uncalibrated, ECE % 4.2 [1.0, 6.0]" in shown
    assert describe_reliability(results[1:]) == ""


def test_settings_are_compared_with_the_defaults_of_their_kind(corpus: Any) -> None:
    data = {"train": "a.tsv", "dev": "b.tsv", "license": "CC0"}

    def changed(**values: Any) -> dict[str, Any]:
        config = PretrainConfig.from_dict({"data": data} | values, "test")
        found = differences(default_values(config), config.to_dict())
        return {name: pair for name, pair in found.items() if not name.startswith("data.")}

    assert changed() == {}
    assert changed(seed=3) == {"seed": (0, 3)}
    assert changed(objective={"kind": "data2vec"}) == {"objective.kind": ("contrastive", "data2vec")}
    found = changed(objective={"kind": "data2vec", "beta": 0.5}, encoder={"context": {"num_layers": 9}})
    assert found.keys() == {"objective.kind", "objective.beta", "encoder.context.num_layers"}
    config = corpus.finetune_config("trainer.num_steps=6", stage="scratch")
    found = differences(default_values(config), config.to_dict())
    assert found["trainer.num_steps"] == (13_000, 6)  # what the owner of the section chose, not the section
    assert found["encoder"][0] is None
