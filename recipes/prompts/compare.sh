#!/usr/bin/env bash
# Does pretraining pay? The same encoder fine-tuned from pretrained and from fresh weights, over several seeds:
#
#     SEEDS="0 1 2" JOBS=2 OUT=exp/compare LABELS=train_10min bash recipes/prompts/compare.sh
#
#   pretrained  pretrain.toml, then finetune.toml
#   scratch     the updates of finetune.toml from fresh weights
#   whole       WHOLE_UPDATES from fresh weights, as many as fit into the time of pretraining and fine-tuning together
#
# Fresh weights learn at the best of RATES, chosen by the dev CER of seed SEARCH; every other setting is that of
# finetune.toml, and nothing is frozen. JOBS runs train side by side, each with an equal share of the cores. LABELS,
# ENCODER and VARIANT are those of run.sh. The arguments go to every training. Run again, it resumes where it stopped;
# other LABELS use the same pretraining.
#
# Its runs also give the reference curves in curves/:
#
#     speechssl curves exp/compare/pretrained_{0,1,2}/pretrain --metric hidden_loss --metric hidden_accuracy \
#         --metric visible_accuracy -o recipes/prompts/curves/pretrain.tsv
#     speechssl curves exp/compare/pretrained_{0,1,2}/finetune_train --metric loss_per_label --metric cer \
#         -o recipes/prompts/curves/finetune.tsv
set -euo pipefail

recipe=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
root=$(dirname -- "$(dirname -- "$recipe")")
export OUT=${OUT:-$root/exp/compare}
export LABELS=${LABELS:-train}
ENCODER=${ENCODER:-$recipe/encoder.toml}
VARIANT=${VARIANT:-}
SEEDS=${SEEDS:-0 1 2}
SEARCH=${SEARCH:-0}
RATES=${RATES:-2.5e-3 5e-3 1e-2}
JOBS=${JOBS:-1}
WHOLE_UPDATES=${WHOLE_UPDATES:-7400}
data=$OUT/data

PYTHON=${PYTHON:-$(bash "$root/tools/bootstrap.sh")}
export PYTHON ENCODER VARIANT

train() { # FOLDER ARGUMENTS...: to the end, keeping the seconds it took, parts before an interruption included
    local folder=$1 started=$SECONDS
    [[ ! -e $folder/finished ]] || return 0
    "$PYTHON" -m speechssl "${@:2}" "${extra[@]}" --output "$folder" --set data.num_workers=0
    echo $((SECONDS - started + $(cat "$folder/seconds" 2>/dev/null || echo 0))) >"$folder/seconds"
    touch "$folder/finished"
}

finetune() { # FOLDER ARGUMENTS...
    train "$1" finetune "$recipe/finetune.toml" "${@:2}" --set seed="$seed" \
        --set data.train="$data/$LABELS.tsv" --set data.dev="$data/dev.tsv"
    [[ -e $1/scores.json ]] || "$PYTHON" -m speechssl evaluate "$1" "$data/test.tsv" --output "$1/scores.json"
}

one() { # of the methods, with one seed
    local folder=$OUT/${method}_$seed
    case $method in
        pretrained)
            train "$folder/pretrain" pretrain "$ENCODER" "$recipe/pretrain.toml" ${VARIANT:+"$VARIANT"} \
                --set seed="$seed" --set data.train="$data/pretrain_train.tsv" --set data.dev="$data/pretrain_dev.tsv"
            finetune "$folder/finetune_$LABELS" --set init="$folder/pretrain"
            ;;
        scratch_*) finetune "$folder" "$ENCODER" --set optimizer.learning_rate="${method##*_}" ;;
        whole_*)
            finetune "$folder" "$ENCODER" --set optimizer.learning_rate="$RATE" --set trainer.num_steps="$WHOLE_UPDATES"
            ;;
    esac
}

all() { # METHOD SEED a line on stdin: JOBS of them at a time
    xargs -P "$JOBS" -L 1 bash "$0" --one "$@"
}

if [[ ${1:-} == --one ]]; then # what `all` calls
    method=${*: -2:1} seed=${*: -1}
    extra=("${@:2:$#-3}")
    one >"$OUT/${method}_$seed.log" 2>&1 & # not in the condition itself, where errors would not end it
    if ! wait $!; then
        tail -n 1 "$OUT/${method}_$seed.log" >&2
        exit 255 # ends the others' queue too
    fi
    echo "finished: $method, seed $seed" >&2
    exit
fi

mkdir -p "$OUT"
"$PYTHON" -m speechssl unpack "$recipe"/corpus/{pretrain_train,pretrain_dev,"$LABELS",dev,test}.tsv --output "$data"
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > JOBS ? cores / JOBS : 1))} RATE= WHOLE_UPDATES

{
    for seed in $SEEDS; do echo "pretrained $seed"; done
    for rate in $RATES; do echo "scratch_${LABELS}_$rate $SEARCH"; done
} | all "$@"

best() { # the lowest dev CER of the search, and its rate
    "$PYTHON" - "$OUT/scratch_$LABELS" "$SEARCH" $RATES <<'PROGRAM'
import sys
from pathlib import Path
from speechssl.train.log import read_log

out, seed, *rates = sys.argv[1:]
found = {}
for rate in rates:
    logged = read_log(Path(f"{out}_{rate}_{seed}"))
    found[rate] = min(line["cer"] for line in logged if line["split"] == "dev")
    print(f"scratch at {rate}: dev CER {100 * found[rate]:.1f} %", file=sys.stderr)
print(min(found, key=found.get))
PROGRAM
}
RATE=$(best)
echo "scratch learns at $RATE" >&2

{
    for seed in $SEEDS; do echo "scratch_${LABELS}_$RATE $seed"; done
    for seed in $SEEDS; do echo "whole_$LABELS $seed"; done
} | all "$@"

baselines() { for seed in $SEEDS; do printf -- '--baseline\n%s\n' "$OUT/$1_$seed/scores.json"; done; }
mapfile -t candidates < <(for seed in $SEEDS; do echo "$OUT/pretrained_$seed/finetune_$LABELS/scores.json"; done)
for method in "scratch_${LABELS}_$RATE" "whole_$LABELS"; do
    mapfile -t options < <(baselines "$method")
    seconds=$(cat $(for seed in $SEEDS; do echo "$OUT/${method}_$seed/seconds"; done) | paste -sd ' ')
    echo "$method ($seconds s of training) -> pretrained ($(
        for seed in $SEEDS; do
            echo $(($(<"$OUT/pretrained_$seed/pretrain/seconds") + $(<"$OUT/pretrained_$seed/finetune_$LABELS/seconds")))
        done | paste -sd ' '
    ) s)"
    "$PYTHON" -m speechssl compare "${options[@]}" "${candidates[@]}"
done | tee "$OUT/comparison_$LABELS.txt"
