//! The feature cache: round trip, every kind of damage, writers at once.

use candle_core::{DType, Device, Tensor};
use msjoe::Error;
use msjoe::data::feature_cache::{Entry, FeatureCache, Features, Key};

fn key() -> Key {
    Key { video: "v".repeat(8), model: "m1".into(), fps: 1.0, preprocessing: "crop 56".into() }
}

fn features(seed: f32) -> Features {
    let values: Vec<f32> = (0..12).map(|i| (i as f32 + seed).sin()).collect();
    Features {
        embeds: Tensor::from_vec(values, (3, 4), &Device::Cpu).unwrap(),
        seconds: vec![0.0, 1.001, 2.0 + f64::EPSILON],
        warning: None,
    }
}

fn same(a: &Features, b: &Features) -> bool {
    let values = |f: &Features| f.embeds.to_vec2::<f32>().unwrap();
    values(a) == values(b) && a.seconds == b.seconds && a.warning == b.warning
}

#[test]
fn what_is_put_comes_back_bit_by_bit() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::new(dir.path().join("made/on/demand"));
    assert!(matches!(cache.get(&key()).unwrap(), Entry::Miss));
    cache.put(&key(), &features(0.0)).unwrap();
    let Entry::Hit(got) = cache.get(&key()).unwrap() else { panic!("expected a hit") };
    assert!(same(&got, &features(0.0)));
    cache.put(&key(), &features(1.0)).unwrap();
    let Entry::Hit(got) = cache.get(&key()).unwrap() else { panic!("expected a hit") };
    assert!(same(&got, &features(1.0)));
}

#[test]
fn a_warning_about_the_video_comes_back_and_each_flipped_bit_of_it_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::new(dir.path());
    let told = Features { warning: Some("ends \"early\"\nat 3 s".into()), ..features(0.0) };
    assert!(cache.get_or_compute(&key(), || Ok(told.clone())).unwrap().warning.is_none(), "not the cache's");
    let again = cache.get_or_compute(&key(), || panic!("must come from the cache")).unwrap();
    assert!(same(&again.features, &told));
    assert_each_bit_counts(&cache);
}

#[test]
fn no_frames_are_features_too() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::new(dir.path());
    let embeds = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
    let none = Features { embeds, seconds: vec![], warning: None };
    cache.put(&key(), &none).unwrap();
    let Entry::Hit(got) = cache.get(&key()).unwrap() else { panic!("expected a hit") };
    assert_eq!(got.embeds.dims(), [0, 4]);
}

#[test]
fn every_part_of_the_key_counts() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::new(dir.path());
    cache.put(&key(), &features(0.0)).unwrap();
    let others = [
        Key { video: "w".into(), ..key() },
        Key { model: "m2".into(), ..key() },
        Key { fps: 1.0 + f64::EPSILON, ..key() },
        Key { preprocessing: "crop 57".into(), ..key() },
        // The boundary between two fields must not move.
        Key { model: "m1\" fps=1.0".into(), ..key() },
    ];
    for other in others {
        assert_ne!(cache.path(&other), cache.path(&key()));
        assert!(matches!(cache.get(&other).unwrap(), Entry::Miss), "{other:?}");
    }
}

fn assert_each_bit_counts(cache: &FeatureCache) {
    let path = cache.path(&key());
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            std::fs::write(&path, &bytes).unwrap();
            let entry = cache.get(&key()).unwrap();
            assert!(
                matches!(&entry, Entry::Damaged { path: p, .. } if *p == path),
                "byte {at}, bit {bit}: {entry:?}"
            );
        }
    }
}

#[test]
fn each_flipped_bit_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::new(dir.path());
    cache.put(&key(), &features(0.0)).unwrap();
    assert_each_bit_counts(&cache);
}

#[test]
fn each_truncation_and_each_appended_byte_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::new(dir.path());
    cache.put(&key(), &features(0.0)).unwrap();
    let path = cache.path(&key());
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(matches!(cache.get(&key()).unwrap(), Entry::Damaged { .. }), "{len} bytes");
    }
    std::fs::write(&path, [whole.as_slice(), &[0]].concat()).unwrap();
    assert!(matches!(cache.get(&key()).unwrap(), Entry::Damaged { .. }));
}

#[test]
fn an_entry_under_the_name_of_another_key_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::new(dir.path());
    let other = Key { fps: 2.0, ..key() };
    cache.put(&other, &features(0.0)).unwrap();
    std::fs::rename(cache.path(&other), cache.path(&key())).unwrap();
    let Entry::Damaged { cause, .. } = cache.get(&key()).unwrap() else { panic!("expected damage") };
    assert!(cause.contains("another key") && cause.contains("fps=2.0"), "{cause}");
}

#[test]
fn a_damaged_entry_is_computed_again_reported_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::new(dir.path());
    let first = cache.get_or_compute(&key(), || Ok(features(0.0))).unwrap();
    assert!(!first.hit && first.warning.is_none());
    let second = cache.get_or_compute(&key(), || panic!("must come from the cache")).unwrap();
    assert!(second.hit && second.warning.is_none() && same(&second.features, &first.features));

    let path = cache.path(&key());
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 0x40;
    std::fs::write(&path, bytes).unwrap();
    let third = cache.get_or_compute(&key(), || Ok(features(0.0))).unwrap();
    assert!(!third.hit && same(&third.features, &first.features));
    let warning = third.warning.unwrap();
    assert!(warning.contains("damaged") && warning.contains(&*path.to_string_lossy()), "{warning}");
    assert!(cache.get_or_compute(&key(), || panic!("must be repaired")).unwrap().hit);
}

#[test]
fn a_cache_that_cannot_be_written_costs_a_warning_not_the_features() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a file");
    std::fs::write(&file, "in the way").unwrap();
    let cache = FeatureCache::new(&file);
    assert!(matches!(cache.put(&key(), &features(0.0)), Err(Error::Io { .. })));
    let got = cache.get_or_compute(&key(), || Ok(features(0.0))).unwrap();
    assert!(same(&got.features, &features(0.0)));
    assert!(got.warning.unwrap().contains("a file"));
}

#[test]
fn errors_of_the_computation_are_passed_on_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::new(dir.path());
    let result = cache.get_or_compute(&key(), || Err(Error::Interrupted));
    assert!(matches!(result, Err(Error::Interrupted)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn features_that_contradict_themselves_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::new(dir.path());
    let short = Features { seconds: vec![0.0], ..features(0.0) };
    let error = cache.put(&key(), &short).unwrap_err();
    assert!(error.to_string().contains("3 rows of features, but 1 times"), "{error}");
    let broken = Features { embeds: (features(0.0).embeds * f64::NAN).unwrap(), ..features(0.0) };
    assert!(cache.put(&key(), &broken).unwrap_err().to_string().contains("not finite"));
    assert!(cache.get_or_compute(&key(), || Ok(broken)).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn readers_see_whole_entries_while_others_write() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::new(dir.path());
    let versions: Vec<Features> = (0..4).map(|i| features(i as f32)).collect();
    cache.put(&key(), &versions[0]).unwrap();
    std::thread::scope(|scope| {
        for version in &versions {
            scope.spawn(|| (0..25).for_each(|_| cache.put(&key(), version).unwrap()));
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let Entry::Hit(got) = cache.get(&key()).unwrap() else {
                        panic!("expected a whole entry")
                    };
                    assert!(versions.iter().any(|version| same(version, &got)));
                }
            });
        }
    });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "temporary files are left");
}
