"""Confidences that mean something: fit how often words of a confidence are right, and store it with the model."""

from itertools import chain
from pathlib import Path

from speechssl.checkpoint.calibration_file import CalibrationFile
from speechssl.checkpoint.reader import language_for
from speechssl.data.manifest import read_manifest
from speechssl.decode.calibration import fit_calibration
from speechssl.errors import ManifestError
from speechssl.evaluate.evaluate import evaluate_model, show_reliability
from speechssl.model.device import Precision
from speechssl.scoring.reliability import measure_reliability
from speechssl.terminal import count, print_status
from speechssl.transcribe.outputs import prepare_file
from speechssl.transcribe.transcriber import Transcriber


def calibrate_model(
    model: Path,
    path: Path,
    lm: Path | None = None,
    device: str | None = None,
    precision: Precision | None = None,
    language: str | None = None,
    *,
    words_only: bool = False,
) -> None:
    """Fit a `Calibration` on a manifest with texts, and write it beside the weights, or beside ``lm``.

    Args:
        path: The manifest, of speech that the model was not trained on.
        model, lm, device, precision, language: As for `Transcriber.load`.
        words_only: As for `score`.

    Raises:
        SpeechSSLError: something cannot be read or written, or no word is heard.
    """
    transcriber = Transcriber.load(model, device, lm, precision, language_for(model, language), calibrated=False)
    file = CalibrationFile.of(transcriber.checkpoint.weights_files, lm)
    prepare_file(file.path)
    evaluation = evaluate_model(transcriber, read_manifest(path), words_only=words_only, language=language)
    names = "word_confidences", "words_right", "word_posteriors"
    confidences, is_right, posteriors = ([found[name] for found in evaluation.utterances] for name in names)
    flat, flat_right, flat_posteriors = (list(chain(*values)) for values in (confidences, is_right, posteriors))
    if not flat:
        raise ManifestError(f"{path}: expected speech in which the model hears words, found none")
    fitted_on = f"{path.name}: {count(len(flat), 'word')}"
    calibration = fit_calibration(flat, flat_right, fitted_on, None if lm is None else flat_posteriors)
    file.write(calibration)
    after = [list(map(calibration, *words)) for words in zip(confidences, posteriors, strict=True)]
    speakers = [utterance["speaker"] for utterance in evaluation.utterances]
    print_status(
        f"calibrate: {path}: {count(len(flat), 'word')}, {100 * sum(flat_right) / len(flat):.1f} % right, "
        f"{evaluation.decoding}: {calibration.describe()}; ECE % {show_reliability(evaluation.reliability)} before, "
        f"{show_reliability(measure_reliability(after, is_right, speakers))} after on the same words"
    )
    print_status(f"calibrate: {file.path}")
