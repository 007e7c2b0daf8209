//! Which number formats a run computes and keeps what in: said at its start, never implied.

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use l2d_core::cpu::dense::Products;
use l2d_core::lm::Lm;
use l2d_train::{FrozenWeights, ObjectiveKind, TrainConfig};

use crate::backend::BackendKind;

/// One row of the table: what, and its format.
pub(crate) type Row = (&'static str, String);

/// The formats of a run beside the given base.
pub(crate) fn table<B: Backend>(lm: &Lm<B>, config: &TrainConfig, backend: BackendKind, exported: &str) -> Vec<Row> {
    let dense = name(lm.dtype());
    let base = match config.objective {
        ObjectiveKind::Full => format!("{dense}, trained"),
        _ if lm.is_packed() => {
            let config = &lm.config;
            // The head is packed beside the table that embeds, be they one in the file or two.
            let embedding = if config.tie_word_embeddings { 0 } else { config.vocab_size * config.hidden_size };
            let packed = config.num_parameters() - embedding;
            let bits = 8.0 * lm.weight_bytes() as f64 / packed as f64;
            format!("as its file stores it ({bits:.1} bits per packed weight); embeddings and norms {dense}")
        }
        _ => {
            let rest = if backend.is_cpu() { "embeddings and norms" } else { "embeddings, norms and head" };
            match config.frozen_weights {
                FrozenWeights::Bf16 => format!("bf16; {rest} {dense}"),
                FrozenWeights::F16 => format!("f16; {rest} {dense}"),
                FrozenWeights::Stored | FrozenWeights::F32 => dense.to_string(),
            }
        }
    };
    let products = match (backend.is_cpu(), config.matmul_precision) {
        (true, Products::F32) | (false, _) => dense.to_string(),
        (true, other) => format!("factors {}, sums f32", format!("{other:?}").to_lowercase()),
    };
    let mut rows = vec![
        ("backend", backend.name().to_string()),
        ("base LM", base),
        ("trainable weights and their gradients", dense.to_string()),
        ("large matrix products", products),
        ("AdamW's two moments", dense.to_string()),
        ("norms, softmax, loss; gradient norm", format!("{dense}; its sum over parameters {dense}")),
        ("checkpoints", "f32".to_string()),
        ("finished weights", exported.to_string()),
    ];
    if config.ema_decay > 0.0 {
        rows.insert(5, ("running mean of the weights", dense.to_string()));
    }
    rows
}

/// The table as text, a line a row.
pub(crate) fn written(rows: &[Row]) -> String {
    let width = rows.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
    rows.iter().map(|(what, format)| format!("  {what:width$}  {format}\n")).collect()
}

fn name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "f64",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        _ => "f32",
    }
}
