#!/bin/sh
# Measures Sealock beside loopback, haproxy, stunnel and ssh -L, and writes docs/bench/<date>-<commit>.md.
#
# Wants target/release/sealock (`make bench` builds it) and what `scripts/setup.sh bench` installs. More words are
# handed to the tool: `scripts/bench.sh --only sealock --rounds 0 --profile 10` profiles and writes no file.
set -eu
cd "$(dirname "$0")/.."

target="${CARGO_TARGET_DIR:-$PWD/target}/release"
# A client and an origin of a thousand streams, and the systems between them.
ulimit -n 16384
cargo build --release --quiet -p lab --bin bench
cargo build --release --quiet -p sealock-net --features test-util --example handshakes --example layers

commit=$(git rev-parse --short HEAD)
[ -z "$(git status --porcelain --untracked-files=no -- crates)" ] || commit="$commit-changed"
date=$(date -u +%F)
if [ $# -eq 0 ]; then
    set -- --profile 8 --out "docs/bench/$date-$commit.md" --handshakes "$target/examples/handshakes" \
        --layers "$target/examples/layers"
fi
exec "$target/bench" --sealock "$target/sealock" --date "$date" --commit "$commit" "$@"
