//! The settings of a run: defaults, then the TOML file, then --set, then flags.

use std::path::PathBuf;

use l2d_train::{ObjectiveKind, TrainConfig};

use crate::args::{ObjectiveArg, TrainArgs};
use crate::error::CliError;
use crate::hub;

/// The settings: defaults, then the TOML file, then --set, then flags.
pub(crate) fn settings(args: &TrainArgs) -> Result<TrainConfig, CliError> {
    let mut config = from_files(&args.source.config, &args.source.set)?;
    if let Some(objective) = args.objective {
        config.objective = match objective {
            ObjectiveArg::L2d => ObjectiveKind::L2d,
            ObjectiveArg::Full => ObjectiveKind::Full,
            ObjectiveArg::Lora => ObjectiveKind::Lora,
        };
    }
    if let Some(epochs) = args.epochs {
        (config.epochs, config.steps) = (epochs, None);
    }
    config.steps = args.steps.or(config.steps);
    config.micro_batch_size = args.micro_batch_size.or(config.micro_batch_size);
    config.batch_size = args.batch_size.unwrap_or(config.batch_size);
    config.learning_rate = args.learning_rate.unwrap_or(config.learning_rate);
    config.max_tokens = args.source.max_tokens.unwrap_or(config.max_tokens);
    config.seed = args.seed.unwrap_or(config.seed);
    Ok(config)
}

/// The settings of TOML files, of which later ones win key by key, changed by `KEY=VALUE` entries.
pub(crate) fn from_files(files: &[PathBuf], entries: &[String]) -> Result<TrainConfig, CliError> {
    let mut table = toml::Table::new();
    for path in files {
        let text = std::fs::read_to_string(path).map_err(|e| CliError::io(path, e))?;
        let over = text.parse().map_err(|e| CliError::Usage(format!("{}: {e}", path.display())))?;
        merge(&mut table, over);
    }
    for entry in entries {
        set(&mut table, entry)?;
    }
    let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    let source = if names.is_empty() { "the settings".to_string() } else { names.join(", ") };
    let mut config: TrainConfig = table.try_into().map_err(|e: toml::de::Error| {
        CliError::Usage(format!("{source}: {}", e.to_string().trim().replace('\n', " ")))
    })?;
    for source in &mut config.sources {
        if let Some(path) = &mut source.path {
            hub::fetch(path)?;
        }
    }
    Ok(config)
}

/// Puts the keys of one table over another's; tables in both are merged, lists are replaced.
fn merge(under: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// Puts `a.b=value` into a table; the value is TOML, or a string where it is none.
fn set(table: &mut toml::Table, entry: &str) -> Result<(), CliError> {
    let bad = |reason: &str| CliError::Usage(format!("--set {entry}: {reason}"));
    let (key, value) = entry.split_once('=').ok_or_else(|| bad("expected KEY=VALUE"))?;
    let value = format!("x = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("x"))
        .unwrap_or_else(|| toml::Value::String(value.to_string()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().ok_or_else(|| bad("an empty key"))?;
    let mut place = table;
    for part in parts {
        place = place
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| bad("a part of the key is no table"))?;
    }
    place.insert(last.to_string(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use l2d_train::data::SourceConfig;

    use super::*;

    #[test]
    fn dotted_keys_reach_nested_tables_and_plain_words_are_strings() {
        let mut table = toml::Table::new();
        set(&mut table, "diffusion.dim=64").expect("set");
        set(&mut table, "timesteps.distribution=cosmap").expect("set");
        set(&mut table, "diffusion.variant={kind=\"full\"}").expect("set");
        let config: TrainConfig = table.try_into().expect("valid");
        assert_eq!(config.diffusion.dim, 64);
        assert_eq!(config.timesteps.distribution, l2d_core::corruption::TimestepDistribution::Cosmap);
        assert!(set(&mut toml::Table::new(), "novalue").is_err());
    }

    #[test]
    fn a_variant_may_be_set_in_part_and_takes_no_other_kinds_settings() {
        use l2d_core::diffusion::Variant;
        let variant = |entries: &[&str]| {
            let mut table = toml::Table::new();
            for entry in entries {
                set(&mut table, entry).expect("set");
            }
            table.try_into::<TrainConfig>().map(|config| config.diffusion.variant).map_err(|e| e.to_string())
        };
        assert_eq!(variant(&["diffusion.variant.rank=16"]), Ok(Variant::Lora { rank: 16, alpha: 32.0 }));
        assert_eq!(variant(&["diffusion.variant.kind=scratch"]), Ok(Variant::Scratch));
        let both = variant(&["diffusion.variant={kind=\"full\", rank=3}"]).expect_err("refused");
        assert!(both.contains("`lora` alone"), "{both}");
        assert!(variant(&["diffusion.variant.size=3"]).expect_err("refused").contains("size"));
    }

    #[test]
    fn later_files_win_key_by_key_and_a_run_can_read_what_it_wrote_down() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let smoltalk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/configs/data/smoltalk.toml");
        let mine = file("mine.toml", "max_tokens = 512\n[diffusion]\ndim = 64\n");
        let config = from_files(&[smoltalk, mine], &["sources.0=1".into()]).expect_err("no such key").to_string();
        assert!(config.contains("no table"), "{config}");
        let smoltalk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/configs/data/smoltalk.toml");
        let config = from_files(&[smoltalk, folder.path().join("mine.toml")], &[]).expect("read");
        assert_eq!((config.max_tokens, config.diffusion.dim, config.sources.len()), (512, 64, 5));
        assert_eq!(config.diffusion.classes, ["math", "coding", "general knowledge"]);
        assert_eq!(config.sources[4].exclude["category"].len(), 6);
        config.check().expect("consistent");
        let written = file("config.toml", &toml::to_string_pretty(&config).expect("toml"));
        assert_eq!(from_files(&[written], &[]).expect("read"), config);
        let unknown = file("unknown.toml", "[[sources]]\npaht = \"x\"\n");
        assert!(from_files(&[unknown], &[]).expect_err("refused").to_string().contains("paht"));
    }

    #[test]
    fn every_preset_is_a_run_of_the_papers_sizes() {
        use l2d_core::diffusion::Variant;
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/configs/train");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).expect("presets") {
            let path = entry.expect("a file").path();
            let config =
                from_files(std::slice::from_ref(&path), &[]).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            config.check().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            if config.objective == ObjectiveKind::L2d && name != "reference" {
                let diffusion = &config.diffusion;
                assert_eq!((diffusion.dim, diffusion.conditioning, diffusion.time_features), (256, 256, 256), "{name}");
                let expected = match &name[..] {
                    "llama-3.2-1b-full" => Variant::Full,
                    "llama-3.2-1b-scratch" => Variant::Scratch,
                    _ => Variant::Lora { rank: 32, alpha: 32.0 },
                };
                assert_eq!(diffusion.variant, expected, "{name}");
            }
            names.push(name);
        }
        names.sort();
        assert!(names.len() >= 10 && names.contains(&"qwen2.5-7b".to_string()), "{names:?}");
    }

    #[test]
    fn every_setting_is_documented() {
        fn keys(prefix: &str, table: &toml::Table, found: &mut Vec<String>) {
            for (key, value) in table {
                let key = format!("{prefix}{key}");
                match value {
                    toml::Value::Table(inner) => keys(&format!("{key}."), inner, found),
                    _ => found.push(key),
                }
            }
        }
        // Settings that are absent by default have no key in the table: give them one.
        let mut config = TrainConfig { steps: Some(1), micro_batch_size: Some(1), ..TrainConfig::default() };
        config.columns.class = Some("class".into());
        config.generate = l2d_train::GenerateConfig {
            task: Some("gsm8k".into()),
            data: Some("x".into()),
            steps: Some(vec![1]),
            max_tokens: Some(1),
            ..config.generate
        };
        config.diffusion.translation_hidden = Some(1);
        let source = SourceConfig {
            path: Some("p".into()),
            subset: Some("s".into()),
            split: Some("s".into()),
            class: Some("c".into()),
            weight: Some(1.0),
            max_rows: Some(1),
            ..SourceConfig::default()
        };
        let mut found = Vec::new();
        keys("", &toml::Table::try_from(&config).expect("a table"), &mut found);
        keys("sources.", &toml::Table::try_from(&source).expect("a table"), &mut found);
        let page = include_str!("../../../../docs/training.md");
        let missing: Vec<_> = found.iter().filter(|key| !page.contains(&format!("`{key}`"))).collect();
        assert!(found.len() > 35 && missing.is_empty(), "{missing:?} of {}", found.len());
    }
}
