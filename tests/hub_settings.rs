//! Names of models, local folders, and settings from the environment.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use msjoe::hub::{Hub, Kind, Mode, Source, known_models};

use super::server::FakeHub;
use super::{get_spec, says};

#[test]
fn unknown_names_list_the_known_ones() {
    for spec in ["qwen", "", "org/", "/model", "a/b/c", "org/../x", "org/mo del", "org/a--b"] {
        let text = Source::parse(spec).unwrap_err().to_string();
        if !spec.starts_with('/') {
            says(&text, &["clip-vit-base-patch32", "qwen2.5-vl-3b", "org/name[@revision]"]);
        }
    }
    says(&Source::parse("org/model@../x").unwrap_err().to_string(), &["no branch, tag or commit"]);
}

#[test]
fn known_models_have_a_repository_and_published_sizes() {
    let models = known_models().unwrap();
    let names: Vec<_> = models.iter().map(|m| m.name).collect();
    let qwen = ["qwen2.5-vl-3b", "qwen2.5-vl-7b", "qwen2.5-vl-32b", "qwen2.5-vl-72b"];
    assert_eq!(names, [&qwen[..], &["clip-vit-large-patch14", "clip-vit-base-patch32"]].concat());
    for model in &models {
        let Source::Repo(repo) = Source::parse(&format!("{}@abc", model.name)).unwrap() else { panic!() };
        assert_eq!((&repo.id, repo.revision.as_str()), (&model.repo, "abc"));
        let Source::Repo(repo) = Source::parse(model.name).unwrap() else { panic!() };
        assert_eq!(repo.revision, model.revision);
        let Some(config) = model.config else { continue };
        let config: serde_json::Value = serde_json::from_str(config).unwrap();
        let text = if model.kind == Kind::Clip { &config["text_config"] } else { &config };
        for vision_or_text in [text, &config["vision_config"]] {
            let width = vision_or_text["hidden_size"].as_u64().unwrap();
            let heads =
                vision_or_text.get("num_attention_heads").or(vision_or_text.get("num_heads")).unwrap();
            assert_eq!(width % heads.as_u64().unwrap(), 0, "{}", model.name);
        }
        if model.kind == Kind::Qwen2_5Vl {
            assert_eq!(config["vision_config"]["out_hidden_size"], config["hidden_size"], "{}", model.name);
        }
    }
}

#[test]
fn settings_come_from_the_variables_of_the_python_client() {
    let read = |vars: &[(&str, &str)]| {
        let vars: BTreeMap<_, _> = vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Hub::from_lookup(|name| vars.get(name).cloned())
    };
    let hub = read(&[("HOME", "/h")]).unwrap();
    assert_eq!(hub.endpoint, "https://huggingface.co");
    assert_eq!(hub.cache, Path::new("/h/.cache/huggingface/hub"));
    assert_eq!((hub.token, hub.mode), (None, Mode::Online));
    let cache = |vars: &[(&str, &str)]| read(vars).unwrap().cache;
    assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
    assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/f")]), Path::new("/h/f/hub"));
    assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
    let home = tempfile::tempdir().unwrap();
    let home_text = home.path().to_str().unwrap();
    fs::write(home.path().join("token"), "hf_file\n").unwrap();
    let token = |vars: &[(&str, &str)]| read(&[&[("HF_HOME", home_text)], vars].concat()).unwrap().token;
    assert_eq!(token(&[]).as_deref(), Some("hf_file"));
    assert_eq!(token(&[("HF_TOKEN", " hf_env ")]).as_deref(), Some("hf_env"));
    assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere")]), None);
    assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    for (value, mode) in
        [("1", Mode::Offline), ("ON", Mode::Offline), ("0", Mode::Online), ("", Mode::Online)]
    {
        assert_eq!(read(&[("HF_HOME", "/f"), ("HF_HUB_OFFLINE", value)]).unwrap().mode, mode, "{value:?}");
    }
    let patient = read(&[("HF_HOME", "/f"), ("HF_HUB_DOWNLOAD_TIMEOUT", "30")]).unwrap();
    assert_eq!(patient.timeout, Duration::from_secs(30));
    let wrong = read(&[("HF_HOME", "/f"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]).unwrap_err().to_string();
    says(&wrong, &["HF_HUB_DOWNLOAD_TIMEOUT", "soon"]);
    says(&read(&[]).unwrap_err().to_string(), &["HF_HOME"]);
}

#[test]
fn local_folders_are_used_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = Hub { endpoint: "http://127.0.0.1:1".into(), ..FakeHub::start().client() };
    let weights = get_spec(&nowhere, folder.path().to_str().unwrap()).unwrap();
    assert_eq!((weights.folder.as_path(), weights.repo, weights.commit), (folder.path(), None, None));
    let gone = folder.path().join("gone");
    says(&get_spec(&nowhere, gone.to_str().unwrap()).unwrap_err().to_string(), &["gone", "no such folder"]);
    fs::write(&gone, "x").unwrap();
    says(
        &get_spec(&nowhere, gone.to_str().unwrap()).unwrap_err().to_string(),
        &["a file, expected a folder"],
    );
}
