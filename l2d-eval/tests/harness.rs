//! What surrounds a run: parts of a split, scoring again, several answers to a question, programs, published numbers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use l2d_eval::journal;
use l2d_eval::likelihood::{ByLikelihood, LikelihoodEvaluation, LikelihoodScorer, OptionLikelihood, ScoredQuestion};
use l2d_eval::report::{Published, Report, RunLabel, RunReport, TaskReport};
use l2d_eval::rows::{Row, from_jsonl};
use l2d_eval::task::{LikelihoodQuestion, Profile, Scores, Task};
use l2d_eval::tasks::{Arithmetic, HumanEval, Mbpp};
use l2d_eval::{
    BoxError, CodeRunner, CodeVerdict, Completion, Error, Evaluation, FinishReason, GenerateRequest, Guessed, Journal,
    Rescoring, RunResult, RunSettings, Scoring, Selection, Shard, Tools, rescore,
};
use serde_json::json;

static NEVER: AtomicBool = AtomicBool::new(false);

fn sums(count: usize) -> Vec<Row> {
    let line = |i: usize| format!("{{\"question\": \"{i}+1\", \"answer\": \"{i}+1={}\"}}\n", i + 1);
    from_jsonl("sums.jsonl", (0..count).map(line).collect::<String>().as_bytes()).unwrap()
}

fn settings(samples: usize) -> RunSettings {
    RunSettings { samples, batch_size: 3, seed: 7, generation: json!({"steps": 15}) }
}

fn said(text: String) -> Completion {
    Completion {
        text,
        tokens: 5,
        prompt_tokens: 6,
        evaluations: 70,
        finish: FinishReason::EndOfTurn,
        along: Vec::new(),
    }
}

/// Right in every sample but the first of each even row.
fn sometimes_right(requests: &[GenerateRequest]) -> Result<Vec<Completion>, BoxError> {
    let answer = |request: &GenerateRequest| {
        let wrong = request.sample == 0 && request.row.is_multiple_of(2);
        said(format!("={}", request.row + 1 + usize::from(wrong)))
    };
    Ok(requests.iter().map(answer).collect())
}

fn run(
    task: &dyn Task,
    rows: &[Row],
    selection: &Selection,
    settings: &RunSettings,
    journal: &mut Journal,
) -> RunResult {
    let evaluation = Evaluation::prepare(task, rows, &[], selection, None).unwrap();
    evaluation.run(settings, Scoring::Now, &mut sometimes_right, Some(journal), &mut (), &NEVER).unwrap()
}

fn essence(result: &RunResult) -> Vec<(usize, usize, String, Scores)> {
    result.samples.iter().map(|s| (s.row, s.sample, s.completion.text.clone(), s.scores.clone())).collect()
}

#[test]
fn parts_put_together_are_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (task, rows) = (Arithmetic::default(), sums(10));
    let mut whole = Journal::open(dir.path().join("whole.jsonl")).unwrap();
    let whole = run(&task, &rows, &Selection::default(), &settings(2), &mut whole);
    let mut records = Vec::new();
    for index in 1..=3 {
        let path = dir.path().join(format!("{index}.jsonl"));
        let shard = Some(Shard { index, count: 3 });
        let mut part = Journal::open(&path).unwrap();
        run(&task, &rows, &Selection { shard, ..Selection::default() }, &settings(2), &mut part);
        drop(part);
        records.extend(journal::read(&path).unwrap());
    }
    let Rescoring { runs, rows: counts, changed, .. } =
        rescore(&task, &rows, &records, &[], Path::new("merged")).unwrap();
    assert!(changed.is_empty(), "judged as they were");
    assert_eq!(runs.len(), 1);
    assert_eq!(essence(&runs[0].result), essence(&whole));
    assert!(!runs[0].result.interrupted);
    assert_eq!((counts.questions, counts.in_split, runs[0].settings.samples), (10, 10, 2));
}

#[test]
fn what_was_only_predicted_is_scored_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("samples.jsonl");
    let (task, rows) = (Arithmetic::default(), sums(6));
    let evaluation = Evaluation::prepare(&task, &rows, &[], &Selection::default(), None).unwrap();
    let mut journal = Journal::open(&path).unwrap();
    let later = evaluation
        .run(&settings(1), Scoring::Later, &mut sometimes_right, Some(&mut journal), &mut (), &NEVER)
        .unwrap();
    assert!(later.samples.iter().all(|sample| sample.scores.is_empty()));
    let other = RunSettings { seed: 8, ..settings(1) };
    evaluation.run(&other, Scoring::Now, &mut sometimes_right, Some(&mut journal), &mut (), &NEVER).unwrap();
    let Rescoring { runs, changed, .. } = rescore(&task, &rows, journal.records(), &[], &path).unwrap();
    assert_eq!(changed.len(), 6, "those that were only predicted");
    let mut scored = Journal::open(dir.path().join("scored.jsonl")).unwrap();
    scored.append(journal.records()).unwrap();
    scored.append(&changed).unwrap();
    drop(scored);
    let scored = journal::read(&dir.path().join("scored.jsonl")).unwrap();
    assert_eq!(scored.len(), 12, "the last of each key");
    assert!(rescore(&task, &rows, &scored, &[], &path).unwrap().changed.is_empty());
    assert_eq!(runs.iter().map(|run| run.settings.seed).collect::<Vec<_>>(), [7, 8], "in the order they were run");
    assert_eq!(essence(&runs[0].result), essence(&runs[1].result));
    let right = runs[0].result.judged("accuracy").filter(|judged| judged.correct).count();
    assert_eq!(right, 3);

    // Samples that are not these rows' are refused.
    let refused = |task: &dyn Task, rows: &[Row]| rescore(task, rows, journal.records(), &[], &path).unwrap_err();
    let error = refused(&task, &sums(5));
    assert!(matches!(error, Error::JournalMismatch { row: 5, .. }), "{error}");
    assert!(error.to_string().contains("the split has only 5 rows"), "{error}");
    let mut others = sums(6);
    others.swap(0, 1);
    assert!(refused(&task, &others).to_string().contains("asks something else than it answers"));
    let mbpp = Mbpp::new(Tools::default());
    assert!(refused(&mbpp, &rows).to_string().contains("it is of task `arithmetic`, not `mbpp`"));
}

fn reported(task: &dyn Task, rows: &[Row], settings: &RunSettings) -> Report {
    let evaluation = Evaluation::prepare(task, rows, &[], &Selection::default(), None).unwrap();
    let mut result = evaluation.run(settings, Scoring::Now, &mut sometimes_right, None, &mut (), &NEVER).unwrap();
    for sample in &mut result.samples {
        sample.seconds = 0.5;
    }
    let label = RunLabel { series: "L2D".into(), steps: 15, guidance: Some(2.0) };
    let run = RunReport::new(task, Profile::Exact, label, settings, &result);
    let described = TaskReport::new(task, Profile::Exact, evaluation.counts(), Some("hash"), &[]);
    Report::new(described, json!({"name": "tiny"}), vec![(run, &result)])
}

#[test]
fn several_answers_give_pass_at_k() {
    let report = reported(&Arithmetic::default(), &sums(4), &settings(12));
    let run = &report.runs[0];
    assert_eq!(run.pass_at_k.iter().map(|pass| pass.k).collect::<Vec<_>>(), [1, 2, 4, 5, 8, 10, 12]);
    // Two questions with 11 of 12 right, two with all.
    assert!((run.pass_at(1).unwrap().mean - (11.0 / 12.0 + 1.0) / 2.0).abs() < 1e-12);
    assert!((run.pass_at(2).unwrap().mean - 1.0).abs() < 1e-12);
    let markdown = report.to_markdown();
    assert!(markdown.contains("pass@5 %") && markdown.contains("pass@k: by accuracy, unbiased."), "{markdown}");
    let csv = report.to_csv().unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 1 + 1 + 7);
    assert!(lines[1].starts_with("arithmetic,1,L2D,15,2,7,accuracy,exact,0.9583333333333334,"), "{}", lines[1]);
    assert!(lines[5].starts_with("arithmetic,1,L2D,15,2,7,pass@5,exact,1,"), "{}", lines[5]);
    let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(json["results"]["arithmetic"]["pass@2,none"], 1.0);
    assert_eq!(json["configs"]["arithmetic"]["repeats"], 12);
}

#[test]
fn published_numbers_stand_beside_ours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("paper.toml");
    let text =
        "name = \"paper\"\nsource = \"a table\"\n[[scores]]\ntask = \"arithmetic\"\nsteps = 15\npercent = 41.25\n";
    std::fs::write(&path, text).unwrap();
    let published = Published::open(&path).unwrap();
    let markdown = reported(&Arithmetic::default(), &sums(4), &settings(1)).to_markdown_beside(&published);
    assert!(markdown.contains("| paper % |") && markdown.contains("|    41.2 |"), "{markdown}");
    assert!(markdown.contains("paper: a table."), "{markdown}");
    std::fs::write(&path, text.replace("percent", "score")).unwrap();
    assert!(matches!(Published::open(&path), Err(Error::TaskFile { .. })));
}

#[test]
fn another_number_of_rows_than_published_is_said() {
    let mut report = reported(&Arithmetic::default(), &sums(4), &settings(1));
    report.task.rows.official = Some(5);
    let markdown = report.to_markdown();
    assert!(markdown.contains("**The split has 4 rows here and 5 as published"), "{markdown}");
}

#[test]
fn answers_along_the_time_are_scored_as_the_final_ones() {
    let (task, rows) = (Arithmetic::default(), sums(4));
    let evaluation = Evaluation::prepare(&task, &rows, &[], &Selection::default(), None).unwrap();
    let mut generator = |requests: &[GenerateRequest]| -> Result<Vec<Completion>, BoxError> {
        let answer = |request: &GenerateRequest| {
            let along = |t: f64, right: bool, agreeing| Guessed {
                t,
                text: format!("={}", request.row + 1 + usize::from(!right)),
                agreeing,
            };
            let along = vec![along(0.0, request.row == 0, 1), along(0.5, request.row < 3, 4)];
            Completion { along, ..said(format!("={}", request.row + 1)) }
        };
        Ok(requests.iter().map(answer).collect())
    };
    let result = evaluation.run(&settings(1), Scoring::Now, &mut generator, None, &mut (), &NEVER).unwrap();
    let label = RunLabel { series: "L2D".into(), steps: 15, guidance: None };
    let run = RunReport::new(&task, Profile::Exact, label, &settings(1), &result);
    let found: Vec<(f64, f64, f64)> = run.along.iter().map(|at| (at.t, at.score.mean, at.agreement)).collect();
    assert_eq!(found, [(0.0, 0.25, 0.2), (0.5, 0.75, 0.8)]);
}

#[test]
fn the_longest_prompts_come_first_and_answers_stay_in_order() {
    let lines = ["1+1", "11111+1", "111+1", "11+1"]
        .map(|question| format!("{{\"question\": \"{question}\", \"answer\": \"2\"}}\n"));
    let rows = from_jsonl("sums.jsonl", lines.concat().as_bytes()).unwrap();
    let task = Arithmetic::default();
    let evaluation = Evaluation::prepare(&task, &rows, &[], &Selection::default(), None).unwrap();
    let mut seen = Vec::new();
    let mut generator = |requests: &[GenerateRequest]| {
        seen.extend(requests.iter().map(|request| request.row));
        sometimes_right(requests)
    };
    let result = evaluation.run(&settings(1), Scoring::Now, &mut generator, None, &mut (), &NEVER).unwrap();
    assert_eq!(seen, [1, 2, 3, 0]);
    assert_eq!(result.samples.iter().map(|sample| sample.row).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn questions_with_the_same_shots_stay_together() {
    let row = |subject: &str, question: &str| {
        json!({"question": question, "subject": subject, "choices": ["a", "b", "c", "d"], "answer": 0}).to_string()
            + "\n"
    };
    let shots = from_jsonl("dev.jsonl", (row("x", "1") + &row("y", "2")).as_bytes()).unwrap();
    let asked = row("x", "?") + &row("y", "??????") + &row("x", "???") + &row("y", "????");
    let rows = from_jsonl("test.jsonl", asked.as_bytes()).unwrap();
    let mut task = l2d_eval::tasks::by_name("mmlu", &Tools::default()).unwrap();
    task.set_shots(1).unwrap();
    let evaluation = Evaluation::prepare(task.as_ref(), &rows, &shots, &Selection::default(), None).unwrap();
    let mut seen = Vec::new();
    let mut generator = |requests: &[GenerateRequest]| {
        seen.extend(requests.iter().map(|request| request.row));
        sometimes_right(requests)
    };
    evaluation.run(&settings(1), Scoring::Now, &mut generator, None, &mut (), &NEVER).unwrap();
    assert_eq!(seen, [2, 0, 1, 3], "by subject, and in each the longest first");
}

/// Passes programs that hold `return x + 1`, and counts its calls.
#[derive(Default)]
struct Reader(AtomicUsize, u32);

impl CodeRunner for Reader {
    fn run(&self, program: &str) -> Result<CodeVerdict, BoxError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        if program.contains("boom") {
            return Err("the cell is broken".into());
        }
        Ok(if program.contains("return x + 1") {
            CodeVerdict::Passed
        } else if program.contains("Here is") {
            CodeVerdict::Failed("SyntaxError: invalid syntax".to_owned())
        } else {
            CodeVerdict::Failed("AssertionError".to_owned())
        })
    }

    fn identity(&self) -> String {
        format!("reader {}", self.1)
    }
}

#[test]
fn programs_are_read_in_three_ways_and_equal_ones_run_once() {
    let row = from_jsonl(
        "humaneval.jsonl",
        json!({
            "prompt": "def f(x):\n    \"\"\"Add one.\"\"\"\n", "canonical_solution": "    return x + 1\n", "entry_point": "f",
            "test": "def check(c):\n    assert c(1) == 2\n",
        })
        .to_string()
        .as_bytes(),
    )
    .unwrap()
    .remove(0);
    let reader = Arc::new(Reader::default());
    let task = HumanEval::new(Tools { code: Some(reader.clone()) });
    let problem = task.problem(&row).unwrap();
    let verdicts = |completion: &str| {
        let scores = task.score(&problem, completion).unwrap();
        ["accuracy", "paper", "bigcode"].map(|metric| (scores[metric].correct, scores[metric].extracted.is_some()))
    };
    assert_eq!(verdicts("    return x + 1\n"), [(true, true); 3]);
    assert_eq!(reader.0.load(Ordering::Relaxed), 1, "three readings, one program");
    assert_eq!(verdicts("    return x\n"), [(false, true); 3]);
    let chatty = "Here is the code:\n```python\ndef f(x):\n    return x\n```";
    assert_eq!(verdicts(chatty), [(false, true), (false, false), (false, false)], "no Python is no answer");
    let after = "    pass\n\nprint('return x + 1')\n";
    assert_eq!(verdicts(after), [(true, true), (true, true), (false, true)], "bigcode stops at a print");
    assert!(matches!(task.score(&problem, "boom"), Err(Error::Code(_))));
    let error = HumanEval::new(Tools::default()).score(&problem, "").unwrap_err();
    assert_eq!(error.to_string(), "humaneval: its answers are programs, and there is nothing to run them in");
}

#[test]
fn programs_that_were_judged_are_not_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let row = json!({"text": "Add one.", "code": "def f(x):\r\n    return x + 1", "test_list": ["assert f(1) == 2"],
        "test_setup_code": "g = f", "task_id": 1});
    let rows = from_jsonl("mbpp.jsonl", row.to_string().as_bytes()).unwrap();
    let reader = Arc::new(Reader::default());
    let mut task = Mbpp::new(Tools { code: Some(reader.clone()) });
    task.set_shots(0).unwrap();
    let problem = task.problem(&rows[0]).unwrap();
    assert_eq!(problem.question, "\"\"\"\nAdd one.\nassert f(1) == 2\n\"\"\"\n");
    assert_eq!(problem.tests.as_ref().unwrap().checks, "g = f\nassert f(1) == 2");
    let evaluation = Evaluation::prepare(&task, &rows, &[], &Selection::default(), None).unwrap();
    let mut journal = Journal::open(dir.path().join("mbpp.jsonl")).unwrap();
    let mut generator = |requests: &[GenerateRequest]| -> Result<Vec<Completion>, BoxError> {
        Ok(requests
            .iter()
            .map(|request| said(format!("{}\n# {}", "def f(x):\n    return x + 1", request.sample)))
            .collect())
    };
    for _ in 0..2 {
        let result =
            evaluation.run(&settings(3), Scoring::Now, &mut generator, Some(&mut journal), &mut (), &NEVER).unwrap();
        assert!(result.judged("accuracy").all(|judged| judged.correct));
        assert_eq!(reader.0.load(Ordering::Relaxed), 3);
    }
    let Rescoring { runs, .. } = rescore(&task, &rows, journal.records(), &[], Path::new("mbpp")).unwrap();
    assert_eq!((runs[0].result.samples.len(), reader.0.load(Ordering::Relaxed)), (3, 6), "scoring again runs them");

    // Another judge's verdicts are not taken for this one's; once it has judged, they are its own.
    let other = Arc::new(Reader(AtomicUsize::new(0), 1));
    let mut task = Mbpp::new(Tools { code: Some(other.clone()) });
    task.set_shots(0).unwrap();
    let evaluation = Evaluation::prepare(&task, &rows, &[], &Selection::default(), None).unwrap();
    for _ in 0..2 {
        evaluation.run(&settings(3), Scoring::Now, &mut generator, Some(&mut journal), &mut (), &NEVER).unwrap();
        assert_eq!(other.0.load(Ordering::Relaxed), 3);
    }
    assert!(journal.records().iter().all(|record| record.judge.as_deref() == Some("finder 3, reader 1")));
}

/// Options are as likely as a table says.
struct Table(Vec<Vec<f64>>, Vec<String>);

impl LikelihoodScorer for Table {
    fn length(&mut self, _question: &LikelihoodQuestion) -> Result<usize, BoxError> {
        Ok(1)
    }

    fn score(&mut self, questions: &[&LikelihoodQuestion]) -> Result<Vec<ScoredQuestion>, BoxError> {
        let mut all = Vec::new();
        for question in questions {
            self.1.push(question.context.clone());
            let options = self.0.remove(0).into_iter();
            let options = options.map(|log_probability| OptionLikelihood { log_probability, tokens: 2 }).collect();
            all.push(ScoredQuestion { options, context_tokens: 3 });
        }
        Ok(all)
    }
}

#[test]
fn the_likeliest_option_counts_and_shots_are_no_questions() {
    let dir = tempfile::tempdir().unwrap();
    let spec = r#"
        name = "capitals"
        version = 1
        split = "test"
        shot_split = "test"
        question = "{{ country }}?"
        answer = "{{ capital }}"
        [data]
        folder = "."
        [[metrics]]
        name = "same"
        [likelihood]
        context = "{{ country }}:"
        options = "options"
        index = "{{ place }}"
    "#;
    std::fs::write(dir.path().join("capitals.toml"), spec).unwrap();
    let row = |country: &str, options: [&str; 2], place: usize| {
        json!({"country": country, "capital": options[place], "options": options, "place": place}).to_string() + "\n"
    };
    let lines =
        row("Italy", ["Rome", "Milan"], 0) + &row("Peru", ["Lima", "Arequipa"], 1) + &row("Fiji", ["Suva", "Nadi"], 1);
    let rows = from_jsonl("test.jsonl", lines.as_bytes()).unwrap();
    let named = dir.path().join("capitals.toml").display().to_string();
    let mut task = ByLikelihood::new(l2d_eval::tasks::by_name(&named, &Tools::default()).unwrap()).unwrap();
    let asked = |task: &ByLikelihood, table: Vec<Vec<f64>>, journal: &str| {
        let mut scorer = Table(table, Vec::new());
        let evaluation =
            LikelihoodEvaluation::prepare(task, &rows, &rows, &Selection::default(), 99, &mut scorer).unwrap();
        let mut journal = Journal::open(dir.path().join(journal)).unwrap();
        let result = evaluation.run(&settings(1), &mut scorer, &mut journal, &mut (), &NEVER).unwrap();
        let right = |metric: &str| result.judged(metric).filter(|judged| judged.correct).count();
        (evaluation.counts(), right("acc"), right("acc_norm"), scorer.1)
    };
    // Peru: -5 against -8 for 4 and 8 letters: the other by length. Fiji: the second both ways.
    let table = vec![vec![-1.0, -9.0], vec![-5.0, -8.0], vec![-3.0, -2.0]];
    let (counts, acc, acc_norm, contexts) = asked(&task, table.clone(), "none");
    assert_eq!((counts.questions, acc, acc_norm), (3, 2, 3));
    assert_eq!(contexts, ["Italy:", "Peru:", "Fiji:"]);
    task.set_shots(1).unwrap();
    let (counts, acc, acc_norm, contexts) = asked(&task, table[1..].to_vec(), "one");
    assert_eq!((counts.questions, counts.shots, acc, acc_norm), (2, 1, 1, 2));
    assert_eq!(contexts, ["Italy: Rome\n\nPeru:", "Italy: Rome\n\nFiji:"]);
}
