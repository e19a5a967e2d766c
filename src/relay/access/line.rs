//! How a line of the access log looks: as the rest of the log does, as text for people or as JSON. Pure.

use std::io::Write;
use std::time::{Duration, SystemTime};

use crate::transport::usage::Usage;

/// A longer path is cut, octets.
const LONGEST_PATH: usize = 1024;

/// What a line tells. What is not there is left out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) id: &'a str,
    pub(super) peer: &'a str,
    pub(super) user: Option<&'a str>,
    pub(super) bridge: Option<&'a str>,
    pub(super) transport: Option<&'static str>,
    pub(super) method: &'a str,
    /// Without a query.
    pub(super) path: &'a str,
    pub(super) status: Option<u16>,
    pub(super) code: Option<&'static str>,
    pub(super) reason: Option<&'static str>,
    pub(super) usage: Option<&'a Usage>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) first_byte: Option<Duration>,
    pub(super) total: Duration,
    pub(super) outcome: &'static str,
}

/// Writes the fields of a line one after the other.
trait Fields {
    fn out(&mut self) -> &mut Vec<u8>;
    fn name(&mut self, name: &str);
    fn text(&mut self, name: &str, value: &str);

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        // Writing into memory has no way to fail, here and below.
        let _ = write!(self.out(), "{value}");
    }

    fn time(&mut self, name: &str, value: Duration) {
        self.name(name);
        let us = value.as_micros();
        let _ = write!(self.out(), "{}.{:03}", us / 1000, us % 1000);
    }

    /// Tokens of a prompt and of its answer.
    fn tokens(&mut self, prompt: Option<u64>, completion: Option<u64>);

    fn maybe(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }
}

impl Line<'_> {
    /// As text.
    pub(super) fn pretty(&self, at: SystemTime, out: &mut Vec<u8>) {
        let _ = write!(out, "{}  INFO request", humantime::format_rfc3339_micros(at));
        self.write(&mut Pretty(out));
        out.push(b'\n');
    }

    /// As JSON, in the shape that the rest of the log has.
    pub(super) fn json(&self, at: SystemTime, out: &mut Vec<u8>) {
        let at = humantime::format_rfc3339_micros(at);
        let _ = write!(
            out,
            r#"{{"timestamp":"{at}","level":"INFO","fields":{{"message":"request""#
        );
        self.write(&mut Json(out));
        out.extend_from_slice(b"},\"target\":\"tunnel::access\"}\n");
    }

    fn write(&self, fields: &mut impl Fields) {
        fields.text("id", self.id);
        fields.text("peer", self.peer);
        fields.maybe("user", self.user);
        fields.maybe("bridge", self.bridge);
        fields.maybe("transport", self.transport);
        fields.text("method", self.method);
        fields.text("path", short(self.path));
        if let Some(status) = self.status {
            fields.number("status", status.into());
        }
        fields.maybe("code", self.code);
        fields.maybe("reason", self.reason);
        if let Some(Usage {
            model,
            prompt,
            completion,
        }) = self.usage
        {
            fields.maybe("model", model.as_deref());
            fields.tokens(*prompt, *completion);
        }
        fields.number("bytes_in", self.received);
        fields.number("bytes_out", self.sent);
        if let Some(time) = self.first_byte {
            fields.time("first_byte_ms", time);
        }
        fields.time("total_ms", self.total);
        fields.text("outcome", self.outcome);
    }
}

fn short(path: &str) -> &str {
    let mut end = path.len().min(LONGEST_PATH);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    &path[..end]
}

struct Pretty<'a>(&'a mut Vec<u8>);

impl Fields for Pretty<'_> {
    fn out(&mut self) -> &mut Vec<u8> {
        self.0
    }

    fn name(&mut self, name: &str) {
        self.0.push(b' ');
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'=');
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=');
        if !value.is_empty() && value.bytes().all(plain) {
            self.0.extend_from_slice(value.as_bytes());
        } else {
            let _ = write!(self.0, "{value:?}");
        }
    }

    fn tokens(&mut self, prompt: Option<u64>, completion: Option<u64>) {
        if prompt.is_none() && completion.is_none() {
            return;
        }
        let told = |count: Option<u64>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
        self.name("tokens");
        let _ = write!(self.0, "{}+{}", told(prompt), told(completion));
    }
}

struct Json<'a>(&'a mut Vec<u8>);

impl Fields for Json<'_> {
    fn out(&mut self) -> &mut Vec<u8> {
        self.0
    }

    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        let _ = serde_json::to_writer(&mut *self.0, value);
    }

    fn tokens(&mut self, prompt: Option<u64>, completion: Option<u64>) {
        for (name, count) in [("prompt_tokens", prompt), ("completion_tokens", completion)] {
            if let Some(count) = count {
                self.number(name, count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use serde_json::Value;

    use super::*;

    fn line(path: &str) -> Line<'_> {
        Line {
            id: "0a-1",
            peer: "::1",
            user: Some("ann o'neil"),
            bridge: None,
            transport: None,
            method: "POST",
            path,
            status: Some(503),
            code: Some("no_bridge"),
            reason: None,
            usage: None,
            received: 2,
            sent: 80,
            first_byte: None,
            total: Duration::from_micros(1_002_003),
            outcome: "refused",
        }
    }

    fn pretty(line: &Line<'_>) -> String {
        let mut out = Vec::new();
        line.pretty(UNIX_EPOCH, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_is_text_or_json() {
        assert_eq!(
            pretty(&line("/api/chat")),
            "1970-01-01T00:00:00.000000Z  INFO request id=0a-1 peer=::1 user=\"ann o'neil\" method=POST path=/api/chat \
             status=503 code=no_bridge bytes_in=2 bytes_out=80 total_ms=1002.003 outcome=refused\n"
        );
        let mut out = Vec::new();
        line("/a\"b").json(UNIX_EPOCH, &mut out);
        let json: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["fields"]["path"], "/a\"b");
        assert_eq!(json["fields"]["user"], "ann o'neil");
        assert_eq!(json["fields"]["total_ms"], 1002.003);
        assert_eq!(
            (&json["level"], &json["target"]),
            (&"INFO".into(), &"tunnel::access".into())
        );
    }

    #[test]
    fn tokens_stand_there_as_far_as_they_are_known() {
        let usage = |prompt, completion| Usage {
            model: Some("llama3.2:1b".into()),
            prompt,
            completion,
        };
        for (usage, text, json) in [
            (
                usage(Some(26), Some(298)),
                " model=llama3.2:1b tokens=26+298 ",
                (26.into(), 298.into()),
            ),
            (
                usage(Some(26), None),
                " model=llama3.2:1b tokens=26+? ",
                (26.into(), Value::Null),
            ),
            (
                usage(None, None),
                " model=llama3.2:1b bytes_in",
                (Value::Null, Value::Null),
            ),
        ] {
            let line = Line {
                usage: Some(&usage),
                ..line("/api/chat")
            };
            assert!(pretty(&line).contains(text), "{}", pretty(&line));
            let mut out = Vec::new();
            line.json(UNIX_EPOCH, &mut out);
            let fields = &serde_json::from_slice::<Value>(&out).unwrap()["fields"];
            assert_eq!(
                (&fields["prompt_tokens"], &fields["completion_tokens"]),
                (&json.0, &json.1)
            );
            assert_eq!(fields["model"], "llama3.2:1b");
        }
    }

    #[test]
    fn nothing_in_a_line_makes_another_line_or_field() {
        let text = pretty(&line("/a\nb \u{1b}[1m\" status=200"));
        assert_eq!(text.lines().count(), 1);
        assert!(
            text.contains(r#"path="/a\nb \u{1b}[1m\" status=200" status=503"#),
            "{text}"
        );
        let long = format!("/{}", "ü".repeat(2000));
        assert!(pretty(&line(&long)).len() < LONGEST_PATH + 300);
    }
}
