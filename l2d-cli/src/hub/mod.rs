//! Models and data sets of the Hugging Face hub, wherever the command line takes a path: `hf://org/name`.
//!
//! An address becomes a folder (or file) of the hub's own cache on this machine before a command runs; what comes after knows
//! paths alone. Downloading needs the cargo feature `hub`.

mod address;
#[cfg(feature = "hub")]
mod download;

use std::path::{Path, PathBuf};

use self::address::Address;
use crate::error::CliError;

/// Replaces an address by the path of its copy in the cache, downloading what is not there; a path is left as it is.
pub(crate) fn fetch(path: &mut PathBuf) -> Result<(), CliError> {
    let Some(text) = path.to_str().filter(|text| text.starts_with(address::SCHEME)) else {
        return Ok(());
    };
    let address: Address = text.parse().map_err(CliError::Usage)?;
    *path = resolve(&address)?;
    Ok(())
}

#[cfg(feature = "hub")]
fn resolve(address: &Address) -> Result<PathBuf, CliError> {
    download::resolve(address)
}

#[cfg(not(feature = "hub"))]
fn resolve(address: &Address) -> Result<PathBuf, CliError> {
    Err(CliError::Usage(format!(
        "{address}: this binary cannot download: build it with --features hub, or fetch the files yourself (`hf download {}`) \
         and give their folder",
        address.repository
    )))
}

/// What to call a model or a data set at this path: a copy in the hub's cache (`models--org--name/snapshots/COMMIT`) by its
/// address, anything else by its last part.
pub(crate) fn name_of(path: &Path) -> String {
    let part = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let cached = path.ancestors().find_map(|folder| {
        let repository = folder.parent().filter(|parent| part(parent) == "snapshots")?.parent()?;
        let name = part(repository);
        let name = name.strip_prefix("models--").or_else(|| name.strip_prefix("datasets--"))?.replace("--", "/");
        let inner = path.strip_prefix(folder).ok()?.to_string_lossy().into_owned();
        Some(if inner.is_empty() { name } else { format!("{name}/{inner}") })
    });
    cached.unwrap_or_else(|| part(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_copy_goes_by_its_address() {
        let name = |path: &str| name_of(Path::new(path));
        assert_eq!(name("/home/me/model"), "model");
        assert_eq!(name("/cache/hub/models--org--name/snapshots/0123abc"), "org/name");
        assert_eq!(name("/cache/hub/models--org--name/snapshots/0123abc/q4.gguf"), "org/name/q4.gguf");
        assert_eq!(name("/cache/hub/datasets--gsm8k/snapshots/0123abc/main"), "gsm8k/main");
        assert_eq!(name("/snapshots/0123abc"), "0123abc");
    }

    #[test]
    fn a_path_is_no_address() {
        let mut path = PathBuf::from("org/name");
        fetch(&mut path).expect("untouched");
        assert_eq!(path, PathBuf::from("org/name"));
    }
}
