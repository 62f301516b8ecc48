"""The vocabulary of a folder of transformers, as its CTC tokenizer reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeGuard

from pydantic import BeforeValidator, Field

from speechssl.checkpoint.foreign import listed, read_json
from speechssl.config import Config
from speechssl.data.pieces import SPACE
from speechssl.data.tokens import Tokens
from speechssl.errors import CheckpointError, ConfigError

_VOCABULARY, _FAST = "vocab.json", "tokenizer.json"
_MAX_SYMBOLS = 10**6


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


_Token = Annotated[str | None, BeforeValidator(_content)]


class _Head(Config, extra="ignore"):
    """What of config.json says what the outputs of a head are."""

    architectures: tuple[str, ...] | None = None
    vocab_size: int | None = Field(None, ge=0, le=_MAX_SYMBOLS)
    pad_token_id: int | None = 0
    blank_token_id: int | None = None


class _Added(Config, extra="ignore"):
    content: str
    special: bool = False


class _Settings(Config, extra="ignore"):
    """What of the tokenizer's files decides about texts, with transformers' defaults."""

    bos_token: _Token = "<s>"
    eos_token: _Token = "</s>"
    unk_token: _Token = "<unk>"
    pad_token: _Token = "<pad>"
    additional_special_tokens: tuple[_Token, ...] | None = None
    added_tokens_decoder: dict[int, _Added] | None = None
    word_delimiter_token: _Token = "|"
    replace_word_delimiter_char: str | None = " "
    do_lower_case: bool | None = False
    tokenizer_class: str | None = None
    target_lang: str | None = None

    def special(self) -> set[str | None]:
        """The tokens that are no part of any text."""
        added = (self.added_tokens_decoder or {}).values()
        named = (
            self.bos_token,
            self.eos_token,
            self.unk_token,
            self.pad_token,
            *(self.additional_special_tokens or ()),
        )
        return {*named, *(token.content for token in added if token.special)}

    def added_ids(self) -> dict[str, int]:
        """The numbers of tokens that came later."""
        return {token.content: i for i, token in (self.added_tokens_decoder or {}).items()}


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
    try:
        head = _Head.from_dict(dict(config), str(folder / "config.json"))
        settings = _read_settings(folder)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    kind = (head.architectures or ("ForCTC",))[0]
    if not kind.endswith("ForCTC"):
        if language is not None:
            raise CheckpointError(f"{folder}: expected a fine-tuned model for a language, found {kind}")
        return None
    ids = _read_ids(folder, settings, language)
    if ids is None:
        if head.architectures:
            # where transformers' Trainer leaves it, above its checkpoint-500
            above = (folder.absolute().parent / _VOCABULARY).is_file()
            advice = f" (the folder above has one: copy {_VOCABULARY} and *_config.json from there)" if above else ""
            remarks.append(f"no {_VOCABULARY}: what the head says cannot be written{advice}")
        return None
    num_symbols = max(ids.values()) + 1
    added = {**_read_added(folder / "added_tokens.json"), **settings.added_ids()}
    for token, i in added.items():
        if i not in ids.values():
            ids.setdefault(token, i)
    if language is None:  # whose adapter has a head of its own
        num_symbols = head.vocab_size or num_symbols
    return _make_tokens(folder, ids, num_symbols, settings, head)


def _read_settings(folder: Path) -> _Settings:
    values: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        found = read_json(folder / name)
        values |= found if isinstance(found, dict) else {}
    return _Settings.from_dict(values, str(folder / "tokenizer_config.json"))


def has_languages(folder: Path) -> bool:
    """Return whether there is a vocabulary for each of several languages."""
    return _is_nested(read_json(folder / _VOCABULARY))


def _is_nested(ids: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(ids, dict) and bool(ids) and all(isinstance(value, dict) for value in ids.values())


def _read_ids(folder: Path, settings: _Settings, language: str | None) -> dict[str, int] | None:
    """The number of each token, in the language if the vocabulary is nested."""
    file = folder / _VOCABULARY
    ids = read_json(file)
    if ids is None:
        file = folder / _FAST
        ids = read_json(file)
        if ids is None:
            return None
        model = ids.get("model") if isinstance(ids, dict) else None
        ids = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(ids, list) and all(isinstance(entry, list) and entry for entry in ids):  # with scores
            ids = {str(entry[0]): i for i, entry in enumerate(ids)}
    if _is_nested(ids):
        wanted = language or settings.target_lang
        if wanted not in ids:
            raise CheckpointError(f"{file}: expected a language of {listed(ids)}, found {wanted!r}")
        ids = ids[wanted]
    if not _are_numbered(ids) or not ids:
        raise CheckpointError(f"{file}: expected tokens and their numbers")
    return ids


def _read_added(file: Path) -> dict[str, int]:
    ids = read_json(file)
    if ids is None:
        return {}
    if not _are_numbered(ids):
        raise CheckpointError(f"{file}: expected tokens and their numbers")
    return ids


def _are_numbered(ids: object) -> TypeGuard[dict[str, int]]:
    return isinstance(ids, dict) and all(type(i) is int and 0 <= i < _MAX_SYMBOLS for i in ids.values())


def _make_tokens(folder: Path, ids: Mapping[str, int], num_symbols: int, settings: _Settings, head: _Head) -> Tokens:
    by_id = {i: token for token, i in ids.items()}
    special = settings.special()
    blank = settings.pad_token if head.blank_token_id is None else by_id.get(head.blank_token_id)
    if blank not in ids:
        blank = by_id.get(-1 if head.pad_token_id is None else head.pad_token_id)
    symbols = [by_id.get(i, f"<unused {i}>") for i in range(num_symbols)]
    special |= {symbol for i, symbol in enumerate(symbols) if i not in by_id}
    delimiter, replacement = settings.word_delimiter_token, settings.replace_word_delimiter_char
    if delimiter in symbols and replacement not in (" ", None):
        if replacement in symbols:
            raise CheckpointError(f"{folder}: expected one token for {replacement!r}, found it and {delimiter!r}")
        symbols[symbols.index(delimiter)] = replacement
    if blank is None or blank not in symbols:
        raise CheckpointError(
            f"{folder}: expected the blank, which is the padding token, in the vocabulary, found none"
        )
    delimiter = next((token for token in (delimiter, " ", SPACE) if token in symbols), None)
    pieces = [token for token in symbols if SPACE in token and token != delimiter]
    if pieces:
        raise CheckpointError(f"{folder}: expected tokens of letters, found pieces such as {pieces[0]!r}")
    return Tokens(
        tuple(symbols),
        blank,
        delimiter,
        frozenset(symbol for symbol in symbols if symbol in special and symbol != delimiter),
        bool(settings.do_lower_case),
        settings.tokenizer_class == "Wav2Vec2PhonemeCTCTokenizer",
    )
