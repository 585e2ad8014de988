#!/bin/sh
# Makes a Debian machine ready for `make demo` and `make test`: the packages, without starting their daemons, and a look at
# what it never installs (Rust, the right to make network namespaces). Quiet and quick when there is nothing to do.
# With --unit: only what unit tests need, and root only if something is missing.
set -eu

RUST=1.95
BUILD="build-essential ca-certificates pkg-config python3"
LABS="curl iproute2 iputils-ping nftables procps tcpdump tshark
frr bird2 gobgpd openbgpd exabgp"

fail() {
    echo "setup: $*" >&2
    exit 1
}

check_namespaces() {
    [ "$(id -u)" = 0 ] || fail "labs make network namespaces: run as root"
    unshare --net true 2>/dev/null ||
        fail "this machine does not let root make network namespaces (in a container: add CAP_SYS_ADMIN and CAP_NET_ADMIN)"
}

check_rust() {
    command -v cargo >/dev/null ||
        fail "no Rust: get $RUST or newer from https://rustup.rs (curl --proto '=https' -sSf https://sh.rustup.rs | sh)"
    have=$(rustc --version | cut -d' ' -f2)
    oldest=$(printf '%s\n%s\n' "$RUST" "$have" | sort -V | head -n1)
    [ "$oldest" = "$RUST" ] || fail "Rust $have is too old: \`rustup update stable\` gets $RUST or newer"
}

missing_packages() {
    for package in $PACKAGES; do
        # Virtual or renamed packages count as missing: apt says what stands in for them.
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || printf '%s ' "$package"
    done
}

install_packages() {
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] || fail "as root: apt-get install $missing"
    command -v apt-get >/dev/null || fail "this is no Debian: install by hand what stands for $missing"
    echo "setup: installing $missing"
    log=$(mktemp)
    policy=/usr/sbin/policy-rc.d
    # The routing daemons must not start by themselves: the labs start their own, each in its namespace.
    if [ -e $policy ] && [ ! -e $policy.martlet ]; then mv $policy $policy.martlet; fi
    trap 'rm -f "$log" '$policy'; [ ! -e '$policy.martlet' ] || mv '$policy.martlet' '$policy EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    export DEBIAN_FRONTEND=noninteractive
    # Another one may be installing: wait for it.
    # shellcheck disable=SC2086 # a list of words
    install_now() { apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 $missing; }
    if ! { install_now || { apt-get update -qq && install_now; }; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail "cannot install: $missing"
    fi
    # OpenBGPD's user is made by a unit of systemd, which may not run here.
    if ! getent passwd _openbgpd >/dev/null && command -v systemd-sysusers >/dev/null; then
        systemd-sysusers /usr/lib/sysusers.d/openbgpd.conf
    fi
}

case "${1:-}" in
--unit)
    PACKAGES=$BUILD
    check_rust
    ;;
'')
    PACKAGES="$BUILD $LABS"
    check_rust
    check_namespaces
    ;;
*) fail "$1: there is only --unit" ;;
esac
install_packages
