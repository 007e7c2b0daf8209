//! From files of conversations to batches.

mod batch;
mod conversation;
mod dataset;
mod mix;
mod source;

pub use batch::{Batch, BatchOrder, micro_batches};
pub use conversation::{Columns, Conversation, Origin, Turn, read_conversations};
pub use dataset::{Dataset, DatasetStats, Example, Template};
pub use mix::MixedOrder;
pub use source::{ExampleSource, Order};
