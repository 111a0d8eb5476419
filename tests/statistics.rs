//! Intervals against what is known of them.

use msjoe::statistics::{accuracy, difference, mcnemar};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn answers(count: usize, share: f64, seed: u64) -> Vec<bool> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_bool(share)).collect()
}

#[test]
fn one_run_has_the_interval_of_a_proportion() {
    let run = answers(1000, 0.6, 1);
    let got = accuracy(std::slice::from_ref(&run), 7).unwrap();
    let mean = run.iter().filter(|right| **right).count() as f64 / 1000.0;
    let half = 1.96 * (mean * (1.0 - mean) / 1000.0_f64).sqrt();
    assert_eq!(got.mean, mean);
    assert!((got.low - (mean - half)).abs() < 0.1 * half, "{got:?}, expected +- {half}");
    assert!((got.high - (mean + half)).abs() < 0.1 * half, "{got:?}, expected +- {half}");
    assert_eq!(got, accuracy(&[run], 7).unwrap(), "the same seed, the same interval");
}

#[test]
fn runs_that_differ_widen_the_interval() {
    let (low, high) = (answers(500, 0.4, 1), answers(500, 0.8, 2));
    let same = accuracy(&[low.clone(), low.clone()], 0).unwrap();
    let apart = accuracy(&[low, high], 0).unwrap();
    assert!(apart.high - apart.low > 2.0 * (same.high - same.low), "{apart:?}, {same:?}");
}

#[test]
fn differences_are_taken_on_the_same_questions() {
    let run = answers(400, 0.5, 3);
    let none = difference(std::slice::from_ref(&run), std::slice::from_ref(&run), 0).unwrap();
    assert_eq!((none.mean, none.low, none.high), (0.0, 0.0, 0.0), "questions vary, the difference does not");
    let mut better = run.clone();
    let wrong: Vec<usize> = (0..400).filter(|&at| !run[at]).take(40).collect();
    wrong.iter().for_each(|&at| better[at] = true);
    let gain = difference(&[better], &[run], 0).unwrap();
    assert!((gain.mean - 0.1).abs() < 1e-12 && gain.low > 0.06 && gain.high < 0.14, "{gain:?}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    assert!(accuracy(&[], 0).is_err());
    assert!(accuracy(&[vec![]], 0).is_err());
    let error = accuracy(&[vec![true, false], vec![true]], 0).unwrap_err().to_string();
    assert!(error.contains("[2, 1]"), "{error}");
    let error = difference(&[vec![true, false]], &[vec![true]], 0).unwrap_err().to_string();
    assert!(error.contains("2 questions cannot be compared with 1"), "{error}");
}

#[test]
fn the_exact_test_counts_what_only_one_knows() {
    let said = |text: &str| -> Vec<bool> { text.bytes().map(|byte| byte == b'1').collect() };
    // Five against one of six: 2 (1 + 6) / 64.
    let test = mcnemar(&said("1111100011"), &said("0000010011")).unwrap();
    assert_eq!((test.only_first, test.only_second), (5, 1));
    assert!((test.p - 14.0 / 64.0).abs() < 1e-12, "{test:?}");
    let three = mcnemar(&said("1110"), &said("0000")).unwrap();
    assert!((three.p - 0.25).abs() < 1e-12, "{three:?}");
    assert_eq!(mcnemar(&said("10"), &said("01")).unwrap().p, 1.0, "not above 1");
    assert_eq!(mcnemar(&said("101"), &said("101")).unwrap().p, 1.0, "nothing to tell apart");
    // 600 against 400 of 1,000: in whole numbers, 2 sum C(1000, i) over 2^1000.
    let (a, b): (Vec<bool>, Vec<bool>) = (0..1000).map(|i| (i < 600, i >= 600)).unzip();
    let many = mcnemar(&a, &b).unwrap().p;
    assert!((many / 2.7284641560660184e-10 - 1.0).abs() < 1e-9, "{many:e}");
    let error = mcnemar(&[true], &[]).unwrap_err().to_string();
    assert!(error.contains("1 questions cannot be compared with 0"), "{error}");
}
