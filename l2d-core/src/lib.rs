//! The L2D model ("Large Language Models to Diffusion Finetuning", arXiv 2501.15781): a frozen language model and the
//! small diffusion path beside it. Generic over burn's `Backend`; knows no data set, no solver, no terminal.

pub mod checkpoint;
pub mod config;
pub mod corruption;
pub mod cpu;
pub mod diffusion;
pub mod error;
pub mod init;
pub mod lm;
pub mod model;
pub mod parameters;
pub mod text;

pub use error::{Error, Result};
pub use model::L2d;
