// What NVIDIA's own runtime and headers say of every device, as one JSON document: the first source that compare.py
// holds device-query against. Compiles with CUDA 11.8, 12 and 13: nvcc -o truth truth.cu -ldl
//
// Attributes are asked by the names of NVIDIA's headers, so a wrong number in src/probe/attributes.rs shows. Those
// that cudaDeviceProp had until CUDA 12 (clock rates, compute mode) come as attributes alone.
#include <cuda.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

static void must(cudaError_t code, const char *call) {
    if (code == cudaSuccess) return;
    std::fprintf(stderr, "truth: %s: %s\n", call, cudaGetErrorString(code));
    std::exit(1);
}
#define MUST(call) must(call, #call)

static const char *separator = "";
static void key(const char *name) {
    std::printf("%s\"%s\":", separator, name);
    separator = ",";
}
static void text(const char *name, const char *value) {
    key(name);
    std::putchar('"');
    for (; *value; value++) {
        if (*value == '"' || *value == '\\') std::putchar('\\');
        std::putchar(*value);
    }
    std::putchar('"');
}
static void number(const char *name, unsigned long long value) {
    key(name);
    std::printf("%llu", value);
}
static void begin(const char *name) {
    key(name);
    std::putchar('{');
    separator = "";
}
static void end() {
    std::putchar('}');
    separator = ",";
}

struct named { const char *name; int number; };

// By the runtime's names.
static const named of_runtime[] = {
    {"max_threads_per_block", cudaDevAttrMaxThreadsPerBlock},
    {"max_block_dim_x", cudaDevAttrMaxBlockDimX},
    {"max_block_dim_y", cudaDevAttrMaxBlockDimY},
    {"max_block_dim_z", cudaDevAttrMaxBlockDimZ},
    {"max_grid_dim_x", cudaDevAttrMaxGridDimX},
    {"max_grid_dim_y", cudaDevAttrMaxGridDimY},
    {"max_grid_dim_z", cudaDevAttrMaxGridDimZ},
    {"shared_memory_per_block", cudaDevAttrMaxSharedMemoryPerBlock},
    {"total_constant_memory", cudaDevAttrTotalConstantMemory},
    {"warp_size", cudaDevAttrWarpSize},
    {"max_pitch", cudaDevAttrMaxPitch},
    {"registers_per_block", cudaDevAttrMaxRegistersPerBlock},
    {"clock_rate", cudaDevAttrClockRate},
    {"texture_alignment", cudaDevAttrTextureAlignment},
    {"gpu_overlap", cudaDevAttrGpuOverlap},
    {"multiprocessor_count", cudaDevAttrMultiProcessorCount},
    {"kernel_exec_timeout", cudaDevAttrKernelExecTimeout},
    {"integrated", cudaDevAttrIntegrated},
    {"can_map_host_memory", cudaDevAttrCanMapHostMemory},
    {"compute_mode", cudaDevAttrComputeMode},
    {"texture_1d_width", cudaDevAttrMaxTexture1DWidth},
    {"texture_2d_width", cudaDevAttrMaxTexture2DWidth},
    {"texture_2d_height", cudaDevAttrMaxTexture2DHeight},
    {"texture_3d_width", cudaDevAttrMaxTexture3DWidth},
    {"texture_3d_height", cudaDevAttrMaxTexture3DHeight},
    {"texture_3d_depth", cudaDevAttrMaxTexture3DDepth},
    {"texture_2d_layered_width", cudaDevAttrMaxTexture2DLayeredWidth},
    {"texture_2d_layered_height", cudaDevAttrMaxTexture2DLayeredHeight},
    {"texture_2d_layered_layers", cudaDevAttrMaxTexture2DLayeredLayers},
    {"surface_alignment", cudaDevAttrSurfaceAlignment},
    {"concurrent_kernels", cudaDevAttrConcurrentKernels},
    {"ecc_enabled", cudaDevAttrEccEnabled},
    {"pci_bus_id", cudaDevAttrPciBusId},
    {"pci_device_id", cudaDevAttrPciDeviceId},
    {"memory_clock_rate", cudaDevAttrMemoryClockRate},
    {"memory_bus_width", cudaDevAttrGlobalMemoryBusWidth},
    {"l2_cache_size", cudaDevAttrL2CacheSize},
    {"max_threads_per_multiprocessor", cudaDevAttrMaxThreadsPerMultiProcessor},
    {"async_engine_count", cudaDevAttrAsyncEngineCount},
    {"unified_addressing", cudaDevAttrUnifiedAddressing},
    {"texture_1d_layered_width", cudaDevAttrMaxTexture1DLayeredWidth},
    {"texture_1d_layered_layers", cudaDevAttrMaxTexture1DLayeredLayers},
    {"pci_domain_id", cudaDevAttrPciDomainId},
    {"compute_capability_major", cudaDevAttrComputeCapabilityMajor},
    {"compute_capability_minor", cudaDevAttrComputeCapabilityMinor},
    {"shared_memory_per_multiprocessor", cudaDevAttrMaxSharedMemoryPerMultiprocessor},
    {"registers_per_multiprocessor", cudaDevAttrMaxRegistersPerMultiprocessor},
    {"managed_memory", cudaDevAttrManagedMemory},
    {"pageable_memory_access", cudaDevAttrPageableMemoryAccess},
    {"compute_preemption", cudaDevAttrComputePreemptionSupported},
    {"cooperative_launch", cudaDevAttrCooperativeLaunch},
#if CUDART_VERSION < 13000
    {"cooperative_multi_device_launch", cudaDevAttrCooperativeMultiDeviceLaunch},
#endif
    {"shared_memory_per_block_optin", cudaDevAttrMaxSharedMemoryPerBlockOptin},
    {"max_blocks_per_multiprocessor", cudaDevAttrMaxBlocksPerMultiprocessor},
    {"gpu_direct_rdma", cudaDevAttrGPUDirectRDMASupported},
    {"cluster_launch", cudaDevAttrClusterLaunch},
#if CUDART_VERSION >= 12030
    {"numa_id", cudaDevAttrNumaId},
    {"mps_enabled", cudaDevAttrMpsEnabled},
#endif
};

// What the runtime has no name for, by the driver's names; where an old header lacks the name, by its number.
static const named of_driver[] = {
    {"cooperative_multi_device_launch", CU_DEVICE_ATTRIBUTE_COOPERATIVE_MULTI_DEVICE_LAUNCH},
    {"dma_buf", CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED},
#if CUDA_VERSION >= 12030
    {"multicast", CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED},
    {"numa_id", CU_DEVICE_ATTRIBUTE_NUMA_ID},
    {"mps_enabled", CU_DEVICE_ATTRIBUTE_MPS_ENABLED},
#else
    {"multicast", 132},
    {"numa_id", 131},
    {"mps_enabled", 133},
#endif
};

// An attribute that this library knows, with its number; null where the driver does not know it.
static void attribute(const named &a, int code, int value) {
    key(a.name);
    std::printf("{\"number\":%d,\"value\":", a.number);
    if (code == 0) std::printf("%d}", value);
    else std::printf("null}");
}

static void properties(const cudaDeviceProp &p) {
    begin("properties");
    number("total_memory", p.totalGlobalMem);
    number("compute_capability_major", p.major);
    number("compute_capability_minor", p.minor);
    number("multiprocessor_count", p.multiProcessorCount);
    number("memory_bus_width", p.memoryBusWidth);
    number("l2_cache_size", p.l2CacheSize);
    number("texture_1d_width", p.maxTexture1D);
    number("texture_2d_width", p.maxTexture2D[0]);
    number("texture_2d_height", p.maxTexture2D[1]);
    number("texture_3d_width", p.maxTexture3D[0]);
    number("texture_3d_height", p.maxTexture3D[1]);
    number("texture_3d_depth", p.maxTexture3D[2]);
    number("texture_1d_layered_width", p.maxTexture1DLayered[0]);
    number("texture_1d_layered_layers", p.maxTexture1DLayered[1]);
    number("texture_2d_layered_width", p.maxTexture2DLayered[0]);
    number("texture_2d_layered_height", p.maxTexture2DLayered[1]);
    number("texture_2d_layered_layers", p.maxTexture2DLayered[2]);
    number("total_constant_memory", p.totalConstMem);
    number("shared_memory_per_block", p.sharedMemPerBlock);
    number("shared_memory_per_block_optin", p.sharedMemPerBlockOptin);
    number("shared_memory_per_multiprocessor", p.sharedMemPerMultiprocessor);
    number("registers_per_block", p.regsPerBlock);
    number("registers_per_multiprocessor", p.regsPerMultiprocessor);
    number("warp_size", p.warpSize);
    number("max_threads_per_multiprocessor", p.maxThreadsPerMultiProcessor);
    number("max_threads_per_block", p.maxThreadsPerBlock);
    number("max_blocks_per_multiprocessor", p.maxBlocksPerMultiProcessor);
    number("max_block_dim_x", p.maxThreadsDim[0]);
    number("max_block_dim_y", p.maxThreadsDim[1]);
    number("max_block_dim_z", p.maxThreadsDim[2]);
    number("max_grid_dim_x", p.maxGridSize[0]);
    number("max_grid_dim_y", p.maxGridSize[1]);
    number("max_grid_dim_z", p.maxGridSize[2]);
    number("max_pitch", p.memPitch);
    number("texture_alignment", p.textureAlignment);
    number("surface_alignment", p.surfaceAlignment);
    number("async_engine_count", p.asyncEngineCount);
    number("integrated", p.integrated);
    number("can_map_host_memory", p.canMapHostMemory);
    number("concurrent_kernels", p.concurrentKernels);
    number("ecc_enabled", p.ECCEnabled);
    number("unified_addressing", p.unifiedAddressing);
    number("managed_memory", p.managedMemory);
    number("pageable_memory_access", p.pageableMemoryAccess);
    number("compute_preemption", p.computePreemptionSupported);
    number("cooperative_launch", p.cooperativeLaunch);
    number("pci_domain_id", p.pciDomainID);
    number("pci_bus_id", p.pciBusID);
    number("pci_device_id", p.pciDeviceID);
    end();
}

typedef int (*get_device)(int *, int);
typedef int (*get_attribute)(int *, int, int);

int main() {
    int count = 0, driver = 0, runtime = 0;
    MUST(cudaGetDeviceCount(&count));
    MUST(cudaDriverGetVersion(&driver));
    MUST(cudaRuntimeGetVersion(&runtime));
    // Loaded already; by name, so that no stub library is needed to link.
    void *libcuda = dlopen("libcuda.so.1", RTLD_NOW);
    get_device device_at = libcuda ? (get_device)dlsym(libcuda, "cuDeviceGet") : 0;
    get_attribute ask = libcuda ? (get_attribute)dlsym(libcuda, "cuDeviceGetAttribute") : 0;
    if (!device_at || !ask) {
        std::fprintf(stderr, "truth: no cuDeviceGetAttribute: %s\n", dlerror());
        return 1;
    }
    std::printf("{\"driver_version\":%d,\"runtime_version\":%d,\"devices\":[", driver, runtime);
    for (int d = 0; d < count; d++) {
        cudaDeviceProp p;
        MUST(cudaGetDeviceProperties(&p, d));
        char pci[32], uuid[64], *at = uuid + std::sprintf(uuid, "GPU");
        MUST(cudaDeviceGetPCIBusId(pci, sizeof pci, d));
        for (int i = 0; i < 16; i++) {
            bool dash = i == 0 || i == 4 || i == 6 || i == 8 || i == 10;
            at += std::sprintf(at, "%s%02x", dash ? "-" : "", (unsigned char)p.uuid.bytes[i]);
        }
        std::printf("%s{", d ? "," : "");
        separator = "";
        text("name", p.name);
        text("uuid", uuid);
        text("pci", pci);
        properties(p);
        begin("runtime_attributes");
        for (const named &a : of_runtime) {
            int value = 0;
            int code = (int)cudaDeviceGetAttribute(&value, (cudaDeviceAttr)a.number, d);
            attribute(a, code, value);
        }
        end();
        begin("driver_attributes");
        for (const named &a : of_driver) {
            int device = 0, value = 0, code = device_at(&device, d);
            if (code == 0) code = ask(&value, a.number, device);
            attribute(a, code, value);
        }
        end();
        std::printf("}");
    }
    std::printf("],\"can_access\":[");
    for (int from = 0; from < count; from++) {
        std::printf("%s[", from ? "," : "");
        for (int to = 0; to < count; to++) {
            int can = 0;
            if (from != to) MUST(cudaDeviceCanAccessPeer(&can, from, to));
            std::printf("%s%s", to ? "," : "", from == to ? "null" : can ? "true" : "false");
        }
        std::printf("]");
    }
    std::printf("]}\n");
    return 0;
}
