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
# Another recipe is another program.
folder="${XDG_CACHE_HOME:-$HOME/.cache}/martlet/helm/$(cat go.sum build.sh | sha256sum | cut -c1-16)"
mkdir -p "$folder"
# Two runs side by side build once.
exec 9>"$folder/.lock"
flock 9
if [ ! -x "$folder/helm" ]; then
    command -v go >/dev/null || fail "Go >= 1.26 is needed to build helm and there is none: https://go.dev/dl/"
    # What it renders for without a cluster: unstamped it believes in Kubernetes 1.20, which the charts refuse.
    kubernetes=""
    for package in chartutil lint/rules; do
        kubernetes+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$package.k8sVersionMinor=36"
    done
    echo "helm: building $version (once; it takes minutes)" >&2
    CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local go build -p "${JOBS:-2}" -trimpath -o "$folder/helm.new" \
        -ldflags "-s -w -X helm.sh/helm/v3/internal/version.version=$version $kubernetes" \
        helm.sh/helm/v3/cmd/helm || fail "it does not build"
    mv "$folder/helm.new" "$folder/helm"
fi
echo "$folder/helm"
