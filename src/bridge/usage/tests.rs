//! Tokens are found where each API tells them, in pieces of any size, and nowhere else.

use proptest::collection::{hash_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::*;

fn read<'a>(framing: Framing, pieces: impl IntoIterator<Item = &'a [u8]>) -> Usage {
    let mut counter = Counter::new(framing);
    for piece in pieces {
        counter.feed(piece);
    }
    counter.usage().clone()
}

fn usage(model: &str, prompt: impl Into<Option<u64>>, completion: impl Into<Option<u64>>) -> Usage {
    Usage {
        model: (!model.is_empty()).then(|| model.into()),
        prompt: prompt.into(),
        completion: completion.into(),
    }
}

#[test]
fn every_api_tells_its_tokens() {
    let context = vec![7; 5000];
    let lines = [
        json!({"model": "m", "response": "eval_count\":9", "done": false}).to_string(),
        json!({"model": "m", "context": context, "done": true, "eval_count": 7, "prompt_eval_count": 26}).to_string(),
    ];
    let whole_chat = json!({"choices": [{"message": {"content": "x", "usage": {"prompt_tokens": 9}}}],
        "model": "m", "usage": {"prompt_tokens": 26, "completion_tokens": 7, "total_tokens": 33,
        "prompt_tokens_details": {"prompt_tokens": 9}}});
    let whole_message = json!({"model": "m", "usage": {"input_tokens": 26, "output_tokens": 7}});
    for whole in [lines.join("\n"), whole_chat.to_string(), format!("{whole_message:#}\n")] {
        assert_eq!(
            read(Framing::Documents, [whole.as_bytes()]),
            usage("m", 26, 7),
            "{whole}"
        );
    }
    let chat = r#"data: {"model":"m","choices":[{"delta":{"content":"a"}}],"usage":null}

data: {"model":"m","choices":[],"usage":{"prompt_tokens":26,"completion_tokens":7,"total_tokens":33}}

data: [DONE]

"#;
    let responses = r#"event: response.created
data: {"type":"response.created","response":{"model":"m","usage":null}}

event: response.completed
data: {"type":"response.completed","response":{"model":"m","usage":{"input_tokens":26,"output_tokens":7}}}
"#;
    let messages = r#"event: message_start
data: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":26,"output_tokens":0}}}

: {"usage":{"input_tokens":9}}
data:{"type":"message_delta","delta":{},"usage":{"output_tokens":7}}

"#;
    for events in [chat, responses, messages] {
        for events in [
            events.to_owned(),
            events.replace('\n', "\r\n"),
            events.replace('\n', "\r"),
        ] {
            assert_eq!(
                read(Framing::Events, [events.as_bytes()]),
                usage("m", 26, 7),
                "{events}"
            );
        }
    }
    let embedded = br#"{"model":"m","embeddings":[[0.1,-2e5]],"prompt_eval_count":26}"#;
    assert_eq!(read(Framing::Documents, [&embedded[..]]), usage("m", 26, None));
}

#[test]
fn what_is_no_count_stays_unknown() {
    let long = format!(r#"{{"model":"{}"}}"#, "x".repeat(129));
    for document in [
        r#"{"eval_count":-1,"prompt_eval_count":1.5}"#,
        r#"{"eval_count":"7","prompt_eval_count":1e3}"#,
        r#"{"eval_count":18446744073709551616,"prompt_eval_count":null}"#,
        r#"{"eval_count":[7],"prompt_eval_count":{"x":7},"model":7}"#,
        r#"{"eval_count":true,"usage":[{"prompt_tokens":7}],"model":"a\nb"}"#,
        r#"{"response":"\",\"eval_count\":7,\"x\":\"","done":true}"#,
        r#"{"x":{"eval_count":7},"message":{"content":{"usage":{"input_tokens":7}}}}"#,
        r#"[{"eval_count":7,"model":"m"}]"#,
        r#"{"xeval_count":7,"eval_count_":7," eval_count":7,"prompt_tokens":7}"#,
        r#""eval_count":7"#,
        r#"}]},"eval_count":7"#,
        &long,
    ] {
        assert_eq!(
            read(Framing::Documents, [document.as_bytes()]),
            usage("", None, None),
            "{document}"
        );
    }
    let events = "data: {\"eval_count\":\n\ndata: 7}\n\nevent: {\"eval_count\":7}\n";
    assert_eq!(read(Framing::Events, [events.as_bytes()]), usage("", None, None));
}

#[test]
fn names_are_read_as_they_are_meant() {
    let escaped = br#"{"\u006dodel":"\ud83d\ude00\/\u00e9x"}"#;
    assert_eq!(read(Framing::Documents, [&escaped[..]]), usage("😀/éx", None, None));
}

#[test]
fn nothing_makes_it_hold_more() {
    let mut counter = Counter::new(Framing::Documents);
    counter.feed(b"{\"");
    for piece in [
        &[b'k'; 4096][..],
        b"\":",
        &[b'['; 4096],
        &[b']'; 4096],
        b",\"model\":\"",
        &[b'm'; 4096],
    ] {
        for _ in 0..64 {
            counter.feed(piece);
        }
        assert!(counter.counts.text.octets.capacity() <= 2 * LONGEST);
    }
}

/// The same by other means.
fn oracle(document: &Value, into: &mut Usage) {
    let string = |value: &Value| value.as_str().filter(|name| is_model(name)).map(Box::from);
    let object = |value: &Value, name: &str| value.get(name).filter(|value| value.is_object()).cloned();
    let mut counts = |value: &Value, prompt: [&str; 2], completion: [&str; 2]| {
        let first = |names: [&str; 2]| names.iter().find_map(|name| value.get(*name)?.as_u64());
        into.prompt = first(prompt).or(into.prompt);
        into.completion = first(completion).or(into.completion);
    };
    let tokens = (
        ["prompt_tokens", "input_tokens"],
        ["completion_tokens", "output_tokens"],
    );
    counts(document, ["prompt_eval_count"; 2], ["eval_count"; 2]);
    let wrapped = object(document, "message").or(object(document, "response"));
    for place in [Some(document.clone()), wrapped].into_iter().flatten() {
        if let Some(inner) = object(&place, "usage") {
            counts(&inner, tokens.0, tokens.1);
        }
    }
    for place in [document, &wrapped_of(document)] {
        into.model = place.get("model").and_then(string).or(into.model.take());
    }
}

fn wrapped_of(document: &Value) -> Value {
    let wrapped = ["message", "response"].iter().find_map(|name| document.get(*name));
    wrapped.cloned().unwrap_or_default()
}

/// At most one of the members that mean the same: which comes last is not told by a parsed document.
fn is_clear(document: &Value) -> bool {
    let text = document.to_string();
    let times = |names: &[&str]| -> usize {
        names
            .iter()
            .map(|name| text.matches(&format!("\"{name}\":")).count())
            .sum()
    };
    times(&["message", "response"]) <= 1
        && times(&["model"]) <= 1
        && times(&["prompt_tokens", "input_tokens", "prompt_eval_count"]) <= 1
        && times(&["completion_tokens", "output_tokens", "eval_count"]) <= 1
}

const KEYS: &str = "model usage message response prompt_eval_count eval_count prompt_tokens completion_tokens input_tokens \
                    output_tokens content done";

fn document() -> impl Strategy<Value = Value> {
    let key = || prop_oneof![4 => select(KEYS.split_whitespace().collect::<Vec<_>>()).prop_map(str::to_owned), 1 => "\\PC{0,5}"];
    let text = prop_oneof![Just("\",\"eval_count\":7,\"".to_owned()), "\\PC{0,9}"];
    let leaf = prop_oneof![
        any::<u64>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<Option<bool>>().prop_map(Value::from),
        (-1e9..1e9).prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 24, 5, move |inner| {
        let object = hash_map(key(), inner.clone(), 0..5).prop_map(Value::from_iter);
        prop_oneof![1 => vec(inner, 0..3).prop_map(Value::from), 4 => object]
    });
    hash_map(key(), value, 0..6)
        .prop_map(Value::from_iter)
        .prop_filter("unclear", is_clear)
}

proptest! {
    #[test]
    fn answers_are_read_as_by_a_parser_in_any_pieces(documents in vec(document(), 0..4), size in 1_usize..40, escape: bool) {
        let mut expected = Usage::default();
        documents.iter().for_each(|document| oracle(document, &mut expected));
        let mut lines: Vec<String> = documents.iter().map(Value::to_string).collect();
        if escape {
            lines = lines.iter().map(|line| line.replace('o', "\\u006f").replace('m', "\\u006D")).collect();
        }
        let all = lines.join("\n");
        prop_assert_eq!(&read(Framing::Documents, all.as_bytes().chunks(size)), &expected, "{}", all);
        let events: String = lines.iter().map(|line| format!("event: x\ndata: {line}\n\n")).collect();
        prop_assert_eq!(&read(Framing::Events, events.as_bytes().chunks(size)), &expected, "{}", events);
    }

    #[test]
    fn no_octets_panic(octets in vec(any::<u8>(), 0..64), marks in "[{}:,0-9\"\\\\a\\[\\]]{0,64}") {
        for framing in [Framing::Documents, Framing::Events] {
            let before: &[u8] = b"data: {\"usage\":{\"model\":\"";
            read(framing, [&octets[..], marks.as_bytes(), before, &octets, marks.as_bytes()]);
        }
    }
}
