/* Stands in for libnvidia-ml.so.1: the settings of cuda.c, and version=, nvml_gpus=, lost=GPU, and for one GPU each:
 * remap_pending, remap_failed, ecc_uncorrected, nvlink_down, nvlink_few, nvlink_off, pcie_x8, too_hot, busy, persistence_off,
 * fabric_waits, recovery, mig, mig_pending, replays, prohibited, retired_double, retired_full. */
#include "settings.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int gpus(void) { return number("nvml_gpus", number("gpus", 1)); }
static int index_of(void *gpu) { return (int)(intptr_t)gpu - 1; }
static int is(const char *key, void *gpu) { return number(key, -1) == index_of(gpu); }
/* Hopper and later register with the fabric manager. */
static int switched(void) { return links() == 18; }

int nvmlInit_v2(void) { FAULTS; return 0; }
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : code == 15 ? "GPU is lost" : "a simulated failure"; }
int nvmlSystemGetDriverVersion(char *v, unsigned n) {
    FAULTS;
    snprintf(v, n, "%s", version_text("version"));
    return 0;
}
int nvmlDeviceGetCount_v2(unsigned *n) { FAULTS; *n = gpus(); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **gpu) {
    FAULTS;
    *gpu = (void *)(intptr_t)(i + 1);
    return is("lost", *gpu) ? 15 : 0;
}
/* The way in which a process asks that loads the link meanwhile. */
static int under_load;
int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **gpu) {
    FAULTS;
    int index = gpu_at(address);
    if (index < 0 || index >= gpus()) return 6;
    under_load = 1;
    *gpu = (void *)(intptr_t)(index + 1);
    return 0;
}
int nvmlDeviceGetName(void *g, char *name, unsigned n) { FAULTS; (void)g; print_name(name, n); return 0; }
int nvmlDeviceGetUUID(void *g, char *uuid, unsigned n) {
    FAULTS;
    int at = snprintf(uuid, n, "GPU-");
    for (int i = 0; i < 16; i++) at += snprintf(uuid + at, n - at, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid_byte(index_of(g), i));
    return 0;
}
int nvmlDeviceGetPciInfo_v3(void *g, char *info) { FAULTS; memset(info, 0, 68); snprintf(info + 36, 32, "00000000:%02X:%02X.0", bus(index_of(g)), slot(index_of(g))); return 0; }
#define NUMBER(function, value) int function(void *g, unsigned *x) { FAULTS; (void)g; *x = (value); return 0; }
NUMBER(nvmlDeviceGetPersistenceMode, !is("persistence_off", g))
NUMBER(nvmlDeviceGetComputeMode, is("prohibited", g) ? 2 : number("compute_mode", 0))
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, under_load ? 5 : 1)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, 5)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, is("pcie_x8", g) ? 8 : 16)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, 16)
NUMBER(nvmlDeviceGetPcieReplayCounter, 3 + (under_load && is("replays", g) ? 7 : 0))
/* With report_user: who asks. */
NUMBER(nvmlDeviceGetPowerUsage, number("report_user", 0) ? getuid() : 71000)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, 700000)
NUMBER(nvmlDeviceGetMaxMigDeviceCount, 7)
/* As of an H100 80GB: what the driver keeps is in it, which CUDA's number leaves out. */
int nvmlDeviceGetMemoryInfo(void *g, uint64_t *memory) { FAULTS; (void)g; memory[0] = 81559ull << 20; memory[1] = 80994ull << 20; memory[2] = 565ull << 20; return 0; }
int nvmlDeviceGetTemperature(void *g, int sensor, unsigned *x) { FAULTS; (void)g; *x = sensor == 0 ? 41 : 0; return 0; }
int nvmlDeviceGetTemperatureV(void *g, uint32_t *info) { FAULTS; (void)g; if (info[0] != (12 | 1 << 24) || info[1]) return 25; info[2] = 42; return 0; }
int nvmlDeviceGetEccMode(void *g, unsigned *now, unsigned *pending) { FAULTS; (void)g; *now = *pending = 1; return 0; }
int nvmlDeviceGetMigMode(void *g, unsigned *now, unsigned *pending) { FAULTS; *now = is("mig", g); *pending = *now || is("mig_pending", g); return 0; }
int nvmlDeviceGetGspFirmwareMode(void *g, unsigned *now, unsigned *usual) { FAULTS; (void)g; *now = *usual = 1; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *g, unsigned i, void **mig) { FAULTS; *mig = g; return is("mig", g) && i < 3 ? 0 : 6; }
int nvmlDeviceGetTotalEccErrors(void *g, int kind, int counter, uint64_t *n) { FAULTS; *n = is("ecc_uncorrected", g) && kind == 1 && counter == 0 ? 2 : 0; return 0; }
int nvmlDeviceGetRemappedRows(void *g, unsigned *c, unsigned *u, unsigned *p, unsigned *f) { FAULTS; *c = 0; *p = is("remap_pending", g); *f = is("remap_failed", g); *u = *p + *f; return 0; }
int nvmlDeviceGetCurrentClocksEventReasons(void *g, uint64_t *mask) { FAULTS; *mask = is("too_hot", g) ? 0x40 : 1; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *g, unsigned *count, void *list) { FAULTS; (void)list; *count = is("busy", g) ? 3 : 0; return *count ? 7 : 0; }
int nvmlDeviceGetRetiredPages(void *g, int cause, unsigned *count, uint64_t *pages) {
    FAULTS;
    (void)pages;
    *count = cause == 1 ? (is("retired_double", g) ? 2 : 0) : (is("retired_full", g) ? 64 : 0);
    return !is("retired_double", g) && !is("retired_full", g) ? 3 : *count ? 7 : 0;
}
int nvmlDeviceGetNvLinkState(void *g, unsigned link, unsigned *state) { FAULTS; if (link >= (unsigned)links() - (is("nvlink_few", g) ? 2 : 0)) return 3; *state = !(is("nvlink_down", g) && link == 4) && !is("nvlink_off", g); return 0; }
int nvmlDeviceGetGpuFabricInfoV(void *g, uint32_t *info) {
    FAULTS;
    if (info[0] != (36 | 2 << 24)) return 25; /* the caller's structure has another version */
    if (!switched()) return 3;
    info[5] = 0;
    info[7] = is("fabric_waits", g) ? 2 : 3;
    return 0;
}
struct field { unsigned field, scope; int64_t timestamp, latency; unsigned type; int status; uint64_t value; };
int nvmlDeviceGetFieldValues(void *g, int count, struct field *fields) {
    FAULTS;
    for (int i = 0; i < count; i++) {
        fields[i].status = fields[i].field == 230 ? 0 : 3;
        fields[i].value = is("recovery", g) ? 2 : 0;
    }
    return 0;
}
