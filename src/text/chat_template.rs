//! The checkpoint's chat template, rendered as transformers renders it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::jinja;
use super::message::Message;
use crate::{Error, Result};

/// Our own writing of the prompt that Qwen2.5-VL was trained on.
pub(crate) const QWEN2_5_VL: &str = include_str!("qwen2_5_vl.jinja");

/// Where to take a chat template from. There is no fallback from one to another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TemplateSource {
    /// The checkpoint's own.
    #[default]
    Checkpoint,
    /// The crate's Qwen2.5-VL template, for a checkpoint that ships none.
    BuiltIn,
    /// A Jinja file.
    File(PathBuf),
}

/// Where a template came from, for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateOrigin {
    /// A file, of the checkpoint or the caller's.
    File(PathBuf),
    /// The crate's template of that name.
    BuiltIn(&'static str),
}

impl fmt::Display for TemplateOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::BuiltIn(name) => write!(f, "built-in {name} template"),
        }
    }
}

/// A chat template whose syntax was checked, with the special tokens it may print.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    origin: TemplateOrigin,
    specials: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// The template of the checkpoint folder `dir`, or the one that `source` names; special tokens always come from
    /// `tokenizer_config.json` when there is one.
    ///
    /// # Errors
    /// [`Error::Text`] naming the file, and the line for a syntax error; also when the checkpoint has no template.
    pub fn open(dir: impl AsRef<Path>, source: &TemplateSource) -> Result<Self> {
        let dir = dir.as_ref();
        let template = match source {
            TemplateSource::Checkpoint => return Self::load(dir),
            TemplateSource::BuiltIn => Self::qwen2_5_vl()?,
            TemplateSource::File(path) => Self::new(read(path)?, TemplateOrigin::File(path.clone()))?,
        };
        Ok(template.with_specials(&tokenizer_config(dir)?))
    }

    /// The template of the checkpoint folder `dir`. As in transformers 4.51.3 `chat_template.jinja` goes before
    /// `chat_template.json`, and that before the `chat_template` of `tokenizer_config.json`, which is one template or
    /// a list of named ones (`default` is taken).
    ///
    /// # Errors
    /// [`Error::Text`] naming the file, and the line for a syntax error; also when there is no template.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = tokenizer_config(dir)?;
        let (raw, json) = (dir.join("chat_template.jinja"), dir.join("chat_template.json"));
        let template = if raw.is_file() {
            Self::new(read(&raw)?, TemplateOrigin::File(raw))?
        } else if json.is_file() {
            let value = read_json(&json)?;
            let found =
                value.get("chat_template").ok_or_else(|| text_error(&json, "has no key chat_template"))?;
            Self::new(select(found, &json)?, TemplateOrigin::File(json))?
        } else {
            let path = dir.join("tokenizer_config.json");
            match config.get("chat_template").filter(|value| !value.is_null()) {
                Some(found) => Self::new(select(found, &path)?, TemplateOrigin::File(path))?,
                None => {
                    return Err(text_error(
                        dir,
                        "no chat template: expected chat_template.jinja, chat_template.json or the key chat_template \
                         in tokenizer_config.json; the built-in Qwen2.5-VL template can be asked for explicitly",
                    ));
                }
            }
        };
        Ok(template.with_specials(&config))
    }

    /// The crate's Qwen2.5-VL template.
    ///
    /// # Errors
    /// None that can happen with the template the crate was built with.
    pub fn qwen2_5_vl() -> Result<Self> {
        Self::new(QWEN2_5_VL, TemplateOrigin::BuiltIn("qwen2.5-vl"))
    }

    /// A template from its text.
    ///
    /// # Errors
    /// [`Error::Text`] with origin and line for a syntax error.
    pub fn new(source: impl Into<String>, origin: TemplateOrigin) -> Result<Self> {
        let source = jinja::without_generation_tags(&source.into())?;
        jinja::environment()
            .template_from_str(&source)
            .map_err(|cause| template_error(&origin, &cause, "chat template does not parse"))?;
        Ok(Self { source, origin, specials: BTreeMap::new() })
    }

    /// Where the template came from.
    pub fn origin(&self) -> &TemplateOrigin {
        &self.origin
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt of a conversation, ended by the assistant's opening so that the model speaks next.
    ///
    /// # Errors
    /// [`Error::Text`] with origin and line when the template fails or refuses the conversation.
    pub fn prompt(&self, messages: &[Message]) -> Result<String> {
        self.render(messages, true)
    }

    /// The text of a conversation, with or without the assistant's opening at the end.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt).
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        #[derive(Serialize)]
        struct Context<'a> {
            messages: &'a [Message],
            add_generation_prompt: bool,
        }
        self.render_with(Context { messages, add_generation_prompt })
    }

    /// Renders with any variables, for templates that take more than messages (`tools`, `add_vision_id`, …). The
    /// special tokens are added.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt).
    pub fn render_with(&self, context: impl Serialize) -> Result<String> {
        let env = jinja::environment();
        let template = env
            .template_from_str(&self.source)
            .map_err(|cause| template_error(&self.origin, &cause, "chat template does not parse"))?;
        let given = minijinja::Value::from_serialize(context);
        // `tools` and `documents` are always passed by transformers, as None
        let absent = minijinja::context! { tools => (), documents => () };
        let specials = minijinja::Value::from_serialize(&self.specials);
        template
            .render(minijinja::context! { ..given, ..specials, ..absent })
            .map_err(|cause| template_error(&self.origin, &cause, "chat template does not render"))
    }

    /// Takes `bos_token` and its like from a `tokenizer_config.json`, as text or as an added token with `content`.
    fn with_specials(mut self, config: &Value) -> Self {
        for (key, value) in config.as_object().into_iter().flatten() {
            let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
            if let (true, Some(text)) = (key.ends_with("_token"), text) {
                self.specials.insert(key.clone(), text.to_owned());
            }
        }
        self
    }
}

/// One template, or the one called `default` of a list of `{name, template}`.
fn select(found: &Value, path: &Path) -> Result<String> {
    if let Some(template) = found.as_str() {
        return Ok(template.to_owned());
    }
    let named: Vec<(&str, &str)> = found
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| Some((entry.get("name")?.as_str()?, entry.get("template")?.as_str()?)))
        .collect();
    match named.iter().find(|(name, _)| *name == "default") {
        Some((_, template)) => Ok((*template).to_owned()),
        None => {
            let names: Vec<_> = named.iter().map(|(name, _)| *name).collect();
            let cause = format!(
                "chat_template: expected a text or a list of {{name, template}} with one named default, found the \
                 names {names:?}"
            );
            Err(text_error(path, &cause))
        }
    }
}

fn tokenizer_config(dir: &Path) -> Result<Value> {
    let path = dir.join("tokenizer_config.json");
    if path.is_file() { read_json(&path) } else { Ok(Value::Null) }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::io(path, source))
}

fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read(path)?).map_err(|cause| text_error(path, &format!("not JSON: {cause}")))
}

fn text_error(path: &Path, cause: &str) -> Error {
    Error::Text(format!("{}: {cause}", path.display()))
}

fn template_error(origin: &TemplateOrigin, cause: &minijinja::Error, what: &str) -> Error {
    let line = cause.line().map_or_else(String::new, |line| format!(", line {line} of the template"));
    let detail = cause.detail().map_or_else(|| cause.kind().to_string(), str::to_owned);
    Error::Text(format!("{origin}{line}: {what}: {detail}"))
}
