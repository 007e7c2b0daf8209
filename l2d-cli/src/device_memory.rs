//! A device that runs out of memory. burn's runtimes can only panic then, some on a thread of their own where nothing catches it.

use std::panic::PanicHookInfo;
use std::sync::{Mutex, PoisonError};

use crate::memory;

/// What a run can do with less of, and by how much.
const REMEDY: &str = "training: micro_batch_size at half needs half of the activations, recompute = \"blocks\" keeps those of one block, \
    head_chunk = 256 a quarter of the logits, frozen_weights = \"bf16\" half of the base (l2d plan says what a run takes); decoding: \
    --batch-size at half needs half of the keys and values, --weights bf16 half of the base; a base that does not fit while it is \
    loaded, in f32, needs a device with more memory";

/// The devices that this process computes on, by number; empty before that is known.
static COMPUTING_ON: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Notes which devices this process computes on.
#[allow(dead_code, reason = "called where a GPU backend is compiled in")]
pub(crate) fn computing_on(numbers: &[usize]) {
    *COMPUTING_ON.lock().unwrap_or_else(PoisonError::into_inner) = numbers.to_vec();
}

/// From here on a device out of memory ends the process with an error, as everything else does that goes wrong.
pub(crate) fn end_with_an_error() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        let Some(asked) = panic.payload_as_str().and_then(asked_for) else { return usual(panic) };
        let asked = asked.map_or_else(|| "more".to_owned(), |bytes| memory::written(bytes as f64));
        eprintln!("error: the device is out of memory, or holds no tensor of that size: {asked} asked for{}", free());
        eprintln!("hint: {REMEDY}");
        // Other threads may wait for the device for ever.
        std::process::exit(1);
    }));
}

/// Bytes that a runtime asked for in vain, where it says; `None` where a panic is about something else.
fn asked_for(said: &str) -> Option<Option<u64>> {
    let signs = ["buffertoobig", "can't allocate buffer", "outofmemory", "out_of_memory", "out of memory"];
    let lower = said.to_lowercase();
    signs.iter().any(|sign| lower.contains(sign)).then(|| {
        let (_, rest) = said.split_once("size: ")?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse().ok()
    })
}

/// What is free, where a driver says.
fn free() -> String {
    #[cfg(feature = "cuda")]
    {
        let numbers = COMPUTING_ON.try_lock().map(|numbers| numbers.clone()).unwrap_or_default();
        let free = |number: usize| {
            let (free, total) = std::panic::catch_unwind(|| crate::adapters::cuda_memory(number)).ok().flatten()?;
            let (free, total) = (memory::written(free as f64), memory::written(total as f64));
            Some(format!("; {free} of {total} are free on cuda:{number}"))
        };
        return numbers.into_iter().filter_map(free).collect();
    }
    #[cfg(not(feature = "cuda"))]
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_read_from_what_runtimes_say() {
        let cube = "called `Result::unwrap()` on an `Err` value: Io(BufferTooBig { size: 68719476736, backtrace: <disabled> })";
        assert_eq!(asked_for(cube), Some(Some(68_719_476_736)));
        let wgpu = "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 147750912";
        assert_eq!(asked_for(wgpu), Some(Some(147_750_912)));
        assert_eq!(asked_for("wgpu error: Out of Memory"), Some(None));
        assert_eq!(asked_for("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"), Some(None));
        assert_eq!(asked_for("index out of bounds: the len is 3 but the index is 4"), None);
    }
}
