//! A stream of the current context, and the time that a copy in it takes by the device's own events.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::{c_uint, c_void};
use core::ptr::null_mut;

use crate::cuda::Cuda;
use crate::library::{Failure, call};
use crate::record::{Object, decimal};

/// A stream with two events.
pub struct Stream {
    /// `CUstream`
    pub handle: *mut c_void,
    before: *mut c_void,
    after: *mut c_void,
}

impl Stream {
    /// In the current context.
    pub fn new(cuda: &Cuda) -> Result<Self, Failure> {
        const CU_STREAM_NON_BLOCKING: c_uint = 1;
        let mut s = Self { handle: null_mut(), before: null_mut(), after: null_mut() };
        // SAFETY: cuStreamCreate(CUstream *, unsigned), cuEventCreate(CUevent *, unsigned)
        unsafe {
            call!(cuda.0, "cuStreamCreate"(*mut *mut c_void: &mut s.handle, c_uint: CU_STREAM_NON_BLOCKING))?;
            call!(cuda.0, "cuEventCreate"(*mut *mut c_void: &mut s.before, c_uint: 0))?;
            call!(cuda.0, "cuEventCreate"(*mut *mut c_void: &mut s.after, c_uint: 0))?;
        }
        Ok(s)
    }

    /// Until everything that was put in has been done.
    pub fn wait(&self, cuda: &Cuda) -> Result<(), Failure> {
        // SAFETY: CUresult cuStreamSynchronize(CUstream)
        unsafe { call!(cuda.0, "cuStreamSynchronize"(*mut c_void: self.handle)) }
    }

    /// Bytes per millisecond × 10⁻⁶, which are GB/s (10⁹ bytes), of each of `copies` copies of `bytes` bytes; one
    /// more before them is not counted.
    pub fn rates(
        &self,
        cuda: &Cuda,
        copies: usize,
        bytes: f64,
        copy: impl Fn() -> Result<(), Failure>,
    ) -> Result<Vec<f64>, Failure> {
        self.milliseconds(cuda, &copy)?;
        (0..copies).map(|_| Ok(bytes / (f64::from(self.milliseconds(cuda, &copy)?) * 1e6))).collect()
    }

    /// Between the events around it.
    fn milliseconds(&self, cuda: &Cuda, copy: impl Fn() -> Result<(), Failure>) -> Result<f32, Failure> {
        let mut ms = 0f32;
        // SAFETY: cuEventRecord(CUevent, CUstream), cuEventElapsedTime(float *, CUevent, CUevent)
        unsafe {
            call!(cuda.0, "cuEventRecord"(*mut c_void: self.before, *mut c_void: self.handle))?;
            copy()?;
            call!(cuda.0, "cuEventRecord"(*mut c_void: self.after, *mut c_void: self.handle))?;
            self.wait(cuda)?;
            call!(cuda.0, "cuEventElapsedTime"(
                *mut f32: &mut ms, *mut c_void: self.before, *mut c_void: self.after
            ))?;
        }
        Ok(ms)
    }
}

/// `{"best":…,"median":…}` of at least one rate.
pub fn summary(mut rates: Vec<f64>) -> String {
    // By insertion: a handful of numbers, and the library's sort is 4 KB.
    for end in 1..rates.len() {
        let mut at = end;
        while at > 0 && rates[at - 1] > rates[at] {
            rates.swap(at - 1, at);
            at -= 1;
        }
    }
    let median = f64::midpoint(rates[(rates.len() - 1) / 2], rates[rates.len() / 2]);
    let best = rates[rates.len() - 1];
    Object::new().value("best", decimal(best)).value("median", decimal(median)).finish()
}
