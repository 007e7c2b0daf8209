//! Whole evaluations with a decoder that looks answers up: resumption, dropping, stopping, reports.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use l2d_eval::metric::{PairedDifference, Proportion};
use l2d_eval::plot::AccuracyPlot;
use l2d_eval::report::{Report, RunLabel, RunReport, TaskReport, describe_difference, markdown_table};
use l2d_eval::rows::{Row, from_jsonl, read_split};
use l2d_eval::task::{Profile, Role, Turn};
use l2d_eval::tasks::{Arithmetic, Gsm8k};
use l2d_eval::{
    BoxError, Completion, Error, Evaluation, FinishReason, GenerateRequest, Generator, Journal, LengthLimit, Progress,
    RowLength, RunSettings, Sample, Scoring, Selection, Task,
};
use serde_json::json;

static NEVER: AtomicBool = AtomicBool::new(false);
const ALL: Selection = Selection { limit: None, rows: None, shard: None };

/// Sums `i+1`, the first `count` of them.
fn sums(count: usize) -> Vec<Row> {
    let lines: String =
        (0..count).map(|i| format!("{{\"question\": \"{i}+1\", \"answer\": \"{i}+1={}\"}}\n", i + 1)).collect();
    from_jsonl("sums.jsonl", lines.as_bytes()).unwrap()
}

fn settings(samples: usize) -> RunSettings {
    RunSettings { samples, batch_size: 4, seed: 7, generation: json!({"steps": 15, "temperature": 1.0}) }
}

/// Right on every row but those in `wrong`, and keeps what it was asked.
struct Scripted {
    wrong: HashSet<usize>,
    asked: Vec<(usize, usize)>,
    fail_after: usize,
}

impl Scripted {
    fn new(wrong: impl IntoIterator<Item = usize>) -> Self {
        Self { wrong: wrong.into_iter().collect(), asked: Vec::new(), fail_after: usize::MAX }
    }
}

impl Generator for Scripted {
    fn generate(&mut self, requests: &[GenerateRequest]) -> Result<Vec<Completion>, BoxError> {
        if self.asked.len() >= self.fail_after {
            return Err("the power went out".into());
        }
        self.asked.extend(requests.iter().map(|request| (request.row, request.sample)));
        let answer = |request: &GenerateRequest| {
            let question = &request.turns.last().expect("a question").content;
            let first: usize = question.split('+').next().unwrap_or_default().parse().unwrap_or(0);
            let sum = first + 1 + usize::from(self.wrong.contains(&request.row));
            Completion {
                text: format!("{question}={sum}"),
                tokens: 5,
                prompt_tokens: 6,
                evaluations: 70,
                finish: FinishReason::EndOfTurn,
                along: Vec::new(),
            }
        };
        Ok(requests.iter().map(answer).collect())
    }
}

#[test]
fn an_interrupted_run_goes_on_without_asking_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("samples.jsonl");
    let (task, rows) = (Arithmetic::default(), sums(10));
    let evaluation = Evaluation::prepare(&task, &rows, &[], &ALL, None).unwrap();
    let mut uninterrupted = Scripted::new([3]);
    let whole = evaluation.run(&settings(2), Scoring::Now, &mut uninterrupted, None, &mut (), &NEVER).unwrap();
    assert_eq!(uninterrupted.asked.len(), 20);

    let mut failing = Scripted { fail_after: 8, ..Scripted::new([3]) };
    let mut journal = Journal::open(&path).unwrap();
    let error =
        evaluation.run(&settings(2), Scoring::Now, &mut failing, Some(&mut journal), &mut (), &NEVER).unwrap_err();
    assert_eq!(error.to_string(), "generating failed: the power went out");
    drop(journal);

    let mut rest = Scripted::new([3]);
    let mut journal = Journal::open(&path).unwrap();
    let resumed = evaluation.run(&settings(2), Scoring::Now, &mut rest, Some(&mut journal), &mut (), &NEVER).unwrap();
    assert_eq!(rest.asked.len(), 12);
    assert!(rest.asked.iter().all(|asked| !failing.asked.contains(asked)));
    let essence = |samples: &[Sample]| {
        samples.iter().map(|s| (s.row, s.sample, s.completion.clone(), s.scores.clone())).collect::<Vec<_>>()
    };
    assert_eq!(essence(&resumed.samples), essence(&whole.samples));
    assert_eq!(resumed.samples.iter().filter(|sample| sample.resumed).count(), 8);
}

#[test]
fn other_settings_do_not_take_each_others_samples() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path().join("samples.jsonl")).unwrap();
    let (task, rows) = (Arithmetic::default(), sums(3));
    let evaluation = Evaluation::prepare(&task, &rows, &[], &ALL, None).unwrap();
    let mut asked = |settings: &RunSettings| {
        let mut generator = Scripted::new([]);
        evaluation.run(settings, Scoring::Now, &mut generator, Some(&mut journal), &mut (), &NEVER).unwrap();
        generator.asked.len()
    };
    assert_eq!(asked(&settings(1)), 3);
    assert_eq!(asked(&settings(1)), 0);
    assert_eq!(asked(&RunSettings { batch_size: 1, ..settings(1) }), 0, "the batch size changes no sample");
    assert_eq!(asked(&settings(2)), 3, "only the second samples are new");
    assert_eq!(asked(&RunSettings { seed: 8, ..settings(1) }), 3);
    assert_eq!(asked(&RunSettings { generation: json!({"steps": 7}), ..settings(1) }), 3);
}

#[test]
fn scores_are_judged_anew_from_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path().join("samples.jsonl")).unwrap();
    let rows = sums(2);
    let run = |task: &dyn Task, journal: &mut Journal, generator: &mut Scripted| {
        let evaluation = Evaluation::prepare(task, &rows, &[], &ALL, None).unwrap();
        let result = evaluation.run(&settings(1), Scoring::Now, generator, Some(journal), &mut (), &NEVER).unwrap();
        Proportion::of(result.judged("accuracy")).unwrap().correct
    };
    assert_eq!(run(&Arithmetic::default(), &mut journal, &mut Scripted::new([])), 2);
    let other_place = l2d_eval::tasks::AnswerPlace::AfterLast("#### ".to_owned());
    let mut untouched = Scripted::new([]);
    let elsewhere = Arithmetic { answer_place: other_place, ..Arithmetic::default() };
    // The references have no such marker either, so the problems cannot be scored.
    assert!(matches!(Evaluation::prepare(&elsewhere, &rows, &[], &ALL, None), Err(Error::NoRows { .. })));
    let last = Arithmetic { answer_place: l2d_eval::tasks::AnswerPlace::LastNumber, ..Arithmetic::default() };
    assert_eq!(run(&last, &mut journal, &mut untouched), 2);
    assert!(untouched.asked.is_empty());
}

#[test]
fn a_cancelled_run_keeps_what_is_finished() {
    struct CancelAfterOneBatch<'a>(&'a AtomicBool, Vec<usize>);
    impl Progress for CancelAfterOneBatch<'_> {
        fn begin(&mut self, total: usize, resumed: usize) {
            self.1.extend([total, resumed]);
        }
        fn batch(&mut self, finished: &[Sample], so_far: Option<Proportion>) {
            self.1.extend([finished.len(), so_far.expect("judged").samples]);
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let cancel = AtomicBool::new(false);
    let (task, rows) = (Arithmetic::default(), sums(10));
    let evaluation = Evaluation::prepare(&task, &rows, &[], &ALL, None).unwrap();
    let mut progress = CancelAfterOneBatch(&cancel, Vec::new());
    let result =
        evaluation.run(&settings(1), Scoring::Now, &mut Scripted::new([]), None, &mut progress, &cancel).unwrap();
    assert!(result.interrupted);
    assert_eq!(result.samples.len(), 4);
    assert_eq!(progress.1, [10, 0, 4, 4]);
}

#[test]
fn a_cancelled_completion_is_neither_counted_nor_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path().join("samples.jsonl")).unwrap();
    let (task, rows) = (Arithmetic::default(), sums(3));
    let evaluation = Evaluation::prepare(&task, &rows, &[], &ALL, None).unwrap();
    let mut generator = |requests: &[GenerateRequest]| -> Result<Vec<Completion>, BoxError> {
        let mut completions = Scripted::new([]).generate(requests)?;
        completions[1].finish = FinishReason::Cancelled;
        Ok(completions)
    };
    let result =
        evaluation.run(&settings(1), Scoring::Now, &mut generator, Some(&mut journal), &mut (), &NEVER).unwrap();
    assert!(result.interrupted);
    assert_eq!((result.samples.len(), journal.len()), (2, 2));
}

#[test]
fn a_generator_that_miscounts_is_refused() {
    let (task, rows) = (Arithmetic::default(), sums(3));
    let evaluation = Evaluation::prepare(&task, &rows, &[], &ALL, None).unwrap();
    let mut none = |_: &[GenerateRequest]| -> Result<Vec<Completion>, BoxError> { Ok(Vec::new()) };
    let error = evaluation.run(&settings(1), Scoring::Now, &mut none, None, &mut (), &NEVER).unwrap_err();
    assert!(matches!(error, Error::CompletionCount { expected: 3, found: 0 }), "{error}");
    for wrong in [RunSettings { samples: 0, ..settings(1) }, RunSettings { batch_size: 0, ..settings(1) }] {
        let error = evaluation.run(&wrong, Scoring::Now, &mut none, None, &mut (), &NEVER).unwrap_err();
        assert!(matches!(error, Error::Setting { .. }), "{error}");
    }
}

#[test]
fn long_rows_and_rows_without_an_answer_are_counted() {
    let mut rows = sums(5);
    rows.extend(from_jsonl("more.jsonl", br#"{"question": "why?", "answer": "because"}"#).unwrap());
    let task = Arithmetic::default();
    let measure = |turns: &[Turn], reference: &str| -> Result<RowLength, BoxError> {
        let prompt = turns.iter().map(|turn| turn.content.len()).sum::<usize>();
        Ok(RowLength { prompt, solution: if reference == "2+1=3" { 100 } else { 0 } })
    };
    let limit = LengthLimit { measure: &measure, max_tokens: 50, context: usize::MAX };
    let evaluation = Evaluation::prepare(&task, &rows, &[], &ALL, Some(&limit)).unwrap();
    let counts = evaluation.counts();
    assert_eq!((counts.rows, counts.too_long, counts.without_answer, counts.questions), (6, 1, 1, 4));
    assert_eq!(evaluation.prompts().map(|(row, _)| row).collect::<Vec<_>>(), [0, 1, 3, 4]);
    let evaluation = Evaluation::prepare(&task, &rows, &[], &Selection::first(2), Some(&limit)).unwrap();
    assert_eq!((evaluation.counts().rows, evaluation.counts().questions), (2, 2));

    // Every prompt has at least three characters here, and the task may answer with 128 tokens.
    let small = LengthLimit { measure: &measure, max_tokens: 50, context: 130 };
    let error = Evaluation::prepare(&task, &rows, &[], &ALL, Some(&small)).err().unwrap();
    assert!(matches!(error, Error::ShotsTooLong { prompt: 3, completion: 128, context: 130, .. }), "{error}");
    let mut brief = Arithmetic::default();
    brief.set_max_new_tokens(20);
    let evaluation = Evaluation::prepare(&brief, &rows, &[], &ALL, Some(&small)).unwrap();
    assert_eq!((evaluation.counts().questions, described(&evaluation).max_new_tokens), (4, 20));

    let none = LengthLimit { measure: &measure, max_tokens: 0, context: usize::MAX };
    let error = Evaluation::prepare(&task, &rows, &[], &ALL, Some(&none)).err().unwrap();
    assert!(matches!(error, Error::ShotsTooLong { max_tokens: 0, .. }), "{error}");
    let unanswered = from_jsonl("odd.jsonl", br#"{"question": "why?", "answer": "because"}"#).unwrap();
    let error = Evaluation::prepare(&task, &unanswered, &[], &ALL, None).err().unwrap();
    assert_eq!(
        error.to_string(),
        "arithmetic: no row left to evaluate (1 of 1 rows looked at, 0 shots themselves, 1 without an answer)"
    );
    assert!(matches!(Evaluation::prepare(&task, &[], &[], &ALL, None), Err(Error::NoRows { .. })));
    let failing = |_: &[Turn], _: &str| -> Result<RowLength, BoxError> { Err("no template".into()) };
    let limit = LengthLimit { measure: &failing, max_tokens: 50, context: usize::MAX };
    let error = Evaluation::prepare(&task, &rows, &[], &ALL, Some(&limit)).err().unwrap();
    assert_eq!(error.to_string(), "sums.jsonl: line 1: rendering the prompt failed: no template");
}

#[test]
fn gsm8k_is_asked_with_five_solved_problems_as_turns() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let task = Gsm8k::default();
    let (train, _) = read_split(&fixtures, &task, task.shot_split()).unwrap();
    let (test, _) = read_split(&fixtures, &task, task.split()).unwrap();
    let evaluation = Evaluation::prepare(&task, &test, &train, &Selection::first(2), None).unwrap();
    let (row, turns) = evaluation.prompts().nth(1).unwrap();
    assert_eq!((row, turns.len()), (1, 11));
    for (index, turn) in turns.iter().enumerate() {
        assert_eq!(turn.role, if index % 2 == 0 { Role::User } else { Role::Assistant });
        if index < 10 {
            let column = if index % 2 == 0 { "question" } else { "answer" };
            assert_eq!(turn.content, train[index / 2].text(column).unwrap());
        }
    }
    assert_eq!(turns[10].content, test[1].text("question").unwrap());

    let error = Evaluation::prepare(&task, &test, &train[..4], &ALL, None).err().unwrap();
    assert_eq!(error.to_string(), "gsm8k: 5 shots wanted, the shots' split has only 4 rows");
    let columns = from_jsonl("odd.jsonl", br#"{"problem": "1+1"}"#).unwrap();
    let error = Evaluation::prepare(&task, &columns, &train, &ALL, None).err().unwrap();
    assert_eq!(error.to_string(), "odd.jsonl: line 1: no column `question` (there is `problem`)");
}

#[test]
fn requests_number_completions_whatever_the_batch() {
    let (task, rows) = (Arithmetic::default(), sums(5));
    let evaluation = Evaluation::prepare(&task, &rows, &[], &ALL, None).unwrap();
    let numbers = |batch_size| {
        let mut seen = Vec::new();
        let mut generator = |requests: &[GenerateRequest]| {
            seen.extend(requests.iter().map(|r| (r.row, r.sample, r.seed, r.sequence)));
            Scripted::new([]).generate(requests)
        };
        let settings = RunSettings { batch_size, ..settings(2) };
        evaluation.run(&settings, Scoring::Now, &mut generator, None, &mut (), &NEVER).unwrap();
        seen
    };
    let seen = numbers(3);
    assert_eq!(seen, numbers(10));
    let sequences: HashSet<u64> = seen.iter().map(|(_, _, _, sequence)| *sequence).collect();
    assert_eq!(sequences.len(), 10);
    assert!(seen.iter().all(|(_, _, seed, _)| *seed == 7));
}

fn described(evaluation: &Evaluation<'_>) -> TaskReport {
    TaskReport::new(evaluation.task(), Profile::Exact, evaluation.counts(), Some(evaluation.prompt_hash()), &[])
}

/// Two runs over ten sums with made-up times, so that the report is the same everywhere.
fn report() -> Report {
    let (task, rows) = (Arithmetic::default(), sums(10));
    let evaluation = Evaluation::prepare(&task, &rows, &[], &ALL, None).unwrap();
    let run = |steps: usize, wrong: &[usize]| {
        let settings = RunSettings { generation: json!({"steps": steps}), ..settings(1) };
        let mut generator = Scripted::new(wrong.iter().copied());
        let mut result = evaluation.run(&settings, Scoring::Now, &mut generator, None, &mut (), &NEVER).unwrap();
        for sample in &mut result.samples {
            sample.seconds = 0.5;
        }
        let label = RunLabel { series: "L2D".to_owned(), steps, guidance: None };
        (RunReport::new(&task, Profile::Exact, label, &settings, &result), result)
    };
    let runs = [run(1, &[0, 2, 4, 6]), run(15, &[4])];
    let runs = runs.iter().map(|(run, result)| (run.clone(), result)).collect();
    Report::new(described(&evaluation), json!({"base": "tiny", "name": "tiny"}), runs)
}

#[test]
fn the_report_as_markdown() {
    insta::assert_snapshot!(report().to_markdown(), @r"
    ## arithmetic (version 1)

    | steps |  accuracy % | format % | samples | evaluations/token | tokens/s |
    | -----:| -----------:| --------:| -------:| -----------------:| --------:|
    |     1 | 60.0 ± 16.3 |    100.0 |      10 |             14.00 |     10.0 |
    |    15 | 90.0 ± 10.0 |    100.0 |      10 |             14.00 |     10.0 |

    10 of 10 rows asked; 0 shots, at most 128 new tokens; prompts ce759156b2691a64f38c068157aab553.
    Profile `exact` quotes accuracy. ± is the standard error, clustered by question. accuracy (exact): the worked solution's final number, compared as numbers. evaluations/token: the closing one and that of the plain LM at t = 0 included.
    L2D at 15 steps, seed 7 − L2D at 1 step, seed 7: +30.0 points ± 15.3 (95 %: +0.1 to +59.9), better on 3 and worse on 0 of 10 questions.
    ");
}

#[test]
fn the_report_as_json_reads_back() {
    let report = report();
    let text = report.to_json().unwrap();
    let back: Report = serde_json::from_str(&text).unwrap();
    // The last bit of a float may be lost on the way.
    assert_eq!((&back.task, &back.model), (&report.task, &report.model));
    assert_eq!(back.runs[1].settings, report.runs[1].settings);
    assert!((back.runs[1].accuracy().unwrap().mean - 0.9).abs() < 1e-12);
    insta::assert_snapshot!("report_json", text);
}

#[test]
fn a_table_of_several_series_names_them() {
    let mut runs = report().runs;
    runs[1].label.series = "a|b".to_owned();
    runs[1].interrupted = true;
    insta::assert_snapshot!(markdown_table(&runs), @r"
    | series | steps |  accuracy % | format % | samples | evaluations/token | tokens/s |
    |:------ | -----:| -----------:| --------:| -------:| -----------------:| --------:|
    | L2D    |     1 | 60.0 ± 16.3 |    100.0 |      10 |             14.00 |     10.0 |
    | a\|b   |   15* | 90.0 ± 10.0 |    100.0 |      10 |             14.00 |     10.0 |
    ");
    assert_eq!(markdown_table(&[]), "");
}

#[test]
fn the_difference_of_two_runs_in_words() {
    let (task, rows) = (Arithmetic::default(), sums(10));
    let evaluation = Evaluation::prepare(&task, &rows, &[], &ALL, None).unwrap();
    let run = |wrong: &[usize]| {
        let mut generator = Scripted::new(wrong.iter().copied());
        evaluation.run(&settings(1), Scoring::Now, &mut generator, None, &mut (), &NEVER).unwrap()
    };
    let (first, second) = (run(&[4]), run(&[0, 2, 4, 6]));
    let difference = PairedDifference::of(first.judged("accuracy"), second.judged("accuracy")).unwrap();
    insta::assert_snapshot!(describe_difference("15 steps", "1 step", &difference), @"15 steps − 1 step: +30.0 points ± 15.3 (95 %: +0.1 to +59.9), better on 3 and worse on 0 of 10 questions");
}

#[test]
fn the_plot_of_a_report_is_saved_as_svg_and_png() {
    let dir = tempfile::tempdir().unwrap();
    let plot = |title: &str| AccuracyPlot::from_runs(title, "accuracy, %", &report().runs).draw().unwrap();
    let [svg, png] = plot("Sums").save(&dir.path().join("out/accuracy.v1")).unwrap();
    assert!(svg.ends_with("out/accuracy.v1.svg") && png.ends_with("out/accuracy.v1.png"));
    assert!(std::fs::read_to_string(svg).unwrap().contains("Sums"));
    let bytes = std::fs::read(png).unwrap();
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    let side = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((side(16), side(20)), (1640, 1000));
    // Text is drawn from the embedded font: titles of equal length give different pictures.
    assert_ne!(plot("Sums").png(1.0).unwrap(), plot("Sumo").png(1.0).unwrap());
    for scale in [0.0, -1.0, f32::NAN, 1e6] {
        assert!(matches!(plot("Sums").png(scale), Err(Error::Plot(_))), "{scale}");
    }
}
