"""Pretrain in one process group with one configuration after another: ``ranks_run.py FOLDER CONFIG.json ...``.

Each configuration is a resolved one; its run goes to FOLDER under the file's name without its suffix.
"""

import json
import sys
from pathlib import Path

from speechssl.train.pretrain import PretrainConfig, pretrain

if __name__ == "__main__":
    folder, *files = map(Path, sys.argv[1:])
    for file in files:
        pretrain(PretrainConfig.from_dict(json.loads(file.read_text("utf-8")), str(file)), folder / file.stem)
