#!/bin/bash
# Runs a command beside a root directory, in namespaces of its own; started by sandbox.py as process 1 of a pid namespace:
#   in_root.sh ROOT RUN_OPTIONS TOOLS LINGER [FROM:TO]... -- COMMAND...
# ROOT gets /proc, /sys, /dev, an empty /run (mount options RUN_OPTIONS) and TOOLS as /mnt; FROM:TO are bind mounts.
# The command runs outside of ROOT, which is in $ROOT, because some variants need programs that ROOT does not have.
# With LINGER=1 what the command left behind goes on when it has ended, until process 1 is killed.
set -eu
export ROOT="$1"
run="$2" tools="$3" linger="$4"
shift 4

mount --bind "$ROOT" "$ROOT" # so that the root is a mount point inside, as on a machine
while [ "$1" != -- ]; do
    mkdir -p "$ROOT${1#*:}"
    mount --bind "${1%%:*}" "$ROOT${1#*:}"
    shift
done
shift
mount -t proc proc "$ROOT/proc"
mount -t sysfs -o ro sysfs "$ROOT/sys"
mount -t tmpfs -o mode=755 tmpfs "$ROOT/dev"
mount -t tmpfs -o "mode=755,$run" tmpfs "$ROOT/run"
mkdir "$ROOT/run/lock" "$ROOT/dev/pts" "$ROOT/dev/shm"
chmod 1777 "$ROOT/run/lock" "$ROOT/dev/shm"
while read -r name major minor; do
    mknod -m 666 "$ROOT/dev/$name" c "$major" "$minor"
done <<'NODES'
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
NODES
mount -t devpts -o newinstance,ptmxmode=666 devpts "$ROOT/dev/pts"
ln -s pts/ptmx "$ROOT/dev/ptmx"
ln -s /proc/self/fd "$ROOT/dev/fd"
ln -s /proc/self/fd/0 "$ROOT/dev/stdin"
ln -s /proc/self/fd/1 "$ROOT/dev/stdout"
ln -s /proc/self/fd/2 "$ROOT/dev/stderr"
mount -t tmpfs -o mode=755 tmpfs "$ROOT/mnt"
cp -a "$tools/." "$ROOT/mnt/"

echo "in_root: begin"
status=0
"$@" &
wait $! || status=$?
echo "in_root: end $status"
[ "$linger" = 0 ] || exec sleep infinity
exit "$status"
