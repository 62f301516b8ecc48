#!/usr/bin/env bash
# wav2vec 2.0 on LibriSpeech: download, prepare, check, pretrain, finetune, evaluate.
#
#     CORPUS=/data/LibriSpeech MODEL=base LABELS=100h GPUS=8 OUT=exp/a bash recipes/librispeech/run.sh
#
# CORPUS is the folder LibriSpeech or the one above it, LIBRILIGHT that of Libri-light's parts of 10 minutes to 10 hours
# (default: librispeech_finetuning beside LibriSpeech). MODEL is base or large, LABELS 10min, 1h, 10h, 100h or 960h.
# ENCODER names a configuration to pretrain with in the place of the model's, INIT a model to fine-tune instead of
# pretraining one: ours, Hugging Face's, or a name on its Hub. OUT is the folder for everything written,
# one for each MODEL. DOWNLOAD fetches parts of the corpus first: all, or names such as "train-clean-100 dev-other";
# MIRROR and LIBRILIGHT_MIRROR are the addresses before the archives' names.
# FROM and TO name the first and the last stage, GPUS the number of processes, NODES that of machines (see README.md).
# The rest of the line goes to the training stages. Run again, it goes on where it stopped.
set -euo pipefail

recipe=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
stages=(download prepare check pretrain finetune evaluate)
source "$recipe/../stages.sh"
MODEL=${MODEL:-base}
LABELS=${LABELS:-100h}
require_one_of MODEL "$MODEL" base large
require_one_of LABELS "$LABELS" 10min 1h 10h 100h 960h
data=$OUT/data
pretrained=${INIT:-$OUT/pretrain}
finetuned=$OUT/finetune_$LABELS

held_out() { # the manifests to score on, of dev and test that the corpus has
    manifests=()
    local name
    for name in {dev,test}_{clean,other}; do
        if [[ -f $data/$name.tsv ]]; then manifests+=("$data/$name.tsv"); fi
    done
}

if wanted download; then
    if [[ -n ${DOWNLOAD:-} ]]; then
        read -ra parts <<<"$DOWNLOAD"
        "$PYTHON" "$recipe/download.py" "${CORPUS:-}" "${parts[@]}" ${MIRROR:+--mirror "$MIRROR"} \
            ${LIBRILIGHT_MIRROR:+--librilight-mirror "$LIBRILIGHT_MIRROR"}
    else
        echo "nothing to download: DOWNLOAD is not set" >&2
    fi
fi

if wanted prepare; then
    "$PYTHON" "$recipe/prepare.py" "${CORPUS:-}" "$data" ${LIBRILIGHT:+--librilight "$LIBRILIGHT"}
fi

if wanted check; then
    for name in "train_$LABELS" dev_other; do # now, rather than after the pretraining
        if [[ ! -f $data/$name.tsv ]]; then
            echo "error: $data/$name.tsv: expected a manifest for LABELS=$LABELS, found none; prepare says why" >&2
            exit 1
        fi
    done
    held_out
    check "$OUT/check_pretrain.txt" "$data"/pretrain_{train,dev}.tsv
    check "$OUT/check.txt" "$data/train_$LABELS.tsv" "${manifests[@]}"
fi

if wanted pretrain; then
    if [[ -n ${INIT:-} ]]; then
        echo "not needed: INIT=$INIT" >&2
    else
        "${train[@]}" pretrain "${ENCODER:-$root/recipes/models/wav2vec2_$MODEL.toml}" "$recipe/pretrain.toml" \
            --output "$pretrained" \
            --set data.train="$data/pretrain_train.tsv" --set data.dev="$data/pretrain_dev.tsv" "$@"
    fi
fi

if wanted finetune; then
    "${train[@]}" finetune "$recipe/finetune/$MODEL.toml" "$recipe/finetune/${MODEL}_$LABELS.toml" \
        --output "$finetuned" --set init="$pretrained" \
        --set data.train="$data/train_$LABELS.tsv" --set data.dev="$data/dev_other.tsv" "$@"
fi

if wanted evaluate; then
    held_out
    evaluate "$finetuned" "${manifests[@]}"
fi

show_results
