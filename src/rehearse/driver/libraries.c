/* Stands in for libcudart, libcudnn, libcublas and libnccl. Each says the version that is stamped into it, or that
 * of the settings: cudart=12.6, cudnn=9.5.0, cublas=…, nccl=…. */
#include "settings.h"

int cudaRuntimeGetVersion(int *number) {
    FAULTS;
    struct version v = version("cudart");
    *number = v.part[0] * 1000 + v.part[1] * 10;
    return 0;
}
/* A cuDNN of which parts are missing ends the process, as the real one does: abort=cudnnGetVersion. */
size_t cudnnGetVersion(void) {
    fault(__func__);
    struct version v = version("cudnn");
    long major = v.part[0] < 9 ? 1000 : 10000;
    return v.part[0] * major + v.part[1] * 100 + v.part[2];
}
int cublasGetProperty(int part, int *value) {
    FAULTS;
    if (part < 0 || part > 2) return 7;
    *value = version("cublas").part[part];
    return 0;
}
int ncclGetVersion(int *number) {
    FAULTS;
    struct version v = version("nccl");
    long major = v.part[0] > 2 || v.part[1] > 8 ? 10000 : 1000;
    *number = v.part[0] * major + v.part[1] * 100 + v.part[2];
    return 0;
}
