//! One file a command.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod convert;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod losses;
pub(crate) mod plan;
pub(crate) mod quickstart;
pub(crate) mod train;
pub(crate) mod warmup;
