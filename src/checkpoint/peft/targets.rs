//! Which modules an adapter touches, by PEFT's rules (peft 0.15.2 to 0.18.1, `tuners_utils.py` and `other.py`).

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Modules by name: a regular expression that matches the whole name, or a list of names and endings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// Matches the whole name; look-around is understood, as PEFT's users need it to leave out the vision tower.
    Regex(String),
    /// A name itself, or what follows its last dots: `q_proj` stands for every `....q_proj`.
    Names(Vec<String>),
}

impl Targets {
    /// Whether one of `names` (the names one module goes by) is meant.
    ///
    /// # Errors
    /// [`Error::Input`] with a regular expression that cannot be read.
    pub fn matches(&self, names: &[&str]) -> Result<bool> {
        match self {
            Self::Regex(pattern) => {
                let regex = compile(&format!("^(?:{pattern})$"), pattern)?;
                any(names, &regex)
            }
            Self::Names(ends) => Ok(names.iter().any(|name| {
                ends.iter().any(|end| {
                    name.strip_suffix(end.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                })
            })),
        }
    }
}

/// The value of the first pattern that matches the end of one of `names`, from a dot on: how PEFT reads `rank_pattern` and
/// `alpha_pattern`.
///
/// # Errors
/// As [`Targets::matches`].
pub fn first_match<'a, T>(patterns: &'a [(String, T)], names: &[&str]) -> Result<Option<&'a T>> {
    for (pattern, value) in patterns {
        let regex = compile(&format!(r"^(?:.*\.)?(?:{pattern})$"), pattern)?;
        if any(names, &regex)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn compile(whole: &str, pattern: &str) -> Result<Regex> {
    Regex::new(whole).map_err(|e| Error::Input(format!("adapter: {pattern:?} is no regular expression: {e}")))
}

fn any(names: &[&str], regex: &Regex) -> Result<bool> {
    for name in names {
        if regex
            .is_match(name)
            .map_err(|e| Error::Input(format!("adapter: a pattern fails on {name}: {e}")))?
        {
            return Ok(true);
        }
    }
    Ok(false)
}
