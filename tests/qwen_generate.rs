//! Generation: equivalences between the ways to reach the same tokens, sampling rules, limits.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use msjoe::Error;
use msjoe::checkpoint::random::{QwenSpec, qwen2_5_vl};
use msjoe::models::qwen2_5_vl::generate::{Completion, Finish, Options};
use msjoe::models::qwen2_5_vl::mrope::{Media, Timing};
use msjoe::models::qwen2_5_vl::sampling::{Sampling, Seen, argmax, next_token};
use msjoe::models::qwen2_5_vl::text::Context;
use msjoe::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::nn::{normal, relative};

fn model() -> Qwen2_5Vl {
    let dir = tempfile::tempdir().unwrap();
    let spec =
        QwenSpec { heads: 6, kv_heads: 2, hidden: 96, std: 0.15, max_positions: 400, ..QwenSpec::default() };
    qwen2_5_vl(dir.path(), &spec, 3).unwrap();
    Qwen2_5Vl::load(dir.path(), DType::F32, &Device::Cpu).unwrap()
}

/// Text, a video of 3 x 6 x 10 patches, text.
fn video_prompt(model: &Qwen2_5Vl, text: &[u32]) -> Prompt {
    let grid = [3, 6, 10];
    let features = model.vision(&normal(&[180, 1176], 5), &[grid]).unwrap();
    let mut input_ids = vec![11, 12, model.config.vision_start_token_id];
    input_ids.extend(std::iter::repeat_n(model.config.video_token_id, 45));
    input_ids.extend(text);
    Prompt {
        input_ids,
        media: vec![Media::Video { grid, timing: Timing::Uniform(1.5) }],
        features: vec![features],
    }
}

fn generate(model: &Qwen2_5Vl, prompts: &[Prompt], options: &Options) -> Vec<Completion> {
    model.generate(prompts, options, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

/// The same tokens and ends; log-probabilities up to rounding.
fn assert_same(got: &[Completion], want: &[Completion]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert_eq!((&got.tokens, got.finish), (&want.tokens, want.finish));
        assert_eq!(got.log_probs.len(), got.tokens.len());
        for (a, b) in got.log_probs.iter().zip(&want.log_probs) {
            assert!((a - b).abs() < 2e-5, "{a} and {b}");
        }
    }
}

fn sampled(seed: u64) -> Options {
    let sampling = Sampling { temperature: 1.3, top_p: 0.95, top_k: 60, repetition_penalty: 1.1, seed };
    Options { max_new_tokens: 20, sampling, ..Options::default() }
}

fn greedy(max_new_tokens: usize) -> Options {
    Options { max_new_tokens, ..Options::default() }
}

#[test]
fn cached_decoding_equals_the_whole_forward() {
    let model = model();
    let mut prompt = video_prompt(&model, &[40, 41, 42]);
    let tokens = generate(&model, std::slice::from_ref(&prompt), &greedy(12)).remove(0).tokens;
    for token in tokens {
        let logits = model.forward(&prompt).unwrap();
        let last = logits.get(prompt.input_ids.len() - 1).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(argmax(&last), token);
        prompt.input_ids.push(token);
    }
}

#[test]
fn chunked_prefill_equals_one_shot() {
    let model = model();
    let prompt = video_prompt(&model, &[40, 41, 42]);
    let embeds = model.embed(&prompt).unwrap();
    let positions = model.positions(&prompt).unwrap().ids;
    let hidden = |chunk: usize| {
        let mut cache = model.text().cache(1);
        let parts: Vec<Tensor> = (0..positions.len())
            .step_by(chunk)
            .map(|start| {
                let rows = chunk.min(positions.len() - start);
                let context = Context::Cached { cache: &mut cache, rows: &[rows] };
                let embeds = embeds.narrow(0, start, rows).unwrap();
                model.text().hidden(&embeds, &positions[start..start + rows], context).unwrap()
            })
            .collect();
        assert_eq!(cache.len(0), positions.len());
        Tensor::cat(&parts, 0).unwrap()
    };
    let whole = hidden(1000);
    for chunk in [1, 7, 50] {
        assert!(relative(&hidden(chunk), &whole) < 2e-6, "chunks of {chunk}");
    }
    let chunked = Options { prefill_chunk: 7, ..sampled(1) };
    let prompts = std::slice::from_ref(&prompt);
    assert_same(&generate(&model, prompts, &chunked), &generate(&model, prompts, &sampled(1)));
}

#[test]
fn a_batch_of_unequal_lengths_equals_singles() {
    let model = model();
    let prompts = [
        Prompt::text(vec![5]),
        video_prompt(&model, &[40, 41]),
        Prompt::text((20..120).collect()),
        video_prompt(&model, &[9]),
    ];
    let stop = generate(&model, &prompts[2..3], &greedy(6))[0].tokens[3];
    let options = Options { stop_tokens: vec![stop], ..greedy(15) };
    let batch = generate(&model, &prompts, &options);
    assert_eq!(batch[2].finish, Finish::Stop);
    assert!(batch.iter().any(|c| c.finish == Finish::Length));
    for (prompt, together) in prompts.iter().zip(&batch) {
        assert_same(
            &generate(&model, std::slice::from_ref(prompt), &options),
            std::slice::from_ref(together),
        );
    }
}

#[test]
fn a_group_equals_its_members_alone() {
    let model = model();
    let prompt = video_prompt(&model, &[40, 41]);
    let options = sampled(9);
    let group = model.generate_group(&prompt, 5, &options, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let singles = generate(&model, &vec![prompt.clone(); 5], &options);
    assert_same(&group, &singles);
    let distinct: std::collections::HashSet<&Vec<u32>> = group.iter().map(|c| &c.tokens).collect();
    assert_eq!(distinct.len(), 5, "the members draw from generators of their own");
    // The same seed repeats.
    assert_same(&generate(&model, std::slice::from_ref(&prompt), &options), &group[..1]);
    assert_ne!(generate(&model, &[prompt], &sampled(10))[0].tokens, group[0].tokens);
}

#[test]
fn log_probs_are_those_of_the_whole_forward_at_the_temperature() {
    let model = model();
    let mut prompt = video_prompt(&model, &[40, 41]);
    let options = Options { banned: vec![3], ..sampled(4) };
    let completion = generate(&model, std::slice::from_ref(&prompt), &options).remove(0);
    let start = prompt.input_ids.len();
    prompt.input_ids.extend(&completion.tokens);
    let logits: Vec<Vec<f32>> = model.forward(&prompt).unwrap().to_vec2().unwrap();
    for (i, (&token, &log_prob)) in completion.tokens.iter().zip(&completion.log_probs).enumerate() {
        let scaled: Vec<f64> = logits[start + i - 1].iter().map(|x| f64::from(*x) / 1.3).collect();
        let normaliser = scaled.iter().map(|x| x.exp()).sum::<f64>().ln();
        let want = scaled[token as usize] - normaliser;
        assert!((f64::from(log_prob) - want).abs() < 2e-5, "token {i}: {log_prob} instead of {want}");
    }
    let all: Vec<u32> = (0..model.config.text.vocab_size as u32).filter(|id| *id != 7).collect();
    let only = Options { banned: all, ..sampled(4) };
    assert_eq!(generate(&model, &[video_prompt(&model, &[40])], &only)[0].tokens, [7; 20]);
}

#[test]
fn callbacks_stream_and_interrupt() {
    let model = model();
    let prompts = [Prompt::text(vec![5, 6]), Prompt::text(vec![7])];
    let mut streamed = vec![vec![], vec![]];
    let completions = model
        .generate(&prompts, &greedy(8), &mut |sequence, token| {
            streamed[sequence].push(token);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(streamed, completions.into_iter().map(|c| c.tokens).collect::<Vec<_>>());
    let mut left = 3;
    let result = model.generate(&prompts, &greedy(8), &mut |_, _| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(Error::Interrupted)));
}

#[test]
fn limits_are_refused_or_kept() {
    let model = model();
    let error = |prompt: Prompt, options: &Options| {
        model.generate(&[prompt], options, &mut |_, _| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    let long = error(Prompt::text(vec![5; 400]), &greedy(1));
    assert!(long.contains("400") && long.contains("context"), "{long}");
    assert!(error(Prompt::text(vec![]), &greedy(1)).contains("empty"));
    let mut options = greedy(1);
    options.sampling.top_p = 0.0;
    assert!(error(Prompt::text(vec![1]), &options).contains("top_p"));
    let unknown = error(Prompt::text(vec![1_000_000]), &greedy(1));
    assert!(unknown.contains("1000000") && unknown.contains("vocabulary"), "{unknown}");
    let mut missing = video_prompt(&model, &[1]);
    missing.features.clear();
    assert!(error(missing, &greedy(1)).contains("45"));
    let completion = generate(&model, &[Prompt::text(vec![5; 395])], &greedy(50)).remove(0);
    assert_eq!((completion.tokens.len(), completion.finish), (5, Finish::Length));
    assert!(generate(&model, &[Prompt::text(vec![5])], &greedy(0))[0].tokens.is_empty());
}

fn draws(logits: &[f32], sampling: &Sampling, seen: &Seen, count: usize) -> Vec<usize> {
    let mut rng = StdRng::seed_from_u64(4);
    let mut counts = vec![0; logits.len()];
    for _ in 0..count {
        counts[next_token(logits.to_vec(), sampling, seen, &mut rng).unwrap().0 as usize] += 1;
    }
    counts
}

/// Frequencies of the draws against the probabilities that the rules give.
fn assert_frequencies(counts: &[usize], probabilities: &[f64]) {
    let n = counts.iter().sum::<usize>() as f64;
    for (i, (count, p)) in counts.iter().zip(probabilities).enumerate() {
        let error = (*count as f64 / n - p).abs();
        let allowed = if *p == 0.0 { 0.0 } else { 4.5 * (p * (1.0 - p) / n).sqrt() };
        assert!(error <= allowed, "token {i}: {error:.4} off {p:.4}");
    }
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
    logits.iter().map(|x| x.exp() / sum).collect()
}

#[test]
fn draws_follow_the_rules() {
    let logits = [2.0, -1.0, 1.0, 0.0, 1.5];
    let base = Sampling { temperature: 1.0, ..Sampling::default() };
    let nobody = Seen::new();
    let check = |sampling: &Sampling, seen: &Seen, expected: &[f64]| {
        assert_frequencies(&draws(&logits, sampling, seen, 20_000), &softmax(expected));
    };
    let hidden = f64::NEG_INFINITY;
    check(&base, &nobody, &[2.0, -1.0, 1.0, 0.0, 1.5]);
    check(&Sampling { temperature: 0.5, ..base.clone() }, &nobody, &[4.0, -2.0, 2.0, 0.0, 3.0]);
    check(&Sampling { top_k: 2, ..base.clone() }, &nobody, &[2.0, hidden, hidden, hidden, 1.5]);
    // Probabilities 0.48, 0.29, 0.18, 0.065, 0.024 in descending order: 0.6 needs two, 0.78 needs three.
    check(&Sampling { top_p: 0.6, ..base.clone() }, &nobody, &[2.0, hidden, hidden, hidden, 1.5]);
    check(&Sampling { top_p: 0.78, ..base.clone() }, &nobody, &[2.0, hidden, 1.0, hidden, 1.5]);
    let penalty = Sampling { repetition_penalty: 2.0, ..base };
    check(&penalty, &Seen::from([0, 1]), &[1.0, -2.0, 1.0, 0.0, 1.5]);
}

#[test]
fn greedy_takes_the_lowest_of_equals_after_the_penalty() {
    let mut rng = StdRng::seed_from_u64(0);
    let greedy = Sampling::default();
    let mut next =
        |logits: Vec<f32>, sampling: &Sampling, seen: &Seen| next_token(logits, sampling, seen, &mut rng);
    assert_eq!(next(vec![1.0, 3.0, 3.0], &greedy, &Seen::new()).unwrap().0, 1);
    let penalty = Sampling { repetition_penalty: 1.5, ..greedy.clone() };
    assert_eq!(next(vec![1.0, 3.0, 2.9], &penalty, &Seen::from([1])).unwrap().0, 2);
    assert_eq!(next(vec![-1.0, -3.0, -1.1], &penalty, &Seen::from([0])).unwrap().0, 2);
    let error = next(vec![0.0, f32::NAN], &greedy, &Seen::new()).unwrap_err().to_string();
    assert!(error.contains("token 1") && error.contains("NaN"), "{error}");
}
