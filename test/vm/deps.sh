#!/bin/sh
# Installs the programs that the machine tests run and that are missing, from Debian
# packages. Needs root only when something is missing.
cd "$(dirname "$0")/../.." && exec go run ./test/vm/cmd/machine deps
