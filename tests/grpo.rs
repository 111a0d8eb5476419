//! The GRPO losses against TRL's own numbers, and what must hold for any of them.

use std::ops::Range;

use candle_core::{DType, Device, Tensor, Var};
use msjoe::ops::log_prob::log_probs;
use msjoe::rl::grpo::{Completions, GrpoConfig, GrpoLoss, Totals, grpo_loss};
use msjoe::rl::kl::Kl;
use msjoe::rl::objective::{LossType, Ratio, Sapo, Vespo};
use msjoe::rl::tally::Tally;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::gradcheck::{gradcheck, noise};
use crate::optim::message;

/// Our golden file, and the one that `MSJOE_GRPO_GOLDEN` names, if it does.
pub fn goldens() -> Vec<(String, Value)> {
    let ours = include_str!("golden/grpo_trl.json").to_owned();
    let mut texts = vec![("golden/grpo_trl.json".to_owned(), ours)];
    if let Some(path) = std::env::var_os("MSJOE_GRPO_GOLDEN") {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        texts.push((path.display().to_string(), text));
    }
    texts.into_iter().map(|(name, text)| (name, serde_json::from_str(&text).unwrap())).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, got {value}"))
}

fn matrix(value: &Value) -> Vec<Vec<f64>> {
    let row = |row: &Value| row.as_array().unwrap().iter().map(number).collect();
    value.as_array().unwrap().iter().map(row).collect()
}

fn vector(values: &[f64], dtype: DType) -> Tensor {
    Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn host(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A batch that owns its parts.
#[derive(Clone)]
struct Batch {
    rows: Vec<usize>,
    mask: Vec<bool>,
    truncated: Vec<bool>,
    advantages: Vec<f64>,
    log_probs: Vec<f64>,
    old: Option<Vec<f64>>,
    reference: Option<Vec<f64>>,
    entropies: Option<Vec<f64>>,
}

/// Loss, gradients of log-probabilities and entropies (zeros when none arrived), metrics.
struct Outcome {
    loss: f64,
    gradient: Vec<f64>,
    entropy_gradient: Vec<f64>,
    metrics: Tally,
}

impl Batch {
    fn with<R>(&self, dtype: DType, entropies: Option<&Tensor>, f: impl FnOnce(Completions) -> R) -> R {
        let old = self.old.as_ref().map(|values| vector(values, dtype));
        let reference = self.reference.as_ref().map(|values| vector(values, dtype));
        let constant = self.entropies.as_ref().map(|values| vector(values, DType::F64));
        f(Completions {
            rows: &self.rows,
            mask: &self.mask,
            truncated: &self.truncated,
            advantages: &self.advantages,
            old_log_probs: old.as_ref(),
            ref_log_probs: reference.as_ref(),
            entropies: entropies.or(constant.as_ref()),
        })
    }

    fn totals(&self, config: &GrpoConfig, dtype: DType) -> Totals {
        self.with(dtype, None, |completions| Totals::over(&[completions], config).unwrap())
    }

    fn run(&self, config: &GrpoConfig, totals: &Totals, dtype: DType) -> Outcome {
        let inputs = Var::from_tensor(&vector(&self.log_probs, dtype)).unwrap();
        // f64 as in the files: whether a token is exactly at the entropy threshold is a matter of the last digit.
        let entropies = self.entropies.as_ref().map(|e| Var::from_tensor(&vector(e, DType::F64)).unwrap());
        let GrpoLoss { loss, metrics } =
            self.with(dtype, entropies.as_deref(), |c| grpo_loss(&inputs, &c, totals, config).unwrap());
        assert_eq!((loss.dtype(), loss.rank()), (dtype, 0));
        let grads = loss.backward().unwrap();
        let entropy_gradient = entropies.and_then(|var| grads.get(&var).map(host));
        Outcome {
            loss: host(&loss)[0],
            gradient: host(grads.get(&inputs).expect("a gradient")),
            entropy_gradient: entropy_gradient.unwrap_or_else(|| vec![0.; self.mask.len()]),
            metrics,
        }
    }

    /// Completions `rows` as a micro-batch.
    fn part(&self, rows: Range<usize>) -> Self {
        let start: usize = self.rows[..rows.start].iter().sum();
        let tokens = start..start + self.rows[rows.clone()].iter().sum::<usize>();
        let some = |values: &Option<Vec<f64>>| values.as_ref().map(|values| values[tokens.clone()].to_vec());
        Self {
            rows: self.rows[rows.clone()].to_vec(),
            mask: self.mask[tokens.clone()].to_vec(),
            truncated: self.truncated.get(rows.clone()).unwrap_or_default().to_vec(),
            advantages: self.advantages[rows].to_vec(),
            log_probs: self.log_probs[tokens.clone()].to_vec(),
            old: some(&self.old),
            reference: some(&self.reference),
            entropies: some(&self.entropies),
        }
    }
}

// ---- golden values ----

/// Lengths of the rows: without what no mask of the file counts at their end, or all of them.
fn lengths(mask: &[Vec<f64>], padded: bool) -> Vec<usize> {
    let len = |row: &Vec<f64>| row.iter().rposition(|&m| m != 0.).map_or(0, |last| last + 1);
    mask.iter().map(|row| if padded { row.len() } else { len(row) }).collect()
}

/// The padded rows of the file as our packed ones.
fn packed(inputs: &Value, params: &Value, rows: &[usize]) -> Batch {
    let pack = |name: &str| -> Vec<f64> {
        let values = matrix(&inputs[name]);
        values.iter().zip(rows).flat_map(|(row, &len)| row[..len].to_vec()).collect()
    };
    let masked: Vec<usize> =
        params["masked_rows"].as_array().unwrap().iter().map(|row| number(row) as usize).collect();
    Batch {
        rows: rows.to_vec(),
        mask: pack("mask").iter().map(|&m| m != 0.).collect(),
        truncated: (0..rows.len()).map(|row| masked.contains(&row)).collect(),
        advantages: inputs["advantages"].as_array().unwrap().iter().map(number).collect(),
        log_probs: pack("logps"),
        old: (params["on_policy"] == false).then(|| pack("old_logps")),
        reference: Some(pack("ref_logps")),
        entropies: Some(pack("entropies")),
    }
}

fn config(inputs: &Value, params: &Value) -> GrpoConfig {
    let named = |name: &str| serde_json::from_value(Value::String(name.to_owned()));
    let get = |settings: &str, name: &str, default: f64| inputs[settings][name].as_f64().unwrap_or(default);
    let (sapo, vespo) = (Sapo::default(), Vespo::default());
    GrpoConfig {
        loss: named(params["loss_type"].as_str().unwrap()).unwrap(),
        ratio: if params["level"] == "sequence" { Ratio::Sequence } else { Ratio::Token },
        epsilon: number(&params["eps"]),
        epsilon_high: number(&params["eps_hi"]),
        delta: params["delta"].as_f64(),
        kl: Kl::K3,
        beta: number(&params["beta"]),
        bias_corrected_kl: params["bias_kl"] == true,
        top_entropy: number(&params["quantile"]),
        off_policy: params["opm"].as_f64(),
        entropy_bonus: number(&params["ent_coef"]),
        mask_truncated: true,
        max_completion_length: number(&inputs["max_completion_length"]) as usize,
        sapo: Sapo {
            positive: get("sapo_temperature", "pos", sapo.positive),
            negative: get("sapo_temperature", "neg", sapo.negative),
        },
        vespo: Vespo {
            k_positive: get("vespo", "k_pos", vespo.k_positive),
            lambda_positive: get("vespo", "lambda_pos", vespo.lambda_positive),
            k_negative: get("vespo", "k_neg", vespo.k_negative),
            lambda_negative: get("vespo", "lambda_neg", vespo.lambda_negative),
        },
    }
}

/// TRL divides the losses of `ga` micro-batches by `ga`, or by the number of tokens that it is given: as totals, the file's rows
/// are one of `ga` equal micro-batches.
fn totals(batch: &Batch, config: &GrpoConfig, params: &Value, dtype: DType) -> (Totals, usize) {
    let mut totals = batch.totals(config, dtype);
    let accumulated = number(&params["ga"]) as usize;
    totals.completions *= accumulated;
    match config.loss {
        LossType::Dapo | LossType::Cispo | LossType::Vespo => {
            totals.tokens = params["num_items"].as_f64().map_or(totals.tokens, |n| n as usize);
            (totals, 1)
        }
        _ => {
            totals.tokens = totals.tokens.max(1) * accumulated;
            totals.selected = totals.selected.max(1) * accumulated;
            (totals, accumulated)
        }
    }
}

fn check_case(inputs: &Value, case: &Value, what: &str, padded: bool) {
    let params = &case["params"];
    let rows = lengths(&matrix(&inputs["mask"]), padded);
    let (batch, config) = (packed(inputs, params, &rows), config(inputs, params));
    let sapo = config.loss == LossType::Sapo;
    for dtype in [DType::F64, DType::F32] {
        let what = format!("{what}, {dtype:?}, {}", if padded { "padded" } else { "packed" });
        let tolerance = |wide: f64| if dtype == DType::F64 { wide } else { 1e-6 };
        let close = |name: &str, ours: f64, expected: f64, tolerance: f64| {
            let error = (ours - expected).abs() / expected.abs().max(1.);
            assert!(error < tolerance, "{what}: {name} is {ours}, expected {expected}");
        };
        let (totals, accumulated) = totals(&batch, &config, params, dtype);
        let ours = batch.run(&config, &totals, dtype);
        close("loss", ours.loss, number(&case["loss"]), tolerance(if sapo { 1e-7 } else { 1e-12 }));
        let mut ours_at = ours.gradient.iter();
        for (row, (expected, &len)) in matrix(&case["grad"]).iter().zip(&rows).enumerate() {
            for (at, &expected) in expected.iter().enumerate() {
                let ours = if at < len { *ours_at.next().unwrap() } else { 0. };
                let name = format!("gradient of token {at} of row {row}");
                close(&name, ours, expected, tolerance(if sapo { 1e-8 } else { 1e-10 }));
            }
        }
        let mut names: Vec<&str> = vec!["ratio"];
        for (name, expected) in case["metrics"].as_object().unwrap() {
            if name == "entropy_coef" {
                close(name, config.entropy_bonus, number(expected), 1e-12);
                continue;
            }
            names.push(name);
            let clip = name.contains("clip");
            match (expected.as_f64(), ours.metrics.get(name)) {
                (Some(expected), Some(ours)) => {
                    let ours = if name == "policy_loss" { ours * accumulated as f64 } else { ours };
                    close(name, ours, expected, tolerance(if clip || sapo { 1e-6 } else { 1e-12 }));
                }
                (None, None) => {}
                // Over no token at all TRL reports 0.
                (Some(0.), None) if totals.completions > 0 && batch.totals(&config, dtype).tokens == 0 => {}
                (expected, ours) => panic!("{what}: {name} is {ours:?}, expected {expected:?}"),
            }
        }
        for name in ours.metrics.values().keys() {
            assert!(names.contains(name), "{what}: we report {name}, TRL does not");
        }
    }
}

#[test]
fn losses_gradients_and_metrics_are_trls() {
    for (file, golden) in goldens() {
        let cases = golden["cases"].as_object().unwrap();
        assert!(!cases.is_empty());
        for (name, case) in cases {
            for padded in [false, true] {
                check_case(&golden["loss_inputs"], case, &format!("{file}: {name}"), padded);
            }
        }
    }
    assert_eq!(goldens()[0].1["cases"].as_object().unwrap().len(), 32);
}

// ---- accumulation ----

/// Eight completions of 0 to 9 tokens, some masked, with ratios on both sides of the clip range.
fn random(seed: u64) -> Batch {
    let mut rng = StdRng::seed_from_u64(seed);
    let rows = vec![5, 1, 9, 3, 0, 7, 2, 6];
    let tokens: usize = rows.iter().sum();
    let mut draw =
        |low: f64, high: f64| (0..tokens).map(|_| rng.random_range(low..high)).collect::<Vec<f64>>();
    let log_probs = draw(-3., -0.1);
    let near = |moves: Vec<f64>| log_probs.iter().zip(moves).map(|(x, d)| x + d).collect::<Vec<f64>>();
    let (old, reference) = (near(draw(-0.6, 0.6)), near(draw(-0.5, 0.5)));
    let (entropies, counted) = (draw(0., 3.), draw(0., 1.));
    Batch {
        mask: counted.iter().map(|&x| x < 0.8).collect(),
        truncated: (0..rows.len()).map(|row| row == 3).collect(),
        advantages: vec![1.2, -0.7, -1.6, 0.4, 0.9, 0., -0.3, 0.1],
        rows,
        log_probs,
        old: Some(old),
        reference: Some(reference),
        entropies: Some(entropies),
    }
}

const LOSSES: [LossType; 8] = [
    LossType::Grpo,
    LossType::Bnpo,
    LossType::DrGrpo,
    LossType::Dapo,
    LossType::Cispo,
    LossType::Sapo,
    LossType::Luspo,
    LossType::Vespo,
];

/// Every loss with every ratio it allows, plain and with everything switched on.
fn configs() -> Vec<GrpoConfig> {
    let plain = GrpoConfig { epsilon_high: 0.28, max_completion_length: 9, ..Default::default() };
    let rich = GrpoConfig {
        delta: Some(1.4),
        beta: 0.04,
        bias_corrected_kl: true,
        top_entropy: 0.63,
        off_policy: Some(0.05),
        entropy_bonus: 0.01,
        mask_truncated: true,
        ..plain
    };
    let all = LOSSES.into_iter().flat_map(|loss| {
        let cap = if loss == LossType::Cispo { 1.3 } else { 0.28 };
        [Ratio::Token, Ratio::Sequence].into_iter().flat_map(move |ratio| {
            [plain, rich].map(|config| GrpoConfig { loss, ratio, epsilon_high: cap, ..config })
        })
    });
    all.filter(|config| config.check().is_ok()).collect()
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    for config in configs() {
        let batch = random(1);
        let totals = batch.totals(&config, DType::F64);
        let whole = batch.run(&config, &totals, DType::F64);
        assert!(whole.gradient.iter().any(|&g| g != 0.));
        for cuts in [vec![0, 8], vec![0, 1, 2, 3, 4, 5, 6, 7, 8], vec![0, 3, 8]] {
            let (mut loss, mut gradient, mut entropy_gradient) = (0., vec![], vec![]);
            let mut metrics = Tally::default();
            for cut in cuts.windows(2) {
                if batch.rows[cut[0]..cut[1]].iter().sum::<usize>() == 0 {
                    continue; // the empty completion alone: nothing to compute, and its place in the totals is kept
                }
                let part = batch.part(cut[0]..cut[1]).run(&config, &totals, DType::F64);
                loss += part.loss;
                gradient.extend(part.gradient);
                entropy_gradient.extend(part.entropy_gradient);
                metrics.merge(&part.metrics);
            }
            assert!((loss - whole.loss).abs() < 1e-15, "{config:?} {cuts:?}: {loss} {}", whole.loss);
            assert_eq!(gradient, whole.gradient, "{config:?} {cuts:?}");
            assert_eq!(entropy_gradient, whole.entropy_gradient, "{config:?} {cuts:?}");
            // The empty completion has a ratio of its own, which no micro-batch saw.
            let by_row = config.ratio == Ratio::Sequence || config.loss == LossType::Vespo;
            let alone = by_row && cuts.len() == 9;
            for (name, value) in whole.metrics.values().into_iter().filter(|_| !alone) {
                let ours = metrics.get(name).unwrap();
                assert!((ours - value).abs() < 1e-14, "{config:?} {cuts:?}: {name} {ours} {value}");
            }
        }
    }
}

// ---- gradients ----

#[test]
fn gradients_pass_finite_differences() {
    let smooth = |config: &GrpoConfig| !matches!(config.loss, LossType::Cispo | LossType::Vespo);
    let batch = random(2);
    for config in configs().into_iter().filter(smooth) {
        for kl in [Kl::K1, Kl::K2, Kl::K3] {
            let config = GrpoConfig { kl, ..config };
            let totals = batch.totals(&config, DType::F64);
            let inputs =
                [vector(&batch.log_probs, DType::F64), vector(batch.entropies.as_ref().unwrap(), DType::F64)];
            let count = if config.entropy_bonus == 0. { 1 } else { 2 };
            let error = gradcheck(&inputs[..count], |x| {
                let loss = batch.with(DType::F64, x.get(1), |c| grpo_loss(&x[0], &c, &totals, &config));
                Ok(loss.unwrap().loss)
            });
            assert!(error < 1e-9, "{config:?}: {error:.1e}");
        }
    }
}

/// From a model's hidden states and head through log-probabilities and entropies to the loss.
#[test]
fn gradients_reach_the_model() {
    let targets = [3u32, 0, 6, 6, 2, 5, 1];
    let (rows, mask) = ([3, 0, 4], [true, true, false, true, true, true, true]);
    let inputs = [noise(&[7, 4], 1), (noise(&[8, 4], 2) * 2.).unwrap()];
    let old = log_probs(&noise(&[7, 4], 3), &inputs[1], &targets, 0.8).unwrap().log_probs;
    let config = GrpoConfig { beta: 0.1, entropy_bonus: 0.03, ..Default::default() };
    let totals = Totals { completions: 3, tokens: 6, selected: 6, entropy_threshold: None };
    let error = gradcheck(&inputs, |x| {
        let ours = log_probs(&x[0], &x[1], &targets, 0.8)?;
        let completions = Completions {
            rows: &rows,
            mask: &mask,
            truncated: &[],
            advantages: &[1., 0.5, -1.3],
            old_log_probs: Some(&old),
            ref_log_probs: Some(&old),
            entropies: Some(&ours.entropies),
        };
        Ok(grpo_loss(&ours.log_probs, &completions, &totals, &config).unwrap().loss)
    });
    assert!(error < 1e-9, "{error:.1e}");
}

#[test]
fn estimators_estimate_the_divergence() {
    let softmax = |z: [f64; 4]| z.map(|x| x.exp() / z.iter().map(|x| x.exp()).sum::<f64>());
    let (p, q) = (softmax([0.3, -1., 0.9, 0.]), softmax([-0.2, 0.4, 0.1, 0.5]));
    let kl: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
    let expected =
        |kind: Kl| -> f64 { p.iter().zip(q).map(|(p, q)| p * kind.estimate(p.ln(), q.ln()).0).sum() };
    for kind in [Kl::K1, Kl::K3, Kl::K3Plus] {
        assert!((expected(kind) - kl).abs() < 1e-15, "{kind:?}");
    }
    assert!((expected(Kl::K2) - kl).abs() > 1e-3);
    // d KL / d z_0 = p_0 (ln p_0/q_0 - KL); the score of token i for logit 0 is 1[i = 0] - p_0.
    let slope = |kind: Kl| -> f64 {
        let terms = p.iter().zip(q).enumerate();
        terms
            .map(|(i, (w, q))| w * kind.estimate(w.ln(), q.ln()).1 * (f64::from(u8::from(i == 0)) - p[0]))
            .sum()
    };
    let truth = p[0] * ((p[0] / q[0]).ln() - kl);
    assert!((slope(Kl::K2) - truth).abs() < 1e-15 && (slope(Kl::K3Plus) - truth).abs() < 1e-15);
    assert!(slope(Kl::K1).abs() < 1e-15 && (slope(Kl::K3) - truth).abs() > 1e-3);
    for kind in [Kl::K1, Kl::K2, Kl::K3] {
        let at = |x: f64| kind.estimate(x, -0.7).0;
        assert!(((at(-1.3 + 1e-6) - at(-1.3 - 1e-6)) / 2e-6 - kind.estimate(-1.3, -0.7).1).abs() < 1e-9);
    }
}

// ---- first update, bounds, nothing to learn ----

#[test]
fn the_first_update_has_ratio_one() {
    for config in configs() {
        let mut batch = random(3);
        batch.old = None;
        let totals = batch.totals(&config, DType::F32);
        let fresh = batch.run(&config, &totals, DType::F32);
        batch.old = Some(batch.log_probs.clone());
        let stored = batch.run(&config, &totals, DType::F32);
        assert_eq!((stored.loss, &stored.gradient), (fresh.loss, &fresh.gradient));
        for metrics in [&fresh.metrics, &stored.metrics] {
            assert_eq!(metrics.get("ratio"), Some(1.));
            for name in ["low_mean", "high_mean", "region_mean", "low_min", "high_max"] {
                assert!(matches!(metrics.get(&format!("clip_ratio/{name}")), None | Some(0.)));
            }
        }
    }
    // Advantages of a group sum to 0, and so does the loss.
    let mut batch = random(3);
    (batch.old, batch.mask) = (None, vec![true; batch.mask.len()]);
    batch.advantages = vec![1.5, -1.5, 0.5, -0.5, 0., 1., -1., 0.];
    let config = GrpoConfig { loss: LossType::Grpo, ..Default::default() };
    let ours = batch.run(&config, &batch.totals(&config, DType::F32), DType::F32);
    assert!(ours.loss.abs() < 1e-7 && ours.gradient.iter().any(|&g| g != 0.));
}

#[test]
fn dual_clip_bounds_what_a_bad_token_costs() {
    let batch = Batch {
        rows: vec![1],
        mask: vec![true],
        truncated: vec![],
        advantages: vec![-1.],
        log_probs: vec![-0.1],
        old: Some(vec![-8.]),
        reference: None,
        entropies: None,
    };
    let loss = |delta| {
        let config = GrpoConfig { delta, ..Default::default() };
        let ours = batch.run(&config, &batch.totals(&config, DType::F64), DType::F64);
        (ours.loss, ours.gradient[0])
    };
    let ratio = 7.9f64.exp();
    let (free, slope) = loss(None);
    assert!((free - ratio).abs() < 1e-9 && (slope - ratio).abs() < 1e-9);
    assert_eq!(loss(Some(3.)), (3., 0.));
}

#[test]
fn nothing_to_learn_changes_nothing() {
    for config in configs() {
        let mut batch = random(4);
        let still = GrpoConfig { beta: 0., entropy_bonus: 0., ..config };
        batch.advantages = vec![0.; 8];
        let ours = batch.run(&still, &batch.totals(&still, DType::F64), DType::F64);
        assert!(ours.loss == 0. && ours.gradient.iter().all(|&g| g == 0.), "{still:?}");

        // Everything was cut off.
        let mut batch = random(4);
        batch.truncated = vec![true; 8];
        let config = GrpoConfig { mask_truncated: true, ..config };
        let totals = batch.totals(&config, DType::F64);
        assert_eq!((totals.completions, totals.tokens, totals.selected), (8, 0, 0));
        let ours = batch.run(&config, &totals, DType::F64);
        assert!(ours.loss == 0. && ours.gradient.iter().all(|&g| g == 0.), "{config:?}");
        assert!(ours.entropy_gradient.iter().all(|&g| g == 0.));
        assert!(ours.metrics.values().values().all(|value| value.is_finite()));
        assert_eq!((ours.metrics.get("kl"), ours.metrics.get("entropy")), (None, None));
    }
}

/// What is masked has no say: not its log-probabilities, not its entropies.
#[test]
fn masked_tokens_do_not_matter() {
    for config in configs() {
        let batch = random(5);
        let mut other = batch.clone();
        let starts: Vec<usize> = batch
            .rows
            .iter()
            .scan(0, |end, n| {
                *end += n;
                Some(*end - n)
            })
            .collect();
        for (row, (&start, &len)) in starts.iter().zip(&batch.rows).enumerate() {
            for at in start..start + len {
                if !batch.mask[at] || (config.mask_truncated && batch.truncated[row]) {
                    other.log_probs[at] = -7.;
                    other.old.as_mut().unwrap()[at] = -0.1;
                    other.entropies.as_mut().unwrap()[at] = 9.;
                }
            }
        }
        assert_ne!(other.log_probs, batch.log_probs);
        let run = |batch: &Batch| batch.run(&config, &batch.totals(&config, DType::F64), DType::F64);
        let (a, b) = (run(&batch), run(&other));
        assert_eq!((a.loss, a.gradient, a.metrics), (b.loss, b.gradient, b.metrics), "{config:?}");
    }
}

#[test]
fn misfits_are_errors() {
    let fine = GrpoConfig::default();
    let error = |change: &dyn Fn(&mut Batch), config: &GrpoConfig| {
        let mut batch = random(6);
        change(&mut batch);
        let totals = Totals { completions: 8, tokens: 20, selected: 20, entropy_threshold: None };
        let log_probs = vector(&batch.log_probs, DType::F64);
        message(batch.with(DType::F64, None, |c| grpo_loss(&log_probs, &c, &totals, config)).unwrap_err())
    };
    let text = error(&|batch| batch.mask.truncate(32), &fine);
    assert_eq!(text, "grpo: 8 completions of 33 tokens need 33 entries in mask, got 32");
    let text = error(&|batch| batch.advantages.push(0.), &fine);
    assert_eq!(text, "grpo: 8 completions of 33 tokens need 8 entries in advantages, got 9");
    let text = error(&|batch| batch.truncated.truncate(7), &fine);
    assert_eq!(text, "grpo: 8 completions of 33 tokens need 8 entries in truncated, got 7");
    let text = error(&|batch| batch.advantages[2] = f64::NAN, &fine);
    assert_eq!(text, "grpo: the advantage of completion 2 is NaN");
    let text = error(&|batch| batch.log_probs[4] = f64::NEG_INFINITY, &fine);
    assert_eq!(text, "grpo: log_probs of token 4 is -inf");
    let text = error(&|batch| batch.old.as_mut().unwrap().truncate(32), &fine);
    assert_eq!(text, "grpo: expected old_log_probs (33,), got [32]");
    let text = error(&|batch| batch.reference = None, &GrpoConfig { beta: 0.1, ..fine });
    assert_eq!(text, "grpo: beta is not 0, but there are no ref_log_probs");
    let text = error(&|batch| batch.entropies = None, &GrpoConfig { entropy_bonus: 0.1, ..fine });
    assert_eq!(text, "grpo: there is an entropy bonus, but there are no entropies");
    let text = error(&|batch| batch.entropies = None, &GrpoConfig { top_entropy: 0.2, ..fine });
    assert_eq!(text, "grpo: top_entropy is below 1, but there are no entropies");
    let text = error(&|batch| *batch = batch.part(4..5), &fine);
    assert_eq!(text, "grpo: expected completions with tokens, got 0 tokens in 8 completions");
    for (config, expected) in [
        (GrpoConfig { epsilon: -0.1, ..fine }, "grpo: epsilon must be from 0 to 1, got -0.1"),
        (GrpoConfig { beta: f64::NAN, ..fine }, "grpo: beta must be at least 0, got NaN"),
        (GrpoConfig { top_entropy: 0., ..fine }, "grpo: top_entropy must be above 0 and at most 1, got 0"),
        (
            GrpoConfig { max_completion_length: 0, ..fine },
            "grpo: max_completion_length must be at least 1, got 0",
        ),
        (GrpoConfig { loss: LossType::Luspo, ..fine }, "grpo: the loss luspo needs the ratio of sequences"),
        (
            GrpoConfig { loss: LossType::Vespo, ratio: Ratio::Sequence, ..fine },
            "grpo: the loss vespo needs the ratio of tokens",
        ),
    ] {
        let text = error(&|_| {}, &config);
        assert!(text.starts_with(expected), "{text}");
    }
}

#[test]
fn settings_read_as_they_are_written() {
    let config = GrpoConfig { loss: LossType::DrGrpo, delta: Some(3.), kl: Kl::K3Plus, ..Default::default() };
    let text = toml::to_string(&config).unwrap();
    assert!(text.contains("loss = \"dr_grpo\"") && text.contains("kl = \"k3-plus\""), "{text}");
    assert_eq!(toml::from_str::<GrpoConfig>(&text).unwrap(), config);
    assert_eq!(toml::from_str::<GrpoConfig>("").unwrap(), GrpoConfig::default());
    assert!(toml::from_str::<GrpoConfig>("epsilom = 0.1").unwrap_err().to_string().contains("epsilom"));
}
