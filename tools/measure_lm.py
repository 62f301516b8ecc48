"""Memory and time that language models need once they are read.

python tools/measure_lm.py LM...
"""

import argparse
import time
import tracemalloc
from pathlib import Path

from speechssl.decode.arpa import read_arpa


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure language models of ARPA files.")
    parser.add_argument("lms", type=Path, nargs="+", metavar="LM")
    print("| language model | n-grams | file, bytes an n-gram | memory, bytes an n-gram | seconds to read |")
    print("|---|---|---|---|---|")
    for path in parser.parse_args().lms:
        started = time.process_time()
        read_arpa(path)
        seconds = time.process_time() - started
        tracemalloc.start()
        model = read_arpa(path)
        memory, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        number = len(model.entries)
        print(f"| {path} | {number} | {path.stat().st_size / number:.0f} | {memory / number:.0f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
