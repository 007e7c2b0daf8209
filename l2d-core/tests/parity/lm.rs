//! The base LM against the golden numbers of the reference implementation.

use burn::tensor::Tensor;
use l2d_core::lm::{Lm, host_values};
use l2d_testkit::{
    Golden, assert_close,
    models::{BASE_FOLDERS, golden_lm},
};

use super::B;

fn setup(folder: &str) -> (Golden, Lm<B>) {
    (Golden::load(&format!("{folder}/expected")), golden_lm(folder, &Default::default()))
}

fn argmax_last(logits: Tensor<B, 2>, batch: usize) -> Vec<u32> {
    let rows = logits.dims()[0] / batch;
    let ids = host_values(logits.argmax(1).float());
    (0..batch).map(|b| ids[b * rows + rows - 1] as u32).collect()
}

#[test]
fn parity_base_logits_and_hidden_states() {
    for folder in BASE_FOLDERS {
        let (golden, lm) = setup(folder);
        let tokens = golden.token_rows("in/input_ids");
        let mut cache = lm.new_cache(vec![0; tokens.len()], tokens[0].len());
        let hidden = lm.forward_with(&tokens, &mut cache, |layer, x| {
            if layer + 1 < lm.config.num_layers {
                let expected = golden.get(&format!("out/hidden/{}", layer + 1));
                assert_close(&format!("{folder} hidden {layer}"), &host_values(x.clone()), expected, 5e-5);
            }
        });
        let normed = host_values(lm.final_norm.forward(hidden.clone()));
        let last = format!("out/hidden/{}", lm.config.num_layers);
        assert_close(&format!("{folder} final norm"), &normed, golden.get(&last), 5e-5);
        assert_close(&format!("{folder} logits"), &host_values(lm.logits(hidden)), golden.get("out/logits"), 5e-5);
    }
}

#[test]
fn parity_base_left_padding() {
    for folder in BASE_FOLDERS {
        let (golden, lm) = setup(folder);
        let tokens = golden.token_rows("in/pad_input_ids");
        let mask = golden.token_rows("in/pad_attention_mask");
        let padding: Vec<usize> = mask.iter().map(|row| row.iter().take_while(|&&m| m == 0).count()).collect();
        assert!(padding.iter().any(|&pad| pad > 0), "the golden batch is ragged");
        let mut cache = lm.new_cache(padding.clone(), tokens[0].len());
        let logits = host_values(lm.logits(lm.forward(&tokens, &mut cache)));
        let expected = golden.get("out/pad_logits");
        let vocab = lm.config.vocab_size;
        for (b, &pad) in padding.iter().enumerate() {
            let range = (b * tokens[0].len() + pad) * vocab..(b + 1) * tokens[0].len() * vocab;
            for (found, expected) in logits[range.clone()].iter().zip(&expected.values[range]) {
                assert!((*found as f64 - expected).abs() < 5e-5, "{folder}: row {b}: {found} against {expected}");
            }
        }
    }
}

#[test]
fn parity_base_greedy_with_cache() {
    for folder in BASE_FOLDERS {
        let (golden, lm) = setup(folder);
        let prompt = golden.token_rows("in/input_ids");
        let expected = golden.token_rows("out/greedy_tokens");
        let batch = prompt.len();
        // A capacity below what is needed makes the cache grow on the way.
        let mut cache = lm.new_cache(vec![0; batch], prompt[0].len() + 2);
        let mut logits = lm.logits(lm.forward(&prompt, &mut cache));
        for step in 0..expected[0].len() {
            let next = argmax_last(logits, batch);
            let expected: Vec<u32> = expected.iter().map(|row| row[step]).collect();
            assert_eq!(next, expected, "{folder}: step {step}");
            let tokens: Vec<Vec<u32>> = next.into_iter().map(|id| vec![id]).collect();
            logits = lm.logits(lm.forward(&tokens, &mut cache));
        }
    }
}

#[test]
fn parity_rope() {
    for folder in BASE_FOLDERS {
        let (golden, lm) = setup(folder);
        assert_close(&format!("{folder} inv_freq"), &lm.rope.inv_freq, golden.get("out/rope_inv_freq"), 1e-7);
        let cos = golden.get("out/rope_cos");
        let [positions, size] = cos.shape[..] else { panic!("two axes") };
        let table = lm.rope.table::<B>(&[(0..positions).collect()], 1, &Default::default());
        assert_eq!(size, lm.config.head_dim);
        assert_close(&format!("{folder} cos"), &host_values(table.cos), cos, 1e-6);
        assert_close(&format!("{folder} sin"), &host_values(table.sin), golden.get("out/rope_sin"), 1e-6);
    }
}
