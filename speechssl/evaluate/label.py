"""Label speech that has no texts with what a model hears in it, to train the next model on (self-training)."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechssl.data.manifest import Utterance, read_manifest, write_manifest
from speechssl.data.paths import is_url
from speechssl.errors import ConfigError, ManifestError
from speechssl.evaluate.filters import usual_speeds
from speechssl.evaluate.pseudo_labels import LabelConfig, PseudoLabels
from speechssl.terminal import count, print_status
from speechssl.transcribe.outputs import prepare_file, write_text


def label_manifest(model: Path, path: Path, output: Path, config: LabelConfig) -> bool:
    """Write a manifest of the true labels and of those made, and beside it, as JSON, everything that was heard.

    The utterances of ``config.labeled`` come first, as they are; what shares samples with them is not labeled. Texts
    of the manifest serve to measure the labels, for nothing else, unless ``config.keeps_texts``.

    Returns:
        Whether every recording could be read.

    Raises:
        SpeechSSLError: something cannot be read or written, or no label is kept.
    """
    if output.suffix != ".tsv":
        raise ConfigError(f"{output}: expected a name that ends in .tsv, beside which the report ends in .json")
    prepare_file(output)
    report_file = output.with_suffix(".json")
    prepare_file(report_file)
    manifest = read_manifest(path)
    labeled = None if config.labeled is None else read_manifest(config.labeled)
    for source in (manifest, labeled):
        if source is not None and output.exists() and source.path.samefile(output):
            raise ConfigError(f"{output}: expected another file than the manifests that are read")
    true_labels = [] if labeled is None else list(labeled)
    if labeled is not None and not any(utterance.text for utterance in labeled):
        raise ManifestError(f"{labeled.path}: expected texts, found none")
    if config.keeps_texts:
        true_labels += [utterance for utterance in manifest if utterance.text]
    if any(utterance.text for utterance in true_labels):
        bounds = usual_speeds(true_labels, config.speed_tail)
        config = replace(config, filters=replace(config.filters, letters_per_second=bounds))
    made = PseudoLabels(model, manifest, true_labels, config)
    record = made.inputs() | {"labeled": labeled and labeled.digest}
    if _is_finished(report_file, output, record):
        print_status(f"label: {output} is finished")
        return True
    made.make()
    kept = [replace(manifest[index], text=made.heard[index].text) for index, why in made.left_out.items() if not why]
    if kept:
        _write_manifest(output, [*true_labels, *kept])
    written = read_manifest(output).digest if kept else None
    report = {"inputs": record, "manifest_sha256": written, **made.report()}
    write_text(report_file, json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    made.print_summary()
    if not kept:
        raise ManifestError(f"{path}: expected labels that pass the filters, found none of {len(manifest)}")
    joined = f" after {len(true_labels)} with true labels" if true_labels else ""
    print_status(f"label: {output}: {count(len(kept), 'utterance')}{joined}")
    return not made.errors


def _write_manifest(output: Path, utterances: Sequence[Utterance]) -> None:
    """Write a manifest of recordings of any place; its root is relative if it lies beside or below it."""
    paths = [
        utterance.path if is_url(utterance.path) else os.path.abspath(utterance.path)  # noqa: PTH100, links stay
        for utterance in utterances
    ]
    folders = [os.path.dirname(path) for path in paths if not is_url(path)]  # noqa: PTH120
    root = Path(os.path.commonpath(folders) if folders else output.parent.absolute())
    moved = [replace(utterance, path=path) for utterance, path in zip(utterances, paths, strict=True)]
    parent = output.parent.absolute()
    write_manifest(output, moved, root.relative_to(parent) if root.is_relative_to(parent) else root)


def _is_finished(report_file: Path, output: Path, inputs: dict[str, Any]) -> bool:
    """Whether the labels are there already, made of the same by the same."""
    try:
        report = json.loads(report_file.read_text("utf-8"))
        return bool(report["inputs"] == inputs and report["manifest_sha256"] == read_manifest(output).digest)
    except (OSError, ValueError, KeyError, TypeError, ManifestError):
        return False
