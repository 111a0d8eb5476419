//! Adapters of Qwen2.5-VL as files: what one holds, the same under other names, and a base checkpoint with one merged in.
//!
//! ```text
//! $ cargo run --release --example adapter -- show --adapter runs/a/adapter
//! 14 modules, 53248 values, rank 4, alpha 8
//! $ cargo run --release --example adapter -- convert --adapter runs/a/adapter --names legacy --out for-old-peft
//! wrote for-old-peft: 28 tensors
//! $ cargo run --release --example adapter -- merge --base qwen2.5-vl-3b --adapter runs/a/adapter --out merged
//! wrote merged: 14 of 824 tensors changed
//! ```

mod cli;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use candle_core::Device;
use clap::{Args, Parser, Subcommand, ValueEnum};
use msjoe::checkpoint::Checkpoint;
use msjoe::checkpoint::peft::{self, LoraConfig, Names, Pair, export};
use msjoe::hub::{self, Hub};
use serde_json::json;

/// Show, convert and merge adapters
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object instead of a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// What an adapter holds
    Show(Source),
    /// Write it again, with the module names of another release of transformers
    Convert {
        #[command(flatten)]
        source: Source,
        /// Which names
        #[arg(long, value_enum, default_value = "current")]
        names: Naming,
        /// Folder to write
        #[arg(long)]
        out: PathBuf,
    },
    /// Write a checkpoint with the adapter merged into its weights
    Merge {
        #[command(flatten)]
        source: Source,
        /// Base model: a known name, a Hub repository org/name[@revision], or a folder
        #[arg(long)]
        base: String,
        /// Folder to write
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Args)]
struct Source {
    /// Adapter folder (adapter_config.json and adapter_model.safetensors)
    #[arg(long)]
    adapter: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Naming {
    /// transformers 4.52 and later
    Current,
    /// transformers up to 4.51
    Legacy,
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    cli::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let (line, described) = match &arguments.command {
        Command::Show(source) => show(source)?,
        Command::Convert { source, names, out } => {
            let (config, pairs) = read(source)?;
            let names = match names {
                Naming::Current => Names::Current,
                Naming::Legacy => Names::Legacy,
            };
            peft::write(out, &config, &pairs, names)?;
            let tensors = 2 * pairs.len();
            let line = format!("wrote {}: {tensors} tensors", out.display());
            (line, json!({ "out": out, "tensors": tensors }))
        }
        Command::Merge { source, base, out } => {
            let (config, pairs) = read(source)?;
            let base = hub::resolve(&Hub::from_env()?, base, &mut |_| std::ops::ControlFlow::Continue(()))?;
            let changed = pairs.len();
            export::merged(&base.folder, &peft::deltas(&config, pairs)?, out, export::SHARD_BYTES)?;
            let all = Checkpoint::open(out)?.names().count();
            let line = format!("wrote {}: {changed} of {all} tensors changed", out.display());
            (line, json!({ "out": out, "changed": changed, "tensors": all }))
        }
    };
    if arguments.json {
        println!("{described}");
    } else {
        println!("{line}");
    }
    Ok(())
}

fn read(source: &Source) -> Result<(LoraConfig, BTreeMap<String, Pair>)> {
    Ok(peft::read(&source.adapter, &Device::Cpu)?)
}

fn show(source: &Source) -> Result<(String, serde_json::Value)> {
    let (config, pairs) = read(source)?;
    let values: usize = pairs.values().map(|pair| pair.a.elem_count() + pair.b.elem_count()).sum();
    let line =
        format!("{} modules, {values} values, rank {}, alpha {}", pairs.len(), config.rank, config.alpha);
    let modules: Vec<&String> = pairs.keys().collect();
    let described = json!({
        "modules": modules, "values": values, "rank": config.rank, "alpha": config.alpha,
        "rslora": config.use_rslora, "base_model": config.base_model,
    });
    Ok((line, described))
}
