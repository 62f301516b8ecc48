"""Do hot words help where they are said, and do they hurt where they are not?

    python tools/score_hotwords.py MODEL MANIFEST TRAINING_MANIFEST [--lm FILE] [--num 50] [--boosts 0.5 1 1.5 2 3]

Hot words are words of the manifest that the training texts lack; decoys are as many words of the training texts that
the manifest lacks. Each list, and both together, are listened for at several boosts. A word is found if the transcript
of the utterance has it as often as the text, and inserted if it has it more often. Every transcript without a phrase of
the list must be exactly what it is without hot words, times and confidences included; otherwise the program fails.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from speechssl.cpu import tune_cpu

tune_cpu()  # before torch is imported

import numpy as np  # noqa: E402
from torch import Tensor  # noqa: E402

from speechssl.data.audio import SAMPLE_RATE  # noqa: E402
from speechssl.data.manifest import read_manifest  # noqa: E402
from speechssl.decode.greedy import PathToken, greedy_path  # noqa: E402
from speechssl.decode.hotwords import Hotwords  # noqa: E402
from speechssl.errors import SpeechSSLError  # noqa: E402
from speechssl.evaluate.utterances import utterance_readers  # noqa: E402
from speechssl.scoring.error_rates import score  # noqa: E402
from speechssl.transcribe.transcriber import Transcriber  # noqa: E402

MIN_LETTERS = 3


class Listener:
    """A model's log probabilities of some utterances, decoded with and without hot words."""

    def __init__(self, transcriber: Transcriber, log_probs: Sequence[Tensor]) -> None:
        self.search, self.units, self.log_probs = (
            transcriber.decoding.beam_search,
            transcriber.checkpoint.vocabulary,
            log_probs,
        )
        self.plain = [self.decode(rows, None) for rows in log_probs]

    def decode(self, rows: Tensor, hotwords: Hotwords | None) -> list[PathToken]:
        """The path of an utterance."""
        if self.search is not None:
            return self.search.find_path([rows], hotwords)
        return hotwords.find_path([rows]) if hotwords else greedy_path([rows], self.units.blank_id)

    def texts(self, words: Sequence[str], boost: float) -> list[str]:
        """The transcripts with hot words."""
        hotwords = None
        if words:
            with tempfile.TemporaryDirectory() as folder:
                table = Path(folder) / "hotwords.tsv"
                table.write_text("".join(f"{word}\t{boost}\n" for word in words), "utf-8")
                hotwords = Hotwords.read(table, self.units)
        paths = [self.decode(rows, hotwords) for rows in self.log_probs]
        for path, plain in zip(paths, self.plain, strict=True):
            if path != plain and not any(token.spot for token in path):
                raise SystemExit(f"expected {plain} where no phrase was heard, found {path}")
        return [self.units.decode(token.symbol_id for token in path) for path in paths]


def count_words(words: Sequence[str], references: Sequence[str], texts: Sequence[str]) -> tuple[int, int, int]:
    """How often words are said, found and inserted."""
    num_said = num_found = num_inserted = 0
    for reference, text in zip(references, texts, strict=True):
        said, found = Counter(reference.split()), Counter(text.split())
        num_said += sum(said[word] for word in words)
        num_found += sum(min(said[word], found[word]) for word in words)
        num_inserted += sum(max(0, found[word] - said[word]) for word in words)
    return num_said, num_found, num_inserted


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Score hot words and decoys at several boosts.")
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("training", type=Path)
    parser.add_argument("--lm", type=Path)
    parser.add_argument("--num", type=int, default=50)
    parser.add_argument("--boosts", type=float, nargs="+", default=[0.5, 1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--device")
    arguments = parser.parse_args()
    transcriber = Transcriber.load(arguments.model, arguments.device, arguments.lm)
    manifest = read_manifest(arguments.manifest)
    references = [utterance.text or "" for utterance in manifest]
    order = range(len(manifest))
    log_probs = []
    for rows in transcriber.log_probs_many(utterance_readers(manifest, order), map(manifest.where, order)):
        if isinstance(rows, SpeechSSLError):
            raise SystemExit(str(rows))
        log_probs.append(rows)
    trained = {word for utterance in read_manifest(arguments.training) for word in (utterance.text or "").split()}
    tested = {word for text in references for word in text.split()}
    randomness = np.random.default_rng(0)
    hot, decoys = (
        randomness.permutation(sorted(word for word in words if len(word) >= MIN_LETTERS))[: arguments.num].tolist()
        for words in (tested - trained, trained - tested)
    )
    seconds = sum(utterance.num_samples for utterance in manifest) / SAMPLE_RATE
    listener = Listener(transcriber, log_probs)
    num_said = count_words(hot, references, listener.texts([], 0))[0]
    print(f"{arguments.manifest}: {len(references)} utterances, {seconds:.0f} s; {transcriber.decoding.describe()}")
    print(f"{len(hot)} hot words, said {num_said} times: {' '.join(hot)}")
    print(f"{len(decoys)} decoys, never said: {' '.join(decoys)}\n")
    print(f"| listened for | boost | hot words found | inserted | decoys inserted | WER % | CER % |\n{'|---' * 7}|")
    for name, words in (("nothing", []), ("hot words", hot), ("decoys", decoys), ("both", hot + decoys)):
        for boost in arguments.boosts if words else (0.0,):
            texts = listener.texts(words, boost)
            found = score(references, texts)
            _, num_found, num_wrong = count_words(hot, references, texts)
            num_decoys = count_words(decoys, references, texts)[2]
            print(
                f"| {name} | {f'{boost:g}' if words else '-'} | {num_found} of {num_said} | {num_wrong} | {num_decoys} "
                f"| {100 * found.wer:.1f} | {100 * found.cer:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
