# make up   the whole loop on this machine: proxy, sidecar, web desk, one bottle
# make test  install what the tests need, and pass them
# The rest: make help

GO   ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
UPFLAGS ?=

.DEFAULT_GOAL := build
.PHONY: build up demo test deps lint image claude fuzz model flood soak screenshots sbom repro bench clean help

build: ## build bin/supervise, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/supervise ./cmd/supervise

up: build ## run proxy, sidecar and desk with embedded defaults, under ./.supervise
	./bin/supervise up $(UPFLAGS)

demo: build ## the whole loop once, with a scripted agent; you decide
	./bin/supervise demo

deps: ## install what the tests need beyond Go: Node clients, Chromium, PyYAML, strace
	.ci/deps

test: deps ## all tests, under the race detector
	$(GO) test -race ./...
	cd examples/mitmproxy && python3 -B -m unittest -q

lint: ## what CI checks besides the tests
	.ci/lint

image: ## the container image, with the engine of your choice (ENGINE=docker|podman|buildah)
	$${ENGINE:-docker} build -t supervise:$(VERSION) --build-arg VERSION=$(VERSION) .

model: ## the protocol against a reference model, MODEL random actions (100000)
	SUPERVISE_MODEL_STEPS=$${MODEL:-100000} $(GO) test -count=1 -timeout 0 -v ./internal/e2e/model

flood: ## the floods of internal/e2e at full size: 10,000 calls, thousands of connections
	SUPERVISE_FLOOD=1 $(GO) test -count=1 -timeout 0 -v -run '^TestFlood' ./internal/e2e

soak: ## everything at once, with kills, for SOAK (30m); SOAK_SEED and SOAK_PROPOSALS choose what
	SOAK=$${SOAK:-30m} $(GO) test -count=1 -timeout 0 -v -run '^TestSoak$$' ./internal/e2e

claude: ## Claude Code itself against the real binary, with a stand-in for the model; gets it from npm
	.ci/claude

fuzz: ## every fuzz target in turn, FUZZTIME each (30s)
	.ci/fuzz

repro: ## build twice from two directories and compare the bytes
	.ci/repro

sbom: build ## what bin/supervise is built of, as CycloneDX JSON: bin/supervise.cdx.json
	$(GO) run ./internal/sbom bin/supervise > bin/supervise.cdx.json

screenshots: ## take the README's pictures anew
	.ci/screenshots

bench: ## measure the image's binary against a bare net/http floor; BENCH passes flags (see internal/bench)
	CGO_ENABLED=0 $(GO) build -tags slim -trimpath -ldflags '-s -w' -o bin/supervise-slim ./cmd/supervise
	$(GO) build -o bin/bench ./internal/bench
	./bin/bench -bin bin/supervise-slim $(BENCH)

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

clean: ## remove what was built, but nothing under ./.supervise
	rm -rf bin
