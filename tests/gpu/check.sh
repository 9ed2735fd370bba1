#!/bin/sh
# Proves device-query on a machine with a GPU: every field against NVIDIA's own runtime, nvidia-smi and torch.
#
#   tests/gpu/check.sh [OPTIONS] [BINARY]      BINARY: the static agent; else gpu-bootstrap beside this script
#     --results DIR       where everything is written [default: gpu-check-results in the working directory]
#     --sample PROGRAM    NVIDIA's deviceQuery, built: its text must be ours
#     --without-torch     no python3 with torch here; its comparisons, bandwidth among them, are left out
#     --without-noexec    this machine does not allow the namespaces that forbid files in memory to be executed
#
# Needs root, nvcc with a C++ compiler, nvidia-smi, and python3 with torch. No Rust and no network. What is missing
# fails, it is not skipped. The last line is compared=N equal=N missing=N; exits 0 only if all is equal.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
results=gpu-check-results
binary="" sample="" torch=yes noexec=yes
while [ $# -gt 0 ]; do
	case $1 in
	--results) results=$2 && shift ;;
	--sample) sample=$2 && shift ;;
	--without-torch) torch=no ;;
	--without-noexec) noexec=no ;;
	-*) echo "check.sh: no option is called $1" >&2 && exit 2 ;;
	*) binary=$1 ;;
	esac
	shift
done
binary=$(realpath "${binary:-$here/gpu-bootstrap}")
python=${PYTHON:-python3}
# Where this machine's /proc and /sys are; the test of this script has made-up ones.
root=${GPU_CHECK_ROOT:-}
mkdir -p "$results"
results=$(realpath "$results")
# What an earlier check left must not pass for this one's.
find "$results" -mindepth 1 -delete
cd "$results"

fail() {
	echo "check.sh: $1" >&2
	echo "compared=0 equal=0 missing=1"
	exit 1
}
[ -x "$binary" ] || fail "$binary is not there, or is no program"
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
for need in "$nvcc" nvidia-smi cc "$python"; do
	command -v "$need" >/dev/null 2>&1 || fail "$need is not there"
done
if [ $torch = yes ] && ! "$python" -c 'import torch' 2>torch.log; then
	fail "$python has no torch; set PYTHON to one that has, or leave its comparisons out with --without-torch"
fi

# device-query into FILE.json (or .txt); its exit code into FILE.status. A failing GPU is a result, too.
query() {
	name=$1
	shift
	status=0
	"$@" >"$name.out" 2>"$name.err" || status=$?
	echo "$status" >"$name.status"
	case " $* " in
	*" --text "*) mv "$name.out" "$name.txt" ;;
	*) mv "$name.out" "$name.json" ;;
	esac
}

echo "== the machine"
"$binary" --version >version.txt
cat "$root/proc/driver/nvidia/version" >proc-version.txt 2>/dev/null || fail "no NVIDIA kernel module is loaded"
cat "$root/sys/class/dmi/id/product_name" >product.txt 2>/dev/null || : >product.txt
: >pci.txt
: >numa.txt
for device in "$root"/sys/bus/pci/devices/*; do
	[ "$(cat "$device/vendor" 2>/dev/null)" = 0x10de ] || continue
	case $(cat "$device/class") in 0x0300* | 0x0302*) ;; *) continue ;; esac
	address=${device##*/}
	echo "$address" >>pci.txt
	node=$(cat "$device/numa_node" 2>/dev/null || echo -1)
	list=$root/sys/devices/system/node/node$node/cpulist
	[ "$node" -lt 0 ] || [ ! -e "$list" ] || printf '%s\t%s\t%s\n' "$address" "$node" "$(cat "$list")" >>numa.txt
done
cat "$root/usr/local/cuda/version.json" >toolkit.json 2>/dev/null || : >toolkit.json
ldconfig -p >linker.txt 2>/dev/null || /sbin/ldconfig -p >linker.txt || fail "ldconfig fails"
grep -oE 'lib(cudart|cudnn|cublas|nccl)\.so\.[0-9.]+ .*' linker.txt | sed 's/.*=> //' >installed.txt || : >installed.txt
# A container may forbid it to root as well; the agent then must say that it cannot tell.
dmesg >dmesg.txt 2>/dev/null || rm dmesg.txt
# Programs of the driver may hang where the GPU is sick.
timeout 120 nvidia-smi || fail "nvidia-smi fails"
cat proc-version.txt

echo "== three queries, timed"
for i in 1 2 3; do
	before=$(date +%s%N)
	query query "$binary" device-query --json
	after=$(date +%s%N)
	echo "query $i: $(((after - before) / 1000000)) ms" | tee -a timing.txt
done

echo "== text, and bandwidth"
query query "$binary" device-query --text
cat query.txt query.err
timeout 120 nvidia-smi -q -x >smi.xml || fail "nvidia-smi -q -x fails"
timeout 120 nvidia-smi nvlink -s >nvlink.txt || : # says so, and fails, where there is no NVLink
before=$(date +%s%N)
query bandwidth "$binary" device-query --json --bandwidth
after=$(date +%s%N)
echo "query with bandwidth: $(((after - before) / 1000000)) ms" | tee -a timing.txt
query bandwidth-text "$binary" device-query --text --bandwidth
cat bandwidth-text.err
"$python" - "$root" >libraries.txt <<'PYTHON'
import json, os, subprocess, sys

root = sys.argv[1]

def dpkg(*words):
    """What dpkg's own program says; empty where it knows nothing, or is not there."""
    try:
        query = ["dpkg-query", "--admindir=" + root + "/var/lib/dpkg", *words]
        return subprocess.run(query, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""

for library in json.load(open("bandwidth.json"))["libraries"]:
    path = root + library["path"]
    if os.path.exists(path):
        file = os.path.realpath(path)
        owner = dpkg("-S", file[len(root):]).split(": ")[0].split(",")[0]
        version = dpkg("-W", "-f", "${Version}", owner) if owner else ""
        print(library["path"], file, owner.split(":")[0], version, sep="\t")
PYTHON

echo "== the caller's environment"
echo 'void __attribute__((constructor)) loaded(void) { __builtin_trap(); }' >trap.c
cc -shared -fPIC -o trap.so trap.c || fail "cc cannot compile"
query environment env CUDA_VISIBLE_DEVICES= LD_PRELOAD="$results/trap.so" "$binary" device-query --json

echo "== two at once"
query together-1 "$binary" device-query --json &
one=$!
query together-2 "$binary" device-query --json
wait "$one"

if [ $noexec = yes ]; then
	echo "== no file in memory may be executed, nor one in /run"
	# shellcheck disable=SC2016 # expanded by the inner shell
	query noexec unshare --pid --mount --fork --mount-proc sh -c \
		'echo 2 >/proc/sys/vm/memfd_noexec && mount -t tmpfs -o noexec none /run && exec "$@"' \
		sh "$binary" device-query --json
	[ -s noexec.json ] || fail "no namespace that forbids it: $(cat noexec.err); if that cannot be changed: --without-noexec"
fi

echo "== NVIDIA's own runtime"
"$nvcc" --version | tee nvcc.txt
"$nvcc" -o truth "$here/truth.cu" -ldl || fail "nvcc cannot compile truth.cu"
CUDA_DEVICE_ORDER=PCI_BUS_ID timeout 300 ./truth >truth.json || fail "truth.cu does not run"
if [ $torch = yes ]; then
	echo "== torch"
	timeout 600 "$python" "$here/torch_truth.py" bandwidth.json >torch.json || fail "torch does not run"
fi
if [ -n "$sample" ]; then
	echo "== NVIDIA's deviceQuery"
	CUDA_DEVICE_ORDER=PCI_BUS_ID timeout 300 "$sample" >sample.txt || fail "$sample does not run"
fi

echo "== comparison"
set --
[ $torch = yes ] || set -- "$@" --without-torch
[ $noexec = yes ] || set -- "$@" --without-noexec
status=0
"$python" "$here/compare.py" . "$@" >comparison.txt || status=$?
cat comparison.txt
exit $status
