//! The frames of `tunnel.v1` (protocol.md section 2): encode and decode, nothing else. The rules of a stream are in `streams`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Octets before a payload: type u8, stream u32, length u32, big-endian.
pub const HEAD: usize = 9;
/// The most octets one DATA frame carries.
pub const MAX_DATA: usize = 65_536;

const OPEN: u8 = 0;
const DATA: u8 = 1;
const FIN: u8 = 2;
const RESET: u8 = 3;
const WINDOW: u8 = 4;

/// Why a stream was reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetCode {
    /// Nobody wants the rest any more.
    Cancel,
    /// The stream was not taken.
    Refused,
    /// Something broke; also every code not known here.
    Failed,
}

impl From<u32> for ResetCode {
    fn from(code: u32) -> Self {
        match code {
            0 => Self::Cancel,
            1 => Self::Refused,
            _ => Self::Failed,
        }
    }
}

impl From<ResetCode> for u32 {
    fn from(code: ResetCode) -> Self {
        match code {
            ResetCode::Cancel => 0,
            ResetCode::Refused => 1,
            ResetCode::Failed => 2,
        }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The stream it belongs to.
    pub stream: u32,
    /// What it says.
    pub kind: Kind,
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The stream begins.
    Open,
    /// Bytes of the stream.
    Data(Bytes),
    /// No more from this side.
    Fin,
    /// Both directions end at once.
    Reset(ResetCode),
    /// So many bytes more may be sent.
    Window(u32),
    /// A type of a later version, ignored.
    Unknown,
}

/// What makes a message no sequence of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The message ends inside a frame.
    #[error("a frame is cut")]
    Cut,
    /// A payload is longer or shorter than its type allows.
    #[error("a frame has a payload of a wrong length")]
    Length,
}

/// The frames of one message, in order; ends after the first error.
#[derive(Debug)]
pub struct Frames(Bytes);

impl Frames {
    /// Reads the frames of a message.
    pub fn new(message: Bytes) -> Self {
        Self(message)
    }

    fn next_frame(&mut self) -> Result<Frame, FrameError> {
        if self.0.len() < HEAD {
            return Err(FrameError::Cut);
        }
        let tag = self.0.get_u8();
        let stream = self.0.get_u32();
        let length = self.0.get_u32() as usize;
        if self.0.len() < length {
            return Err(FrameError::Cut);
        }
        let mut payload = self.0.split_to(length);
        let kind = match (tag, length) {
            (OPEN, 0) => Kind::Open,
            (DATA, 1..=MAX_DATA) => Kind::Data(payload),
            (FIN, 0) => Kind::Fin,
            (RESET, 4) => Kind::Reset(payload.get_u32().into()),
            (WINDOW, 4) => Kind::Window(payload.get_u32()),
            (OPEN | DATA | FIN | RESET | WINDOW, _) => return Err(FrameError::Length),
            _ => Kind::Unknown,
        };
        Ok(Frame { stream, kind })
    }
}

impl Iterator for Frames {
    type Item = Result<Frame, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let frame = self.next_frame();
        if frame.is_err() {
            self.0.clear();
        }
        Some(frame)
    }
}

/// Writes an OPEN.
pub fn open(out: &mut BytesMut, stream: u32) {
    head(out, OPEN, stream, 0);
}

/// Writes a DATA of at most [`MAX_DATA`] octets, taken from the front of `payload`.
pub fn data(out: &mut BytesMut, stream: u32, payload: &mut BytesMut, length: usize) {
    let length = length.min(MAX_DATA).min(payload.len());
    head(out, DATA, stream, length as u32);
    out.put_slice(&payload[..length]);
    payload.advance(length);
}

/// Writes a FIN.
pub fn fin(out: &mut BytesMut, stream: u32) {
    head(out, FIN, stream, 0);
}

/// Writes a RESET.
pub fn reset(out: &mut BytesMut, stream: u32, code: ResetCode) {
    head(out, RESET, stream, 4);
    out.put_u32(code.into());
}

/// Writes a WINDOW.
pub fn window(out: &mut BytesMut, stream: u32, credit: u32) {
    head(out, WINDOW, stream, 4);
    out.put_u32(credit);
}

fn head(out: &mut BytesMut, tag: u8, stream: u32, length: u32) {
    out.reserve(HEAD + length as usize);
    out.put_u8(tag);
    out.put_u32(stream);
    out.put_u32(length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(frames: &[Frame]) -> Bytes {
        let mut out = BytesMut::new();
        for frame in frames {
            match &frame.kind {
                Kind::Open => open(&mut out, frame.stream),
                Kind::Data(payload) => {
                    let mut payload = BytesMut::from(&payload[..]);
                    let length = payload.len();
                    data(&mut out, frame.stream, &mut payload, length);
                }
                Kind::Fin => fin(&mut out, frame.stream),
                Kind::Reset(code) => reset(&mut out, frame.stream, *code),
                Kind::Window(credit) => window(&mut out, frame.stream, *credit),
                Kind::Unknown => head(&mut out, 200, frame.stream, 0),
            }
        }
        out.freeze()
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::Open),
            proptest::collection::vec(any::<u8>(), 1..300).prop_map(|v| Kind::Data(v.into())),
            Just(Kind::Fin),
            (0u32..3).prop_map(|code| Kind::Reset(code.into())),
            any::<u32>().prop_map(Kind::Window),
            Just(Kind::Unknown),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(kinds in proptest::collection::vec((any::<u32>(), kinds()), 0..20)) {
            let frames: Vec<Frame> = kinds.into_iter().map(|(stream, kind)| Frame { stream, kind }).collect();
            let read: Vec<Frame> = Frames::new(encode(&frames)).map(Result::unwrap).collect();
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic_or_run_on(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Frames::new(bytes.into()).count() <= 200 / HEAD + 1);
        }

        #[test]
        fn a_message_cut_anywhere_is_no_message(at in 1usize..21) {
            let whole = encode(&[Frame { stream: 1, kind: Kind::Data(Bytes::from_static(b"hello, tunnel")) }]);
            let read: Vec<_> = Frames::new(whole.slice(..at)).collect();
            prop_assert_eq!(read, vec![Err(FrameError::Cut)]);
        }
    }

    #[test]
    fn a_payload_of_a_wrong_length_is_refused() {
        let mut empty_data = BytesMut::new();
        head(&mut empty_data, DATA, 1, 0);
        let mut long_data = BytesMut::new();
        head(&mut long_data, DATA, 1, MAX_DATA as u32 + 1);
        long_data.extend_from_slice(&[0; MAX_DATA + 1]);
        let mut short_window = BytesMut::new();
        head(&mut short_window, WINDOW, 1, 2);
        short_window.extend_from_slice(&[0; 2]);
        for message in [empty_data, long_data, short_window] {
            let read: Vec<_> = Frames::new(message.freeze()).collect();
            assert_eq!(read, vec![Err(FrameError::Length)]);
        }
    }
}
