# A thin front: the work is done by xtask (`cargo xtask --help`).

PREFIX ?= /usr/local
HYPERVISOR ?= auto
# The first time there is something to look at while it compiles.
XTASK := cargo run $(if $(wildcard target/debug/xtask),--quiet) --locked --package xtask --

.PHONY: help run test bench build kernel install uninstall clean

help:
	@echo 'make run        run a container in its own virtual machine   [HYPERVISOR=auto|kvm|uml|qemu]'
	@echo 'make test       everything CI runs                           [TEST=part-of-a-name] [HYPERVISOR=kvm]'
	@echo 'make bench      start time, memory, throughput beside peers  [BENCH=options]'
	@echo 'make build      programs, initramfs and kernels under build/'
	@echo 'make kernel     the guest kernels only'
	@echo 'make install    copy build/ to a prefix                      [PREFIX=/usr/local]'
	@echo 'make uninstall  remove it again                              [PREFIX=/usr/local]'
	@echo 'make clean      remove what was built here; built kernels stay in the cache'

run:
	@$(XTASK) run --hypervisor $(HYPERVISOR)

test:
	@$(XTASK) test $(if $(filter-out auto,$(HYPERVISOR)),--hypervisor $(HYPERVISOR)) $(TEST)

bench:
	@$(XTASK) bench -- $(BENCH)

build:
	@$(XTASK) build

kernel:
	@$(XTASK) kernel

install: build
	@$(XTASK) install --prefix $(PREFIX)

uninstall:
	@$(XTASK) uninstall --prefix $(PREFIX)

clean:
	rm -rf build target fuzz/target
