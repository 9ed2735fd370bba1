//! CUDA cores per multiprocessor. The driver does not tell; NVIDIA's samples carry a table by compute capability.

const CORES: &[(i64, i64, u32)] = &[
    (3, 0, 192),
    (3, 2, 192),
    (3, 5, 192),
    (3, 7, 192),
    (5, 0, 128),
    (5, 2, 128),
    (5, 3, 128),
    (6, 0, 64),
    (6, 1, 128),
    (6, 2, 128),
    (7, 0, 64),
    (7, 2, 64),
    (7, 5, 64),
    (8, 0, 64),
    (8, 6, 128),
    (8, 7, 128),
    (8, 9, 128),
    (9, 0, 128),
    (10, 0, 128),
    (10, 1, 128),
    (10, 3, 128),
    (11, 0, 128),
    (12, 0, 128),
    (12, 1, 128),
];

/// Cores per multiprocessor and whether that is known; like the samples, the newest known number stands in for an
/// unknown capability.
pub(super) fn cores_per_multiprocessor(major: i64, minor: i64) -> (u32, bool) {
    match CORES.iter().find(|row| (row.0, row.1) == (major, minor)) {
        Some(row) => (row.2, true),
        None => (CORES.last().map_or(0, |row| row.2), false),
    }
}
