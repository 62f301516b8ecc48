"""``speechssl inspect``."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from speechssl.commands.options import AnyModel, Language
from speechssl.terminal import exit_on_error

if TYPE_CHECKING:
    from speechssl.checkpoint.saved_model import SavedModel
    from speechssl.data.units import Units
    from speechssl.model.ctc import CTCModel
    from speechssl.model.encoder import EncoderConfig, SpeechEncoder

_SHOWN_SYMBOLS = 40


def inspect(model: AnyModel, language: Language = None) -> None:
    """Print what a model is: family, sizes, parameters, input rules, license, vocabulary, and what is missing.

    Every weight is read and checked; the exit status is 1 if one is missing,
    left over or of another shape.
    """
    with exit_on_error():
        from speechssl.checkpoint.reader import read_model

        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
        saved = read_model(model, language)
        for name, value in describe(model, saved):
            typer.echo(f"{name + ':':<12}{value}")
        check(saved)


def describe(model: Path, saved: "SavedModel") -> Iterator[tuple[str, str]]:
    """Yield what there is to say of a model, without reading its weights."""
    description, vocabulary = saved.description, saved.vocabulary
    num_parameters = sum(parameter.numel() for parameter in _network(saved).parameters())
    yield "model", str(model)
    yield "files", ", ".join(str(file) for file in saved.weights_files)
    yield "family", f"{saved.family}, {'an encoder' if vocabulary is None else 'an encoder with a CTC head'}"
    yield "parameters", f"{num_parameters:,}"
    yield from _describe_encoder(description.encoder)
    if description.objective is not None:
        yield "objective", str(description.objective["kind"])
    for data in description.training_data:
        hours = "" if data.hours is None else f", {data.hours:.2f} hours"
        yield "trained", f"{data.stage}{hours}, license {data.license}"
    if vocabulary is not None:
        yield "vocabulary", _describe_vocabulary(vocabulary)
    for remark in saved.remarks:
        yield "missing", remark


def check(saved: "SavedModel") -> None:
    """Read the weights and compare them with the model's."""
    weights = saved.weights if saved.vocabulary else saved.encoder_weights
    saved.check(_network(saved), weights)
    if "encoder.context.mask_embedding" in saved.weights and not saved.weights["encoder.context.mask_embedding"].any():
        typer.echo("missing:    the mask embedding, which only training uses: it is zero")


def _network(saved: "SavedModel") -> "SpeechEncoder | CTCModel":
    """The model without memory for its weights."""
    import torch

    from speechssl.model.ctc import CTCModel
    from speechssl.model.encoder import SpeechEncoder
    from speechssl.model.unfilled import Unfilled

    with torch.device("meta"), Unfilled():
        if saved.vocabulary is None:
            return SpeechEncoder(saved.description.encoder)
        return CTCModel(saved.description.encoder, len(saved.vocabulary))


def _describe_encoder(encoder: "EncoderConfig") -> Iterator[tuple[str, str]]:
    convolutions, context = encoder.feature_encoder, encoder.context
    geometry = convolutions.geometry
    bias = "with" if convolutions.bias else "without"
    layers = f"{len(convolutions.dims)} convolutions {bias} bias, {convolutions.dims[-1]} channels"
    seen = f"a frame every {geometry.hop_samples} samples sees {geometry.receptive_field_samples}"
    yield "frames", f"{layers}, {convolutions.norm} norm; {seen}"
    sizes = f"{context.kind}, {context.num_layers} layers of {context.model_dim}"
    if context.kind != "causal":
        order = "before" if context.norm_first else "after"
        sizes += f", {context.num_heads} heads, feed-forward {context.ffn_dim}, norms {order} each part"
        sizes += f", adapters of {context.adapter_dim}" if context.adapter_dim else ""
    yield "context", sizes
    epsilon = 1e-5 if encoder.normalize_waveforms is True else encoder.normalize_waveforms
    rule = f"each recording to zero mean and unit variance (epsilon {epsilon:g})" if epsilon else "as it is"
    yield "input", f"16 kHz, one channel, {rule}; padding is never heard, so a batch gives what each gives alone"


def _describe_vocabulary(vocabulary: "Units") -> str:
    symbols = vocabulary.symbols
    spoken = [symbol for i, symbol in enumerate(symbols) if i not in {vocabulary.delimiter_id, *vocabulary.special_ids}]
    delimiter = "none" if vocabulary.delimiter_id is None else repr(symbols[vocabulary.delimiter_id])
    special = ", ".join(symbols[i] for i in sorted(vocabulary.special_ids - {vocabulary.blank_id}))
    case = ", written in lower case" if getattr(vocabulary, "lower_case", False) else ""
    return (
        f"{vocabulary.kind}, {len(vocabulary)} symbols, "
        f"blank {symbols[vocabulary.blank_id]!r} (number {vocabulary.blank_id}), "
        f"between words {delimiter}, special {special or 'none'}{case}: "
        f"{' '.join(spoken[:_SHOWN_SYMBOLS])}{' ...' if len(spoken) > _SHOWN_SYMBOLS else ''}"
    )
