#!/usr/bin/env bash
# Every check of the project: format, lint, types, tests. The arguments go to pytest, after its own selection:
# `bash tools/test.sh -k manifest`, `bash tools/test.sh -m slow -n 2`. Without arguments there is a worker a core, up to
# four, and some of the tests run under other Pythons too; a few tests are done before workers have started.
set -euo pipefail
CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

check() {
    local name=$1 status=0
    shift
    printf '== %s\n' "$name"
    "$@" || status=$?
    if ((status != 0)); then
        printf '== failed: %s (status %d)\n' "$name" "$status" >&2
        exit "$status"
    fi
}

# The other extras too, so that no test is skipped for want of PyAV, Silero VAD or a toolkit to compare with.
python=$(bash tools/bootstrap.sh av,vad,onnx,hub,remote,pieces,dev,corpus,peers)
check "format" "$python" -m ruff format --check .
check "lint" "$python" -m ruff check .
check "types" "$python" -m mypy
is_whole=$((!$#))
((is_whole)) && set -- -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the workers share the cores
check "tests" "$python" -m pytest -m "not slow and not gpu" "$@"
((!is_whole)) || check "other Pythons" bash tools/other_pythons.sh
