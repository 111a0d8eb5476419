//! What was found, as a table and as JSON.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use msjoe::ops::cuda::device::driver;
use serde::Serialize;

/// Everything that one run found.
#[derive(Serialize)]
pub struct Report {
    version: &'static str,
    /// What the program was built from, where the build knew.
    commit: Option<&'static str>,
    device: String,
    /// The latest CUDA that the driver serves, and the toolkit of the build.
    driver: String,
    toolkit: Option<&'static str>,
    compute_capability: String,
    seed: u64,
    checks: Vec<Check>,
    ceilings: Ceilings,
    times: Vec<Time>,
}

/// A result against the truth.
#[derive(Serialize)]
struct Check {
    what: String,
    error: f64,
    limit: f64,
    passed: bool,
}

/// What the card was measured to do.
#[derive(Serialize, Default, Clone, Copy)]
pub struct Ceilings {
    /// bf16 products, TFLOP/s.
    pub tflops: Option<f64>,
    /// Copies, TB/s read and written.
    pub tbps: Option<f64>,
}

/// What an operation does, by which its time is judged.
#[derive(Serialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// Floating-point operations on half types.
    Flop(f64),
    /// The same on f32, for which there is no ceiling here.
    Wide(f64),
    /// Bytes that must be read and written.
    Bytes(f64),
    /// Tokens that are made, and what must be read for all of them.
    Decoded { tokens: f64, bytes: f64 },
}

/// The median time of an operation.
#[derive(Serialize)]
struct Time {
    what: String,
    milliseconds: f64,
    work: Work,
    /// TFLOP/s, TB/s or tokens per second.
    rate: f64,
    /// Of the measured ceiling.
    fraction: Option<f64>,
}

impl Report {
    pub fn new(device: &Device, seed: u64) -> Result<Self> {
        let stream = device.as_cuda_device()?.cuda_stream();
        let (major, minor) = stream.context().compute_capability()?;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("MSJOE_COMMIT"),
            driver: driver()?.to_string(),
            toolkit: option_env!("MSJOE_CUDA"),
            device: stream.context().name()?,
            compute_capability: format!("{major}.{minor}"),
            seed,
            checks: vec![],
            ceilings: Ceilings::default(),
            times: vec![],
        })
    }

    /// Judges `found` by its relative Frobenius error: at most `limit`, or, with a reference in the same half precision,
    /// twice the reference's. A truth below `least` counts as that.
    pub fn check(
        &mut self,
        what: &str,
        found: &Tensor,
        truth: &Tensor,
        (limit, reference, least): (f64, Option<&Tensor>, f64),
    ) -> Result<()> {
        let of = error(found, truth, least)?;
        let limit = match reference {
            Some(reference) => 2.0 * error(reference, truth, least)?,
            None => limit,
        };
        self.judge(what, of, limit);
        Ok(())
    }

    /// An error and the most it may be. NaN fails.
    pub fn judge(&mut self, what: &str, error: f64, limit: f64) {
        let passed = error <= limit;
        if !passed {
            eprintln!("failed: {what}: an error of {error:.2e}, at most {limit:.2e} is allowed");
        }
        self.checks.push(Check { what: what.to_owned(), error, limit, passed });
    }

    pub fn set_ceilings(&mut self, ceilings: Ceilings) {
        self.ceilings = ceilings;
    }

    pub fn time(&mut self, what: &str, milliseconds: f64, work: Work) {
        let Ceilings { tflops, tbps } = self.ceilings;
        let per = |count: f64| count / milliseconds / 1e9;
        let (rate, fraction) = match work {
            Work::Flop(count) => (per(count), tflops.map(|most| per(count) / most)),
            Work::Wide(count) => (per(count), None),
            Work::Bytes(count) => (per(count), tbps.map(|most| per(count) / most)),
            Work::Decoded { tokens, bytes } => (1e12 * per(tokens), tbps.map(|most| per(bytes) / most)),
        };
        eprintln!("{what}: {milliseconds:.3} ms");
        self.times.push(Time { what: what.to_owned(), milliseconds, work, rate, fraction });
    }

    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }

    pub fn table(&self) -> String {
        let mut text = format!(
            "msjoe {}, commit {}, {}, compute capability {}, driver for CUDA {}, built with CUDA {}, seed {}\n\n",
            self.version,
            self.commit.unwrap_or("unknown"),
            self.device,
            self.compute_capability,
            self.driver,
            self.toolkit.unwrap_or("unknown"),
            self.seed
        );
        let failed = self.checks.iter().filter(|check| !check.passed).count();
        let _ = writeln!(text, "{} checks, {failed} failed\n", self.checks.len());
        if !self.checks.is_empty() {
            text.push_str("| check | error | limit | |\n|---|---|---|---|\n");
        }
        for Check { what, error, limit, passed } in &self.checks {
            let verdict = if *passed { "" } else { "**failed**" };
            let _ = writeln!(text, "| {what} | {error:.2e} | {limit:.2e} | {verdict} |");
        }
        if let Ceilings { tflops: Some(tflops), tbps: Some(tbps) } = self.ceilings {
            let _ = writeln!(text, "\nmeasured: bf16 products {tflops:.0} TFLOP/s, copies {tbps:.2} TB/s\n");
        }
        if !self.times.is_empty() {
            text.push_str("\n| operation | median ms | rate | of what was measured |\n|---|---|---|---|\n");
        }
        for Time { what, milliseconds, work, rate, fraction } in &self.times {
            let unit = match work {
                Work::Flop(_) | Work::Wide(_) => "TFLOP/s",
                Work::Bytes(_) => "TB/s",
                Work::Decoded { .. } => "tokens/s",
            };
            let fraction = fraction.map_or(String::new(), |f| format!("{:.0} %", 100.0 * f));
            let _ = writeln!(text, "| {what} | {milliseconds:.3} | {rate:.2} {unit} | {fraction} |");
        }
        text
    }

    /// Both forms, each complete or not at all.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        msjoe::checkpoint::write_file(&folder.join("gpu.md"), self.table().as_bytes())?;
        let json = serde_json::to_string_pretty(self)?;
        msjoe::checkpoint::write_file(&folder.join("gpu.json"), json.as_bytes())?;
        Ok(())
    }
}

fn error(found: &Tensor, truth: &Tensor, least: f64) -> candle_core::Result<f64> {
    let wide = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all();
    let norm = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt);
    let (found, truth) = (wide(found)?, wide(truth)?);
    Ok(norm(&(&found - &truth)?)? / norm(&truth)?.max(least))
}
