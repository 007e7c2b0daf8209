//! Solvers, times, temperatures and velocities against the golden numbers; no model involved.

use std::convert::Infallible;

use l2d_infer::ode::{Adaptive, AdaptiveParams, AdaptiveSolver, End, FixedGrid, Solver};
use l2d_infer::schedule::{TemperatureSchedule, temperature_lead};
use l2d_infer::velocity::VelocityForm;
use l2d_testkit::Golden;
use serde_json::Value;

/// States are f64 on both sides; times are f32, and two machines may lay them an f32 rounding error apart.
const STATES: f64 = 1e-6;
const TIMES: f64 = 1.3e-7;

fn assert_times(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}: number of times");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= TIMES, "{what}: {found} for {expected}");
    }
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_else(|| panic!("{key} in {case}"))
}

/// `1.0` and `0.99` as Python prints them in tensor names.
fn python(x: f64) -> String {
    format!("{x:?}")
}

#[test]
fn parity_fixed_solvers() {
    let golden = Golden::load("helpers");
    let start = golden.get("ode/y0");
    let target = golden.get("ode/target").values.clone();
    let columns = start.shape[1];
    let mut compared = 0;
    for case in golden.info["ode_cases"].as_array().expect("a list") {
        let Ok(solver) = text(case, "method").parse::<Solver>() else { continue };
        let (points, end) = (case["n"].as_u64().unwrap() as usize, case["final"].as_f64().unwrap());
        let problem = text(case, "problem");
        let name = format!("ode/{problem}/{solver}_n{points}_T{}", python(end));
        let grid = FixedGrid::new(solver, points, end).unwrap();
        let slope = |t: f64, y: &[f64]| {
            let value = |i: usize| match problem {
                "linear" => -((i % columns + 1) as f64) * y[i] + (3.0 * t).sin(),
                "pull" => (target[i] - y[i]) / (1.05 - t) + 0.1 * y[i] * y[i],
                other => panic!("unknown problem {other}"),
            };
            Ok::<_, Infallible>((0..y.len()).map(value).collect())
        };
        let mut states = Vec::new();
        let last = grid.integrate_with(start.values.clone(), slope, |_, y| states.extend_from_slice(y)).unwrap();
        assert_eq!(last, states[states.len() - last.len()..]);
        let expected = golden.get(&format!("{name}/y"));
        assert_eq!(states.len(), expected.values.len());
        for (found, expected) in states.iter().zip(&expected.values) {
            assert!((found - expected).abs() <= STATES * expected.abs().max(1.0), "{name}: {found} for {expected}");
        }
        assert_times(&name, &grid.slope_times(), &golden.get(&format!("{name}/times")).values);
        assert_eq!(case["calls"].as_u64().unwrap() as usize, grid.slope_times().len());
        compared += 1;
    }
    assert!(compared > 0, "no case was compared");
}

/// torchdiffeq's adaptive solvers: one error norm for the whole batch, steps past the last time, states by interpolation.
#[test]
fn parity_adaptive_solvers() {
    let golden = Golden::load("helpers");
    let start = golden.get("ode/y0");
    let target = golden.get("ode/target").values.clone();
    let columns = start.shape[1];
    let mut compared = 0;
    for case in golden.info["ode_cases"].as_array().expect("a list") {
        let Ok(solver) = text(case, "method").parse::<AdaptiveSolver>() else { continue };
        let (points, end) = (case["n"].as_u64().unwrap() as usize, case["final"].as_f64().unwrap());
        let (first_step, tolerance) = (case["first_step"].as_f64(), case["tol"].as_f64().unwrap());
        let problem = text(case, "problem");
        let first = first_step.map_or("auto".into(), python);
        let digits = if tolerance == 1e-4 { "0.0001" } else { "1e-06" };
        let name = format!("ode/{problem}/{solver}_fs{first}_tol{digits}");
        let params = AdaptiveParams { atol: tolerance, rtol: tolerance, first_step, max_evaluations: 10_000 };
        let grid = FixedGrid::new(Solver::Euler, points, end).unwrap();
        let adaptive = Adaptive::new(solver, params, End::Interpolate(grid.times().to_vec())).unwrap();
        let mut times = Vec::new();
        let slope = |_: &[usize], t: &[f64], y: &[f64]| {
            times.push(t[0]);
            let value = |i: usize| match problem {
                "linear" => -((i % columns + 1) as f64) * y[i] + (3.0 * t[0]).sin(),
                "pull" => (target[i] - y[i]) / (1.05 - t[0]) + 0.1 * y[i] * y[i],
                other => panic!("unknown problem {other}"),
            };
            Ok::<_, Infallible>((0..y.len()).map(value).collect())
        };
        let mut states = Vec::new();
        let all = start.values.len();
        let solution =
            adaptive.integrate(start.values.clone(), all, slope, |_, _, y| states.extend_from_slice(y)).unwrap();
        assert_eq!(solution.x, states[states.len() - all..]);
        assert_eq!(solution.evaluations, [case["calls"].as_u64().unwrap() as usize], "{name}");
        let expected = &golden.get(&format!("{name}/y")).values;
        assert_eq!(states.len(), expected.len());
        for (found, expected) in states.iter().zip(expected) {
            assert!((found - expected).abs() <= STATES * expected.abs().max(1.0), "{name}: {found} for {expected}");
        }
        assert_times(&name, &times, &golden.get(&format!("{name}/times")).values);
        compared += 1;
    }
    assert!(compared >= 32, "{compared} cases were compared");
}

#[test]
fn parity_temperatures() {
    let golden = Golden::load("helpers");
    let times = &golden.get("time_grid").values;
    let tables = golden.names("polynomial_temperature/");
    assert!(!tables.is_empty());
    for name in tables {
        let (power, end) = name.rsplit_once("/p").unwrap().1.split_once("_end").unwrap();
        let schedule = TemperatureSchedule::Polynomial { power: power.parse().unwrap(), end: end.parse().unwrap() };
        let schedule = schedule.check().unwrap();
        for (&t, &expected) in times.iter().zip(&golden.get(&name).values) {
            assert!((schedule.at(t) - expected).abs() < 2e-6, "{name} at {t}: {} for {expected}", schedule.at(t));
        }
    }
}

#[test]
fn parity_temperatures_on_grids() {
    let mut compared = 0;
    for file in ["l2d_llama_lora", "l2d_qwen2_lora", "l2d_llama_full"] {
        let golden = Golden::load(file);
        for case in golden.info["trajectories"].as_array().expect("a list") {
            let tag = text(case, "tag");
            let name = format!("traj/{tag}/temps");
            if !golden.has(&name) {
                continue;
            }
            let solver: Solver = text(case, "method").parse().unwrap();
            let points = case["ode_steps"].as_u64().unwrap() as usize;
            let grid = FixedGrid::new(solver, points, case["final"].as_f64().unwrap()).unwrap();
            let (power, end) =
                text(case, "temperature").strip_prefix("polynomial p=").unwrap().split_once(" end=").unwrap();
            let schedule = TemperatureSchedule::Polynomial { power: power.parse().unwrap(), end: end.parse().unwrap() };
            let lead = temperature_lead(&grid);
            let found: Vec<f64> = grid.slope_times().iter().map(|t| schedule.at(t + lead)).collect();
            let expected = &golden.get(&name).values;
            assert_times(&format!("{file} {tag}"), &found, expected);
            compared += 1;
        }
    }
    assert!(compared > 0, "no case was compared");
}

#[test]
fn parity_velocity_forms() {
    let golden = Golden::load("helpers");
    let times = &golden.get("time_grid").values;
    let (x1, x) = (golden.get("velocity/x1"), golden.get("velocity/x"));
    let d = x.shape[1];
    for (form, name) in [(VelocityForm::Constant, "velocity/constant"), (VelocityForm::Edm, "velocity/edm")] {
        let expected = &golden.get(name).values;
        for (i, &t) in times.iter().enumerate() {
            let range = i * d..(i + 1) * d;
            let found = form.velocity(&x1.values[range.clone()], &x.values[range.clone()], t);
            for (found, &expected) in found.iter().zip(&expected[range]) {
                if t >= 1.0 {
                    // The reference's formula divides by zero there; its solvers, like ours, take zero.
                    assert!(*found == 0.0 && expected.is_infinite());
                } else {
                    assert!(
                        (found - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                        "{name} {t}: {found} {expected}"
                    );
                }
            }
        }
    }
}
