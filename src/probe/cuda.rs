//! The CUDA driver API: every device with its attributes, and the table of who can reach whose memory.

use alloc::format;
use alloc::string::String;
use core::ffi::{c_char, c_int, c_uint};
use core::fmt::Write;
use core::ptr::null;

use crate::attributes::ATTRIBUTES;
use crate::library::{Failure, Library, call, until_zero};
use crate::record::{Object, Record, begin};
use crate::runtime::text;

/// A device handle.
pub type Device = c_int;

/// libcuda, initialised.
pub struct Cuda(pub Library);

impl Cuda {
    /// Loads and initialises, with a record for each of both.
    pub fn start(path: &str) -> Option<Self> {
        begin("cuda.load");
        let record = Record::new("cuda.load").text("library", path);
        let cuda = match Library::open(path) {
            Ok(library) => Self(library),
            Err(failure) => {
                record.error(&failure).emit();
                return None;
            }
        };
        record.option("driver_version", cuda.driver_version()).emit();
        begin("cuda.init");
        // SAFETY: CUresult cuInit(unsigned int)
        let started = unsafe { call!(cuda.0, "cuInit"(c_uint: 0)) }.and_then(|()| cuda.count());
        let record = Record::new("cuda.init");
        match started {
            Ok(count) => {
                record.value("devices", count).emit();
                Some(cuda)
            }
            Err(failure) => {
                record.error(&cuda.explained(failure)).emit();
                None
            }
        }
    }

    fn driver_version(&self) -> Option<c_int> {
        let mut version = 0;
        // SAFETY: CUresult cuDriverGetVersion(int *)
        unsafe { call!(self.0, "cuDriverGetVersion"(*mut c_int: &mut version)) }.ok().map(|()| version)
    }

    /// How many devices there are.
    pub fn count(&self) -> Result<c_int, Failure> {
        let mut count = 0;
        // SAFETY: CUresult cuDeviceGetCount(int *)
        unsafe { call!(self.0, "cuDeviceGetCount"(*mut c_int: &mut count)) }?;
        Ok(count)
    }

    /// The device at `index`.
    pub fn device(&self, index: c_int) -> Result<Device, Failure> {
        let mut device = 0;
        // SAFETY: CUresult cuDeviceGet(CUdevice *, int)
        unsafe { call!(self.0, "cuDeviceGet"(*mut Device: &mut device, c_int: index)) }?;
        Ok(device)
    }

    /// An attribute by its number; none where this driver does not know it.
    pub fn attribute(&self, device: Device, number: c_int) -> Option<c_int> {
        let mut value = 0;
        // SAFETY: CUresult cuDeviceGetAttribute(int *, CUdevice_attribute, CUdevice)
        unsafe {
            call!(self.0, "cuDeviceGetAttribute"(*mut c_int: &mut value, c_int: number, Device: device))
        }
        .ok()
        .map(|()| value)
    }

    /// The failure with the driver's own name and words for its code.
    pub fn explained(&self, mut failure: Failure) -> Failure {
        let Some(code) = failure.code else { return failure };
        let (mut name, mut words): (*const c_char, *const c_char) = (null(), null());
        // SAFETY: CUresult cuGetErrorName(CUresult, const char **), and its like; both give constant strings.
        unsafe {
            let _ = call!(self.0, "cuGetErrorName"(c_int: code, *mut *const c_char: &mut name));
            let _ = call!(self.0, "cuGetErrorString"(c_int: code, *mut *const c_char: &mut words));
            failure.name = String::from(text(name));
            if failure.text.is_empty() {
                failure.text = String::from(text(words));
            }
        }
        failure
    }

    fn name(&self, device: Device) -> Option<String> {
        let mut name = [0u8; 256];
        // SAFETY: CUresult cuDeviceGetName(char *, int, CUdevice)
        unsafe { call!(self.0, "cuDeviceGetName"(*mut u8: name.as_mut_ptr(), c_int: 256, Device: device)) }
            .ok()
            .map(|()| String::from(until_zero(&name)))
    }

    /// `domain:bus:device.function`
    pub fn pci_address(&self, device: Device) -> Option<String> {
        let mut address = [0u8; 32];
        // SAFETY: CUresult cuDeviceGetPCIBusId(char *, int, CUdevice)
        unsafe {
            call!(self.0, "cuDeviceGetPCIBusId"(*mut u8: address.as_mut_ptr(), c_int: 32, Device: device))
        }
        .ok()
        .map(|()| String::from(until_zero(&address)))
    }

    /// `GPU-…`. The newer function gives a MIG device its own.
    fn uuid(&self, device: Device) -> Option<String> {
        let mut bytes = [0u8; 16];
        // SAFETY: CUresult cuDeviceGetUuid(CUuuid *, CUdevice); CUuuid is 16 bytes.
        let asked = unsafe {
            call!(self.0, "cuDeviceGetUuid_v2"(*mut u8: bytes.as_mut_ptr(), Device: device))
                .or_else(|_| call!(self.0, "cuDeviceGetUuid"(*mut u8: bytes.as_mut_ptr(), Device: device)))
        };
        asked.ok()?;
        let mut uuid = String::from("GPU-");
        for (i, byte) in bytes.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                uuid.push('-');
            }
            let _ = write!(uuid, "{byte:02x}");
        }
        Some(uuid)
    }

    fn memory(&self, device: Device) -> Option<usize> {
        let mut bytes = 0;
        // SAFETY: CUresult cuDeviceTotalMem_v2(size_t *, CUdevice)
        unsafe { call!(self.0, "cuDeviceTotalMem_v2"(*mut usize: &mut bytes, Device: device)) }
            .ok()
            .map(|()| bytes)
    }

    fn can_reach(&self, from: Device, to: Device) -> Option<bool> {
        let mut can = 0;
        // SAFETY: CUresult cuDeviceCanAccessPeer(int *, CUdevice, CUdevice)
        unsafe { call!(self.0, "cuDeviceCanAccessPeer"(*mut c_int: &mut can, Device: from, Device: to)) }
            .ok()
            .map(|()| can != 0)
    }
}

/// Prints every device and the peer table.
pub fn query(path: &str) {
    let Some(cuda) = Cuda::start(path) else { return };
    let Ok(count) = cuda.count() else { return };
    for index in 0..count {
        begin("cuda.device");
        let record = Record::new("cuda.device").value("index", index);
        match cuda.device(index) {
            Ok(device) => describe(&cuda, device, record).emit(),
            Err(failure) => record.error(&cuda.explained(failure)).emit(),
        }
    }
    if count > 1 {
        begin("cuda.peers");
        Record::new("cuda.peers").value("can_access", peers(&cuda, count)).emit();
    }
}

fn describe(cuda: &Cuda, device: Device, record: Record) -> Record {
    let mut attributes = Object::new();
    for attribute in ATTRIBUTES {
        attributes = attributes.option(attribute.name, cuda.attribute(device, attribute.number));
    }
    let record = match cuda.name(device) {
        Some(name) => record.text("name", &name),
        None => record.value("name", "null"),
    };
    let record = match cuda.uuid(device) {
        Some(uuid) => record.text("uuid", &uuid),
        None => record.value("uuid", "null"),
    };
    let record = match cuda.pci_address(device) {
        Some(address) => record.text("pci", &address),
        None => record.value("pci", "null"),
    };
    record.option("total_memory", cuda.memory(device)).value("attributes", attributes.finish())
}

/// `[[null,true],[true,null]]`: row reaches column; null for itself, and where the driver does not say.
fn peers(cuda: &Cuda, count: c_int) -> String {
    let mut table = String::from("[");
    for from in 0..count {
        table.push_str(if from == 0 { "[" } else { ",[" });
        for to in 0..count {
            let answer = match (cuda.device(from), cuda.device(to)) {
                (Ok(a), Ok(b)) if from != to => cuda.can_reach(a, b),
                _ => None,
            };
            let shown = answer.map_or("null", |can| if can { "true" } else { "false" });
            let _ = write!(table, "{}{shown}", if to == 0 { "" } else { "," });
        }
        table.push(']');
    }
    format!("{table}]")
}
