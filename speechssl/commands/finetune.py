"""``speechssl finetune``."""

from speechssl.commands.options import Configurations, Overrides, RunFolder
from speechssl.cpu import tune_cpu
from speechssl.terminal import exit_on_error


def finetune(configs: Configurations, output: RunFolder, overrides: Overrides = None) -> None:
    """Fine-tune an encoder with CTC on transcribed audio. Under torchrun, on many GPUs."""
    with exit_on_error():
        tune_cpu()  # before torch is imported
        from speechssl.train.finetune import FinetuneConfig
        from speechssl.train.finetune import finetune as run_finetuning

        run_finetuning(FinetuneConfig.load(configs, overrides or []), output)
