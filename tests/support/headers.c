/* What the probe assumes of the driver's interface, held against NVIDIA's own headers: compiles only if every function
 * that src/probe/ calls by name takes and returns what the probe passes, and every structure has the probe's size. */
#include <stddef.h>

#define SAME(returns, function, ...) \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&function), returns (*)(__VA_ARGS__)), #function)

#ifdef WITH_CUDA
#include <cuda.h>
#define CU(function, ...) SAME(CUresult, function, __VA_ARGS__)

_Static_assert(sizeof(CUresult) == 4 && sizeof(CUdevice_attribute) == 4 && sizeof(CUjit_option) == 4, "enums are ints");
_Static_assert(sizeof(CUdevice) == 4 && sizeof(CUdeviceptr) == 8 && sizeof(CUuuid) == 16, "plain types");
_Static_assert(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED == 704 && CU_STREAM_NON_BLOCKING == 1, "numbers");
_Static_assert(CU_JIT_ERROR_LOG_BUFFER == 5 && CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES == 6, "options");

CU(cuInit, unsigned int);
CU(cuDriverGetVersion, int *);
CU(cuGetErrorName, CUresult, const char **);
CU(cuGetErrorString, CUresult, const char **);
CU(cuDeviceGet, CUdevice *, int);
CU(cuDeviceGetCount, int *);
CU(cuDeviceGetName, char *, int, CUdevice);
CU(cuDeviceGetUuid, CUuuid *, CUdevice);
CU(cuDeviceGetUuid_v2, CUuuid *, CUdevice);
CU(cuDeviceTotalMem_v2, size_t *, CUdevice);
CU(cuDeviceGetAttribute, int *, CUdevice_attribute, CUdevice);
CU(cuDeviceGetPCIBusId, char *, int, CUdevice);
CU(cuDeviceCanAccessPeer, int *, CUdevice, CUdevice);
CU(cuDevicePrimaryCtxRetain, CUcontext *, CUdevice);
CU(cuCtxSetCurrent, CUcontext);
CU(cuCtxSynchronize, void);
CU(cuCtxEnablePeerAccess, CUcontext, unsigned int);
CU(cuModuleLoadDataEx, CUmodule *, const void *, unsigned int, CUjit_option *, void **);
CU(cuModuleGetFunction, CUfunction *, CUmodule, const char *);
CU(cuLaunchKernel, CUfunction, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int,
   unsigned int, CUstream, void **, void **);
CU(cuMemAlloc_v2, CUdeviceptr *, size_t);
CU(cuMemHostAlloc, void **, size_t, unsigned int);
CU(cuMemsetD32_v2, CUdeviceptr, unsigned int, size_t);
CU(cuMemcpyHtoD_v2, CUdeviceptr, const void *, size_t);
CU(cuMemcpyDtoH_v2, void *, CUdeviceptr, size_t);
CU(cuMemcpyHtoDAsync_v2, CUdeviceptr, const void *, size_t, CUstream);
CU(cuMemcpyDtoHAsync_v2, void *, CUdeviceptr, size_t, CUstream);
CU(cuMemcpyDtoDAsync_v2, CUdeviceptr, CUdeviceptr, size_t, CUstream);
CU(cuMemcpyPeerAsync, CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t, CUstream);
CU(cuStreamCreate, CUstream *, unsigned int);
CU(cuStreamSynchronize, CUstream);
CU(cuEventCreate, CUevent *, unsigned int);
CU(cuEventRecord, CUevent, CUstream);
CU(cuEventElapsedTime, float *, CUevent, CUevent);
#endif

#ifdef WITH_NVML
#include <nvml.h>
#define NV(function, ...) SAME(nvmlReturn_t, function, __VA_ARGS__)

_Static_assert(NVML_ERROR_NOT_SUPPORTED == 3 && NVML_ERROR_INSUFFICIENT_SIZE == 7, "codes");
_Static_assert(NVML_FEATURE_ENABLED == 1 && NVML_TEMPERATURE_GPU == 0, "numbers");
_Static_assert(NVML_MEMORY_ERROR_TYPE_CORRECTED == 0 && NVML_MEMORY_ERROR_TYPE_UNCORRECTED == 1, "kinds of errors");
_Static_assert(NVML_VOLATILE_ECC == 0 && NVML_AGGREGATE_ECC == 1, "counters");
_Static_assert(NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS == 0 &&
               NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR == 1, "causes");
_Static_assert(sizeof(nvmlEnableState_t) == 4 && sizeof(nvmlComputeMode_t) == 4, "enums are ints");
_Static_assert(NVML_GPU_FABRIC_STATE_NOT_SUPPORTED == 0 && NVML_GPU_FABRIC_STATE_COMPLETED == 3, "states");
_Static_assert(sizeof(nvmlPciInfo_t) == 68 && offsetof(nvmlPciInfo_t, busId) == 36, "nvmlPciInfo_t");
_Static_assert(nvmlGpuFabricInfo_v2 == (36 | 2 << 24) && sizeof(nvmlGpuFabricInfo_v2_t) == 36, "nvmlGpuFabricInfo_v2_t");
_Static_assert(offsetof(nvmlGpuFabricInfo_v2_t, status) == 20 && offsetof(nvmlGpuFabricInfo_v2_t, state) == 28 &&
               sizeof(((nvmlGpuFabricInfo_v2_t *)0)->state) == 1, "its fields");
_Static_assert(sizeof(nvmlGpuFabricInfo_t) <= 36 && offsetof(nvmlGpuFabricInfo_t, status) == 16 &&
               offsetof(nvmlGpuFabricInfo_t, state) == 24, "nvmlGpuFabricInfo_t");
_Static_assert(sizeof(nvmlFieldValue_t) == 48 - 8 && offsetof(nvmlFieldValue_t, nvmlReturn) == 28 &&
               offsetof(nvmlFieldValue_t, value) == 32, "nvmlFieldValue_t");

NV(nvmlInit_v2, void);
SAME(const char *, nvmlErrorString, nvmlReturn_t);
NV(nvmlSystemGetDriverVersion, char *, unsigned int);
NV(nvmlDeviceGetCount_v2, unsigned int *);
NV(nvmlDeviceGetHandleByIndex_v2, unsigned int, nvmlDevice_t *);
NV(nvmlDeviceGetHandleByPciBusId_v2, const char *, nvmlDevice_t *);
NV(nvmlDeviceGetName, nvmlDevice_t, char *, unsigned int);
NV(nvmlDeviceGetUUID, nvmlDevice_t, char *, unsigned int);
NV(nvmlDeviceGetPciInfo_v3, nvmlDevice_t, nvmlPciInfo_t *);
NV(nvmlDeviceGetPersistenceMode, nvmlDevice_t, nvmlEnableState_t *);
NV(nvmlDeviceGetComputeMode, nvmlDevice_t, nvmlComputeMode_t *);
NV(nvmlDeviceGetCurrPcieLinkGeneration, nvmlDevice_t, unsigned int *);
NV(nvmlDeviceGetMaxPcieLinkGeneration, nvmlDevice_t, unsigned int *);
NV(nvmlDeviceGetCurrPcieLinkWidth, nvmlDevice_t, unsigned int *);
NV(nvmlDeviceGetMaxPcieLinkWidth, nvmlDevice_t, unsigned int *);
NV(nvmlDeviceGetPcieReplayCounter, nvmlDevice_t, unsigned int *);
NV(nvmlDeviceGetPowerUsage, nvmlDevice_t, unsigned int *);
NV(nvmlDeviceGetEnforcedPowerLimit, nvmlDevice_t, unsigned int *);
NV(nvmlDeviceGetMemoryInfo, nvmlDevice_t, nvmlMemory_t *);
_Static_assert(sizeof(nvmlMemory_t) == 24 && offsetof(nvmlMemory_t, total) == 0, "nvmlMemory_t");
NV(nvmlDeviceGetTemperature, nvmlDevice_t, nvmlTemperatureSensors_t, unsigned int *);
#ifdef nvmlTemperature_v1
_Static_assert(nvmlTemperature_v1 == (12 | 1 << 24) && sizeof(nvmlTemperature_t) == 12, "nvmlTemperature_t");
_Static_assert(offsetof(nvmlTemperature_t, sensorType) == 4 && offsetof(nvmlTemperature_t, temperature) == 8, "its fields");
NV(nvmlDeviceGetTemperatureV, nvmlDevice_t, nvmlTemperature_t *);
#endif
NV(nvmlDeviceGetEccMode, nvmlDevice_t, nvmlEnableState_t *, nvmlEnableState_t *);
NV(nvmlDeviceGetTotalEccErrors, nvmlDevice_t, nvmlMemoryErrorType_t, nvmlEccCounterType_t, unsigned long long *);
NV(nvmlDeviceGetMigMode, nvmlDevice_t, unsigned int *, unsigned int *);
NV(nvmlDeviceGetMaxMigDeviceCount, nvmlDevice_t, unsigned int *);
NV(nvmlDeviceGetMigDeviceHandleByIndex, nvmlDevice_t, unsigned int, nvmlDevice_t *);
NV(nvmlDeviceGetGspFirmwareMode, nvmlDevice_t, unsigned int *, unsigned int *);
NV(nvmlDeviceGetRetiredPages, nvmlDevice_t, nvmlPageRetirementCause_t, unsigned int *, unsigned long long *);
NV(nvmlDeviceGetRetiredPagesPendingStatus, nvmlDevice_t, nvmlEnableState_t *);
NV(nvmlDeviceGetRemappedRows, nvmlDevice_t, unsigned int *, unsigned int *, unsigned int *, unsigned int *);
NV(nvmlDeviceGetComputeRunningProcesses_v3, nvmlDevice_t, unsigned int *, nvmlProcessInfo_t *);
NV(nvmlDeviceGetCurrentClocksEventReasons, nvmlDevice_t, unsigned long long *);
NV(nvmlDeviceGetCurrentClocksThrottleReasons, nvmlDevice_t, unsigned long long *);
NV(nvmlDeviceGetFieldValues, nvmlDevice_t, int, nvmlFieldValue_t *);
NV(nvmlDeviceGetNvLinkState, nvmlDevice_t, unsigned int, nvmlEnableState_t *);
NV(nvmlDeviceGetGpuFabricInfo, nvmlDevice_t, nvmlGpuFabricInfo_t *);
NV(nvmlDeviceGetGpuFabricInfoV, nvmlDevice_t, nvmlGpuFabricInfoV_t *);
#endif
