"""Turn the text of a prompt into what is said: words of one alphabet, or nothing when that is uncertain.

A text that does not settle what the speaker says is refused (`UncertainReadingError`), not guessed at: "#" may be
"pound" or "hash", "1234" may be read in three ways, a note in brackets may or may not be spoken. Such a clip is still
speech and can serve without its label.
"""

import re
import unicodedata

from num2words import num2words

ALPHABETS = {
    "en": "abcdefghijklmnopqrstuvwxyz'",
    "es": "abcdefghijklmnopqrstuvwxyzñü",
    "fr": "abcdefghijklmnopqrstuvwxyzàâæçèéêëîïôœùûüÿ'",
    "it": "abcdefghijklmnopqrstuvwxyzàèéìíòóùú'",
    "ru": "абвгдежзийклмнопрстуфхцчшщъыьэюя",
}

# Slips of the packages' authors, misspelt words and lost letters: patterns for the lower-case text, applied in order.
REPAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "en": (
        (r"\bumute\b", "unmute"),
        (r"\brepresenatives\b", "representatives"),
        (r"\bun-indentified\b", "unidentified"),
        (r"\bwitheld\b", "withheld"),
        (r"\bthru\b", "through"),
        (r"\bexclaimation\b", "exclamation"),
        (r"\bfourtieth\b", "fortieth"),
    ),
    # The Spanish texts are mostly written without accents and tildes, now and then with: one spelling for each word.
    "es": (
        (r"á", "a"),
        (r"é", "e"),
        (r"í", "i"),
        (r"ó", "o"),
        (r"ú", "u"),
        (r"\bcontraseni?a(s?)\b", r"contraseña\1"),
        (r"\bmanana\b", "mañana"),
        (r"\bingese\b", "ingrese"),
        (r"\bintrodusca\b", "introduzca"),
        (r"\bdefeto\b", "defecto"),
        (r"\bnumbre\b|\bnimbre\b", "nombre"),
        (r"\bmesaje\b", "mensaje"),
        (r"\bentidade\b", "entidades"),
        (r"\ban adelante\b", "en adelante"),
        (r"\bparacambiar\b", "para cambiar"),
        (r"\bmudo mudo\b", "modo mudo"),
        (r"\batravez\b", "a traves"),
        (r"\bcient\b", "cien"),
    ),
    "fr": (
        (r"\bce tte\b", "cette"),
        (r"\bpous\b", "pour"),
        (r"\bprésentemnet\b", "présentement"),
        (r"\bet et\b", "et"),
        (r"\bvotre votre\b", "votre"),
        (r"\bconctact\b", "contacte"),
    ),
    # The Italian file has lost some accented letters to question marks.
    "it": (
        (r"\bsar\?(?=\W)", "sarà"),
        (r"\bpu\?(?=\W)", "può"),
        (r"\bcos\?(?=\W)", "così"),
        (r"\bpi\?(?=\W)", "più"),
        (r"(?<= )\?(?= )", "è"),
        (r"\be'(?=\W)", "è"),
        (r"\bcassella\b", "casella"),
    ),
    # ё is written here and there only. Latin letters that look Cyrillic stand in a few words.
    "ru": (
        (r"ё", "е"),
        (r"(?<=[а-я])[oо][eе]\b", "ое"),
        (r"\bоктрября\b", "октября"),
        (r"\bвзездочка\b", "звездочка"),
        (r"\bзавршить\b", "завершить"),
        (r"\bдемонтрационным\b", "демонстрационным"),
        (r"\bувеличиения\b", "увеличения"),
        (r"\bчто бы\b", "чтобы"),
        (r"\bчтобы бы\b", "чтобы"),
    ),
}

SPELLED = {"pbx", "ivr", "ip", "usb", "mgcp", "nbs", "misdn", "юсб", "атс"}  # read letter by letter
PRONOUNCED = {"sip", "dahdi", "сип", "пин", "зэд", "иакс"}  # read as a word
OPEN_READING = {"iax", "мгцп", "eeks"}  # either

_WHOLE_NOTE = re.compile(r"\s*(\[[^\]]*\]|\([^)]*\)|<[^>]*>)\s*")
_TONE = re.compile(r"un suono (di )?beep.*", re.IGNORECASE)
_PROMPT_ID = re.compile(r"\b[a-z]+(?:-[a-z]+)+: ")
_SYMBOL_NOTE = re.compile(r"\[\W*\]")
_LONG_NUMBER = re.compile(r"\d{3,}|\d[.,]\d")
_INITIALS = re.compile(r"\b(?:\w\.){2,}")


class UncertainReadingError(ValueError):
    """Says why a text does not settle what is said."""


def is_sound(text: str) -> bool:
    """Return whether a prompt's text describes a sound (a tone, silence, monkeys) instead of giving words."""
    return bool(_WHOLE_NOTE.fullmatch(text) or _TONE.fullmatch(text))


def normalize(text: str, language: str) -> str:
    """Return what is said: lower-case words of the language's alphabet, single spaces between them.

    Args:
        text: the text of a prompt as its package gives it.
        language: en, es, fr, it or ru.

    Returns:
        NFC text of the letters in `ALPHABETS[language]` and spaces; numbers below 100 are spelled out.

    Raises:
        UncertainReadingError: the text leaves open what is said.
    """
    text = _cleaned(text)
    _refuse_uncertain(text)
    text = _INITIALS.sub(lambda match: match[0].replace(".", " "), text)
    text = re.sub(r"\w+", lambda match: _spelled_acronym(match[0]), text)
    text = _words(text, language)
    if not text:
        raise UncertainReadingError("no words")
    if set(text) - set(ALPHABETS[language]) - {" "}:
        raise UncertainReadingError("letters of another alphabet")
    return text


def comparable(text: str, language: str) -> str:
    """Return the words of any text, certain or not, in the form used to find near-duplicates."""
    return _words(_cleaned(text), language)


def _cleaned(text: str) -> str:
    text = unicodedata.normalize("NFC", text).replace("’", "'").replace("‘", "'")
    return _SYMBOL_NOTE.sub(" ", _without_other_prompts(text))


def _words(text: str, language: str) -> str:
    text = f"{text.lower()} "  # the space lets a pattern of REPAIRS ask for what follows a word
    for pattern, replacement in REPAIRS[language]:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"\d+", lambda match: f" {num2words(int(match[0]), lang=language)} ", text)
    if language == "ru":
        text = text.replace("ё", "е")  # num2words writes it
    words = (word.strip("'") for word in re.sub(r"[^\w']|_", " ", text).split())
    return unicodedata.normalize("NFC", " ".join(word for word in words if word))


def _without_other_prompts(text: str) -> str:
    """Cut a text where another prompt's line has slipped in, and drop the prompt's own id before it."""
    own = _PROMPT_ID.match(text)
    text = text[own.end() :] if own else text
    other = _PROMPT_ID.search(text)
    return text[: other.start()] if other else text


def _refuse_uncertain(text: str) -> None:
    if re.search(r"[\[(<].*\w.*[\])>]", text):
        raise UncertainReadingError("note in brackets")
    if re.search(r"[*#/@$%&+=]", text):
        raise UncertainReadingError("symbol")
    if "www." in text:
        raise UncertainReadingError("address")
    if _LONG_NUMBER.search(text):
        raise UncertainReadingError("number of three digits or more")


def _spelled_acronym(word: str) -> str:
    """Space the letters of an acronym that is spelled; refuse one whose reading is not known."""
    lower = word.lower()
    if lower in SPELLED:
        return " ".join(word)
    is_capitals = len(word) > 1 and word.isalpha() and word.isupper()
    if lower in OPEN_READING or (is_capitals and lower not in PRONOUNCED):
        raise UncertainReadingError("acronym")
    return word
