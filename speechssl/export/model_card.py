"""The README of an exported model: what it is, what it learned from, how well it does, how to load it."""

import json
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from speechssl import __version__
from speechssl.checkpoint.saved_model import SavedModel, TrainingData
from speechssl.data.audio import SAMPLE_RATE
from speechssl.errors import ConfigError
from speechssl.scoring.bootstrap import Interval
from speechssl.terminal import count, format_duration
from speechssl.train.log import read_log
from speechssl.train.writers import RUN_FILE

# Those that the hub has a name for and that come with speech.
_LICENSES = {"apache-2.0", "mit", "cc0-1.0", "gpl-2.0", "gpl-3.0", "odc-by", "pddl"} | {
    f"cc-by{terms}-{version}"
    for terms in ("", "-sa", "-nc", "-nc-sa", "-nd", "-nc-nd")
    for version in ("2.0", "3.0", "4.0")
}


def make_card(name: str, saved: SavedModel, library: str, usage: str, scores: Sequence[Path]) -> str:
    """Return the card as Markdown with the head that the hub reads.

    Args:
        name: What the model is called.
        saved: The model; of a training run that still is where it was, the card says what it took.
        library: Who loads the files.
        usage: How, as Markdown.
        scores: Files that ``speechssl evaluate --output`` wrote for this model.

    Raises:
        ConfigError: a file with scores is something else, or is another model's.
    """
    evaluations = [evaluation for file in scores for evaluation in _read_scores(file, saved)]
    parts = [f"# {name}", _describe_model(saved), "## Use", usage, "## Training", _describe_training(saved)]
    if evaluations:
        parts += ["## Scores", _describe_scores(evaluations)]
    return f"{_head(name, saved, library, evaluations)}\n" + "\n\n".join(parts) + "\n"


def _head(name: str, saved: SavedModel, library: str, evaluations: Sequence[dict[str, Any]]) -> str:
    task = "automatic-speech-recognition" if saved.vocabulary else "feature-extraction"
    head: dict[str, Any] = _license(saved.description.training_data)
    head |= {"library_name": library, "pipeline_tag": task, "tags": ["speechssl", "speech"]}
    if evaluations:
        head["metrics"] = ["wer", "cer"]
        results = [
            {
                "task": {"type": task},
                "dataset": {"name": Path(evaluation["manifest"]).name, "type": Path(evaluation["manifest"]).stem},
                "metrics": [
                    {"type": metric, "name": metric.upper(), "value": round(100 * evaluation[metric]["value"], 2)}
                    for metric in ("wer", "cer")
                ],
            }
            for evaluation in evaluations
        ]
        head["model-index"] = [{"name": name, "results": results}]
    # JSON is YAML, whatever is in the strings.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    return "\n".join(["---", *lines, "---"])


def _license(training_data: Sequence[TrainingData]) -> dict[str, str]:
    """The one license that all data have, by the hub's name, or all of them as they were given."""
    found = [_LICENSES & set(re.findall(r"[a-z0-9.-]+", data.license.lower())) for data in training_data]
    if found and all(len(names) == 1 and names == found[0] for names in found):
        return {"license": found[0].pop()}
    if not training_data:
        return {}
    return {"license": "other", "license_name": "; ".join(dict.fromkeys(data.license for data in training_data))}


def _describe_model(saved: SavedModel) -> str:
    description = saved.description
    encoder = description.encoder
    num_parameters = sum(weight.numel() for name, weight in saved.weights.items() if not name.startswith("objective."))
    hop_ms = 1000 * encoder.feature_encoder.geometry.hop_samples / SAMPLE_RATE
    does = (
        f"transcribes speech at {description.sample_rate} Hz by CTC, with {len(saved.vocabulary)} symbols"
        if saved.vocabulary
        else f"represents speech at {description.sample_rate} Hz and was not trained to transcribe it"
    )
    origin = (
        f"Trained with speechssl {description.speechssl_version}"
        if saved.family == "speechssl"
        else f"Converted by speechssl {__version__} from a model of {saved.family}"
    )
    return (
        f"A model of {num_parameters / 1e6:.1f} million parameters that {does}: "
        f"{count(encoder.context.num_layers, 'layer')} of width {encoder.context.model_dim}, a frame every {hop_ms:g} "
        f"ms. {origin}."
    )


def _describe_training(saved: SavedModel) -> str:
    rows = ["| stage | hours | transcripts | license |", "|---|---|---|---|"]
    rows += [
        f"| {data.stage} | {'unknown' if data.hours is None else f'{data.hours:.2f}'} "
        f"| {'used' if data.labeled else 'not used'} | {data.license} |"
        for data in saved.description.training_data
    ]
    compute = list(_describe_runs(saved.weights_file.resolve().parent.parent.parent))
    lines = compute or ["What it took was not recorded."]
    if saved.description.step:
        lines.insert(0, f"{saved.description.step} updates in the last stage.")
    return "\n".join(rows) + "\n\n" + "\n".join(lines)


def _describe_runs(run: Path) -> Iterator[str]:
    """A line for the run that made a model, and for those that it started from, as far as they are still there."""
    while (file := run / RUN_FILE).is_file():
        try:
            record = json.loads(file.read_text("utf-8"))
            config = record["config"]
            seconds = config["batches"]["seconds"] * config["trainer"]["microbatches"]
        except (ValueError, KeyError, TypeError):
            return
        log = [line for line in read_log(run) if "audio_seconds_per_second" in line]
        if not log:
            return
        steps, speed = log[-1]["step"], statistics.median(line["audio_seconds_per_second"] for line in log)
        yield (
            f"{record['stage'].capitalize()}: {steps} updates of up to {seconds:g} s of audio, at {speed:.0f} s of "
            f"audio a second: at most {format_duration(steps * seconds / speed)}."
        )
        run = Path(config.get("init", ""))


def _describe_scores(evaluations: Sequence[dict[str, Any]]) -> str:
    rows = ["| test data | decoding | WER % [95 %] | CER % [95 %] |", "|---|---|---|---|"]
    for evaluation in evaluations:
        data = (
            f"{Path(evaluation['manifest']).name}: {count(evaluation['num_utterances'], 'utterance')}, "
            f"{format_duration(evaluation['audio_seconds'])}"
        )
        rates = [Interval(**evaluation[metric]).show() for metric in ("wer", "cer")]
        rows.append("| " + " | ".join((data, evaluation["decoding"], *rates)) + " |")
    return "\n".join(rows)


def _read_scores(file: Path, saved: SavedModel) -> list[dict[str, Any]]:
    try:
        content = json.loads(file.read_text("utf-8"))
        evaluations: list[dict[str, Any]] = content["evaluations"]
        _describe_scores(evaluations)
        step, num_parameters = content["step"], content["num_parameters"]
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{file}: expected what speechssl evaluate --output writes") from None
    expected = saved.description.step, sum(weight.numel() for weight in saved.weights.values())
    if (step, num_parameters) != expected:
        raise ConfigError(
            f"{file}: expected the scores of this model ({expected[1]} parameters after {expected[0]} updates), "
            f"found another's ({num_parameters} after {step})"
        )
    return evaluations
