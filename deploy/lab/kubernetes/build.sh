#!/usr/bin/env bash
# Builds the real Kubernetes parts that the cluster suite runs: kube-apiserver, kube-controller-manager, etcd, kubectl,
# and lays the CRDs of the Gateway API beside them. What is there is kept; the last line printed is the folder.
#
# What a folder named by KUBEBUILDER_ASSETS holds is not built (it has no kube-controller-manager as a rule).
# JOBS=n bounds the compiler's processes (default 2).
set -euo pipefail
cd "$(dirname "$0")"

KUBERNETES=v1.36.2
GATEWAY_API=v1.6.3
GATEWAY_API_SUM=h1:lKpJa5bGlraC/QeACvCpsHLdmO6y0iKfzVl6gzaFEYc=
PROGRAMS="etcd kube-apiserver kube-controller-manager kubectl"

say() { echo "kubernetes: $*" >&2; }
fail() { say "$*"; exit 1; }

package() {
    case $1 in
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    *) echo "k8s.io/kubernetes/cmd/$1" ;;
    esac
}

need_go() {
    command -v go >/dev/null || fail "Go >= 1.26 is needed ($1) and there is none: https://go.dev/dl/"
    local version minor
    version=$(GOTOOLCHAIN=local go env GOVERSION)
    minor=$(sed -nE 's/^go1\.([0-9]+).*/\1/p' <<<"$version")
    [ -n "$minor" ] && [ "$minor" -ge 26 ] || fail "Go >= 1.26 is needed ($1), this is ${version:-unknown}: https://go.dev/dl/"
}

home="${XDG_CACHE_HOME:-$HOME/.cache}/martlet/kubernetes"
folder="$home/$(sha256sum <go.sum | cut -c1-16)"
mkdir -p "$folder"
# Two runs side by side build once.
exec 9>"$folder/.lock"
flock 9

if [ -n "${KUBEBUILDER_ASSETS:-}" ] && [ ! -d "$KUBEBUILDER_ASSETS" ]; then
    fail "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS is no folder: unset it to build the programs"
fi

crds="$folder/gateway-api"
if [ ! -d "$crds" ]; then
    need_go "for the CRDs of the Gateway API"
    # The answer is JSON, a field a line.
    answer=$(cd "$folder" && GOFLAGS=-mod=mod GOTOOLCHAIN=local go mod download -json "sigs.k8s.io/gateway-api@$GATEWAY_API") ||
        fail "cannot download sigs.k8s.io/gateway-api@$GATEWAY_API: $answer"
    sum=$(sed -nE 's/^\t"Sum": "(.*)",$/\1/p' <<<"$answer")
    from=$(sed -nE 's/^\t"Dir": "(.*)",$/\1/p' <<<"$answer")
    [ "$sum" = "$GATEWAY_API_SUM" ] || fail "sigs.k8s.io/gateway-api@$GATEWAY_API has sum $sum, expected $GATEWAY_API_SUM"
    rm -rf "$crds.new" && mkdir "$crds.new"
    cp "$from"/config/crd/standard/*gateways.yaml "$from"/config/crd/standard/*gatewayclasses.yaml "$crds.new/"
    chmod -R u+w "$crds.new"
    mv "$crds.new" "$crds"
fi

for program in $PROGRAMS; do
    [ -n "${KUBEBUILDER_ASSETS:-}" ] && [ -x "$KUBEBUILDER_ASSETS/$program" ] && continue
    [ -x "$folder/$program" ] && continue
    need_go "to build $program"
    say "building $program (once; the API server takes minutes)"
    CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local go build -p "${JOBS:-2}" -trimpath -o "$folder/$program.new" \
        -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$KUBERNETES -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36" \
        "$(package "$program")" || fail "$program does not build"
    mv "$folder/$program.new" "$folder/$program"
done
echo "$folder"
