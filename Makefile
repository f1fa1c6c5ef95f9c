# Everything here works on a fresh clone: PostgreSQL and the tools are installed when they are missing.
# -count=1: the server is chosen before the test cache begins to note what a test depends on. -parallel: most tests wait most
# of the time.
# PG=18 chooses a major version of PostgreSQL (14 to 18); without it, what is installed.
# MAILHOOK_DATABASE_URL makes the demo use your database, MAILHOOK_TEST_DATABASE_URL the tests.
# MAILHOOK_PG_TMP: where servers of tests keep their data; in memory where 8 GB are free, for on a disk they take twice as long.

BIN := $(CURDIR)/.bin
GO_FILES = $(shell git ls-files --cached --others --exclude-standard '*.go')

# Tools are pinned in a module of their own, so that their dependencies never reach the product.
TOOLS := $(BIN)/.built

.PHONY: help build demo test check lint generate generated bench faults faults-ci faults-build fuzz fuzz-ci vuln release reproducible clean

help:
	@echo "make demo      see it work: private PostgreSQL, mail platform, worker, receivers, ledger"
	@echo "make test      all tests, against a real PostgreSQL (PG=18 for another version)"
	@echo "make check     the whole gate: format, vet, lint, generated code, tests with -race"
	@echo "make bench     throughput, latency and cost on this machine, beside River (ROW=throughput for one row)"
	@echo "make faults    break what can break, prove by ledgers that nothing is lost (SCENARIO=, SEED=, SCALE=)"
	@echo "make fuzz      each fuzz target for FUZZTIME (20s)"
	@echo "make generate  regenerate db/*.sql.go from sql/queries"
	@echo "make build     .bin/mailhook"
	@echo "make release   .bin/release/mailhook, static; make reproducible builds it twice and compares"

build:
	CGO_ENABLED=0 go build -o $(BIN)/mailhook ./cmd/mailhook

demo: build
	@bin=$$([ -n "$$MAILHOOK_DATABASE_URL" ] || .ci/postgres $(PG)) && MAILHOOK_PG_BIN=$$bin $(BIN)/mailhook demo

# The longest first, beside which the others run.
PACKAGES = ./worker ./...

# Receivers with other platforms' libraries, which are in the go.mod of that module and not in ours.
ROUNDTRIP = cd worker/roundtrip && go test -count=1 ./...

test check: export MAILHOOK_PG_TMP ?= $(shell df -Pk /dev/shm 2>/dev/null | awk '$$6 == "/dev/shm" && $$4 > 8000000 { print $$6 }')

test:
	@bin=$$([ -n "$$MAILHOOK_TEST_DATABASE_URL" ] || .ci/postgres $(PG)) && export MAILHOOK_PG_BIN=$$bin && go test -count=1 -parallel 6 -timeout 15m $(PACKAGES) && $(ROUNDTRIP)

check: lint generated vuln
	@bin=$$(.ci/postgres $(PG)) && export MAILHOOK_PG_BIN=$$bin && go test -race -count=1 -parallel 4 -timeout 15m $(PACKAGES) && $(ROUNDTRIP)
	cd bench && go test -count=1 ./...
	cd faults && go test -count=1 ./...

lint: $(TOOLS)
	@unformatted=$$(gofmt -l $(GO_FILES)); if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	$(BIN)/golangci-lint run ./...
	go mod tidy -diff
	GOOS=darwin go build -o /dev/null ./...
	go vet -tags broken ./worker
	for module in bench faults worker/roundtrip; do (cd $$module && go vet ./... && go mod tidy -diff && $(BIN)/golangci-lint run --config $(CURDIR)/.golangci.yml ./...) || exit 1; done

generate: $(TOOLS)
	$(BIN)/sqlc generate

generated: $(TOOLS)
	$(BIN)/sqlc diff

# ROW=, ONLY=, PROFILE= and SCALE= reach it through the environment: see bench/main.go.
bench: build
	cd bench && go build -o $(BIN)/bench .
	@bin=$$(.ci/postgres $(PG)) && MAILHOOK_PG_BIN=$$bin MAILHOOK_BIN=$(BIN)/mailhook RESULTS=$(CURDIR)/bench $(BIN)/bench

# SCENARIO=, SEED=, SCALE=, DURATION= and LANES= reach it through the environment: see faults/main.go.
FAULTS = bin=$$(.ci/postgres $(PG)) && MAILHOOK_PG_BIN=$$bin MAILHOOK_BIN=$(BIN)/mailhook MAILHOOK_BROKEN_BIN=$(BIN)/mailhook-broken REPORT=$(CURDIR)/docs/reliability.md $(BIN)/faults

faults-build: build
	go build -tags broken -o $(BIN)/mailhook-broken ./cmd/mailhook
	cd faults && go build -o $(BIN)/faults .

faults: faults-build
	@$(FAULTS)

# A small version of some scenarios, within 6 minutes.
faults-ci: faults-build
	@$(FAULTS) -ci

# Each target in turn, for as long: FUZZTIME=10m make fuzz. What breaks one is left in testdata/fuzz: commit it with the mend.
FUZZTIME ?= 20s
FUZZ_AT_ONCE ?= 1
FUZZ_CI = db/egress:FuzzURL httpapi:FuzzHeaders httpapi:FuzzEventType httpapi:FuzzFilters db/format:FuzzRenderer cmd/receiver:FuzzVerify cmd/mailhook:FuzzConfig
FUZZ = $(FUZZ_CI) httpapi:FuzzPatch httpapi:FuzzCursor httpapi:FuzzExcerpt db/format:FuzzMembers db/format:FuzzSecret worker:FuzzAnswer worker:FuzzErrors \
	cmd/mailhook:FuzzInert db:FuzzDuration db:FuzzEventID

fuzz:
	@printf '%s\n' $(FUZZ) | xargs -P $(FUZZ_AT_ONCE) -I TARGET sh -c 'target=TARGET; echo "$$target"; \
		go test ./$${target%:*} -run "^\$$" -fuzz "^$${target#*:}\$$" -fuzztime $(FUZZTIME)'

# Those that strangers reach first, two at a time, within 3 minutes.
fuzz-ci:
	@$(MAKE) --no-print-directory fuzz FUZZ="$(FUZZ_CI)" FUZZ_AT_ONCE=2

vuln: $(TOOLS)
	@.ci/vuln

# A static binary that depends on the commit and on the version of Go alone, wherever it is built.
RELEASE = CGO_ENABLED=0 go build -trimpath -buildvcs=true -ldflags="-s -w -buildid="

release:
	$(RELEASE) -o $(BIN)/release/mailhook ./cmd/mailhook

# Builds a clone elsewhere, with a cache of its own, and compares.
reproducible: release
	@.ci/reproducible $(BIN)/release/mailhook '$(RELEASE)'

clean:
	rm -rf $(BIN) .cache

$(TOOLS): .tools/go.mod .tools/go.sum
	mkdir -p $(BIN)
	cd .tools && GOBIN=$(BIN) go install tool
	touch $@
