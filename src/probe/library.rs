//! A shared library, and calls into it by name.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::{c_char, c_int, c_void};

use crate::record::Object;
use crate::runtime::{dlerror, dlopen, dlsym, text};

/// A loaded library. It stays loaded until the process ends.
pub struct Library(*mut c_void);

/// A call that did not do what it should.
pub struct Failure {
    /// The function's name.
    pub call: &'static str,
    /// The code that it returned; none where the library does not have the function.
    pub code: Option<c_int>,
    /// The library's own name for the code.
    pub name: String,
    /// The library's own words.
    pub text: String,
}

impl Failure {
    /// `call` returned `code`.
    pub fn new(call: &'static str, code: c_int) -> Self {
        Self { call, code: Some(code), name: String::new(), text: String::new() }
    }

    /// The library has no such function.
    pub fn missing(call: &'static str) -> Self {
        Self { call, code: None, name: String::new(), text: String::from("the library has no such function") }
    }

    /// `{"call":…,"code":…,"name":…,"text":…}`
    pub fn json(&self) -> String {
        let object = Object::new().text("call", self.call).option("code", self.code);
        object.text("name", &self.name).text("text", &self.text).finish()
    }
}

/// A zero-terminated copy.
pub fn c_string(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

/// The text before the first zero byte.
pub fn until_zero(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    core::str::from_utf8(&bytes[..end]).unwrap_or("?")
}

impl Library {
    /// Loads the library at `path`, all symbols resolved at once.
    pub fn open(path: &str) -> Result<Self, Failure> {
        const RTLD_NOW: c_int = 2;
        // SAFETY: the path is zero-terminated. The library's own constructors run: that is what this process is for.
        let handle = unsafe { dlopen(c_string(path).as_ptr().cast(), RTLD_NOW) };
        if handle.is_null() {
            // SAFETY: dlerror's string stays until the next call of its kind.
            let why = String::from(unsafe { text(dlerror()) });
            return Err(Failure { call: "dlopen", code: None, name: String::new(), text: why });
        }
        Ok(Self(handle))
    }

    /// The address of a function; null where the library has none of this name.
    pub fn symbol(&self, name: &str) -> *mut c_void {
        // SAFETY: the handle is open and the name is zero-terminated.
        unsafe { dlsym(self.0, c_string(name).as_ptr().cast::<c_char>()) }
    }
}

/// `call!(library, "name"(type: value, …))`: calls a C function that returns a status, 0 for success. The types
/// are spelled at each call, as the library's header has them. Must stand in an unsafe block.
macro_rules! call {
    ($library:expr, $name:literal ( $($type:ty : $value:expr),* $(,)? )) => {{
        let symbol = $library.symbol($name);
        if symbol.is_null() {
            Err($crate::library::Failure::missing($name))
        } else {
            let function: unsafe extern "C" fn($($type),*) -> core::ffi::c_int = core::mem::transmute(symbol);
            match function($($value),*) {
                0 => Ok(()),
                code => Err($crate::library::Failure::new($name, code)),
            }
        }
    }};
}
pub(crate) use call;
