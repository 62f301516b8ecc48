"""Language models in the transcriber and in the commands; what the search itself does is tested in tests/decode."""

import hashlib
import json
import tomllib
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.commands import transcribe as cli
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.manifest import Utterance, write_manifest
from speechssl.data.recording import audio_info
from speechssl.decode.arpa import read_arpa, write_arpa
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.decode.settings import BeamSearchConfig
from speechssl.errors import ConfigError, LanguageModelError
from speechssl.transcribe import windows
from speechssl.transcribe.transcriber import Transcriber

TEXTS = ["where is the cat", "the cat is where", "the dog", "где"]
CPU = f"cpu x {torch.get_num_threads()}, float32"
HEARD, MEANT = "where iz the cat", "where is the cat"


@pytest.fixture
def loaded(checkpoint: CTCCheckpoint, monkeypatch: pytest.MonkeyPatch) -> CTCCheckpoint:
    """Any model folder holds the planted model, sure of what it hears."""
    checkpoint.model.sureness = 7.0
    monkeypatch.setattr("speechssl.transcribe.transcriber.load_ctc", lambda path, device, language: checkpoint)
    return checkpoint


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    """A model of `TEXTS`, and settings by which it counts."""
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(TEXTS, 2))
    (tmp_path / "lm.toml").write_text('lm = "lm.arpa"\nunknown_score = -20.0\nmin_symbol_log_prob = -15.0\n')
    return tmp_path / "lm.toml"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_words_come_from_the_language_model_with_times_and_confidences(loaded, lm, planted_waveform) -> None:
    waveform = planted_waveform(HEARD)
    greedy = Transcriber.load("m").transcribe(waveform, SAMPLE_RATE)
    found = Transcriber.load("m", lm=lm).transcribe(waveform, SAMPLE_RATE)
    assert (str(greedy), str(found)) == (HEARD, MEANT)
    assert [word.start for word in found.words] == [word.start for word in greedy.words]
    assert all(abs(word.end - same.end) < 0.02 for word, same in zip(found.words, greedy.words, strict=True))
    confidences = [word.confidence for word in found.words]
    assert confidences[1] < 0.1 < 0.9 < min(confidences[0], *confidences[2:])


def test_a_batch_gets_what_each_gets_alone(loaded, lm, planted_waveform) -> None:
    transcriber = Transcriber.load("m", lm=lm)
    waveforms = [planted_waveform(text) for text in (HEARD, "", "the dog", "где")] + [np.zeros(10, np.float32)]
    together = list(transcriber.transcribe_many([lambda wave=wave: wave for wave in waveforms]))
    assert together == [next(transcriber.transcribe_many([lambda wave=wave: wave])) for wave in waveforms]
    assert [str(transcript) for transcript in together] == [MEANT, "", "the dog", "где", ""]


def test_long_recordings_are_heard_in_windows(loaded, lm, planted_waveform, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = np.zeros(SAMPLE_RATE, np.float32)
    waveform = np.concatenate([planted_waveform(HEARD), pause] * 50)
    assert len(waveform) > windows.WINDOW_SECONDS * SAMPLE_RATE
    found = Transcriber.load("m", lm=lm).transcribe(waveform, SAMPLE_RATE)
    assert str(found) == " ".join([MEANT] * 50)
    greedy = Transcriber.load("m").transcribe(waveform, SAMPLE_RATE)
    assert [word.start for word in found.words] == [word.start for word in greedy.words]


def test_log_probs_are_those_of_each_frame(loaded, planted_waveform) -> None:
    waveforms = [planted_waveform("ab"), np.zeros(10, np.float32), planted_waveform("где")]
    transcriber = Transcriber.load("m")
    found = list(transcriber.log_probs_many([lambda wave=wave: wave for wave in waveforms]))
    assert [rows.shape for rows in found] == [(len(waveform) // 160, len(loaded.vocabulary)) for waveform in waveforms]
    long = np.concatenate([planted_waveform("ab"), np.zeros(100 * SAMPLE_RATE, np.float32)])
    assert next(transcriber.log_probs_many([lambda: long])).shape == (len(long) // 160, len(loaded.vocabulary))
    for rows, text in zip(found, ("ab", "", "где"), strict=True):
        assert loaded.vocabulary.decode(rows.argmax(dim=1)[::3].tolist()) == text
        assert rows.exp().sum(dim=1).tolist() == pytest.approx([1.0] * len(rows))


def test_the_likeliest_texts_have_their_scores(loaded, lm, planted_waveform) -> None:
    waveform = planted_waveform(HEARD)
    transcriber = Transcriber.load("m", lm=lm)
    found = transcriber.transcribe(waveform, SAMPLE_RATE, nbest=3)
    assert replace(found, nbest=()) == transcriber.transcribe(waveform, SAMPLE_RATE)
    [stretch] = found.nbest
    assert (stretch.start, stretch.end) == (0.0, found.seconds)
    assert stretch.texts[0].text == MEANT
    assert len({text.text for text in stretch.texts}) == 3
    scores = [text.score for text in stretch.texts]
    assert scores == sorted(scores, reverse=True)
    config, model = transcriber.decoding.beam_search.config, transcriber.decoding.beam_search.model
    for text in stretch.texts:  # what the language model says by itself, and the whole is the sum
        words = text.text.split()
        contexts = [("<s>", *words[:number]) for number in range(len(words) + 1)]
        log_probs = [model.score(context, word) for context, word in zip(contexts, [*words, "</s>"], strict=True)]
        num_unknown = sum(word not in model.words for word in words)
        price = config.word_score * len(words) + config.unknown_score * num_unknown
        assert text.lm == pytest.approx(config.lm_weight * sum(log_probs) + price)
        assert text.acoustic <= 0
    pause = np.zeros(SAMPLE_RATE, np.float32)
    long = np.concatenate([waveform, pause] * 50)
    stretches = transcriber.transcribe(long, SAMPLE_RATE, nbest=2).nbest
    assert len(stretches) > 1
    assert [found.end for found in stretches[:-1]] == [found.start for found in stretches[1:]]
    assert " ".join(found.texts[0].text for found in stretches) == " ".join([MEANT] * 50)
    pieces = transcriber.transcribe(long[: 3 * len(waveform)], SAMPLE_RATE, nbest=1, split_at_pauses=True)
    assert " ".join(found.texts[0].text for found in pieces.nbest).strip() == pieces.text
    assert all(a.end <= b.start + 0.5 for a, b in pairwise(pieces.nbest))
    for found in (*stretches[1:], *pieces.nbest[1:]):
        times = found.lattice.times
        assert found.start - 0.1 < times[0] < times[-1] < found.end + 0.1
    late = transcriber.transcribe(waveform, SAMPLE_RATE, nbest=1).shifted(5.0).nbest[0]
    assert late.lattice.times[0] == pytest.approx(stretch.lattice.times[0] + 5)
    assert [arc.start for arc in late.lattice.arcs] == [pytest.approx(arc.start + 5) for arc in stretch.lattice.arcs]
    with pytest.raises(ConfigError, match="nbest: expected a language model beside it"):
        Transcriber.load("m").transcribe(waveform, SAMPLE_RATE, nbest=3)


def test_the_command_writes_the_likeliest_texts(loaded, lm, plant) -> None:
    recording = plant(HEARD)
    options = ["--model", "m", str(recording), "--lm", str(lm), "--format", "json"]
    [stretch] = json.loads(CliRunner().invoke(cli.app, [*options, "--nbest", "2"]).stdout)["nbest"]
    assert stretch["texts"][0]["text"] == MEANT
    assert len(stretch["texts"]) == 2
    assert all(text["score"] == pytest.approx(text["acoustic"] + text["lm"], abs=2e-4) for text in stretch["texts"])
    lattice = stretch["lattice"]
    assert lattice["nodes"] == sorted(lattice["nodes"])
    assert 0 <= lattice["nodes"][0] < lattice["nodes"][-1] <= stretch["end"]
    for node in range(len(lattice["nodes"]) - 1):
        over = [arc["posterior"] for arc in lattice["arcs"] if arc["source"] <= node < arc["target"]]
        assert sum(over) == pytest.approx(1, abs=1e-4)
    assert "nbest" not in json.loads(CliRunner().invoke(cli.app, options).stdout)
    assert CliRunner().invoke(cli.app, [*options[:-1], "txt", "--nbest", "2"]).exit_code == 2


def test_a_stream_takes_no_language_model(loaded, lm) -> None:
    with pytest.raises(ConfigError, match="stream: expected a transcriber without a language model"):
        Transcriber.load("m", lm=lm).stream([], SAMPLE_RATE)


def test_the_command_decodes_with_it_and_does_so_again_if_it_changed(loaded, lm, plant, tmp_path: Path) -> None:
    def transcribe(*options: object) -> Result:
        return CliRunner().invoke(cli.app, ["--model", "m", str(recording), *map(str, options)])

    recording = plant(HEARD)
    assert transcribe().stdout == f"{HEARD}\n"
    assert transcribe("--lm", lm).stdout == f"{MEANT}\n"
    output = tmp_path / "out"
    assert transcribe("--output-dir", output, "--lm", lm).exit_code == 0
    assert "1 finished before" in transcribe("--output-dir", output, "--lm", lm).stderr
    result = transcribe("--output-dir", output)
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams([HEARD], 2))
    assert transcribe("--output-dir", output, "--lm", lm).exit_code == 1
    assert transcribe("--lm", lm).stdout == f"{HEARD}\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.arpa", None, "no.arpa: No such file or directory"),
        ("no.toml", None, "no.toml: No such file or directory"),
        ("bad.toml", "lm_weight = 1.0", "bad.toml: "),
        ("bad.arpa", "a b c", "bad.arpa: expected an ARPA file"),
    ],
)
def test_a_bad_language_model_is_one_line(loaded, plant, tmp_path: Path, name, content, message) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    result = CliRunner().invoke(cli.app, ["--model", "m", str(plant("a")), "--lm", str(tmp_path / name)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture
def dev(plant, tmp_path: Path) -> Path:
    """A manifest of a recording for each of two texts, one not said as it is meant."""
    utterances = []
    for heard, meant in ((HEARD, MEANT), ("the dog", "the dog")):
        path = plant(heard, f"{heard}.wav")
        utterances.append(Utterance(str(path), audio_info(path).num_samples, text=meant))
    write_manifest(tmp_path / "dev.tsv", utterances, ".")
    return tmp_path / "dev.tsv"


def test_evaluate_says_how_it_decoded(loaded, lm, dev, tmp_path: Path) -> None:
    result = run("evaluate", "m", dev, "--lm", lm, "-o", tmp_path / "scores.json")
    assert result.exit_code == 0
    assert "| beam 50, lm.arpa x 0.8, word +2, unknown -20 | 0.0 |" in result.stdout
    [evaluation] = json.loads((tmp_path / "scores.json").read_text())["evaluations"]
    assert evaluation["decoding"] == "beam 50, lm.arpa x 0.8, word +2, unknown -20"
    assert evaluation["beam_search"]["min_symbol_log_prob"] == -15.0
    assert evaluation["beam_search"]["lm_sha256"] == hashlib.sha256((lm.with_suffix(".arpa")).read_bytes()).hexdigest()
    assert "| greedy | 16.7 [" in run("evaluate", "m", dev).stdout


def test_tuning_finds_weights_that_make_fewer_errors(loaded, lm, dev, tmp_path: Path) -> None:
    start = tmp_path / "start.toml"
    start.write_text('lm = "lm.arpa"\nlm_weight = 0.0\nunknown_score = 0.0\nmin_symbol_log_prob = -15.0\n')
    output = tmp_path / "tuned" / "tuned.toml"
    result = run("tune-lm", "m", dev, "--lm", start, "-o", output, "--trials", 20)
    assert result.exit_code == 0, result.stderr
    assert f"tune-lm: 2 of 2 utterances on {CPU}, greedy: WER 16.7 %, CER 4.3 %" in result.stderr
    assert "tune-lm: 1 of 20: beam 50, lm.arpa x 0, word +2, unknown +0: WER 16.7 %" in result.stderr
    assert "WER 0.0 %, CER 0.0 %\n" in result.stderr
    config = BeamSearchConfig.read(output)
    assert config.lm.samefile(tmp_path / "lm.arpa")
    assert config.min_symbol_log_prob == -15.0
    assert output.read_text().startswith(f"# speechssl tune-lm m {dev}: 2 of 2 utterances, WER 0.0 %")
    assert "| 0.0 |" in run("evaluate", "m", dev, "--lm", output).stdout
    again = run("tune-lm", "m", dev, "--lm", start, "-o", tmp_path / "again.toml", "--trials", 20)
    assert again.stderr == result.stderr
    assert tomllib.loads((tmp_path / "again.toml").read_text())["lm"] == "lm.arpa"


def test_tuning_may_choose_by_letters(loaded, lm, dev, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two settings, one has fewer word errors and the other fewer letter errors."""
    rates = iter([(9.0, 9.0), (0.3, 0.2), (0.4, 0.1)] * 2)
    monkeypatch.setattr("speechssl.evaluate.tune._Trials.rates", lambda *_: next(rates))
    for by, expected in ("wer", "WER 30.0 %, CER 20.0 %"), ("cer", "WER 40.0 %, CER 10.0 %"):
        result = run("tune-lm", "m", dev, "--lm", lm, "-o", tmp_path / "by.toml", "--trials", 2, "--by", by)
        assert result.exit_code == 0, result.stderr
        assert expected in (tmp_path / "by.toml").read_text()


def test_tuning_on_a_part_and_into_nowhere(loaded, lm, dev, tmp_path: Path) -> None:
    result = run("tune-lm", "m", dev, "--lm", lm, "-o", tmp_path / "one.toml", "--trials", 1, "--utterances", 1)
    assert result.stderr.startswith(f"tune-lm: 1 of 2 utterances on {CPU}, greedy: WER ")
    assert BeamSearchConfig.read(tmp_path / "one.toml") == BeamSearchConfig.read(lm)
    loaded.model.batch_shapes.clear()
    for output in dev / "no.toml", tmp_path / "lm.arpa":
        before = (tmp_path / "lm.arpa").read_bytes()
        result = run("tune-lm", "m", dev, "--lm", tmp_path / "lm.arpa", "-o", output)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert (tmp_path / "lm.arpa").read_bytes() == before
    assert loaded.model.batch_shapes == []  # it is said before the work


def test_an_ngram_model_is_made_of_manifests_and_lines(dev, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("a line\n\nanother line\n", "utf-8")
    result = run("ngram", dev, tmp_path / "more.txt", "-o", tmp_path / "new" / "lm.arpa", "--order", 2)
    assert result.exit_code == 0
    assert result.stderr == f"{tmp_path}/new/lm.arpa: 8 words, 24 n-grams\n"
    model = read_arpa(tmp_path / "new" / "lm.arpa")
    assert model.entries.keys() == estimate_ngrams([MEANT, "the dog", "a line", "another line"], 2).entries.keys()


def test_rare_ngrams_are_left_out_and_letters_are_words_if_asked_for(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("ab a\nab b\n", "utf-8")
    assert run("ngram", texts, "-o", tmp_path / "lm.arpa", "--prune", "0,1").exit_code == 0
    assert read_arpa(tmp_path / "lm.arpa").entries.keys() == estimate_ngrams(["ab a", "ab b"], 3, (0, 1)).entries.keys()
    assert run("ngram", texts, "-o", tmp_path / "lm.arpa", "--letters").exit_code == 0
    assert (
        read_arpa(tmp_path / "lm.arpa").entries.keys() == estimate_ngrams(["a b | a |", "a b | b |"], 3).entries.keys()
    )
    for wrong in "1", "0,2,1", "0,x", "":
        result = run("ngram", texts, "-o", tmp_path / "lm.arpa", "--prune", wrong)
        assert result.exit_code == 2
        assert "for --prune: expected 0 and then" in result.output
    texts.write_text("a|b\n", "utf-8")
    result = run("ngram", texts, "-o", tmp_path / "lm.arpa", "--letters")
    assert (result.exit_code, result.stderr) == (1, "error: expected texts without '|', found 'a|b'\n")


def test_texts_are_reduced_to_words_if_asked_for(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text('\ufeffWhere is, the CAT?\nIn room 5.\n"Где…"\n', "utf-8")
    result = run("ngram", tmp_path / "book.txt", "-o", tmp_path / "lm.arpa", "--normalize")
    assert (result.exit_code, result.stderr.count("\n")) == (0, 2)
    assert f"warning: {tmp_path / 'book.txt'}: 1 of 3 texts have digits and are left out\n" in result.stderr
    assert read_arpa(tmp_path / "lm.arpa").words == {"where", "is", "the", "cat", "где"}
    assert run("ngram", tmp_path / "book.txt", "-o", tmp_path / "lm.arpa").exit_code == 0
    assert read_arpa(tmp_path / "lm.arpa").words >= {"Where", "is,", "CAT?", "5."}


def test_texts_are_reduced_in_their_language(tmp_path: Path) -> None:
    plant = Utterance(str(tmp_path / "a.wav"), 1, text="IŞIK", language="tr")
    write_manifest(tmp_path / "train.tsv", [plant, replace(plant, text="IS", language=None)], ".")
    (tmp_path / "book.txt").write_text("İYİ\n", "utf-8")
    files = (tmp_path / "train.tsv", tmp_path / "book.txt", "-o", tmp_path / "lm.arpa", "--normalize")
    assert run("ngram", *files).exit_code == 0
    assert read_arpa(tmp_path / "lm.arpa").words == {"ışık", "is", "iyi"}
    assert run("ngram", *files, "--language", "az").exit_code == 0
    assert read_arpa(tmp_path / "lm.arpa").words == {"ışık", "ıs", "iyi"}


def test_texts_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("a line\n")
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "marks.txt").write_text("a\na <unk>\n")
    write_manifest(tmp_path / "untold.tsv", [Utterance(str(tmp_path / "a.wav"), 1)], ".")
    for name, message in (
        ("missing.txt", "missing.txt: No such file or directory"),
        ("latin1.txt", "latin1.txt: expected UTF-8"),
        ("empty.txt", "empty.txt: expected texts, found none"),
        ("untold.tsv", "untold.tsv: expected texts, found none"),
        ("marks.txt", "marks.txt:2: expected a text without <unk>, found 'a <unk>'"),
    ):
        result = run("ngram", tmp_path / "good.txt", tmp_path / name, "-o", tmp_path / "lm.arpa")
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "lm.arpa").exists()
    result = run("ngram", tmp_path / "marks.txt", "-o", tmp_path / "." / "marks.txt")
    assert result.exit_code == 1
    assert "expected another file than those with the texts" in result.stderr
    assert (tmp_path / "marks.txt").read_text() == "a\na <unk>\n"


def test_a_model_of_other_letters_is_refused(loaded, tmp_path: Path) -> None:
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(["WHERE", "CAT"], 1))
    with pytest.raises(LanguageModelError, match="found none of 2, such as 'CAT'"):
        Transcriber.load("m", lm=tmp_path / "lm.arpa")


def test_a_model_of_which_most_cannot_be_spelled_says_so(loaded, tmp_path: Path) -> None:
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(["WHERE IS", "where is"], 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Transcriber.load("m", lm=tmp_path / "lm.arpa")  # half of it can be
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(["WHERE IS THE", "where is"], 1))
    expected = r"lm\.arpa: 3 of 5 words cannot be .* it lacks 'E' in 2, 'H' in 2, .* in 1$"
    with pytest.warns(UserWarning, match=expected):
        Transcriber.load("m", lm=tmp_path / "lm.arpa")
    letters = "".join(map(chr, range(0x0391, 0x03A1)))
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams([f"{letters} {letters}ρ the"], 1))
    with pytest.warns(UserWarning, match="2 of 3 words .* and 9 others$"):
        Transcriber.load("m", lm=tmp_path / "lm.arpa")
