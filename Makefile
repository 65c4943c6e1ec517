# OutputGuard. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

WEB_SOURCES := $(shell find web -path web/node_modules -prune -o -path web/dist -prune -o -type f -print)
BINARIES := outputguard-server outputguard-gateway outputguard-route outputguardctl outputguard-lab
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
RUN_DIR := $(TARGET_DIR)/debug
PORT ?= 8080
MINUTES ?= 10
SEEDS ?= 3000
# Of the chaos run that is a part of the tests: the same faults every time.
TEST_SEED := 20260724
# Of the fuzzing that is a part of the tests.
TEST_FUZZ_SECONDS := 16

.PHONY: build server gateway router ctl web binaries demo chaos simulate test verify fix clean help fuzz packages-fuzz
.PHONY: packages-demo packages-chaos packages-test
.PHONY: bench-raft bench-failover bench-dataplane bench-apply bench-propagation bench-scrape bench-resolver bench-binaries

# What the benches measure is what is shipped; PROFILE=bench-run builds in a fraction of the time, for trying things.
PROFILE ?= release
BENCH = $(TARGET_DIR)/$(PROFILE)/outputguard-bench --profile $(PROFILE) $(if $(QUICK),--quick)

## build: all release binaries, into target/release
build: server gateway router ctl

## server: the server's release binary, with the web UI inside
server: web
	cargo build --release -p node

## gateway: the gateway's release binary
gateway:
	cargo build --release -p gateway

## router: the route agent's release binary
router:
	cargo build --release -p route

## ctl: the command line's release binary
ctl:
	cargo build --release -p ctl

## web: the UI, into web/dist (embedded in the server when that is built)
web: web/dist/index.html

web/dist/index.html: $(WEB_SOURCES)
	scripts/install-packages node
	cd web && npm ci --no-audit --no-fund --loglevel=error && npm run --silent build

binaries: web
	cargo build --workspace --bins

packages-demo:
	scripts/install-packages demo

packages-chaos:
	scripts/install-packages chaos

packages-test:
	scripts/install-packages test

## demo: a small internet on this machine, with the UI at http://127.0.0.1:8080; CHECK=1 proves the main job and exits
demo: packages-demo binaries
	$(RUN_DIR)/outputguard-lab demo --port $(PORT) $(if $(CHECK),--check)

## chaos: MINUTES=10 of faults under concurrent clients, every answer checked; SEED=n repeats a run
chaos: packages-chaos binaries
	$(RUN_DIR)/outputguard-lab chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

## test: everything CI runs; installs what is missing
test: packages-test binaries
	scripts/install-cargo-tool cargo-nextest
	cargo nextest run --workspace
	scripts/fuzz-check
	OUTPUTGUARD_FUZZ_SEED=$(TEST_SEED) scripts/fuzz $(TEST_FUZZ_SECONDS)
	$(RUN_DIR)/outputguard-lab chaos --minutes 2 --seed $(TEST_SEED)
	tests/deploy/check
	tests/web/check

## simulate: SEEDS runs of the replicated state on simulated network, disks and time (SEED=n replays one and prints it)
simulate:
	CARGO_PROFILE_DEV_OPT_LEVEL=2 OUTPUTGUARD_SIM_SEEDS=$(SEEDS) $(if $(SEED),OUTPUTGUARD_SIM_SEED=$(SEED)) \
		cargo test -p raft-store --test simulation -- --nocapture no_seed_breaks_a_promise

## power-cuts: IMAGES images of the log as power cuts leave it, each opened and compared with what was acknowledged
power-cuts:
	OUTPUTGUARD_POWER_CUTS=$(or $(IMAGES),20000) cargo test -p raft-store --lib -- --nocapture a_power_cut_at_any_moment

packages-fuzz:
	scripts/install-packages fuzz

## fuzz: MINUTES=10 of fuzzing what reads frames, the kernel's answers, iptables and state files; TARGET=name for one of them
fuzz: packages-fuzz
	scripts/fuzz $$(( $(MINUTES) * 60 )) $(TARGET)

bench-binaries: web
	scripts/install-packages bench
	cargo build --profile $(PROFILE) -p node -p gateway -p benches

## bench-raft: puts, reads, imports, start, memory, disk beside etcd; ROUNDS=5 CHURN=500000 ENTRIES=1000000 QUICK=1 PROFILE=release
bench-raft: bench-binaries
	$(BENCH) raft $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(CHURN),--churn $(CHURN)) $(if $(ENTRIES),--entries $(ENTRIES)) \
	  $(if $(PARTS),--parts $(PARTS))

## bench-failover: how long nobody can write when a leader is lost, beside etcd; N=30 SATURATE_MINUTES=10 QUICK=1 PROFILE=release
bench-failover: bench-binaries
	$(BENCH) failover $(if $(N),--faults $(N)) $(if $(SATURATE_MINUTES),--saturate-minutes $(SATURATE_MINUTES))

## bench-dataplane: what a packet costs beside plain NAT and beside one rule pair for each address; ROUNDS=25 MANY=1000000 QUICK=1
bench-dataplane: bench-binaries
	$(BENCH) dataplane $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(MANY),--many $(MANY)) $(if $(PARTS),--parts $(PARTS))

## bench-apply: frames to the kernel, one and a million elements, beside the programs ipset and iptables; ROUNDS=9 CHANGES=500 QUICK=1
bench-apply: bench-binaries
	$(BENCH) apply $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(CHANGES),--changes $(CHANGES)) $(if $(MANY),--many $(MANY)) \
	  $(if $(PARTS),--parts $(PARTS))

## bench-propagation: from a call of the API to packets through two gateways, beside a put of etcd; ADDS=300 LEVELS=0,10000,100000 QUICK=1
bench-propagation: bench-binaries
	$(BENCH) propagation $(if $(ADDS),--adds $(ADDS)) $(if $(LEVELS),--levels $(LEVELS))

## bench-scrape: time and memory of a scrape of a gateway with 100,000 addresses; ROUNDS=21 QUICK=1 PROFILE=release
bench-scrape:
	scripts/install-packages bench
	cargo build --profile $(PROFILE) -p gateway -p benches
	$(BENCH) scrape $(if $(ROUNDS),--rounds $(ROUNDS))

## bench-resolver: 100,000 names kept up to date, beside a plain loop, unbound and dnsmasq; NAMES=100000 WATCH_SECONDS=120 CHANGES=300 QUICK=1
bench-resolver: bench-binaries
	$(BENCH) resolver $(if $(NAMES),--names $(NAMES)) $(if $(WATCH_SECONDS),--seconds $(WATCH_SECONDS)) $(if $(CHANGES),--changes $(CHANGES)) \
	  $(if $(PARTS),--parts $(PARTS))

## verify: formatting, lints, docs, dependencies, web types; writes nothing
verify:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features fuzz/libfuzzer -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
	scripts/install-cargo-tool cargo-deny
	cargo deny --log-level error check licenses bans sources
	scripts/install-packages node
	cd web && npm ci --no-audit --no-fund --loglevel=error && npm run --silent lint

## fix: what verify complains of and a machine can mend
fix:
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cd web && npm run --silent fix

clean:
	cargo clean
	rm -rf web/dist web/node_modules

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)
