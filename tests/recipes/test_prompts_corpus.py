"""The embedded corpus: what its manifests promise, and how it is made."""

import gzip
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from miniature import recipe_modules

from speechssl.data.manifest import Manifest, Utterance, read_manifest, read_utterance

RECIPE = Path(__file__).parents[2] / "recipes" / "prompts"
CORPUS = RECIPE / "corpus"
LANGUAGES = ("en", "es", "fr", "it", "ru")
TRAINING = ["train.tsv", "train_5min.tsv", "train_10min.tsv", *(f"train_{name}.tsv" for name in LANGUAGES[1:])]
HELD_OUT = [f"{part}{suffix}.tsv" for part in ("dev", "test") for suffix in ("", "_es", "_fr", "_it", "_ru")]


prepare, splits, transcripts, recordings, make_corpus = recipe_modules(
    "prompts", "prepare", "splits", "transcripts", "recordings", "make_corpus"
)


@pytest.fixture(scope="module")
def clips() -> list:
    return prepare.read_clips(CORPUS / "clips.tsv")


@pytest.fixture(scope="module")
def manifests() -> dict[str, Manifest]:
    paths = sorted(set(CORPUS.glob("*.tsv")) - {CORPUS / "clips.tsv"})
    return {path.name: read_manifest(path) for path in paths}


def span(utterance: Utterance) -> tuple[str, int, int]:
    return Path(utterance.path).name, utterance.start, utterance.start + utterance.num_samples


def minutes(manifest: Manifest) -> float:
    return sum(utterance.seconds for utterance in manifest) / 60


def test_everything_is_there_and_fits_in_16_mib(manifests):
    assert set(manifests) == {*TRAINING, *HELD_OUT, "pretrain_train.tsv", "pretrain_dev.tsv"}
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < 16 * 2**20


def test_every_row_lies_inside_its_file(manifests, clips):
    lengths = {f"{name}.opus": soundfile.info(CORPUS / f"{name}.opus").frames for name in LANGUAGES}
    for manifest in manifests.values():
        for utterance in manifest:
            name, _, end = span(utterance)
            assert utterance.sample_rate == 16_000
            assert utterance.num_samples > 0
            assert end <= lengths[name]
            assert Path(utterance.path) == CORPUS / name
    for language in LANGUAGES:  # the clips cover the file without a gap
        end = 0
        for clip in (clip for clip in clips if clip.language == language):
            assert clip.start == end
            end += clip.num_samples
        assert end == lengths[f"{language}.opus"]


def test_minutes(manifests):
    assert 5.0 <= minutes(manifests["test.tsv"]) <= 5.5
    assert 2.0 <= minutes(manifests["dev.tsv"]) <= 2.5
    assert 5.0 <= minutes(manifests["train_5min.tsv"]) <= 5.3
    assert 10.0 <= minutes(manifests["train_10min.tsv"]) <= 10.3
    assert minutes(manifests["train.tsv"]) > 13
    assert minutes(manifests["pretrain_train.tsv"]) > 80
    assert {utterance.language for utterance in manifests["pretrain_train.tsv"]} == set(LANGUAGES)


def test_labels_are_words_of_the_language_alone(manifests):
    alphabets = transcripts.ALPHABETS
    for name in TRAINING + HELD_OUT:
        for utterance in manifests[name]:
            assert utterance.text
            assert " ".join(utterance.text.split()) == utterance.text
            assert set(utterance.text) <= set(alphabets[utterance.language]) | {" "}
            assert utterance.seconds <= 25
            assert len(utterance.text) / utterance.seconds < 25
    assert not any(utterance.text for utterance in manifests["pretrain_train.tsv"])


def test_label_subsets_are_nested_and_have_every_letter(manifests):
    small, large, whole = (
        {span(utterance) for utterance in manifests[name]}
        for name in ("train_5min.tsv", "train_10min.tsv", "train.tsv")
    )
    assert small < large < whole
    letters = {name: {letter for u in manifests[name] for letter in u.text} for name in ("train_5min.tsv", "test.tsv")}
    assert letters["test.tsv"] <= letters["train_5min.tsv"]


def test_test_and_dev_share_no_sample_with_training(manifests):
    training = [span(u) for name in (*TRAINING, "pretrain_train.tsv") for u in manifests[name]]
    dev = [span(u) for name in (*HELD_OUT, "pretrain_dev.tsv") if "dev" in name for u in manifests[name]]
    test = [span(u) for name in HELD_OUT if "test" in name for u in manifests[name]]
    for held_out, others in ((dev, training), (test, training), (test, dev)):
        for language in LANGUAGES:
            end = max(end for name, _, end in others if name == f"{language}.opus")
            assert end <= min(start for name, start, _ in held_out if name == f"{language}.opus")


def test_a_group_is_in_one_part_and_holds_a_prompt_in_all_languages(clips):
    parts, groups = defaultdict(set), defaultdict(set)
    for clip in clips:
        parts[clip.group].add(clip.part)
        groups[clip.prompt].add(clip.group)
    assert all(len(found) == 1 for found in parts.values())
    assert all(len(found) == 1 for found in groups.values())


def test_near_duplicates_are_in_one_group(clips):
    for language in LANGUAGES:
        group_of = {clip.text: clip.group for clip in clips if clip.language == language and clip.text}
        assert all(
            clip.group == group_of[clip.text] for clip in clips if clip.language == language and clip.text
        )  # the same words
        for first, second in splits.near_duplicates(sorted(group_of)):
            assert group_of[first] == group_of[second], (first, second)


def test_the_table_gives_the_same_splits_again(clips):
    groups = defaultdict(list)
    for clip in clips:
        samples = np.zeros(clip.num_samples, np.int16)
        groups[clip.group].append(
            make_corpus.Prompt(clip.language, clip.prompt, samples, source_text="", text=clip.text)
        )
    parts = splits.split_groups(groups)
    assert all(parts[clip.group] == clip.part for clip in clips)


def test_the_table_gives_the_same_manifests_again(tmp_path, manifests):
    (tmp_path / "clips.tsv").write_bytes((CORPUS / "clips.tsv").read_bytes())
    prepare.write_manifests(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"clips.tsv", *manifests}
    for name, manifest in manifests.items():
        assert read_manifest(tmp_path / name).digest == manifest.digest


def test_pieces_are_3_to_8_seconds_and_cover_their_part(manifests, clips):
    for part in ("train", "dev"):
        manifest = manifests[f"pretrain_{part}.tsv"]
        seconds = np.array([utterance.seconds for utterance in manifest])
        assert np.mean((seconds >= 3) & (seconds <= 8)) > 0.98
        assert seconds.max() <= 8
        assert seconds.min() >= 2
        for language in LANGUAGES:
            area = [clip for clip in clips if (clip.language, clip.part) == (language, part)]
            ends = [area[0].start]
            for utterance in (utterance for utterance in manifest if utterance.language == language):
                assert utterance.start == ends[-1]
                ends.append(utterance.start + utterance.num_samples)
            assert ends[-1] == area[-1].start + area[-1].num_samples


def test_pieces_prefer_the_middle_of_the_range():
    rate = prepare.SAMPLE_RATE
    cuts = [round(seconds * rate) for seconds in (0, 1, 2, 5.5, 6, 7, 11, 12, 16.5)]
    assert [(start / rate, end / rate) for start, end in prepare._best_pieces(cuts)] == [
        (0, 5.5),
        (5.5, 11),
        (11, 16.5),
    ]
    # A clip that cannot be cut is a piece of its own.
    assert prepare._best_pieces([0, 10 * rate, 14 * rate]) == [(0, 10 * rate), (10 * rate, 14 * rate)]


def test_a_span_read_by_seeking_is_the_slice_of_the_whole(manifests):
    whole, rate = soundfile.read(CORPUS / "en.opus", dtype="float32")
    assert rate == 16_000
    for utterance in list(manifests["test.tsv"])[::20]:
        expected = whole[utterance.start : utterance.start + utterance.num_samples]
        waveform = read_utterance(utterance)
        assert waveform.shape == expected.shape
        # The decoder starts 80 ms before the span, so the first moments may differ by its memory, not by a shift.
        np.testing.assert_allclose(waveform, expected, atol=0.02)
        assert np.sum((waveform - expected) ** 2) < 1e-3 * np.sum(expected**2)


def test_the_license_names_the_credits():
    text = (CORPUS / "LICENSE.md").read_text(encoding="utf-8")
    names = ["Allison Smith", "June Wallack", "Carlo Flora", "Maxim Topal", "Digium", "Unlimitel", "BGM Informatique"]
    names += ["Silvia Petrin", "Clod Patry", "Kristopher Lalletti", "modified"]
    names += ["creativecommons.org/licenses/by-sa/3.0/", "creativecommons.org/licenses/by/3.0/"]
    for name in names:
        assert name in text


class TestTranscripts:
    @pytest.mark.parametrize(
        ("language", "text", "expected"),
        [
            ("en", "Please press 1 to mute, or 28 to exit.", "please press one to mute or twenty eight to exit"),
            ("en", "... letters of your party’s last name.", "letters of your party's last name"),
            ("en", 'to a polite "don\'t call" menu', "to a polite don't call menu"),
            ("en", "A.M.", "a m"),
            ("en", "dash [-]", "dash"),
            ("en", "3D audio disabled", "three d audio disabled"),
            ("en", "the open source PBX.", "the open source p b x"),
            ("en", "SIP", "sip"),
            ("en", "Please re-enter", "please re enter"),
            ("en", "o'clock", "o'clock"),
            ("es", "Contrasena incorrecta. Marque 2 paracambiar", "contraseña incorrecta marque dos para cambiar"),
            ("es", "Trés números", "tres numeros"),
            ("fr", "De\u0301sole\u0301, l'e\u0301toile", "désolé l'étoile"),
            ("fr", "“Pour quitter, appuyez sur 8.”", "pour quitter appuyez sur huit"),
            ("it", "Il tempo sar? cos? esattamente..", "il tempo sarà così esattamente"),
            ("it", "Se questo ? corretto, premi ...", "se questo è corretto premi"),
            ("it", "E' in uso.", "è in uso"),
            ("it", "Cambia verso quale cartella?", "cambia verso quale cartella"),
            ("it", "Eliminato vm-then-pound: poi premere", "eliminato"),
            ("ru", "conf-adminmenu: Ещё раз - 3", "еще раз три"),
            ("ru", "первoe", "первое"),
            ("ru", "ПИН-код", "пин код"),
        ],
    )
    def test_normalize(self, language, text, expected):
        assert transcripts.normalize(text, language) == expected

    @pytest.mark.parametrize(
        ("language", "text", "reason"),
        [
            ("en", "Press # now", "symbol"),
            ("en", "separated by *", "symbol"),
            ("en", "dial 500 to attempt", "three digits"),
            ("en", "a 28.8 kilobit modem", "three digits"),
            ("en", "visit www.asterisk.org.", "address"),
            ("en", 'IAX (note: does not say "2")', "brackets"),
            ("en", "IAX", "acronym"),
            ("en", "the NASA", "acronym"),
            ("it", "Spiacente, [quello] non è valido", "brackets"),
            ("ru", "буквы «Q»", "alphabet"),
            ("ru", "включить / выключить", "symbol"),
            ("en", "...", "no words"),
        ],
    )
    def test_an_open_reading_is_refused(self, language, text, reason):
        with pytest.raises(transcripts.UncertainReadingError, match=reason):
            transcripts.normalize(text, language)
        assert isinstance(transcripts.comparable(text, language), str)

    def test_sounds_are_no_speech(self):
        is_sound = transcripts.is_sound
        for text in ("[ascending tones]", "<beep decending>", "(10 seconds of silence)", "un suono di beep ascendente"):
            assert is_sound(text)
        for text in ("dash [-]", "Sus saludos [temporales] estan", "At the tone, please say your name."):
            assert not is_sound(text)


class TestMaking:
    @pytest.fixture
    def packages(self, tmp_path):
        """A miniature of the unpacked packages in two languages."""

        def add(language, texts, sizes):
            document = tmp_path / "usr/share/doc" / f"asterisk-core-sounds-{language}"
            document.mkdir(parents=True)
            with gzip.open(document / f"core-sounds-{language}.txt.gz", "wt", encoding="utf-8-sig") as file:
                file.write(f"; comment: none\n\n{texts}\n")
            sounds = tmp_path / "usr/share/asterisk/sounds" / make_corpus.VOICES[language][0]
            for name, size in sizes.items():
                path = sounds / f"{name}.g722"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bytes(range(256)) * (size // 256))

        long = "please enter the number you wish to call"
        add(
            "en",
            "beep: [tone]\nhello: Hello.\ntwice: a\ntwice: b\npress: Press #\n"
            f"long: {long}\nusual: {long} now\nfast: {long} again",
            {
                "beep": 8192,
                "hello": 8192,
                "twice": 8192,
                "press": 8192,
                "long": 24_576,
                "usual": 24_576,
                "fast": 8192,
                "lone": 8192,
            },
        )
        add(
            "fr",
            "hello: Allo\ntwice: c",
            {"Hello": 8192, "twice": 8192, "beep": 8192, "letters/x": 0, "silence/1": 8192},
        )
        return tmp_path

    def test_clips_are_read_selected_and_labeled(self, packages):
        prompts = [prompt for language in ("en", "fr") for prompt in make_corpus.read_prompts(packages, language)]
        assert [len(prompt.samples) for prompt in prompts if prompt.prompt == "hello"] == [16_384, 16_384]
        kept, dropped = make_corpus.select(prompts)
        assert dropped == {
            ("en", "no speech"): 1,
            ("en", "no text in any language"): 1,
            ("fr", "no speech"): 2,
            ("fr", "empty file"): 1,
        }
        make_corpus.label(kept)
        assert {(prompt.language, prompt.prompt): prompt.text or prompt.note for prompt in kept} == {
            ("en", "fast"): "text does not fit the duration",
            ("en", "hello"): "hello",
            ("en", "long"): "please enter the number you wish to call",
            ("en", "usual"): "please enter the number you wish to call now",
            ("en", "press"): "symbol",
            ("en", "twice"): "several texts",
            ("fr", "hello"): "allo",
            ("fr", "twice"): "c",
        }

    def test_groups_join_languages_and_near_duplicates(self):
        def prompt(language, name, text):
            return make_corpus.Prompt(language, name, np.zeros(1, np.int16), source_text=text, comparable=text)

        assert splits.group_names(
            [
                prompt("en", "c", "the conference is now muted"),
                prompt("en", "b", "the conference is now unmuted"),
                prompt("en", "d", "goodbye"),
                prompt("ru", "d", "до свидания"),
                prompt("ru", "e", "до свидания"),
                prompt("ru", "f", ""),
                prompt("es", "d", "por favor intente de nuevo"),
                prompt("es", "g", "lo siento por favor intente de nuevo mas tarde y espere"),
            ]
        ) == ["b", "b", "d", "d", "d", "f", "d", "d"]

    def test_encoding_keeps_length_and_alignment(self, tmp_path):
        generator = np.random.default_rng(0)
        envelope = np.repeat(generator.uniform(0, 1, 100), 400)[:39_001]
        samples = (generator.normal(0, 3000, 39_001) * envelope).astype(np.int16)
        recordings.encode(samples, tmp_path / "a.opus")
        recordings.encode(samples, tmp_path / "b.opus")
        assert (tmp_path / "a.opus").read_bytes() == (tmp_path / "b.opus").read_bytes()
        decoded, rate = soundfile.read(tmp_path / "a.opus", dtype="float32")
        assert rate == 16_000
        assert decoded.shape == (39_001,)
        lags = range(-50, 51)
        inner = samples[100:-100].astype(np.float32)
        best = max(lags, key=lambda lag: float(np.dot(inner, decoded[100 + lag : 39_001 - 100 + lag])))
        assert abs(best) <= 2

    def test_long_clips_are_cut_at_pauses(self):
        rate = prepare.SAMPLE_RATE
        samples = np.random.default_rng(0).normal(0, 3000, 20 * rate).astype(np.int16)
        assert recordings.pauses(samples[: 8 * rate]) == []
        samples[5 * rate : round(5.4 * rate)] = 0
        samples[round(10 * rate) : round(10.05 * rate)] = 0  # too short for a pause, but the quietest moment
        cuts = np.array(recordings.pauses(samples)) / rate
        assert cuts[0] == pytest.approx(5.2, abs=0.02)
        assert np.abs(cuts - 10.025).min() < 0.05
        assert np.diff([0, *cuts, 20]).max() <= 8


@pytest.mark.slow
@pytest.mark.skipif("PROMPTS_DEBS" not in os.environ, reason="PROMPTS_DEBS names no folder of the Debian packages")
def test_the_packages_give_the_corpus_again(tmp_path, clips):
    make_corpus.make(Path(os.environ["PROMPTS_DEBS"]), tmp_path)
    assert (tmp_path / "clips.tsv").read_bytes() == (CORPUS / "clips.tsv").read_bytes()
    for language in LANGUAGES:
        made, _ = soundfile.read(tmp_path / f"{language}.opus", dtype="float32")
        shipped, _ = soundfile.read(CORPUS / f"{language}.opus", dtype="float32")
        assert made.shape == shipped.shape
        assert np.sum((made - shipped) ** 2) < 0.01 * np.sum(shipped**2)
