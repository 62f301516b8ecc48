"""What a model hears in speech without texts, what speaks for it, and how good it is where texts are known."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.checkpoint.reader import language_for, read_model
from speechssl.data.audio import Waveform
from speechssl.data.augment import change_speed
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.spans import Spans
from speechssl.decode.greedy import PathToken, greedy_path
from speechssl.decode.settings import BeamSearchConfig
from speechssl.errors import SpeechSSLError
from speechssl.evaluate.evaluate import describe_search
from speechssl.evaluate.filters import Filters, PseudoLabel, letters_per_second
from speechssl.evaluate.utterances import longest_first, utterance_readers
from speechssl.model.ctc import CTCOutput, ctc_losses
from speechssl.model.device import Precision
from speechssl.scoring.error_rates import UtteranceScore, score, sum_counts
from speechssl.terminal import count, format_duration, print_error, print_status, progress
from speechssl.transcribe.transcriber import Transcriber

LABELED, UNREADABLE = "labeled already", "unreadable"
"""Why an utterance is not even listened to."""


@dataclass(frozen=True)
class LabelConfig:
    """How labels are made, and which are kept."""

    filters: Filters  # whose bounds of letters a second come from the labeled speech
    lm: Path | None = None  # as for `Transcriber.load`, as are the next two
    device: str | None = None
    precision: Precision | None = None
    language: str | None = None  # of a model that has a choice
    second: Path | None = None  # the model of the second view; None is the same one
    speed: float = 1.1  # of the second view
    labeled: Path | None = None  # a manifest with true labels
    speed_tail: float = 0.01  # the share of it that speaks faster than is usual, and the share that speaks slower
    keeps_texts: bool = False  # whether texts of the manifest are true labels


class PseudoLabels:
    """What is heard in the utterances of a manifest, by their numbers, and why some of it is left out."""

    def __init__(self, model: Path, manifest: Manifest, true_labels: Sequence[Utterance], config: LabelConfig) -> None:
        self.model, self.manifest, self.config = model, manifest, config
        self.language = language_for(model, config.language)
        self.has_second_view = config.second is not None or config.speed != 1
        self.measures = manifest.has_texts and not config.keeps_texts
        self.heard: dict[int, PseudoLabel] = {}
        self.errors: dict[int, SpeechSSLError] = {}
        self.scores: dict[int, UtteranceScore] = {}
        spans = Spans(true_labels)
        self.left_out = {i: [LABELED] for i, utterance in enumerate(manifest) if spans.overlap(utterance) is not None}

    def inputs(self) -> dict[str, Any]:
        """Everything that the labels depend on."""
        config = self.config
        transcriber_settings = {name: getattr(config, name) for name in ("device", "precision", "language", "speed")}
        return {
            "manifest": self.manifest.digest,
            "model": read_model(self.model, self.language).digest,
            "second": None if config.second is None else read_model(config.second).digest,
            "language_model": None if config.lm is None else describe_search(BeamSearchConfig.read(config.lm)),
            "keeps_texts": config.keeps_texts,
            **transcriber_settings,
            "filters": json.loads(json.dumps(asdict(config.filters))),
        }

    def make(self) -> None:
        """Make the labels, and decide which are kept."""
        config, manifest = self.config, self.manifest
        transcriber = Transcriber.load(self.model, config.device, config.lm, config.precision, self.language)
        blank_id = transcriber.checkpoint.vocabulary.blank_id
        ways: list[Callable[[list[Tensor]], list[PathToken]]] = [partial(greedy_path, blank_id=blank_id)]
        if transcriber.decoding.beam_search is not None:
            ways.append(transcriber.decoding.beam_search.find_path)
        order = longest_first(manifest, [index for index in range(len(manifest)) if index not in self.left_out])
        decode = transcriber.checkpoint.vocabulary.decode
        for index, log_probs in self._log_probs(transcriber, order, 1.0):
            paths = [[token.symbol_id for token in find_path([log_probs])] for find_path in ways]
            greedy, text = decode(paths[0]), decode(paths[-1])
            speed = letters_per_second(text, manifest[index].seconds)
            self.heard[index] = PseudoLabel(text, greedy, _score(log_probs, paths[-1], blank_id), speed)
        if self.has_second_view:
            self._add_second_view(transcriber, [index for index in order if index in self.heard])
        if transcriber.decoding.beam_search is not None:
            self._compare("lm_difference", "text", "greedy")
        self._decide()

    def _log_probs(self, transcriber: Transcriber, order: Sequence[int], speed: float) -> Iterator[tuple[int, Tensor]]:
        readers = utterance_readers(self.manifest, order)
        if speed != 1:
            readers = [partial(_read_at_speed, read, speed) for read in readers]
        found = transcriber.log_probs_many(readers, map(self.manifest.where, order))
        with progress(str(self.manifest.path), len(order)) as advance:
            for index, log_probs in zip(order, found, strict=True):
                advance()
                if isinstance(log_probs, SpeechSSLError):
                    self.errors[index] = log_probs
                    print_error(log_probs)
                else:
                    yield index, log_probs

    def _add_second_view(self, transcriber: Transcriber, order: Sequence[int]) -> None:
        config = self.config
        if config.second is not None:
            language = language_for(config.second, config.language)
            transcriber = Transcriber.load(config.second, config.device, None, config.precision, language)
        vocabulary = transcriber.checkpoint.vocabulary
        for index, log_probs in self._log_probs(transcriber, order, config.speed):
            path = greedy_path([log_probs], vocabulary.blank_id)
            second = vocabulary.decode(token.symbol_id for token in path)
            self.heard[index] = replace(self.heard[index], second=second)
        for index in self.errors:
            self.heard.pop(index, None)
        self._compare("view_difference", "greedy", "second")

    def _compare(self, difference: str, one: str, other: str) -> None:
        """Note the character error rate of another text against one."""
        if not self.heard:
            return
        references, hypotheses = ([getattr(label, name) for label in self.heard.values()] for name in (one, other))
        scores = score(references, hypotheses).utterances
        for index, scored in zip(list(self.heard), scores, strict=True):
            rate: dict[str, Any] = {difference: scored.characters.rate}
            self.heard[index] = replace(self.heard[index], **rate)

    def _decide(self) -> None:
        self.left_out |= {index: [f"{UNREADABLE}: {error}"] for index, error in self.errors.items()}
        indices = sorted(self.heard)
        reasons = self.config.filters.left_out([self.heard[index] for index in indices])
        self.left_out = dict(sorted({**self.left_out, **dict(zip(indices, reasons, strict=True))}.items()))
        if self.measures and indices:
            references = [self.manifest[index].text or "" for index in indices]
            languages = [self.manifest[index].language for index in indices]
            found = score(references, [self.heard[index].text for index in indices], languages)
            self.scores = dict(zip(indices, found.utterances, strict=True))

    def report(self) -> dict[str, Any]:
        """Everything that was heard, kept or not, in the order of the manifest."""
        rows = []
        for index, why in self.left_out.items():
            utterance = self.manifest[index]
            where = {"path": utterance.path, "start": utterance.start, "num_samples": utterance.num_samples}
            heard = asdict(self.heard[index]) if index in self.heard else {}
            scored = {"true": asdict(self.scores[index])} if index in self.scores else {}
            rows.append({**where, "left_out": why, **heard, **scored})
        groups = {reason: self._measure(indices) for reason, indices in self._groups().items()}
        return {"model": str(self.model), "manifest": str(self.manifest.path), "groups": groups, "utterances": rows}

    def print_summary(self) -> None:
        """Say what was kept, what was left out and why, and how good either is if the manifest has texts."""
        if self.measures:
            print_status(
                f"label: {self.manifest.path}: its texts measure the labels and are not used for anything else"
            )
        for reason, indices in self._groups().items():
            measured = self._measure(indices)
            rates = (
                f", CER {100 * measured['cer']:.1f} %, WER {100 * measured['wer']:.1f} %" if "cer" in measured else ""
            )
            amount = f"{count(len(indices), 'utterance')}, {format_duration(measured['seconds'])}"
            print_status(f"label: {reason}: {amount}{rates}")

    def _groups(self) -> dict[str, list[int]]:
        """The utterances that were kept, those that were left out, and these again by reason, perhaps by several."""
        groups: dict[str, list[int]] = {"kept": [], LABELED: [], "left out": []}
        for index, why in self.left_out.items():
            if why == [LABELED]:
                groups[LABELED].append(index)
                continue
            groups["left out" if why else "kept"].append(index)
            for reason in why:
                groups.setdefault(f"left out, {reason.partition(':')[0]}", []).append(index)
        return {name: indices for name, indices in groups.items() if indices or name == "kept"}

    def _measure(self, indices: Sequence[int]) -> dict[str, Any]:
        scored = [self.scores[index] for index in indices if index in self.scores]
        measured = {"num_utterances": len(indices), "seconds": sum(self.manifest[index].seconds for index in indices)}
        if scored:
            measured["wer"] = sum_counts([utterance.words for utterance in scored]).rate
            measured["cer"] = sum_counts([utterance.characters for utterance in scored]).rate
        return measured


def _score(log_probs: Tensor, labels: Sequence[int], blank_id: int) -> float:
    """Return the natural logarithm of a text's probability, all its alignments together, divided by its length."""
    if not labels:
        return 0.0
    output = CTCOutput(log_probs[None], torch.tensor([len(log_probs)]))
    loss = ctc_losses(output, torch.tensor(labels), [len(log_probs)], [len(labels)], blank_id)
    return -float(loss) / len(labels)


def _read_at_speed(read: Callable[[], Waveform], speed: float) -> Waveform:
    return change_speed(read(), speed)
