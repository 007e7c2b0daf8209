//! Files that are either the old one or the new one, never half of each.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};

/// Creates or replaces `path` with what `fill` writes: into a temporary name in the same folder, synced, then renamed.
/// On error the old file, if any, is untouched and the temporary one is gone.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let at = |source| Error::io(path, source);
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".l2d-").suffix(".part");
    // A temporary file is private by default; the finished one should have the permissions of any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.tempfile_in(folder).map_err(at)?;
    fill(temporary.as_file_mut()).map_err(at)?;
    temporary.as_file().sync_all().map_err(at)?;
    temporary.persist(path).map_err(|e| at(e.error))?;
    // The rename itself is durable only once the folder is; folders cannot be opened as files on Windows.
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at)?;
    Ok(())
}
