//! What a driven link does at its ends.

use super::*;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::protocol::Role;

#[tokio::test(start_paused = true)]
async fn streams_of_a_link_nobody_drives_end() {
    let (near, _far) = tokio::io::duplex(4096);
    let (mux, driver) = start(Socket::new(near, Bytes::new(), Role::Server).await, Side::Opener, 8);
    let mut stream = mux.open().unwrap();
    drop(driver);
    assert!(stream.read(&mut [0; 8]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_does_not_wait_for_a_side_that_does_not_read() {
    let (near, mut far) = tokio::io::duplex(1024);
    let (mux, mut driver) = start(Socket::new(near, Bytes::new(), Role::Server).await, Side::Opener, 8);
    let mut stream = mux.open().unwrap();
    stream.write_all(&[0; 60_000]).await.unwrap();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        mux.close(close::TOKEN, "token");
        // It reads nothing, and shows that it lives: masked pongs without a payload.
        while far.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    });
    let ended = tokio::time::timeout(Duration::from_secs(60), async {
        while !matches!(driver.next().await, Event::Ended(_)) {}
    });
    ended.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_until_all_is_told_is_called_after_a_goodbye_too() {
    let (near, _far) = tokio::io::duplex(4096);
    let (mux, mut driver) = start(Socket::new(near, Bytes::new(), Role::Server).await, Side::Opener, 8);
    mux.close(close::TOKEN, "token");
    let (told, mut called) = tokio::sync::oneshot::channel();
    let waiting = async {
        tokio::task::yield_now().await;
        mux.when_told(Box::new(|| told.send(()).unwrap()));
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        event = driver.next() => panic!("{event:?}"),
        _ = &mut called => {}
        () = waiting => {}
    }
}
