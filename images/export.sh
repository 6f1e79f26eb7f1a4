#!/bin/sh
# Runs inside a build: prints what uv.lock pins, with hashes, for the orchestrator; the ARGUMENTs add extras.
# Usage: export.sh [ARGUMENT...]
set -eu

# buildah does not see that a mounted script changed; what is copied from here it does.
sha256sum /opt/tools/install.sh | sed 's/^/# /'
exec /opt/tools/bin/uv export --quiet --frozen --no-dev --no-emit-project --no-header --no-annotate "$@"
