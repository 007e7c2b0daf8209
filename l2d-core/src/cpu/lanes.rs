//! Sixteen f32 numbers at a time, in whatever registers this machine has.
//!
//! Kernels are written once over [`Lanes`] and compiled for each instruction set; [`dispatch`] picks at run time. All
//! implementations round alike: lanes are independent and `fma` is fused everywhere, in software where it must be.

/// Lanes of one vector.
pub(super) const LANES: usize = 16;

/// A vector of [`LANES`] numbers.
///
/// # Safety
/// The methods may only be reached from code compiled for the instruction set the implementation needs, on a machine that
/// has it. Pointers must be valid for the numbers a method names; they need no alignment.
pub(super) unsafe trait Lanes: Copy {
    /// Rows of a product whose sums fit into the registers beside two vectors of weights.
    const MAX_ROWS: usize;

    /// The same number in all lanes.
    unsafe fn splat(value: f32) -> Self;
    /// 16 f32.
    unsafe fn load(from: *const f32) -> Self;
    /// 16 f32.
    unsafe fn store(self, to: *mut f32);
    /// `self * factor + term`, rounded once.
    unsafe fn fma(self, factor: Self, term: Self) -> Self;
    unsafe fn mul(self, factor: Self) -> Self;
    unsafe fn add(self, term: Self) -> Self;
    unsafe fn div(self, divisor: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// To the nearest integer, halves to even.
    unsafe fn round(self) -> Self;
    /// `2^self` for integers from -126 to 127.
    unsafe fn power_of_two(self) -> Self;
    /// 16 half-precision numbers.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// 16 bfloat16 numbers.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// 16 signed bytes.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// The low and the high halves of 16 bytes, as numbers from 0 to 15.
    unsafe fn load_nibbles(from: *const u8) -> (Self, Self);
    /// Whether any lane is no number.
    unsafe fn any_nan(self) -> bool;
    /// `term` added in those lanes whose bit is set, the first lane's the lowest.
    unsafe fn add_where(self, bits: u16, term: f32) -> Self;
}

/// `e^x`, within 2 units in the last place for x in [-87, 88]; beyond, the value at the nearer end.
///
/// Range reduction by Cody and Waite, polynomial of Cephes' `expf`.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's.
    unsafe {
        let x = x.max(L::splat(-87.0)).min(L::splat(88.0));
        let n = x.mul(L::splat(std::f32::consts::LOG2_E)).round();
        let r = n.fma(L::splat(-0.693_359_4), x);
        let r = n.fma(L::splat(2.121_944_4e-4), r);
        let mut p = L::splat(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p.fma(r, L::splat(coefficient));
        }
        let p = p.fma(r.mul(r), r.add(L::splat(1.0)));
        p.mul(n.power_of_two())
    }
}

/// The sum of all lanes, in a fixed order.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn sum<L: Lanes>(x: L) -> f32 {
    let mut lanes = [0f32; LANES];
    // SAFETY: 16 numbers; otherwise the caller's.
    unsafe { x.store(lanes.as_mut_ptr()) };
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// Asks for the `bytes` bytes from `from` on to be brought into the cache. A hint: the address need not be valid.
#[inline(always)]
pub(super) fn prefetch<T>(from: *const T, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        // SAFETY: SSE is part of x86-64, and a prefetch of whatever address faults nowhere.
        unsafe {
            core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(
                from.cast::<i8>().wrapping_add(line),
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, bytes);
}

/// Portable; what it does defines the others.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn make(f: impl Fn(usize) -> f32) -> Self {
        let mut values = [0.0; LANES];
        for (lane, value) in values.iter_mut().enumerate() {
            *value = f(lane);
        }
        Self(values)
    }
}

// SAFETY: needs no instruction set beyond the target's own.
unsafe impl Lanes for Portable {
    const MAX_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        Self::make(|lane| unsafe { from.add(lane).read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for (lane, &value) in self.0.iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { to.add(lane).write_unaligned(value) };
        }
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, term: Self) -> Self {
        Self::make(|lane| self.0[lane].mul_add(factor.0[lane], term.0[lane]))
    }
    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        Self::make(|lane| self.0[lane] * factor.0[lane])
    }
    #[inline(always)]
    unsafe fn add(self, term: Self) -> Self {
        Self::make(|lane| self.0[lane] + term.0[lane])
    }
    #[inline(always)]
    unsafe fn div(self, divisor: Self) -> Self {
        Self::make(|lane| self.0[lane] / divisor.0[lane])
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self::make(|lane| if self.0[lane] > other.0[lane] { self.0[lane] } else { other.0[lane] })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self::make(|lane| if self.0[lane] < other.0[lane] { self.0[lane] } else { other.0[lane] })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self::make(|lane| self.0[lane].round_ties_even())
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        Self::make(|lane| f32::from_bits(((self.0[lane] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's.
        Self::make(|lane| half::f16::from_bits(unsafe { from.add(lane).read_unaligned() }).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's.
        Self::make(|lane| f32::from_bits(u32::from(unsafe { from.add(lane).read_unaligned() }) << 16))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's.
        Self::make(|lane| f32::from(unsafe { from.add(lane).read() }))
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> (Self, Self) {
        // SAFETY: the caller's.
        let byte = |lane: usize| unsafe { from.add(lane).read() };
        (Self::make(|lane| f32::from(byte(lane) & 15)), Self::make(|lane| f32::from(byte(lane) >> 4)))
    }
    #[inline(always)]
    unsafe fn any_nan(self) -> bool {
        self.0.iter().any(|x| x.is_nan())
    }
    #[inline(always)]
    unsafe fn add_where(self, bits: u16, term: f32) -> Self {
        Self::make(|lane| if bits >> lane & 1 == 1 { self.0[lane] + term } else { self.0[lane] })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use super::Lanes;

    /// AVX-512: one register.
    #[derive(Clone, Copy)]
    pub(in crate::cpu) struct Avx512(__m512);

    // SAFETY: reached only through `dispatch`, which asks the processor first.
    unsafe impl Lanes for Avx512 {
        const MAX_ROWS: usize = 12;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the trait's; so for all below.
            unsafe { Self(_mm512_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn fma(self, factor: Self, term: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, term.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, factor: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_mul_ps(self.0, factor.0)) }
        }
        #[inline(always)]
        unsafe fn add(self, term: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_add_ps(self.0, term.0)) }
        }
        #[inline(always)]
        unsafe fn div(self, divisor: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_div_ps(self.0, divisor.0)) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_max_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_min_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
        }
        #[inline(always)]
        unsafe fn power_of_two(self) -> Self {
            // SAFETY: as above.
            unsafe {
                let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            // SAFETY: as above.
            unsafe {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
            }
        }
        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))) }
        }
        #[inline(always)]
        unsafe fn load_nibbles(from: *const u8) -> (Self, Self) {
            // SAFETY: as above.
            unsafe {
                let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
                // A table in place of a mask and a conversion: it looks at the low four bits alone.
                let numbers = _mm512_setr_ps(
                    0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
                );
                let high = _mm512_srli_epi32::<4>(bytes);
                (Self(_mm512_permutexvar_ps(bytes, numbers)), Self(_mm512_permutexvar_ps(high, numbers)))
            }
        }
        #[inline(always)]
        unsafe fn any_nan(self) -> bool {
            // SAFETY: as above.
            unsafe { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0) != 0 }
        }
        #[inline(always)]
        unsafe fn add_where(self, bits: u16, term: f32) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_mask_add_ps(self.0, bits, self.0, _mm512_set1_ps(term))) }
        }
    }

    /// AVX2 with FMA and F16C: two registers.
    #[derive(Clone, Copy)]
    pub(in crate::cpu) struct Avx2(__m256, __m256);

    impl Avx2 {
        #[inline(always)]
        unsafe fn from_bytes(low: __m256i, high: __m256i) -> Self {
            // SAFETY: the trait's.
            unsafe { Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)) }
        }
    }

    // SAFETY: reached only through `dispatch`, which asks the processor first.
    unsafe impl Lanes for Avx2 {
        const MAX_ROWS: usize = 3;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the trait's; so for all below.
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above.
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn fma(self, factor: Self, term: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, term.0), _mm256_fmadd_ps(self.1, factor.1, term.1)) }
        }
        #[inline(always)]
        unsafe fn mul(self, factor: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_mul_ps(self.0, factor.0), _mm256_mul_ps(self.1, factor.1)) }
        }
        #[inline(always)]
        unsafe fn add(self, term: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_add_ps(self.0, term.0), _mm256_add_ps(self.1, term.1)) }
        }
        #[inline(always)]
        unsafe fn div(self, divisor: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_div_ps(self.0, divisor.0), _mm256_div_ps(self.1, divisor.1)) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            // SAFETY: as above.
            unsafe {
                let round = |x| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
                Self(round(self.0), round(self.1))
            }
        }
        #[inline(always)]
        unsafe fn power_of_two(self) -> Self {
            // SAFETY: as above.
            unsafe {
                let power = |x| {
                    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
                };
                Self(power(self.0), power(self.1))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            // SAFETY: as above.
            unsafe {
                let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(8).cast()));
                Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
            }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            // SAFETY: as above.
            unsafe {
                let shifted = |from: *const u16| {
                    let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
                };
                Self(shifted(from), shifted(from.add(8)))
            }
        }
        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            // SAFETY: as above.
            unsafe {
                let bytes = _mm_loadu_si128(from.cast());
                Self::from_bytes(_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)))
            }
        }
        #[inline(always)]
        unsafe fn load_nibbles(from: *const u8) -> (Self, Self) {
            // SAFETY: as above.
            unsafe {
                let bytes = _mm_loadu_si128(from.cast());
                let (first, second) = (_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)));
                let low = _mm256_set1_epi32(15);
                let lows = Self::from_bytes(_mm256_and_si256(first, low), _mm256_and_si256(second, low));
                (lows, Self::from_bytes(_mm256_srli_epi32::<4>(first), _mm256_srli_epi32::<4>(second)))
            }
        }
        #[inline(always)]
        unsafe fn any_nan(self) -> bool {
            // SAFETY: as above.
            unsafe {
                let nan = |x| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
                nan(self.0) | nan(self.1) != 0
            }
        }
        #[inline(always)]
        unsafe fn add_where(self, bits: u16, term: f32) -> Self {
            // SAFETY: as above.
            unsafe {
                let bits = _mm256_set1_epi32(i32::from(bits));
                let term = _mm256_set1_ps(term);
                let added = |x: __m256, lanes: __m256i| {
                    let set = _mm256_cmpeq_epi32(_mm256_and_si256(bits, lanes), lanes);
                    _mm256_add_ps(x, _mm256_and_ps(_mm256_castsi256_ps(set), term))
                };
                let (low, high) = (
                    _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128),
                    _mm256_setr_epi32(1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15),
                );
                Self(added(self.0, low), added(self.1, high))
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

/// Work that is compiled for every instruction set.
pub(super) trait Kernel {
    /// Does it.
    ///
    /// # Safety
    /// As for [`Lanes`]; implementations are `#[inline(always)]`.
    unsafe fn run<L: Lanes>(&self);
}

/// Runs a kernel with the widest instructions this machine has.
pub(super) fn dispatch(kernel: &impl Kernel) {
    match instruction_set() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these instructions.
        InstructionSet::Avx512 => unsafe { with_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these instructions.
        InstructionSet::Avx2 => unsafe { with_avx2(kernel) },
        // SAFETY: needs nothing.
        InstructionSet::Portable => unsafe { kernel.run::<Portable>() },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn with_avx512(kernel: &impl Kernel) {
    // SAFETY: this function is compiled for, and its caller has checked, these instructions.
    unsafe { kernel.run::<Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_avx2(kernel: &impl Kernel) {
    // SAFETY: as above.
    unsafe { kernel.run::<Avx2>() }
}

/// Work that uses no vectors of its own: the compiler makes them of its loops, for every instruction set.
pub(super) trait KernelOnce {
    /// Does it; implementations are `#[inline(always)]`.
    fn run(self);
}

/// [`dispatch`] for work without vectors of its own.
pub(super) fn dispatch_once(kernel: impl KernelOnce) {
    match instruction_set() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these instructions.
        InstructionSet::Avx512 => unsafe { once_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these instructions.
        InstructionSet::Avx2 => unsafe { once_avx2(kernel) },
        InstructionSet::Portable => kernel.run(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn once_avx512(kernel: impl KernelOnce) {
    kernel.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn once_avx2(kernel: impl KernelOnce) {
    kernel.run();
}

/// What the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InstructionSet {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// The widest set this machine has.
fn instruction_set() -> InstructionSet {
    #[cfg(test)]
    if let Some(forced) = FORCED.get() {
        return forced;
    }
    #[cfg(target_arch = "x86_64")]
    {
        // The macro remembers what the processor said.
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            return InstructionSet::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return InstructionSet::Avx2;
        }
    }
    InstructionSet::Portable
}

#[cfg(test)]
thread_local! {
    /// A test's own choice for kernels it dispatches on its own thread.
    static FORCED: std::cell::Cell<Option<InstructionSet>> = const { std::cell::Cell::new(None) };
}

/// Runs `f` once for every instruction set this machine has; kernels dispatched on this thread use it.
#[cfg(test)]
pub(super) fn for_each_instruction_set(mut f: impl FnMut(InstructionSet)) {
    let best = instruction_set();
    let sets = [
        Some(InstructionSet::Portable),
        #[cfg(target_arch = "x86_64")]
        (best != InstructionSet::Portable).then_some(InstructionSet::Avx2),
        Some(best),
    ];
    for set in sets.into_iter().flatten() {
        FORCED.set(Some(set));
        f(set);
        FORCED.set(None);
    }
}
