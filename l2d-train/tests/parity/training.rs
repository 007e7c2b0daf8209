//! The learner against the golden numbers: the batch loss, all gradients through the chunked head, four AdamW updates with
//! clipping, and the learning-rate curves.

use burn::module::AutodiffModule;
use l2d_core::checkpoint::reference_name;
use l2d_core::cpu::WeightFormat;
use l2d_core::cpu::dense::Products;
use l2d_core::diffusion::DiffusionPath;
use l2d_core::parameters::{parameters, trainable};
use l2d_testkit::models::{golden_l2d, transposed};
use l2d_testkit::{Golden, assert_close};
use l2d_train::objective::{Draws, HostL2d, L2dObjective, Labelled, Recompute};
use l2d_train::optimiser::{AdamW, AdamWConfig, Decay, NamedGradients, Schedule, Warmup, clip_coefficient};

use super::{AB, B, CPU};

const FILES: [&str; 4] = ["l2d_llama_lora", "l2d_qwen2_lora", "l2d_llama_full", "l2d_llama_guidance"];

struct Case {
    name: &'static str,
    golden: Golden,
    objective: L2dObjective<AB>,
    /// By hand instead of by automatic differentiation, where that is what is tested.
    host: Option<HostL2d<B>>,
    path: DiffusionPath<AB>,
    tokens: Vec<Vec<u32>>,
    labels: Vec<Vec<(usize, u32)>>,
    draws: Draws,
}

impl Case {
    fn load(name: &'static str) -> Self {
        let golden = Golden::load(name);
        let (lm, path) = golden_l2d::<B>(&golden, &Default::default());
        let dim = path.config.dim;
        let tokens = golden.token_rows("in/input_ids");
        let length = tokens[0].len();
        let all: Vec<i64> = golden.get("in/labels_aligned").values.iter().map(|&y| y as i64).collect();
        let labels = all
            .chunks(length)
            .map(|row| row.iter().enumerate().filter(|(_, y)| **y >= 0).map(|(k, &y)| (k, y as u32)).collect())
            .collect();
        let labelled: Vec<usize> = (0..all.len()).filter(|&i| all[i] >= 0).collect();
        let (t, noise) = (golden.get("in/timesteps").f32(), golden.get("in/noise").f32());
        let draws = Draws {
            timesteps: labelled.iter().map(|&i| t[i]).collect(),
            noise: labelled.iter().flat_map(|&i| noise[i * dim..][..dim].to_vec()).collect(),
            classes: golden.has("in/class_labels").then(|| {
                let classes = &golden.get("in/class_labels").values;
                labelled.iter().map(|&i| classes[i / length] as usize).collect()
            }),
            dropout: None,
        };
        let mut objective = L2dObjective::new(lm);
        // A chunk that divides nothing evenly: the seams must not show.
        objective.head_chunk = 5;
        Self {
            name,
            golden,
            objective,
            host: None,
            path: trainable(AutodiffModule::from_inner(path)),
            tokens,
            labels,
            draws,
        }
    }

    /// Every file by automatic differentiation and, on a CPU, by hand, with and without the blocks computed again.
    fn all() -> impl Iterator<Item = Self> {
        FILES.into_iter().flat_map(|name| {
            let engines: &[bool] = if CPU { &[false, true] } else { &[false] };
            let ways =
                engines.iter().map(|&by_hand| [Recompute::None, Recompute::Blocks].map(|again| (by_hand, again)));
            ways.flatten().map(move |(by_hand, recompute)| {
                let mut case = Self::load(name);
                case.objective.recompute = recompute;
                case.host = by_hand.then(|| {
                    let mut host = HostL2d::new(case.objective.lm().clone().packed(WeightFormat::F32), Products::F32);
                    (host.head_chunk, host.recompute) = (5, recompute);
                    host
                });
                case
            })
        })
    }

    fn gradients(&self, path: &DiffusionPath<AB>) -> (f64, NamedGradients<B>) {
        let batch = Labelled { tokens: &self.tokens, labels: &self.labels, classes: None };
        let (loss, mut named) = match &self.host {
            None => self.objective.loss_and_gradients(path, &batch, &self.draws),
            Some(host) => host.loss_and_gradients(&path.valid(), &batch, &self.draws),
        };
        named.scale(1.0 / loss.tokens as f64);
        (loss.mean(), named)
    }

    fn compare(&self, name: &str, shape: &[usize], values: Vec<f32>, prefix: &str, tolerance: impl Fn(f64) -> f64) {
        let (reference, transpose) = reference_name(name);
        let golden = self.golden.get(&format!("{prefix}/{reference}"));
        let values = if transpose { transposed(&values, shape[0], shape[1]) } else { values };
        let largest = golden.values.iter().fold(0f64, |m, x| m.max(x.abs()));
        assert_close(&format!("{} {prefix}/{reference}", self.name), &values, golden, tolerance(largest));
    }
}

#[test]
fn parity_batch_loss_and_gradients() {
    for case in Case::all() {
        let (loss, gradients) = case.gradients(&case.path);
        assert!((loss - case.golden.get("out/loss").values[0]).abs() < 1e-5, "{}: {loss}", case.name);
        let norm = case.golden.get("out/grad_norm").values[0];
        assert!((gradients.norm() / norm - 1.0).abs() < 1e-4, "{}: {} against {norm}", case.name, gradients.norm());
        for parameter in parameters(&case.path) {
            let gradient = gradients.get(&parameter.name).expect("every parameter has a gradient").clone();
            let values = l2d_core::lm::host_values(gradient);
            case.compare(&parameter.name, &parameter.shape, values, "grad", |largest| 1e-3 * largest + 1e-6);
        }
        let (path, batch) = (case.path.valid(), Labelled { tokens: &case.tokens, labels: &case.labels, classes: None });
        let valid = match &case.host {
            None => case.objective.loss(&path, &batch, &case.draws),
            Some(host) => host.loss(&path, &batch, &case.draws),
        };
        assert!((valid.mean() - loss).abs() < 1e-6, "the validation loss is the training loss");
    }
}

#[test]
fn parity_four_adamw_updates() {
    for case in Case::all() {
        let settings = &case.golden.info["adamw"];
        let number = |key: &str| settings[key].as_f64().expect("a number");
        let config = AdamWConfig {
            beta1: settings["betas"][0].as_f64().expect("beta1"),
            beta2: settings["betas"][1].as_f64().expect("beta2"),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
            decay_biases: false,
        };
        let mut optimiser = AdamW::<B>::new(config);
        let mut path = case.path.clone();
        let losses = &case.golden.get("out/adamw_losses").values;
        for (update, expected) in losses.iter().enumerate() {
            let (loss, mut gradients) = case.gradients(&path);
            assert!((loss - expected).abs() < 5e-5, "{} update {update}: loss {loss} against {expected}", case.name);
            let norm = gradients.norm();
            let golden = case.golden.get("out/adamw_grad_norms").values[update];
            assert!((norm / golden - 1.0).abs() < 1e-3, "{} update {update}: norm {norm} against {golden}", case.name);
            gradients.scale(clip_coefficient(norm, number("clip")));
            path = optimiser.step::<AB, _>(path, &gradients, number("lr"));
        }
        let mut compared = 0;
        for parameter in parameters(&path) {
            // A weight whose gradient is rounding noise moves by up to the learning rate in either direction; the rest is
            // exact. Such weights are few: the comparison is of the root mean square.
            let (reference, transpose) = reference_name(&parameter.name);
            // The file with full copies keeps only some of them.
            if !case.golden.has(&format!("param_after_adamw/{reference}")) {
                continue;
            }
            compared += 1;
            let golden = case.golden.get(&format!("param_after_adamw/{reference}"));
            let values = if transpose {
                transposed(&parameter.values, parameter.shape[0], parameter.shape[1])
            } else {
                parameter.values.clone()
            };
            let squares: f64 = values.iter().zip(&golden.values).map(|(&a, b)| (a as f64 - b).powi(2)).sum();
            let rms = (squares / values.len() as f64).sqrt();
            if case.golden.get(&format!("grad/{reference}")).values.iter().any(|g| g.abs() > 1e-6) {
                assert!(rms < 1e-4, "{} {reference}: off by {rms:.2e}", case.name);
            }
        }
        assert_eq!(compared, case.golden.names("param_after_adamw/").len(), "{}", case.name);
    }
}

#[test]
fn parity_learning_rate_curves() {
    let golden = Golden::load("helpers");
    let steps = &golden.get("lr/step").values;
    let tensors = golden.info["tensors"].as_array().expect("a list");
    let described = tensors.iter().find(|tensor| tensor["name"] == "lr/log_warmup").expect("described");
    let description = described["meaning"].as_str().expect("a text");
    // The curve's settings stand in its description only, e.g. "... for k<100, ...; lo=1e-6 hi=1e-4 total=1000".
    let number = |key: &str| -> f64 {
        let (_, rest) = description.split_once(key).unwrap_or_else(|| panic!("`{key}` in: {description}"));
        let text: String = rest.chars().take_while(|c| c.is_ascii_digit() || ".e-".contains(*c)).collect();
        text.parse().unwrap_or_else(|_| panic!("a number after `{key}` in: {description}"))
    };
    let (peak, floor) = (number("hi="), number("lo="));
    let (warmup_steps, total_steps) = (number("k<") as u64, number("total=") as u64);
    for (name, warmup) in [("lr/log_warmup", Warmup::Logarithmic), ("lr/linear_warmup", Warmup::Linear)] {
        let schedule = Schedule { peak, floor, warmup_steps, total_steps, warmup, decay: Decay::Linear };
        for (&k, &expected) in steps.iter().zip(&golden.get(name).values).filter(|(k, _)| **k >= 0.0) {
            let found = schedule.at(k as u64);
            assert!((found - expected).abs() < 1e-12, "{name} at {k}: {found} against {expected}");
        }
    }
}
