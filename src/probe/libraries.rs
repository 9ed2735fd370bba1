//! Versions of the CUDA libraries, asked from the libraries themselves.

use core::ffi::c_int;

use crate::library::{Failure, Library, call};
use crate::record::{Record, begin};

/// A library that can say its version.
pub struct Known {
    /// The first argument, and the stage.
    pub name: &'static str,
    ask: fn(&Library) -> Result<usize, Failure>,
}

/// Every library the probe knows to ask.
pub const KNOWN: &[Known] = &[
    Known { name: "cudart", ask: cudart },
    Known { name: "cudnn", ask: cudnn },
    Known { name: "cublas", ask: cublas },
    Known { name: "nccl", ask: nccl },
];

/// Loads the library and prints the number by which it calls its version.
pub fn version(known: &Known, path: &str) {
    begin(known.name);
    let record = Record::new(known.name).text("library", path);
    match Library::open(path).and_then(|library| (known.ask)(&library)) {
        Ok(version) => record.value("version", version),
        Err(failure) => record.error(&failure),
    }
    .emit();
}

fn cudart(library: &Library) -> Result<usize, Failure> {
    let mut version: c_int = 0;
    // SAFETY: cudaError_t cudaRuntimeGetVersion(int *)
    unsafe { call!(library, "cudaRuntimeGetVersion"(*mut c_int: &mut version)) }?;
    Ok(version as usize)
}

fn cudnn(library: &Library) -> Result<usize, Failure> {
    let symbol = library.symbol("cudnnGetVersion");
    if symbol.is_null() {
        return Err(Failure::missing("cudnnGetVersion"));
    }
    // SAFETY: size_t cudnnGetVersion(void)
    Ok(unsafe { core::mem::transmute::<*mut core::ffi::c_void, extern "C" fn() -> usize>(symbol) }())
}

/// Major, minor and patch, put together as cuDNN does: major × 10000 + minor × 100 + patch.
fn cublas(library: &Library) -> Result<usize, Failure> {
    let mut version = 0;
    for property in 0..3 {
        let mut value: c_int = 0;
        // SAFETY: cublasStatus_t cublasGetProperty(libraryPropertyType, int *)
        unsafe { call!(library, "cublasGetProperty"(c_int: property, *mut c_int: &mut value)) }?;
        version = version * 100 + value as usize;
    }
    Ok(version)
}

fn nccl(library: &Library) -> Result<usize, Failure> {
    let mut version: c_int = 0;
    // SAFETY: ncclResult_t ncclGetVersion(int *)
    unsafe { call!(library, "ncclGetVersion"(*mut c_int: &mut version)) }?;
    Ok(version as usize)
}
