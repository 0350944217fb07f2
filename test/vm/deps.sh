#!/bin/sh
# Installs the programs that the machine tests run and that are missing, from Debian
# packages. Needs root only when something is missing.
cd "$(dirname "$0")/../.." && exec env CGO_ENABLED=0 go run -trimpath -tags=grpcnotrace ./test/vm/cmd/machine deps
