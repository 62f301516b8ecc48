"""What each layer of an encoder knows of letters, language and voice, read by linear classifiers and by distances."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechssl.checkpoint.reader import load_encoder
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.manifest import Manifest, read_manifest
from speechssl.errors import ConfigError
from speechssl.evaluate.abx import abx_error, draw_triples
from speechssl.evaluate.letters import AlignedUtterance, align_manifest
from speechssl.evaluate.linear import read_right
from speechssl.evaluate.utterances import utterance_readers
from speechssl.evaluate.voices import choose_utterances, make_questions
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import SpeechEncoder
from speechssl.objective.targets import LogMel
from speechssl.rng import keyed_generator
from speechssl.terminal import print_status
from speechssl.transcribe.outputs import prepare_file, write_text

NUM_FRAMES = 20_000
NUM_TRIPLES = 50  # for each ordered pair of letters
MIN_TOKENS = 10  # of a letter that is compared
HEARD_SAMPLES = SAMPLE_RATE  # of an utterance whose language or voice is to be told
_TRAIN_SHARE = 0.8  # of the utterances with letters
_NUM_BANDS = 40
_BESIDE = 2  # frames on each side that are put beside a spectrum
_PURPOSE = 82  # of the generator

Array = npt.NDArray[np.float32]
Measures = dict[str, float]


@dataclass(frozen=True)
class Source:
    """What gives features of a recording: for (1, T) samples (S, D) a layer."""

    name: str
    geometry: FrameGeometry
    analyze: Callable[[Tensor], Sequence[Tensor]]

    @classmethod
    def of_encoder(cls, name: str, encoder: SpeechEncoder) -> "Source":
        """The input of the context network, and the output of each of its layers."""

        def analyze(waveforms: Tensor) -> Sequence[Tensor]:
            return [context[0] for context in encoder.layer_outputs(encoder.extract_frames(waveforms))]

        return cls(name, encoder.geometry, analyze)

    @classmethod
    def of_spectra(cls, geometry: FrameGeometry) -> "Source":
        """Log-mel spectra with their changes, which nothing learned: alone, and with those beside them."""
        spectrum = LogMel(geometry, _NUM_BANDS)

        def analyze(waveforms: Tensor) -> Sequence[Tensor]:
            alone = spectrum(waveforms)[0]
            padded = torch.cat((alone[:1].expand(_BESIDE, -1), alone, alone[-1:].expand(_BESIDE, -1)))
            return alone, torch.cat([padded[first : first + len(alone)] for first in range(2 * _BESIDE + 1)], dim=1)

        return cls("log-mel spectra, alone and with two on each side", geometry, analyze)


class LetterProbe:
    """Which letter sounds at a frame, read by a linear classifier, and an ABX test on letters.

    The frames asked about are the aligner's, or `NUM_FRAMES` of them drawn at random. The answer is in the model's
    frame whose center is nearest in time, so models with other frames are asked the same. A letter of the ABX test is
    the mean of the frames whose centers it covers.
    """

    def __init__(self, utterances: Sequence[AlignedUtterance], seed: int) -> None:
        self.utterances = utterances
        number_of = np.repeat(np.arange(len(utterances)), [len(utterance.symbols) for utterance in utterances])
        randomness = keyed_generator(seed, _PURPOSE)
        chosen = np.sort(randomness.permutation(len(number_of))[:NUM_FRAMES])
        times = np.concatenate([utterance.times for utterance in utterances])[chosen]
        self._times = [times[number_of[chosen] == number] for number in range(len(utterances))]
        self._symbols = np.concatenate([utterance.symbols for utterance in utterances])[chosen]
        train = randomness.permutation(len(utterances))[: int(_TRAIN_SHARE * len(utterances))]
        self._is_train = np.isin(number_of[chosen], train)
        if self._is_train.all() or len(set(self._symbols[self._is_train])) < 2:
            raise ConfigError("letters: expected at least two utterances and two letters, found fewer")
        letters = [(number, letter) for number, utterance in enumerate(utterances) for letter in utterance.letters]
        self._triples = draw_triples(
            [letter.symbol for _, letter in letters],
            [utterances[number].speaker or str(number) for number, _ in letters],
            [number for number, _ in letters],
            NUM_TRIPLES,
            MIN_TOKENS,
            seed,
        )

    def describe(self) -> dict[str, Any]:
        """Return what the numbers are of."""
        symbols, counts = np.unique(self._symbols[self._is_train], return_counts=True)
        return {
            "train_frames": int(self._is_train.sum()),
            "test_frames": int((~self._is_train).sum()),
            "chance": float((self._symbols[~self._is_train] == symbols[counts.argmax()]).mean()),
            "abx_pairs": len(set(self._triples.pair.tolist())),
            "abx_triples": len(self._triples.pair),
        }

    def measure(self, source: Source) -> list[Measures]:
        """Return by layer the share of frames read right, and the ABX error if there are letters to compare."""
        frames: list[list[Array]] = []
        tokens: list[list[Array]] = []
        for utterance, times in zip(self.utterances, self._times, strict=True):
            layers = source.analyze(torch.from_numpy(utterance.waveform)[None])
            nearest = nearest_frames(source.geometry, times, len(layers[0]))
            spans = letter_spans(source.geometry, utterance, len(layers[0]))
            frames.append([layer[nearest].numpy() for layer in layers])
            tokens.append([np.stack([layer[a:b].mean(dim=0).numpy() for a, b in spans]) for layer in layers])
        measured = []
        is_train, symbols = self._is_train, self._symbols
        for of_frames, of_tokens in zip(zip(*frames, strict=True), zip(*tokens, strict=True), strict=True):
            features = np.concatenate(of_frames)
            right = read_right(features[is_train], symbols[is_train], features[~is_train], symbols[~is_train])
            measured.append({"letters": float(right.mean())})
            if len(self._triples.pair):
                measured[-1]["abx"] = abx_error(np.concatenate(of_tokens), self._triples)
        return measured


class VoiceProbe:
    """Language and voice, read from the mean and the deviation of the frames of a second of each utterance.

    The encoder hears no more than this second. Whole utterances of the prompts are too easy: of 8 s, spectra alone tell
    the languages of one voice apart.
    """

    def __init__(self, manifest: Manifest, seed: int) -> None:
        chosen = choose_utterances(manifest, seed)
        randomness = keyed_generator(seed, _PURPOSE, 1)
        self._waveforms = []
        for read in utterance_readers(manifest, chosen):
            waveform = read()
            start = randomness.integers(max(len(waveform) - HEARD_SAMPLES, 0) + 1)
            self._waveforms.append(waveform[start : start + HEARD_SAMPLES])
        utterances = [manifest[number] for number in chosen]
        self._questions = make_questions(
            [utterance.speaker or "" for utterance in utterances],
            [utterance.language or "" for utterance in utterances],
            seed,
        )

    def describe(self) -> dict[str, Any]:
        """Return what the numbers are of."""
        return {
            "utterances": len(self._waveforms),
            "chance": {question.name: question.chance for question in self._questions},
        }

    def measure(self, source: Source) -> list[Measures]:
        """Return by layer the share of utterances read right, for each question."""
        pooled = []
        for waveform in self._waveforms:
            layers = source.analyze(torch.from_numpy(waveform)[None])
            pooled.append([torch.cat((layer.mean(dim=0), layer.std(dim=0, correction=0))).numpy() for layer in layers])
        return [
            {
                question.name: float(
                    np.concatenate(
                        [
                            read_right(features[train], question.labels[train], features[test], question.labels[test])
                            for train, test in question.splits
                        ]
                    ).mean()
                )
                for question in self._questions
            }
            for features in map(np.stack, zip(*pooled, strict=True))
        ]


def nearest_frames(geometry: FrameGeometry, times: npt.NDArray[np.float64], num_frames: int) -> npt.NDArray[np.int64]:
    """Return the frames whose centers are nearest to times in seconds."""
    return np.rint(_positions(geometry, times)).astype(np.int64).clip(0, num_frames - 1)


def letter_spans(geometry: FrameGeometry, utterance: AlignedUtterance, num_frames: int) -> list[tuple[int, int]]:
    """Return for each letter the frames [start, stop) with their centers in it, at least the nearest one."""
    half_hop = np.diff(utterance.times[:2]).sum() / 2  # a frame of the aligner stands for this much on each side
    first = np.array([letter.first for letter in utterance.letters])
    last = np.array([letter.last for letter in utterance.letters])
    start = np.ceil(_positions(geometry, first - half_hop)).astype(np.int64)
    stop = np.ceil(_positions(geometry, last + half_hop)).astype(np.int64)
    nearest = nearest_frames(geometry, (first + last) / 2, num_frames)
    start, stop = np.minimum(start, nearest), np.maximum(stop, nearest + 1)
    return list(zip(start.clip(0).tolist(), stop.clip(max=num_frames).tolist(), strict=True))


def _positions(geometry: FrameGeometry, times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (times * SAMPLE_RATE - geometry.receptive_field_samples / 2) / geometry.hop_samples


@torch.inference_mode()
def probe_models(
    models: Sequence[Path],
    aligner: Path | None,
    letters: Path | None,
    voices: Path | None,
    output: Path | None,
    with_baselines: bool,
    seed: int,
) -> str:
    """Probe models and return a table in Markdown: a row a measure and model, its layers from the input on.

    Args:
        models: As for `load_encoder`.
        aligner: A fine-tuned model that says which letter sounds when.
        letters: A manifest with texts, for the probe of letters and the ABX test.
        voices: A manifest with speakers and languages.
        output: Where everything is written as JSON.
        with_baselines: Probe spectra, and the encoder of the first model with fresh weights, as well.
        seed: Of what is drawn: splits, frames, triples, fresh weights.

    Raises:
        SpeechSSLError: a model or manifest cannot be read or has not what is needed.
    """
    if letters is None and voices is None:
        raise ConfigError("probe: expected --letters, --voices or both")
    if letters is not None and aligner is None:
        raise ConfigError("probe: expected --aligned-by, a fine-tuned model that says which letter sounds when")
    if output is not None:
        prepare_file(output)
    encoders = {str(model): load_encoder(model, "cpu") for model in models}
    probes: dict[str, LetterProbe | VoiceProbe] = {}
    found: dict[str, Any] = {"seed": seed}
    if letters is not None and aligner is not None:
        probes["letters"] = LetterProbe(align_manifest(aligner, read_manifest(letters)), seed)
        found |= {"letters": {"manifest": str(letters), "aligned_by": str(aligner), **probes["letters"].describe()}}
    if voices is not None:
        probes["voices"] = VoiceProbe(read_manifest(voices), seed)
        found |= {"voices": {"manifest": str(voices), **probes["voices"].describe()}}
    sources = [Source.of_encoder(name, encoder) for name, encoder in encoders.items()]
    if with_baselines:
        first = next(iter(encoders.values()))
        torch.manual_seed(seed)
        fresh = Source.of_encoder("fresh weights", SpeechEncoder(first.config).eval())
        sources = [Source.of_spectra(first.geometry), fresh, *sources]
    rows = []
    for source in sources:
        print_status(f"probe: {source.name}")
        measured = [probe.measure(source) for probe in probes.values()]
        layers = [
            {name: value for part in parts for name, value in part.items()} for parts in zip(*measured, strict=True)
        ]
        rows.append({"features": source.name, "layers": layers})
    found["rows"] = rows
    if output is not None:
        write_text(output, json.dumps(found, indent=1) + "\n")
    return format_table(rows)


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of what `probe_models` found, in percent."""
    lines = ["| features | measure | %, layer by layer |", "|---|---|---|"]
    for row in rows:
        for measure in row["layers"][0]:
            values = " ".join(f"{100 * layer[measure]:.1f}" for layer in row["layers"])
            lines.append(f"| {row['features']} | {measure.replace('_', ' ')} | {values} |")
    return "\n".join(lines)
