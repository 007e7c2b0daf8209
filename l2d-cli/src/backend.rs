//! The one place that names concrete backends. Which are compiled in is a cargo feature; which runs is `--backend`.

use burn::tensor::backend::Backend;
use burn::tensor::{ElementConversion, Tensor};
use clap::ValueEnum;

use crate::error::CliError;

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
            Self::Flex | Self::Ndarray => std::thread::available_parallelism().map_or(1, usize::from),
            Self::Wgpu | Self::Vulkan | Self::Metal | Self::Cuda => 1,
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

/// Runs `$body` with `$B` standing for the chosen backend's type; an error value when it is not compiled in.
macro_rules! with_backend {
    ($kind:expr, $B:ident => $body:expr) => {{
        use $crate::backend::BackendKind;
        match $kind {
            #[cfg(feature = "flex")]
            BackendKind::Flex => {
                type $B = burn::backend::Flex;
                $body
            }
            #[cfg(feature = "ndarray")]
            BackendKind::Ndarray => {
                type $B = burn::backend::NdArray;
                $body
            }
            #[cfg(feature = "wgpu")]
            BackendKind::Wgpu => {
                type $B = burn::backend::Wgpu;
                $crate::backend::probe::<$B>($kind)?;
                $body
            }
            #[cfg(feature = "vulkan")]
            BackendKind::Vulkan => {
                type $B = burn::backend::Vulkan;
                $crate::backend::probe::<$B>($kind)?;
                $body
            }
            #[cfg(feature = "metal")]
            BackendKind::Metal => {
                type $B = burn::backend::Metal;
                $crate::backend::probe::<$B>($kind)?;
                $body
            }
            #[cfg(feature = "cuda")]
            BackendKind::Cuda => {
                type $B = burn::backend::Cuda;
                $crate::backend::probe::<$B>($kind)?;
                $body
            }
            #[allow(unreachable_patterns)]
            missing => Err($crate::error::CliError::Usage(missing.missing())),
        }
    }};
}
pub(crate) use with_backend;

/// Finds out whether there is a device for a GPU backend, by computing on it: burn's runtimes know no other way to say
/// that there is none than to panic.
///
/// # Errors
/// [`CliError::Usage`] where nothing can be computed.
#[allow(dead_code, reason = "called where a GPU backend is compiled in")]
pub(crate) fn probe<B: Backend>(kind: BackendKind) -> Result<(), CliError> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let sum = std::panic::catch_unwind(|| {
        let numbers = Tensor::<B, 1>::from_floats([1.0, 2.0], &B::Device::default());
        numbers.sum().into_scalar().elem::<f32>()
    });
    std::panic::set_hook(hook);
    if sum.is_ok_and(|sum| sum == 3.0) {
        return Ok(());
    }
    Err(CliError::Usage(format!(
        "no usable device for the backend `{}`: is there a GPU, and is its driver installed? The CPU always works: \
         --backend flex",
        kind.name()
    )))
}

/// The fingerprint of a base model, read on whichever backend is compiled in.
pub(crate) fn fingerprint(
    model: &std::path::Path,
    config: &l2d_core::config::LmConfig,
) -> Result<l2d_core::checkpoint::BaseFingerprint, CliError> {
    with_backend!(BackendKind::default_kind(), B => {
        let (_, source) = l2d_core::checkpoint::open_weights(model)?;
        let lm = l2d_core::lm::Lm::<B>::load(config, source.as_ref(), &Default::default())?;
        Ok(l2d_core::checkpoint::BaseFingerprint::of(&lm))
    })
}
