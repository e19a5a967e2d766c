//! A TCP proxy that passes every byte on, late. Each direction has a thread that reads and one that waits and writes: precise
//! to a fraction of a millisecond, and never the bottleneck.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

const PIECE: usize = 64 * 1024;
/// Pieces on their way: far more than any window.
const PIECES: usize = 4096;

type Piece = (Instant, Vec<u8>);

/// Takes one connection and passes it on to `target`, each direction `delay` late; returns where it listens.
pub(crate) fn start(target: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (near, _) = listener.accept().unwrap();
        let far = TcpStream::connect(target).unwrap();
        pass(&near, &far, delay);
        pass(&far, &near, delay);
    });
    address
}

fn pass(from: &TcpStream, to: &TcpStream, delay: Duration) {
    to.set_nodelay(true).unwrap();
    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let (sender, pieces) = sync_channel(PIECES);
    std::thread::spawn(move || read(from, &sender, delay));
    std::thread::spawn(move || write(to, &pieces));
}

fn read(mut from: TcpStream, pieces: &SyncSender<Piece>, delay: Duration) {
    let mut buffer = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if pieces
            .send((Instant::now() + delay, buffer[..length].to_vec()))
            .is_err()
        {
            return;
        }
    }
}

fn write(mut to: TcpStream, pieces: &Receiver<Piece>) {
    for (due, piece) in pieces {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    // The other side may have gone first.
    to.shutdown(Shutdown::Both).ok();
}
