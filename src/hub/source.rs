//! From what the user wrote to where the weights are: a known name, a repository id, or a local folder.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::cache::stays_inside;
use crate::{Error, Result};

/// Architecture of a known model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// Qwen2.5-VL.
    Qwen2_5Vl,
    /// CLIP, both towers.
    Clip,
}

/// A model that the crate knows by name: `models/{name}/model.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Model {
    /// The name, also that of its folder.
    pub name: &'static str,
    /// One line about it.
    pub description: String,
    /// Architecture.
    pub kind: Kind,
    /// Repository on the Hub, `org/name`.
    pub repo: String,
    /// Branch, tag or commit that holds the files.
    pub revision: String,
    /// Patterns that must match a file each (`*` does not cross a slash).
    pub files: Vec<String>,
    /// Patterns of files that are fetched where they exist.
    pub optional: Vec<String>,
    /// The published sizes in the form of `config.json`, where the crate has them: enough to build the model with
    /// random weights. Loading a checkpoint reads the checkpoint's own file.
    pub config: Option<&'static str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelToml {
    description: String,
    kind: Kind,
    repo: String,
    revision: String,
    files: Vec<String>,
    optional: Vec<String>,
}

macro_rules! model {
    ($name:literal) => {
        ($name, include_str!(concat!("../../models/", $name, "/model.toml")), None)
    };
    ($name:literal, config) => {
        (
            $name,
            include_str!(concat!("../../models/", $name, "/model.toml")),
            Some(include_str!(concat!("../../models/", $name, "/config.json"))),
        )
    };
}

const MODELS: [(&str, &str, Option<&str>); 6] = [
    model!("qwen2.5-vl-3b", config),
    model!("qwen2.5-vl-7b", config),
    model!("qwen2.5-vl-32b", config),
    model!("qwen2.5-vl-72b", config),
    model!("clip-vit-large-patch14", config),
    model!("clip-vit-base-patch32"),
];

/// Wanted from a repository that is not known by name.
const FILES: [&str; 2] = ["config.json", "*.safetensors"];
const OPTIONAL: [&str; 11] = [
    "model.safetensors.index.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
];

/// The models known by name.
///
/// # Errors
/// If an embedded `model.toml` does not parse.
pub fn known_models() -> Result<Vec<Model>> {
    MODELS
        .into_iter()
        .map(|(name, text, config)| {
            let toml: ModelToml =
                toml::from_str(text).map_err(|e| Error::Input(format!("models/{name}/model.toml: {e}")))?;
            let ModelToml { description, kind, repo, revision, files, optional } = toml;
            Ok(Model { name, description, kind, repo, revision, files, optional, config })
        })
        .collect()
}

/// Where weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder on this machine, used as it is.
    Folder(PathBuf),
    /// Files of a repository on the Hub.
    Repo(Repo),
}

/// Files of a repository on the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo {
    /// Repository id, `org/name`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Patterns that must match a file each.
    pub files: Vec<String>,
    /// Patterns of files that are fetched where they exist.
    pub optional: Vec<String>,
}

impl Source {
    /// Reads `spec`: an existing folder, or `name[@revision]` of a known model, or `org/name[@revision]`.
    ///
    /// # Errors
    /// [`Error::Input`] if it is none of these, with the list of known names.
    pub fn parse(spec: &str) -> Result<Self> {
        let path = Path::new(spec);
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let looks_local = path.is_absolute() || spec.starts_with("./") || spec.starts_with("../");
        if looks_local || path.is_file() {
            let cause = if path.is_file() { "a file, expected a folder" } else { "no such folder" };
            return Err(Error::Input(format!("{spec}: {cause} (with config.json and *.safetensors)")));
        }
        let (id, revision) = match spec.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (spec, None),
        };
        if let Some(revision) = revision.filter(|r| !stays_inside(r)) {
            return Err(Error::Input(format!("{spec}: {revision:?} is no branch, tag or commit")));
        }
        let models = known_models()?;
        if let Some(model) = models.iter().find(|m| m.name == id) {
            return Ok(Self::Repo(Repo {
                id: model.repo.clone(),
                revision: revision.unwrap_or(&model.revision).to_owned(),
                files: model.files.clone(),
                optional: model.optional.clone(),
            }));
        }
        if !is_repo_id(id) {
            let names: Vec<_> = models.iter().map(|m| m.name).collect();
            return Err(Error::Input(format!(
                "unknown model {spec:?}: expected one of {}; or a repository, org/name[@revision]; or a folder",
                names.join(", ")
            )));
        }
        Ok(Self::Repo(Repo {
            id: id.to_owned(),
            revision: revision.unwrap_or("main").to_owned(),
            files: FILES.map(str::to_owned).to_vec(),
            optional: OPTIONAL.map(str::to_owned).to_vec(),
        }))
    }
}

/// `org/name` with the characters that the Hub allows.
fn is_repo_id(id: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && part.chars().all(allowed) && !part.starts_with(['.', '-']) && !part.contains("--")
    };
    id.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
}

/// Whether `path` matches `pattern`, in which `*` stands for anything but a slash.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == path };
    let Some(rest) = path.strip_prefix(head) else { return false };
    let reach = rest.find('/').unwrap_or(rest.len());
    (0..=reach).filter(|&i| rest.is_char_boundary(i)).any(|i| matches(tail, &rest[i..]))
}
