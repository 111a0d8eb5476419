//! Training Qwen2.5-VL: gradients of every parameter, packed batches, activation checkpointing, the detached twin.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarBuilder;
use msjoe::checkpoint::Checkpoint;
use msjoe::models::qwen2_5_vl::config::Config;
use msjoe::models::qwen2_5_vl::mrope::{Media, Timing};
use msjoe::models::qwen2_5_vl::packed::{Group, PackedBatch, Sharing};
use msjoe::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use msjoe::nn::{Block, Linear, RmsNorm};
use msjoe::ops::attention::{Mask, Segments};
use msjoe::ops::vjp::vjp;
use msjoe::optim::Parameters;

use crate::nn::{normal, relative};

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The smallest golden checkpoint (grouped queries) as trainable parameters.
pub fn tiny(dtype: DType) -> (Config, Parameters) {
    let dir = folder("qwen_gqa");
    let tensors = Checkpoint::open(&dir).unwrap().tensors(dtype, &Device::Cpu).unwrap();
    (Config::load(&dir).unwrap(), Parameters::new(tensors).unwrap())
}

/// A model over `parameters` in which only names that `learns` accepts are tracked.
pub fn model(config: &Config, parameters: &Parameters, learns: impl Fn(&str) -> bool) -> Qwen2_5Vl {
    let frozen = parameters.detached();
    let tensors: HashMap<String, Tensor> = (parameters.tracked().into_iter())
        .map(
            |(name, tracked)| {
                if learns(&name) { (name, tracked) } else { (name.clone(), frozen[&name].clone()) }
            },
        )
        .collect();
    let dtype = frozen.values().next().unwrap().dtype();
    Qwen2_5Vl::new(config, VarBuilder::from_tensors(tensors, dtype, &Device::Cpu)).unwrap()
}

/// Three prompts of different lengths: a video of two slices between text, text alone, an image.
pub fn prompts(model: &Qwen2_5Vl, dtype: DType) -> Vec<Prompt> {
    let features = |grid: [usize; 3], seed| {
        let rows = grid.iter().product();
        let pixels = normal(&[rows, model.config.vision.patch_width()], seed).to_dtype(dtype).unwrap();
        model.vision(&pixels, &[grid]).unwrap()
    };
    let video = Media::Video { grid: [2, 2, 4], timing: Timing::Uniform(1.0) };
    let image = Media::Image { grid: [1, 4, 4] };
    vec![
        Prompt {
            input_ids: vec![7, 150, 153, 153, 153, 153, 151, 9, 33, 71],
            features: vec![features(video.grid(), 1)],
            media: vec![video],
        },
        Prompt::text(vec![3, 4, 5, 100]),
        Prompt {
            input_ids: vec![150, 152, 152, 152, 152, 151, 12, 90],
            features: vec![features(image.grid(), 2)],
            media: vec![image],
        },
    ]
}

/// A loss that needs hidden states and head: chosen rows only, as in training on completions.
fn loss(model: &Qwen2_5Vl, hidden: &Tensor) -> Result<Tensor> {
    let rows = hidden.index_select(&Tensor::new(&[7u32, 8, 12, 19, 20], hidden.device())?, 0)?;
    let logits = msjoe::ops::linear::linear_no_bias(&rows, model.text().head())?;
    let weights = normal(logits.dims(), 5).to_dtype(logits.dtype())?;
    (candle_nn::ops::log_softmax(&logits, 1)? * weights)?.sum_all()
}

fn value(model: &Qwen2_5Vl, dtype: DType) -> Tensor {
    let batch = model.pack(&prompts(model, dtype)).unwrap();
    loss(model, &model.hidden_packed(&batch).unwrap()).unwrap()
}

fn scalar(x: &Tensor) -> f64 {
    x.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

#[test]
fn every_parameter_receives_the_gradient_of_finite_differences() {
    let (config, parameters) = tiny(DType::F64);
    let gradients = {
        let model = model(&config, &parameters, |_| true);
        parameters.gradients(&value(&model, DType::F64).backward().unwrap()).unwrap()
    };
    assert!(gradients.keys().any(|n| n.starts_with("visual.")) && gradients.contains_key("lm_head.weight"));
    // The twin follows `set`, so it evaluates moved weights without a graph.
    let twin = model(&config, &parameters, |_| false);
    let step = 1e-5;
    for (i, (name, var)) in parameters.iter().enumerate() {
        let values: Vec<f64> = var.flatten_all().unwrap().to_vec1().unwrap();
        let analytic: Vec<f64> = gradients[name].flatten_all().unwrap().to_vec1().unwrap();
        // The largest entry: the one that says most. The embedding of an unused token has none to compare.
        let at = (0..values.len()).max_by(|a, b| analytic[*a].abs().total_cmp(&analytic[*b].abs())).unwrap();
        let moved = |by: f64| {
            let mut values = values.clone();
            values[at] += by;
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
            scalar(&value(&twin, DType::F64))
        };
        let numeric = (moved(step) - moved(-step)) / (2.0 * step);
        moved(0.0);
        let error = (numeric - analytic[at]).abs() / numeric.abs().max(1e-3);
        // candle's erf-GELU has a backward of 6 digits; everything else is exact.
        assert!(numeric != 0.0 && error < 2e-5, "{i} {name}: {} against {numeric}", analytic[at]);
    }
}

fn close(what: &str, ours: &BTreeMap<String, Tensor>, theirs: &BTreeMap<String, Tensor>, tolerance: f64) {
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (name, theirs) in theirs {
        let error = relative(&ours[name], theirs);
        assert!(error <= tolerance, "{what}: gradient of {name} differs by {error:.1e}");
    }
}

/// The fused f32 operations against the composed ones in f64, which the finite differences proved.
#[test]
fn fused_gradients_equal_the_composed_ones() {
    let run = |dtype| {
        let (config, parameters) = tiny(dtype);
        let model = model(&config, &parameters, |_| true);
        let gradients = parameters.gradients(&value(&model, dtype).backward().unwrap()).unwrap();
        gradients.into_iter().map(|(n, g)| (n, g.to_dtype(DType::F64).unwrap())).collect()
    };
    let (ours, exact) = (without_key_biases(run(DType::F32)), without_key_biases(run(DType::F64)));
    close("f32 against f64", &ours, &exact, 2e-5);
}

/// The gradient of a key bias is zero by nature; what is computed is rounding.
fn without_key_biases(gradients: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    gradients.into_iter().filter(|(name, _)| !name.ends_with("k_proj.bias")).collect()
}

#[test]
fn packed_prompts_equal_single_ones() {
    let (config, parameters) = tiny(DType::F32);
    let model = model(&config, &parameters, |_| false);
    let prompts = prompts(&model, DType::F32);
    let batch = model.pack(&prompts).unwrap();
    assert_eq!((batch.starts(), batch.segments.total()), (vec![0, 10, 14], 22));
    let hidden = model.hidden_packed(&batch).unwrap();
    for (prompt, start) in prompts.iter().zip(batch.starts()) {
        let rows = hidden.narrow(0, start, prompt.input_ids.len()).unwrap();
        let alone = model.forward(prompt).unwrap();
        assert!(relative(&model.text().logits(&rows).unwrap(), &alone) < 1e-6);
    }
}

fn checkpointed(model: &Qwen2_5Vl, batch: &PackedBatch) -> (f64, GradStore) {
    let (value, grads) = model.backward_checkpointed(batch, |hidden| loss(model, hidden)).unwrap();
    assert!(!value.track_op());
    (scalar(&value), grads)
}

/// Which part learns; each is compared with the plain backward, and nothing else may be kept.
#[test]
fn checkpointed_equals_plain_and_keeps_nothing_else() {
    let (config, parameters) = tiny(DType::F32);
    type Chosen = fn(&str) -> bool;
    let parts: [(&str, Chosen); 7] = [
        ("all", |_| true),
        ("text", |name| !name.starts_with("visual.")),
        ("vision", |name| name.starts_with("visual.")),
        ("layers without embeddings", |name| name.starts_with("model.layers.")),
        ("the last layer", |name| name.starts_with("model.layers.1.")),
        ("one projection", |name| name == "model.layers.0.self_attn.q_proj.weight"),
        ("the head", |name| name == "lm_head.weight"),
    ];
    for (what, learns) in parts {
        let model = model(&config, &parameters, learns);
        let learned = parameters.filtered(learns);
        let batch = model.pack(&prompts(&model, DType::F32)).unwrap();
        let plain_loss = loss(&model, &model.hidden_packed(&batch).unwrap()).unwrap();
        let plain = learned.gradients(&plain_loss.backward().unwrap()).unwrap();
        let (value, grads) = checkpointed(&model, &batch);
        assert_eq!(value, scalar(&plain_loss), "{what}");
        assert_eq!(grads.get_ids().count(), learned.len(), "{what}: gradients kept");
        close(what, &learned.gradients(&grads).unwrap(), &plain, 1e-6);
    }
}

#[test]
fn checkpointed_gradients_reach_features() {
    let (config, parameters) = tiny(DType::F32);
    let model = model(&config, &parameters, |_| false);
    let mut batch = model.pack(&prompts(&model, DType::F32)).unwrap();
    let vars: Vec<Var> = batch.features.iter().map(|f| Var::from_tensor(f).unwrap()).collect();
    batch.features = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let plain = loss(&model, &model.hidden_packed(&batch).unwrap()).unwrap().backward().unwrap();
    let (_, grads) = checkpointed(&model, &batch);
    assert_eq!(grads.get_ids().count(), 2);
    for var in &vars {
        assert!(relative(grads.get(var).unwrap(), plain.get(var).unwrap()) < 1e-6);
    }
}

/// Uneven completions of prompts with a video, without media, and with an image: the shared form computes what the
/// separate one does, forward and backward, down to weights and features.
#[test]
fn shared_prompts_equal_separate_ones() {
    let (config, parameters) = tiny(DType::F32);
    let model = model(&config, &parameters, |_| true);
    let mut prompts = prompts(&model.detached(), DType::F32);
    let features: Vec<Var> =
        prompts.iter().flat_map(|p| &p.features).map(|f| Var::from_tensor(f).unwrap()).collect();
    prompts[0].features = vec![features[0].as_tensor().clone()];
    prompts[2].features = vec![features[1].as_tensor().clone()];
    let completions = [
        vec![vec![5, 6, 7], vec![8], vec![9, 10, 11, 12, 13], vec![]],
        vec![vec![20, 21]],
        vec![vec![30; 4], vec![31, 32], vec![30, 33]],
    ];
    let groups: Vec<Group> =
        prompts.iter().zip(&completions).map(|(prompt, completions)| Group { prompt, completions }).collect();
    let text = parameters.filtered(|name| !name.starts_with("visual."));
    let run = |sharing: Sharing| {
        let packed = model.pack_completions(&groups, sharing).unwrap();
        let rows: Vec<u32> = packed.rows.iter().flatten().copied().collect();
        let targets: Vec<u32> = packed.targets.iter().flatten().copied().collect();
        let log_probs = |hidden: &Tensor| -> Result<Tensor> {
            let chosen = hidden.index_select(&Tensor::new(rows.clone(), hidden.device())?, 0)?;
            Ok(msjoe::ops::log_prob::log_probs(&chosen, model.text().head(), &targets, 1.0)?.log_probs)
        };
        let values = log_probs(&model.hidden_packed(&packed.batch).unwrap()).unwrap().detach();
        let loss = |hidden: &Tensor| (log_probs(hidden)? * normal(&[targets.len()], 70))?.sum_all();
        let (_, grads) = model.backward_checkpointed(&packed.batch, loss).unwrap();
        let of_features: Vec<Tensor> = features.iter().map(|f| grads.get(f).unwrap().clone()).collect();
        assert_eq!(packed.targets, completions.concat());
        (packed.batch.input_ids.len(), values, text.gradients(&grads).unwrap(), of_features)
    };
    let (shared, separate) = (run(Sharing::Shared), run(Sharing::Separate));
    assert_eq!((shared.0, separate.0), (10 + 9 + 4 + 2 + 8 + 8, 4 * 10 + 9 + 4 + 2 + 3 * 8 + 8));
    assert!(relative(&shared.1, &separate.1) < 1e-6);
    close("shared", &without_key_biases(shared.2), &without_key_biases(separate.2), 3e-6);
    for (ours, theirs) in shared.3.iter().zip(&separate.3) {
        assert!(relative(ours, theirs) < 3e-6);
    }
    let empty = Prompt::text(vec![]);
    let error = model.pack_completions(&[Group { prompt: &empty, completions: &[] }], Sharing::Shared);
    assert!(error.unwrap_err().to_string().contains("empty prompt"));
}

/// A block as one node of the graph against its composed twin, for every part that may learn.
#[test]
fn blocks_equal_their_composed_twins() {
    let (d, heads, kv_heads, width, inner) = (24, 6, 2, 8, 20);
    let sizes = [(d, 48), (d, 16), (d, 16), (48, d), (d, inner), (d, inner), (inner, d)];
    let segments = Segments::continuing(&[5, 1, 9, 7], &[None, Some(0), None, Some(0)]).unwrap();
    let angles = normal(&[22, width / 2], 50);
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    // Norms, seven weights, seven biases, and last the input.
    let shapes: Vec<Vec<usize>> = [vec![d], vec![d]]
        .into_iter()
        .chain(sizes.map(|(from, to)| vec![to, from]))
        .chain(sizes.map(|(_, to)| vec![to]))
        .chain([vec![22, d]])
        .collect();
    let values: Vec<Tensor> = shapes.iter().zip(0..).map(|(shape, seed)| normal(shape, seed)).collect();
    let block = |x: &[Tensor]| {
        let linear = |i: usize| Linear::new(x[2 + i].clone(), Some(x[9 + i].clone()));
        Block {
            norm1: RmsNorm::new(x[0].clone(), 1e-6),
            norm2: RmsNorm::new(x[1].clone(), 1e-6),
            q: linear(0),
            k: linear(1),
            v: linear(2),
            o: linear(3),
            gate: linear(4),
            up: linear(5),
            down: linear(6),
            heads,
            kv_heads,
            width,
        }
    };
    let all: Vec<usize> = (0..values.len()).collect();
    let alone = (0..values.len()).map(|i| vec![i]);
    for learned in alone.chain([all, vec![0, 16], vec![5, 7, 16]]) {
        let run = |fused: bool| {
            let vars: Vec<Tensor> =
                (values.iter().enumerate())
                    .map(|(i, x)| {
                        if learned.contains(&i) {
                            Var::from_tensor(x).unwrap().into_inner()
                        } else {
                            x.clone()
                        }
                    })
                    .collect();
            let (block, xs) = (block(&vars), &vars[16]);
            let ys = if fused {
                block.forward(xs, (&cos, &sin), &segments, Mask::Causal).unwrap()
            } else {
                block.forward_composed(xs, (&cos, &sin), &segments, Mask::Causal).unwrap()
            };
            let mut grads = vjp(&ys, &normal(&[22, d], 60)).unwrap();
            let kept = grads.get_ids().count();
            let grads: Vec<Tensor> = learned.iter().map(|i| grads.remove(&vars[*i]).unwrap()).collect();
            assert_eq!(kept, learned.len());
            (ys.detach(), grads)
        };
        let ((ys, grads), (ys_twin, grads_twin)) = (run(true), run(false));
        assert_eq!(relative(&ys, &ys_twin), 0.0);
        for ((i, ours), theirs) in learned.iter().zip(&grads).zip(&grads_twin) {
            // The gradient of a key bias is zero but for rounding.
            let error = relative(ours, theirs);
            assert!(error < 3e-6 || *i == 10, "{learned:?}: gradient {i} differs by {error:.1e}");
        }
    }
}

/// A weight in two maps of a block, as an adapter of a fused projection is, receives both gradients.
#[test]
fn a_shared_weight_receives_the_sum() {
    let (w, x) = (Var::from_tensor(&normal(&[8, 8], 1)).unwrap(), normal(&[3, 8], 2));
    let linear = |w: &Tensor| Linear::new(w.clone(), None);
    let fixed = linear(&normal(&[8, 8], 3));
    let norm = || RmsNorm::new(normal(&[8], 4), 1e-6);
    let block = Block {
        norm1: norm(),
        norm2: norm(),
        q: linear(&w),
        k: linear(&w),
        v: linear(&w),
        o: fixed.clone(),
        gate: fixed.clone(),
        up: linear(&w),
        down: fixed,
        heads: 2,
        kv_heads: 2,
        width: 4,
    };
    let angles = normal(&[3, 2], 5);
    let run = |fused: bool| {
        let (angles, segments) = ((&angles.cos().unwrap(), &angles.sin().unwrap()), Segments::new(&[3]));
        let ys = match fused {
            true => block.forward(&x, angles, &segments, Mask::Full),
            false => block.forward_composed(&x, angles, &segments, Mask::Full),
        };
        vjp(&ys.unwrap(), &normal(&[3, 8], 6)).unwrap().remove(&w).unwrap()
    };
    assert!(relative(&run(true), &run(false)) < 2e-6);
}

#[test]
fn nothing_to_learn_is_no_gradient() {
    let (config, parameters) = tiny(DType::F32);
    let model = model(&config, &parameters, |_| false);
    let batch = model.pack(&prompts(&model, DType::F32)).unwrap();
    let (value, grads) = checkpointed(&model, &batch);
    assert!(value.is_finite() && grads.get_ids().count() == 0);
}

/// A frozen base in bf16 goes the composed way; candle's own backward would keep gradients of its frozen operands.
#[test]
fn frozen_half_precision_keeps_nothing() {
    let (config, parameters) = tiny(DType::BF16);
    let learns = |name: &str| name == "model.layers.0.mlp.up_proj.weight";
    let model = model(&config, &parameters, learns);
    let batch = model.pack(&prompts(&model, DType::BF16)).unwrap();
    let (_, grads) = checkpointed(&model, &batch);
    assert_eq!(grads.get_ids().count(), 1);
    parameters.filtered(learns).gradients(&grads).unwrap();
}

#[test]
fn the_detached_twin_follows_and_records_nothing() {
    let (config, parameters) = tiny(DType::F32);
    let model = model(&config, &parameters, |_| true);
    let twin = model.detached();
    let batch = |model: &Qwen2_5Vl| model.pack(&prompts(model, DType::F32)).unwrap();
    let before = twin.hidden_packed(&batch(&twin)).unwrap();
    assert!(!before.track_op() && model.hidden_packed(&batch(&model)).unwrap().track_op());
    for (_, var) in parameters.iter() {
        var.set(&(var.as_tensor() * 1.01).unwrap()).unwrap();
    }
    let (ours, followed) =
        (model.hidden_packed(&batch(&model)).unwrap().detach(), twin.hidden_packed(&batch(&twin)).unwrap());
    assert_eq!(relative(&followed, &ours), 0.0);
    assert!(relative(&followed, &before) > 1e-3);
}

#[test]
fn placeholders_and_features_must_match() {
    let (config, parameters) = tiny(DType::F32);
    let model = model(&config, &parameters, |_| false);
    let mut batch = model.pack(&prompts(&model, DType::F32)).unwrap();
    batch.features.pop();
    let error = model.hidden_packed(&batch).unwrap_err().to_string();
    assert!(error.contains("8 visual placeholder tokens") && error.contains("4 visual features"), "{error}");
}
