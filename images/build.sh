#!/usr/bin/env bash
# Builds the images with docker or buildah and, where $IMAGE_DIR is given, writes each to a folder there.
# Usage: images/build.sh [controller] [trainer]; images/README.md lists the variables it reads.
set -euo pipefail
cd "$(dirname "$0")/.."
. images/engine.sh

main() {
  case ${VARIANT:-} in
    '') ;;
    vllm) [ -z "${EXTRAS:-}" ] || fail "VARIANT: vllm has no extras, got EXTRAS=$EXTRAS; leave one of them out" ;;
    *) fail "VARIANT: must be vllm, got $VARIANT; leave it out for the usual trainer" ;;
  esac
  find_engine
  [ $# -gt 0 ] || set -- controller trainer
  for target; do
    name=${PREFIX:-localhost}/orch-$target:${TAG:-dev}
    build "$target" "$name"
    [ -z "${IMAGE_DIR:-}" ] || save_image "$name" "$IMAGE_DIR/$target"
  done
}

build() {
  local arguments=(--file images/Dockerfile --target "$1")
  [ -z "${BASE_IMAGE:-}" ] || arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
  [ -z "${EXTRAS:-}" ] || arguments+=(--build-arg "EXTRAS=$EXTRAS")
  [ -z "${VARIANT:-}" ] || arguments+=(--build-arg "VARIANT=$VARIANT")
  # Mounted while something is downloaded, never kept: a proxy's certificates and where packages come from.
  local bundle=${CA_BUNDLE:-${SSL_CERT_FILE:-}}
  [ -z "$bundle" ] ||
    arguments+=(--secret "id=ca.pem,src=$bundle" --build-arg SSL_CERT_FILE=/run/secrets/ca.pem)
  [ -z "${PIP_CONFIG_FILE:-}" ] || arguments+=(--secret "id=pip.conf,src=$PIP_CONFIG_FILE")
  [ -z "${UV_CONFIG_FILE:-}" ] || arguments+=(--secret "id=uv.toml,src=$UV_CONFIG_FILE")
  arguments+=(--build-arg "VERSION=$(version)" --build-arg "REVISION=$(revision)")
  arguments+=(--build-arg "SOURCE=${SOURCE:-}")
  build_image "$2" "${arguments[@]}" .
}

version() {
  sed -n '0,/^version = "\(.*\)"$/s//\1/p' pyproject.toml
}

revision() {
  local commit
  commit=$(git rev-parse HEAD 2>/dev/null) || return 0
  git diff --quiet HEAD -- . 2>/dev/null || commit+=-dirty
  printf '%s' "$commit"
}

main "$@"
