//! The one place that names concrete backends. Which are compiled in is a cargo feature; which runs is `--backend`.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::backend::Backend;
use burn::tensor::{ElementConversion, Tensor};
use clap::ValueEnum;

use crate::error::CliError;
use crate::place::Place;
use crate::selfcheck;

/// Where the numbers are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendKind {
    /// The CPU (default).
    Flex,
    /// The CPU through ndarray: slow, a second opinion.
    Ndarray,
    /// Any GPU through WebGPU.
    Wgpu,
    /// Any GPU through Vulkan.
    Vulkan,
    /// Apple GPUs.
    Metal,
    /// NVIDIA GPUs.
    Cuda,
}

impl BackendKind {
    /// The first backend compiled in, the CPU before the GPUs.
    pub(crate) fn default_kind() -> Self {
        Self::compiled().into_iter().next().unwrap_or(Self::Flex)
    }

    /// The backends compiled into this binary.
    pub(crate) fn compiled() -> Vec<Self> {
        let all = [
            (cfg!(feature = "flex"), Self::Flex),
            (cfg!(feature = "cuda"), Self::Cuda),
            (cfg!(feature = "metal"), Self::Metal),
            (cfg!(feature = "vulkan"), Self::Vulkan),
            (cfg!(feature = "wgpu"), Self::Wgpu),
            (cfg!(feature = "ndarray"), Self::Ndarray),
        ];
        all.into_iter().filter_map(|(compiled, kind)| compiled.then_some(kind)).collect()
    }

    /// The cargo feature (and command-line name) of this backend.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Ndarray => "ndarray",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Cuda => "cuda",
        }
    }

    /// Whether tensors lie in the memory of the processor.
    pub(crate) fn is_cpu(self) -> bool {
        matches!(self, Self::Flex | Self::Ndarray)
    }

    /// Threads that decode parts of a batch beside one another. The CPU backends compute the thin products of decoding on
    /// one thread each; a GPU is fed from one.
    pub(crate) fn decode_threads(self) -> usize {
        match self {
            Self::Flex | Self::Ndarray => l2d_core::cpu::num_threads(),
            Self::Wgpu | Self::Vulkan | Self::Metal | Self::Cuda => 1,
        }
    }

    /// What to look for where it has no device.
    #[allow(dead_code, reason = "said where a GPU backend is compiled in")]
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Cuda => {
                "is there an NVIDIA GPU (nvidia-smi lists them), is its driver as new as the CUDA this was built for, and are \
                 libcuda and libnvrtc where the loader finds them (LD_LIBRARY_PATH)?"
            }
            Self::Metal => "Metal is on Apple's machines alone",
            Self::Wgpu | Self::Vulkan => {
                "is there a GPU, and a driver for it (vulkaninfo --summary lists them; without a GPU, Debian's \
                 mesa-vulkan-drivers has one that computes on the CPU, slowly)?"
            }
            Self::Flex | Self::Ndarray => "the CPU is always there",
        }
    }

    /// What to say when this backend is not compiled in.
    pub(crate) fn missing(self) -> String {
        let compiled: Vec<&str> = Self::compiled().into_iter().map(Self::name).collect();
        format!(
            "the backend `{0}` is not compiled into this binary (it has: {1}). Build it in with: cargo build --release --features {0}",
            self.name(),
            if compiled.is_empty() { "none".to_string() } else { compiled.join(", ") },
        )
    }
}

/// Runs `$body` with `$B` standing for the chosen backend's type and `$devices` for the chosen devices of it, one at least; an
/// error value when it is not compiled in or a device is not there.
macro_rules! with_backend {
    ($place:expr, $B:ident, $devices:ident => $body:expr) => {{
        use $crate::backend::BackendKind;
        let place: &$crate::place::Place = $place;
        match place.kind {
            #[cfg(feature = "flex")]
            BackendKind::Flex => {
                type $B = burn::backend::Flex;
                let $devices = place.devices::<$B>()?;
                $body
            }
            #[cfg(feature = "ndarray")]
            BackendKind::Ndarray => {
                type $B = burn::backend::NdArray;
                let $devices = place.devices::<$B>()?;
                $body
            }
            #[cfg(feature = "wgpu")]
            BackendKind::Wgpu => {
                type $B = burn::backend::Wgpu;
                let $devices = $crate::backend::probed::<$B>(place)?;
                $body
            }
            #[cfg(feature = "vulkan")]
            BackendKind::Vulkan => {
                type $B = burn::backend::Vulkan;
                let $devices = $crate::backend::probed::<$B>(place)?;
                $body
            }
            #[cfg(feature = "metal")]
            BackendKind::Metal => {
                type $B = burn::backend::Metal;
                let $devices = $crate::backend::probed::<$B>(place)?;
                $body
            }
            #[cfg(feature = "cuda")]
            BackendKind::Cuda => {
                type $B = burn::backend::Cuda;
                let $devices = $crate::backend::probed::<$B>(place)?;
                $body
            }
            #[allow(unreachable_patterns)]
            missing => Err($crate::error::CliError::Usage(missing.missing())),
        }
    }};
}
pub(crate) use with_backend;

/// The devices of a GPU backend that were asked for. Computes on each: burn's runtimes know no other way to say that there is
/// none than to panic.
///
/// # Errors
/// [`CliError::Device`] where nothing can be computed, with what the runtime said; [`CliError::Usage`] for a number that no device
/// has.
#[allow(dead_code, reason = "called where a GPU backend is compiled in")]
pub(crate) fn probed<B: Backend>(place: &Place) -> Result<Vec<B::Device>, CliError> {
    crate::device_memory::computing_on(&place.device_numbers());
    let outcome = quietly(|| {
        let devices = place.devices::<B>()?;
        for device in &devices {
            let numbers = Tensor::<B, 1>::from_floats([1.0, 2.0], device);
            let found: f64 = numbers.sum().into_scalar().elem();
            if found != 3.0 {
                return Err(CliError::WrongNumbers { what: "1 + 2", found, expected: 3.0 });
            }
            if place.self_check {
                selfcheck::decoding::<B>(device)?;
            }
        }
        Ok(devices)
    });
    outcome
        .unwrap_or_else(|said| Err(CliError::Device { backend: place.kind.name(), said, remedy: place.kind.remedy() }))
}

/// Does something that may panic; what the panic said, in one line, is the error.
///
/// # Errors
/// What was said.
#[allow(dead_code, reason = "called where a GPU backend is compiled in")]
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let said = Arc::new(Mutex::new(String::new()));
    let heard = said.clone();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The first says most; others follow from it on other threads.
        let mut said = heard.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_empty() {
            *said = panic.payload_as_str().unwrap_or("it gave no reason").to_owned();
        }
    }));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    std::panic::set_hook(hook);
    let said = said.lock().unwrap_or_else(PoisonError::into_inner).lines().next().unwrap_or_default().to_owned();
    outcome.map_err(|_| said)
}

/// The fingerprint of a base model, read on whichever backend is compiled in.
pub(crate) fn fingerprint(
    model: &std::path::Path,
    config: &l2d_core::config::LmConfig,
) -> Result<l2d_core::checkpoint::BaseFingerprint, CliError> {
    with_backend!(&Place::default(), B, devices => {
        let (_, source) = l2d_core::checkpoint::open_weights(model)?;
        let lm = l2d_core::lm::Lm::<B>::load(config, source.as_ref(), &devices[0])?;
        Ok(l2d_core::checkpoint::BaseFingerprint::of(&lm))
    })
}
