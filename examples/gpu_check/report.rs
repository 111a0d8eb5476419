//! What was found, as a table and as JSON.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use serde::Serialize;

/// Everything that one run found.
#[derive(Serialize)]
pub struct Report {
    version: &'static str,
    device: String,
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
    /// Floating-point operations.
    Flop(f64),
    /// Bytes that must be read and written.
    Bytes(f64),
    /// Tokens.
    Tokens(f64),
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
        let (rate, ceiling) = match work {
            Work::Flop(count) => (count / milliseconds / 1e9, self.ceilings.tflops),
            Work::Bytes(count) => (count / milliseconds / 1e9, self.ceilings.tbps),
            Work::Tokens(count) => (count / milliseconds * 1e3, None),
        };
        let fraction = ceiling.map(|ceiling| rate / ceiling);
        eprintln!("{what}: {milliseconds:.3} ms");
        self.times.push(Time { what: what.to_owned(), milliseconds, work, rate, fraction });
    }

    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }

    pub fn table(&self) -> String {
        let mut text = format!(
            "msjoe {}, {}, compute capability {}, seed {}\n\n",
            self.version, self.device, self.compute_capability, self.seed
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
                Work::Flop(_) => "TFLOP/s",
                Work::Bytes(_) => "TB/s",
                Work::Tokens(_) => "tokens/s",
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
