# Sourced by base.sh and build.sh: one door to docker or buildah, whichever works here. $ENGINE forces one.

find_engine() {
  if [ -n "${ENGINE:-}" ]; then
    case "$ENGINE" in docker | buildah) return ;; esac
    fail "ENGINE: must be docker or buildah, got $ENGINE; leave it out to take whichever works"
  elif docker info >/dev/null 2>&1; then # a docker without a daemon builds nothing
    ENGINE=docker
  elif command -v buildah >/dev/null; then
    ENGINE=buildah
  else
    fail "images: no running docker and no buildah found; start docker or install buildah"
  fi
}

fail() {
  printf '%s\n' "$1" >&2
  exit 2
}

# Chroot isolation needs no OCI runtime. $BUILDAH_ROOT holds all that buildah keeps, to be removed whole.
run_buildah() {
  BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot} STORAGE_DRIVER=${STORAGE_DRIVER:-overlay} in_store buildah \
    ${BUILDAH_ROOT:+--root "$BUILDAH_ROOT/storage" --runroot "$BUILDAH_ROOT/run"} "$@"
}

# in_store COMMAND...: buildah and skopeo leave the folder of their layers mounted upon itself.
in_store() {
  local status=0
  "$@" || status=$?
  [ -z "${BUILDAH_ROOT:-}" ] || umount "$BUILDAH_ROOT/storage/overlay" 2>/dev/null || true
  return "$status"
}

# build_image NAME [ARGUMENT...]: the arguments are those that `docker build` and `buildah build` share.
build_image() {
  local name=$1
  shift
  case "$ENGINE" in
    docker) DOCKER_BUILDKIT=1 docker build --tag "$name" "$@" ;;
    buildah) run_buildah build --layers --force-rm --tag "$name" "$@" ;;
  esac
}

# save_image NAME FOLDER: the image as an OCI layout, by which load.sh brings it into a containerd.
save_image() {
  case "$ENGINE" in
    docker)
      rm -rf "$2"
      mkdir -p "$2"
      docker save "$1" | tar --extract --directory "$2"
      [ -e "$2/index.json" ] || fail "IMAGE_DIR: this docker saves no OCI layout; take version 25 or newer"
      ;;
    buildah)
      command -v skopeo >/dev/null || fail "IMAGE_DIR: buildah needs skopeo to write there; install skopeo"
      mkdir -p "$2"
      # Layers that lie there already are not written again; `buildah push` would compress them all anew.
      # An index that is there would go on naming the image of before.
      rm -f "$2/index.json"
      in_store skopeo copy --quiet --dest-oci-accept-uncompressed-layers \
        "containers-storage:$(store)$1" "oci:$2:$1"
      drop_unused_blobs "$2"
      ;;
  esac
}

# What skopeo calls the store that run_buildah uses.
store() {
  [ -n "${BUILDAH_ROOT:-}" ] || return 0
  printf '[%s@%s+%s]' "${STORAGE_DRIVER:-overlay}" "$BUILDAH_ROOT/storage" "$BUILDAH_ROOT/run"
}

# drop_unused_blobs FOLDER: the layers of earlier builds, told by what the index and its manifests name.
drop_unused_blobs() {
  local manifests used blob
  manifests=$(digests "$1/index.json" | sed "s,^,$1/blobs/sha256/,")
  # shellcheck disable=SC2086  # one path each
  used=$(digests "$1/index.json" $manifests)
  for blob in "$1"/blobs/sha256/*; do
    case "$used" in
      *"${blob##*/}"*) ;;
      *) rm "$blob" ;;
    esac
  done
}

digests() {
  grep --no-filename --only-matching 'sha256:[0-9a-f]\{64\}' "$@" | cut -d: -f2
}
