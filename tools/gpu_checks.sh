#!/usr/bin/env bash
# What only a GPU can tell, unattended, on a machine without a network:
#
#     WHEELS=wheels CORPUS=flight-of-the-amazon-queen_1.0.0-9_all.deb OUT=results bash tools/gpu_checks.sh PART [ARG...]
#
#   tests    pytest -m gpu; 20 updates of every objective of recipes/prompts are among them and, where there are two
#            GPUs, a run of which each has a part (trainer.parallel=fsdp)
#   bench    tools/bench_pretrain.py, of pretraining and of fine-tuning, and tools/bench_transcribe.py; PEAK_TFLOPS says
#            what the GPU can do, for the MFU
#   updates  tools/bench_pretrain.py of base, compiled and with activations checkpointed too, and where the time of an
#            update goes: pretraining, with the recipe's batches and with longer ones, and fine-tuning
#   queen    recipes/amazon_queen with SIZE=gpu: pretraining, then fine-tuning with all labels, 1 hour and 10 minutes,
#            then the same three from scratch; CORPUS is the Debian package
#   prompts  recipes/prompts with all labels, 10 and 5 minutes, then its compare.sh
#
# A part ends after LIMIT seconds (480), with status 124 if it is not finished. When they are called again, the last two
# go on where they stopped, as long as WORK is there; the others start anew. Everything is written below WORK
# (/tmp/speechssl_gpu); what is worth keeping goes to OUT (WORK/out): PART.log, and for the recipes PART.md with rows
# for RESULTS.md, comparisons and some transcripts, and PART_curves.jsonl with the curves of every run, a few hundred kB
# in all.
#
# PYTHON (python3) has torch, torchaudio, transformers, scikit-learn, numba, safetensors, tensorboard, typer and rich.
# What else is needed comes as wheels from `tools/gpu_wheels.sh WHEELS` on a machine with a network. COMMIT says what is
# measured where there is no .git. The ARGs go to pytest, all benchmarks or the training stages. Without a GPU, to
# rehearse: DEVICE=cpu, and for the recipes SIZE=cpu and `--set trainer.num_steps=2`.
set -euo pipefail

root=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
parts=(tests bench updates queen prompts)

fail() {
    echo "error: $*" >&2
    exit 1
}

tests() {
    local files
    # No others, which may want more than there is; and no plugins, which may be older than the pytest among the wheels.
    mapfile -t files < <(grep -rl --include='test_*.py' 'pytest\.mark\.gpu' tests)
    PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$PYTHON" -m pytest -m gpu -rP --durations=10 -p no:cacheprovider \
        "${files[@]}" "$@"
}

bench() {
    bench_training "$@"
    "$PYTHON" tools/bench_transcribe.py --device "$DEVICE" --threads "$(nproc)" "$@"
}

updates() {
    bench_training --models base --variants compiled checkpointed --parts "$@"
}

bench_training() { # OPTION...: of three stages
    local stage
    for stage in "" "--batch-seconds 300" "--stage finetune"; do
        # shellcheck disable=SC2086  # two words
        "$PYTHON" tools/bench_pretrain.py --device "$DEVICE" --threads "$(nproc)" \
            ${PEAK_TFLOPS:+--peak-tflops "$PEAK_TFLOPS"} $stage "$@"
        echo
    done
}

queen() {
    [[ -n ${CORPUS:-} ]] || fail "CORPUS=: expected the package flight-of-the-amazon-queen_*.deb, found nothing"
    export SIZE=${SIZE:-gpu}
    local scratch labels recipe=(OUT="$runs" bash recipes/amazon_queen/run.sh "$@")
    once prepare TO=check "${recipe[@]}"
    once pretrain FROM=pretrain TO=pretrain "${recipe[@]}"
    for scratch in 0 1; do
        for labels in all 1h 10min; do
            once "${labels}_scratch_$scratch" FROM=finetune LABELS="$labels" FROM_SCRATCH="$scratch" "${recipe[@]}"
        done
    done
}

prompts() {
    unset CORPUS # is that of queen
    local labels first=$runs/train
    once train OUT="$first" LABELS=train bash recipes/prompts/run.sh "$@"
    for labels in train_10min train_5min; do
        once "$labels" OUT="$runs/$labels" LABELS="$labels" CORPUS="$first/data" INIT="$first/pretrain" \
            bash recipes/prompts/run.sh "$@"
    done
    for labels in train train_10min train_5min; do
        once "compare_$labels" OUT="$runs/compare" LABELS="$labels" JOBS="${JOBS:-3}" \
            bash recipes/prompts/compare.sh "$@"
    done
}

once() { # NAME SETTING... COMMAND...: unless it is finished
    local started=$SECONDS
    if [[ -e $WORK/finished/$part-$1 ]]; then
        echo "$part: $1 is finished"
        return
    fi
    env "${@:2}"
    touch "$WORK/finished/$part-$1"
    echo "$part: $1 finished, $((SECONDS - started)) s in this call"
}

prepare_python() { # installs the wheels; then every `python` is PYTHON, with the wheels and this repository
    local site=$WORK/site name
    if [[ -n ${WHEELS:-} && ! -d $site ]]; then
        rm -rf "$site.partial"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
            --target "$site.partial" "$WHEELS"/*.whl
        mv -- "$site.partial" "$site"
    fi
    mkdir -p "$WORK/bin"
    for name in python python3; do # what tools/bootstrap.sh looks for; a link would not find its environment
        printf '#!/bin/sh\nexec "%s" "$@"\n' "$PYTHON" >"$WORK/bin/$name"
        chmod +x "$WORK/bin/$name"
    done
    unset VIRTUAL_ENV CONDA_PREFIX
    export PATH="$WORK/bin:$PATH" PYTHONPATH="$site:$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
    "$PYTHON" - "$DEVICE" <<'PROGRAM'
import importlib
import platform
import sys

import torch

for name in ("torchaudio", "transformers", "soundfile", "soxr", "jiwer", "pydantic", "rich",
             "safetensors", "sklearn", "tensorboard", "threadpoolctl", "typer"):
    importlib.import_module(name)
device = sys.argv[1]
if device != "cpu" and not torch.cuda.is_available():
    sys.exit(f"error: DEVICE={device}: expected a GPU, found none")
name = "CPU" if device == "cpu" else torch.cuda.get_device_name(device)
print(f"{name}, Python {platform.python_version()}, torch {torch.__version__}")
PROGRAM
}

watch_gpu() { # its use in %, and its memory in MiB, every second
    ! command -v nvidia-smi >/dev/null ||
        exec nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader,nounits --loop=1
}

collect() { # from the runs of a recipe, what is worth keeping
    local file name suffix
    {
        printf 'Rows for RESULTS.md, of commit %s:\n\n' "$commit"
        find "$runs" -name 'results_rows*.md' | sort | xargs -r -d '\n' cat
        for suffix in "" _1h _10min; do
            if [[ -e $runs/scratch$suffix/scores.json && -e $runs/finetune$suffix/scores.json ]]; then
                printf '\nscratch%s -> finetune%s\n\n' "$suffix" "$suffix"
                "$PYTHON" -m speechssl compare --baseline "$runs/scratch$suffix/scores.json" \
                    "$runs/finetune$suffix/scores.json"
            fi
        done
        for file in "$runs"/compare/comparison*.txt; do
            [[ ! -e $file ]] || { echo && cat "$file"; }
        done
        show_transcripts
    } >"$OUT/$part.md"
    find "$runs" -name log.jsonl | sort | while read -r file; do
        name=${file#"$runs/"}
        sed "s|^{|{\"run\": \"${name%/log.jsonl}\", |" "$file"
    done >"$OUT/${part}_curves.jsonl"
}

show_transcripts() { # eight utterances of each evaluation, the same for all
    "$PYTHON" - "$runs" <<'PROGRAM'
import json
import sys
from pathlib import Path

runs = Path(sys.argv[1])
for file in sorted(runs.rglob("scores.json")):
    for evaluation in json.loads(file.read_text("utf-8"))["evaluations"]:
        utterances = evaluation["utterances"]
        print(f"\n{file.parent.relative_to(runs)} on {Path(evaluation['manifest']).name}: reference, transcript\n")
        for utterance in utterances[:: max(len(utterances) // 8, 1)][:8]:
            print(f"    {utterance['reference']}\n    {utterance['hypothesis']}\n")
PROGRAM
}

run_part() {
    local status=0 watcher
    echo "== $part $*: $(date -u +%FT%TZ), commit $commit"
    prepare_python
    watch_gpu >"$WORK/gpu.csv" &
    watcher=$!
    timeout --kill-after=20 "$LIMIT" bash "$root/tools/gpu_checks.sh" --inner "$part" "$@" || status=$?
    kill "$watcher" 2>/dev/null || true
    awk -F, '{ sum += $1; most = $2 + 0 > most ? $2 + 0 : most }
        END { if (NR) printf "GPU: %.0f %% in use, at most %d MiB\n", sum / NR, most }' "$WORK/gpu.csv"
    if [[ $part == queen || $part == prompts ]]; then
        collect
    fi
    if ((status == 124)); then
        case $part in
            queen | prompts) echo "$part: not finished after $LIMIT s; call again" ;;
            *) echo "$part: not finished after $LIMIT s; called again it starts anew: set a longer LIMIT" ;;
        esac
    fi
    ((status == 0)) || echo "$part: status $status"
    return "$status"
}

is_inner=0 # called by run_part, under its limit and in a process group of its own
if [[ ${1:-} == --inner ]]; then
    is_inner=1
    shift
fi
part=${1:-}
[[ " ${parts[*]} " == *" $part "* && -n $part ]] || fail "expected one of ${parts[*]}, found ${part:-nothing}"
shift
if ((is_inner)); then
    cd -- "$root"
    "$part" "$@"
    exit
fi

PYTHON=$(command -v "${PYTHON:-python3}") || fail "PYTHON=${PYTHON:-python3}: expected a Python, found none"
WORK=$(realpath -m -- "${WORK:-/tmp/speechssl_gpu}")
OUT=$(realpath -m -- "${OUT:-$WORK/out}")
WHEELS=${WHEELS:+$(realpath -- "$WHEELS")}
CORPUS=${CORPUS:+$(realpath -- "$CORPUS")}
DEVICE=${DEVICE:-cuda}
LIMIT=${LIMIT:-480}
runs=$WORK/$part
export PYTHON WORK CORPUS DEVICE part runs
mkdir -p "$runs" "$WORK/finished" "$OUT"
cd -- "$root"
commit=${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
set +e # and not `|| status=...`, with which errors inside would not end it
(set -e && run_part "$@") 2>&1 | tee -a "$WORK/$part.log"
status=${PIPESTATUS[0]}
cp -- "$WORK/$part.log" "$OUT/"
exit "$status"
