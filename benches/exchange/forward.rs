//! A forwarder that knows nothing but bytes, as a process of its own: two of them in a row hand every message over as often as
//! relay and bridge must, and so show what of the tunnel's latency is the machine's.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::process::Process;

/// Forwards for ever; its address is the one line it prints.
pub(crate) fn run(target: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(target).await.unwrap();
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                copy_bidirectional(&mut near, &mut far).await.ok();
            });
        }
    });
}

/// One that runs.
pub(crate) struct Forwarder {
    pub(crate) address: SocketAddr,
    _process: Process,
}

impl Forwarder {
    pub(crate) fn start(target: SocketAddr) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--forward", &target.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = child.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        Self {
            address: line.trim().parse().unwrap(),
            _process: Process::of(child),
        }
    }
}
