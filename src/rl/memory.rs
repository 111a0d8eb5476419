//! What a training run will need in memory, before it starts. Tensor-free.
//!
//! The figures follow how this crate computes: sequences are packed, the input of each decoder layer is kept and the layer
//! run again in the backward pass, logits exist in chunks, frozen weights have no gradients. Rollout and update take turns,
//! so the larger of the two counts.

use std::fmt;

use candle_core::{DType, Device};

use super::rollout::PREFILL;
use crate::models::qwen2_5_vl::config::{Config, TextConfig, VisionConfig};
use crate::nn::kv_cache::capacity;
use crate::ops::log_prob::Chunks;
use crate::{Error, Result};

/// Which parameters learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learn {
    /// All of the text model and the vision tower.
    All,
    /// The text model.
    Text,
    /// An adapter of so many values, over a frozen base.
    Adapter(usize),
}

/// What is kept of the decoder layers until the backward pass reaches them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The input of each layer; the layer is run again.
    Inputs,
    /// Everything that the backward pass needs.
    Everything,
}

/// What a step of the graph is, which decides how much of a decoder layer is alive at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodes {
    /// A whole layer with a backward of its own: f32 on the CPU.
    Layers,
    /// Every tensor operation, but attention, norms, rotary positions and SwiGLU, each as one: a CUDA device.
    Kernels,
    /// Every tensor operation, the scores of attention among them: half precision on the CPU.
    Operations,
}

impl Nodes {
    /// Those of a device and a precision.
    pub fn of(device: &Device, dtype: DType) -> Self {
        match (device.is_cpu(), dtype) {
            (true, DType::F32) => Self::Layers,
            (true, _) => Self::Operations,
            (false, _) => Self::Kernels,
        }
    }
}

/// Sequences that are generated at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollout {
    /// Prompts, each prefilled once.
    pub prompts: usize,
    /// Tokens of the longest prompt.
    pub prompt_tokens: usize,
    /// Completions of each prompt.
    pub num_generations: usize,
    /// Most tokens of a completion.
    pub new_tokens: usize,
}

/// One forward and backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    /// Tokens of all sequences that are packed together.
    pub tokens: usize,
    /// Tokens among them whose log-probabilities enter the loss.
    pub learned_tokens: usize,
    /// Tokens of the longest sequence.
    pub longest: usize,
    /// What is kept in between.
    pub keep: Keep,
    /// Gradients of everything that learns that are alive at once: of parts computed side by side, and their sum.
    pub gradients: usize,
}

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Which parameters learn.
    pub learn: Learn,
    /// Whether all weights learn beside a copy of what they were, from which the divergence is measured. An adapter's
    /// reference is the base itself.
    pub reference: bool,
    /// Bytes of the models beside the language model.
    pub others: usize,
    /// Type of the weights and activations.
    pub dtype: DType,
    /// What a step of the graph is.
    pub nodes: Nodes,
    /// Largest rollout.
    pub rollout: Rollout,
    /// Largest update.
    pub update: Update,
    /// Visual tokens whose features are kept for the samples of a step.
    pub visual_tokens: usize,
    /// Bytes of features that are kept from step to step.
    pub gallery: usize,
    /// Patches that go through the vision tower at once.
    pub patches: usize,
}

/// When memory is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// All the time.
    Always,
    /// While sequences are generated.
    Rollout,
    /// From the forward pass to the optimizer's step.
    Update,
}

/// One line of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub name: String,
    /// When.
    pub phase: Phase,
    /// How much.
    pub bytes: u64,
}

/// The plan; prints as a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What needs memory.
    pub items: Vec<Item>,
    /// What there is, where that is known.
    pub available: Option<u64>,
}

/// Moments and gradients are f32 whatever the weights are.
const F32: usize = 4;
/// Most query rows of a block of attention scores.
const SCORE_ROWS: usize = 128;

impl MemoryPlan {
    /// The plan for a Qwen2.5-VL of the given sizes.
    pub fn new(config: &Config, demand: &Demand, available: Option<u64>) -> Self {
        let (text, vision) = (text_elements(&config.text), vision_elements(&config.vision));
        let learned = match demand.learn {
            Learn::All => text + vision,
            Learn::Text => text,
            Learn::Adapter(values) => values,
        };
        let size = demand.dtype.size_in_bytes();
        let mut plan = Self { items: vec![], available };
        plan.add(Phase::Always, format!("weights ({})", demand.dtype.as_str()), (text + vision) * size);
        plan.add(Phase::Always, "CLIP (f32)", demand.others);
        if demand.reference {
            plan.add(Phase::Always, "copy of the weights for the divergence", text * size);
        }
        if let Learn::Adapter(values) = demand.learn {
            plan.add(Phase::Always, "adapter (f32)", values * F32);
        }
        plan.add(Phase::Always, "optimizer moments (2 x f32)", 2 * learned * F32);
        plan.add(Phase::Always, "vision features", demand.visual_tokens * config.text.hidden_size * size);
        plan.add(Phase::Always, "vision features of earlier steps", demand.gallery);
        plan.rollout(config, demand);
        plan.update(config, demand, learned);
        plan
    }

    fn rollout(&mut self, config: &Config, demand: &Demand) {
        let (text, rollout, size) = (&config.text, &demand.rollout, demand.dtype.size_in_bytes());
        let row = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim() * size;
        let sequences = rollout.prompts * rollout.num_generations;
        // A single completion grows its prompt's own buffer.
        let (tails, own) = match rollout.num_generations {
            1 => (0, rollout.new_tokens),
            _ => (sequences * capacity(0, 1, rollout.new_tokens), 0),
        };
        let prefixes = rollout.prompts * capacity(rollout.prompt_tokens, PREFILL, own);
        self.add(Phase::Rollout, "KV cache: prompts, shared by their completions", prefixes * row);
        self.add(Phase::Rollout, "KV cache: completions", tails * row);
        self.add(Phase::Rollout, "logits of the newest tokens", sequences * text.vocab_size * F32);
        let chunk = (rollout.prompts * rollout.prompt_tokens).min(PREFILL);
        let wide = (3 * text.intermediate_size + 6 * text.hidden_size) * size;
        // An adapter's sums are f32: the output widened, the product of the factors, its multiple, their sum.
        let adapted = matches!(demand.learn, Learn::Adapter(1..)) && demand.nodes != Nodes::Layers;
        let low = if adapted { 4 * text.intermediate_size * F32 } else { 0 };
        self.add(Phase::Rollout, "one layer of the prefill", chunk * (wide + low));
    }

    fn update(&mut self, config: &Config, demand: &Demand, learned: usize) {
        let (text, update, size) = (&config.text, &demand.update, demand.dtype.size_in_bytes());
        let (d, inner) = (text.hidden_size, text.intermediate_size);
        let (q, kv) =
            (text.num_attention_heads * text.head_dim(), text.num_key_value_heads * text.head_dim());
        // Per token: queries, keys, values, attention and its log-sum-exp, the residual in between, the two halves of the
        // MLP; and while the layer's backward runs, the gradients of about as much again.
        let working = (3 * inner + 4 * d + q + 2 * kv) * size;
        let saved = match demand.nodes {
            Nodes::Layers => (2 * q + 2 * kv + text.num_attention_heads + d + 2 * inner) * size,
            nodes => {
                results(text, nodes, (size, matches!(demand.learn, Learn::Adapter(1..))), update.longest)
            }
        };
        let grad = if matches!(demand.learn, Learn::Adapter(_)) { F32 } else { size };
        self.add(Phase::Update, "gradients", learned * grad * update.gradients);
        let kept = match update.keep {
            Keep::Inputs => ("layer inputs", text.num_hidden_layers * d * size),
            Keep::Everything => ("activations of all layers", text.num_hidden_layers * (d * size + saved)),
        };
        self.add(Phase::Update, kept.0, update.tokens * kept.1);
        let again = match update.keep {
            Keep::Inputs => ("one layer, run again, and its backward", saved + working),
            Keep::Everything => ("backward of one layer", working),
        };
        let scores = 2 * SCORE_ROWS * update.longest * F32;
        self.add(Phase::Update, again.0, update.tokens * again.1 + scores);
        let ends = 4 * update.tokens * d * size;
        let loss = 3 * update.learned_tokens * d * F32 + logits(text, demand);
        self.add(Phase::Update, "embeddings, final norm and loss", ends + loss);
        if demand.learn == Learn::All {
            let tower = vision_activations(&config.vision) * demand.patches * size;
            self.add(Phase::Update, "activations of the vision tower", tower);
        } else {
            let (v, patches) = (&config.vision, demand.patches);
            let wide = 6 * v.hidden_size + 3 * v.intermediate_size + v.patch_width();
            self.add(Phase::Rollout, "vision tower", patches * wide * size);
        }
    }

    fn add(&mut self, phase: Phase, name: impl Into<String>, bytes: usize) {
        if bytes > 0 {
            self.items.push(Item { name: name.into(), phase, bytes: bytes as u64 });
        }
    }

    /// Bytes in use in one phase, [`Phase::Always`] alone for itself.
    pub fn in_phase(&self, phase: Phase) -> u64 {
        let counts = |item: &&Item| item.phase == phase || item.phase == Phase::Always;
        self.items.iter().filter(counts).map(|item| item.bytes).sum()
    }

    /// Bytes at the peak.
    pub fn peak(&self) -> u64 {
        self.in_phase(Phase::Rollout).max(self.in_phase(Phase::Update))
    }

    /// Whether it fits, as far as that is known.
    ///
    /// # Errors
    /// [`Error::Input`] with what is needed, what there is, the largest item, and what to do.
    pub fn check(&self) -> Result<()> {
        let (Some(available), peak) = (self.available, self.peak()) else { return Ok(()) };
        if peak <= available {
            return Ok(());
        }
        let phase = if peak == self.in_phase(Phase::Rollout) { Phase::Rollout } else { Phase::Update };
        let counts = |item: &&Item| item.phase == phase || item.phase == Phase::Always;
        let largest = self.items.iter().filter(counts).max_by_key(|item| item.bytes);
        let (name, bytes) = largest.map_or(("", 0), |item| (item.name.as_str(), item.bytes));
        Err(Error::Input(format!(
            "the run needs {}, but {} are free; the largest part is {name} ({}): train an adapter, take fewer or shorter \
             sequences at a time, or a smaller model",
            amount(peak),
            amount(available),
            amount(bytes)
        )))
    }
}

/// Logits of the log-probabilities: one block in the kernel; as tensor operations five forms of it at once, or three beside the
/// head's chunk, widened.
fn logits(text: &TextConfig, demand: &Demand) -> usize {
    let chunks = if demand.nodes == Nodes::Kernels { Chunks::ON_GPU } else { Chunks::default() };
    let words = chunks.vocabulary.min(text.vocab_size);
    let block = chunks.rows.min(demand.update.learned_tokens) * words * F32;
    let wide = if demand.dtype.size_in_bytes() < F32 { words * text.hidden_size * F32 } else { 0 };
    match demand.nodes {
        Nodes::Layers => block,
        Nodes::Kernels | Nodes::Operations => (5 * block).max(3 * block + wide),
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let width = self.items.iter().map(|item| item.name.len()).max().unwrap_or(0).max(16);
        for (phase, title) in
            [(Phase::Always, "always"), (Phase::Rollout, "rollout"), (Phase::Update, "update")]
        {
            for item in self.items.iter().filter(|item| item.phase == phase) {
                writeln!(f, "{title:8} {:width$} {:>11}", item.name, amount(item.bytes))?;
            }
        }
        writeln!(f, "{:8} {:width$} {:>11}", "peak", "", amount(self.peak()))?;
        match self.available {
            Some(available) => write!(f, "{:8} {:width$} {:>11}", "free", "", amount(available)),
            None => write!(f, "{:8} {:width$} {:>11}", "free", "", "not known"),
        }
    }
}

/// Free memory in bytes: what the system says can be had without swapping, on the CPU; what the driver says is free, on a
/// CUDA device.
pub fn available(device: &Device) -> Option<u64> {
    if !device.is_cpu() {
        return crate::device::free_memory(device);
    }
    // Another stage may have run in this process.
    crate::ops::heap::release();
    free_memory(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// `MemAvailable` of a text in the form of `/proc/meminfo`, in bytes.
pub fn free_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let (number, unit) = line.trim().split_once(' ')?;
    (unit.trim() == "kB").then(|| number.parse::<u64>().ok().map(|kib| kib * 1024))?
}

/// Parameters of the text model, its head included.
pub fn text_elements(text: &TextConfig) -> usize {
    let (d, inner) = (text.hidden_size, text.intermediate_size);
    let (q, kv) = (text.num_attention_heads * text.head_dim(), text.num_key_value_heads * text.head_dim());
    let layer = d * q + q + 2 * (d * kv + kv) + q * d + 3 * d * inner + 2 * d;
    let tables = if text.tie_word_embeddings { 1 } else { 2 };
    tables * text.vocab_size * d + text.num_hidden_layers * layer + d
}

/// Parameters of the vision tower.
pub fn vision_elements(vision: &VisionConfig) -> usize {
    let (d, inner) = (vision.hidden_size, vision.intermediate_size);
    let block = 3 * d * d + 3 * d + d * d + d + 2 * (d * inner + inner) + inner * d + d + 2 * d;
    let wide = d * vision.spatial_merge_size.pow(2);
    let merger = d + wide * wide + wide + wide * vision.out_hidden_size + vision.out_hidden_size;
    vision.patch_width() * d + vision.depth * block + merger
}

/// Bytes per token of what the nodes of a decoder layer keep, as [`crate::nn::Block::forward_composed`] makes them of values of
/// `size` bytes, for sequences of up to `longest` tokens.
fn results(text: &TextConfig, nodes: Nodes, (size, adapters): (usize, bool), longest: usize) -> usize {
    let (d, inner, heads) = (text.hidden_size, text.intermediate_size, text.num_attention_heads);
    let (q, kv) = (heads * text.head_dim(), text.num_key_value_heads * text.head_dim());
    // Products and, of q, k and v, their biases.
    let (ins, outs) = (5 * d + q + inner, q + 2 * kv + d + 2 * inner + d);
    let maps = (outs + q + 2 * kv) * size;
    // The input and the output widened, the product of the factors, its multiple, the sum, and that rounded.
    let low = if adapters { ins * F32 + outs * (4 * F32 + size) } else { 0 };
    let rest = match nodes {
        // Two norms, two rotations, attention and SwiGLU, with a number for each row of a norm and of a head.
        Nodes::Layers | Nodes::Kernels => (2 * d + 2 * q + kv + inner) * size + (2 + heads) * F32,
        Nodes::Operations => {
            // Widened, squared, divided, rounded, times the weight; twice.
            let norms = 2 * (3 * F32 + 2 * size) * d;
            // Widened, four products and two sums of halves, put together, rounded.
            let rotated = (5 * F32 + size) * (q + kv);
            // q, k and v by heads, k and v repeated, k turned, the result twice; ten forms of every score.
            let attention = (6 * q + 2 * kv) * size + (5 * F32 + 3 * size) * longest * heads;
            norms + rotated + attention + 2 * inner * size
        }
    };
    maps + low + rest + 2 * d * size
}

/// Values per patch that the tower keeps for its backward pass.
fn vision_activations(vision: &VisionConfig) -> usize {
    let (d, inner) = (vision.hidden_size, vision.intermediate_size);
    let block = d + 5 * d + vision.num_heads + 2 * inner;
    vision.patch_width() + vision.depth * block + (3 * inner + 8 * d) + 6 * d
}

/// `1.5 GiB`, `12 MiB`.
fn amount(bytes: u64) -> String {
    let bytes = bytes as f64;
    if bytes >= f64::from(1 << 30) {
        format!("{:.2} GiB", bytes / f64::from(1 << 30))
    } else {
        format!("{:.1} MiB", bytes / f64::from(1 << 20))
    }
}
