//! `l2d doctor`: what this machine and this binary have, how fast it is, and what to change.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType};
use l2d_core::checkpoint::write_atomically;
use l2d_sandbox::{Launcher, Limits, Mode, Sandbox};
use serde::Serialize;

use crate::adapters;
use crate::args::DoctorArgs;
use crate::backend::BackendKind;
use crate::commands::eval::tools::AGAIN;
use crate::error::CliError;
use crate::memory;
use crate::output::say;
use crate::place::all_devices;
use crate::rates::{device_bandwidth, host_product_rate, memory_bandwidth, product_rate};
use crate::selfcheck;

/// What may be compiled in beside backends.
const FEATURES: [(&str, bool); 4] = [
    ("hub", cfg!(feature = "hub")),
    ("mpi", cfg!(feature = "mpi")),
    ("autotune", cfg!(feature = "autotune")),
    ("fusion", cfg!(feature = "fusion")),
];

/// All that is said.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    system: String,
    backends: Vec<&'static str>,
    features: Vec<&'static str>,
    cpu: Cpu,
    devices: Vec<Device>,
    /// `None` where programs that a model wrote can be run in the sandbox, else why they cannot.
    no_sandbox: Option<String>,
    advice: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Cpu {
    name: String,
    threads: usize,
    /// Instruction sets that our kernels use.
    instructions: Vec<&'static str>,
    /// Bytes that new work could have.
    memory: Option<u64>,
    /// Operations a second of large matrix products in f32.
    product_rate: Option<f64>,
    /// Bytes a second.
    bandwidth: Option<f64>,
}

/// A device of a GPU backend.
#[derive(Debug, Serialize)]
struct Device {
    /// As `--devices` names it; the backend's own choice has no number.
    name: String,
    /// What the driver says of it.
    adapter: Option<String>,
    /// Bytes of the largest tensor, where the interface has a limit.
    largest_tensor: Option<u64>,
    /// Bytes of memory, where the driver says.
    memory: Option<u64>,
    /// What it computes with.
    formats: Vec<&'static str>,
    /// Operations a second of large matrix products, by format.
    product_rates: Vec<(&'static str, f64)>,
    /// Bytes a second.
    bandwidth: Option<f64>,
    /// Why it cannot be used.
    broken: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &DoctorArgs) -> Result<(), CliError> {
    let backends = BackendKind::compiled();
    let mut devices = Vec::new();
    for &backend in backends.iter().filter(|backend| !backend.is_cpu()) {
        devices.extend(found(backend, args.quick));
    }
    let cpu = cpu(args.quick);
    let sandbox = Launcher::current_exe([AGAIN])
        .and_then(|launcher| Sandbox::new(Mode::Required, Limits::default(), launcher, None));
    let mut report = Report {
        version: crate::VERSION,
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        backends: backends.into_iter().map(BackendKind::name).collect(),
        features: FEATURES.iter().filter_map(|&(name, there)| there.then_some(name)).collect(),
        cpu,
        devices,
        no_sandbox: sandbox.err().map(|error| error.to_string()),
        advice: Vec::new(),
    };
    report.advice = advice(&report);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| CliError::Usage(format!("report: {e}")))?;
        write_atomically(path, |out| writeln!(out, "{text}"))?;
    }
    show(&report)
}

fn cpu(quick: bool) -> Cpu {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    Cpu {
        name: name.unwrap_or("unknown").to_owned(),
        threads: l2d_core::cpu::num_threads(),
        instructions: instructions(),
        memory: memory::available(),
        product_rate: (!quick).then(host_product_rate),
        bandwidth: (!quick).then(memory_bandwidth),
    }
}

fn instructions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("AVX2", std::is_x86_feature_detected!("avx2")),
            ("FMA", std::is_x86_feature_detected!("fma")),
            ("AVX-512", std::is_x86_feature_detected!("avx512f")),
            ("AVX-512 BF16", std::is_x86_feature_detected!("avx512bf16")),
        ];
        all.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// The devices of a GPU backend; one that says why, where it has none.
#[allow(unused_variables, reason = "used where a GPU backend is compiled in")]
fn found(backend: BackendKind, quick: bool) -> Vec<Device> {
    match backend {
        #[cfg(feature = "wgpu")]
        BackendKind::Wgpu => examined::<burn::backend::Wgpu>(backend, quick),
        #[cfg(feature = "vulkan")]
        BackendKind::Vulkan => examined::<burn::backend::Vulkan>(backend, quick),
        #[cfg(feature = "metal")]
        BackendKind::Metal => examined::<burn::backend::Metal>(backend, quick),
        #[cfg(feature = "cuda")]
        BackendKind::Cuda => examined::<burn::backend::Cuda>(backend, quick),
        _ => Vec::new(),
    }
}

#[allow(dead_code, reason = "called where a GPU backend is compiled in")]
fn examined<B: Backend>(backend: BackendKind, quick: bool) -> Vec<Device> {
    let broken = |name: String, why: String| Device {
        name,
        adapter: None,
        largest_tensor: None,
        memory: None,
        formats: Vec::new(),
        product_rates: Vec::new(),
        bandwidth: None,
        broken: Some(why),
    };
    let devices = match crate::backend::quietly(all_devices::<B>) {
        Ok(devices) if !devices.is_empty() => devices,
        Ok(_) => return vec![broken(backend.name().into(), format!("no device; {}", backend.remedy()))],
        Err(said) => return vec![broken(backend.name().into(), format!("{said}; {}", backend.remedy()))],
    };
    let facts = adapters::facts(backend);
    devices
        .iter()
        .enumerate()
        .map(|(number, device)| {
            let name = format!("{}:{number}", backend.name());
            let examined = crate::backend::quietly(|| examine::<B>(&name, device, quick));
            let mut examined = examined.unwrap_or_else(|said| broken(name.clone(), said));
            if let Some(fact) = facts.get(number) {
                examined.adapter = Some(fact.name.clone());
                (examined.largest_tensor, examined.memory) = (fact.largest_binding, fact.memory);
            }
            examined
        })
        .collect()
}

fn examine<B: Backend>(name: &str, device: &B::Device, quick: bool) -> Device {
    let formats =
        [("f64", FloatDType::F64), ("f32", FloatDType::F32), ("f16", FloatDType::F16), ("bf16", FloatDType::BF16)];
    let supported: Vec<_> =
        formats.into_iter().filter(|&(_, format)| B::supports_dtype(device, DType::from(format))).collect();
    let wrong = selfcheck::decoding::<B>(device).and_then(|()| selfcheck::training::<B>(device)).err();
    let measured = !quick && wrong.is_none();
    let rates = |&(format, dtype): &(&'static str, FloatDType)| (format, product_rate::<B>(device, dtype));
    let timed = supported.iter().filter(|(format, _)| measured && *format != "f64");
    Device {
        name: name.to_owned(),
        adapter: None,
        largest_tensor: None,
        memory: None,
        product_rates: timed.map(rates).collect(),
        bandwidth: measured.then(|| device_bandwidth::<B>(device)),
        formats: supported.into_iter().map(|(format, _)| format).collect(),
        broken: wrong.map(|error| error.to_string()),
    }
}

/// What to change, and why.
fn advice(report: &Report) -> Vec<String> {
    let mut advice = Vec::new();
    let gpu = !report.devices.is_empty();
    let has = |feature: &str| report.features.contains(&feature);
    if !gpu {
        advice.push("for a GPU build with --features cuda (NVIDIA), metal (Apple), vulkan or wgpu (any)".to_owned());
    }
    if gpu && !has("autotune") {
        advice.push("for faster matrix products on a GPU build with --features autotune as well (the first use of a shape is slow; l2d warmup)".to_owned());
    }
    for device in report.devices.iter().filter(|device| device.broken.is_none()) {
        let name = &device.name;
        if !device.formats.contains(&"bf16") {
            let other = if device.formats.contains(&"f16") { "f16" } else { "f32" };
            advice.push(format!("{name} has no bf16: frozen_weights = \"{other}\" is what it can keep"));
        }
        if let Some(bytes) = device.largest_tensor.filter(|&bytes| bytes < 2 << 30) {
            advice.push(format!(
                "{name} binds at most {} at a time: larger vocabularies are held in parts, any other matrix of more is \
                 refused",
                memory::written(bytes as f64)
            ));
        }
        if device.adapter.as_ref().is_some_and(|adapter| adapter.contains("llvmpipe")) {
            advice.push(format!("{name} is a driver that computes on the CPU: --backend flex is many times faster"));
        }
    }
    if report.cpu.instructions.is_empty() {
        advice.push(
            "this CPU has none of the instruction sets our kernels are written for: portable ones run".to_owned(),
        );
    }
    if report.no_sandbox.is_some() {
        advice.push("HumanEval and MBPP can be answered here, and scored where there is a sandbox (l2d eval --predict-only, l2d eval rescore)".to_owned());
    }
    advice
}

fn show(report: &Report) -> Result<(), CliError> {
    let list = |items: &[&str]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    say!("l2d {} on {}", report.version, report.system)?;
    say!("  backends  {}", list(&report.backends))?;
    say!("  features  {}", list(&report.features))?;
    let cpu = &report.cpu;
    say!("CPU  {}", cpu.name)?;
    say!("  threads           {} ({})", cpu.threads, list(&cpu.instructions))?;
    if let Some(bytes) = cpu.memory {
        say!("  free memory       {}", memory::written(bytes as f64))?;
    }
    rates(cpu.product_rate.map(|rate| ("f32", rate)).as_slice(), cpu.bandwidth)?;
    for device in &report.devices {
        say!("{}  {}", device.name, device.adapter.as_deref().unwrap_or("of unknown name"))?;
        if let Some(broken) = &device.broken {
            say!("  cannot be used    {broken}")?;
        }
        if device.formats.is_empty() {
            continue;
        }
        if let Some(bytes) = device.memory {
            say!("  memory            {}", memory::written(bytes as f64))?;
        }
        if let Some(bytes) = device.largest_tensor {
            say!("  largest binding   {}", memory::written(bytes as f64))?;
        }
        say!("  computes with     {}", list(&device.formats))?;
        rates(&device.product_rates, device.bandwidth)?;
        if device.broken.is_none() {
            say!("  self-check        passed")?;
        }
    }
    match &report.no_sandbox {
        None => say!("sandbox for programs  there")?,
        Some(why) => say!("sandbox for programs  {why}")?,
    }
    for advice in &report.advice {
        say!("- {advice}")?;
    }
    Ok(())
}

fn rates(products: &[(&str, f64)], bandwidth: Option<f64>) -> Result<(), CliError> {
    for (format, rate) in products {
        let what = format!("products in {format}");
        say!("  {what:<17} {}", operations(*rate))?;
    }
    if let Some(bytes) = bandwidth {
        say!("  memory bandwidth  {}/s", memory::written(bytes))?;
    }
    Ok(())
}

/// Operations a second as a person reads them.
fn operations(rate: f64) -> String {
    if rate >= 1e12 { format!("{:.1} TFLOP/s", rate / 1e12) } else { format!("{:.0} GFLOP/s", rate / 1e9) }
}
