//! Scores against those of lm-evaluation-harness 0.4.13 itself, on completions made up to be hard to read
//! (`tests/fixtures/lm_eval`).

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use l2d_eval::Tools;
use l2d_eval::task::{Problem, Task};
use l2d_eval::tasks::by_name;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    completion: String,
    reference: String,
    metric: String,
    correct: bool,
}

fn cases(file: &str) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lm_eval").join(file);
    let mut text = String::new();
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("a case")).collect()
}

/// Compares every metric of the task that the file has; `counts` is how many cases and how many right ones there are of each.
fn agrees(task: &str, file: &str, labels: &[String], counts: &[(&str, usize, usize)]) {
    let task: Box<dyn Task> = by_name(task, &Tools::default()).expect("a task");
    let mut seen: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for case in cases(file) {
        // These verdicts are of whole texts; the harness ends a completion there before it judges, and so do we.
        if ["Question:", "Problem:", "</s>", "<|im_end|>"].iter().any(|stop| case.completion.contains(stop)) {
            continue;
        }
        let problem = Problem { solution: case.reference, labels: labels.to_vec(), ..Problem::default() };
        let scores = task.score(&problem, &case.completion).expect("scores");
        // A metric of theirs that we do not have.
        let Some(score) = scores.get(&case.metric) else { continue };
        let count = seen.entry(case.metric.clone()).or_default();
        count.0 += 1;
        count.1 += usize::from(case.correct);
        if score.correct != case.correct {
            wrong.push(format!("{} {:?}: {:?} for {:?}", case.metric, score, case.completion, problem.solution));
        }
    }
    assert!(wrong.is_empty(), "{} disagree:\n{}", wrong.len(), wrong.join("\n"));
    let seen: Vec<(&str, usize, usize)> =
        seen.iter().map(|(name, (all, right))| (name.as_str(), *all, *right)).collect();
    assert_eq!(seen, counts);
}

#[test]
fn gsm8k_is_scored_as_the_harness_scores_it() {
    agrees("gsm8k", "gsm8k.jsonl.gz", &[], &[("flexible", 648, 362), ("strict", 648, 151)]);
}

#[test]
fn mmlu_pro_is_scored_as_the_harness_scores_it() {
    let labels: Vec<String> = ('A'..='J').map(String::from).collect();
    agrees("mmlu_pro", "mmlu_pro.jsonl.gz", &labels, &[("stated", 394, 148)]);
}

#[test]
fn math_is_scored_as_the_harness_scores_it() {
    agrees("math", "math.jsonl.gz", &[], &[("hendrycks", 398, 96), ("minerva", 398, 142)]);
}
