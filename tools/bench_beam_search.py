"""Beam search against the lexicon decoder of flashlight (C++, through torchaudio): errors and time, with equal weights.

    python tools/bench_beam_search.py MODEL MANIFEST LM [--beams 50 30 20] [--repeats 3]

LM is an ARPA file or what `speechssl tune-lm` wrote. The peer, of the extra `peers`, takes the same weights, and is
given every word of the language model as its lexicon: it knows no others. Each has two rows: with the pruning of its
defaults, and with less to try, as far as the prompts bear it (`PRUNED`). All take turns on one thread; the least
processor time of each counts.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchaudio.models.decoder import ctc_decoder

from speechssl.data.manifest import read_manifest
from speechssl.decode.beam_search import BeamSearch
from speechssl.errors import SpeechSSLError
from speechssl.evaluate.utterances import read_references, utterance_readers
from speechssl.scoring.error_rates import score
from speechssl.transcribe.transcriber import Transcriber

Decode = Callable[[Tensor], str]  # log probabilities to a text


PRUNED: dict[str, dict[str, float]] = {
    "speechssl": {"beam_threshold": 12.0, "min_symbol_log_prob": -4.0},
    "flashlight": {"beam_threshold": 15.0, "beam_size_token": 8},
}


def make_ours(search: BeamSearch, beam_size: int, pruning: dict[str, float]) -> Decode:
    search = search.reweighted(search.config.model_copy(update={"beam_size": beam_size, **pruning}))
    return lambda frames: search.units.decode(token.symbol_id for token in search.find_path([frames]))


def make_peer(search: BeamSearch, beam_size: int, pruning: dict[str, float], folder: Path) -> Decode:
    """The lexicon decoder of flashlight, whose language model and weights are those of a search."""
    config, symbols = search.config, search.units.symbols
    lexicon = folder / "lexicon.txt"
    known = sorted(word for word in search.model.words if not search.units.unknown_characters(word))
    lexicon.write_text("".join(f"{word} {' '.join(word)} {symbols[1]}\n" for word in known), "utf-8")
    decoder = ctc_decoder(
        lexicon=str(lexicon),
        tokens=list(symbols),
        lm=str(config.lm),
        beam_size=beam_size,
        lm_weight=config.lm_weight * math.log(10),  # it takes logarithms to base 10 as they are
        word_score=config.word_score,
        log_add=True,
        blank_token=symbols[0],
        sil_token=symbols[1],
        unk_word="<unk>",
        **pruning,  # type: ignore[arg-type]
    )
    return lambda log_probs: " ".join(decoder(log_probs[None])[0][0].words)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure beam search beside that of flashlight.")
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("lm", type=Path)
    parser.add_argument("--beams", type=int, nargs="+", default=[50], metavar="SIZE", help="prefixes kept by both")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transcriber = Transcriber.load(arguments.model, "cpu", arguments.lm)
    search = transcriber.decoding.beam_search
    assert search is not None
    manifest = read_manifest(arguments.manifest)
    references = read_references(manifest)
    log_probs: list[Tensor] = []
    for found in transcriber.log_probs_many(utterance_readers(manifest, range(len(manifest)))):
        if isinstance(found, SpeechSSLError):
            raise found
        log_probs.append(found)

    decoders: dict[tuple[int, str], Decode] = {}
    seconds: dict[tuple[int, str], float] = {}
    texts: dict[tuple[int, str], list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for beam in arguments.beams:
            for how, (own, of_peer) in {"": ({}, {}), ", pruned": PRUNED.values()}.items():
                decoders[beam, f"speechssl{how}"] = make_ours(search, beam, own)
                decoders[beam, f"flashlight{how}"] = make_peer(search, beam, of_peer, Path(folder))
        for _ in range(arguments.repeats):
            for case, decode in decoders.items():
                started = time.process_time()
                texts[case] = [decode(frames) for frames in log_probs]
                seconds[case] = min(seconds.get(case, math.inf), time.process_time() - started)
    audio_seconds = sum(utterance.seconds for utterance in manifest)
    print(search.config.describe())
    print("| beam | decoder | WER % | CER % | seconds of audio a second |")
    print("|---|---|---|---|---|")
    for (beam, name), text in texts.items():
        rates = score(references, text)
        speed = audio_seconds / seconds[beam, name]
        print(f"| {beam} | {name} | {100 * rates.wer:.1f} | {100 * rates.cer:.1f} | {speed:.0f} |")


if __name__ == "__main__":
    main()
