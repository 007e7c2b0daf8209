//! Tables with a row for each token of the vocabulary, in parts where a device cannot hold them whole.
//!
//! WebGPU binds 128 MiB at a time unless an adapter offers more; the embedding of a Llama 3 vocabulary is eight times that.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

/// A table `[V, w]` as parts `[V_i, w]` of consecutive rows.
#[derive(Debug, Clone)]
pub struct TokenTable<B: Backend> {
    parts: Vec<Tensor<B, 2>>,
}

impl<B: Backend> TokenTable<B> {
    /// A table of the given parts, equally wide.
    ///
    /// # Panics
    /// When there are none.
    pub fn new(parts: Vec<Tensor<B, 2>>) -> Self {
        assert!(!parts.is_empty(), "a table of no parts");
        Self { parts }
    }

    /// The same table with `change` made of each part.
    pub fn map(self, change: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>) -> Self {
        Self { parts: self.parts.into_iter().map(change).collect() }
    }

    /// All of it as one tensor, `[V, w]`; only where the device can hold that.
    pub fn whole(self) -> Tensor<B, 2> {
        match <[_; 1]>::try_from(self.parts) {
            Ok([whole]) => whole,
            Err(parts) => Tensor::cat(parts, 0),
        }
    }

    /// The rows of some tokens: `[ids]` to `[ids, w]`.
    pub fn rows(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        if let [whole] = &self.parts[..] {
            return whole.clone().select(0, ids);
        }
        let mut start = 0;
        let mut sum: Option<Tensor<B, 2>> = None;
        for part in &self.parts {
            let count = part.dims()[0] as i64;
            let (local, end) = (ids.clone() - start, start + count);
            let rows = part.clone().select(0, local.clamp(0, count - 1)); // [ids, w]
            let outside = ids.clone().lower_elem(start).bool_or(ids.clone().greater_equal_elem(end));
            let rows = rows.clone().mask_fill(outside.unsqueeze_dim::<2>(1).expand(rows.dims()), 0.0);
            sum = Some(sum.map_or(rows.clone(), |sum| sum + rows));
            start = end;
        }
        sum.expect("at least one part")
    }

    /// `weights x table`: `[rows, V]` to `[rows, w]`.
    pub fn mean(&self, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        if let [whole] = &self.parts[..] {
            return weights.matmul(whole.clone());
        }
        let mut start = 0;
        let pieces = self.parts.iter().map(|part| {
            let count = part.dims()[0];
            let piece = weights.clone().narrow(1, start, count).matmul(part.clone());
            start += count;
            piece
        });
        pieces.reduce(|a, b| a + b).expect("at least one part")
    }

    /// `x x table^T`: `[rows, w]` to `[rows, V]`.
    pub fn products(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let mut pieces: Vec<Tensor<B, 2>> =
            self.parts.iter().map(|part| x.clone().matmul(part.clone().transpose())).collect();
        if pieces.len() == 1 { pieces.remove(0) } else { Tensor::cat(pieces, 1) }
    }
}

/// The embedding and the head of a frozen LM in parts, in the place of whole ones.
#[derive(Module, Debug)]
pub struct VocabularyShards<B: Backend> {
    /// `[V_i, H]`.
    pub embedding: Vec<Param<Tensor<B, 2>>>,
    /// `[H, V_i]`.
    pub head: Vec<Param<Tensor<B, 2>>>,
}

impl<B: Backend> VocabularyShards<B> {
    /// The embedding.
    pub fn embedding(&self) -> TokenTable<B> {
        TokenTable::new(self.embedding.iter().map(Param::val).collect())
    }

    /// Normed hidden states `[rows, H]` to logits `[rows, V]`.
    pub fn logits(&self, normed: Tensor<B, 2>) -> Tensor<B, 2> {
        let product = |part: &Param<Tensor<B, 2>>| {
            let part = part.val();
            normed.clone().cast(part.dtype()).matmul(part).cast(normed.dtype())
        };
        Tensor::cat(self.head.iter().map(product).collect(), 1)
    }
}

/// Rows of each part of a table of `vocab` rows of `width` numbers, so that none has more than `largest` bytes in f32; `None`
/// where the whole has not.
pub(super) fn rows_of_a_part(vocab: usize, width: usize, largest: Option<usize>) -> Option<usize> {
    let row = width * size_of::<f32>();
    let largest = largest.filter(|&largest| vocab * row > largest)?;
    // Equal parts: kernels are compiled for few shapes.
    let parts = (vocab * row).div_ceil(largest);
    Some(vocab.div_ceil(parts).min((largest / row).max(1)))
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::super::host_values;
    use super::*;

    #[test]
    fn parts_are_as_good_as_the_whole() {
        let device = Default::default();
        let values: Vec<f32> = (0..11 * 3).map(|i| (i as f32).sin()).collect();
        let part = |from: usize, to: usize| {
            Tensor::<Flex, 1>::from_floats(&values[from * 3..to * 3], &device).reshape([to - from, 3])
        };
        let whole = TokenTable::new(vec![part(0, 11)]);
        let ids = || Tensor::<Flex, 1, Int>::from_ints([0, 3, 4, 10, 7, 4], &device);
        let weights = || Tensor::<Flex, 1>::from_floats([0.25; 22], &device).reshape([2, 11]);
        for cuts in [vec![0, 4, 8, 11], vec![0, 1, 2, 11], vec![0, 10, 11]] {
            let parts = TokenTable::new(cuts.windows(2).map(|cut| part(cut[0], cut[1])).collect());
            assert_eq!(host_values(parts.rows(ids())), host_values(whole.rows(ids())), "{cuts:?}");
            let near =
                |a: Vec<f32>, b: Vec<f32>| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(near(host_values(parts.mean(weights())), host_values(whole.mean(weights()))));
            let x = || part(0, 2);
            assert!(near(host_values(parts.products(x())), host_values(whole.products(x()))));
            assert_eq!(host_values(parts.whole()), values);
        }
    }

    #[test]
    fn parts_fit() {
        assert_eq!(rows_of_a_part(100, 8, None), None);
        assert_eq!(rows_of_a_part(100, 8, Some(3200)), None);
        assert_eq!(rows_of_a_part(100, 8, Some(3199)), Some(50));
        assert_eq!(rows_of_a_part(101, 8, Some(1600)), Some(34));
        assert_eq!(rows_of_a_part(100, 8, Some(7)), Some(1));
    }
}
