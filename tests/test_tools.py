"""The programs that measure transcription run, with models of no size, and say what they measured."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from programs import load_tool

from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.saved_model import ModelDescription
from speechssl.data.manifest import read_manifest
from speechssl.data.units import Letters
from speechssl.decode.arpa import write_arpa
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.model.causal_transformer import CausalTransformerConfig
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig
from speechssl.transcribe import windows

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "recipes" / "prompts" / "corpus"

Say = Callable[..., str]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """What imports a program of `tools`."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(windows, "WINDOW_SECONDS", windows.WINDOW_SECONDS)  # score_long sets it
    threads = torch.get_num_threads()
    yield load_tool
    torch.set_num_threads(threads)


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Say:
    """What runs a program and gives its stdout."""

    def say(program: ModuleType, *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", *map(str, arguments)])
        capfd.readouterr()
        program.main()
        return capfd.readouterr().out

    return say


def rows(table: str) -> list[dict[str, str]]:
    """Of a Markdown table, by column."""
    head, rule, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    assert set(rule) == {"---"}
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_speed_and_memory_beside_others(
    load: Callable[[str], ModuleType], say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    program = load("bench_transcribe")
    assert float(say(program, "--tiny", "--seconds", "1", "--threads", "1", "--memory-of", "speechssl")) > 0

    peaks = {"speechssl": 400, "transformers": 500, "torchaudio": 800}
    arguments = ["--tiny", "--repeats", "1", "--seconds", "1", "--mixed", "0.5", "1", "--threads", "1"]

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        *same, flag, model = command
        assert same == [sys.executable, program.__file__, *arguments]
        assert flag == "--memory-of"
        return subprocess.CompletedProcess(command, 0, f"a warning\n{peaks[model]}\n")

    monkeypatch.setattr(subprocess, "run", run)
    speeds, speed_table, memory, memory_table = say(program, *arguments).split("\n\n")
    assert speeds.startswith("Seconds of audio a second, 1 threads, torch ")
    assert memory == "Peak memory in MiB, 1 s:"
    found = rows(speed_table)
    assert [row["input"] for row in found] == ["1 s", "0.5 + 1 s", "0.5 + 1 s, theirs padded (not valid)"]
    for row in found:
        ours, *theirs = (float(row[model]) for model in program.MODELS)
        assert float(row["ours / faster peer"]) == pytest.approx(ours / max(theirs), rel=0.05, abs=0.01)
    assert rows(memory_table) == [{name: str(peak) for name, peak in peaks.items()} | {"ours / smaller peer": "0.80"}]


def test_a_long_recording(load: Callable[[str], ModuleType], say: Say) -> None:
    said = say(load("bench_long"), "--tiny", "--hours", "0.02", "--threads", "1").splitlines()[-1]
    assert re.fullmatch(
        r"0\.02 hours: \d+ MiB resident at most, \d+\.\d minutes, "
        r"\d+\.\d s of audio a second with 1 threads; \d+\.\d MiB of JSON and SRT",
        said,
    )
    assert int(said.split()[2]) > 100


def test_the_cost_of_exact_streams(
    load: Callable[[str], ModuleType], say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")  # it imports another one
    head, table = say(load("bench_stream"), "--seconds", "1", "--chunks", "0.1", "0.25").split("\n\n")
    assert head.startswith("Streams of 1 s, one thread")
    found = rows(table)
    ways = ["2 s", "the whole past", "convolutions"]
    assert [(row["attends to"], row["chunk in s"]) for row in found] == [(w, c) for w in ways for c in ("0.1", "0.25")]
    for row in found:
        assert float(row["latency in ms, 95 %"]) > 1000 * float(row["chunk in s"])
        assert float(row["MiB of past"]) > 0


FEATURES: dict[str, Any] = {"dims": (8, 8, 8), "kernels": (10, 8, 4), "strides": (10, 8, 4)}
SIZES: dict[str, Any] = {
    "num_layers": 1,
    "model_dim": 16,
    "num_heads": 2,
    "ffn_dim": 16,
    "position_kernel": 4,
    "position_groups": 2,
}


def write_spoken(folder: Path, encoder: EncoderConfig) -> tuple[Path, Path]:
    """A model at random, and a manifest of four utterances."""
    _, columns, *utterances = (PROMPTS / "test.tsv").read_text("utf-8").splitlines()
    manifest = folder / "few.tsv"
    manifest.write_text("\n".join([str(PROMPTS), columns, *utterances[:4], ""]), "utf-8")
    vocabulary = Letters.from_texts(["abcdefghijklmnopqrstuvwxyz'"])
    torch.manual_seed(0)
    model = CTCModel(encoder, len(vocabulary))
    torch.nn.init.normal_(model.head.weight)  # so that different sounds give different letters
    (folder / "model").mkdir()
    description = ModelDescription(kind="ctc", step=1, encoder=encoder)
    save_model(folder / "model", description, model.state_dict(), vocabulary)
    return folder / "model", manifest


@pytest.fixture
def spoken(tmp_path: Path) -> tuple[Path, Path]:
    """What most programs are tried with."""
    encoder = EncoderConfig(feature_encoder=FeatureEncoderConfig(**FEATURES), context=TransformerConfig(**SIZES))
    return write_spoken(tmp_path, encoder)


@pytest.mark.parametrize("noise", [None, "10"])
def test_long_recordings_in_every_way(
    noise: str | None, load: Callable[[str], ModuleType], say: Say, spoken: tuple[Path, Path]
) -> None:
    model, manifest = spoken
    options = ["--minutes", "0.05", *(["--noise", noise] if noise else [])]
    program = load("score_long")
    joined, table, stream = say(program, model, manifest, *options).split("\n\n")
    assert joined.startswith(f"{manifest}: ")
    assert joined.endswith(", white noise 10.0 dB below the speech" if noise else "pauses of 0.8 s")
    found = {row["processed"]: row for row in rows(table)}
    ways = ["in windows", "split at pauses", "split at pauses, by Silero VAD", "whole", "as a stream"]
    assert list(found) == [
        *([] if noise else ["utterances one by one"]),
        *(way for way in ways if "Silero" not in way or importlib.util.find_spec("silero_vad")),
    ]
    for row in found.values():
        assert float(row["WER %"]) > 0 < float(row["CER %"])
    assert found["in windows"]["CER % against whole"] == found["whole"]["CER % against whole"] == "0.0"
    assert re.match(r"In the stream a word is final \d+\.\d s of audio after its end in the median", stream)


def test_a_causal_model_says_in_a_stream_what_it_says_of_the_whole(
    load: Callable[[str], ModuleType], say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same normalization."""
    program = load("score_long")
    monkeypatch.setattr(program, "find_spec", lambda name: None)  # one way less, for time
    features, context = FeatureEncoderConfig(**FEATURES, norm="layer"), CausalTransformerConfig(**SIZES)
    encoder = EncoderConfig(feature_encoder=features, context=context, normalize_waveforms=1e-8)
    options = ["--minutes", "0.05", "--noise", "30"]
    _, table, stream = say(program, *write_spoken(tmp_path, encoder), *options).split("\n\n")
    found = {row["processed"]: row for row in rows(table)}
    assert found["as a stream"] == found["whole, normalized as a stream"] | {"processed": "as a stream"}
    assert re.search(r"; a step of 0\.1 s takes \d+ ms .*\nIts text is that of .* in (\d) of \1 recordings\.$", stream)


def test_every_level_and_offset(
    load: Callable[[str], ModuleType], say: Say, spoken: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = load("score_levels")
    for name, few in {"LEVELS": (0, -40), "OFFSETS": (0.1,), "NOISES": (-40,), "SILENT_SECONDS": 2}.items():
        monkeypatch.setattr(program, name, few)
    manifest, scores, letters = say(program, *spoken, "--sentences", "2").split("\n\n")
    assert manifest.startswith(f"{spoken[1]}: 2 utterances")
    found = {row["CER %"]: row for row in rows(scores)}
    assert list(found) == ["+0 dB", "-40 dB", "offset 0.1"]
    assert all(float(row["as a stream"]) > 0 < float(row["in one piece"]) for row in found.values())
    assert found["-40 dB"] != found["+0 dB"] | {"CER %": "-40 dB"}  # this model is not normalized
    silence, noise = rows(letters)
    assert (silence["letters in 2 s"], silence["split at pauses"]) == ("silence", "0")
    assert noise["letters in 2 s"] == "white noise of -40 dBFS"
    clipped = program.in_16_bits(np.array([0.7, -0.7, 0.1], np.float32), 6.0, 0.0)
    assert clipped.tolist() == [32767 / 32768, -1.0, 6538 / 32768]


def test_hot_words_and_decoys(load: Callable[[str], ModuleType], say: Say, spoken: tuple[Path, Path]) -> None:
    program = load("score_hotwords")
    head, table = say(program, *spoken, PROMPTS / "dev.tsv", "--num", "3", "--boosts", "0", "20").split("\n\n")
    assert re.search(r"\n3 hot words, said [1-9]\d* times: (\S+ ?){3}\n3 decoys, never said: (\S+ ?){3}$", head)
    found = {(row["listened for"], row["boost"]): row for row in rows(table)}
    assert [boost for _, boost in found] == ["-", *["0", "20"] * 3]
    assert found["hot words", "0"]["WER %"] == found["nothing", "-"]["WER %"]
    assert int(found["hot words", "20"]["hot words found"].split()[0]) > 0 == int(found["decoys", "0"]["inserted"])
    assert int(found["decoys", "20"]["decoys inserted"]) > 0
    assert program.count_words(["a", "b"], ["a a", "b"], ["a c", "b b"]) == (3, 2, 1)


def test_beam_search_beside_that_of_flashlight(
    load: Callable[[str], ModuleType], say: Say, spoken: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(["please enter the number", "the number you have dialed"], 2))
    settings, table = say(load("bench_beam_search"), *spoken, tmp_path / "lm.arpa", "--repeats", "1").split("\n", 1)
    assert settings == "beam 50, lm.arpa x 0.8, word +2, unknown -10"
    found = {row["decoder"]: row for row in rows(table)}
    assert list(found) == ["speechssl", "flashlight", "speechssl, pruned", "flashlight, pruned"]
    assert all(float(value) > 0 for row in found.values() for name, value in row.items() if name != "decoder")


def test_memory_of_language_models(load: Callable[[str], ModuleType], say: Say, tmp_path: Path) -> None:
    small, large = tmp_path / "small.arpa", tmp_path / "large.arpa"
    words = [f"word{number}" for number in range(30)]
    write_arpa(small, estimate_ngrams(words, 2))
    write_arpa(large, estimate_ngrams([f"{first} {second}" for first in words for second in words], 2))
    few, many = rows(say(load("measure_lm"), small, large))
    assert (int(few["n-grams"]), int(many["n-grams"])) == (30 * 3 + 3, 30 * 33 + 3)
    for row in few, many:
        assert 100 < float(row["memory, bytes an n-gram"]) < 1000
        assert 5 < float(row["file, bytes an n-gram"]) < 40


def test_onnx_runtime_beside_pytorch(load: Callable[[str], ModuleType], say: Say, spoken: tuple[Path, Path]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    program = load("bench_onnx")
    printed = say(program, *spoken, "--repeats", "1", "--seconds", "1", "--mixed", "0.5", "1")
    head, speeds, costs = printed.split("\n\n")
    assert head.startswith("Seconds of audio a second of one core")
    assert [row["input"] for row in rows(speeds)] == ["1 s", "0.5 + 1 s"]
    for row in rows(speeds):
        ratios = {name: float(row[name].split("(")[1].strip(")")) for name in program.NAMES}
        assert ratios.pop("PyTorch") == 1
        assert min(ratios.values()) > 0
    sizes, peaks, errors = rows(costs)
    assert float(sizes["ONNX Runtime int8"]) > 0
    assert float(peaks["PyTorch"]) > float(peaks["ONNX Runtime"]) > 10
    assert errors[""] == "CER % on few.tsv"
    assert errors["PyTorch"] == errors["ONNX Runtime"]


def test_the_costs_of_a_manifest(
    load: Callable[[str], ModuleType], say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = load("bench_manifest")
    program.write_rows(tmp_path / "a.tsv", 30)
    manifest = read_manifest(tmp_path / "a.tsv")
    assert len({utterance.path for utterance in manifest}) == 30
    assert 5 < manifest.seconds.mean() < 20

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, program.__file__, "--measure"]
        costs = program.measure(Path(command[3]), 0)
        assert costs.shared_megabytes > costs.megabytes > 0
        return subprocess.CompletedProcess(command, 0, json.dumps(asdict(costs)))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(program.multiprocessing, "get_context", lambda method: SimpleNamespace(Pool=ThreadPool))
    first, second, predicted = rows(say(program, "--rows", "5000", "20000"))
    assert [row["rows"] for row in (first, second, predicted)] == ["5,000", "20,000", "200,000"]
    assert float(predicted["shared MB"]) == pytest.approx(10 * float(second["shared MB"]), rel=0.05)
    assert predicted["worker MB"] == second["worker MB"]
