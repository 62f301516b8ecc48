#!/usr/bin/env bash
# From a folder of recordings, some of them with texts, to a model: prepare, unpack, check, pretrain, finetune,
# evaluate, language_model, self_train.
#
#     CORPUS=recordings LABELS=labels.csv LICENSE="CC0" OUT=exp/mine bash recipes/own_data/run.sh
#
# CORPUS      the folder of recordings
# LABELS      their texts: a table, JSON, ELAN, Praat, Audacity, subtitles, or a folder of such files or of Kaldi;
#             default: such files beside the recordings; none
# TIER        the tiers of ELAN's and Praat's files that hold what is said, with commas between
# LANGUAGE    the language of the texts: tr and az have capitals of their own
# LICENSE     the license of the recordings, which is written into the models
# SIZE        small (default: for a CPU, or little data) or base (for a GPU and much data)
# INIT        a model instead of pretraining one: ours, Hugging Face's, or a name on its Hub
# UNPACK=1    decodes the recordings once, to WAV, instead of in every epoch
# KEEP        an earlier OUT/data, whose dev and test are kept
# TEXTS=asis  learns texts as they are written
# LM_TEXTS    a file of more texts for the language model, a sentence a line
# ROUNDS      how often what the model hears in recordings without texts joins the labels (0)
# TRIALS      how many weights of the language model are tried (40)
# ENCODER     a file with another architecture
# FROM, TO    the first and the last stage
# OUT         the folder for everything written (exp/own_data)
# GPUS        the number of training processes
#
# The arguments go to all trainings. Run again, it resumes where it stopped.
set -euo pipefail

recipe=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
stages=(prepare unpack check pretrain finetune evaluate language_model self_train)
source "$recipe/../stages.sh"
SIZE=${SIZE:-small}
UNPACK=${UNPACK:-0}
TEXTS=${TEXTS:-normalized}
require_one_of UNPACK "$UNPACK" 0 1
require_one_of TEXTS "$TEXTS" normalized asis
prepared=$OUT/data
data=$prepared
[[ $UNPACK == 0 ]] || data=$OUT/unpacked
pretrained=${INIT:-$OUT/pretrain}

require_one_of SIZE "$SIZE" small base
case $SIZE in
    small)
        encoder=$recipe/encoder_small.toml
        pretrain=("$recipe/../prompts/pretrain.toml" "$recipe/small_pretrain.toml")
        finetune=("$recipe/../prompts/finetune.toml" "$recipe/small_finetune.toml")
        ;;
    base)
        encoder=$recipe/../models/wav2vec2_base.toml
        pretrain=("$recipe/base_pretrain.toml")
        finetune=("$recipe/base_finetune.toml")
        ;;
esac

if [[ -n ${LANGUAGE:-} && ! $LANGUAGE =~ ^[A-Za-z]{2,3}(-[A-Za-z0-9]+)*$ ]]; then # as the system sets it: en_US:en
    echo "note: LANGUAGE=$LANGUAGE is no language of texts (such as tr or az-Latn) and is not used" >&2
    LANGUAGE=
fi
if [[ -n ${LM_TEXTS:-} && ! -f $LM_TEXTS ]]; then
    echo "error: LM_TEXTS=$LM_TEXTS: expected a file, found none" >&2
    exit 1
fi
LICENSE=${LICENSE:-${LICENCE:-}} # as it was spelled before
if [[ -z ${LICENSE:-} ]]; then
    LICENSE=unknown
    echo "note: the models will say that the license of their data is unknown; LICENSE=... says what it is" >&2
fi

arguments=("$@")

fine_tune() { # RUN MANIFEST
    "${train[@]}" finetune "${finetune[@]}" --output "$1" --set init="$pretrained" \
        --set data.train="$2" --set data.dev="$data/dev.tsv" --set data.license="$LICENSE" "${arguments[@]}"
}

texts=("$data/train.tsv" ${LM_TEXTS:+"$LM_TEXTS"}) # of the language model
[[ $TEXTS == asis ]] || texts+=(--normalize ${LANGUAGE:+--language "$LANGUAGE"})

stop_without_labels() { # before the stages that need them
    [[ ! -f $prepared/train.tsv ]] || return 0
    echo "stopped before $1: there are no texts in $prepared (LABELS=... says where they are)" >&2
    show_results
    exit 0
}

if wanted prepare; then
    if [[ -z ${CORPUS:-} ]]; then
        echo "error: CORPUS=: expected a folder with recordings, found nothing" >&2
        exit 1
    fi
    "$PYTHON" "$recipe/prepare.py" "$CORPUS" "$prepared" --texts "$TEXTS" \
        ${LABELS:+--labels "$LABELS"} ${KEEP:+--keep "$KEEP"} ${TIER:+--tiers "$TIER"} \
        ${LANGUAGE:+--language "$LANGUAGE"}
fi

if wanted unpack; then
    if [[ $UNPACK == 0 ]]; then
        echo "not asked for: UNPACK=1 decodes the recordings once" >&2
    else
        manifests=("$prepared"/{pretrain_train,pretrain_dev}.tsv)
        [[ ! -f $prepared/train.tsv ]] || manifests+=("$prepared"/{train,dev,test}.tsv)
        "${speechssl[@]}" unpack "${manifests[@]}" --output "$data"
    fi
fi

if wanted check; then
    check "$OUT/check_pretrain.txt" "$data"/{pretrain_train,pretrain_dev}.tsv
    [[ ! -f $prepared/train.tsv ]] || check "$OUT/check.txt" "$data"/{train,dev,test}.tsv
fi

if wanted pretrain; then
    if [[ -n ${INIT:-} ]]; then
        echo "not needed: INIT=$INIT" >&2
    else
        "${train[@]}" pretrain "${ENCODER:-$encoder}" "${pretrain[@]}" --output "$pretrained" \
            --set data.train="$data/pretrain_train.tsv" --set data.dev="$data/pretrain_dev.tsv" \
            --set data.license="$LICENSE" "$@"
    fi
fi

if wanted finetune; then
    stop_without_labels finetune
    fine_tune "$OUT/finetune" "$data/train.tsv"
fi

if wanted evaluate; then
    stop_without_labels evaluate
    evaluate "$OUT/finetune" "$data/test.tsv"
fi

if wanted language_model; then
    stop_without_labels language_model
    language_model "$OUT/finetune" "$data/dev.tsv" "$data/test.tsv" "${texts[@]}"
fi

if wanted self_train; then
    stop_without_labels self_train
    self_train "$OUT/finetune" "$data"/{pretrain_train,train,dev,test}.tsv "${texts[@]}"
fi

show_results
