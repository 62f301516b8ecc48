"""Weights of a language model, tried on utterances with texts."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from speechssl.data.manifest import Manifest, read_manifest
from speechssl.decode.greedy import PathToken, greedy_path
from speechssl.decode.settings import BeamSearchConfig
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.evaluate.utterances import longest_first, read_references, utterance_readers
from speechssl.model.device import Precision
from speechssl.scoring.error_rates import score
from speechssl.terminal import print_status, progress
from speechssl.transcribe.outputs import prepare_file, write_text
from speechssl.transcribe.transcriber import Transcriber

_RANGES = {"lm_weight": (0.0, 2.0), "word_score": (-2.0, 10.0), "unknown_score": (-25.0, 0.0)}
_NEAR = 0.1  # of the range: how far from the best so far the second half of the trials goes


def tune_weights(
    model: Path,
    manifest: Path,
    lm: Path,
    output: Path,
    num_trials: int = 40,
    num_utterances: int = 300,
    device: str | None = None,
    precision: Precision | None = None,
    language: str | None = None,
    by: Literal["wer", "cer"] = "wer",
) -> None:
    """Search for the weights with the lowest word or character error rate, and write the best so far as TOML.

    The weights of ``lm`` are tried first. ``model``, ``lm``, ``device``, ``precision``, ``language`` are as for
    `Transcriber.load`; the utterances are drawn at random if there are more.
    """
    if output.suffix != ".toml":
        raise ConfigError(f"{output}: expected a name that ends in .toml, by which settings are told from ARPA files")
    prepare_file(output)
    transcriber = Transcriber.load(model, device, lm, precision, language)
    search = transcriber.decoding.beam_search
    assert search is not None
    best = search.config
    randomness = np.random.default_rng(0)
    trials = _Trials(transcriber, read_manifest(manifest), num_utterances, randomness)
    greedy_search = partial(greedy_path, blank_id=transcriber.checkpoint.vocabulary.blank_id)
    greedy = _describe(trials.rates(greedy_search))
    print_status(f"tune-lm: {trials.describe()} on {transcriber.inference.describe()}, greedy: {greedy}")
    lowest = (math.inf, math.inf)
    for trial in range(num_trials):
        config = best if trial == 0 else best.model_copy(update=_draw(randomness, best, trial >= num_trials / 2))
        rates = trials.rates(search.reweighted(config).find_path)
        order = rates if by == "wer" else rates[::-1]
        if order < lowest:
            best, lowest = config, order
            print_status(f"tune-lm: {trial + 1} of {num_trials}: {config.describe()}: {_describe(rates)}")
            _write(output, best, f"speechssl tune-lm {model} {manifest}: {trials.describe()}, {_describe(rates)}")


class _Trials:
    """Utterances with a model's log probabilities and their texts."""

    def __init__(
        self, transcriber: Transcriber, manifest: Manifest, num_utterances: int, randomness: np.random.Generator
    ) -> None:
        references = read_references(manifest)
        drawn = sorted(randomness.permutation(len(manifest))[:num_utterances].tolist())
        order = longest_first(manifest, drawn)
        self.num_all = len(manifest)
        self.vocabulary = transcriber.checkpoint.vocabulary
        self.references = [references[index] for index in order]
        self.languages = [manifest[index].language for index in order]
        self.log_probs: list[Tensor] = []
        all_log_probs = transcriber.log_probs_many(utterance_readers(manifest, order), map(manifest.where, order))
        with progress(str(manifest.path), len(order)) as advance:
            for log_probs in all_log_probs:
                if isinstance(log_probs, SpeechSSLError):
                    raise log_probs
                self.log_probs.append(log_probs)
                advance()

    def rates(self, find_path: Callable[[Iterable[Tensor]], Sequence[PathToken]]) -> tuple[float, float]:
        """Return word and character error rates."""
        paths = (find_path([log_probs]) for log_probs in self.log_probs)
        texts = [self.vocabulary.decode(token.symbol_id for token in path) for path in paths]
        found = score(self.references, texts, self.languages)
        return found.wer, found.cer

    def describe(self) -> str:
        return f"{len(self.references)} of {self.num_all} utterances"


def _draw(randomness: np.random.Generator, best: BeamSearchConfig, is_near: bool) -> dict[str, float]:
    drawn = {}
    for name, (low, high) in _RANGES.items():
        if is_near:
            value = randomness.normal(getattr(best, name), _NEAR * (high - low))
            drawn[name] = min(max(value, low), high)
        else:
            drawn[name] = randomness.uniform(low, high)
    return {name: round(value, 2) for name, value in drawn.items()}


def _write(output: Path, config: BeamSearchConfig, comment: str) -> None:
    lm, folder = config.lm.resolve(), output.parent.resolve()
    path = lm.relative_to(folder) if lm.is_relative_to(folder) else lm
    settings = config.to_dict() | {"lm": str(path)}
    # A JSON string is TOML's too, if it has no surrogates, and so is a number.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]
    write_text(output, "\n".join([f"# {' '.join(comment.split())}", *lines, ""]))


def _describe(rates: tuple[float, float]) -> str:
    return f"WER {100 * rates[0]:.1f} %, CER {100 * rates[1]:.1f} %"
