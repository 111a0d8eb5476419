//! Byte-level BPE vocabularies: the 256 bytes, and merges that spell a list of common words.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::write_json;
use crate::Result;
use crate::checkpoint::write_file;

/// Words that get a token of their own; a leading blank is part of the word where the tokenizer keeps blanks.
const WORDS: &str = "the of to and a in is it you that he was for on are with as his they be at one have this from or \
    had by not but what all were when we there can an your which their said if do will each about how up out them then \
    she many some so these would other into has more her two like him see time could no make than first been its who \
    now people my made over did down only way find use may water long little very after words called just where most \
    know video frame question answer query red green blue white black yellow car man woman dog cat ball left right \
    picture person street house tree screen text hand table room camera moving scene circle square colour letter option \
    brief reasoning think visible best form exactly nothing else seconds minutes";

/// The characters that stand for the bytes, in the order of GPT-2's vocabulary: printable bytes stand for themselves,
/// the others follow from U+0100 on.
fn alphabet() -> Vec<(u8, char)> {
    let printable = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let shown = (0..=255u8).filter(printable).map(|byte| (byte, char::from(byte)));
    let hidden = (0..=255u8).filter(|byte| !printable(byte));
    shown.chain(hidden.zip('\u{100}'..)).collect()
}

/// Tokens in the order of their ids, and merges in the order of their rank.
pub(super) struct Vocabulary {
    pub tokens: Vec<String>,
    merges: Vec<[String; 2]>,
}

impl Vocabulary {
    /// As Qwen2's: blanks belong to the word that follows. Words of the caller's also get a token without the blank.
    pub fn with_blanks(words: &[String]) -> Self {
        let mut vocabulary = Self { tokens: bytes(""), merges: Vec::new() };
        for word in WORDS.split_whitespace().filter(|_| words.is_empty()) {
            vocabulary.spell(symbols(&format!(" {word}")));
        }
        for word in words {
            vocabulary.spell(symbols(&format!(" {word}")));
            vocabulary.spell(symbols(word));
        }
        vocabulary
    }

    /// As CLIP's: a symbol that ends a word is marked `</w>`.
    pub fn with_word_ends(words: &[String]) -> Self {
        let tokens = bytes("").into_iter().chain(bytes("</w>")).collect();
        let mut vocabulary = Self { tokens, merges: Vec::new() };
        let common = WORDS.split_whitespace().filter(|_| words.is_empty());
        for word in common.chain(words.iter().map(String::as_str)) {
            let mut symbols = symbols(word);
            if let Some(last) = symbols.last_mut() {
                last.push_str("</w>");
            }
            vocabulary.spell(symbols);
        }
        vocabulary
    }

    /// Adds the merges that join `symbols` from the left.
    fn spell(&mut self, symbols: Vec<String>) {
        let mut symbols = symbols.into_iter();
        let mut left = symbols.next().unwrap_or_default();
        for right in symbols {
            let joined = format!("{left}{right}");
            if !self.tokens.contains(&joined) {
                self.tokens.push(joined.clone());
                self.merges.push([left, right]);
            }
            left = joined;
        }
    }

    /// Writes `vocab.json` and `merges.txt`, from which transformers builds its Python tokenizers. `marks` are tokens
    /// that belong to the vocabulary itself.
    pub fn write(&self, dir: &Path, marks: &[&str]) -> Result<()> {
        let mut vocab = self.ids();
        vocab.extend(marks.iter().zip(self.tokens.len()..).map(|(mark, id)| ((*mark).to_owned(), json!(id))));
        write_json(dir, "vocab.json", &Value::Object(vocab))?;
        let merges = format!("#version: 0.2\n{}\n", self.merge_lines().join("\n"));
        write_file(&dir.join("merges.txt"), merges.as_bytes())
    }

    fn ids(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
    }

    fn merge_lines(&self) -> Vec<String> {
        self.merges.iter().map(|[left, right]| format!("{left} {right}")).collect()
    }

    /// The `model` of a `tokenizer.json`.
    pub fn model(&self, settings: Value) -> Value {
        let (vocab, merges) = (self.ids(), self.merge_lines());
        let mut model = json!({ "type": "BPE", "dropout": null, "fuse_unk": false, "byte_fallback": false });
        if let (Some(model), Value::Object(settings)) = (model.as_object_mut(), settings) {
            model.extend(settings);
            model.extend([("vocab".to_owned(), Value::Object(vocab)), ("merges".to_owned(), json!(merges))]);
        }
        model
    }
}

fn bytes(suffix: &str) -> Vec<String> {
    alphabet().into_iter().map(|(_, symbol)| format!("{symbol}{suffix}")).collect()
}

fn symbols(word: &str) -> Vec<String> {
    let alphabet = alphabet();
    let symbol = |byte: u8| alphabet.iter().find(|(b, _)| *b == byte).map(|(_, symbol)| symbol.to_string());
    word.bytes().filter_map(symbol).collect()
}

/// An entry of `added_tokens` that is plain text to the decoder.
pub(super) fn plain_token(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": false
    })
}

/// An entry of `added_tokens`.
pub(super) fn special_token(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true
    })
}
