#!/usr/bin/env bash
# What does each objective learn from the same speech in the same time? Every file of objectives/, the masked
# prediction of pretrain.toml (the reference), and fine-tuning from scratch:
#
#     JOBS=2 HEADLINE="masked_prediction wav2vec2" OUT=exp/objectives bash recipes/prompts/objectives.sh
#     OUT=exp/objectives bash recipes/prompts/objectives.sh search   # tries the settings of objectives/search.tsv
#     OUT=exp/objectives bash recipes/prompts/objectives.sh page     # writes OBJECTIVES.md from what there is
#
# Each objective is pretrained for BUDGET (300) seconds of one core: as many updates as cost what the reference's cost,
# which are stated to take UPDATE_SECONDS (0.08). What an update of another takes beside it is measured once, into
# OUT/costs.tsv; let the machine be quiet then. Each model is probed, and fine-tuned as in finetune.toml on each of
# LABELS (train_5min train). Fresh weights learn at the best of RATES, chosen by the dev CER of the first of SEEDS.
#
# OBJECTIVES      the rows beside the reference and scratch: names of files (all)
# SEEDS           of every row (0)
# HEADLINE        the rows that have the seeds MORE_SEEDS (1 2) as well; scratch has them if any row has
# JOBS            how many trainings run side by side, on a core each (1)
# ALIGNER         the fine-tuned model that says for the probes which letter sounds when (the reference's)
# SEARCH_BUDGET   seconds of each trial of the search (60)
# CORPUS          the folder of the manifests pretrain_train, pretrain_dev, train, dev and test, and of LABELS
#                 (recipes/prompts/corpus; exp/amazon_queen/data is another, with LABELS="train_10min train")
# ENCODER         a file with another architecture
# PAGE            the page to write, with its pictures in curves/ (recipes/prompts/OBJECTIVES.md)
#
# The arguments go to every fine-tuning. Run again, it resumes where it stopped. A training that fails is a line of the
# page; the others go on. The page is written after each row; a section "What to take from it" in it is kept.
set -euo pipefail

recipe=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
root=$(dirname -- "$(dirname -- "$recipe")")
export OUT=${OUT:-$root/exp/objectives}
export BUDGET=${BUDGET:-300} UPDATE_SECONDS=${UPDATE_SECONDS:-0.08} SEARCH_BUDGET=${SEARCH_BUDGET:-60}
export LABELS=${LABELS:-train_5min train} RATES=${RATES:-2.5e-3 5e-3 1e-2}
export SEEDS=${SEEDS:-0} ENCODER=${ENCODER:-$recipe/encoder.toml} PAGE=${PAGE:-$recipe/OBJECTIVES.md}
CORPUS=${CORPUS:-$recipe/corpus}
HEADLINE=${HEADLINE:-}
MORE_SEEDS=${MORE_SEEDS:-1 2}
JOBS=${JOBS:-1}
reference=masked_prediction
first_seed=${SEEDS%% *}
reference_run=$OUT/${reference}_$first_seed/pretrain
own_aligner=$OUT/${reference}_$first_seed/finetune_${LABELS##* }
export ALIGNER=${ALIGNER:-$own_aligner}
export OMP_NUM_THREADS=1
data=$OUT/data

PYTHON=${PYTHON:-$(bash "$root/tools/bootstrap.sh" dev)} # draws with matplotlib
export PYTHON

aligner_is_ready() { [[ $ALIGNER != "$own_aligner" || -e $ALIGNER/finished ]]; }

page() { "$PYTHON" "$recipe/objectives.py" page "$OUT" "$PAGE" "$first_seed"; }

train() { # FOLDER ARGUMENTS...: to the end, keeping the seconds it took, parts before an interruption included
    local folder=$1 started=$SECONDS
    [[ ! -e $folder/finished ]] || return 0
    "$PYTHON" -m speechssl "${@:2}" --output "$folder" --set data.num_workers=0 --set trainer.device=cpu
    echo $((SECONDS - started + $(cat "$folder/seconds" 2>/dev/null || echo 0))) >"$folder/seconds"
    touch "$folder/finished"
}

pretrain() { # FOLDER NAME BUDGET SEED ARGUMENTS...
    local arguments
    arguments=$("$PYTHON" "$recipe/budget.py" arguments "$OUT" "$2" "$3" "$UPDATE_SECONDS" \
        ${reference_run:+"$reference_run"})
    mapfile -t arguments <<<"$arguments"
    train "$1" pretrain "${arguments[@]}" "${@:5}" --set seed="$4" \
        --set data.train="$data/pretrain_train.tsv" --set data.dev="$data/pretrain_dev.tsv"
}

finetune() { # FOLDER LABELS SEED ARGUMENTS...
    train "$1" finetune "$recipe/finetune.toml" "${@:4}" "${extra[@]}" --set seed="$3" \
        --set data.train="$data/$2.tsv" --set data.dev="$data/dev.tsv"
    [[ -e $1/scores.json ]] || "$PYTHON" -m speechssl evaluate "$1" "$data/test.tsv" --output "$1/scores.json"
}

probe() { # MODEL FILE OPTIONS...
    [[ -e $2 ]] || "$PYTHON" -m speechssl probe "$1" --letters "$data/train.tsv" --aligned-by "$ALIGNER" \
        --output "$2" "${@:3}"
}

one() { # the job: pretrained NAME SEED | scratch LABELS RATE SEED | trial NAME NUMBER
    local labels settings
    case $1 in
        pretrained)
            pretrain "$folder/pretrain" "$2" "$BUDGET" "$3"
            ! aligner_is_ready || probes "$folder"
            for labels in $LABELS; do
                finetune "$folder/finetune_$labels" "$labels" "$3" --set init="$folder/pretrain"
            done
            ! aligner_is_ready || probes "$folder"
            ;;
        scratch)
            finetune "$folder" "$2" "$4" "$ENCODER" --set optimizer.learning_rate="$3"
            ;;
        trial)
            [[ -e $reference_run ]] || reference_run="" # with an ALIGNER; targets are those that the file names
            mapfile -t settings < <("$PYTHON" "$recipe/search.py" settings "$2" "$3")
            pretrain "$folder/pretrain" "$2" "$SEARCH_BUDGET" "$first_seed" "${settings[@]}"
            probe "$folder/pretrain" "$folder/probes.json" --no-baselines
            ;;
    esac
}

probes() { # FOLDER
    probe "$1/pretrain" "$1/probes.json" --no-baselines --voices "$data/pretrain_train.tsv"
}

all() { # ARGUMENTS...: JOBS at a time, each a line on stdin; those that fail leave a file `failed`
    xargs -r -P "$JOBS" -L 1 bash "$0" --job "$#" "$@" || (($? == 123))
    page
}

finish() {
    local file files
    mapfile -t files < <(find "$OUT" -name failed -size +0 | sort)
    for file in "${files[@]}"; do echo "failed: ${file%/failed}: $(<"$file")" >&2; done
    ((${#files[@]} == 0))
}

if [[ ${1:-} == --job ]]; then # what `all` calls: the number of arguments, they, and the job
    extra=("${@:3:$2}") job=("${@:3+$2}")
    case ${job[0]} in
        pretrained) folder=$OUT/${job[1]}_${job[2]} ;;
        scratch) folder=$OUT/scratch_${job[3]}/${job[1]}_${job[2]} ;;
        trial) folder=$OUT/search/${job[1]}_${job[2]} ;;
    esac
    mkdir -p "$folder"
    rm -f "$folder/failed"
    one "${job[@]}" >>"$folder/log" 2>&1 & # not in the condition itself, where errors would not end it
    status=0
    wait $! || status=$?
    ((status != 75 && status < 128)) || exit 255 # stopped by a signal, which ends the queue
    if ((status)); then
        tail -n 1 "$folder/log" | tee "$folder/failed" >&2
        exit 1
    fi
    echo "finished: ${job[*]}" >&2
    [[ ${job[0]} != pretrained ]] || page
    exit
fi

case ${1:-} in
    page) page && exit ;;
    search) mode=search && shift ;;
    *) mode=table ;;
esac
mkdir -p "$OUT"
mapfile -t known < <("$PYTHON" "$recipe/budget.py" names)
rows=()
for name in ${OBJECTIVES-${known[*]}}; do
    [[ " ${known[*]} " == *" $name "* ]] || { echo "error: OBJECTIVES=$name: expected names of ${known[*]}" >&2 && exit 1; }
    [[ $name == "$reference" ]] || rows+=("$name")
done
manifests=("$CORPUS"/{pretrain_train,pretrain_dev,train,dev,test}.tsv)
for labels in $LABELS; do [[ $labels == train ]] || manifests+=("$CORPUS/$labels.tsv"); done
"$PYTHON" -m speechssl unpack "${manifests[@]}" --output "$data"
"$PYTHON" "$recipe/costs.py" "$OUT" "$reference" "${rows[@]}"

# The reference comes first: it aligns the letters, and others may want its layers as targets.
if [[ $mode == search ]]; then
    aligner_is_ready || echo "pretrained $reference $first_seed" | all "$@"
    "$PYTHON" "$recipe/search.py" jobs "$reference" "${rows[@]}" | all "$@"
    "$PYTHON" "$recipe/search.py" best "$OUT"
    finish
    exit
fi
{
    echo "pretrained $reference $first_seed"
    for labels in $LABELS; do
        for rate in $RATES; do echo "scratch $labels $rate $first_seed"; done
    done
} | all "$@"
probe "$OUT/${reference}_$first_seed/pretrain" "$OUT/baselines.json" --voices "$data/pretrain_train.tsv"
for name in "${rows[@]}"; do echo "pretrained $name $first_seed"; done | all "$@"
{
    for seed in $SEEDS; do
        [[ $seed == "$first_seed" ]] || for name in "$reference" "${rows[@]}"; do echo "pretrained $name $seed"; done
    done
    for seed in ${HEADLINE:+$MORE_SEEDS}; do
        for name in $HEADLINE; do echo "pretrained $name $seed"; done
    done
    for labels in $LABELS; do
        rate=$("$PYTHON" "$recipe/objectives.py" rate "$OUT" "$labels" "$first_seed")
        for seed in $SEEDS ${HEADLINE:+$MORE_SEEDS}; do echo "scratch $labels $rate $seed"; done
    done
} | all "$@"
finish
