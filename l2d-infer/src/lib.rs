//! The L2D decoder ("Large Language Models to Diffusion Finetuning", arXiv 2501.15781): autoregression whose every token
//! is a short diffusion. Generic over burn's `Backend`.
//!
//! One token: `x_0 ~ N(0, sigma^2)`; integrate `dx/dt = (x1_hat(x, t) - x) / (1 - t)` on a grid of times ([`ode`],
//! [`velocity`], [`schedule`]); draw the token from the logits at the end ([`sampler`]). Random numbers are the host's
//! ([`rng`]), and [`stop`] says when a text is complete. [`decode`] puts these together for batches of sequences.

pub mod decode;
pub mod error;
pub mod ode;
pub mod rng;
pub mod sampler;
pub mod schedule;
pub mod stop;
pub mod velocity;

pub use decode::{Decoder, DiffusionParams, GenerationParams, Request};
pub use error::{Error, Result};
