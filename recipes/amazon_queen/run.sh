#!/usr/bin/env bash
# Flight of the Amazon Queen, 36 characters in English: fetch, prepare, check, pretrain, finetune, evaluate,
# self_train.
#
#     SIZE=gpu LABELS=1h OUT=exp/queen bash recipes/amazon_queen/run.sh --set optimizer.learning_rate=5e-4
#
# CORPUS          where there is no apt-get: queen.1c, a folder with it, or the Debian package
# SIZE            cpu (two cores) or gpu (a large one), each in an OUT of its own
# LABELS          all, 1h or 10min
# FROM_SCRATCH=1  fine-tunes fresh weights with the same settings, without pretraining
# ROUNDS          how often what the model hears in recordings without labels joins them (0); the language model that
#                 helps is of the labels' texts
# ENCODER         a file with another architecture
# FROM, TO        the first and the last stage
# OUT             the folder for everything written (exp/amazon_queen)
# GPUS            the number of training processes, which share an update as parts: with two at SIZE=cpu, add
#                 --set trainer.microbatches=2 --set batches.seconds=6
#
# The arguments go to all trainings. Run again, it resumes where it stopped.
set -euo pipefail

recipe=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
stages=(fetch prepare check pretrain finetune evaluate self_train)
source "$recipe/../stages.sh"
SIZE=${SIZE:-cpu}
LABELS=${LABELS:-all}
FROM_SCRATCH=${FROM_SCRATCH:-0}
data=$OUT/data
corpus=${CORPUS:-$OUT/package}

require_one_of SIZE "$SIZE" cpu gpu
require_one_of LABELS "$LABELS" all 1h 10min
require_one_of FROM_SCRATCH "$FROM_SCRATCH" 0 1
case $SIZE in
    cpu) encoder=${ENCODER:-$recipe/../prompts/encoder.toml} ;;
    gpu) encoder=${ENCODER:-$recipe/encoder_gpu.toml} ;;
esac
case $LABELS in
    all) labels=$data/train.tsv suffix= ;;
    *) labels=$data/train_$LABELS.tsv suffix=_$LABELS ;;
esac
case $FROM_SCRATCH in
    0) finetuned=$OUT/finetune$suffix start=(--set init="$OUT/pretrain") ;;
    1) finetuned=$OUT/scratch$suffix start=("$encoder") ;;
esac
if [[ ${CORPUS:-} == *.deb ]]; then
    package=$CORPUS
    corpus=$OUT/package
fi

arguments=("$@")

fine_tune() { # RUN MANIFEST
    "${train[@]}" finetune "$recipe/../prompts/finetune.toml" "$recipe/finetune_$SIZE.toml" "${start[@]}" \
        --output "$1" --set data.train="$2" --set data.dev="$data/dev.tsv" "${arguments[@]}"
}

if wanted fetch; then
    if [[ $corpus == "$OUT/package" ]]; then
        bash "$recipe/fetch.sh" "$corpus" ${package:+"$package"}
    else
        echo "nothing to fetch: CORPUS=$CORPUS" >&2
    fi
fi

if wanted prepare; then
    "$PYTHON" "$recipe/prepare.py" "$corpus" "$data"
fi

if wanted check; then
    check "$OUT/check_pretrain.txt" "$data"/{pretrain_train,pretrain_dev}.tsv
    check "$OUT/check.txt" "$data"/{train,dev,test}.tsv
fi

if wanted pretrain; then
    if [[ $FROM_SCRATCH == 1 ]]; then
        echo "left out: FROM_SCRATCH=1" >&2
    else
        "${train[@]}" pretrain "$encoder" "$recipe/../prompts/pretrain.toml" "$recipe/pretrain_$SIZE.toml" \
            --output "$OUT/pretrain" \
            --set data.train="$data/pretrain_train.tsv" --set data.dev="$data/pretrain_dev.tsv" "$@"
    fi
fi

if wanted finetune; then
    fine_tune "$finetuned" "$labels"
fi

if wanted evaluate; then
    evaluate "$finetuned" "$data/test.tsv"
fi

if wanted self_train; then
    self_train "$finetuned" "$data/pretrain_train.tsv" "$labels" "$data"/{dev,test}.tsv "$labels"
fi

show_results
