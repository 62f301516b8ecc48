"""A model as a Hugging Face folder, which transformers 4 and 5 load without us."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.checkpoint.native import write_weights
from speechssl.checkpoint.saved_model import SavedModel
from speechssl.checkpoint.transformers_config import to_transformers_config, transformers_family, with_their_epsilon
from speechssl.checkpoint.transformers_names import PREFIXES, to_transformers
from speechssl.data.units import WORD_DELIMITER, Letters, Units
from speechssl.errors import CheckpointError

_PAD, _UNKNOWN = "<pad>", "<unk>"
_CLASSES = {"wav2vec2": "Wav2Vec2", "wavlm": "WavLM", "data2vec-audio": "Data2VecAudio"}


def write_huggingface(folder: Path, saved: SavedModel) -> None:
    """Write a model into an existing folder, as ``...ForCTC`` of its family, or ``...Model`` if it has no head.

    Raises:
        CheckpointError: transformers has no class for it, or its weights are damaged.
    """
    encoder = saved.description.encoder
    config = to_transformers_config(encoder)
    family = transformers_family(encoder)
    symbols = None if saved.vocabulary is None else symbols_with_pad(saved)
    tensors = to_transformers(exported_weights(saved), family)
    if symbols is None:
        tensors = {name.removeprefix(f"{PREFIXES[family]}."): tensor for name, tensor in tensors.items()}
    else:
        assert saved.vocabulary is not None
        blank_id, delimiter_id = saved.vocabulary.blank_id, saved.vocabulary.delimiter_id
        if WORD_DELIMITER not in symbols:  # their AutoProcessor knows no other
            symbols = tuple(WORD_DELIMITER if i == delimiter_id else symbol for i, symbol in enumerate(symbols))
        config |= {"vocab_size": len(symbols), "pad_token_id": blank_id}
        _write_tokenizer(folder, symbols, saved.vocabulary)
    architecture = _CLASSES[family] + ("Model" if symbols is None else "ForCTC")
    special = {"bos_token_id": None, "eos_token_id": None}
    _write(
        folder / "config.json",
        {"architectures": [architecture], "model_type": family, "dtype": "float32", **config, **special},
    )
    _write_processor(folder, saved)
    write_weights(folder, tensors)


def exported_weights(saved: SavedModel) -> dict[str, Tensor]:
    """Return the weights of a model with its head, or of an encoder, by our names, for norms as others have them.

    Raises:
        CheckpointError: they are damaged.
    """
    if saved.vocabulary is None:
        weights = {f"encoder.{name}": tensor for name, tensor in saved.encoder("cpu").state_dict().items()}
    else:
        weights = saved.ctc("cpu").model.state_dict()
    return with_their_epsilon(weights, saved.description.encoder.feature_encoder)


def symbols_with_pad(saved: SavedModel) -> tuple[str, ...]:
    """Return the symbols of a model of letters by their ids, its blank called ``<pad>`` if no other is.

    Raises:
        CheckpointError: it has units of another kind.
    """
    units = saved.vocabulary
    if not isinstance(units, Letters):
        found = "another kind" if units is None else units.kind
        raise CheckpointError(f"{saved.weights_file.parent}: expected a vocabulary of letters, found {found}")
    if _PAD in units.symbols:
        return units.symbols
    return tuple(_PAD if i == units.blank_id else symbol for i, symbol in enumerate(units.symbols))


def _write_tokenizer(folder: Path, symbols: tuple[str, ...], units: Units) -> None:
    blank = symbols[units.blank_id]
    others = [symbols[i] for i in sorted(units.special_ids - {units.blank_id}) if symbols[i] != _UNKNOWN]
    # A letter that is unknown has an id beyond the head's, which their loss refuses.
    special = {"pad_token": blank, "unk_token": _UNKNOWN, "bos_token": None, "eos_token": None}
    _write(folder / "vocab.json", {symbol: i for i, symbol in enumerate(symbols)})
    _write(folder / "special_tokens_map.json", {name: token for name, token in special.items() if token})
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            **special,
            **({"additional_special_tokens": others} if others else {}),
            "word_delimiter_token": WORD_DELIMITER if units.delimiter_id is None else symbols[units.delimiter_id],
            "replace_word_delimiter_char": " ",
            "do_lower_case": getattr(units, "lower_case", False),
            "clean_up_tokenization_spaces": False,
            "target_lang": None,
        },
    )


def _write_processor(folder: Path, saved: SavedModel) -> None:
    """Both files: transformers 4 reads the one, 5 writes the other."""
    encoder = saved.description.encoder
    extractor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": bool(encoder.normalize_waveforms),
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        # As the published models: with a group norm, theirs take padding for sound with a mask and without.
        "return_attention_mask": encoder.feature_encoder.norm == "layer",
        "sampling_rate": saved.description.sample_rate,
    }
    if saved.vocabulary is None:
        _write(folder / "preprocessor_config.json", extractor)
        return
    processor = {"processor_class": "Wav2Vec2Processor"}
    _write(folder / "preprocessor_config.json", extractor | processor)
    _write(folder / "processor_config.json", {"feature_extractor": extractor} | processor)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
