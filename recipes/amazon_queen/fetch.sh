#!/usr/bin/env bash
# Get the game: `bash fetch.sh FOLDER [PACKAGE.deb]` unpacks the Debian package, downloading it if none is given.
# Nothing is installed, and no rights of an administrator are needed.
set -euo pipefail

package=flight-of-the-amazon-queen
folder=$1
deb=${2:-}

fail() {
    echo "error: $*" >&2
    exit 1
}

[[ ! -d $folder/unpacked ]] || exit 0
mkdir -p "$folder"
if [[ -z $deb ]]; then
    command -v apt-get >/dev/null ||
        fail "CORPUS=: expected queen.1c, a folder with it or the package $package, found nothing, and no apt-get here"
    (cd -- "$folder" && apt-get download "$package" >&2) ||
        fail "apt-get could not download $package: try 'apt-get update' first, or set CORPUS to queen.1c"
    for deb in "$folder/$package"_*.deb; do :; done
fi
command -v dpkg-deb >/dev/null || fail "$deb: expected dpkg-deb to unpack it with, found none"
rm -rf "$folder/unpacked.partial"
dpkg-deb -x "$deb" "$folder/unpacked.partial" || fail "$deb: expected a Debian package"
mv -- "$folder/unpacked.partial" "$folder/unpacked"
