# `make help` lists the targets.
GO         ?= go
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Without grpc's tracing pages, and templates of cobra's, nothing reaches text/template, whose
# calls by name would keep every method of every type: 20 MB instead of 25.
BUILD       = CGO_ENABLED=0 $(GO) build -tags grpcnotrace -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

.PHONY: help build test test-fast test-machines lint golden demo bench deps
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## the static binary, ./bin/nodeprep
	$(BUILD) -o bin/nodeprep ./cmd/nodeprep

deps: ## what the machine tests need from the distribution's packages (root)
	test/vm/deps.sh

# Under the race detector -short takes strides through the crash matrix; the line after
# that has every point.
test: lint deps build ## everything but the long machine matrix; needs root for the machines
	$(GO) test -race -short ./...
	$(GO) test -timeout 20m ./install
	cd test/oracle && $(GO) test -timeout 30m ./...
	$(GO) test ./test/vm -count=1 -v -timeout 40m -vm=main

test-fast: ## the inner loop: no root, no network, under a minute
	$(GO) test -short ./...

test-machines: deps build ## the whole machine matrix, under 70 minutes
	$(GO) test ./test/vm -count=1 -v -timeout 70m -vm=all

lint: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'not formatted:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

golden: ## write the golden files anew
	$(GO) test ./render ./cmd/nodeprep -update

demo: deps build ## boot a fresh machine, provision it and show plan, apply and status
	$(GO) run ./test/vm/cmd/demo

bench: build ## benchmarks, and apply against doing it by hand
	$(GO) test -run '^$$' -bench . -benchmem ./...
	$(GO) run ./test/bench
