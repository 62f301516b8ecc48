"""Binary files of KenLM: its ``build_binary`` made those of ``kenlm/`` from the model of `TEXTS` that `own` makes."""

import pickle
import shutil
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from speechssl.data.units import Letters
from speechssl.decode.arpa import read_arpa, write_arpa
from speechssl.decode.beam_search import BeamSearch
from speechssl.decode.kenlm_model import KenlmModel, is_kenlm
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.decode.ngram import NgramModel
from speechssl.decode.settings import BeamSearchConfig
from speechssl.errors import LanguageModelError

TEXTS = ["a ab", "ab ab a", "ab", "ba ab"]
FOLDER = Path(__file__).parent / "kenlm"
FILES = [FOLDER / "probing.bin", FOLDER / "trie.bin"]
UNKNOWN_LACKS = FOLDER / "trie_without_unknown.bin"


def without_unknown(path: Path) -> NgramModel:
    """Leave ``<unk>`` out of an ARPA file, and read it."""
    text = path.read_text("utf-8")
    [line] = [line for line in text.splitlines(keepends=True) if "\t<unk>" in line]
    [count] = [int(line.removeprefix("ngram 1=")) for line in text.splitlines() if line.startswith("ngram 1=")]
    path.write_text(text.replace(line, "").replace(f"ngram 1={count}", f"ngram 1={count - 1}"), "utf-8")
    return read_arpa(path)


@pytest.fixture
def own(tmp_path: Path) -> NgramModel:
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(TEXTS, 3))
    return read_arpa(tmp_path / "lm.arpa")


@pytest.mark.parametrize("file", [*FILES, UNKNOWN_LACKS], ids=lambda file: file.stem)
def test_scores_are_those_of_the_arpa_file(file: Path, own: NgramModel, tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    if file == UNKNOWN_LACKS:
        own = without_unknown(tmp_path / "lm.arpa")
    found = pickle.loads(pickle.dumps(KenlmModel(file)))
    assert (found.words, found.order) == (own.words, own.order)
    for length in range(4):
        for words in product(["a", "ab", "ba", "zz"], repeat=length):
            for context in (words, ("<s>", *words)):
                assert found.shortened(context) == own.shortened(context)
                for word in ("a", "ab", "ba", "zz", "<unk>", "</s>"):
                    assert found.score(context, word) == pytest.approx(own.score(context, word), abs=1e-4)  # of 32 bits


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_search_finds_the_same(file: Path, own: NgramModel, tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    units = Letters.from_texts(["ab"])
    ours, theirs = (BeamSearch(BeamSearchConfig(lm=lm), units) for lm in (tmp_path / "lm.arpa", file))
    assert isinstance(theirs.model, KenlmModel)
    assert ours.model == own
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        log_probs = (2 * torch.randn(30, len(units), generator=generator)).log_softmax(dim=1)
        assert theirs.find_path([log_probs]) == ours.find_path([log_probs])


def test_what_is_no_such_file_or_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(map(is_kenlm, FILES))
    assert not is_kenlm(tmp_path / "none.bin")
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(LanguageModelError, match=r"trie.bin: needs the package kenlm: .*'speechssl\[kenlm\]'"):
        KenlmModel(FILES[1])
    monkeypatch.undo()
    pytest.importorskip("kenlm")
    cut = Path(shutil.copy(FILES[1], tmp_path / "cut.bin"))
    cut.write_bytes(cut.read_bytes()[:200])
    with pytest.raises(LanguageModelError, match=r"cut\.bin: "):
        KenlmModel(cut)
    shutil.copy(FILES[1], cut)
    cut.write_bytes(cut.read_bytes()[:-3])
    with pytest.raises(LanguageModelError, match=r"cut\.bin: "):
        KenlmModel(cut)
