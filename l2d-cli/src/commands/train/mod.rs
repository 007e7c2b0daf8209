//! `l2d train`: finetune a diffusion path, or the LM itself.

pub(crate) mod data;
mod generate;
pub(crate) mod learner;
pub(crate) mod precision;
pub(crate) mod settings;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_core::L2d;
use l2d_core::checkpoint::{Checkpoint, StoredDtype, save_adapter, save_peft, write_atomically};
use l2d_core::diffusion::DiffusionPath;
use l2d_core::lm::Lm;
use l2d_train::data::{Example, ExampleSource};
use l2d_train::optimiser::trainable_sizes;
use l2d_train::{
    FrozenWeights, ObjectiveKind, Outcome, RunDir, Storage, Task, TrainConfig, Trained, train_and_generate,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use self::generate::{Answers, Problems};
use self::learner::Learner;
use crate::args::TrainArgs;
use crate::backend::BackendKind;
use crate::commands::losses;
use crate::error::CliError;
use crate::export::export_model;
use crate::hub::name_of;
use crate::model::{Model, Text, load_base, on_interrupt};
use crate::progress::TrainProgress;

/// Runs the command.
pub(crate) fn run<B: Backend>(args: &TrainArgs, backend: BackendKind) -> Result<(), CliError> {
    let mut config = settings::settings(args)?;
    config.check()?;
    config.sources = data::sources(&args.source.data, &config)?;
    config.check()?;
    let cache = data::cache_folder(args.source.data_cache.as_deref())?;
    if args.from_scratch && config.objective != ObjectiveKind::Full {
        return Err(CliError::Usage("--from-scratch trains all weights: add --objective full".into()));
    }
    if args.resume && !args.out.exists() {
        return Err(CliError::Usage(format!("--resume: there is no folder {}", args.out.display())));
    }
    let device = Device::<B>::default();
    let dir = RunDir::create(&args.out)?;
    let cancel = on_interrupt()?;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let (lm, text) = if args.from_scratch {
        let checkpoint = Checkpoint::open_untrained(&args.model)?;
        let text = Text::of(&checkpoint);
        (Lm::<B>::init(&checkpoint.config, &mut rng, &device), text)
    } else {
        // On a CPU the frozen base is kept as its file stores it, for the objectives by hand.
        let stored = config.frozen_weights == FrozenWeights::Stored;
        let frozen = config.objective != ObjectiveKind::Full && backend.is_cpu() && stored;
        load_base::<B>(&args.model, args.lora.as_deref(), &device, frozen)?
    };
    let store = data::open(&config, &text, lm.config.max_positions, &cache, &cancel)?;
    let (examples, validation) = data::data(store, &config)?;
    let problems = Problems::read(&config)?;
    let storage = Storage { dir, resume: args.resume, notes: notes(args, &config) };
    // A folder in use keeps the settings it was started with; `train` refuses others.
    if storage.dir.checkpoints()?.is_empty() {
        let resolved = toml::to_string_pretty(&config).map_err(|e| CliError::Usage(format!("settings: {e}")))?;
        write_atomically(&args.out.join("config.toml"), |out| out.write_all(resolved.as_bytes()))?;
    }
    let rows = precision::table(&lm, &config, backend, if args.f16 { "f16" } else { "f32" });
    eprint!("number formats:\n{}", precision::written(&rows));

    let base = lm.config.num_parameters();
    let session = Session { config: &config, text: &text, storage, problems, backend, device, cancel: &cancel };
    match Learner::new(lm, &config, &args.out.join("config.toml"), backend, &mut rng)? {
        Learner::L2d(task, path) => {
            say_parameters::<B, _>(&*path, &config, base)?;
            let decodable = |path: &DiffusionPath<Autodiff<B>>| {
                Model::Joined(Box::new(L2d { lm: task.lm().clone(), path: path.valid() }))
            };
            let trained = session.go(&*task, *path, &examples, &validation, &decodable)?;
            let file = args.out.join("adapter.safetensors");
            let best = best_or_last(&*task, &trained)?;
            save_adapter(&file, &best.valid(), task.base(), &notes(args, &config), stored(args))?;
            finish(&trained, &args.out, &file)
        }
        Learner::Lm(task, lm) => {
            say_parameters::<B, _>(&*lm, &config, base)?;
            let decodable = |lm: &Lm<Autodiff<B>>| Model::Plain(Box::new(lm.valid()));
            let trained = session.go(&*task, *lm, &examples, &validation, &decodable)?;
            let folder = args.out.join("model");
            let best = best_or_last::<B, _>(&*task, &trained)?;
            export_model(&folder, &best.valid(), &text, stored(args))?;
            if config.objective == ObjectiveKind::Lora && args.lora.is_some() {
                // Its base is the model with the first adapter merged in, which no name stands for.
                eprintln!(
                    "no peft/ folder: with --lora the corrections fit the merged base alone; model/ has everything"
                );
            } else if config.objective == ObjectiveKind::Lora {
                let folder = args.out.join("peft");
                save_peft(&folder, best.valid(), &args.model.to_string_lossy())?;
                eprintln!("wrote {}", folder.display());
            }
            finish(&trained, &args.out, &folder)
        }
    }
}

/// How much is trained, and how much stays as it is.
fn say_parameters<B: Backend, M: Module<Autodiff<B>>>(
    model: &M,
    config: &TrainConfig,
    base: usize,
) -> Result<(), CliError> {
    let groups = config.parameter_groups()?;
    let sizes = trainable_sizes::<Autodiff<B>, _>(model);
    let all: usize = sizes.values().sum();
    let trained: usize = sizes.iter().filter(|(name, _)| groups.trains(name)).map(|(_, size)| size).sum();
    let frozen = if config.objective == ObjectiveKind::Full { all } else { base + all } - trained;
    eprintln!("trainable parameters: {trained} (frozen: {frozen})");
    Ok(())
}

/// The number format of what the run leaves behind; its checkpoints are always exact.
fn stored(args: &TrainArgs) -> StoredDtype {
    if args.f16 { StoredDtype::F16 } else { StoredDtype::F32 }
}

/// What a run needs beside its task, model and examples.
struct Session<'a, B: Backend> {
    config: &'a TrainConfig,
    text: &'a Text,
    storage: Storage,
    problems: Option<Problems>,
    backend: BackendKind,
    device: Device<B>,
    cancel: &'a AtomicBool,
}

impl<B: Backend> Session<'_, B> {
    fn go<T: Task<Autodiff<B>>>(
        &self,
        task: &T,
        model: T::Model,
        examples: &dyn ExampleSource,
        validation: &[Example],
        decodable: &dyn Fn(&T::Model) -> Model<B>,
    ) -> Result<Trained<T::Model>, CliError> {
        let mut progress = TrainProgress::new(self.config.total_steps(examples.len()));
        let Self { text, backend, cancel, problems, .. } = self;
        let mut answers = Answers { problems: problems.as_ref(), text, backend: *backend, cancel, decodable };
        let trained = train_and_generate(
            task,
            model,
            examples,
            validation,
            self.config,
            Some(&self.storage),
            &self.device,
            cancel,
            &mut progress,
            &mut answers,
        )?;
        if trained.steps == 0 {
            eprintln!("stopped before the first update: nothing was trained, nothing is written");
            return Err(CliError::Interrupted);
        }
        Ok(trained)
    }
}

/// The best weights, or the last ones where nothing was validated.
fn best_or_last<B: Backend, T: Task<Autodiff<B>>>(task: &T, trained: &Trained<T::Model>) -> Result<T::Model, CliError> {
    Ok(match &trained.best_weights {
        Some(folder) => task.load(trained.model.clone(), folder)?,
        None => trained.model.clone(),
    })
}

fn finish<M>(trained: &Trained<M>, run: &Path, written: &Path) -> Result<(), CliError> {
    if let Some(loss) = trained.best_validation {
        eprintln!("lowest validation loss: {loss:.4}");
    }
    if let Some(accuracy) = trained.best_generation {
        eprintln!("highest accuracy of generated answers: {:.1} %", 100.0 * accuracy);
    }
    losses::plot(run)?;
    eprintln!("wrote {}", written.display());
    match trained.outcome {
        Outcome::Finished => Ok(()),
        Outcome::StoppedEarly => {
            eprintln!("ended early after {} updates: the validation loss improved no more", trained.steps);
            Ok(())
        }
        Outcome::Interrupted => {
            eprintln!("stopped after {} updates; go on with the same command and --resume", trained.steps);
            Err(CliError::Interrupted)
        }
    }
}

fn notes(args: &TrainArgs, config: &TrainConfig) -> BTreeMap<String, String> {
    let paths = config.sources.iter().filter_map(|source| source.path.as_deref());
    let mut data: Vec<String> = paths.map(name_of).collect();
    data.dedup();
    BTreeMap::from([
        ("base_name".to_string(), name_of(&args.model)),
        ("data".to_string(), data.join(", ")),
        ("l2d_version".to_string(), env!("CARGO_PKG_VERSION").to_string()),
    ])
}
