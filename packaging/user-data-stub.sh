# The fixed part of the user-data stub. src/user_data_stub.rs puts the first lines before it and the values after it
# ($url, $shown: the URL without secrets, $sum, $agent) that its functions use.
# shellcheck shell=sh disable=SC2154
set -u
umask 022
: "${PATH:=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export PATH

say() {
	printf 'gpu-bootstrap: %s\n' "$1" >&2
	{ printf 'gpu-bootstrap: %s\n' "$1" >/dev/console; } 2>/dev/null || :
}

fail() {
	say "$1"
	exit 1
}

temp=
trap 'rm -f "$temp"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# temp_beside FILE: makes $temp in FILE's directory, so that the rename is atomic.
temp_beside() {
	mkdir -p "${1%/*}" || fail "cannot make ${1%/*}"
	temp=$(mktemp "${1%/*}/.gpu-bootstrap.XXXXXX") || fail "cannot write to ${1%/*}"
}

# keep FILE MODE: puts $temp in FILE's place, whole or not at all, even if the power fails now.
keep() {
	{ chmod "$2" "$temp" && sync "$temp" && mv -f "$temp" "$1"; } || fail "cannot write $1"
	temp=
}

# write FILE: standard input becomes FILE.
write() {
	temp_beside "$1"
	cat >"$temp" || fail "cannot write $1"
	keep "$1" 0644
}

# One attempt to download $url to $temp with the first of the three programs that is there.
fetch() {
	if command -v curl; then
		curl --fail --silent --show-error --location --globoff --connect-timeout 20 \
			--speed-limit 1000 --speed-time 60 --output "$temp" "$url"
	elif command -v wget; then
		# Not by wget's -T: busybox 1.35 crashes on it.
		timeout 300 wget -q -O "$temp" "$url"
	elif command -v python3; then
		python3 -c '
import shutil, sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=60) as answer, open(sys.argv[2], "wb") as file:
    shutil.copyfileobj(answer, file)
    size = answer.headers.get("Content-Length")
    if size and int(size) != file.tell():
        sys.exit("the download was cut off")
' "$url" "$temp"
	else
		echo 'none of curl, wget and python3 is installed'
		return 1
	fi
}

download() {
	pause=2
	# 2 + 4 + 8 + 16 + 32 s: a name server or gateway that comes up late is waited for.
	until answer=$(fetch 2>&1); do
		code=$?
		answer=$(printf '%s\n' "$answer" | tail -n 1)
		[ "$pause" -le 32 ] || fail "cannot download $shown: $answer (exit status $code)"
		sleep "$pause"
		pause=$((pause * 2))
	done
}

sum_of() {
	set -- "$(sha256sum "$1")"
	printf '%s' "${1%% *}"
}

[ "$(id -u)" = 0 ] || fail 'the stub must run as root'
[ -d /run/systemd/system ] || fail 'this machine does not run systemd, which the agent is started by; nothing was installed'
