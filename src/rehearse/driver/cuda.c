/* Stands in for libcuda.so.1: gpus=8xH100, driver=12080, hang|crash|abort|grandchild=FUNCTION, fail=FUNCTION=CODE,
 * bitflip=DEVICE, idle_multiprocessor=DEVICE, no_peer=FROM-TO, cuda_gpus=, compute_mode=, pci=ADDRESSES, label=,
 * needs=FILE (802 without it, as without a fabric manager), slow_link=DEVICE, hang_pair|fail_pair|wrong_pair=FROM-TO,
 * only_cpu=CPU (memory for copies is given to a process on this CPU alone). Kernels are emulated on the CPU; the
 * device's memory is the host's. */
#define _GNU_SOURCE
#include "settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int gpus(void) { return number("cuda_gpus", number("gpus", 1)); }
static int current;

static int is_ready(void) {
    const char *needed = setting("needs");
    char path[256];
    if (!needed) return 1;
    snprintf(path, sizeof path, "%.*s", (int)strcspn(needed, "\n"), needed);
    return access(path, F_OK) == 0;
}
int cuInit(unsigned flags) { FAULTS; (void)flags; return !gpus() ? 100 : is_ready() ? 0 : 802; }
int cuDriverGetVersion(int *number_of) {
    FAULTS;
    struct version v = version("cuda");
    *number_of = number("driver", v.part[0] * 1000 + v.part[1] * 10);
    return 0;
}
int cuDeviceGetCount(int *count) { FAULTS; *count = gpus(); return 0; }
int cuDeviceGet(int *device, int index) { FAULTS; if (index < 0 || index >= gpus()) return 101; *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int d) { FAULTS; (void)d; print_name(name, size); return 0; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int d) { FAULTS; for (int i = 0; i < 16; i++) uuid[i] = uuid_byte(d, i); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int d) { FAULTS; (void)d; *bytes = model()->memory; return 0; }
int cuDeviceGetPCIBusId(char *address, int size, int d) { FAULTS; snprintf(address, size, "0000:%02X:%02X.0", bus(d), slot(d)); return 0; }
int cuDeviceCanAccessPeer(int *can, int from, int to) {
    FAULTS;
    char pair[16];
    snprintf(pair, sizeof pair, "%d-%d", from, to);
    *can = !names("no_peer", pair);
    return 0;
}
int cuDeviceGetAttribute(int *v, int attribute, int d) {
    FAULTS;
    const struct model *m = model();
    switch (attribute) {
    case 1: case 2: case 3: *v = 1024; break;
    case 4: *v = 64; break;
    case 5: case 11: *v = 2147483647; break;
    case 6: case 7: *v = 65535; break;
    case 8: *v = 49152; break;
    case 9: case 12: case 82: *v = 65536; break;
    case 10: case 106: *v = 32; break;
    case 13: *v = m->clock; break;
    case 14: case 30: *v = 512; break;
    case 16: *v = m->multiprocessors; break;
    case 17: case 18: case 50: case 133: *v = 0; break;
    case 20: *v = number("compute_mode", 0); break;
    case 21: case 22: *v = 131072; break;
    case 23: *v = 65536; break;
    case 24: case 25: case 26: *v = 16384; break;
    case 27: case 28: case 42: *v = 32768; break;
    case 29: case 43: *v = 2048; break;
    case 33: *v = bus(d); break;
    case 34: *v = slot(d); break;
    case 36: *v = m->memory_clock; break;
    case 37: *v = m->bus; break;
    case 38: *v = m->l2; break;
    case 39: *v = m->threads; break;
    case 40: *v = m->copies; break;
    case 75: *v = m->major; break;
    case 76: *v = m->minor; break;
    case 81: *v = m->shared; break;
    case 97: *v = m->shared - 1024; break;
    case 131: *v = -1; break;
    case 15: case 19: case 31: case 32: case 41: case 83: case 88: case 90: case 95: case 96: *v = 1; break;
    default: return 1; /* this driver does not know it */
    }
    return 0;
}
int cuGetErrorName(int code, const char **name) {
    *name = code == 100 ? "CUDA_ERROR_NO_DEVICE" : code == 802 ? "CUDA_ERROR_SYSTEM_NOT_READY" : "CUDA_ERROR_SIMULATED";
    return 0;
}
int cuGetErrorString(int code, const char **words) { (void)code; *words = "a simulated failure"; return 0; }

int cuDevicePrimaryCtxRetain(void **context, int d) { FAULTS; *context = (void *)(intptr_t)(d + 1); return 0; }
int cuCtxSetCurrent(void *context) { FAULTS; current = (int)(intptr_t)context - 1; return 0; }
int cuCtxSynchronize(void) { FAULTS; return 0; }
int cuModuleLoadDataEx(void **module, const char *ptx, unsigned n, int *options, void **values) {
    int code = fault(__func__);
    if (!code && !(strstr(ptx, ".entry mix(") && strstr(ptx, ".entry where_ran("))) code = 218;
    if (code && n == 2 && options[0] == 5) snprintf(values[0], (size_t)values[1], "a simulated compiler message");
    *module = (void *)1;
    return code;
}
int cuModuleGetFunction(void **f, void *module, const char *name) {
    FAULTS;
    (void)module;
    *f = (void *)(intptr_t)(!strcmp(name, "mix") ? 1 : !strcmp(name, "where_ran") ? 2 : 0);
    return *f ? 0 : 500;
}
int cuMemAlloc_v2(uint64_t *p, size_t n) { FAULTS; *p = (uint64_t)(uintptr_t)malloc(n); return *p ? 0 : 2; }
static int on_wanted_cpu(void) {
    unsigned long set[16] = {0}; /* the kernel's own mask: 1024 CPUs */
    long wanted = number("only_cpu", -1), count = 0;
    if (wanted < 0) return 1;
    if (syscall(SYS_sched_getaffinity, 0, sizeof set, set) < 0) return 0;
    for (unsigned cpu = 0; cpu < 8 * sizeof set; cpu++) count += set[cpu / 64] >> cpu % 64 & 1;
    return count == 1 && set[wanted / 64] >> wanted % 64 & 1;
}
int cuMemHostAlloc(void **p, size_t n, unsigned flags) { FAULTS; (void)flags; if (!on_wanted_cpu()) return 2; *p = malloc(n); return *p ? 0 : 2; }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t n) { FAULTS; memcpy((void *)(uintptr_t)to, from, n); return 0; }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n) { FAULTS; memcpy(to, (void *)(uintptr_t)from, n); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t a, const void *b, size_t n, void *s) { FAULTS; (void)a; (void)b; (void)n; (void)s; return 0; }
int cuMemcpyDtoHAsync_v2(void *a, uint64_t b, size_t n, void *s) { FAULTS; (void)a; (void)b; (void)n; (void)s; return 0; }
int cuMemcpyDtoDAsync_v2(uint64_t a, uint64_t b, size_t n, void *s) { FAULTS; (void)a; (void)b; (void)n; (void)s; return 0; }
int cuStreamCreate(void **s, unsigned flags) { FAULTS; (void)flags; *s = (void *)3; return 0; }
int cuStreamSynchronize(void *s) { FAULTS; (void)s; return 0; }
int cuEventCreate(void **e, unsigned flags) { FAULTS; (void)flags; *e = (void *)4; return 0; }
int cuEventRecord(void *e, void *s) { FAULTS; (void)e; (void)s; return 0; }
/* 256 MiB in 5 ms are 53.687 GB/s; in 25 ms, 10.737. */
int cuEventElapsedTime(float *ms, void *a, void *b) { FAULTS; (void)a; (void)b; *ms = number("slow_link", -1) == current ? 25.0f : 5.0f; return 0; }
static int reaches[64][64];
int cuCtxEnablePeerAccess(void *to, unsigned flags) {
    FAULTS;
    int *open = &reaches[current][(intptr_t)to - 1];
    if (flags) return 1;
    return (*open)++ ? 704 : 0;
}
int cuMemsetD32_v2(uint64_t to, unsigned word, size_t n) { FAULTS; while (n--) ((uint32_t *)(uintptr_t)to)[n] = word; return 0; }
/* Copies the ends of the buffer alone: they are what is looked at, and 56 pairs of whole ones would take a while. */
int cuMemcpyPeerAsync(uint64_t to, void *there, uint64_t from, void *here, size_t n, void *s) {
    FAULTS;
    (void)s;
    int a = (int)(intptr_t)here - 1, b = (int)(intptr_t)there - 1;
    char pair[32];
    snprintf(pair, sizeof pair, "%d-%d", a, b);
    if (a != current || !reaches[a][b]) return 201; /* not the way in which it is to be asked */
    if (names("hang_pair", pair)) for (;;) pause();
    if (names("fail_pair", pair)) return 719;
    if (names("wrong_pair", pair)) return 0;
    size_t end = n < 65536 ? n : 65536;
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, end);
    memcpy((char *)(uintptr_t)to + n - end, (char *)(uintptr_t)from + n - end, end);
    return 0;
}

static int mix(void **p, uint64_t threads) {
    uint32_t *out = (uint32_t *)(uintptr_t)*(uint64_t *)p[0], *in = (uint32_t *)(uintptr_t)*(uint64_t *)p[1];
    uint32_t n = *(uint32_t *)p[2], seed = *(uint32_t *)p[3], rounds = *(uint32_t *)p[4];
    if (threads < n) return 1; /* too few threads for the elements */
    for (uint32_t i = 0; i < n; i++) {
        uint32_t x = in[i] + i;
        for (uint32_t r = rounds; r; r--) { x ^= seed; x *= 0x9E3779B1u; x ^= x >> 15; x = x * 0x85EBCA77u + r; }
        out[i] = x;
    }
    if (number("bitflip", -1) == current) out[12345] ^= 1u << 7;
    return 0;
}
static int where_ran(void **p, uint64_t threads) {
    uint32_t *out = (uint32_t *)(uintptr_t)*(uint64_t *)p[0], n = *(uint32_t *)p[1];
    for (uint32_t i = 0; i < n; i++) out[i] = threads / n;
    if (number("idle_multiprocessor", -1) == current) out[0] = 0;
    return 0;
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream, void **p, void **extra) {
    FAULTS;
    (void)shared; (void)stream; (void)extra;
    if (gy != 1 || gz != 1 || by != 1 || bz != 1 || bx > 1024) return 1;
    return f == (void *)1 ? mix(p, (uint64_t)gx * bx) : where_ran(p, (uint64_t)gx * bx);
}
