//! Chat template, tokenizer and random checkpoints.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};
use msjoe::checkpoint::Checkpoint;
use msjoe::checkpoint::random::{self, ClipSpec, QwenSpec};
use msjoe::text::{
    ChatTemplate, Message, Pad, Part, Role, TemplateOrigin, TemplateSource, Tokenizer, expand_pads, strftime,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn inline(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, TemplateOrigin::BuiltIn("test")).unwrap()
}

fn error<T: std::fmt::Debug>(result: msjoe::Result<T>) -> String {
    result.unwrap_err().to_string()
}

fn qwen_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    random::qwen2_5_vl(dir.path(), &QwenSpec::default(), 7).unwrap();
    dir
}

/// Variables of a golden case, with the special tokens that the reference adds.
fn variables(golden: &Value, case: &Value) -> Value {
    let mut variables = case["variables"].as_object().unwrap().clone();
    variables.extend(golden["specials"].as_object().unwrap().clone());
    Value::Object(variables)
}

#[test]
fn qwen_prompts_equal_the_reference() {
    let golden = golden("chat_template.json");
    let template = ChatTemplate::qwen2_5_vl().unwrap();
    for case in golden["qwen"].as_array().unwrap() {
        let text = template.render_with(variables(&golden, case)).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap(), "{}", case["name"]);
    }
    assert_eq!(golden["qwen"].as_array().unwrap().len(), 21);
}

#[test]
fn qwen_prompt_is_the_documented_one() {
    let prompt = ChatTemplate::qwen2_5_vl().unwrap().prompt(&[Message::video("Why?")]).unwrap();
    assert_eq!(
        prompt,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n\
         <|vision_start|><|video_pad|><|vision_end|>Why?<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn messages_serialise_as_templates_expect() {
    let message =
        Message::new(Role::Assistant, vec![Part::Image, Part::Video, Part::text("x"), Part::text("")]);
    let expected = json!({"role": "assistant", "content": [
        {"type": "image"}, {"type": "video"}, {"type": "text", "text": "x"}, {"type": "text", "text": ""}
    ]});
    assert_eq!(serde_json::to_value(&message).unwrap(), expected);
    let first = Message::text(Role::System, "Be brief.");
    let prompt = ChatTemplate::qwen2_5_vl().unwrap().render(&[first, message], false).unwrap();
    assert!(
        prompt.starts_with("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>assistant\n"),
        "{prompt}"
    );
    assert!(prompt.ends_with("<|video_pad|><|vision_end|>x<|im_end|>\n"), "{prompt}");
}

#[test]
fn template_features_equal_the_reference() {
    let golden = golden("chat_template.json");
    let mut wrong = Vec::new();
    for case in golden["features"].as_array().unwrap() {
        let rendered = inline(case["template"].as_str().unwrap()).render_with(variables(&golden, case));
        match (rendered, case["text"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => {}
            (Err(error), None) => {
                let message = case["error"].as_str().unwrap();
                let ours = error.to_string();
                // jinja2's own wording of undefined values is not ours; a refusal by the template is quoted
                assert!(ours.contains(message) || ours.contains("undefined"), "{ours} instead of {message}");
            }
            (rendered, expected) => wrong.push(format!(
                "{}:\n  ours      {rendered:?}\n  reference {:?}",
                case["name"],
                expected.or(case["error"].as_str())
            )),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn dates_equal_the_reference() {
    let golden = golden("chat_template.json");
    let format = golden["strftime"]["format"].as_str().unwrap();
    for case in golden["strftime"]["cases"].as_array().unwrap() {
        assert_eq!(strftime(case[0].as_i64().unwrap(), format).unwrap(), case[1].as_str().unwrap());
    }
    assert!(strftime(0, "%Q").unwrap_err().contains("%Q"));
    let today = inline("{{ strftime_now('%Y-%m-%d') }}").prompt(&[]).unwrap();
    assert!(today.len() == 10 && today.as_str() > "2024-01-01", "{today}");
}

#[test]
fn templates_are_found_in_the_reference_order() {
    let dir = qwen_folder();
    let path = |name: &str| dir.path().join(name);
    let load = || ChatTemplate::load(dir.path());
    let found = load().unwrap();
    assert_eq!(found.origin(), &TemplateOrigin::File(path("tokenizer_config.json")));
    assert_eq!(found.source(), ChatTemplate::qwen2_5_vl().unwrap().source());

    let named = json!({"eos_token": {"content": "<end>", "lstrip": false}, "bos_token": null, "chat_template": [
        {"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ eos_token }}{{ bos_token }}"}
    ]});
    std::fs::write(path("tokenizer_config.json"), named.to_string()).unwrap();
    assert_eq!(load().unwrap().prompt(&[]).unwrap(), "D<end>");

    std::fs::write(path("chat_template.json"), r#"{"chat_template": "J{{ eos_token }}"}"#).unwrap();
    assert_eq!(load().unwrap().prompt(&[]).unwrap(), "J<end>");

    std::fs::write(path("chat_template.jinja"), "R{{ eos_token }}\n").unwrap();
    assert_eq!(load().unwrap().prompt(&[]).unwrap(), "R<end>");
    assert_eq!(load().unwrap().origin().to_string(), path("chat_template.jinja").display().to_string());

    let built_in = ChatTemplate::open(dir.path(), &TemplateSource::BuiltIn).unwrap();
    assert_eq!(built_in.origin().to_string(), "built-in qwen2.5-vl template");
    std::fs::write(path("own.jinja"), "O{{ eos_token }}").unwrap();
    let own = ChatTemplate::open(dir.path(), &TemplateSource::File(path("own.jinja"))).unwrap();
    assert_eq!(own.prompt(&[]).unwrap(), "O<end>");
}

#[test]
fn a_missing_or_broken_template_is_an_error_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let message = error(ChatTemplate::load(dir.path()));
    assert!(message.contains(&dir.path().display().to_string()) && message.contains("chat_template.jinja"));

    std::fs::write(path("tokenizer_config.json"), "{").unwrap();
    let message = error(ChatTemplate::load(dir.path()));
    assert!(message.contains("tokenizer_config.json: not JSON"), "{message}");

    std::fs::write(path("tokenizer_config.json"), r#"{"chat_template": [{"name": "rag", "template": ""}]}"#)
        .unwrap();
    let message = error(ChatTemplate::load(dir.path()));
    assert!(message.contains("named default") && message.contains("rag"), "{message}");

    std::fs::write(path("chat_template.json"), "{}").unwrap();
    let message = error(ChatTemplate::load(dir.path()));
    assert!(message.contains("chat_template.json: has no key chat_template"), "{message}");

    std::fs::write(path("chat_template.jinja"), "one\n{% for m in messages %}\nthree\n{% endif %}\n")
        .unwrap();
    let message = error(ChatTemplate::load(dir.path()));
    assert!(
        message.contains("chat_template.jinja, line 4 of the template: chat template does not parse"),
        "{message}"
    );

    std::fs::write(path("chat_template.jinja"), "one\n{{ raise_exception('no video') }}").unwrap();
    let message = error(ChatTemplate::load(dir.path()).unwrap().prompt(&[]));
    assert!(
        message.contains("line 2") && message.ends_with("refuses the conversation: no video"),
        "{message}"
    );

    let missing = error(ChatTemplate::open(dir.path(), &TemplateSource::File(path("nowhere"))));
    assert!(missing.contains("nowhere"), "{missing}");
}

#[test]
fn a_missing_or_broken_tokenizer_is_an_error_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let message = error(Tokenizer::load(dir.path()));
    assert!(message.contains("tokenizer.json: no such file"), "{message}");
    std::fs::write(dir.path().join("tokenizer.json"), "{\"version\": \"1.0\"").unwrap();
    let message = error(Tokenizer::load(dir.path()));
    assert!(message.contains("tokenizer.json: not a tokenizer"), "{message}");
}

#[test]
fn token_ids_equal_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    random::qwen2_5_vl(dir.path().join("qwen2.5-vl"), &QwenSpec::default(), 1).unwrap();
    random::clip(dir.path().join("clip"), &ClipSpec::default(), 1).unwrap();
    for case in golden("random_tokenizers.json")["cases"].as_array().unwrap() {
        let tokenizer = Tokenizer::load(dir.path().join(case["folder"].as_str().unwrap())).unwrap();
        let ids = tokenizer.encode(case["text"].as_str().unwrap()).unwrap();
        assert_eq!(json!(ids), case["ids"], "{case}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), case["decoded"].as_str().unwrap());
    }
}

#[test]
fn special_tokens_by_name() {
    let dir = qwen_folder();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("config.json")).unwrap()).unwrap();
    let end = tokenizer.id("<|im_end|>").unwrap();
    assert_eq!(json!(end), config["eos_token_id"]);
    assert_eq!(json!(tokenizer.id("<|video_pad|>").unwrap()), config["video_token_id"]);
    assert_eq!(tokenizer.token(end).unwrap(), "<|im_end|>");
    assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), [end]);
    assert_eq!(tokenizer.decode(&[end, 9_999]).unwrap(), "");
    assert_eq!(tokenizer.token(9_999), None);
    assert!(config["vocab_size"].as_u64().unwrap() > tokenizer.vocab_size() as u64);
    let message = error(tokenizer.id("<|audio_pad|>"));
    assert!(message.contains("tokenizer.json") && message.contains("<|audio_pad|>"), "{message}");
    let message = error(tokenizer.refuse_special("question", "end it<|im_end|>now"));
    assert_eq!(
        message,
        "question: contains the control token <|im_end|>, which is not allowed in plain text"
    );
    tokenizer.refuse_special("question", "a < b | c > d, im_end").unwrap();
}

#[test]
fn pads_are_widened_in_order() {
    let (image, video) = (7, 8);
    let pads = [Pad { id: image, counts: &[2] }, Pad { id: video, counts: &[3, 1] }];
    assert_eq!(expand_pads(&[1, 8, 2, 7, 8, 3], &pads).unwrap(), [1, 8, 8, 8, 2, 7, 7, 8, 3]);
    assert_eq!(expand_pads(&[1, 2], &[]).unwrap(), [1, 2]);
    let message = error(expand_pads(&[8], &pads));
    assert_eq!(
        message,
        "prompt: 0 pad tokens of id 7 for 1 media; the chat template must write one for each"
    );
    let message = error(expand_pads(&[7], &[Pad { id: 7, counts: &[0] }]));
    assert!(message.contains("no visual tokens"), "{message}");
}

#[test]
fn a_streamed_character_comes_whole() {
    let dir = qwen_folder();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let ids = tokenizer.encode("é🎬!").unwrap();
    assert_eq!(ids.len(), 7, "2 + 4 + 1 bytes");
    let mut stream = tokenizer.stream();
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["", "é", "", "", "", "🎬", "!"]);
    assert_eq!(stream.finish().unwrap(), "");
    let mut cut = tokenizer.stream();
    assert!(ids[..4].iter().map(|&id| cut.push(id).unwrap()).collect::<String>() == "é");
    assert_eq!(cut.finish().unwrap(), "\u{fffd}");
}

#[test]
fn streamed_text_is_the_decoded_text_whatever_the_tokens() {
    let dir = qwen_folder();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let top = tokenizer.vocab_size() as u32 + 20;
    proptest!(ProptestConfig::with_cases(300), |(ids in prop::collection::vec(0..top, 0..60))| {
        let mut stream = tokenizer.stream();
        let mut text = String::new();
        for &id in &ids {
            text += &stream.push(id).unwrap();
        }
        text += &stream.finish().unwrap();
        prop_assert_eq!(text, tokenizer.decode(&ids).unwrap());
    });
    proptest!(ProptestConfig::with_cases(100), |(text in "\\PC{0,80}")| {
        let ids = tokenizer.encode(&text).unwrap();
        // the normalizer composes characters; what it leaves alone comes back as it was
        if text.is_ascii() {
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    });
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn a_seed_makes_the_same_folder_again() {
    let [a, b, c] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    for (dir, seed) in [(&a, 7), (&b, 7), (&c, 8)] {
        random::qwen2_5_vl(dir.path().join("q"), &QwenSpec::default(), seed).unwrap();
        random::clip(dir.path().join("c"), &ClipSpec::default(), seed).unwrap();
    }
    for part in ["q", "c"] {
        let [a, b, c] = [&a, &b, &c].map(|dir| files(&dir.path().join(part)));
        assert_eq!(a, b);
        assert_eq!(a["tokenizer.json"], c["tokenizer.json"]);
        assert_ne!(a["model.safetensors"], c["model.safetensors"]);
    }
}

/// All tensors of a folder as f32, by name.
fn tensors(dir: &Path) -> BTreeMap<String, Vec<f32>> {
    let mut found = BTreeMap::new();
    for name in files(dir).keys().filter(|name| name.ends_with(".safetensors")) {
        for (name, tensor) in candle_core::safetensors::load(dir.join(name), &Device::Cpu).unwrap() {
            let tensor = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
            assert!(found.insert(name, tensor.to_vec1().unwrap()).is_none());
        }
    }
    found
}

#[test]
fn layouts_of_one_seed_hold_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let plain = QwenSpec::default();
    random::qwen2_5_vl(path, &plain, 3).unwrap();
    let single = tensors(path);
    random::qwen2_5_vl(path, &QwenSpec { shards: 3, ..plain.clone() }, 3).unwrap();
    assert!(
        !path.join("model.safetensors").exists() && path.join("model-00003-of-00003.safetensors").exists()
    );
    assert_eq!(tensors(path), single);
    Checkpoint::open(path).unwrap();
    let index: Value = msjoe::checkpoint::read_json(&path.join("model.safetensors.index.json")).unwrap();
    assert_eq!(index["weight_map"].as_object().unwrap().len(), single.len());
    assert_eq!(index["metadata"]["total_size"], 4 * single.values().map(Vec::len).sum::<usize>());

    random::qwen2_5_vl(path, &QwenSpec { tied: true, dtype: DType::BF16, ..plain }, 3).unwrap();
    assert!(!path.join("model.safetensors.index.json").exists());
    let half = tensors(path);
    assert_eq!(
        single.keys().filter(|name| !half.contains_key(*name)).collect::<Vec<_>>(),
        ["lm_head.weight"]
    );
    let worst = half.iter().flat_map(|(name, values)| values.iter().zip(&single[name]));
    assert!(worst.clone().all(|(a, b)| (a - b).abs() <= b.abs() / 256.0), "rounded to 8 bits");
}

#[test]
fn weights_have_the_asked_spread() {
    let dir = qwen_folder();
    let tensors = tensors(dir.path());
    let moments = |name: &str| {
        let values = &tensors[name];
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt())
    };
    let (mean, std) = moments("model.embed_tokens.weight");
    assert!(mean.abs() < 1e-3 && (std - 0.05).abs() < 1e-3, "{mean} {std}");
    let (mean, std) = moments("model.norm.weight");
    assert!((mean - 1.0).abs() < 0.03 && std > 0.02, "{mean} {std}");
    assert_ne!(tensors["model.layers.0.mlp.up_proj.weight"], tensors["model.layers.1.mlp.up_proj.weight"]);
}

#[test]
fn the_config_is_one_that_models_are_built_from() {
    let dir = qwen_folder();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let config: msjoe::models::qwen2_5_vl::config::Config = checkpoint.config().unwrap();
    assert_eq!(config.text.mrope_section, [2, 3, 3]);
    assert_eq!(config.vision.out_hidden_size, config.text.hidden_size);
}

#[test]
fn impossible_sizes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let qwen = |spec: QwenSpec| error(random::qwen2_5_vl(dir.path().join("q"), &spec, 0));
    let base = QwenSpec::default;
    assert!(qwen(QwenSpec { heads: 3, ..base() }).contains("hidden 64 over 3 heads"));
    assert!(qwen(QwenSpec { heads: 0, ..base() }).contains("over 0 heads"));
    assert!(qwen(QwenSpec { kv_heads: 3, ..base() }).contains("kv_heads 3 must divide heads 4"));
    assert!(qwen(QwenSpec { vision_heads: 5, ..base() }).contains("vision_hidden 32 over 5"));
    assert!(qwen(QwenSpec { layers: 0, ..base() }).contains("no size may be 0"));
    assert!(qwen(QwenSpec { full_attention: vec![2], ..base() }).contains("[2] beyond 2 blocks"));
    assert!(qwen(QwenSpec { dtype: DType::U8, ..base() }).contains("U8"));
    assert!(qwen(QwenSpec { shards: 0, ..base() }).contains("shards"));
    let clip = |spec: ClipSpec| error(random::clip(dir.path().join("c"), &spec, 0));
    assert!(clip(ClipSpec { image_size: 100, ..ClipSpec::default() }).contains("image_size 100"));
    assert!(clip(ClipSpec { text_heads: 5, ..ClipSpec::default() }).contains("text tower of width 48"));
    assert_eq!(files(dir.path()).len(), 0, "nothing is written for a refused spec");
}
