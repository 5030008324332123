# Each target does all of its own set-up on Debian 12. `make` alone lists them.

export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin
CARGO_TARGET_DIR ?= $(CURDIR)/target
# The lab starts this program; `make` has just built it, so the tests need not ask cargo again.
SEALOCK_BIN = $(CARGO_TARGET_DIR)/debug/sealock

# What needs root: the lab, and the tests that say so by being ignored elsewhere.
IN_LAB = package(lab) or test(another_user_is_turned_away) or test(/^in_a_namespace/)

# How long each fuzz target runs with `make fuzz`, in seconds, and how many seeds `make sim` takes.
FUZZ_SECONDS ?= 60
SIM_SEEDS ?= 1000000

.PHONY: help demo test lint bench lab sim fuzz coverage advisories \
	setup-build setup-lint setup-lab setup-bench setup-coverage

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup-build ## see Sealock work on this machine: offline, without root, about 15 s after the build
	cargo build -p sealock
	$(SEALOCK_BIN) demo

test: setup-lab ## every test but the long scenes, with the lab's network namespaces (root, or a user who may make them)
	@scripts/in-lab.sh true
	cargo build --workspace --all-targets
	cargo nextest run --workspace -E 'not package(lab)'
	SEALOCK_BIN=$(SEALOCK_BIN) scripts/in-lab.sh cargo nextest run --workspace --run-ignored all -E '$(IN_LAB)'

lint: setup-lint ## format, clippy, tidy, documentation, licences, bans and sources of dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo xtask tidy
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items
	cargo deny check licenses bans sources
	@echo "lint: known vulnerabilities were not looked up, they need the network: make advisories"

advisories: setup-lint ## ask the RustSec database about our dependencies (needs the network)
	cargo deny check advisories

lab: setup-lab ## the tests in network namespaces alone, with the long scenes that `make test` leaves out
	@scripts/in-lab.sh true
	cargo build --workspace --all-targets
	SEALOCK_BIN=$(SEALOCK_BIN) scripts/in-lab.sh cargo nextest run --workspace --profile lab -E 'package(lab) or test(/(^|::)long::/)'

# Optimised, in a directory of its own: a million runs take a fraction of the time, with every check on.
sim: setup-build ## the long set of simulated runs: a million seeds each, and a planted defect that must be found
	SIM_SEEDS=$(SIM_SEEDS) CARGO_PROFILE_DEV_OPT_LEVEL=2 cargo nextest run -p sealock-proto --lib --profile lab \
		--target-dir $(CARGO_TARGET_DIR)/sim -E 'test(/sim::/)'
	scripts/canary.sh

fuzz: ## feed each fuzz target for a minute: needs a nightly toolchain and cargo-fuzz
	scripts/fuzz.sh $(FUZZ_SECONDS)

coverage: setup-coverage ## how much of parsers and state machines the corpora reach; fails below fuzz/coverage.txt
	scripts/coverage.sh

bench: setup-bench ## measure Sealock beside ssh, stunnel and haproxy; ratios of one run
	cargo build --release -p sealock
	scripts/bench.sh

setup-build:
	@scripts/setup.sh build
setup-lint:
	@scripts/setup.sh lint
setup-lab:
	@scripts/setup.sh lab
setup-bench:
	@scripts/setup.sh bench
setup-coverage:
	@scripts/setup.sh coverage
