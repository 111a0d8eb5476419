//! Trainable tensors by name.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use candle_nn::VarBuilder;

/// Variables by name, ordered, so that nothing that is saved, summed or printed depends on the run.
#[derive(Debug, Clone, Default)]
pub struct Parameters(BTreeMap<String, Var>);

impl From<BTreeMap<String, Var>> for Parameters {
    fn from(vars: BTreeMap<String, Var>) -> Self {
        Self(vars)
    }
}

impl Parameters {
    /// A variable of its own storage for each tensor.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let vars = tensors.into_iter().map(|(name, t)| Ok((name, Var::from_tensor(&t.detach())?)));
        Ok(Self(vars.collect::<Result<_>>()?))
    }

    /// Names and variables, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.0.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// The variable of that name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.0.get(name)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of values in all tensors together.
    pub fn elements(&self) -> usize {
        self.0.values().map(|var| var.elem_count()).sum()
    }

    /// Only the variables whose name `keep` accepts; they stay shared with `self`.
    pub fn filtered(&self, keep: impl Fn(&str) -> bool) -> Self {
        Self(self.0.iter().filter(|(name, _)| keep(name)).map(|(n, v)| (n.clone(), v.clone())).collect())
    }

    /// Adds the variables of `other`, which stay shared.
    ///
    /// # Errors
    /// A name that both hold.
    pub fn extend(&mut self, other: &Parameters) -> Result<()> {
        for (name, var) in &other.0 {
            if self.0.insert(name.clone(), var.clone()).is_some() {
                bail!("parameters: {name} is there twice")
            }
        }
        Ok(())
    }

    /// The tensors, tracked: a model built over them is trained by changing the variables.
    pub fn tracked(&self) -> HashMap<String, Tensor> {
        self.0.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
    }

    /// The tensors without tracking, on the same storage: a model built over them builds no graph and sees every step.
    pub fn detached(&self) -> BTreeMap<String, Tensor> {
        self.0.iter().map(|(name, var)| (name.clone(), var.as_tensor().detach())).collect()
    }

    /// A builder over [`Self::tracked`].
    pub fn builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_tensors(self.tracked(), dtype, device)
    }

    /// Writes `tensors`, wherever they are, into the variables of the same names, in place.
    ///
    /// # Errors
    /// A variable without a tensor, a tensor without a variable, or another shape.
    pub fn set(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        if let Some(name) = tensors.keys().find(|name| !self.0.contains_key(*name)) {
            bail!("parameters: {name} is no parameter of this model")
        }
        for (name, var) in &self.0 {
            match tensors.get(name) {
                Some(tensor) => var.set(&tensor.to_device(var.device())?)?,
                None => bail!("parameters: {name} is missing"),
            }
        }
        Ok(())
    }

    /// The gradient of every variable, by name.
    ///
    /// # Errors
    /// Names the variables that received none: something on the way to the loss dropped it.
    pub fn gradients(&self, store: &GradStore) -> Result<BTreeMap<String, Tensor>> {
        self.complete(self.received(store))
    }

    /// The gradients of those variables that received one, by name: of a part of a step, which need not reach them all.
    pub fn received(&self, store: &GradStore) -> BTreeMap<String, Tensor> {
        let of = |(name, var): (&String, &Var)| Some((name.clone(), store.get(var)?.clone()));
        self.0.iter().filter_map(of).collect()
    }

    /// `gradients`, when every variable has one.
    ///
    /// # Errors
    /// As [`Self::gradients`].
    pub fn complete(&self, gradients: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let missing: Vec<&str> =
            self.0.keys().map(String::as_str).filter(|name| !gradients.contains_key(*name)).collect();
        if missing.is_empty() {
            return Ok(gradients);
        }
        bail!("no gradient reached {} of {} parameters: {}", missing.len(), self.len(), missing.join(", "))
    }
}

/// Adds the gradients of another part of a step to `sum`; a parameter that only one of them has keeps that one's.
///
/// # Errors
/// Gradients of unequal shapes.
pub fn add_gradients(sum: &mut BTreeMap<String, Tensor>, more: BTreeMap<String, Tensor>) -> Result<()> {
    for (name, gradient) in more {
        let both = match sum.get(&name) {
            Some(other) => (other + gradient)?,
            None => gradient,
        };
        sum.insert(name, both);
    }
    Ok(())
}
