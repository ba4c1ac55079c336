# vmimport: `make` lists the targets.

SHELL   := /bin/bash -o pipefail
GO      ?= go
BIN     := bin
LDFLAGS := -s -w
IMAGE   ?=
DATA    ?= vmimport-data
LISTEN  ?= 127.0.0.1:8080
FUZZTIME ?= 30s
GUEST   ?= 2GiB
# Packages whose tests start servers share two cores badly with many others.
TESTFLAGS ?= -race -shuffle=on -timeout 20m -p 2

.DEFAULT_GOAL := help
.PHONY: help demo run test test/go test-openstack test-openstack/go openstack deps deps-node deps-openstack lint fuzz bench bench-openstack million scaling soak build static clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z\/-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build ## Import a disk from end to end: a sample, or IMAGE=path of a disk image
	@$(BIN)/vmimport demo $(if $(IMAGE),--image '$(IMAGE)')

run: build ## Run the whole service in one process until interrupted (DATA=directory, LISTEN=host:port)
	@$(BIN)/vmimport standalone --data '$(DATA)' --listen '$(LISTEN)'

test: deps deps-node test/go ## Install what the tests need (as root), then run all of them

# Whole clusters of processes are tested by themselves, since they are timed and
# would share the cores with all the rest. What the browser saw is kept in .cache.
test/go: ## Run all tests but test-openstack's, with what is installed
	$(GO) test $(TESTFLAGS) $$($(GO) list ./... | grep -v -e /clustertest -e /portaltest -e /openstacktest -e /testenv/openstack)
	@mkdir -p .cache
	$(GO) test $(TESTFLAGS) -artifacts -outputdir .cache ./internal/portaltest
	$(GO) test $(TESTFLAGS) ./internal/clustertest

test-openstack: deps deps-openstack test-openstack/go ## Install Keystone, Swift, Glance and Nova (as root), then test against them

# Go would take an earlier result for today's, though the servers are others.
test-openstack/go: ## Test against Keystone, Swift, Glance and Nova, as they are installed
	$(GO) test -count=1 -timeout 20m -p 1 ./internal/testenv/openstack ./internal/openstacktest

openstack: deps-openstack ## Run Keystone, Swift and Glance until interrupted, to try things by hand (COMPUTE=1: and Nova)
	@$(GO) run ./internal/testenv/openstack/serve $(if $(COMPUTE),-compute)

# Debian packages, each with the command that shows it is there. A C compiler is
# what the race detector needs; the fonts are for the browser's screenshots.
DEPS := redis-server:redis-server qemu-utils:qemu-img e2fsprogs:mke2fs util-linux:partx \
	build-essential:gcc chromium,fonts-noto-cjk:chromium prometheus:promtool python3-minimal:python3

# Where mke2fs is, and what not every user's PATH has.
export PATH := $(PATH):/usr/sbin:/sbin

# Installs the packages in the shell's array "missing", as the last part of a recipe. The
# servers among them would be started, unless a policy forbids it.
define install
	if [ $${#missing[@]} -gt 0 ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			policy=/usr/sbin/policy-rc.d; \
			if [ ! -e $$policy ]; then printf '#!/bin/sh\nexit 101\n' >$$policy; chmod +x $$policy; trap "rm -f $$policy" EXIT; fi; \
			apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -o DPkg::Options::=--force-unsafe-io "$${missing[@]}"; \
		else \
			echo "The tests need these packages, which are not installed: $${missing[*]}" >&2; exit 1; \
		fi; \
	fi
endef

# $(call need,package[,package]:command ...) installs packages whose command is not there.
define need
@missing=(); for d in $(1); do command -v "$${d#*:}" >/dev/null || { p=$${d%%:*}; missing+=($${p//,/ }); }; done; $(install)
endef

deps: ## Install the Debian packages that the tests need, or say which are missing
	$(call need,$(DEPS))

# A vendor's SDK for JavaScript is what some tests speak through, and a checker of accessibility
# looks at the portal. Packages of Node.js that bring npm along conflict with Debian's.
NODE := internal/aliyuntest/node internal/portaltest/node
deps-node: ## Install Node.js and the packages for it that the tests need, or say which are missing
	$(call need,nodejs:node)
	$(call need,npm:npm)
	@for d in $(NODE); do \
		cmp -s $$d/package-lock.json $$d/node_modules/.installed || { \
			npm ci --prefix $$d --ignore-scripts --no-audit --no-fund && cp $$d/package-lock.json $$d/node_modules/.installed; } || exit 1; \
	done

# The libraries only: the packages of the services would set up servers of their own.
OPENSTACK := python3-keystone python3-glance python3-swift python3-keystonemiddleware uwsgi-core uwsgi-plugin-python3 \
	memcached python3-openstackclient python3-glanceclient python3-swiftclient python3-nova python3-placement rabbitmq-server

deps-openstack: ## Install the Debian packages that test-openstack needs, or say which are missing
	@missing=(); for p in $(OPENSTACK); do [ "$$(dpkg-query -W -f '$${db:Status-Status}' "$$p" 2>/dev/null)" = installed ] || missing+=("$$p"); done; $(install)

lint: ## gofmt, go vet, staticcheck, and that go.mod is tidy
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not formatted:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff

fuzz: ## Run each fuzz target for FUZZTIME (default 30s)
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n 1 dirname | sort -u | while read -r pkg; do \
		grep -ho '^func Fuzz[A-Za-z0-9]*' $$pkg/*_test.go | cut -c 6- | while read -r target; do \
			echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg || exit 1; \
		done || exit 1; \
	done

# Conversion is measured in memory, where there is room for it: a disk that is busy
# with the last run would be measured otherwise. The peer of whole imports hashes with
# openssl.
BENCHDIR ?= /dev/shm
bench: DEPS += openssl:openssl
bench: deps ## Measure the data path (GUEST=size of the disks): ratios of pairs in one run, and a worker's memory
	$(GO) test -run '^$$' -bench . -benchtime 5x ./storage
	TMPDIR=$(BENCHDIR) $(GO) test -run '^$$' -bench Convert -benchtime 5x -timeout 30m ./internal/diskimage/decode -bench.guest $(GUEST)
	$(GO) test -run '^$$' -bench Import -benchtime 3x -timeout 30m ./internal/clustertest -bench.guest $(GUEST)
	$(GO) test -run '^$$' -bench '(Worker|Export)Memory' -benchtime 1x ./internal/clustertest

bench-openstack: deps deps-openstack ## Measure imports into Glance against its own import (GUEST=size of the disk)
	$(GO) test -run '^$$' -bench Glance -benchtime 3x -timeout 60m ./internal/openstacktest -bench.guest $(GUEST)

million: deps ## Measure list, status and portal with a million records, and the memory of each
	$(GO) test -run '^$$' -bench Million -benchtime 1x -timeout 60m ./internal/clustertest

scaling: deps ## Measure 1, 2, 4 and 8 workers on sources of 100 MB/s each, and draw the plot (SCALE=flags)
	$(GO) test -run '^$$' -bench Scaling -benchtime 1x -timeout 30m ./internal/clustertest $(SCALE)

soak: deps ## Many processes, kills and restarts for some minutes
	$(GO) test -timeout 60m -count=1 -v ./internal/clustertest -soak

build: ## Build the programs into bin/
	$(GO) build -trimpath -o $(BIN)/ ./cmd/...

static: ## Build small static programs for Linux into bin/, as the container image has them
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

clean: ## Remove what was built
	rm -rf $(BIN) .cache
