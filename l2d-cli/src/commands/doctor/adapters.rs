//! What drivers say of their devices, which burn does not pass on.

use crate::backend::BackendKind;

/// What is known of a device beside what it computes.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// Its name and its driver's.
    pub(super) name: String,
    /// Bytes of the largest buffer that a kernel can be given, where the interface has a limit.
    pub(super) largest_binding: Option<u64>,
    /// Bytes of its memory, where the driver says.
    pub(super) memory: Option<u64>,
}

/// Facts about the devices of a backend, in the order of their numbers.
#[allow(unused_variables, reason = "used where a GPU backend is compiled in")]
pub(super) fn facts(backend: BackendKind) -> Vec<Facts> {
    match backend {
        #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
        BackendKind::Wgpu | BackendKind::Vulkan | BackendKind::Metal => of_wgpu(),
        #[cfg(feature = "cuda")]
        BackendKind::Cuda => of_cuda(),
        _ => Vec::new(),
    }
}

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn of_wgpu() -> Vec<Facts> {
    use wgpu::DeviceType;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    // As devices are numbered: by kind, then in the order in which they are told.
    let kind = |adapter: &wgpu::Adapter| match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Cpu => 3,
        DeviceType::Other => 4,
    };
    adapters.sort_by_key(kind);
    let facts = |adapter: &wgpu::Adapter| {
        let info = adapter.get_info();
        Facts {
            name: format!("{} ({:?}, {} {})", info.name, info.backend, info.driver, info.driver_info).trim().to_owned(),
            largest_binding: Some(adapter.limits().max_storage_buffer_binding_size),
            memory: None,
        }
    };
    adapters.iter().map(facts).collect()
}

#[cfg(feature = "cuda")]
fn of_cuda() -> Vec<Facts> {
    use cudarc::driver::CudaContext;
    // A driver that is not there is no count and no panic of ours.
    let count = std::panic::catch_unwind(CudaContext::device_count).ok().and_then(Result::ok).unwrap_or(0);
    let facts = |number: i32| {
        let context = CudaContext::new(number as usize).ok()?;
        let (major, minor) = context.compute_capability().ok()?;
        Some(Facts {
            name: format!("{} (compute capability {major}.{minor})", context.name().ok()?),
            largest_binding: None,
            memory: context.total_mem().ok().map(|bytes| bytes as u64),
        })
    };
    (0..count).filter_map(facts).collect()
}
