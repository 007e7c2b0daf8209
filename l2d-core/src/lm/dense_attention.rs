//! Attention over tensors of keys and values, some queries at a time where the scores of all would be too many, and its
//! gradient in the same way: beside the results, memory does not grow with the square of the length.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;

use super::attention::{AttentionGradients, DensePlan};

/// Scores held at a time: 128 MB of f32.
const MAX_SCORES: usize = 1 << 25;

/// `softmax(Q K^T / sqrt(head_dim)) V` for rotated queries `[batch * rows, heads * head_dim]` over keys and values
/// `[batch, kv_heads, slots, head_dim]`; returns `[batch * rows, heads * head_dim]`.
///
/// Keys and values are never repeated. The query heads of one key/value head are a broadcast axis where there are many
/// rows; where there is one row each they are rows of one product, so that keys and values are read once.
pub(super) fn attend<B: Backend>(
    plan: &DensePlan<B>,
    queries: Tensor<B, 2>,
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
) -> Tensor<B, 2> {
    attend_in_chunks(plan, queries, keys, values, MAX_SCORES)
}

fn attend_in_chunks<B: Backend>(
    plan: &DensePlan<B>,
    queries: Tensor<B, 2>,
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
    max_scores: usize,
) -> Tensor<B, 2> {
    let shape = Shape::of(plan, &queries, &keys);
    let Shape { batch, rows, kv_heads, group, head_dim, .. } = shape;
    let queries = queries * shape.scale();
    if rows == 1 {
        let queries = queries.reshape([batch, kv_heads, 1, group, head_dim]);
        // `group` stands in the place of `rows`: the bias broadcasts over it.
        let scores = biased(queries.matmul(keys.swap_dims(2, 3).unsqueeze_dim(2)), plan.bias.clone());
        return softmax(scores, 4).matmul(values.unsqueeze_dim(2)).reshape([batch, group * kv_heads * head_dim]);
    }
    let queries = shape.split(queries);
    let (keys, values) = (keys.swap_dims(2, 3).unsqueeze_dim(2), values.unsqueeze_dim(2));
    let mixed = shape.chunks(max_scores).map(|(first, count)| {
        let scores = queries.clone().narrow(3, first, count).matmul(keys.clone());
        softmax(biased(scores, bias_of(plan, first, count)), 4).matmul(values.clone())
    });
    shape.join(concatenated(mixed.collect()))
}

/// See [`super::Context::attend_backward`].
pub(super) fn attention_gradients<B: Backend>(
    plan: &DensePlan<B>,
    queries: Tensor<B, 2>,
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
    dmixed: Tensor<B, 2>,
    learn_context: bool,
) -> AttentionGradients<B> {
    gradients_in_chunks(plan, queries, keys, values, dmixed, learn_context, MAX_SCORES)
}

/// With `P = softmax(S)`, `S = Q K^T / sqrt(head_dim)`: `dV = P^T dO`, `dP = dO V^T`, `dS = P * (dP - sum(dP * P))`,
/// `dQ = dS K / sqrt(head_dim)`, `dK = dS^T Q / sqrt(head_dim)`.
fn gradients_in_chunks<B: Backend>(
    plan: &DensePlan<B>,
    queries: Tensor<B, 2>,
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
    dmixed: Tensor<B, 2>,
    learn_context: bool,
    max_scores: usize,
) -> AttentionGradients<B> {
    let shape = Shape::of(plan, &queries, &keys);
    let (queries, dmixed) = (shape.split(queries * shape.scale()), shape.split(dmixed));
    let (keys, values) = (keys.unsqueeze_dim::<5>(2), values.unsqueeze_dim::<5>(2)); // [batch, kv_heads, 1, slots, head_dim]
    let mut context: Option<[Tensor<B, 4>; 2]> = None;
    let mut dqueries = Vec::new();
    for (first, count) in shape.chunks(max_scores) {
        let q = queries.clone().narrow(3, first, count);
        let dout = dmixed.clone().narrow(3, first, count);
        let scores = q.clone().matmul(keys.clone().swap_dims(3, 4));
        let p = softmax(biased(scores, bias_of(plan, first, count)), 4);
        let dp = dout.clone().matmul(values.clone().swap_dims(3, 4));
        let ds = p.clone() * (dp.clone() - (dp * p.clone()).sum_dim(4));
        if learn_context {
            // The sum over the query heads of one key/value head; the queries are scaled already.
            let sum = |x: Tensor<B, 5>| x.sum_dim(2).squeeze_dim::<4>(2);
            let dkeys = sum(ds.clone().swap_dims(3, 4).matmul(q));
            let dvalues = sum(p.swap_dims(3, 4).matmul(dout));
            context = Some(match context {
                None => [dkeys, dvalues],
                Some([keys, values]) => [keys + dkeys, values + dvalues],
            });
        }
        dqueries.push(ds.matmul(keys.clone()) * shape.scale());
    }
    AttentionGradients { queries: shape.join(concatenated(dqueries)), context }
}

/// The axes of one call.
#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    rows: usize,
    kv_heads: usize,
    /// Query heads of one key/value head.
    group: usize,
    head_dim: usize,
    slots: usize,
}

impl Shape {
    fn of<B: Backend>(plan: &DensePlan<B>, queries: &Tensor<B, 2>, keys: &Tensor<B, 4>) -> Self {
        let ([_, width], [_, kv_heads, slots, head_dim]) = (queries.dims(), keys.dims());
        Self { batch: plan.batch, rows: plan.rows, kv_heads, group: width / head_dim / kv_heads, head_dim, slots }
    }

    fn scale(self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// `[batch * rows, heads * head_dim]` to `[batch, kv_heads, group, rows, head_dim]`.
    fn split<B: Backend>(self, x: Tensor<B, 2>) -> Tensor<B, 5> {
        let Self { batch, rows, kv_heads, group, head_dim, .. } = self;
        x.reshape([batch, rows, kv_heads, group, head_dim]).permute([0, 2, 3, 1, 4])
    }

    fn join<B: Backend>(self, x: Tensor<B, 5>) -> Tensor<B, 2> {
        let Self { batch, rows, kv_heads, group, head_dim, .. } = self;
        x.permute([0, 3, 1, 2, 4]).reshape([batch * rows, kv_heads * group * head_dim])
    }

    /// First row and number of rows of each piece with at most so many scores, a row at least.
    fn chunks(self, max_scores: usize) -> impl Iterator<Item = (usize, usize)> {
        let of_a_row = (self.batch * self.kv_heads * self.group * self.slots).max(1);
        let chunk = (max_scores / of_a_row).max(1);
        (0..self.rows).step_by(chunk).map(move |first| (first, chunk.min(self.rows - first)))
    }
}

fn concatenated<B: Backend>(mut pieces: Vec<Tensor<B, 5>>) -> Tensor<B, 5> {
    if pieces.len() == 1 { pieces.remove(0) } else { Tensor::cat(pieces, 3) }
}

/// The bias of some of the rows.
fn bias_of<B: Backend>(plan: &DensePlan<B>, first: usize, count: usize) -> Option<Tensor<B, 5>> {
    let bias = plan.bias.clone()?;
    Some(if count == plan.rows { bias } else { bias.narrow(3, first, count) })
}

fn biased<B: Backend>(scores: Tensor<B, 5>, bias: Option<Tensor<B, 5>>) -> Tensor<B, 5> {
    match bias {
        Some(bias) => scores + bias,
        None => scores,
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::tensor::{Distribution, TensorData};

    use super::*;
    use crate::lm::{AttentionPlan, Context, Rope, host_values};

    type AB = Autodiff<Flex>;

    fn largest(a: Vec<f32>, b: Vec<f32>) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs()))
    }

    #[test]
    fn pieces_and_gradients_are_those_of_the_whole() {
        let device = Default::default();
        let config = crate::config::LmConfig::from_json(
            r#"{"model_type": "llama", "vocab_size": 8, "hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 32,
                "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": true}"#,
            std::path::Path::new("test"),
        )
        .expect("valid");
        let rope = Rope::new(&config);
        let positions = vec![vec![0, 1, 2, 3, 4, 5, 6], vec![0, 1, 2, 2, 4, 4, 4]];
        let padding = [0, 3];
        let dtype = burn::tensor::DType::F32;
        let plan = AttentionPlan::<AB>::dense(&config, &rope, &padding, &positions, 10, &device, dtype);
        let inner = AttentionPlan::<Flex>::dense(&config, &rope, &padding, &positions, 10, &device, dtype);
        let random = |shape: [usize; 4]| {
            let count: usize = shape.iter().product();
            let flat = Tensor::<Flex, 1>::random([count], Distribution::Normal(0.0, 1.0), &device);
            Tensor::<Flex, 4>::from_data(TensorData::new(host_values(flat), shape), &device)
        };
        let queries = random([1, 1, 14, 24]).reshape([14, 24]);
        let dmixed = random([1, 1, 14, 24]).reshape([14, 24]);
        let (keys, values) = (random([2, 2, 10, 4]), random([2, 2, 10, 4]));

        let (q, k, v) = (
            Tensor::<AB, 2>::from_inner(queries.clone()).require_grad(),
            Tensor::<AB, 4>::from_inner(keys.clone()).require_grad(),
            Tensor::<AB, 4>::from_inner(values.clone()).require_grad(),
        );
        let whole = Context::Tensors(k.clone(), v.clone()).attend(&plan, q.clone());
        let expected = host_values(whole.clone().inner());
        let gradients = (whole * Tensor::from_inner(dmixed.clone())).sum().backward();
        let (dq, dk, dv) = (q.grad(&gradients), k.grad(&gradients), v.grad(&gradients));
        for max_scores in [1, 250, 1 << 20] {
            let plan = inner.as_dense();
            let mixed = attend_in_chunks(plan, queries.clone(), keys.clone(), values.clone(), max_scores);
            assert!(largest(host_values(mixed), expected.clone()) < 1e-6);
            let found = gradients_in_chunks(
                plan,
                queries.clone(),
                keys.clone(),
                values.clone(),
                dmixed.clone(),
                true,
                max_scores,
            );
            let [keys, values] = found.context.expect("asked for");
            assert!(largest(host_values(found.queries), host_values(dq.clone().expect("a gradient"))) < 1e-5);
            assert!(largest(host_values(keys), host_values(dk.clone().expect("a gradient"))) < 1e-5);
            assert!(largest(host_values(values), host_values(dv.clone().expect("a gradient"))) < 1e-5);
        }
    }
}
