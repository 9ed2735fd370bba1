//! The smoke test's arithmetic, on the host: what the kernel `mix` in `kernels.ptx` must have computed, bit for
//! bit. Integers only, so every architecture gives the same answer. Compiled into the agent's tests, too.

/// Elements of one test: enough blocks of 256 for a first wave on every multiprocessor of any GPU so far.
pub(crate) const ELEMENTS: u32 = 1 << 16;
/// Rounds per element; the host repeats them all, at about 40 ns per element.
pub(crate) const ROUNDS: u32 = 16;
/// Mixed into each round.
pub(crate) const SEED: u32 = 0x00C0_FFEE;

/// The input at `index`.
pub(crate) fn input(index: u32) -> u32 {
    index.wrapping_mul(2_654_435_761)
}

/// The output at `index`.
pub(crate) fn expected(index: u32) -> u32 {
    let mut x = input(index).wrapping_add(index);
    for round in (1..=ROUNDS).rev() {
        x = (x ^ SEED).wrapping_mul(0x9E37_79B1);
        x ^= x >> 15;
        x = x.wrapping_mul(0x85EB_CA77).wrapping_add(round);
    }
    x
}
