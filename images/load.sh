#!/usr/bin/env bash
# Brings an image that build.sh wrote into a containerd without a registry, sending only the blobs it lacks.
# Usage: images/load.sh FOLDER CTR [ARGUMENT...], e.g. images/load.sh DIR/trainer ctr --namespace k8s.io
# Prints the image's name by digest, which then resolves there like the name by tag.
set -euo pipefail

folder=$1
shift
index=$folder/index.json
annotation() { grep --only-matching --max-count=1 "\"$1\":\"[^\"]*\"" "$index" | head -n 1 | cut -d'"' -f4; }
# docker's reference name is the tag alone.
name=$(annotation io.containerd.image.name || annotation org.opencontainers.image.ref.name)
digest=$(grep --only-matching --max-count=1 'sha256:[0-9a-f]\{64\}' "$index" | head -n 1)

tar --create --directory "$folder" --exclude-from=<("$@" content ls --quiet | sed 's,:,/,;s,^,blobs/,') . |
  "$@" images import - >/dev/null
"$@" images tag --force "$name" "${name%:*}@$digest"
