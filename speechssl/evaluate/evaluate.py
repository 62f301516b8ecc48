"""Score a fine-tuned model on manifests: error rates with intervals, confusions, every transcript."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from speechssl.checkpoint.reader import language_for
from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.data.manifest import Manifest, Utterance, read_manifest
from speechssl.decode.settings import BeamSearchConfig
from speechssl.decode.words import Word
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.evaluate.confidences import rate_words
from speechssl.evaluate.utterances import longest_first, read_references, utterance_readers
from speechssl.files import digest_files
from speechssl.model.device import Precision
from speechssl.scoring.bootstrap import Interval, bootstrap_interval
from speechssl.scoring.error_rates import (
    Confusion,
    ErrorCounts,
    UtteranceScore,
    describe_normalization,
    normalize_for_scoring,
    score,
    sum_counts,
)
from speechssl.scoring.phonemes import TIMIT_39, count_phonemes
from speechssl.scoring.reliability import Reliability, measure_reliability
from speechssl.terminal import count, format_duration, print_error, print_status, progress
from speechssl.transcribe.outputs import prepare_file, write_text
from speechssl.transcribe.transcriber import Transcriber
from speechssl.transcribe.transcript import Transcript

_NUM_CONFUSIONS = 20  # in the JSON file; a quarter of them on the console
_RESULTS_HEAD = (
    "| date | model | version | parameters | training data | updates | test data | device, time | decoding "
    f"| WER % [95 %] | CER % [95 %] | ECE of words % [95 %] |\n{'|---' * 12}|"
)


@dataclass(frozen=True)
class Evaluation:
    """The result of a model on a manifest, as ``--output`` writes it: rates are fractions, times seconds."""

    manifest: str
    manifest_sha256: str
    num_utterances: int
    num_empty: int  # in which nothing is said; what is heard in them are insertions
    audio_seconds: float
    normalization: str  # of both texts before they are compared, in a few words
    decoding: str  # likewise
    beam_search: dict[str, Any] | None  # the settings and the SHA-256 of the language model; None is greedy decoding
    hotwords: dict[str, str] | None  # the file and its SHA-256
    device: str  # where the model ran, and how precisely
    seconds: float  # that reading and transcribing took
    wer: Interval
    cer: Interval
    words: ErrorCounts  # of all utterances
    characters: ErrorCounts
    word_confusions: tuple[Confusion, ...]  # the most frequent first
    character_confusions: tuple[Confusion, ...]
    utterances: tuple[dict[str, Any], ...]  # in the manifest's order: where it is, `UtteranceScore`, words as rated
    confidences: str  # "calibrated" or "uncalibrated"
    calibration: dict[str, Any] | None  # a `Calibration`
    reliability: Reliability | None  # of the confidences of words; None if none was heard
    utterance_reliability: Reliability | None  # of `Transcript.confidence`, against the share of words that are right
    per: Interval | None = None  # phoneme error rate, of a model whose units are phonemes
    phonemes: ErrorCounts | None = None


def evaluate_model(
    transcriber: Transcriber,
    manifest: Manifest,
    *,
    words_only: bool = False,
    language: str | None = None,
    folds_timit: bool = False,
) -> Evaluation:
    """Transcribe every utterance of a manifest and score the texts against its own.

    Both are normalized as for `score`, in the manifest's languages, or the given one where it states none. A recording
    that cannot be read is an error: without it the rates would be another set's. With ``folds_timit`` phonemes are
    TIMIT's, and compared as the 39 of `TIMIT_39`.
    """
    has_phonemes = transcriber.checkpoint.vocabulary.kind == "phonemes"
    if folds_timit and not has_phonemes:
        raise ConfigError(f"--timit: expected a model of phonemes, found {transcriber.checkpoint.vocabulary.kind}")
    references = read_references(manifest)
    started = time.perf_counter()
    transcribed = _transcribe(transcriber, manifest)
    seconds = time.perf_counter() - started
    hypotheses = [transcript.text for transcript in transcribed]
    languages = [utterance.language or language for utterance in manifest]
    found = score(references, hypotheses, languages, words_only=words_only)
    phonemes = count_phonemes(references, hypotheses, TIMIT_39 if folds_timit else None) if has_phonemes else None
    speakers = [utterance.speaker for utterance in manifest]
    rated = [
        rate_words(transcript.words, partial(normalize_for_scoring, language=code, words_only=words_only), *matches)
        for transcript, code, *matches in zip(
            transcribed, languages, found.word_matches, found.character_matches, strict=True
        )
    ]
    confidences = [[word.confidence for word, _ in words] for words in rated]
    is_right = [[right for _, right in words] for words in rated]
    decoding = transcriber.decoding
    calibration, hotwords = decoding.calibration, decoding.hotwords
    search = decoding.beam_search.config if decoding.beam_search else None
    return Evaluation(
        manifest=str(manifest.path),
        manifest_sha256=manifest.digest,
        num_utterances=len(manifest),
        num_empty=sum(not utterance.reference for utterance in found.utterances),
        audio_seconds=sum(utterance.seconds for utterance in manifest),
        normalization=describe_normalization(words_only, languages) + (", 39 phones of TIMIT" if folds_timit else ""),
        decoding=decoding.describe(),
        beam_search=describe_search(search) if search else None,
        hotwords={"path": str(hotwords.path), "sha256": digest_files([hotwords.path])} if hotwords else None,
        device=transcriber.inference.describe(),
        seconds=seconds,
        wer=bootstrap_interval(found.word_counts, speakers),
        cer=bootstrap_interval(found.character_counts, speakers),
        words=found.words,
        characters=found.characters,
        word_confusions=found.word_confusions[:_NUM_CONFUSIONS],
        character_confusions=found.character_confusions[:_NUM_CONFUSIONS],
        utterances=tuple(map(_describe_utterance, manifest, found.utterances, rated)),
        confidences="uncalibrated" if calibration is None else "calibrated",
        calibration=None if calibration is None else calibration.to_dict(),
        reliability=measure_reliability(confidences, is_right, speakers),
        utterance_reliability=measure_reliability(_means(confidences), _means(is_right), speakers),
        per=None if phonemes is None else bootstrap_interval(phonemes, speakers),
        phonemes=None if phonemes is None else sum_counts(phonemes),
    )


def _transcribe(transcriber: Transcriber, manifest: Manifest) -> list[Transcript]:
    """Transcribe every utterance, or raise the error of one that cannot be read."""
    transcribed = [Transcript("", 0.0)] * len(manifest)
    order = longest_first(manifest)
    transcripts = transcriber.transcribe_many(utterance_readers(manifest, order), names=map(manifest.where, order))
    with progress(str(manifest.path), len(manifest)) as advance:
        for index, transcript in zip(order, transcripts, strict=True):
            if isinstance(transcript, SpeechSSLError):
                raise transcript
            transcribed[index] = transcript
            advance()
    return transcribed


def _describe_utterance(
    utterance: Utterance, scored: UtteranceScore, rated: Sequence[tuple[Word, bool]]
) -> dict[str, Any]:
    where = {name: getattr(utterance, name) for name in ("path", "start", "num_samples", "speaker")}
    of_words = {
        "word_confidences": [word.confidence for word, _ in rated],
        "words_right": [is_right for _, is_right in rated],
        "word_posteriors": [word.posterior for word, _ in rated],
    }
    return {**where, **asdict(scored), **of_words}


def evaluate_manifests(
    model: Path,
    manifests: Sequence[Path],
    output: Path | None,
    device: str | None = None,
    lm: Path | None = None,
    precision: Precision | None = None,
    hotwords: Path | None = None,
    **scoring: Any,
) -> list[Evaluation]:
    """Evaluate a model on manifests as the command does: rows for RESULTS.md on stdout, all else on stderr.

    A manifest that fails costs a line on stderr; the others are still evaluated. ``device``, ``lm``, ``precision``
    and ``hotwords`` are as for `Transcriber.load`, ``scoring`` for `evaluate_model`; its ``language`` is the model's
    too, if that has a choice.

    Returns:
        What went well, in the order of the manifests.
    """
    if output is not None:
        prepare_file(output)
    transcriber = Transcriber.load(model, device, lm, precision, language_for(model, scoring.get("language")), hotwords)
    evaluations = []
    for path in manifests:
        try:
            evaluation = evaluate_model(transcriber, read_manifest(path), **scoring)
        except SpeechSSLError as error:
            print_error(error)
            continue
        evaluations.append(evaluation)
        words, characters = evaluation.word_confusions, evaluation.character_confusions
        named = {"PER": evaluation.per, "WER": evaluation.wer, "CER": evaluation.cer}
        rates = ", ".join(f"{name} % {rate.show()}" for name, rate in named.items() if rate is not None)
        print_status(
            f"evaluate: {path}: {_describe_data(evaluation)}: {rates}, "
            f"ECE of words % {show_reliability(evaluation.reliability, evaluation.confidences)}, "
            f"AUROC % {_show_auroc(evaluation.reliability)}; "
            f"confused {_describe_confusions(words)}; "
            f"{_describe_confusions(characters)}"
        )
    if evaluations:
        if output is not None:
            _write(output, model, transcriber.checkpoint, evaluations)
        # The head of the table stays out of `>> RESULTS.md`.
        print_status(_RESULTS_HEAD)
        for evaluation in evaluations:
            sys.stdout.write(f"{results_row(evaluation, str(model), transcriber.checkpoint)}\n")
    return evaluations


def results_row(evaluation: Evaluation, model: str, checkpoint: CTCCheckpoint) -> str:
    """Return a row of RESULTS.md, its cells as `evaluate_manifests` heads them."""
    description = checkpoint.description
    training = "; ".join(
        data.stage if data.hours is None else f"{data.stage} {data.hours:.2f} h" for data in description.training_data
    )
    cells = (
        date.today().isoformat(),
        model,
        description.speechssl_version,
        f"{_num_parameters(checkpoint) / 1e6:.1f} M",
        training or "-",
        str(description.step),
        f"{Path(evaluation.manifest).name}: {_describe_data(evaluation)}",
        f"{evaluation.device}, {evaluation.seconds:.0f} s",
        evaluation.decoding + ("" if evaluation.per is None else f", PER % {evaluation.per.show()}"),
        evaluation.wer.show(),
        evaluation.cer.show(),
        show_reliability(evaluation.reliability, evaluation.confidences),
    )
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def show_reliability(reliability: Reliability | None, confidences: str = "calibrated") -> str:
    """Return the expected calibration error in percent, "-" without words, and whether it is of raw confidences."""
    shown = "-" if reliability is None else reliability.error.show()
    return shown if confidences == "calibrated" else f"{shown} {confidences}"


def _show_auroc(reliability: Reliability | None) -> str:
    auroc = None if reliability is None else reliability.auroc
    return "-" if auroc is None else f"{100 * auroc:.1f}"


def _means(values: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[sum(numbers) / len(numbers)] if numbers else [] for numbers in values]


def _write(output: Path, model: Path, checkpoint: CTCCheckpoint, evaluations: Sequence[Evaluation]) -> None:
    content = {
        "model": str(model),
        "num_parameters": _num_parameters(checkpoint),
        "step": checkpoint.description.step,
        "training_data": [data.to_dict() for data in checkpoint.description.training_data],
        "evaluations": [asdict(evaluation) for evaluation in evaluations],
    }
    write_text(output, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def describe_search(config: BeamSearchConfig) -> dict[str, Any]:
    """Return the settings of a search and the SHA-256 of its language model."""
    return config.to_dict() | {"lm_sha256": digest_files([config.lm])}


def _num_parameters(checkpoint: CTCCheckpoint) -> int:
    return sum(parameter.numel() for parameter in checkpoint.model.parameters())


def _describe_data(evaluation: Evaluation) -> str:
    empty = f" ({evaluation.num_empty} empty)" if evaluation.num_empty else ""
    utterances = f"{count(evaluation.num_utterances, 'utterance')}{empty}"
    return f"{utterances}, {format_duration(evaluation.audio_seconds)}, {evaluation.normalization}"


def _describe_confusions(confusions: Sequence[Confusion]) -> str:
    """Put the most frequent on one line: ``five -> nine (3)``, with ``-`` for nothing and ``_`` for a space."""

    def show(symbol: str) -> str:
        return symbol.replace(" ", "_") or "-"

    most = [
        f"{show(confusion.reference)} -> {show(confusion.hypothesis)} ({confusion.count})"
        for confusion in confusions[: _NUM_CONFUSIONS // 4]
    ]
    return ", ".join(most) or "nothing"
