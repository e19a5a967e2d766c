//! Octets without end that look random and that anybody can check: for bodies that must arrive as they were sent.

use std::sync::LazyLock;

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use crate::transport::Body;

/// Prime, so that no buffer on the way has a length that hides a repeated or a lost piece.
const PERIOD: usize = 65_521;
/// What is sent at once.
const PIECE: usize = 32 * 1024;

/// Two periods: every piece is a slice of it.
static OCTETS: LazyLock<Bytes> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let period: Vec<u8> = (0..PERIOD)
        .map(|_| {
            // xorshift64 (Marsaglia 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        })
        .collect();
    Bytes::from(period.repeat(2))
});

/// A piece of the pattern that begins `at` octets from its beginning.
pub(in crate::cmd) fn piece(at: u64, length: usize) -> Bytes {
    let at = (at % PERIOD as u64) as usize;
    OCTETS.slice(at..at + length.min(PERIOD))
}

/// The first `length` octets as a body that does not tell its length.
pub(in crate::cmd) fn body(length: u64) -> Body {
    let pieces = stream::unfold(0, move |at| async move {
        let rest = length - at;
        let size = rest.min(PIECE as u64) as usize;
        (size > 0).then(|| (Ok(Frame::data(piece(at, size))), at + size as u64))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// Compares what arrives with the pattern.
#[derive(Debug, Default)]
pub(in crate::cmd) struct Check {
    at: u64,
    wrong_at: Option<u64>,
}

impl Check {
    /// The next octets.
    pub(in crate::cmd) fn take(&mut self, mut octets: &[u8]) {
        while !octets.is_empty() {
            let expected = piece(self.at, octets.len());
            let (now, later) = octets.split_at(expected.len());
            if self.wrong_at.is_none() && now != expected {
                let same = now.iter().zip(&expected).take_while(|(one, other)| one == other);
                self.wrong_at = Some(self.at + same.count() as u64);
            }
            self.at += now.len() as u64;
            octets = later;
        }
    }

    /// Octets so far.
    pub(in crate::cmd) fn octets(&self) -> u64 {
        self.at
    }

    /// Where the first wrong octet stood, if one was wrong.
    pub(in crate::cmd) fn wrong_at(&self) -> Option<u64> {
        self.wrong_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_pattern_is_recognised_however_it_is_cut_and_a_wrong_octet_is_found() {
        let length = 3 * PERIOD as u64 + 17;
        let octets = body(length).collect().await.unwrap().to_bytes();
        assert_eq!(octets.len() as u64, length);
        for size in [1, 7, 4096, 65_521, 200_000] {
            let mut check = Check::default();
            octets.chunks(size).for_each(|chunk| check.take(chunk));
            assert_eq!((check.octets(), check.wrong_at()), (length, None), "{size}");
        }
        let mut wrong = octets.to_vec();
        wrong[70_000] ^= 1;
        let mut check = Check::default();
        check.take(&wrong);
        assert_eq!(check.wrong_at(), Some(70_000));
        let mut check = Check::default();
        check.take(&octets[1..]);
        assert_eq!(check.wrong_at(), Some(0));
    }
}
