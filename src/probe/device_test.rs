//! A device under test: its context, and a record for each stage.

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;

use crate::cuda::{Cuda, Device};
use crate::library::{Failure, call};
use crate::record::{Record, begin, decimal};
use crate::runtime::milliseconds;

/// An address in a device's memory.
pub type DevicePointer = u64;

/// The device at `index`.
pub struct Test<'a> {
    /// libcuda, initialised.
    pub cuda: &'a Cuda,
    /// CUDA's ordinal.
    pub index: c_int,
}

impl Test<'_> {
    /// `begin`, the work, and its record with the time or the failure.
    pub fn stage<T>(
        &self,
        name: &str,
        work: impl FnOnce(Record) -> Result<(Record, T), Failure>,
    ) -> Option<T> {
        begin(name);
        let began = milliseconds();
        match work(Record::new(name).value("index", self.index)) {
            Ok((record, value)) => {
                record.value("ms", decimal(milliseconds() - began)).emit();
                Some(value)
            }
            Err(failure) => {
                let record = Record::new(name).value("index", self.index);
                record.error(&self.cuda.explained(failure)).emit();
                None
            }
        }
    }

    /// Makes the device's context the current one.
    pub fn make_context(&self) -> Result<Device, Failure> {
        let device = self.cuda.device(self.index)?;
        let context = self.cuda.context(device)?;
        self.cuda.use_context(context)?;
        Ok(device)
    }
}

impl Cuda {
    /// The primary context: the one that CUDA's runtime API uses, too.
    pub fn context(&self, device: Device) -> Result<*mut c_void, Failure> {
        let mut context: *mut c_void = null_mut();
        // SAFETY: CUresult cuDevicePrimaryCtxRetain(CUcontext *, CUdevice)
        unsafe {
            call!(self.0, "cuDevicePrimaryCtxRetain"(*mut *mut c_void: &mut context, Device: device))?;
        }
        Ok(context)
    }

    /// What follows is done in `context`.
    pub fn use_context(&self, context: *mut c_void) -> Result<(), Failure> {
        // SAFETY: CUresult cuCtxSetCurrent(CUcontext)
        unsafe { call!(self.0, "cuCtxSetCurrent"(*mut c_void: context)) }
    }

    /// Memory of the current context's device.
    pub fn allocate(&self, bytes: usize) -> Result<DevicePointer, Failure> {
        let mut pointer: DevicePointer = 0;
        // SAFETY: CUresult cuMemAlloc_v2(CUdeviceptr *, size_t)
        unsafe { call!(self.0, "cuMemAlloc_v2"(*mut DevicePointer: &mut pointer, usize: bytes)) }?;
        Ok(pointer)
    }

    /// Copies to the host, and waits for it.
    pub fn download(&self, to: &mut [u32], from: DevicePointer) -> Result<(), Failure> {
        // SAFETY: CUresult cuMemcpyDtoH_v2(void *, CUdeviceptr, size_t); the buffer is that long.
        unsafe {
            call!(self.0, "cuMemcpyDtoH_v2"(
                *mut u32: to.as_mut_ptr(), DevicePointer: from, usize: size_of_val(to)
            ))
        }
    }
}
