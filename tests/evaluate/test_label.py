"""Labels that a planted model makes: some recordings say what it is sure of, others what each filter must catch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import Result
from planted import VOCABULARY, PlantedModel
from torch import Tensor
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.data.manifest import Utterance, read_manifest, write_manifest
from speechssl.data.recording import audio_info
from speechssl.decode.arpa import write_arpa
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.model.ctc import CTCOutput

GOOD = ["where is the cat", "the dog is there", "the cat is a dog"]
UNSURE, MISHEARD = "zz the cat", "qqqqq"  # by the first model, and by the second


class Listener(PlantedModel):
    """Is sure of all letters but z, and may hear one letter as another."""

    def __init__(self, takes: str = "", for_: str = "") -> None:
        super().__init__()
        self.takes, self.for_ = takes, for_
        self.sureness = 7.0

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> CTCOutput:
        output = super().forward(waveforms, lengths)
        log_probs = output.log_probs.clone()
        unsure = log_probs.argmax(dim=2) == VOCABULARY.encode("z")[0]
        log_probs[unsure] = (log_probs[unsure] / 5).log_softmax(dim=1)
        if self.takes:
            one, other = (VOCABULARY.symbols.index(symbol) for symbol in (self.takes, self.for_))
            log_probs[:, :, other] = torch.maximum(log_probs[:, :, one], log_probs[:, :, other])
            log_probs[:, :, one] = -20.0
        return CTCOutput(log_probs, output.frame_lengths)


@pytest.fixture
def models(checkpoint: CTCCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Models by their paths: one that labels, and one that hears q as x."""
    listeners = {"m": Listener(), "other": Listener("q", "x")}
    loaded = {name: replace(checkpoint, model=listener) for name, listener in listeners.items()}
    monkeypatch.setattr("speechssl.transcribe.transcriber.load_ctc", lambda path, device, language: loaded[str(path)])
    place = "speechssl.evaluate.pseudo_labels"
    monkeypatch.setattr(f"{place}.language_for", lambda path, language: None)
    monkeypatch.setattr(f"{place}.read_model", lambda path, language=None: Digest(str(path)))
    return listeners


class Digest:
    def __init__(self, digest: str) -> None:
        self.digest = digest


@pytest.fixture
def corpus(plant, tmp_path: Path):
    """Write a manifest of planted recordings with texts that may be others, and give its path."""

    def write(said: list[str], texts: list[str] | None = None, name: str = "new.tsv", silence: float = 0.0) -> Path:
        utterances = []
        for number, text in enumerate(said):
            path = plant(text, f"{name}.{number}.wav")
            if silence:
                samples, rate = soundfile.read(path, dtype="float32")
                soundfile.write(path, np.pad(samples, (0, round(silence * rate))), rate)
            stated = texts[number] if texts else None
            num_samples = audio_info(path).num_samples
            utterances.append(Utterance(str(path), num_samples, text=stated, speaker=f"s{number}", language="en"))
        write_manifest(tmp_path / name, utterances, ".")
        return tmp_path / name

    return write


def run(*arguments: object) -> Result:
    """Without a second view and with all scores, unless said otherwise."""
    return CliRunner().invoke(app, ["label", *map(str, arguments)])


PLAIN = ("--speed", 1, "--keep", 1)


def texts_of(path: Path) -> list[str | None]:
    return [utterance.text for utterance in read_manifest(path)]


def reasons(path: Path) -> list[list[str]]:
    return [row["left_out"] for row in json.loads(path.with_suffix(".json").read_text("utf-8"))["utterances"]]


def test_labels_are_what_is_heard_and_texts_only_measure_them(models, corpus, tmp_path: Path) -> None:
    wrong = ["where is the cut", "", "the cat is a dog"]
    manifest, output = corpus(GOOD, wrong), tmp_path / "deep" / "labels.tsv"
    result = run("m", manifest, "-o", output, *PLAIN)
    assert result.exit_code == 0, result.stderr
    assert f"label: {manifest}: its texts measure the labels and are not used for anything else\n" in result.stderr
    assert "label: kept: 3 utterances, 0.0 minutes, CER 53.1 %, WER 55.6 %\n" in result.stderr
    assert f"label: {output}: 3 utterances\n" in result.stderr
    found = list(read_manifest(output))
    assert found == [replace(item, text=text) for item, text in zip(read_manifest(manifest), GOOD, strict=True)]
    [first, *_] = json.loads(output.with_suffix(".json").read_text("utf-8"))["utterances"]
    assert (first["true"]["reference"], first["true"]["words"]["substitutions"]) == (wrong[0], 1)
    assert first["score"] == pytest.approx(0, abs=0.2)
    silent = corpus(GOOD, name="silent.tsv")
    assert "texts" not in run("m", silent, "-o", output, *PLAIN).stderr
    assert texts_of(output) == GOOD


PLANTED = [
    pytest.param(UNSURE, ("--min-score", -0.3), "low score", id="score"),
    pytest.param(UNSURE, ("--keep", 0.75), "not among the best", id="share"),
    pytest.param(MISHEARD, ("--second", "other"), "second view differs", id="another model"),
    pytest.param("no " * 6, (), "repeated words", id="repeats"),
    pytest.param("", (), "nothing heard", id="nothing"),
]


@pytest.mark.filterwarnings("ignore:.*silence")
@pytest.mark.parametrize(("said", "options", "reason"), PLANTED)
def test_each_filter_catches_what_is_planted_for_it(
    models, corpus, tmp_path: Path, said: str, options: tuple[object, ...], reason: str
) -> None:
    manifest, output = corpus([*GOOD, said]), tmp_path / "labels.tsv"
    result = run("m", manifest, "-o", output, *PLAIN, *options)
    assert result.exit_code == 0, result.stderr
    assert reasons(output) == [[], [], [], [reason]]
    assert texts_of(output) == GOOD
    assert f"label: left out, {reason}: 1 utterance, " in result.stderr
    loose = ("--max-repeats", 99, "--max-view-difference", 9, "--speed-tail", 0)
    assert run("m", manifest, "-o", output, *PLAIN, *loose, "--second", "other").exit_code == 0
    assert reasons(output)[-1] == ([] if said else [reason])


def test_letters_a_second_are_as_in_labeled_speech(models, corpus, plant, tmp_path: Path) -> None:
    slow, fast = corpus(GOOD[:1], GOOD[:1], "slow.tsv", silence=0.5), corpus(GOOD[1:2], [f"{GOOD[1]}es"], "fast.tsv")
    labeled = tmp_path / "labeled.tsv"
    write_manifest(labeled, [*read_manifest(slow), *read_manifest(fast)], ".")
    manifest, output = corpus([*GOOD, "catcatcatcatcat"]), tmp_path / "labels.tsv"
    drawl = corpus(["a cat"], name="drawl.tsv", silence=3.0)
    write_manifest(manifest, [*read_manifest(manifest), *read_manifest(drawl)], ".")
    for tail, fits in ((0, True), (0.5, False)):
        result = run("m", manifest, "-o", output, *PLAIN, "--labeled", labeled, "--speed-tail", tail)
        assert result.exit_code == (0 if fits else 1), result.stderr
        *good, quick, drawling = reasons(output)
        assert good == [[], [], []] or not fits
        assert (quick, drawling) == (["too many letters a second"], ["too few letters a second"])


def test_a_text_that_only_the_language_model_hears_is_left_out(models, corpus, tmp_path: Path) -> None:
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(GOOD, 2))
    (tmp_path / "lm.toml").write_text('lm = "lm.arpa"\nunknown_score = -20.0\nmin_symbol_log_prob = -15.0\n')
    manifest, output = corpus([*GOOD, "where iz the cat", "the dug iz"]), tmp_path / "labels.tsv"
    lm = ("--lm", tmp_path / "lm.toml")
    result = run("m", manifest, "-o", output, *PLAIN, *lm)
    assert result.exit_code == 0, result.stderr
    assert texts_of(output) == [*GOOD, "where is the cat", "the dog is"]
    rows = json.loads(output.with_suffix(".json").read_text("utf-8"))["utterances"]
    assert [row["greedy"] for row in rows] == [*GOOD, "where iz the cat", "the dug iz"]
    assert [row["lm_difference"] for row in rows] == [0, 0, 0, 1 / 16, 2 / 10]
    assert max(row["score"] for row in rows[3:]) < -0.2 < -0.1 < min(row["score"] for row in rows[:3])
    assert run("m", manifest, "-o", output, *PLAIN, *lm, "--max-lm-difference", 0.1).exit_code == 0
    assert reasons(output) == [[], [], [], [], ["language model differs"]]


def test_differences_are_errors_by_the_letters_of_the_label(models, corpus, tmp_path: Path) -> None:
    models["other"].takes, models["other"].for_ = "q", "<blank>"  # which makes texts shorter
    manifest, output = corpus(["aqqq", "ab"]), tmp_path / "labels.tsv"
    assert run("m", manifest, "-o", output, *PLAIN, "--second", "other").exit_code == 0
    [first, second] = json.loads(output.with_suffix(".json").read_text("utf-8"))["utterances"]
    assert (first["second"], first["view_difference"], second["view_difference"]) == ("a", 0.75, 0.0)
    assert first["left_out"] == ["second view differs"]


def test_another_speed_is_a_second_view(models, corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a planted recording nothing is left at another speed: whatever the model hears then is not the text."""
    manifest, output = corpus(GOOD), tmp_path / "labels.tsv"
    result = run("m", manifest, "-o", output, "--keep", 1)
    assert result.exit_code == 1
    assert f"error: {manifest}: expected labels that pass the filters, found none of 3\n" in result.stderr
    assert reasons(output) == [["second view differs"]] * 3
    assert not output.exists()
    *_, longest = sorted(length for _, length in models["m"].batch_shapes)
    assert round(longest / 1.1) in {length for _, length in models["m"].batch_shapes}
    speeds = []
    monkeypatch.setattr(
        "speechssl.evaluate.pseudo_labels.change_speed", lambda waveform, speed: speeds.append(speed) or waveform
    )
    assert run("m", manifest, "-o", output, "--keep", 1, "--speed", 0.9).exit_code == 0
    assert (speeds, texts_of(output)) == ([0.9] * 3, GOOD)


def test_true_labels_come_first_and_their_samples_are_not_labeled_again(models, corpus, tmp_path: Path) -> None:
    manifest = corpus(GOOD)
    first, second, third = read_manifest(manifest)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.wav").symlink_to(first.path)
    half = first.num_samples // 2
    true = [
        Utterance(str(tmp_path / "elsewhere" / "link.wav"), half, half, text="true"),  # slow
        replace(second, start=second.num_samples, text=None),
        replace(third, num_samples=100, start=third.num_samples, text="after"),  # which shares nothing
    ]
    write_manifest(tmp_path / "elsewhere" / "labeled.tsv", true, tmp_path)
    output = tmp_path / "new" / "labels.tsv"
    loose = ("--speed-tail", 0)
    result = run("m", manifest, "-o", output, *PLAIN, "--labeled", tmp_path / "elsewhere" / "labeled.tsv", *loose)
    assert reasons(output)[0] == ["labeled already"]
    assert "label: labeled already: 1 utterance, " in result.stderr
    assert result.exit_code == 0, result.stderr
    assert f"label: {output}: 2 utterances after 3 with true labels\n" in result.stderr
    found = list(read_manifest(output))
    assert [item.text for item in found] == ["true", None, "after", GOOD[1], GOOD[2]]
    assert all(Path(item.path).samefile(one.path) for item, one in zip(found[3:], (second, third), strict=True))
    assert output.read_text("utf-8").startswith(f"{tmp_path}\n")
    assert found[0].start == half


def test_texts_are_kept_if_asked_for(models, corpus, tmp_path: Path) -> None:
    manifest, output = corpus(GOOD, ["where was the cat", "", "the cat was a dog"]), tmp_path / "labels.tsv"
    result = run("m", manifest, "-o", output, *PLAIN, "--keep-texts", "--speed-tail", 0)
    assert result.exit_code == 0, result.stderr
    assert texts_of(output) == ["where was the cat", "the cat was a dog", GOOD[1]]
    assert "CER" not in result.stderr  # an empty text says nothing then
    assert output.read_text("utf-8").startswith(".\n")


def test_labels_that_are_there_are_kept_unless_something_changed(models, corpus, tmp_path: Path) -> None:
    manifest, output = corpus(GOOD), tmp_path / "labels.tsv"
    command = ("m", manifest, "-o", output, *PLAIN)
    assert run(*command).exit_code == 0
    models["m"].batch_shapes.clear()
    assert run(*command).stderr == f"label: {output} is finished\n"
    assert models["m"].batch_shapes == []
    for change in (["--min-score", -5], ["--second", "other"], ["--keep-texts"]):
        assert "is finished" not in run(*command, *change).stderr
        assert "is finished" not in run(*command).stderr
    output.write_text(output.read_text("utf-8").replace("cat", "cut"), "utf-8")
    assert run(*command).exit_code == 0
    assert texts_of(output) == GOOD


def test_unreadable_recordings_are_named_and_the_others_labeled(models, corpus, tmp_path: Path) -> None:
    manifest, output = corpus(GOOD), tmp_path / "labels.tsv"
    (tmp_path / "new.tsv.1.wav").write_text("no sound")
    result = run("m", manifest, "-o", output, *PLAIN, "--second", "other")
    assert result.exit_code == 1
    assert [line for line in result.stderr.splitlines() if line.startswith("error")] == [
        line for line in result.stderr.splitlines() if f"error: {manifest}:4: " in line
    ]
    assert texts_of(output) == [GOOD[0], GOOD[2]]
    assert reasons(output)[1][0].startswith("unreadable: ")
    assert "label: left out, unreadable: 1 utterance, " in result.stderr


def test_bad_input_is_one_line(models, corpus, tmp_path: Path) -> None:
    manifest = corpus(GOOD)
    for arguments, error in (
        (("m", manifest, "-o", tmp_path / "labels.txt"), f"{tmp_path}/labels.txt: expected a name that ends in .tsv"),
        (("m", manifest, "-o", manifest), f"{manifest}: expected another file than the manifests that are read"),
        (("m", tmp_path / "none.tsv", "-o", tmp_path / "a.tsv"), f"{tmp_path}/none.tsv: "),
        (("m", manifest, "-o", tmp_path / "a.tsv", "--labeled", manifest), f"{manifest}: expected texts, found none"),
        (("m", manifest, "-o", tmp_path / "a.tsv", "--lm", tmp_path / "none.arpa"), f"{tmp_path}/none.arpa: "),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.stderr
        assert result.stderr.startswith(f"error: {error}")
    assert not (tmp_path / "a.tsv").exists()
    everything = corpus(GOOD, GOOD, "all.tsv")
    write_manifest(manifest, list(read_manifest(everything)), ".")
    result = run("m", manifest, "-o", tmp_path / "a.tsv", "--labeled", everything)
    assert result.exit_code == 1
    assert "expected labels that pass the filters, found none of 3\n" in result.stderr


def test_a_real_model_labels_what_finetune_reads(model_folder: Path, corpus, tmp_path: Path) -> None:
    manifest, output = corpus(["ab cd ef", "c de"], name="real.tsv"), tmp_path / "labels.tsv"
    result = run(model_folder, manifest, "-o", output, "--max-view-difference", 9, "--keep", 1)
    assert result.exit_code == 0, result.stderr
    assert all(texts_of(output))
    assert run(model_folder, manifest, "-o", output, "--max-view-difference", 9, "--keep", 1).stderr == (
        f"label: {output} is finished\n"
    )
