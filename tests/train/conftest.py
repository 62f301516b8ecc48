"""A language of tones that is learned in seconds: each letter is a pitch, and words are parted by silence."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from objective_cases import Tones

from speechssl.checkpoint.training_state import load_training_tensors
from speechssl.data.manifest import Utterance, write_manifest
from speechssl.train import saver, trainer
from speechssl.train.finetune import FinetuneConfig
from speechssl.train.log import read_log
from speechssl.train.pretrain import PretrainConfig, pretrain
from speechssl.train.throughput import METRICS

PITCHES = {"a": 250.0, "b": 600.0, "c": 1300.0, "d": 2900.0}
LETTER_SAMPLES, GAP_SAMPLES = 1_600, 640

ENCODER = """
[encoder.feature_encoder]
dims = [16, 24, 32]
kernels = [20, 8, 4]
strides = [10, 8, 4]
gradient_scale = 1.0

[encoder.context]
num_layers = 1
model_dim = 32
num_heads = 2
ffn_dim = 32
position_kernel = 8
position_groups = 2
input_dropout = 0.1
dropout = 0.1
attention_dropout = 0.1
layer_drop = 0.1
"""

COMMON = """
[trainer]
num_steps = 24
microbatches = 2
log_steps = 2
evaluate_steps = 6
checkpoint_steps = 3
device = "cpu"

[optimizer]
learning_rate = 2e-3
max_gradient_norm = 10.0
"""

PRETRAIN = f"""
[batches]
seconds = 4
min_seconds = 0.3
max_seconds = 2
num_buckets = 3

[objective.mask]
span_frames = 4

[objective]
comparison_dim = 16
num_distractors = 20

[objective.quantizer]
codebook_size = 8
code_dim = 16
temperature_decay = 0.99
{ENCODER}
{COMMON}
"""

FINETUNE = f"""
feature_encoder_is_frozen = false

[batches]
seconds = 4
num_buckets = 3

[regularization]
time_mask = {{ start_prob = 0.02, span_frames = 2, min_spans = 0 }}
channel_mask = {{ start_prob = 0.03, span_frames = 2, min_spans = 0 }}
{COMMON}
"""


@dataclass(frozen=True)
class Corpus:
    """Recordings of the language of tones, with configurations of tiny models for them."""

    folder: Path

    @property
    def train(self) -> Path:
        return self.folder / "train.tsv"

    @property
    def dev(self) -> Path:
        return self.folder / "dev.tsv"

    def arguments(self, stage: str, *overrides: str) -> list[str]:
        """The command line's arguments behind the stage: a configuration, then overrides."""
        data = (f"data.train={self.train}", f"data.dev={self.dev}", "data.license=CC0: tones", "data.num_workers=0")
        arguments = [str(self.folder / f"{stage}.toml")]
        for override in (*data, *overrides):
            arguments += ["--set", override]
        return arguments

    def pretrain_config(self, *overrides: str) -> PretrainConfig:
        configuration, *options = self.arguments("pretrain", *overrides)
        return PretrainConfig.load([Path(configuration)], options[1::2])

    def finetune_config(self, *overrides: str, stage: str = "finetune") -> FinetuneConfig:
        """Of the stage "finetune", which needs ``init``, or "scratch"."""
        configuration, *options = self.arguments(stage, *overrides)
        return FinetuneConfig.load([Path(configuration)], options[1::2])

    def write(self, path: Path, texts: list[str], *, seed: int = 0, letter_samples: int = LETTER_SAMPLES) -> Path:
        """Write a manifest, and one recording a text into a folder of its name."""
        folder = path.with_suffix("")
        folder.mkdir(parents=True)
        generator = np.random.default_rng(seed)
        utterances = []
        for number, text in enumerate(texts):
            waveform = sing(text, generator, letter_samples)
            soundfile.write(folder / f"{number}.wav", waveform, 16_000)
            utterances.append(Utterance(str(folder / f"{number}.wav"), len(waveform), text=text))
        write_manifest(path, utterances, ".")
        return path

    def write_damaged(self, path: Path) -> Path:
        """Write a copy of the training data in which the fifth recording has no numbers and the twelfth is missing."""
        self.write(path, random_texts(16, seed=1), seed=1)
        damaged, missing = path.with_suffix("") / "4.wav", path.with_suffix("") / "11.wav"
        samples, rate = soundfile.read(damaged)
        samples[:] = np.nan
        soundfile.write(damaged, samples, rate, subtype="FLOAT")
        missing.unlink()
        return path


def sing(text: str, generator: np.random.Generator, letter_samples: int) -> npt.NDArray[np.float32]:
    """A tone a letter, each with a random phase, over faint noise; gaps between letters, longer ones for spaces."""
    pieces = [np.zeros(GAP_SAMPLES)]
    for letter in text:
        if letter == " ":
            pieces.append(np.zeros(2 * GAP_SAMPLES))
        else:
            times = np.arange(letter_samples) / 16_000
            phase = generator.uniform(0, 2 * np.pi)
            pieces += [0.5 * np.sin(2 * np.pi * PITCHES[letter] * times + phase), np.zeros(GAP_SAMPLES)]
    waveform = np.concatenate(pieces)
    return (waveform + 0.01 * generator.standard_normal(len(waveform))).astype(np.float32)


def random_texts(count: int, *, seed: int) -> list[str]:
    """Texts of one to three words."""
    generator = np.random.default_rng(seed)
    return [
        " ".join(
            "".join(generator.choice(list(PITCHES), size=generator.integers(2, 5)))
            for _ in range(generator.integers(1, 4))
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Sixteen utterances to train on, five to measure, and configurations "pretrain", "finetune", "scratch"."""
    corpus = Corpus(tmp_path_factory.mktemp("tones"))
    corpus.write(corpus.train, random_texts(16, seed=1), seed=1)
    corpus.write(corpus.dev, random_texts(5, seed=2), seed=2)
    for stage, text in {"pretrain": PRETRAIN, "finetune": FINETUNE, "scratch": FINETUNE + ENCODER}.items():
        (corpus.folder / f"{stage}.toml").write_text(text, "utf-8")
    return corpus


@pytest.fixture(scope="session")
def tones(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Tones:
    """A few long recordings of tones."""
    folder = tmp_path_factory.mktemp("objectives")
    texts = [
        "abcd abc dab",
        "dd ab cabd a",
        "bcda dcba ab",
        "cab abcd",
        "abbad cad b",
        "dab cabc",
        "ccd aab bda",
        "bad cab",
    ]
    return Tones(corpus.write(folder / "train.tsv", texts), corpus.write(folder / "dev.tsv", texts[:3], seed=3))


@pytest.fixture(scope="session")
def pretrained(corpus: Corpus) -> Path:
    """A run that was pretrained for four updates."""
    run = corpus.folder / "pretrained"
    pretrain(corpus.pretrain_config("trainer.num_steps=4"), run)
    return run


@dataclass
class Gradients:
    """The gradients of each update, by the number of the parameter that has one."""

    updates: list[dict[int, torch.Tensor]] = field(default_factory=list)

    def assert_close(self, expected: "Gradients", tolerance: float = 1e-5) -> None:
        """Compare each parameter's gradient, relative to its own norm."""
        for mine, theirs in zip(self.updates, expected.updates, strict=True):
            assert mine.keys() == theirs.keys()
            whole = max(gradient.norm() for gradient in theirs.values())
            for number, gradient in theirs.items():
                # Some gradients are 0 but for rounding, such as that of a bias of attention's keys.
                allowed = tolerance * max(gradient.norm(), 1e-3 * whole)
                assert (mine[number] - gradient).norm() <= allowed, f"parameter {number}"


@pytest.fixture
def record_gradients(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], Gradients]:
    """Run a training of which the updates change nothing, and give the gradients it would have followed."""

    def record(run: Callable[[], None]) -> Gradients:
        gradients = Gradients()

        class Recorder(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:
                parameters = self.param_groups[0]["params"]
                gradients.updates.append(
                    {number: p.grad.clone() for number, p in enumerate(parameters) if p.grad is not None}
                )

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "make_optimizer", lambda _, parameters: Recorder(parameters))
            # Gumbel noise of 0, which leaves the way the gradient takes through the quantizer.
            patch.setattr(torch.Tensor, "exponential_", lambda tensor: tensor.fill_(1.0))
            run()
        return gradients

    return record


@pytest.fixture
def kill_after_save(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Run a training that is killed behind its first checkpoint."""

    class KilledError(Exception):
        pass

    def kill(run: Callable[[], None]) -> None:
        new_checkpoint = saver.new_checkpoint

        @contextmanager
        def save_and_die(*arguments: Any) -> Iterator[Path]:
            with new_checkpoint(*arguments) as folder:
                yield folder
            raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(saver, "new_checkpoint", save_and_die)
            with pytest.raises(KilledError):
                run()

    return kill


@pytest.fixture
def finetuned_by_two(corpus: Corpus, tmp_path: Path) -> Callable[..., None]:
    """Fine-tune by two processes, and compare the log and what is beside the model with a run of one."""

    def compare(of_one: Path, stage: str, *overrides: str) -> None:
        run = tmp_path / "two"
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        arguments = ("finetune", *corpus.arguments(stage, *overrides), "--output", str(run))
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [*torchrun, "-m", "speechssl", *arguments]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        for mine, theirs in zip(read_log(run), read_log(of_one), strict=True):
            assert mine.keys() - METRICS == theirs.keys() - METRICS
            for name in mine.keys() - {*METRICS, "split"}:
                assert mine[name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-4), (mine["step"], name)
        found, expected = map(load_training_tensors, (run, of_one))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            if name.startswith("teacher/"):
                torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)

    return compare


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models are fastest in one thread, and sums come out the same as in the commands that tests start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
