//! NVML: what the driver's management side says of each GPU. Functions that an old driver lacks give null.

use alloc::string::String;
use core::ffi::{c_char, c_int, c_uint, c_void};
use core::ptr::null_mut;

use crate::MOST;
use crate::library::{Failure, Library, c_string, call, until_zero};
use crate::record::{Object, Record, begin};
use crate::runtime::text;

/// `NVML_ERROR_NOT_SUPPORTED`
const NOT_SUPPORTED: c_int = 3;
/// `NVML_ERROR_INSUFFICIENT_SIZE`: how a list tells its length when asked with no room.
const INSUFFICIENT_SIZE: c_int = 7;
/// `NVML_NVLINK_MAX_LINKS` of the newest header; it was 18 until CUDA 12.
const MAX_LINKS: c_uint = 36;

/// Numbers that one call each gives: key and function.
const NUMBERS: &[(&str, Getter)] = &[
    ("memory_total", |g| g.memory_total()),
    ("persistence_mode", |g| g.number("nvmlDeviceGetPersistenceMode")),
    ("compute_mode", |g| g.number("nvmlDeviceGetComputeMode")),
    ("pcie_generation", |g| g.number("nvmlDeviceGetCurrPcieLinkGeneration")),
    ("pcie_generation_max", |g| g.number("nvmlDeviceGetMaxPcieLinkGeneration")),
    ("pcie_width", |g| g.number("nvmlDeviceGetCurrPcieLinkWidth")),
    ("pcie_width_max", |g| g.number("nvmlDeviceGetMaxPcieLinkWidth")),
    ("pcie_replays", |g| g.number("nvmlDeviceGetPcieReplayCounter")),
    ("power_usage", |g| g.number("nvmlDeviceGetPowerUsage")),
    ("power_limit", |g| g.number("nvmlDeviceGetEnforcedPowerLimit")),
    ("temperature", |g| g.temperature()),
    ("ecc_mode", |g| g.pair("nvmlDeviceGetEccMode").map(|p| p.0)),
    ("ecc_mode_pending", |g| g.pair("nvmlDeviceGetEccMode").map(|p| p.1)),
    ("mig_mode", |g| g.pair("nvmlDeviceGetMigMode").map(|p| p.0)),
    ("mig_mode_pending", |g| g.pair("nvmlDeviceGetMigMode").map(|p| p.1)),
    ("mig_devices", |g| g.mig_devices()),
    ("gsp_firmware", |g| g.pair("nvmlDeviceGetGspFirmwareMode").map(|p| p.0)),
    ("retired_pages_single_bit", |g| g.retired_pages(0)),
    ("retired_pages_double_bit", |g| g.retired_pages(1)),
    ("retired_pages_pending", |g| g.number("nvmlDeviceGetRetiredPagesPendingStatus")),
    ("compute_processes", |g| g.compute_processes()),
    ("recovery_action", |g| g.recovery_action()),
    ("ecc_uncorrected_volatile", |g| g.ecc_errors(1, 0)),
    ("ecc_uncorrected_aggregate", |g| g.ecc_errors(1, 1)),
    ("ecc_corrected_volatile", |g| g.ecc_errors(0, 0)),
    ("clock_event_reasons", |g| g.clock_event_reasons()),
];

type Getter = fn(&Gpu<'_>) -> Option<u64>;

/// Prints the driver's version and every GPU.
pub fn query(path: &str) {
    begin("nvml.load");
    let record = Record::new("nvml.load").text("library", path);
    let nvml = match Library::open(path) {
        Ok(library) => Nvml(library),
        Err(failure) => return record.error(&failure).emit(),
    };
    record.emit();
    begin("nvml.init");
    let record = Record::new("nvml.init");
    let count = match nvml.init().and_then(|()| nvml.count()) {
        Ok(count) => count,
        Err(failure) => return record.error(&nvml.explained(failure)).emit(),
    };
    match nvml.driver_version() {
        Some(version) => record.text("driver_version", &version),
        None => record.value("driver_version", "null"),
    }
    .value("devices", count)
    .emit();
    for index in 0..count.min(MOST) {
        begin("nvml.device");
        let record = Record::new("nvml.device").value("index", index);
        match nvml.gpu(index) {
            Ok(gpu) => gpu.describe(record).emit(),
            Err(failure) => record.error(&nvml.explained(failure)).emit(),
        }
    }
}

/// NVML.
pub struct Nvml(Library);

impl Nvml {
    /// Loads and initialises, without a record.
    pub fn start(path: &str) -> Result<Self, Failure> {
        let nvml = Self(Library::open(path)?);
        match nvml.init() {
            Ok(()) => Ok(nvml),
            Err(failure) => Err(nvml.explained(failure)),
        }
    }

    fn init(&self) -> Result<(), Failure> {
        // SAFETY: nvmlReturn_t nvmlInit_v2(void)
        unsafe { call!(self.0, "nvmlInit_v2"()) }
    }

    fn count(&self) -> Result<c_uint, Failure> {
        let mut count = 0;
        // SAFETY: nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *)
        unsafe { call!(self.0, "nvmlDeviceGetCount_v2"(*mut c_uint: &mut count)) }?;
        Ok(count)
    }

    fn driver_version(&self) -> Option<String> {
        let mut version = [0u8; 80];
        // SAFETY: nvmlReturn_t nvmlSystemGetDriverVersion(char *, unsigned int)
        unsafe { call!(self.0, "nvmlSystemGetDriverVersion"(*mut u8: version.as_mut_ptr(), c_uint: 80)) }
            .ok()?;
        Some(String::from(until_zero(&version)))
    }

    fn gpu(&self, index: c_uint) -> Result<Gpu<'_>, Failure> {
        let mut handle: *mut c_void = null_mut();
        // SAFETY: nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int, nvmlDevice_t *)
        unsafe {
            call!(self.0, "nvmlDeviceGetHandleByIndex_v2"(c_uint: index, *mut *mut c_void: &mut handle))
        }?;
        Ok(Gpu { nvml: &self.0, handle })
    }

    /// The GPU at a PCI address, as CUDA writes it.
    pub fn gpu_at(&self, address: &str) -> Result<Gpu<'_>, Failure> {
        let mut handle: *mut c_void = null_mut();
        let address = c_string(address);
        // SAFETY: nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *, nvmlDevice_t *)
        unsafe {
            call!(self.0, "nvmlDeviceGetHandleByPciBusId_v2"(
                *const u8: address.as_ptr(), *mut *mut c_void: &mut handle
            ))
        }?;
        Ok(Gpu { nvml: &self.0, handle })
    }

    /// The failure with NVML's own words for its code.
    pub fn explained(&self, mut failure: Failure) -> Failure {
        let symbol = self.0.symbol("nvmlErrorString");
        if let Some(code) = failure.code
            && !symbol.is_null()
        {
            // SAFETY: const char *nvmlErrorString(nvmlReturn_t); the string is a constant.
            failure.text = String::from(unsafe {
                let words: extern "C" fn(c_int) -> *const c_char = core::mem::transmute(symbol);
                text(words(code))
            });
        }
        failure
    }
}

/// One GPU.
pub struct Gpu<'a> {
    nvml: &'a Library,
    handle: *mut c_void,
}

/// `call!` with the GPU's handle as the first argument; the library's functions of this shape are many.
macro_rules! ask {
    ($gpu:expr, $name:literal ( $($type:ty : $value:expr),* $(,)? )) => {
        call!($gpu.nvml, $name(*mut c_void: $gpu.handle, $($type: $value),*))
    };
}

impl Gpu<'_> {
    /// Adds what the PCIe link does at this moment, and how often it had to send again since it came up.
    pub fn link(&self, record: Record) -> Record {
        record
            .option("generation", self.number("nvmlDeviceGetCurrPcieLinkGeneration"))
            .option("width", self.number("nvmlDeviceGetCurrPcieLinkWidth"))
            .option("replays", self.number("nvmlDeviceGetPcieReplayCounter"))
    }

    fn describe(&self, record: Record) -> Record {
        let mut record = match self.string("nvmlDeviceGetName") {
            Some(name) => record.text("name", &name),
            None => record.value("name", "null"),
        };
        record = match self.string("nvmlDeviceGetUUID") {
            Some(uuid) => record.text("uuid", &uuid),
            None => record.value("uuid", "null"),
        };
        record = match self.pci_address() {
            Some(address) => record.text("pci", &address),
            None => record.value("pci", "null"),
        };
        for (key, get) in NUMBERS {
            record = record.option(key, get(self));
        }
        record
            .option("remapped_rows", self.remapped_rows())
            .option("nvlink", self.links())
            .option("fabric", self.fabric())
    }

    /// Address of a function by a name that is not known where `call!` stands.
    fn function(&self, name: &str) -> Option<*mut c_void> {
        let symbol = self.nvml.symbol(name);
        (!symbol.is_null()).then_some(symbol)
    }

    fn number(&self, name: &str) -> Option<u64> {
        let mut value: c_uint = 0;
        let symbol = self.function(name)?;
        // SAFETY: every name that is passed here is nvmlReturn_t f(nvmlDevice_t, unsigned int * or enum *)
        let code = unsafe {
            let f: extern "C" fn(*mut c_void, *mut c_uint) -> c_int = core::mem::transmute(symbol);
            f(self.handle, &mut value)
        };
        (code == 0).then_some(u64::from(value))
    }

    fn pair(&self, name: &str) -> Option<(u64, u64)> {
        let (mut now, mut pending): (c_uint, c_uint) = (0, 0);
        let symbol = self.function(name)?;
        // SAFETY: every name that is passed here is nvmlReturn_t f(nvmlDevice_t, unsigned *now, unsigned *pending or *default)
        let code = unsafe {
            let f: extern "C" fn(*mut c_void, *mut c_uint, *mut c_uint) -> c_int =
                core::mem::transmute(symbol);
            f(self.handle, &mut now, &mut pending)
        };
        (code == 0).then_some((now.into(), pending.into()))
    }

    fn string(&self, name: &str) -> Option<String> {
        let mut bytes = [0u8; 96];
        let symbol = self.function(name)?;
        // SAFETY: every name that is passed here is nvmlReturn_t f(nvmlDevice_t, char *, unsigned int length)
        let code = unsafe {
            let f: extern "C" fn(*mut c_void, *mut u8, c_uint) -> c_int = core::mem::transmute(symbol);
            f(self.handle, bytes.as_mut_ptr(), 96)
        };
        (code == 0).then(|| String::from(until_zero(&bytes)))
    }

    /// From `nvmlPciInfo_t`: 16 bytes of a short address, five numbers, 32 bytes of the whole address.
    fn pci_address(&self) -> Option<String> {
        let mut info = [0u32; 17];
        // SAFETY: nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t, nvmlPciInfo_t *); 68 bytes
        unsafe { ask!(self, "nvmlDeviceGetPciInfo_v3"(*mut u32: info.as_mut_ptr())) }.ok()?;
        let mut address = [0u8; 32];
        for (to, word) in address.chunks_mut(4).zip(&info[9..]) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Some(String::from(until_zero(&address)))
    }

    /// From `nvmlMemory_t`: total, free and used bytes. The total counts what the driver keeps for itself, which CUDA's does not.
    fn memory_total(&self) -> Option<u64> {
        let mut memory = [0u64; 3];
        // SAFETY: nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t, nvmlMemory_t *); 24 bytes
        unsafe { ask!(self, "nvmlDeviceGetMemoryInfo"(*mut u64: memory.as_mut_ptr())) }.ok()?;
        Some(memory[0])
    }

    /// CUDA 13 deprecates the older function.
    fn temperature(&self) -> Option<u64> {
        /// `nvmlTemperature_v1_t`: its size, and 1 as its version; then the sensor, then the degrees.
        const VERSION_1: u32 = 12 | 1 << 24;
        let mut degrees: c_uint = 0;
        // SAFETY: nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t, sensor 0 = the GPU's, unsigned int *)
        let older = unsafe { ask!(self, "nvmlDeviceGetTemperature"(c_int: 0, *mut c_uint: &mut degrees)) };
        if older.is_err() {
            let mut newer = [VERSION_1, 0, 0];
            // SAFETY: nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t, nvmlTemperature_t *); 12 bytes
            unsafe { ask!(self, "nvmlDeviceGetTemperatureV"(*mut u32: newer.as_mut_ptr())) }.ok()?;
            degrees = newer[2];
        }
        Some(degrees.into())
    }

    fn ecc_errors(&self, kind: c_int, counter: c_int) -> Option<u64> {
        let mut count = 0u64;
        // SAFETY: nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t, type, counter, unsigned long long *)
        unsafe {
            ask!(self, "nvmlDeviceGetTotalEccErrors"(c_int: kind, c_int: counter, *mut u64: &mut count))
        }
        .ok()?;
        Some(count)
    }

    /// The function was renamed with driver 535.
    fn clock_event_reasons(&self) -> Option<u64> {
        let mut mask = 0u64;
        // SAFETY: nvmlReturn_t f(nvmlDevice_t, unsigned long long *)
        unsafe {
            ask!(self, "nvmlDeviceGetCurrentClocksEventReasons"(*mut u64: &mut mask))
                .or_else(|_| ask!(self, "nvmlDeviceGetCurrentClocksThrottleReasons"(*mut u64: &mut mask)))
        }
        .ok()?;
        Some(mask)
    }

    /// How many processes compute on it. Asked with no room for the list, so its layout does not matter.
    fn compute_processes(&self) -> Option<u64> {
        let mut count: c_uint = 0;
        // SAFETY: nvmlReturn_t f(nvmlDevice_t, unsigned int *count, nvmlProcessInfo_t *); null with count 0
        let asked = unsafe {
            ask!(self, "nvmlDeviceGetComputeRunningProcesses_v3"(*mut c_uint: &mut count, *mut c_void: null_mut()))
        };
        match asked {
            Ok(()) => Some(count.into()),
            Err(failure) if failure.code == Some(INSUFFICIENT_SIZE) => Some(count.into()),
            Err(_) => None,
        }
    }

    /// How many pages of memory are retired for `cause`: 0 repeated single-bit errors, 1 a double-bit error. Asked
    /// without room for their addresses.
    fn retired_pages(&self, cause: c_int) -> Option<u64> {
        let mut count: c_uint = 0;
        // SAFETY: nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t, cause, unsigned *count, unsigned long long *)
        let asked = unsafe {
            ask!(self, "nvmlDeviceGetRetiredPages"(c_int: cause, *mut c_uint: &mut count, *mut u64: null_mut()))
        };
        match asked {
            Ok(()) => Some(count.into()),
            Err(failure) if failure.code == Some(INSUFFICIENT_SIZE) => Some(count.into()),
            Err(_) => None,
        }
    }

    fn mig_devices(&self) -> Option<u64> {
        let most = self.number("nvmlDeviceGetMaxMigDeviceCount")?;
        let mut count = 0;
        for index in 0..most.min(MOST.into()) {
            let mut handle: *mut c_void = null_mut();
            // SAFETY: nvmlReturn_t f(nvmlDevice_t, unsigned int, nvmlDevice_t *)
            let found = unsafe {
                ask!(self, "nvmlDeviceGetMigDeviceHandleByIndex"(
                    c_uint: index as c_uint, *mut *mut c_void: &mut handle
                ))
            };
            count += u64::from(found.is_ok());
        }
        Some(count)
    }

    /// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`: 0 none, 1 reset, 2 reboot, 3 drain, 4 drain and reset.
    fn recovery_action(&self) -> Option<u64> {
        /// `nvmlFieldValue_t`
        #[repr(C)]
        struct FieldValue {
            field: c_uint,
            scope: c_uint,
            timestamp: i64,
            latency: i64,
            value_type: c_uint,
            status: c_int,
            value: u64,
        }
        let mut field = FieldValue {
            field: 230,
            scope: 0,
            timestamp: 0,
            latency: 0,
            value_type: 0,
            status: -1,
            value: 0,
        };
        // SAFETY: nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t, int count, nvmlFieldValue_t *)
        unsafe { ask!(self, "nvmlDeviceGetFieldValues"(c_int: 1, *mut FieldValue: &mut field)) }.ok()?;
        // The value is an unsigned int in a union of eight bytes.
        (field.status == 0).then_some(field.value & 0xFFFF_FFFF)
    }

    fn remapped_rows(&self) -> Option<String> {
        let mut rows = [0 as c_uint; 4];
        let [corrected, uncorrected, pending, failed] = &mut rows;
        // SAFETY: nvmlReturn_t f(nvmlDevice_t, unsigned *corrected, *uncorrected, *pending, *failed)
        unsafe {
            ask!(self, "nvmlDeviceGetRemappedRows"(
                *mut c_uint: corrected, *mut c_uint: uncorrected, *mut c_uint: pending, *mut c_uint: failed
            ))
        }
        .ok()?;
        let object = Object::new().value("corrected", rows[0]).value("uncorrected", rows[1]);
        Some(object.value("pending", rows[2]).value("failed", rows[3]).finish())
    }

    fn links(&self) -> Option<String> {
        let (mut present, mut active) = (0, 0);
        for link in 0..MAX_LINKS {
            let mut state: c_uint = 0;
            // SAFETY: nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t, unsigned int, nvmlEnableState_t *)
            match unsafe { ask!(self, "nvmlDeviceGetNvLinkState"(c_uint: link, *mut c_uint: &mut state)) } {
                Ok(()) => {
                    present += 1;
                    active += u32::from(state == 1);
                }
                Err(failure) if failure.code == Some(NOT_SUPPORTED) => break,
                Err(failure) if failure.code.is_none() => return None,
                Err(_) => {} // a number that this GPU does not use
            }
        }
        Some(Object::new().value("present", present).value("active", active).finish())
    }

    /// State 3 is "completed"; the status counts only then.
    fn fabric(&self) -> Option<String> {
        /// `nvmlGpuFabricInfo_v2_t`: its size, and 2 as its version.
        const VERSION_2: u32 = 36 | 2 << 24;
        let mut info = [0u32; 9];
        info[0] = VERSION_2;
        // SAFETY: nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t, nvmlGpuFabricInfoV_t *); 36 bytes:
        // version, 16 bytes of uuid, status, clique, state (one byte, padded), health mask
        let newer = unsafe { ask!(self, "nvmlDeviceGetGpuFabricInfoV"(*mut u32: info.as_mut_ptr())) };
        let (status, state) = if newer.is_ok() {
            (info[5], info[7] & 0xFF)
        } else {
            // SAFETY: as before, without version and health mask; 28 bytes
            unsafe { ask!(self, "nvmlDeviceGetGpuFabricInfo"(*mut u32: info.as_mut_ptr())) }.ok()?;
            (info[4], info[6] & 0xFF)
        };
        Some(Object::new().value("state", state).value("status", status).finish())
    }
}
