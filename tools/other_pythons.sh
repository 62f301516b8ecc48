#!/usr/bin/env bash
# The tests that another Python is likeliest to break, under each of the Pythons named that this machine has:
#
#     bash tools/other_pythons.sh [VERSION...]     # 3.13 and 3.14
#
# They are looked for on the PATH and among pyenv's. Each has an environment of its own, .venv-VERSION, made on first use.
set -euo pipefail
CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

(($#)) || set -- 3.13 3.14
tests=(tests/test_layers.py tests/test_config.py tests/test_files.py tests/data/test_batches.py
    tests/data/test_recording.py tests/decode tests/train/test_pretrain.py tests/train/test_finetune.py
    tests/transcribe/test_transcriber.py tests/commands/test_transcribe.py)

find_python() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        # pyenv has a python3.13 on the PATH that only says where the real one is.
        if "$candidate" -c 'import sys; sys.exit(sys.argv[1] != "%d.%d" % sys.version_info[:2])' "$1" 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

for version; do
    if ! python=$(find_python "$version"); then
        printf '== Python %s: this machine has none, so nothing is tested under it\n' "$version"
        continue
    fi
    venv=.venv-$version
    identity=$(cksum <pyproject.toml)
    if [[ ! -f $venv/.speechssl-installed || $(<"$venv/.speechssl-installed") != "$identity" ]]; then
        printf '== Python %s: making %s\n' "$version" "$venv"
        "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[av,dev]"
        printf '%s\n' "$identity" >"$venv/.speechssl-installed"
    fi
    printf '== Python %s: %s\n' "$version" "$python"
    "$venv/bin/python" -m pytest -m "not slow and not gpu" -n auto --maxprocesses 4 --dist loadfile "${tests[@]}"
done
