#!/bin/sh
# sh tools/chromium.sh: print the path of a Chromium: an installed one, or else one from Debian's packages.
# Those, a font with Chinese letters and missing libraries are unpacked below .venv by the first run.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cache=$root/.venv/chromium

fail() {
    echo "autoglm: $1" >&2
    exit 1
}

# apt with lists and archives of its own: root is not needed, and the system's are not touched.
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
    apt install --download-only --no-install-recommends --yes chromium-headless-shell fonts-noto-cjk
    for package in "$cache"/archives/*.deb; do
        dpkg-deb -x "$package" "$cache/root"
    done
    rm -r "$cache/lists" "$cache/archives"
    echo '<fontconfig><dir prefix="relative">usr/share/fonts</dir></fontconfig>' >"$cache/root/fonts.conf"
}

# What is unpacked is not where the system looks for it. One font alone, so that pages look the same everywhere.
start_script() {
    cat <<'END'
#!/bin/sh
root=$(dirname "$0")/root
LD_LIBRARY_PATH=$(find "$root" -name '*.so*' -path '*-linux-gnu*' -printf '%h\n' | sort -u | paste -sd :)
export LD_LIBRARY_PATH FONTCONFIG_FILE="$root/fonts.conf"
exec "$root/usr/lib/chromium/chromium-headless-shell" "$@"
END
}

for name in chromium chromium-headless-shell google-chrome; do
    if command -v "$name"; then
        exit 0
    fi
done
if [ ! -x "$cache/start" ]; then
    fetch
    start_script >"$cache/start.new"
    chmod +x "$cache/start.new"
    mv "$cache/start.new" "$cache/start"
fi
echo "$cache/start"
