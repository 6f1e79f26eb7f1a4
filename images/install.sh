#!/bin/sh
# Runs inside a build: installs what REQUIREMENTS pins, by hash, into /opt/venv, and compiles it.
# Usage: install.sh REQUIREMENTS [PATTERN]; sources whose path matches the regular expression stay uncompiled.
set -eu

if [ -f /run/secrets/uv.toml ]; then
  export UV_CONFIG_FILE=/run/secrets/uv.toml
fi
[ -d /opt/venv ] || python3 -m venv --without-pip /opt/venv
TMPDIR=$(mktemp -d)
export TMPDIR
touch "$TMPDIR/started"

# With no cache uv unpacks into a temporary folder and links from there: each file is written once.
/opt/tools/bin/uv pip install --quiet --no-cache --python /opt/venv/bin/python --no-deps --require-hashes \
  --requirements "$1"

find /opt/venv -name '*.a' -delete # static libraries: nothing is linked at run time

# A read-only root keeps no bytecode, so it is made here, and not checked against times that a registry may
# lose. Only what is new: a compiled layer below is not written again. Some packages ship sources that no
# Python compiles (templates, tests); those stay as they are.
find /opt/venv/lib/python3*/site-packages -mindepth 1 -maxdepth 1 -cnewer "$TMPDIR/started" |
  /opt/venv/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash -x "${2:-^$}" -i - || true
rm -rf "$TMPDIR" /opt/venv/.lock
