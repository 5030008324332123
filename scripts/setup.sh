#!/bin/sh
# Brings a Debian 12 machine to what one kind of work needs: `scripts/setup.sh build|lint|lab|bench|coverage`.
#
# Runs any number of times: what is there is left alone. Only missing packages are installed, and a service
# that a package would start is neither started nor enabled: the lab runs its own servers in its own namespaces.
set -eu

RUST_VERSION=1.95.0
export PATH="$HOME/.cargo/bin:$PATH"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        die "'$*' needs root: run this as root, or install sudo"
    fi
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Debian asks this file before it starts a service of a package; 101 means no.
POLICY=/usr/sbin/policy-rc.d
POLICY_IS_OURS=no
hold_services() {
    if [ ! -e "$POLICY" ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
        as_root chmod 755 "$POLICY"
        POLICY_IS_OURS=yes
        trap release_services EXIT
        trap 'exit 130' INT TERM
    fi
}
release_services() {
    if [ "$POLICY_IS_OURS" = yes ]; then
        as_root rm -f "$POLICY"
        POLICY_IS_OURS=no
    fi
}

# A service that came with a package of ours neither runs now nor starts at the next boot. A machine with a policy
# of its own may have started it.
silence_service() {
    if [ -d /run/systemd/system ]; then
        as_root systemctl disable --quiet --now "$1" >/dev/null 2>&1 || say "could not stop and disable $1"
    else
        as_root service "$1" stop >/dev/null 2>&1 || true # it was not running
        as_root update-rc.d "$1" disable >/dev/null 2>&1 || say "could not disable $1 for the next boot"
    fi
}

# nftables has a service too, but it listens nowhere, and to stop it is to flush the machine's rules.
service_of() {
    case "$1" in
        openssh-server) echo ssh ;;
        postgresql) echo postgresql ;;
        redis-server) echo redis-server ;;
        haproxy) echo haproxy ;;
        stunnel4) echo stunnel4 ;;
        *) ;;
    esac
}

packages() {
    missing=
    for package in "$@"; do
        installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null 2>&1 || die "this set-up knows Debian and its apt; install by hand:$missing"
    say "installing$missing"
    as_root apt-get update -qq
    hold_services
    # shellcheck disable=SC2086 # a list of package names, split on purpose
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
    for package in $missing; do
        service=$(service_of "$package")
        [ -z "$service" ] || silence_service "$service"
    done
    release_services
}

rust() {
    if ! command -v cargo >/dev/null 2>&1; then
        packages ca-certificates curl
        say "installing Rust $RUST_VERSION through rustup"
        curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs |
            sh -s -- -y --quiet --profile minimal --default-toolchain "$RUST_VERSION" --component clippy --component rustfmt
    fi
    if ! cargo --version >/dev/null 2>&1 && command -v rustup >/dev/null 2>&1; then
        say "installing Rust $RUST_VERSION beside the one that is there"
        rustup toolchain install "$RUST_VERSION" --profile minimal --component clippy --component rustfmt
    fi
    cargo --version >/dev/null || die "cargo does not start; rust-toolchain.toml asks for Rust $RUST_VERSION: 'rustup toolchain install $RUST_VERSION'"
}

cargo_tool() {
    if ! cargo "$2" --version >/dev/null 2>&1; then
        say "installing $1 (a few minutes, once)"
        cargo install --locked --quiet "$1"
    fi
}

build() {
    packages build-essential
    rust
}

case "${1:-}" in
    build)
        build
        ;;
    lint)
        build
        packages git
        cargo_tool cargo-deny deny
        ;;
    lab)
        build
        packages iproute2 nftables tcpdump curl bind9-dnsutils openssh-client openssh-server postgresql redis-server netcat-openbsd iperf3 python3 git
        # Without root, the lab's own user namespace takes its users from here.
        [ "$(id -u)" -eq 0 ] || packages uidmap
        cargo_tool cargo-nextest nextest
        ;;
    coverage)
        build
        tools=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
        [ -x "$tools/llvm-cov" ] || rustup component add llvm-tools
        ;;
    bench)
        build
        packages iproute2 curl openssh-client openssh-server haproxy stunnel4 openssl linux-perf git
        ;;
    *)
        die "usage: scripts/setup.sh build|lint|lab|bench|coverage"
        ;;
esac
