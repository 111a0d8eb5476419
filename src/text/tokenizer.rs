//! The checkpoint's tokenizer, streaming decoding, and the widening of pad tokens.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// `tokenizer.json` of a checkpoint, with truncation and padding switched off.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in the folder `dir`.
    ///
    /// # Errors
    /// [`Error::Text`] naming the file when it is missing or is not a tokenizer.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join("tokenizer.json");
        if !path.is_file() {
            return Err(Error::Text(format!(
                "{}: no such file; a checkpoint needs the tokenizer in the tokenizers library's JSON form",
                path.display()
            )));
        }
        let mut inner = tokenizers::Tokenizer::from_file(&path)
            .map_err(|cause| Error::Text(format!("{}: not a tokenizer: {cause}", path.display())))?;
        // a published file may carry the lengths its authors worked with; here lengths are the caller's business
        inner
            .with_truncation(None)
            .map_err(|cause| Error::Text(format!("{}: truncation: {cause}", path.display())))?
            .with_padding(None);
        Ok(Self { inner, path })
    }

    /// The file this tokenizer came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of ids, added tokens included. An embedding table may be larger (published ones are padded).
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Ids of `text`. Special tokens written in the text (as a chat template does) become their ids; none are added.
    ///
    /// # Errors
    /// [`Error::Text`] when the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|cause| Error::Text(format!("{}: encode: {cause}", self.path.display())))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids` without special tokens. Ids outside the vocabulary are skipped; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Text`] when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, true)
            .map_err(|cause| Error::Text(format!("{}: decode: {cause}", self.path.display())))
    }

    /// The id of a token by its exact text, such as `<|video_pad|>`.
    ///
    /// # Errors
    /// [`Error::Text`] naming file and token when there is none.
    pub fn id(&self, token: &str) -> Result<u32> {
        self.inner
            .token_to_id(token)
            .ok_or_else(|| Error::Text(format!("{}: has no token {token:?}", self.path.display())))
    }

    /// The text of one id, special or not; `None` outside the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Refuses text with a control token in it, such as `<|im_end|>` or `<|video_pad|>` typed into a question: the
    /// tokenizer would take it for structure of the prompt. `what` names the text in the error.
    ///
    /// # Errors
    /// [`Error::Input`] naming the token.
    pub fn refuse_special(&self, what: &str, text: &str) -> Result<()> {
        for token in self.inner.get_added_tokens_decoder().values().filter(|token| token.special) {
            if !token.content.is_empty() && text.contains(&token.content) {
                return Err(Error::Input(format!(
                    "{what}: contains the control token {}, which is not allowed in plain text",
                    token.content
                )));
            }
        }
        Ok(())
    }

    /// Starts decoding a reply token by token.
    pub fn stream(&self) -> DecodeStream<'_> {
        DecodeStream { tokenizer: self, ids: Vec::new(), chunk: 0, emitted: 0 }
    }
}

/// Text of a reply as its tokens arrive. The pieces, with [`finish`](Self::finish) at the end, join to exactly what
/// [`Tokenizer::decode`] gives for all ids: a character spread over several tokens is held back until it is whole.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens of the last whole chunk, kept as context, then those of the open one.
    ids: Vec<u32>,
    /// Where the open chunk begins in `ids`.
    chunk: usize,
    /// Bytes of the decoding of `ids` that were handed out.
    emitted: usize,
}

impl DecodeStream<'_> {
    /// Takes the next token and returns the text that has become certain, often a whole token, sometimes nothing.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        // Bytes that may be the beginning of a character show as one U+FFFD at the end; earlier ones are final.
        let certain = text.strip_suffix(char::REPLACEMENT_CHARACTER);
        let piece = certain.unwrap_or(&text).get(self.emitted..).unwrap_or_default().to_owned();
        self.emitted += piece.len();
        if certain.is_none() && !piece.is_empty() {
            self.ids.drain(..self.chunk);
            self.chunk = self.ids.len();
            self.emitted = self.tokenizer.decode(&self.ids)?.len();
        }
        Ok(piece)
    }

    /// What was still held back: an unfinished character becomes U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(text.get(self.emitted..).unwrap_or_default().to_owned())
    }
}

/// A kind of media pad token and, for each of its occurrences in order, the number of visual tokens.
#[derive(Debug, Clone, Copy)]
pub struct Pad<'a> {
    /// Id of the pad token (`image_token_id` or `video_token_id` of the config).
    pub id: u32,
    /// Visual tokens per medium, `t * h * w / merge^2`, in order of appearance.
    pub counts: &'a [usize],
}

/// Replaces the i-th single pad token of each kind by `counts[i]` copies, as the reference's processor does.
///
/// # Errors
/// [`Error::Text`] when the prompt has not exactly one pad token per medium, or a medium has no tokens.
pub fn expand_pads(ids: &[u32], pads: &[Pad]) -> Result<Vec<u32>> {
    for pad in pads {
        let found = ids.iter().filter(|&&id| id == pad.id).count();
        if found != pad.counts.len() {
            return Err(Error::Text(format!(
                "prompt: {found} pad tokens of id {} for {} media; the chat template must write one for each",
                pad.id,
                pad.counts.len()
            )));
        }
        if let Some(empty) = pad.counts.iter().position(|&count| count == 0) {
            return Err(Error::Text(format!(
                "prompt: medium {empty} with pad id {} has no visual tokens",
                pad.id
            )));
        }
    }
    let extra: usize = pads.iter().flat_map(|pad| pad.counts).sum();
    let mut next = vec![0; pads.len()];
    let mut expanded = Vec::with_capacity(ids.len() + extra);
    for &id in ids {
        match pads.iter().position(|pad| pad.id == id) {
            Some(kind) => {
                expanded.resize(expanded.len() + pads[kind].counts[next[kind]], id);
                next[kind] += 1;
            }
            None => expanded.push(id),
        }
    }
    Ok(expanded)
}
