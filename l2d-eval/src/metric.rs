//! Accuracy with its uncertainty, and the difference between two runs.
//!
//! Several samples of one question are not independent, so everything is clustered by question (Miller 2024, arXiv
//! 2411.00640).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The two-sided 95 % quantile of the standard normal.
const Z_95: f64 = 1.959_963_984_540_054;

/// The judgement of one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// The question, as its row number.
    pub question: usize,
    /// Whether the sample is right.
    pub correct: bool,
}

/// A proportion and how well it is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Proportion {
    /// Right samples over all samples, in [0, 1].
    pub mean: f64,
    /// Standard error of the mean, clustered by question. With one sample a question it is `sqrt(p (1 - p) / (n - 1))`, the
    /// sample standard error lm-evaluation-harness reports. `None` for fewer than two questions.
    pub standard_error: Option<f64>,
    /// The 95 % Wilson score interval, with the number of samples shrunk to the effective one where samples share a
    /// question. Unlike mean +- 2 standard errors it stays inside [0, 1] and has a width at 0 and 1.
    pub wilson_95: [f64; 2],
    /// Right samples.
    pub correct: usize,
    /// Samples.
    pub samples: usize,
    /// Questions.
    pub questions: usize,
}

impl Proportion {
    /// Pools samples; `None` without any.
    pub fn of(samples: impl IntoIterator<Item = Judged>) -> Option<Self> {
        let clusters = clusters(samples);
        let n: usize = clusters.values().map(|cluster| cluster.samples).sum();
        if n == 0 {
            return None;
        }
        let correct: usize = clusters.values().map(|cluster| cluster.correct).sum();
        let mean = correct as f64 / n as f64;
        let questions = clusters.len();
        let standard_error = (questions > 1).then(|| {
            let residuals: f64 = clusters.values().map(|c| (c.correct as f64 - mean * c.samples as f64).powi(2)).sum();
            let small_sample = questions as f64 / (questions - 1) as f64;
            (residuals * small_sample).sqrt() / n as f64
        });
        let wilson_95 = wilson(mean, effective_samples(mean, standard_error, n, questions));
        Some(Self { mean, standard_error, wilson_95, correct, samples: n, questions })
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Cluster {
    correct: usize,
    samples: usize,
}

impl Cluster {
    fn mean(self) -> f64 {
        self.correct as f64 / self.samples as f64
    }
}

fn clusters(samples: impl IntoIterator<Item = Judged>) -> BTreeMap<usize, Cluster> {
    let mut clusters = BTreeMap::<usize, Cluster>::new();
    for sample in samples {
        let cluster = clusters.entry(sample.question).or_default();
        cluster.correct += usize::from(sample.correct);
        cluster.samples += 1;
    }
    clusters
}

/// Independent samples that would be as informative: between the questions and all samples.
fn effective_samples(mean: f64, standard_error: Option<f64>, samples: usize, questions: usize) -> f64 {
    match standard_error {
        Some(error) if error > 0.0 && samples > questions => {
            (mean * (1.0 - mean) / (error * error)).clamp(questions as f64, samples as f64)
        }
        // All alike: nothing tells samples of one question apart, so count questions.
        _ => questions as f64,
    }
}

/// Wilson's score interval for `p` out of `n`.
fn wilson(p: f64, n: f64) -> [f64; 2] {
    let z2 = Z_95 * Z_95;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

/// The first and third quartile, between values where they fall between; `None` for fewer than two values or NaN.
pub fn quartiles(values: &[f64]) -> Option<[f64; 2]> {
    if values.len() < 2 || values.iter().any(|value| value.is_nan()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share * (sorted.len() - 1) as f64;
        let (below, above) = (place.floor() as usize, place.ceil() as usize);
        sorted[below] + (place - place.floor()) * (sorted[above] - sorted[below])
    };
    Some([at(0.25), at(0.75)])
}

/// The chance that at least one of `k` completions is right, where `correct` of `samples` are: `1 - C(n-c, k) / C(n, k)`,
/// unbiased (Chen et al. 2021, arXiv 2107.03374), as the product that does not overflow. `None` for `k` beyond the samples.
pub fn pass_at_k(samples: usize, correct: usize, k: usize) -> Option<f64> {
    if k == 0 || k > samples || correct > samples {
        return None;
    }
    if samples - correct < k {
        return Some(1.0);
    }
    let none: f64 = (samples - correct + 1..=samples).map(|i| 1.0 - k as f64 / i as f64).product();
    Some(1.0 - none)
}

/// pass@k over questions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PassAtK {
    /// Completions that are looked at.
    pub k: usize,
    /// The mean over questions, in [0, 1].
    pub mean: f64,
    /// Its standard error over questions; `None` for fewer than two.
    pub standard_error: Option<f64>,
}

impl PassAtK {
    /// pass@k of samples; `None` where a question has fewer than `k`, or there is none.
    pub fn of(samples: impl IntoIterator<Item = Judged>, k: usize) -> Option<Self> {
        let each: Option<Vec<f64>> =
            clusters(samples).values().map(|cluster| pass_at_k(cluster.samples, cluster.correct, k)).collect();
        let each = each.filter(|each| !each.is_empty())?;
        let n = each.len() as f64;
        let mean = each.iter().sum::<f64>() / n;
        let standard_error =
            (each.len() > 1).then(|| (each.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt());
        Some(Self { k, mean, standard_error })
    }
}

/// How much better one run is than another on the same questions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PairedDifference {
    /// Mean over questions of (mean of the first run - mean of the second).
    pub difference: f64,
    /// Standard error of it over questions; `None` for fewer than two.
    pub standard_error: Option<f64>,
    /// `difference +- 1.96 standard errors`.
    pub interval_95: Option<[f64; 2]>,
    /// `difference / standard error`; beyond +-1.96 the runs differ at the 5 % level. With one sample a question this is
    /// McNemar's test, up to its use of the variance under no difference. `None` where the standard error is 0.
    pub z: Option<f64>,
    /// Questions the first run does better on.
    pub first_better: usize,
    /// Questions the second run does better on.
    pub second_better: usize,
    /// Questions compared.
    pub questions: usize,
}

impl PairedDifference {
    /// Compares two runs on the questions that both answered; `None` where there are none.
    pub fn of_common(
        first: impl IntoIterator<Item = Judged>,
        second: impl IntoIterator<Item = Judged>,
    ) -> Option<PairedDifference> {
        let (first, second): (Vec<Judged>, Vec<Judged>) = (first.into_iter().collect(), second.into_iter().collect());
        let asked = |judged: &[Judged]| judged.iter().map(|judged| judged.question).collect::<BTreeSet<usize>>();
        let (in_first, in_second) = (asked(&first), asked(&second));
        let both = |judged: &Judged| in_first.contains(&judged.question) && in_second.contains(&judged.question);
        Self::of(first.into_iter().filter(both), second.into_iter().filter(both)).ok()
    }

    /// Compares two runs question by question.
    ///
    /// # Errors
    /// [`Error::NotPaired`] where the questions are not the same, or there are none.
    pub fn of(
        first: impl IntoIterator<Item = Judged>,
        second: impl IntoIterator<Item = Judged>,
    ) -> Result<PairedDifference> {
        let (first, second) = (clusters(first), clusters(second));
        if first.is_empty() {
            return Err(Error::NotPaired("the first run has no samples".to_owned()));
        }
        if let Some(question) = first
            .keys()
            .find(|question| !second.contains_key(question))
            .or_else(|| second.keys().find(|question| !first.contains_key(question)))
        {
            return Err(Error::NotPaired(format!("row {question} is in one run only")));
        }
        let differences: Vec<f64> =
            first.iter().map(|(question, cluster)| cluster.mean() - second[question].mean()).collect();
        let n = differences.len() as f64;
        let difference = differences.iter().sum::<f64>() / n;
        let standard_error = (differences.len() > 1).then(|| {
            let variance = differences.iter().map(|d| (d - difference).powi(2)).sum::<f64>() / (n - 1.0);
            (variance / n).sqrt()
        });
        Ok(PairedDifference {
            difference,
            standard_error,
            interval_95: standard_error.map(|error| [difference - Z_95 * error, difference + Z_95 * error]),
            z: standard_error.filter(|error| *error > 0.0).map(|error| difference / error),
            first_better: differences.iter().filter(|d| **d > 0.0).count(),
            second_better: differences.iter().filter(|d| **d < 0.0).count(),
            questions: differences.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn judged(correct: &[bool], samples_each: usize) -> Vec<Judged> {
        let question = |(i, correct): (usize, &bool)| Judged { question: i / samples_each, correct: *correct };
        correct.iter().enumerate().map(question).collect()
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn a_proportion_has_the_sample_standard_error() {
        let samples: Vec<bool> = (0..100).map(|i| i < 30).collect();
        let p = Proportion::of(judged(&samples, 1)).unwrap();
        close(p.mean, 0.3);
        close(p.standard_error.unwrap(), (0.3_f64 * 0.7 / 99.0).sqrt());
        // The roots of (p - x)^2 = z^2 x (1 - x) / n, which define the interval, solved in 40 digits.
        assert!((p.wilson_95[0] - 0.218948852949).abs() < 1e-11, "{:?}", p.wilson_95);
        assert!((p.wilson_95[1] - 0.395848546333).abs() < 1e-11, "{:?}", p.wilson_95);
        assert_eq!((p.correct, p.samples, p.questions), (30, 100, 100));
    }

    #[test]
    fn repeated_samples_add_no_certainty_where_a_question_always_has_one_answer() {
        let once: Vec<bool> = (0..50).map(|i| i % 3 == 0).collect();
        let thrice: Vec<bool> = once.iter().flat_map(|right| [*right; 3]).collect();
        let (once, thrice) = (Proportion::of(judged(&once, 1)).unwrap(), Proportion::of(judged(&thrice, 3)).unwrap());
        close(once.mean, thrice.mean);
        close(once.standard_error.unwrap(), thrice.standard_error.unwrap());
        assert!((once.wilson_95[0] - thrice.wilson_95[0]).abs() < 2e-3);
    }

    #[test]
    fn pass_at_k_is_the_chance_over_all_choices() {
        // Every choice of k completions out of n, counted.
        for n in 1..=8_usize {
            for c in 0..=n {
                for k in 1..=n {
                    let choices = (0_u32..1 << n).filter(|set| set.count_ones() as usize == k);
                    let (mut all, mut lucky) = (0, 0);
                    for set in choices {
                        all += 1;
                        lucky += u32::from(set & ((1 << c) - 1) != 0);
                    }
                    close(pass_at_k(n, c, k).unwrap(), f64::from(lucky) / f64::from(all));
                }
            }
        }
        assert_eq!((pass_at_k(5, 2, 6), pass_at_k(5, 2, 0), pass_at_k(1, 2, 1)), (None, None, None));
        assert!((pass_at_k(10_000, 1, 5_000).unwrap() - 0.5).abs() < 1e-9, "no overflow");
    }

    #[test]
    fn pass_at_k_is_averaged_over_questions() {
        // One right of two, none of two.
        let samples = || judged(&[true, false, false, false], 2);
        close(PassAtK::of(samples(), 1).unwrap().mean, 0.25);
        let both = PassAtK::of(samples(), 2).unwrap();
        close(both.mean, 0.5);
        close(both.standard_error.unwrap(), 0.5);
        assert_eq!(PassAtK::of(samples(), 3), None);
        assert_eq!(PassAtK::of([], 1), None);
    }

    #[test]
    fn quartiles_lie_between_values() {
        assert_eq!(quartiles(&[4.0, 1.0, 2.0, 3.0, 5.0]), Some([2.0, 4.0]));
        assert_eq!(quartiles(&[1.0, 2.0]), Some([1.25, 1.75]));
        assert_eq!((quartiles(&[1.0]), quartiles(&[1.0, f64::NAN])), (None, None));
    }

    #[test]
    fn few_samples_are_no_panic() {
        assert_eq!(Proportion::of([]), None);
        let one = Proportion::of(judged(&[true], 1)).unwrap();
        assert_eq!(one.standard_error, None);
        assert!(one.wilson_95[0] > 0.0 && one.wilson_95[1] == 1.0);
        assert_eq!(Proportion::of(judged(&[true, true], 1)).unwrap().standard_error, Some(0.0));
    }

    #[test]
    fn the_paired_difference_counts_only_where_runs_differ() {
        let first: Vec<bool> = (0..100).map(|i| i < 60).collect();
        let second: Vec<bool> = (0..100).map(|i| (10..50).contains(&i)).collect();
        let d = PairedDifference::of(judged(&first, 1), judged(&second, 1)).unwrap();
        close(d.difference, 0.2);
        assert_eq!((d.first_better, d.second_better, d.questions), (20, 0, 100));
        close(d.standard_error.unwrap(), (0.2_f64 * 0.8 / 99.0).sqrt());
        close(d.z.unwrap(), 0.2 / d.standard_error.unwrap());
        let unpaired = first.len() as f64;
        assert!(d.standard_error.unwrap() < ((0.6 * 0.4 + 0.4 * 0.6) / unpaired).sqrt());
    }

    #[test]
    fn runs_over_other_questions_are_refused() {
        let error = PairedDifference::of(judged(&[true, true], 1), judged(&[true], 1)).unwrap_err();
        assert_eq!(error.to_string(), "the runs cannot be compared: row 1 is in one run only");
        assert!(PairedDifference::of([], judged(&[true], 1)).is_err());
        assert!(PairedDifference::of([], []).is_err());
    }

    proptest! {
        #[test]
        fn the_wilson_interval_holds_the_mean(samples in prop::collection::vec(any::<bool>(), 1..200), each in 1_usize..4) {
            let p = Proportion::of(judged(&samples, each)).unwrap();
            prop_assert!(p.wilson_95[0] <= p.mean + 1e-12 && p.mean - 1e-12 <= p.wilson_95[1]);
            prop_assert!((0.0..=1.0).contains(&p.wilson_95[0]) && (0.0..=1.0).contains(&p.wilson_95[1]));
        }
    }
}
