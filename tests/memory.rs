//! The memory plan against what is measured: parameters counted, and the peak of a training step of models of several
//! depths, each in a process of its own.

use std::process::Command;

use candle_core::{DType, Device, Shape, Storage, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use msjoe::checkpoint::peft::LoraConfig;
use msjoe::models::qwen2_5_vl::adapter::Adapter;
use msjoe::models::qwen2_5_vl::config::{Config, Preset};
use msjoe::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use msjoe::nn::kv_cache::KvCache;
use msjoe::rl::memory::{
    Demand, Keep, Learn, MemoryPlan, Nodes, Phase, Rollout, Update, available, free_memory, text_elements,
    vision_elements,
};
use msjoe::rl::settings::{Settings, demand as asked};

use crate::backward::{folder, tiny};

fn demand(learn: Learn, keep: Keep, tokens: usize) -> Demand {
    Demand {
        learn,
        reference: false,
        others: 0,
        dtype: DType::F32,
        nodes: Nodes::Layers,
        rollout: Rollout { prompts: 4, prompt_tokens: 300, num_generations: 8, new_tokens: 64 },
        update: Update { tokens, learned_tokens: tokens / 4, longest: 128, keep, gradients: 1 },
        visual_tokens: 100,
        gallery: 0,
        patches: 64,
    }
}

#[test]
fn parameters_are_counted() {
    for name in ["qwen_base", "qwen_gqa", "qwen_tied"] {
        let config = Config::load(folder(name)).unwrap();
        let checkpoint = msjoe::checkpoint::Checkpoint::open(folder(name)).unwrap();
        let tensors = checkpoint.tensors(DType::F32, &Device::Cpu).unwrap();
        let stored: usize = tensors.values().map(Tensor::elem_count).sum();
        assert_eq!(text_elements(&config.text) + vision_elements(&config.vision), stored, "{name}");
    }
    // The published sizes: 3.75, 8.29 and 73.4 billion.
    let billions = |preset| {
        let config = Config::preset(preset);
        (text_elements(&config.text) + vision_elements(&config.vision)) as f64 / 1e9
    };
    for (preset, size) in [(Preset::B3, 3.755), (Preset::B7, 8.292), (Preset::B72, 73.41)] {
        assert!((billions(preset) - size).abs() < 0.01, "{preset:?}: {}", billions(preset));
    }
}

#[test]
fn plans_add_up_and_say_what_is_too_much() {
    let (config, parameters) = tiny(DType::F32);
    let full = MemoryPlan::new(&config, &demand(Learn::All, Keep::Inputs, 1000), Some(1 << 30));
    let bytes = |plan: &MemoryPlan, name: &str| -> u64 {
        plan.items.iter().filter(|item| item.name.starts_with(name)).map(|item| item.bytes).sum()
    };
    let all = 4 * parameters.elements() as u64;
    assert_eq!(
        (bytes(&full, "weights"), bytes(&full, "optimizer"), bytes(&full, "gradients")),
        (all, 2 * all, all)
    );
    assert_eq!(bytes(&full, "layer inputs"), 2 * 1000 * 48 * 4);
    // 2 layers, keys and values, 2 heads of 8: 4 prompts of 300, 32 completions in buffers of 256.
    assert_eq!(bytes(&full, "KV cache: prompts"), 2 * 2 * 2 * 8 * 4 * 4 * 300);
    assert_eq!(bytes(&full, "KV cache: completions"), 2 * 2 * 2 * 8 * 4 * 32 * 256);
    assert_eq!(full.peak(), full.in_phase(Phase::Rollout).max(full.in_phase(Phase::Update)));
    full.check().unwrap();

    let adapter = MemoryPlan::new(&config, &demand(Learn::Adapter(500), Keep::Inputs, 1000), None);
    assert_eq!(
        (bytes(&adapter, "adapter"), bytes(&adapter, "optimizer"), bytes(&adapter, "gradients")),
        (2000, 4000, 2000)
    );
    assert!(adapter.peak() < full.peak());
    adapter.check().unwrap();
    assert!(adapter.to_string().contains("not known"));

    let b7 = Config::preset(Preset::B7);
    let large = Demand { dtype: DType::BF16, ..demand(Learn::All, Keep::Inputs, 4000) };
    let plan = MemoryPlan::new(&b7, &large, Some(80 << 30));
    let error = plan.check().unwrap_err().to_string();
    assert!(error.contains("optimizer moments") && error.contains("80.00 GiB are free"), "{error}");
    // 66 GB of moments, as the reference notes have it.
    assert!((bytes(&plan, "optimizer") as f64 / 1e9 - 66.3).abs() < 0.5);
    let table = plan.to_string();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), plan.items.len() + 2, "{table}");
    assert!(lines[0].starts_with("always   weights (bf16)") && lines[0].ends_with("15.45 GiB"), "{table}");
    let lora = Demand { learn: Learn::Adapter(20_000_000), ..large };
    MemoryPlan::new(&b7, &lora, Some(80 << 30)).check().unwrap();
}

#[test]
fn free_memory_is_read() {
    assert_eq!(free_memory("MemTotal: 9 kB\nMemAvailable:   16384 kB\n"), Some(16 << 20));
    for wrong in ["", "MemAvailable: x kB", "MemAvailable: 12 MB", "MemAvailable:"] {
        assert_eq!(free_memory(wrong), None, "{wrong:?}");
    }
    assert!(available(&Device::Cpu).is_none_or(|bytes| bytes > 1 << 20));
}

/// Set in a process that measures itself, to what it should do.
pub const CHILD: &str = "MSJOE_TEST_MEMORY";
const TOKENS: usize = 8192;

/// Every tensor filled with small numbers; in f32 a variable, in half precision the frozen base of an adapter.
struct Filled;

impl SimpleBackend for Filled {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let mean = if name.contains("norm") { 1.0 } else { 0.0 };
        let values: Vec<f32> =
            (0..shape.elem_count()).map(|i| mean + ((i * 7919) % 101) as f32 / 2000.0 - 0.025).collect();
        let tensor = Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?;
        Ok(if dtype == DType::F32 { Var::from_tensor(&tensor)?.into_inner() } else { tensor })
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} was asked for without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn deep(layers: usize) -> Config {
    let mut config = Config::load(folder("qwen_gqa")).unwrap();
    config.text.num_hidden_layers = layers;
    config
}

/// One training step in a fresh process; prints the peak of its resident memory in KiB. Does nothing unless it was started
/// by the test below.
#[test]
fn child_of_the_peak_test() {
    let Ok(what) = std::env::var(CHILD) else { return };
    let [layers, keep, dtype] = what.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let dtype = if dtype == "bf16" { DType::BF16 } else { DType::F32 };
    let vb = VarBuilder::from_backend(Box::new(Filled), dtype, Device::Cpu);
    let mut model = Qwen2_5Vl::new(&deep(layers.parse().unwrap()), vb).unwrap();
    if dtype == DType::BF16 {
        let adapter = Adapter::new(&model, LoraConfig::text(2, 4.0), 1).unwrap();
        model = model.with_adapter(&adapter).unwrap();
    }
    // Composed attention keeps scores, which no device does: short prompts have few.
    let length = if dtype == DType::BF16 { 8 } else { 128 };
    let prompts: Vec<Prompt> = (0..TOKENS / length)
        .map(|i| Prompt::text((0..length).map(|j| ((i * 31 + j * 7) % 140) as u32).collect()))
        .collect();
    let batch = model.pack(&prompts).unwrap();
    let grads = if keep == "inputs" {
        model.backward_checkpointed(&batch, |hidden| hidden.sqr()?.sum_all()).unwrap().1
    } else {
        model.hidden_packed(&batch).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap()
    };
    std::hint::black_box(grads);
    print_peak();
}

/// Prints the peak of this process's resident memory, for [`peak_of_child`].
pub fn print_peak() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("peak {}", line.trim().trim_end_matches(" kB"));
}

/// Bytes at the peak of a step.
fn measured(layers: usize, keep: Keep, dtype: DType) -> f64 {
    let keep = if keep == Keep::Inputs { "inputs" } else { "everything" };
    peak_of_child("memory::child_of_the_peak_test", &format!("{layers} {keep} {}", dtype.as_str()))
}

/// Bytes at the peak of a process of its own that runs one test, which finds `what` in the variable [`CHILD`].
pub fn peak_of_child(test: &str, what: &str) -> f64 {
    let out = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, what)
        // Freed memory goes back at once, so that the peak is of what is in use.
        .envs([
            ("MALLOC_MMAP_THRESHOLD_", "65536"),
            ("MALLOC_TRIM_THRESHOLD_", "65536"),
            ("RAYON_NUM_THREADS", "2"),
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let peak = text
        .lines()
        .find_map(|line| line.split("peak ").nth(1)?.split_whitespace().next()?.parse::<f64>().ok());
    peak.unwrap_or_else(|| panic!("no peak in {text}")) * 1024.0
}

/// Peak memory grows with the layers by what the plan says: by the inputs alone when they are what is kept.
#[test]
#[cfg(target_os = "linux")]
fn the_peak_grows_with_layers_as_planned() {
    let planned = |layers, keep| {
        let mut plan = MemoryPlan::new(&deep(layers), &demand(Learn::Text, keep, TOKENS), None);
        plan.items.retain(|item| !item.name.starts_with("optimizer"));
        plan.in_phase(Phase::Update) as f64
    };
    let growth = |keep| {
        let (shallow, deep) = (4, 16);
        (
            measured(deep, keep, DType::F32) - measured(shallow, keep, DType::F32),
            planned(deep, keep) - planned(shallow, keep),
        )
    };
    let (inputs, planned_inputs) = growth(Keep::Inputs);
    let (all, planned_all) = growth(Keep::Everything);
    let shown = format!(
        "measured and planned growth of 12 layers: inputs {inputs:.2e} {planned_inputs:.2e}, all {all:.2e} {planned_all:.2e}"
    );
    assert!((inputs / planned_inputs - 1.0).abs() < 0.15, "{shown}");
    assert!((all / planned_all - 1.0).abs() < 0.15, "{shown}");
    // One layer's input is 1.6 MB here; everything of a layer is 9 times that.
    assert!(all > 5.0 * inputs, "{shown}");
}

/// The settings for 7B say how large a card they are for.
#[test]
fn the_settings_for_7b_fit_their_card() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("examples/qwen2_5_vl_7b.toml")).unwrap();
    let mut settings: Settings = toml::from_str(&text).unwrap();
    settings.models.mllm = root.join("models/qwen2.5-vl-7b");
    settings.check().unwrap();
    let config = Config::load(&settings.models.mllm).unwrap();
    let demand = asked(&settings, &config, (Nodes::Kernels, DType::BF16));
    let plan = MemoryPlan::new(&config, &demand, None);
    let peak = plan.peak() as f64 / 1e9;
    assert!((40.0..72.0).contains(&peak), "{plan}");
}

/// What the cache of a single completion takes is what is planned: it grows its prompt's buffer.
#[test]
fn the_cache_of_one_completion_is_planned() {
    let (config, _) = tiny(DType::F32);
    for (prompt, new) in [(300, 64), (20, 300), (300, 0), (9000, 100)] {
        let mut one = demand(Learn::Text, Keep::Inputs, 1000);
        one.rollout = Rollout { prompts: 1, prompt_tokens: prompt, num_generations: 1, new_tokens: new };
        let plan = MemoryPlan::new(&config, &one, None);
        let planned: u64 =
            plan.items.iter().filter(|item| item.name.starts_with("KV cache")).map(|item| item.bytes).sum();
        let (layers, heads, width) =
            (config.text.num_hidden_layers, config.text.num_key_value_heads, config.text.head_dim());
        let mut cache = KvCache::new(1, 1);
        let mut taken = 0;
        let chunks = (0..prompt).step_by(8192).map(|start| 8192.min(prompt - start));
        for rows in chunks.chain(std::iter::repeat_n(1, new)) {
            let keys = Tensor::zeros((rows, heads, width), DType::F32, &Device::Cpu).unwrap();
            let attended = cache.append(0, &keys, &keys, &[rows]).unwrap();
            let (storage, _) = attended[0].parts[0].0.storage_and_layout();
            let Storage::Cpu(storage) = &*storage else { panic!("expected the CPU") };
            taken = storage.as_slice::<f32>().unwrap().len();
        }
        assert_eq!(planned, (2 * layers * taken * 4) as u64, "{prompt} and {new}");
    }
}

/// Where every tensor operation is a node, its results are counted.
#[test]
#[cfg(target_os = "linux")]
fn the_results_of_operations_are_planned() {
    let (shallow, deeper) = (2, 6);
    let planned = |layers| {
        let mut settings = Demand {
            dtype: DType::BF16,
            nodes: Nodes::Operations,
            ..demand(Learn::Adapter(1), Keep::Everything, TOKENS)
        };
        settings.update.longest = 8;
        MemoryPlan::new(&deep(layers), &settings, None).in_phase(Phase::Update) as f64
    };
    let measured = |layers| measured(layers, Keep::Everything, DType::BF16);
    let found = measured(deeper) - measured(shallow);
    let expected = planned(deeper) - planned(shallow);
    assert!((found / expected - 1.0).abs() < 0.06, "measured growth {found:.3e}, planned {expected:.3e}");
}
