#!/bin/sh
# Runs in a guest as its first process, in the machine's own user land: makes a plain node of it (one
# cgroup2 hierarchy, a bpffs), runs the scenarios and turns the guest off. Results go to /run/vm.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
say() { echo "hnp-vm: $*"; }
uptime() { read -r up _ </proc/uptime && echo "$up"; }
finish() {
    echo "$1" >/run/vm/status
    read -r _ user _ sys idle _ </proc/stat && say "processor: user $user, system $sys, idle $idle (1/100 s)"
    say "status $1 at $(uptime) s"
    sync
    echo o >/proc/sysrq-trigger
    # The kernel turns the machine off in a moment; the first process must not end before.
    while :; do sleep 1; done
}
need() { "$@" || { say "failed: $*"; finish "set-up"; }; }

# What the worlds need of a node. Linux 5.10 charges BPF maps to the locked memory of processes.
ulimit -l unlimited
ulimit -n 1048576
# In memory, and not below /run, which nodes of the node tier have their own of.
need mount -t tmpfs -o size=75% srv /srv
need mkdir -p /dev/shm /dev/pts /run/netns /srv/tmp
need mount -t tmpfs shm /dev/shm
need mount -t devpts pts /dev/pts
need mount -t cgroup2 cgroup /sys/fs/cgroup
need mount -t bpf bpf /sys/fs/bpf
need mkdir /sys/fs/cgroup/init.scope
echo $$ >/sys/fs/cgroup/init.scope/cgroup.procs
# As systemd does.
echo "+cpu +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
need ip link set lo up
# The number of times this machine was cloned (https://lwn.net/Articles/855875): aws-lc then takes its seeds from the
# kernel. The other way is to measure a processor's jitter for seconds, by code that is not to be optimised.
need dd if=/dev/zero of=/dev/sysgenid bs=4096 count=1 status=none

# PATH, HOME, CRATE, WITHOUT_MODULES, what the scenarios are told, and run() with the scenarios' arguments.
. /run/vm/job.sh

# Into memory: a page of a program that comes through a file system of the machine's costs more than all
# the rest. From the folder whose reads are not cached: Linux 5.10 fills its cache in pieces of 4 KiB.
need mkdir -p /srv/hnp/deps
need cp /run/vm/programs/* /srv/hnp/
need mv /srv/hnp/scenarios /srv/hnp/deps/scenarios
: >/srv/hnp/CACHEDIR.TAG
if [ -d "$HNP_NODE_PACKAGES" ]; then
    need cp -r "$HNP_NODE_PACKAGES" /srv/packages
    export HNP_NODE_PACKAGES=/srv/packages
fi
need cd "$CRATE"
export TMPDIR=/srv/tmp HNP_AGENT_BIN=/srv/hnp/hnp-agent HNP_TEST_PATIENCE=10 HNP_TEST_VM=1 HNP_TEST_LACKS=/run/vm/lacks
say "user land at $(uptime) s, $(uname -r)"
run /srv/hnp/deps/scenarios >/run/vm/scenarios.log 2>&1
status=$?
# Once more without what older kernels attach the guard by. A module that a namespace uses, which is about to
# end, can be unloaded in a moment; one that is built in cannot, and the scenario sees that for itself.
unload() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [ -d "/sys/module/$1" ] || return
        /run/busybox rmmod "$1" 2>/run/rmmod && return
        sleep 1
    done
    say "cannot unload $1: $(cat /run/rmmod)"
    return 1
}
if [ -n "$WITHOUT_MODULES" ]; then
    unload cls_bpf && unload sch_ingress || status=1
    /srv/hnp/deps/scenarios --exact "$WITHOUT_MODULES" --nocapture --test-threads=2 >/run/vm/without-modules.log 2>&1 || status=$?
    cat /run/vm/without-modules.log >>/run/vm/scenarios.log
fi
finish $status
