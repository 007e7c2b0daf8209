//! Cross-entropy over a vocabulary.

use rayon::prelude::*;

use super::rows::exponentials;
use super::vectorised;

/// Cross-entropy in nats of each row of `logits: [rows, vocabulary]` against its target. The logits become the gradient of
/// the losses' sum, `softmax(logits) - onehot(target)`.
///
/// # Panics
/// Unless there is a row for each target, and each target lies in the vocabulary.
pub fn cross_entropy_in_place(logits: &mut [f32], targets: &[u32]) -> Vec<f32> {
    let vocabulary = logits.len().checked_div(targets.len()).unwrap_or(0);
    assert_eq!(logits.len(), vocabulary * targets.len(), "a row for each target");
    let mut losses = vec![0.0; targets.len()];
    logits
        .par_chunks_mut(vocabulary.max(1))
        .zip(targets)
        .zip(&mut losses)
        .for_each(|((logits, &target), loss)| row(logits, target as usize, loss));
    losses
}

vectorised! {
    fn row<'a>(logits: &'a mut [f32], target: usize, loss: &'a mut f32) {
        // Sixteen maxima side by side, so that there is no chain of comparisons.
        let mut largest = [f32::NEG_INFINITY; 16];
        for part in logits.chunks(16) {
            largest.iter_mut().zip(part).for_each(|(a, b)| *a = if *b > *a { *b } else { *a });
        }
        let largest = largest.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        let at_target = logits[target];
        let sum = exponentials(logits, largest);
        *loss = sum.ln() + largest - at_target;
        let inverse = 1.0 / sum;
        logits.iter_mut().for_each(|x| *x *= inverse);
        logits[target] -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_gradient, numbers};
    use super::*;

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let (vocabulary, targets) = (83, [0u32, 82, 40]);
        let logits: Vec<f32> = numbers(3 * vocabulary, 1).iter().map(|x| 20.0 * x).collect();
        let total = |logits: &[f32]| -> f64 {
            let row = |(row, target): (&[f32], &u32)| {
                let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                sum.ln() - f64::from(row[*target as usize])
            };
            logits.chunks_exact(vocabulary).zip(&targets).map(row).sum()
        };
        let mut gradient = logits.clone();
        let losses = cross_entropy_in_place(&mut gradient, &targets);
        let sum: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
        assert!((sum - total(&logits)).abs() < 1e-4, "{sum}");
        check_gradient(&logits, &gradient, total);
    }

    #[test]
    fn a_logit_that_is_no_number_shows() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = numbers(50, 1);
            logits[33] = bad;
            assert!(!cross_entropy_in_place(&mut logits, &[3])[0].is_finite(), "{bad}");
        }
    }
}
