//! Why a row or an example is left out.

use serde::{Deserialize, Serialize};

/// Why a row, or one of its examples, is not trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// An example has more tokens than the limit. It is never cut: its reply would lose its end.
    TooLong,
    /// A row without an assistant's turn.
    NoReply,
    /// A row that the source's `exclude` names.
    Excluded,
    /// A role that chat templates of plain conversations do not know, or a call of tools.
    UnknownRole,
    /// A turn without text.
    EmptyTurn,
    /// A column is missing or holds another type.
    WrongType,
    /// The chat template refuses the conversation, or its text has no token to learn.
    Template,
    /// A guidance class that the run does not train.
    UnknownClass,
}

impl DropReason {
    /// Whether it is dropped whatever `bad_rows` says: it is no mistake in the data.
    pub(super) fn is_expected(self) -> bool {
        matches!(self, Self::TooLong | Self::NoReply | Self::Excluded)
    }

    /// In words, after a count: `3 longer than the limit`.
    pub fn words(self) -> &'static str {
        match self {
            Self::TooLong => "longer than the limit",
            Self::NoReply => "without a reply",
            Self::Excluded => "excluded",
            Self::UnknownRole => "with an unknown role",
            Self::EmptyTurn => "with an empty turn",
            Self::WrongType => "with missing or mistyped columns",
            Self::Template => "refused by the chat template",
            Self::UnknownClass => "with an unknown class",
        }
    }
}

/// What is wrong with a row.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) reason: DropReason,
    pub(super) text: String,
}

impl Fault {
    pub(super) fn new(reason: DropReason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}
