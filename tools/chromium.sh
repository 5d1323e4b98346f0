#!/bin/sh
# sh tools/chromium.sh: print the path of a headless Chromium. An installed one is taken; where there is none,
# Debian's packages, with the libraries that are missing, are unpacked below .venv, without root, once.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cache=$root/.venv/chromium

fail() {
    echo "autoglm: $1" >&2
    exit 1
}

# apt with lists and archives of its own: they are fresh, and the system's are neither needed nor touched.
apt() {
    apt-get -qq -o Debug::NoLocking=1 -o APT::Sandbox::User= -o Dir::State::Lists="$cache/lists" \
        -o Dir::Cache::Archives="$cache/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@" >&2
}

fetch() {
    command -v apt-get >/dev/null || fail "no chromium or google-chrome on PATH: install one, then run this again"
    echo "autoglm: fetching Chromium from Debian; this is done once and takes a minute" >&2
    rm -rf "$cache"
    mkdir -p "$cache/lists/partial" "$cache/archives/partial"
    apt update
    apt install --download-only --no-install-recommends --yes chromium-headless-shell
    for package in "$cache"/archives/*.deb; do
        dpkg-deb -x "$package" "$cache/root"
    done
    rm -r "$cache/lists" "$cache/archives"
}

for name in chromium chromium-headless-shell google-chrome; do
    if command -v "$name"; then
        exit 0
    fi
done
