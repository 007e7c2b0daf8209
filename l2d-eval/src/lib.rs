//! The harness: tasks, prompts, scoring, resumable runs, reports and plots. It knows no model: a decoder is anything that
//! implements [`Generator`].
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//!
//! use l2d_eval::rows::from_jsonl;
//! use l2d_eval::tasks::Arithmetic;
//! use l2d_eval::{BoxError, Completion, Evaluation, FinishReason, GenerateRequest, RunSettings, Scoring, Selection};
//!
//! let rows = from_jsonl("sums.jsonl", br#"{"question": "1+1", "answer": "1+1=2"}"#)?;
//! let task = Arithmetic::default();
//! let evaluation = Evaluation::prepare(&task, &rows, &[], &Selection::default(), None)?;
//! let mut always_two = |requests: &[GenerateRequest]| -> Result<Vec<Completion>, BoxError> {
//!     let completion =
//!         Completion { text: "=2".into(), tokens: 3, prompt_tokens: 4, evaluations: 45, finish: FinishReason::EndOfTurn, along: Vec::new() };
//!     Ok(vec![completion; requests.len()])
//! };
//! let settings = RunSettings { samples: 1, batch_size: 8, seed: 0, generation: serde_json::json!({"steps": 15}) };
//! let result = evaluation.run(&settings, Scoring::Now, &mut always_two, None, &mut (), &AtomicBool::new(false))?;
//! assert!(result.samples[0].scores["accuracy"].correct);
//! # Ok::<(), l2d_eval::Error>(())
//! ```

pub mod asked;
pub mod code;
pub mod error;
mod extract;
pub mod generate;
pub mod journal;
mod latex;
pub mod likelihood;
pub mod metric;
mod near;
pub mod plot;
mod program;
pub mod report;
mod rescore;
pub mod rows;
pub mod runner;
mod select;
pub mod task;
pub mod tasks;
mod write;

pub use asked::Asked;
pub use code::{CodeRunner, CodeVerdict, Tools};
pub use error::{BoxError, Error, Result};
pub use generate::{Completion, FinishReason, GenerateRequest, Generator, Guessed};
pub use journal::Journal;
pub use rescore::{Rescored, Rescoring, rescore};
pub use runner::{Evaluation, LengthLimit, Progress, RowLength, RunResult, RunSettings, Sample, Scoring};
pub use select::{Selection, Shard, parse_rows};
pub use task::Task;
pub use write::write_atomically;
