"""Cut a few clips of a manifest into files of their own, each with its text beside it.

python cut_clips.py corpus/test.tsv OUT_FOLDER
"""

import sys
from pathlib import Path

import soundfile

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.manifest import read_manifest, read_utterance

NUM_CLIPS = 5
SECONDS = 2.0, 5.0


def main(manifest_path: str, folder: str) -> None:
    clips = [utterance for utterance in read_manifest(manifest_path) if SECONDS[0] <= utterance.seconds <= SECONDS[1]]
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    for number, clip in enumerate(clips[:: len(clips) // NUM_CLIPS][:NUM_CLIPS], 1):
        soundfile.write(out / f"clip_{number}.wav", read_utterance(clip), SAMPLE_RATE)
        (out / f"clip_{number}.txt").write_text(f"{clip.text}\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
