#!/usr/bin/env bash
# A language of Mozilla Common Voice: prepare, check, pretrain, finetune, evaluate.
#
#     CORPUS=/data/cv-corpus-24.0-2025-12-05/cy LABELS=1h GPUS=8 OUT=exp/cy bash recipes/common_voice/run.sh
#
# CORPUS     the language's folder
# LABELS     what fine-tuning learns from: train, 1h or 10min
# MIN_COUNT  the number of train texts that must contain a character for it to count as a letter
# UNPACK=1   decodes the clips once, to 115 MB of WAV an hour, instead of in every epoch
# INIT       a model to fine-tune instead of pretraining one
# ENCODER    a file with another architecture
# FROM, TO   the first and the last stage
# OUT        the folder for everything written (exp/common_voice), one for each language
# GPUS       the number of training processes
#
# The arguments go to both trainings. Run again, it resumes where it stopped.
set -euo pipefail

recipe=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
stages=(prepare check pretrain finetune evaluate)
extras=av # the clips do not state their length, and libsndfile would guess it
source "$recipe/../stages.sh"
LABELS=${LABELS:-train}
UNPACK=${UNPACK:-0}
require_one_of LABELS "$LABELS" train 1h 10min
require_one_of UNPACK "$UNPACK" 0 1
case $LABELS in
    train) labels=train settings=("$recipe"/{finetune,finetune_train}.toml) ;;
    *) labels=train_$LABELS settings=("$recipe/finetune.toml") ;;
esac
case $UNPACK in
    0) data=$OUT/data ;;
    1) data=$OUT/unpacked ;;
esac
pretrained=${INIT:-$OUT/pretrain}
finetuned=$OUT/finetune_$LABELS

if wanted prepare; then
    "$PYTHON" "$recipe/prepare.py" "${CORPUS:-}" "$OUT/data" ${MIN_COUNT:+--min-count "$MIN_COUNT"}
    if [[ $UNPACK == 1 ]]; then
        manifests=("$OUT"/data/{pretrain_train,pretrain_dev,train,dev,test}.tsv)
        for subset in "$OUT"/data/train_{1h,10min}.tsv; do
            if [[ -f $subset ]]; then manifests+=("$subset"); else rm -f "$data/${subset##*/}"; fi
        done
        "${speechssl[@]}" unpack "${manifests[@]}" --output "$data"
    fi
fi

if wanted check; then # not of test, which keeps what no model can get right
    check "$OUT/check_pretrain.txt" "$data"/pretrain_{train,dev}.tsv
    check "$OUT/check.txt" "$data/$labels.tsv" "$data/dev.tsv"
fi

if wanted pretrain; then
    if [[ -n ${INIT:-} ]]; then
        echo "not needed: INIT=$INIT" >&2
    else
        "${train[@]}" pretrain "${ENCODER:-$recipe/../models/wav2vec2_base.toml}" "$recipe/pretrain.toml" \
            --output "$pretrained" \
            --set data.train="$data/pretrain_train.tsv" --set data.dev="$data/pretrain_dev.tsv" "$@"
    fi
fi

if wanted finetune; then
    "${train[@]}" finetune "${settings[@]}" --output "$finetuned" --set init="$pretrained" \
        --set data.train="$data/$labels.tsv" --set data.dev="$data/dev.tsv" "$@"
fi

if wanted evaluate; then
    evaluate "$finetuned" "$data/test.tsv"
fi

show_results
