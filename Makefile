# Meshproof. `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Unit and end-to-end tests would take each other's processor.
.NOTPARALLEL:

VERSION ?= 0.1.0
BIN     := $(CURDIR)/bin
LDFLAGS := -s -w -X github.com/meshproof/meshproof/cmd/internal/version.Version=$(VERSION)
STATIC  := CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)"
# Control plane and proxy twice more, told apart by nothing but their version: an upgrade needs something to go from and to.
BUILDS  := blue green
MAINS   := meshproof meshd meshproxy app loadagent
LINT    := go tool -modfile=.tools/go.mod golangci-lint

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: deps build ## Build, start a cluster, install the mesh, prove the weighted canary, report, take it all down
	$(BIN)/meshproof run canary --profile quick

.PHONY: suites
suites: deps build ## Run every scenario, lab by lab, and write one report over all
	$(BIN)/meshproof run --profile quick

.PHONY: test
test: unit e2e ## Every test: unit tests with the race detector, then end to end on the embedded cluster

.PHONY: unit
unit: deps-race ## Unit tests with the race detector; at the end, what this host could not run
	go vet ./...
	go test -race -short -v -timeout 20m ./... | awk -f .ci/skipped.awk

# What cannot run fails. What a busy host did not let be judged is neither green nor red: e2e names it at its end, e2e-all fails.
UNJUDGED := $(CURDIR)/dist/unjudged
E2E      := MESHPROOF_E2E=required MESHPROOF_UNJUDGED=$(UNJUDGED)

.PHONY: e2e
e2e: deps build ## End-to-end tests on embedded clusters: the provider, the command line, the canary with its controls, the other suites as they should be
	@mkdir -p dist && rm -f $(UNJUDGED)
	$(E2E) go test -count=1 -timeout 30m ./clusters/local/...
	$(E2E) go test -count=1 -timeout 10m ./cmd/meshproof
	$(E2E) go test -count=1 -timeout 30m -v -run '^TestTraffic$$' ./scenarios/suites/traffic
	$(E2E) go test -count=1 -timeout 30m -v -run '^TestBalancing$$' ./scenarios/suites/balancing -ginkgo.focus=passes
	$(E2E) go test -count=1 -timeout 30m -v -run '^TestUpgrade$$' ./scenarios/suites/upgrade -ginkgo.focus=passes
	$(E2E) go test -count=1 -timeout 30m -v -run '^TestMultiCluster$$' ./scenarios/suites/multicluster -ginkgo.focus=passes
	@if [ -s $(UNJUDGED) ]; then echo; echo "not judged, for what this host lacked; neither passed nor failed:"; cat $(UNJUDGED); fi

.PHONY: e2e-all
e2e-all: E2E := MESHPROOF_E2E=judged
e2e-all: deps build ## All end-to-end tests, with every negative control: for the night
	$(E2E) go test -count=1 -timeout 30m ./clusters/local/...
	$(E2E) go test -count=1 -timeout 10m ./cmd/meshproof
	$(E2E) go test -count=1 -timeout 60m -p 1 -v -run '^(TestTraffic|TestBalancing|TestUpgrade|TestMultiCluster)$$' ./scenarios/suites/...

.PHONY: bench
bench: deps build ## Benchmarks: the proxy, the control plane, the load generator, cluster start and stop
	go test -run '^$$' -bench . -benchmem -timeout 60m ./...

.PHONY: build
build: ## Build the commands into bin/
	@mkdir -p $(BIN)
	$(STATIC) -o $(BIN)/ $(addprefix ./cmd/,$(MAINS))
	@for b in $(BUILDS); do mkdir -p $(BIN)/$$b; \
	  CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)-$$b" -o $(BIN)/$$b/ ./cmd/meshd ./cmd/meshproxy; done

.PHONY: images
images: build ## Pack the commands into OCI archives in dist/images/
	$(BIN)/meshproof images --out dist/images

.PHONY: lint
lint: ## Run golangci-lint at its pinned version
	$(LINT) run ./...

.PHONY: verify
verify: ## Check that what is generated and formatted is up to date
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt: run make update"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go mod tidy -diff
	cd clusters/local/node && go mod tidy -diff && go vet ./...
	cd .tools && go mod tidy -diff
	GOOS=darwin go build -o /dev/null ./cmd/meshproof
	GOOS=darwin go vet ./...
	go test ./cmd/internal/layering ./mesh/objects/...
	$(MAKE) lint

.PHONY: update
update: ## Bring what is generated and formatted up to date: formatting, modules, golden files
	gofmt -w $$(git ls-files '*.go')
	go mod tidy
	cd clusters/local/node && go mod tidy
	cd .tools && go mod tidy
	go generate ./...
	go test $$(git grep -l 'flag.Bool("update"' -- '*_test.go' | xargs -n1 dirname | sort -u | sed 's,^,./,') -update

have = $(shell PATH="$$PATH:/usr/sbin:/sbin" command -v $(1))
.PHONY: deps
deps: MISSING = $(if $(call have,runc),,runc) $(if $(call have,nft),,nftables)
deps: ## Install what the embedded cluster takes from the system: runc and nft
	$(install)

.PHONY: deps-race
deps-race: MISSING = $(if $(call have,cc),,gcc libc6-dev)
deps-race: ## Install what the race detector takes from the system: a C compiler
	$(install)

define install
	@missing="$(strip $(MISSING))"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing $$missing"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else \
	  echo "missing: $$missing; install with: apt-get install -y $$missing (as root)"; exit 1; \
	fi
endef

.PHONY: clean
clean: ## Remove what the build made here; built Kubernetes binaries stay in the XDG cache
	rm -rf $(BIN) dist runs
