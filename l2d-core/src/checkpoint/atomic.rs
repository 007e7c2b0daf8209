<<<<<<< HEAD
//! Files that are either the old one or the new one, never half of each.

use std::fs::File;
=======
//! Files that are either whole or not there.

use std::io::Write;
>>>>>>> text
use std::path::Path;

use crate::error::{Error, Result};

<<<<<<< HEAD
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
=======
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
>>>>>>> text
}
