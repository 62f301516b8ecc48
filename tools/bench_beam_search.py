"""Beam search against the lexicon decoder of flashlight (C++, through torchaudio): errors and time, with equal weights.

    python tools/bench_beam_search.py MODEL MANIFEST LM [--repeats 3]

LM is an ARPA file or what `speechssl tune-lm` wrote. The peer, of the extra `peers`, takes the same weights, and is
given every word of the language model as its lexicon: it knows no others. It tries all symbols at each frame, and
drops what is 50 nats behind. Both take turns on one thread; the least processor time of each counts.
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


def make_peer(search: BeamSearch, folder: Path) -> Callable[[Tensor], str]:
    """The lexicon decoder as a function from log probabilities to a text."""
    config, symbols = search.config, search.units.symbols
    lexicon = folder / "lexicon.txt"
    known = sorted(word for word in search.model.words if not search.units.unknown_characters(word))
    lexicon.write_text("".join(f"{word} {' '.join(word)} {symbols[1]}\n" for word in known), "utf-8")
    decoder = ctc_decoder(
        lexicon=str(lexicon),
        tokens=list(symbols),
        lm=str(config.lm),
        beam_size=config.beam_size,
        beam_threshold=50,
        lm_weight=config.lm_weight * math.log(10),  # it takes logarithms to base 10 as they are
        word_score=config.word_score,
        log_add=True,
        blank_token=symbols[0],
        sil_token=symbols[1],
        unk_word="<unk>",
    )
    return lambda log_probs: " ".join(decoder(log_probs[None])[0][0].words)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure beam search beside that of flashlight.")
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("lm", type=Path)
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

    def ours(frames: Tensor) -> str:
        return search.units.decode(token.symbol_id for token in search.find_path([frames]))

    with tempfile.TemporaryDirectory() as folder:
        decoders = {"speechssl": ours, "flashlight": make_peer(search, Path(folder))}
        seconds = dict.fromkeys(decoders, math.inf)
        texts: dict[str, list[str]] = {}
        for _ in range(arguments.repeats):
            for name, decode in decoders.items():
                started = time.process_time()
                texts[name] = [decode(frames) for frames in log_probs]
                seconds[name] = min(seconds[name], time.process_time() - started)
    audio_seconds = sum(utterance.seconds for utterance in manifest)
    print(search.config.describe())
    print("| decoder | WER % | CER % | seconds of audio a second | times as slow as flashlight |")
    print("|---|---|---|---|---|")
    for name in decoders:
        found = score(references, texts[name])
        ratio = seconds[name] / seconds["flashlight"]
        rates = f"{100 * found.wer:.1f} | {100 * found.cer:.1f}"
        print(f"| {name} | {rates} | {audio_seconds / seconds[name]:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
