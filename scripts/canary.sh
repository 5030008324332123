#!/bin/sh
# Builds the stream with a planted defect: a simulator that does not find it is blind, and its green runs mean nothing.
set -u
target=${CARGO_TARGET_DIR:-target}/canary
RUSTFLAGS="--cfg sealock_canary" cargo nextest run -p sealock-proto --target-dir "$target" \
    -E 'test(a_thousand_seeds_are_clean)' >"$target.log" 2>&1
status=$?
# nextest answers 100 when a test failed; anything else is a build that broke, or a canary that lives.
if [ "$status" -eq 100 ]; then
    echo "canary: the planted defect is found"
    exit 0
fi
cat "$target.log"
echo "canary: the planted defect was not found (status $status)" >&2
exit 1
