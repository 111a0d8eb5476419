//! Images per second of CLIP's image tower on the CPU, f32, random weights. The Python twin is `peers/clip.py`.
//!
//! ```text
//! RAYON_NUM_THREADS=2 cargo bench --bench clip -- --batch 4 --rounds 5
//! {"name":"clip-l14","with":"msjoe","batch":4,"threads":2,"images_per_second":..,"peak_mib":..}
//! ```

mod random;

use std::time::Instant;

use anyhow::Result;
use candle_core::{Device, Tensor};
use clap::{Parser, ValueEnum};
use msjoe::models::clip::{VisionConfig, VisionModel};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[derive(Parser)]
struct Args {
    /// Images per forward.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Timed forwards, after one that is not timed.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, value_enum, default_value = "l14")]
    size: Size,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Size {
    L14,
    B32,
}

fn config(size: Size) -> (VisionConfig, usize) {
    let l14 = VisionConfig {
        hidden_size: 1024,
        intermediate_size: 4096,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        patch_size: 14,
        ..Default::default()
    };
    match size {
        Size::L14 => (l14, 768),
        Size::B32 => (VisionConfig::default(), 512),
    }
}

fn main() -> Result<()> {
    msjoe::ops::heap::keep_freed_memory();
    let args = Args::parse();
    let (cfg, projection_dim) = config(args.size);
    let model = VisionModel::new(&cfg, projection_dim, random::var_builder())?;
    let side = cfg.image_size;
    let pixels: Vec<f32> = {
        let mut rng = StdRng::seed_from_u64(1);
        (0..args.batch * 3 * side * side).map(|_| rng.random()).collect()
    };
    let pixels = Tensor::from_vec(pixels, (args.batch, 3, side, side), &Device::Cpu)?;
    model.forward(&pixels)?;
    let mut seconds = vec![];
    for _ in 0..args.rounds {
        let start = Instant::now();
        model.forward(&pixels)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let median = random::median(seconds);
    let out = serde_json::json!({
        "name": match args.size { Size::L14 => "clip-l14", Size::B32 => "clip-b32" },
        "with": "msjoe",
        "batch": args.batch,
        "threads": rayon::current_num_threads(),
        "images_per_second": (args.batch as f64 / median * 1e4).round() / 1e4,
        "peak_mib": random::peak_mib()?,
    });
    println!("{out}");
    Ok(())
}
