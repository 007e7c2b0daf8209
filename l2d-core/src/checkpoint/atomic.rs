//! Files that are either whole or not there.

use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes a file under a temporary name in the same folder, flushes it to the disk and renames it into place. On any
/// error (a full disk, a missing folder) nothing is left behind and an older file of that name is unharmed.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let attempt = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        // Temporary files are private; what a user saves should have the permissions of any new file of theirs.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder)?;
        let mut buffered = std::io::BufWriter::new(file.as_file_mut());
        write(&mut buffered)?;
        buffered.flush()?;
        drop(buffered);
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        #[cfg(unix)]
        std::fs::File::open(folder)?.sync_all()?;
        Ok(())
    };
    attempt().map_err(|e| Error::io(path, e))
}
