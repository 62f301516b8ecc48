# What every run.sh shares. It sets `recipe` (its folder) and `stages` (their names in order), then sources this file,
# which reads FROM, TO, OUT, GPUS, NODES, HEAD, RESTARTS, TRIALS and ROUNDS; `extras` may name extras of the package that it
# needs. It gives OUT, the functions `wanted STAGE`, `require_one_of SETTING VALUE EXPECTED...`,
# `check REPORT MANIFEST...`, `evaluate RUN MANIFEST...`, `language_model RUN DEV TEST TEXTS_AND_OPTIONS...`,
# `self_train RUN UNLABELED LABELED DEV TEST TEXTS_AND_OPTIONS...` if the recipe has `fine_tune RUN MANIFEST`,
# `show_results`, which names `references` (curves of healthy runs) for the report if the recipe has some, and from the first wanted stage on PYTHON, which has the package, and the commands `speechssl`,
# `train` (on all GPUs) and `transcribe`.
root=$(dirname -- "$(dirname -- "$recipe")")
OUT=${OUT:-$root/exp/$(basename -- "$recipe")}
GPUS=${GPUS:-1}
NODES=${NODES:-1}
RESTARTS=${RESTARTS:-0}
TRIALS=${TRIALS:-40}
ROUNDS=${ROUNDS:-0}
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
if ((first > last)); then
    echo "error: TO=$TO: expected FROM=$FROM or a stage after it, found one before it" >&2
    exit 1
fi

require_count() { # SETTING VALUE
    [[ $2 =~ ^[1-9][0-9]*$ ]] || { echo "error: $1=$2: expected a whole number of at least 1" >&2 && exit 1; }
}
require_count GPUS "$GPUS"
require_count NODES "$NODES"
require_count TRIALS "$TRIALS"
[[ $ROUNDS == 0 ]] || require_count ROUNDS "$ROUNDS"
[[ $RESTARTS == 0 ]] || require_count RESTARTS "$RESTARTS"

if ((NODES > 1)); then # started on each node, one stage at a time; HEAD is the name of one of them
    if [[ -z ${HEAD:-} ]]; then
        echo "error: NODES=$NODES: expected HEAD, the name of one of the nodes, found nothing" >&2
        exit 1
    fi
    if [[ $FROM != "$TO" || $FROM != @(pretrain|finetune) ]]; then
        expected="one training stage, FROM=TO=pretrain or FROM=TO=finetune"
        echo "error: NODES=$NODES: expected $expected, found FROM=$FROM TO=$TO" >&2
        exit 1
    fi
fi

run_training() { # so that a signal to this script, not only one to all of its processes, lets the training save
    local training status=0
    "$@" &
    training=$!
    trap 'kill -TERM "$training" 2>/dev/null' TERM INT
    wait "$training" || status=$?
    while kill -0 "$training" 2>/dev/null; do # the wait was interrupted
        status=0
        wait "$training" || status=$?
    done
    trap - TERM INT
    return "$status"
}

train=()
prepare_commands() { # installs the package on first use: after the settings were looked at
    PYTHON=$(bash "$root/tools/bootstrap.sh" "${extras:-}") || exit
    speechssl=("$PYTHON" -m speechssl)
    transcribe=("$PYTHON" -m speechssl.commands.transcribe)
    train=(run_training "${speechssl[@]}")
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300} # seconds for an update and its save
    if ((NODES > 1)); then
        train=(run_training "$PYTHON" -m torch.distributed.run --nnodes "$NODES" --nproc-per-node "$GPUS"
            --max-restarts "$RESTARTS" --rdzv-backend c10d --rdzv-id "$OUT:$FROM" --rdzv-endpoint "$HEAD" -m speechssl)
    elif ((GPUS > 1)); then
        train=(run_training "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$GPUS"
            --max-restarts "$RESTARTS" -m speechssl)
    fi
}

wanted() { # announces a stage unless FROM and TO leave it out
    local number
    number=$(position stage "$1")
    ((first <= number && number <= last)) || return 1
    ((${#train[@]})) || prepare_commands
    echo "== $1" >&2
}

require_one_of() { # SETTING VALUE EXPECTED...
    local expected
    for expected in "${@:3}"; do
        if [[ $2 == "$expected" ]]; then return; fi
    done
    echo "error: $1=$2: expected one of ${*:3}" >&2
    exit 1
}

check() { # REPORT MANIFEST...: the pre-flight check, whose report is shown if there are errors
    local partial status=0
    partial=$(dirname -- "$1")/.$(basename -- "$1").partial
    mkdir -p "$(dirname -- "$1")"
    "${speechssl[@]}" check "${@:2}" >"$partial" || status=$?
    ((status <= 1)) || exit "$status" # it was broken off
    mv -f -- "$partial" "$1"
    ((status == 0)) || { cat "$1" >&2 && exit 1; }
}

evaluate() { # RUN MANIFEST...: into the run's folder scores as JSON, with every transcript, and rows for RESULTS.md
    score "" "$@"
}

language_model() { # RUN DEV TEST TEXTS_AND_OPTIONS...: a model of the texts, its weights and all confidences by dev, scores of test
    "${speechssl[@]}" ngram "${@:4}" --output "$1/lm.arpa"
    "${speechssl[@]}" tune-lm "$1" "$2" --lm "$1/lm.arpa" --output "$1/lm.toml" --trials "$TRIALS"
    calibrate "$1" "$2"
    calibrate "$1" "$2" --lm "$1/lm.toml"
    score _lm "$1" "$3" --lm "$1/lm.toml"
}

calibrate() { # RUN DEV OPTIONS...: of a model that says no word on dev it only says so
    local status=0
    "${speechssl[@]}" calibrate "$@" || status=$?
    ((status <= 1)) || exit "$status" # it was broken off
    ((status == 0)) || echo "note: these confidences stay uncalibrated" >&2
}

self_train() { # RUN UNLABELED LABELED DEV TEST TEXTS_AND_OPTIONS...: ROUNDS of labels, each by the model before
    local run=$1 next round
    if [[ $ROUNDS == 0 ]]; then
        echo "not asked for: ROUNDS=2 learns twice from what the model hears in speech without texts" >&2
        return
    fi
    ensure_language_model "$run" "${@:4}"
    for ((round = 1; round <= ROUNDS; round++)); do
        next=$1_round$round
        "${speechssl[@]}" label "$run" "$2" --labeled "$3" --lm "$run/lm.toml" --output "$next/labels.tsv"
        fine_tune "$next" "$next/labels.tsv"
        evaluate "$next" "$5"
        ensure_language_model "$next" "${@:4}"
        if is_no_better "$(best_score "$next")" "$(best_score "$run")"; then
            echo "stopped after round $round: on dev it is no better than the model before, $run" >&2
            return
        fi
        run=$next
    done
}

ensure_language_model() { # ARGUMENTS of language_model, which is not run again if it came to its end
    [[ -f $1/results_rows_lm.md ]] || language_model "$@"
}

best_score() { # RUN: the error rate on dev by which its best checkpoint was chosen
    [[ ! -f $1/best/training.json ]] || sed -n 's/.*"best_score": \([0-9.e-]*\).*/\1/p' "$1/best/training.json"
}

is_no_better() { # NEW OLD
    awk -v new="$1" -v old="$2" 'BEGIN { exit !(new != "" && old != "" && new + 0 >= old + 0) }'
}

score() { # SUFFIX RUN ARGUMENTS...
    "${speechssl[@]}" evaluate "${@:2}" --output "$2/scores$1.json" >"$2/.results_rows$1.md.partial"
    mv -f "$2/.results_rows$1.md.partial" "$2/results_rows$1.md"
}

references=() # files of curves that the runs are like

show_results() { # the rows of all runs on stdout, then what was written, and how to look at it
    local found rows=() runs=() reference
    for found in "$OUT"/*/results_rows{,_lm}.md; do
        [[ ! -f $found ]] || rows+=("$found")
    done
    if ((${#rows[@]})); then
        echo "== results" >&2
        cat "${rows[@]}"
    fi
    printf 'written: %s\n' "$OUT"/* >&2
    for found in "$OUT"/*/log.jsonl; do
        [[ ! -f $found ]] || runs+=("${found%/log.jsonl}")
    done
    if ((${#runs[@]})); then
        for reference in "${references[@]}"; do runs+=(--reference "$reference"); done
        printf 'curves, scores and transcripts on one page:' >&2
        printf ' %q' "${speechssl[@]}" report "${runs[@]}" -o "$OUT/report.html" >&2
        printf '\n' >&2
    fi
}
