#!/bin/sh
# Runs every fuzz target for so many seconds each, over the committed corpora; new inputs go to fuzz/grown, not to git.
# `scripts/fuzz.sh SECONDS`; `scripts/fuzz.sh minimise` takes over from fuzz/grown what reaches code that nothing reached.
set -eu
cd "$(dirname "$0")/../fuzz"
if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo "fuzz: no nightly toolchain with cargo-fuzz" >&2
    echo "hint: rustup toolchain install nightly && cargo install cargo-fuzz --locked" >&2
    exit 1
fi
# No sanitizer: the fuzzed crates have no unsafe code, and without one four times as many inputs are tried.
cargo +nightly fuzz build --sanitizer none
for file in fuzz_targets/*.rs; do
    target=$(basename "$file" .rs)
    mkdir -p "grown/$target"
    if [ "$1" = minimise ]; then
        rm -rf "minimal/$target" && mkdir -p "minimal/$target"
        cargo +nightly fuzz run --sanitizer none "$target" "minimal/$target" "corpus/$target" "grown/$target" -- \
            -set_cover_merge=1 -use_counters=0 -rss_limit_mb=1024
        rm -rf "corpus/$target" && mv "minimal/$target" "corpus/$target"
    else
        echo "fuzz: $target"
        cargo +nightly fuzz run --sanitizer none "$target" "grown/$target" "corpus/$target" -- \
            -max_total_time="$1" -print_final_stats=1 -rss_limit_mb=1024
    fi
done
# An empty input reaches something too, and libFuzzer never keeps it.
if [ "$1" = minimise ]; then
    rmdir minimal
    : >corpus/policy_pattern/empty
fi
