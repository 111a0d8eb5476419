//! AdamW with named state: what candle's own does not let one save.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Shape, Tensor, Var, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Parameters;
use crate::ops::{f32_slice, fused, simd};

const STEPS: &str = "step";
const FIRST: &str = "exp_avg.";
const SECOND: &str = "exp_avg_sq.";

/// Settings of [`AdamW`]; the defaults are PyTorch's, without weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the mean of the gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay: each step first multiplies the value by `1 - lr * weight_decay`.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0. }
    }
}

impl AdamWConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The settings, and what is allowed.
    pub fn check(&self) -> Result<()> {
        let Self { beta1, beta2, eps, weight_decay } = *self;
        let fits =
            (0. ..1.).contains(&beta1) && (0. ..1.).contains(&beta2) && eps >= 0. && weight_decay >= 0.;
        if !fits || !eps.is_finite() || !weight_decay.is_finite() {
            bail!("adamw: betas must be in [0, 1), eps and weight decay at least 0, got {self:?}")
        }
        Ok(())
    }
}

/// AdamW (arXiv 1711.05101) as `torch.optim.AdamW` computes it. The moments are f32, also for half-precision variables (f64
/// for f64 variables), and kept by name.
///
/// f32 variables on the CPU are updated in one pass over value, gradient and moments; the result does not depend on the
/// number of threads.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// Before the first step: all moments zero.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, steps: 0, moments: BTreeMap::new() }
    }

    /// Number of steps taken, over all runs that the state went through.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step of every variable, in place, against its gradient.
    ///
    /// # Errors
    /// Nothing is changed when a gradient is missing, belongs to no parameter or has another shape, when the parameters are
    /// not those of the steps before, or when a setting or `lr` is out of range.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &BTreeMap<String, Tensor>,
        lr: f64,
    ) -> Result<()> {
        self.check_rates(lr)?;
        check_gradients(parameters, gradients)?;
        self.check_moments(parameters)?;
        let update = Update::new(&self.config, self.steps + 1, lr);
        for (name, var) in parameters.iter() {
            if !self.moments.contains_key(name) {
                self.moments.insert(name.to_owned(), Moments::zeros(var)?);
            }
            if let (Some(moments), Some(gradient)) = (self.moments.get_mut(name), gradients.get(name)) {
                moments.place(var)?;
                moments.step(var, gradient, &update)?;
            }
        }
        self.steps += 1;
        Ok(())
    }

    /// A copy of the state: `step` (1,) i64, and `exp_avg.NAME` and `exp_avg_sq.NAME` in the shape of each parameter.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        state.insert(STEPS.to_owned(), Tensor::new(&[self.steps as i64], &Device::Cpu)?);
        for (name, moments) in &self.moments {
            let (first, second) = moments.tensors()?;
            state.insert(format!("{FIRST}{name}"), first);
            state.insert(format!("{SECOND}{name}"), second);
        }
        Ok(state)
    }

    /// Continues from a state of [`Self::state`], bit for bit; what was there before is dropped.
    ///
    /// # Errors
    /// Nothing is changed when the count of steps is missing, a name is not one of a state, or one of the two moments of
    /// a parameter is missing or has another shape or dtype than the other.
    pub fn restore(&mut self, mut state: BTreeMap<String, Tensor>) -> Result<()> {
        let steps = match state.remove(STEPS) {
            Some(steps) => steps.flatten_all()?.to_vec1::<i64>()?,
            None => bail!("adamw: the state holds no `{STEPS}`"),
        };
        let steps = match steps.as_slice() {
            &[steps] if steps >= 0 => steps as u64,
            _ => bail!("adamw: `{STEPS}` must be one count, got {steps:?}"),
        };
        let mut moments = BTreeMap::new();
        let firsts: Vec<String> =
            state.keys().filter_map(|key| key.strip_prefix(FIRST)).map(str::to_owned).collect();
        for name in firsts {
            let first = state.remove(&format!("{FIRST}{name}"));
            let (Some(first), Some(second)) = (first, state.remove(&format!("{SECOND}{name}"))) else {
                bail!("adamw: the state holds `{FIRST}{name}`, but no `{SECOND}{name}`")
            };
            if first.dims() != second.dims() || first.dtype() != second.dtype() {
                bail!(
                    "adamw: the moments of {name} differ: {:?} {:?} and {:?} {:?}",
                    first.dims(),
                    first.dtype(),
                    second.dims(),
                    second.dtype()
                )
            }
            moments.insert(name, Moments::Tensors { first: first.copy()?, second: second.copy()? });
        }
        if let Some(key) = state.keys().next() {
            bail!("adamw: `{key}` belongs to no state (expected `{STEPS}`, `{FIRST}NAME`, `{SECOND}NAME`)")
        }
        (self.steps, self.moments) = (steps, moments);
        Ok(())
    }

    fn check_rates(&self, lr: f64) -> Result<()> {
        self.config.check()?;
        if !(lr >= 0. && lr.is_finite()) {
            bail!("adamw: the learning rate must be a number of at least 0, got {lr}")
        }
        Ok(())
    }

    /// After the first step (or a restore) the parameters are those that the moments belong to.
    fn check_moments(&self, parameters: &Parameters) -> Result<()> {
        if self.steps == 0 && self.moments.is_empty() {
            return Ok(());
        }
        let steps = self.steps;
        if let Some(name) = self.moments.keys().find(|name| parameters.get(name).is_none()) {
            bail!("adamw: after {steps} steps the state holds moments of {name}, which is no parameter")
        }
        for (name, var) in parameters.iter() {
            let Some(moments) = self.moments.get(name) else {
                bail!("adamw: {name} has no moments after {steps} steps: all parameters take every step")
            };
            let (dims, dtype) = moments.layout();
            if dims != var.dims() || dtype != moment_dtype(var) {
                bail!(
                    "adamw: {name} is {:?} {:?}, but its moments are {dims:?} {dtype:?}",
                    var.dims(),
                    var.dtype()
                )
            }
        }
        Ok(())
    }
}

fn check_gradients(parameters: &Parameters, gradients: &BTreeMap<String, Tensor>) -> Result<()> {
    if let Some(name) = gradients.keys().find(|name| parameters.get(name).is_none()) {
        bail!("adamw: there is a gradient of {name}, but no such parameter")
    }
    for (name, var) in parameters.iter() {
        match gradients.get(name) {
            None => bail!("adamw: the gradient of {name} is missing"),
            Some(gradient) if gradient.dims() != var.dims() => {
                bail!("adamw: {name} is {:?}, but its gradient is {:?}", var.dims(), gradient.dims())
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn moment_dtype(var: &Var) -> DType {
    if var.dtype() == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The two running means of one parameter: plain values where the fused step applies.
#[derive(Debug, Clone)]
enum Moments {
    Host { first: Vec<f32>, second: Vec<f32>, shape: Shape },
    Tensors { first: Tensor, second: Tensor },
}

impl Moments {
    fn zeros(var: &Var) -> Result<Self> {
        let zeros = || Tensor::zeros(var.shape(), moment_dtype(var), var.device());
        Ok(Self::Tensors { first: zeros()?, second: zeros()? })
    }

    fn layout(&self) -> (&[usize], DType) {
        match self {
            Self::Host { shape, .. } => (shape.dims(), DType::F32),
            Self::Tensors { first, .. } => (first.dims(), first.dtype()),
        }
    }

    fn tensors(&self) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Host { first, second, shape } => {
                let tensor = |values: &[f32]| Tensor::from_slice(values, shape, &Device::Cpu);
                Ok((tensor(first)?, tensor(second)?))
            }
            // On the host: a device may have no room for them twice.
            Self::Tensors { first, second } => {
                let host =
                    |x: &Tensor| if x.device().is_cpu() { x.copy() } else { x.to_device(&Device::Cpu) };
                Ok((host(first)?, host(second)?))
            }
        }
    }

    /// Moves the moments to where the step of `var` wants them.
    fn place(&mut self, var: &Var) -> Result<()> {
        let placed = match self {
            Self::Tensors { first, second } if fused(var) => {
                let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
                let shape = var.shape().clone();
                Self::Host { first: values(first)?, second: values(second)?, shape }
            }
            Self::Tensors { first, second } => Self::Tensors {
                first: first.to_device(var.device())?,
                second: second.to_device(var.device())?,
            },
            Self::Host { .. } if fused(var) => return Ok(()),
            Self::Host { .. } => {
                let (first, second) = self.tensors()?;
                Self::Tensors {
                    first: first.to_device(var.device())?,
                    second: second.to_device(var.device())?,
                }
            }
        };
        *self = placed;
        Ok(())
    }

    fn step(&mut self, var: &Var, gradient: &Tensor, update: &Update) -> Result<()> {
        let gradient = gradient.to_dtype(moment_dtype(var))?;
        match self {
            Self::Host { first, second, .. } => {
                let op = Fused { moments: RefCell::new((first, second)), update: *update };
                var.inplace_op2(&gradient.contiguous()?, &op)
            }
            Self::Tensors { first, second } => {
                let (mean, square, value) =
                    update.composed(first, second, &var.as_detached_tensor(), &gradient)?;
                (*first, *second) = (mean, square);
                var.set(&value)
            }
        }
    }
}

/// The scalars of one step.
#[derive(Debug, Clone, Copy)]
struct Update {
    mean_rate: f64,
    square_rate: f64,
    /// 1 / sqrt(1 - beta2^t)
    correction: f64,
    eps: f64,
    /// lr / (1 - beta1^t)
    size: f64,
    /// 1 - lr * weight decay
    keep: f64,
}

impl Update {
    fn new(config: &AdamWConfig, step: u64, lr: f64) -> Self {
        let bias = |beta: f64| 1. - beta.powf(step as f64);
        Self {
            mean_rate: 1. - config.beta1,
            square_rate: 1. - config.beta2,
            correction: bias(config.beta2).sqrt().recip(),
            eps: config.eps,
            size: lr / bias(config.beta1),
            keep: 1. - lr * config.weight_decay,
        }
    }

    /// First and second moment and the value, after the step.
    fn composed(&self, m: &Tensor, v: &Tensor, x: &Tensor, g: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let m = (m + ((g - m)? * self.mean_rate)?)?;
        let v = ((v * (1. - self.square_rate))? + (g.sqr()? * self.square_rate)?)?;
        let root = ((v.sqrt()? * self.correction)? + self.eps)?;
        let value = (x.to_dtype(m.dtype())? * self.keep)?;
        let value = (value - (m.div(&root)? * self.size)?)?.to_dtype(x.dtype())?;
        Ok((m, v, value))
    }

    fn fused(&self, m: &mut [f32], v: &mut [f32], x: &mut [f32], g: &[f32]) {
        let (mean_rate, square_rate) = (self.mean_rate as f32, self.square_rate as f32);
        let square_keep = (1. - self.square_rate) as f32;
        let (correction, eps) = (self.correction as f32, self.eps as f32);
        let (size, keep) = (self.size as f32, self.keep as f32);
        simd::dispatch(|| {
            for (((m, v), x), g) in m.iter_mut().zip(v).zip(x).zip(g) {
                *m += (g - *m) * mean_rate;
                *v = *v * square_keep + g * g * square_rate;
                *x = *x * keep - size * (*m / (v.sqrt() * correction + eps));
            }
        });
    }
}

/// The step of one f32 CPU variable; candle lends the value and the gradient, the moments are ours.
struct Fused<'a> {
    moments: RefCell<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
    update: Update,
}

impl InplaceOp2 for Fused<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        value: &mut CpuStorage,
        value_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<()> {
        // Small enough to stay in cache, large enough to be worth a task.
        const BLOCK: usize = 1 << 14;
        let g = f32_slice("adamw", gradient, gradient_layout)?;
        let Some((start, end)) = value_layout.contiguous_offsets() else {
            bail!("adamw: expected a contiguous variable, got strides {:?}", value_layout.stride())
        };
        let CpuStorage::F32(x) = value else { bail!("adamw: expected an f32 variable") };
        let x = &mut x[start..end];
        let mut moments = self.moments.borrow_mut();
        let (m, v) = &mut *moments;
        if x.len() <= 2 * BLOCK {
            self.update.fused(m, v, x, g);
        } else {
            let update = self.update;
            (m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK)))
                .zip(x.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)))
                .for_each(|((m, v), (x, g))| update.fused(m, v, x, g));
        }
        Ok(())
    }
}
