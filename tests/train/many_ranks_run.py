"""Train with several processes, one job after another: ``many_ranks_run.py JOBS.json``, which is a list of `Job`s.

Prints as JSON, for each job, what each process said on stderr and its exit status. The processes are forked, which
spares each of them the seconds that imports take.
"""

import json
import os
import resource
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp

from speechssl.terminal import exit_on_error
from speechssl.train import trainer
from speechssl.train.finetune import FinetuneConfig, finetune
from speechssl.train.pretrain import PretrainConfig, pretrain
from speechssl.train.sharding import copy_whole


@dataclass(frozen=True)
class Job:
    """A run.

    Attributes:
        stage: "pretrain" or "finetune".
        config: A resolved configuration.
        folder: Of the run.
        ranks: How many processes.
        gradients: Where to write the gradients of each update, which then changes nothing; without Gumbel noise.
        file_bytes: More than so many the last process cannot write into a file.
        copy_of: A run of which this one is a copy at first.
        damaged: A file of its newest checkpoint that is then cut short.
    """

    stage: str
    config: dict[str, Any]
    folder: str
    ranks: int = 1
    gradients: str | None = None
    file_bytes: int | None = None
    copy_of: str | None = None
    damaged: str = ""


def record_gradients(file: str, rank: int) -> None:
    updates: list[dict[str, torch.Tensor]] = []

    class Recorder(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            found = {str(n): p.grad for n, p in enumerate(self.param_groups[0]["params"]) if p.grad is not None}
            updates.append(copy_whole(found, keep=True))
            if rank == 0:
                torch.save(updates, file)

    trainer.make_optimizer = lambda _, parameters: Recorder(parameters)  # type: ignore[assignment,return-value]
    torch.Tensor.exponential_ = lambda tensor: tensor.fill_(1.0)  # type: ignore[method-assign,assignment,misc]


def run(job: Job, rank: int, port: int) -> None:
    os.environ |= {"WORLD_SIZE": str(job.ranks), "RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    if job.gradients is not None:
        record_gradients(job.gradients, rank)
    if job.file_bytes is not None and rank == job.ranks - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job.file_bytes, job.file_bytes))
    with exit_on_error():
        if job.stage == "pretrain":
            pretrain(PretrainConfig.from_dict(job.config, "job"), Path(job.folder))
        else:
            finetune(FinetuneConfig.from_dict(job.config, "job"), Path(job.folder))


def main(file: Path) -> None:
    said = []
    for job in [Job(**values) for values in json.loads(file.read_text("utf-8"))]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        if job.copy_of is not None:
            shutil.copytree(job.copy_of, job.folder, symlinks=True)
            os.truncate(Path(job.folder, "latest", job.damaged), 100)
        children, outputs = [], [Path(f"{file}.{rank}") for rank in range(job.ranks)]
        for rank, output in enumerate(outputs):
            child = os.fork()
            if not child:
                os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                run(job, rank, port)
                sys.exit()
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        said.append([(output.read_text(), status) for output, status in zip(outputs, statuses, strict=True)])
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
