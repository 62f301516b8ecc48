#!/usr/bin/env bash
# Print the path of a Python that has speechssl, installing it into .venv on first use:
#
#     PYTHON=$(bash tools/bootstrap.sh [EXTRA,...])
#
# An active environment that has the package and what the extras need is used as it is. Otherwise the package is
# installed, editable, into .venv in the repository root; a second run installs nothing unless pyproject.toml changed
# or another extra is asked for. Only the path goes to stdout.
set -euo pipefail

extras=${1:-}
root=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
venv=$root/.venv
stamp=$venv/.speechssl-installed # line 1: of what; line 2: the extras
identity="$root $(cksum <pyproject.toml)"

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "error: $*"
    exit 1
}

# Prints the interpreter's path, then the requirements it lacks; fails if it has no speechssl or is that of .venv.
inspect='
import os, re, sys, tomllib
from importlib import metadata, util

project_file, extras, venv = sys.argv[1:]
if util.find_spec("speechssl") is None or os.path.realpath(sys.prefix) == os.path.realpath(venv):
    sys.exit(1)
with open(project_file, "rb") as file:
    project = tomllib.load(file)["project"]
requirements = [*project["dependencies"]]
for extra in filter(None, extras.split(",")):
    requirements += project["optional-dependencies"][extra]
print(sys.executable)
for requirement in requirements:
    if ";" in requirement:  # not for every Python: tests do without
        continue
    name = re.match(r"[\w.-]+", requirement).group()
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        print(name, end=" ")
'

active_python() {
    local candidate found python lacking
    for candidate in ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python"} \
        python python3; do
        # -P: the package must be installed, not just lie in the current folder.
        found=$("$candidate" -P -c "$inspect" "$root/pyproject.toml" "$extras" "$venv" 2>/dev/null) || continue
        { read -r python && read -r lacking || true; } <<<"$found"
        if [[ -z $lacking ]]; then
            printf '%s\n' "$python"
            return 0
        fi
        say "note: $python has speechssl but lacks ${lacking% }; using $venv instead"
        return 1
    done
    return 1
}

base_python() {
    local candidate
    for candidate in python3 python python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    fail "speechssl needs Python 3.11 or newer, found $(python3 --version 2>/dev/null || echo none)"
}

recorded_extras() {
    local recorded=
    [[ -f $stamp ]] && { read -r _ && read -r recorded || true; } <"$stamp"
    printf '%s\n' "$recorded"
}

is_installed() {
    local recorded extra
    [[ -f $stamp && -x $venv/bin/python ]] || return 1
    read -r recorded <"$stamp"
    [[ $recorded == "$identity" ]] || return 1
    recorded=$(recorded_extras)
    for extra in ${extras//,/ }; do
        [[ ",$recorded," == *",$extra,"* ]] || return 1
    done
}

make_venv() {
    if [[ -L $venv/bin/python ]] && ! "$venv/bin/python" -c '' 2>/dev/null; then
        fail "$venv/bin/python does not run any more: remove $venv and try again"
    fi
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        say "making $venv"
        if "$base" -c 'import ensurepip' 2>/dev/null; then
            "$base" -m venv "$venv" >&2
        else # Debian keeps ensurepip in a package of its own; the outer pip can stand in for it.
            "$base" -m venv --without-pip "$venv" >&2
            "$base" -m pip --python "$venv/bin/python" install pip >&2
        fi
    fi
}

install_package() {
    local extra all
    all=$(recorded_extras)
    for extra in ${extras//,/ }; do
        [[ ",$all," == *",$extra,"* ]] || all=${all:+$all,}$extra
    done
    rm -f "$stamp"
    say "installing speechssl${all:+[$all]} into $venv (the first time: a few gigabytes, some minutes)"
    "$venv/bin/python" -m pip install --disable-pip-version-check --editable ".${all:+[$all]}" >&2 ||
        fail "could not install speechssl into $venv; pip says why above"
    # Written last and under another name, so that an interrupted installation is repeated.
    printf '%s\n%s\n' "$identity" "$all" >"$stamp.tmp"
    mv -f "$stamp.tmp" "$stamp"
}

if active_python; then
    exit 0
fi
if ! is_installed; then
    base=$(base_python)
    mkdir -p "$venv"
    # The lock goes with the descriptor, so a killed run cannot leave it behind.
    exec 9>"$venv/.speechssl-lock"
    lock() { "$base" -c "import fcntl; fcntl.flock(9, $1)" 2>/dev/null; }
    if ! lock 'fcntl.LOCK_EX | fcntl.LOCK_NB'; then
        say "waiting for another installation into $venv"
        lock fcntl.LOCK_EX
    fi
    if ! is_installed; then
        make_venv
        install_package
    fi
fi
printf '%s\n' "$venv/bin/python"
