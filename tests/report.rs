//! Report pages: what is in them, what can never be, and how large they get.

use std::collections::BTreeMap;

use image::RgbImage;
use msjoe::metrics::Line;
use msjoe::models::language::Reply;
use msjoe::models::qwen2_5_vl::generate::Finish;
use msjoe::pipeline::{KeyFrame, Options, Outcome};
use msjoe::report::{Answered, Cost, Evaluation, Frame, Method, Picture, Run, Said, Training, clock, write};
use msjoe::statistics::Estimate;
use msjoe::text::{Question, query};

const HOSTILE: &str =
    "</title></textarea><script>alert(\"1\")</script>' onload='x' & http://example.org/a.js \u{0}\u{202e}א";

/// A question about a video of `seconds` candidates.
pub fn answered(seconds: usize, queries: usize, key_frames: usize) -> Answered {
    let wave = |query: usize, at: usize| 0.2 + 0.1 * ((at * (query + 3)) as f32 / 97.0).sin();
    let noise = |x: u32, y: u32| [x, y, x ^ y].map(|value| (value.wrapping_mul(2_654_435_761) >> 25) as u8);
    let image = |at: usize| RgbImage::from_fn(448, 252, |x, y| image::Rgb(noise(x / 4 + at as u32, y / 4)));
    let frame = |number: usize| {
        let index = number * seconds / key_frames;
        Frame {
            index,
            seconds: index as f64,
            weight: 1.0 / seconds as f32,
            picture: Some(Picture::of(&image(number)).unwrap()),
        }
    };
    Answered {
        video: "talk.mp4".to_owned(),
        duration: seconds as f64,
        question: "What does she hold up?".to_owned(),
        options: vec!["a cup".to_owned(), "a book".to_owned()],
        queries: (0..queries).map(|query| format!("picture number {query}")).collect(),
        candidates: (0..seconds).map(|at| at as f64).collect(),
        similarity: (0..queries).map(|query| (0..seconds).map(|at| wave(query, at)).collect()).collect(),
        weights: vec![1.0 / seconds as f32; seconds],
        frames: (0..key_frames).map(frame).collect(),
        answer: Some("B".to_owned()),
        choice: Some(1),
        right: Some(0),
        steps: vec![Cost { step: "answer".to_owned(), seconds: 11.25, tokens: Some([8311, 8192, 64]) }],
        ..Answered::default()
    }
}

pub fn training(seeds: usize, steps: u64) -> Training {
    let line = |seed: usize, step: u64| {
        let reward = 0.25 * seed as f64 + step as f64 / 20.0;
        let values = [("reward", reward), ("rewards/accuracy", reward / 4.0), ("sampler/entropy", 3.5)];
        let values = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Line { step, time: step as f64, values }
    };
    let run = |seed: usize| Run {
        name: format!("seed {seed}"),
        lines: (1..=steps).map(|step| line(seed, step)).collect(),
        evaluations: BTreeMap::from([(steps, Estimate { mean: 0.431, low: 0.389, high: 0.474 })]),
    };
    Training { title: "A run".to_owned(), runs: (0..seeds).map(run).collect(), ..Training::default() }
}

pub fn evaluation() -> Evaluation {
    let about = |mean: f64| Estimate { mean, low: mean - 0.021, high: mean + 0.034 };
    let method = |name: &str, mean: f64| Method {
        name: name.to_owned(),
        accuracy: about(mean),
        families: BTreeMap::from([
            ("count".to_owned(), about(1.0 - mean)),
            ("order".to_owned(), about(mean / 2.0)),
        ]),
        evidence_recall: Some(mean / 4.0),
        seeds: 3,
        by_frames: [8, 16, 32].into_iter().map(|k| (k, about(mean + k as f64 / 1000.0))).collect(),
    };
    Evaluation {
        title: "Methods".to_owned(),
        questions: 1200,
        key_frames: 8,
        methods: vec![method("uniform", 0.412), method("msjoe", 0.536)],
        rewards: vec![("msjoe".to_owned(), (0..60).map(|step| 0.4 + 0.005 * f64::from(step)).collect())],
        ..Evaluation::default()
    }
}

pub fn hostile() -> [String; 3] {
    let text = HOSTILE.to_owned();
    let facts = vec![(text.clone(), text.clone())];
    let said = Some(Said { reasoning: text.clone(), reply: text.clone() });
    let mut asked = answered(30, 2, 3);
    asked.steps[0].step = text.clone();
    let asked = Answered {
        video: text.clone(),
        question: text.clone(),
        options: vec![text.clone(), text.clone()],
        facts: facts.clone(),
        queries: vec![text.clone(), text.clone()],
        asked: said.clone(),
        answered: said,
        answer: Some(text.clone()),
        warnings: vec![text.clone()],
        ..asked
    };
    let mut trained = training(2, 5);
    (trained.title, trained.facts, trained.warnings) = (text.clone(), facts.clone(), vec![text.clone()]);
    trained.runs.iter_mut().for_each(|run| run.name = text.clone());
    let mut graded = evaluation();
    (graded.title, graded.facts, graded.warnings) = (text.clone(), facts, vec![text.clone()]);
    for method in &mut graded.methods {
        method.name = text.clone();
        method.families = BTreeMap::from([(text.clone(), method.accuracy)]);
    }
    [asked.html(), trained.html(), graded.html()]
}

/// Every page that these tests make.
fn pages() -> Vec<String> {
    let one = Answered { right: None, choice: None, ..answered(1, 1, 1) };
    let mut broken = answered(20, 2, 4);
    broken.similarity = vec![vec![f32::NAN; 20], vec![0.3; 7]];
    broken.weights = vec![0.0; 20];
    broken.candidates[3] = f64::NAN;
    broken.frames[0].weight = f32::NAN;
    let mut gaps = training(2, 9);
    gaps.runs[0].lines[4].values.insert("reward".to_owned(), f64::NAN);
    gaps.runs[1].lines.clear();
    let mut unknown = evaluation();
    unknown.methods[0].accuracy = Estimate { mean: f64::NAN, low: f64::NAN, high: f64::NAN };
    unknown.methods[1].families.clear();
    let mut pages = vec![
        answered(90, 2, 8).html(),
        answered(40, 0, 4).html(),
        one.html(),
        broken.html(),
        Answered::default().html(),
        training(1, 50).html(),
        training(3, 1000).html(),
        gaps.html(),
        Training::default().html(),
        evaluation().html(),
        unknown.html(),
        Evaluation::default().html(),
    ];
    pages.extend(hostile());
    pages
}

/// Checks that every element is closed in its order and every attribute is quoted.
fn well_formed(page: &str) -> Result<(), String> {
    const VOID: [&str; 3] = ["meta", "img", "br"];
    let (mut open, mut rest) = (vec![], page.strip_prefix("<!DOCTYPE html>").ok_or("no doctype")?);
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let mut quoted = false;
        let inside = |c: char| {
            quoted ^= c == '"';
            c == '>' && !quoted
        };
        let end = rest.find(inside).ok_or("a tag without end")?;
        let (tag, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        let name: &str = tag.split([' ', '\n', '/']).find(|part| !part.is_empty()).unwrap_or("");
        if tag.starts_with('/') {
            let last: Option<&str> = open.pop();
            if last != Some(name) {
                return Err(format!("</{name}> closes {last:?}"));
            }
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
            if name == "script" || name == "style" {
                rest = &rest[rest.find(&format!("</{name}>")).ok_or("raw text without end")?..];
            }
        }
        let bare =
            tag.split('"').step_by(2).any(|part| part.contains('=') && !part.trim_end().ends_with('='));
        if bare {
            return Err(format!("an attribute without quotes in <{tag}>"));
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("never closed: {open:?}")) }
}

/// What the tables of a page say, cell by cell.
fn cells(page: &str) -> Vec<String> {
    let mut cells = vec![];
    for part in page.split("<td").skip(1).chain(page.split("<th scope=\"row\"").skip(1)) {
        let inner = part.split_once('>').unwrap().1;
        let inner = &inner
            [..inner.find("</td>").unwrap_or(inner.len()).min(inner.find("</th>").unwrap_or(inner.len()))];
        let mut text = String::new();
        let mut outside = true;
        for c in inner.chars() {
            match c {
                '<' => outside = false,
                '>' => outside = true,
                c if outside => text.push(c),
                _ => {}
            }
        }
        cells.push(text);
    }
    cells
}

#[test]
fn the_checker_sees_bad_markup() {
    assert_eq!(well_formed("<!DOCTYPE html><p class=\"a>b\">x<img alt=\"y\"></p>"), Ok(()));
    for bad in ["<p>x", "<p><b>x</p></b>", "<p class=a>x</p>", "<p title=\"x>y</p>", "</p>"] {
        assert!(well_formed(&format!("<!DOCTYPE html>{bad}")).is_err(), "{bad}");
    }
}

#[test]
fn every_page_is_well_formed() {
    for (number, page) in pages().iter().enumerate() {
        assert_eq!(well_formed(page), Ok(()), "page {number}");
        assert_eq!(page.matches("<h1").count(), 1, "page {number}");
        let charts = page.matches("<svg role=\"img\"").count();
        assert_eq!(page.matches("Numbers of this chart").count(), 2 * charts, "page {number}");
    }
}

#[test]
fn nothing_is_loaded() {
    for page in pages() {
        for call in
            ["<link", "<iframe", "<object", "<embed", "<base", "@import", "url(", "fetch(", "XMLHttpRequest"]
        {
            assert!(!page.contains(call), "{call}");
        }
        for (attribute, allowed) in [("src=\"", "data:image/jpeg;base64,"), ("href=\"", "#")] {
            assert!(page.split(attribute).skip(1).all(|value| value.starts_with(allowed)), "{attribute}");
        }
        assert!(page.contains("default-src 'none'"));
    }
    let plain = [answered(90, 2, 8).html(), training(3, 20).html(), evaluation().html()];
    assert!(plain.iter().all(|page| !page.contains("://")));
}

#[test]
fn text_from_outside_stays_text() {
    for page in hostile() {
        assert_eq!(page.matches("<script").count(), 1);
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(!page.contains("onload='"), "a quote got through");
        assert!(!page.contains('\0'));
        let shown = "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&#39; onload=&#39;x&#39; &amp; http";
        assert!(page.matches(shown).count() >= 5);
    }
}

#[test]
fn no_number_is_missing_or_not_a_number() {
    for page in pages() {
        let body = &page[page.find("<main>").unwrap()..page.find("<footer>").unwrap()];
        // Pictures may spell anything.
        let pictures = body.split("base64,").skip(1).map(|rest| &rest[..rest.find('"').unwrap()]);
        let body = pictures.fold(body.to_owned(), |body, picture| body.replace(picture, ""));
        for word in ["NaN", "inf<", "inf ", "inf%", "-inf"] {
            assert!(!body.contains(word), "{word}");
        }
    }
}

#[test]
fn a_training_run_is_there_in_numbers() {
    let page = training(2, 16).html();
    let cells = cells(&page);
    for step in 1..=16_u64 {
        let (low, high) = (step as f64 / 20.0, 0.25 + step as f64 / 20.0);
        let said = [low + 0.125, low, high].map(|value| {
            let text = format!("{value:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        });
        let said = format!("{} [{}, {}]", said[0], said[1], said[2]);
        assert!(cells.contains(&said), "step {step}: {said}");
    }
    assert!(cells.contains(&"43.1 [38.9, 47.4]".to_owned()), "the evaluation");
    assert!(page.contains("bands reach from the lowest to the highest run"));
    assert!(page.contains("evaluation, seed 1"));
    assert!(page.contains("clip ratio"), "what was not recorded is named");
}

#[test]
fn long_runs_are_averaged_and_say_so() {
    let page = training(1, 4000).html();
    assert!(page.contains("mean of 10 steps"));
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
}

#[test]
fn an_evaluation_is_there_in_numbers() {
    let page = evaluation().html();
    let cells = cells(&page);
    let has = |text: &str| assert!(cells.iter().any(|cell| cell == text), "{text} is not among {cells:?}");
    has("41.2[39.1, 44.6]");
    has("53.6 ★ best[51.5, 57.0]");
    has("58.8 ★ best[56.7, 62.2]");
    has("46.4[44.3, 49.8]");
    has("26.8 ★ best[24.7, 30.2]");
    has("13.4 ★ best");
    has("56.8 [54.7, 60.2]");
    assert_eq!(page.matches("★").count(), 4, "one best in each column");
}

#[test]
fn equals_are_both_best() {
    let mut evaluation = evaluation();
    evaluation.methods[1].accuracy = evaluation.methods[0].accuracy;
    assert_eq!(evaluation.html().matches("★").count(), 5);
}

#[test]
fn a_question_is_there_in_numbers() {
    let page = answered(50, 2, 5).html();
    let cells = cells(&page);
    for text in ["8,311", "8,192", "64", "11.2 s", "0:00:40", "0:00:49", "0.02"] {
        assert!(cells.iter().any(|cell| cell == text), "{text}");
    }
    assert_eq!(page.matches("<img").count(), 5);
    assert!(page.contains("alt=\"Key frame 5 at 0:00:40\""));
    assert!(page.contains("<li class=\"chosen wrong\"><b>B</b>"), "what was answered");
    assert!(page.contains("<li class=\"right\"><b>A</b>"), "what is right");
}

#[test]
fn an_hour_of_video_stays_small() {
    let page = answered(3600, 4, 64).html();
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    assert!(page.contains("3,600 candidate frames share 800 columns"));
    assert_eq!(page.matches("<img").count(), 64);
    assert_eq!(well_formed(&page), Ok(()));
}

/// What the pipeline gives for an hour, with pictures that cannot be compressed.
#[test]
fn an_outcome_of_an_hour_stays_small() {
    let noise =
        |x: u32, y: u32, seed: u32| (x ^ y.rotate_left(16) ^ seed << 8).wrapping_mul(0x9E37_79B1) >> 11;
    let image = |seed: u32| {
        RgbImage::from_fn(448, 252, |x, y| {
            let value = noise(x, y, seed).wrapping_mul(0x85EB_CA6B);
            image::Rgb([24, 16, 8].map(|shift| (value >> shift) as u8))
        })
    };
    let long = "word ".repeat(800);
    let reply = Reply {
        text: format!("<think>{long}</think>B"),
        prompt_tokens: 9000,
        visual_tokens: 8192,
        new_tokens: 800,
        finish: Finish::Stop,
    };
    let wave = |query: usize, at: usize| ((at * (query + 7)) as f32).sin();
    let outcome = Outcome {
        answer: None,
        reply: Some(reply.clone()),
        queries: query::given(&["one", "two", "three", "four"].map(str::to_owned)).ok(),
        query_reply: Some(reply),
        key_frames: (0..64)
            .map(|at| KeyFrame { index: 56 * at, seconds: 56.25 * at as f64, weight: 0.01, scale: 1.0 })
            .collect(),
        images: (0..64).map(image).collect(),
        candidates: (0..3600).map(f64::from).collect(),
        similarity: (0..4).map(|query| (0..3600).map(|at| wave(query, at)).collect()).collect(),
        weights: (0..3600).map(|at| wave(1, at).abs() / 3600.0).collect(),
        log_prob: None,
        features_cached: false,
        duration: 3600.0,
        steps: vec![],
        warnings: vec![],
    };
    let question = Question::new("What does she hold up?", ["a cup", "a book"]).unwrap();
    let page = Answered::of("talk.mp4", &question, &Options::default(), &outcome).unwrap().html();
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    assert_eq!(page.matches("<img").count(), 64);
    assert!(page.contains(long.trim()), "what was thought is there in full");
    assert_eq!(well_formed(&page), Ok(()));
}

#[test]
fn the_brightest_frame_of_a_column_is_seen() {
    let mut one = answered(3600, 1, 4);
    one.similarity = vec![vec![0.1; 3600]];
    one.similarity[0][1801] = 0.9;
    let page = one.html();
    assert_eq!(page.matches("class=\"h15\"").count(), 1, "the one high value has its colour");
    assert!(cells(&page).contains(&"0.9".to_owned()));
}

#[test]
fn frames_keep_their_order_and_all_fit() {
    for places in [vec![0; 64], vec![3599; 64], (0..64).map(|at| at * 57).collect()] {
        let mut crowded = answered(3600, 1, 64);
        crowded.frames.iter_mut().zip(&places).for_each(|(frame, &at)| frame.seconds = f64::from(at));
        let page = crowded.html();
        let seats: Vec<(usize, usize)> = page
            .split("grid-column:")
            .skip(1)
            .filter_map(|part| {
                let (column, rest) = part.split_once(";grid-row:")?;
                Some((column.parse().ok()?, rest.split('"').next()?.parse().ok()?))
            })
            .collect();
        assert_eq!(seats.len(), 64);
        assert!(seats.is_sorted() && seats.windows(2).all(|pair| pair[0] != pair[1]), "{seats:?}");
        assert!(seats.iter().all(|&(column, row)| column <= 10 && row <= 9), "{seats:?}");
    }
}

#[test]
fn a_picture_is_a_small_jpeg() {
    let picture = Picture::of(&RgbImage::new(1000, 500)).unwrap();
    assert_eq!((picture.width, picture.height), (240, 120));
    let read = image::load_from_memory(&picture.jpeg).unwrap();
    assert_eq!((read.width(), read.height()), (240, 120));
    let small = Picture::of(&RgbImage::new(28, 28)).unwrap();
    assert_eq!((small.width, small.height), (28, 28));
    let error = Picture::of(&RgbImage::new(0, 5)).unwrap_err().to_string();
    assert!(error.contains("0 by 5"), "{error}");
}

#[test]
fn a_page_is_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    write(&path, &evaluation().html()).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), evaluation().html());
    let error = write(folder.path().join("none/report.html"), "").unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
}

#[test]
fn a_time_never_has_sixty_seconds() {
    for (seconds, said) in [
        (0., "0:00:00"),
        (59.94, "0:00:59.9"),
        (59.97, "0:01:00"),
        (3599.96, "1:00:00"),
        (192.5, "0:03:12.5"),
    ] {
        assert_eq!(clock(seconds), said);
    }
}
