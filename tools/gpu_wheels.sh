#!/usr/bin/env bash
# On a machine with a network: download what `tools/gpu_checks.sh` wants beside PyTorch on a machine without one.
#
#     bash tools/gpu_wheels.sh FOLDER [NAME...]
#
# The wheels are for Python 3.12 on Linux with an x86-64 processor, whatever runs here; PYTHON_VERSION says another one.
# Not among them, since they are large or come with what is: torch, torchaudio, transformers, safetensors, numpy, scipy,
# scikit-learn, numba, tensorboard, typer, rich and what these need. NAMEs are further ones, such as scikit-learn. At
# the end it says what lies in the folder, and how much.
set -euo pipefail

if (($# == 0)); then
    echo "error: expected a folder for the wheels, found nothing" >&2
    exit 1
fi
folder=$1
shift
python=${PYTHON:-python3}
# Without their requirements, which are named where they are not in the list above.
names=(
    soundfile cffi pycparser
    'librosa<1' audioread decorator pooch platformdirs lazy-loader msgpack soxr
    jiwer rapidfuzz
    threadpoolctl
    pytest pluggy iniconfig hypothesis sortedcontainers
)
# With their requirements: one version of pydantic goes with exactly one of its core.
whole=(pydantic)

options=(--quiet --disable-pip-version-check --only-binary=:all: --dest "$folder" --implementation cp
    --python-version "${PYTHON_VERSION:-3.12}")
for platform in manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    options+=(--platform "${platform}_x86_64")
done

mkdir -p "$folder"
"$python" -m pip download "${options[@]}" "${whole[@]}"
"$python" -m pip download "${options[@]}" --no-deps "${names[@]}" "$@"
du -ck --apparent-size -- "$folder"/*.whl | sed 's/\t/ KiB  /'
