//! Checksums of a folder's files, as `sha256sum --check SHA256SUMS` reads them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use l2d_core::checkpoint::write_atomically;
use sha2::{Digest, Sha256};

use crate::error::{Result, TrainError};

/// The file of checksums; it covers every other file.
const SUMS: &str = "SHA256SUMS";

/// Writes the checksums of all files in `folder` and below.
pub(crate) fn write(folder: &Path) -> Result<()> {
    let mut text = String::new();
    for (name, path) in files(folder)? {
        // Writing into a string does not fail.
        let _ = writeln!(text, "{}  {name}", sum(&path)?);
    }
    Ok(write_atomically(&folder.join(SUMS), |out| out.write_all(text.as_bytes()))?)
}

/// The first thing that is wrong with a folder's files, in words; `None` where all are as they were written.
pub(crate) fn damage(folder: &Path) -> Result<Option<String>> {
    let text = match fs::read(folder.join(SUMS)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some(format!("{SUMS} is missing"))),
        Err(error) => return Err(TrainError::io(folder.join(SUMS), error)),
    };
    let mut found = files(folder)?;
    for line in text.lines() {
        let Some((expected, name)) = line.split_once("  ").filter(|(sum, _)| sum.len() == 64) else {
            return Ok(Some(format!("{SUMS} is damaged")));
        };
        let Some(path) = found.remove(name) else { return Ok(Some(format!("{name} is missing"))) };
        if sum(&path)? != expected {
            return Ok(Some(format!("{name} is not what was written (its checksum differs)")));
        }
    }
    // A line that was cut off with its file still there: nothing vouches for that file.
    Ok(found.keys().next().map(|name| format!("{name} has no checksum in {SUMS}")))
}

/// Files of a folder and those below it, by their path within it.
fn files(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
        for entry in fs::read_dir(folder).map_err(|e| TrainError::io(folder, e))? {
            let path = entry.map_err(|e| TrainError::io(folder, e))?.path();
            if path.is_dir() {
                walk(root, &path, found)?;
                continue;
            }
            let within = path.strip_prefix(root).unwrap_or(&path);
            let name = within.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/");
            if name != SUMS {
                found.insert(name, path);
            }
        }
        Ok(())
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found)?;
    Ok(found)
}

fn sum(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).map_err(|e| TrainError::io(path, e))?;
    std::io::copy(&mut file, &mut hash).map_err(|e| TrainError::io(path, e))?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_damage_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("ema")).expect("made");
        fs::write(at("a"), b"first").expect("written");
        fs::write(at("ema/b"), b"second").expect("written");
        write(folder.path()).expect("written");
        let damage = || damage(folder.path()).expect("read");
        assert_eq!(damage(), None);

        let spoil = |name: &str, bytes: &[u8], expected: &str| {
            let whole = fs::read(at(name)).expect("read");
            fs::write(at(name), bytes).expect("written");
            let said = damage().expect("damaged");
            assert!(said.contains(expected), "{said}");
            fs::write(at(name), whole).expect("written");
            assert_eq!(damage(), None);
        };
        spoil("a", b"firsu", "a is not what was written");
        spoil("ema/b", b"secon", "ema/b is not what was written");
        spoil(SUMS, b"nonsense\n", "SHA256SUMS is damaged");
        let sums = fs::read_to_string(at(SUMS)).expect("read");
        spoil(SUMS, sums.lines().next().expect("a line").as_bytes(), "ema/b has no checksum");
        fs::remove_file(at("ema/b")).expect("removed");
        assert!(damage().expect("damaged").contains("ema/b is missing"));
        fs::remove_file(at(SUMS)).expect("removed");
        assert!(damage().expect("damaged").contains("SHA256SUMS is missing"));
    }
}
