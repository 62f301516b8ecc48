"""How much a language model should count: weights tried on utterances with texts."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from speechssl.checkpoint.native import load_ctc
from speechssl.data.manifest import Manifest, read_manifest
from speechssl.decode.greedy import PathToken, greedy_path
from speechssl.decode.settings import BeamSearchConfig
from speechssl.errors import ConfigError
from speechssl.evaluate.evaluate import prepare_output
from speechssl.evaluate.utterances import read_batches, read_references
from speechssl.files import write_text_file
from speechssl.scoring.error_rates import score
from speechssl.terminal import print_status
from speechssl.transcribe.transcriber import Transcriber, make_beam_search

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
) -> None:
    """Search for the weights with the lowest word error rate, and write the best so far as TOML.

    Args:
        model: A model folder or a training run.
        manifest: Of the utterances to try them on, all with a text.
        lm: As for `Transcriber.load`; its weights are tried first.
        output: The TOML file; its ``lm`` is relative if it lies in the file's folder or below.
        num_trials: How many weights to try.
        num_utterances: On how many utterances, drawn at random if there are more.
        device: As for `load_ctc`.

    Raises:
        CheckpointError: the model cannot be loaded.
        ConfigError: the settings are wrong, or the output cannot be written.
        LanguageModelError: as for `make_beam_search`.
        ManifestError: an utterance has no text, or there are none.
        AudioError: a recording cannot be read.
    """
    if output.suffix != ".toml":
        raise ConfigError(f"{output}: expected a name that ends in .toml, by which settings are told from ARPA files")
    prepare_output(output)
    best = BeamSearchConfig.read(lm)
    transcriber = Transcriber(load_ctc(model, device))
    search = make_beam_search(best, transcriber.checkpoint)
    randomness = np.random.default_rng(0)
    trials = _Trials(transcriber, read_manifest(manifest), num_utterances, randomness)
    greedy = partial(greedy_path, blank_id=transcriber.checkpoint.vocabulary.blank_id)
    print_status(f"tune-lm: {trials.describe()}, greedy: {_describe(trials.rates(greedy))}")
    lowest = (math.inf, math.inf)
    for trial in range(num_trials):
        config = best if trial == 0 else best.model_copy(update=_draw(randomness, best, trial >= num_trials / 2))
        rates = trials.rates(search.reweighted(config).find_path)
        if rates < lowest:
            best, lowest = config, rates
            print_status(f"tune-lm: {trial + 1} of {num_trials}: {config.describe()}: {_describe(rates)}")
            _write(output, best, f"speechssl tune-lm {model} {manifest}: {trials.describe()}, {_describe(rates)}")


class _Trials:
    """What a model says of utterances, and what is really said."""

    def __init__(
        self, transcriber: Transcriber, manifest: Manifest, num_utterances: int, randomness: np.random.Generator
    ) -> None:
        references = read_references(manifest)
        drawn = sorted(randomness.permutation(len(manifest))[:num_utterances].tolist())
        self.num_all = len(manifest)
        self.vocabulary = transcriber.checkpoint.vocabulary
        self.references: list[str] = []
        self.log_probs: list[Tensor] = []
        for batch, waveforms in read_batches(manifest, indices=drawn):
            self.references += [references[index] for index in batch]
            self.log_probs += transcriber.log_probs(waveforms)

    def rates(self, find_path: Callable[[Iterable[Tensor]], Sequence[PathToken]]) -> tuple[float, float]:
        """Word and character error rates."""
        paths = (find_path([log_probs]) for log_probs in self.log_probs)
        texts = [self.vocabulary.decode(token.symbol_id for token in path) for path in paths]
        found = score(self.references, texts)
        return found.wer, found.cer

    def describe(self) -> str:
        """How many utterances."""
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
    try:
        write_text_file(output, "\n".join([f"# {' '.join(comment.split())}", *lines, ""]))
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror or error}") from None


def _describe(rates: tuple[float, float]) -> str:
    return f"WER {100 * rates[0]:.1f} %, CER {100 * rates[1]:.1f} %"
