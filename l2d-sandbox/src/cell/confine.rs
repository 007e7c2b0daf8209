//! What Python's process may use and see: limits, and Landlock.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Missing;
use crate::orders::Orders;

/// The first version that guards truncation: without it files could be emptied that cannot be opened for writing.
const REQUIRED: ABI = ABI::V3;

/// Sets the limits.
pub(super) fn limit(orders: &Orders) -> Result<(), Missing> {
    let limits = &orders.limits;
    let seconds = limits.cpu.as_secs() + u64::from(limits.cpu.subsec_nanos() > 0);
    let mut all = vec![
        (Resource::RLIMIT_AS, limits.memory, limits.memory),
        // The soft limit says why it ended, the hard one ends what does not listen.
        (Resource::RLIMIT_CPU, seconds, seconds + 1),
        (Resource::RLIMIT_FSIZE, limits.file_size, limits.file_size),
        (Resource::RLIMIT_NOFILE, limits.open_files, limits.open_files),
        // One byte: of a limit of none a handler of crashes that the system pipes cores to would be started all the same.
        (Resource::RLIMIT_CORE, 1, 1),
        (Resource::RLIMIT_MEMLOCK, 0, 0),
        (Resource::RLIMIT_MSGQUEUE, 0, 0),
    ];
    if orders.layers.namespaces {
        // Counted in the user namespace; outside of one, all the user's processes would count.
        all.push((Resource::RLIMIT_NPROC, limits.processes, limits.processes));
    }
    for (resource, soft, hard) in all {
        // Whoever started this may allow less already, and nobody may raise that.
        let (_, most) = getrlimit(resource).map_err(Missing::of("limits"))?;
        setrlimit(resource, soft.min(most), hard.min(most)).map_err(Missing::of("limits"))?;
    }
    Ok(())
}

/// Leaves of the file system what was ordered.
pub(super) fn landlock(orders: &Orders) -> Result<(), Missing> {
    let restricted = restrict(orders).map_err(|error| Missing { layer: "Landlock", reason: error.to_string() })?;
    match restricted {
        RulesetStatus::NotEnforced => {
            Err(Missing { layer: "Landlock", reason: "the kernel does not enforce it".to_owned() })
        }
        _ => Ok(()),
    }
}

fn restrict(orders: &Orders) -> Result<RulesetStatus, RulesetError> {
    let all = AccessFs::from_all(REQUIRED);
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(all)?
        // What newer kernels guard beside: devices' own commands, abstract sockets, signals.
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .add_rules(path_beneath_rules(&orders.readable, AccessFs::from_read(REQUIRED)))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(["/dev/urandom", "/dev/random", "/dev/zero"], AccessFs::ReadFile))?
        .add_rules(path_beneath_rules([&orders.folder], all))?;
    Ok(rules.restrict_self()?.ruleset)
}
