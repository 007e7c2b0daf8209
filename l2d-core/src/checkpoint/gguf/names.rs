//! GGUF's tensor names and row order, turned into Hugging Face's.

use crate::config::{Family, LmConfig};

/// `blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`. A name we do not know stays as it is, so that a
/// strict loader can refuse it by the name its file uses.
pub(super) fn hugging_face_name(stored: &str) -> String {
    let known = match stored {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(name) = known {
        return name.to_string();
    }
    let in_block = || {
        let (block, rest) = stored.strip_prefix("blk.")?.split_once('.')?;
        let (layer, kind) = rest.rsplit_once('.')?;
        let layer = match layer {
            "attn_norm" => "input_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            "ffn_norm" => "post_attention_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            _ => return None,
        };
        Some(format!("model.layers.{block}.{layer}.{kind}"))
    };
    in_block().unwrap_or_else(|| stored.to_string())
}

/// How the rows of a tensor are ordered in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// As Hugging Face has them.
    Same,
    /// llama.cpp rotates neighbouring pairs where Hugging Face rotates halves, so its llama files interleave the two
    /// halves of every query and key head: row `2 i + s` of a head is row `s head_dim / 2 + i`.
    Interleaved {
        /// Rows of one head.
        head_dim: usize,
    },
}

/// The row order of a tensor, by its name in the file.
pub(super) fn row_order(stored: &str, config: &LmConfig) -> RowOrder {
    let rotated = stored.contains(".attn_q.") || stored.contains(".attn_k.");
    match config.family {
        Family::Llama if rotated => RowOrder::Interleaved { head_dim: config.head_dim },
        Family::Llama | Family::Qwen2 => RowOrder::Same,
    }
}

impl RowOrder {
    /// Brings row-major `values` of `shape` (`[out, in]`, or `[out]` for a bias), or the bytes of such rows, into Hugging Face's row order. A shape
    /// that is not whole heads is returned as it is: the loader's shape check names it.
    pub(super) fn restore<T: Copy>(self, values: Vec<T>, shape: &[usize]) -> Vec<T> {
        let Self::Interleaved { head_dim } = self else { return values };
        let rows = shape.first().copied().unwrap_or(0);
        if rows == 0 || rows % head_dim != 0 || values.is_empty() {
            return values;
        }
        let width = values.len() / rows;
        let mut restored = Vec::with_capacity(values.len());
        for head in values.chunks_exact(head_dim * width) {
            for half in 0..2 {
                for pair in 0..head_dim / 2 {
                    let row = 2 * pair + half;
                    restored.extend_from_slice(&head[row * width..(row + 1) * width]);
                }
            }
        }
        restored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_kind_are_translated() {
        for (stored, expected) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
            ("blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"),
            ("blk.7.ffn_norm.weight", "model.layers.7.post_attention_layernorm.weight"),
            ("blk.7.ffn_gate_exps.weight", "blk.7.ffn_gate_exps.weight"),
            ("rope.inv_freq", "rope.inv_freq"),
        ] {
            assert_eq!(hugging_face_name(stored), expected);
        }
    }

    #[test]
    fn interleaved_heads_come_back_as_halves() {
        // Two heads of size 4, one column: llama.cpp's `permute` of 0..8 is 0 2 1 3 4 6 5 7.
        let stored = vec![0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
        let restored = RowOrder::Interleaved { head_dim: 4 }.restore(stored, &[8, 1]);
        assert_eq!(restored, (0..8).map(|i| i as f32).collect::<Vec<_>>());
    }
}
