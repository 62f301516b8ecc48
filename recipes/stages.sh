# What every run.sh shares. It sets `recipe` (its folder) and `stages` (their names in order), then sources this file,
# which reads FROM, TO, OUT, GPUS, NODES, HEAD and gives: OUT, the commands `speechssl`, `train` (on all GPUs) and
# `transcribe`, `wanted STAGE`, `check REPORT MANIFEST...`, `evaluate MODEL MANIFEST...` and `show_results`.
root=$(dirname -- "$(dirname -- "$recipe")")
OUT=${OUT:-$root/exp/$(basename -- "$recipe")}
GPUS=${GPUS:-1}
NODES=${NODES:-1}
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
transcribe=("$PYTHON" -m speechssl.transcribe.cli)
train=("${speechssl[@]}")
if ((NODES > 1)); then # started on each node; HEAD is the name of one of them
    train=("$PYTHON" -m torch.distributed.run --nnodes "$NODES" --nproc-per-node "$GPUS" --rdzv-backend c10d
        --rdzv-id "$OUT" --rdzv-endpoint "${HEAD:?"error: NODES=$NODES: expected HEAD, the name of the first node"}" -m speechssl)
elif ((GPUS > 1)); then
    train=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$GPUS" -m speechssl)
fi

check() { # REPORT MANIFEST...: the pre-flight check, whose report is shown if there are errors
    mkdir -p "$(dirname -- "$1")"
    "${speechssl[@]}" check "${@:2}" >"$1" || { cat "$1" >&2 && exit 1; }
}

evaluate() { # MODEL MANIFEST...: scores as JSON, with every transcript, and rows for RESULTS.md
    "${speechssl[@]}" evaluate "$@" --output "$OUT/scores.json" >"$OUT/.results_rows.md.partial"
    mv -f "$OUT/.results_rows.md.partial" "$OUT/results_rows.md"
}

show_results() { # rows for RESULTS.md on stdout, then what was written
    if [[ -f $OUT/results_rows.md ]]; then
        echo "== results" >&2
        cat "$OUT/results_rows.md"
    fi
    printf 'written: %s\n' "$OUT"/* >&2
}
