//! Adapters: what they change, what they learn, and what they leave alone.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use msjoe::checkpoint::peft::{LoraConfig, Targets};
use msjoe::models::qwen2_5_vl::adapter::Adapter;
use msjoe::models::qwen2_5_vl::packed::PackedBatch;
use msjoe::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use msjoe::ops::linear::linear_no_bias;
use msjoe::ops::vjp::leaves;
use msjoe::optim::{AdamW, AdamWConfig};

use crate::backward::{model, prompts, tiny};
use crate::nn::{normal, relative};

/// Text and vision, a fused projection among them, with patterns and the other scale.
fn config() -> LoraConfig {
    LoraConfig {
        use_rslora: true,
        rank_pattern: vec![("down_proj".into(), 2)],
        alpha_pattern: vec![("qkv".into(), 1.5)],
        ..LoraConfig::new(3, 4.0, Targets::Regex(r".*(q_proj|down_proj|qkv|mlp\.2)".into()))
    }
}

fn base(dtype: DType) -> Qwen2_5Vl {
    let (config, parameters) = tiny(dtype);
    model(&config, &parameters, |_| false)
}

/// An adapter whose second factors are not zero.
fn adapter(base: &Qwen2_5Vl) -> Adapter {
    let adapter = Adapter::new(base, config(), 7).unwrap();
    for (i, (name, var)) in adapter.parameters().iter().enumerate() {
        if name.ends_with("lora_B.weight") {
            let noise = (normal(var.dims(), 100 + i as u64) * 0.3).unwrap();
            var.set(&noise.to_dtype(var.dtype()).unwrap()).unwrap();
        }
    }
    adapter
}

fn batch(model: &Qwen2_5Vl, dtype: DType) -> PackedBatch {
    model.pack(&prompts(model, dtype)).unwrap()
}

fn hidden(model: &Qwen2_5Vl, dtype: DType) -> Tensor {
    model.hidden_packed(&batch(model, dtype)).unwrap()
}

fn loss(hidden: &Tensor) -> candle_core::Result<Tensor> {
    (hidden * normal(hidden.dims(), 9).to_dtype(hidden.dtype())?)?.sum_all()
}

#[test]
fn a_fresh_adapter_changes_nothing_and_is_seeded() {
    let base = base(DType::F32);
    let fresh = |seed| Adapter::new(&base, config(), seed).unwrap();
    let adapter = fresh(7);
    let with = base.with_adapter(&adapter).unwrap();
    assert_eq!(relative(&hidden(&with, DType::F32).detach(), &hidden(&base, DType::F32)), 0.0);
    let values = |adapter: &Adapter| -> BTreeMap<String, Vec<f32>> {
        let named = adapter.parameters().iter();
        named.map(|(n, v)| (n.to_owned(), v.flatten_all().unwrap().to_vec1().unwrap())).collect()
    };
    let ours = values(&adapter);
    assert_eq!(ours, values(&fresh(7)));
    assert_ne!(ours, values(&fresh(8)));
    // Layers with q and down, blocks of the tower with qkv and down, and the second half of the merger.
    assert_eq!(ours.len(), 2 * (2 * 2 + 2 * base.config.vision.depth + 1), "{:?}", ours.keys());
    for (name, values) in &ours {
        let shape = adapter.parameters().get(name).unwrap().dims().to_vec();
        let rank = if name.contains("down_proj") { 2 } else { 3 };
        if name.ends_with("lora_B.weight") {
            assert!(values.iter().all(|x| *x == 0.0) && shape[1] == rank, "{name} {shape:?}");
        } else {
            // Uniform within 1 / sqrt(in): all inside, most of the width used.
            let bound = 1.0 / (shape[1] as f32).sqrt();
            let top = values.iter().fold(0f32, |top, x| top.max(x.abs()));
            assert!(
                top <= bound && top > 0.9 * bound && shape[0] == rank,
                "{name} {shape:?}: {top}, {bound}"
            );
        }
    }
}

#[test]
fn gradients_of_the_factors_equal_finite_differences() {
    let base = base(DType::F64);
    let adapter = adapter(&base);
    let value = |model: &Qwen2_5Vl| loss(&hidden(model, DType::F64)).unwrap();
    let tracked = base.with_adapter(&adapter).unwrap();
    let grads = adapter.parameters().gradients(&leaves(&value(&tracked)).unwrap()).unwrap();
    let twin = tracked.detached();
    let step = 1e-5;
    for (name, var) in adapter.parameters().iter() {
        assert_eq!(var.dtype(), DType::F64);
        let values: Vec<f64> = var.flatten_all().unwrap().to_vec1().unwrap();
        let analytic: Vec<f64> = grads[name].flatten_all().unwrap().to_vec1().unwrap();
        for at in [0, values.len() / 2, values.len() - 1] {
            let moved = |by: f64| {
                let mut values = values.clone();
                values[at] += by;
                var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
                value(&twin).to_scalar::<f64>().unwrap()
            };
            let numeric = (moved(step) - moved(-step)) / (2.0 * step);
            moved(0.0);
            let error = (numeric - analytic[at]).abs() / numeric.abs().max(1.0);
            assert!(error < 1e-5, "{name} {at}: {} against {numeric}", analytic[at]);
        }
    }
}

/// Fused f32 against composed f64, plain and checkpointed; nothing but the factors has a gradient.
#[test]
fn only_the_factors_learn() {
    let run = |dtype, checkpointed: bool| -> BTreeMap<String, Tensor> {
        let base = base(dtype);
        let adapter = adapter(&base);
        let model = base.with_adapter(&adapter).unwrap();
        let batch = batch(&model, dtype);
        let store = if checkpointed {
            model.backward_checkpointed(&batch, loss).unwrap().1
        } else {
            leaves(&loss(&model.hidden_packed(&batch).unwrap()).unwrap()).unwrap()
        };
        assert_eq!(store.get_ids().count(), adapter.parameters().len());
        let grads = adapter.parameters().gradients(&store).unwrap();
        grads.into_iter().map(|(n, g)| (n, g.to_dtype(DType::F64).unwrap())).collect()
    };
    let exact = run(DType::F64, false);
    for (dtype, checkpointed, tolerance) in [
        (DType::F32, false, 1e-5),
        (DType::F32, true, 1e-5),
        (DType::F64, true, 1e-12),
        (DType::BF16, true, 0.1),
    ] {
        for (name, grad) in run(dtype, checkpointed) {
            let error = relative(&grad, &exact[&name]);
            assert!(error < tolerance, "{dtype:?}, checkpointed {checkpointed}: {name} off by {error:.1e}");
        }
    }
}

#[test]
fn half_precision_bases_take_f32_factors() {
    let base = base(DType::BF16);
    let adapter = adapter(&base);
    assert!(adapter.parameters().iter().all(|(_, var)| var.dtype() == DType::F32));
    let with = hidden(&base.with_adapter(&adapter).unwrap(), DType::BF16);
    assert_eq!(with.dtype(), DType::BF16);
    // As near to f32 as the base itself is.
    let exact = hidden(&self::base(DType::F32).with_adapter(&adapter).unwrap(), DType::F32);
    assert!(relative(&with.to_dtype(DType::F32).unwrap(), &exact.detach()) < 0.03);
}

#[test]
fn taking_the_adapter_off_gives_the_base_bit_for_bit() {
    let base = base(DType::F32);
    let before = hidden(&base, DType::F32);
    let with = base.with_adapter(&adapter(&base)).unwrap();
    assert!(relative(&hidden(&with, DType::F32).detach(), &before) > 0.01);
    assert_eq!(relative(&hidden(&with.without_adapter(), DType::F32), &before), 0.0);
    assert_eq!(relative(&hidden(&base, DType::F32), &before), 0.0);
    // Attaching another one replaces it.
    let other = with.with_adapter(&Adapter::new(&base, LoraConfig::text(2, 2.0), 1).unwrap()).unwrap();
    assert_eq!(relative(&hidden(&other, DType::F32).detach(), &before), 0.0);
}

#[test]
fn the_detached_twin_sees_every_step() {
    let base = base(DType::F32);
    let adapter = adapter(&base);
    let model = base.with_adapter(&adapter).unwrap();
    let twin = model.detached();
    let before = hidden(&twin, DType::F32);
    assert!(!before.track_op());
    for (_, var) in adapter.parameters().iter() {
        var.set(&(var.as_tensor() * 1.5).unwrap()).unwrap();
    }
    let after = hidden(&twin, DType::F32);
    assert!(relative(&after, &before) > 1e-3);
    assert_eq!(relative(&after, &hidden(&model, DType::F32).detach()), 0.0);
}

/// Mean log-probability of one token after a prompt.
fn log_prob(model: &Qwen2_5Vl, hidden: &Tensor, token: u32) -> candle_core::Result<Tensor> {
    let last = hidden.narrow(0, hidden.dim(0)? - 1, 1)?;
    let logits = linear_no_bias(&last, model.text().head())?;
    candle_nn::ops::log_softmax(&logits, 1)?.narrow(1, token as usize, 1)?.mean_all()
}

#[test]
fn an_adapter_learns_and_the_base_does_not_change() {
    let base = base(DType::F32);
    let adapter = Adapter::new(&base, LoraConfig::text(4, 8.0), 3).unwrap();
    let model = base.with_adapter(&adapter).unwrap();
    let batch = base.pack(&[Prompt::text(vec![3, 17, 5, 42])]).unwrap();
    let reference = base.hidden_packed(&batch).unwrap();
    let probability = |model: &Qwen2_5Vl| {
        let hidden = model.detached().hidden_packed(&batch).unwrap();
        log_prob(model, &hidden, 77).unwrap().to_scalar::<f32>().unwrap().exp()
    };
    assert!(probability(&model) < 0.1);
    let mut optimizer = AdamW::new(AdamWConfig::default());
    for _ in 0..30 {
        let loss = |hidden: &Tensor| log_prob(&model, hidden, 77)?.neg();
        let (_, store) = model.backward_checkpointed(&batch, loss).unwrap();
        let grads = adapter.parameters().gradients(&store).unwrap();
        optimizer.step(adapter.parameters(), &grads, 0.02).unwrap();
    }
    assert!(probability(&model) > 0.9, "{}", probability(&model));
    assert!(probability(&base) < 0.1);
    assert_eq!(relative(&base.hidden_packed(&batch).unwrap(), &reference), 0.0);
}

/// An adapter of the vision tower has nothing to learn from text; that must not go unnoticed.
#[test]
fn factors_out_of_reach_are_named() {
    let base = base(DType::F32);
    let vision = LoraConfig::new(2, 2.0, Targets::Regex(r"model\.visual\..*qkv".into()));
    let adapter = Adapter::new(&base, vision, 3).unwrap();
    let model = base.with_adapter(&adapter).unwrap();
    let batch = base.pack(&[Prompt::text(vec![3, 17, 5, 42])]).unwrap();
    let (_, store) = model.backward_checkpointed(&batch, loss).unwrap();
    let error = adapter.parameters().gradients(&store).unwrap_err().to_string();
    assert!(error.contains("model.visual.blocks.0.attn.qkv.lora_A.weight"), "{error}");
}

#[test]
fn targets_follow_the_rules_of_peft() {
    let base = base(DType::F32);
    let modules = |targets: Targets, exclude: Option<Targets>| -> Vec<String> {
        let config = LoraConfig { exclude, ..LoraConfig::new(2, 2.0, targets) };
        let adapter = Adapter::new(&base, config, 0).unwrap();
        let names = adapter.parameters().iter().filter_map(|(name, _)| name.strip_suffix(".lora_A.weight"));
        names.map(|name| name.strip_prefix("base_model.model.model.").unwrap().to_owned()).collect()
    };
    let regex = |pattern: &str| Targets::Regex(pattern.to_owned());
    let names = |names: &[&str]| Targets::Names(names.iter().map(|name| (*name).to_owned()).collect());
    let q = ["language_model.layers.0.self_attn.q_proj", "language_model.layers.1.self_attn.q_proj"];
    assert_eq!(modules(names(&["q_proj"]), None), q);
    // An ending begins at a dot.
    assert!(Adapter::new(&base, LoraConfig::new(2, 2.0, names(&["_proj"])), 0).is_err());
    assert_eq!(modules(names(&["layers.1.self_attn.q_proj"]), None), q[1..]);
    // Names of both generations are understood.
    assert_eq!(modules(regex(r"model\.layers\.1\..*q_proj"), None), q[1..]);
    assert_eq!(modules(regex(r"model\.language_model\.layers\.1\..*q_proj"), None), q[1..]);
    // The whole name has to match.
    assert!(Adapter::new(&base, LoraConfig::new(2, 2.0, regex("q_proj")), 0).is_err());
    let gates = modules(names(&["gate_proj"]), None);
    assert!(gates.iter().any(|name| name.starts_with("visual.")), "{gates:?}");
    let text = ["language_model.layers.0.mlp.gate_proj", "language_model.layers.1.mlp.gate_proj"];
    assert_eq!(modules(names(&["gate_proj"]), Some(regex(".*visual.*"))), text);
    assert_eq!(modules(regex(r"(?!.*visual).*gate_proj"), None), text);
    let second = [text[1], "visual.blocks.1.mlp.gate_proj"];
    assert_eq!(modules(names(&["gate_proj"]), Some(names(&["0.mlp.gate_proj"]))), second);
    assert_eq!(modules(names(&["2"]), None), ["visual.merger.mlp.2"]);
}

#[test]
fn bad_configurations_are_refused() {
    let base = base(DType::F32);
    let text = LoraConfig::text(2, 2.0);
    let regex = |pattern: &str| Targets::Regex(pattern.to_owned());
    let cases = [
        (LoraConfig { rank: 0, ..text.clone() }, "rank of at least 1"),
        (LoraConfig { rank_pattern: vec![("q_proj".into(), 0)], ..text.clone() }, "rank of at least 1"),
        (LoraConfig { alpha: f64::NAN, ..text.clone() }, "finite alpha"),
        (LoraConfig { targets: regex("(q_proj"), ..text.clone() }, "(q_proj"),
        (LoraConfig { exclude: Some(regex("[")), ..text.clone() }, "no regular expression"),
        (LoraConfig { targets: regex("lm_head"), ..text }, "no module of the model"),
    ];
    for (config, words) in cases {
        let error = Adapter::new(&base, config, 0).map(drop).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} lacks {words:?}");
    }
    // A wider model: the adapter of this one does not fit it.
    let mut wide = msjoe::nn::Linear::new(normal(&[4, 6], 1), None);
    let lora = msjoe::nn::Lora { a: normal(&[2, 5], 2), b: normal(&[4, 2], 3), scale: 1.0 };
    let error = wide.set_lora(lora).unwrap_err().to_string();
    assert!(error.contains("[2, 5]") && error.contains("[4, 6]"), "{error}");
}
