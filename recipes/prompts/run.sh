#!/usr/bin/env bash
# From unlabeled speech to transcripts: unpack, check, pretrain, finetune, evaluate, language_model,
# self_train, transcribe.
#
#     FROM=finetune TO=evaluate GPUS=2 OUT=exp/a bash recipes/prompts/run.sh --set optimizer.learning_rate=3e-4
#
# FROM, TO  the first and the last stage
# OUT       the folder for everything written (exp/prompts)
# GPUS      the number of training processes
# LABELS    the manifest to fine-tune on: train, train_10min or train_5min
# INIT      a model to fine-tune instead of pretraining one
# ENCODER   a file with another architecture
# VARIANT   a file with what pretraining does differently, such as recipes/prompts/objectives/wav2vec2.toml
# ROUNDS    how often what the model hears in the rest of train joins train_10min or train_5min (0)
# TUNING    a file with what fine-tuning does differently and learns without labels, such as recipes/prompts/joint.toml
# UNLABELED the manifest that it learns without labels (pretrain_train)
# TRIALS    how many weights of the language model are tried (40)
#
# The arguments go to all trainings. Run again, it resumes where it stopped.
set -euo pipefail

recipe=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
stages=(unpack check pretrain finetune evaluate language_model self_train transcribe)
source "$recipe/../stages.sh"
CORPUS=${CORPUS:-$recipe/corpus}
LABELS=${LABELS:-train}
require_one_of LABELS "$LABELS" train train_10min train_5min
if [[ $ROUNDS != 0 && $LABELS == train ]]; then
    echo "error: ROUNDS=$ROUNDS: expected LABELS=train_10min or train_5min, found train, which leaves nothing to label" >&2
    exit 1
fi
data=$OUT/data
pretrained=${INIT:-$OUT/pretrain}

arguments=("$@")

fine_tune() { # RUN MANIFEST
    "${train[@]}" finetune "$recipe/finetune.toml" ${TUNING:+"$TUNING"} --output "$1" --set init="$pretrained" \
        --set data.train="$2" --set data.dev="$data/dev.tsv" \
        ${TUNING:+--set data.unlabeled="$data/${UNLABELED:-pretrain_train}.tsv"} "${arguments[@]}"
}

if wanted unpack; then # once, rather than decode in every epoch
    "${speechssl[@]}" unpack "$CORPUS"/{pretrain_train,pretrain_dev,train,train_10min,train_5min,dev,test}.tsv \
        --output "$data"
fi

if wanted check; then
    check "$OUT/check_pretrain.txt" "$data"/{pretrain_train,pretrain_dev}.tsv
    check "$OUT/check.txt" "$data"/{"$LABELS",dev,test}.tsv
fi

if wanted pretrain; then
    if [[ -n ${INIT:-} ]]; then
        echo "not needed: INIT=$INIT" >&2
    else
        "${train[@]}" pretrain "${ENCODER:-$recipe/encoder.toml}" "$recipe/pretrain.toml" ${VARIANT:+"$VARIANT"} \
            --output "$pretrained" \
            --set data.train="$data/pretrain_train.tsv" --set data.dev="$data/pretrain_dev.tsv" "$@"
    fi
fi

if wanted finetune; then
    fine_tune "$OUT/finetune" "$data/$LABELS.tsv"
fi

if wanted evaluate; then
    evaluate "$OUT/finetune" "$data/test.tsv"
fi

if wanted language_model; then # of the texts that were learned from, no others
    language_model "$OUT/finetune" "$data/dev.tsv" "$data/test.tsv" "$data/$LABELS.tsv"
fi

if wanted self_train; then
    self_train "$OUT/finetune" "$data"/{train,"$LABELS",dev,test,"$LABELS"}.tsv
fi

if wanted transcribe; then
    "$PYTHON" "$recipe/cut_clips.py" "$data/test.tsv" "$OUT/heldout"
    "${transcribe[@]}" --model "$OUT/finetune" "$OUT"/heldout/*.wav >"$OUT/heldout.txt"
    "${transcribe[@]}" --model "$OUT/finetune" --lm "$OUT/finetune/lm.toml" "$OUT"/heldout/*.wav >"$OUT/heldout_lm.txt"
    while IFS=$'\t' read -r -u 3 file text && IFS=$'\t' read -r -u 4 _ text_lm; do
        printf '%s\n  reference            %s\n' "${file##*/}" "$(<"${file%.wav}.txt")"
        printf '  transcript           %s\n  by a language model  %s\n' "$text" "$text_lm"
    done 3<"$OUT/heldout.txt" 4<"$OUT/heldout_lm.txt"
fi

if (($# == 0)) && [[ $LABELS == train && -z ${INIT:-}${ENCODER:-}${VARIANT:-}${TUNING:-} ]]; then
    references=("$recipe"/curves/{pretrain,finetune}.tsv)
fi
show_results
