"""What each layer of an encoder knows of the letters, as far as a linear classifier can read it.

    python tools/probe_layers.py MANIFEST --aligned-by FINETUNED MODEL [MODEL ...]

A fine-tuned model says which letter sounds at which frame: its greedy path puts one on a frame, and the two frames
before and after count with it; the others count as none. A logistic regression is trained on the features of the first
four fifths of the manifest's utterances and scored on the rest, for each layer of each model (0 is the input of the
first), for fresh weights, and for the log-mel spectra and their changes, of the frame alone and with two on each side,
that masked prediction takes its targets from. Layers that beat these know more than how a frame sounds.

All models must have the frames of the fine-tuned one.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from speechssl.cpu import tune_cpu

tune_cpu()  # before torch is imported

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import torch  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from torch import Tensor  # noqa: E402

from speechssl.checkpoint.reader import load_ctc, load_encoder  # noqa: E402
from speechssl.data.audio import Waveform  # noqa: E402
from speechssl.data.manifest import read_manifest, read_utterance  # noqa: E402
from speechssl.model.encoder import SpeechEncoder  # noqa: E402
from speechssl.objective.targets import LogMel  # noqa: E402

REACH = 2  # frames on each side of a letter's that count with it, and that are put beside a spectrum
NUM_BANDS = 40

Array = npt.NDArray[np.float32]
Analyze = Callable[[Tensor], Sequence[Tensor]]  # (1, T) to (S, D) a layer


def read_letters(model: torch.nn.Module, waveforms: Sequence[Waveform]) -> list[npt.NDArray[np.int64]]:
    """The symbol that sounds at each frame, (S,); 0 is none."""
    letters = []
    for waveform in waveforms:
        path = model(torch.from_numpy(waveform)[None]).log_probs[0].argmax(dim=1).numpy()
        spoken = np.flatnonzero(path)
        if not len(spoken):
            letters.append(path)
            continue
        frames = np.arange(len(path))
        nearest = spoken[np.abs(frames[:, None] - spoken).argmin(axis=1)]
        letters.append(np.where(np.abs(frames - nearest) <= REACH, path[nearest], 0))
    return letters


def encoder_layers(encoder: SpeechEncoder) -> Analyze:
    """The input of the context network, and the output of each of its layers."""
    return lambda waveforms: [context[0] for context in encoder.layer_outputs(encoder.extract_frames(waveforms))]


def spectra(encoder: SpeechEncoder) -> Analyze:
    """Log-mel spectra with their changes, alone and with those beside them."""
    analyze = LogMel(encoder.geometry, NUM_BANDS)

    def layers(waveforms: Tensor) -> Sequence[Tensor]:
        alone = analyze(waveforms)[0]
        padded = torch.cat((alone[:1].expand(REACH, -1), alone, alone[-1:].expand(REACH, -1)))
        return alone, torch.cat([padded[first : first + len(alone)] for first in range(2 * REACH + 1)], dim=1)

    return layers


def probe(features: Sequence[Array], letters: Sequence[npt.NDArray[np.int64]]) -> float:
    """The share of frames of the last fifth of the utterances whose letter is read right."""
    num_train = len(features) * 4 // 5
    train, test = np.concatenate(features[:num_train]), np.concatenate(features[num_train:])
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier = LogisticRegression(C=0.1, max_iter=100)
        classifier.fit((train - mean) / deviation, np.concatenate(letters[:num_train]))
    return float(classifier.score((test - mean) / deviation, np.concatenate(letters[num_train:])))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Linear probes of each layer for the letters.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("models", type=Path, nargs="+", help="pretrained or fine-tuned")
    parser.add_argument("--aligned-by", type=Path, required=True, help="a fine-tuned model")
    arguments = parser.parse_args()
    waveforms = [read_utterance(utterance) for utterance in read_manifest(arguments.manifest)]
    aligner = load_ctc(arguments.aligned_by, "cpu").model
    geometry = aligner.encoder.geometry
    waveforms = [waveform for waveform in waveforms if geometry.num_frames(len(waveform))]
    letters = read_letters(aligner, waveforms)
    sources: dict[str, Analyze] = {"log-mel, alone and with two on each side": spectra(aligner.encoder)}
    torch.manual_seed(0)
    first = load_encoder(arguments.models[0], "cpu")
    sources["fresh weights"] = encoder_layers(SpeechEncoder(first.config).eval())
    for model in arguments.models:
        encoder = load_encoder(model, "cpu")
        if encoder.geometry != geometry:
            parser.error(f"{model}: expected the frames of {arguments.aligned_by}, found others")
        sources[str(model)] = encoder_layers(encoder)
    num_frames = sum(map(len, letters))
    most_frequent = np.bincount(np.concatenate(letters)).max() / num_frames
    print(
        f"{arguments.manifest}: {num_frames} frames; the most frequent answer is right in {100 * most_frequent:.1f} %\n"
    )
    print("| features | right letters %, layer by layer |\n|---|---|")
    for name, analyze in sources.items():
        layers: list[list[Array]] = []
        for waveform in waveforms:
            for number, features in enumerate(analyze(torch.from_numpy(waveform)[None])):
                if number == len(layers):
                    layers.append([])
                layers[number].append(features.numpy())
        print(f"| {name} | {' '.join(f'{100 * probe(layer, letters):.1f}' for layer in layers)} |", flush=True)


if __name__ == "__main__":
    main()
