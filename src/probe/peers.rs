//! Copies from one device's memory to another's, pair after pair, each checked at both ends of the buffer: on some
//! virtual machines such copies end well and arrive wrong.
//!
//! The first failure ends the test: an error in one context spoils what follows. The agent starts another process
//! for the pairs that are left.

use alloc::vec;
use alloc::vec::Vec;
use core::ffi::{c_int, c_uint, c_void};

use crate::cuda::Cuda;
use crate::device_test::DevicePointer;
use crate::library::{Failure, call};
use crate::record::Record;
use crate::stream::{Stream, summary};

/// Bytes of one copy: the 56 pairs of 8 GPUs copy 23 GB in all, 2 s at 10 GB/s.
const SIZE: usize = 64 << 20;
/// Timed copies of each pair.
const COPIES: usize = 5;
/// Words at each end of a buffer that are marked before a copy and looked at after it.
const MARKED: usize = 1024;

const STAGE: &str = "peers.copy";

/// One device's part in a pair.
struct Side {
    index: c_int,
    context: *mut c_void,
    buffer: DevicePointer,
    stream: Stream,
}

/// Copies for each pair of `pairs` (`0-1,0-2,…`: from, to). False where that is no list of pairs.
pub fn test(path: &str, pairs: &str) -> bool {
    let parsed: Option<Vec<(c_int, c_int)>> = pairs.split(',').map(parse).collect();
    let Some(pairs) = parsed else { return false };
    let Some(cuda) = Cuda::start(path) else { return true };
    let mut sides = Vec::new();
    for (from, to) in pairs {
        let record = |stage| Record::new(stage).value("from", from).value("to", to);
        record("peers.copy.begin").emit();
        match copy(&cuda, &mut sides, from, to) {
            Ok((rates, wrong)) => {
                let record = record(STAGE).value("bytes", SIZE).value("copies", COPIES);
                record.value("rate", summary(rates)).value("wrong", wrong).emit();
            }
            Err(failure) => {
                record(STAGE).error(&cuda.explained(failure)).emit();
                return true;
            }
        }
    }
    true
}

fn parse(pair: &str) -> Option<(c_int, c_int)> {
    let (from, to) = pair.split_once('-')?;
    Some((from.parse().ok()?, to.parse().ok()?))
}

/// The rates, in GB/s, and how many of the marked words arrived wrong.
fn copy(cuda: &Cuda, sides: &mut Vec<Side>, from: c_int, to: c_int) -> Result<(Vec<f64>, usize), Failure> {
    let (from, to) = (side(cuda, sides, from)?, side(cuda, sides, to)?);
    let (from, to) = (&sides[from], &sides[to]);
    let mark = 0xC0DE_0000 | (from.index as u32) << 8 | to.index as u32;
    to.mark(cuda, !mark)?;
    from.mark(cuda, mark)?;
    // The way back as well, where there is one: the driver may let either side's engine do the copy.
    let _ = to.open_way(cuda, from);
    from.open_way(cuda, to)?;
    let rates = from.stream.rates(cuda, COPIES, SIZE as f64, || {
        // SAFETY: CUresult cuMemcpyPeerAsync(CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t, CUstream);
        // both buffers are SIZE long and live as long as the process.
        unsafe {
            call!(cuda.0, "cuMemcpyPeerAsync"(
                DevicePointer: to.buffer, *mut c_void: to.context,
                DevicePointer: from.buffer, *mut c_void: from.context,
                usize: SIZE, *mut c_void: from.stream.handle
            ))
        }
    })?;
    Ok((rates, to.count_wrong(cuda, mark)?))
}

/// Where the device's side stands in `sides`; made at its first use.
fn side(cuda: &Cuda, sides: &mut Vec<Side>, index: c_int) -> Result<usize, Failure> {
    if let Some(at) = sides.iter().position(|s| s.index == index) {
        return Ok(at);
    }
    let context = cuda.context(cuda.device(index)?)?;
    cuda.use_context(context)?;
    let buffer = cuda.allocate(SIZE)?;
    sides.push(Side { index, context, buffer, stream: Stream::new(cuda)? });
    Ok(sides.len() - 1)
}

impl Side {
    /// The two places of the buffer that are marked.
    fn ends(&self) -> [DevicePointer; 2] {
        [self.buffer, self.buffer + (SIZE - MARKED * size_of::<u32>()) as DevicePointer]
    }

    fn mark(&self, cuda: &Cuda, mark: u32) -> Result<(), Failure> {
        cuda.use_context(self.context)?;
        for end in self.ends() {
            // SAFETY: CUresult cuMemsetD32_v2(CUdeviceptr, unsigned int, size_t words)
            unsafe { call!(cuda.0, "cuMemsetD32_v2"(DevicePointer: end, c_uint: mark, usize: MARKED)) }?;
        }
        // The stream of the copies does not wait for the default one.
        // SAFETY: CUresult cuCtxSynchronize(void)
        unsafe { call!(cuda.0, "cuCtxSynchronize"()) }
    }

    fn count_wrong(&self, cuda: &Cuda, mark: u32) -> Result<usize, Failure> {
        cuda.use_context(self.context)?;
        let mut words = vec![0u32; MARKED];
        let mut wrong = 0;
        for end in self.ends() {
            cuda.download(&mut words, end)?;
            wrong += words.iter().filter(|&&w| w != mark).count();
        }
        Ok(wrong)
    }

    /// Lets this device reach the other's memory directly. Leaves its context current.
    fn open_way(&self, cuda: &Cuda, to: &Self) -> Result<(), Failure> {
        const ALREADY_ENABLED: c_int = 704;
        cuda.use_context(self.context)?;
        // SAFETY: CUresult cuCtxEnablePeerAccess(CUcontext, unsigned int)
        match unsafe { call!(cuda.0, "cuCtxEnablePeerAccess"(*mut c_void: to.context, c_uint: 0)) } {
            Err(failure) if failure.code != Some(ALREADY_ENABLED) => Err(failure),
            _ => Ok(()),
        }
    }
}
