"""``speechssl``: the commands for data, training and evaluation. Each imports what it needs when it runs."""

import json
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from speechssl.command import LanguageModelFile, exit_on_error, print_error, print_status
from speechssl.errors import LanguageModelError, ManifestError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pretrain speech encoders on unlabelled audio, fine-tune them with CTC, evaluate them.",
)


class ReportFormat(StrEnum):
    """How the report of `check` is printed."""

    TXT = "txt"
    JSON = "json"


Configurations = Annotated[
    list[Path], typer.Argument(metavar="CONFIG.toml", help="Settings that differ from the defaults; later files win.")
]
RunFolder = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the run lives; it is resumed if it exists.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; TOML syntax.")
]


@app.command()
def pretrain(configs: Configurations, output: RunFolder, overrides: Overrides = None) -> None:
    """Pretrain an encoder on unlabelled audio. Under torchrun, on many GPUs."""
    with exit_on_error():
        from speechssl.cpu import tune_cpu

        tune_cpu()  # before torch is imported
        from speechssl.train.pretrain import PretrainConfig
        from speechssl.train.pretrain import pretrain as run_pretraining

        run_pretraining(PretrainConfig.load(configs, overrides or []), output)


@app.command()
def finetune(configs: Configurations, output: RunFolder, overrides: Overrides = None) -> None:
    """Fine-tune an encoder with CTC on transcribed audio. Under torchrun, on many GPUs."""
    with exit_on_error():
        from speechssl.cpu import tune_cpu

        tune_cpu()  # before torch is imported
        from speechssl.train.finetune import FinetuneConfig
        from speechssl.train.finetune import finetune as run_finetuning

        run_finetuning(FinetuneConfig.load(configs, overrides or []), output)


@app.command()
def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A fine-tuned model, or the run folder that holds it.")
    ],
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST", help="Manifests with texts.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write everything as JSON: rates, confusions, each utterance's texts.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A torch device such as cpu or cuda:1. Default: the GPU if there is one."),
    ] = None,
    lm: LanguageModelFile = None,
) -> None:
    """Measure word and character error rates, with 95 % bootstrap intervals.

    Prints a row for RESULTS.md a manifest on stdout, the rest on stderr.
    """
    with exit_on_error():
        from speechssl.cpu import tune_cpu

        tune_cpu()  # before torch is imported
        from speechssl.transcribe.evaluate import evaluate_manifests

        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
        if not evaluate_manifests(model, manifests, output, device, lm):
            sys.exit(1)


@app.command()
def ngram(
    texts: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Manifests with texts (.tsv), or texts with a sentence a line.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.arpa", help="The file to write.")],
    order: Annotated[int, typer.Option(min=1, max=9, metavar="N", help="Words in the longest n-gram.")] = 3,
    is_normalized: Annotated[
        bool,
        typer.Option(
            "--normalize",
            help="Reduce texts to lower-case words without punctuation, as recipes/own_data does with labels; those "
            "with digits are left out.",
        ),
    ] = False,
) -> None:
    """Estimate an n-gram language model from texts, for --lm.

    By interpolated modified Kneser-Ney smoothing, with all n-grams of the
    texts. The texts should be written as the model writes: the same
    letters and case, no punctuation that it does not know.
    """
    with exit_on_error():
        from speechssl.language.arpa import write_arpa
        from speechssl.language.kneser_ney import estimate_ngrams
        from speechssl.language.texts import read_texts

        if output.exists() and any(path.exists() and path.samefile(output) for path in texts):
            raise LanguageModelError(f"{output}: expected another file than those with the texts")
        model = estimate_ngrams(read_texts(texts, is_normalized), order)
        write_arpa(output, model)
        print_status(f"{output}: {len(model.words)} words, {len(model.entries)} n-grams")


@app.command("tune-lm")
def tune_lm(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A fine-tuned model, or the run folder that holds it.")
    ],
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="The dev set, with texts.")],
    lm: Annotated[
        Path,
        typer.Option("--lm", metavar="FILE.arpa|FILE.toml", help="An ARPA file, or settings to look around in."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.toml", help="The settings found, for --lm of the others.")
    ],
    num_trials: Annotated[int, typer.Option("--trials", min=1, metavar="N", help="Settings to try.")] = 40,
    num_utterances: Annotated[
        int,
        typer.Option("--utterances", min=1, metavar="N", help="On how many, drawn at random if there are more."),
    ] = 300,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A torch device such as cpu or cuda:1. Default: the GPU if there is one."),
    ] = None,
) -> None:
    """Find how much a language model should count beside a model.

    Tries weights at random, half of them near the best so far, and keeps
    those with the lowest word error rate.
    """
    with exit_on_error():
        from speechssl.cpu import tune_cpu

        tune_cpu()  # before torch is imported
        from speechssl.transcribe.tune import tune_weights

        tune_weights(model, manifest, lm, output, num_trials, num_utterances, device)


@app.command()
def compare(
    candidates: Annotated[
        list[Path], typer.Argument(metavar="CANDIDATE.json", help="Evaluations of a method, one of each seed.")
    ],
    baselines: Annotated[
        list[Path],
        typer.Option("--baseline", metavar="FILE.json", help="One of the method to compare with; once for each seed."),
    ],
) -> None:
    """Compare two methods by what `evaluate --output` wrote of their runs.

    Prints error rates of all runs, and how those of the candidates relate
    to the baselines', with 95 % intervals over utterances and seeds.
    """
    with exit_on_error():
        from speechssl.transcribe.compare import format_comparison

        typer.echo(format_comparison(baselines, candidates))


@app.command()
def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders of one configuration, a seed each.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.tsv", help="The table to write.")],
    metrics: Annotated[
        list[str], typer.Option("--metric", metavar="NAME", help="What to keep, as log.jsonl calls it. Repeatable.")
    ],
) -> None:
    """Keep the curves of healthy runs, for `trainer.reference` of later ones."""
    with exit_on_error():
        from speechssl.train.reference import write_curves

        number = write_curves(output, runs, metrics)
        print_status(f"{output}: {number} values of {len(runs)} runs")


@app.command()
def extract(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any model, or the run folder that holds it.")],
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Recordings, folders with recordings, patterns, or - for stdin."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="The file to write: .safetensors or .npz."),
    ],
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="N|all", help="From 1; 0 is the input of the first. Default: the final output of the encoder."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A torch device such as cpu or cuda:1. Default: the GPU if there is one."),
    ] = None,
) -> None:
    """Write what the encoder says of each frame of recordings.

    The file holds, by the path of each recording, its features (frames,
    channels) and in "PATH:times" the centre of each frame in seconds; with
    --layer all "PATH:0", "PATH:1" and so on. Recordings that cannot be
    read are named on stderr, the others are still written.
    """
    with exit_on_error():
        from speechssl.cpu import tune_cpu

        tune_cpu()  # before torch is imported
        from speechssl.transcribe.extract import extract_files

        if not extract_files(model, files, layer, output, device):
            sys.exit(1)


@app.command()
def manifest(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Recordings, in subfolders too.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.tsv", help="The manifest to write.")],
) -> None:
    """Make a manifest of the recordings in a folder.

    The content of a .txt file with the same stem beside a recording
    becomes its text. Files that cannot be read are named on stderr, the
    others are still written. The manifest's root is relative if FOLDER
    lies beside or below it.
    """
    with exit_on_error():
        from speechssl.data.manifest import write_manifest
        from speechssl.data.scan import scan_folder

        scan = scan_folder(folder)
        for failure in scan.failures:
            print_error(failure)
        if not scan.utterances:
            raise ManifestError(f"{folder}: expected recordings that can be read, found none")
        root, parent = folder.resolve(), output.parent.resolve()
        utterances = [
            replace(utterance, path=root / utterance.path.relative_to(folder)) for utterance in scan.utterances
        ]
        write_manifest(output, utterances, root.relative_to(parent) if root.is_relative_to(parent) else root)
        minutes = sum(utterance.seconds for utterance in utterances) / 60
        print_status(f"{output}: {len(utterances)} utterances, {minutes:.1f} minutes")
        if scan.failures:
            sys.exit(1)


@app.command()
def unpack(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST", help="Of the recordings to decode.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="For manifests of the same names, and the copies.")
    ],
) -> None:
    """Decode recordings once, to 16 kHz WAV, where training would do it in every epoch.

    Worth its disk space (115 MB an hour) for mp3, Opus, video and rates
    other than 16 kHz. Copies that are there are kept unless the recording
    has changed. Recordings that cannot be read are named on stderr, the
    others are still written.
    """
    with exit_on_error():
        from speechssl.data.manifest import read_manifest
        from speechssl.data.unpack import unpack_manifests

        failures = unpack_manifests([read_manifest(path) for path in manifests], output)
        for failure in failures:
            print_error(failure)
        if failures:
            sys.exit(1)


@app.command()
def check(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST", help="Splits of one corpus; what two of them share is reported.")
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="Take frame lengths and letters from this model. Default: the frames of wav2vec 2.0, any letters.",
        ),
    ] = None,
    report_format: Annotated[ReportFormat, typer.Option("--format", help="How the report is printed.")] = (
        ReportFormat.TXT
    ),
) -> None:
    """Read all audio and text of manifests before training, and report what is wrong or suspicious.

    Errors (exit status 1): recordings that cannot be read or are shorter
    than stated, labels that do not fit their frames, characters outside
    the model's vocabulary, missing texts, splits that share audio.

    Warnings: clipping, silence, recordings longer than stated, splits
    that share texts.
    """
    with exit_on_error():
        from speechssl.data.check import BASE_GEOMETRY, check_manifests
        from speechssl.data.check_report import format_text, summarise, to_dict
        from speechssl.data.manifest import read_manifest

        geometry, vocabulary = BASE_GEOMETRY, None
        if model is not None:
            from speechssl.checkpoint.native import find_model, load_description
            from speechssl.data.text import Vocabulary

            description = load_description(model)
            geometry = description.encoder.feature_encoder.geometry
            if description.kind == "ctc":
                vocabulary = Vocabulary.load(find_model(model) / "vocab.json")
        read = []
        for path in manifests:
            try:
                read.append(read_manifest(path))
            except ManifestError as error:
                print_error(error)
        problems = check_manifests(read, geometry, vocabulary)
        summaries = [summarise(split) for split in read]
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
        if report_format is ReportFormat.JSON:
            typer.echo(json.dumps(to_dict(summaries, problems), ensure_ascii=False, indent=2))
        elif read:
            typer.echo(format_text(summaries, problems))
        if len(read) < len(manifests) or any(problem.is_error for problem in problems):
            sys.exit(1)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
