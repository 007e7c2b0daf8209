//! From an address to files in the hub's cache, in its layout: what Python's `huggingface_hub` has downloaded is used, and
//! the other way round.
//!
//! Environment variables are those of Hugging Face's tools: `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`,
//! `HF_HUB_OFFLINE`.

use std::fs::File;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use l2d_core::checkpoint::write_atomically;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::address::Address;
use crate::error::CliError;

/// Files of a model beside its weights.
const MODEL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "adapter_config.json",
];
const INDEX: &str = "model.safetensors.index.json";
/// Attempts at a download that breaks off.
const RETRIES: usize = 3;

/// What an address stood for when it was last looked up: kept beside the cache, so that it can be found again without the
/// hub, and so that half a data set is not taken for a whole one.
#[derive(Debug, Serialize, Deserialize)]
struct Listing {
    commit: String,
    files: Vec<String>,
}

/// The local copy of what an address stands for.
pub(super) fn resolve(address: &Address) -> Result<PathBuf, CliError> {
    let cache = cache();
    let listing_file = listing_file(&cache, address);
    if is_set("HF_HUB_OFFLINE") {
        return offline(address, &cache, &listing_file);
    }
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_retries(RETRIES);
    if let Ok(endpoint) = std::env::var("HF_ENDPOINT") {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_string());
    }
    let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty()).or_else(|| cache.token());
    let api = builder.with_token(token).build().map_err(|e| failed(address, "", &e))?;
    let kind = if address.is_data_set { RepoType::Dataset } else { RepoType::Model };
    let at = |revision: String| api.repo(Repo::with_revision(address.repository.clone(), kind, revision));
    let info = at(address.revision.clone()).info().map_err(|e| failed(address, "", &e))?;
    if !info.sha.chars().all(|c| c.is_ascii_hexdigit()) || info.sha.is_empty() {
        return Err(CliError::Usage(format!("{address}: the hub calls its commit `{}`", info.sha)));
    }
    // From here on the commit counts: a branch that moves between two files must not mix two versions.
    let repository = at(info.sha.clone());
    let cached = cache.repo(Repo::with_revision(address.repository.clone(), kind, info.sha.clone()));
    let names: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    let files = wanted(address, &names, &mut |name| {
        let file = get(address, &cached, &repository, name)?;
        std::fs::read_to_string(&file).map_err(|e| CliError::io(&file, e))
    })?;
    for name in &files {
        get(address, &cached, &repository, name)?;
    }
    // What the revision is, for the other tools that read this cache.
    let named = cache.repo(Repo::with_revision(address.repository.clone(), kind, address.revision.clone()));
    named.create_ref(&info.sha).map_err(|e| CliError::io(cache.path(), e))?;
    let listing = Listing { commit: info.sha, files };
    let text = serde_json::to_string(&listing).map_err(|e| CliError::io(&listing_file, e.into()))?;
    let folder = listing_file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| CliError::io(folder, e))?;
    write_atomically(&listing_file, |out| out.write_all(text.as_bytes()))?;
    Ok(snapshot(&cache, address, &listing.commit).join(&address.path))
}

/// The files an address stands for, of all that a repository holds; `read` gives the text of one.
fn wanted(
    address: &Address,
    names: &[String],
    read: &mut dyn FnMut(&str) -> Result<String, CliError>,
) -> Result<Vec<String>, CliError> {
    // A name becomes a path here.
    let inside = |name: &&String| !name.split(['/', '\\']).any(|part| matches!(part, "" | "." | ".."));
    let names: Vec<&String> = names.iter().filter(inside).collect();
    let has = |name: &str| names.iter().any(|other| *other == name);
    if has(&address.path) {
        return Ok(vec![address.path.clone()]);
    }
    let inner = if address.path.is_empty() { String::new() } else { format!("{}/", address.path) };
    let nothing = |what: &str| {
        let mut there: Vec<&str> = names.iter().map(|name| name.as_str()).take(12).collect();
        if names.len() > there.len() {
            there.push("...");
        }
        CliError::Usage(format!("{address}: {what}; the repository has {}", there.join(", ")))
    };
    if address.is_data_set {
        let is_data = |name: &str| [".parquet", ".jsonl", ".jsonl.gz"].iter().any(|end| name.ends_with(end));
        let files: Vec<String> = names
            .iter()
            .filter(|name| name.starts_with(&inner) && is_data(name))
            .map(|name| name.to_string())
            .collect();
        return if files.is_empty() { Err(nothing("no .parquet, .jsonl or .jsonl.gz there")) } else { Ok(files) };
    }
    let place = |name: &str| format!("{inner}{name}");
    let mut files: Vec<String> = MODEL_FILES.iter().map(|name| place(name)).filter(|name| has(name)).collect();
    let single = ["model.safetensors", "adapter_model.safetensors"].map(place);
    if let Some(weights) = single.iter().find(|name| has(name)) {
        files.push(weights.clone());
        return Ok(files);
    }
    if has(&place(INDEX)) {
        #[derive(Deserialize)]
        struct Index {
            weight_map: std::collections::BTreeMap<String, String>,
        }
        let index: Index = serde_json::from_str(&read(&place(INDEX))?)
            .map_err(|e| CliError::Usage(format!("{address}: {INDEX}: {e}")))?;
        let mut shards: Vec<String> = index.weight_map.into_values().map(|name| place(&name)).collect();
        shards.sort();
        shards.dedup();
        if let Some(missing) = shards.iter().find(|name| !has(name)) {
            return Err(nothing(&format!("its index names `{missing}`, which is not there")));
        }
        files.push(place(INDEX));
        files.extend(shards);
        return Ok(files);
    }
    let ggufs: Vec<&&String> =
        names.iter().filter(|name| name.starts_with(&inner) && name.ends_with(".gguf")).collect();
    match ggufs[..] {
        [one] => Ok(vec![one.to_string()]),
        [] => Err(nothing("no weights there that can be read (model.safetensors, its index, or one .gguf)")),
        _ => Err(nothing("several .gguf files: add the name of one to the address")),
    }
}

/// One file in the cache, downloaded if it is not there, and then checked where the hub tells its SHA-256.
fn get(address: &Address, cached: &CacheRepo, repository: &ApiRepo, name: &str) -> Result<PathBuf, CliError> {
    if let Some(file) = cached.get(name) {
        return Ok(file);
    }
    let file = repository.download(name).map_err(|e| failed(address, name, &e))?;
    // The cache names a large file's content after its SHA-256.
    let content = std::fs::read_link(&file).ok();
    let stated = content.and_then(|link| link.file_name().map(|name| name.to_string_lossy().into_owned()));
    let Some(stated) = stated.filter(|name| name.len() == 64) else { return Ok(file) };
    let mut hash = Sha256::new();
    let mut content = File::open(&file).map_err(|e| CliError::io(&file, e))?;
    std::io::copy(&mut content, &mut hash).map_err(|e| CliError::io(&file, e))?;
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == stated {
        content.sync_all().map_err(|e| CliError::io(&file, e))?;
        return Ok(file);
    }
    let content = std::fs::canonicalize(&file);
    std::fs::remove_file(&file).map_err(|e| CliError::io(&file, e))?;
    if let Ok(content) = content {
        std::fs::remove_file(&content).map_err(|e| CliError::io(&content, e))?;
    }
    Err(CliError::Usage(format!(
        "{address}: {name} arrived damaged (SHA-256 {found}, the hub says {stated}); it was removed, try again"
    )))
}

/// An address looked up without the hub.
fn offline(address: &Address, cache: &Cache, listing_file: &Path) -> Result<PathBuf, CliError> {
    let missing = |what: &str| {
        CliError::Usage(format!("{address}: HF_HUB_OFFLINE is set and {what}; run once without it to download"))
    };
    let listing: Option<Listing> = match std::fs::read(listing_file) {
        Ok(text) => serde_json::from_slice(&text).ok(),
        Err(_) => None,
    };
    if let Some(listing) = listing {
        let folder = snapshot(cache, address, &listing.commit);
        return match listing.files.iter().find(|name| !folder.join(name).exists()) {
            None => Ok(folder.join(&address.path)),
            Some(name) => Err(missing(&format!("`{name}` is no longer in {}", folder.display()))),
        };
    }
    // Downloaded by another tool. A model says itself whether it is whole, a file is one, a data set does not know.
    let repository = cache.path().join(folder_name(address));
    let commit = std::fs::read_to_string(repository.join("refs").join(&address.revision));
    let commit = commit.map_or_else(|_| address.revision.clone(), |commit| commit.trim().to_string());
    let path = snapshot(cache, address, &commit).join(&address.path);
    if path.is_file() || !address.is_data_set && (path.join("config.json").exists()) {
        return Ok(path);
    }
    if path.is_dir() && address.is_data_set {
        return Err(missing("whether the copy in the cache is whole is not known"));
    }
    Err(missing(&format!("{} does not have it", cache.path().display())))
}

fn cache() -> Cache {
    match std::env::var_os("HF_HUB_CACHE") {
        Some(folder) => Cache::new(folder.into()),
        None => Cache::from_env(),
    }
}

fn folder_name(address: &Address) -> String {
    let kind = if address.is_data_set { RepoType::Dataset } else { RepoType::Model };
    Repo::new(address.repository.clone(), kind).folder_name()
}

fn snapshot(cache: &Cache, address: &Address, commit: &str) -> PathBuf {
    cache.path().join(folder_name(address)).join("snapshots").join(commit)
}

/// Where the listing of an address is kept: in a folder of our own in its repository's.
fn listing_file(cache: &Cache, address: &Address) -> PathBuf {
    let name: String = Sha256::digest(format!("{}\n{}", address.revision, address.path))
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    cache.path().join(folder_name(address)).join("l2d").join(format!("{name}.json"))
}

fn is_set(variable: &str) -> bool {
    std::env::var(variable)
        .is_ok_and(|value| !matches!(value.to_lowercase().as_str(), "" | "0" | "false" | "no" | "off"))
}

fn failed(address: &Address, name: &str, error: &ApiError) -> CliError {
    let what = if name.is_empty() { address.to_string() } else { format!("{address}: {name}") };
    let status = match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        ApiError::TooManyRetries(last) => return failed(address, name, last),
        _ => None,
    };
    CliError::Usage(match status {
        Some(code @ (401 | 403)) => format!(
            "{what}: the hub refuses ({code}): there is no such repository, or it is private or gated: accept its licence on \
             its page and set HF_TOKEN"
        ),
        Some(404) => format!("{what}: the hub has no such repository, revision or file (404)"),
        Some(status) => format!("{what}: the hub answers {status}; try again later"),
        None => format!(
            "{what}: {error}; is the network there? HF_HUB_OFFLINE=1 uses what is in the cache, HF_ENDPOINT names a mirror"
        ),
    })
}
