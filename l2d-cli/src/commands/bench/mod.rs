//! `l2d bench`: how fast, and how near to what the machine allows.

pub(crate) mod decode;
pub(crate) mod train;

/// What prompts and examples are made of. English, because how many guesses of a parallel decoder hold depends on how sure
/// the model is.
pub(super) const PROSE: &str = "The harbour lies at the mouth of a slow river. Every morning the fishing boats leave before the sun is up, \
    and every afternoon they come back with crates of herring and mackerel, which are weighed, sold and packed in ice on \
    the quay. Twelve boats sail on an ordinary day, and each of them brings home about forty crates. In winter, when the \
    storms come in from the west, only half of them go out, and the price of fish rises in the whole valley. The old \
    lighthouse keeper writes the number of boats into a book, together with the wind and the height of the tide. ";

/// `count` tokens of the prose, over and over; every sequence begins at another place.
pub(super) fn prose_tokens(words: &[u32], count: usize, sequence: usize) -> Vec<u32> {
    words.iter().copied().cycle().skip(17 * sequence % words.len().max(1)).take(count).collect()
}
