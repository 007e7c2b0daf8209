//! The memory of this process and of the machine, where there is Linux's `/proc`.

use l2d_train::run::Memory;

/// What the process holds in memory, now and at most.
pub(crate) fn process() -> Option<Memory> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(Memory { current: field(&status, "VmRSS:")?, peak: field(&status, "VmHWM:")? })
}

/// The most the process has held.
pub(crate) fn peak() -> Option<u64> {
    process().map(|memory| memory.peak)
}

/// Forgets the peak: from here on [`process`] gives the highest since. `false` where the system cannot.
pub(crate) fn forget_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Bytes that new work could have: what is free or can be freed.
pub(crate) fn available() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// A field in kB, as bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Bytes as a person reads them.
pub(crate) fn written(bytes: f64) -> String {
    match bytes {
        bytes if bytes >= 1e9 => format!("{:.2} GB", bytes / 1e9),
        bytes if bytes >= 1e6 => format!("{:.1} MB", bytes / 1e6),
        bytes => format!("{:.0} kB", bytes / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_bytes() {
        let text = "VmPeak:\t  900 kB\nVmHWM:\t  12 kB\nVmRSS:\t 7 kB\n";
        assert_eq!(field(text, "VmHWM:"), Some(12 * 1024));
        assert_eq!(field(text, "VmSwap:"), None);
        assert_eq!([2.5e9, 3.04e6, 1999.0].map(written), ["2.50 GB", "3.0 MB", "2 kB"]);
    }
}
