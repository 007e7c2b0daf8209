//! Trajectories of whole models against the golden numbers.

use l2d_core::L2d;
use l2d_core::cpu::WeightFormat;
use l2d_core::lm::{KvCache, host_values};
use l2d_infer::decode::{AdaptiveSteps, DecodeMode, Diffuser, Lane, Positions, ReferenceSteps};
use l2d_infer::ode::{AdaptiveParams, Solver};
use l2d_infer::schedule::TemperatureSchedule;
use l2d_infer::velocity::{Estimate, Normalise, VelocityForm};
use l2d_infer::{DiffusionParams, Result};
use l2d_testkit::models::golden_l2d;
use l2d_testkit::{Golden, GoldenTensor, assert_close};
use serde_json::Value;

use super::{B, CPU};

const FILES: [&str; 4] = ["l2d_llama_lora", "l2d_qwen2_lora", "l2d_llama_full", "l2d_llama_guidance"];

/// Final states and logits; see the parity README.
const TOLERANCE: f64 = 3e-4;
/// The same at the end of adaptive steps.
const ADAPTIVE_TOLERANCE: f64 = 1e-3;

/// Every file, and whether packed as the CPU decodes it.
fn fixtures() -> impl Iterator<Item = (&'static str, bool)> {
    let packed: &[bool] = if CPU { &[false, true] } else { &[false] };
    FILES.into_iter().flat_map(|file| packed.iter().map(move |&packed| (file, packed)))
}

struct Fixture {
    golden: Golden,
    model: L2d<B>,
    tokens: Vec<Vec<u32>>,
    classes: Vec<Option<usize>>,
}

impl Fixture {
    /// With `packed` as the CPU decodes it.
    fn load(file: &str, packed: bool) -> Self {
        let golden = Golden::load(file);
        let (lm, path) = golden_l2d(&golden, &Default::default());
        let tokens = golden.token_rows("in/input_ids");
        let classes = if golden.has("in/class_labels") {
            golden.get("in/class_labels").values.iter().map(|&class| Some(class as usize)).collect()
        } else {
            vec![None; tokens.len()]
        };
        let model = L2d { lm, path };
        let model = if packed { model.packed(WeightFormat::F32) } else { model };
        Self { golden, model, tokens, classes }
    }

    /// The main pass, and the hidden states at the given slots of every sequence.
    fn main_pass(&self, slots: &[Vec<usize>]) -> (KvCache<B>, burn::tensor::Tensor<B, 2>) {
        let length = self.tokens[0].len();
        let mut cache = self.model.lm.new_cache(vec![0; self.tokens.len()], length);
        let hidden = self.model.lm.forward(&self.tokens, &mut cache);
        let rows: Vec<i32> = slots
            .iter()
            .enumerate()
            .flat_map(|(sequence, slots)| slots.iter().map(move |slot| (sequence * length + slot) as i32))
            .collect();
        let rows = burn::tensor::Tensor::<B, 1, burn::tensor::Int>::from_data(rows.as_slice(), &Default::default());
        (cache, hidden.select(0, rows))
    }
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_else(|| panic!("{key} in {case}"))
}

/// The settings of a recorded case.
fn settings(case: &Value) -> DiffusionParams {
    let points = case["ode_steps"].as_u64().expect("ode_steps") as usize;
    let number = |key: &str| case[key].as_f64();
    let adaptive = text(case, "method").parse().ok().map(|solver| AdaptiveSteps {
        solver,
        tolerance: AdaptiveParams {
            atol: number("atol").expect("atol"),
            rtol: number("rtol").expect("rtol"),
            first_step: number("first_step"), // or "auto"
            max_evaluations: 10_000,
        },
        as_reference: Some(ReferenceSteps { points, beyond_the_end: false }),
    });
    let solver: Solver = text(case, "method").parse().unwrap_or_default();
    let schedule = match case["temperature"].as_str() {
        None => TemperatureSchedule::Constant { temperature: 1.0 },
        Some(polynomial) => {
            let (power, end) = polynomial.strip_prefix("polynomial p=").unwrap().split_once(" end=").unwrap();
            TemperatureSchedule::Polynomial { power: power.parse().unwrap(), end: end.parse().unwrap() }
        }
    };
    let expectation = |normalise| Estimate::Expectation { schedule, normalise };
    DiffusionParams {
        evaluations: (points - 1) * solver.tableau().stages() + 1,
        solver,
        adaptive,
        final_t: case["final"].as_f64().expect("final"),
        estimate: match text(case, "est") {
            "argmax" => Estimate::Argmax,
            "mean" => expectation(Normalise::None),
            "mean, renormalised" => expectation(Normalise::Renormalise),
            "sampled" => Estimate::Sampled { schedule },
            other => panic!("unknown estimate {other}"),
        },
        velocity: match case["velocity"].as_str() {
            None => VelocityForm::Constant,
            Some("edm") => VelocityForm::Edm,
            Some(other) => panic!("unknown velocity {other}"),
        },
        guidance: case["guidance"].as_f64().unwrap_or(1.0),
    }
}

/// Every call of the reference is one of ours; ours at `t = 0` and `t >= 1` cost no pass.
fn compare(file: &str, fixture: &Fixture, case: &Value, mode: DecodeMode) {
    let tag = text(case, "tag");
    let params = settings(case);
    let slots = vec![vec![fixture.tokens[0].len() - 1]; fixture.tokens.len()];
    let (cache, hidden) = fixture.main_pass(&slots);
    let diffuser = Diffuser::new(&fixture.model, &params.check().unwrap()).unwrap().expect("more than one evaluation");
    let diffuser = diffuser.with_mode(mode);
    let classes = if tag.starts_with("noclass") { vec![None; fixture.classes.len()] } else { fixture.classes.clone() };
    let conditions = diffuser.conditions(&classes).unwrap();
    let draws =
        fixture.golden.has(&format!("traj/{tag}/draws")).then(|| fixture.golden.get(&format!("traj/{tag}/draws")));
    let draw = |row: usize, call: usize, _: Lane, _: &[f32], _: f64| -> Result<usize> {
        Ok(draws.expect("recorded draws").values[call * fixture.tokens.len() + row] as usize)
    };
    let mut states: Vec<f32> = Vec::new();
    let diffused = diffuser
        .diffuse(
            &Positions { cache: &cache, positions: &slots, hidden, guesses: false },
            &conditions,
            fixture.golden.get("traj_in/x0_last").values.clone(),
            draw,
            |_, _, x| states.extend(x.iter().map(|&x| x as f32)),
            || true,
        )
        .unwrap()
        .expect("not stopped");
    let what = format!("{file} {tag} {mode:?}");
    let golden = |part: &str| fixture.golden.get(&format!("traj/{tag}/{part}"));
    let times = diffuser.grid().expect("a fixed grid").slope_times();
    assert_eq!(times.len(), golden("times").values.len(), "{what}: slope calls");
    // Two machines may lay an f32 grid a rounding error apart.
    assert!(times.iter().zip(&golden("times").values).all(|(a, b)| (a - b).abs() < 1.3e-7), "{what}: times");
    if case["robust"].as_bool() == Some(true) {
        // On the way a state is as large as sigma times the noise: the tolerance is meant for values of order 1.
        let largest = golden("x").values.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        assert_close(&format!("{what} states"), &states, golden("x"), 3e-6 * largest + TOLERANCE);
        let last = GoldenTensor {
            shape: vec![diffused.x.len()],
            values: golden("x").values[states.len() - diffused.x.len()..].to_vec(),
        };
        assert_close(&format!("{what} final state"), &states[states.len() - diffused.x.len()..], &last, TOLERANCE);
        assert_close(&format!("{what} logits"), &host_values(diffused.logits), golden("logits"), TOLERANCE);
    }
    let between = golden("times").values.iter().filter(|&&t| t > 0.0 && t < 1.0).count();
    let expected = |class: &Option<usize>| between * if class.is_some() && params.guidance != 1.0 { 2 } else { 1 } + 1;
    assert_eq!(diffused.passes, classes.iter().map(expected).collect::<Vec<_>>(), "{what}: passes");
}

#[test]
fn parity_trajectories_of_last_positions() {
    for (file, packed) in fixtures() {
        let fixture = Fixture::load(file, packed);
        let mut compared = 0;
        for case in fixture.golden.info["trajectories"].as_array().expect("a list") {
            let recorded = case["method"].is_string() && fixture.golden.has(&format!("traj/{}/x", text(case, "tag")));
            if recorded && settings(case).adaptive.is_none() {
                for mode in [DecodeMode::Sequential, DecodeMode::Parallel] {
                    compare(file, &fixture, case, mode);
                }
                compared += usize::from(case["robust"].as_bool() == Some(true));
            }
        }
        assert!(compared > 0, "{file}: no robust case was compared");
    }
}

/// The state, the logits and the number of calls of a solver with one error for the batch.
fn compare_adaptive(file: &str, fixture: &Fixture, case: &Value) {
    let what = format!("{file} {}", text(case, "tag"));
    let rows: Vec<usize> = match case["rows"].as_array() {
        Some(rows) => rows.iter().map(|row| row.as_u64().expect("a number") as usize).collect(),
        None => (0..fixture.tokens.len()).collect(),
    };
    let part = Fixture {
        golden: Golden::load(file),
        model: fixture.model.clone(),
        tokens: rows.iter().map(|&row| fixture.tokens[row].clone()).collect(),
        classes: rows.iter().map(|&row| fixture.classes[row]).collect(),
    };
    let slots = vec![vec![part.tokens[0].len() - 1]; rows.len()];
    let (cache, hidden) = part.main_pass(&slots);
    let mut params = settings(case);
    // The reference's Qwen 2 model has no rule for t >= 1 with these solvers.
    if let Some(reference) = params.adaptive.as_mut().and_then(|adaptive| adaptive.as_reference.as_mut()) {
        reference.beyond_the_end = file.contains("qwen2") && text(case, "method") != "adaptive_heun";
    }
    let beyond = params.adaptive.and_then(|adaptive| adaptive.as_reference).is_some_and(|r| r.beyond_the_end);
    let diffuser = Diffuser::new(&part.model, &params.check().unwrap()).unwrap().expect("a solver");
    let conditions = diffuser.conditions(&part.classes).unwrap();
    let x0: Vec<f64> = rows
        .iter()
        .flat_map(|&row| {
            fixture.golden.get("traj_in/x0_last").values[row * diffuser.dim()..][..diffuser.dim()].to_vec()
        })
        .collect();
    let mut states: Vec<f32> = Vec::new();
    let diffused = diffuser
        .diffuse(
            &Positions { cache: &cache, positions: &slots, hidden, guesses: false },
            &conditions,
            x0,
            |_, _, _, _, _| unreachable!("nothing is sampled"),
            |_, _, x| states.extend(x.iter().map(|&x| x as f32)),
            || true,
        )
        .unwrap()
        .expect("not stopped");
    let golden = |part: &str| fixture.golden.get(&format!("traj/{}/{part}", text(case, "tag")));
    let largest = golden("x").values.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    assert_close(&format!("{what} states"), &states, golden("x"), 3e-6 * largest + ADAPTIVE_TOLERANCE);
    assert_close(&format!("{what} logits"), &host_values(diffused.logits), golden("logits"), ADAPTIVE_TOLERANCE);
    // At t = 0 and from t = 1 on the path is not needed.
    let evaluated = golden("times").values.iter().filter(|&&t| t > 0.0 && (t < 1.0 || beyond)).count();
    assert_eq!(diffused.rounds, vec![evaluated + 1; rows.len()], "{what}: calls");
}

#[test]
fn parity_adaptive_trajectories() {
    for (file, packed) in fixtures() {
        let fixture = Fixture::load(file, packed);
        let mut compared = 0;
        for case in fixture.golden.info["trajectories"].as_array().expect("a list") {
            let recorded = case["method"].is_string() && fixture.golden.has(&format!("traj/{}/x", text(case, "tag")));
            let meant = case["robust"].as_bool() == Some(true) && case["final"].as_f64() == Some(0.99);
            if recorded && meant && settings(case).adaptive.is_some() {
                compare_adaptive(file, &fixture, case);
                compared += 1;
            }
        }
        assert!(compared > 0, "{file}: no robust case was compared");
    }
}

/// `traj_full/SOLVER_ESTIMATE_nPOINTS_TEND`
fn settings_of_tag(tag: &str) -> DiffusionParams {
    let parts: Vec<&str> = tag.rsplit('/').next().unwrap_or(tag).split('_').collect();
    let [solver, estimate, points, end] = parts[..] else { panic!("unexpected name {tag}") };
    let solver: Solver = solver.parse().expect(tag);
    let points: usize = points.trim_start_matches('n').parse().expect(tag);
    DiffusionParams {
        evaluations: (points - 1) * solver.tableau().stages() + 1,
        solver,
        final_t: end.trim_start_matches('T').parse().expect(tag),
        estimate: match estimate {
            "argmax" => Estimate::Argmax,
            "mean" => Estimate::Expectation { schedule: TemperatureSchedule::default(), normalise: Normalise::None },
            other => panic!("unknown estimate {other}"),
        },
        ..Default::default()
    }
}

#[test]
fn parity_trajectories_at_all_positions() {
    let mut compared = 0;
    for (file, packed) in fixtures() {
        let fixture = Fixture::load(file, packed);
        for name in fixture.golden.names("traj_full/") {
            let Some(tag) = name.strip_suffix("/final_x") else { continue };
            let slots = vec![(0..fixture.tokens[0].len()).collect::<Vec<_>>(); fixture.tokens.len()];
            let (cache, hidden) = fixture.main_pass(&slots);
            let settings = settings_of_tag(tag).check().unwrap();
            let diffuser = Diffuser::new(&fixture.model, &settings).unwrap().expect("a grid");
            let classes: Vec<_> =
                fixture.classes.iter().flat_map(|&class| vec![class; fixture.tokens[0].len()]).collect();
            let diffused = diffuser
                .diffuse(
                    &Positions { cache: &cache, positions: &slots, hidden, guesses: false },
                    &diffuser.conditions(&classes).unwrap(),
                    fixture.golden.get("traj_in/x0_full").values.clone(),
                    |_, _, _, _, _| unreachable!("nothing is sampled"),
                    |_, _, _| (),
                    || true,
                )
                .unwrap()
                .expect("not stopped");
            let x: Vec<f32> = diffused.x.iter().map(|&x| x as f32).collect();
            assert_close(&format!("{file} {tag}"), &x, fixture.golden.get(&name), TOLERANCE);
            let logits = host_values(diffused.logits);
            assert_close(&format!("{file} {tag}"), &logits, fixture.golden.get(&format!("{tag}/logits")), TOLERANCE);
            compared += 1;
        }
    }
    assert!(compared > 0, "no case was compared");
}
