//! One normalisation of a request path (RFC 3986 §6.2.2), shared by the relay's router and the bridge's policy: what is
//! compared is what is sent.

use std::borrow::Cow;

/// Why a path is refused before anybody looks at what it names.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A `%` that two hexadecimal digits do not follow.
    #[error("the path has a % that is no escape")]
    BadEscape,
    /// A control character, a NUL or a backslash, plain or escaped.
    #[error("the path has a control character or a backslash")]
    Forbidden,
    /// The path does not begin with `/`.
    #[error("the path does not begin with /")]
    Relative,
}

/// A path after normalisation.
#[derive(Debug, PartialEq, Eq)]
pub struct Normalised<'a> {
    /// Unreserved characters decoded, other escapes in upper case, dot segments and repeated slashes gone.
    pub path: Cow<'a, str>,
    /// Whether an encoded slash is left in it, which only some upstreams take for a part of a name.
    pub encoded_slash: bool,
}

/// A text with all but letters, digits, `.`, `-` and `_` escaped (RFC 3986 §2.1): as it can stand in a form, a query, and the name of
/// a file.
pub fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b'-' | b'_' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// Normalises the path once.
///
/// # Errors
/// [`PathError`] for a path that has no safe reading.
pub fn normalise(path: &str) -> Result<Normalised<'_>, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::Relative);
    }
    if is_normal(path) {
        return Ok(Normalised {
            path: Cow::Borrowed(path),
            encoded_slash: false,
        });
    }
    let (decoded, encoded_slash) = decode_unreserved(path)?;
    Ok(Normalised {
        path: Cow::Owned(without_dot_segments(&decoded)),
        encoded_slash,
    })
}

fn is_normal(path: &str) -> bool {
    let bytes = path.as_bytes();
    !bytes.iter().any(|b| matches!(b, b'%' | b'\\') || b.is_ascii_control())
        && !bytes.windows(2).any(|pair| pair == b"//" || pair == b"/.")
}

fn decode_unreserved(path: &str) -> Result<(String, bool), PathError> {
    let mut decoded = String::with_capacity(path.len());
    let mut encoded_slash = false;
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        push_plain(&mut decoded, &rest[..at])?;
        let escape = rest.get(at + 1..at + 3).ok_or(PathError::BadEscape)?;
        if !escape.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(PathError::BadEscape);
        }
        let byte = u8::from_str_radix(escape, 16).map_err(|_| PathError::BadEscape)?;
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                decoded.push(char::from(byte));
            }
            b'\\' | 0..=0x1f | 0x7f => return Err(PathError::Forbidden),
            _ => {
                encoded_slash |= byte == b'/';
                decoded.push('%');
                decoded.push_str(&escape.to_ascii_uppercase());
            }
        }
        rest = &rest[at + 3..];
    }
    push_plain(&mut decoded, rest)?;
    Ok((decoded, encoded_slash))
}

fn push_plain(decoded: &mut String, part: &str) -> Result<(), PathError> {
    if part.bytes().any(|b| b == b'\\' || b.is_ascii_control()) {
        return Err(PathError::Forbidden);
    }
    decoded.push_str(part);
    Ok(())
}

fn without_dot_segments(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    let directory = path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..");
    let mut normal = String::with_capacity(path.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if directory || normal.is_empty() {
        normal.push('/');
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(raw: &str) -> String {
        normalise(raw).unwrap().path.into_owned()
    }

    #[test]
    fn every_spelling_of_a_path_reads_the_same() {
        for raw in [
            "/api/delete",
            "//api/delete",
            "/api//delete",
            "/api/../api/delete",
            "/api/chat/../delete",
            "/api/%64elete",
            "/api/%2e%2E/api/delete",
            "/./api/./delete",
            "/../../api/delete",
        ] {
            assert_eq!(path(raw), "/api/delete", "{raw}");
        }
        assert_eq!(path("/"), "/");
        assert_eq!(path("/a/b/.."), "/a/");
        assert_eq!(path("/a%20b"), "/a%20b");
        assert_eq!(path("/a%c3%a9"), "/a%C3%A9");
    }

    #[test]
    fn encoded_slashes_are_told_and_stay_encoded() {
        let normal = normalise("/v1/models/org%2fname").unwrap();
        assert_eq!(normal.path, "/v1/models/org%2Fname");
        assert!(normal.encoded_slash);
    }

    #[test]
    fn what_has_no_safe_reading_is_refused() {
        for raw in ["/a%00", "/a%0d", "/a%5c", "/a\\b", "/a%7F", "/a\u{1}"] {
            assert_eq!(normalise(raw), Err(PathError::Forbidden), "{raw:?}");
        }
        for raw in ["/%", "/%4", "/%zz", "/%+1", "/%é"] {
            assert_eq!(normalise(raw), Err(PathError::BadEscape), "{raw:?}");
        }
        assert_eq!(normalise("api"), Err(PathError::Relative));
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(raw in "/[a-c./%2eE5fF\\-]{0,24}") {
            if let Ok(once) = normalise(&raw) {
                let again = normalise(&once.path).unwrap();
                prop_assert_eq!(&again.path, &once.path);
                prop_assert_eq!(again.encoded_slash, once.encoded_slash);
            }
        }

        #[test]
        fn no_dot_segment_and_no_empty_one_is_left(raw in "/[a./%2e]{0,24}") {
            if let Ok(normal) = normalise(&raw) {
                let body = normal.path.trim_start_matches('/').trim_end_matches('/');
                prop_assert!(body.is_empty() || body.split('/').all(|s| !matches!(s, "" | "." | "..")));
            }
        }
    }
}
