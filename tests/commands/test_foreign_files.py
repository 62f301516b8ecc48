"""Every command that takes a model takes the single files of other toolkits, each composed by hand around a peer."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import soundfile
import torch
from click.testing import Result
from fairseq2_files import PIECES, to_fairseq2, tokenizer
from foreign_checks import greedy_text, layers_of
from safetensors.torch import load_file
from spidr_files import make_spidr
from torch import nn
from typer.testing import CliRunner
from wav2vec_files import Reference, wav2vec_settings

from speechssl.__main__ import app
from speechssl.checkpoint.reader import load_ctc, load_encoder, read_model
from speechssl.commands.transcribe import app as transcribe_app
from speechssl.data.manifest import Utterance, write_manifest
from speechssl.data.pieces import SPACE
from speechssl.errors import CheckpointError
from speechssl.transcribe.transcriber import Transcriber

PUBLISHED = {  # widths and kernels, where a file does not tell heads and strides
    "encoder_embed_dim": 768,
    "encoder_num_heads": 12,
    "encoder_num_layers": 1,
    "encoder_pos_conv_groups": 16,
    "extractor_conv_layer_config": [(8, 10, 5), *[(8, 3, 2)] * 4, (8, 2, 2), (24, 2, 2)],
}
SAMPLES = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1


@dataclass(frozen=True)
class Source:
    """A file, the model inside it, whether it hears normalized waveforms, and what its outputs write, if it has any."""

    file: Path
    peer: nn.Module
    is_normalized: bool = False
    symbols: tuple[str, ...] | None = None


def spaced(symbols: Sequence[str], delimiter: str = "|") -> tuple[str, ...]:
    return tuple(" " if symbol == delimiter else symbol for symbol in symbols)


def fairseq_namespace(folder: Path) -> Source:
    peer = foreign.make_peer("base", 32)
    weights = foreign.fine_tuned_names(foreign.fairseq_names(peer, "default"), peer.aux)
    pretrained = argparse.Namespace(**foreign.fairseq_settings())
    args = argparse.Namespace(normalize=False, w2v_args=pretrained, labels="ltr")
    torch.save({"args": args, "model": weights}, folder / "a.pt", _use_new_zipfile_serialization=False)
    return Source(folder / "a.pt", peer, False, spaced(foreign.SYMBOLS))


def fairseq_hydra(folder: Path) -> Source:
    peer = foreign.make_peer("large", 32)
    weights = foreign.fine_tuned_names(foreign.fairseq_names(peer, "layer_norm"), peer.aux)
    model = {"w2v_args": {"model": foreign.fairseq_settings("large"), "task": {}}, "normalize": True}
    symbols = (*foreign.SYMBOLS[:4], *reversed(foreign.LETTERS))
    with foreign.modules(fairseq__data__dictionary__Dictionary=foreign.Dictionary):
        state = {"target_dictionary": foreign.Dictionary(list(symbols))}
        cfg = {"model": model, "task": {"normalize": True, "labels": "ltr"}}
        torch.save({"cfg": cfg, "model": weights, "task_state": state}, folder / "a.pt")
    return Source(folder / "a.pt", peer, True, spaced(symbols))


def s3prl(folder: Path) -> Source:
    peer = foreign.make_peer()
    parts = {"task_cfg": {"normalize": False}, "model_cfg": foreign.fairseq_settings()}
    torch.save({**parts, "model_weight": foreign.fairseq_names(peer, "default")}, folder / "a.pt")
    return Source(folder / "a.pt", peer)


def wavlm(folder: Path) -> Source:
    peer = foreign.make_wavlm()
    settings = foreign.fairseq_settings(normalize=False, num_buckets=16, max_distance=20)
    torch.save({"cfg": settings, "model": foreign.fairseq_names(peer, "default")}, folder / "a.pt")
    return Source(folder / "a.pt", peer)


def torchaudio(folder: Path) -> Source:
    peer = foreign.make_peer("large", 29, **PUBLISHED)
    torch.save(peer.state_dict(), folder / "a.pth")
    return Source(folder / "a.pth", peer, True, spaced(("-", *foreign.LETTERS)))


def fairseq2(folder: Path) -> Source:
    peer = foreign.make_peer("large", len(PIECES), **PUBLISHED)
    torch.save({"model": to_fairseq2(peer, "large")}, folder / "a.pt")
    (folder / "a.model").write_bytes(tokenizer(PIECES))
    return Source(folder / "a.pt", peer, True, spaced(PIECES, SPACE))


def spidr(folder: Path) -> Source:
    peer, weights = make_spidr(has_biases=False)
    torch.save(weights, folder / "a.pt")
    return Source(folder / "a.pt", peer, True)


def wav2vec(folder: Path) -> Source:
    torch.manual_seed(0)
    peer = foreign.randomize(Reference(True)).eval()
    torch.save({"args": argparse.Namespace(**wav2vec_settings()), "model": peer.state_dict()}, folder / "a.pt")
    return Source(folder / "a.pt", peer)


SOURCES = (fairseq_namespace, fairseq_hydra, s3prl, wavlm, torchaudio, fairseq2, spidr, wav2vec)


@pytest.fixture(params=SOURCES, ids=lambda make: make.__name__)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    (tmp_path / "model").mkdir()
    made: Source = request.param(tmp_path / "model")
    return made


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "noise.wav", SAMPLES, 16_000, subtype="FLOAT")
    return tmp_path / "noise.wav"


def run(application: Any, *arguments: object) -> Result:
    return CliRunner().invoke(application, [str(argument) for argument in arguments])


@torch.no_grad()
def heard(source: Source) -> torch.Tensor:
    waveform = torch.from_numpy(SAMPLES)
    return (nn.functional.layer_norm(waveform, waveform.shape) if source.is_normalized else waveform)[None]


def test_transcribe_audio(source: Source, recording: Path) -> None:
    result = run(transcribe_app, "--model", source.file, "--device", "cpu", recording)
    if source.symbols is None:
        assert result.exit_code == 1
        assert "expected a fine-tuned (ctc) model, found a pretrained one" in result.stderr
        assert result.stderr.count("\n") == 1
        return
    assert result.exit_code == 0, result.stderr
    with torch.no_grad():
        expected = greedy_text(source.peer(heard(source))[0][0], source.symbols)
    assert len(set(expected)) > 3
    assert result.stdout == f"{expected}\n"


def test_extract(source: Source, recording: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.safetensors"
    result = run(app, "extract", source.file, recording, "--layer", 1, "-o", output, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    with torch.no_grad():
        expected = layers_of(source.peer, heard(source))[0]
    found = load_file(output)[str(recording)]
    assert (found - expected[0]).norm() <= 1e-4 * expected.norm()  # as far as transcription's pieces differ


TRAINING = """
init = "{init}"

[data]
train = "{folder}/train.tsv"
dev = "{folder}/train.tsv"
license = "CC0"
num_workers = 0

[batches]
seconds = 4
min_seconds = 0.3

[trainer]
num_steps = 1
microbatches = 1
device = "cpu"
"""


def test_finetune_starts_from_it(source: Source, recording: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "train.tsv", [Utterance(str(recording), len(SAMPLES), text="ab c")] * 4, tmp_path)
    (tmp_path / "finetune.toml").write_text(TRAINING.format(init=source.file, folder=tmp_path), "utf-8")
    result = run(app, "finetune", tmp_path / "finetune.toml", "-o", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    before, after = load_encoder(source.file, "cpu").state_dict(), load_encoder(tmp_path / "run", "cpu").state_dict()
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert (tensor - before[name]).abs().max() <= 1e-3, name
    checkpoint = load_ctc(tmp_path / "run", "cpu")
    assert checkpoint.vocabulary.decode(checkpoint.vocabulary.encode("ab c")) == "ab c"
    assert checkpoint.description.training_data[0].stage == source.file.name
    assert checkpoint.description.training_data[0].license == "unknown"


def test_the_other_commands_take_it(source: Source, recording: Path, tmp_path: Path) -> None:
    def succeed(command: str, *arguments: object) -> str:
        result = run(app, command, *arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    assert "license" in succeed("inspect", source.file)
    text = Transcriber.load(source.file, "cpu").transcribe(recording).text if source.symbols else "ab"
    manifest = tmp_path / "train.tsv"
    write_manifest(manifest, [Utterance(str(recording), len(SAMPLES), text=text)] * 2, tmp_path)
    report = run(app, "check", manifest, "--model", source.file, "--format", "json")  # it finds the copy
    assert '"duplicate"' in report.stdout
    if source.symbols is None:
        result = run(app, "evaluate", source.file, manifest)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        return
    assert " 0.0 | 0.0 |" in succeed("evaluate", source.file, manifest, "--device", "cpu")
    succeed("ngram", manifest, "-o", tmp_path / "lm.arpa")
    options = ("--lm", tmp_path / "lm.arpa", "--trials", 1, "--device", "cpu")
    succeed("tune-lm", source.file, manifest, *options, "-o", tmp_path / "lm.toml")
    succeed("evaluate", source.file, manifest, "--lm", tmp_path / "lm.toml", "--device", "cpu")
    (tmp_path / "finetune.toml").write_text(TRAINING.format(init=source.file, folder=tmp_path), "utf-8")
    succeed("finetune", tmp_path / "finetune.toml", "-o", tmp_path / "run", "--set", "keep_head=true")
    assert read_model(tmp_path / "run").vocabulary == read_model(source.file).vocabulary


def test_pretraining_goes_on_from_it(source: Source, recording: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "train.tsv", [Utterance(str(recording), len(SAMPLES))] * 4, tmp_path)
    (tmp_path / "pretrain.toml").write_text(TRAINING.format(init=source.file, folder=tmp_path), "utf-8")
    causal = read_model(source.file).description.encoder.context.kind == "causal"
    kind = f"objective.kind={'wav2vec' if causal else 'spectral_contrast'}"
    result = run(app, "pretrain", tmp_path / "pretrain.toml", "-o", tmp_path / "run", "--set", kind)
    assert result.exit_code == 0, result.stderr
    before, after = load_encoder(source.file, "cpu").state_dict(), load_encoder(tmp_path / "run", "cpu").state_dict()
    assert before.keys() == after.keys()
    assert 0 < max((tensor - before[name]).abs().max() for name, tensor in after.items()) <= 1e-3


def test_a_language_is_refused(source: Source, recording: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a model with a choice of languages, found one without$"):
        read_model(source.file, "fra")
