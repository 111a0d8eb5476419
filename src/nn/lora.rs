//! Low-rank adapters of affine maps (LoRA, arXiv 2106.09685): `y = x w^T + b + scale * (x a^T) b^T`.

use candle_core::{DType, Device, Result, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// The two factors of an adapter and the factor of their product. They may be wider than the map's own dtype.
#[derive(Debug, Clone)]
pub struct Lora {
    /// (rank, in).
    pub a: Tensor,
    /// (out, rank).
    pub b: Tensor,
    /// `alpha / rank`, or `alpha / sqrt(rank)` when it is rank-stabilised.
    pub scale: f64,
}

impl Lora {
    /// The same adapter on the same storage, outside any graph.
    pub fn detached(&self) -> Self {
        Self { a: self.a.detach(), b: self.b.detach(), scale: self.scale }
    }

    /// `scale * b a` (out, in): what the adapter adds to the weight.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn delta(&self) -> Result<Tensor> {
        self.b.matmul(&self.a)? * self.scale
    }
}

/// Fresh factors `(a, b)` as PEFT makes them: `a` (rank, in) Kaiming-uniform with `a = sqrt(5)`, that is uniform within
/// `1 / sqrt(in)`, and `b` (out, rank) zero, so that a fresh adapter changes nothing. `a` depends on the seed and the name
/// alone.
///
/// # Errors
/// As the tensor operations.
pub fn fresh(
    (rank, d_in, d_out): (usize, usize, usize),
    seed: u64,
    name: &str,
    (dtype, device): (DType, &Device),
) -> Result<(Tensor, Tensor)> {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    let mut rng = StdRng::from_seed(digest.into());
    let bound = 1.0 / (d_in.max(1) as f32).sqrt();
    let a: Vec<f32> = (0..rank * d_in).map(|_| rng.random_range(-bound..bound)).collect();
    let a = Tensor::from_vec(a, (rank, d_in), device)?.to_dtype(dtype)?;
    Ok((a, Tensor::zeros((d_out, rank), dtype, device)?))
}
