//! The model with everything around it that turns frames and text into a reply: tokenizer, chat template, image
//! processor, generation settings of the checkpoint.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::adapter::Adapter;
use super::generate::Options;
use super::mrope::Media;
use super::processor::{Budget, Patches, Processor, Size};
use super::sampling::Sampling;
use super::{Prompt, Qwen2_5Vl};
use crate::checkpoint::{peft, read_json};
use crate::error::{Error, Result};
use crate::models::language::{OnText, Reply, Show, Turn, VideoLanguageModel};
use crate::text::{ChatTemplate, Dialogue, Message, Pad, Part, Role, Tokenizer, expand_pads};

/// Patches that go through the vision tower at once. Slices do not see each other, so this bounds memory and changes
/// no result.
const PATCHES: usize = 16_384;

/// Qwen2.5-VL, ready to be talked to.
pub struct Qwen2_5VlChat {
    /// Vision tower and text model.
    pub model: Qwen2_5Vl,
    /// The checkpoint's tokenizer.
    pub tokenizer: Tokenizer,
    /// The checkpoint's chat template.
    pub template: ChatTemplate,
    /// The checkpoint's image processor.
    pub processor: Processor,
    /// How the checkpoint is spoken to.
    pub dialogue: Dialogue,
    /// Tokens that end a reply.
    pub stop_tokens: Vec<u32>,
    repetition_penalty: f32,
}

/// `msjoe.json`: what a checkpoint trained by this crate says about itself.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Habits {
    dialogue: Dialogue,
}

/// The part of `generation_config.json` that matters here.
#[derive(Deserialize, Default)]
#[serde(default)]
struct GenerationConfig {
    eos_token_id: Option<OneOrMore>,
    repetition_penalty: Option<f32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

impl Qwen2_5VlChat {
    /// Reads a folder in Hugging Face layout: config, weights, tokenizer, chat template, `preprocessor_config.json` and,
    /// where there is one, `generation_config.json`.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(dir: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        // The small files first: what is wrong with them should not wait for gigabytes of weights.
        let tokenizer = Tokenizer::load(dir)?;
        let template = ChatTemplate::load(dir)?;
        let processor = Processor::load(dir)?;
        let path = dir.join("generation_config.json");
        let generation: GenerationConfig =
            if path.is_file() { read_json(&path)? } else { Default::default() };
        let path = dir.join("msjoe.json");
        let Habits { dialogue } = if path.is_file() { read_json(&path)? } else { Default::default() };
        let model = Qwen2_5Vl::load(dir, dtype, device)?;
        let vocabulary = model.config.text.vocab_size;
        if tokenizer.vocab_size() > vocabulary {
            let cause = format!(
                "the tokenizer has {} tokens, but the model's vocabulary only {vocabulary}; they do not belong together",
                tokenizer.vocab_size()
            );
            return Err(Error::checkpoint(tokenizer.path(), cause));
        }
        let stop_tokens = match generation.eos_token_id {
            Some(OneOrMore::One(id)) => vec![id],
            Some(OneOrMore::More(ids)) => ids,
            None => model.config.eos_token_ids.clone(),
        };
        let repetition_penalty = generation.repetition_penalty.unwrap_or(1.0);
        Ok(Self { model, tokenizer, template, processor, dialogue, stop_tokens, repetition_penalty })
    }

    /// As [`Self::load`], with the adapter of a folder that PEFT or this crate wrote, where there is one.
    ///
    /// # Errors
    /// As [`Self::load`] and [`Adapter::load`]; what is wrong with the adapter's own files is found first.
    pub fn load_adapted(
        dir: impl AsRef<Path>,
        adapter: Option<&Path>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        // Before gigabytes of weights are read.
        adapter.map(|folder| peft::read(folder, &Device::Cpu)).transpose()?;
        let mut chat = Self::load(dir, dtype, device)?;
        if let Some(folder) = adapter {
            let adapter = Adapter::load(folder, &chat.model)?;
            chat.model = chat.model.with_adapter(&adapter)?.detached();
        }
        Ok(chat)
    }

    /// The tokenised prompt of a turn, its frames encoded.
    ///
    /// # Errors
    /// Frames of a wrong size, text with special tokens, a template that does not place the media.
    pub fn prompt(&self, turn: &Turn) -> Result<Prompt> {
        let shown = turn.show.iter().map(|show| self.media(show)).collect::<Result<Vec<_>>>()?;
        let (media, patches): (Vec<_>, Vec<_>) = shown.into_iter().unzip();
        let media = media.concat();
        // Before the vision tower runs: that is the expensive part.
        let input_ids = self.input_ids(turn.text, &media)?;
        let features = patches.into_iter().flatten().map(|p| self.features(p)).collect::<Result<_>>()?;
        Ok(Prompt { input_ids, media, features })
    }

    /// Token ids of a user turn that shows `media` and then says `text`, up to where the reply begins.
    ///
    /// # Errors
    /// Text with special tokens, a template that does not place the media, more tokens than the context.
    pub fn input_ids(&self, text: &str, media: &[Media]) -> Result<Vec<u32>> {
        let part = |medium: &Media| match medium {
            Media::Image { .. } => Part::Image,
            Media::Video { .. } => Part::Video,
        };
        self.ids_of_parts(media.iter().map(part).chain([Part::text(text)]).collect(), media)
    }

    /// Token ids of a user turn of `parts`, whose images and videos are `media` in their order, up to where the reply
    /// begins.
    ///
    /// # Errors
    /// As [`Self::input_ids`].
    pub fn ids_of_parts(&self, parts: Vec<Part>, media: &[Media]) -> Result<Vec<u32>> {
        for part in &parts {
            if let Part::Text { text } = part {
                self.tokenizer.refuse_special("prompt", text)?;
            }
        }
        let rendered = self.template.prompt(&[Message::new(Role::User, parts)])?;
        let (mut images, mut videos) = (vec![], vec![]);
        for medium in media {
            let tokens = medium.tokens(self.processor.merge_size)?;
            if matches!(medium, Media::Image { .. }) { images.push(tokens) } else { videos.push(tokens) }
        }
        let config = &self.model.config;
        let pads = [
            Pad { id: config.image_token_id, counts: &images },
            Pad { id: config.video_token_id, counts: &videos },
        ];
        let input_ids = expand_pads(&self.tokenizer.encode(&rendered)?, &pads)?;
        let most = config.text.max_position_embeddings;
        if input_ids.len() >= most {
            return Err(Error::Input(format!(
                "the prompt has {} tokens ({} of them visual), the model's context {most}: show fewer or smaller frames, or shorten the text",
                input_ids.len(),
                images.iter().chain(&videos).sum::<usize>()
            )));
        }
        Ok(input_ids)
    }

    fn media(&self, show: &Show) -> Result<(Vec<Media>, Vec<Patches>)> {
        match show {
            Show::Images(images) => {
                let patches: Vec<Patches> = images
                    .iter()
                    .map(|i| self.processor.patches(std::slice::from_ref(i)))
                    .collect::<Result<_>>()?;
                Ok((patches.iter().map(|p| Media::Image { grid: p.grid }).collect(), patches))
            }
            Show::Video { frames, timing } => {
                let patches = self.processor.patches(frames)?;
                Ok((vec![Media::Video { grid: patches.grid, timing: timing.clone() }], vec![patches]))
            }
        }
    }

    /// Features (slices x merged tokens, hidden) of one medium, some slices at a time.
    ///
    /// # Errors
    /// As the vision tower.
    pub fn features(&self, patches: Patches) -> Result<Tensor> {
        let [t, h, w] = patches.grid;
        let per_slice = h * w * patches.width;
        let slices = (PATCHES / (h * w).max(1)).clamp(1, t.max(1));
        let mut features = vec![];
        for rows in patches.rows.chunks(slices * per_slice) {
            let t = rows.len() / per_slice;
            let pixels = Tensor::from_slice(rows, (t * h * w, patches.width), &Device::Cpu)?;
            features.push(self.model.vision(&pixels, &[[t, h, w]])?);
        }
        Ok(Tensor::cat(&features, 0)?)
    }
}

impl VideoLanguageModel for Qwen2_5VlChat {
    fn plan(&self, width: u32, height: u32, budget: &Budget) -> Result<Size> {
        self.processor.plan(width, height, budget)
    }

    fn sampling(&self) -> Sampling {
        Sampling { repetition_penalty: self.repetition_penalty, ..Sampling::default() }
    }

    fn dialogue(&self) -> Dialogue {
        self.dialogue
    }

    fn reply(&self, turn: &Turn, on_text: OnText) -> Result<Reply> {
        let prompt = self.prompt(turn)?;
        let options = Options {
            max_new_tokens: turn.max_new_tokens,
            sampling: turn.sampling.clone(),
            stop_tokens: self.stop_tokens.clone(),
            ..Options::default()
        };
        let mut stream = self.tokenizer.stream();
        let mut failed = None;
        let completions =
            self.model.generate(std::slice::from_ref(&prompt), &options, &mut |_, token| match stream
                .push(token)
            {
                Ok(piece) if piece.is_empty() => ControlFlow::Continue(()),
                Ok(piece) => on_text(&piece),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            });
        if let Some(error) = failed {
            return Err(error);
        }
        let Some(completion) = completions?.pop() else {
            return Err(Error::Input("the model gave no reply".into()));
        };
        let visual_tokens = prompt.features.iter().map(|f| f.dim(0)).sum::<candle_core::Result<usize>>()?;
        Ok(Reply {
            text: self.tokenizer.decode(&completion.tokens)?,
            prompt_tokens: prompt.input_ids.len(),
            visual_tokens,
            new_tokens: completion.tokens.len(),
            finish: completion.finish,
        })
    }
}
