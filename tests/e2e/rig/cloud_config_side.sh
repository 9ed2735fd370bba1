#!/bin/bash
# One side of tests/e2e/cloud-config, as process 1 of namespaces of its own:
#   cloud_config_side.sh BASE WORK NAME COMMAND...
# BASE, a root, gets a layer on top that vanishes; WORK/NAME.given is copied to /given in it; COMMAND runs in it, without
# network. What the layer has then is packed to WORK/NAME.tar, and what is mounted is listed in WORK/NAME.mounts.
# DISKS: names and their loop devices (`xvdb:loop3`).
set -eu
base=$1 work=$2 name=$3
shift 3
layer=$work/layer-$name
mkdir -p "$layer"
mount -t tmpfs -o mode=755 none "$layer"
mkdir "$layer/upper" "$layer/work" "$layer/root"
chmod 755 "$layer/upper"
mount -t overlay overlay -o "lowerdir=$base,upperdir=$layer/upper,workdir=$layer/work" "$layer/root"
root=$layer/root
mkdir -p "$root/given"
mount --bind "$work/$name.given" "$root/given"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 none "$root/run"
mkdir -p "$root/run/systemd/system" # systemd runs, as far as anybody can see
mount -t tmpfs -o mode=755 none "$root/dev"
for node in null:1:3 zero:1:5 random:1:8 urandom:1:9; do
    IFS=: read -r file major minor <<<"$node"
    mknod -m 666 "$root/dev/$file" c "$major" "$minor"
done
mount -t sysfs -o ro sysfs "$root/sys"
for disk in ${DISKS:-}; do
    IFS=: read -r called loop <<<"$disk"
    IFS=: read -r major minor <"/sys/class/block/$loop/dev"
    mknod -m 660 "$root/dev/$loop" b "$major" "$minor"
    ln -s "$loop" "$root/dev/$called"
done
before=$(mktemp)
awk '{print $5}' /proc/self/mountinfo >"$before"
hostname before
ip link set lo up
status=0
chroot "$root" "$@" >"$work/$name.said" 2>&1 || status=$?
awk -v root="$root" 'NR == FNR {seen[$1] = 1; next} !($5 in seen) && index($5, root) == 1 {
    for (i = 7; $i != "-"; i++); print substr($5, length(root) + 1), $(i + 1)}' "$before" /proc/self/mountinfo >"$work/$name.mounts"
rm "$before"
tar --create --file "$work/$name.tar" --numeric-owner --xattrs --directory "$layer/upper" .
hostname >"$work/$name.hostname"
exit "$status"
