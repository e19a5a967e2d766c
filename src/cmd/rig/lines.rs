//! Puts the lines of a streamed body together, however its pieces were cut.

use bytes::{Buf, Bytes, BytesMut};

/// The longest line, octets.
const LONGEST: usize = 1024 * 1024;

/// A line does not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cmd) struct Endless;

/// What came and was not read yet.
#[derive(Debug, Default)]
pub(in crate::cmd) struct Lines(BytesMut);

impl Lines {
    /// Takes a piece, once all whole lines before it were read.
    ///
    /// # Errors
    /// [`Endless`]; what came so far is forgotten then.
    pub(in crate::cmd) fn push(&mut self, piece: &[u8]) -> Result<(), Endless> {
        if self.0.len() > LONGEST {
            self.0.clear();
            return Err(Endless);
        }
        self.0.extend_from_slice(piece);
        Ok(())
    }

    /// The next whole line, without its end.
    pub(in crate::cmd) fn read(&mut self) -> Option<Bytes> {
        let end = self.0.iter().position(|octet| *octet == b'\n')?;
        let line = self.0.split_to(end).freeze();
        self.0.advance(1);
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_however_they_are_cut() {
        let text = b"one\n\ntwo\nthr";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut read = Vec::new();
            for piece in [&text[..cut], &text[cut..]] {
                lines.push(piece).unwrap();
                read.extend(std::iter::from_fn(|| lines.read()));
            }
            assert_eq!(read, ["one", "", "two"], "{cut}");
        }
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; LONGEST + 1]).unwrap();
        assert_eq!(lines.push(b"x"), Err(Endless));
        lines.push(b"y\n").unwrap();
        assert_eq!(lines.read().unwrap(), "y");
    }
}
