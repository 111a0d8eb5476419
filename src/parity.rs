//! What a checkpoint computes on given tensors, to compare with another implementation: named tensors in, named tensors
//! out, under the names that transformers' processors give them. The `parity` example puts files around it.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};

use crate::models::clip::Clip;
use crate::models::qwen2_5_vl::generate::Options;
use crate::models::qwen2_5_vl::mrope::{Media, Timing};
use crate::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use crate::{Error, Result};

/// Tensors by name.
pub type Outputs = BTreeMap<String, Tensor>;

/// Input tensors, each checked when it is taken and none left over in the end.
struct Inputs(HashMap<String, Tensor>);

/// Qwen2.5-VL. In: `input_ids` (L,) i64; for images `pixel_values` (N, patch width) f32 and `image_grid_thw` (I, 3) i64; for
/// videos `pixel_values_videos` (N, patch width) f32, `video_grid_thw` (V, 3) i64 and `second_per_grid_ts` (V,) f32 (1.0
/// each when absent, as the reference has it).
///
/// Out: `position_ids` (3, L) i64, `logits` (L, V) f32, `greedy` (n,) i64 by plain argmax with the end token if one came, and
/// for the media that were given `vision_embeds_image`, `vision_embeds_video` (N / merge^2, hidden) f32.
///
/// # Errors
/// [`Error::Input`] naming the tensor: missing, unknown, of another type or shape, not finite, tokens outside the vocabulary,
/// rows that do not match the grids; [`Error::Tensor`] from the model.
pub fn qwen2_5_vl(model: &Qwen2_5Vl, inputs: HashMap<String, Tensor>, options: &Options) -> Result<Outputs> {
    let mut inputs = Inputs(inputs);
    let mut input_ids = inputs.token_ids(&["L"], model.config.text.vocab_size)?;
    let input_ids = input_ids.pop().unwrap_or_default();
    let mut outputs = Outputs::new();
    let images = vision(model, &mut inputs, &mut outputs, "image")?;
    let videos = vision(model, &mut inputs, &mut outputs, "video")?;
    inputs.finish()?;

    // Media come by kind, the prompt wants them in the order of their placeholders.
    let (mut images, mut videos) = (images.into_iter(), videos.into_iter());
    let (mut media, mut features) = (vec![], vec![]);
    for run in input_ids.chunk_by(|a, b| a == b) {
        let next = match run[0] {
            id if id == model.config.image_token_id => images.next(),
            id if id == model.config.video_token_id => videos.next(),
            _ => None,
        };
        if let Some((medium, embeds)) = next {
            media.push(medium);
            features.push(embeds);
        }
    }
    for (medium, embeds) in images.chain(videos) {
        // Without a placeholder: kept, so that the positions name it.
        media.push(medium);
        features.push(embeds);
    }
    let prompt = Prompt { input_ids, media, features };
    let positions = model.positions(&prompt)?.ids;
    let axes: Vec<i64> = (0..3).flat_map(|axis| positions.iter().map(move |id| id[axis])).collect();
    outputs.insert("position_ids".to_owned(), Tensor::from_vec(axes, (3, positions.len()), &Device::Cpu)?);
    outputs.insert("logits".to_owned(), model.forward(&prompt)?);
    let made = model.generate(&[prompt], options, &mut |_, _| ControlFlow::Continue(()))?;
    let greedy: Vec<i64> = made.iter().flat_map(|made| made.tokens.iter().map(|id| i64::from(*id))).collect();
    let count = greedy.len();
    outputs.insert("greedy".to_owned(), Tensor::from_vec(greedy, count, &Device::Cpu)?);
    Ok(outputs)
}

/// The media of one kind with their features, which also go to `outputs`.
fn vision(
    model: &Qwen2_5Vl,
    inputs: &mut Inputs,
    outputs: &mut Outputs,
    kind: &str,
) -> Result<Vec<(Media, Tensor)>> {
    let pixels_name = if kind == "image" { "pixel_values" } else { "pixel_values_videos" };
    let grid_name = format!("{kind}_grid_thw");
    let width = model.config.vision.patch_width().to_string();
    let pixels = inputs.take(pixels_name, DType::F32, &["N", &width])?;
    let grids = inputs.take(&grid_name, DType::I64, &["count", "3"])?;
    let seconds = if kind == "video" { inputs.take("second_per_grid_ts", DType::F32, &["V"])? } else { None };
    let (pixels, grids) = match (pixels, grids) {
        (Some(pixels), Some(grids)) => (pixels, grids.to_vec2::<i64>()?),
        (None, None) if seconds.is_none() => return Ok(vec![]),
        (None, None) => {
            return Err(Error::Input("second_per_grid_ts without pixel_values_videos".to_owned()));
        }
        (None, _) => return Err(Error::Input(format!("{grid_name} without {pixels_name}"))),
        (_, None) => return Err(Error::Input(format!("{pixels_name} without {grid_name}"))),
    };
    let seconds: Vec<f32> = seconds.map_or(Ok(vec![1.0; grids.len()]), |seconds| seconds.to_vec1())?;
    if seconds.len() != grids.len() {
        return Err(Error::Input(format!(
            "second_per_grid_ts has {} values for {} videos in video_grid_thw",
            seconds.len(),
            grids.len()
        )));
    }
    let mut media = vec![];
    for (grid, seconds) in grids.iter().zip(seconds) {
        let grid = sizes(&grid_name, grid)?;
        media.push(match kind {
            "image" => Media::Image { grid },
            _ => Media::Video { grid, timing: Timing::Uniform(seconds) },
        });
    }
    let merge = model.config.vision.spatial_merge_size;
    let tokens: Vec<usize> = media.iter().map(|medium| medium.tokens(merge)).collect::<Result<_>>()?;
    let rows = tokens.iter().fold(0usize, |sum, n| sum.saturating_add(n.saturating_mul(merge * merge)));
    if rows != pixels.dim(0)? {
        return Err(Error::Input(format!(
            "{pixels_name} has {} rows, expected {rows}: the sum of t * h * w over {grid_name} {grids:?}",
            pixels.dim(0)?
        )));
    }
    let grids: Vec<[usize; 3]> = media.iter().map(Media::grid).collect();
    let embeds = model.vision(&pixels, &grids)?;
    outputs.insert(format!("vision_embeds_{kind}"), embeds.to_dtype(DType::F32)?);
    let mut at = 0;
    let slices = tokens.into_iter().map(|n| {
        at += n;
        embeds.narrow(0, at - n, n)
    });
    let slices: Vec<Tensor> = slices.collect::<candle_core::Result<_>>()?;
    Ok(media.into_iter().zip(slices).collect())
}

fn sizes(name: &str, row: &[i64]) -> Result<[usize; 3]> {
    let sizes = row.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<Vec<_>>>();
    sizes.and_then(|sizes| sizes.try_into().ok()).ok_or_else(|| {
        Error::Input(format!("{name}: row {row:?}: expected t, h and w, none of them negative"))
    })
}

/// CLIP. In: `pixel_values` (B, 3, S, S) f32, `input_ids` (Q, L) i64. Out: `image_embeds` (B, D) and `text_embeds` (Q, D) f32,
/// projected, not normalised, and `similarity` (Q, B), their cosines.
///
/// # Errors
/// As [`qwen2_5_vl`].
pub fn clip(model: &Clip, inputs: HashMap<String, Tensor>) -> Result<Outputs> {
    let mut inputs = Inputs(inputs);
    let pixels = inputs.need("pixel_values", DType::F32, &["B", "3", "H", "W"])?;
    let input_ids = inputs.token_ids(&["Q", "L"], model.config().text_config.vocab_size)?;
    inputs.finish()?;
    let images = model.image_embeds(&pixels)?;
    let texts = model.text_embeds(&input_ids)?;
    let similarity = crate::similarity::similarity(&texts, &images)?;
    Ok([("image_embeds", images), ("text_embeds", texts), ("similarity", similarity)]
        .into_iter()
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .collect())
}

impl Inputs {
    /// A tensor that may be absent. Axes are sizes (`"3"`) or names, which stand for any size above 0.
    fn take(&mut self, name: &str, dtype: DType, axes: &[&str]) -> Result<Option<Tensor>> {
        let Some(tensor) = self.0.remove(name) else { return Ok(None) };
        let fits =
            |(axis, size): (&&str, &usize)| axis.parse().map_or(*size > 0, |fixed: usize| fixed == *size);
        let shaped = tensor.rank() == axes.len() && axes.iter().zip(tensor.dims()).all(fits);
        if !shaped || tensor.dtype() != dtype {
            return Err(Error::Input(format!(
                "{name} is {} {:?}, expected {} ({})",
                tensor.dtype().as_str(),
                tensor.dims(),
                dtype.as_str(),
                axes.join(", ")
            )));
        }
        if dtype == DType::F32 {
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(Error::Input(format!(
                    "{name}: value {at} is {}, expected finite numbers",
                    values[at]
                )));
            }
        }
        Ok(Some(tensor))
    }

    fn need(&mut self, name: &str, dtype: DType, axes: &[&str]) -> Result<Tensor> {
        self.take(name, dtype, axes)?.ok_or_else(|| {
            Error::Input(format!("{name} is missing, expected {} ({})", dtype.as_str(), axes.join(", ")))
        })
    }

    /// Rows of `input_ids`, one row when it has one axis.
    fn token_ids(&mut self, axes: &[&str], vocabulary: usize) -> Result<Vec<Vec<u32>>> {
        let ids = self.need("input_ids", DType::I64, axes)?;
        let rows = ids.reshape(((), ids.dim(axes.len() - 1)?))?.to_vec2::<i64>()?;
        let token = |id: &i64| {
            u32::try_from(*id).ok().filter(|id| (*id as usize) < vocabulary).ok_or_else(|| {
                Error::Input(format!(
                    "input_ids: token {id} is outside the vocabulary of {vocabulary} tokens"
                ))
            })
        };
        rows.iter().map(|row| row.iter().map(token).collect()).collect()
    }

    fn finish(self) -> Result<()> {
        let mut left: Vec<&String> = self.0.keys().collect();
        if left.is_empty() {
            return Ok(());
        }
        left.sort();
        Err(Error::Input(format!("unknown input tensors {left:?}: remove or rename them")))
    }
}
