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
stages=(check pretrain finetune evaluate transcribe)
source "$recipe/../stages.sh"
CORPUS=${CORPUS:-$recipe/corpus}
pretrain=("$recipe"/{encoder,pretrain}.toml ${VARIANT:+"$VARIANT"})

if wanted check; then
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
    evaluate "$OUT/finetune" "$CORPUS/test.tsv"
fi

if wanted transcribe; then
    "$PYTHON" "$recipe/cut_clips.py" "$CORPUS/test.tsv" "$OUT/heldout"
    "${transcribe[@]}" --model "$OUT/finetune" "$OUT"/heldout/*.wav >"$OUT/heldout.txt"
    while IFS=$'\t' read -r file text; do
        printf '%s\n  reference   %s\n  transcript  %s\n' "${file##*/}" "$(<"${file%.wav}.txt")" "$text"
    done <"$OUT/heldout.txt"
fi

show_results
