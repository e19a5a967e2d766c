//! `GET /api/bridge/usage`: what the caller used, or what others used on the caller's bridges, out of the store.

use std::sync::Arc;

use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use super::Relay;
use super::address::Address;
use super::auth;
use super::auth::shares::View;
use super::auth::tokens::now;
use super::error::{Code, Error};
use super::own::{self, json_response};
use super::store::usage::{MOST_ROWS, Sums, Used, Whose};
use crate::transport::Body;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// How far back it goes unless asked otherwise, and at most, days.
const USUAL_DAYS: u64 = 30;
const MOST_DAYS: u64 = 3660;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    days: u64,
    /// What is added up, seconds; with none, all of it.
    span: Option<u64>,
    whose: Whose,
}

/// Answers with the caller's own usage: `?days=N` (30), `&per=hour|day|all` (day); with `&of=bridges`, with that of everybody
/// on the caller's own bridges. Times are milliseconds since 1970; what is not known is null.
///
/// # Errors
/// `unauthorized`, `forbidden`, `rate_limited`, `bad_request`; `not_found` where nothing is kept, `overloaded` while the database is away.
pub async fn answer(relay: &Relay, headers: &HeaderMap, query: Option<&str>) -> Result<Response<Body>, Error> {
    let identity = auth::anyone(&relay.tokens, headers).await?;
    let _asking = relay.admit(&identity)?;
    let wish = read(query)?;
    if identity.bridge.is_some() {
        let detail = "a key that is limited to a bridge is not told what was used; ask with a token";
        return Err(Error::new(Code::Forbidden, detail).because("limited key asked for the usage"));
    }
    let may_ask_of_others = !identity.is_key() && (identity.scopes.api || identity.scopes.manage);
    if wish.whose == Whose::Bridges && !may_ask_of_others {
        let detail = "who used your bridges is told to a token with the scope api or manage, and to no key";
        return Err(Error::new(Code::Forbidden, detail).because("asked for others' usage without the scope"));
    }
    let keeper = relay.config.keeper.as_ref().filter(|keeper| keeper.keeps_usage());
    let keeper = keeper.ok_or_else(|| Error::new(Code::NotFound, "this relay keeps no usage"))?;
    let to = now() / HOUR * HOUR + HOUR;
    let begin = now().saturating_sub(wish.days * DAY);
    let (from, span) = match wish.span {
        // Whole ones: the first is as long as the others.
        Some(span) => (begin / span * span, span),
        // One that is longer than time itself.
        None => (begin / HOUR * HOUR, to * 2),
    };
    let asked = keeper
        .usage(wish.whose, Arc::clone(&identity.user), from, to, span)
        .await;
    let (used, total) = asked.map_err(|error| {
        tracing::info!(%error, "the usage cannot be read");
        own::store_away()
    })?;
    let view = relay.tokens.shared_with(&identity);
    let lines: Vec<_> = used
        .iter()
        .map(|used| {
            let mut line = line(used, from);
            match wish.whose {
                Whose::User => line["bridge"] = bridge(used, &identity.user, &view),
                Whose::Bridges => line["user"] = used.user.as_str().into(),
            }
            line
        })
        .collect();
    Ok(json_response(
        StatusCode::OK,
        &json!({
            "from": from * 1000,
            "to": to * 1000,
            "usage": lines,
            "total": sums(&total),
            "hasMore": used.len() as u64 >= MOST_ROWS,
        }),
    ))
}

fn read(query: Option<&str>) -> Result<Wish, Error> {
    let mut wish = Wish {
        days: USUAL_DAYS,
        span: Some(DAY),
        whose: Whose::User,
    };
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("days", days) => {
                let days = days.parse().ok().filter(|days| (1..=MOST_DAYS).contains(days));
                wish.days = days.ok_or_else(|| {
                    Error::new(
                        Code::BadRequest,
                        format!("days is a whole number from 1 to {MOST_DAYS}"),
                    )
                })?;
            }
            ("per", "hour") => wish.span = Some(HOUR),
            ("per", "day") => wish.span = Some(DAY),
            ("per", "all") => wish.span = None,
            ("per", _) => return Err(Error::new(Code::BadRequest, "per is hour, day or all")),
            ("of", "bridges") => wish.whose = Whose::Bridges,
            ("of", _) => return Err(Error::new(Code::BadRequest, "of is bridges, or is left out")),
            // The token of those who cannot set headers, and what later releases know.
            _ => {}
        }
    }
    Ok(wish)
}

fn line(used: &Used, from: u64) -> Value {
    let mut line = sums(&used.sums);
    line["from"] = (used.from.max(from) * 1000).into();
    if let Some(id) = used.token.as_deref().filter(|id| !id.is_empty()) {
        line["token"] = json!({"id": id, "label": used.label});
    }
    line["bridge"] = json!({"id": used.bridge, "name": used.bridge_name});
    line["model"] = (!used.model.is_empty()).then_some(used.model.as_str()).into();
    line
}

/// The bridge as the user knows it: id and name of one of the user's own, the name of one that is shared with the user.
fn bridge(used: &Used, user: &str, view: &View) -> Value {
    let is_own = used.owner.as_deref() == Some(user);
    let name = match (used.owner.clone(), used.bridge_name.clone()) {
        (_, name) if is_own => name,
        (Some(owner), Some(name)) if view.covers(&owner, &used.bridge) => Some(Address { owner, name }.to_string()),
        _ => None,
    };
    json!({"id": is_own.then_some(&used.bridge), "name": name})
}

fn sums(sums: &Sums) -> Value {
    let mean = |sum: u64, count: u64| (count > 0).then(|| sum as f64 / count as f64 / 1e3);
    json!({
        "exchanges": sums.exchanges,
        "errors": sums.errors,
        "cancelled": sums.cancelled,
        "bytesReceived": sums.received,
        "bytesSent": sums.sent,
        "promptTokens": sums.prompts.known(),
        "completionTokens": sums.completions.known(),
        "countedExchanges": sums.completions.exchanges.max(sums.prompts.exchanges),
        "firstByteMs": mean(sums.first_byte_us, sums.answered),
        "totalMs": mean(sums.total_us, sums.exchanges),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read() {
        let wish = |query| read(Some(query)).ok();
        assert_eq!(read(None).ok(), wish("days=30&per=day"));
        assert_eq!(
            wish("per=hour&days=1&x"),
            Some(Wish {
                days: 1,
                span: Some(HOUR),
                whose: Whose::User,
            })
        );
        assert_eq!(wish("per=all").unwrap().span, None);
        assert_eq!(wish("of=bridges").unwrap().whose, Whose::Bridges);
        for wrong in ["days=0", "days=", "days=9999999", "per=week", "of=all"] {
            assert_eq!(wish(wrong), None, "{wrong}");
        }
    }
}
