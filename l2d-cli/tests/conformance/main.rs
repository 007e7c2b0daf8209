//! One suite for every backend that is compiled in: the golden numbers of the reference implementation, by the very files that
//! the libraries' own tests run on the CPU, and what else must be the same wherever it is computed.
//!
//! `cargo test --release -p l2d-cli --features wgpu --test conformance wgpu::` runs one backend's part; it needs a device.
//! `scripts/gpu-check.sh` runs a binary of it that was built elsewhere.
#![allow(clippy::duplicate_mod, reason = "each backend has its own copy of the suite")]

use burn::backend::Autodiff;

/// The suite on one backend; `$cpu` where our CPU kernels belong to it.
macro_rules! conforms {
    ($name:ident, $backend:ty, $cpu:literal) => {
        // The files below are found from here, not from a folder of the module.
        #[path = "."]
        mod $name {
            pub(crate) type B = $backend;
            pub(crate) type AB = super::Autodiff<B>;
            pub(crate) const CPU: bool = $cpu;

            #[path = "alike.rs"]
            mod alike;
            #[path = "../../../l2d-infer/tests/parity/decode.rs"]
            mod decode;
            #[path = "../../../l2d-core/tests/parity/diffusion.rs"]
            mod diffusion;
            #[path = "../../../l2d-core/tests/parity/lm.rs"]
            mod lm;
            #[path = "../../../l2d-train/tests/parity/training.rs"]
            mod training;
            #[path = "../../../l2d-infer/tests/parity/trajectories.rs"]
            mod trajectories;
        }
    };
}

#[cfg(feature = "flex")]
conforms!(flex, burn::backend::Flex, true);
#[cfg(feature = "ndarray")]
conforms!(ndarray, burn::backend::NdArray, true);
#[cfg(feature = "wgpu")]
conforms!(wgpu, burn::backend::Wgpu, false);
#[cfg(feature = "vulkan")]
conforms!(vulkan, burn::backend::Vulkan, false);
#[cfg(feature = "metal")]
conforms!(metal, burn::backend::Metal, false);
#[cfg(feature = "cuda")]
conforms!(cuda, burn::backend::Cuda, false);
