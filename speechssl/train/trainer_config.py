"""The settings of a training, whatever it trains."""

from typing import Literal

from pydantic import Field

from speechssl.config import Config
from speechssl.train.health import Response
from speechssl.train.writers import WriterName


class TrainerConfig(Config):
    """How long and how to train.

    ``precision`` is that of matrix products and convolutions: None is bfloat16 on a GPU that has it in hardware, else
    float32, which means it: TF32 is off. ``compile`` is off until somebody has measured on a GPU what it gains.
    """

    num_steps: int = Field(400_000, ge=1)  # updates
    microbatches: int = Field(64, ge=1)  # batches summed into one update, over all ranks
    log_steps: int = Field(200, ge=1)  # updates between two lines of the log; each checkpoint has one too
    evaluate_steps: int = Field(5_000, ge=1)  # between two evaluations on the dev set, each followed by a checkpoint
    checkpoint_steps: int = Field(1_000, ge=1)
    # Evaluate and save a moving average of the weights, in which each update weighs so many times as much as the next
    # one (0.999, 0.9999); None takes the weights as they are.
    average_decay: float | None = Field(None, gt=0, lt=1)
    keep_last: int = Field(2, ge=1)  # checkpoints to fall back to if one is damaged; the best is kept besides
    device: str | None = None  # by name; None is the GPU if there is one, else the CPU
    precision: Literal["float32", "bfloat16"] | None = None
    # What the processes of a run hold: "ddp" each one everything, "fsdp" each one its part of weights, gradients and
    # the optimizer's state, for what does not fit into one GPU. One process alone holds everything.
    parallel: Literal["ddp", "fsdp"] = "ddp"
    # The share of the utterances that may turn out to be unreadable: others take their place. With 0 the first ends the
    # run: what a run has learned from does not depend on a disk or a network unless that is asked for.
    max_unreadable: float = Field(0.0, ge=0, lt=1)
    # At what is suspicious, such as a rising loss. "roll_back": where a lower learning rate might help, the run goes
    # back to its latest checkpoint and on with half of it, at most three times.
    on_warning: Response = "warn"
    writers: tuple[WriterName, ...] = ("tensorboard",)  # of the log, beside the console and log.jsonl
    compile: bool = False  # what an update computes, by torch.compile; needs batches.fixed_shapes
    checkpoint_activations: bool = False  # compute transformer layers again in the backward pass, to save memory
