# What people run. Each target sets up what this machine lacks (scripts/setup) and can be run
# again and again; once set up, none needs a network.

.PHONY: demo build test verify soak bench setup clean-demo

# A whole mesh on this machine: one coordinator, three agents, a real job, nothing left running.
demo:
	@scripts/demo

# The three programs, in target/release.
build: setup
	cargo build --release --locked --bin coordinator --bin agent --bin meshctl

# Every test.
test:
	@scripts/test

# Every test, and formatting, lints, docs, dependencies and queries.
verify:
	@scripts/verify

# Many seeds of the simulation: make soak SEEDS=20000 FROM=0
SEEDS ?= 2000
FROM ?= 0
soak:
	cargo run --release --locked -p mesh-sim -- --from $(FROM) --seeds $(SEEDS)

# How fast it is on this machine, beside what the machine itself can do: bench/README.md.
bench: build
	cargo run --release --locked --quiet --package mesh-bench -- $(ARGS)

setup:
	@scripts/setup

# The picture that the demo made.
clean-demo:
	rm -rf mesh-demo
