# `make help` lists the targets.
GO         ?= go
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Without grpc's tracing pages, and templates of cobra's, nothing reaches text/template, whose
# calls by name would keep every method of every type: 20 MB instead of 25.
BUILD       = CGO_ENABLED=0 $(GO) build -tags grpcnotrace -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

# The program, lint and tests without the race detector are compiled with the same flags: a
# new machine compiles what they depend on once for all of them, and once more for the race
# detector. The oracle's daemons are built as upstream does, without the tag.
OWN_FLAGS  := $(shell $(GO) env GOFLAGS)
PLAIN       = CGO_ENABLED=0 GOFLAGS='$(strip $(OWN_FLAGS) -trimpath -tags=grpcnotrace)'
ORACLE      = CGO_ENABLED=0 GOFLAGS='$(strip $(OWN_FLAGS) -trimpath)'
# A program with the race detector sleeps for a second when it ends, to see more; the
# command line's tests run some hundred.
RACE        = GORACE='atexit_sleep_ms=0 $(GORACE)' $(GO) test -race -vet=off -short

# Tests that kill nodeprep at points: with the race detector they are far slower.
CRASHES     = CrashMatrix|IsKilled|CancelAnywhere|EachWriteFails

.PHONY: help build test test-fast test-whole test-machines test-machines-every lint golden demo bench deps
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## the static binary, ./bin/nodeprep
	$(BUILD) -o bin/nodeprep ./cmd/nodeprep

deps: ## what the machine tests need from the distribution's packages (root)
	test/vm/deps.sh

# What is left out here is in the targets after it; CONTRIBUTING.md says what is where.
test: deps build ## all but the long matrices; needs root for the machines
	$(RACE) ./...
	$(PLAIN) $(GO) test -timeout 20m ./install -run '$(CRASHES)' -points 7
	cd test/oracle && $(ORACLE) $(GO) test -short -timeout 30m ./...
	$(PLAIN) $(GO) test ./test/vm -count=1 -v -timeout 40m -vm=main

test-fast: ## the inner loop: no root, no network, under a minute
	$(GO) test -short ./...

# Without the race detector, and without -short: every point of the crash matrix, every
# release that is asked what it reads.
test-whole: build ## the whole crash matrix and the whole oracle, no root
	$(PLAIN) $(GO) test -timeout 30m ./...
	cd test/oracle && $(ORACLE) $(GO) test -timeout 30m ./...

test-machines: deps build ## the machine matrix, stopped after 70 minutes
	$(PLAIN) $(GO) test ./test/vm -count=1 -v -timeout 70m -vm=all

test-machines-every: deps build ## the same with all releases, and all of each: hours
	$(PLAIN) $(GO) test ./test/vm -count=1 -v -timeout 5h -vm=every

lint: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'not formatted:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(PLAIN) $(GO) vet ./...
	$(PLAIN) $(GO) run $(STATICCHECK) ./...

golden: ## write the golden files anew
	$(GO) test ./render ./cmd/nodeprep -update

demo: deps build ## boot a fresh machine, provision it and show plan, apply and status
	$(GO) run ./test/vm/cmd/demo

bench: build ## benchmarks, and apply against doing it by hand
	$(GO) test -run '^$$' -bench . -benchmem ./...
	$(GO) run ./test/bench
