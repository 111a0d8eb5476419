//! Gradients against central differences in f64, for any function of several tensors.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::rngs::StdRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};

const STEP: f64 = 1e-5;

/// Seeded numbers in (-1, 1), f64 on the CPU.
pub fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = StdRng::seed_from_u64(seed);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Largest error of `backward()` through `f`, over all inputs and coordinates: `|analytic - numeric| / max(1, |numeric|)`.
///
/// The output is reduced to a scalar with fixed random weights, so that every output counts. Inputs are f64.
/// Panics when an input receives no gradient.
pub fn gradcheck(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> f64 {
    gradcheck_some(inputs, usize::MAX, f)
}

/// As [`gradcheck`], on at most `coordinates` random coordinates of each input.
pub fn gradcheck_some(inputs: &[Tensor], coordinates: usize, f: impl Fn(&[Tensor]) -> Result<Tensor>) -> f64 {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(&x.detach()).unwrap()).collect();
    let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let output = f(&tracked).unwrap();
    let weights = noise(output.dims(), 0x5eed);
    let loss = |output: Tensor| (output * &weights).and_then(|y| y.sum_all()).unwrap();
    let grads = loss(output).backward().unwrap();
    let mut worst = 0f64;
    for (i, var) in vars.iter().enumerate() {
        assert_eq!(inputs[i].dtype(), DType::F64, "input {i} must be f64");
        let grad = grads.get(var).unwrap_or_else(|| panic!("input {i} received no gradient"));
        let analytic: Vec<f64> = grad.flatten_all().unwrap().to_vec1().unwrap();
        let values: Vec<f64> = inputs[i].flatten_all().unwrap().to_vec1().unwrap();
        let mut rng = StdRng::seed_from_u64(i as u64);
        for at in index::sample(&mut rng, values.len(), coordinates.min(values.len())) {
            let moved = |step: f64| {
                let mut values = values.clone();
                values[at] += step;
                let mut inputs = inputs.to_vec();
                inputs[i] = Tensor::from_vec(values, inputs[i].shape(), &Device::Cpu).unwrap();
                loss(f(&inputs).unwrap()).to_scalar::<f64>().unwrap()
            };
            let numeric = (moved(STEP) - moved(-STEP)) / (2. * STEP);
            worst = worst.max((numeric - analytic[at]).abs() / numeric.abs().max(1.));
        }
    }
    worst
}

#[test]
fn right_gradients_pass() {
    let inputs = [noise(&[2, 3], 1), noise(&[3, 4], 2)];
    assert!(gradcheck(&inputs, |x| x[0].matmul(&x[1])?.tanh()) < 1e-8);
}

// The control: candle 0.11.1's own convolution, whose kernel gradient is wrong for batches.
#[test]
#[allow(clippy::disallowed_methods)]
fn wrong_gradients_are_caught() {
    let inputs = [noise(&[2, 4, 9], 1), noise(&[6, 4, 3], 2)];
    assert!(gradcheck(&inputs, |x| x[0].conv1d(&x[1], 1, 1, 1, 1)) > 0.1);
}

#[test]
#[should_panic(expected = "input 1 received no gradient")]
fn missing_gradients_are_caught() {
    let inputs = [noise(&[3], 1), noise(&[3], 2)];
    gradcheck(&inputs, |x| &x[0] + x[1].detach());
}
