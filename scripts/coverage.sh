#!/bin/sh
# Measures how much of the parsers and state machines the committed corpora reach, file by file, and fails where it is
# less than fuzz/coverage.txt says. `scripts/coverage.sh` checks; `scripts/coverage.sh lines FILE` shows what is missed.
set -eu
cd "$(dirname "$0")/.."
floors=fuzz/coverage.txt
target=${CARGO_TARGET_DIR:-$PWD/target}/coverage
host=$(rustc -vV | sed -n 's/^host: //p')
tools=$(rustc --print sysroot)/lib/rustlib/$host/bin
if ! [ -x "$tools/llvm-cov" ]; then
    echo "coverage: the compiler's llvm-cov is not installed" >&2
    echo "hint: rustup component add llvm-tools, or make setup-coverage" >&2
    exit 1
fi

# With --target, build scripts and macros are not measured. `fuzzing` shows the bodies without the tests beside
# them, and what only tests use is dead then.
(
    cd fuzz
    CARGO_INCREMENTAL=0 RUSTFLAGS='-C instrument-coverage --cfg fuzzing -A dead_code' \
        cargo build --quiet --locked --package sealock-replay --target "$host" --target-dir "$target"
)
program=$target/$host/debug/sealock-replay
LLVM_PROFILE_FILE=$target/replay.profraw "$program" fuzz/corpus
"$tools/llvm-profdata" merge -sparse "$target/replay.profraw" -o "$target/replay.profdata"

if [ "${1:-}" = lines ]; then
    exec "$tools/llvm-cov" show "$program" -instr-profile="$target/replay.profdata" "$2"
fi
# Columns of the report: file, regions, missed regions.
"$tools/llvm-cov" report "$program" -instr-profile="$target/replay.profdata" |
    awk -v floors="$floors" '
        BEGIN {
            while ((getline line < floors) > 0) {
                if (line !~ /^#/ && split(line, field, " ") == 2) floor[field[2]] = field[1]
            }
        }
        { for (file in floor) if ($1 == file || substr($1, length($1) - length(file)) == "/" file) {
            regions[file] = $2; missed[file] = $3 } }
        END {
            for (file in floor) {
                if (!regions[file]) { print "coverage: no regions of " file > "/dev/stderr"; bad = 1; continue }
                share = 100 * (1 - missed[file] / regions[file])
                all += regions[file]; none += missed[file]
                low = share < floor[file] ? "  below " floor[file] "%" : ""
                if (low) bad = 1
                printf "%5.1f%% of %4d regions  %s%s\n", share, regions[file], file, low | "sort -k5"
            }
            close("sort -k5")
            if (!all) { print "coverage: no floor in " floors > "/dev/stderr"; exit 1 }
            share = 100 * (1 - none / all)
            printf "%5.1f%% of all\n", share
            if (share < floor_of_all) bad = 1
            exit bad
        }' floor_of_all=80
