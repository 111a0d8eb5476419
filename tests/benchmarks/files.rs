//! Files as a whole: damaged ones, and the time that those of the published size take.

use msjoe::benchmarks::{Benchmark, read};

use super::{HEADER, fixture};

/// Files cut short or with a byte replaced are read in part or refused, and nothing panics.
#[test]
fn damaged_files_are_read_in_part_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let entries = std::fs::read_dir(fixture("")).unwrap().map(|entry| entry.unwrap().path());
    for path in entries.filter(|path| path.is_file()) {
        let bytes = std::fs::read(&path).unwrap();
        let copy = folder.path().join(path.file_name().unwrap());
        for at in (0..bytes.len()).step_by(41) {
            let mut damaged = bytes.clone();
            if at % 2 == 0 {
                damaged.truncate(at)
            } else {
                damaged[at] ^= 0x15
            }
            std::fs::write(&copy, damaged).unwrap();
            if copy.extension().is_some_and(|ending| ending == "srt") {
                msjoe::benchmarks::subtitles::read(&copy).unwrap();
            }
            for benchmark in Benchmark::ALL {
                if let Err(error) = read(benchmark, &copy) {
                    assert!(error.to_string().starts_with(&copy.display().to_string()), "{error}");
                }
            }
        }
    }
}

/// Files with as many rows as the published ones, of about their length, loaded one after the other.
#[test]
fn all_four_benchmarks_load_within_a_second() {
    let words =
        "the person in the blue coat who walks past the harbour and looks at the old boats ".repeat(3);
    let options = |index: usize| ["A", "B", "C", "D"].map(|label| format!("{label}. {label}{index} {words}"));
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    let json = |rows: Vec<serde_json::Value>| serde_json::to_string_pretty(&rows).unwrap();
    let mme = (0..Benchmark::VideoMme.published()).map(|index| {
        serde_json::json!({"videoID": format!("v{}", index / 3), "question_id": format!("{index}"), "duration": "long",
            "domain": "x", "task_type": "y", "question": words, "options": options(index), "answer": "C"})
    });
    write("videomme.json", json(mme.collect()));
    let lvb = (0..Benchmark::LongVideoBench.published()).map(|index| {
        serde_json::json!({"video_path": "v.mp4", "id": format!("{index}"), "question": words, "position": [1, 2, 3],
            "question_wo_referring_query": words, "candidates": options(index), "correct_choice": 1, "duration": 9.5})
    });
    write("lvb_val.json", json(lvb.collect()));
    let below = |index| {
        options(index).map(|option| option.replacen(". ", ") ", 1)).map(|option| format!("\n({option}"))
    };
    let videos = (0..103).map(|video| {
        let questions = Benchmark::LvBench.published();
        let own: Vec<_> = (video * questions / 103..(video + 1) * questions / 103)
            .map(|index| {
                serde_json::json!({"uid": index, "question": format!("{words}{}", below(index).concat()),
                    "answer": "B", "question_type": ["reasoning"], "time_reference": "00:10-01:00"})
            })
            .collect();
        serde_json::json!({"key": format!("v{video}"), "type": "sport", "qa": own, "video_info": {"fps": 30}})
            .to_string()
    });
    write("video_info.meta.jsonl", videos.collect::<Vec<_>>().join("\n"));
    let mlvu = (0..Benchmark::Mlvu.published()).map(|index| {
        let list = options(index).map(|option| format!("'{option}'")).join(", ");
        format!("{index}_mlvu\tcount\tv{index}.mp4\t0\t{words}\t3\t[{list}]\t{}", options(index)[3])
    });
    write("MLVU.tsv", std::iter::once(HEADER.to_owned()).chain(mlvu).collect::<Vec<_>>().join("\n"));
    let start = busy();
    for benchmark in Benchmark::ALL {
        let loaded = read(benchmark, folder.path()).unwrap();
        let counts = (loaded.entries.len(), loaded.refused.len(), loaded.notes.len());
        assert_eq!(counts, (benchmark.published(), 0, 0));
    }
    let took = busy() - start;
    println!("7,760 questions of four benchmarks in {took:.3} s");
    // The promise is that of an optimised build.
    let most = if cfg!(debug_assertions) { 10. } else { 1. };
    assert!(took < most, "expected less than {most} s, took {took:.3} s");
}

/// Seconds this thread has had a processor, which other programs cannot stretch; where the system does not tell, the clock.
fn busy() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = told.and_then(|told| told.split(' ').next()?.parse::<f64>().ok());
    let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    nanoseconds.map_or_else(clock, |nanoseconds| nanoseconds / 1e9)
}
