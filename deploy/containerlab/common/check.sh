# What every check is made of; sourced by it. A step is a line: what holds, and after how long.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "$0")"
TOPOLOGY=$(basename "$PWD")
export TOPOLOGY PATH="$PWD/../common:$PATH"
# Generous: a machine may be busy with other things.
LIMIT_S=${LIMIT_S:-30}
CONNECTIONS=${CONNECTIONS:-300}
seen=$(mktemp)
trap 'rm -f "$seen"' EXIT

milliseconds() { echo $(($(date +%s%N) / 1000000)); }

say() { printf '  %-5s %s\n' "$1" "$2"; }

# holds WHAT COMMAND ..: waits until the command succeeds; what it said last is shown if it never does.
holds() {
    local what=$1 start
    shift
    start=$(milliseconds)
    until "$@" >"$seen" 2>&1; do
        if (($(milliseconds) - start > LIMIT_S * 1000)); then
            say FAIL "$what: not within $LIMIT_S s; last seen:"
            sed 's/^/        /' "$seen"
            exit 1
        fi
        sleep 0.1
    done
    took=$(($(milliseconds) - start))
    say ok "$what (${took} ms)"
}

# passes COUNT NODE SOURCE VIP PORT: that many connections, one after the other; none may fail, and every application is hit.
passes() {
    local count=$1 node=$2
    shift 2
    if ! on "$node" /connect "$count" "$@" >"$seen" 2>&1; then
        say FAIL "connections from $node to $2"
        sed 's/^/        /' "$seen"
        exit 1
    fi
    for application in $APPLICATIONS; do
        grep -q "$application [1-9]" "$seen" || { say FAIL "$application was never hit: $(cat "$seen")"; exit 1; }
    done
    say ok "$(cat "$seen")"
}

# lists PATTERN COMMAND ..: what a command prints has a line that matches.
lists() {
    local pattern=$1
    shift
    # Read to its end: a closed pipe would fail who writes.
    "$@" | tee /dev/stderr | grep -E -- "$pattern" >/dev/null
}
lacks() { ! lists "$@"; }

# routes_to COUNT NODE PREFIX [TABLE]: how many ways a node's kernel has to a prefix.
routes_to() {
    local wanted=$1 node=$2 prefix=$3 table=${4:-main} family=-4 ways
    case $prefix in *:*) family=-6 ;; esac
    # A table that has never held a route is an error to ip.
    ways=$({ on "$node" ip "$family" route show table "$table" exact "$prefix" 2>&1 || true; } | tee /dev/stderr | grep -c 'via ' || true)
    [ "$ways" = "$wanted" ]
}

# FRR in a node.
bgp_up() { lists '"bgpState":"Established"' on "$1" vtysh -c "show bgp neighbors $2 json"; }
bfd_up() { lists " $2 +up" on "$1" vtysh -c 'show bfd peers brief'; }

# BIRD, GoBGP, OpenBGPD in a node.
bird_up() { lists Established on "$1" birdc show protocols "$2"; }
bird_bfd_up() { lists "^$2 .* Up " on "$1" birdc show bfd sessions; }
gobgp_up() { lists "^ *$2 .* Establ" on "$1" gobgp neighbor; }
openbgpd_up() { lists 'BGP state = Established' on "$1" bgpctl show neighbor "$2"; }
