//! CLIP's byte-pair tokenizer: `tokenizer.json` as it is, or rebuilt from `vocab.json` and `merges.txt`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::{Tokenizer, TruncationParams};

use crate::checkpoint::read_json;
use crate::error::{Error, Result};

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Texts to token ids: lower case, whitespace collapsed, start and end of text added, cut to the tower's positions.
#[derive(Debug, Clone)]
pub struct ClipTokenizer {
    inner: Tokenizer,
    path: PathBuf,
}

impl ClipTokenizer {
    /// Reads the tokenizer of a checkpoint folder; `None` when the folder has no tokenizer files. Rows are cut to
    /// `max_length` tokens, start and end of text included.
    ///
    /// # Errors
    /// Files that do not parse, or a vocabulary without the start and end tokens.
    pub fn load(dir: &Path, max_length: usize) -> Result<Option<Self>> {
        let [whole, vocab, merges] =
            ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| dir.join(name));
        let (path, parsed) = if whole.is_file() {
            let parsed = Tokenizer::from_file(&whole);
            (whole, parsed)
        } else if vocab.is_file() && merges.is_file() {
            let description = describe(&vocab, &merges)?;
            (vocab, serde_json::from_value(description).map_err(Into::into))
        } else {
            return Ok(None);
        };
        let mut inner = parsed.map_err(|e| Error::checkpoint(&path, e))?;
        let truncation = TruncationParams { max_length, ..Default::default() };
        inner.with_truncation(Some(truncation)).map_err(|e| Error::checkpoint(&path, e))?;
        inner.with_padding(None);
        Ok(Some(Self { inner, path }))
    }

    /// The file that the tokenizer was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Token ids of one text, start and end of text included, without padding.
    ///
    /// # Errors
    /// Text that the tokenizer refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, true).map_err(|e| Error::Text(format!("{text:?}: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// The `tokenizer.json` that belongs to a vocabulary and its merges (transformers 4.51.3, `CLIPConverter`).
fn describe(vocab_path: &Path, merges_path: &Path) -> Result<Value> {
    let vocab: serde_json::Map<String, Value> = read_json(vocab_path)?;
    let text = std::fs::read_to_string(merges_path).map_err(|e| Error::io(merges_path, e))?;
    let mut merges = vec![];
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with("#version")) {
        let Some((left, right)) = line.split_once(' ') else {
            let cause = format!("line {}: expected two tokens, got {line:?}", i + 1);
            return Err(Error::checkpoint(merges_path, cause));
        };
        merges.push(json!([left, right]));
    }
    let id = |token: &str| match vocab.get(token).and_then(Value::as_u64) {
        Some(id) => Ok(id),
        None => Err(Error::checkpoint(vocab_path, format!("the vocabulary has no {token}"))),
    };
    let (start, end) = (id(START)?, id(END)?);
    let added = |id: u64, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": true, "special": true})
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(start, START), added(end, END)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "behavior": "Removed", "invert": true,
             "pattern": {"Regex": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"}},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
                           "trim_offsets": false, "add_prefix_space": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": merges},
    }))
}
