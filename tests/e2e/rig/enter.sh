#!/bin/bash
# Process 1 of a simulated instance, started by instance.py inside new namespaces:
#   enter.sh BASE DIR
# BASE is the read-only root, DIR/fs keeps what the instance writes, DIR/pci is the simulated hardware.  Where BASE is a block
# device, it is the root itself.
set -eu
base="$1" dir="$2" root="$2/root"

if [ -b "$base" ]; then
    mount "$base" "$root"
else
    mount -t overlay overlay -o "lowerdir=$base,upperdir=$dir/fs/upper,workdir=$dir/fs/work" "$root"
fi
mount -t proc proc "$root/proc"

# Nothing can be created inside sysfs, and /sys/class/dmi may be missing here: so /sys is a tmpfs of bind mounts.
real="$dir/sysfs"
mount -t sysfs sysfs "$real"
mount -t tmpfs -o mode=755 tmpfs "$root/sys"
for part in "$real"/*; do
    name="${part##*/}"
    mkdir "$root/sys/$name"
    [ "$name" = class ] || mount --bind "$part" "$root/sys/$name"
done
for part in "$real"/class/*; do
    name="${part##*/}"
    mkdir "$root/sys/class/$name"
    [ "$name" = dmi ] || mount --bind "$part" "$root/sys/class/$name"
done
mkdir -p "$root/sys/class/dmi/id"
mount --bind "$dir/pci/dmi-id" "$root/sys/class/dmi/id"
umount -l "$real"
mount --bind "$dir/pci/sys-bus-pci" "$root/sys/bus/pci"
mount --bind "$dir/pci/proc-bus-pci" "$root/proc/bus/pci"

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/lock" "$root/dev/pts" "$root/dev/shm"
while read -r name major minor; do
    mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done <<'NODES'
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
NODES
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
: >"$root/dev/console"

hostname ip-10-0-0-23
mkdir -p "$root/.outside"
cd "$root"
pivot_root . .outside
hash -r # programs may lie elsewhere here: Ubuntu 18.04 has /bin apart from /usr/bin
umount -l /.outside
rmdir /.outside
cd /
: >/run/instance-is-up
trap '' TERM INT HUP
# bash, as process 1, reaps what is orphaned
while :; do
    sleep 1000 &
    wait $! || true
done
