//! Runs a checkpoint on given tensors and writes what it computed, to compare with another implementation.
//! `tests/golden/parity.py` makes inputs, runs transformers on them and compares.
//!
//! ```text
//! $ python tests/golden/parity.py inputs --model qwen2.5-vl --checkpoint tests/golden/qwen_base --inputs in.safetensors
//! $ cargo run --release --example parity -- --model qwen2.5-vl --checkpoint tests/golden/qwen_base \
//!       --inputs in.safetensors --output out.safetensors
//! greedy i64 [32]
//! logits f32 [98, 160]
//! position_ids i64 [3, 98]
//! vision_embeds_image f32 [15, 64]
//! vision_embeds_video f32 [61, 64]
//! $ python tests/golden/parity.py compare --model qwen2.5-vl --checkpoint tests/golden/qwen_base --inputs in.safetensors \
//!       --outputs out.safetensors
//! ```
//!
//! The tensors of either model are described at `msjoe::parity`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use candle_core::Device;
use clap::{Parser, ValueEnum};
use msjoe::checkpoint::{read_json, write_safetensors};
use msjoe::models::clip::Clip;
use msjoe::models::qwen2_5_vl::Qwen2_5Vl;
use msjoe::models::qwen2_5_vl::adapter::Adapter;
use msjoe::models::qwen2_5_vl::generate::Options;
use msjoe::parity;
use serde_json::{Value, json};

/// Runs a checkpoint on given tensors and writes what it computed.
#[derive(Parser)]
struct Args {
    /// Which model the checkpoint is of.
    #[arg(long)]
    model: Model,
    /// Folder in Hugging Face layout.
    #[arg(long)]
    checkpoint: PathBuf,
    /// Adapter folder as PEFT writes it (Qwen2.5-VL).
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Safetensors file with the input tensors.
    #[arg(long)]
    inputs: PathBuf,
    /// Safetensors file to write; it appears only when everything went well.
    #[arg(long)]
    output: PathBuf,
    /// Most tokens to generate (Qwen2.5-VL); 0 leaves `greedy` empty.
    #[arg(long, default_value_t = 32)]
    max_new_tokens: usize,
    /// Precision of weights and activations: f32, bf16, f16 or auto.
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Where to run: cpu or cuda[:N].
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Model {
    #[value(name = "qwen2.5-vl")]
    Qwen,
    Clip,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN).init();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let folder = args.output.parent().filter(|folder| !folder.as_os_str().is_empty());
    ensure!(folder.is_none_or(Path::is_dir), "{}: its folder does not exist", args.output.display());
    let shown = args.inputs.display().to_string();
    ensure!(args.inputs.is_file(), "{shown}: no such file");
    let inputs = candle_core::safetensors::load(&args.inputs, &Device::Cpu)
        .with_context(|| format!("{shown} is not a readable safetensors file"))?;
    let device = msjoe::device::device(&args.device)?;
    let dtype = msjoe::device::dtype(&args.dtype, &device)?;
    let outputs = match args.model {
        Model::Qwen => {
            let mut model = Qwen2_5Vl::load(&args.checkpoint, dtype, &device)?;
            if let Some(adapter) = &args.adapter {
                model = model.with_adapter(&Adapter::load(adapter, &model)?)?.detached();
            }
            let stop_tokens = stop_tokens(&args.checkpoint, &model.config.eos_token_ids)?;
            let options = Options { max_new_tokens: args.max_new_tokens, stop_tokens, ..Options::default() };
            parity::qwen2_5_vl(&model, inputs, &options)
        }
        Model::Clip if args.adapter.is_some() => anyhow::bail!("--adapter is for qwen2.5-vl"),
        Model::Clip => parity::clip(&Clip::load(&args.checkpoint, dtype, &device)?, inputs),
    };
    let outputs = outputs.context(shown)?;
    write_safetensors(&args.output, &outputs, None)?;
    let lines = outputs.iter().map(|(name, tensor)| (name, tensor.dtype().as_str(), tensor.dims()));
    if args.json {
        let described =
            lines.map(|(name, dtype, shape)| (name.clone(), json!({ "dtype": dtype, "shape": shape })));
        println!("{}", Value::from_iter(described));
    } else {
        lines.for_each(|(name, dtype, shape)| println!("{name} {dtype} {shape:?}"));
    }
    Ok(())
}

/// The end tokens of `generation_config.json`, else those of the config.
fn stop_tokens(checkpoint: &Path, config: &[u32]) -> anyhow::Result<Vec<u32>> {
    let path = checkpoint.join("generation_config.json");
    if !path.is_file() {
        return Ok(config.to_vec());
    }
    let wrong = || format!("{}: eos_token_id is neither a token id nor a list of them", path.display());
    match read_json::<Value>(&path)?.get("eos_token_id") {
        None | Some(Value::Null) => Ok(config.to_vec()),
        Some(Value::Array(ids)) => serde_json::from_value(ids.clone().into()).with_context(wrong),
        Some(id) => Ok(vec![serde_json::from_value(id.clone()).with_context(wrong)?]),
    }
}
