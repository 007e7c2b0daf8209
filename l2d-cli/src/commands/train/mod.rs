//! `l2d train`: finetune a diffusion path, or the LM itself.

pub(crate) mod data;
pub(crate) mod settings;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_core::checkpoint::{Checkpoint, StoredDtype, save_adapter, write_atomically};
use l2d_core::diffusion::DiffusionPath;
use l2d_core::lm::Lm;
use l2d_core::parameters::trainable;
use l2d_train::data::{Example, ExampleSource};
use l2d_train::objective::{LmObjective, add_lora};
use l2d_train::{
    L2dEngine, L2dTask, LmTask, ObjectiveKind, Outcome, RunDir, Storage, Task, TrainConfig, Trained, train,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::args::TrainArgs;
use crate::backend::BackendKind;
use crate::commands::losses;
use crate::error::CliError;
use crate::export::export_model;
use crate::model::{Text, load_base, on_interrupt};
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
        // On a CPU the frozen base is kept as its file stores it, for the objective by hand.
        let frozen = config.objective == ObjectiveKind::L2d && backend.is_cpu();
        load_base::<B>(&args.model, &device, frozen)?
    };
    let store = data::open(&config, &text, lm.config.max_positions, &cache, &cancel)?;
    let (examples, validation) = data::data(store, &config)?;
    let storage = Storage { dir, resume: args.resume, notes: notes(args, &config) };
    // A folder in use keeps the settings it was started with; `train` refuses others.
    if storage.dir.checkpoints()?.is_empty() {
        let resolved = toml::to_string_pretty(&config).map_err(|e| CliError::Usage(format!("settings: {e}")))?;
        write_atomically(&args.out.join("config.toml"), |out| out.write_all(resolved.as_bytes()))?;
    }

    match config.objective {
        ObjectiveKind::L2d => {
            let diffusion = config.diffusion.clone().check(&args.out.join("config.toml"))?;
            let counts = diffusion.parameter_counts(&lm.config);
            eprintln!("trainable parameters: {} (base: {}, frozen)", counts.total(), lm.config.num_parameters());
            let path = DiffusionPath::init(&lm, &diffusion, &mut rng);
            let engine = L2dEngine::new(lm, config.head_chunk, config.matmul_precision, config.recompute);
            let task = L2dTask::<Autodiff<B>>::new(engine, config.draws());
            let path = trainable(AutodiffModule::from_inner(path));
            let trained = go::<B, _>(&task, path, &examples, &validation, &config, &storage, &device, &cancel)?;
            let file = args.out.join("adapter.safetensors");
            let best = best_or_last(&task, &trained)?;
            save_adapter(&file, &best.valid(), task.base(), &notes(args, &config), stored(args))?;
            finish(&trained, &args.out, &file)
        }
        ObjectiveKind::Full | ObjectiveKind::Lora => {
            let lm: Lm<Autodiff<B>> = AutodiffModule::from_inner(lm);
            let lm = if config.objective == ObjectiveKind::Full {
                // One table that receives both gradients, if the model is tied.
                let lm = if lm.config.tie_word_embeddings { Lm { head: None, ..lm } } else { lm };
                trainable(lm)
            } else {
                add_lora(lm, config.lora_rank, config.lora_alpha, &mut rng)
            };
            let task = LmTask { objective: LmObjective { head_chunk: config.head_chunk } };
            let trained = go::<B, _>(&task, lm, &examples, &validation, &config, &storage, &device, &cancel)?;
            let folder = args.out.join("model");
            let best = best_or_last::<B, _>(&task, &trained)?;
            export_model(&folder, &best.valid(), &text, stored(args))?;
            finish(&trained, &args.out, &folder)
        }
    }
}

/// The number format of what the run leaves behind; its checkpoints are always exact.
fn stored(args: &TrainArgs) -> StoredDtype {
    if args.f16 { StoredDtype::F16 } else { StoredDtype::F32 }
}

fn go<B: Backend, T: Task<Autodiff<B>>>(
    task: &T,
    model: T::Model,
    examples: &dyn ExampleSource,
    validation: &[Example],
    config: &TrainConfig,
    storage: &Storage,
    device: &Device<B>,
    cancel: &AtomicBool,
) -> Result<Trained<T::Model>, CliError> {
    let mut progress = TrainProgress::new(config.total_steps(examples.len()));
    let trained = train(task, model, examples, validation, config, Some(storage), device, cancel, &mut progress)?;
    if trained.steps == 0 {
        eprintln!("stopped before the first update: nothing was trained, nothing is written");
        return Err(CliError::Interrupted);
    }
    Ok(trained)
}

/// The weights with the lowest validation loss, or the last ones where nothing was validated.
fn best_or_last<B: Backend, T: Task<Autodiff<B>>>(task: &T, trained: &Trained<T::Model>) -> Result<T::Model, CliError> {
    Ok(match &trained.best_checkpoint {
        Some(folder) => task.load(trained.model.clone(), folder)?,
        None => trained.model.clone(),
    })
}

fn finish<M>(trained: &Trained<M>, run: &Path, written: &Path) -> Result<(), CliError> {
    if let Some(loss) = trained.best_validation {
        eprintln!("lowest validation loss: {loss:.4}");
    }
    losses::plot(run)?;
    eprintln!("wrote {}", written.display());
    match trained.outcome {
        Outcome::Finished => Ok(()),
        Outcome::Interrupted => {
            eprintln!("stopped after {} updates; go on with the same command and --resume", trained.steps);
            Err(CliError::Interrupted)
        }
    }
}

fn notes(args: &TrainArgs, config: &TrainConfig) -> BTreeMap<String, String> {
    let name = |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let paths = config.sources.iter().filter_map(|source| source.path.as_deref());
    let mut data: Vec<String> = paths.map(name).collect();
    data.dedup();
    BTreeMap::from([
        ("base_name".to_string(), name(&args.model)),
        ("data".to_string(), data.join(", ")),
        ("l2d_version".to_string(), env!("CARGO_PKG_VERSION").to_string()),
    ])
}
