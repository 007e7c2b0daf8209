//! From files of rows to batches.
//!
//! `files` says which files a source stands for, `rows` reads them, `schema` makes conversations of rows, `dataset` examples
//! of conversations; `pipeline` does this on all cores, `store` keeps what comes out on the disk, and `prepare` joins them.

mod batch;
mod conversation;
mod dataset;
mod drops;
mod files;
mod mix;
mod pipeline;
mod prepare;
mod rows;
mod schema;
mod source;
mod sources;
mod split;
mod store;

pub use batch::{Batch, BatchOrder, micro_batches};
pub use conversation::{Conversation, Origin, Turn};
pub use dataset::{Dataset, DatasetStats, Example, Template};
pub use drops::DropReason;
pub use files::files_of;
pub use mix::MixedOrder;
pub use prepare::{CacheUse, DataProgress, DataSettings, prepare};
pub use schema::{Columns, Schema};
pub use source::{ExampleSource, Order};
pub(crate) use sources::check_sources;
pub use sources::{BadRows, SourceConfig};
pub use split::{Subset, split};
pub use store::{Entry, SourceReport, TokenStore};
