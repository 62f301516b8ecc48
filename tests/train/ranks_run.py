"""Pretrain in one process group with one configuration after another: ``ranks_run.py FOLDER CONFIG.json ...``.

Each configuration is a resolved one; its run goes to FOLDER under the file's name without its suffix. COMPILE_BACKEND
says what compiles where the configuration asks for it.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from speechssl.train import compiled
from speechssl.train.pretrain import PretrainConfig, pretrain

init, destroy = dist.init_process_group, dist.destroy_process_group


def init_once(*arguments: Any, **options: Any) -> None:
    """A second group would find the addresses of the first one in the launcher's store."""
    if not dist.is_initialized():
        init(*arguments, **options)


if __name__ == "__main__":
    dist.init_process_group = init_once
    dist.destroy_process_group = lambda: None
    compiled.BACKEND = os.environ.get("COMPILE_BACKEND", compiled.BACKEND)
    folder, *files = map(Path, sys.argv[1:])
    for file in files:
        pretrain(PretrainConfig.from_dict(json.loads(file.read_text("utf-8")), str(file)), folder / file.stem)
    destroy()
