//! From prompts to tokens and text.
//!
//! [`Diffuser`] refines the prediction at given positions; [`Decoder`] runs it token after token for a batch of sequences
//! until each is complete.

mod adaptive;
mod course;
mod diffuser;
mod engine;
mod likelihood;
mod noise;
mod parallel;
mod prefix;
mod request;
mod row;
mod search;
mod settings;
mod text;

pub use diffuser::{Conditions, Diffused, Diffuser, Guess, Positions};
pub use engine::{Decoder, Hooks};
pub use likelihood::{Continuations, Likelihood};
pub use noise::{Lane, Noise, Place, SeededNoise};
pub use request::{
    Completion, Detokenizer, Event, FinishReason, Generation, GenerationParams, Request, TextStream,
    TokenLogProbability,
};
pub use search::{Beam, BeamParams, Hypothesis, Search, Stopping};
pub use settings::{AdaptiveSteps, DecodeMode, Diffusion, DiffusionParams, ReferenceSteps};
