//! What the process holds, where there is Linux's `/proc`.

/// Bytes in memory now.
pub(crate) fn resident() -> Option<u64> {
    status("VmRSS:")
}

/// The most bytes there were at any time.
pub(crate) fn peak() -> Option<u64> {
    status("VmHWM:")
}

fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
