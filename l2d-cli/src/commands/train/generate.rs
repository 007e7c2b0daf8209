//! Validation by generating: the model under training answers a task's problems, with the decoder and the harness that
//! `l2d eval` uses.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::backend::Backend;
use l2d_core::cpu::WeightFormat;
use l2d_eval::report::{RunLabel, RunReport};
use l2d_eval::rows::{Row, read_split};
use l2d_eval::task::{Profile, Turn};
use l2d_eval::tasks::by_name;
use l2d_eval::{BoxError, Evaluation, LengthLimit, RunSettings, Scoring, Selection, Tools};
use l2d_infer::decode::{DecodeMode, DiffusionParams};
use l2d_infer::sampler::SamplingParams;
use l2d_train::{Evaluator, GenerationScore, TrainConfig};
use serde_json::json;

use crate::backend::BackendKind;
use crate::commands::eval;
use crate::error::CliError;
use crate::generator::{Guide, ModelGenerator};
use crate::model::{Model, Text};

/// A task's problems, read once, before the first update.
pub(super) struct Problems {
    task: Box<dyn l2d_eval::Task>,
    rows: Vec<Row>,
    shots: Vec<Row>,
    count: usize,
    batch_size: usize,
    seed: u64,
    budgets: Vec<usize>,
}

impl Problems {
    /// The problems that the settings name; `None` where they name no task.
    pub(super) fn read(config: &TrainConfig) -> Result<Option<Self>, CliError> {
        let settings = &config.generate;
        let (Some(name), Some(folder)) = (&settings.task, &settings.data) else { return Ok(None) };
        let mut task = by_name(name, &Tools::default())?;
        if task.scoring_is_costly() {
            return Err(CliError::Usage(format!(
                "generate.task: {name}'s answers are programs, which are not run while training: use `l2d eval` on a checkpoint"
            )));
        }
        if let Some(tokens) = settings.max_tokens {
            task.set_max_new_tokens(tokens);
        }
        let (rows, shots) = rows(task.as_ref(), Path::new(folder))?;
        let budgets = config.generate_steps();
        // A number of steps that cannot be met is refused now, not after hours.
        for &evaluations in &budgets {
            DiffusionParams { evaluations, ..DiffusionParams::default() }.check()?;
        }
        let (count, batch_size, seed) = (settings.problems, settings.batch_size, config.seed);
        Ok(Some(Self { task, rows, shots, count, batch_size, seed, budgets }))
    }
}

fn rows(task: &dyn l2d_eval::Task, folder: &Path) -> Result<(Vec<Row>, Vec<Row>), CliError> {
    let (rows, _) = read_split(folder, task, task.split())?;
    if task.shots() == 0 || task.shot_rows() == Some(0) {
        return Ok((rows, Vec::new()));
    }
    let (shots, _) = read_split(folder, task, task.shot_split())?;
    Ok((rows, shots))
}

/// Answers [`Problems`] with whatever model `decodable` makes of the one under training.
pub(super) struct Answers<'a, M, B: Backend> {
    pub(super) problems: Option<&'a Problems>,
    pub(super) text: &'a Text,
    pub(super) backend: BackendKind,
    pub(super) cancel: &'a AtomicBool,
    pub(super) decodable: &'a dyn Fn(&M) -> Model<B>,
}

impl<M, B: Backend> Answers<'_, M, B> {
    fn scores(&self, problems: &Problems, model: &Model<B>) -> Result<Option<Vec<GenerationScore>>, CliError> {
        let measure = |turns: &[Turn], solution: &str| eval::length(self.text, turns, solution);
        let context = model.lm().config.max_positions;
        let limit = LengthLimit { measure: &measure, max_tokens: eval::MAX_ROW_TOKENS, context };
        let task: &dyn l2d_eval::Task = problems.task.as_ref();
        let evaluation = Evaluation::prepare(
            task,
            &problems.rows,
            &problems.shots,
            &Selection::first(problems.count),
            Some(&limit),
        )?;
        let mut scores = Vec::new();
        for &steps in &problems.budgets {
            let params = DiffusionParams { evaluations: steps, ..DiffusionParams::default() };
            let mut generator = ModelGenerator {
                decoder: model.decoder(params, DecodeMode::Parallel)?,
                text: self.text,
                guide: Guide::All(None),
                sampling: SamplingParams::default(),
                beam: None,
                along: false,
                cancel: self.cancel,
                threads: self.backend.decode_threads(),
            };
            let settings = RunSettings {
                samples: 1,
                batch_size: problems.batch_size,
                seed: problems.seed,
                generation: json!({ "steps": steps }),
            };
            let result = evaluation.run(&settings, Scoring::Now, &mut generator, None, &mut (), self.cancel)?;
            if result.interrupted {
                return Ok(None);
            }
            let label = RunLabel { series: "training".to_owned(), steps, guidance: None };
            let report = RunReport::new(task, Profile::Exact, label, &settings, &result);
            let accuracy = report.accuracy().ok_or_else(|| {
                CliError::Usage(format!("{}: none of the problems fits the model's context", task.name()))
            })?;
            scores.push(GenerationScore {
                steps,
                accuracy: accuracy.mean,
                standard_error: accuracy.standard_error,
                problems: result.samples.len(),
            });
        }
        Ok(Some(scores))
    }
}

impl<M, B: Backend> Evaluator<M> for Answers<'_, M, B> {
    fn task(&self) -> &str {
        self.problems.map_or("none", |problems| problems.task.name())
    }

    fn generate(&mut self, model: &M) -> Result<Option<Vec<GenerationScore>>, BoxError> {
        let Some(problems) = self.problems else { return Ok(None) };
        let mut model = (self.decodable)(model);
        if self.backend.is_cpu() {
            model = model.packed(WeightFormat::F32);
        }
        Ok(self.scores(problems, &model)?)
    }
}
