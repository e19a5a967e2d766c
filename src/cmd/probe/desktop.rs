//! The desktop that is connected: its Ollama, its models, and one streamed sentence if wanted.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::report::{Group, Verdict, figure, ms};
use super::site::{Site, code, detail};
use crate::cmd::rig::caller::Caller;
use crate::cmd::rig::lines::Lines;
use crate::transport::full;

/// Ollamas before this let anybody who reaches them read their memory (CVE-2026-7482).
const SAFE: [u64; 3] = [0, 17, 1];
/// A cold model may take this long.
const GENERATED_WITHIN: Duration = Duration::from_secs(300);
/// The most that is read of an answer.
const ANSWER: usize = 1024 * 1024;

/// Looks at the bridge of this name, or at the only one there is; asks `model` for a sentence, if one is named.
pub(super) async fn run(site: &Site, allowed: &Result<(), String>, bridge: Option<&str>, model: Option<&str>) {
    let begin = |name| site.board.begin(Group::Desktop, name, None);
    let (link, version, models) = (begin("bridge"), begin("ollama"), begin("models"));
    let generate = model.map(|model| (begin("generate"), model));
    let found = match allowed {
        Ok(()) => find(site, bridge).await,
        Err(why) => Err(Verdict::skipped(why)),
    };
    let name = match found {
        Ok((name, verdict)) => {
            link.finish(verdict);
            name
        }
        Err(verdict) => {
            link.finish(verdict);
            for check in [version, models].into_iter().chain(generate.map(|(check, _)| check)) {
                check.finish(Verdict::skipped("no desktop to ask"));
            }
            return;
        }
    };
    let caller = site.caller().to_bridge(&name);
    version.run(ollama(site, &caller)).await;
    models.run(listed(site, &caller)).await;
    if let Some((check, model)) = generate {
        check.run_for(GENERATED_WITHIN, generated(site, &caller, model)).await;
    }
}

/// The bridge's name and what its relay says of it.
async fn find(site: &Site, wanted: Option<&str>) -> Result<(String, Verdict), Verdict> {
    let answer = site
        .get(&site.caller(), "/api/bridge")
        .await
        .map_err(|error| site.broken(&error))?;
    if answer.status != StatusCode::OK {
        return Err(site.unexpected_answer(&answer));
    }
    let list: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let bridges = list["bridges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |bridge: &Value| bridge["name"].as_str().unwrap_or_default().to_owned();
    let found = match wanted {
        Some(wanted) => bridges.iter().find(|bridge| bridge["name"] == wanted),
        None => bridges.first(),
    };
    let Some(bridge) = found else {
        return Err(match wanted {
            Some(wanted) => {
                let names: Vec<_> = bridges.iter().map(name).collect();
                let there = if names.is_empty() {
                    "none".to_owned()
                } else {
                    names.join(", ")
                };
                Verdict::fail(
                    format!("{wanted} is not connected; connected: {there}"),
                    "start 'tunnel bridge' there, and look at what it prints",
                )
            }
            None => Verdict::skipped("no desktop is connected"),
        });
    };
    let round_trip = bridge["roundTripMs"].as_f64();
    let transport = bridge["transport"].as_str().unwrap_or_default();
    let trip = round_trip.map_or(String::new(), |ms| format!(", round trip {ms:.0} ms"));
    let reason = bridge["reason"]
        .as_str()
        .map_or(String::new(), |reason| format!(" ({reason})"));
    let more = match bridges.len() {
        0 | 1 => String::new(),
        many => format!(", one of {many}"),
    };
    let verdict = Verdict::pass(format!("{} over {transport}{reason}{trip}{more}", name(bridge)))
        .with("name", name(bridge))
        .with("transport", transport)
        .with("roundTripMs", round_trip);
    Ok((name(bridge), verdict))
}

async fn ollama(site: &Site, caller: &Caller) -> Verdict {
    let began = Instant::now();
    let answer = match site.get(caller, "/api/version").await {
        Ok(answer) => answer,
        Err(error) => return site.broken(&error),
    };
    let took = began.elapsed();
    match code(&answer.headers).as_deref() {
        Some("upstream_unreachable") => {
            return Verdict::fail("Ollama is not running on the desktop", "start Ollama there");
        }
        Some("policy") => return Verdict::skipped("the bridge does not let /api/version through"),
        _ => {}
    }
    if answer.status == StatusCode::NOT_FOUND && code(&answer.headers).is_none() {
        return Verdict::skipped("another server than Ollama answers there");
    }
    let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let Some(version) = told["version"].as_str().filter(|_| answer.status.is_success()) else {
        return site.unexpected_answer(&answer);
    };
    let seen = format!("Ollama {version}, answered in {}", ms(took));
    let verdict = if is_safe(version) {
        Verdict::pass(seen)
    } else {
        Verdict::warn(
            seen,
            "update Ollama to 0.17.1 or later: older ones can be made to leak memory (CVE-2026-7482)",
        )
    };
    verdict.with("version", version).with("roundTripMs", figure(took))
}

/// Versions that cannot be read are given the benefit of the doubt.
fn is_safe(version: &str) -> bool {
    // What comes after a hyphen is a candidate for the release named before it.
    let (release, candidate) = version
        .split_once('-')
        .map_or((version, false), |(release, _)| (release, true));
    let numbers: Vec<u64> = release
        .trim_start_matches('v')
        .split('.')
        .map_while(|n| n.parse().ok())
        .collect();
    if numbers.is_empty() || numbers.iter().all(|number| *number == 0) {
        return true;
    }
    let mut told = [0; 3];
    told.iter_mut().zip(numbers).for_each(|(place, number)| *place = number);
    if candidate { told > SAFE } else { told >= SAFE }
}

async fn listed(site: &Site, caller: &Caller) -> Verdict {
    for (path, list, name) in [("/api/tags", "models", "name"), ("/v1/models", "data", "id")] {
        let Ok(answer) = site.get(caller, path).await else {
            continue;
        };
        if !answer.status.is_success() {
            continue;
        }
        let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let Some(models) = told[list].as_array() else {
            continue;
        };
        let names: Vec<&str> = models.iter().filter_map(|model| model[name].as_str()).collect();
        return match names.as_slice() {
            [] => Verdict::warn("it has no model", "on the desktop: ollama pull llama3.2"),
            [only] => Verdict::pass(only),
            [first, ..] => Verdict::pass(format!("{first} and {} more", names.len() - 1)),
        }
        .with("models", names);
    }
    Verdict::skipped("it tells of no models")
}

async fn generated(site: &Site, caller: &Caller, model: &str) -> Verdict {
    let asked = json!({"model": model, "prompt": "Say hello in one short sentence.", "options": {"num_predict": 32}});
    let began = Instant::now();
    let json = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let sent = caller.send(Method::POST, "/api/generate", json, full(asked.to_string()));
    let response = match sent.await {
        Ok(response) => response,
        Err(error) => return site.broken(&error),
    };
    let (head, body) = response.into_parts();
    if !head.status.is_success() {
        return refused(site, head.status, &head.headers, body).await;
    }
    let told = read(body, began).await;
    if let Some(error) = told.error {
        return Verdict::fail(error, "look at Ollama's log on the desktop");
    }
    if !told.done {
        return Verdict::fail("what came is no answer of Ollama's", "is it an Ollama that runs there?");
    }
    let first = told.first.unwrap_or_else(|| began.elapsed());
    let speed = told.tokens_per_second;
    let rate = speed.map_or(String::new(), |speed| format!(", {speed:.0} tokens/s"));
    let said = match told.text.trim() {
        "" => "only thought so far,".to_owned(),
        text => format!("“{text}”"),
    };
    Verdict::pass(format!("{said} first token after {}{rate}", ms(first)))
        .with("firstTokenMs", figure(first))
        .with("tokensPerSecond", speed)
}

async fn refused(site: &Site, status: StatusCode, headers: &HeaderMap, body: hyper::body::Incoming) -> Verdict {
    let body = timeout(Duration::from_secs(1), crate::transport::collect(body, ANSWER)).await;
    let body = body.ok().flatten().unwrap_or_default();
    match code(headers) {
        Some(code) if code == "upstream_unreachable" => Verdict::skipped("Ollama is not running there"),
        // The upstream's own words.
        None if !detail(&body).is_empty() => {
            Verdict::fail(detail(&body), "name a model that the desktop has with --generate MODEL")
        }
        _ => site.unexpected(status, headers, &body),
    }
}

/// What a streamed answer said.
#[derive(Default)]
struct Told {
    text: String,
    first: Option<Duration>,
    tokens_per_second: Option<f64>,
    error: Option<String>,
    done: bool,
}

async fn read(mut body: hyper::body::Incoming, began: Instant) -> Told {
    let mut told = Told::default();
    let mut lines = Lines::default();
    let mut octets = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            told.error = Some("the answer broke off".to_owned());
            return told;
        };
        let Some(data) = frame.data_ref() else {
            continue;
        };
        octets += data.len();
        if octets > ANSWER || lines.push(data).is_err() {
            told.error = Some("the answer does not end".to_owned());
            return told;
        }
        while let Some(line) = lines.read() {
            told.take(&serde_json::from_slice(&line).unwrap_or_default(), began);
        }
    }
    told
}

impl Told {
    fn take(&mut self, line: &Value, began: Instant) {
        if let Some(error) = line["error"].as_str() {
            self.error = Some(error.to_owned());
        }
        let word = |name: &str| line[name].as_str().filter(|word| !word.is_empty());
        if word("response").or(word("thinking")).is_some() {
            self.first.get_or_insert_with(|| began.elapsed());
        }
        self.text.push_str(word("response").unwrap_or_default());
        self.done |= line["done"] == true;
        if let (Some(count), Some(ns)) = (line["eval_count"].as_f64(), line["eval_duration"].as_f64()) {
            self.tokens_per_second = (ns > 0.0).then(|| count / ns * 1e9);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ollamas_that_are_too_old_are_warned_of() {
        for (version, safe) in [
            ("0.17.1", true),
            ("0.17.0", false),
            ("0.5.13", false),
            ("0.17.1-rc2", false),
            ("0.17.2-rc0", true),
            ("1.0.0", true),
            ("v0.17.10", true),
            ("0.0.0", true),
            ("main", true),
        ] {
            assert_eq!(is_safe(version), safe, "{version}");
        }
    }
}
