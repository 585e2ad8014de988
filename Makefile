# Martlet's commands. `make help` lists them; each installs what it needs, prints what it does and cleans up.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
LAB := $(TARGET)/lab
export MARTLET_BIN ?= $(LAB)/martlet
export MARTLET_LAB_BIN ?= $(LAB)/martlet-lab

# Labs against real peers, a file a topic.
LAB_TESTS := demo lab lb bfd bfd_clients bgp_live bgp_restart interop fields teach weakness resilience topology docs sim

.PHONY: help setup setup-unit build demo test test-unit lint lab-tests lab containerlab images images-check lab-images interop cluster sim sim-mutants test-all bench fuzz soak deny clean

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install the Debian packages that demo and tests need, check the toolchain
	@deploy/setup.sh

setup-unit:
	@deploy/setup.sh --unit

build: ## the binaries that labs run (target/lab); built together, so that all share one set of features
	@$(CARGO) build --locked --profile lab -p martlet-cli -p martlet-lab -p martlet-sim

demo: setup build ## the main job on real input: FRR gateway, router, lb, applications in namespaces [KEEP=1]
	@$(LAB)/martlet-lab demo $(if $(KEEP),--keep)

test: setup lint test-unit lab-tests sim cluster ## everything that proves correctness within its time; what CI calls

test-all: test interop sim-mutants images-check ## the same, and what does not fit its time: full interop, planted bugs, the image

test-unit: setup-unit ## what needs no peer and no lab
	@$(CARGO) test --locked --workspace --exclude martlet-lab

lint: setup-unit ## format, clippy, documentation
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet

lab-tests: setup build ## the demo and the labs as tests, against real peers
	@$(CARGO) test --locked --profile lab -p martlet-lab --lib $(addprefix --test ,$(LAB_TESTS)) -- --nocapture --test-threads=1

interop: setup build ## the whole matrix against FRR, BIRD, GoBGP, OpenBGPD, ExaBGP -> docs/interop.md
	@$(LAB)/martlet-lab interop --output docs/interop.md

lab: setup build ## a topology in namespaces, with its check [TOPO=frr-single] [ACTION=check; up: leave it up until Ctrl-C]
	@$(LAB)/martlet-lab topology deploy/containerlab/$(or $(TOPO),frr-single) $(or $(ACTION),check)

containerlab: ## the topologies with the real containerlab: deploy, check, destroy [TOPO=frr-single] [CONTAINERLAB=path]
	@deploy/containerlab/run $(TOPO)

images: ## the product's image and its SBOM, without a base image -> target/images
	@deploy/images/build

images-check: images lab-images ## what holds of the image: size, rights, SBOM, and the demo's steps in containers (root)
	@deploy/images/check

lab-images: ## the image of the labs' peers, from Debian packages, in the Docker engine
	@deploy/images/lab

cluster: setup build ## the suite on a real API server and controller-manager (needs Go >= 1.26)
	@assets=$$(deploy/lab/kubernetes/build.sh | tail -n 1) && \
	KUBEBUILDER_ASSETS="$$assets" $(CARGO) test --locked --profile lab -p martlet-lab --test cluster --test charts -- --nocapture

sim: setup-unit build ## deterministic simulation [SEEDS=2000; 0: until stopped]
	@$(LAB)/martlet-sim run --seeds $(or $(SEEDS),2000)
	@$(LAB)/martlet-sim driven --seeds 40
	@$(LAB)/martlet-sim seeds

sim-mutants: setup-unit build ## planted bugs: is each one found? -> docs/simulation.md
	@$(LAB)/martlet-sim mutants

bench: setup build ## figures, beside the peers in the same run -> docs/benchmarks.md [ONLY=router] [QUICK=1]
	@$(LAB)/martlet-lab bench $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick)

fuzz: setup-unit ## hostile octets and objects, guided by coverage [TIME=60 seconds each; 0: until stopped] [TARGET=bgp]
	@deploy/fuzz.sh

soak: setup build ## the demo's stage under change and traffic: nothing lost, nothing grows [MINUTES=0: until stopped]
	@$(LAB)/martlet-lab soak --minutes $(or $(MINUTES),0)

deny: ## licences, bans, sources; advisories where their database can be had
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	@$(CARGO) deny --locked check bans licenses sources
	@$(CARGO) deny --locked check advisories || echo "advisories: the database cannot be had here, not checked"

clean: ## remove what the labs left and what was built
	@-$(LAB)/martlet-lab clean
	@$(CARGO) clean
