//! The rules of streams, held against any order of events: two ends joined by a wire that the test moves.

use std::collections::{HashMap, HashSet};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::super::frame::{self, MAX_DATA, ResetCode};
use super::{Side, Streams, Violation};

const STREAMS: usize = 50;

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn message(streams: &mut Streams) -> Option<Bytes> {
    let mut out = BytesMut::new();
    streams.has_message().then(|| streams.next_message(&mut out))?;
    (!out.is_empty()).then(|| out.freeze())
}

/// Reads at most `most` octets; none at the end, an error after a reset.
fn read(streams: &mut Streams, id: u32, most: usize) -> Option<Result<Vec<u8>, ()>> {
    let mut space = vec![0; most];
    let mut buf = ReadBuf::new(&mut space);
    match streams.poll_read(id, &mut cx(), &mut buf) {
        Poll::Pending => None,
        Poll::Ready(Ok(())) => Some(Ok(buf.filled().to_vec())),
        Poll::Ready(Err(_)) => Some(Err(())),
    }
}

fn write(streams: &mut Streams, id: u32, bytes: &[u8]) -> usize {
    match streams.poll_write(id, &mut cx(), bytes) {
        Poll::Ready(Ok(written)) => written,
        Poll::Ready(Err(error)) => panic!("{error}"),
        Poll::Pending => 0,
    }
}

fn noise(seed: u32, from: usize, length: usize) -> Vec<u8> {
    (from..from + length)
        .map(|at| (at as u32).wrapping_mul(31).wrapping_add(seed.wrapping_mul(7919)) as u8)
        .collect()
}

#[derive(Debug, Clone)]
enum Step {
    Write { stream: usize, length: usize },
    Read { stream: usize, length: usize },
    Deliver { up: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..STREAMS, 1usize..100_000).prop_map(|(stream, length)| Step::Write { stream, length }),
        3 => (0..STREAMS, 1usize..200_000).prop_map(|(stream, length)| Step::Read { stream, length }),
        4 => any::<bool>().prop_map(|up| Step::Deliver { up }),
    ];
    proptest::collection::vec(step, 1..400)
}

struct Pair {
    opener: Streams,
    acceptor: Streams,
    ids: Vec<u32>,
    written: HashMap<u32, usize>,
    received: HashMap<u32, usize>,
}

impl Pair {
    fn new(round_trip: Duration) -> Self {
        let mut opener = Streams::new(Side::Opener, STREAMS);
        let mut acceptor = Streams::new(Side::Acceptor, STREAMS);
        opener.measure(round_trip);
        acceptor.measure(round_trip);
        let ids = (0..STREAMS).map(|_| opener.open().unwrap()).collect();
        assert_eq!(opener.open(), None);
        Self {
            opener,
            acceptor,
            ids,
            written: HashMap::new(),
            received: HashMap::new(),
        }
    }

    fn deliver(&mut self, up: bool) -> bool {
        let (from, to) = match up {
            true => (&mut self.opener, &mut self.acceptor),
            false => (&mut self.acceptor, &mut self.opener),
        };
        let message = message(from);
        if let Some(message) = &message {
            to.receive(message.clone()).unwrap();
        }
        message.is_some()
    }

    fn write(&mut self, stream: usize, length: usize) {
        let id = self.ids[stream];
        let from = *self.written.entry(id).or_default();
        let taken = write(&mut self.opener, id, &noise(id, from, length));
        *self.written.entry(id).or_default() += taken;
    }

    fn read(&mut self, stream: usize, length: usize) -> bool {
        let id = self.ids[stream];
        match read(&mut self.acceptor, id, length) {
            Some(Ok(bytes)) if !bytes.is_empty() => {
                let from = self.received.entry(id).or_default();
                assert!(bytes == noise(id, *from, bytes.len()), "stream {id} is out of order");
                *from += bytes.len();
                true
            }
            _ => false,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_interleaving_of_fifty_streams_keeps_bytes_and_order_and_ends(steps in steps(), far in any::<bool>()) {
        let round_trip = if far { Duration::from_secs(1) } else { Duration::ZERO };
        let mut pair = Pair::new(round_trip);
        pair.deliver(true);
        for step in steps {
            match step {
                Step::Write { stream, length } => pair.write(stream, length),
                Step::Read { stream, length } => drop(pair.read(stream, length)),
                Step::Deliver { up } => drop(pair.deliver(up)),
            }
        }
        for id in pair.ids.clone() {
            pair.opener.finish(id);
        }
        // Everything moves on until nothing is left to move: nothing is stuck.
        let mut moved = true;
        while moved {
            moved = pair.deliver(true) | pair.deliver(false);
            for stream in 0..STREAMS {
                moved |= pair.read(stream, 100_000);
            }
        }
        for id in pair.ids.clone() {
            prop_assert_eq!(pair.received.get(&id).copied().unwrap_or(0), pair.written.get(&id).copied().unwrap_or(0));
            prop_assert_eq!(read(&mut pair.acceptor, id, 1), Some(Ok(Vec::new())));
        }
    }

    #[test]
    fn no_message_makes_the_rules_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let mut acceptor = Streams::new(Side::Acceptor, 4);
        let _ = acceptor.receive(Bytes::from(bytes));
    }

    #[test]
    fn any_order_of_frames_leaves_the_count_of_streams_right(frames in proptest::collection::vec((0u8..5, 1u32..12), 0..60)) {
        let mut acceptor = Streams::new(Side::Acceptor, 8);
        let mut opened = HashSet::new();
        for (kind, id) in frames {
            let mut out = BytesMut::new();
            match kind {
                0 => frame::open(&mut out, id),
                1 => frame::data(&mut out, id, &mut BytesMut::from(&b"x"[..]), 1),
                2 => frame::fin(&mut out, id),
                3 => frame::reset(&mut out, id, ResetCode::Cancel),
                _ => frame::window(&mut out, id, 10),
            }
            if acceptor.receive(out.freeze()).is_err() {
                return Ok(());
            }
            opened.extend(acceptor.accept());
        }
        for id in opened {
            acceptor.release(id, ResetCode::Failed);
        }
        while message(&mut acceptor).is_some() {}
        prop_assert_eq!(acceptor.live, acceptor.offered.len());
        prop_assert_eq!(acceptor.streams.len(), acceptor.offered.len());
    }
}

fn acceptor_with_stream() -> Streams {
    let mut acceptor = Streams::new(Side::Acceptor, 4);
    let mut out = BytesMut::new();
    frame::open(&mut out, 1);
    acceptor.receive(out.freeze()).unwrap();
    assert_eq!(acceptor.accept(), Some(1));
    acceptor
}

fn frames(write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    write(&mut out);
    out.freeze()
}

#[test]
fn what_breaks_the_rules_is_named() {
    let data = |id, length: usize| frames(|out| frame::data(out, id, &mut BytesMut::zeroed(length), length));
    for (message, violation) in [
        (frames(|out| frame::open(out, 1)), Violation::WrongStream),
        (frames(|out| frame::open(out, 2)), Violation::WrongStream),
        (frames(|out| frame::window(out, 3, 1)), Violation::WrongStream),
        (data(0, 1), Violation::WrongStream),
        (frames(|out| frame::window(out, 1, u32::MAX)), Violation::Window),
        (
            frames(|out| {
                frame::fin(out, 1);
                frame::fin(out, 1);
            }),
            Violation::AfterEnd,
        ),
        (
            frames(|out| (3..15).step_by(2).for_each(|id| frame::open(out, id))),
            Violation::TooManyStreams,
        ),
    ] {
        assert_eq!(acceptor_with_stream().receive(message), Err(violation));
    }
    let mut acceptor = acceptor_with_stream();
    let window = super::TUNING.initial_window as usize;
    for _ in 0..window / MAX_DATA {
        acceptor.receive(data(1, MAX_DATA)).unwrap();
    }
    assert_eq!(acceptor.receive(data(1, 1)), Err(Violation::Window));
    assert_eq!(
        Streams::new(Side::Opener, 4).receive(frames(|out| frame::open(out, 1))),
        Err(Violation::WrongStream)
    );
}

#[test]
fn floods_without_an_effect_end() {
    for write in [
        (|out: &mut BytesMut| frame::window(out, 1, 0)) as fn(&mut BytesMut),
        |out| frame::reset(out, 1, ResetCode::Cancel),
        |out| out.extend_from_slice(&[77, 0, 0, 0, 1, 0, 0, 0, 0]),
    ] {
        let mut acceptor = acceptor_with_stream();
        let ended = (0..100_000).find_map(|_| acceptor.receive(frames(write)).err());
        assert_eq!(ended, Some(Violation::Flood));
    }
}

#[test]
fn what_was_sent_before_a_reset_is_read_and_then_the_error() {
    let mut acceptor = acceptor_with_stream();
    let answer = frames(|out| {
        frame::data(out, 1, &mut BytesMut::from(&b"last words"[..]), 10);
        frame::reset(out, 1, ResetCode::Failed);
    });
    acceptor.receive(answer).unwrap();
    assert_eq!(read(&mut acceptor, 1, 100), Some(Ok(b"last words".to_vec())));
    assert_eq!(read(&mut acceptor, 1, 100), Some(Err(())));
    assert_eq!(write(&mut acceptor, 1, b"unheard"), 7);
    acceptor.release(1, ResetCode::Failed);
    assert!(acceptor.streams.is_empty());
}

#[test]
fn a_window_grows_only_where_the_round_trip_holds_a_stream_back() {
    for (round_trip, grows) in [(Duration::ZERO, false), (Duration::from_secs(60), true)] {
        let mut pair = Pair::new(round_trip);
        pair.deliver(true);
        let initial = super::TUNING.initial_window;
        for _ in 0..400 {
            pair.write(0, 64 * 1024);
            pair.deliver(true);
            pair.read(0, 1 << 20);
            pair.deliver(false);
        }
        let window = pair.acceptor.streams[&pair.ids[0]].window;
        assert_eq!(window > initial, grows, "{window}");
        assert!(window <= super::TUNING.max_window);
        assert!(pair.acceptor.grown <= super::TUNING.growth as usize);
    }
}

#[test]
fn a_small_write_passes_a_bulk_one() {
    let mut pair = Pair::new(Duration::ZERO);
    while pair.deliver(true) {}
    for _ in 0..4 {
        pair.write(0, 64 * 1024);
    }
    pair.write(1, 100);
    pair.deliver(true);
    assert!(pair.read(1, 200), "the small write waits behind the bulk");
}
