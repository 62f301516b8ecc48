"""Fine-tuning with units of every kind: what is learned, saved, measured and refused."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.reader import load_ctc
from speechssl.data.manifest import read_manifest
from speechssl.data.phonemes import Phonemes
from speechssl.data.pieces import SPACE, Pieces
from speechssl.data.units import BLANK, Letters
from speechssl.decode.arpa import write_arpa
from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.errors import CheckpointError, ConfigError, SpeechSSLError, TrainingError
from speechssl.train.finetune import FinetuneConfig, finetune
from speechssl.train.log import read_log
from speechssl.transcribe.transcriber import Transcriber

PIECES = Pieces(
    (BLANK, SPACE, *"abcd", *(f"{SPACE}{letter}" for letter in "abcd"), "ab", "bb"), (0.0, -9.0, *[-2.0] * 10)
)


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    PIECES.save(tmp_path / "pieces.json")
    return tmp_path / "pieces.json"


def test_texts_are_learned_in_pieces(corpus: Any, pieces: Path, tmp_path: Path) -> None:
    """To the letter, and the model is complete without the file that it was trained with."""
    texts = ["ab", "c da", "bad", "cab dab", "aa bb", "d", "dcba abcd", "bb a"]
    manifest = corpus.write(tmp_path / "train.tsv", texts)
    config = corpus.finetune_config(
        f"data.train={manifest}",
        f"data.dev={manifest}",
        f"units={pieces}",
        "regularization.activation_dropout=0.0",
        "regularization.layer_drop=0.0",
        "regularization.time_mask.start_prob=0.0",
        "regularization.channel_mask.start_prob=0.0",
        "optimizer.learning_rate=5e-3",
        "trainer.num_steps=160",
        "trainer.microbatches=1",
        "trainer.evaluate_steps=160",
        "trainer.checkpoint_steps=160",
        "batches.seconds=16",
        stage="scratch",
    )
    finetune(config, tmp_path / "run")
    pieces.unlink()
    assert load_ctc(tmp_path / "run", "cpu").vocabulary == PIECES
    assert (read_log(tmp_path / "run")[-1]["wer"], read_log(tmp_path / "run")[-1]["cer"]) == (0, 0)
    transcriber = Transcriber.load(tmp_path / "run", "cpu")
    found = [transcriber.transcribe(utterance.path) for utterance in read_manifest(manifest)]
    assert [transcript.text for transcript in found] == texts
    assert [len(transcript.words) for transcript in found] == [len(text.split()) for text in texts]

    # A language model is tuned for them, and they label speech.
    run, out = str(tmp_path / "run"), CliRunner()
    write_arpa(tmp_path / "lm.arpa", estimate_ngrams(texts, 2))
    arguments = ["--lm", str(tmp_path / "lm.arpa"), "-o", str(tmp_path / "lm.toml"), "--trials", "2"]
    tuned = out.invoke(app, ["tune-lm", run, str(manifest), *arguments])
    assert "WER 0.0 %, CER 0.0 %" in tuned.stderr, tuned.output
    arguments = ["--lm", str(tmp_path / "lm.toml"), "--keep", "1", "-o", str(tmp_path / "labels.tsv")]
    labeled = out.invoke(app, ["label", run, str(manifest), *arguments])
    assert labeled.exit_code == 0, labeled.output
    assert {utterance.text for utterance in read_manifest(tmp_path / "labels.tsv")} <= {*texts}

    # keep_head goes on with them.
    more = corpus.finetune_config(
        f"init={tmp_path / 'run'}",
        "keep_head=true",
        f"data.train={manifest}",
        f"data.dev={manifest}",
        "trainer.num_steps=2",
    )
    finetune(more, tmp_path / "more")
    assert load_ctc(tmp_path / "more", "cpu").vocabulary == PIECES


def test_phonemes_of_the_texts_have_a_rate_of_their_own(corpus: Any, tmp_path: Path) -> None:
    """The texts of the language of tones as phonemes, each word a phoneme: the two rates are one."""
    finetune(
        corpus.finetune_config(
            'units="phonemes"', "best_metric=per", "trainer.num_steps=4", "trainer.evaluate_steps=2", stage="scratch"
        ),
        tmp_path / "run",
    )
    texts = [u.text for path in (corpus.train, corpus.dev) for u in read_manifest(path)]
    assert load_ctc(tmp_path / "run", "cpu").vocabulary == Phonemes.from_texts(texts)
    records = [record for record in read_log(tmp_path / "run") if record["split"] == "dev"]
    assert records
    assert all(record["per"] == record["wer"] > 0 for record in records)


def test_letters_are_the_default_and_may_come_from_a_file(corpus: Any, tmp_path: Path) -> None:
    letters = Letters.from_texts(["dcba xyz"])
    letters.save(tmp_path / "letters.json")
    config = corpus.finetune_config(f"units={tmp_path / 'letters.json'}", "trainer.num_steps=2", stage="scratch")
    finetune(config, tmp_path / "run")
    assert load_ctc(tmp_path / "run", "cpu").vocabulary == letters
    assert corpus.finetune_config(stage="scratch").units == "letters"


def test_the_file_counts_from_that_of_the_settings(corpus: Any, pieces: Path, tmp_path: Path) -> None:
    toml = tmp_path / "a.toml"
    toml.write_text(f'units = "{pieces.name}"\n[data]\ntrain = "t"\ndev = "d"\nlicense = "x"\n', "utf-8")
    assert FinetuneConfig.load([corpus.folder / "scratch.toml", toml]).units == pieces
    toml.write_text('units = "phonemes"\n[data]\ntrain = "t"\ndev = "d"\nlicense = "x"\n', "utf-8")
    assert FinetuneConfig.load([corpus.folder / "scratch.toml", toml]).units == "phonemes"


def test_a_run_is_not_resumed_with_other_units(corpus: Any, pieces: Path, tmp_path: Path) -> None:
    settings = (f"units={pieces}", "trainer.num_steps=2", "trainer.checkpoint_steps=2")
    finetune(corpus.finetune_config(*settings, stage="scratch"), tmp_path / "run")
    moved = pieces.rename(tmp_path / "moved.json")
    settings = (f"units={moved}", *settings[1:])
    finetune(corpus.finetune_config(*settings, stage="scratch"), tmp_path / "run")  # the same in another place
    for other in ("letters", "phonemes"):
        with pytest.raises(TrainingError, match=r"different settings \(inputs.units was"):
            finetune(corpus.finetune_config(f'units="{other}"', *settings[1:], stage="scratch"), tmp_path / "run")
    Pieces(PIECES.symbols, (0.0, -8.0, *PIECES.scores[2:])).save(moved)
    with pytest.raises(TrainingError, match=r"different settings \(inputs.units was"):
        finetune(corpus.finetune_config(*settings, stage="scratch"), tmp_path / "run")


def test_what_is_refused(
    corpus: Any, pieces: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="keep_head goes on with the units of init: give one of"):
        corpus.finetune_config(f"init={pretrained}", "keep_head=true", f"units={pieces}")
    with pytest.raises(ConfigError, match="best_metric: expected wer or cer for pieces, found per"):
        finetune(corpus.finetune_config(f"units={pieces}", "best_metric=per", stage="scratch"), tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"x\.json: No such file"):
        finetune(corpus.finetune_config(f"units={tmp_path}/x.json", stage="scratch"), tmp_path / "a")
    Letters.from_texts(["abc"]).save(pieces)
    with pytest.raises(SpeechSSLError):
        finetune(corpus.finetune_config(f"units={pieces}", stage="scratch"), tmp_path / "a")
    assert "train.tsv:3: expected characters of the vocabulary, found 'd' (U+0064)" in capsys.readouterr().err
    assert not (tmp_path / "a" / "model.safetensors").exists()
