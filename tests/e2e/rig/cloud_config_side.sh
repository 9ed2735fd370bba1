#!/bin/bash
# One side of tests/e2e/cloud-config, as process 1 of namespaces of its own:
#   cloud_config_side.sh BASE WORK NAME COMMAND...
# BASE, a root, gets a layer on top that vanishes; WORK/NAME.given is copied to /given in it; COMMAND runs in it, without
# network. What the layer has then is packed to WORK/NAME.tar.
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
hostname before
ip link set lo up
status=0
chroot "$root" "$@" >"$work/$name.said" 2>&1 || status=$?
tar --create --file "$work/$name.tar" --numeric-owner --xattrs --directory "$layer/upper" .
hostname >"$work/$name.hostname"
exit "$status"
