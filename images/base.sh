#!/usr/bin/env bash
# Makes a base image (Debian bookworm and its Python) from Debian packages, for machines without a registry.
# Usage, as root: images/base.sh [NAME]
set -euo pipefail
cd "$(dirname "$0")"
. ./engine.sh

NAME=${1:-localhost/python:bookworm}
find_engine
command -v debootstrap >/dev/null || fail "images/base.sh: debootstrap not found; install it"
[ "$(id -u)" = 0 ] || fail "images/base.sh: debootstrap must run as root, got uid $(id -u); use sudo"

work=$(mktemp -d "${TMPDIR:-/var/tmp}/orch-base.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT

debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
  bookworm "$work/root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$work/log" || { cat "$work/log" >&2; exit 1; }

# Dropped before the layer is made: what Debian's own slim images leave out, and what names this machine.
cd "$work/root"
rm -rf var/lib/apt/lists/* var/cache/* var/log/* tmp/* dev/* usr/share/{doc,info,locale,lintian,man}/*
rm -f etc/resolv.conf etc/hostname etc/machine-id
cd "$work"
tar --create --numeric-owner --one-file-system --directory root --file root.tar .

cat >Dockerfile <<'DOCKERFILE'
FROM scratch
ADD root.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
CMD ["python3"]
DOCKERFILE
printf '*\n!root.tar\n' >.dockerignore
build_image "$NAME" .
