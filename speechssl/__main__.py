"""``speechssl``: the commands for data, training and evaluation. Each imports what it needs when it runs."""

from speechssl.commands.align import align
from speechssl.commands.calibrate import calibrate
from speechssl.commands.check import check
from speechssl.commands.cluster import cluster
from speechssl.commands.compare import compare
from speechssl.commands.curves import curves
from speechssl.commands.evaluate import evaluate
from speechssl.commands.export import export
from speechssl.commands.extract import extract
from speechssl.commands.finetune import finetune
from speechssl.commands.inspect import inspect
from speechssl.commands.label import label
from speechssl.commands.manifest import manifest
from speechssl.commands.ngram import ngram
from speechssl.commands.options import Version, make_app
from speechssl.commands.phonemize import phonemize
from speechssl.commands.pretrain import pretrain
from speechssl.commands.probe import probe
from speechssl.commands.quantize import quantize
from speechssl.commands.report import report
from speechssl.commands.shard import shard
from speechssl.commands.tune_lm import tune_lm
from speechssl.commands.units import units
from speechssl.commands.unpack import unpack

app = make_app(no_args_is_help=True)


@app.callback()
def speechssl(version: Version = False) -> None:
    """Pretrain speech encoders on unlabeled audio, fine-tune them with CTC, evaluate them."""


TRAINING = (pretrain, finetune, label, evaluate, compare, curves, report, probe)
USING = (align, ngram, tune_lm, calibrate, extract, cluster, quantize, inspect, export)
DATA = (manifest, unpack, shard, check, units, phonemize)

for command in (*TRAINING, *USING, *DATA):
    app.command(command.__name__.replace("_", "-"))(command)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
