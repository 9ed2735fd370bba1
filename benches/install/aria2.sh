#!/bin/sh
# The way of apt-fast: apt says what to fetch, aria2 fetches it over several connections per file into apt's cache and
# verifies it, apt installs. aria2 runs outside of the root ($ROOT), which so stays the same for every variant.
# usage: aria2.sh APT_INSTALL_COMMAND CERTIFICATE|- PACKAGE...
# shellcheck disable=SC2086 # two variables have a command of several words, or nothing
set -eu
install="$1" certificate="$2"
shift 2
list=$(mktemp)
trap 'rm -f "$list"' EXIT
chroot "$ROOT" apt-get update
# One line is 'URL' NAME SIZE SHA256:DIGEST
chroot "$ROOT" $install --print-uris -qq -o Acquire::ForceHash=SHA256 "$@" |
    sed -n "s/^'\([^']*\)' \([^ ]*\) [0-9]* SHA256:\([0-9a-f]*\)$/\1\n  out=\2\n  checksum=sha-256=\3/p" >"$list"
[ "$certificate" = - ] && certificate="" || certificate="--ca-certificate=$certificate"
# apt-fast's own settings: 5 files at once, 10 connections to a server, 8 to a file, pieces of 1 MB and more. Only
# falloc is ours: aria2 would else write every file twice.
aria2c --no-conf --continue --max-concurrent-downloads=5 --max-connection-per-server=10 --split=8 --min-split-size=1M \
    --stream-piece-selector=default --connect-timeout=600 --timeout=600 --max-tries=0 --file-allocation=falloc --quiet \
    $certificate --input-file="$list" --dir="$ROOT/var/cache/apt/archives"
echo "aria2: all fetched"
exec chroot "$ROOT" $install "$@"
