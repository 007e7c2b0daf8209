//! Several processes or threads that train (or evaluate) one model together: ranks, each with a device of its own.
//!
//! All ranks hold the same weights. Of each batch every rank takes its part, gradients are summed over all of them, and each
//! makes the same update. What one rank alone decides (whether somebody pressed Ctrl-C, what a checkpoint held) is told to the
//! others, so that all always do the same thing next: whoever waits for a message that never comes waits for ever.

mod alone;
#[cfg(feature = "mpi")]
mod mpi;
mod threads;

use std::fmt;

pub use self::alone::Alone;
#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
pub use self::threads::Threads;
use crate::error::{Result, TrainError};

/// This rank's link to the others. Every method but the first two and the last is to be called by all ranks, in the same order.
pub trait Ranks: fmt::Debug {
    /// Number of this rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// Replaces `values` by their sum over all ranks, element by element: the same bits everywhere. All give equally many.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] where another rank is gone.
    fn sum(&self, values: &mut [f32]) -> Result<()>;

    /// Gives what every rank has to say, by rank. The messages may differ in length.
    ///
    /// # Errors
    /// As [`Ranks::sum`].
    fn exchange(&self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Tells the others that this one will take no further part, so that none waits for it. May not return.
    fn abandon(&self);

    /// Whether this rank writes files and speaks.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether it is true on any rank.
    ///
    /// # Errors
    /// As [`Ranks::sum`].
    fn any(&self, own: bool) -> Result<bool> {
        Ok(self.exchange(&[u8::from(own)])?.iter().any(|said| said == &[1]))
    }

    /// What the first rank has to say.
    ///
    /// # Errors
    /// As [`Ranks::sum`].
    fn first_says(&self, own: &[u8]) -> Result<Vec<u8>> {
        let own = if self.is_first() { own } else { &[] };
        Ok(self.exchange(own)?.swap_remove(0))
    }

    /// Returns when all have called it.
    ///
    /// # Errors
    /// As [`Ranks::sum`].
    fn wait(&self) -> Result<()> {
        self.exchange(&[]).map(drop)
    }
}

/// Makes sure that the ranks are of one mind: each part, such as `("settings", "...")`, must be the same on all.
///
/// # Errors
/// [`TrainError::Unequal`] names the first part that is not, on all ranks alike.
pub fn agree(ranks: &dyn Ranks, parts: &[(&'static str, String)]) -> Result<()> {
    for (what, own) in parts {
        let said = ranks.exchange(own.as_bytes())?;
        if let Some(rank) = said.iter().position(|other| *other != said[0]) {
            return Err(TrainError::Unequal { what, rank, difference: difference(&said[0], &said[rank]) });
        }
    }
    Ok(())
}

/// The word in which two texts part, of each.
fn difference(first: &[u8], other: &[u8]) -> String {
    const SHOWN: usize = 60;
    let same = first.iter().zip(other).take_while(|(a, b)| a == b).count();
    let word = |byte: &u8| byte.is_ascii_whitespace() || b",{}".contains(byte);
    let begin = first[..same].iter().rposition(word).map_or(0, |place| place + 1);
    let shown = |text: &[u8]| {
        let rest = &text[begin..];
        let end = rest.iter().position(word).unwrap_or(rest.len()).min(SHOWN);
        String::from_utf8_lossy(&rest[..end]).into_owned()
    };
    format!("`{}` there, `{}` on rank 0", shown(other), shown(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_shown_from_the_word_it_lies_in() {
        let said = difference(br#"{"seed":1,"batch_size":8}"#, br#"{"seed":1,"batch_size":16}"#);
        assert_eq!(said, r#"`"batch_size":16` there, `"batch_size":8` on rank 0"#);
        assert_eq!(difference(b"abc", b"abd"), "`abd` there, `abc` on rank 0");
        assert_eq!(difference(b"", b"x"), "`x` there, `` on rank 0");
    }
}
