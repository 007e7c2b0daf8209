//! Which backend and which of its devices: `--backend`, `--devices`.

use std::str::FromStr;

use burn::tensor::backend::{Backend, Device as _, DeviceId, DeviceOps};
use clap::ValueEnum;

use crate::backend::BackendKind;
use crate::error::CliError;

/// Kinds of devices that a backend may have, in the order in which they are numbered: discrete and integrated GPUs, virtual
/// ones, and drivers that compute on the CPU.
const KINDS: std::ops::Range<u16> = 0..4;

/// `--devices`: `cuda:0`, `cuda:0-7`, `wgpu:1`, `0,2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceList {
    /// The backend, where it is named.
    kind: Option<BackendKind>,
    /// Numbers, in the order given; each once.
    numbers: Vec<usize>,
}

impl FromStr for DeviceList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, list) = match text.split_once(':') {
            Some((kind, list)) => (Some(BackendKind::from_str(kind, true)?), list),
            None => (None, text),
        };
        let mut numbers = Vec::new();
        for part in list.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<u16>().map(usize::from);
            let (Ok(from), Ok(to)) = (number(from), number(to)) else {
                return Err(format!(
                    "`{part}` is no device number and no range of them; write cuda:0, cuda:0-7 or 0,2"
                ));
            };
            if to < from {
                return Err(format!("the range `{part}` runs backwards"));
            }
            numbers.extend(from..=to);
        }
        let mut once = numbers.clone();
        once.sort_unstable();
        once.dedup();
        if once.len() < numbers.len() {
            return Err(format!("`{list}` names a device twice"));
        }
        Ok(Self { kind, numbers })
    }
}

/// A backend, and the devices of it that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) kind: BackendKind,
    /// Empty: the backend's own choice.
    numbers: Vec<usize>,
    /// Whether a GPU computes known numbers first.
    pub(crate) self_check: bool,
    /// Whether the command line says so.
    chosen: bool,
}

impl Default for Place {
    /// The first backend compiled in, and the device it chooses.
    fn default() -> Self {
        Self { kind: BackendKind::default_kind(), numbers: Vec::new(), self_check: true, chosen: false }
    }
}

impl Place {
    /// As the command line has it.
    ///
    /// # Errors
    /// [`CliError::Usage`] when the two name different backends.
    pub(crate) fn new(backend: Option<BackendKind>, devices: Option<DeviceList>) -> Result<Self, CliError> {
        let (named, numbers) = devices.map_or((None, Vec::new()), |list| (list.kind, list.numbers));
        let kind = match (backend, named) {
            (Some(backend), Some(named)) if backend != named => {
                return Err(CliError::Usage(format!(
                    "--backend {} and --devices {}:... name different backends",
                    backend.name(),
                    named.name()
                )));
            }
            (backend, named) => backend.or(named).unwrap_or_else(BackendKind::default_kind),
        };
        Ok(Self { kind, numbers, self_check: true, chosen: backend.or(named).is_some() })
    }

    /// That the CPU computes where a GPU was compiled in is nothing to find out by waiting.
    fn say_what_else(&self) {
        let gpus: Vec<&str> =
            BackendKind::compiled().into_iter().filter(|kind| !kind.is_cpu()).map(BackendKind::name).collect();
        if !gpus.is_empty() && crate::ranks::speaks() {
            let (name, gpus) = (self.kind.name(), gpus.join(", "));
            eprintln!("computing on the CPU ({name}); this program has {gpus} as well: --backend");
        }
    }

    /// The same, where a GPU is taken at its word.
    pub(crate) fn unchecked(self, skip: bool) -> Self {
        Self { self_check: !skip, ..self }
    }

    /// The numbers of the devices, the first where none was named.
    #[allow(dead_code, reason = "asked for where a GPU backend is compiled in")]
    pub(crate) fn device_numbers(&self) -> Vec<usize> {
        if self.numbers.is_empty() { vec![0] } else { self.numbers.clone() }
    }

    /// How many devices were named.
    pub(crate) fn count(&self) -> usize {
        self.numbers.len()
    }

    /// The place of one rank of several processes: the `local`-th of this machine's ranks computes on the `local`-th device. On a
    /// CPU all compute on the same.
    ///
    /// # Errors
    /// [`CliError::Usage`] when fewer devices were named than there are ranks here.
    pub(crate) fn of_rank(&self, local: usize) -> Result<Self, CliError> {
        let numbers = match (self.kind.is_cpu(), self.numbers.len()) {
            (true, _) => Vec::new(),
            (false, 0) => vec![local],
            (false, _) => vec![*self.numbers.get(local).ok_or_else(|| {
                CliError::Usage(format!(
                    "--devices names {} devices, and rank {local} of this machine has none: name as many as ranks",
                    self.numbers.len()
                ))
            })?],
        };
        Ok(Self { numbers, ..self.clone() })
    }

    /// The devices, one at least.
    ///
    /// # Errors
    /// [`CliError::Usage`] for a number that no device has.
    pub(crate) fn devices<B: Backend>(&self) -> Result<Vec<B::Device>, CliError> {
        if self.kind.is_cpu() && !self.chosen {
            self.say_what_else();
        }
        if self.numbers.is_empty() {
            return Ok(vec![B::Device::default()]);
        }
        if self.kind.is_cpu() {
            // There is one; every number is a replica that computes on it.
            return Ok(vec![B::Device::default(); self.numbers.len()]);
        }
        let all = all_devices::<B>();
        self.numbers
            .iter()
            .map(|&number| {
                all.get(number).cloned().ok_or_else(|| {
                    CliError::Usage(format!(
                        "there is no device {0}:{number}: this machine has {1} for the backend `{0}`, numbered from 0 \
                         (l2d doctor lists them)",
                        self.kind.name(),
                        all.len()
                    ))
                })
            })
            .collect()
    }
}

/// All devices of a GPU backend, in the order of their numbers.
pub(crate) fn all_devices<B: Backend>() -> Vec<B::Device> {
    let mut found = Vec::new();
    for kind in KINDS {
        // A runtime with one kind of device counts all under every kind.
        let of_kind = (0..B::device_count(kind)).map(|index| B::Device::from_id(DeviceId::new(kind, index as u16)));
        for device in of_kind {
            let known = |other: &B::Device| other.id() == device.id();
            if !found.iter().any(known) {
                found.push(device);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_devices() {
        let parsed = |text: &str| text.parse::<DeviceList>();
        let list = parsed("cuda:0-2,5").expect("a list");
        assert_eq!((list.kind, list.numbers), (Some(BackendKind::Cuda), vec![0, 1, 2, 5]));
        assert_eq!(parsed("1").expect("a list"), DeviceList { kind: None, numbers: vec![1] });
        for (text, said) in [
            ("cuda", "no device number"),
            ("cuda:", "no device number"),
            ("cuda:x-2", "no device number"),
            ("cuda:3-1", "runs backwards"),
            ("cuda:0,0-1", "twice"),
            ("gpu:0", "invalid variant"),
            ("cuda:99999999", "no device number"),
        ] {
            let error = parsed(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_rank_has_the_device_of_its_number() {
        let place = |text: &str| Place::new(None, Some(text.parse().expect("a list"))).expect("a place");
        assert_eq!(place("cuda:4-5").of_rank(1).expect("a device").numbers, [5]);
        assert!(place("cuda:4-5").of_rank(2).is_err());
        assert_eq!(
            Place::new(Some(BackendKind::Cuda), None).expect("a place").of_rank(3).expect("a device").numbers,
            [3]
        );
        assert!(place("flex:0-1").of_rank(3).expect("the CPU").numbers.is_empty());
        let error =
            Place::new(Some(BackendKind::Flex), Some("cuda:0".parse().expect("a list"))).expect_err("two backends");
        assert!(error.to_string().contains("different backends"), "{error}");
    }
}
