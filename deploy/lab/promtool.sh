#!/usr/bin/env bash
# Brings promtool, which checks the alert rules and the dashboard's queries: out of Debian's package, which is unpacked and not
# installed, so that no Prometheus is started. The last line printed is the program. One that PROMTOOL names is taken instead.
set -euo pipefail

if [ -n "${PROMTOOL:-}" ]; then
    echo "$PROMTOOL"
    exit
fi
if command -v promtool >/dev/null; then
    command -v promtool
    exit
fi
folder="${XDG_CACHE_HOME:-$HOME/.cache}/martlet/promtool"
mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9
if [ ! -x "$folder/promtool" ]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    # As the user that downloads for apt may not write here, root does.
    (cd "$scratch" && apt-get -qq -o APT::Sandbox::User=root download prometheus >&2) || {
        echo "promtool: Debian's package prometheus cannot be downloaded: name a promtool by PROMTOOL" >&2
        exit 1
    }
    dpkg-deb -x "$scratch"/prometheus_*.deb "$scratch/tree"
    mv "$scratch/tree/usr/bin/promtool" "$folder/promtool"
fi
echo "$folder/promtool"
