//! What drivers say of their devices, which burn does not pass on.

use crate::backend::BackendKind;

/// What is known of a device beside what it computes.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Its name and its driver's.
    pub(crate) name: String,
    /// Bytes of the largest buffer that a kernel can be given, where the interface has a limit.
    pub(crate) largest_binding: Option<u64>,
    /// Bytes of its memory, where the driver says.
    pub(crate) memory: Option<u64>,
}

/// Bytes of the largest tensor that a device can hold; `None` where there is no such limit.
#[allow(unused_variables, reason = "used where a WebGPU backend is compiled in")]
pub(crate) fn largest_tensor<D: 'static>(device: &D) -> Option<usize> {
    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
    {
        use burn::backend::wgpu::WgpuDevice;
        let number = match (device as &dyn std::any::Any).downcast_ref::<WgpuDevice>()? {
            WgpuDevice::DiscreteGpu(index) => place(0, *index),
            WgpuDevice::IntegratedGpu(index) => place(1, *index),
            WgpuDevice::VirtualGpu(index) => place(2, *index),
            WgpuDevice::Cpu => place(3, 0),
            // The first of the list is what the runtime takes for the best.
            _ => Some(0),
        };
        let facts = of_wgpu();
        return facts.get(number?)?.largest_binding.and_then(|bytes| usize::try_from(bytes).ok());
    }
    #[cfg(not(any(feature = "wgpu", feature = "vulkan", feature = "metal")))]
    None
}

/// The number of the `index`-th device of a kind.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn place(kind: usize, index: usize) -> Option<usize> {
    let kinds: Vec<usize> = wgpu_adapters().iter().map(kind_of).collect();
    (0..kinds.len()).filter(|&number| kinds[number] == kind).nth(index)
}

/// Facts about the devices of a backend, in the order of their numbers.
#[allow(unused_variables, reason = "used where a GPU backend is compiled in")]
pub(crate) fn facts(backend: BackendKind) -> Vec<Facts> {
    match backend {
        #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
        BackendKind::Wgpu | BackendKind::Vulkan | BackendKind::Metal => of_wgpu(),
        #[cfg(feature = "cuda")]
        BackendKind::Cuda => of_cuda(),
        _ => Vec::new(),
    }
}

/// All adapters, as devices are numbered: by kind, then in the order in which they are told.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn wgpu_adapters() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    adapters.sort_by_key(kind_of);
    adapters
}

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn kind_of(adapter: &wgpu::Adapter) -> usize {
    use wgpu::DeviceType;
    match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Cpu => 3,
        DeviceType::Other => 4,
    }
}

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn of_wgpu() -> Vec<Facts> {
    let facts = |adapter: &wgpu::Adapter| {
        let info = adapter.get_info();
        Facts {
            name: format!("{} ({:?}, {} {})", info.name, info.backend, info.driver, info.driver_info).trim().to_owned(),
            largest_binding: Some(adapter.limits().max_storage_buffer_binding_size),
            memory: None,
        }
    };
    wgpu_adapters().iter().map(facts).collect()
}

/// Free and all bytes of a CUDA device's memory.
#[cfg(feature = "cuda")]
pub(crate) fn cuda_memory(number: usize) -> Option<(usize, usize)> {
    cudarc::driver::CudaContext::new(number).ok()?.mem_get_info().ok()
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
