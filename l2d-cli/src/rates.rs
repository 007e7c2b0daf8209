//! What a device can do: products and memory, measured.

use std::time::Instant;

use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, FloatDType, Tensor};
use l2d_core::lm::host_values;

/// Operations a second of large matrix products by our own kernels for the CPU, in f32.
pub(crate) fn host_product_rate() -> f64 {
    use l2d_core::cpu::dense::{Products, Right, View, multiply_right};
    const SIZE: usize = 1536;
    let (a, mut out) = (vec![0.5f32; SIZE * SIZE], vec![0f32; SIZE * SIZE]);
    let mut b = Right::default();
    b.pack(View::new(&a, SIZE), Products::F32);
    let mut once = || {
        let start = Instant::now();
        multiply_right(&mut out, &a, &b, 1.0, false);
        2.0 * (SIZE * SIZE * SIZE) as f64 / start.elapsed().as_secs_f64()
    };
    sustained(&mut once)
}

/// The median of a second's measurements: what a machine keeps up, not what it once did.
fn sustained(once: &mut dyn FnMut() -> f64) -> f64 {
    let (start, mut rates) = (Instant::now(), vec![once()]);
    while start.elapsed().as_secs_f64() < 1.0 || rates.len() < 5 {
        rates.push(once());
    }
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Operations a second of large matrix products in the given format. The matrices grow until a product takes long beside what
/// starting it takes.
pub(crate) fn product_rate<B: Backend>(device: &B::Device, dtype: FloatDType) -> f64 {
    const ENOUGH: f64 = 0.02;
    const LARGEST: usize = 8192;
    let timed = |size: usize| {
        let matrix = || Tensor::<B, 2>::random([size, size], Distribution::Uniform(-1.0, 1.0), device).cast(dtype);
        let (a, b) = (matrix(), matrix());
        let once = || {
            let start = Instant::now();
            let product = a.clone().matmul(b.clone());
            // One number crosses: a GPU has done it then.
            std::hint::black_box(host_values(product.narrow(0, 0, 1).narrow(1, 0, 1).cast(FloatDType::F32)));
            start.elapsed().as_secs_f64()
        };
        // The first compiles, and finds the fastest kernel.
        once();
        let seconds = once();
        if seconds < ENOUGH && size < LARGEST {
            return None;
        }
        let operations = 2.0 * (size as f64).powi(3);
        Some(sustained(&mut || operations / once()))
    };
    (9..).map(|power| 1 << power).find_map(timed).unwrap_or(0.0)
}

/// Bytes a second that a device reads and writes, in sums of long vectors.
pub(crate) fn device_bandwidth<B: Backend>(device: &B::Device) -> f64 {
    // 64 MiB: beyond caches, within what every WebGPU device binds.
    const COUNT: usize = 16 << 20;
    // Beside so many, what starting and awaiting one takes does not count. With the feature fusion neighbouring sums would become
    // one, so that there each is awaited.
    const PASSES: usize = 32;
    let (one, other) = (Tensor::<B, 1>::ones([COUNT], device), Tensor::<B, 1>::zeros([COUNT], device));
    let mut once = || {
        let start = Instant::now();
        let mut sum = one.clone() + other.clone();
        for _ in 1..PASSES {
            sum = sum + other.clone();
            if cfg!(feature = "fusion") {
                B::sync(device).ok();
            }
        }
        std::hint::black_box(host_values(sum.narrow(0, 0, 1)));
        // Two vectors are read, one is written.
        (3 * PASSES * COUNT * 4) as f64 / start.elapsed().as_secs_f64()
    };
    once();
    sustained(&mut once)
}

/// Bytes a second that all threads together read, best of five, from a quarter of a gibibyte.
pub(crate) fn memory_bandwidth() -> f64 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let words = vec![1u64; 1 << 25];
    let pass = || {
        let start = Instant::now();
        let total: u64 = std::thread::scope(|scope| {
            let parts = words.chunks(words.len().div_ceil(threads));
            let running: Vec<_> = parts.map(|part| scope.spawn(|| part.iter().fold(0u64, |a, &b| a ^ b))).collect();
            running.into_iter().map(|thread| thread.join().unwrap_or(0)).fold(0, |a, b| a ^ b)
        });
        std::hint::black_box(total);
        (words.len() * 8) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}
