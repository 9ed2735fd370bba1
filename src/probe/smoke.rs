//! The smoke test of one device: a kernel whose every output the host recomputes, and a count of the
//! multiprocessors that ran. Shows that the driver compiles PTX, launches, and returns right results.

use alloc::string::String;
use alloc::vec;
use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::ptr::{from_mut, null_mut};

use crate::cuda::Cuda;
use crate::device_test::{DevicePointer, Test};
use crate::library::{Failure, c_string, call, until_zero};
use crate::mix;

const KERNELS: &str = include_str!("kernels.ptx");
const THREADS: u32 = 256;

/// Runs the test on the device at `index`.
pub fn test(path: &str, index: c_int) {
    let Some(cuda) = Cuda::start(path) else { return };
    let test = Test { cuda: &cuda, index };
    let Some(device) = test.stage("smoke.context", |record| Ok((record, test.make_context()?))) else {
        return;
    };
    let Some(module) = test.stage("smoke.compile", |record| Ok((record, test.compile()?))) else { return };
    let computed = test.stage("smoke.compute", |record| {
        let wrong = test.compute(module)?;
        let record = record.value("elements", mix::ELEMENTS).value("mismatches", wrong.count);
        Ok((record.option("first_mismatch", wrong.first), ()))
    });
    if computed.is_none() {
        return;
    }
    let total = cuda.attribute(device, 16).unwrap_or(0);
    test.stage("smoke.multiprocessors", |record| {
        let ran = test.count_multiprocessors(module, total)?;
        Ok((record.value("ran", ran).value("multiprocessors", total), ()))
    });
}

/// What differed from the host's own result.
#[derive(Default)]
struct Wrong {
    count: u32,
    first: Option<u32>,
}

impl Test<'_> {
    /// Has the driver compile the kernels; its compiler's own words become the failure's text.
    fn compile(&self) -> Result<*mut c_void, Failure> {
        const CU_JIT_ERROR_LOG_BUFFER: c_int = 5;
        const CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES: c_int = 6;
        let source = c_string(KERNELS);
        let mut log = vec![0u8; 4096];
        let mut options = [CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The size is passed as a number in the place of a pointer: that is this function's convention.
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), log.len() as *mut c_void];
        let mut module: *mut c_void = null_mut();
        // SAFETY: CUresult cuModuleLoadDataEx(CUmodule *, const void *, unsigned int, CUjit_option *, void **)
        unsafe {
            call!(self.cuda.0, "cuModuleLoadDataEx"(
                *mut *mut c_void: &mut module,
                *const u8: source.as_ptr(),
                c_uint: 2,
                *mut c_int: options.as_mut_ptr(),
                *mut *mut c_void: values.as_mut_ptr(),
            ))
        }
        .map_err(|mut failure| {
            failure.text = String::from(until_zero(&log).trim());
            failure
        })?;
        Ok(module)
    }

    fn function(&self, module: *mut c_void, name: &CStr) -> Result<*mut c_void, Failure> {
        let mut function: *mut c_void = null_mut();
        // SAFETY: CUresult cuModuleGetFunction(CUfunction *, CUmodule, const char *)
        unsafe {
            call!(self.cuda.0, "cuModuleGetFunction"(
                *mut *mut c_void: &mut function,
                *mut c_void: module,
                *const c_char: name.as_ptr(),
            ))
        }?;
        Ok(function)
    }

    fn upload(&self, to: DevicePointer, from: &[u32]) -> Result<(), Failure> {
        // SAFETY: CUresult cuMemcpyHtoD_v2(CUdeviceptr, const void *, size_t); the buffer is that long.
        unsafe {
            call!(self.cuda.0, "cuMemcpyHtoD_v2"(
                DevicePointer: to, *const u32: from.as_ptr(), usize: size_of_val(from)
            ))
        }
    }

    /// Launches over one dimension and waits for the end.
    fn launch(
        &self,
        function: *mut c_void,
        blocks: u32,
        threads: u32,
        parameters: &mut [*mut c_void],
    ) -> Result<(), Failure> {
        // SAFETY: CUresult cuLaunchKernel(CUfunction, grid x y z, block x y z, shared memory, CUstream,
        // void **parameters, void **extra); each parameter points to a value of the kernel's own type.
        unsafe {
            call!(self.cuda.0, "cuLaunchKernel"(
                *mut c_void: function,
                c_uint: blocks, c_uint: 1, c_uint: 1,
                c_uint: threads, c_uint: 1, c_uint: 1,
                c_uint: 0,
                *mut c_void: null_mut(),
                *mut *mut c_void: parameters.as_mut_ptr(),
                *mut *mut c_void: null_mut(),
            ))?;
            call!(self.cuda.0, "cuCtxSynchronize"())
        }
    }

    fn compute(&self, module: *mut c_void) -> Result<Wrong, Failure> {
        let kernel = self.function(module, c"mix")?;
        let mut host: alloc::vec::Vec<u32> = (0..mix::ELEMENTS).map(mix::input).collect();
        let bytes = size_of_val(host.as_slice());
        let (mut input, mut output) = (self.cuda.allocate(bytes)?, self.cuda.allocate(bytes)?);
        self.upload(input, &host)?;
        // What stood there before must not pass for a result.
        host.fill(0);
        self.upload(output, &host)?;
        let (mut count, mut seed, mut rounds) = (mix::ELEMENTS, mix::SEED, mix::ROUNDS);
        let mut parameters: [*mut c_void; 5] = [
            from_mut(&mut output).cast(),
            from_mut(&mut input).cast(),
            from_mut(&mut count).cast(),
            from_mut(&mut seed).cast(),
            from_mut(&mut rounds).cast(),
        ];
        self.launch(kernel, mix::ELEMENTS.div_ceil(THREADS), THREADS, &mut parameters)?;
        self.cuda.download(&mut host, output)?;
        let mut wrong = Wrong::default();
        for (index, value) in (0..mix::ELEMENTS).zip(&host) {
            if *value != mix::expected(index) {
                wrong.count += 1;
                wrong.first.get_or_insert(index);
            }
        }
        Ok(wrong)
    }

    fn count_multiprocessors(&self, module: *mut c_void, total: c_int) -> Result<usize, Failure> {
        /// Blocks for each multiprocessor, so that the first wave reaches all of them.
        const WAVES: u32 = 16;
        let kernel = self.function(module, c"where_ran")?;
        let mut count = total.max(1) as u32;
        let mut host = vec![0u32; count as usize];
        let mut output = self.cuda.allocate(size_of_val(host.as_slice()))?;
        self.upload(output, &host)?;
        let blocks = count * WAVES;
        let mut parameters: [*mut c_void; 2] = [from_mut(&mut output).cast(), from_mut(&mut count).cast()];
        self.launch(kernel, blocks, THREADS, &mut parameters)?;
        self.cuda.download(&mut host, output)?;
        Ok(host.iter().filter(|&&threads| threads > 0).count())
    }
}
