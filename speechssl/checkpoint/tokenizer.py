"""The vocabulary of a folder of transformers, as its CTC tokenizer reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from speechssl.checkpoint.foreign import listed, read_json
from speechssl.data.tokens import Tokens
from speechssl.errors import CheckpointError

_VOCABULARY, _FAST = "vocab.json", "tokenizer.json"
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # by which sentencepiece's vocabularies mean a space


def read_tokenizer(folder: Path, config: Mapping[str, Any], language: str | None, remarks: list[str]) -> Tokens | None:
    """Read what the outputs of a CTC head stand for; None if the model has no such head, or nothing says.

    Args:
        folder: The model's.
        config: Its config.json.
        language: Of a nested vocabulary; None is the tokenizer's own.
        remarks: Gets a line for what is missing.

    Raises:
        CheckpointError: a file is malformed, or there is no such language.
    """
    kinds = config.get("architectures") or ["ForCTC"]
    if not str(kinds[0]).endswith("ForCTC"):
        if language is not None:
            raise CheckpointError(f"{folder}: expected a fine-tuned model for a language, found {kinds[0]}")
        return None
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        found = read_json(folder / name)
        settings |= found if isinstance(found, dict) else {}
    ids = _read_ids(folder, settings, language)
    if ids is None:
        if config.get("architectures"):
            # where transformers' Trainer leaves it, above its checkpoint-500
            above = (folder.absolute().parent / _VOCABULARY).is_file()
            advice = f" (the folder above has one: copy {_VOCABULARY} and *_config.json from there)" if above else ""
            remarks.append(f"no {_VOCABULARY}: what the head says cannot be written{advice}")
        return None
    num_symbols = max(ids.values()) + 1
    added = read_json(folder / "added_tokens.json") or {}
    added |= {entry["content"]: int(i) for i, entry in settings.get("added_tokens_decoder", {}).items()}
    for token, i in added.items():
        if i not in ids.values():
            ids.setdefault(token, i)
    if language is None:  # whose adapter has a head of its own
        num_symbols = config.get("vocab_size") or num_symbols
    return _make_tokens(folder, ids, num_symbols, settings, config)


def has_languages(folder: Path) -> bool:
    """Return whether there is a vocabulary for each of several languages."""
    return _is_nested(read_json(folder / _VOCABULARY))


def _is_nested(ids: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(ids, dict) and bool(ids) and all(isinstance(value, dict) for value in ids.values())


def _read_ids(folder: Path, settings: Mapping[str, Any], language: str | None) -> dict[str, int] | None:
    """The number of each token, in the language if the vocabulary is nested."""
    file = folder / _VOCABULARY
    ids = read_json(file)
    if ids is None:
        file = folder / _FAST
        ids = read_json(file)
        if ids is None:
            return None
        ids = ids["model"]["vocab"] if isinstance(ids, dict) and isinstance(ids.get("model"), dict) else None
        if isinstance(ids, list):  # with scores
            ids = {entry[0]: i for i, entry in enumerate(ids)}
    if _is_nested(ids):
        wanted = language or settings.get("target_lang")
        if wanted not in ids:
            raise CheckpointError(f"{file}: expected a language of {listed(ids)}, found {wanted!r}")
        ids = ids[wanted]
    if not isinstance(ids, dict) or not ids or not all(type(i) is int and 0 <= i < 10**6 for i in ids.values()):
        raise CheckpointError(f"{file}: expected tokens and their numbers")
    return ids


def _make_tokens(
    folder: Path, ids: Mapping[str, int], num_symbols: int, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> Tokens:
    by_id = {i: token for token, i in ids.items()}
    special = {_content(settings.get(name, default)) for name, default in _SPECIAL.items()}
    special |= {_content(token) for token in settings.get("additional_special_tokens") or ()}
    special |= {entry["content"] for entry in settings.get("added_tokens_decoder", {}).values() if entry.get("special")}
    blank = (
        by_id.get(config["blank_token_id"])
        if "blank_token_id" in config
        else _content(settings.get("pad_token", _SPECIAL["pad_token"]))
    )
    if blank not in ids:
        blank = by_id.get(config.get("pad_token_id", 0))
    if blank is None or ids[blank] >= num_symbols:
        raise CheckpointError(
            f"{folder}: expected the blank, which is the padding token, in the vocabulary, found none"
        )
    symbols = [by_id.get(i, f"<unused {i}>") for i in range(num_symbols)]
    special |= {symbol for i, symbol in enumerate(symbols) if i not in by_id}
    delimiter = _content(settings.get("word_delimiter_token", "|"))
    replacement = settings.get("replace_word_delimiter_char", " ")
    if delimiter in symbols and replacement != " ":
        if replacement in symbols:
            raise CheckpointError(f"{folder}: expected one token for {replacement!r}, found it and {delimiter!r}")
        symbols[symbols.index(delimiter)] = replacement
    delimiter = next((token for token in (delimiter, " ", _SPACE) if token in symbols), None)
    pieces = [token for token in symbols if _SPACE in token and token != delimiter]
    if pieces:
        raise CheckpointError(f"{folder}: expected tokens of letters, found pieces such as {pieces[0]!r}")
    return Tokens(
        tuple(symbols),
        blank,
        delimiter,
        frozenset(special & {*symbols}) - {delimiter},
        bool(settings.get("do_lower_case", False)),
        settings.get("tokenizer_class") == "Wav2Vec2PhonemeCTCTokenizer",
    )


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token
