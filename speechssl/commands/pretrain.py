"""``speechssl pretrain``."""

from speechssl.commands.options import Configurations, Overrides, RunFolder
from speechssl.cpu import tune_cpu
from speechssl.terminal import exit_on_error


def pretrain(configs: Configurations, output: RunFolder, overrides: Overrides = None) -> None:
    """Pretrain an encoder on unlabeled audio. Under torchrun, on many GPUs."""
    with exit_on_error():
        tune_cpu()  # before torch is imported
        from speechssl.train.pretrain import PretrainConfig
        from speechssl.train.pretrain import pretrain as run_pretraining

        run_pretraining(PretrainConfig.load(configs, overrides or []), output)
