# pg_background_queue: build, install and test. `make help` lists the targets.
#
#   PG_CONFIG=…   the PostgreSQL to build for (default: the pg_config in the PATH)
#   DESTDIR=…     install under this directory instead of into that PostgreSQL
#
# Not built on pgxs.mk: `make demo` must work before there is any pg_config. The scripts ask it.

SHELL := /bin/bash
.DEFAULT_GOAL := build
.PHONY: help build install installcheck demo check soak extremes asan bench lint fmt clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\): ##/\1 /p' Makefile | while read -r target text; do \
		printf '  make %-13s %s\n' "$$target" "$$text"; done

build: ## build the library for the PostgreSQL of PG_CONFIG (the default)
	@scripts/build

install: ## build, and install into that PostgreSQL (or under DESTDIR)
	@scripts/build --for-install
	@scripts/install

installcheck: ## pg_regress and isolation tests against a running server (PGHOST, PGPORT)
	@scripts/installcheck

demo: ## install what is missing, and show the queue at work in a throw-away cluster
	@scripts/demo

check: ## the same set-up, then all tests (SUITES="unit regress …" picks some)
	@scripts/check

soak: ## install, then kill, stop and starve servers under load for SOAK_MINUTES (60): docs/reliability.md
	@scripts/build
	@scripts/install --as-root
	@scripts/soak

extremes: ## install, then millions of tasks, a thousand roles, 200 databases: docs/reliability.md
	@scripts/build
	@scripts/install --as-root
	@PGBQ_EXTREMES=full PGBQ_TEST_THREADS=1 scripts/test-integration extremes:: --nocapture

asan: ## install, then tests under AddressSanitizer and UndefinedBehaviorSanitizer: docs/memory.md
	@scripts/build
	@scripts/install --as-root
	@scripts/asan

bench: ## build, install, and measure against plain PostgreSQL (BENCH="drain latency …" picks some)
	@scripts/bench

lint: ## formatting, clippy with warnings as errors, licences and sources of dependencies
	@scripts/lint

fmt: ## format the Rust code
	@cargo fmt

clean: ## remove what was built
	@rm -rf target
