//! Questions, and the parsers of the two turns' replies.

use msjoe::text::query::{self, MAX_CHARS, MAX_WORDS};
use msjoe::text::{Dialogue, Form, Queries, Question, answer};
use proptest::prelude::*;

fn open() -> Question {
    Question::open("What does the man in red do?").unwrap()
}

fn colours() -> Question {
    Question::new("What colour is it?", ["red", "blue", "dark red", "a red car"]).unwrap()
}

// ---- questions

#[test]
fn labels_of_options_are_normalised() {
    for given in [
        ["red", "blue"],
        ["A. red", "B. blue"],
        ["(A) red", "(b)  blue "],
        ["a) red", "B: blue"],
        ["A. red", "blue"],
        [" red ", "blue\n"],
    ] {
        assert_eq!(Question::new("q", given).unwrap().options(), ["red", "blue"], "{given:?}");
    }
    let names = ["A. Lincoln", "J. Adams"];
    assert_eq!(Question::new("Who?", names).unwrap().options(), names, "initials are no labels");
    let article = ["A red car", "B-movie"];
    assert_eq!(Question::new("Who?", article).unwrap().options(), article);
}

#[test]
fn questions_print_as_prompts_show_them() {
    let question = Question::new("  Which?\n", ["x", "y\nz", "w"]).unwrap();
    assert_eq!(question.to_string(), "Which?\nA. x\nB. y z\nC. w");
    assert_eq!((question.label(2), question.label(3)), (Some('C'), None));
    assert!(open().is_open() && open().to_string() == open().text());
}

#[test]
fn bad_questions_are_refused() {
    let error = |text: &str, options: &[&str]| {
        let refused = Question::new(text, options.iter().copied()).unwrap_err();
        assert!(matches!(refused, msjoe::Error::Input(_)));
        refused.to_string()
    };
    assert_eq!(error(" \n", &[]), "question: expected a text, got an empty one");
    assert!(error("q", &["red"]).contains("at least 2, got only \"red\""));
    assert_eq!(error("q", &["red", " "]), "options: option B is empty");
    assert_eq!(error("q", &["A. red", "B."]), "options: option B is empty");
    assert_eq!(error("q", &["red", "blue", "Red"]), "options: option C, \"Red\", is given twice");
    assert!(error("q", &["B. red", "A. blue"]).contains("in the order BA"));
    let many: Vec<String> = (0..27).map(|i| format!("option {i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(error("q", &many).contains("at most 26 (one per letter), got 27"));
    assert_eq!(Question::new("q", many[..26].iter().copied()).unwrap().label(25), Some('Z'));
}

// ---- query turn

fn parse(reply: &str) -> Queries {
    query::parse(reply, &open(), 4)
}

#[track_caller]
fn reads(reply: &str, form: Form, expected: &[&str]) {
    let read = parse(reply);
    assert_eq!((read.form, read.queries.as_slice()), (form, expected.map_to_strings().as_slice()), "{reply}");
}

trait MapToStrings {
    fn map_to_strings(&self) -> Vec<String>;
}

impl MapToStrings for &[&str] {
    fn map_to_strings(&self) -> Vec<String> {
        self.iter().map(|text| (*text).to_owned()).collect()
    }
}

#[test]
fn the_asked_form_is_exact() {
    let reply = query::well_formed("He wears red.", &["a man in a red coat", "红色的汽车"]);
    reads(&reply, Form::Exact, &["a man in a red coat", "红色的汽车"]);
    reads(
        "\n<think>\nx\n</think>\n\n<query> a dog </query> <query>a cat</query>\n",
        Form::Exact,
        &["a dog", "a cat"],
    );
}

#[test]
fn departures_from_the_form_are_read_but_marked() {
    for reply in [
        "<query>a dog</query><query>a cat</query>",
        "<think></think><query>a dog</query><query>a cat</query>",
        "<think>x</think>Here they are: <query>a dog</query><query>a cat</query>",
        "<think>x</think><query>a dog</query><query>a cat</query> Done.",
        "<think>x</think><query>a dog</query><query>a cat",
        "<think>x</think><QUERY>a dog</ Query ><query id=2>a cat</query>",
        "<think>x</think><query>a dog</query><query>A  dog.</query><query>a cat</query>",
        "<think>x</think><query>a dog\na cat</query>",
        "<think>x</think><query></query><query>a dog</query><query>a cat</query>",
        "<think>x</think>```xml\n<query>a dog</query>\n<query>a cat</query>\n```",
        "<queries>\n1. a dog\n2. a cat\n</queries>",
        "<query>[\"a dog\", \"a cat\"]</query>",
        "<think>x</think>[\"a dog\", \"a cat\"]",
        "```json\n[\"a dog\",\n \"a cat\"]\n```",
        "{\"reasoning\": \"[1]\", \"queries\": [\"a dog\", \"a cat\"]}",
        "[{\"query\": \"a dog\"}, {\"query\": \"a cat\"}]",
        "As in [1], [2]: [\"a dog\", \"a cat\"]",
        "[\"a dog\", \"a cat\", \"a bi",
        "1. a dog\n2. a cat",
        "Reasons:\n- it barks\n- it purrs\n\n**Queries:**\n1) **a dog**\n2) \"a cat\"",
        "- a dog\n- a cat\n",
        "Query 1: a dog\nQuery 2: a cat",
        "**Query 1:** a dog\n**Query 2:** `a cat`",
        "* 1. a dog\r\n* 2. a cat\r\n",
        "<think>queries:\n1. a dog\n2. a cat</think>",
    ] {
        reads(reply, Form::Lenient, &["a dog", "a cat"]);
    }
}

#[test]
fn a_reply_without_queries_falls_back_to_the_question() {
    let garbage = "� ]]}{[[\"\u{0}<query><query></query>";
    let example = "<think>your brief reasoning</think>\n<query>first picture to look for</query>";
    for reply in
        ["", " \n", "I cannot help.", "<query> </query>", "[]", "[1, 2]", "...", "```\n```", garbage, example]
    {
        reads(reply, Form::Fallback, &["What does the man in red do?"]);
    }
}

#[test]
fn too_many_repeated_and_long_queries_are_counted() {
    let six: Vec<String> = (0..6).map(|i| format!("picture {i}")).collect();
    let read = parse(&query::well_formed("x", &six));
    assert_eq!((read.queries.len(), read.surplus, read.form), (4, 2, Form::Lenient));
    assert_eq!(query::parse(&query::well_formed("x", &six), &open(), 6).form, Form::Exact);
    assert_eq!(query::parse(&query::well_formed("x", &six), &open(), 0).queries, ["picture 0"]);

    let read = parse(&query::well_formed("x", &["a dog", "A dog!", "a dog"]));
    assert_eq!((read.queries, read.repeated, read.form), (vec!["a dog".to_owned()], 2, Form::Lenient));

    let long = vec!["word"; MAX_WORDS + 5].join(" ");
    let read = parse(&query::well_formed("x", &[long.as_str(), "a dog"]));
    assert_eq!((read.shortened, read.form), (1, Form::Lenient));
    assert_eq!(read.queries, [vec!["word"; MAX_WORDS].join(" "), "a dog".to_owned()]);

    let unbroken = "画".repeat(MAX_CHARS + 1);
    assert_eq!(parse(&query::well_formed("x", &[&unbroken])).queries, ["画".repeat(MAX_CHARS)]);
    let fallback = query::parse("", &Question::open(long).unwrap(), 4);
    assert_eq!((fallback.form, fallback.shortened), (Form::Fallback, 1));
}

#[test]
fn the_prompt_states_what_the_parser_reads() {
    let prompt = query::prompt(&colours(), 16, 754.9, 4);
    for part in [
        "16 small preview frames",
        "12:34 minutes",
        "A. red\nB. blue",
        "1 to 4 visual queries",
        "multiple-choice",
    ] {
        assert!(prompt.contains(part), "{part}: {prompt}");
    }
    assert!(query::prompt(&open(), 0, 60.0, 4).contains("you do not see it yet"));
    let one = query::prompt(&open(), 1, 5.0, 1);
    assert!(one.contains("Then write 1 visual query.") && one.matches("<query>").count() == 1, "{one}");
    // the form in the prompt is the asked form, and echoing it is no answer
    let form = &prompt[prompt.find("<think>").unwrap()..];
    assert_eq!(parse(form).form, Form::Fallback);
    let filled =
        form.replace("first picture to look for", "a dog").replace("second picture to look for", "a cat");
    assert_eq!(parse(&filled).form, Form::Exact);
}

/// Pieces that replies are made of, right and wrong.
fn reply() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<query>".to_owned()),
        Just("</query>".to_owned()),
        Just("<think>".to_owned()),
        Just("</think>".to_owned()),
        Just("<answer>".to_owned()),
        Just("</answer>".to_owned()),
        Just("\n1. ".to_owned()),
        Just("[\"".to_owned()),
        Just("\", \"".to_owned()),
        Just("\"]".to_owned()),
        Just("```\n".to_owned()),
        Just("the answer is ".to_owned()),
        Just("option ".to_owned()),
        Just("(B)".to_owned()),
        Just("A".to_owned()),
        Just("dark red".to_owned()),
        "\\PC{0,12}",
        ".{0,12}",
    ];
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_reply_gives_usable_queries(reply in reply(), max in 0usize..6) {
        let read = query::parse(&reply, &open(), max);
        prop_assert!(!read.queries.is_empty() && read.queries.len() <= max.max(1));
        for query in &read.queries {
            prop_assert!(query.trim() == query && query.chars().any(char::is_alphanumeric));
            prop_assert!(query.split_whitespace().count() <= MAX_WORDS && query.chars().count() <= MAX_CHARS);
            prop_assert!(!query.contains("<query>") && !query.contains('\n'));
        }
        let mut lower: Vec<String> = read.queries.iter().map(|query| query.to_lowercase()).collect();
        lower.sort();
        lower.dedup();
        prop_assert_eq!(lower.len(), read.queries.len());
        if read.form == Form::Exact {
            prop_assert!(reply.trim().starts_with("<think>") && reply.trim().ends_with("</query>"));
        }
        prop_assert_eq!(read.form == Form::Fallback, read.queries == [open().text().to_owned()]);
    }

    #[test]
    fn what_was_read_reads_the_same_again(reply in reply()) {
        let read = parse(&reply);
        let again = parse(&query::well_formed("why", &read.queries));
        prop_assert_eq!(&again.queries, &read.queries);
        prop_assert_eq!(again.form, Form::Exact);
    }

    #[test]
    fn any_reply_gives_an_answer_in_range(reply in reply()) {
        for question in [open(), colours()] {
            let read = answer::parse(&reply, &question);
            prop_assert!(read.choice.is_none_or(|index| index < question.options().len()));
            prop_assert_eq!(read.text.trim(), read.text.as_str());
            if read.well_formed {
                prop_assert_eq!(answer::parse(&answer::well_formed(&read.text), &question), read);
            }
        }
    }
}

// ---- answer turn

#[track_caller]
fn chooses(replies: &[&str], expected: Option<usize>) {
    for reply in replies {
        let read = answer::parse(reply, &colours());
        assert_eq!(read.choice, expected, "{reply:?}");
        assert!(!read.well_formed, "{reply:?}");
    }
}

#[test]
fn only_the_asked_form_is_well_formed() {
    let read = |reply: &str| answer::parse(reply, &colours());
    for reply in ["<answer>B</answer>", "  <answer>B</answer>\n", "<answer> B </answer>"] {
        assert_eq!(
            (read(reply).choice, read(reply).well_formed, read(reply).text.as_str()),
            (Some(1), true, "B")
        );
    }
    for reply in
        ["<answer>b</answer>", "<answer>B.</answer>", "<answer>B</answer>.", "<Answer>B</Answer>", "B"]
    {
        assert_eq!((read(reply).choice, read(reply).well_formed), (Some(1), false), "{reply}");
    }
    let beyond = read("<answer>E</answer>");
    assert_eq!((beyond.choice, beyond.well_formed, beyond.text.as_str()), (None, false, "E"));
    assert!(!read("<answer></answer>").well_formed);
}

#[test]
fn letters_are_read_where_they_are_labels() {
    chooses(
        &["B", "B.", "(B)", "b", "b)", "**B**", "B!", "\"B\"", "B. blue", "B) blue", "(B) blue", "B: blue"],
        Some(1),
    );
    chooses(
        &["B blue", "b blue", "B.\nIt is the sea.", "It is the sea.\n\nB", "It is the sea.\nB. blue"],
        Some(1),
    );
    chooses(
        &["The answer is B", "The answer is B.", "the answer is (b).", "Answer: B", "answer is: **B**"],
        Some(1),
    );
    chooses(
        &["The correct answer is option B because of the sea", "Final answer: B", "My choice is B"],
        Some(1),
    );
    chooses(
        &["The answer is A. Wait, no. The answer is B.", "I think it is B.", "Option B seems right"],
        Some(1),
    );
    chooses(
        &["<think>A or C?</think>B", "<think>The answer is A</think>\n<answer>B", "It must be (B), not red"],
        Some(1),
    );
    chooses(
        &["<answer>A</answer> no: <answer>B</answer>", "<answer>(B) blue</answer>", "<answer>blue</answer>"],
        Some(1),
    );
    chooses(
        &["A", "A.", "a.", "The answer is A", "The answer is A because it is", "Option A shows it"],
        Some(0),
    );
    chooses(&["Option A is wrong, so option B", "A. red\nB. blue\nThe answer is B."], Some(1));
}

#[test]
fn the_article_is_no_label() {
    chooses(
        &["A red car", "a red car", "It is a red car.", "The answer is a red car", "A red car is seen"],
        Some(3),
    );
    chooses(&["A blue one", "I see a blue bird", "The answer is a blue one"], Some(1));
    chooses(&["A man walks.", "I saw a man", "The answer is a man", "The answer is A man"], None);
}

#[test]
fn options_are_read_by_their_words() {
    chooses(&["Blue", "BLUE!", "It is blue.", "The colour is \"blue\", as the sea."], Some(1));
    chooses(&["dark red", "It is dark-red.", "I would say Dark Red"], Some(2));
    chooses(&["red", "It looks red", "It is not blue, it is red", "It could be red or blue.\nred"], Some(0));
    chooses(
        &["red or blue", "red and dark red", "blueish", "It is not blue.", "green", "", "?", "(A) or (B)"],
        None,
    );
    chooses(
        &["The answer is B or C", "The answer is A and B", "Option A or B", "Either B or C.", "It is not B"],
        None,
    );
    chooses(&["It is not option B.", "It isn't B.", "Neither (A) nor (B)", "Option B is wrong"], None);
    chooses(&["It is not option A but option B", "Not (A) but option B", "Option B, not option A"], Some(1));
    chooses(&["option A or option B", "A. red\nB. blue", "<answer>green</answer> B"], None);
}

#[test]
fn options_that_are_letters_or_alike_are_not_confused() {
    let letters = Question::new("Which letter is shown?", ["B", "A", "C"]).unwrap();
    assert_eq!(answer::parse("B", &letters).choice, Some(1), "a letter alone is the label");
    let numbers = Question::new("How many?", ["3", "30", "3.0"]).unwrap();
    assert_eq!(answer::parse("There are 30 of them", &numbers).choice, Some(1));
    assert_eq!(answer::parse("3.0", &numbers).choice, Some(2));
    let signs = Question::new("Which sign?", ["+", "-"]).unwrap();
    assert_eq!(answer::parse("+", &signs).choice, None, "no words to compare");
    assert_eq!(answer::parse("A", &signs).choice, Some(0));
    let yes = Question::new("Is it?", ["yes", "no"]).unwrap();
    assert_eq!(answer::parse("No.", &yes).choice, Some(1));
}

#[test]
fn open_answers_are_free_text() {
    let read = |reply: &str| answer::parse(reply, &open());
    let exact = read("<answer>He waves.</answer>");
    assert_eq!((exact.text.as_str(), exact.choice, exact.well_formed), ("He waves.", None, true));
    for reply in [
        "He waves.",
        "<think>hm</think> He waves.",
        "The answer is: He waves.",
        "Answer: He waves.",
        "So <answer>He waves.</answer>",
        "<answer>He waves.",
        "```\nHe waves.\n```",
    ] {
        assert_eq!((read(reply).text.as_str(), read(reply).well_formed), ("He waves.", false), "{reply}");
    }
    assert_eq!(read("").text, "");
    assert!(!read("<answer>two\nlines</answer>").well_formed);
}

#[test]
fn the_answer_prompt_shows_question_and_form() {
    let prompt = answer::prompt(&colours());
    assert!(prompt.contains("A. red\nB. blue") && prompt.ends_with("<answer>letter</answer>"), "{prompt}");
    assert!(answer::prompt(&open()).ends_with("<answer>your answer</answer>"));
    assert_eq!(answer::parse(&answer::well_formed("B"), &colours()).choice, Some(1));
}

#[test]
fn brief_answers_are_an_options_text_after_one_reasoning_or_none() {
    let read = |reply: &str| {
        let answer = Dialogue::Brief.read_answer(reply, &colours());
        (answer.choice, answer.well_formed)
    };
    assert_eq!(read("<answer>blue</answer>"), (Some(1), true));
    assert_eq!(read(&answer::reasoned("a red car on sand", "Dark Red")), (Some(2), true));
    assert_eq!(read(" <think></think>\n<answer> a red car </answer>\n"), (Some(3), true));
    // The option is told, the form is not kept.
    assert_eq!(read("blue"), (Some(1), false));
    assert_eq!(read("<think>it is <answer>red</answer></think><answer>blue</answer>"), (Some(1), false));
    assert_eq!(read("it is this: <answer>blue</answer>"), (Some(1), false));
    assert_eq!(read("<think>red</think><answer>green</answer>"), (None, false));
    assert!(!read("<think>red").1);
}
