//! `l2d train`: finetune a diffusion path, or the LM itself.

pub(crate) mod data;
mod generate;
pub(crate) mod learner;
pub(crate) mod precision;
pub(crate) mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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
use l2d_train::ranks::{Ranks, Threads};
use l2d_train::{
    FrozenWeights, ObjectiveKind, Observer, Outcome, RunDir, Silent, Storage, Task, TrainConfig, Trained,
    train_together,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use self::generate::{Answers, Problems};
use self::learner::Learner;
use crate::adapters::largest_tensor;
use crate::args::TrainArgs;
use crate::backend::{BackendKind, with_backend};
use crate::commands::losses;
use crate::error::CliError;
use crate::export::export_model;
use crate::hub::name_of;
use crate::model::{Model, Text, load_base, on_interrupt};
use crate::place::Place;
use crate::progress::TrainProgress;
use crate::ranks::{self, Joined, all_know, alone_failed, settle, together_failed};
use crate::selfcheck;

/// Runs the command: alone, on several devices of this machine, or as one of several processes.
pub(crate) fn run(args: &TrainArgs, place: &Place) -> Result<(), CliError> {
    let cancel = on_interrupt()?;
    let Joined { ranks, local } = ranks::join(args.ranks)?;
    let ranks = &*ranks;
    if ranks.size() == 1 {
        return with_backend!(place, B, devices => match &devices[..] {
            [device] => on_rank::<B>(args, place, device, &cancel, ranks),
            several => on_threads::<B>(args, place, several, &cancel),
        });
    }
    ranks::on_device(ranks, place, local, |place, entered| {
        with_backend!(place, B, devices => {
            entered.enter(ranks)?;
            on_rank::<B>(args, place, &devices[0], &cancel, ranks)
        })
    })
}

/// A thread and a replica for each device.
fn on_threads<B: Backend>(
    args: &TrainArgs,
    place: &Place,
    devices: &[Device<B>],
    cancel: &AtomicBool,
) -> Result<(), CliError> {
    let outcomes: Vec<Result<(), CliError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = Threads::new(devices.len())
            .into_iter()
            .zip(devices)
            .map(|(ranks, device)| {
                scope.spawn(move || {
                    let outcome = on_rank::<B>(args, place, device, cancel, &ranks);
                    outcome.map_err(|error| alone_failed(&ranks, error))
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    let errors = outcomes.into_iter().filter_map(Result::err);
    errors.min_by_key(|error| matches!(error, CliError::Elsewhere)).map_or(Ok(()), Err)
}

/// One rank's part.
fn on_rank<B: Backend>(
    args: &TrainArgs,
    place: &Place,
    device: &Device<B>,
    cancel: &AtomicBool,
    ranks: &dyn Ranks,
) -> Result<(), CliError> {
    let backend = place.kind;
    if place.self_check && !backend.is_cpu() {
        settle(ranks, selfcheck::training::<B>(device))?;
    }
    let prepared = settle(ranks, prepare::<B>(args, backend, device, ranks))?;
    let Prepared { config, dir, lm, text, cache, mut rng } = prepared;
    let storage = settle(ranks, storage(args, &config, dir))?;
    // The first one tokenises; the others find it done, where they see the same folder.
    let mut store = Ok(None);
    for turn in [ranks.is_first(), !ranks.is_first()] {
        if turn {
            store = data::open(&config, &text, lm.config.max_positions, &cache, cancel, ranks.is_first()).map(Some);
        }
        store = settle(ranks, store);
        if store.is_err() {
            break;
        }
    }
    let Some(store) = store? else { return Err(CliError::Elsewhere) };
    let (examples, validation) = settle(ranks, data::data(store, &config))?;
    let problems = if ranks.is_first() { Problems::read(&config) } else { Ok(None) };
    let problems = settle(ranks, problems)?;
    if ranks.is_first() {
        let rows = precision::table(&lm, &config, backend, if args.f16 { "f16" } else { "f32" });
        eprint!("number formats:\n{}", precision::written(&rows));
    }
    let base = lm.config.num_parameters();
    let learner = Learner::new(lm, &config, &args.out.join("config.toml"), backend, &mut rng);
    let session = Session { config: &config, text: &text, storage, problems, backend, device, cancel, ranks };
    match settle(ranks, learner)? {
        Learner::L2d(task, path) => {
            session.say_parameters(&*path, base)?;
            let decodable = |path: &DiffusionPath<Autodiff<B>>| {
                Model::Joined(Box::new(L2d { lm: task.lm().clone(), path: path.valid() }))
            };
            let trained = session.go(&*task, *path, &examples, &validation, &decodable)?;
            session.finish(&trained, &args.out, || {
                let file = args.out.join("adapter.safetensors");
                let best = best_or_last(&*task, &trained)?;
                save_adapter(&file, &best.valid(), task.base(), &notes(args, &config), stored(args))?;
                Ok(file)
            })
        }
        Learner::Lm(task, lm) => {
            session.say_parameters(&*lm, base)?;
            let decodable = |lm: &Lm<Autodiff<B>>| Model::Plain(Box::new(lm.valid()));
            let trained = session.go(&*task, *lm, &examples, &validation, &decodable)?;
            session.finish(&trained, &args.out, || {
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
                Ok(folder)
            })
        }
    }
}

/// What a rank has before it sees data.
struct Prepared<B: Backend> {
    config: TrainConfig,
    /// The run's folder, where it is this rank's to write.
    dir: Option<RunDir>,
    lm: Lm<B>,
    text: Text,
    cache: PathBuf,
    rng: ChaCha8Rng,
}

fn prepare<B: Backend>(
    args: &TrainArgs,
    backend: BackendKind,
    device: &Device<B>,
    ranks: &dyn Ranks,
) -> Result<Prepared<B>, CliError> {
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
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let dir = ranks.is_first().then(|| RunDir::create(&args.out)).transpose()?;
    let (lm, text) = if args.from_scratch {
        let checkpoint = Checkpoint::open_untrained(&args.model)?;
        let text = Text::of(&checkpoint);
        (Lm::<B>::init(&checkpoint.config, &mut rng, device), text)
    } else {
        // On a CPU the frozen base is kept as its file stores it, for the objectives by hand.
        let stored = config.frozen_weights == FrozenWeights::Stored;
        let frozen = config.objective != ObjectiveKind::Full && backend.is_cpu() && stored;
        load_base::<B>(&args.model, args.lora.as_deref(), device, frozen)?
    };
    // A chunk of logits is one tensor, too.
    if let Some(rows) = largest_tensor(device).map(|bytes| bytes / (4 * lm.config.vocab_size))
        && rows < config.head_chunk
    {
        if ranks.is_first() {
            eprintln!(
                "head_chunk: {} instead of {}, which is what this device can hold",
                rows.max(1),
                config.head_chunk
            );
        }
        config.head_chunk = rows.max(1);
    }
    Ok(Prepared { config, dir, lm, text, cache, rng })
}

/// The run's folder: the first rank's to write, the others' to read.
fn storage(args: &TrainArgs, config: &TrainConfig, own: Option<RunDir>) -> Result<Storage, CliError> {
    let writes = own.is_some();
    let dir = own.map_or_else(|| RunDir::shared(&args.out), Ok)?;
    let storage = Storage { dir, resume: args.resume, notes: notes(args, config) };
    // A folder in use keeps the settings it was started with; `train` refuses others.
    if writes && storage.dir.checkpoints()?.is_empty() {
        let resolved = toml::to_string_pretty(config).map_err(|e| CliError::Usage(format!("settings: {e}")))?;
        write_atomically(&args.out.join("config.toml"), |out| out.write_all(resolved.as_bytes()))?;
    }
    Ok(storage)
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
    device: &'a Device<B>,
    cancel: &'a AtomicBool,
    ranks: &'a dyn Ranks,
}

impl<B: Backend> Session<'_, B> {
    /// How much is trained, and how much stays as it is.
    fn say_parameters<M: Module<Autodiff<B>>>(&self, model: &M, base: usize) -> Result<(), CliError> {
        if !self.ranks.is_first() {
            return Ok(());
        }
        let groups = self.config.parameter_groups()?;
        let sizes = trainable_sizes::<Autodiff<B>, _>(model);
        let all: usize = sizes.values().sum();
        let trained: usize = sizes.iter().filter(|(name, _)| groups.trains(name)).map(|(_, size)| size).sum();
        let frozen = if self.config.objective == ObjectiveKind::Full { all } else { base + all } - trained;
        eprintln!("trainable parameters: {trained} (frozen: {frozen})");
        if self.ranks.size() > 1 {
            let (ranks, batch) = (self.ranks.size(), self.config.batch_size);
            eprintln!("{ranks} ranks share each batch of {batch} sequences");
        }
        Ok(())
    }

    fn go<T: Task<Autodiff<B>>>(
        &self,
        task: &T,
        model: T::Model,
        examples: &dyn ExampleSource,
        validation: &[Example],
        decodable: &dyn Fn(&T::Model) -> Model<B>,
    ) -> Result<Trained<T::Model>, CliError> {
        let Self { text, backend, cancel, problems, ranks, .. } = self;
        let mut progress = TrainProgress::new(self.config.total_steps(examples.len()));
        let observer: &mut dyn Observer = if ranks.is_first() { &mut progress } else { &mut Silent };
        let mut answers = Answers { problems: problems.as_ref(), text, backend: *backend, cancel, decodable };
        let trained = train_together(
            task,
            model,
            examples,
            validation,
            self.config,
            Some(&self.storage),
            self.device,
            cancel,
            observer,
            &mut answers,
            *ranks,
        );
        let trained = trained.map_err(|error| together_failed(*ranks, error.into()))?;
        if trained.steps == 0 {
            if ranks.is_first() {
                eprintln!("stopped before the first update: nothing was trained, nothing is written");
            }
            return Err(all_know(CliError::Interrupted));
        }
        Ok(trained)
    }

    /// The first rank writes what the run leaves behind, and says what became of it.
    fn finish<M>(
        &self,
        trained: &Trained<M>,
        run: &Path,
        write: impl FnOnce() -> Result<PathBuf, CliError>,
    ) -> Result<(), CliError> {
        let written = if self.ranks.is_first() { write().map(Some) } else { Ok(None) };
        match settle(self.ranks, written)? {
            // The others have nothing left to do.
            Some(written) => finish(trained, run, &written).map_err(all_know),
            // The first rank's exit code says how the run ended.
            None => Ok(()),
        }
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
