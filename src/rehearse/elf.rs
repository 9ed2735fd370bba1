//! The smallest shared library that the dynamic linker's cache will list. `ldconfig` reads ELF headers and sonames,
//! so a simulated `libcuda.so.1` has to be a real ELF file; it has no symbols and does nothing.

use crate::facts::os::Arch;

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
/// The dynamic linker writes into the dynamic section when it loads a library.
const READ_WRITE: u32 = 6;
const DT_NULL: u64 = 0;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_STRSZ: u64 = 10;
const DT_SYMENT: u64 = 11;
const DT_SONAME: u64 = 14;
/// Size of an entry of the symbol table; the only one here is the empty one.
const SYMBOL: u64 = 24;
const NO_SYMBOL: [u8; 24] = [0; 24];
const PAGE: u64 = 4096;

/// A shared library for `arch` with this soname.
pub(super) fn shared_library(soname: &str, arch: Arch) -> Vec<u8> {
    let hash_at = HEADER + 2 * PROGRAM_HEADER;
    let hash: Vec<u8> = [1u32, 1, 0, 0].iter().flat_map(|n| n.to_le_bytes()).collect(); // one empty bucket, one symbol
    let symbols_at = hash_at + hash.len() as u64;
    let strings_at = symbols_at + SYMBOL;
    let strings = format!("\0{soname}\0(simulated by gpu-bootstrap rehearse)\0");
    let dynamic_at = (strings_at + strings.len() as u64).next_multiple_of(8);
    let dynamic: Vec<u8> = [
        (DT_SONAME, 1),
        (DT_HASH, hash_at),
        (DT_SYMTAB, symbols_at),
        (DT_SYMENT, SYMBOL),
        (DT_STRTAB, strings_at),
        (DT_STRSZ, strings.len() as u64),
        (DT_NULL, 0),
    ]
    .iter()
    .flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat())
    .collect();
    let size = dynamic_at + dynamic.len() as u64;

    let mut file = header(arch);
    file.extend(program_header(PT_LOAD, 0, size, PAGE));
    file.extend(program_header(PT_DYNAMIC, dynamic_at, dynamic.len() as u64, 8));
    file.extend(hash);
    file.extend(NO_SYMBOL);
    file.extend(strings.as_bytes());
    file.resize(usize::try_from(dynamic_at).unwrap_or_default(), 0);
    file.extend(dynamic);
    file
}

fn header(arch: Arch) -> Vec<u8> {
    let machine = match arch {
        Arch::Amd64 => EM_X86_64,
        Arch::Arm64 => EM_AARCH64,
    };
    let mut h = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]; // 64 bit, little endian
    h.extend(ET_DYN.to_le_bytes());
    h.extend(machine.to_le_bytes());
    h.extend(1u32.to_le_bytes());
    h.extend(0u64.to_le_bytes()); // no entry point
    h.extend(HEADER.to_le_bytes());
    h.extend(0u64.to_le_bytes()); // no section headers
    h.extend(0u32.to_le_bytes());
    for n in [HEADER, PROGRAM_HEADER, 2, 64, 0, 0] {
        h.extend(u16::try_from(n).unwrap_or_default().to_le_bytes());
    }
    h
}

fn program_header(kind: u32, at: u64, size: u64, align: u64) -> Vec<u8> {
    let mut h = [kind.to_le_bytes(), READ_WRITE.to_le_bytes()].concat();
    for n in [at, at, at, size, size, align] {
        h.extend(n.to_le_bytes());
    }
    h
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldconfig_lists_it_under_its_soname() {
        let dir = tempfile::tempdir().unwrap();
        let arch = if cfg!(target_arch = "aarch64") { Arch::Arm64 } else { Arch::Amd64 };
        std::fs::write(dir.path().join("libany.so.9"), shared_library("libcuda.so.1", arch)).unwrap();
        // -n: only this directory, and only the link that the soname asks for; the cache stays as it is.
        let out = std::process::Command::new("/sbin/ldconfig").arg("-nv").arg(dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(said.contains("libcuda.so.1 -> libany.so.9"), "{said}");
        assert!(dir.path().join("libcuda.so.1").is_symlink());
    }
}
