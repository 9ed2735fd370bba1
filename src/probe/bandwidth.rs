//! Copies between pinned host memory and one device, and what the PCIe link says of itself while copies are under
//! way. The agent starts one such process after the other: two at once would share a link.

use core::ffi::{c_int, c_uint, c_void};
use core::ptr::null_mut;

use crate::cuda::{Cuda, Device};
use crate::device_test::{DevicePointer, Test};
use crate::library::{Failure, call};
use crate::nvml::Nvml;
use crate::record::Record;
use crate::stream::{Stream, summary};

/// Bytes of one copy.
const SIZE: usize = 256 << 20;
/// Timed copies in each direction.
const COPIES: usize = 8;
/// Copies that keep the link awake while it is read: 2 GiB, some 40 ms on the fastest link.
const UNDER_WAY: usize = 8;

struct Buffers {
    host: *mut u8,
    here: DevicePointer,
    there: DevicePointer,
    stream: Stream,
}

#[derive(Clone, Copy)]
enum Direction {
    ToDevice,
    ToHost,
    OnDevice,
}

/// Measures the device at `index`; `nvml` is the library that knows its link.
pub fn test(path: &str, index: c_int, nvml: &str) {
    let Some(cuda) = Cuda::start(path) else { return };
    let test = Test { cuda: &cuda, index };
    let Some((device, buffers)) = test.stage("bandwidth.context", |record| {
        let device = test.make_context()?;
        Ok((record, (device, Buffers::new(&cuda)?)))
    }) else {
        return;
    };
    let copied = test.stage("bandwidth.copies", |record| Ok((buffers.measure(&cuda, record)?, ())));
    if copied.is_some() {
        test.stage("bandwidth.link", |record| Ok((buffers.link(&cuda, device, nvml, record)?, ())));
    }
}

impl Buffers {
    fn new(cuda: &Cuda) -> Result<Self, Failure> {
        let mut host = null_mut();
        // SAFETY: CUresult cuMemHostAlloc(void **, size_t, unsigned int)
        unsafe { call!(cuda.0, "cuMemHostAlloc"(*mut *mut u8: &mut host, usize: SIZE, c_uint: 0)) }?;
        let (here, there) = (cuda.allocate(SIZE)?, cuda.allocate(SIZE)?);
        Ok(Self { host, here, there, stream: Stream::new(cuda)? })
    }

    /// Adds best and median of each direction to `record`, in GB/s. A copy on the device reads and writes: both
    /// are counted.
    fn measure(&self, cuda: &Cuda, record: Record) -> Result<Record, Failure> {
        let mut record = record.value("bytes", SIZE).value("copies", COPIES);
        for (name, direction, factor) in [
            ("host_to_device", Direction::ToDevice, 1.0),
            ("device_to_host", Direction::ToHost, 1.0),
            ("device_to_device", Direction::OnDevice, 2.0),
        ] {
            let bytes = factor * SIZE as f64;
            let rates = self.stream.rates(cuda, COPIES, bytes, || self.enqueue(cuda, direction))?;
            record = record.value(name, summary(rates));
        }
        Ok(record)
    }

    fn enqueue(&self, cuda: &Cuda, direction: Direction) -> Result<(), Failure> {
        let stream = self.stream.handle;
        // SAFETY: the asynchronous copies take destination, source, size and stream; the buffers are SIZE long
        // and live as long as the process.
        unsafe {
            match direction {
                Direction::ToDevice => call!(cuda.0, "cuMemcpyHtoDAsync_v2"(
                    DevicePointer: self.here, *const u8: self.host, usize: SIZE, *mut c_void: stream
                )),
                Direction::ToHost => call!(cuda.0, "cuMemcpyDtoHAsync_v2"(
                    *mut u8: self.host, DevicePointer: self.here, usize: SIZE, *mut c_void: stream
                )),
                Direction::OnDevice => call!(cuda.0, "cuMemcpyDtoDAsync_v2"(
                    DevicePointer: self.there, DevicePointer: self.here, usize: SIZE, *mut c_void: stream
                )),
            }
        }
    }

    /// Adds the link to `record`. At rest a link falls back to its slowest generation, so copies run meanwhile.
    fn link(&self, cuda: &Cuda, device: Device, nvml: &str, record: Record) -> Result<Record, Failure> {
        let Some(address) = cuda.pci_address(device) else {
            return Err(Failure::missing("cuDeviceGetPCIBusId"));
        };
        // NVML's codes are not CUDA's: its failures are explained by itself.
        let nvml = match Nvml::start(nvml) {
            Ok(nvml) => nvml,
            Err(failure) => return Ok(record.error(&failure)),
        };
        let gpu = match nvml.gpu_at(&address) {
            Ok(gpu) => gpu,
            Err(failure) => return Ok(record.error(&nvml.explained(failure))),
        };
        for _ in 0..UNDER_WAY {
            self.enqueue(cuda, Direction::ToDevice)?;
        }
        let record = gpu.link(record);
        self.stream.wait(cuda)?;
        Ok(record)
    }
}
