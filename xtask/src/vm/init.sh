#!/bin/busybox sh
# The first process of a guest: loads the modules, mounts the machine's own files read-only with a
# file system in memory over them, and hands over to guest.sh.
/bin/busybox --install -s /bin
export PATH=/bin

die() {
    echo "hnp-vm: $*"
    poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in /mods/*; do
    # The names begin with the number of their turn.
    insmod "$module" || echo "hnp-vm: ${module##*/} cannot be loaded"
done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host || die "no root"
mount -t tmpfs -o size=75% overlay /overlay && mkdir /overlay/upper /overlay/work
mount -t overlay -o lowerdir=/host,upperdir=/overlay/upper,workdir=/overlay/work root /new || die "no overlay"
for dir in proc sys dev; do mount --move /$dir /new/$dir || die "no /$dir"; done
mount -t tmpfs -o size=75% run /new/run && mkdir /new/run/vm
# It can unload modules; the machine may have nothing that can.
cp /bin/busybox /new/run/busybox
# Written through: what is in there survives a guest that crashes.
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none run /new/run/vm || die "no /run/vm"
exec switch_root /new /bin/sh /run/vm/guest.sh
