#!/usr/bin/env bash
# Builds helm, with which the tests install the charts. What is there is kept; the last line printed is the program.
#
# A helm 3 that HELM names is taken instead. JOBS=n bounds the compiler's processes (default 2).
set -euo pipefail
cd "$(dirname "$0")"

fail() { echo "helm: $*" >&2; exit 1; }

if [ -n "${HELM:-}" ]; then
    [ -x "$HELM" ] || fail "HELM=$HELM is no program: unset it to build one"
    echo "$HELM"
    exit
fi
version=$(sed -nE 's/^\thelm\.sh\/helm\/v3 (v[0-9.]+)( .*)?$/\1/p' go.mod)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/martlet/helm/$(sha256sum <go.sum | cut -c1-16)"
mkdir -p "$folder"
# Two runs side by side build once.
exec 9>"$folder/.lock"
flock 9
if [ ! -x "$folder/helm" ]; then
    command -v go >/dev/null || fail "Go >= 1.26 is needed to build helm and there is none: https://go.dev/dl/"
    echo "helm: building $version (once; it takes minutes)" >&2
    CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local go build -p "${JOBS:-2}" -trimpath -o "$folder/helm.new" \
        -ldflags "-s -w -X helm.sh/helm/v3/internal/version.version=$version -X k8s.io/client-go/pkg/version.gitVersion=v1.36.2" \
        helm.sh/helm/v3/cmd/helm || fail "it does not build"
    mv "$folder/helm.new" "$folder/helm"
fi
echo "$folder/helm"
