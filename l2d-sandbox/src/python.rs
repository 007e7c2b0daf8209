//! Finding a Python that can be run in the cell.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::geteuid;
use serde::Deserialize;

use crate::error::{Error, Result};

/// Asks Python where it lies.
const QUESTION: &str = "import json, os, sys, sysconfig\nprint(json.dumps({'executable': sys.executable, 'file': os.path.realpath(sys.executable), \
'version': sys.version.split()[0], 'folders': [sys.prefix + '/pyvenv.cfg', sys.base_prefix + '/lib', sys.prefix + '/lib', \
sysconfig.get_path('stdlib'), sysconfig.get_path('platstdlib')]}))";

/// What a dynamically linked program reads beside its own.
const SYSTEM: &[&str] = &[
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
];

/// A Python and what it reads.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Python {
    /// What is started; in a virtual environment a link, by whose place Python knows the environment.
    pub(crate) executable: PathBuf,
    /// Where the links lead.
    file: PathBuf,
    pub(crate) version: String,
    folders: Vec<PathBuf>,
}

impl Python {
    /// The one given, else the first that can be used of those in PATH and the system's.
    pub(crate) fn find(given: Option<&Path>) -> Result<Self> {
        let candidates = match given {
            Some(path) => vec![path.to_path_buf()],
            None => ["python3", "/usr/bin/python3", "/usr/local/bin/python3"].map(PathBuf::from).to_vec(),
        };
        let mut reasons: Vec<String> = Vec::new();
        for candidate in candidates {
            match Self::ask(&candidate) {
                Ok(python) => return Ok(python),
                Err(reason) => reasons.push(format!("{}: {reason}", candidate.display())),
            }
        }
        Err(Error::Python(reasons.join("; ")))
    }

    fn ask(path: &Path) -> Result<Self, String> {
        let output = Command::new(path).args(["-I", "-c", QUESTION]).stdin(Stdio::null()).output();
        let output = output.map_err(|error| error.to_string())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(said.lines().last().unwrap_or("it ended with an error").to_owned());
        }
        let python: Self = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        if geteuid().is_root()
            && let Some(barred) =
                [&python.executable, &python.file].into_iter().find_map(|path| barred_to_others(path, 0o005))
        {
            return Err(format!("{} is open to root alone, and the sandbox is not root", barred.display()));
        }
        Ok(python)
    }

    /// Everything that may be read while it runs.
    pub(crate) fn readable(&self) -> Vec<PathBuf> {
        let own = std::iter::once(&self.executable).chain(&self.folders).cloned();
        own.chain(SYSTEM.iter().map(PathBuf::from)).filter(|path| path.exists()).collect()
    }
}

/// The first part of a path that others may not enter, or the path itself where others have not the rights `needed` to it.
pub(crate) fn barred_to_others(path: &Path, needed: u32) -> Option<PathBuf> {
    let barred = |part: &&Path| {
        let needed = if *part == path { needed } else { 0o001 };
        std::fs::metadata(part).map_or(true, |found| found.permissions().mode() & needed != needed)
    };
    path.ancestors().filter(|part| !part.as_os_str().is_empty()).find(barred).map(Path::to_path_buf)
}
