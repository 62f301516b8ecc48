import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.commands.transcribe import app
from speechssl.commands.transcription_options import parse_time
from speechssl.data.labels.files import read_labels, read_labels_beside
from speechssl.data.scan import scan_folder
from speechssl.data.transcribed import RECORD
from speechssl.transcribe.formats import Format
from speechssl.transcribe.inputs import find_inputs
from speechssl.transcribe.job import transcribe_files
from speechssl.transcribe.outputs import OutputFolder
from speechssl.transcribe.transcriber import Transcriber
from speechssl.transcribe.transcript import Transcript

CPU = f"cpu x {torch.get_num_threads()}, float32"
FORMATS = ("txt", "json", "srt", "vtt", "tsv", "html")


@pytest.fixture
def loaded(checkpoint: CTCCheckpoint, monkeypatch: pytest.MonkeyPatch) -> CTCCheckpoint:
    """Any model folder holds the planted model."""
    monkeypatch.setattr("speechssl.transcribe.transcriber.load_ctc", lambda path, device, language: checkpoint)
    monkeypatch.setattr("speechssl.checkpoint.reader.language_for", lambda path, language: None)
    return checkpoint


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def without_summary(stderr: str) -> list[str]:
    *lines, last = stderr.splitlines()
    assert re.fullmatch(rf"\d+ files?, \d+ failed, [\d.]+ s of audio(, real-time factor [\d.]+ on {CPU})?", last), last
    return lines


def test_one_file_is_one_line(loaded: CTCCheckpoint, plant) -> None:
    result = run("--model", "m", plant("hello где"))
    assert (result.exit_code, result.stdout) == (0, "hello где\n")
    summary = rf"1 file, 0 failed, 0\.3 s of audio, real-time factor \d+\.\d{{3}} on {CPU}\n"
    assert re.fullmatch(summary, result.stderr)


def test_several_files_are_named(loaded: CTCCheckpoint, plant) -> None:
    first, second = plant("one", "1.wav"), plant("two", "2.wav")
    result = run(second, "--model", "m", first)
    assert (result.exit_code, result.stdout) == (0, f"{second}\ttwo\n{first}\tone\n")
    assert result.stderr.startswith("2 files, 0 failed, ")


def test_a_name_with_a_tab_or_a_line_break_stays_in_its_line(loaded: CTCCheckpoint, plant) -> None:
    first, second = plant("one", "a\tb\nc.wav"), plant("two", "2.wav")
    result = run("--model", "m", first, second)
    assert result.stdout == f"{first.parent}/a\\tb\\nc.wav\tone\n{second}\ttwo\n"


def test_folders_patterns_and_standard_input(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    one, two = plant("one", "1.wav"), plant("two", "2.wav")
    assert run("--model", "m", tmp_path).stdout == f"{one}\tone\n{two}\ttwo\n"
    assert run("--model", "m", tmp_path / "2*").stdout == f"{two}\ttwo\n"
    result = CliRunner().invoke(app, ["--model", "m", "-", str(two)], input=one.read_bytes())
    assert (result.exit_code, result.stdout) == (0, f"-\tone\n{two}\ttwo\n")


def test_json_is_an_object_a_line(loaded: CTCCheckpoint, plant) -> None:
    path, other = plant("где"), plant("a", "a.wav")
    result = run("--model", "m", "--format", "json", path, other)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["path"] for line in lines] == [str(path), str(other)]
    assert [line["format"] for line in lines] == ["speechssl-transcript"] * 2
    assert (lines[0]["text"], lines[0]["seconds"]) == ("где", 0.13)
    assert [word["text"] for segment in lines[0]["segments"] for word in segment["words"]] == ["где"]
    assert "где" in result.stdout


def test_text_is_utf8_whatever_the_locale(loaded: CTCCheckpoint, plant) -> None:
    for output_format in "txt", "json", "srt":
        result = CliRunner(charset="ascii").invoke(app, ["--model", "m", "--format", output_format, str(plant("где"))])
        assert "где".encode() in result.stdout_bytes


def test_names_that_are_no_utf8_survive(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    path = plant("one").rename(tmp_path / os.fsdecode(b"\xe9.wav"))
    assert run("--model", "m", path, tmp_path).stdout_bytes == os.fsencode(path) + b"\tone\n"
    assert json.loads(run("--model", "m", "--format", "json", path).stdout)["path"] == str(path)
    assert run("--model", "m", "--format", "json,txt", "--output-dir", tmp_path / "out", path).exit_code == 0
    assert json.loads((tmp_path / "out" / os.fsdecode(b"\xe9.json")).read_text("utf-8"))["path"] == str(path)


def test_bad_files_cost_a_line_each_and_the_good_ones_are_done(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    good, last = plant("good", "good.wav"), plant("last", "last.wav")
    empty, text, broken, nothing = (tmp_path / name for name in ("empty.wav", "text.wav", "cut.wav", "nothing"))
    empty.touch()
    text.write_text("this is no audio, however long it goes on\n" * 50)
    broken.write_bytes(good.read_bytes()[:400])
    nothing.mkdir()
    bad = [nothing, tmp_path / "missing.wav", empty, text, broken]
    result = run("--model", "m", good, *bad, last)
    assert result.exit_code == 1
    assert result.stdout == f"{good}\tgood\n{last}\tlast\n"
    assert result.stderr.splitlines()[-1].startswith("7 files, 5 failed, 0.3 s of audio")
    for path, line in zip(bad, without_summary(result.stderr), strict=True):
        assert line.startswith(f"error: {path}: ")


def test_too_little_memory_is_an_error_of_the_file(
    loaded: CTCCheckpoint, plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.model, "forward", lambda *_, **__: torch.empty(2**55))
    path = plant("one")
    (line,) = without_summary(run("--model", "m", path).stderr)
    assert line.startswith(f"error: {path}: not enough memory on cpu")


def test_silence_is_a_warning_on_one_line(loaded: CTCCheckpoint, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(1600), 16_000)
    result = run("--model", "m", tmp_path / "silent.wav")
    assert (result.exit_code, result.stdout) == (0, "\n")
    (line,) = without_summary(result.stderr)
    assert line == f"warning: {tmp_path / 'silent.wav'}: silence: nothing moves by more than 0.0001 of full scale"


def test_all_formats_at_once_in_a_folder(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    plant("one two", "a.b.wav")
    (tmp_path / "talks").mkdir()
    plant("three", "talks/c.flac")
    out = tmp_path / "new" / "out"
    result = run(
        "--model", "m", tmp_path, "--output-dir", out, "--format", "txt,json,srt", "--format", "vtt, tsv,txt,html"
    )
    assert (result.exit_code, result.stdout) == (0, "")
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    of_recordings = {f"{name}.{suffix}" for name in ("a.b", "talks/c") for suffix in FORMATS}
    assert names == of_recordings | {RECORD, "index.html"}
    assert 'href="talks/c.html"' in (out / "index.html").read_text("utf-8")
    assert (out / "a.b.txt").read_text("utf-8") == "one two\n"
    assert (out / "talks/c.tsv").read_text("utf-8") == "start\tend\ttext\n0\t140\tthree\n"
    assert (out / "talks/c.vtt").read_text("utf-8") == "WEBVTT\n\n00:00:00.000 --> 00:00:00.190\nthree\n"
    assert (out / "talks/c.srt").read_text("utf-8") == "1\n00:00:00,000 --> 00:00:00,190\nthree\n"
    assert json.loads((out / "a.b.json").read_text("utf-8"))["path"] == str(tmp_path / "a.b.wav")


@pytest.mark.parametrize("output_format", ["srt", "vtt", "tsv"])
def test_subtitles_of_one_file_are_printed(loaded: CTCCheckpoint, plant, output_format: str) -> None:
    first, second = plant("one two", "1.wav"), plant("three", "2.wav")
    whole = run("--model", "m", "--format", output_format, first)
    assert whole.exit_code == 0
    assert "one two\n" in whole.stdout
    words = run("--model", "m", "--format", output_format, "--words", first)
    assert "one\n" in words.stdout
    assert "two\n" in words.stdout
    several = run("--model", "m", "--format", output_format, first, second)
    assert (several.exit_code, several.stdout) == (1, "")
    assert several.stderr == f"error: --format {output_format}: expected one recording or --output-dir, found 2\n"


def test_a_run_that_was_broken_off_goes_on(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    first, second = plant("one", "1.wav"), plant("two", "2.wav")
    out = tmp_path / "out"
    arguments = ["--model", "m", "--output-dir", out, "--format", "txt,srt", first, second]
    assert run(*arguments).exit_code == 0
    for name in "1.txt", "1.srt", "2.txt":
        (out / name).write_text("kept")
    (out / "2.srt").unlink()  # as if it had been broken off there
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.stderr.startswith("2 files, 0 failed, 1 finished before, 0.1 s of audio, ")
    assert [(out / name).read_text() for name in ("1.txt", "1.srt", "2.txt")] == ["kept"] * 3
    assert "two" in (out / "2.srt").read_text()
    loaded.model.batch_shapes.clear()
    assert run(*arguments).stderr == "2 files, 0 failed, 2 finished before, 0.0 s of audio\n"
    assert loaded.model.batch_shapes == []
    assert run(*arguments, "--overwrite").exit_code == 0
    assert (out / "1.txt").read_text() == "one\n"


def test_outputs_of_other_settings_are_not_reused(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    path, other, out = plant("one", "a.wav"), plant("two", "b.wav"), tmp_path / "out"
    assert run("--model", "m", "--output-dir", out, path).exit_code == 0
    assert "1 finished before" in run("--model", "m", "--output-dir", out, path).stderr
    for options, what in (
        (["--model", "other"], "model"),
        (["--model", "m", "--start", "0.01"], "start"),
        (["--model", "m", "--channel", "1"], "channel"),
        (["--model", "m", "--precision", "float32"], "precision"),
        (["--model", "m", "--words"], "words"),
        (["--model", "n", "--split-at-pauses"], "model and split at pauses"),
    ):
        result = run(*options, "--output-dir", out, path, other)
        assert result.exit_code == 1
        assert result.stderr == (
            f"error: {out}: was made with another {what}; use --overwrite, or --output-dir with another folder\n"
        )
    assert {file.name for file in out.iterdir()} == {"a.txt", RECORD}
    assert (out / "a.txt").read_text() == "one\n"


def test_outputs_of_other_recordings_and_files_of_users_are_not_reused(
    loaded: CTCCheckpoint, plant, tmp_path: Path
) -> None:
    path, out = plant("one", "a.wav"), tmp_path / "out"
    arguments = ["--model", "m", "--output-dir", out]
    out.mkdir()
    (out / "a.txt").write_text("a user's own")
    refusal = f"error: {out / 'a.txt'}: already exists and was not made from "
    result = run(*arguments, path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{refusal}{path} (use --overwrite)\n1 file, 1 failed")
    assert (out / "a.txt").read_text() == "a user's own"
    assert run(*arguments, path, "--overwrite").exit_code == 0
    assert "1 finished before" in run(*arguments, path).stderr
    plant("two", "a.wav")
    assert run(*arguments, path).stderr.startswith(f"{refusal}{path} as it is now (use --overwrite)\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.wav").write_bytes(path.read_bytes())
    assert run(*arguments, elsewhere / "a.wav").stderr.startswith(f"{refusal}{elsewhere / 'a.wav'} (use --overwrite)")
    assert (out / "a.txt").read_text() == "one\n"


def test_files_of_a_former_model_are_not_taken_for_those_of_the_present_one(
    loaded: CTCCheckpoint, plant, tmp_path: Path
) -> None:
    path, out = plant("one", "a.wav"), tmp_path / "out"
    assert run("--model", "m", "--format", "txt,srt", "--output-dir", out, path).exit_code == 0
    assert run("--model", "other", "--format", "txt", "--overwrite", "--output-dir", out, path).exit_code == 0
    assert "1 finished before" in run("--model", "other", "--format", "txt", "--output-dir", out, path).stderr
    result = run("--model", "other", "--format", "txt,srt", "--output-dir", out, path)  # the first model's subtitles
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {out / 'a.srt'}: already exists and was not made from {path}")


def test_several_runs_may_write_into_a_folder(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    """And a line that one of them did not finish spoils no other."""
    first, second, out = plant("one", "a.wav"), plant("two", "b.wav"), tmp_path / "out"
    arguments = ["--model", "m", "--output-dir", out]
    assert run(*arguments, first).exit_code == 0
    record = (out / RECORD).read_text()
    assert run(*arguments, second).exit_code == 0
    assert (out / RECORD).read_text().startswith(record)
    with (out / RECORD).open("a") as file:
        file.write("\n" + record.strip().splitlines()[0])  # begun at the same time
        file.write('\n{"files": ["c.txt"], "reco')
    assert run(*arguments, plant("three", "d.wav")).exit_code == 0
    assert "3 finished before" in run(*arguments, first, second, tmp_path / "d.wav").stderr


def test_a_record_of_another_version_knows_nothing(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    path, out = plant("one", "a.wav"), tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("former")
    (out / RECORD).write_text('{"file": "a.txt", "recording": "a.wav", "model": "m"}\n[1]\n7\nnull\n')
    assert run("--model", "m", "--output-dir", out, path).stderr.startswith(f"error: {out / 'a.txt'}: already exists")
    assert run("--model", "m", "--output-dir", out, path, "--overwrite").exit_code == 0
    assert "1 finished before" in run("--model", "m", "--output-dir", out, path).stderr


def test_the_second_recording_of_a_name_costs_a_line(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    first, second, third = plant("one", "a.wav"), plant("two", "a.flac"), plant("three", "b.wav")
    result = run("--model", "m", "--output-dir", tmp_path / "out", first, second, third)
    assert (result.exit_code, result.stdout) == (1, "")
    line, last = result.stderr.splitlines()
    assert line == f"error: {second}: would overwrite the output of {first}; skipped"
    assert last.startswith("3 files, 1 failed, ")
    assert [(tmp_path / "out" / name).read_text() for name in ("a.txt", "b.txt")] == ["one\n", "three\n"]


def test_recordings_of_one_name_from_two_folders_keep_their_paths(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    for folder in "first", "second":
        (tmp_path / folder).mkdir()
        plant(folder, f"{folder}/a.wav")
    out = tmp_path / "out"
    arguments = ["--model", "m", "--output-dir", out, tmp_path / "first", tmp_path / "second"]
    assert run(*arguments).exit_code == 0
    assert [(out / folder / "a.txt").read_text() for folder in ("first", "second")] == ["first\n", "second\n"]
    assert "2 finished before" in run(*arguments).stderr


def test_an_output_that_cannot_be_written_is_one_line(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    path = plant("one")
    assert run("--model", "m", "--output-dir", path, path).stderr.startswith(f"error: {path}: ")
    other, long = plant("two", "other.wav"), plant("three", f"{'x' * 251}.wav")
    (tmp_path / "out" / "speech.txt").mkdir(parents=True)
    for options in ([], ["--overwrite"]):
        result = run("--model", "m", "--output-dir", tmp_path / "out", *options, path, other, long, "y" * 300)
        assert result.exit_code == 1
        *lines, last = result.stderr.splitlines()
        assert any(line.startswith(f"error: {tmp_path / 'out' / 'speech.txt'}: ") for line in lines)
        assert any(line.startswith(f"error: {'y' * 300}: ") for line in lines)
        assert last.startswith("4 files, 2 failed, ")
        assert (tmp_path / "out" / "other.txt").read_text() == "two\n"
        assert (tmp_path / "out" / f"{'x' * 251}.txt").read_text() == "three\n"
    result = run("--model", "m", "--output-dir", tmp_path / "out", "--format", "json", long)  # a name too long
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'out' / ('x' * 251)}.json: ")


def test_an_interrupt_leaves_whole_files_only(
    loaded: CTCCheckpoint, plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [plant(text, f"{text}.wav") for text in ("one", "two", "three")]

    def interrupt(transcript: Transcript, words: bool) -> str:
        if transcript.text == "two":
            raise KeyboardInterrupt
        return "whole"

    monkeypatch.setattr(Transcript, "to_srt", interrupt)
    result = run("--model", "m", "--output-dir", tmp_path / "out", "--format", "txt,srt", *paths)
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        "one.txt": "one\n",
        "one.srt": "whole",
        RECORD: (tmp_path / "out" / RECORD).read_text(),
    }
    monkeypatch.undo()
    monkeypatch.setattr("speechssl.transcribe.transcriber.load_ctc", lambda path, device, language: loaded)
    result = run("--model", "m", "--output-dir", tmp_path / "out", "--format", "txt,srt", *paths)
    assert result.exit_code == 0
    assert result.stderr.startswith("3 files, 0 failed, 1 finished before, ")
    assert len(list((tmp_path / "out").glob("*.srt"))) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupt_ends_a_command_that_waits_for_standard_input(model_folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "speechssl.commands.transcribe",
        "--model",
        str(model_folder),
        "--device",
        "cpu",
        "-",
    ]

    def heed_interrupts() -> None:  # which whatever runs in the background of a script ignores
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=heed_interrupts) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(b"RIFF" + bytes(1_000_000))  # more than a pipe holds: written once it is being read
        process.stdin.flush()
        time.sleep(1)  # until it waits for more
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr.read() == b"interrupted\n"


def test_times_of_a_part_count_from_the_start_of_the_recording(
    loaded: CTCCheckpoint, planted_waveform, tmp_path: Path
) -> None:
    waveform = planted_waveform("abc def")  # frames of 10 ms, three a letter
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([0 * waveform, waveform], axis=1), 16_000)
    part = ["--model", "m", "--channel", 2, "--start", 0.12, "--end", 0.21, path]
    assert run(*part).stdout == "def\n"
    result = json.loads(run(*part, "--format", "json").stdout)
    (word,) = result["segments"][0]["words"]
    assert (word["start"], result["seconds"]) == (0.12, 0.21)
    assert 0.18 <= word["end"] <= 0.21
    assert run("--model", "m", "--channel", 1, path).stdout == "\n"
    for option, message in (
        (["--channel", 3], "a channel from 1 to 2, found 3"),
        (["--start", 5], "more than 5 seconds"),
    ):
        result = run("--model", "m", *option, path)
        assert result.exit_code == 1
        assert f"error: {path}: expected {message}" in result.stderr


def test_references_are_scored_in_the_same_run(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    first, second = plant("one two", "1.wav"), plant("bad", "2.wav")
    (tmp_path / "1.txt").write_text("one too")
    (tmp_path / "2.txt").write_text("bad")
    result = run("--model", "m", first, second, "--reference", tmp_path)
    assert result.exit_code == 0
    (line,) = without_summary(result.stderr)
    assert line == "score of 2 files, lower case: WER % 33.3 [0.0, 50.0], CER % 10.0 [0.0, 14.3]"
    second.write_bytes(b"broken")
    result = run("--model", "m", first, second, "--reference", tmp_path)
    assert result.exit_code == 1
    assert without_summary(result.stderr)[-1].startswith("score of 1 of 2 files, lower case: WER % 50.0, ")
    plant("bad", "2.wav")
    (tmp_path / "2.txt").unlink()
    result = run("--model", "m", first, second, "--reference", tmp_path)
    assert (result.exit_code, result.stdout) == (0, f"{first}\tone two\n{second}\tbad\n")
    warning, score = without_summary(result.stderr)
    assert warning == f"warning: {tmp_path}: expected a text for {second}, found none"
    assert score.startswith("score of 1 of 2 files, lower case: ")
    result = run("--model", "m", second, "--reference", tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {tmp_path}: expected a text for {second}, found none\n"
    assert run("--model", "m", first, "--start", 0, "--reference", tmp_path).exit_code == 2


def test_references_are_compared_as_asked_for(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    said, silent = plant("do stop", "1.wav"), plant("uh", "2.wav")
    (tmp_path / "1.txt").write_text("\u201cDo\u201d, stop!")
    (tmp_path / "2.txt").touch()
    arguments = ["--model", "m", said, silent, "--reference", tmp_path]
    [line] = without_summary(run(*arguments).stderr)
    assert line.startswith("score of 2 files (1 empty), lower case: WER % 150.0 ")  # both words, and a third
    [line] = without_summary(run(*arguments, "--normalize", "--language", "az").stderr)
    assert line.startswith("score of 2 files (1 empty), words without punctuation (az): WER % 50.0 ")
    assert run(*arguments[:4], "--normalize").exit_code == 2


@pytest.mark.parametrize("output_format", ["txt", "json"])
def test_finished_files_are_scored_too(loaded: CTCCheckpoint, plant, tmp_path: Path, output_format: str) -> None:
    first, second = plant("one two", "1.wav"), plant("bad", "2.wav")
    (tmp_path / "said").mkdir()
    (tmp_path / "said" / "1.txt").write_text("one too")
    (tmp_path / "said" / "2.txt").write_text("bad")
    arguments = ["--model", "m", "--output-dir", tmp_path / "out", "--format", output_format]
    assert run(*arguments, first).exit_code == 0
    expected = "score of 2 files, lower case: WER % 33.3 [0.0, 50.0], CER % 10.0 [0.0, 14.3]"
    for _ in range(2):
        result = run(*arguments, first, second, "--reference", tmp_path / "said")
        assert result.exit_code == 0
        assert expected in result.stderr.splitlines()


def test_results_go_beside_their_recordings_and_are_kept(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        plant(f"one {folder}", f"{folder}/x.wav")
    (tmp_path / "b" / "x.srt").write_text("mine")
    result = run("--model", "m", tmp_path, "--beside", "--format", "all")
    assert result.exit_code == 1
    assert "b/x.srt: already exists and was not made from" in result.stderr
    assert (tmp_path / "b" / "x.srt").read_text() == "mine"
    assert not (tmp_path / "b" / "x.txt").exists()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {RECORD, "x.wav", *(f"x.{name}" for name in FORMATS)}
    assert (tmp_path / "a" / "x.txt").read_text() == "one a\n"
    again = run("--model", "m", tmp_path / "a", "--beside", "--format", "all")
    assert "1 finished before" in again.stderr
    piped = CliRunner().invoke(app, ["--model", "m", "-", "--beside"], input=(tmp_path / "a" / "x.wav").read_bytes())
    assert piped.exit_code == 1
    assert "error: <stdin>: expected a file, to write beside it" in piped.stderr
    missing = run("--model", "m", tmp_path / "none.wav", "--beside")
    assert missing.stderr.startswith(f"error: {tmp_path / 'none.wav'}: expected an audio file, found none")


def test_a_folder_that_is_refused_costs_a_line_however_many_recordings_it_has(
    loaded: CTCCheckpoint, plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        plant("one", f"{name}.wav")
    assert run("--model", "m", tmp_path, "--beside").exit_code == 0
    result = run("--model", "m", tmp_path, "--beside", "--words")
    instead = "use --overwrite, or --output-dir with another folder"
    assert result.exit_code == 1
    assert without_summary(result.stderr) == [f"error: {tmp_path}: was made with another words; {instead}"]
    assert "1 finished before" in run("--model", "m", tmp_path / "a.wav", "--beside").stderr

    def refuse(**_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    plant("one", "c.wav")
    loaded.model.batch_shapes.clear()
    monkeypatch.setattr("speechssl.transcribe.outputs.TemporaryFile", refuse)
    assert "1 finished before" in run("--model", "m", tmp_path / "a.wav", "--beside").stderr
    result = run("--model", "m", tmp_path, "--beside")
    assert result.exit_code == 1
    assert without_summary(result.stderr) == [f"error: {tmp_path}: cannot be written: Permission denied"]
    assert not loaded.model.batch_shapes


def test_what_a_model_wrote_is_not_taken_for_what_is_said(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    recordings = [plant(f"one {name}", f"talks/{name}.wav") for name in "ab"]
    assert run("--model", "m", folder, "--beside", "--format", "txt,srt").exit_code == 0
    assert run("--model", "m", folder, "--output-dir", tmp_path / "out", "--format", "txt").exit_code == 0
    assert run("--model", "m", folder, "--beside", "--format", "html", "--words", "--overwrite").exit_code == 0
    (folder / "a.txt").write_text("one c\n", "utf-8")  # corrected
    dropped: list[tuple[str, str]] = []
    said = [label.text for label in read_labels_beside(recordings, lambda *what: dropped.append(what))]
    said += [label.text for label in read_labels(tmp_path / "out", lambda *what: dropped.append(what))]
    assert said == ["one c"]
    written = [*(folder / name for name in ("a.srt", "b.txt", "b.srt")), *(tmp_path / "out").glob("*.txt")]
    assert sorted(dropped) == sorted(("unchanged output of transcribe-audio", str(file)) for file in written)
    with pytest.warns(UserWarning, match=rf"talks: 1 text not read: .*unchanged, such as {folder / 'b.txt'}$"):
        utterances, _ = scan_folder(folder)
    assert [utterance.text for utterance in utterances] == ["one c", None]
    result = run("--model", "m", folder, "--reference", folder)
    assert "score of 1 of 2 files" in result.stderr
    assert f"warning: {folder / 'b.txt'}: expected what is said, found what transcribe-audio wrote" in result.stderr


def test_letters_have_their_times_if_asked_for(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    path = plant("hello где")
    asked = json.loads(run("--model", "m", "--format", "json", "--letters", path, "--start", 0.15).stdout)
    [word] = asked["segments"][0]["words"]
    assert [letter["text"] for letter in word["letters"]] == list("где")
    assert [letter["start"] for letter in word["letters"]] == pytest.approx([0.18, 0.21, 0.24]), (
        "of the whole recording"
    )
    assert all(letter["end"] == pytest.approx(letter["start"] + 0.02) for letter in word["letters"])
    plain = json.loads(run("--model", "m", "--format", "json", path).stdout)
    assert "letters" not in plain["segments"][0]["words"][0]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("1:30", 90), ("0:01.25", 1.25), ("1:02:03.5", 3723.5), ("100:00", 6000)],
)
def test_times_are_seconds_or_clocks(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "a", "1:60", "-1", "1:-2", "1:2:3:4", "1.5:10", "nan", "inf", "1e10", "1:", ":1"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_time(text)


def test_standard_input_is_called_so_in_errors(loaded: CTCCheckpoint) -> None:
    result = CliRunner().invoke(app, ["--model", "m", "-"], input=b"no recording")
    assert result.stderr.startswith("error: <stdin>: expected audio, found what neither")


def test_samples_without_a_file_come_from_standard_input(loaded: CTCCheckpoint, planted_waveform) -> None:
    samples = (planted_waveform("hello где") * 32768).round().astype("<i2").tobytes()
    result = CliRunner().invoke(app, ["--model", "m", "-", "--raw-rate", "16000"], input=samples)
    assert (result.exit_code, result.stdout) == (0, "hello где\n")
    assert "16 kHz" not in result.stderr
    assert run("--model", "m", "x.wav", "--raw-rate", "16000").exit_code == 2


def test_quiet_says_nothing_but_errors(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    path, missing = plant("one"), tmp_path / "missing.wav"
    assert run("--model", "m", "--quiet", path).stderr == ""
    result = run("--model", "m", "--quiet", path, missing)
    assert result.exit_code == 1
    assert result.stderr == f"error: {missing}: expected an audio file, found none\n"


@pytest.mark.parametrize(("is_quiet", "shown"), [(False, True), (True, False)])
def test_a_terminal_shows_a_bar(
    checkpoint: CTCCheckpoint, plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_quiet: bool, shown: bool
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    folder = OutputFolder(tmp_path / "out", [Format.TXT], False, False, False, {})
    assert transcribe_files(*find_inputs([plant("one")]), folder, lambda: Transcriber(checkpoint), None, is_quiet)
    assert ("1/1" in screen.getvalue()) == shown


def test_nothing_asked_for_is_answered_with_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: transcribe-audio ")
    assert result.stderr.count("  transcribe-audio --model ") == 4
    for line in result.stderr.splitlines():
        if line.startswith("  transcribe-audio"):  # as it would be understood
            arguments = [*line.split("#")[0].split(">")[0].split()[1:], "--help"]
            assert run(*arguments).exit_code == 0


def test_the_model_can_come_from_the_environment(loaded: CTCCheckpoint, plant) -> None:
    result = CliRunner().invoke(app, [str(plant("one"))], env={"SPEECHSSL_MODEL": "m"})
    assert (result.exit_code, result.stdout) == (0, "one\n")


def test_a_missing_model_is_one_line(plant, tmp_path: Path) -> None:
    for folder in tmp_path / "nowhere", tmp_path:
        result = run("--model", folder, plant("one"))
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: {folder}: ")
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        "a.wav",
        "--model m",
        "--model m --nonsense a.wav",
        "--model m --format doc a.wav",
        "--model m --format txt,json a.wav",
        "--model m --start 2 --end 2 a.wav",
        "--model m --start nan a.wav",
        "--model m --start inf a.wav",
        "--model m --end nan a.wav",
        "--model m --channel 0 a.wav",
        "--model m --batch-seconds 0 a.wav",
        "--model m --batch-seconds nan a.wav",
    ],
)
def test_only_the_syntax_exits_2(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPEECHSSL_MODEL", raising=False)
    result = run(*arguments.split())
    assert (result.exit_code, result.stdout) == (2, "")


def test_help_needs_no_torch() -> None:
    for module in "speechssl.commands.transcribe", "speechssl.__main__":
        code = (
            f"import sys; sys.argv = ['x', '--help']\nfrom {module} import main\n"
            "try: main()\nexcept SystemExit as stop: status = stop.code\n"
            "assert not {'torch', 'numpy', 'soundfile'} & {*sys.modules}, 'heavy'\nsys.exit(status)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_is_one_line(model_folder: Path, plant) -> None:
    result = run("--model", model_folder, "--device", "cuda", plant("one"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: device cuda: not available")
    assert result.stderr.count("\n") == 1


def test_a_closed_stdout_is_needed_for_printing_alone(model_folder: Path, plant, tmp_path: Path) -> None:
    command = f'{sys.executable} -m speechssl.commands.transcribe --device cpu --model "$0" "$1" "${{@:2}}" >&-'
    arguments = ["bash", "-c", command, str(model_folder), str(plant("one"))]
    result = subprocess.run(arguments, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "error: stdout: expected it open, found it closed\n")
    result = subprocess.run(
        [*arguments, "--output-dir", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "speech.txt").exists()


def test_a_reader_that_leaves_is_no_traceback(model_folder: Path, plant) -> None:
    command = [sys.executable, "-m", "speechssl.commands.transcribe", "--model", str(model_folder), str(plant("one"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 1
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
