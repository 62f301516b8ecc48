#!/usr/bin/env bash
# From unlabelled speech to transcripts: check, pretrain, finetune, evaluate, transcribe.
#
#     FROM=finetune TO=evaluate GPUS=2 OUT=exp/a bash recipes/prompts/run.sh --set optimizer.learning_rate=3e-4
#
# FROM and TO name the first and the last stage, OUT the folder for everything written, GPUS the number of processes,
# VARIANT a file of what pretraining does otherwise: VARIANT=recipes/prompts/wav2vec2.toml OUT=exp/wav2vec2 bash ...
# The rest of the line goes to the training stages. Run again, it goes on where it stopped.
set -euo pipefail

recipe=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
root=$(dirname -- "$(dirname -- "$recipe")")
OUT=${OUT:-$root/exp/prompts}
CORPUS=${CORPUS:-$recipe/corpus}
GPUS=${GPUS:-1}
pretrain=("$recipe"/{encoder,pretrain}.toml ${VARIANT:+"$VARIANT"})
stages=(check pretrain finetune evaluate transcribe)
FROM=${FROM:-${stages[0]}}
TO=${TO:-${stages[-1]}}

position() { # of a stage in the list
    local number
    for number in "${!stages[@]}"; do
        if [[ ${stages[number]} == "$2" ]]; then
            echo "$number"
            return
        fi
    done
    echo "error: $1=$2: expected one of ${stages[*]}" >&2
    return 1
}
first=$(position FROM "$FROM")
last=$(position TO "$TO")

wanted() { # announces a stage unless FROM and TO leave it out
    local number
    number=$(position stage "$1")
    ((first <= number && number <= last)) || return 1
    echo "== $1" >&2
}

PYTHON=$(bash "$root/tools/bootstrap.sh")
speechssl=("$PYTHON" -m speechssl)
train=("${speechssl[@]}")
if ((GPUS > 1)); then
    train=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$GPUS" -m speechssl)
fi

if wanted check; then
    mkdir -p "$OUT"
    check() { # a report of manifests, which is shown if there are errors
        "${speechssl[@]}" check "${@:2}" >"$1" || { cat "$1" >&2 && exit 1; }
    }
    check "$OUT/check_pretrain.txt" "$CORPUS"/{pretrain_train,pretrain_dev}.tsv
    check "$OUT/check.txt" "$CORPUS"/{train,dev,test}.tsv
fi

if wanted pretrain; then
    "${train[@]}" pretrain "${pretrain[@]}" --output "$OUT/pretrain" \
        --set data.train="$CORPUS/pretrain_train.tsv" --set data.dev="$CORPUS/pretrain_dev.tsv" "$@"
fi

if wanted finetune; then
    "${train[@]}" finetune "$recipe/finetune.toml" --output "$OUT/finetune" --set init="$OUT/pretrain" \
        --set data.train="$CORPUS/train.tsv" --set data.dev="$CORPUS/dev.tsv" "$@"
fi

if wanted evaluate; then
    "${speechssl[@]}" evaluate "$OUT/finetune" "$CORPUS/test.tsv" --output "$OUT/test.json" >"$OUT/results_row.md"
fi

if wanted transcribe; then
    "$PYTHON" "$recipe/cut_clips.py" "$CORPUS/test.tsv" "$OUT/heldout"
    "$PYTHON" -m speechssl.transcribe.cli --model "$OUT/finetune" "$OUT"/heldout/*.wav >"$OUT/heldout.txt"
    while IFS=$'\t' read -r file text; do
        printf '%s\n  reference   %s\n  transcript  %s\n' "${file##*/}" "$(<"${file%.wav}.txt")" "$text"
    done <"$OUT/heldout.txt"
fi

if [[ -f $OUT/results_row.md ]]; then
    echo "== results" >&2
    cat "$OUT/results_row.md"
fi
printf 'written: %s\n' "$OUT"/* >&2
