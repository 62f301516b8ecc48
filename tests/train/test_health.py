"""What is said of runs that wrong settings or wrong data made sick, and that nothing is said of healthy ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechssl.data.batches import AudioBatch
from speechssl.data.manifest import Utterance, read_manifest, write_manifest
from speechssl.errors import TrainingError
from speechssl.objective.objective import Limit
from speechssl.train.finetune import finetune
from speechssl.train.health import Health, length_agreement, loss_rise
from speechssl.train.log import read_log
from speechssl.train.pretrain import pretrain
from speechssl.train.sound import describe_sound, measure_sound

CURVES = Path(__file__).parents[2] / "recipes" / "prompts" / "curves"
LINES = ("trainer.log_steps=1", "trainer.evaluate_steps=6", "trainer.checkpoint_steps=100")


def kinds(run: Path) -> list[str]:
    file = run / "warnings.jsonl"
    return [json.loads(line)["kind"] for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def with_audio(corpus: Any, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> list[str]:
    """Settings by which a run reads the corpus with other sounds in it."""
    settings = []
    for split in ("train", "dev"):
        utterances = []
        (folder / split).mkdir(parents=True)
        for number, utterance in enumerate(read_manifest(getattr(corpus, split))):
            waveform, rate = soundfile.read(utterance.path, dtype="float32")
            path = folder / split / f"{number}.wav"
            soundfile.write(path, change(waveform), rate)
            utterances.append(Utterance(str(path), utterance.num_samples, text=utterance.text))
        write_manifest(folder / f"{split}.tsv", utterances, ".")
        settings.append(f"data.{split}={folder / f'{split}.tsv'}")
    return settings


def noise_like(waveform: np.ndarray) -> np.ndarray:
    return 0.1 * np.random.default_rng(len(waveform)).standard_normal(len(waveform)).astype(np.float32)


def test_healthy_runs_are_not_warned_of(corpus: Any, tmp_path: Path) -> None:
    pretrain(corpus.pretrain_config(*LINES), tmp_path / "pretrain")
    settings = (f"init={tmp_path / 'pretrain'}", "trainer.num_steps=60")
    finetune(corpus.finetune_config(*LINES, *settings), tmp_path / "finetune")
    assert kinds(tmp_path / "pretrain") == kinds(tmp_path / "finetune") == []
    for run, split in (("pretrain", "train"), ("finetune", "dev")):
        line = [line for line in read_log(tmp_path / run) if line["split"] == split][-1]
        assert line.keys() >= ({"silence", "level_deviation", "clip_scale"} if split == "train" else {"nothing_said"})


def test_silence_and_noise_for_audio_are_named(corpus: Any, tmp_path: Path) -> None:
    for kind, change in (("silence", lambda waveform: waveform * 0), ("level_deviation", noise_like)):
        settings = with_audio(corpus, tmp_path / kind, change)
        pretrain(corpus.pretrain_config(*LINES, *settings, "trainer.num_steps=4"), tmp_path / f"{kind}_run")
        assert kinds(tmp_path / f"{kind}_run") == [kind]


def test_padding_is_no_silence() -> None:
    speech = torch.from_numpy(noise_like(np.zeros(19_200)) * np.repeat([1.0, 1e-5, 0.3, 0.1], 4_800)).float()
    whole = AudioBatch(speech[None], None, (0,))
    padded = AudioBatch(torch.nn.functional.pad(speech, (0, 48_000))[None], torch.tensor([19_200]), (0,))
    assert measure_sound([whole]) == measure_sound([padded])
    found = describe_sound(measure_sound([padded]))
    assert found["silence"] == 0.25
    assert found["level_deviation"] > 20
    for gain, decibels in ((1.0, -2.97), (0.5, -8.99)):
        tone = gain * 2**0.5 * torch.sin(torch.arange(48_000) * 0.25)  # whose power is that of full scale, times a gain
        tone[24_000:] *= 0.1
        quiet = AudioBatch(torch.stack([tone, tone * 1e-4]), None, (0, 1))  # beside one that is silence
        assert describe_sound(measure_sound([quiet]))["level"] == pytest.approx(decibels, abs=0.02)
    assert describe_sound(measure_sound([AudioBatch(speech[None, :100], None, (0,))])) == {}


def test_a_collapsed_quantizer_is_named(corpus: Any, tmp_path: Path) -> None:
    settings = ("optimizer.learning_rate=0.3", "objective.diversity_weight=0", "optimizer.max_gradient_norm=1e9")
    pretrain(corpus.pretrain_config(*LINES, *settings), tmp_path / "run")
    assert "left_out" in kinds(tmp_path / "run")


@pytest.mark.parametrize("response", ["warn", "roll_back"])
def test_a_constant_teacher_is_named_and_ends_the_run(corpus: Any, tmp_path: Path, response: str) -> None:
    follows_at_once = "decay={ start=0, end=0 }, num_target_layers=1, check_from_step=4, mask={ span_frames=4 }"
    settings = (f'objective={{ kind="data2vec", {follows_at_once} }}', "optimizer.learning_rate=0.1")
    longer = ("trainer.num_steps=60", "trainer.checkpoint_steps=5", f"trainer.on_warning={response}")
    message = r"expected (target|prediction)_deviation of at least .* are nearly the same .*; try a decay nearer to 1"
    with pytest.raises(TrainingError, match=message):
        pretrain(corpus.pretrain_config(*LINES, *settings, *longer), tmp_path / "run")
    assert kinds(tmp_path / "run") == ["roll_back"] * (3 if response == "roll_back" else 0) + ["end"]


def test_gradients_that_are_all_clipped_are_named(corpus: Any, tmp_path: Path) -> None:
    pretrain(corpus.pretrain_config(*LINES, "optimizer.max_gradient_norm=1e-3"), tmp_path / "run")
    assert kinds(tmp_path / "run") == ["clip_scale"]


def test_too_high_a_learning_rate_is_named(corpus: Any, tmp_path: Path) -> None:
    settings = ("optimizer.learning_rate=1", "optimizer.max_gradient_norm=1e9", "trainer.num_steps=40")
    finetune(corpus.finetune_config(*LINES, *settings, stage="scratch"), tmp_path / "run")
    assert "loss_rise" in kinds(tmp_path / "run")


def test_the_blank_plateau_is_named(corpus: Any, tmp_path: Path) -> None:
    dropout = ("regularization.dropout=0.9", "regularization.input_dropout=0.9")
    settings = (
        *dropout,
        "feature_encoder_is_frozen=true",
        "optimizer.learning_rate=2e-3",
        "trainer.num_steps=64",
        "trainer.log_steps=8",
    )
    finetune(corpus.finetune_config(*LINES, *settings, stage="scratch"), tmp_path / "run")
    assert kinds(tmp_path / "run") == ["nothing_said"]


def test_texts_of_other_recordings_are_named(corpus: Any, tmp_path: Path) -> None:
    utterances = list(read_manifest(corpus.train)) * 2  # of which there have to be some
    for shift, expected in ((0, []), (1, ["length_agreement"])):
        texts = [utterance.text for utterance in utterances]
        texts = texts[shift:] + texts[:shift]
        shifted = [Utterance(u.path, u.num_samples, text=text) for u, text in zip(utterances, texts, strict=True)]
        fitting = [u for u in shifted if u.num_samples / 320 > 2 * len(u.text or "") + 2]  # the rest is refused anyway
        write_manifest(tmp_path / "shifted.tsv", fitting, "/")
        settings = (f"data.train={tmp_path / 'shifted.tsv'}", "trainer.num_steps=2")
        finetune(corpus.finetune_config(*LINES, *settings, stage="scratch"), tmp_path / f"run_{shift}")
        assert kinds(tmp_path / f"run_{shift}") == expected


def test_lengths_that_are_all_alike_say_nothing(corpus: Any, tmp_path: Path) -> None:
    texts = ["ab", "abc", "abcd", "abcda b"] * 10
    alike = [Utterance("/x.wav", 16_000 + number % 7, text=text) for number, text in enumerate(texts)]
    write_manifest(tmp_path / "alike.tsv", alike, "/")
    assert length_agreement(read_manifest(tmp_path / "alike.tsv")) is None


def test_a_loss_rises_by_the_share_of_its_fall() -> None:
    fall = [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    assert loss_rise(fall) < 0 == loss_rise([1.0, 100.0])
    assert loss_rise([*fall, *[7.0] * 5]) == pytest.approx(0.5)
    assert loss_rise([10.0] * 10 + [11.0] * 5) == pytest.approx(1.0)


def test_a_kind_is_said_once_also_by_a_resumed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = Limit("loss", at_most=1.0, lines=2, is_fatal=False, meaning="too much")
    lines = [{"step": step, "split": "train", "loss": 2.0} for step in range(1, 6)]

    def look(first: int, last: int) -> None:
        health = Health(tmp_path, lines[:first], [limit], {}, 10, "warn")
        for line in lines[first:last]:
            health.check(line["step"], "train", {"loss": line["loss"]})  # type: ignore[call-overload]

    look(0, 1)
    assert capsys.readouterr().err == ""
    look(1, 3)  # the line before counts
    assert capsys.readouterr().err == "warning: step 2: expected loss of at most 1, found 2: too much\n"
    look(3, 5)
    assert capsys.readouterr().err == ""
    assert [json.loads(line)["step"] for line in (tmp_path / "warnings.jsonl").read_text().splitlines()] == [2]
    look(1, 2)  # a run that went back to before the warning
    assert capsys.readouterr().err != ""


def test_a_run_stops_at_a_warning_if_it_is_told_to(corpus: Any, tmp_path: Path) -> None:
    settings = (*LINES, "optimizer.max_gradient_norm=1e-3", "trainer.on_warning=stop")
    with pytest.raises(
        TrainingError, match=r"step 7: expected clip_scale of at least 0\.05, found .*: gradients are cut"
    ) as raised:
        pretrain(corpus.pretrain_config(*settings), tmp_path / "run")
    with pytest.raises(TrainingError, match="step 7"):
        pretrain(corpus.pretrain_config(*settings), tmp_path / "run")
    [note] = [json.loads(line) for line in (tmp_path / "run" / "warnings.jsonl").read_text("utf-8").splitlines()]
    assert note == {"step": 7, "kind": "end", "message": f"ended: {raised.value}"}, "once, for the report"


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_curves_of_healthy_runs_do_not_rise(stage: str) -> None:
    losses: dict[int, list[float]] = {}
    for line in (CURVES / f"{stage}.tsv").read_text("utf-8").splitlines()[1:]:
        split, metric, _, *values = line.split("\t")
        if (split, metric) == ("train", "hidden_loss" if stage == "pretrain" else "loss_per_label"):
            for number, value in enumerate(values):
                losses.setdefault(number, []).append(float(value))
    assert len(losses) > 1
    for run in losses.values():
        assert max(loss_rise(run[:end]) for end in range(1, len(run) + 1)) < 0.25
