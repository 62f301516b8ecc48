"""Score a fine-tuned model on manifests: error rates with intervals, confusions, every transcript."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from speechssl.checkpoint.native import CTCCheckpoint, ModelDescription, load_ctc
from speechssl.data.manifest import Manifest, read_manifest
from speechssl.decode.beam_search import BeamSearch
from speechssl.decode.settings import BeamSearchConfig
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.evaluate.utterances import BATCH_SECONDS, read_batches, read_references
from speechssl.files import write_text_file
from speechssl.scoring.bootstrap import Interval, bootstrap_interval
from speechssl.scoring.error_rates import Confusion, Score, score
from speechssl.terminal import print_error, print_status
from speechssl.transcribe.transcriber import Transcriber, make_beam_search

_NUM_CONFUSIONS = 20  # in the JSON file; a quarter of them on the console
_PROGRESS_SECONDS = 10.0
_RESULTS_HEAD = (
    "| date | model | version | parameters | training data | updates | test data | device, time | decoding "
    f"| WER % [95 %] | CER % [95 %] |\n{'|---' * 11}|"
)


@dataclass(frozen=True)
class Evaluation:
    """A model's result on a manifest.

    Attributes:
        description: The model.
        manifest: What was transcribed.
        score: Counts and confusions, the utterances in the manifest's order.
        wer: Word error rate with its interval.
        cer: Character error rate with its interval.
        num_parameters: Size of the model.
        device: Where it ran.
        seconds: Wall-clock time that reading and transcribing took.
        beam_search: How text was made of what the model says, if not greedily.
    """

    description: ModelDescription
    manifest: Manifest
    score: Score
    wer: Interval
    cer: Interval
    num_parameters: int
    device: str
    seconds: float
    beam_search: BeamSearchConfig | None

    @property
    def decoding(self) -> str:
        """How text was made, in a few words."""
        return self.beam_search.describe() if self.beam_search else "greedy"

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON types: rates are fractions, counts whole numbers, times seconds."""
        return {
            "manifest": str(self.manifest.path),
            "manifest_sha256": self.manifest.digest,
            "num_utterances": len(self.manifest),
            "audio_seconds": _audio_seconds(self.manifest),
            "decoding": self.decoding,
            "beam_search": _describe_search(self.beam_search) if self.beam_search else None,
            "device": self.device,
            "seconds": self.seconds,
            "wer": asdict(self.wer),
            "cer": asdict(self.cer),
            "words": asdict(self.score.words),
            "characters": asdict(self.score.characters),
            "word_confusions": [asdict(confusion) for confusion in self.score.word_confusions[:_NUM_CONFUSIONS]],
            "character_confusions": [
                asdict(confusion) for confusion in self.score.character_confusions[:_NUM_CONFUSIONS]
            ],
            "utterances": [
                {
                    "path": utterance.path,
                    "start": utterance.start,
                    "num_samples": utterance.num_samples,
                    "speaker": utterance.speaker,
                    **asdict(scored),
                }
                for utterance, scored in zip(self.manifest, self.score.utterances, strict=True)
            ],
        }


def evaluate_model(
    checkpoint: CTCCheckpoint,
    manifest: Manifest,
    *,
    beam_search: BeamSearch | None = None,
    batch_seconds: float = BATCH_SECONDS,
    report_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Transcribe every utterance of a manifest and score the texts against its own.

    Args:
        checkpoint: The model with its vocabulary, on the device to use.
        manifest: Utterances, all with a text.
        beam_search: As for `Transcriber`.
        batch_seconds: Bound on the audio of a batch, padding included; a longer utterance is a batch of its own.
        report_progress: Called after each batch with the number of utterances that are done.

    Raises:
        ManifestError: an utterance has no text, or there are none.
        AudioError: a recording cannot be read; one that is left out would make the rates another set's.
    """
    references = read_references(manifest)
    transcriber = Transcriber(checkpoint, beam_search)
    hypotheses = [""] * len(manifest)
    num_done = 0
    started = time.perf_counter()
    for batch, waveforms in read_batches(manifest, batch_seconds):
        for index, transcript in zip(batch, transcriber.transcribe_waveforms(waveforms), strict=True):
            hypotheses[index] = transcript.text
        num_done += len(batch)
        if report_progress:
            report_progress(num_done)
    seconds = time.perf_counter() - started
    result = score(references, hypotheses)
    speakers = [utterance.speaker for utterance in manifest]
    return Evaluation(
        checkpoint.description,
        manifest,
        result,
        bootstrap_interval(result.word_counts, speakers),
        bootstrap_interval(result.character_counts, speakers),
        sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        _device_name(transcriber.device),
        seconds,
        beam_search.config if beam_search else None,
    )


def evaluate_manifests(
    model: Path, manifests: Sequence[Path], output: Path | None, device: str | None, lm: Path | None
) -> bool:
    """Evaluate a model on manifests as the command does: rows for RESULTS.md on stdout, all else on stderr.

    A manifest that fails costs a line on stderr; the others are still evaluated.

    Args:
        model: A model folder or a training run.
        manifests: Paths of manifests with texts.
        output: Where to write everything as JSON, if anywhere.
        device: As for `load_ctc`.
        lm: As for `Transcriber.load`.

    Returns:
        Whether all manifests went well.

    Raises:
        CheckpointError: the model cannot be loaded.
        ConfigError: the output cannot be written, or the language model's settings are wrong.
        LanguageModelError: as for `make_beam_search`.
    """
    if output is not None:
        prepare_output(output)
    config = None if lm is None else BeamSearchConfig.read(lm)
    checkpoint = load_ctc(model, device)
    beam_search = None if config is None else make_beam_search(config, checkpoint)
    evaluations = []
    for path in manifests:
        try:
            manifest = read_manifest(path)
            print_status(f"evaluate: {path}: {_describe_data(manifest)}")
            progress = _Progress(path, len(manifest))
            evaluation = evaluate_model(checkpoint, manifest, beam_search=beam_search, report_progress=progress)
        except SpeechSSLError as error:
            print_error(error)
            continue
        evaluations.append(evaluation)
        print_status(f"evaluate: {path}: WER % {_percent(evaluation.wer)}, CER % {_percent(evaluation.cer)}")
        words, characters = evaluation.score.word_confusions, evaluation.score.character_confusions
        print_status(f"evaluate: {path}: confused {_describe_confusions(words)}; {_describe_confusions(characters)}")
    if evaluations:
        if output is not None:
            _write(output, model, evaluations)
        # The head of the table stays out of `>> RESULTS.md`.
        print_status(_RESULTS_HEAD)
        for evaluation in evaluations:
            sys.stdout.write(f"{results_row(evaluation, str(model))}\n")
    return len(evaluations) == len(manifests)


def results_row(evaluation: Evaluation, model: str) -> str:
    """A row of RESULTS.md, its cells as `evaluate_manifests` heads them."""
    description = evaluation.description
    training = "; ".join(f"{data.stage} {data.hours:.2f} h" for data in description.training_data)
    cells = (
        date.today().isoformat(),
        model,
        description.speechssl_version,
        f"{evaluation.num_parameters / 1e6:.1f} M",
        training or "-",
        str(description.step),
        f"{evaluation.manifest.path.name}: {_describe_data(evaluation.manifest)}",
        f"{evaluation.device}, {evaluation.seconds:.0f} s",
        evaluation.decoding,
        _percent(evaluation.wer),
        _percent(evaluation.cer),
    )
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


class _Progress:
    """Says now and then how many utterances are done."""

    def __init__(self, path: Path, num_utterances: int) -> None:
        self.path, self.num_utterances = path, num_utterances
        self.last_report = time.monotonic()

    def __call__(self, num_done: int) -> None:
        if time.monotonic() - self.last_report >= _PROGRESS_SECONDS:
            self.last_report = time.monotonic()
            print_status(f"evaluate: {self.path}: {num_done} of {self.num_utterances} utterances")


def prepare_output(output: Path) -> None:
    """Find out that a file cannot be written before the work rather than after it.

    Raises:
        ConfigError: it cannot.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror or error}") from None
    if output.is_dir():
        raise ConfigError(f"{output}: expected a file to write, found a folder")


def _write(output: Path, model: Path, evaluations: Sequence[Evaluation]) -> None:
    description = evaluations[0].description
    content = {
        "model": str(model),
        "num_parameters": evaluations[0].num_parameters,
        "step": description.step,
        "training_data": [data.to_dict() for data in description.training_data],
        "evaluations": [evaluation.to_dict() for evaluation in evaluations],
    }
    # What a path holds that is no UTF-8 becomes a JSON escape.
    text = json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace").decode("utf-8")
    try:
        write_text_file(output, f"{text}\n")
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror or error}") from None


def _describe_search(config: BeamSearchConfig) -> dict[str, Any]:
    with config.lm.open("rb") as file:
        return config.to_dict() | {"lm_sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} x {torch.get_num_threads()}"


def _audio_seconds(manifest: Manifest) -> float:
    return sum(utterance.seconds for utterance in manifest)


def _describe_data(manifest: Manifest) -> str:
    return f"{len(manifest)} utterances, {_audio_seconds(manifest) / 60:.1f} min"


def _describe_confusions(confusions: Sequence[Confusion]) -> str:
    """The most frequent on one line: ``five -> nine (3)``, with ``-`` for nothing and ``_`` for a space."""

    def show(symbol: str) -> str:
        return symbol.replace(" ", "_") or "-"

    most = [
        f"{show(confusion.reference)} -> {show(confusion.hypothesis)} ({confusion.count})"
        for confusion in confusions[: _NUM_CONFUSIONS // 4]
    ]
    return ", ".join(most) or "nothing"


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
