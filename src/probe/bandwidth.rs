//! Copies between pinned host memory and the device, each timed by the device's own events.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::{c_uint, c_void};
use core::ptr::null_mut;

use crate::cuda::Cuda;
use crate::library::{Failure, call};
use crate::record::{Object, Record};
use crate::smoke::DevicePointer;

/// Bytes of one copy.
const SIZE: usize = 256 << 20;
/// Timed copies in each direction; one more before them is not counted.
const COPIES: usize = 8;

struct Buffers {
    host: *mut u8,
    here: DevicePointer,
    there: DevicePointer,
    stream: *mut c_void,
    before: *mut c_void,
    after: *mut c_void,
}

#[derive(Clone, Copy)]
enum Direction {
    ToDevice,
    ToHost,
    OnDevice,
}

/// Adds best and median of each direction to `record`, in GB/s (10⁹ bytes). A copy on the device reads and writes:
/// both are counted.
pub fn measure(cuda: &Cuda, record: Record) -> Result<Record, Failure> {
    let buffers = Buffers::new(cuda)?;
    let mut record = record.value("bytes", SIZE).value("copies", COPIES);
    for (name, direction, factor) in [
        ("host_to_device", Direction::ToDevice, 1.0),
        ("device_to_host", Direction::ToHost, 1.0),
        ("device_to_device", Direction::OnDevice, 2.0),
    ] {
        record = record.value(name, rates(cuda, &buffers, direction, factor)?);
    }
    Ok(record)
}

fn rates(cuda: &Cuda, buffers: &Buffers, direction: Direction, factor: f64) -> Result<String, Failure> {
    buffers.copy(cuda, direction)?;
    let mut rates = Vec::new();
    for _ in 0..COPIES {
        let ms = f64::from(buffers.copy(cuda, direction)?);
        rates.push(factor * SIZE as f64 / (ms * 1e6));
    }
    rates.sort_by(f64::total_cmp);
    let median = f64::midpoint(rates[(COPIES - 1) / 2], rates[COPIES / 2]);
    let best = rates[COPIES - 1];
    Ok(Object::new().value("best", format!("{best:.3}")).value("median", format!("{median:.3}")).finish())
}

impl Buffers {
    fn new(cuda: &Cuda) -> Result<Self, Failure> {
        const CU_STREAM_NON_BLOCKING: c_uint = 1;
        let mut b = Self {
            host: null_mut(),
            here: 0,
            there: 0,
            stream: null_mut(),
            before: null_mut(),
            after: null_mut(),
        };
        // SAFETY: cuMemHostAlloc(void **, size_t, unsigned), cuMemAlloc_v2(CUdeviceptr *, size_t),
        // cuStreamCreate(CUstream *, unsigned), cuEventCreate(CUevent *, unsigned)
        unsafe {
            call!(cuda.0, "cuMemHostAlloc"(*mut *mut u8: &mut b.host, usize: SIZE, c_uint: 0))?;
            call!(cuda.0, "cuMemAlloc_v2"(*mut DevicePointer: &mut b.here, usize: SIZE))?;
            call!(cuda.0, "cuMemAlloc_v2"(*mut DevicePointer: &mut b.there, usize: SIZE))?;
            call!(cuda.0, "cuStreamCreate"(*mut *mut c_void: &mut b.stream, c_uint: CU_STREAM_NON_BLOCKING))?;
            call!(cuda.0, "cuEventCreate"(*mut *mut c_void: &mut b.before, c_uint: 0))?;
            call!(cuda.0, "cuEventCreate"(*mut *mut c_void: &mut b.after, c_uint: 0))?;
        }
        Ok(b)
    }

    /// One copy; milliseconds between the events around it.
    fn copy(&self, cuda: &Cuda, direction: Direction) -> Result<f32, Failure> {
        let mut ms = 0f32;
        // SAFETY: the asynchronous copies take destination, source, size and stream; the buffers are SIZE long
        // and live until the stream has ended its work.
        unsafe {
            call!(cuda.0, "cuEventRecord"(*mut c_void: self.before, *mut c_void: self.stream))?;
            match direction {
                Direction::ToDevice => call!(cuda.0, "cuMemcpyHtoDAsync_v2"(
                    DevicePointer: self.here, *const u8: self.host, usize: SIZE, *mut c_void: self.stream
                )),
                Direction::ToHost => call!(cuda.0, "cuMemcpyDtoHAsync_v2"(
                    *mut u8: self.host, DevicePointer: self.here, usize: SIZE, *mut c_void: self.stream
                )),
                Direction::OnDevice => call!(cuda.0, "cuMemcpyDtoDAsync_v2"(
                    DevicePointer: self.there, DevicePointer: self.here, usize: SIZE, *mut c_void: self.stream
                )),
            }?;
            call!(cuda.0, "cuEventRecord"(*mut c_void: self.after, *mut c_void: self.stream))?;
            call!(cuda.0, "cuStreamSynchronize"(*mut c_void: self.stream))?;
            call!(cuda.0, "cuEventElapsedTime"(
                *mut f32: &mut ms, *mut c_void: self.before, *mut c_void: self.after
            ))?;
        }
        Ok(ms)
    }
}
